//! From a checkpoint to a network: every tensor is checked, and used in place or converted.
//!
//! Input: the named raw tensors of a checkpoint. Output: a model whose sizes all agree. Tensors are
//! converted one after the other in blocks of rows, and the pages they were read from are released, so
//! that loading needs the result and little more.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

use half::f16;
use xxhash_rust::xxh3::Xxh3;

use crate::budget::Budget;
use crate::checkpoint::{Checkpoint, Dtype, RawTensor};
use crate::decay::Decay;
use crate::error::{Error, Result};
use crate::kernels::KernelSet;
use crate::matrix::{Buffer, Layout, Matrix, Quant, Vector, WeightSource, Weights};
use crate::model::{Inner, TokenizerSlot};
use crate::plan::Plan;
use crate::quant;
use crate::stage::Stages;
use crate::threads::Pool;
use crate::v4::{Sizes, ARCHITECTURE, DECAY_LOG};

/// Numbers in f32 that are converted at once: 16 MiB, which holds `ffn.value` of the 169M model whole.
const BLOCK_NUMBERS: usize = 4 << 20;
/// Rows that one task converts.
const TASK_ROWS: usize = 16;
/// The same where rows lie across the file: longer pieces of what does lie side by side.
const TASK_ROWS_ACROSS: usize = 256;
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
    let dtype = match quant {
        Quant::F32 => Dtype::F32,
        Quant::F16 => Dtype::F16,
        Quant::Int8 => return 0,
    };
    let in_place = |(name, tensor): &(&String, &RawTensor)| {
        // The one that is stored the other way round.
        let is_turned = name.ends_with("ffn.value.weight");
        is_matrix(name)
            && !is_turned
            && tensor.dtype == dtype
            && tensor.is_contiguous()
            && tensor.offset % dtype.size().unwrap_or(1) as u64 == 0
            && tensor.file.pages_can_be_dropped()
    };
    let tensors = checkpoint.tensors.iter().filter(in_place);
    let size = |(_, tensor): (_, &RawTensor)| (tensor.len() * dtype.size().unwrap_or(0)) as u64;
    tensors.map(size).sum()
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
        let tensor = self.tensor(&name)?;
        let mut first_row = vec![0.0; n_inputs];
        tensor.read_rows(0..1, &mut first_row)?;
        self.hash(&name, &first_row[..n_inputs.min(FINGERPRINT_NUMBERS)]);
        let stored = match layout {
            Layout::RowPerOutput => tensor,
            Layout::RowPerInput => transposed(tensor),
        };
        let matrix = convert(&stored, name, layout, self.quant, self.pool)?;
        self.was_read(&stored, n_outputs * n_inputs);
        Ok(matrix)
    }
}

fn transposed(mut tensor: RawTensor) -> RawTensor {
    tensor.shape.reverse();
    tensor.strides.reverse();
    tensor
}

/// Makes a matrix of a tensor whose rows are the rows to be stored: in place, if it is stored as wanted.
pub(crate) fn convert(
    tensor: &RawTensor,
    name: String,
    layout: Layout,
    quant: Quant,
    pool: &Pool,
) -> Result<Matrix> {
    let &[n_rows, n_cols] = tensor.shape.as_slice() else {
        let text = format!("shape {:?}, expected a matrix", tensor.shape);
        return Err(Error::format(text).at(tensor.place()));
    };
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

/// Makes weights of rows, in memory of their own.
pub(crate) fn convert_rows(blocks: &mut Blocks<'_>, quant: Quant) -> Result<Weights> {
    Ok(match quant {
        Quant::F32 => Weights::F32(Buffer::owned(to_f32(blocks)?)),
        Quant::F16 => Weights::F16(Buffer::owned(to_f16(blocks)?)),
        Quant::Int8 => Weights::Int8(quant::to_int8(blocks)?),
    })
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
    blocks.for_each(|_, block| {
        out.extend_from_slice(block);
        Ok(())
    })?;
    Ok(out)
}

fn to_f16(blocks: &mut Blocks<'_>) -> Result<Vec<f16>> {
    let (n_cols, pool, source) = (blocks.n_cols, blocks.pool, blocks.source);
    let mut out: Vec<f16> = reserve(blocks.n_rows * n_cols)?;
    blocks.for_each(|rows, block| {
        let start = out.len();
        out.resize(start + block.len(), f16::ZERO);
        let new = &mut out[start..];
        pool.run_chunks(new, TASK_ROWS * n_cols, |task, new| {
            let block = &block[task * TASK_ROWS * n_cols..][..new.len()];
            new.iter_mut()
                .zip(block)
                .for_each(|(new, &value)| *new = f16::from_f32(value));
        });
        match new.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(at) => {
                let (row, column) = (rows.start + at / n_cols, at % n_cols);
                let text = format!(
                    "{} at [{row}, {column}], which is beyond the range of f16: use --quant f32",
                    block[at]
                );
                Err(Error::unsupported(text).at(source.place()))
            }
        }
    })?;
    Ok(out)
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

/// Where the rows of a matrix come from.
pub(crate) trait RowSource: Sync {
    /// Fills `out`, (rows, columns), with finite numbers.
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// The rows are not needed for now.
    fn release(&self, _rows: Range<usize>) {}

    /// How many rows to read at once at best.
    fn task_rows(&self) -> usize {
        TASK_ROWS
    }

    /// For error texts.
    fn place(&self) -> String;
}

impl RowSource for RawTensor {
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        RawTensor::read_rows(self, rows, out)
    }

    fn release(&self, rows: Range<usize>) {
        RawTensor::release(self, rows);
    }

    fn task_rows(&self) -> usize {
        if self.is_contiguous() {
            TASK_ROWS
        } else {
            TASK_ROWS_ACROSS
        }
    }

    fn place(&self) -> String {
        RawTensor::place(self)
    }
}

/// Reads a matrix block of rows by block of rows, as often as needed. What fits into one block is
/// read once.
pub(crate) struct Blocks<'a> {
    pub(crate) source: &'a dyn RowSource,
    pub(crate) n_rows: usize,
    pub(crate) n_cols: usize,
    pub(crate) pool: &'a Pool,
    buffer: Vec<f32>,
    /// Rows that `buffer` holds.
    held: Range<usize>,
}

impl<'a> Blocks<'a> {
    pub(crate) fn new(
        source: &'a dyn RowSource,
        n_rows: usize,
        n_cols: usize,
        pool: &'a Pool,
    ) -> Self {
        let (buffer, held) = (Vec::new(), 0..0);
        Blocks {
            source,
            n_rows,
            n_cols,
            pool,
            buffer,
            held,
        }
    }

    /// Calls `work(rows, numbers)` for every block in order.
    pub(crate) fn for_each(
        &mut self,
        mut work: impl FnMut(Range<usize>, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let step = (BLOCK_NUMBERS / self.n_cols).max(1);
        for start in (0..self.n_rows).step_by(step) {
            let rows = start..(start + step).min(self.n_rows);
            self.read(rows.clone())?;
            work(rows, &self.buffer)?;
        }
        Ok(())
    }

    fn read(&mut self, rows: Range<usize>) -> Result<()> {
        if self.held == rows {
            return Ok(());
        }
        let (source, n_cols) = (self.source, self.n_cols);
        let task_rows = source.task_rows();
        self.held = 0..0;
        self.buffer.resize(rows.len() * n_cols, 0.0);
        let error = Mutex::new(None);
        self.pool
            .run_chunks(&mut self.buffer, task_rows * n_cols, |task, out| {
                let start = rows.start + task * task_rows;
                if let Err(e) = source.read_rows(start..start + out.len() / n_cols, out) {
                    if let Ok(mut error) = error.lock() {
                        error.get_or_insert(e);
                    }
                }
            });
        source.release(rows.clone());
        if let Some(error) = error.into_inner().ok().flatten() {
            return Err(error);
        }
        self.held = rows;
        Ok(())
    }
}
