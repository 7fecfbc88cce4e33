//! RWKV-4 in Hugging Face directories, as transformers writes it.

#![forbid(unsafe_code)]

use serde_json::json;

use crate::networks::config::WORLD_VOCABULARY;
use crate::networks::config_fields::ConfigFields;
use crate::networks::names::{HuggingFace, BLOCKS};

pub(super) const HUGGING_FACE: HuggingFace = HuggingFace {
    model_type: "rwkv",
    class: "RwkvForCausalLM",
    prefix: "rwkv.",
    other_prefixes: &[],
    layers: BLOCKS,
    parts: &[
        ("emb.", "embeddings."),
        ("ln0.", "pre_ln."),
        ("att.", "attention."),
        ("ffn.", "feed_forward."),
    ],
    leaves: &[
        ("time_mix_k", "time_mix_key"),
        ("time_mix_v", "time_mix_value"),
        ("time_mix_r", "time_mix_receptance"),
    ],
    also_read: &[],
    transposed: &[],
    in_one: &[],
    joined: &[],
    flat: &[],
    config: ConfigFields {
        other_sizes: &[],
        norm_epsilon: &["layer_norm_epsilon"],
        context_length: &["context_length", "max_position_embeddings"],
        head_norm_epsilon: None,
        head_divisor: None,
        ignored: &[],
        scaled_head_norm: None,
        n_vocab_ended_by_0: &[WORLD_VOCABULARY],
        has_tied_heads_only: false,
        refuse: |_, _| Ok(()),
        derived: |_| Vec::new(),
        // Older names of what is written.
        obsolete: &["torch_dtype", "max_position_embeddings"],
        defaults: || vec![("rescale_every", json!(6)), ("use_cache", json!(true))],
        computed: |_| Vec::new(),
    },
    order: &[
        "ln0.weight",
        "ln0.bias",
        "ln1.weight",
        "ln1.bias",
        "ln2.weight",
        "ln2.bias",
        "att.time_decay",
        "att.time_first",
        "att.time_mix_k",
        "att.time_mix_v",
        "att.time_mix_r",
        "att.key.weight",
        "att.value.weight",
        "att.receptance.weight",
        "att.output.weight",
        "ffn.time_mix_k",
        "ffn.time_mix_r",
        "ffn.key.weight",
        "ffn.receptance.weight",
        "ffn.value.weight",
    ],
};
