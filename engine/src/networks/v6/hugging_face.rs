//! RWKV-6 in Hugging Face directories, as the code that is published with these models has it.

#![forbid(unsafe_code)]

use crate::networks::eagle::hugging_face::CONFIG;
use crate::networks::names::{HuggingFace, BLOCKS};

pub(super) const HUGGING_FACE: HuggingFace = HuggingFace {
    model_type: "rwkv6",
    class: "Rwkv6ForCausalLM",
    prefix: "rwkv.",
    other_prefixes: &[],
    layers: BLOCKS,
    parts: &[
        ("emb.", "embeddings."),
        ("ln0.", "pre_ln."),
        ("att.", "attention."),
        ("ffn.", "feed_forward."),
    ],
    leaves: &[],
    also_read: &[],
    transposed: &[],
    // In raw checkpoints, too.
    in_one: &[(
        "att.time_maa_w2",
        &[
            "att.time_maa_w2_w",
            "att.time_maa_w2_k",
            "att.time_maa_w2_v",
            "att.time_maa_w2_r",
            "att.time_maa_w2_g",
        ],
    )],
    flat: &[],
    order: &[
        "ln0.weight",
        "ln0.bias",
        "ln1.weight",
        "ln1.bias",
        "ln2.weight",
        "ln2.bias",
        "att.time_maa_x",
        "att.time_maa_w",
        "att.time_maa_k",
        "att.time_maa_v",
        "att.time_maa_r",
        "att.time_maa_g",
        "att.time_maa_w1",
        "att.time_maa_w2_w",
        "att.time_maa_w2_k",
        "att.time_maa_w2_v",
        "att.time_maa_w2_r",
        "att.time_maa_w2_g",
        "att.time_decay",
        "att.time_decay_w1",
        "att.time_decay_w2",
        "att.time_faaaa",
        "att.receptance.weight",
        "att.key.weight",
        "att.value.weight",
        "att.output.weight",
        "att.gate.weight",
        "att.ln_x.weight",
        "att.ln_x.bias",
        "ffn.time_maa_k",
        "ffn.time_maa_r",
        "ffn.key.weight",
        "ffn.receptance.weight",
        "ffn.value.weight",
    ],
    config: CONFIG,
};
