//! RWKV-5 in Hugging Face directories, as the code that is published with these models has it.

#![forbid(unsafe_code)]

use crate::networks::eagle::hugging_face::CONFIG;
use crate::networks::names::{HuggingFace, BLOCKS};

pub(super) const HUGGING_FACE: HuggingFace = HuggingFace {
    model_type: "rwkv5",
    class: "Rwkv5ForCausalLM",
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
        ("time_mix_g", "time_mix_gate"),
    ],
    // In RWKV-5.0 and 5.1, and by web-rwkv's converter.
    also_read: &[
        ("att.time_faaaa", "att.time_first"),
        ("att.time_faaaa", "attention.time_first"),
    ],
    transposed: &[],
    in_one: &[],
    joined: &[],
    flat: &[],
    order: &[
        "ln0.weight",
        "ln0.bias",
        "ln1.weight",
        "ln1.bias",
        "ln2.weight",
        "ln2.bias",
        "att.time_decay",
        "att.time_faaaa",
        "att.time_mix_k",
        "att.time_mix_v",
        "att.time_mix_r",
        "att.time_mix_g",
        "att.receptance.weight",
        "att.key.weight",
        "att.value.weight",
        "att.output.weight",
        "att.gate.weight",
        "att.ln_x.weight",
        "att.ln_x.bias",
        "ffn.time_mix_k",
        "ffn.time_mix_r",
        "ffn.key.weight",
        "ffn.receptance.weight",
        "ffn.value.weight",
    ],
    config: CONFIG,
};
