//! Names of tensors in checkpoints: those of raw ones, and Hugging Face's, which are made from them by rules.
//!
//! A name is `blocks.N.PART.LEAF` in a layer and `PART.LEAF` outside. Parts and leaves are renamed on their own, so names
//! that mix both spellings are understood, too.

#![forbid(unsafe_code)]

use std::borrow::Cow;

use super::config_fields::ConfigFields;

/// The table of embeddings, which may be the head as well.
pub(crate) const EMBEDDING: &str = "emb.weight";
/// The head.
pub(crate) const HEAD: &str = "head.weight";

/// In front of a layer's number.
pub(crate) const BLOCKS: &str = "blocks.";

/// How Hugging Face directories call things.
pub(crate) struct HuggingFace {
    /// `model_type` of `config.json`,
    pub(crate) model_type: &'static str,
    /// and its first `architectures`.
    pub(crate) class: &'static str,
    /// In front of all names but the head's; readers do without it.
    pub(crate) prefix: &'static str,
    /// Others that readers know.
    pub(crate) other_prefixes: &'static [&'static str],
    /// In front of a layer's number, in place of `blocks.`
    pub(crate) layers: &'static str,
    /// (raw, Hugging Face's) beginnings of names, behind prefix and layer; the first that fits counts.
    pub(crate) parts: &'static [Rule],
    /// (raw, Hugging Face's) ends of names.
    pub(crate) leaves: &'static [Rule],
    /// More `parts`, for readers, which look here first.
    pub(crate) also_read: &'static [Rule],
    /// Ends of the names, in files, of matrices that are the transposes of those of raw checkpoints.
    pub(crate) transposed: &'static [&'static str],
    /// Tensors that hold others one behind the other, for readers: what they are called as `parts` have it, and the raw
    /// names of the others.
    pub(crate) in_one: &'static [(&'static str, &'static [&'static str])],
    /// The same of tensors that all checkpoints hold in one, raw ones, too: as raw checkpoints call it, and what it holds.
    pub(crate) joined: &'static [(&'static str, &'static [&'static str])],
    /// Raw names of vectors that are [n], where raw checkpoints have [1, 1, n].
    pub(crate) flat: &'static [&'static str],
    /// Raw names of a layer's tensors in the order in which transformers keeps them, which decides what comes into which
    /// shard.
    pub(crate) order: &'static [&'static str],
    pub(crate) config: ConfigFields,
}

impl HuggingFace {
    /// Hugging Face's name of a tensor, from that in raw checkpoints.
    pub(crate) fn name(&self, raw: &str) -> String {
        let theirs = renamed(raw, self.parts.iter(), self.leaves, |(ours, theirs)| {
            (ours, theirs)
        });
        match theirs.strip_prefix(BLOCKS) {
            _ if raw == HEAD => theirs,
            Some(rest) => [self.prefix, self.layers, rest].concat(),
            None => [self.prefix, &theirs].concat(),
        }
    }

    /// The name in raw checkpoints, from either spelling. Names of neither are left as they are.
    pub(crate) fn raw(&self, name: &str) -> String {
        let mut prefixes = std::iter::once(&self.prefix).chain(self.other_prefixes);
        let name = prefixes
            .find_map(|prefix| name.strip_prefix(prefix))
            .unwrap_or(name);
        let name = match name.strip_prefix(self.layers) {
            Some(rest) => Cow::Owned([BLOCKS, rest].concat()),
            None => Cow::Borrowed(name),
        };
        let parts = self.also_read.iter().chain(self.parts);
        renamed(&name, parts, self.leaves, |(ours, theirs)| (theirs, ours))
    }

    /// Whether a matrix of this name in a file is the transpose of what raw checkpoints have.
    pub(crate) fn is_transposed(&self, name: &str) -> bool {
        self.transposed.iter().any(|end| name.ends_with(end))
    }

    /// What holds a layer's tensor of this raw name in every checkpoint, and all that it holds.
    pub(crate) fn joined(&self, leaf: &str) -> Option<(&'static str, &'static [&'static str])> {
        let mut all = self.joined.iter().copied();
        all.find(|(_, held)| held.contains(&leaf))
    }

    /// The raw names of the tensors that one holds one behind the other; none for most.
    pub(crate) fn held_in_one(&self, name: &str) -> Vec<String> {
        let raw = self.raw(name);
        let Some((layer, leaf)) = split_layer(&raw) else {
            return Vec::new();
        };
        let mut all = self.in_one.iter().chain(self.joined);
        let found = all.find(|(one, _)| *one == leaf);
        let held = found.map_or(&[][..], |(_, held)| held);
        let full = |leaf: &&str| format!("{BLOCKS}{layer}.{leaf}");
        held.iter().map(full).collect()
    }
}

pub(crate) type Rule = (&'static str, &'static str);

/// A name whose part and leaf are renamed as `from_and_to` reads the rules.
fn renamed<'r>(
    name: &str,
    parts: impl Iterator<Item = &'r Rule>,
    leaves: &[Rule],
    from_and_to: fn(Rule) -> Rule,
) -> String {
    let start = layer_len(name);
    let (layer, rest) = name.split_at(start);
    let parts = parts.map(|rule| from_and_to(*rule));
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
        .strip_prefix(BLOCKS)
        .and_then(|rest| rest.split_once('.'));
    digits.map_or(0, |(digits, _)| BLOCKS.len() + digits.len() + 1)
}

/// `blocks.N.REST` as N and REST.
pub(crate) fn split_layer(name: &str) -> Option<(usize, &str)> {
    let (start, rest) = name.split_at(layer_len(name));
    let digits = start.strip_prefix(BLOCKS)?.strip_suffix('.')?;
    let layer: usize = digits.parse().ok()?;
    (layer.to_string() == digits).then_some((layer, rest))
}

/// What programs of training put around a model: each adds a segment to the names of all that is in it.
const WRAPPERS: [&str; 4] = [
    "_orig_mod.",
    "_forward_module.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
];

/// First segments of the names that models have themselves.
const OUTERMOST: [&str; 8] = [
    "blocks",
    "emb",
    "head",
    "ln_out",
    "rwkv",
    "embeddings",
    "layers",
    "lm_head",
];

/// Takes off what programs of training put in front of the names of all tensors, such as `module.`, and between
/// their segments, such as `_orig_mod.`
pub(crate) struct Cleaner {
    /// Bytes that all names begin with, without wrappers.
    prefix: usize,
}

impl Cleaner {
    /// For exactly these names.
    pub(crate) fn new<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Self {
        let mut prefix = 0;
        let Some(first) = names.clone().next().map(unwrapped) else {
            return Cleaner { prefix };
        };
        for _ in 0..SEGMENTS_MAX {
            let rest = first.get(prefix..).and_then(|rest| rest.split_once('.'));
            let Some((segment, _)) = rest else {
                break;
            };
            let is_own = OUTERMOST.contains(&segment) || segment.parse::<u64>().is_ok();
            let longer = prefix + segment.len() + 1;
            // A name that is nothing but the prefix is one of its own.
            let has_it = |name: &str| {
                let name = unwrapped(name);
                name.len() > longer && name.get(..longer) == first.get(..longer)
            };
            if is_own || !names.clone().all(has_it) {
                break;
            }
            prefix = longer;
        }
        Cleaner { prefix }
    }

    /// The name of a tensor in its model.
    pub(crate) fn name<'a>(&self, name: &'a str) -> Cow<'a, str> {
        match unwrapped(name) {
            Cow::Borrowed(name) => Cow::Borrowed(name.get(self.prefix..).unwrap_or(name)),
            Cow::Owned(name) => Cow::Owned(name.get(self.prefix..).unwrap_or(&name).to_owned()),
        }
    }
}

/// Of a common beginning.
const SEGMENTS_MAX: usize = 8;

fn unwrapped(name: &str) -> Cow<'_, str> {
    let mut name = Cow::Borrowed(name);
    for wrapper in WRAPPERS {
        if name.contains(wrapper) {
            name = Cow::Owned(name.replace(wrapper, ""));
        }
    }
    name
}

/// The segments that adapters such as DoRA and Bone add to the names of the matrices they belong to, but for capitals.
const ADAPTERS: [&str; 5] = [
    "base_layer",
    "bone",
    "disha",
    "prompt_embeddings",
    "prompt_encoder",
];

/// How others begin, of PEFT and of LyCORIS: `lora_A`, `pissa_A`, `ia3_l`, `hada_w1_a`, `lokr_w1`.
const ADAPTER_STARTS: [&str; 9] = [
    "lora_", "dora_", "pissa_", "ia3_", "hada_", "lokr_", "vera_", "oft_", "boft_",
];

/// Whether a tensor is part of an adapter, such as LoRA, or of a model that has one and is not merged with it.
pub(crate) fn is_of_adapter(name: &str) -> bool {
    let begins = |segment: &str, start: &str| {
        let found = segment.get(..start.len());
        found.is_some_and(|found| found.eq_ignore_ascii_case(start))
    };
    let is_adapter = |segment: &str| {
        ADAPTERS.iter().any(|one| segment.eq_ignore_ascii_case(one))
            || ADAPTER_STARTS.iter().any(|one| begins(segment, one))
    };
    name.split('.').any(is_adapter)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_training_puts_around_names_is_taken_off() {
        let clean = |names: &[&str]| -> Vec<String> {
            let cleaner = Cleaner::new(names.iter().copied());
            let names = names.iter().map(|name| cleaner.name(name).into_owned());
            names.collect()
        };
        let plain = ["emb.weight", "blocks.0.ln1.bias"];
        assert_eq!(clean(&plain), plain);
        for prefix in [
            "module.",
            "_orig_mod.",
            "model.",
            "_forward_module.",
            "module._orig_mod.",
            "_orig_mod.module.model.",
            "anything.",
        ] {
            let names = plain.map(|name| format!("{prefix}{name}"));
            assert_eq!(clean(&[&names[0], &names[1]]), plain, "{prefix}");
        }
        // Inside, too, where single layers were compiled.
        let names = ["module.emb.weight", "module.blocks.0._orig_mod.ln1.bias"];
        assert_eq!(clean(&names), plain);
        // Not all names have it, or it is the model's own.
        for names in [
            ["module.emb.weight", "blocks.0.ln1.bias"],
            ["blocks.0.ln1.bias", "blocks.0.ln1.weight"],
            ["a.", "a."],
        ] {
            assert_eq!(clean(&names), names);
        }
        assert!(clean(&[]).is_empty());
    }

    #[test]
    fn adapters() {
        for name in [
            "blocks.0.att.key.lora_A",
            "base_model.model.blocks.0.att.key.lora_B.default.weight",
            "blocks.0.att.key.base_layer.weight",
            "emb.lora_embedding_A.default",
            "base_model.model.blocks.0.att.key.ia3_l",
            "blocks.0.att.key.hada_w1_a",
            "lycoris_blocks_0_att_key.lokr_w1",
            "blocks.0.att.key.pissa_A",
            "prompt_embeddings",
        ] {
            assert!(is_of_adapter(name), "{name}");
        }
        // Small matrices of RWKV-7 itself, as flash-linear-attention calls them.
        assert!(!is_of_adapter("model.layers.0.attn.w_lora.lora.0.weight"));
    }
}
