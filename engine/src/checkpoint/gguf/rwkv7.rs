//! An RWKV-7 model as llama.cpp's converter writes it: from its tensors to those of BlinkDL's checkpoints.
//!
//! Most differ in their names alone. The six mixing vectors of a layer are one tensor there, the small matrices
//! of the LoRAs are transposed, and the first layer has three tensors that nothing uses.

#![forbid(unsafe_code)]

use super::super::tensor::RawTensor;
use super::metadata::Metadata;
use super::{vocabulary, Gguf, Tensors, END_OF_TEXT};
use crate::error::{Error, Result};
use crate::files::SourceFile;
use crate::math::reserve;

const NAME: &str = "rwkv7";

/// What the tokens are shifted by: more would be another network.
const TOKEN_SHIFTS: u64 = 2;

/// What a tensor of the file is to a raw checkpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
enum As {
    /// The same.
    Same,
    /// Stored with rows and columns exchanged.
    Transposed,
    /// Six vectors, in the order of [`MIXES`].
    Mixes,
    /// A row for each head there, all in one row here.
    Heads,
}

use As::{Heads, Mixes, Same, Transposed};

/// Outside of layers: llama.cpp's names, and raw ones.
const OUTER: [(&str, &str); 6] = [
    ("token_embd.weight", "emb.weight"),
    ("token_embd_norm.weight", "blocks.0.ln0.weight"),
    ("token_embd_norm.bias", "blocks.0.ln0.bias"),
    ("output_norm.weight", "ln_out.weight"),
    ("output_norm.bias", "ln_out.bias"),
    ("output.weight", "head.weight"),
];

/// In each layer.
const LAYER: [(&str, &str, As); 28] = [
    ("attn_norm.weight", "ln1.weight", Same),
    ("attn_norm.bias", "ln1.bias", Same),
    ("attn_norm_2.weight", "ln2.weight", Same),
    ("attn_norm_2.bias", "ln2.bias", Same),
    ("time_mix_lerp_fused.weight", "", Mixes),
    ("time_mix_w0.weight", "att.w0", Same),
    ("time_mix_w1.weight", "att.w1", Transposed),
    ("time_mix_w2.weight", "att.w2", Transposed),
    ("time_mix_a0.weight", "att.a0", Same),
    ("time_mix_a1.weight", "att.a1", Transposed),
    ("time_mix_a2.weight", "att.a2", Transposed),
    ("time_mix_v0.weight", "att.v0", Same),
    ("time_mix_v1.weight", "att.v1", Transposed),
    ("time_mix_v2.weight", "att.v2", Transposed),
    ("time_mix_g1.weight", "att.g1", Transposed),
    ("time_mix_g2.weight", "att.g2", Transposed),
    ("time_mix_k_k.weight", "att.k_k", Same),
    ("time_mix_k_a.weight", "att.k_a", Same),
    ("time_mix_r_k.weight", "att.r_k", Heads),
    ("time_mix_receptance.weight", "att.receptance.weight", Same),
    ("time_mix_key.weight", "att.key.weight", Same),
    ("time_mix_value.weight", "att.value.weight", Same),
    ("time_mix_output.weight", "att.output.weight", Same),
    ("time_mix_ln.weight", "att.ln_x.weight", Same),
    ("time_mix_ln.bias", "att.ln_x.bias", Same),
    ("channel_mix_lerp_k.weight", "ffn.x_k", Same),
    ("channel_mix_key.weight", "ffn.key.weight", Same),
    ("channel_mix_value.weight", "ffn.value.weight", Same),
];

const MIXES_N: usize = 6;
/// Raw names of the mixing vectors, as they follow each other.
const MIXES: [&str; MIXES_N] = [
    "att.x_r", "att.x_w", "att.x_k", "att.x_v", "att.x_a", "att.x_g",
];

/// Copies of `a0`, `a1` and `a2` in the first layer, which has no earlier value to mix with.
const NOT_IN_FIRST_LAYER: [&str; 3] = [
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
];

/// Sizes by their keys, behind the architecture's name, and which dimension of which tensor of each layer they are.
const LAYER_SIZES: [(&str, &str, usize); 5] = [
    ("feed_forward_length", "channel_mix_key.weight", 0),
    ("attention.decay_lora_rank", "time_mix_w1.weight", 0),
    ("attention.iclr_lora_rank", "time_mix_a1.weight", 0),
    (
        "attention.value_residual_mix_lora_rank",
        "time_mix_v1.weight",
        0,
    ),
    ("attention.gate_lora_rank", "time_mix_g1.weight", 0),
];

/// Refuses a file of another architecture by its name.
pub(super) fn check_architecture(name: &str) -> Result<()> {
    let what = match name {
        NAME => return Ok(()),
        "rwkv6" => "architecture rwkv6 (RWKV-6), which does not run here yet",
        "rwkv6qwen2" => {
            "architecture rwkv6qwen2 (QRWKV6: RWKV-6's time mixing in a Qwen model), which does not run here"
        }
        "arwkv7" => "architecture arwkv7 (ARWKV-7: RWKV-7's time mixing in a Qwen model), which does not run here",
        other => return Err(Error::unsupported(format!("architecture {other}, expected {NAME}"))),
    };
    Err(Error::unsupported(format!("{what}, expected {NAME}")))
}

/// The key of a size.
fn key(name: &str) -> String {
    format!("{NAME}.{name}")
}

/// The model of a file whose architecture is this one.
pub(super) fn model(file: &SourceFile, metadata: &Metadata<'_>, tensors: Tensors) -> Result<Gguf> {
    let sizes = Sizes::read(metadata)?;
    sizes.check_names(&tensors)?;
    let vocabulary = vocabulary::read(file, metadata)?;
    sizes.check_outer(&tensors, vocabulary.n_listed)?;
    let epsilon = metadata.float(&key("attention.layer_norm_epsilon"))?;
    if let Some(n) = metadata.count(&key("token_shift_count"))? {
        if n != TOKEN_SHIFTS {
            return Err(Error::unsupported(format!(
                "key {}: {n}, expected {TOKEN_SHIFTS}, as RWKV-7 has: a variant that does not run here",
                key("token_shift_count")
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
    n_layer: u64,
    n_embd: u64,
    head_size: u64,
}

impl Sizes {
    fn read(metadata: &Metadata<'_>) -> Result<Self> {
        let size = |name: &str| {
            let key = key(name);
            match metadata.count(&key)? {
                Some(0) => Err(Error::format(format!("key {key}: 0, expected 1 or more"))),
                Some(n) => Ok(n),
                None => Err(Error::format(format!(
                    "key {key}: missing, expected a size"
                ))),
            }
        };
        Ok(Sizes {
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
                Some((layer, rest)) if LAYER.iter().any(|line| line.0 == rest) => {
                    n_found = n_found.max(layer.saturating_add(1));
                }
                None if OUTER.iter().any(|line| line.0 == name) => {}
                _ => {
                    let text = "not part of an RWKV-7 model as llama.cpp writes it";
                    return Err(Error::format(text).at(format!("tensor {name}")));
                }
            }
        }
        if n_found != self.n_layer {
            return Err(Error::format(format!(
                "tensors of {n_found} layers, expected {} by {}",
                self.n_layer,
                key("block_count")
            )));
        }
        let missing = |name: &str| Err(Error::format("missing").at(format!("tensor {name}")));
        if let Some((name, _)) = OUTER.iter().find(|line| !tensors.contains_key(line.0)) {
            return missing(name);
        }
        // No more than there are tensors.
        for layer in 0..n_found {
            let wanted = LAYER.iter().map(|line| line.0);
            let mut wanted = wanted.filter(|name| !is_unused(layer, name));
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
        check_size(tensor, 1, self.n_embd, &key("embedding_length"))?;
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
        for (name, tensor, dimension) in LAYER_SIZES {
            if let Some(n) = metadata.count(&key(name))? {
                expected.push((key(name), tensor, dimension, n));
            }
        }
        for layer in 0..self.n_layer {
            for (name, line_name, how) in LAYER {
                let Some(tensor) = tensors.remove(&in_layer(layer, name)) else {
                    continue;
                };
                if is_unused(layer, name) {
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
                    Mixes => {
                        for (part, name) in self.mixes(&tensor)?.into_iter().zip(MIXES) {
                            raw.push(part.renamed(new(name)));
                        }
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
                key("wkv.head_size")
            ))
            .at(tensor.place()));
        }
        // At most the numbers of the tensor, which are a `usize`.
        let head_size = self.head_size as usize;
        Ok(tensor.in_rows_of(head_size))
    }

    /// The mixing vectors.
    fn mixes(&self, tensor: &RawTensor) -> Result<Vec<RawTensor>> {
        let is_fused = match tensor.shape[..] {
            [MIXES_N, ref between @ .., _] => between.iter().all(|&dim| dim == 1),
            _ => false,
        };
        if !is_fused {
            return Err(Error::format(format!(
                "shape {:?}, expected [{MIXES_N}, 1, 1, {}]",
                tensor.shape, self.n_embd
            ))
            .at(tensor.place()));
        }
        let row = tensor.len() / MIXES_N;
        tensor.clone().in_rows_of(row).split(MIXES_N)
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

fn is_unused(layer: u64, name: &str) -> bool {
    layer == 0 && NOT_IN_FIRST_LAYER.contains(&name)
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
