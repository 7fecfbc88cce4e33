//! From a checkpoint to a network: every tensor is checked, and used in place or converted.
//!
//! Input: the named raw tensors of a checkpoint. Output: a model whose sizes all agree. Tensors are
//! converted one after the other in blocks of rows, and the pages they were read from are released, so
//! that loading needs the result and little more.

#![forbid(unsafe_code)]

mod blocks;
mod huge_pages;

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use half::f16;
use xxhash_rust::xxh3::Xxh3;

use crate::budget::Budget;
use crate::checkpoint::{Checkpoint, Dtype, RawTensor};
use crate::decay::Decay;
use crate::error::{Error, Result};
use crate::file::FileBytes;
use crate::kernels::KernelSet;
use crate::matrix::{
    Buffer, Int8, Layout, Matrix, Quant, RowWeights, Rows, RowsSource, Vector, WeightSource,
    Weights,
};
use crate::model::{Inner, TokenizerSlot};
use crate::plan::Plan;
use crate::quant;
use crate::stage::Stages;
use crate::threads::Pool;
use crate::v4::{Sizes, ARCHITECTURE, DECAY_LOG};

pub(crate) use blocks::{Block, Blocks, RowSource};
use blocks::{BLOCK_NUMBERS, TASK_ROWS};
pub(crate) use huge_pages::{copy_to_huge_pages, quant_of_copies};

/// Pieces of a matrix on its way to a device are at most this large, rows that are longer aside: one of them,
/// the block in f32 that it is made of, and what a plugin may pin are together far below 64 MiB.
pub(crate) const PIECE_BYTES: usize = 4 * BLOCK_NUMBERS;
/// How many numbers of a matrix take part in the fingerprint: enough to tell checkpoints apart without
/// reading them.
const FINGERPRINT_NUMBERS: usize = 64;

/// Loads a checkpoint; calls `progress(done, total)` in weights. Where memory is short, no page is kept that
/// was read only to be copied.
pub(crate) fn load(
    checkpoint: Checkpoint,
    plan: &Plan,
    pool: Pool,
    kernels: KernelSet,
    is_short: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Inner> {
    let config = &checkpoint.config;
    let sizes = Sizes::of(config);
    let quant = plan.quant();
    let mut hash = Xxh3::new();
    hash.update(ARCHITECTURE.as_bytes());
    for size in [
        sizes.n_vocab,
        sizes.n_embd,
        sizes.n_layer,
        sizes.n_attention,
        sizes.n_hidden,
    ] {
        hash.update(&(size as u64).to_le_bytes());
    }
    let total = checkpoint
        .tensors
        .values()
        .map(|tensor| tensor.len() as u64)
        .sum();
    let mut weights = CheckpointWeights {
        checkpoint: &checkpoint,
        quant,
        pool: &pool,
        is_short,
        hash,
        done: 0,
        total,
        progress,
    };
    let stages = Stages::build(&mut weights, sizes, config.layer_norm_epsilon, plan)?;
    let fingerprint = weights.hash.digest();
    let searched = checkpoint.tokenizer_search;
    Ok(Inner {
        place: checkpoint.place,
        sizes,
        stages,
        config: checkpoint.config,
        quant,
        fingerprint,
        pool: Arc::new(pool),
        kernels,
        no_sparsity: false,
        budget: Budget::default(),
        tokenizer: TokenizerSlot {
            file: checkpoint.tokenizer,
            searched,
            parsed: OnceLock::new(),
        },
        model_file: None,
        note: plan.note.clone(),
    })
}

/// What a checkpoint's matrices stay when nothing else is asked for: f16 if all are 16-bit, or if most
/// are quantised, as in a file of rwkv.cpp; rounding to f16 is far finer than that.
pub(crate) fn stored_quant(checkpoint: &Checkpoint) -> Quant {
    let tensors = checkpoint.tensors.iter();
    let matrices = tensors.filter(|(name, _)| is_matrix(name));
    let dtypes: Vec<Dtype> = matrices.map(|(_, tensor)| tensor.dtype).collect();
    let quantised = dtypes.iter().any(|dtype| matches!(dtype, Dtype::Blocks(_)));
    if dtypes.contains(&Dtype::F32) && !quantised {
        Quant::F32
    } else {
        Quant::F16
    }
}

/// Bytes of the matrices that will be used in place from mapped files whose pages can be dropped.
pub(crate) fn mapped_bytes(checkpoint: &Checkpoint, quant: Quant) -> u64 {
    let size = |tensor: &RawTensor| tensor.dtype.size().unwrap_or(1) as u64;
    let in_place = |(name, tensor): &(&String, &RawTensor)| {
        is_used_in_place(name, tensor, quant)
            && tensor.offset % size(tensor) == 0
            && tensor.file.pages_can_be_dropped()
    };
    let tensors = checkpoint.tensors.iter().filter(in_place);
    tensors
        .map(|(_, tensor)| tensor.len() as u64 * size(tensor))
        .sum()
}

/// Whether a tensor of a checkpoint is a matrix that is stored as it is wanted.
fn is_used_in_place(name: &str, tensor: &RawTensor, quant: Quant) -> bool {
    // The one that is stored the other way round.
    let is_turned = name.ends_with("ffn.value.weight");
    let is_wanted = match quant {
        Quant::F32 => tensor.dtype == Dtype::F32,
        Quant::F16 => tensor.dtype == Dtype::F16,
        Quant::Int8 => false,
    };
    is_wanted && is_matrix(name) && !is_turned && tensor.is_contiguous()
}

/// Vectors called `.weight` are those of norms.
fn is_matrix(name: &str) -> bool {
    let of_norm = ["ln0.weight", "ln1.weight", "ln2.weight", "ln_out.weight"];
    name.ends_with(".weight") && !of_norm.iter().any(|norm| name.ends_with(norm))
}

struct CheckpointWeights<'a> {
    checkpoint: &'a Checkpoint,
    quant: Quant,
    pool: &'a Pool,
    is_short: bool,
    /// Becomes the checkpoint's fingerprint.
    hash: Xxh3,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl CheckpointWeights<'_> {
    /// The names were checked when the checkpoint was opened.
    fn tensor(&self, name: &str) -> Result<RawTensor> {
        let tensor = self.checkpoint.tensors.get(name).cloned();
        tensor.ok_or_else(|| {
            Error::format(format!("{}: tensor {name}: missing", self.checkpoint.place))
        })
    }

    fn hash(&mut self, name: &str, values: &[f32]) {
        self.hash.update(name.as_bytes());
        self.hash.update(bytemuck::cast_slice(values));
    }

    /// A matrix as it is to be stored, after its part in the fingerprint.
    fn stored(&mut self, name: &str, n_inputs: usize, layout: Layout) -> Result<RawTensor> {
        let tensor = self.tensor(name)?;
        let mut first_row = vec![0.0; n_inputs];
        tensor.read_rows(0..1, &mut first_row)?;
        self.hash(name, &first_row[..n_inputs.min(FINGERPRINT_NUMBERS)]);
        Ok(match layout {
            Layout::RowPerOutput => tensor,
            Layout::RowPerInput => transposed(tensor),
        })
    }

    fn was_read(&mut self, tensor: &RawTensor, n: usize) {
        if self.is_short {
            tensor.file.release(tensor.offset..tensor.end());
        }
        self.done += n as u64;
        (self.progress)(self.done, self.total);
    }
}

impl WeightSource for CheckpointWeights<'_> {
    fn set_quant(&mut self, quant: Quant) -> Result<()> {
        self.quant = quant;
        Ok(())
    }

    fn vector(&mut self, name: String, n: usize) -> Result<Vector> {
        let values = match name.strip_suffix(DECAY_LOG) {
            Some(layer) => {
                let tensor = self.tensor(&format!("{layer}att.time_decay"))?;
                let decay = Decay::read(&tensor, n)?;
                self.hash(&name, &decay.time_decay);
                self.was_read(&tensor, n);
                decay.decay_log
            }
            None => {
                let tensor = self.tensor(&name)?;
                let values = tensor.read_vector(n)?;
                self.hash(&name, &values);
                self.was_read(&tensor, n);
                values
            }
        };
        Ok(Vector { name, values })
    }

    fn matrix(
        &mut self,
        name: String,
        n_outputs: usize,
        n_inputs: usize,
        layout: Layout,
    ) -> Result<Matrix> {
        let stored = self.stored(&name, n_inputs, layout)?;
        let matrix = convert(&stored, name, layout, self.quant, self.pool)?;
        self.was_read(&stored, n_outputs * n_inputs);
        Ok(matrix)
    }
}

impl RowsSource for CheckpointWeights<'_> {
    fn matrix_rows(
        &mut self,
        name: String,
        n_outputs: usize,
        n_inputs: usize,
        layout: Layout,
        take: &mut dyn FnMut(Rows<'_>) -> Result<()>,
    ) -> Result<()> {
        let stored = self.stored(&name, n_inputs, layout)?;
        convert_in_pieces(&stored, self.quant, self.pool, take)?;
        self.was_read(&stored, n_outputs * n_inputs);
        Ok(())
    }
}

fn transposed(mut tensor: RawTensor) -> RawTensor {
    tensor.shape.reverse();
    tensor.strides.reverse();
    tensor
}

/// Rows and columns.
fn matrix_shape(tensor: &RawTensor) -> Result<(usize, usize)> {
    let &[n_rows, n_cols] = tensor.shape.as_slice() else {
        let text = format!("shape {:?}, expected a matrix", tensor.shape);
        return Err(Error::format(text).at(tensor.place()));
    };
    Ok((n_rows, n_cols))
}

/// Makes a matrix of a tensor whose rows are the rows to be stored: in place, if it is stored as wanted.
pub(crate) fn convert(
    tensor: &RawTensor,
    name: String,
    layout: Layout,
    quant: Quant,
    pool: &Pool,
) -> Result<Matrix> {
    let (n_rows, n_cols) = matrix_shape(tensor)?;
    let in_place = match quant {
        Quant::F32 => in_place(tensor, Dtype::F32)?.map(Weights::F32),
        Quant::F16 => in_place(tensor, Dtype::F16)?.map(Weights::F16),
        Quant::Int8 => None,
    };
    let weights = match in_place {
        Some(weights) => weights,
        None => convert_rows(&mut Blocks::new(tensor, n_rows, n_cols, pool), quant)?,
    };
    Ok(Matrix {
        name,
        n_rows,
        n_cols,
        layout,
        weights,
    })
}

/// As [`convert`], but gives the matrix to `take` in pieces, of which one at a time is in memory.
pub(crate) fn convert_in_pieces(
    tensor: &RawTensor,
    quant: Quant,
    pool: &Pool,
    take: &mut dyn FnMut(Rows<'_>) -> Result<()>,
) -> Result<()> {
    let (n_rows, n_cols) = matrix_shape(tensor)?;
    let is_stored = tensor.is_contiguous()
        && match quant {
            Quant::F32 => tensor.dtype == Dtype::F32,
            Quant::F16 => tensor.dtype == Dtype::F16,
            Quant::Int8 => false,
        };
    if !is_stored {
        let mut blocks = Blocks::new(tensor, n_rows, n_cols, pool);
        return convert_rows_in_pieces(&mut blocks, quant, take);
    }
    for rows in pieces(n_rows, n_cols * tensor.dtype.size().unwrap_or(1)) {
        let elements = rows.start * n_cols..rows.end * n_cols;
        let bytes = tensor.contiguous_elements(elements).transpose()?;
        let bytes = bytes.ok_or_else(|| Error::format("not contiguous").at(tensor.place()))?;
        let mut take = |weights: RowWeights<'_>| {
            take(Rows {
                n_rows,
                n_cols,
                first: rows.start,
                weights,
            })
        };
        match quant {
            Quant::F32 => take(RowWeights::F32(aligned(bytes).as_slice()))?,
            _ => take(RowWeights::F16(aligned(bytes).as_slice()))?,
        }
    }
    Ok(())
}

/// The bytes as numbers: in place, or a copy where they do not lie as numbers have to.
fn aligned<T: bytemuck::Pod>(bytes: FileBytes) -> Buffer<T> {
    Buffer::in_file(bytes.clone())
        .unwrap_or_else(|| Buffer::owned(bytemuck::pod_collect_to_vec(&bytes)))
}

/// Cuts `n_rows` rows of that size into pieces of at most [`PIECE_BYTES`], or of one row.
pub(crate) fn pieces(n_rows: usize, row_size_bytes: usize) -> impl Iterator<Item = Range<usize>> {
    let step = (PIECE_BYTES / row_size_bytes.max(1)).max(1);
    let starts = (0..n_rows).step_by(step);
    starts.map(move |start| start..(start + step).min(n_rows))
}

/// Makes weights of rows, in memory of their own.
pub(crate) fn convert_rows(blocks: &mut Blocks<'_>, quant: Quant) -> Result<Weights> {
    Ok(match quant {
        Quant::F32 => Weights::F32(Buffer::owned(to_f32(blocks)?)),
        Quant::F16 => Weights::F16(Buffer::owned(to_f16(blocks)?)),
        Quant::Int8 => Weights::Int8(quant::to_int8(blocks)?),
    })
}

/// As [`convert_rows`], but gives the rows to `take` block by block.
pub(crate) fn convert_rows_in_pieces(
    blocks: &mut Blocks<'_>,
    quant: Quant,
    take: &mut dyn FnMut(Rows<'_>) -> Result<()>,
) -> Result<()> {
    let (n_rows, n_cols) = (blocks.n_rows, blocks.n_cols);
    let mut take = |first: usize, weights: RowWeights<'_>| {
        take(Rows {
            n_rows,
            n_cols,
            first,
            weights,
        })
    };
    match quant {
        Quant::F32 => {
            blocks.for_each(|block| take(block.rows.start, RowWeights::F32(block.numbers)))
        }
        Quant::F16 => {
            let mut piece = Vec::new();
            blocks.for_each(|block| {
                piece.resize(block.numbers.len(), f16::ZERO);
                block_to_f16(block, n_cols, &mut piece)?;
                take(block.rows.start, RowWeights::F16(&piece))
            })
        }
        Quant::Int8 => {
            let rounding = quant::Rounding::new(blocks)?;
            let column_exponents = Int8::used(&rounding.column_exponents);
            let (mut values, mut row_scales) = (Vec::new(), Vec::new());
            blocks.for_each(|block| {
                values.resize(block.numbers.len(), 0);
                row_scales.resize(block.rows.len(), f16::ZERO);
                rounding.round(block, &mut values, &mut row_scales)?;
                let weights = RowWeights::Int8 {
                    values: &values,
                    row_scales: &row_scales,
                    column_exponents,
                };
                take(block.rows.start, weights)
            })
        }
    }
}

/// The tensor's own bytes, if they are what is wanted.
fn in_place<T: bytemuck::Pod>(tensor: &RawTensor, dtype: Dtype) -> Result<Option<Buffer<T>>> {
    if tensor.dtype != dtype {
        return Ok(None);
    }
    let bytes = tensor.contiguous_bytes().transpose()?;
    Ok(bytes.and_then(Buffer::in_file))
}

fn to_f32(blocks: &mut Blocks<'_>) -> Result<Vec<f32>> {
    let mut out = reserve(blocks.n_rows * blocks.n_cols)?;
    blocks.for_each(|block| {
        out.extend_from_slice(block.numbers);
        Ok(())
    })?;
    Ok(out)
}

fn to_f16(blocks: &mut Blocks<'_>) -> Result<Vec<f16>> {
    let n_cols = blocks.n_cols;
    let mut out: Vec<f16> = reserve(blocks.n_rows * n_cols)?;
    blocks.for_each(|block| {
        let start = out.len();
        out.resize(start + block.numbers.len(), f16::ZERO);
        block_to_f16(block, n_cols, &mut out[start..])
    })?;
    Ok(out)
}

/// Rounds a block to `out`, which has its length.
fn block_to_f16(block: &Block<'_>, n_cols: usize, out: &mut [f16]) -> Result<()> {
    let numbers = block.numbers;
    block.pool.run_chunks(out, TASK_ROWS * n_cols, |task, out| {
        let numbers = &numbers[task * TASK_ROWS * n_cols..][..out.len()];
        out.iter_mut()
            .zip(numbers)
            .for_each(|(out, &number)| *out = f16::from_f32(number));
    });
    match out.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => {
            let (row, column) = (block.rows.start + at / n_cols, at % n_cols);
            let text = format!(
                "{} at [{row}, {column}], which is beyond the range of f16: use --quant f32",
                numbers[at]
            );
            Err(Error::unsupported(text).at(block.source.place()))
        }
    }
}

/// A vector with room for `n` elements, or an error where the allocator refuses.
pub(crate) fn reserve<T>(n: usize) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(n).map_err(|e| {
        let size = n.saturating_mul(size_of::<T>());
        Error::memory(format!("not enough memory for {size} bytes of weights")).with_source(e)
    })?;
    Ok(vec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::SourceFile;

    /// A matrix of more than one block, in a file whose numbers are aligned or not.
    fn tensor(dtype: Dtype, shape: [usize; 2], shift: usize) -> RawTensor {
        let mut bytes = vec![0; shift];
        for i in 0..shape[0] * shape[1] {
            // Rows and columns of several sizes, so that both have scales.
            let size = (1 + i / shape[1] % 5 + i % shape[1] % 7) as f32;
            let x = size * (((i * 7919) % 20_011) as f32 / 3000.0 - 3.0);
            match dtype {
                Dtype::F32 => bytes.extend(x.to_le_bytes()),
                _ => bytes.extend(f16::from_f32(x).to_le_bytes()),
            }
        }
        let range = shift as u64..bytes.len() as u64;
        let file = SourceFile::from_bytes("file", bytes.into());
        let strides = vec![shape[1], 1];
        RawTensor::new("t".into(), file, dtype, (shape.to_vec(), strides), 0, range).expect("valid")
    }

    /// Pieces put together: bytes of weights, scales of rows, exponents of columns.
    fn joined(tensor: &RawTensor, quant: Quant, pool: &Pool) -> (Vec<u8>, Vec<f16>, Vec<i8>) {
        let (mut bytes, mut scales, mut exponents) = (Vec::new(), Vec::new(), Vec::new());
        let mut n_pieces = 0;
        convert_in_pieces(tensor, quant, pool, &mut |rows| {
            let size = rows.size();
            assert_eq!((size.n_rows, size.n_cols, size.quant), {
                (tensor.shape[0], tensor.shape[1], quant)
            });
            let row_bytes = match quant {
                Quant::F32 => 4 * rows.n_cols,
                Quant::F16 => 2 * rows.n_cols,
                Quant::Int8 => rows.n_cols,
            };
            assert_eq!(rows.first * row_bytes, bytes.len());
            let new: &[u8] = match rows.weights {
                RowWeights::F32(values) => bytemuck::cast_slice(values),
                RowWeights::F16(values) => bytemuck::cast_slice(values),
                RowWeights::Int8 {
                    values,
                    row_scales,
                    column_exponents,
                } => {
                    scales.extend_from_slice(row_scales);
                    exponents = column_exponents.to_vec();
                    bytemuck::cast_slice(values)
                }
            };
            assert!(new.len() <= PIECE_BYTES && new.len() % row_bytes == 0);
            bytes.extend_from_slice(new);
            n_pieces += 1;
            Ok(())
        })
        .expect("finite numbers");
        assert!(n_pieces > 1, "large enough for several");
        (bytes, scales, exponents)
    }

    #[test]
    fn pieces_are_what_the_whole_is() {
        // Of 20 MB in f16.
        let shape = [20_011, 512];
        for (dtype, shift, transposed) in [
            (Dtype::F32, 0, false),
            (Dtype::F32, 1, false),
            (Dtype::F16, 0, false),
            (Dtype::F16, 1, false),
            (Dtype::F16, 0, true),
        ] {
            let mut tensor = tensor(dtype, shape, shift);
            if transposed {
                tensor = super::transposed(tensor);
            }
            for (quant, n_threads) in [
                (Quant::F32, 1),
                (Quant::F16, 2),
                (Quant::Int8, 1),
                (Quant::Int8, 2),
            ] {
                let pool = Pool::new(n_threads);
                let layout = Layout::RowPerOutput;
                let whole = convert(&tensor, "t".into(), layout, quant, &pool).expect("finite");
                let (bytes, scales, exponents) = joined(&tensor, quant, &pool);
                let what = format!("{dtype} {shift} {transposed} {quant}");
                assert!(bytes == whole.bytes(), "{what}");
                if let Weights::Int8(int8) = &whole.weights {
                    assert!(int8.row_scales == scales, "{what}");
                    assert!(!exponents.is_empty(), "this matrix has some");
                    assert!(int8.column_exponents == exponents, "{what}");
                }
            }
        }
    }

    #[test]
    fn long_rows_go_one_by_one() {
        let all: Vec<_> = pieces(3, PIECE_BYTES + 1).collect();
        assert_eq!(all, [0..1, 1..2, 2..3]);
        assert_eq!(pieces(3, PIECE_BYTES / 2).collect::<Vec<_>>(), [0..2, 2..3]);
        assert_eq!(pieces(0, 1).count(), 0);
    }
}
