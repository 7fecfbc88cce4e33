//! RWKV-7 as llama.cpp's converter writes it.

#![forbid(unsafe_code)]

use super::model::As::{Heads, Mixes, Same, Transposed};
use super::model::Form;

pub(super) static FORM: Form = Form {
    name: "rwkv7",
    title: "RWKV-7",
    layer: &[
        ("attn_norm.weight", "ln1.weight", Same),
        ("attn_norm.bias", "ln1.bias", Same),
        ("attn_norm_2.weight", "ln2.weight", Same),
        ("attn_norm_2.bias", "ln2.bias", Same),
        ("time_mix_lerp_fused.weight", "", Mixes(&MIXES)),
        ("time_mix_w0.weight", "att.w0", Same),
        ("time_mix_w1.weight", "att.w1", Transposed),
        ("time_mix_w2.weight", "att.w2", Transposed),
        ("time_mix_a0.weight", "att.a0", Same),
        ("time_mix_a1.weight", "att.a1", Transposed),
        ("time_mix_a2.weight", "att.a2", Transposed),
        ("time_mix_v0.weight", "att.v0", Same),
        ("time_mix_v1.weight", "att.v1", Transposed),
        ("time_mix_v2.weight", "att.v2", Transposed),
        ("time_mix_g1.weight", "att.g1", Transposed),
        ("time_mix_g2.weight", "att.g2", Transposed),
        ("time_mix_k_k.weight", "att.k_k", Same),
        ("time_mix_k_a.weight", "att.k_a", Same),
        ("time_mix_r_k.weight", "att.r_k", Heads),
        ("time_mix_receptance.weight", "att.receptance.weight", Same),
        ("time_mix_key.weight", "att.key.weight", Same),
        ("time_mix_value.weight", "att.value.weight", Same),
        ("time_mix_output.weight", "att.output.weight", Same),
        ("time_mix_ln.weight", "att.ln_x.weight", Same),
        ("time_mix_ln.bias", "att.ln_x.bias", Same),
        ("channel_mix_lerp_k.weight", "ffn.x_k", Same),
        ("channel_mix_key.weight", "ffn.key.weight", Same),
        ("channel_mix_value.weight", "ffn.value.weight", Same),
    ],
    optional: &[],
    not_in_first_layer: &[
        // Copies of `a0`, `a1` and `a2`: the first layer has no earlier value to mix with.
        "time_mix_v0.weight",
        "time_mix_v1.weight",
        "time_mix_v2.weight",
    ],
    layer_sizes: &[
        ("feed_forward_length", "channel_mix_key.weight", 0),
        ("attention.decay_lora_rank", "time_mix_w1.weight", 0),
        ("attention.iclr_lora_rank", "time_mix_a1.weight", 0),
        (
            "attention.value_residual_mix_lora_rank",
            "time_mix_v1.weight",
            0,
        ),
        ("attention.gate_lora_rank", "time_mix_g1.weight", 0),
    ],
    halved_every: None,
};

/// Raw names of the mixing vectors, as they follow each other.
const MIXES: [&str; 6] = [
    "att.x_r", "att.x_w", "att.x_k", "att.x_v", "att.x_a", "att.x_g",
];
