//! Products of many rows of activations with one matrix, on all threads.
//!
//! Sits between `quant/` (one block on one thread) and the networks. Three ways:
//!
//! ```text
//! row per output             blocks of outputs; each row of weights meets all rows of activations
//!                            (f32 weights and very many rows: the gemm crate)
//! row per input, few rows    only the weight rows whose activation is not 0 are read, by chunks of inputs
//! row per input, many rows   16 outputs at a time, a chunk of inputs is widened to a panel for all rows
//! ```
//!
//! The first is here, with what all share; the others are `transposed.rs` and `panels.rs`. What a step does with stored
//! weights is the matter of their quantisation, in `quant/`.
//!
//! Integer products are exact in any order. Float products are summed in the same order in every way but
//! the gemm crate's: a matrix stored row per input adds its inputs one after the other within chunks of
//! [`CHUNK_INPUTS`], and the chunks in order. So a prompt gives the same bits in one piece and token by token,
//! f32 weights aside, and no result depends on the threads.

#![forbid(unsafe_code)]

use std::ops::Range;

use crate::error::Result;
use crate::math::aligned::Aligned;
use crate::math::kernels::fetch::{fetch, Fetch};
#[cfg(feature = "gemm")]
use crate::math::kernels::gemm;
use crate::math::kernels::{KernelSet, Rows, PANEL_WIDTH};
use crate::math::threads::{ColumnBlock, Columns, Pool};
use crate::math::zeroed;
use crate::products::paging::{PagedMatrix, Paging};
use crate::quant::matrix::{Layout, Matrix};
use crate::quant::{Inputs, Quant, Room};

pub(crate) mod low_rank;
pub(crate) mod paging;
mod panels;
#[cfg(test)]
mod tests;
mod transposed;

pub(crate) use transposed::Transposed;

/// Outputs of a matrix that one task computes. 64 rows of 768 int8 weights are 48 KiB, about 3 us of
/// memory traffic: small enough to spread, large enough that taking a task costs nothing.
const BLOCK_OUTPUTS: usize = 64;
/// From this many rows on, f32 weights go to the gemm crate, which is slower below,
const GEMM_ROWS: usize = 64;
/// in blocks of so many outputs, because it packs the activations anew for each.
const GEMM_OUTPUTS: usize = 128;
/// Outputs of a matrix that are read at once at most.
pub(crate) const BLOCK_OUTPUTS_MAX: usize = GEMM_OUTPUTS;
/// Inputs of a matrix stored row per input that one task sums up, and that one panel holds: a panel of f32 is then 16 KiB.
pub(crate) const CHUNK_INPUTS: usize = 256;
/// The same for weights stored row per input and many rows: longer pieces of what lies side by side.
const BLOCK_PANELS: usize = 8;
/// Rows of packed weights that are widened at once, for all rows of activations: 64 KiB of 2,048 inputs, which stay in a
/// second-level cache.
const WIDENED_ROWS: usize = 16;
/// A thread fetches so much of the next product's weights: they stay in a second-level cache of 512 KiB.
const FETCH_BYTES: usize = 256 << 10;
/// From this many rows on, weights stored row per input are widened once for all rows.
pub(crate) const MANY_ROWS: usize = 8;

/// Rows of a prompt that are fed at once: twice as many are within 1 % of the speed for twice the memory, half as many
/// 4 % slower.
pub(crate) const PREFILL_ROWS: usize = 128;

/// Rows of prompts at once where memory is no matter. The gemm crate packs the activations of every piece anew.
pub(crate) fn prefill_rows_best(quant: Quant) -> usize {
    match quant.has_gemm() {
        true => 2 * PREFILL_ROWS,
        false => PREFILL_ROWS,
    }
}

/// Rows of prompts of a session that must not allocate. The gemm crate, to which larger products of f32 weights go,
/// allocates its packing buffers in every call.
pub(crate) fn prefill_rows_lasting(quant: Quant) -> usize {
    match quant.has_gemm() {
        true => GEMM_ROWS / 2,
        false => PREFILL_ROWS,
    }
}

/// What memory for passes is called in errors.
pub(crate) const BUFFERS: &str = "buffers of forward passes";

/// What a forward pass runs on.
#[derive(Clone, Copy)]
pub(crate) struct Machine<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) kernels: KernelSet,
    /// Where memory is too short for all weights.
    pub(crate) paging: Option<&'a Paging>,
    /// Who looks at the inputs of matrices.
    pub(crate) observer: Option<&'a dyn Observer>,
}

/// Who looks at what matrices of floats are multiplied with.
pub(crate) trait Observer: Sync {
    /// Rows of inputs of a matrix.
    fn inputs(&self, matrix: &Matrix, rows: Rows<'_, f32>);
}

impl<'a> Machine<'a> {
    /// Shows the inputs of products to who looks at them.
    fn show<'p>(self, products: impl IntoIterator<Item = &'p Product<'p>>) {
        if let Some(observer) = self.observer {
            for Product { matrix, input, .. } in products {
                observer.inputs(matrix, input.floats(matrix.n_inputs(), 0));
            }
        }
    }

    /// The matrix, if it does not stay in memory.
    fn paged(self, matrix: &Matrix) -> Option<PagedMatrix<'a>> {
        self.paging.and_then(|paging| paging.find(matrix))
    }
}

/// Memory of one thread for intermediate results of its block.
pub(crate) struct Scratch {
    /// (rows, BLOCK_OUTPUTS) or (BLOCK_PANELS, rows, PANEL_WIDTH)
    sums: Aligned<i32>,
    product: Aligned<f32>,
    /// (CHUNK_INPUTS, PANEL_WIDTH)
    panel: Aligned<f32>,
    panel_integers: Aligned<i16>,
    /// (few rows, n_outputs) integer sums of the chunks of inputs that this thread took, and which rows
    /// have any
    gathered: Aligned<i32>,
    has_gathered: [bool; MANY_ROWS],
    /// (n_outputs) of one chunk
    chunk_sums: Aligned<i32>,
    /// (CHUNK_INPUTS) inputs that are not 0
    indices: Vec<u32>,
    values: Aligned<f32>,
    integers: Aligned<i16>,
    /// (WIDENED_ROWS, n_inputs) packed weights as integers of 16 bits, for more than one row of activations
    widened: Aligned<i16>,
}

impl Scratch {
    /// Room for batches of up to `n_rows` rows, `n_inputs` of matrices stored row per output, and `n_outputs` of those stored
    /// row per input.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub(crate) fn new(n_rows: usize, n_inputs: usize, n_outputs: usize) -> Result<Self> {
        let [sums, product] = Self::rooms(n_rows);
        Ok(Scratch {
            sums: Aligned::zeroed(sums, BUFFERS)?,
            product: Aligned::zeroed(product, BUFFERS)?,
            panel: Aligned::zeroed(CHUNK_INPUTS * PANEL_WIDTH, BUFFERS)?,
            panel_integers: Aligned::zeroed(CHUNK_INPUTS * PANEL_WIDTH, BUFFERS)?,
            gathered: Aligned::zeroed(n_rows.min(MANY_ROWS - 1) * n_outputs, BUFFERS)?,
            has_gathered: [false; MANY_ROWS],
            chunk_sums: Aligned::zeroed(n_outputs, BUFFERS)?,
            indices: vec![0; CHUNK_INPUTS],
            values: Aligned::zeroed(CHUNK_INPUTS, BUFFERS)?,
            integers: Aligned::zeroed(CHUNK_INPUTS, BUFFERS)?,
            widened: Aligned::zeroed(Self::widened(n_rows, n_inputs), BUFFERS)?,
        })
    }

    /// Numbers of `widened`.
    fn widened(n_rows: usize, n_inputs: usize) -> usize {
        match n_rows {
            0 | 1 => 0,
            _ => WIDENED_ROWS.saturating_mul(n_inputs),
        }
    }

    /// Numbers of `sums` and `product`.
    fn rooms(n_rows: usize) -> [usize; 2] {
        let room = BLOCK_OUTPUTS.max(BLOCK_PANELS * PANEL_WIDTH);
        let room_gemm = if n_rows < GEMM_ROWS { 0 } else { GEMM_OUTPUTS };
        [room, room.max(room_gemm)].map(|room| n_rows.saturating_mul(room))
    }

    /// Bytes that [`new`](Self::new) takes.
    pub(crate) fn bytes_for(n_rows: usize, n_inputs: usize, n_outputs: usize) -> u64 {
        let [sums, product] = Self::rooms(n_rows).map(|n| n as u64);
        let (panel, chunk) = ((CHUNK_INPUTS * PANEL_WIDTH) as u64, CHUNK_INPUTS as u64);
        let floats = [product, panel, chunk].map(Aligned::<f32>::bytes_for);
        let widened = Self::widened(n_rows, n_inputs) as u64;
        let integers = [panel, chunk, widened].map(Aligned::<i16>::bytes_for);
        let n_outputs = n_outputs as u64;
        let gathered = n_rows.min(MANY_ROWS - 1) as u64 * n_outputs;
        let all_sums = [sums, gathered, n_outputs].map(Aligned::<i32>::bytes_for);
        let all = floats.into_iter().chain(integers).chain(all_sums);
        all.sum::<u64>() + chunk * size_of::<u32>() as u64
    }

    /// What it takes in memory.
    pub(crate) fn size_bytes(&self) -> usize {
        let floats = [&self.product, &self.panel, &self.values].map(|b| b.size_bytes());
        let integers =
            [&self.panel_integers, &self.integers, &self.widened].map(|b| b.size_bytes());
        let sums = [&self.sums, &self.gathered, &self.chunk_sums].map(|b| b.size_bytes());
        let rest = sums.iter().sum::<usize>() + size_of_val(self.indices.as_slice());
        floats.iter().chain(&integers).sum::<usize>() + rest
    }
}

/// Fetches what [`Activations::prepare`] reads of a matrix.
pub(crate) fn fetch_input_factors(matrix: &Matrix) {
    if let Some(factors) = matrix.weights.input_factors(matrix.layout) {
        fetch(factors);
    }
}

/// Rows of inputs of one matrix, in the form that the matrix wants.
pub(crate) struct Activations {
    n_rows: usize,
    /// (n_rows, n_inputs); overwritten by the quantisation
    values: Aligned<f32>,
    /// (n_rows, n_inputs rounded up to even), the last column of odd rows 0
    integers: Aligned<i16>,
    /// (n_rows) of `integers`
    scales: Vec<f32>,
}

impl Activations {
    /// Room for `n_rows` rows of `n_inputs` inputs.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub(crate) fn new(n_inputs: usize, n_rows: usize) -> Result<Self> {
        let width = n_inputs.next_multiple_of(2);
        Ok(Activations {
            n_rows: 0,
            values: Aligned::zeroed(n_inputs.saturating_mul(n_rows), BUFFERS)?,
            integers: Aligned::zeroed(width.saturating_mul(n_rows), BUFFERS)?,
            scales: zeroed(n_rows, BUFFERS)?,
        })
    }

    /// Bytes that [`new`](Self::new) takes.
    pub(crate) fn bytes_for(n_inputs: usize, n_rows: usize) -> u64 {
        let (n_inputs, n_rows) = (n_inputs as u64, n_rows as u64);
        Aligned::<f32>::bytes_for(n_inputs * n_rows)
            + Aligned::<i16>::bytes_for(n_inputs.next_multiple_of(2) * n_rows)
            + n_rows * size_of::<f32>() as u64
    }

    /// What it takes in memory.
    pub(crate) fn size_bytes(&self) -> usize {
        let scales = size_of_val(self.scales.as_slice());
        self.values.size_bytes() + self.integers.size_bytes() + scales
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
        let bounds = matrix.weights.activation_bounds();
        let Some(factors) = matrix.weights.input_factors(matrix.layout) else {
            return pool.run_chunks(values, n_inputs, fill);
        };
        let integers = &mut self.integers[..n_rows * width];
        let scales = &mut self.scales[..n_rows];
        let rows = (
            Columns::new(values, n_inputs),
            Columns::new(integers, width),
        );
        pool.run_rows(rows, scales, |row, values, integers, scale| {
            fill(row, values);
            kernels.scale(values, factors);
            *scale = kernels.quantise_activations(values, bounds, &mut integers[..n_inputs]);
            integers[n_inputs..].fill(0);
        });
    }

    /// All rows, from input `first` on, of a matrix of `n_inputs`.
    fn floats(&self, n_inputs: usize, first: usize) -> Rows<'_, f32> {
        Rows {
            values: &self.values[first..self.n_rows * n_inputs],
            stride: n_inputs,
            n: self.n_rows,
        }
    }

    /// The same, as integers.
    fn integers(&self, n_inputs: usize, first: usize) -> Rows<'_, i16> {
        let stride = n_inputs.next_multiple_of(2);
        Rows {
            values: &self.integers[first..self.n_rows * stride],
            stride,
            n: self.n_rows,
        }
    }
}

/// One product: `out[t, o] = sum over i of input[t, i] * matrix[o, i]`.
pub(crate) struct Product<'a> {
    pub(crate) matrix: &'a Matrix,
    pub(crate) input: &'a Activations,
    /// (input rows, matrix outputs)
    pub(crate) out: &'a mut [f32],
}

/// What one of `n_threads` threads fetches ahead of a product with these matrices: the beginning of its part.
fn beginning_of_part(matrices: &[&Matrix], thread: usize, n_threads: usize) -> Fetch {
    let n_bytes: usize = matrices.iter().map(|matrix| matrix.bytes().len()).sum();
    let mut start = n_bytes * thread / n_threads;
    for matrix in matrices {
        let bytes = matrix.bytes();
        if start < bytes.len() {
            let end = (start + FETCH_BYTES).min(bytes.len());
            return Fetch::new(&bytes[start..end]);
        }
        start -= bytes.len();
    }
    Fetch::nothing()
}

/// What each thread fetches ahead of products with these matrices.
pub(crate) fn ahead_of<'a>(
    next: &'a [&'a Matrix],
    n_threads: usize,
) -> impl Fn(usize) -> Fetch + Sync + 'a {
    move |thread| beginning_of_part(next, thread, n_threads)
}

/// Computes several independent products with matrices stored row per output in one go of the pool; all
/// have the same number of rows. Threads that have nothing left to do fetch the beginning of what is `next`:
/// the matrices of the next product.
pub(crate) fn multiply<const N: usize>(
    machine: Machine<'_>,
    scratch: &mut [Scratch],
    products: [Product<'_>; N],
    next: &[&Matrix],
) {
    let Machine { pool, kernels, .. } = machine;
    machine.show(&products);
    let width = match by_gemm(kernels, products.iter()) {
        true => GEMM_OUTPUTS,
        false => BLOCK_OUTPUTS,
    };
    let parts = products.map(|product| {
        let (matrix, input) = (product.matrix, product.input);
        debug_assert!(matrix.layout == Layout::RowPerOutput);
        (matrix, input, Columns::new(product.out, matrix.n_outputs()))
    });
    let operands: [_; N] = std::array::from_fn(|i| (parts[i].0, parts[i].1));
    let mut outputs = parts.map(|(_, _, columns)| columns);
    let ahead = |thread| beginning_of_part(next, thread, pool.n_threads());
    let work = |index: usize, block: ColumnBlock<'_, f32>, scratch: &mut Scratch| {
        let (matrix, input) = operands[index];
        multiply_block(kernels, matrix, input, block, scratch);
    };
    let paged = operands.map(|(matrix, _)| machine.paged(matrix));
    if paged.iter().all(Option::is_none) {
        return pool.run_blocks(&mut outputs, width, scratch, &ahead, work);
    }
    for (index, (matrix, _)) in operands.into_iter().enumerate() {
        let mut run = |rows: Range<usize>| {
            outputs[index].only(rows);
            let output = std::slice::from_mut(&mut outputs[index]);
            pool.run_blocks(output, width, scratch, &ahead, |_, block, scratch| {
                work(index, block, scratch);
            });
        };
        match paged[index] {
            Some(paged) => paged.for_each_piece(matrix.n_rows, width, run),
            None => run(0..matrix.n_rows),
        }
    }
}

/// Whether all of these products go to the gemm crate.
fn by_gemm<'a>(kernels: KernelSet, mut products: impl Iterator<Item = &'a Product<'a>>) -> bool {
    products.all(|product| goes_to_gemm(kernels, product.matrix, product.input))
}

fn goes_to_gemm(kernels: KernelSet, matrix: &Matrix, input: &Activations) -> bool {
    input.n_rows >= GEMM_ROWS && kernels.has_gemm() && matrix.quant().has_gemm()
}

#[cfg(feature = "gemm")]
fn gemm_weights<'a>(
    kernels: KernelSet,
    matrix: &'a Matrix,
    input: &Activations,
) -> Option<&'a [f32]> {
    let goes = goes_to_gemm(kernels, matrix, input);
    goes.then(|| matrix.weights.gemm()).flatten()
}

fn multiply_block(
    kernels: KernelSet,
    matrix: &Matrix,
    input: &Activations,
    mut block: ColumnBlock<'_, f32>,
    scratch: &mut Scratch,
) {
    let (n_inputs, n) = (matrix.n_inputs(), block.columns().len());
    let product = &mut scratch.product[..input.n_rows * n];
    #[cfg(feature = "gemm")]
    if let Some(weights) = gemm_weights(kernels, matrix, input) {
        let range = block.columns().start * n_inputs..block.columns().end * n_inputs;
        gemm::multiply_f32(
            &weights[range],
            input.floats(n_inputs, 0),
            n_inputs,
            product,
        );
        for (row, product) in product.chunks_exact(n).enumerate() {
            block.row_mut(row).copy_from_slice(product);
        }
        return;
    }
    let room = Room {
        sums: &mut scratch.sums[..input.n_rows * n],
        product,
        widened: &mut scratch.widened,
    };
    let inputs = Inputs {
        floats: input.floats(n_inputs, 0),
        integers: input.integers(n_inputs, 0),
        scales: &input.scales,
    };
    matrix
        .weights
        .dots(kernels, n_inputs, &inputs, room, &mut block);
}
