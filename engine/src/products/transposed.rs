//! Products with a matrix stored row per input.
//!
//! Of a few rows of activations those inputs that are not 0 are listed, and only their weights read, by chunks of
//! inputs; with more rows `panels.rs` reads all weights once.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::panels::multiply_many;
use super::{
    beginning_of_part, Activations, Machine, Product, Scratch, BUFFERS, CHUNK_INPUTS, MANY_ROWS,
};
use crate::error::Result;
use crate::math::aligned::Aligned;
use crate::math::kernels::KernelSet;
use crate::math::threads::{ColumnBlock, Columns};
use crate::quant::matrix::{Layout, Matrix};
use crate::quant::{ByInput, FloatSums, IntegerSums};

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
    ///
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub(crate) fn new(
        n_inputs: usize,
        n_outputs: usize,
        n_rows: usize,
        no_sparsity: bool,
    ) -> Result<Self> {
        let room = usize::try_from(Self::room(n_inputs, n_outputs, n_rows));
        Ok(Transposed {
            partial: Aligned::zeroed(room.unwrap_or(usize::MAX), BUFFERS)?,
            no_sparsity,
            n_seen: AtomicU64::new(0),
            n_used: AtomicU64::new(0),
        })
    }

    /// Numbers of `partial`.
    fn room(n_inputs: usize, n_outputs: usize, n_rows: usize) -> u64 {
        let few = n_rows.min(MANY_ROWS - 1) as u64;
        few * n_inputs.div_ceil(CHUNK_INPUTS) as u64 * n_outputs as u64
    }

    /// Bytes that [`new`](Self::new) takes.
    pub(crate) fn bytes_for(n_inputs: usize, n_outputs: usize, n_rows: usize) -> u64 {
        Aligned::<f32>::bytes_for(Self::room(n_inputs, n_outputs, n_rows))
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
        machine.show([&product]);
        if product.input.n_rows < MANY_ROWS {
            let (n_rows, n_inputs) = (product.input.n_rows, product.matrix.n_inputs());
            self.n_seen
                .fetch_add((n_rows * n_inputs) as u64, Ordering::Relaxed);
            return match product.matrix.weights.by_input() {
                ByInput::Floats(weights) => {
                    self.gather_floats(machine, scratch, product, weights, next);
                }
                ByInput::Integers(weights) => {
                    self.gather_integers(machine, scratch, product, weights, next);
                }
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
        weights: FloatSums<'_>,
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
            let used = gather.floats(weights, indices, values, block.row_mut(0));
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
        weights: IntegerSums<'_>,
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
                let used = gather.integers(weights, indices, integers, &mut scratch.chunk_sums);
                kernels.add_sums(sums, &scratch.chunk_sums);
                used
            } else {
                scratch.has_gathered[row] = true;
                gather.integers(weights, indices, integers, sums)
            };
            n_used.fetch_add(used as u64, Ordering::Relaxed);
        };
        // Tasks write to nothing but scratch; elements without a size take no memory.
        let mut nothing = vec![(); input.n_rows * n_chunks];
        let tasks = (Columns::new(&mut nothing, input.n_rows * n_chunks), 1);
        run_gather(machine, scratch, (matrix, input.n_rows), tasks, next, work);
        let factors = weights.output_factors(matrix.layout);
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
        weights: IntegerSums<'_>,
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
        let (indices, integers) = (&indices[..used], &integers[..used]);
        weights.gather(self.kernels, self.inputs.clone(), indices, integers, out);
        used
    }

    /// As [`integers`](Self::integers), for sums that are floats.
    fn floats(
        &self,
        weights: FloatSums<'_>,
        indices: &mut [u32],
        values: &mut [f32],
        out: &mut [f32],
    ) -> usize {
        let n = self.inputs.len();
        let x = self.input.floats(self.matrix.n_inputs(), self.inputs.start);
        let x = &x.values[self.row * x.stride..][..n];
        let used = if self.no_sparsity {
            list_all(indices);
            values[..n].copy_from_slice(x);
            n
        } else {
            self.kernels.list_nonzero_f32(x, 0, indices, values)
        };
        let (indices, values) = (&indices[..used], &values[..used]);
        weights.gather(self.kernels, self.inputs.clone(), indices, values, out);
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
pub(super) fn chunk(n_inputs: usize, index: usize) -> Range<usize> {
    let first = index * CHUNK_INPUTS;
    first..(first + CHUNK_INPUTS).min(n_inputs)
}
