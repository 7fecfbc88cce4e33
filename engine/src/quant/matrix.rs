//! Weight matrices as the kernels read them: numbers in memory or in a mapped file, with their scales.
//!
//! Built by `model/load.rs` (from a checkpoint) and `model/model_file.rs`, used by `products/`.
//! After construction the sizes agree. No file names and no arithmetic here.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;

use crate::error::{Error, Result};
use crate::files::FileBytes;
use crate::quant::parts::{MatrixSize, PartKind};

use crate::quant::{Quant, Weights};

/// Numbers that are looked at before their pages are dropped: 1 or 2 MiB.
const CHECKED_NUMBERS: usize = 1 << 19;

/// Numbers that are owned, or lie in a file's bytes. A clone shares them.
#[derive(Clone)]
pub(crate) enum Buffer<T> {
    Owned(Arc<Vec<T>>),
    /// Checked by [`Buffer::in_file`] to be aligned and a whole number of elements.
    InFile(FileBytes),
}

impl<T: Pod> Buffer<T> {
    pub(crate) fn owned(values: Vec<T>) -> Self {
        Buffer::Owned(Arc::new(values))
    }

    /// The bytes as numbers in place, or `None` where their address or size does not allow it.
    pub(crate) fn in_file(bytes: FileBytes) -> Option<Self> {
        let fits = bytemuck::try_cast_slice::<u8, T>(&bytes).is_ok();
        fits.then_some(Buffer::InFile(bytes))
    }

    #[inline]
    pub(crate) fn as_slice(&self) -> &[T] {
        match self {
            Buffer::Owned(values) => values,
            Buffer::InFile(bytes) => bytemuck::cast_slice(bytes),
        }
    }

    pub(crate) fn file_bytes(&self) -> Option<&FileBytes> {
        match self {
            Buffer::Owned(_) => None,
            Buffer::InFile(bytes) => Some(bytes),
        }
    }
}

/// What a stored row of a matrix belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One stored row an output: the usual layout.
    RowPerOutput,
    /// One stored row an input: rows whose input is 0 need not be read.
    RowPerInput,
    /// One stored row an input, of a small matrix that stays floats in every quantisation and is used whole.
    LowRank,
}

impl Layout {
    /// How a matrix of this layout is stored in a model whose matrices are stored as `quant`.
    pub(crate) fn quant(self, quant: Quant) -> Quant {
        match self {
            Layout::LowRank if quant != Quant::F32 => Quant::F16,
            _ => quant,
        }
    }

    /// Stored rows and columns of a matrix with so many outputs and inputs.
    pub(crate) fn stored_shape(self, n_outputs: usize, n_inputs: usize) -> (usize, usize) {
        match self {
            Layout::RowPerOutput => (n_outputs, n_inputs),
            Layout::RowPerInput | Layout::LowRank => (n_inputs, n_outputs),
        }
    }
}

/// A named vector of weights, always f32.
#[derive(Clone)]
pub(crate) struct Vector {
    pub(crate) name: String,
    pub(crate) values: Vec<f32>,
}

impl std::ops::Deref for Vector {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values
    }
}

/// A named matrix (n_rows, n_cols) as stored. A clone shares the weights.
#[derive(Clone)]
pub(crate) struct Matrix {
    pub(crate) name: String,
    pub(crate) n_rows: usize,
    pub(crate) n_cols: usize,
    pub(crate) layout: Layout,
    pub(crate) weights: Weights,
}

impl Matrix {
    /// A matrix (n_rows, n_cols) whose weights are not here.
    pub(crate) fn placeholder(
        name: String,
        (n_rows, n_cols): (usize, usize),
        layout: Layout,
    ) -> Self {
        Matrix {
            name,
            n_rows,
            n_cols,
            layout,
            weights: Weights::F32(Buffer::owned(Vec::new())),
        }
    }

    pub(crate) fn n_inputs(&self) -> usize {
        match self.layout {
            Layout::RowPerOutput => self.n_cols,
            Layout::RowPerInput | Layout::LowRank => self.n_rows,
        }
    }

    pub(crate) fn n_outputs(&self) -> usize {
        match self.layout {
            Layout::RowPerOutput => self.n_rows,
            Layout::RowPerInput | Layout::LowRank => self.n_cols,
        }
    }

    pub(crate) fn quant(&self) -> Quant {
        self.weights.quant()
    }

    pub(crate) fn size(&self) -> MatrixSize {
        let (shape, parts) = ((self.n_rows, self.n_cols), self.parts());
        MatrixSize::new(self.quant(), shape, parts.iter().map(|(kind, _)| kind))
    }

    /// What it consists of as stored, the weights first.
    pub(crate) fn parts(&self) -> Vec<(PartKind, &[u8])> {
        self.weights.parts((self.n_rows, self.n_cols))
    }

    /// The weights as they lie in memory, without scales.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.weights.values()
    }

    /// The weights, scales aside, where they lie in a file.
    pub(crate) fn in_file_bytes(&self) -> Option<&FileBytes> {
        self.weights.in_file_bytes()
    }

    /// Drops the pages of weights that lie in a file.
    pub(crate) fn release(&self) {
        if let Some(bytes) = self.in_file_bytes() {
            bytes.release(0..bytes.len());
        }
    }

    /// Refuses NaN and infinities in some stored rows; reads all floats of these. Of others the scales were checked.
    /// Where memory is short, no page is kept that was read for that.
    pub(crate) fn check_finite(&self, rows: Range<usize>, is_short: bool) -> Result<()> {
        if self.quant().floats().is_none() {
            return Ok(());
        }
        let step = (CHECKED_NUMBERS / self.n_cols.max(1)).max(1);
        for start in rows.clone().step_by(step) {
            let rows = start..(start + step).min(rows.end);
            let found = self.weights.first_not_finite(rows.clone(), self.n_cols);
            if let (true, Some(bytes)) = (is_short, self.in_file_bytes()) {
                let row_bytes = bytes.len() / self.n_rows.max(1);
                bytes.release(rows.start * row_bytes..rows.end * row_bytes);
            }
            if let Some((at, value)) = found {
                let (row, column) = (rows.start + at / self.n_cols, at % self.n_cols);
                let text = format!(
                    "tensor {}: {value} at [{row}, {column}], expected finite numbers",
                    self.name
                );
                return Err(Error::format(text));
            }
        }
        Ok(())
    }

    /// Widens one stored row into `out` (n_cols).
    pub(crate) fn read_row(&self, row: usize, out: &mut [f32]) {
        debug_assert!(row < self.n_rows && out.len() == self.n_cols);
        self.weights.read_row(row, out);
    }
}
