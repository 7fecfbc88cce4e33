//! Which tensors an RWKV-4 model has: their names in both spellings, and their shapes.
//!
//! Input: the tensors of all files, under the names they have there. Output: the same under
//! BlinkDL's names, complete, with nothing left over, each of the shape that the configuration
//! says. Tensors of other architectures are recognised, so that the error says what the model is.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::config::{Config, N_LAYER_MAX};
use super::tensor::RawTensor;
use crate::error::{Error, Result};

/// Hugging Face's and BlinkDL's names of what a block holds. Names that are the same are not
/// listed.
const BLOCK_NAMES: [(&str, &str); 3] = [
    ("pre_ln.", "ln0."),
    ("attention.", "att."),
    ("feed_forward.", "ffn."),
];

/// Hugging Face's and BlinkDL's endings of the token shift's vectors.
const MIX_NAMES: [(&str, &str); 3] = [
    ("time_mix_key", "time_mix_k"),
    ("time_mix_value", "time_mix_v"),
    ("time_mix_receptance", "time_mix_r"),
];

/// Tensors that RWKV-4 does not have, and what does have them. The first line that matches any
/// tensor names the model: newer versions keep some tensors of older ones, so the newest come
/// first.
const OTHER_ARCHITECTURES: [(&str, &[&str]); 5] = [
    (
        "RWKV-7",
        &[
            "att.x_", "att.w0", "att.a0", "att.k_k", "att.r_k", "ffn.x_k", "attn.x_", "attn.k_k",
        ],
    ),
    (
        "RWKV-6",
        &[
            "att.time_maa",
            "ffn.time_maa",
            "att.time_decay_w",
            "att.time_mix_w1",
        ],
    ),
    (
        "RWKV-5",
        &["att.ln_x.", "att.gate.", "att.time_mix_g", "att.time_faaaa"],
    ),
    (
        "a variant of RWKV-4 with extra attention, such as RWKV-4a",
        &[
            "att.qq.",
            "att.time_mix_qq",
            "att.att_mask",
            "tiny_",
            "head_q.",
            "copy_mask",
        ],
    ),
    (
        "a variant of RWKV-4 with another channel mixing, such as RWKV-4b",
        &["ffn.aa.", "ffn.bb."],
    ),
];

/// What shape a tensor must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Matrix(usize, usize),
    /// Any shape with this many elements along one dimension: both [D] and [1, 1, D] are in use.
    Vector(usize),
}

impl Want {
    fn admits(self, shape: &[usize]) -> bool {
        match self {
            Want::Matrix(rows, cols) => shape == [rows, cols],
            Want::Vector(n) => {
                let long = shape.iter().filter(|&&dim| dim != 1).count();
                long <= 1 && !shape.is_empty() && shape.iter().product::<usize>() == n
            }
        }
    }

    fn shape(self) -> Vec<usize> {
        match self {
            Want::Matrix(rows, cols) => vec![rows, cols],
            Want::Vector(n) => vec![n],
        }
    }
}

/// Tensors under BlinkDL's names.
pub(super) struct Named {
    place: String,
    tensors: BTreeMap<String, RawTensor>,
}

impl Named {
    /// Renames the tensors found at `place`.
    ///
    /// # Errors
    /// A tensor that only another architecture has, or one that occurs twice.
    pub(super) fn new(place: String, found: Vec<RawTensor>) -> Result<Self> {
        let mut tensors = BTreeMap::<String, RawTensor>::new();
        for tensor in found {
            let name = canonical(&tensor.name);
            if let Some(other) = tensors.get(&name) {
                let mut message = format!("the same as tensor {}", other.name);
                if other.file.name() != tensor.file.name() {
                    message += &format!(" of {}", other.file.name());
                }
                return Err(Error::format(message).at(tensor.place()));
            }
            tensors.insert(name, tensor);
        }
        refuse_other_architectures(&place, &tensors)?;
        Ok(Named { place, tensors })
    }

    /// The sizes that the shapes show, where no file says them.
    pub(super) fn infer_config(&self) -> Result<Config> {
        let n_layer = count_layers(self.tensors.keys().map(String::as_str));
        let [n_vocab, n_embd] = self.matrix("emb.weight")?;
        let [n_attention, _] = self.matrix("blocks.0.att.key.weight")?;
        let [n_hidden, _] = self.matrix("blocks.0.ffn.key.weight")?;
        Config::from_sizes([n_vocab, n_embd, n_layer, n_attention, n_hidden])
            .map_err(|e| e.at(&self.place))
    }

    /// The tensors, once they are exactly those of `config`; `source` says where that came from.
    pub(super) fn into_exact(
        mut self,
        config: &Config,
        source: &str,
    ) -> Result<BTreeMap<String, RawTensor>> {
        if config.tie_word_embeddings && !self.tensors.contains_key("head.weight") {
            let embedding = self.tensors.get("emb.weight").cloned();
            let head = embedding.map(|tensor| ("head.weight".to_owned(), tensor));
            self.tensors.extend(head);
        }
        let wanted = wanted(config);
        for (name, want) in &wanted {
            let Some(tensor) = self.tensors.get(name) else {
                let message = format!("missing, expected shape {:?} by {source}", want.shape());
                return Err(Error::format(message).at(format!("{}: tensor {name}", self.place)));
            };
            if !want.admits(&tensor.shape) {
                return Err(Error::format(format!(
                    "shape {:?}, expected {:?} by {source}",
                    tensor.shape,
                    want.shape()
                ))
                .at(tensor.place()));
            }
            if !tensor.dtype.is_weight() {
                let message = format!("dtype {}, expected F32, F16 or BF16", tensor.dtype);
                return Err(Error::unsupported(message).at(tensor.place()));
            }
        }
        match self
            .tensors
            .iter()
            .find(|(name, _)| !wanted.contains_key(*name))
        {
            None => Ok(self.tensors),
            Some((_, tensor)) => Err(Error::format(format!(
                "not part of an RWKV-4 model with {} layers, as expected by {source}",
                config.n_layer
            ))
            .at(tensor.place())),
        }
    }

    fn matrix(&self, name: &str) -> Result<[usize; 2]> {
        let Some(tensor) = self.tensors.get(name) else {
            let message = format!("{}: tensor {name}: missing", self.place);
            return Err(Error::format(message));
        };
        <[usize; 2]>::try_from(&tensor.shape[..]).map_err(|_| {
            let message = format!("shape {:?}, expected a matrix", tensor.shape);
            Error::format(message).at(tensor.place())
        })
    }
}

/// How many layers tensors of these names belong to.
pub(super) fn count_layers<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    let highest = names.filter_map(block_number).max();
    highest.map_or(0, |highest| highest + 1)
}

/// Whether a tensor holds the decay of a layer's time mixing, in either spelling.
pub(super) fn is_time_decay(name: &str) -> bool {
    split_block(&canonical(name)).is_some_and(|(_, rest)| rest == "att.time_decay")
}

/// BlinkDL's name of a tensor, from either spelling. Names of neither are left as they are.
fn canonical(name: &str) -> String {
    let name = name.strip_prefix("rwkv.").unwrap_or(name);
    if let Some(rest) = name.strip_prefix("embeddings.") {
        return format!("emb.{rest}");
    }
    let Some((block, rest)) = split_block(name) else {
        return name.to_owned();
    };
    let renamed = BLOCK_NAMES
        .iter()
        .find_map(|(theirs, ours)| Some((*ours, rest.strip_prefix(theirs)?)));
    let (part, leaf) = renamed.unwrap_or(("", rest));
    let mut rest = format!("{part}{leaf}");
    for (theirs, ours) in MIX_NAMES {
        if let Some(part) = rest.strip_suffix(theirs) {
            rest = format!("{part}{ours}");
        }
    }
    format!("blocks.{block}.{rest}")
}

/// Hugging Face's name of a tensor, from BlinkDL's.
pub(crate) fn hugging_face(name: &str) -> String {
    if name == "head.weight" {
        return name.to_owned();
    }
    if let Some(rest) = name.strip_prefix("emb.") {
        return format!("rwkv.embeddings.{rest}");
    }
    let Some((block, rest)) = split_block(name) else {
        return format!("rwkv.{name}");
    };
    let renamed = BLOCK_NAMES
        .iter()
        .find_map(|(theirs, ours)| Some((*theirs, rest.strip_prefix(ours)?)));
    let (part, leaf) = renamed.unwrap_or(("", rest));
    let leaf = MIX_NAMES
        .iter()
        .find_map(|(theirs, ours)| (leaf == *ours).then_some(*theirs))
        .unwrap_or(leaf);
    format!("rwkv.blocks.{block}.{part}{leaf}")
}

/// `blocks.N.REST` as N and REST.
fn split_block(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("blocks.")?.split_once('.')
}

fn block_number(name: &str) -> Option<usize> {
    let (digits, _) = split_block(name)?;
    let number: usize = digits.parse().ok()?;
    // A block far out of range is left over later, by its name, and must not size anything here.
    ((number as u64) < N_LAYER_MAX && number.to_string() == digits).then_some(number)
}

fn refuse_other_architectures(place: &str, tensors: &BTreeMap<String, RawTensor>) -> Result<()> {
    for (architecture, patterns) in OTHER_ARCHITECTURES {
        let shows = |name: &str| {
            let rest = split_block(name).map_or(name, |(_, rest)| rest);
            patterns.iter().any(|pattern| rest.starts_with(pattern))
        };
        if let Some((_, tensor)) = tensors.iter().find(|(name, _)| shows(name)) {
            let message = format!("shows {architecture}, expected RWKV-4");
            return Err(Error::unsupported(message).at(tensor.place()));
        }
    }
    if tensors
        .keys()
        .any(|name| name.starts_with("blocks.") || name.starts_with("emb."))
    {
        return Ok(());
    }
    Err(match tensors.values().next() {
        None => Error::format(format!(
            "{place}: no tensors, expected those of an RWKV-4 model"
        )),
        Some(tensor) => {
            Error::unsupported("no name of an RWKV model, expected RWKV-4").at(tensor.place())
        }
    })
}

/// Every tensor of a model of these sizes.
fn wanted(config: &Config) -> BTreeMap<String, Want> {
    listed(config).into_iter().collect()
}

/// BlinkDL's names and the shapes of all tensors of a model, in the order in which transformers
/// keeps them.
pub(crate) fn written(config: &Config) -> Vec<(String, Vec<usize>)> {
    let shape = |name: &str, want: Want| match want {
        Want::Vector(n) if name.contains(".time_mix_") => vec![1, 1, n],
        want => want.shape(),
    };
    let tensors = listed(config).into_iter();
    tensors
        .map(|(name, want)| {
            let shape = shape(&name, want);
            (name, shape)
        })
        .collect()
}

fn listed(config: &Config) -> Vec<(String, Want)> {
    let (d, a, f) = (config.n_embd, config.n_attention, config.n_hidden);
    let first_block = [
        ("ln0.weight", Want::Vector(d)),
        ("ln0.bias", Want::Vector(d)),
    ];
    let block = [
        ("ln1.weight", Want::Vector(d)),
        ("ln1.bias", Want::Vector(d)),
        ("ln2.weight", Want::Vector(d)),
        ("ln2.bias", Want::Vector(d)),
        ("att.time_decay", Want::Vector(a)),
        ("att.time_first", Want::Vector(a)),
        ("att.time_mix_k", Want::Vector(d)),
        ("att.time_mix_v", Want::Vector(d)),
        ("att.time_mix_r", Want::Vector(d)),
        ("att.key.weight", Want::Matrix(a, d)),
        ("att.value.weight", Want::Matrix(a, d)),
        ("att.receptance.weight", Want::Matrix(a, d)),
        ("att.output.weight", Want::Matrix(d, a)),
        ("ffn.time_mix_k", Want::Vector(d)),
        ("ffn.time_mix_r", Want::Vector(d)),
        ("ffn.key.weight", Want::Matrix(f, d)),
        ("ffn.receptance.weight", Want::Matrix(d, d)),
        ("ffn.value.weight", Want::Matrix(d, f)),
    ];
    let ends = [
        ("ln_out.weight", Want::Vector(d)),
        ("ln_out.bias", Want::Vector(d)),
        ("head.weight", Want::Matrix(config.n_vocab, d)),
    ];
    let mut listed = vec![("emb.weight".to_owned(), Want::Matrix(config.n_vocab, d))];
    for layer in 0..config.n_layer {
        let first = if layer == 0 { &first_block[..] } else { &[] };
        let named = |&(name, want): &(&str, Want)| (format!("blocks.{layer}.{name}"), want);
        listed.extend(first.iter().chain(&block).map(named));
    }
    listed.extend(ends.map(|(name, want)| (name.to_owned(), want)));
    listed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings() {
        let cases = [
            ("rwkv.embeddings.weight", "emb.weight"),
            ("emb.weight", "emb.weight"),
            ("rwkv.blocks.0.pre_ln.bias", "blocks.0.ln0.bias"),
            (
                "rwkv.blocks.11.attention.time_mix_receptance",
                "blocks.11.att.time_mix_r",
            ),
            (
                "blocks.1.feed_forward.value.weight",
                "blocks.1.ffn.value.weight",
            ),
            ("blocks.1.ffn.time_mix_k", "blocks.1.ffn.time_mix_k"),
            ("rwkv.ln_out.weight", "ln_out.weight"),
            ("head.weight", "head.weight"),
            ("transformer.h.0", "transformer.h.0"),
        ];
        for (theirs, ours) in cases {
            assert_eq!(canonical(theirs), ours);
        }
    }

    #[test]
    fn vectors_of_any_shape() {
        let vector = Want::Vector(4);
        for shape in [&[4][..], &[1, 1, 4], &[4, 1]] {
            assert!(vector.admits(shape), "{shape:?}");
        }
        for shape in [&[][..], &[2, 2], &[3], &[1, 5], &[4, 0]] {
            assert!(!vector.admits(shape), "{shape:?}");
        }
        assert!(Want::Vector(1).admits(&[1, 1]) && !Want::Matrix(1, 4).admits(&[4]));
    }

    #[test]
    fn there_and_back() {
        let config = Config::from_sizes([7, 4, 12, 4, 16]).expect("sizes");
        for (name, _) in written(&config) {
            let theirs = hugging_face(&name);
            assert_eq!(canonical(&theirs), name);
            assert!(
                name == "head.weight" || theirs.starts_with("rwkv."),
                "{theirs}"
            );
        }
        let name = "blocks.3.ffn.time_mix_r";
        let expected = "rwkv.blocks.3.feed_forward.time_mix_receptance";
        assert_eq!(hugging_face(name), expected);
        assert_eq!(
            hugging_face("blocks.0.ln0.bias"),
            "rwkv.blocks.0.pre_ln.bias"
        );
    }

    #[test]
    fn counts() {
        // 18 a layer, the embedding, ln0, ln_out and the head: what the 169M checkpoint has.
        let config = Config::from_sizes([50277, 768, 12, 768, 3072]).expect("sizes");
        assert_eq!(wanted(&config).len(), 12 * 18 + 6);
    }
}
