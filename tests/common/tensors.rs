//! Safetensors files taken apart by hand, so that what a test expects owes nothing to the code it tests.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        Tensor {
            dtype: "F32".into(),
            shape,
            bytes: bytes.collect(),
        }
    }

    /// Of a tensor of f32.
    pub fn floats(&self) -> Vec<f32> {
        assert_eq!(self.dtype, "F32");
        let numbers = self.bytes.chunks_exact(4);
        numbers
            .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("4 bytes")))
            .collect()
    }

    /// A tensor of f32 with every number in another type.
    pub fn as_type(&self, dtype: &str) -> Self {
        let floats = self.floats();
        let bytes = match dtype {
            "F32" => self.bytes.clone(),
            "F16" => floats
                .iter()
                .flat_map(|&value| half::f16::from_f32(value).to_le_bytes())
                .collect(),
            "BF16" => floats.iter().flat_map(|&value| bf16(value)).collect(),
            _ => panic!("{dtype}"),
        };
        Tensor {
            dtype: dtype.into(),
            shape: self.shape.clone(),
            bytes,
        }
    }
}

/// Rounded to nearest, ties to even.
fn bf16(value: f32) -> [u8; 2] {
    let bits = value.to_bits();
    let rounded = bits + 0x7fff + (bits >> 16 & 1);
    ((rounded >> 16) as u16).to_le_bytes()
}

pub type Tensors = BTreeMap<String, Tensor>;

/// The tensors of one file. They must tile it, and its header must say that torch wrote them.
pub fn read_file(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let size = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + size]).expect("valid JSON");
    let data = &bytes[8 + size..];
    let mut tensors = Tensors::new();
    let mut places = Vec::new();
    for (name, entry) in header.as_object().expect("an object") {
        if name == "__metadata__" {
            continue;
        }
        let number = |value: &Value| value.as_u64().expect("a number") as usize;
        let place = [0, 1].map(|i| number(&entry["data_offsets"][i]));
        places.push(place);
        let shape = entry["shape"].as_array().expect("a list");
        let tensor = Tensor {
            dtype: entry["dtype"].as_str().expect("text").into(),
            shape: shape.iter().map(number).collect(),
            bytes: data[place[0]..place[1]].to_vec(),
        };
        tensors.insert(name.clone(), tensor);
    }
    places.sort_unstable();
    let mut end = 0;
    for [begin, next] in places {
        assert_eq!(begin, end, "{}: a gap", path.display());
        end = next;
    }
    assert_eq!(end, data.len(), "{}: all of the file", path.display());
    tensors
}

/// The tensors of a Hugging Face directory, whose index, if there is one, must be right.
pub fn read_folder(folder: &Path) -> Tensors {
    let index = folder.join("model.safetensors.index.json");
    let single = folder.join("model.safetensors");
    if !index.exists() {
        return read_file(&single);
    }
    assert!(!single.exists(), "one model or several files, not both");
    let index: Value =
        serde_json::from_slice(&fs::read(index).expect("readable")).expect("valid JSON");
    let mut shard_of: BTreeMap<String, String> =
        serde_json::from_value(index["weight_map"].clone()).expect("names");
    let shards: std::collections::BTreeSet<String> = shard_of.values().cloned().collect();
    let mut all = Tensors::new();
    for shard in &shards {
        for (name, tensor) in read_file(&folder.join(shard)) {
            assert_eq!(shard_of.remove(&name).as_ref(), Some(shard), "{name}");
            all.insert(name, tensor);
        }
    }
    assert!(shard_of.is_empty(), "listed but not there: {shard_of:?}");
    let size: usize = all.values().map(|tensor| tensor.bytes.len()).sum();
    assert_eq!(index["metadata"]["total_size"], size);
    let count: usize = all
        .values()
        .map(|t| t.shape.iter().product::<usize>())
        .sum();
    assert_eq!(index["metadata"]["total_parameters"], count);
    let expected =
        (1..=shards.len()).map(|i| format!("model-{i:05}-of-{:05}.safetensors", shards.len()));
    assert!(
        shards.iter().eq(expected.collect::<Vec<_>>().iter()),
        "{shards:?}"
    );
    all
}

/// Hugging Face's name of a tensor from BlinkDL's, as the table of names has it.
pub fn hugging_face_name(name: &str) -> String {
    if name == "head.weight" {
        return name.into();
    }
    let mut name = format!("rwkv.{name}");
    for (raw, theirs) in [
        ("rwkv.emb.", "rwkv.embeddings."),
        (".ln0.", ".pre_ln."),
        (".att.", ".attention."),
        (".ffn.", ".feed_forward."),
    ] {
        name = name.replace(raw, theirs);
    }
    for (raw, theirs) in [("_k", "_key"), ("_v", "_value"), ("_r", "_receptance")] {
        if let Some(stem) = name.strip_suffix(&format!("time_mix{raw}")) {
            name = format!("{stem}time_mix{theirs}");
        }
    }
    name
}

/// A safetensors file of these tensors.
pub fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, tensor) in tensors {
        let begin = data.len();
        data.extend(&tensor.bytes);
        let entry = serde_json::json!({
            "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, data.len()],
        });
        header.insert(name.clone(), entry);
    }
    let header = Value::from(header).to_string();
    [
        &(header.len() as u64).to_le_bytes()[..],
        header.as_bytes(),
        &data,
    ]
    .concat()
}
