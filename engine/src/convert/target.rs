//! One tensor on its way from a checkpoint into another: its new name, type and shape, and its
//! numbers a piece at a time.
//!
//! Every number passes through f32, which holds f16, bf16 and dequantised blocks exactly, so a
//! tensor whose type is kept keeps its bytes, and NaN and infinity are found on the way.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::Put;
use crate::checkpoint::{Checkpoint, Dtype, Forms, RawTensor, TunedState};
use crate::error::{Error, Result};
use crate::math::reserve;
use crate::networks::form::Form;
use crate::networks::names::BLOCKS;
use crate::networks::state::time_state_name;
use crate::networks::table::TensorAt;

/// Numbers read at once: 4 MiB in f32.
const READ_NUMBERS: usize = 1 << 20;
/// The same where a row's numbers lie across the file: each read walks over all of the tensor.
const READ_NUMBERS_ACROSS: usize = 4 << 20;
/// Numbers narrowed at once.
const WRITE_NUMBERS: usize = 64 << 10;

/// How a checkpoint stores numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum FloatType {
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// IEEE single precision.
    F32,
}

impl FloatType {
    /// `f16`, `bf16` or `f32`.
    pub fn name(self) -> &'static str {
        match self {
            FloatType::F16 => "f16",
            FloatType::Bf16 => "bf16",
            FloatType::F32 => "f32",
        }
    }

    /// In headers of safetensors files.
    pub(super) fn safetensors_name(self) -> &'static str {
        match self {
            FloatType::F16 => "F16",
            FloatType::Bf16 => "BF16",
            FloatType::F32 => "F32",
        }
    }

    /// In `config.json`.
    pub(super) fn torch_name(self) -> &'static str {
        match self {
            FloatType::F16 => "float16",
            FloatType::Bf16 => "bfloat16",
            FloatType::F32 => "float32",
        }
    }

    pub(super) fn size_bytes(self) -> u64 {
        match self {
            FloatType::F16 | FloatType::Bf16 => 2,
            FloatType::F32 => 4,
        }
    }

    /// What holds all numbers of a stored type exactly.
    fn keeping(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F16 => FloatType::F16,
            Dtype::Bf16 => FloatType::Bf16,
            _ => FloatType::F32,
        }
    }
}

impl fmt::Display for FloatType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A tensor to be written.
pub(super) struct TargetTensor<'a> {
    /// As the new file calls it.
    pub(super) name: String,
    pub(super) dtype: FloatType,
    pub(super) shape: Vec<usize>,
    form: Form,
    is_matrix: bool,
    source: Cow<'a, RawTensor>,
    /// Those that follow it in the same tensor.
    more: Vec<&'a RawTensor>,
}

/// Whose names, shapes and orientation of matrices a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// BlinkDL's.
    Raw,
    HuggingFace,
}

/// All tensors of a checkpoint, in the order in which transformers keeps them; at the end its tuned initial state, if it
/// has one.
///
/// # Errors
/// None in practice: the names were checked when the checkpoint was opened.
pub(super) fn parts(
    checkpoint: &Checkpoint,
    dtype: Option<FloatType>,
    spelling: Spelling,
) -> Result<Vec<TargetTensor<'_>>> {
    let theirs = spelling == Spelling::HuggingFace;
    let sizes = &checkpoint.config.sizes;
    let names = &sizes.architecture.hugging_face;
    let find = |name: &str| {
        let missing = || Error::format(format!("{}: tensor {name}: missing", checkpoint.place));
        checkpoint.tensors.get(name).ok_or_else(missing)
    };
    let part = |tensor: TensorAt<'_>| {
        let name = tensor.raw_name();
        let source = find(&name)?;
        let is_matrix = tensor.is_matrix();
        let is_flat = theirs && tensor.is_flat_in_hugging_face();
        let row = tensor.spec.row.map(|row| row(sizes));
        let (n_rows, n_cols) = tensor.checkpoint_shape();
        let mut shape = match (is_matrix, tensor.spec.is_broadcast && !is_flat, row) {
            (true, ..) => vec![n_rows, n_cols],
            (_, _, Some(row)) => vec![n_rows / row.max(1), row],
            (_, true, _) => vec![1, 1, n_rows],
            (_, false, _) => vec![n_rows],
        };
        let mut target = (name, Cow::Borrowed(source));
        let mut more = Vec::new();
        if let Some((one, held)) = names.joined(tensor.spec.raw) {
            let full = |leaf: &str| match tensor.number_of_layer() {
                Some(layer) => format!("{BLOCKS}{layer}.{leaf}"),
                None => leaf.to_owned(),
            };
            for leaf in &held[1..] {
                more.push(find(&full(leaf))?);
            }
            shape.insert(0, held.len());
            target.0 = match theirs {
                true => names.name(&full(one)),
                false => full(one),
            };
        } else if theirs {
            target.0 = tensor.hugging_face_name();
            if names.is_transposed(&target.0) {
                target.1 = Cow::Owned(source.clone().transposed());
                shape.reverse();
            }
        }
        if !theirs && source.is_per_head() {
            // As RWKV-5.0 and 5.1 were published, whose programs read nothing else.
            let (name, source) = source.as_per_head(&target.0);
            shape = vec![source.len()];
            target = (name, Cow::Owned(source));
        }
        let (name, source) = target;
        let own = match source.is_logarithm {
            // What it is of has more digits.
            true => FloatType::F32,
            false => FloatType::keeping(source.dtype),
        };
        let is_own = |one: &&RawTensor| FloatType::keeping(one.dtype) == own;
        let keeping = match more.iter().all(is_own) {
            true => own,
            false => FloatType::F32,
        };
        Ok(TargetTensor {
            dtype: dtype.unwrap_or(keeping),
            form: tensor.spec.form,
            is_matrix,
            shape,
            name,
            source,
            more,
        })
    };
    let tensors = sizes.architecture.tensors_in_order(sizes).into_iter();
    // Written with the first of their tensor.
    let is_first = |tensor: &TensorAt<'_>| match names.joined(tensor.spec.raw) {
        Some((_, held)) => held.first() == Some(&tensor.spec.raw),
        None => true,
    };
    let tensors = tensors.filter(is_first);
    let tuned = checkpoint.tuned.iter().flat_map(TunedState::layers);
    // Hugging Face's programs know of no such tensors and leave them out with a warning; this one reads them there, too.
    let tuned = tuned.enumerate().map(|(layer, source)| {
        let name = match (time_state_name(layer), theirs) {
            (raw, false) => raw,
            (raw, true) => names.name(&raw),
        };
        Ok(TargetTensor {
            dtype: dtype.unwrap_or(FloatType::keeping(source.dtype)),
            form: Form::Same,
            is_matrix: false,
            shape: source.shape.clone(),
            name,
            source: Cow::Borrowed(source),
            more: Vec::new(),
        })
    });
    tensors.map(part).chain(tuned).collect()
}

/// The narrowest type that holds every part exactly.
pub(super) fn common_type(parts: &[TargetTensor<'_>]) -> FloatType {
    let first = parts.first().map_or(FloatType::F32, |part| part.dtype);
    if parts.iter().all(|part| part.dtype == first) {
        first
    } else {
        FloatType::F32
    }
}

impl TargetTensor<'_> {
    /// Number of elements.
    pub(super) fn len(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.len() * self.dtype.size_bytes()
    }

    /// Hands all numbers to `put`, little-endian and in row-major order, a piece at a time.
    ///
    /// # Errors
    /// Those of `put` and of reading; a number beyond the range of the new type.
    pub(super) fn write(&self, put: &mut Put<'_>) -> Result<()> {
        let (true, &[.., n_rows, n_cols]) = (self.is_matrix, self.shape.as_slice()) else {
            let n = self.source.len();
            let values = match self.source.is_in_network_form {
                true => Forms::read(&self.source, self.form, n)?.checkpoint,
                false => self.source.read_vector(n)?,
            };
            return self.narrow(&values, 0, put);
        };
        let mut first = 0;
        for source in std::iter::once(&*self.source).chain(self.more.iter().copied()) {
            let numbers = if source.is_contiguous() {
                READ_NUMBERS
            } else {
                READ_NUMBERS_ACROSS
            };
            let step = (numbers / n_cols).clamp(1, n_rows);
            let mut values = reserve(step * n_cols, "rows of a tensor")?;
            values.resize(step * n_cols, 0.0);
            for start in (0..n_rows).step_by(step) {
                let rows = start..(start + step).min(n_rows);
                let values = &mut values[..rows.len() * n_cols];
                source.read_rows_once(rows, values)?;
                self.narrow(values, first, put)?;
                first += values.len();
            }
        }
        Ok(())
    }

    /// `first`: index of the first of these numbers, for error texts.
    fn narrow(&self, values: &[f32], first: usize, put: &mut Put<'_>) -> Result<()> {
        match self.dtype {
            FloatType::F32 => put(bytemuck::cast_slice(values)),
            FloatType::F16 => self.narrow_to(values, first, f16::is_finite, put),
            FloatType::Bf16 => self.narrow_to(values, first, bf16::is_finite, put),
        }
    }

    fn narrow_to<T: bytemuck::Pod>(
        &self,
        values: &[f32],
        first: usize,
        is_finite: fn(T) -> bool,
        put: &mut Put<'_>,
    ) -> Result<()>
    where
        [T]: HalfFloatSliceExt,
    {
        let n = WRITE_NUMBERS.min(values.len());
        let mut narrow = reserve(n, "numbers of a tensor")?;
        narrow.resize(n, T::zeroed());
        for (i, values) in values.chunks(WRITE_NUMBERS).enumerate() {
            let narrow = &mut narrow[..values.len()];
            narrow.convert_from_f32_slice(values);
            if let Some(at) = narrow.iter().position(|&value| !is_finite(value)) {
                return Err(self.too_large(values[at], first + i * WRITE_NUMBERS + at));
            }
            put(bytemuck::cast_slice(narrow))?;
        }
        Ok(())
    }

    fn too_large(&self, value: f32, index: usize) -> Error {
        let n_cols = self.shape.last().copied().unwrap_or(1).max(1);
        let (row, column) = (index / n_cols, index % n_cols);
        let other = match self.dtype {
            FloatType::F16 => "--dtype bf16 or f32",
            _ => "--dtype f32",
        };
        Error::unsupported(format!(
            "{value} at [{row}, {column}], which is beyond the range of {}: use {other}",
            self.dtype
        ))
        .at(self.source.place())
    }
}
