//! The `config.json` of RWKV-5 and 6 in Hugging Face directories, as the code that is published with
//! these models reads it ("remote code": transformers itself does not know them).

#![forbid(unsafe_code)]

use serde_json::{json, Value};

use super::MIXES;
use crate::networks::config::{decimal, Config, Sizes, WORLD_VOCABULARY};
use crate::networks::config_fields::ConfigFields;
use crate::networks::table::Kind;

pub(crate) const CONFIG: ConfigFields = ConfigFields {
    other_sizes: &[],
    norm_epsilon: &["layer_norm_epsilon"],
    context_length: &["context_length", "max_position_embeddings"],
    head_norm_epsilon: None,
    head_divisor: Some(DIVISOR),
    // That code always has 3.5 times the width.
    ignored: &["intermediate_size"],
    scaled_head_norm: None,
    n_vocab_ended_by_0: &[WORLD_VOCABULARY],
    has_tied_heads_only: true,
    refuse: |_, _| Ok(()),
    derived,
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

/// Hidden units, and the ranks of RWKV-6, for which `config.json` has no field.
fn derived(sizes: &Sizes) -> Vec<(&'static str, usize, usize)> {
    let wide = if sizes.n_embd == 4096 { 2 } else { 1 };
    let hidden = (sizes.n_embd * 7 / 2) / 32 * 32;
    let mut all = vec![("hidden units", sizes.n_hidden, hidden)];
    if sizes.architecture.kind == Kind::V6 {
        let mixes = sizes.rank_mixes / MIXES;
        all.push(("the rank of each token shift", mixes, 32 * wide));
        all.push(("the rank of the decay", sizes.rank_decay, 64 * wide));
    }
    all
}

fn computed(config: &Config) -> Vec<(&'static str, Value)> {
    // 8 where the epsilon is the one that all published models were trained with.
    let divisor = (decimal(config.settings.head_norm_epsilon) / 1e-5).sqrt();
    let whole = divisor.round();
    let divisor = match (divisor - whole).abs() < 1e-9 {
        true => json!(whole as u64),
        false => json!(divisor),
    };
    vec![(DIVISOR, divisor)]
}
