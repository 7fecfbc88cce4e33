//! The sizes and constants of a model, and how model files write them.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::table::Architecture;
use crate::error::{Error, Result};

/// Sizes of a model. Which of them an architecture has, and their bounds, is in its table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sizes {
    pub(crate) architecture: &'static Architecture,
    pub(crate) n_vocab: usize,
    pub(crate) n_embd: usize,
    pub(crate) n_layer: usize,
    /// Channels of the time mixing: mostly `n_embd`.
    pub(crate) n_attention: usize,
    /// Hidden units of the channel mixing: mostly 4 `n_embd`.
    pub(crate) n_hidden: usize,
    /// Channels of a head of the time mixing, and widths of the inner sides of the low-rank matrices of RWKV-6 and 7; 0 in
    /// versions that have none.
    pub(crate) head_size: usize,
    pub(crate) rank_decay: usize,
    pub(crate) rank_iclr: usize,
    pub(crate) rank_value: usize,
    pub(crate) rank_gate: usize,
    /// Of the five shares of a token shift together.
    pub(crate) rank_mixes: usize,
}

/// All that is configured about a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) sizes: Sizes,
    pub(crate) settings: Settings,
}

/// Of what model files say in some hundred bytes. Any JSON takes many times the memory of its text.
const JSON_BYTES_MAX: usize = 64 << 10;

/// What the tensors do not show.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Of the norms in the blocks. transformers gives `ln_out` 1e-5 whatever this says.
    pub(crate) layer_norm_epsilon: f32,
    /// Of the norms of RWKV-7's heads; other versions have none.
    #[serde(
        default = "head_norm_epsilon",
        skip_serializing_if = "is_head_norm_epsilon"
    )]
    pub(crate) head_norm_epsilon: f32,
    /// Token id that ends a text: the first of them.
    pub(crate) end_of_text: u32,
    /// Others that do, too.
    #[serde(default, skip_serializing_if = "OtherEnds::is_empty")]
    pub(crate) other_ends_of_text: OtherEnds,
    /// Token id that begins a text; RWKV-4 was trained with 0 for both.
    pub(crate) bos: u32,
    /// Tokens the model was trained on at a time. Advisory: the recurrent form has no limit.
    pub(crate) context_length: usize,
    /// Whether the head is the embedding.
    pub(crate) tie_word_embeddings: bool,
}

/// Token ids that end a text beside the first one. Mostly there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(into = "Vec<u32>", try_from = "Vec<u32>")]
pub(crate) struct OtherEnds {
    ids: [u32; OtherEnds::MAX],
    n: usize,
}

impl OtherEnds {
    /// More than any model has.
    pub(crate) const MAX: usize = 15;

    pub(crate) fn as_slice(&self) -> &[u32] {
        &self.ids[..self.n]
    }

    fn is_empty(&self) -> bool {
        self.n == 0
    }
}

impl From<OtherEnds> for Vec<u32> {
    fn from(ends: OtherEnds) -> Self {
        ends.as_slice().to_vec()
    }
}

impl TryFrom<Vec<u32>> for OtherEnds {
    type Error = String;

    fn try_from(all: Vec<u32>) -> Result<Self, String> {
        let mut ends = OtherEnds::default();
        match ends.ids.get_mut(..all.len()) {
            Some(ids) => ids.copy_from_slice(&all),
            None => {
                return Err(format!(
                    "{} token ids, expected at most {}",
                    all.len(),
                    Self::MAX
                ))
            }
        }
        ends.n = all.len();
        Ok(ends)
    }
}

/// Tokens of World, with the ids that its list leaves out.
pub(crate) const WORLD_VOCABULARY: usize = 65_536;

/// A number of few digits as its decimal says it: 1e-5, and not the f64 nearest to the f32.
pub(crate) fn decimal(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

impl Settings {
    /// What flash-linear-attention gives the norms of heads: the epsilon of other norms, times the channels of a head.
    pub(crate) fn scaled_head_norm_epsilon(&self, head_size: usize) -> f32 {
        (decimal(self.layer_norm_epsilon) * head_size as f64) as f32
    }

    /// All token ids that end a text.
    pub(crate) fn ends_of_text(&self) -> impl Iterator<Item = u32> + '_ {
        let others = self.other_ends_of_text.as_slice().iter().copied();
        std::iter::once(self.end_of_text).chain(others)
    }
}

/// As BlinkDL trained: 8^2 times that of the other norms, because outputs of heads were divided by 8 once.
fn head_norm_epsilon() -> f32 {
    64e-5
}

fn is_head_norm_epsilon(epsilon: &f32) -> bool {
    *epsilon == head_norm_epsilon()
}

impl Default for Settings {
    /// As BlinkDL trained.
    fn default() -> Self {
        Settings {
            layer_norm_epsilon: 1e-5,
            head_norm_epsilon: head_norm_epsilon(),
            end_of_text: 0,
            other_ends_of_text: OtherEnds::default(),
            bos: 0,
            context_length: 1024,
            tie_word_embeddings: false,
        }
    }
}

impl Sizes {
    /// No size is known yet.
    pub(crate) fn unknown(architecture: &'static Architecture) -> Self {
        Sizes {
            architecture,
            n_vocab: 0,
            n_embd: 0,
            n_layer: 0,
            n_attention: 0,
            n_hidden: 0,
            head_size: 0,
            rank_decay: 0,
            rank_iclr: 0,
            rank_value: 0,
            rank_gate: 0,
            rank_mixes: 0,
        }
    }

    /// The sizes that the architecture has, with their names.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&'static str, usize)> + '_ {
        let sizes = self.architecture.sizes.iter();
        sizes.map(|size| (size.name, (size.get)(self)))
    }

    /// Whether all sizes are ones a model can have.
    ///
    /// # Errors
    /// A size of 0, or above its bound, and sizes that do not go together.
    pub(crate) fn check(&self) -> Result<()> {
        for spec in self.architecture.sizes {
            let (name, size, max) = (spec.name, (spec.get)(self), spec.max);
            let min = spec.min;
            if !(min..=max).contains(&(size as u64)) {
                return Err(Error::format(format!(
                    "{name} {size}, expected {min} to {max}"
                )));
            }
        }
        (self.architecture.check)(self).map_err(Error::format)
    }
}

impl Config {
    /// What can be told from the tensors alone: the sizes. The rest is as BlinkDL trained.
    pub(crate) fn of_sizes(sizes: Sizes) -> Self {
        Config {
            sizes,
            settings: Settings {
                context_length: sizes.architecture.context_length,
                ..Settings::default()
            },
        }
    }

    /// Of the norm in front of the head.
    pub(crate) fn norm_out_epsilon(&self) -> f32 {
        (self.sizes.architecture.norm_out_epsilon)(self)
    }

    /// Whether all sizes and numbers are ones a model can have.
    pub(crate) fn check(&self) -> Result<()> {
        self.sizes.check()?;
        let settings = &self.settings;
        for (name, epsilon) in [
            ("layer_norm_epsilon", settings.layer_norm_epsilon),
            ("head_norm_epsilon", settings.head_norm_epsilon),
        ] {
            if !(epsilon > 0.0 && epsilon < 1.0) {
                return Err(Error::format(format!(
                    "{name} {epsilon}, expected more than 0 and less than 1"
                )));
            }
        }
        Ok(())
    }

    /// As model files have it: one JSON object of sizes and settings.
    pub(crate) fn to_json(self) -> Value {
        let sizes = self.sizes.named();
        let mut fields: Map<String, Value> =
            sizes.map(|(name, n)| (name.into(), n.into())).collect();
        if let Ok(Value::Object(settings)) = serde_json::to_value(self.settings) {
            fields.extend(settings);
        }
        let mut fields = Value::Object(fields);
        // The same text whatever order objects keep.
        fields.sort_all_objects();
        fields
    }

    /// Reads what [`to_json`](Self::to_json) wrote, and checks it.
    ///
    /// # Errors
    /// What is missing, of another type, or out of its bounds.
    pub(crate) fn from_json(architecture: &'static Architecture, text: &str) -> Result<Self> {
        let damaged =
            |e: &dyn std::fmt::Display| Error::format(format!("metadata: damaged `config`: {e}"));
        if text.len() > JSON_BYTES_MAX {
            let n = text.len();
            return Err(damaged(&format_args!(
                "{n} bytes, expected at most {JSON_BYTES_MAX}"
            )));
        }
        let fields: Map<String, Value> = serde_json::from_str(text).map_err(|e| damaged(&e))?;
        let mut sizes = Sizes::unknown(architecture);
        for size in architecture.sizes {
            let name = size.name;
            let value = fields.get(name);
            let missing = || damaged(&format_args!("missing field `{name}`"));
            let value = value.ok_or_else(missing)?;
            let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
            let wrong = || damaged(&format_args!("{name} {value}, expected a number"));
            (size.set)(&mut sizes, number.ok_or_else(wrong)?);
        }
        let settings = serde_json::from_value(Value::Object(fields)).map_err(|e| damaged(&e))?;
        let config = Config { sizes, settings };
        config.check().map_err(|e| e.at("metadata: `config`"))?;
        Ok(config)
    }
}
