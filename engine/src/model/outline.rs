//! What can be said of a model before any weight is read: from the headers of its files alone.
//!
//! For callers that decide something before they load, such as whether a tokenizer has to be found
//! first. Sits beside `model.rs`, on the readers of `checkpoint/` and `format.rs`.

#![forbid(unsafe_code)]

use std::path::Path;

use crate::checkpoint::{self, Opened};
use crate::error::Result;
use crate::model::load;
use crate::model::model_file;
use crate::model::{Model, Options};
use crate::quant::matrix::Quant;

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
    /// Whether it is a model file: one whose matrices, if they stay so, are used in place.
    pub is_model_file: bool,
}

impl Model {
    /// Reads the headers of a model's files: a matter of milliseconds for any size.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open) that concern names, shapes and sizes.
    pub fn outline(path: impl AsRef<Path>, options: &Options) -> Result<Outline> {
        match checkpoint::open_path(path.as_ref(), options.access())? {
            Opened::Checkpoint(checkpoint) => Ok(Outline {
                n_vocab: checkpoint.config.n_vocab,
                has_tokenizer: checkpoint.tokenizer.is_some(),
                stored: load::stored_quant(&checkpoint),
                is_model_file: false,
            }),
            Opened::ModelFile(file) => {
                let (n_vocab, stored, tokenizer) = model_file::outline(&file)?;
                Ok(Outline {
                    n_vocab,
                    has_tokenizer: tokenizer,
                    stored,
                    is_model_file: true,
                })
            }
        }
    }
}
