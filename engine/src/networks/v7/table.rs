//! What an RWKV-7 model is made of, as data; its layers' tensors are in the file above.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::{hugging_face, Layer};
use crate::networks::common::{Embedding, Head};
use crate::networks::config::Sizes;
use crate::networks::names;
use crate::networks::state::StateLayout;
use crate::networks::table::{size, Architecture, Kind, RowPart, ShownBy, SizeSpec, StatePart};

pub(crate) static ARCHITECTURE: Architecture = Architecture {
    kind: Kind::V7,
    name: "rwkv-7",
    title: "RWKV-7",
    version: 7,
    sizes: &[
        size!(
            n_vocab <= 1 << 24,
            "vocab_size",
            None,
            ShownBy::Matrix(names::EMBEDDING, 0)
        ),
        size!(
            n_embd <= 1 << 16,
            "hidden_size",
            None,
            ShownBy::Matrix(names::EMBEDDING, 1)
        ),
        size!(
            n_layer <= 1 << 10,
            "num_hidden_layers",
            None,
            ShownBy::LayerCount
        ),
        size!(
            n_attention <= 1 << 16,
            "attention_hidden_size",
            None,
            ShownBy::Matrix("blocks.0.att.key.weight", 0)
        ),
        size!(
            n_hidden <= 1 << 20,
            "intermediate_size",
            None,
            ShownBy::Matrix("blocks.0.ffn.key.weight", 0)
        ),
        size!(
            head_size <= 1 << 12,
            "head_dim",
            None,
            ShownBy::Matrix("blocks.0.att.r_k", 1)
        ),
        size!(
            rank_decay <= 1 << 16,
            "decay_low_rank_dim",
            None,
            ShownBy::Matrix("blocks.0.att.w1", 1)
        ),
        size!(
            rank_iclr <= 1 << 16,
            "a_low_rank_dim",
            None,
            ShownBy::Matrix("blocks.0.att.a1", 1)
        ),
        SizeSpec {
            // A model of one layer has none.
            min: 0,
            ..size!(
                rank_value <= 1 << 16,
                "v_low_rank_dim",
                None,
                ShownBy::MatrixIfAny("blocks.1.att.v1", 1)
            )
        },
        size!(
            rank_gate <= 1 << 16,
            "gate_low_rank_dim",
            None,
            ShownBy::Matrix("blocks.0.att.g1", 1)
        ),
    ],
    norm_out_epsilon: |config| config.settings.layer_norm_epsilon,
    numbers: &[
        ("norm_epsilon", |config| config.settings.layer_norm_epsilon),
        ("norm_out_epsilon", |config| config.norm_out_epsilon()),
        ("head_norm_epsilon", |config| {
            config.settings.head_norm_epsilon
        }),
    ],
    embedding: Embedding::TENSORS,
    layer: Layer::TENSORS,
    head: Head::TENSORS,
    state: &[
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
    ],
    tuned_part: Some(WKV.start),
    row: &[
        RowPart {
            name: "residual stream",
            len: |s| s.n_embd,
        },
        RowPart {
            name: "values of the first layer",
            len: |s| s.n_attention,
        },
    ],
    hugging_face: hugging_face::HUGGING_FACE,
    context_length: 4096,
    check,
    memory,
};

/// Parts of the state, as the table lists them.
pub(super) const FFN_PREVIOUS: usize = 0;
pub(super) const ATT_PREVIOUS: usize = 1;
/// (head, key, value)
pub(super) const WKV: Range<usize> = 2..3;

fn check(sizes: &Sizes) -> Result<(), String> {
    let (channels, head_size) = (sizes.n_attention, sizes.head_size);
    if channels % head_size != 0 {
        return Err(format!(
            "head_size {head_size}, expected a divisor of n_attention {channels}"
        ));
    }
    // No model comes near: that of 13 billion parameters has 2^24. A state of three large sizes would be hundreds of times
    // its weights.
    let numbers = sizes.n_layer as u64 * (channels as u64 * head_size as u64);
    if numbers > 1 << 29 {
        return Err(format!(
            "head_size {head_size} by n_attention {channels} by n_layer {}: a state of {numbers} numbers, expected at \
             most {}",
            sizes.n_layer,
            1 << 29
        ));
    }
    if sizes.rank_value == 0 && sizes.n_layer > 1 {
        return Err("rank_value 0, expected more in a model of several layers".into());
    }
    Ok(())
}

/// The mean over keys of what each head holds for them: what it would answer to a receptance that knows no key.
fn memory(layout: &StateLayout, layer: &[f32]) -> Vec<f32> {
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
