//! From a checkpoint to a network: every tensor is checked, and used in place or converted.
//!
//! Input: the named raw tensors of a checkpoint. Output: a model whose sizes all agree. Tensors are
//! converted one after the other in blocks of rows, and the pages they were read from are released, so
//! that loading needs the result and little more.

#![forbid(unsafe_code)]

use std::ops::Range;

use xxhash_rust::xxh3::Xxh3;

use super::Loaded;
use crate::checkpoint::{Checkpoint, Dtype, Forms, RawTensor};
use crate::devices::plan::Plan;
use crate::devices::stages::Stages;
use crate::error::{Error, Result};
use crate::math::threads::Pool;
use crate::networks::source::{RowsSource, TakeRows, WeightSource};
use crate::networks::table::TensorAt;
use crate::progress::{Counter, Progress, ProgressUnit};
use crate::quant::blocks::{Blocks, RowSource, TASK_ROWS};
use crate::quant::convert::{convert_rows, convert_rows_in_pieces};
use crate::quant::exponents::Importance;
use crate::quant::matrix::{Layout, Matrix, Vector};
use crate::quant::parts::{BadPart, MatrixRows, Stored};
use crate::quant::{Quant, Weights};

/// How many numbers of a matrix take part in the fingerprint: enough to tell checkpoints apart without
/// reading them.
const FINGERPRINT_NUMBERS: usize = 64;
/// Rows that one task reads where they lie across the file: longer pieces of what does lie side by side.
const TASK_ROWS_ACROSS: usize = 256;

/// Loads a checkpoint; `progress` counts weights. Where memory is short, no page is kept that
/// was read only to be copied.
pub(crate) fn load(
    checkpoint: Checkpoint,
    plan: &Plan,
    pool: &Pool,
    is_short: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Loaded> {
    let sizes = &checkpoint.config.sizes;
    let mut hash = Xxh3::new();
    hash.update(sizes.architecture.name.as_bytes());
    for (_, size) in sizes.named() {
        hash.update(&(size as u64).to_le_bytes());
    }
    let total = checkpoint
        .tensors
        .values()
        .map(|tensor| tensor.len() as u64)
        .sum();
    let mut weights = CheckpointWeights {
        checkpoint: &checkpoint,
        quant: plan.quant(),
        pool,
        is_short,
        hash,
        counter: Counter::new(ProgressUnit::Weights, total, progress),
    };
    let stages = Stages::build(&mut weights, &checkpoint.config, plan)?;
    Ok(Loaded {
        stages,
        fingerprint: weights.hash.digest(),
        place: checkpoint.place,
        config: checkpoint.config,
        tokenizer: checkpoint.tokenizer,
        tokenizer_search: checkpoint.tokenizer_search,
        model_file: None,
    })
}

/// What a checkpoint's matrices stay when nothing else is asked for: f16 if all are 16-bit, or if most
/// are quantised, as in a file of rwkv.cpp; rounding to f16 is far finer than that.
pub(crate) fn stored_quant(checkpoint: &Checkpoint) -> Quant {
    let dtypes: Vec<Dtype> = matrices(checkpoint).map(|(_, raw)| raw.dtype).collect();
    let quantised = dtypes.iter().any(|dtype| matches!(dtype, Dtype::Blocks(_)));
    if dtypes.contains(&Dtype::F32) && !quantised {
        Quant::F32
    } else {
        Quant::F16
    }
}

/// Bytes of the matrices that will be used in place from mapped files whose pages can be dropped.
pub(crate) fn mapped_bytes(checkpoint: &Checkpoint, quant: Quant) -> u64 {
    let size = |raw: &RawTensor| raw.dtype.size().unwrap_or(1) as u64;
    let in_place = |(tensor, raw): &(TensorAt<'_>, &RawTensor)| {
        is_used_in_place(tensor, raw, quant)
            && raw.offset % size(raw) == 0
            && raw.file.pages_can_be_dropped()
    };
    let tensors = matrices(checkpoint).filter(in_place);
    tensors.map(|(_, raw)| raw.len() as u64 * size(raw)).sum()
}

/// Whether a matrix of a checkpoint is stored as it is wanted.
pub(super) fn is_used_in_place(tensor: &TensorAt<'_>, raw: &RawTensor, quant: Quant) -> bool {
    let is_wanted = quant.floats().map(Dtype::from) == Some(raw.dtype);
    is_wanted && tensor.layout() == Layout::RowPerOutput && raw.is_contiguous()
}

/// The matrices of a checkpoint, and where they are.
pub(super) fn matrices(
    checkpoint: &Checkpoint,
) -> impl Iterator<Item = (TensorAt<'_>, &RawTensor)> {
    let sizes = &checkpoint.config.sizes;
    let whole = sizes.architecture.whole(sizes);
    let tensors = sizes.architecture.tensors(sizes, &whole);
    tensors.filter(TensorAt::is_matrix).filter_map(|tensor| {
        let raw = checkpoint.tensors.get(&tensor.raw_name())?;
        Some((tensor, raw))
    })
}

struct CheckpointWeights<'a> {
    checkpoint: &'a Checkpoint,
    quant: Quant,
    pool: &'a Pool,
    is_short: bool,
    /// Becomes the checkpoint's fingerprint.
    hash: Xxh3,
    counter: Counter<'a>,
}

impl CheckpointWeights<'_> {
    /// The names were checked when the checkpoint was opened.
    fn tensor(&self, tensor: &TensorAt<'_>) -> Result<RawTensor> {
        let name = tensor.raw_name();
        let raw = self.checkpoint.tensors.get(&name).cloned();
        raw.ok_or_else(|| {
            Error::format(format!("{}: tensor {name}: missing", self.checkpoint.place))
        })
    }

    fn hash(&mut self, name: &str, values: &[f32]) {
        self.hash.update(name.as_bytes());
        self.hash.update(bytemuck::cast_slice(values));
    }

    /// A matrix as it is to be stored, after its part in the fingerprint.
    fn stored(&mut self, tensor: &TensorAt<'_>) -> Result<RawTensor> {
        let (_, n_inputs) = tensor.outputs_and_inputs();
        let raw = self.tensor(tensor)?;
        let mut first_row = vec![0.0; n_inputs];
        raw.read_rows(0..1, &mut first_row)?;
        self.hash(
            &tensor.name(),
            &first_row[..n_inputs.min(FINGERPRINT_NUMBERS)],
        );
        Ok(match tensor.layout() {
            Layout::RowPerOutput => raw,
            Layout::RowPerInput => transposed(raw),
        })
    }

    /// What rounding errors of a matrix will do.
    fn importance(&self, matrix: &TensorAt<'_>) -> Result<Importance> {
        matrix.importance(self.quant, &mut |vector| {
            let raw = self.tensor(vector)?;
            Forms::read(&raw, vector.spec.form, vector.len()).map(|forms| forms.network)
        })
    }

    fn was_read(&mut self, raw: &RawTensor, n: usize) {
        if self.is_short {
            raw.file.release(raw.offset..raw.end());
        }
        self.counter.advance(n as u64);
    }
}

impl WeightSource for CheckpointWeights<'_> {
    fn set_quant(&mut self, quant: Quant) -> Result<()> {
        self.quant = quant;
        Ok(())
    }

    fn vector(&mut self, tensor: &TensorAt<'_>) -> Result<Vector> {
        let (raw, name) = (self.tensor(tensor)?, tensor.name());
        let forms = Forms::read(&raw, tensor.spec.form, tensor.len())?;
        self.hash(&name, &forms.checkpoint);
        self.was_read(&raw, tensor.len());
        let values = forms.network;
        Ok(Vector { name, values })
    }

    fn matrix(&mut self, tensor: &TensorAt<'_>) -> Result<Matrix> {
        let stored = self.stored(tensor)?;
        let (name, layout) = (tensor.name(), tensor.layout());
        let importance = self.importance(tensor)?;
        let matrix = convert(&stored, name, layout, self.quant, importance, self.pool)?;
        self.was_read(&stored, tensor.len());
        Ok(matrix)
    }
}

impl RowsSource for CheckpointWeights<'_> {
    fn matrix_rows(&mut self, tensor: &TensorAt<'_>, take: &mut TakeRows<'_>) -> Result<()> {
        let stored = self.stored(tensor)?;
        let importance = self.importance(tensor)?;
        convert_in_pieces(&stored, self.quant, importance, self.pool, take)?;
        self.was_read(&stored, tensor.len());
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

/// Whether the numbers of a tensor lie in the file as that quantisation stores them.
fn is_stored_as(tensor: &RawTensor, quant: Quant) -> bool {
    quant.floats().map(Dtype::from) == Some(tensor.dtype) && tensor.is_contiguous()
}

/// Makes a matrix of a tensor whose rows are the rows to be stored: in place, if it is stored as wanted.
pub(crate) fn convert(
    tensor: &RawTensor,
    name: String,
    layout: Layout,
    quant: Quant,
    importance: Importance,
    pool: &Pool,
) -> Result<Matrix> {
    let (n_rows, n_cols) = matrix_shape(tensor)?;
    let weights = match in_place(tensor, quant)? {
        Some(weights) => weights,
        None => {
            let blocks = Blocks::new(tensor, n_rows, n_cols, pool);
            convert_rows(&mut blocks.with_importance(importance), quant)?
        }
    };
    Ok(Matrix {
        name,
        n_rows,
        n_cols,
        layout,
        weights,
    })
}

/// The tensor's own bytes, if they are what is wanted, at an address where numbers can be.
fn in_place(tensor: &RawTensor, quant: Quant) -> Result<Option<Weights>> {
    let bytes = match is_stored_as(tensor, quant) {
        true => tensor.contiguous_bytes().transpose()?,
        false => None,
    };
    let Some(bytes) = bytes else {
        return Ok(None);
    };
    let weights = Weights::from_parts(quant, matrix_shape(tensor)?, &[Some(bytes)]);
    weights.map_err(|bad| Error::format(bad.text).at(tensor.place()))
}

/// As [`convert`], but gives the matrix to `take` in pieces, of which one at a time is in memory.
pub(crate) fn convert_in_pieces(
    tensor: &RawTensor,
    quant: Quant,
    importance: Importance,
    pool: &Pool,
    take: &mut dyn FnMut(MatrixRows<'_>) -> Result<()>,
) -> Result<()> {
    let (n_rows, n_cols) = matrix_shape(tensor)?;
    if !is_stored_as(tensor, quant) {
        let blocks = Blocks::new(tensor, n_rows, n_cols, pool);
        let mut blocks = blocks.with_importance(importance);
        return convert_rows_in_pieces(&mut blocks, quant, take);
    }
    let bad = |bad: BadPart| Error::format(bad.text).at(tensor.place());
    let stored = Stored::new(quant, (n_rows, n_cols), &[]).map_err(bad)?;
    let read = |rows: Range<usize>| {
        let bytes = tensor.contiguous_elements(rows.start * n_cols..rows.end * n_cols);
        let bytes = bytes.transpose()?;
        bytes.ok_or_else(|| Error::format("not contiguous").at(tensor.place()))
    };
    stored.for_each_piece(read, take)?;
    tensor.file.watch().check()
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::files::SourceFile;
    use crate::quant::convert::UPLOAD_BYTES;

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

    /// Pieces put together: the bytes of all parts.
    fn joined(tensor: &RawTensor, quant: Quant, pool: &Pool) -> Vec<Vec<u8>> {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        let (mut next, mut n_pieces) = (0, 0);
        convert_in_pieces(tensor, quant, Importance::default(), pool, &mut |rows| {
            let (size, range) = (rows.size(), rows.range());
            let shape = (tensor.shape[0], tensor.shape[1]);
            assert_eq!(
                (size.n_rows, size.n_cols, size.quant),
                (shape.0, shape.1, quant)
            );
            assert_eq!(range.start, next);
            next = range.end;
            parts.resize(rows.parts().len(), Vec::new());
            for ((kind, bytes), all) in rows.parts().iter().zip(&mut parts) {
                if !kind.is_by_rows {
                    all.clear();
                }
                all.extend_from_slice(bytes);
            }
            assert!(rows.parts()[0].1.len() <= UPLOAD_BYTES);
            n_pieces += 1;
            Ok(())
        })
        .expect("finite numbers");
        assert!(n_pieces > 1, "large enough for several");
        parts
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
                let any = Importance::default();
                let whole =
                    convert(&tensor, "t".into(), layout, quant, any, &pool).expect("finite");
                let what = format!("{dtype} {shift} {transposed} {quant}");
                let whole = whole.parts().into_iter().map(|(_, bytes)| bytes);
                let whole: Vec<_> = whole.collect();
                assert!(joined(&tensor, quant, &pool) == whole, "{what}");
                if quant == Quant::Int8 {
                    assert_eq!(whole.len(), 3, "this matrix has exponents");
                }
            }
        }
    }
}
