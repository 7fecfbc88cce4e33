//! What can be said of a model before any weight is read: from the headers of its files alone.
//!
//! For callers that decide something before they load, such as whether a tokenizer has to be found
//! first. `Model::outline` makes it.

#![forbid(unsafe_code)]

use crate::quant::Quant;

/// What the headers of a model's files say.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outline {
    /// Tokens of the vocabulary.
    pub n_vocab: usize,
    /// Whether a tokenizer is in or beside the model. It has not been looked at.
    pub has_tokenizer: bool,
    /// What the matrices stay when no quant is asked for.
    pub stored: Quant,
    /// What the matrices of a checkpoint are quantised as, if any are, by ggml's name: `Q8_0`. Nothing here computes with
    /// these, so that they become something else.
    pub stored_blocks: Option<&'static str>,
    /// Whether it is a model file: one whose matrices, if they stay so, are used in place.
    pub is_model_file: bool,
}
