//! What an RWKV-7 model is made of, as data; its layers' tensors are in the file above.

#![forbid(unsafe_code)]

use super::{hugging_face, Layer};
use crate::networks::common::{Embedding, Head};
use crate::networks::config::Sizes;
use crate::networks::head_states::{self, WKV};
use crate::networks::table::{
    size, Architecture, Kind, RowPart, ShownBy, SizeSpec, N_ATTENTION, N_EMBD, N_HIDDEN, N_LAYER,
    N_VOCAB, RESIDUAL_STREAM,
};

pub(crate) static ARCHITECTURE: Architecture = Architecture {
    kind: Kind::V7,
    name: "rwkv-7",
    title: "RWKV-7",
    version: 7,
    sizes: &[
        N_VOCAB,
        N_EMBD,
        N_LAYER,
        N_ATTENTION,
        N_HIDDEN,
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
    numbers: head_states::NUMBERS,
    embedding: Embedding::TENSORS,
    layer: Layer::TENSORS,
    head: Head::TENSORS,
    state: head_states::STATE,
    tuned_part: Some(WKV.start),
    row: &[
        RESIDUAL_STREAM,
        RowPart {
            name: "values of the first layer",
            len: |s| s.n_attention,
        },
    ],
    hugging_face: hugging_face::HUGGING_FACE,
    is_only_raw: false,
    context_length: 4096,
    check,
    memory: head_states::memory,
};

fn check(sizes: &Sizes) -> Result<(), String> {
    head_states::check(sizes)?;
    if sizes.rank_value == 0 && sizes.n_layer > 1 {
        return Err("rank_value 0, expected more in a model of several layers".into());
    }
    Ok(())
}
