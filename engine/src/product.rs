//! Products of many rows of activations with one matrix, on all threads.
//!
//! Sits between `kernels` (one block on one thread) and the networks (`v4.rs`). Three ways:
//!
//! ```text
//! row per output             blocks of outputs; each row of weights meets all rows of activations
//!                            (f32 weights and very many rows: the gemm crate)
//! row per input, few rows    only the weight rows whose activation is not 0 are read, by chunks of inputs
//! row per input, many rows   16 outputs at a time, a chunk of inputs is widened to a panel for all rows
//! ```
//!
//! Integer products are exact in any order. Float products are summed in the same order in every way but
//! the gemm crate's: a matrix stored row per input adds its inputs one after the other within chunks of
//! [`CHUNK_INPUTS`], and the chunks in order. So a prompt gives the same bits in one piece and token by token,
//! f32 weights aside, and no result depends on the threads.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::aligned::Aligned;
use crate::kernels::fetch::{fetch, Fetch};
#[cfg(feature = "gemm")]
use crate::kernels::gemm;
use crate::kernels::{KernelSet, Rows, PANEL_WIDTH};
use crate::matrix::{Int8, Layout, Matrix, Weights};
use crate::paging::{PagedMatrix, Paging};
use crate::threads::{ColumnBlock, Columns, Pool};

/// Outputs of a matrix that one task computes. 64 rows of 768 int8 weights are 48 KiB, about 3 us of
/// memory traffic: small enough to spread, large enough that taking a task costs nothing.
const BLOCK_OUTPUTS: usize = 64;
/// From this many rows on, f32 weights go to the gemm crate, which is slower below,
const GEMM_ROWS: usize = 64;
/// in blocks of so many outputs, because it packs the activations anew for each.
const GEMM_OUTPUTS: usize = 128;
/// Inputs of a matrix stored row per input that one task sums up, and that one panel holds: a panel of f32 is then 16 KiB.
pub(crate) const CHUNK_INPUTS: usize = 256;
/// The same for weights stored row per input and many rows: longer pieces of what lies side by side.
const BLOCK_PANELS: usize = 8;
/// A thread fetches so much of the next product's weights: they stay in a second-level cache of 512 KiB.
const FETCH_BYTES: usize = 256 << 10;
/// From this many rows on, weights stored row per input are widened once for all rows.
pub(crate) const MANY_ROWS: usize = 8;

/// What a forward pass runs on.
#[derive(Clone, Copy)]
pub(crate) struct Machine<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) kernels: KernelSet,
    /// Where memory is too short for all weights.
    pub(crate) paging: Option<&'a Paging>,
}

impl<'a> Machine<'a> {
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
}

impl Scratch {
    /// Room for batches of up to `n_rows` rows, and `n_outputs` of matrices stored row per input.
    pub(crate) fn new(n_rows: usize, n_outputs: usize) -> Self {
        let room = BLOCK_OUTPUTS.max(BLOCK_PANELS * PANEL_WIDTH);
        let room_gemm = if n_rows < GEMM_ROWS { 0 } else { GEMM_OUTPUTS };
        Scratch {
            sums: Aligned::new(0, n_rows * room),
            product: Aligned::new(0.0, n_rows * room.max(room_gemm)),
            panel: Aligned::new(0.0, CHUNK_INPUTS * PANEL_WIDTH),
            panel_integers: Aligned::new(0, CHUNK_INPUTS * PANEL_WIDTH),
            gathered: Aligned::new(0, n_rows.min(MANY_ROWS - 1) * n_outputs),
            has_gathered: [false; MANY_ROWS],
            chunk_sums: Aligned::new(0, n_outputs),
            indices: vec![0; CHUNK_INPUTS],
            values: Aligned::new(0.0, CHUNK_INPUTS),
            integers: Aligned::new(0, CHUNK_INPUTS),
        }
    }

    /// What it takes in memory.
    pub(crate) fn size_bytes(&self) -> usize {
        let floats = [&self.product, &self.panel, &self.values].map(|b| b.size_bytes());
        let integers = [&self.panel_integers, &self.integers].map(|b| b.size_bytes());
        let sums = [&self.sums, &self.gathered, &self.chunk_sums].map(|b| b.size_bytes());
        let rest = sums.iter().sum::<usize>() + size_of_val(self.indices.as_slice());
        floats.iter().chain(&integers).sum::<usize>() + rest
    }
}

/// Fetches what [`Activations::prepare`] reads of a matrix.
pub(crate) fn fetch_input_factors(matrix: &Matrix) {
    if let Weights::Int8(int8) = &matrix.weights {
        fetch(int8.input_factors(matrix.layout));
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
    pub(crate) fn new(n_inputs: usize, n_rows: usize) -> Self {
        Activations {
            n_rows: 0,
            values: Aligned::new(0.0, n_inputs * n_rows),
            integers: Aligned::new(0, n_inputs.next_multiple_of(2) * n_rows),
            scales: vec![0.0; n_rows],
        }
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
        let Weights::Int8(int8) = &matrix.weights else {
            return pool.run_chunks(values, n_inputs, fill);
        };
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
    let parts = products.map(|product| {
        let (matrix, input) = (product.matrix, product.input);
        debug_assert!(matrix.layout == Layout::RowPerOutput);
        (matrix, input, Columns::new(product.out, matrix.n_outputs()))
    });
    let by_gemm = parts
        .iter()
        .all(|part| goes_to_gemm(kernels, part.0, part.1));
    let width = if by_gemm { GEMM_OUTPUTS } else { BLOCK_OUTPUTS };
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

fn goes_to_gemm(kernels: KernelSet, matrix: &Matrix, input: &Activations) -> bool {
    let is_f32 = matches!(matrix.weights, Weights::F32(_));
    is_f32 && input.n_rows >= GEMM_ROWS && kernels.has_gemm()
}

fn multiply_block(
    kernels: KernelSet,
    matrix: &Matrix,
    input: &Activations,
    mut block: ColumnBlock<'_, f32>,
    scratch: &mut Scratch,
) {
    let columns = block.columns();
    let (n_inputs, n) = (matrix.n_inputs(), columns.len());
    let range = columns.start * n_inputs..columns.end * n_inputs;
    let x = || input.floats(n_inputs, 0);
    let product = &mut scratch.product[..input.n_rows * n];
    match &matrix.weights {
        Weights::Int8(int8) => {
            let sums = &mut scratch.sums[..input.n_rows * n];
            let weights = &int8.values.as_slice()[range];
            let factors = &int8.output_factors(matrix.layout)[columns];
            fetch(factors);
            kernels.dots_i8(weights, input.integers(n_inputs, 0), n_inputs, sums);
            for (row, sums) in sums.chunks_exact(n).enumerate() {
                kernels.rescale_sums(sums, input.scales[row], factors, block.row_mut(row));
            }
            return;
        }
        #[cfg(feature = "gemm")]
        Weights::F32(w) if goes_to_gemm(kernels, matrix, input) => {
            gemm::multiply_f32(&w.as_slice()[range], x(), n_inputs, product);
        }
        Weights::F32(w) => kernels.dots_f32(&w.as_slice()[range], x(), n_inputs, product),
        Weights::F16(w) => kernels.dots_f16(&w.as_slice()[range], x(), n_inputs, product),
    }
    for (row, product) in product.chunks_exact(n).enumerate() {
        block.row_mut(row).copy_from_slice(product);
    }
}

/// What is needed for products with a matrix stored row per input.
pub(crate) struct Transposed {
    /// Sums of chunks of inputs of a few rows: (rows, chunks, outputs); for integers the total of a row
    partial: Aligned<f32>,
    /// Reads the weights of inputs that are 0 too, for measuring what leaving them out is worth.
    no_sparsity: bool,
    /// Inputs looked at so far by products of a few rows, and those that were not 0.
    n_seen: AtomicU64,
    n_used: AtomicU64,
}

impl Transposed {
    /// Room for batches of up to `n_rows` rows of matrices of these sizes.
    pub(crate) fn new(n_inputs: usize, n_outputs: usize, n_rows: usize, no_sparsity: bool) -> Self {
        let few = n_rows.min(MANY_ROWS - 1);
        Transposed {
            partial: Aligned::new(0.0, few * n_inputs.div_ceil(CHUNK_INPUTS) * n_outputs),
            no_sparsity,
            n_seen: AtomicU64::new(0),
            n_used: AtomicU64::new(0),
        }
    }

    /// What it takes in memory.
    pub(crate) fn size_bytes(&self) -> usize {
        self.partial.size_bytes()
    }

    /// Inputs that were 0, of all so far, in batches of a few rows.
    pub(crate) fn sparsity(&self) -> (u64, u64) {
        let [seen, used] = [&self.n_seen, &self.n_used].map(|n| n.load(Ordering::Relaxed));
        (seen - used, seen)
    }

    /// Computes a product with a matrix stored row per input; `next` as in [`multiply`].
    pub(crate) fn multiply(
        &mut self,
        machine: Machine<'_>,
        scratch: &mut [Scratch],
        product: Product<'_>,
        next: &[&Matrix],
    ) {
        debug_assert!(product.matrix.layout == Layout::RowPerInput);
        if product.input.n_rows < MANY_ROWS {
            let (n_rows, n_inputs) = (product.input.n_rows, product.matrix.n_inputs());
            self.n_seen
                .fetch_add((n_rows * n_inputs) as u64, Ordering::Relaxed);
            return match &product.matrix.weights {
                Weights::Int8(int8) => {
                    self.gather_integers(machine, scratch, product, int8, next);
                }
                _ => self.gather_floats(machine, scratch, product, next),
            };
        }
        let matrix = product.matrix;
        let run = || multiply_many(machine, scratch, product, next);
        match machine.paged(matrix) {
            Some(paged) => paged.whole(matrix.n_rows, run),
            None => run(),
        }
    }

    /// Sums of chunks of inputs, each written to its own place, added up in order.
    fn gather_floats(
        &mut self,
        machine: Machine<'_>,
        scratch: &mut [Scratch],
        product: Product<'_>,
        next: &[&Matrix],
    ) {
        let kernels = machine.kernels;
        let Product { matrix, input, out } = product;
        let (n_inputs, n_outputs) = (matrix.n_inputs(), matrix.n_outputs());
        let n_chunks = n_inputs.div_ceil(CHUNK_INPUTS);
        let partial = &mut self.partial[..input.n_rows * n_chunks * n_outputs];
        let n_partial = partial.len();
        let (n_used, no_sparsity) = (&self.n_used, self.no_sparsity);
        let work = |_, mut block: ColumnBlock<'_, f32>, scratch: &mut Scratch| {
            let task = block.columns().start / n_outputs;
            let gather = Gather {
                kernels,
                matrix,
                input,
                row: task / n_chunks,
                inputs: chunk(n_inputs, task % n_chunks),
                no_sparsity,
            };
            let (indices, values) = (&mut scratch.indices, &mut scratch.values);
            let used = gather.floats(indices, values, block.row_mut(0));
            n_used.fetch_add(used as u64, Ordering::Relaxed);
        };
        let tasks = (Columns::new(&mut *partial, n_partial), n_outputs);
        run_gather(machine, scratch, (matrix, input.n_rows), tasks, next, work);
        let rows = partial.chunks_exact(n_chunks * n_outputs);
        for (partial, out) in rows.zip(out.chunks_exact_mut(n_outputs)) {
            out.fill(0.0);
            partial
                .chunks_exact(n_outputs)
                .for_each(|part| kernels.add(out, part));
        }
    }

    /// Integer sums are exact in any order: each thread adds up the chunks that it takes, which leaves less
    /// to be added up in the end by one thread.
    fn gather_integers(
        &mut self,
        machine: Machine<'_>,
        scratch: &mut [Scratch],
        product: Product<'_>,
        int8: &Int8,
        next: &[&Matrix],
    ) {
        let kernels = machine.kernels;
        let Product { matrix, input, out } = product;
        let (n_inputs, n_outputs) = (matrix.n_inputs(), matrix.n_outputs());
        let n_chunks = n_inputs.div_ceil(CHUNK_INPUTS);
        for scratch in scratch.iter_mut() {
            scratch.has_gathered.fill(false);
        }
        let (n_used, no_sparsity) = (&self.n_used, self.no_sparsity);
        let work = |_, block: ColumnBlock<'_, ()>, scratch: &mut Scratch| {
            let task = block.columns().start;
            let row = task / n_chunks;
            let gather = Gather {
                kernels,
                matrix,
                input,
                row,
                inputs: chunk(n_inputs, task % n_chunks),
                no_sparsity,
            };
            let sums = &mut scratch.gathered[row * n_outputs..(row + 1) * n_outputs];
            let (indices, integers) = (&mut scratch.indices, &mut scratch.integers);
            let used = if scratch.has_gathered[row] {
                let used = gather.integers(int8, indices, integers, &mut scratch.chunk_sums);
                kernels.add_sums(sums, &scratch.chunk_sums);
                used
            } else {
                scratch.has_gathered[row] = true;
                gather.integers(int8, indices, integers, sums)
            };
            n_used.fetch_add(used as u64, Ordering::Relaxed);
        };
        // Tasks write to nothing but scratch; elements without a size take no memory.
        let mut nothing = vec![(); input.n_rows * n_chunks];
        let tasks = (Columns::new(&mut nothing, input.n_rows * n_chunks), 1);
        run_gather(machine, scratch, (matrix, input.n_rows), tasks, next, work);
        let factors = int8.output_factors(matrix.layout);
        let total: &mut [i32] = bytemuck::cast_slice_mut(&mut self.partial[..n_outputs]);
        for (row, out) in out.chunks_exact_mut(n_outputs).enumerate() {
            total.fill(0);
            for scratch in scratch.iter().filter(|scratch| scratch.has_gathered[row]) {
                kernels.add_sums(total, &scratch.gathered[row * n_outputs..][..n_outputs]);
            }
            kernels.rescale_sums(total, input.scales[row], factors, out);
        }
    }
}

/// A product with a matrix stored row per input of so many rows that all weights are needed.
fn multiply_many(
    machine: Machine<'_>,
    scratch: &mut [Scratch],
    product: Product<'_>,
    next: &[&Matrix],
) {
    let Machine { pool, kernels, .. } = machine;
    let Product { matrix, input, out } = product;
    let ahead = |thread| beginning_of_part(next, thread, pool.n_threads());
    let mut outputs = [Columns::new(out, matrix.n_outputs())];
    pool.run_blocks(
        &mut outputs,
        BLOCK_PANELS * PANEL_WIDTH,
        scratch,
        &ahead,
        |_, block, scratch| match &matrix.weights {
            Weights::Int8(int8) => {
                multiply_panels_i8(kernels, matrix, int8, input, block, scratch);
            }
            Weights::F32(w) => {
                let pack = |panel: &mut [f32], inputs: Range<usize>, first, n| {
                    let weights = rows(matrix, w.as_slice(), &inputs);
                    kernels.pack_f32(weights, matrix.n_cols, first, n, panel);
                };
                multiply_panels(kernels, matrix, input, block, scratch, pack);
            }
            Weights::F16(w) => {
                let pack = |panel: &mut [f32], inputs: Range<usize>, first, n| {
                    let weights = rows(matrix, w.as_slice(), &inputs);
                    kernels.pack_f16(weights, matrix.n_cols, first, n, panel);
                };
                multiply_panels(kernels, matrix, input, block, scratch, pack);
            }
        },
    );
}

/// Runs the tasks of a gather, one of `width` columns for each row and chunk of inputs: for a matrix that does
/// not stay in memory piece by piece.
fn run_gather<T: Send>(
    machine: Machine<'_>,
    scratch: &mut [Scratch],
    (matrix, n_rows): (&Matrix, usize),
    (tasks, width): (Columns<'_, T>, usize),
    next: &[&Matrix],
    work: impl Fn(usize, ColumnBlock<'_, T>, &mut Scratch) + Sync,
) {
    let pool = machine.pool;
    let ahead = |thread| beginning_of_part(next, thread, pool.n_threads());
    let n_inputs = matrix.n_inputs();
    let n_chunks = n_inputs.div_ceil(CHUNK_INPUTS);
    let mut tasks = [tasks];
    let Some(paged) = machine.paged(matrix) else {
        return pool.run_blocks(&mut tasks, width, scratch, &ahead, work);
    };
    paged.for_each_piece(n_inputs, CHUNK_INPUTS, |inputs| {
        let chunks = inputs.start / CHUNK_INPUTS..inputs.end.div_ceil(CHUNK_INPUTS);
        for row in 0..n_rows {
            let first = row * n_chunks;
            tasks[0].only((first + chunks.start) * width..(first + chunks.end) * width);
            pool.run_blocks(&mut tasks, width, scratch, &ahead, &work);
        }
    });
}

/// The stored rows that belong to some inputs.
fn rows<'a, T>(matrix: &Matrix, weights: &'a [T], inputs: &Range<usize>) -> &'a [T] {
    &weights[inputs.start * matrix.n_cols..inputs.end * matrix.n_cols]
}

/// One row of activations times the stored rows of a chunk of inputs, those that are 0 left out.
struct Gather<'a> {
    kernels: KernelSet,
    matrix: &'a Matrix,
    input: &'a Activations,
    row: usize,
    inputs: Range<usize>,
    no_sparsity: bool,
}

impl Gather<'_> {
    /// Writes sums to `out` and returns how many inputs were not 0; `indices` and `integers` are room for
    /// those.
    fn integers(
        &self,
        int8: &Int8,
        indices: &mut [u32],
        integers: &mut [i16],
        out: &mut [i32],
    ) -> usize {
        let n = self.inputs.len();
        let x = self
            .input
            .integers(self.matrix.n_inputs(), self.inputs.start);
        let x = &x.values[self.row * x.stride..][..n];
        let used = if self.no_sparsity {
            list_all(indices);
            integers[..n].copy_from_slice(x);
            n
        } else {
            self.kernels.list_nonzero_i16(x, 0, indices, integers)
        };
        let weights = rows(self.matrix, int8.values.as_slice(), &self.inputs);
        self.kernels
            .gather_i8(weights, &indices[..used], &integers[..used], out);
        used
    }

    /// As [`integers`](Self::integers), for weights that are floats.
    fn floats(&self, indices: &mut [u32], values: &mut [f32], out: &mut [f32]) -> usize {
        let (kernels, matrix, n) = (self.kernels, self.matrix, self.inputs.len());
        let x = self.input.floats(matrix.n_inputs(), self.inputs.start);
        let x = &x.values[self.row * x.stride..][..n];
        let used = if self.no_sparsity {
            list_all(indices);
            values[..n].copy_from_slice(x);
            n
        } else {
            kernels.list_nonzero_f32(x, 0, indices, values)
        };
        let (indices, values) = (&indices[..used], &values[..used]);
        match &matrix.weights {
            Weights::F32(w) => {
                let weights = rows(matrix, w.as_slice(), &self.inputs);
                kernels.gather_f32(weights, indices, values, out);
            }
            Weights::F16(w) => {
                let weights = rows(matrix, w.as_slice(), &self.inputs);
                kernels.gather_f16(weights, indices, values, out);
            }
            Weights::Int8(_) => {}
        }
        used
    }
}

fn list_all(indices: &mut [u32]) {
    indices
        .iter_mut()
        .zip(0..)
        .for_each(|(index, i)| *index = i);
}

/// Inputs of one chunk of a matrix.
fn chunk(n_inputs: usize, index: usize) -> Range<usize> {
    let first = index * CHUNK_INPUTS;
    first..(first + CHUNK_INPUTS).min(n_inputs)
}

/// Inputs of a matrix in chunks, in order.
fn chunks(n_inputs: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n_inputs.div_ceil(CHUNK_INPUTS)).map(move |index| chunk(n_inputs, index))
}

fn multiply_panels_i8(
    kernels: KernelSet,
    matrix: &Matrix,
    int8: &Int8,
    input: &Activations,
    mut block: ColumnBlock<'_, f32>,
    scratch: &mut Scratch,
) {
    let (columns, n_inputs) = (block.columns(), matrix.n_inputs());
    let size = input.n_rows * PANEL_WIDTH;
    let sums = &mut scratch.sums[..columns.len().div_ceil(PANEL_WIDTH) * size];
    sums.fill(0);
    for inputs in chunks(n_inputs) {
        let width = inputs.len().next_multiple_of(2);
        let panel = &mut scratch.panel_integers[..width * PANEL_WIDTH];
        let weights = rows(matrix, int8.values.as_slice(), &inputs);
        let x = input.integers(n_inputs, inputs.start);
        for (outputs, sums) in panels(&columns).zip(sums.chunks_exact_mut(size)) {
            kernels.pack_i8(weights, matrix.n_cols, outputs.start, outputs.len(), panel);
            kernels.multiply_panel_i8(panel, x, sums);
        }
    }
    let factors = int8.output_factors(matrix.layout);
    for (outputs, sums) in panels(&columns).zip(sums.chunks_exact(size)) {
        let (n, at) = (outputs.len(), outputs.start - columns.start);
        for (row, sums) in sums.chunks_exact(PANEL_WIDTH).enumerate() {
            let out = &mut block.row_mut(row)[at..at + n];
            let (scale, factors) = (input.scales[row], &factors[outputs.clone()]);
            kernels.rescale_sums(&sums[..n], scale, factors, out);
        }
    }
}

/// Cuts outputs into panels.
fn panels(columns: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = columns.end;
    columns
        .clone()
        .step_by(PANEL_WIDTH)
        .map(move |first| first..(first + PANEL_WIDTH).min(end))
}

/// `pack(panel, inputs, first output, outputs)` widens weights into a panel.
fn multiply_panels(
    kernels: KernelSet,
    matrix: &Matrix,
    input: &Activations,
    mut block: ColumnBlock<'_, f32>,
    scratch: &mut Scratch,
    pack: impl Fn(&mut [f32], Range<usize>, usize, usize),
) {
    let (columns, n_inputs) = (block.columns(), matrix.n_inputs());
    let size = input.n_rows * PANEL_WIDTH;
    let product = &mut scratch.product[..columns.len().div_ceil(PANEL_WIDTH) * size];
    product.fill(0.0);
    for inputs in chunks(n_inputs) {
        let panel = &mut scratch.panel[..inputs.len() * PANEL_WIDTH];
        let x = input.floats(n_inputs, inputs.start);
        for (outputs, product) in panels(&columns).zip(product.chunks_exact_mut(size)) {
            pack(panel, inputs.clone(), outputs.start, outputs.len());
            kernels.multiply_panel_f32(panel, x, product);
        }
    }
    for (outputs, product) in panels(&columns).zip(product.chunks_exact(size)) {
        let (n, at) = (outputs.len(), outputs.start - columns.start);
        for (row, product) in product.chunks_exact(PANEL_WIDTH).enumerate() {
            block.row_mut(row)[at..at + n].copy_from_slice(&product[..n]);
        }
    }
}
