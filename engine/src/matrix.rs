//! Weight matrices as the kernels read them: numbers in memory or in a mapped file, with their scales.
//!
//! Built by `load.rs` (from a checkpoint) and `format.rs` (from a model file), used by `product.rs`.
//! After construction the sizes agree. No file names and no arithmetic here, but for the widening of
//! scales.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;
use half::f16;

use crate::error::{Error, Result};
use crate::file::FileBytes;

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

    pub(crate) fn as_slice(&self) -> &[T] {
        match self {
            Buffer::Owned(values) => values,
            Buffer::InFile(bytes) => bytemuck::cast_slice(bytes),
        }
    }

    pub(crate) fn in_file_bytes(&self) -> Option<&FileBytes> {
        match self {
            Buffer::Owned(_) => None,
            Buffer::InFile(bytes) => Some(bytes),
        }
    }
}

/// How the matrices of a model are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quant {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 8-bit integers with a scale for each row and each column; see docs/QUANTIZATION.md.
    Int8,
}

impl Quant {
    /// The name on the command line and in model files: `f32`, `f16` or `int8`.
    pub fn name(self) -> &'static str {
        match self {
            Quant::F32 => "f32",
            Quant::F16 => "f16",
            Quant::Int8 => "int8",
        }
    }

    /// The quantisation of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Quant::F32, Quant::F16, Quant::Int8]
            .into_iter()
            .find(|quant| quant.name() == name)
    }
}

impl std::fmt::Display for Quant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a stored row of a matrix belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One stored row an output: the usual layout.
    RowPerOutput,
    /// One stored row an input: rows whose input is 0 need not be read.
    RowPerInput,
}

impl Layout {
    /// Stored rows and columns of a matrix with so many outputs and inputs.
    pub(crate) fn stored_shape(self, n_outputs: usize, n_inputs: usize) -> (usize, usize) {
        match self {
            Layout::RowPerOutput => (n_outputs, n_inputs),
            Layout::RowPerInput => (n_inputs, n_outputs),
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

#[derive(Clone)]
pub(crate) enum Weights {
    F32(Buffer<f32>),
    F16(Buffer<f16>),
    Int8(Int8),
}

/// `weight[r, c] = values[r, c] * row_scales[r] * 2^(column_exponents[c] / 4)`.
#[derive(Clone)]
pub(crate) struct Int8 {
    /// (n_rows, n_cols), -127 ..= 127
    pub(crate) values: Buffer<i8>,
    /// (n_rows)
    pub(crate) row_scales: Vec<f16>,
    /// (n_cols); all 0 where the matrix has none
    pub(crate) column_exponents: Vec<i8>,
    /// (n_rows) the scales as f32
    row_factors: Vec<f32>,
    /// (n_cols) 2^(exponent / 4)
    column_factors: Vec<f32>,
}

impl Int8 {
    /// Column exponents, which count quarters, lie within plus and minus this: products of scales, exponents and activations
    /// then stay far inside the range of f32.
    pub(crate) const EXPONENT_MAX: i8 = 96;

    /// 2^(exponent / 4), the same bits on every platform.
    pub(crate) fn column_factor(exponent: i8) -> f32 {
        const QUARTERS: [f32; 4] = [1.0, 1.189_207_1, std::f32::consts::SQRT_2, 1.681_792_8];
        let whole = i32::from(exponent).div_euclid(4);
        let power_of_two = f32::from_bits(((whole + 127) as u32) << 23);
        QUARTERS[usize::from(exponent.rem_euclid(4) as u8)] * power_of_two
    }

    pub(crate) fn new(values: Buffer<i8>, row_scales: Vec<f16>, column_exponents: Vec<i8>) -> Self {
        let row_factors = row_scales.iter().map(|scale| scale.to_f32()).collect();
        let column_factors = column_exponents
            .iter()
            .map(|&e| Self::column_factor(e))
            .collect();
        Int8 {
            values,
            row_scales,
            column_exponents,
            row_factors,
            column_factors,
        }
    }
}

/// How large a matrix is as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MatrixSize {
    pub(crate) n_rows: usize,
    pub(crate) n_cols: usize,
    pub(crate) quant: Quant,
    /// Whether it has column exponents, which only int8 may have.
    pub(crate) has_exponents: bool,
}

impl MatrixSize {
    /// Bytes of one stored row with its scale.
    pub(crate) fn row_size_bytes(&self) -> u64 {
        let n = self.n_cols as u64;
        match self.quant {
            Quant::F32 => 4 * n,
            Quant::F16 => 2 * n,
            Quant::Int8 => n + 2,
        }
    }

    /// Bytes of weights and scales as stored.
    pub(crate) fn size_bytes(&self) -> u64 {
        let exponents = if self.has_exponents { self.n_cols } else { 0 };
        self.n_rows as u64 * self.row_size_bytes() + exponents as u64
    }
}

/// Consecutive rows of a matrix as stored, on their way to a device.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// Of the whole matrix.
    pub(crate) n_rows: usize,
    pub(crate) n_cols: usize,
    /// The first of these rows.
    pub(crate) first: usize,
    pub(crate) weights: RowWeights<'a>,
}

/// Weights of as many rows as there are, with what belongs to them.
#[derive(Clone, Copy)]
pub(crate) enum RowWeights<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Int8 {
        values: &'a [i8],
        /// One a row of these.
        row_scales: &'a [f16],
        /// (n_cols), or none where all are 0; the same for all rows of the matrix
        column_exponents: &'a [i8],
    },
}

impl Rows<'_> {
    /// Of the whole matrix.
    pub(crate) fn size(&self) -> MatrixSize {
        let (quant, has_exponents) = match self.weights {
            RowWeights::F32(_) => (Quant::F32, false),
            RowWeights::F16(_) => (Quant::F16, false),
            RowWeights::Int8 {
                column_exponents, ..
            } => (Quant::Int8, !column_exponents.is_empty()),
        };
        MatrixSize {
            n_rows: self.n_rows,
            n_cols: self.n_cols,
            quant,
            has_exponents,
        }
    }
}

impl Matrix {
    pub(crate) fn n_inputs(&self) -> usize {
        match self.layout {
            Layout::RowPerOutput => self.n_cols,
            Layout::RowPerInput => self.n_rows,
        }
    }

    pub(crate) fn n_outputs(&self) -> usize {
        match self.layout {
            Layout::RowPerOutput => self.n_rows,
            Layout::RowPerInput => self.n_cols,
        }
    }

    pub(crate) fn quant(&self) -> Quant {
        match &self.weights {
            Weights::F32(_) => Quant::F32,
            Weights::F16(_) => Quant::F16,
            Weights::Int8(_) => Quant::Int8,
        }
    }

    pub(crate) fn size(&self) -> MatrixSize {
        MatrixSize {
            n_rows: self.n_rows,
            n_cols: self.n_cols,
            quant: self.quant(),
            has_exponents: match &self.weights {
                Weights::Int8(int8) => int8.has_exponents(),
                Weights::F32(_) | Weights::F16(_) => false,
            },
        }
    }

    /// The weights as they lie in memory, without scales.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.weights {
            Weights::F32(weights) => bytemuck::cast_slice(weights.as_slice()),
            Weights::F16(weights) => bytemuck::cast_slice(weights.as_slice()),
            Weights::Int8(int8) => bytemuck::cast_slice(int8.values.as_slice()),
        }
    }

    /// The weights, scales aside, where they lie in a file or in a copy of one, rather than in memory of their own.
    pub(crate) fn in_file_bytes(&self) -> Option<&FileBytes> {
        match &self.weights {
            Weights::F32(weights) => weights.in_file_bytes(),
            Weights::F16(weights) => weights.in_file_bytes(),
            Weights::Int8(int8) => int8.values.in_file_bytes(),
        }
    }

    /// Drops the pages of weights that lie in a file.
    pub(crate) fn release(&self) {
        if let Some(bytes) = self.in_file_bytes() {
            bytes.release(0..bytes.len());
        }
    }

    /// Refuses NaN and infinities; reads all floats. int8 has none, and its scales were checked.
    pub(crate) fn check_finite(&self) -> Result<()> {
        let bad = match &self.weights {
            Weights::F32(weights) => weights.as_slice().iter().position(|w| !w.is_finite()),
            Weights::F16(weights) => weights.as_slice().iter().position(|w| !w.is_finite()),
            Weights::Int8(_) => None,
        };
        bad.map_or(Ok(()), |at| {
            let (row, column) = (at / self.n_cols, at % self.n_cols);
            let text = format!("tensor {}: not a number at [{row}, {column}]", self.name);
            Err(Error::format(text))
        })
    }

    /// Widens one stored row into `out` (n_cols).
    pub(crate) fn read_row(&self, row: usize, out: &mut [f32]) {
        let range: Range<usize> = row * self.n_cols..(row + 1) * self.n_cols;
        match &self.weights {
            Weights::F32(weights) => out.copy_from_slice(&weights.as_slice()[range]),
            Weights::F16(weights) => {
                let row = &weights.as_slice()[range];
                out.iter_mut()
                    .zip(row)
                    .for_each(|(out, w)| *out = w.to_f32());
            }
            Weights::Int8(int8) => {
                let values = &int8.values.as_slice()[range];
                let scale = int8.row_factors[row];
                for ((out, &q), &factor) in out.iter_mut().zip(values).zip(&int8.column_factors) {
                    *out = f32::from(q) * scale * factor;
                }
            }
        }
    }
}

/// Where a network takes its weights from. Names are those of the model file (docs/FORMAT.md).
pub(crate) trait WeightSource {
    /// What the matrices are to be that are asked for from here on.
    fn set_quant(&mut self, quant: Quant) -> Result<()>;

    /// A vector of `n` numbers, all finite.
    fn vector(&mut self, name: String, n: usize) -> Result<Vector>;

    /// The matrix of that many outputs and inputs, stored as `layout` says.
    fn matrix(
        &mut self,
        name: String,
        n_outputs: usize,
        n_inputs: usize,
        layout: Layout,
    ) -> Result<Matrix>;
}

/// A source whose matrices need not be held whole.
pub(crate) trait RowsSource: WeightSource {
    /// Gives the matrix that [`WeightSource::matrix`] gives to `take`, from its first row to its last, in pieces
    /// that are small enough to be held beside each other.
    fn matrix_rows(
        &mut self,
        name: String,
        n_outputs: usize,
        n_inputs: usize,
        layout: Layout,
        take: &mut dyn FnMut(Rows<'_>) -> Result<()>,
    ) -> Result<()>;
}

impl Int8 {
    pub(crate) fn has_exponents(&self) -> bool {
        !Self::used(&self.column_exponents).is_empty()
    }

    /// The exponents, or none where all are 0.
    pub(crate) fn used(column_exponents: &[i8]) -> &[i8] {
        match column_exponents.iter().any(|&exponent| exponent != 0) {
            true => column_exponents,
            false => &[],
        }
    }

    /// What inputs are multiplied by before they are quantised, one a matrix input.
    pub(crate) fn input_factors(&self, layout: Layout) -> &[f32] {
        match layout {
            Layout::RowPerOutput => &self.column_factors,
            Layout::RowPerInput => &self.row_factors,
        }
    }

    /// What integer sums are multiplied by, one a matrix output.
    pub(crate) fn output_factors(&self, layout: Layout) -> &[f32] {
        match layout {
            Layout::RowPerOutput => &self.row_factors,
            Layout::RowPerInput => &self.column_factors,
        }
    }
}
