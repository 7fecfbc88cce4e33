//! RWKV-6 as llama.cpp's converter writes it.

#![forbid(unsafe_code)]

use super::model::As::{Halved, Heads, Mixes, Same, Transposed, TransposedOnes};
use super::model::Form;

pub(super) static FORM: Form = Form {
    name: "rwkv6",
    title: "RWKV-6",
    layer: &[
        ("attn_norm.weight", "ln1.weight", Same),
        ("attn_norm.bias", "ln1.bias", Same),
        ("attn_norm_2.weight", "ln2.weight", Same),
        ("attn_norm_2.bias", "ln2.bias", Same),
        ("time_mix_lerp_x.weight", "att.time_maa_x", Same),
        ("time_mix_lerp_fused.weight", "", Mixes(&MIXES)),
        ("time_mix_lerp_w.weight", "att.time_maa_w", Same),
        ("time_mix_lerp_k.weight", "att.time_maa_k", Same),
        ("time_mix_lerp_v.weight", "att.time_maa_v", Same),
        ("time_mix_lerp_r.weight", "att.time_maa_r", Same),
        ("time_mix_lerp_g.weight", "att.time_maa_g", Same),
        ("time_mix_w1.weight", "att.time_maa_w1", Transposed),
        ("time_mix_w2.weight", "", TransposedOnes(&SECONDS)),
        ("time_mix_first.weight", "att.time_faaaa", Heads),
        ("time_mix_decay.weight", "att.time_decay", Same),
        ("time_mix_decay_w1.weight", "att.time_decay_w1", Transposed),
        ("time_mix_decay_w2.weight", "att.time_decay_w2", Transposed),
        ("time_mix_receptance.weight", "att.receptance.weight", Same),
        ("time_mix_key.weight", "att.key.weight", Same),
        ("time_mix_value.weight", "att.value.weight", Same),
        ("time_mix_gate.weight", "att.gate.weight", Same),
        ("time_mix_output.weight", "att.output.weight", Halved),
        ("time_mix_ln.weight", "att.ln_x.weight", Same),
        ("time_mix_ln.bias", "att.ln_x.bias", Same),
        ("channel_mix_lerp_k.weight", "ffn.time_maa_k", Same),
        ("channel_mix_lerp_r.weight", "ffn.time_maa_r", Same),
        ("channel_mix_key.weight", "ffn.key.weight", Same),
        (
            "channel_mix_receptance.weight",
            "ffn.receptance.weight",
            Same,
        ),
        ("channel_mix_value.weight", "ffn.value.weight", Halved),
    ],
    optional: &[
        // Files have all shares in one tensor or, older ones, in five.
        "time_mix_lerp_fused.weight",
        "time_mix_lerp_w.weight",
        "time_mix_lerp_k.weight",
        "time_mix_lerp_v.weight",
        "time_mix_lerp_r.weight",
        "time_mix_lerp_g.weight",
    ],
    not_in_first_layer: &[],
    layer_sizes: &[
        ("feed_forward_length", "channel_mix_key.weight", 0),
        ("time_decay_extra_dim", "time_mix_decay_w1.weight", 0),
    ],
    halved_every: Some("rescale_every_n_layers"),
};

/// Raw names of the mixing vectors, as they follow each other.
const MIXES: [&str; 5] = [
    "att.time_maa_w",
    "att.time_maa_k",
    "att.time_maa_v",
    "att.time_maa_r",
    "att.time_maa_g",
];

/// The second halves of what the token adds to them, likewise.
const SECONDS: [&str; 5] = [
    "att.time_maa_w2_w",
    "att.time_maa_w2_k",
    "att.time_maa_w2_v",
    "att.time_maa_w2_r",
    "att.time_maa_w2_g",
];
