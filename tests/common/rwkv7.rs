//! The golden directory of RWKV-7, taken apart and put together in other forms by rules of its own.
#![allow(dead_code)] // Every test binary uses its own part of this.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::common::{golden, json};
use crate::tensors::{read_file, safetensors, Tensor, Tensors};

/// As flash-linear-attention writes it.
pub const GOLDEN: &str = "v7-hf";

/// The same numbers with rows and columns exchanged.
pub fn transposed(tensor: &Tensor) -> Tensor {
    let &[rows, cols] = tensor.shape.as_slice() else {
        panic!("{:?} is no matrix", tensor.shape)
    };
    let size = tensor.bytes.len() / (rows * cols);
    let number = |row: usize, col: usize| &tensor.bytes[(row * cols + col) * size..][..size];
    let places = (0..cols).flat_map(|col| (0..rows).map(move |row| (row, col)));
    Tensor {
        dtype: tensor.dtype.clone(),
        shape: vec![cols, rows],
        bytes: places
            .flat_map(|(row, col)| number(row, col))
            .copied()
            .collect(),
    }
}

pub fn reshaped(tensor: &Tensor, shape: &[usize]) -> Tensor {
    Tensor {
        shape: shape.to_vec(),
        ..tensor.clone()
    }
}

/// A tensor of flash-linear-attention as raw checkpoints have it.
pub fn raw(theirs: &str, tensor: &Tensor) -> (String, Tensor) {
    let mut name = theirs.trim_start_matches("model.").to_owned();
    for (from, to) in [
        ("embeddings.", "emb."),
        ("lm_head.", "head."),
        ("layers.", "blocks."),
        ("pre_norm.", "ln0."),
        ("attn_norm.", "ln1."),
        ("ffn_norm.", "ln2."),
        ("attn.g_norm.", "att.ln_x."),
        ("attn.r_proj.", "att.receptance."),
        ("attn.k_proj.", "att.key."),
        ("attn.v_proj.", "att.value."),
        ("attn.o_proj.", "att.output."),
        ("attn.", "att."),
    ] {
        name = name.replace(from, to);
    }
    if let Some(rest) = name.strip_prefix("norm.") {
        name = format!("ln_out.{rest}");
    }
    let (is_first, is_second) = (
        name.ends_with("lora.0.weight"),
        name.ends_with("lora.2.weight"),
    );
    for (from, to) in [
        ("_lora.lora.0.weight", "1"),
        ("_lora.lora.2.weight", "2"),
        ("_lora.lora.2.bias", "0"),
    ] {
        name = name.replace(from, to);
    }
    let broadcast = ["x_k", "w0", "a0", "v0", "k_k", "k_a"];
    let tensor = match (
        is_first || is_second,
        broadcast.iter().any(|end| name.ends_with(end)),
    ) {
        (true, _) => transposed(tensor),
        (_, true) => reshaped(tensor, &[1, 1, tensor.bytes.len() / 2]),
        _ => tensor.clone(),
    };
    (name, tensor)
}

pub fn golden_raw() -> Tensors {
    let theirs = golden_tensors();
    theirs
        .iter()
        .map(|(name, tensor)| raw(name, tensor))
        .collect()
}

/// All shards; the index of others does not count parameters.
pub fn golden_tensors() -> Tensors {
    let shards = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    let shards = shards.map(|shard| read_file(&golden(GOLDEN).join(shard)));
    shards.into_iter().flatten().collect()
}

pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Folder(tempfile::tempdir().expect("a folder"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A directory of these tensors.
    pub fn model(&self, name: &str, tensors: &Tensors, config: &Value) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("can be made");
        fs::write(path.join("model.safetensors"), safetensors(tensors)).expect("can be written");
        fs::write(path.join("config.json"), config.to_string()).expect("can be written");
        path
    }
}

pub fn golden_config() -> Value {
    json(golden(GOLDEN).join("config.json"))
}
