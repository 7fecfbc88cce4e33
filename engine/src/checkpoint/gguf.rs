//! GGUF files, llama.cpp's: keys and values that describe the model, then a list of tensors, then their numbers.
//!
//! Input: a file of version 2 or 3, little endian, that is a whole model of RWKV-6 or 7. Output: its tensors under the
//! names, and in the shapes, of BlinkDL's checkpoints, each within the file, with what only such a file says
//! beside them: settings and the vocabulary. Tensors must lie one behind the other as llama.cpp demands, so
//! that none overlap and nothing is hidden between them.
//!
//! `reader.rs` walks over bytes, `metadata.rs` has keys and values, `types.rs` the types of tensors, `model.rs`
//! what models consist of there, by the lists in `rwkv6.rs` and `rwkv7.rs`, `vocabulary.rs` the tokens.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::chat_template;
use super::dtype::Dtype;
use super::tensor::RawTensor;
use super::TokenizerFile;
use crate::error::{Error, Result};
use crate::files::SourceFile;
use crate::math::push;
use metadata::Metadata;
use reader::Reader;

mod metadata;
mod model;
mod reader;
mod rwkv6;
mod rwkv7;
mod types;
mod vocabulary;

const MAGIC: &[u8] = b"GGUF";

/// Where the tensors' numbers are aligned if the file does not say.
const ALIGNMENT: u64 = 32;
const ALIGNMENT_MAX: u64 = 1 << 16;

/// The largest models have some thousand.
const TENSORS_MAX: u64 = 1 << 16;
/// ggml's own limit is 64.
const NAME_BYTES_MAX: u64 = 256;
const DIMENSIONS_MAX: u32 = 4;

const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

/// The key of the token that ends texts.
pub(super) const END_OF_TEXT: &str = "tokenizer.ggml.eos_token_id";

const ARCHITECTURE: &str = "general.architecture";

/// A whole model in one file.
#[derive(Debug)]
pub(super) struct Gguf {
    /// As raw checkpoints have them.
    pub(super) tensors: Vec<RawTensor>,
    /// Where the file says it.
    pub(super) layer_norm_epsilon: Option<f32>,
    pub(super) vocabulary: Vocabulary,
    /// The token that is said to end texts.
    pub(super) end_of_text: Option<u64>,
}

/// The tokenizer within a file.
#[derive(Debug)]
pub(super) enum Vocabulary {
    Found(TokenizerFile),
    /// Why there is none that can be used.
    Unusable(String),
}

/// Whether the first bytes are those of such a file.
pub(super) fn recognises(start: &[u8]) -> bool {
    start.starts_with(MAGIC)
}

/// Reads all but the numbers of a file.
pub(super) fn read(file: &SourceFile) -> Result<Gguf> {
    read_file(file).map_err(|e| super::name_file(e, file))
}

/// The text of the chat template within a file.
pub(super) fn chat_template(file: &SourceFile) -> Result<Option<String>> {
    let read = || {
        let (metadata, _) = read_header(file)?;
        metadata.text_within(CHAT_TEMPLATE, chat_template::TEXT_BYTES_MAX)
    };
    let text = read().map_err(|e| super::name_file(e, file));
    file.watch().judge(text)
}

fn read_file(file: &SourceFile) -> Result<Gguf> {
    let (metadata, tensors) = read_header(file)?;
    let name = metadata.text(ARCHITECTURE)?.unwrap_or_default();
    model::model(model::form(&name)?, file, &metadata, tensors)
}

/// By their names in the file.
type Tensors = BTreeMap<String, RawTensor>;

fn read_header(file: &SourceFile) -> Result<(Metadata<'_>, Tensors)> {
    let mut reader = Reader::new(file, MAGIC.len() as u64);
    let start = read_start(&mut reader);
    let (n_tensors, n_keys) = start.map_err(|e| e.at("a GGUF file"))?;
    if n_tensors > TENSORS_MAX {
        return Err(Error::format(format!(
            "{n_tensors} tensors, expected at most {TENSORS_MAX}: damaged"
        )));
    }
    let metadata = Metadata::read(file, &mut reader, n_keys, look)?;
    if metadata.text(ARCHITECTURE)?.is_none() {
        let text = format!("key {ARCHITECTURE}: missing, expected the name of an architecture");
        return Err(Error::format(text));
    }
    let mut found = Vec::new();
    for index in 0..n_tensors {
        let tensor = Described::read(&mut reader);
        let tensor = tensor.map_err(|e| e.at(format!("tensor {index} of {n_tensors}")))?;
        push(&mut found, tensor, "the tensors of a file")?;
    }
    let tensors = placed(file, &metadata, reader.at(), found)?;
    Ok((metadata, tensors))
}

/// How many tensors and keys there are.
fn read_start(reader: &mut Reader<'_>) -> Result<(u64, u64)> {
    check_version(reader.u32()?)?;
    Ok((reader.u64()?, reader.u64()?))
}

fn check_version(version: u32) -> Result<()> {
    match version {
        2 | 3 => Ok(()),
        1 => Err(Error::unsupported(
            "version 1, expected 2 or 3: convert the model again with a llama.cpp of today",
        )),
        _ if (1..=3).contains(&version.swap_bytes()) => Err(Error::unsupported(
            "big-endian, expected little-endian: convert the model again without --bigendian",
        )),
        _ => Err(Error::unsupported(format!(
            "version {version}, expected 2 or 3"
        ))),
    }
}

/// Refuses files of other kinds as soon as they say what they are.
fn look(metadata: &Metadata<'_>, key: &str) -> Result<()> {
    match key {
        ARCHITECTURE => match metadata.text(key)? {
            Some(name) => match model::form(&name) {
                Ok(_) => Ok(()),
                Err(e) => Err(e.at("a GGUF file")),
            },
            None => Ok(()),
        },
        "split.count" => match metadata.count(key)? {
            Some(n) if n > 1 => Err(Error::unsupported(format!(
                "one of {n} GGUF files of a model that was split, expected a whole one: join them with \
                 llama-gguf-split --merge"
            ))),
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

/// What the header says of a tensor.
struct Described {
    name: String,
    dtype: Dtype,
    /// Rows first.
    shape: Vec<usize>,
    /// From the start of all numbers.
    offset: u64,
}

impl Described {
    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let name = reader.name("a name", NAME_BYTES_MAX)?;
        match Self::read_rest(reader) {
            Ok((dtype, shape, offset)) => Ok(Described {
                name,
                dtype,
                shape,
                offset,
            }),
            Err(e) => Err(e.at(name)),
        }
    }

    fn read_rest(reader: &mut Reader<'_>) -> Result<(Dtype, Vec<usize>, u64)> {
        let n_dims = reader.u32()?;
        if !(1..=DIMENSIONS_MAX).contains(&n_dims) {
            return Err(Error::format(format!(
                "{n_dims} dimensions, expected 1 to {DIMENSIONS_MAX}: damaged"
            )));
        }
        let mut shape = Vec::new();
        for _ in 0..n_dims {
            let n = reader.u64()?;
            match usize::try_from(n) {
                Ok(n) if n > 0 => shape.push(n),
                _ => {
                    return Err(Error::format(format!(
                        "a dimension of {n}, expected 1 to {}: damaged",
                        usize::MAX
                    )))
                }
            }
        }
        // GGUF names the length of a row first.
        shape.reverse();
        let dtype = types::dtype(reader.u32()?)?;
        Ok((dtype, shape, reader.u64()?))
    }
}

/// Tensors where they are in the file, once they lie there as they must.
fn placed(
    file: &SourceFile,
    metadata: &Metadata<'_>,
    header_end: u64,
    mut found: Vec<Described>,
) -> Result<Tensors> {
    let key = "general.alignment";
    let alignment = metadata.count(key)?.unwrap_or(ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > ALIGNMENT_MAX {
        return Err(Error::format(format!(
            "key {key}: {alignment}, expected a power of two of at most {ALIGNMENT_MAX}"
        )));
    }
    let aligned = |at: u64| at.saturating_add(alignment - 1) & !(alignment - 1);
    let start = aligned(header_end);
    for Described { name, offset, .. } in &found {
        let refuse = |text: String| Err(Error::format(text).at(format!("tensor {name}")));
        if offset % alignment != 0 {
            return refuse(format!("at {offset}, expected a multiple of {alignment}"));
        }
        if start.checked_add(*offset).is_none_or(|at| at >= file.len()) {
            return refuse(format!(
                "at {offset} of the numbers, which begin at byte {start}, but the file has {} bytes: truncated",
                file.len()
            ));
        }
    }
    found.sort_by_key(|tensor| tensor.offset);
    let (mut tensors, mut end) = (Tensors::new(), start);
    let mut before = "the header".to_owned();
    for Described {
        name,
        dtype,
        shape,
        offset,
    } in found
    {
        let place = format!("tensor {name}");
        let (at, expected) = (start + offset, aligned(end));
        if at != expected {
            let what = match at < expected {
                true => "overlaps with",
                false => "leaves a gap behind",
            };
            let text = format!("at byte {at}, expected {expected}: {what} {before}");
            return Err(Error::format(text).at(place));
        }
        if tensors.contains_key(&name) {
            return Err(Error::format("twice").at(place));
        }
        let tensor = RawTensor::in_order(name.clone(), file.clone(), dtype, shape, at)?;
        end = tensor.end();
        before = place;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// The tensors as the file has them, for tests against other readers.
#[cfg(test)]
pub(super) fn tensors_of(file: &SourceFile) -> Result<Vec<RawTensor>> {
    Ok(read_header(file)?.1.into_values().collect())
}
