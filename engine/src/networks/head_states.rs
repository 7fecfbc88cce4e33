//! The states of RWKV-5 to 7: two rows of the token before, and a matrix for each head.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::config::Sizes;
use super::state::StateLayout;
use super::table::{Number, StatePart};

/// What a layer's state consists of.
pub(crate) const STATE: &[StatePart] = &[
    StatePart {
        name: "ffn_previous",
        len: |s| s.n_embd,
        empty: 0.0,
    },
    StatePart {
        name: "att_previous",
        len: |s| s.n_embd,
        empty: 0.0,
    },
    StatePart {
        name: "wkv",
        len: |s| s.n_attention * s.head_size,
        empty: 0.0,
    },
];

/// Constants of the arithmetic.
pub(crate) const NUMBERS: &[(&str, Number)] = &[
    ("norm_epsilon", |config| config.settings.layer_norm_epsilon),
    ("norm_out_epsilon", |config| config.norm_out_epsilon()),
    ("head_norm_epsilon", |config| {
        config.settings.head_norm_epsilon
    }),
];

/// Its parts, as the list has them.
pub(crate) const FFN_PREVIOUS: usize = 0;
pub(crate) const ATT_PREVIOUS: usize = 1;
/// (head, key, value)
pub(crate) const WKV: Range<usize> = 2..3;

/// What sizes must have in common.
pub(crate) fn check(sizes: &Sizes) -> Result<(), String> {
    let (channels, head_size) = (sizes.n_attention, sizes.head_size);
    if channels % head_size != 0 {
        return Err(format!(
            "head_size {head_size}, expected a divisor of n_attention {channels}"
        ));
    }
    // No model comes near: those of 14 billion parameters have 2^24. A state of three large sizes
    // would be hundreds of times its weights.
    let numbers = sizes.n_layer as u64 * (channels as u64 * head_size as u64);
    if numbers > 1 << 29 {
        return Err(format!(
            "head_size {head_size} by n_attention {channels} by n_layer {}: a state of {numbers} \
             numbers, expected at most {}",
            sizes.n_layer,
            1 << 29
        ));
    }
    Ok(())
}

/// The mean over keys of what each head holds for them: what it would answer to a receptance that
/// knows no key.
pub(crate) fn memory(layout: &StateLayout, layer: &[f32]) -> Vec<f32> {
    let head_size = layout.sizes.head_size;
    let heads = layer[layout.parts(WKV)].chunks_exact(head_size * head_size);
    let means = heads.flat_map(|head| {
        (0..head_size).map(move |value| {
            let held = head.iter().skip(value).step_by(head_size);
            held.sum::<f32>() / head_size as f32
        })
    });
    means.collect()
}
