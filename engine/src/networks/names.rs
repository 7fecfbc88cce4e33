//! Names of tensors in checkpoints: those of raw ones, and Hugging Face's, which are made from them by rules.
//!
//! A name is `blocks.N.PART.LEAF` in a layer and `PART.LEAF` outside. Parts and leaves are renamed on their own, so names
//! that mix both spellings are understood, too.

#![forbid(unsafe_code)]

/// The table of embeddings, which may be the head as well.
pub(crate) const EMBEDDING: &str = "emb.weight";
/// The head.
pub(crate) const HEAD: &str = "head.weight";

/// How Hugging Face directories call things.
pub(crate) struct HuggingFace {
    /// `model_type` of `config.json`,
    pub(crate) model_type: &'static str,
    /// and its first `architectures`.
    pub(crate) class: &'static str,
    /// In front of all names but the head's; readers do without it.
    pub(crate) prefix: &'static str,
    /// (raw, Hugging Face's) beginnings of names, behind prefix and layer.
    pub(crate) parts: &'static [(&'static str, &'static str)],
    /// (raw, Hugging Face's) ends of names.
    pub(crate) leaves: &'static [(&'static str, &'static str)],
    /// Raw names of a layer's tensors in the order in which transformers keeps them, which decides what comes into which
    /// shard.
    pub(crate) order: &'static [&'static str],
}

impl HuggingFace {
    /// Hugging Face's name of a tensor, from that in raw checkpoints.
    pub(crate) fn name(&self, raw: &str) -> String {
        match raw == HEAD {
            true => raw.to_owned(),
            false => {
                self.prefix.to_owned()
                    + &renamed(raw, self.parts, self.leaves, |(ours, theirs)| {
                        (ours, theirs)
                    })
            }
        }
    }

    /// The name in raw checkpoints, from either spelling. Names of neither are left as they are.
    pub(crate) fn raw(&self, name: &str) -> String {
        let name = name.strip_prefix(self.prefix).unwrap_or(name);
        renamed(name, self.parts, self.leaves, |(ours, theirs)| {
            (theirs, ours)
        })
    }
}

type Rule = (&'static str, &'static str);

/// A name whose part and leaf are renamed as `from_and_to` reads the rules.
fn renamed(name: &str, parts: &[Rule], leaves: &[Rule], from_and_to: fn(Rule) -> Rule) -> String {
    let start = layer_len(name);
    let (layer, rest) = name.split_at(start);
    let parts = parts.iter().map(|rule| from_and_to(*rule));
    let mut found = parts.filter_map(|(from, to)| Some((to, rest.strip_prefix(from)?)));
    let (part, rest) = found.next().unwrap_or(("", rest));
    let leaves = leaves.iter().map(|rule| from_and_to(*rule));
    // Behind a part that has its new name already the leaf may still have its old one.
    let mut found = leaves.filter_map(|(from, to)| Some((rest.strip_suffix(from)?, to)));
    let (rest, leaf) = found.next().unwrap_or((rest, ""));
    format!("{layer}{part}{rest}{leaf}")
}

/// Bytes of `blocks.N.`; 0 for names outside of layers.
fn layer_len(name: &str) -> usize {
    let digits = name
        .strip_prefix("blocks.")
        .and_then(|rest| rest.split_once('.'));
    digits.map_or(0, |(digits, _)| "blocks.".len() + digits.len() + 1)
}

/// `blocks.N.REST` as N and REST.
pub(crate) fn split_layer(name: &str) -> Option<(usize, &str)> {
    let (start, rest) = name.split_at(layer_len(name));
    let digits = start.strip_prefix("blocks.")?.strip_suffix('.')?;
    let layer: usize = digits.parse().ok()?;
    (layer.to_string() == digits).then_some((layer, rest))
}

/// What a name of any checkpoint has behind the number of its layer; all of one that has no number.
pub(crate) fn behind_number(name: &str) -> &str {
    let mut rest = name;
    while let Some((segment, behind)) = rest.split_once('.') {
        if !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_digit()) {
            return behind;
        }
        rest = behind;
    }
    name
}
