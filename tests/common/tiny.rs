//! Models of one layer that write what a test wants: one thing whatever they read, or after each token another.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{json, Value};

/// Width of the residual stream.
const N_EMBD: usize = 8;

/// Writes `model.safetensors` with BlinkDL's names; token `favourites[i].0` has a logit of
/// `favourites[i].1`, all others 0.
pub fn write_model(folder: &Path, n_vocab: usize, favourites: &[(usize, f32)]) -> PathBuf {
    let d = N_EMBD;
    let mut tensors = tensors(n_vocab, d);
    // The head reads a row of ones, always.
    fill(&mut tensors, "ln_out.weight", 0.0);
    fill(&mut tensors, "ln_out.bias", 1.0);
    for &(token, logit) in favourites {
        numbers(&mut tensors, "head.weight")[token * d] = logit;
    }
    write(folder, &tensors)
}

/// The same for a model that writes `script[i].1` after `script[i].0`, and token 0 after others. Its state depends on
/// all tokens that it has read.
pub fn write_script(folder: &Path, n_vocab: usize, script: &[(u32, u32)]) -> PathBuf {
    let d = script.len().next_multiple_of(N_EMBD);
    let mut tensors = tensors(n_vocab, d);
    for (i, &(token, next)) in script.iter().enumerate() {
        numbers(&mut tensors, "emb.weight")[token as usize * d + i] = 1.0;
        numbers(&mut tensors, "head.weight")[next as usize * d + i] = 1.0;
    }
    for i in 0..d {
        numbers(&mut tensors, "blocks.0.att.value.weight")[i * d + i] = 1.0;
    }
    write(folder, &tensors)
}

/// Tokens beside those of the bytes, which are one more than the byte.
const LONGER: [(u32, &str); 7] = [
    (257, "think"),
    (258, "thin"),
    (259, ">\n"),
    (260, "\n\nUser:"),
    (261, "\n\n"),
    (262, "Yes"),
    (263, "\n\nNo"),
];

/// A small vocabulary in the form of World's.
pub fn write_vocabulary(folder: &Path) -> PathBuf {
    let bytes = (0..=255).map(|byte: u32| match byte {
        0..=127 => format!("{} '\\x{byte:02x}' 1\n", byte + 1),
        _ => format!("{} b'\\x{byte:02x}' 1\n", byte + 1),
    });
    let longer = LONGER.iter();
    let longer =
        longer.map(|(id, text)| format!("{id} '{}' {}\n", text.escape_default(), text.len()));
    let lines: String = bytes.chain(longer).collect();
    let path = folder.join("rwkv_vocab.txt");
    std::fs::write(&path, lines).expect("can be written");
    path
}

/// A model and its vocabulary. It thinks "Ab", a blank line and "c", and answers with two paragraphs, "Yes" and "No".
pub fn write_thinker(folder: &Path) -> (PathBuf, PathBuf) {
    const N_VOCAB: usize = 272;
    let byte = |c: char| c as u32 + 1;
    let script = [
        (257, byte('>')),
        (byte('>'), byte('A')),
        (byte('A'), byte('b')),
        (byte('b'), 261),
        (261, byte('c')),
        (byte('c'), byte('<')),
        (byte('<'), byte('/')),
        (byte('/'), 258),
        (258, byte('k')),
        (byte('k'), 259),
        (259, 262),
        (262, 263),
        (263, 260),
        // Without thoughts.
        (byte(':'), 262),
    ];
    let model = write_script(folder, N_VOCAB, &script);
    (model, write_vocabulary(folder))
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn numbers<'t>(tensors: &'t mut Tensors, name: &str) -> &'t mut [f32] {
    &mut tensors.get_mut(name).expect("was added").1
}

fn fill(tensors: &mut Tensors, name: &str, value: f32) {
    numbers(tensors, name).fill(value);
}

/// Norms that change nothing, and matrices of zeros.
fn tensors(n_vocab: usize, d: usize) -> Tensors {
    let mut tensors = Tensors::new();
    let mut add = |name: &str, shape: &[usize], value: f32| {
        let n = shape.iter().product();
        tensors.insert(name.into(), (shape.to_vec(), vec![value; n]));
    };
    add("emb.weight", &[n_vocab, d], 0.0);
    add("head.weight", &[n_vocab, d], 0.0);
    for norm in ["blocks.0.ln0", "blocks.0.ln1", "blocks.0.ln2"] {
        add(&format!("{norm}.weight"), &[d], 1.0);
        add(&format!("{norm}.bias"), &[d], 0.0);
    }
    add("ln_out.weight", &[d], 1.0);
    add("ln_out.bias", &[d], 0.0);
    for vector in ["att.time_decay", "att.time_first"] {
        add(&format!("blocks.0.{vector}"), &[d], 0.0);
    }
    for mix in [
        "att.time_mix_k",
        "att.time_mix_v",
        "att.time_mix_r",
        "ffn.time_mix_k",
        "ffn.time_mix_r",
    ] {
        add(&format!("blocks.0.{mix}"), &[1, 1, d], 0.5);
    }
    for matrix in [
        "att.key",
        "att.value",
        "att.receptance",
        "att.output",
        "ffn.receptance",
    ] {
        add(&format!("blocks.0.{matrix}.weight"), &[d, d], 0.0);
    }
    add("blocks.0.ffn.key.weight", &[4 * d, d], 0.0);
    add("blocks.0.ffn.value.weight", &[d, 4 * d], 0.0);
    tensors
}

fn write(folder: &Path, tensors: &Tensors) -> PathBuf {
    let path = folder.join("model.safetensors");
    std::fs::write(&path, safetensors(tensors)).expect("can be written");
    path
}

fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, (shape, values)) in tensors {
        let begin = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string().into_bytes();
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}
