//! The `config.json` of RWKV-5 and 6 in Hugging Face directories, as the code that is published with
//! these models reads it ("remote code": transformers itself does not know them).

#![forbid(unsafe_code)]

use serde_json::{json, Map, Value};

use crate::networks::config::{Config, Sizes, WORLD_VOCABULARY};
use crate::networks::config_fields::ConfigFields;

pub(crate) const CONFIG: ConfigFields = ConfigFields {
    other_sizes: &[],
    norm_epsilon: &["layer_norm_epsilon"],
    context_length: &["context_length", "max_position_embeddings"],
    head_norm_epsilon: None,
    scaled_head_norm: None,
    n_vocab_ended_by_0: &[WORLD_VOCABULARY],
    has_tied_heads_only: true,
    refuse,
    // Names of code that is not copied, and older names of what is written.
    obsolete: &[
        "auto_map",
        "max_position_embeddings",
        "model_version",
        "num_attention_heads",
        "torch_dtype",
    ],
    defaults: || vec![("rescale_every", json!(6)), ("use_cache", json!(true))],
    computed,
};

const DIVISOR: &str = "head_size_divisor";

/// That code divides what heads give by 8 before their norms, whose epsilon is 1e-5: the same as an
/// epsilon of 8^2 * 1e-5 without the division, which all these models were trained with.
fn refuse(fields: &Map<String, Value>, _: &Sizes) -> Result<(), String> {
    match fields.get(DIVISOR) {
        None | Some(Value::Null) => Ok(()),
        Some(found) if *found == 8 => Ok(()),
        Some(Value::Number(found)) => Err(format!("{DIVISOR} {found}, expected 8")),
        Some(_) => Err(format!("{DIVISOR} is no number, expected 8")),
    }
}

fn computed(_: &Config) -> Vec<(&'static str, Value)> {
    vec![(DIVISOR, json!(8))]
}
