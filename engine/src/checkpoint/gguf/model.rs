//! A model as llama.cpp's converter writes it: from its tensors to those of BlinkDL's checkpoints.
//!
//! Most differ in their names alone, which `rwkv6.rs` and `rwkv7.rs` list. The mixing vectors of a layer are one tensor
//! there, the small matrices of the LoRAs are transposed; in files of RWKV-7 the first layer has three tensors that
//! nothing uses, in those of RWKV-6 some matrices were halved the more often the later their layer comes.

#![forbid(unsafe_code)]

use super::super::tensor::RawTensor;
use super::metadata::Metadata;
use super::{rwkv6, rwkv7, vocabulary, Gguf, Tensors, END_OF_TEXT};
use crate::error::{Error, Result};
use crate::files::SourceFile;
use crate::math::reserve;
use crate::networks::known;

/// How files of one version are written.
pub(super) struct Form {
    /// `general.architecture`, with which the keys of sizes begin, too.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    /// llama.cpp's names in each layer, and raw ones.
    pub(super) layer: &'static [(&'static str, &'static str, As)],
    /// Those of them that files need not have.
    pub(super) optional: &'static [&'static str],
    /// Those of them that nothing uses in the first layer.
    pub(super) not_in_first_layer: &'static [&'static str],
    /// Sizes by their keys, behind the architecture's name, and which dimension of which tensor of each layer they are.
    pub(super) layer_sizes: &'static [(&'static str, &'static str, usize)],
    /// The key of how many layers there are from one halving to the next, where files have it.
    pub(super) halved_every: Option<&'static str>,
}

static FORMS: [&Form; 2] = [&rwkv7::FORM, &rwkv6::FORM];

/// What the tokens are shifted by: more would be another network.
const TOKEN_SHIFTS: u64 = 2;

/// What a tensor of the file is to a raw checkpoint.
#[derive(Clone, Copy)]
pub(super) enum As {
    /// The same.
    Same,
    /// Stored with rows and columns exchanged.
    Transposed,
    /// Vectors one behind the other, with these raw names.
    Mixes(&'static [&'static str]),
    /// Matrices one behind the other, each with rows and columns exchanged.
    TransposedOnes(&'static [&'static str]),
    /// A row for each head there, all in one row here.
    Heads,
    /// Halved as often as [`Form::halved_every`] says.
    Halved,
}

use As::{Halved, Heads, Mixes, Same, Transposed, TransposedOnes};

/// Outside of layers: llama.cpp's names, and raw ones.
const OUTER: [(&str, &str); 6] = [
    ("token_embd.weight", "emb.weight"),
    ("token_embd_norm.weight", "blocks.0.ln0.weight"),
    ("token_embd_norm.bias", "blocks.0.ln0.bias"),
    ("output_norm.weight", "ln_out.weight"),
    ("output_norm.bias", "ln_out.bias"),
    ("output.weight", "head.weight"),
];

/// How files of the architecture of that name are written.
///
/// # Errors
/// `Unsupported` for one that does not run here.
pub(super) fn form(name: &str) -> Result<&'static Form> {
    if let Some(form) = FORMS.into_iter().find(|form| form.name == name) {
        return Ok(form);
    }
    let what = match name {
        "rwkv6qwen2" => " (QRWKV6: RWKV-6's time mixing in a Qwen model), which does not run here",
        "arwkv7" => " (ARWKV-7: RWKV-7's time mixing in a Qwen model), which does not run here",
        _ => "",
    };
    let expected = known::either(&FORMS.map(|form| form.name));
    let text = format!("architecture {name}{what}, expected {expected}");
    Err(Error::unsupported(text))
}

/// The model of a file of that form.
pub(super) fn model(
    form: &'static Form,
    file: &SourceFile,
    metadata: &Metadata<'_>,
    tensors: Tensors,
) -> Result<Gguf> {
    let key = |name: &str| form.key(name);
    let sizes = Sizes::read(form, metadata)?;
    sizes.check_names(&tensors)?;
    let vocabulary = vocabulary::read(file, metadata)?;
    sizes.check_outer(&tensors, vocabulary.n_listed)?;
    let epsilon = metadata.float(&key("attention.layer_norm_epsilon"))?;
    if let Some(n) = metadata.count(&key("token_shift_count"))? {
        if n != TOKEN_SHIFTS {
            return Err(Error::unsupported(format!(
                "key {}: {n}, expected {TOKEN_SHIFTS}, as {} has: a variant that does not run here",
                key("token_shift_count"),
                form.title
            )));
        }
    }
    Ok(Gguf {
        tensors: sizes.raw(metadata, tensors)?,
        layer_norm_epsilon: epsilon.map(|epsilon| epsilon as f32),
        vocabulary: vocabulary.tokenizer,
        // It counts for nothing, so that one that makes no sense does no harm.
        end_of_text: metadata.count(END_OF_TEXT).ok().flatten(),
    })
}

/// What the file says of its sizes; those that have to be there.
struct Sizes {
    form: &'static Form,
    n_layer: u64,
    n_embd: u64,
    head_size: u64,
    /// Layers from one halving of matrices to the next.
    halved_every: Option<u64>,
}

impl Sizes {
    fn read(form: &'static Form, metadata: &Metadata<'_>) -> Result<Self> {
        let size = |name: &str| {
            let key = form.key(name);
            match metadata.count(&key)? {
                Some(0) => Err(Error::format(format!("key {key}: 0, expected 1 or more"))),
                Some(n) => Ok(n),
                None => Err(Error::format(format!(
                    "key {key}: missing, expected a size"
                ))),
            }
        };
        let halved_every = match form.halved_every {
            // 0: never.
            Some(name) => metadata.count(&form.key(name))?.filter(|&n| n > 0),
            None => None,
        };
        Ok(Sizes {
            form,
            halved_every,
            n_layer: size("block_count")?,
            n_embd: size("embedding_length")?,
            head_size: size("wkv.head_size")?,
        })
    }

    /// Exactly the tensors of so many layers.
    fn check_names(&self, tensors: &Tensors) -> Result<()> {
        let mut n_found = 0;
        for name in tensors.keys() {
            match split(name) {
                Some((layer, rest)) if self.form.layer.iter().any(|line| line.0 == rest) => {
                    n_found = n_found.max(layer.saturating_add(1));
                }
                None if OUTER.iter().any(|line| line.0 == name) => {}
                _ => {
                    let title = self.form.title;
                    let text = format!("not part of an {title} model as llama.cpp writes it");
                    return Err(Error::format(text).at(format!("tensor {name}")));
                }
            }
        }
        if n_found != self.n_layer {
            return Err(Error::format(format!(
                "tensors of {n_found} layers, expected {} by {}",
                self.n_layer,
                self.form.key("block_count")
            )));
        }
        let missing = |name: &str| Err(Error::format("missing").at(format!("tensor {name}")));
        if let Some((name, _)) = OUTER.iter().find(|line| !tensors.contains_key(line.0)) {
            return missing(name);
        }
        // No more than there are tensors.
        for layer in 0..n_found {
            let wanted = self.form.layer.iter().map(|line| line.0);
            let is_wanted = |name: &&str| !self.is_unused(layer, name) && !self.is_optional(name);
            let mut wanted = wanted.filter(is_wanted);
            let name = wanted.find(|name| !tensors.contains_key(&in_layer(layer, name)));
            if let Some(name) = name {
                return missing(&in_layer(layer, name));
            }
        }
        Ok(())
    }

    /// The table of embeddings has the width that the file says, and a row for each of its tokens.
    fn check_outer(&self, tensors: &Tensors, n_tokens: Option<(&str, u64)>) -> Result<()> {
        let Some(tensor) = tensors.get(OUTER[0].0) else {
            return Ok(());
        };
        check_size(tensor, 1, self.n_embd, &self.form.key("embedding_length"))?;
        match n_tokens {
            Some((key, n)) => check_size(tensor, 0, n, key),
            None => Ok(()),
        }
    }

    /// The tensors of a raw checkpoint.
    fn raw(&self, metadata: &Metadata<'_>, mut tensors: Tensors) -> Result<Vec<RawTensor>> {
        let mut raw = reserve(tensors.len().saturating_mul(2), "the tensors of a file")?;
        for (name, new) in OUTER {
            if let Some(tensor) = tensors.remove(name) {
                raw.push(tensor.renamed(new.to_owned()));
            }
        }
        let mut expected = Vec::new();
        for &(name, tensor, dimension) in self.form.layer_sizes {
            let key = self.form.key(name);
            if let Some(n) = metadata.count(&key)? {
                expected.push((key, tensor, dimension, n));
            }
        }
        for layer in 0..self.n_layer {
            for &(name, line_name, how) in self.form.layer {
                let Some(tensor) = tensors.remove(&in_layer(layer, name)) else {
                    continue;
                };
                if self.is_unused(layer, name) {
                    continue;
                }
                for (key, _, dimension, n) in expected.iter().filter(|line| line.1 == name) {
                    check_size(&tensor, *dimension, *n, key)?;
                }
                let new = |end: &str| format!("blocks.{layer}.{end}");
                match how {
                    Same => raw.push(tensor.renamed(new(line_name))),
                    Transposed => raw.push(transposed(tensor)?.renamed(new(line_name))),
                    Heads => raw.push(self.by_heads(tensor)?.renamed(new(line_name))),
                    Mixes(names) => {
                        for (part, name) in self.mixes(&tensor, names.len())?.into_iter().zip(names)
                        {
                            raw.push(part.renamed(new(name)));
                        }
                    }
                    TransposedOnes(names) => {
                        for (part, name) in tensor.split(names.len())?.into_iter().zip(names) {
                            raw.push(transposed(part)?.renamed(new(name)));
                        }
                    }
                    Halved => {
                        let n_halved = self.halved_every.map_or(0, |every| layer / every);
                        // A factor beyond f32 is in no file whose numbers are right.
                        raw.push(RawTensor {
                            n_halved: u32::try_from(n_halved).unwrap_or(u32::MAX),
                            ..tensor.renamed(new(line_name))
                        });
                    }
                }
            }
        }
        Ok(raw)
    }

    /// A row for each head.
    fn by_heads(&self, tensor: RawTensor) -> Result<RawTensor> {
        let n = tensor.len() as u64;
        let is_square =
            |shape: &[usize]| matches!(shape, &[_, width] if width as u64 == self.head_size);
        let is_flat = tensor.shape.iter().filter(|&&dim| dim != 1).count() <= 1;
        if !is_flat && !is_square(&tensor.shape) {
            let text = format!("shape {:?}, expected one row", tensor.shape);
            return Err(Error::format(text).at(tensor.place()));
        }
        if n % self.head_size != 0 {
            return Err(Error::format(format!(
                "{n} numbers, expected a multiple of {} by {}",
                self.head_size,
                self.form.key("wkv.head_size")
            ))
            .at(tensor.place()));
        }
        // At most the numbers of the tensor, which are a `usize`.
        let head_size = self.head_size as usize;
        Ok(tensor.in_rows_of(head_size))
    }

    /// The `n` mixing vectors.
    fn mixes(&self, tensor: &RawTensor, n: usize) -> Result<Vec<RawTensor>> {
        let is_fused = match tensor.shape[..] {
            [first, ref between @ .., _] => first == n && between.iter().all(|&dim| dim == 1),
            _ => false,
        };
        if !is_fused {
            return Err(Error::format(format!(
                "shape {:?}, expected [{n}, 1, 1, {}]",
                tensor.shape, self.n_embd
            ))
            .at(tensor.place()));
        }
        let row = tensor.len() / n;
        tensor.clone().in_rows_of(row).split(n)
    }

    fn is_unused(&self, layer: u64, name: &str) -> bool {
        layer == 0 && self.form.not_in_first_layer.contains(&name)
    }

    fn is_optional(&self, name: &str) -> bool {
        self.form.optional.contains(&name)
    }
}

impl Form {
    /// The key of a size.
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }
}

/// Rows become columns: where the numbers lie stays as it is.
fn transposed(tensor: RawTensor) -> Result<RawTensor> {
    if tensor.shape.len() != 2 {
        let text = format!("shape {:?}, expected a matrix", tensor.shape);
        return Err(Error::format(text).at(tensor.place()));
    }
    Ok(tensor.transposed())
}

/// Whether a tensor is as long as a key says.
fn check_size(tensor: &RawTensor, dimension: usize, expected: u64, key: &str) -> Result<()> {
    match tensor.shape.get(dimension) {
        Some(&n) if n as u64 == expected => Ok(()),
        Some(n) => Err(Error::format(format!(
            "shape {:?}, of which {n} is expected to be {expected} by {key}",
            tensor.shape
        ))
        .at(tensor.place())),
        None => {
            let text = format!("shape {:?}, expected a matrix", tensor.shape);
            Err(Error::format(text).at(tensor.place()))
        }
    }
}

fn in_layer(layer: u64, name: &str) -> String {
    format!("blk.{layer}.{name}")
}

/// `blk.N.REST` as N and REST.
fn split(name: &str) -> Option<(u64, &str)> {
    let (digits, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: u64 = digits.parse().ok()?;
    (layer.to_string() == digits).then_some((layer, rest))
}
