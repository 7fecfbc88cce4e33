//! The sizes of a model: from `config.json`, or from the shapes of its tensors.
//!
//! Fields that are missing or `null` take the values that transformers' `RwkvConfig` gives them.
//! The sizes are bounded here, so that products of two of them never overflow; that the tensors
//! agree with them is checked by `names.rs`.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::json;
use crate::error::{Error, Result};
use crate::files::SourceFile;

/// A `config.json` has some twenty lines.
const FILE_BYTES_MAX: u64 = 1 << 20;

const N_VOCAB_MAX: u64 = 1 << 24;
const N_EMBD_MAX: u64 = 1 << 16;
const N_HIDDEN_MAX: u64 = 1 << 20;
pub(super) const N_LAYER_MAX: u64 = 1 << 10;

/// Sizes and constants of an RWKV-4 model. Stored as JSON in model files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Config {
    pub(crate) n_vocab: usize,
    pub(crate) n_embd: usize,
    pub(crate) n_layer: usize,
    /// Channels of the time mixing: mostly `n_embd`.
    pub(crate) n_attention: usize,
    /// Hidden units of the channel mixing: mostly 4 `n_embd`.
    pub(crate) n_hidden: usize,
    /// Of the norms in the blocks. transformers gives `ln_out` 1e-5 whatever this says.
    pub(crate) layer_norm_epsilon: f32,
    /// Token id that ends a text.
    pub(crate) end_of_text: u32,
    /// Token id that begins a text; RWKV-4 was trained with 0 for both.
    pub(crate) bos: u32,
    /// Tokens the model was trained on at a time. Advisory: the recurrent form has no limit.
    pub(crate) context_length: usize,
    /// Whether the head is the embedding.
    pub(crate) tie_word_embeddings: bool,
}

impl Config {
    /// From a folder's `config.json`.
    pub(super) fn from_file(file: &SourceFile) -> Result<Self> {
        let fields: Map<String, Value> = json::parse(file, FILE_BYTES_MAX)?;
        Self::from_fields(&fields).map_err(|e| e.at(file.name()))
    }

    /// What can be told from the tensors alone: the sizes. The rest is as BlinkDL trained.
    pub(super) fn from_sizes(
        [n_vocab, n_embd, n_layer, n_attention, n_hidden]: [usize; 5],
    ) -> Result<Self> {
        let config = Config {
            n_vocab,
            n_embd,
            n_layer,
            n_attention,
            n_hidden,
            layer_norm_epsilon: 1e-5,
            end_of_text: 0,
            bos: 0,
            context_length: 1024,
            tie_word_embeddings: false,
        };
        config.check()?;
        Ok(config)
    }

    fn from_fields(fields: &Map<String, Value>) -> Result<Self> {
        require_rwkv4(fields)?;
        let n_embd = count(fields, "hidden_size", N_EMBD_MAX)?.unwrap_or(4096);
        let hidden = count(fields, "intermediate_size", N_HIDDEN_MAX)?;
        let context = match count(fields, "context_length", u64::from(u32::MAX))? {
            Some(length) => Some(length),
            None => count(fields, "max_position_embeddings", u64::from(u32::MAX))?,
        };
        let config = Config {
            n_vocab: count(fields, "vocab_size", N_VOCAB_MAX)?.unwrap_or(50277),
            n_embd,
            n_layer: count(fields, "num_hidden_layers", N_LAYER_MAX)?.unwrap_or(32),
            n_attention: count(fields, "attention_hidden_size", N_EMBD_MAX)?.unwrap_or(n_embd),
            n_hidden: hidden.unwrap_or(4 * n_embd),
            layer_norm_epsilon: epsilon(fields)?,
            end_of_text: token(fields, "eos_token_id")?,
            bos: token(fields, "bos_token_id")?,
            context_length: context.unwrap_or(1024),
            tie_word_embeddings: flag(fields, "tie_word_embeddings")?,
        };
        config.check()?;
        Ok(config)
    }

    /// Whether all sizes are ones a model can have: also for a `Config` read from a model file.
    pub(crate) fn check(&self) -> Result<()> {
        let sizes = [
            ("n_vocab", self.n_vocab, N_VOCAB_MAX),
            ("n_embd", self.n_embd, N_EMBD_MAX),
            ("n_layer", self.n_layer, N_LAYER_MAX),
            ("n_attention", self.n_attention, N_EMBD_MAX),
            ("n_hidden", self.n_hidden, N_HIDDEN_MAX),
        ];
        for (name, size, max) in sizes {
            if size == 0 || size as u64 > max {
                return Err(Error::format(format!("{name} {size}, expected 1 to {max}")));
            }
        }
        if !(self.layer_norm_epsilon > 0.0 && self.layer_norm_epsilon < 1.0) {
            let message = format!(
                "layer_norm_epsilon {}, expected more than 0 and less than 1",
                self.layer_norm_epsilon
            );
            return Err(Error::format(message));
        }
        Ok(())
    }
}

/// Other architectures have other tensors; their name says more than the first one that is missing.
fn require_rwkv4(fields: &Map<String, Value>) -> Result<()> {
    match present(fields, "model_type") {
        Some(Value::String(found)) if found == "rwkv" => Ok(()),
        Some(found) => Err(Error::unsupported(format!(
            "model_type {found}, expected \"rwkv\" (RWKV-4)"
        ))),
        None => match present(fields, "architectures").and_then(|list| list.get(0)) {
            Some(Value::String(found)) if found == "RwkvForCausalLM" => Ok(()),
            Some(found) => Err(Error::unsupported(format!(
                "architecture {found}, expected \"RwkvForCausalLM\" (RWKV-4)"
            ))),
            None => Err(Error::format("no model_type, expected \"rwkv\"")),
        },
    }
}

/// A field that is there and not `null`.
fn present<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.get(name).filter(|value| !value.is_null())
}

fn count(fields: &Map<String, Value>, name: &str, max: u64) -> Result<Option<usize>> {
    let Some(value) = present(fields, name) else {
        return Ok(None);
    };
    match value.as_u64().filter(|size| (1..=max).contains(size)) {
        // `max` is within 32 bits for every field.
        Some(size) => Ok(usize::try_from(size).ok()),
        None => Err(Error::format(format!(
            "{name} {value}, expected 1 to {max}"
        ))),
    }
}

fn token(fields: &Map<String, Value>, name: &str) -> Result<u32> {
    let Some(value) = present(fields, name) else {
        return Ok(0);
    };
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| Error::format(format!("{name} {value}, expected a token id")))
}

fn epsilon(fields: &Map<String, Value>) -> Result<f32> {
    let Some(value) = present(fields, "layer_norm_epsilon") else {
        return Ok(1e-5);
    };
    let number = value.as_f64().map(|number| number as f32);
    number.ok_or_else(|| Error::format(format!("layer_norm_epsilon {value}, expected a number")))
}

fn flag(fields: &Map<String, Value>, name: &str) -> Result<bool> {
    match present(fields, name) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(value) => Err(Error::format(format!(
            "{name} {value}, expected true or false"
        ))),
    }
}
