//! What the `config.json` of RWKV-7 says of texts and norms, on its way through conversions.

#[path = "common/command.rs"]
mod command;
mod common;
#[path = "common/conversion.rs"]
mod conversion;
#[path = "common/rwkv7.rs"]
mod forms;
#[path = "common/tensors.rs"]
mod tensors;

use std::fs;

use command::{run, stdout};
use common::json;
use conversion::{convert, fingerprint, logits, text};
use forms::{golden_config, golden_tensors, Folder};
use serde_json::{json, Value};

/// flash-linear-attention writes 1 and 2 where it is told nothing, which are letters of these vocabularies.
#[test]
fn texts_of_pile_models_end_with_token_0() {
    let folder = Folder::new();
    let mut tensors = golden_tensors();
    for name in ["model.embeddings.weight", "lm_head.weight"] {
        let tensor = tensors.get_mut(name).expect("a golden tensor");
        let row = tensor.bytes.len() / tensor.shape[0];
        let rows = tensor.bytes.chunks_exact(row).cycle().take(50_304);
        tensor.bytes = rows.flatten().copied().collect();
        tensor.shape[0] = 50_304;
    }
    let mut config = golden_config();
    (config["vocab_size"], config["bos_token_id"]) = (json!(50_304), json!(1));
    config["eos_token_id"] = json!(2);
    let model = folder.model("pile", &tensors, &config);
    let generation = json!({ "bos_token_id": 1, "eos_token_id": 2, "top_p": 0.5 });
    fs::write(model.join("generation_config.json"), generation.to_string()).expect("written");
    let info = stdout(&run(["info", "-m", text(&model), "--json"]));
    let info: Value = serde_json::from_str(&info).expect("valid JSON");
    assert_eq!(info["ends_of_text"], json!([0]));
    let converted = folder.path("converted");
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
    let folder = Folder::new();
    let mut config = golden_config();
    let usual = folder.model("usual", &golden_tensors(), &config);
    config["norm_eps"] = json!(1e-3);
    let unusual = folder.model("unusual", &golden_tensors(), &config);
    let raw = folder.path("m.pth");
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
