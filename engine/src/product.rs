//! Products of many rows of activations with one matrix, on all threads.
//!
//! Sits between `kernels` (one block on one thread) and the networks (`v4.rs`). Three ways, by the
//! number of rows:
//!
//! ```text
//! few rows, row per output   matrix-vector kernels; a block of weights serves all rows from the cache
//! few rows, row per input    only the weight rows whose activation is not 0 are read
//! many rows                  int8: 16 outputs are widened to a panel once, for all rows
//!                            f32, f16: the gemm crate, f16 widened block by block
//! ```
//!
//! Integer products are exact, so their results do not depend on the way taken. Float products sum in
//! another order in each way; within a way the order is fixed. No way depends on the threads.

#![forbid(unsafe_code)]

use half::f16;

use crate::kernels::gemm::{self, Strides};
use crate::kernels::{KernelSet, PANEL_WIDTH};
use crate::matrix::{Int8, Layout, Matrix, Weights};
use crate::threads::{ColumnBlock, Columns, Pool};

/// Outputs of a matrix that one task computes. 64 rows of 768 int8 weights are 48 KiB, about 3 us of
/// memory traffic: small enough to spread, large enough that taking a task costs nothing.
const BLOCK_OUTPUTS: usize = 64;
/// From this many rows on, weights are widened once for all rows instead of once a row.
const MANY_ROWS: usize = 8;

/// Memory of one thread for intermediate results of its block.
#[derive(Default)]
pub(crate) struct Scratch {
    panel: Vec<i16>,
    sums: Vec<i32>,
    wide: Vec<f32>,
    product: Vec<f32>,
}

impl Scratch {
    /// Room for matrices of up to `n_inputs` inputs and batches of up to `n_rows` rows.
    pub(crate) fn new(n_inputs: usize, n_rows: usize) -> Self {
        let mut scratch = Scratch {
            sums: vec![0; BLOCK_OUTPUTS.max(n_rows * PANEL_WIDTH)],
            ..Scratch::default()
        };
        if n_rows >= MANY_ROWS {
            scratch.panel = vec![0; n_inputs.next_multiple_of(2) * PANEL_WIDTH];
            scratch.wide = vec![0.0; n_inputs * BLOCK_OUTPUTS];
            scratch.product = vec![0.0; n_rows * BLOCK_OUTPUTS];
        }
        scratch
    }
}

/// Rows of inputs of one matrix, in the form that the matrix wants.
pub(crate) struct Activations {
    n_rows: usize,
    /// (n_rows, n_inputs); overwritten by the quantisation
    values: Vec<f32>,
    /// (n_rows, n_inputs rounded up to even), the last column of odd rows 0
    integers: Vec<i16>,
    /// (n_rows) of `integers`
    scales: Vec<f32>,
    /// For a matrix stored row per input: which inputs of each row are not 0, row after row.
    nonzero: Vec<u32>,
    /// The values of those inputs: floats or integers, as the matrix wants.
    nonzero_values: Vec<f32>,
    nonzero_integers: Vec<i16>,
    /// (n_rows) where each row's part of these lists ends
    nonzero_ends: Vec<usize>,
    /// Lists all inputs, for measuring what the lists are worth.
    keep_zeros: bool,
    /// Inputs that were looked at for the lists so far, and those that are on them.
    n_seen: u64,
    n_listed: u64,
}

impl Activations {
    /// Room for `n_rows` rows of `n_inputs` inputs.
    pub(crate) fn new(n_inputs: usize, n_rows: usize) -> Self {
        Activations {
            n_rows: 0,
            values: vec![0.0; n_inputs * n_rows],
            integers: vec![0; n_inputs.next_multiple_of(2) * n_rows],
            scales: vec![0.0; n_rows],
            // Only address space where many rows go another way.
            nonzero: Vec::with_capacity(n_inputs * n_rows),
            nonzero_values: Vec::with_capacity(n_inputs * n_rows),
            nonzero_integers: Vec::with_capacity(n_inputs * n_rows),
            nonzero_ends: Vec::with_capacity(n_rows),
            keep_zeros: false,
            n_seen: 0,
            n_listed: 0,
        }
    }

    pub(crate) fn keep_zeros(self, keep_zeros: bool) -> Self {
        Activations { keep_zeros, ..self }
    }

    /// Inputs of a matrix stored row per input that were 0, of all so far.
    pub(crate) fn sparsity(&self) -> (u64, u64) {
        (self.n_seen - self.n_listed, self.n_seen)
    }

    /// Fills `n_rows` rows by `fill(row, out)` and brings them into the form that `matrix` wants.
    pub(crate) fn prepare(
        &mut self,
        pool: &Pool,
        kernels: KernelSet,
        matrix: &Matrix,
        n_rows: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let n_inputs = matrix.n_inputs();
        let width = n_inputs.next_multiple_of(2);
        self.n_rows = n_rows;
        let values = &mut self.values[..n_rows * n_inputs];
        match &matrix.weights {
            Weights::Int8(int8) => {
                let factors = int8.input_factors(matrix.layout);
                let integers = &mut self.integers[..n_rows * width];
                let scales = &mut self.scales[..n_rows];
                let rows = (
                    Columns::new(values, n_inputs),
                    Columns::new(integers, width),
                );
                pool.run_rows(rows, scales, |row, values, integers, scale| {
                    fill(row, values);
                    kernels.scale(values, factors);
                    *scale = kernels.quantise_activations(values, &mut integers[..n_inputs]);
                    integers[n_inputs..].fill(0);
                });
            }
            Weights::F32(_) | Weights::F16(_) => pool.run_chunks(values, n_inputs, fill),
        }
        if matrix.layout == Layout::RowPerInput && !goes_by_blocks(kernels, matrix, n_rows) {
            self.list_nonzero(matrix, n_inputs, width);
        }
    }

    /// Lists the inputs that are not 0, row by row, and packs their values.
    fn list_nonzero(&mut self, matrix: &Matrix, n_inputs: usize, width: usize) {
        self.nonzero.clear();
        self.nonzero_values.clear();
        self.nonzero_integers.clear();
        self.nonzero_ends.clear();
        for row in 0..self.n_rows {
            if matches!(matrix.weights, Weights::Int8(_)) {
                for (i, &q) in self.integers[row * width..][..n_inputs].iter().enumerate() {
                    if q != 0 || self.keep_zeros {
                        self.nonzero.push(i as u32);
                        self.nonzero_integers.push(q);
                    }
                }
            } else {
                for (i, &v) in self.values[row * n_inputs..][..n_inputs].iter().enumerate() {
                    if v != 0.0 || self.keep_zeros {
                        self.nonzero.push(i as u32);
                        self.nonzero_values.push(v);
                    }
                }
            }
            self.nonzero_ends.push(self.nonzero.len());
        }
        self.n_seen += (self.n_rows * n_inputs) as u64;
        self.n_listed += self.nonzero.len() as u64;
    }

    /// The part of the lists of nonzero inputs that belongs to `row`.
    fn nonzero_range(&self, row: usize) -> std::ops::Range<usize> {
        let start = if row == 0 {
            0
        } else {
            self.nonzero_ends[row - 1]
        };
        start..self.nonzero_ends[row]
    }
}

/// Whether a product of so many rows widens blocks of weights once for all of them. The scalar set
/// does so for integers only: the gemm crate chooses its own instructions.
fn goes_by_blocks(kernels: KernelSet, matrix: &Matrix, n_rows: usize) -> bool {
    let integers = matches!(matrix.weights, Weights::Int8(_));
    n_rows >= MANY_ROWS && (integers || !matches!(kernels, KernelSet::Scalar))
}

/// One product: `out[t, o] = sum over i of input[t, i] * matrix[o, i]`.
pub(crate) struct Product<'a> {
    pub(crate) matrix: &'a Matrix,
    pub(crate) input: &'a Activations,
    /// (input rows, matrix outputs)
    pub(crate) out: &'a mut [f32],
}

/// Computes several independent products in one go of the pool; all have the same number of rows.
pub(crate) fn multiply<const N: usize>(
    pool: &Pool,
    kernels: KernelSet,
    scratch: &mut [Scratch],
    products: [Product<'_>; N],
) {
    let parts = products.map(|product| {
        let (matrix, input) = (product.matrix, product.input);
        (matrix, input, Columns::new(product.out, matrix.n_outputs()))
    });
    let operands: [_; N] = std::array::from_fn(|i| (parts[i].0, parts[i].1));
    let mut outputs = parts.map(|(_, _, columns)| columns);
    pool.run_blocks(
        &mut outputs,
        BLOCK_OUTPUTS,
        scratch,
        |index, block, scratch| {
            let (matrix, input) = operands[index];
            let task = Task {
                kernels,
                matrix,
                input,
                n_rows: input.n_rows,
            };
            match &matrix.weights {
                Weights::Int8(int8) => task.int8(int8, block, scratch),
                Weights::F32(weights) => {
                    let weights = weights.as_slice();
                    task.float(FloatWeights::F32(weights), block, scratch);
                }
                Weights::F16(weights) => {
                    let weights = weights.as_slice();
                    task.float(FloatWeights::F16(weights), block, scratch);
                }
            }
        },
    );
}

/// One block of outputs of one product.
struct Task<'a> {
    kernels: KernelSet,
    matrix: &'a Matrix,
    input: &'a Activations,
    n_rows: usize,
}

enum FloatWeights<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
}

impl Task<'_> {
    fn int8(&self, int8: &Int8, mut block: ColumnBlock<'_, f32>, scratch: &mut Scratch) {
        let (kernels, matrix) = (self.kernels, self.matrix);
        let columns = block.columns();
        let weights = int8.values.as_slice();
        let factors = int8.output_factors(matrix.layout);
        let n_inputs = matrix.n_inputs();
        let width = n_inputs.next_multiple_of(2);
        let stride = matrix.n_cols;
        if goes_by_blocks(kernels, matrix, self.n_rows) {
            return self.int8_panels(weights, factors, block, scratch);
        }
        let sums = &mut scratch.sums[..columns.len()];
        for row in 0..self.n_rows {
            match matrix.layout {
                Layout::RowPerOutput => {
                    let weights = &weights[columns.start * stride..columns.end * stride];
                    let x = &self.input.integers[row * width..][..n_inputs];
                    kernels.matvec_i8(weights, x, sums);
                }
                Layout::RowPerInput => {
                    let range = self.input.nonzero_range(row);
                    let rows = &self.input.nonzero[range.clone()];
                    let values = &self.input.nonzero_integers[range];
                    kernels.gather_i8(weights, stride, columns.start, rows, values, sums);
                }
            }
            let scale = self.input.scales[row];
            kernels.rescale_sums(sums, scale, &factors[columns.clone()], block.row_mut(row));
        }
    }

    fn int8_panels(
        &self,
        weights: &[i8],
        factors: &[f32],
        mut block: ColumnBlock<'_, f32>,
        scratch: &mut Scratch,
    ) {
        let (kernels, stride) = (self.kernels, self.matrix.n_cols);
        let columns = block.columns();
        let width = self.matrix.n_inputs().next_multiple_of(2);
        let panel = &mut scratch.panel[..width * PANEL_WIDTH];
        let sums = &mut scratch.sums[..self.n_rows * PANEL_WIDTH];
        for first in columns.clone().step_by(PANEL_WIDTH) {
            let n = PANEL_WIDTH.min(columns.end - first);
            match self.matrix.layout {
                Layout::RowPerOutput => {
                    kernels.pack_rows_i8(&weights[first * stride..][..n * stride], stride, panel);
                }
                Layout::RowPerInput => kernels.pack_columns_i8(weights, stride, first, n, panel),
            }
            kernels.multiply_panel_i8(panel, &self.input.integers[..self.n_rows * width], sums);
            let (factors, at) = (&factors[first..][..n], first - columns.start);
            for (row, sums) in sums.chunks_exact(PANEL_WIDTH).enumerate() {
                let out = &mut block.row_mut(row)[at..at + n];
                kernels.rescale_sums(&sums[..n], self.input.scales[row], factors, out);
            }
        }
    }

    fn float(
        &self,
        weights: FloatWeights<'_>,
        mut block: ColumnBlock<'_, f32>,
        scratch: &mut Scratch,
    ) {
        let (kernels, matrix) = (self.kernels, self.matrix);
        let (columns, stride) = (block.columns(), matrix.n_cols);
        let n_inputs = matrix.n_inputs();
        if goes_by_blocks(kernels, matrix, self.n_rows) {
            return self.float_many(weights, block, scratch);
        }
        for row in 0..self.n_rows {
            let out = block.row_mut(row);
            match matrix.layout {
                Layout::RowPerOutput => {
                    let x = &self.input.values[row * n_inputs..][..n_inputs];
                    let range = columns.start * stride..columns.end * stride;
                    match weights {
                        FloatWeights::F32(w) => kernels.matvec_f32(&w[range], x, out),
                        FloatWeights::F16(w) => kernels.matvec_f16(&w[range], x, out),
                    }
                }
                Layout::RowPerInput => {
                    let (first, range) = (columns.start, self.input.nonzero_range(row));
                    let rows = &self.input.nonzero[range.clone()];
                    let x = &self.input.nonzero_values[range];
                    match weights {
                        FloatWeights::F32(w) => kernels.gather_f32(w, stride, first, rows, x, out),
                        FloatWeights::F16(w) => kernels.gather_f16(w, stride, first, rows, x, out),
                    }
                }
            }
        }
    }

    fn float_many(
        &self,
        weights: FloatWeights<'_>,
        mut block: ColumnBlock<'_, f32>,
        scratch: &mut Scratch,
    ) {
        let (columns, stride) = (block.columns(), self.matrix.n_cols);
        let (n_inputs, n) = (self.matrix.n_inputs(), columns.len());
        let x = &self.input.values[..self.n_rows * n_inputs];
        let product = &mut scratch.product[..self.n_rows * n];
        let by_output = self.matrix.layout == Layout::RowPerOutput;
        match weights {
            FloatWeights::F32(w) if by_output => {
                let strides = Strides {
                    output: stride,
                    input: 1,
                };
                gemm::multiply_f32(
                    x,
                    n_inputs,
                    &w[columns.start * stride..],
                    strides,
                    n,
                    product,
                );
            }
            FloatWeights::F32(w) => {
                let strides = Strides {
                    output: 1,
                    input: stride,
                };
                gemm::multiply_f32(x, n_inputs, &w[columns.start..], strides, n, product);
            }
            FloatWeights::F16(w) => {
                let wide = &mut scratch.wide[..n_inputs * n];
                let strides = if by_output {
                    self.kernels
                        .widen_f16(&w[columns.start * stride..columns.end * stride], wide);
                    Strides {
                        output: n_inputs,
                        input: 1,
                    }
                } else {
                    for (wide, row) in wide.chunks_exact_mut(n).zip(w.chunks_exact(stride)) {
                        self.kernels.widen_f16(&row[columns.clone()], wide);
                    }
                    Strides {
                        output: 1,
                        input: n,
                    }
                };
                gemm::multiply_f32(x, n_inputs, wide, strides, n, product);
            }
        }
        for (row, product) in product.chunks_exact(n).enumerate() {
            block.row_mut(row).copy_from_slice(product);
        }
    }
}
