//! How the `config.json` of Hugging Face directories says what tensors do not show, as data.

#![forbid(unsafe_code)]

use serde_json::{Map, Value};

use super::config::{Config, Sizes};

/// Fields of a `config.json` beside those of the sizes, which are in the table.
pub(crate) struct ConfigFields {
    /// (field of a size, the one that others write in its place)
    pub(crate) other_sizes: &'static [(&'static str, &'static str)],
    /// All are read, and the first is written.
    pub(crate) norm_epsilon: &'static [&'static str],
    pub(crate) context_length: &'static [&'static str],
    /// Written only where the names of tensors do not say it.
    pub(crate) head_norm_epsilon: Option<&'static str>,
    /// What heads' outputs are divided by before norms of epsilon 1e-5: the same as an epsilon of 1e-5 times its square
    /// without the division.
    pub(crate) head_divisor: Option<&'static str>,
    /// Fields that the programs of such directories do not look at, whatever they say.
    pub(crate) ignored: &'static [&'static str],
    /// The end of the name that the norms of heads have where their epsilon is
    /// [scaled](super::config::Settings::scaled_head_norm_epsilon).
    pub(crate) scaled_head_norm: Option<&'static str>,
    /// Sizes of vocabularies whose texts begin and end with token 0, whatever is configured.
    pub(crate) n_vocab_ended_by_0: &'static [usize],
    /// Whether a head beside `tie_word_embeddings` contradicts it; else it is the head all the same.
    pub(crate) has_tied_heads_only: bool,
    /// What of the fields says that the model is another one. Sizes that are not known yet are 0.
    pub(crate) refuse: fn(&Map<String, Value>, &Sizes) -> Result<(), String>,
    /// Sizes that the programs of such directories take from others, whatever is said of them: what each is called, what
    /// the model has, and what they take it to be.
    pub(crate) derived: fn(&Sizes) -> Vec<(&'static str, usize, usize)>,
    /// Fields of a directory that do not go into the one that is made of it.
    pub(crate) obsolete: &'static [&'static str],
    /// What is written where such a directory does not say it.
    pub(crate) defaults: fn() -> Vec<(&'static str, Value)>,
    /// What is always written.
    pub(crate) computed: fn(&Config) -> Vec<(&'static str, Value)>,
}
