//! Models of one layer that write what a test wants: whatever they read, their logits are the same.
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
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
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
    // The head reads a row of ones, always.
    add("ln_out.weight", &[d], 0.0);
    add("ln_out.bias", &[d], 1.0);
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
    let head = &mut tensors.get_mut("head.weight").expect("was added").1;
    for &(token, logit) in favourites {
        head[token * d] = logit;
    }
    let path = folder.join("model.safetensors");
    std::fs::write(&path, safetensors(&tensors)).expect("can be written");
    path
}

fn safetensors(tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>) -> Vec<u8> {
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
