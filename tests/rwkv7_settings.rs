//! What the `config.json` of RWKV-7 says of texts and norms, on its way through conversions.

#[path = "common/command.rs"]
mod command;
mod common;
#[path = "common/conversion.rs"]
mod conversion;
#[path = "common/tensors.rs"]
mod tensors;

use std::fs;
use std::path::Path;

use command::{run, stdout};
use common::{golden, json};
use conversion::{convert, fingerprint, logits, text};
use serde_json::{json, Value};
use tensors::{read_file, safetensors, Tensors};

fn golden_tensors() -> Tensors {
    let shards = [1, 2].map(|n| format!("model-0000{n}-of-00002.safetensors"));
    let files = shards.map(|shard| read_file(&golden("v7-hf").join(shard)));
    files.into_iter().flatten().collect()
}

/// A directory of flash-linear-attention.
fn write(folder: &Path, tensors: &Tensors, config: &Value) {
    fs::create_dir_all(folder).expect("can be made");
    let file = folder.join("model.safetensors");
    fs::write(file, safetensors(tensors)).expect("can be written");
    fs::write(folder.join("config.json"), config.to_string()).expect("can be written");
}

/// flash-linear-attention writes 1 and 2 where it is told nothing, which are letters of these vocabularies.
#[test]
fn texts_of_pile_models_end_with_token_0() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut tensors = golden_tensors();
    for name in ["model.embeddings.weight", "lm_head.weight"] {
        let tensor = tensors.get_mut(name).expect("a golden tensor");
        let row = tensor.bytes.len() / tensor.shape[0];
        let rows = tensor.bytes.chunks_exact(row).cycle().take(50_304);
        tensor.bytes = rows.flatten().copied().collect();
        tensor.shape[0] = 50_304;
    }
    let mut config = json(golden("v7-hf").join("config.json"));
    (config["vocab_size"], config["bos_token_id"]) = (json!(50_304), json!(1));
    config["eos_token_id"] = json!(2);
    let model = folder.path().join("pile");
    write(&model, &tensors, &config);
    let generation = json!({ "bos_token_id": 1, "eos_token_id": 2, "top_p": 0.5 });
    fs::write(model.join("generation_config.json"), generation.to_string()).expect("written");
    let info = stdout(&run(["info", "-m", text(&model), "--json"]));
    let info: Value = serde_json::from_str(&info).expect("valid JSON");
    assert_eq!(info["ends_of_text"], json!([0]));
    let converted = folder.path().join("converted");
    convert(&model, &converted, &[]);
    for file in ["config.json", "generation_config.json"] {
        let fields = json(converted.join(file));
        let ids = [&fields["bos_token_id"], &fields["eos_token_id"]];
        assert_eq!(ids, [&json!(0), &json!(0)], "{file}");
    }
    let generation = json(converted.join("generation_config.json"));
    assert_eq!(generation["top_p"], json!(0.5));
}

#[test]
fn what_a_raw_checkpoint_does_not_hold_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = json(golden("v7-hf").join("config.json"));
    let (usual, unusual) = (folder.path().join("usual"), folder.path().join("unusual"));
    write(&usual, &golden_tensors(), &config);
    config["norm_eps"] = json!(1e-3);
    write(&unusual, &golden_tensors(), &config);
    let raw = folder.path().join("m.pth");
    assert!(!convert(&usual, &raw, &["--to", "raw"]).contains("epsilon"));
    assert_eq!(logits(&usual), logits(&raw));
    let said = convert(&unusual, &raw, &["--to", "raw", "--force"]);
    for text in [
        "the epsilon of norms is 0.001 and not part of a raw checkpoint: readers of it take 0.00001",
        "the epsilon of norms of heads is 0.064",
    ] {
        assert!(said.contains(text), "{said}");
    }
    assert_ne!(logits(&unusual), logits(&raw));
    // States of one are none of the other.
    assert_eq!(
        fingerprint(&usual),
        fingerprint(&unusual),
        "the first hash has no epsilon"
    );
}
