//! From a checkpoint to a network: every tensor is checked, and used in place or converted.
//!
//! Input: the named raw tensors of a checkpoint. Output: a model whose sizes all agree. Tensors are
//! converted one after the other in blocks of rows, and the pages they were read from are released, so
//! that loading needs the result and little more.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::calibration::Calibration;
use super::damages::Damages;
use super::Loaded;
use crate::checkpoint::{Checkpoint, Dtype, Forms, RawTensor};
use crate::devices::plan::Plan;
use crate::devices::stages::Stages;
use crate::error::{Error, Result};
use crate::math::resized;
use crate::math::threads::Pool;
use crate::networks::fingerprint::{samples, Hasher};
use crate::networks::mix::Mix;
use crate::networks::source::{CalibratedSource, RowsSource, TakeRows, WeightSource};
use crate::networks::state::StateLayout;
use crate::networks::table::TensorAt;
use crate::networks::Machine;
use crate::progress::{Counter, Progress, ProgressUnit};
use crate::quant::blocks::{Blocks, RowSource, TASK_ROWS};
use crate::quant::convert::{convert_rows, convert_rows_in_pieces};
use crate::quant::exponents::Importance;
use crate::quant::matrix::{Layout, Matrix, Vector};
use crate::quant::parts::{BadPart, MatrixRows, Stored};
use crate::quant::{Quant, Weights};

/// Rows that one task reads where they lie across the file: longer pieces of what does lie side by side. Also of a matrix
/// that an adapter adds to.
const TASK_ROWS_ACROSS: usize = 256;

/// Loads a checkpoint; `progress` counts weights. Where memory is short, no page is kept that
/// was read only to be copied. With a calibration, it is quantised by what a text does to it.
pub(crate) fn load(
    checkpoint: Checkpoint,
    plan: &Plan,
    pool: &Pool,
    is_short: bool,
    calibration: Option<&Calibration<'_>>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Loaded> {
    let total = checkpoint
        .tensors
        .values()
        .map(|tensor| tensor.len() as u64)
        .sum();
    let layout = StateLayout::of_sizes(&checkpoint.config.sizes);
    let tuned = checkpoint.tuned.as_ref();
    let initial = tuned.map(|tuned| tuned.read(layout)).transpose()?;
    let mut weights = CheckpointWeights {
        mix: checkpoint.mix.as_ref(),
        quant: plan.quant(),
        is_short,
        counter: Some(Counter::new(ProgressUnit::Weights, total, progress)),
        ..CheckpointWeights::new(&checkpoint, pool)
    };
    let stages = match calibration {
        None => Stages::build(&mut weights, &checkpoint.config, plan)?,
        Some(calibration) => {
            let mut floats = CheckpointWeights::new(&checkpoint, pool);
            let sources: (&mut dyn WeightSource, &mut dyn CalibratedSource) =
                (&mut floats, &mut weights);
            let network = calibration.run(sources, &checkpoint.config, initial.clone())?;
            Stages::of_network(network, plan.quant())
        }
    };
    let stored_blocks = stored_blocks(&checkpoint);
    Ok(Loaded {
        stages,
        initial,
        fingerprint: weights.hasher.finish(),
        place: checkpoint.place,
        config: checkpoint.config,
        tokenizer: checkpoint.tokenizer,
        tokenizer_search: checkpoint.tokenizer_search,
        correction: checkpoint.correction,
        model_file: None,
        stored_blocks,
        adapters: checkpoint
            .adapters
            .into_iter()
            .map(|one| one.text)
            .collect(),
    })
}

/// What rounding each matrix does to the predictions of a text, which is read by `machine`; `progress` counts weights.
///
/// # Errors
/// Those of [`Damages::measure`].
pub(crate) fn damages(
    checkpoint: &Checkpoint,
    (machine, tokens): (Machine<'_>, &[u32]),
    progress: &mut dyn FnMut(Progress),
) -> Result<Damages> {
    let config = &checkpoint.config;
    let tuned = checkpoint.tuned.as_ref();
    let initial = tuned.map(|tuned| tuned.read(StateLayout::of_sizes(&config.sizes)));
    let mut floats = CheckpointWeights::new(checkpoint, machine.pool);
    let mut rounded = CheckpointWeights {
        quant: Quant::Q4,
        ..CheckpointWeights::new(checkpoint, machine.pool)
    };
    let large = matrices(checkpoint).filter(|(tensor, _)| tensor.spec.damage().is_some());
    let total = large.map(|(tensor, _)| tensor.len() as u64).sum();
    let mut counter = Counter::new(ProgressUnit::Weights, total, progress);
    Damages::measure(
        (machine, tokens),
        (&mut floats, &mut rounded),
        config,
        initial.transpose()?,
        &mut |n| counter.advance(n),
    )
}

/// What a checkpoint's matrices stay when nothing else is asked for: f16 if all are 16-bit, or if most
/// are quantised, as in a file of rwkv.cpp or llama.cpp; rounding to f16 is far finer than that.
pub(crate) fn stored_quant(checkpoint: &Checkpoint) -> Quant {
    // Low-rank matrices are small, and mostly stored more finely than the others.
    let large = matrices(checkpoint).filter(|(tensor, _)| !tensor.spec.is_low_rank());
    let dtypes: Vec<Dtype> = large.map(|(_, raw)| raw.dtype).collect();
    let quantised = dtypes.iter().any(|dtype| matches!(dtype, Dtype::Blocks(_)));
    if dtypes.contains(&Dtype::F32) && !quantised {
        Quant::F32
    } else {
        Quant::F16
    }
}

/// The name of the blocks that have most of the numbers of the quantised matrices.
pub(crate) fn stored_blocks(checkpoint: &Checkpoint) -> Option<&'static str> {
    let mut numbers = BTreeMap::new();
    for (_, raw) in matrices(checkpoint) {
        if matches!(raw.dtype, Dtype::Blocks(_)) {
            *numbers.entry(raw.dtype.name()).or_insert(0) += raw.len() as u64;
        }
    }
    let most = numbers.into_iter().max_by_key(|&(_, n)| n);
    most.map(|(name, _)| name)
}

/// Bytes of the matrices that will be used in place from mapped files whose pages can be dropped. Low-rank matrices
/// stay in memory.
pub(crate) fn mapped_bytes(checkpoint: &Checkpoint, quant: Quant) -> u64 {
    let size = |raw: &RawTensor| raw.dtype.size().unwrap_or(1) as u64;
    let in_place = |(tensor, raw): &(TensorAt<'_>, &RawTensor)| {
        !tensor.spec.is_low_rank()
            && is_used_in_place(tensor, raw, quant)
            && raw.offset % size(raw) == 0
            && raw.file.pages_can_be_dropped()
    };
    let tensors = matrices(checkpoint).filter(in_place);
    tensors.map(|(_, raw)| raw.len() as u64 * size(raw)).sum()
}

/// Whether a matrix of a checkpoint is stored as it is wanted.
pub(super) fn is_used_in_place(tensor: &TensorAt<'_>, raw: &RawTensor, quant: Quant) -> bool {
    let is_wanted = tensor.quant(quant).floats().map(Dtype::from) == Some(raw.dtype);
    is_wanted && !is_transposed(tensor) && raw.is_usable_in_place()
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
    hasher: Hasher,
    counter: Option<Counter<'a>>,
    mix: Option<&'a Mix>,
    /// What a text has shown of the rounding errors of matrices, by their names.
    importances: BTreeMap<String, Importance>,
}

impl<'a> CheckpointWeights<'a> {
    /// The weights as floats.
    fn new(checkpoint: &'a Checkpoint, pool: &'a Pool) -> Self {
        let mut hasher = Hasher::new(&checkpoint.config);
        for adapter in &checkpoint.adapters {
            hasher.adapter(adapter.identity);
        }
        CheckpointWeights {
            checkpoint,
            quant: stored_quant(checkpoint),
            pool,
            is_short: false,
            hasher,
            counter: None,
            mix: None,
            importances: BTreeMap::new(),
        }
    }

    /// The names were checked when the checkpoint was opened.
    fn tensor(&self, tensor: &TensorAt<'_>) -> Result<RawTensor> {
        let name = tensor.raw_name();
        let raw = self.checkpoint.tensors.get(&name).cloned();
        raw.ok_or_else(|| {
            Error::format(format!("{}: tensor {name}: missing", self.checkpoint.place))
        })
    }

    /// A matrix as it is to be stored, after its part in the fingerprint.
    fn stored(&mut self, tensor: &TensorAt<'_>) -> Result<RawTensor> {
        let (n_rows, n_cols) = tensor.checkpoint_shape();
        let (raw, name) = (self.tensor(tensor)?, tensor.name());
        let mut numbers = Vec::new();
        for (index, rows) in samples(&name, n_rows, n_cols).into_iter().enumerate() {
            resized(&mut numbers, rows.len() * n_cols, 0.0, "rows of a matrix")?;
            raw.read_rows(rows, &mut numbers)?;
            self.hasher.matrix(&name, index, &numbers, n_cols);
        }
        Ok(match is_transposed(tensor) {
            false => raw,
            true => raw.transposed(),
        })
    }

    /// How a matrix is to be stored.
    fn format(&self, tensor: &TensorAt<'_>) -> Quant {
        match self.mix {
            Some(mix) => mix.format(tensor),
            None => tensor.quant(self.quant),
        }
    }

    /// What rounding errors of a matrix will do.
    fn importance(&self, matrix: &TensorAt<'_>) -> Result<Importance> {
        let shown = self.importances.get(&matrix.name());
        if let (Some(shown), true) = (shown, self.format(matrix).is_mixed()) {
            return Ok(shown.clone());
        }
        matrix.importance(self.format(matrix), &mut |vector| {
            let raw = self.tensor(vector)?;
            Forms::read(&raw, vector.spec.form, vector.len()).map(|forms| forms.network)
        })
    }

    fn was_read(&mut self, raw: &RawTensor, n: usize) {
        if self.is_short {
            raw.file.release(raw.offset..raw.end());
        }
        if let Some(counter) = &mut self.counter {
            counter.advance(n as u64);
        }
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
        self.hasher.vector(&name, &forms.checkpoint);
        self.was_read(&raw, tensor.len());
        let values = forms.network;
        Ok(Vector { name, values })
    }

    fn matrix(&mut self, tensor: &TensorAt<'_>) -> Result<Matrix> {
        let stored = self.stored(tensor)?;
        let (name, layout) = (tensor.name(), tensor.layout());
        let importance = self.importance(tensor)?;
        let quant = self.format(tensor);
        let matrix = convert(&stored, name, layout, quant, importance, self.pool)?;
        self.was_read(&stored, tensor.len());
        Ok(matrix)
    }
}

impl CalibratedSource for CheckpointWeights<'_> {
    fn set_importances(&mut self, importances: BTreeMap<String, Importance>) {
        self.importances = importances;
    }
}

impl RowsSource for CheckpointWeights<'_> {
    fn matrix_rows(&mut self, tensor: &TensorAt<'_>, take: &mut TakeRows<'_>) -> Result<()> {
        let stored = self.stored(tensor)?;
        let importance = self.importance(tensor)?;
        let quant = self.format(tensor);
        convert_in_pieces(&stored, quant, importance, self.pool, take)?;
        self.was_read(&stored, tensor.len());
        Ok(())
    }
}

/// Whether it is stored as the transpose of what raw checkpoints hold.
fn is_transposed(tensor: &TensorAt<'_>) -> bool {
    tensor.layout() == Layout::RowPerInput
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
        // What an adapter adds is read again for each task.
        if self.is_contiguous() && !self.is_merged() {
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
    quant.floats().map(Dtype::from) == Some(tensor.dtype) && tensor.is_usable_in_place()
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
    weights.map_err(|bad| bad.error.at(tensor.place()))
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
    let bad = |bad: BadPart| bad.error.at(tensor.place());
    let stored = Stored::new(quant, (n_rows, n_cols), &[]).map_err(bad)?;
    let read = |rows: Range<usize>| {
        let bytes = tensor.contiguous_elements(rows.start * n_cols..rows.end * n_cols);
        let bytes = bytes.transpose()?;
        let bytes = bytes.ok_or_else(|| Error::format("not contiguous").at(tensor.place()))?;
        // Nobody looks at them where they go, and what they make of their inputs may never come back as numbers.
        match first_not_finite(quant, &bytes, pool) {
            None => Ok(bytes),
            Some(at) => {
                let (row, column) = (rows.start + at / n_cols, at % n_cols);
                let text = format!("not a finite number at [{row}, {column}]");
                Err(Error::format(text).at(tensor.place()))
            }
        }
    };
    stored.for_each_piece(read, take)?;
    tensor.file.watch().check()
}

/// Where the first NaN or infinity is among floats as a file has them; all threads look.
fn first_not_finite(quant: Quant, bytes: &[u8], pool: &Pool) -> Option<usize> {
    const TASK_BYTES: usize = 256 << 10;
    let numbers = quant.floats()?;
    let are_bad = AtomicBool::new(false);
    pool.run(bytes.len().div_ceil(TASK_BYTES), &|task, _| {
        let start = task * TASK_BYTES;
        let end = (start + TASK_BYTES).min(bytes.len());
        if numbers.first_not_finite(&bytes[start..end]).is_some() {
            are_bad.store(true, Ordering::Relaxed);
        }
    });
    let are_bad = are_bad.into_inner();
    are_bad.then(|| numbers.first_not_finite(bytes)).flatten()
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
    fn numbers_that_are_not_finite_are_found_on_their_way_to_a_device() {
        let pool = Pool::new(2);
        let shape = [1500, 512];
        for (dtype, quant) in [(Dtype::F32, Quant::F32), (Dtype::F16, Quant::F16)] {
            for (row, column) in [(0, 0), (700, 300), (1499, 511)] {
                let good = tensor(dtype, shape, 0);
                let mut bytes = good
                    .contiguous_bytes()
                    .expect("are")
                    .expect("some")
                    .to_vec();
                let (at, size) = (row * shape[1] + column, bytes.len() / (shape[0] * shape[1]));
                // The sign and the exponent.
                bytes[at * size..(at + 1) * size].fill(0xff);
                let range = 0..bytes.len() as u64;
                let file = SourceFile::from_bytes("file", bytes.into());
                let strides = vec![shape[1], 1];
                let whole = (shape.to_vec(), strides);
                let bad = RawTensor::new("t".into(), file, dtype, whole, 0, range).expect("valid");
                let error =
                    convert_in_pieces(&bad, quant, Importance::default(), &pool, &mut |_| Ok(()))
                        .expect_err("NaN");
                let text = format!("not a finite number at [{row}, {column}]");
                assert!(error.to_string().ends_with(&text), "{error}");
            }
        }
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
                tensor = tensor.transposed();
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
