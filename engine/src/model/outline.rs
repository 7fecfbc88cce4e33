//! What can be said of a model before any weight is read: from the headers of its files alone.
//!
//! For callers that decide something before they load, such as whether a tokenizer has to be found
//! first. `Model::outline` makes it.

#![forbid(unsafe_code)]

use super::Model;
use crate::quant::Quant;

/// What the headers of a model's files say.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outline {
    /// Tokens of the vocabulary.
    pub n_vocab: usize,
    /// Whether a tokenizer is in or beside the model. One beside it that is another model's does not count; else it has not
    /// been looked at.
    pub has_tokenizer: bool,
    /// What the matrices stay when no quant is asked for.
    pub stored: Quant,
    /// What the matrices of a checkpoint are quantised as, if any are, by ggml's name: `Q8_0`. Nothing here computes with
    /// these, so that they become something else.
    pub stored_blocks: Option<&'static str>,
    /// Whether it is a model file: one whose matrices, if they stay so, are used in place.
    pub is_model_file: bool,
}

/// How model files begin behind the length of their header, whose keys are in order.
const BEGINNINGS: [&[u8]; 2] = [
    br#"{"__metadata__":{"adapters":"#,
    br#"{"__metadata__":{"architecture":"rwkv-"#,
];

impl Model {
    /// Whether bytes, of which 64 are enough, begin as those of a model file do. It may be damaged
    /// behind them.
    pub fn begins_model_file(bytes: &[u8]) -> bool {
        let header = bytes.get(8..).unwrap_or_default();
        BEGINNINGS.iter().any(|one| header.starts_with(one))
    }
}
