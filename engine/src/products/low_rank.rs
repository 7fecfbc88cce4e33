//! Products with the small matrices of RWKV-7, which stay floats in every quantisation.
//!
//! Each is one half of a low-rank pair. The first halves read what the large matrices beside them read, and go in one run of the
//! pool with these; the second halves are a matter of each head, see `networks/v7.rs`.

#![forbid(unsafe_code)]

use super::{
    beginning_of_part, by_gemm, multiply_block, Machine, Product, Scratch, BLOCK_OUTPUTS,
    GEMM_OUTPUTS,
};
use crate::math::kernels::{self, KernelSet, Rows};
use crate::math::threads::{ColumnBlock, Columns};
use crate::quant::matrix::{Layout, Matrix};
use crate::quant::{ByInput, FloatSums};

/// Outputs of one task where there are small matrices alone: those of RWKV-6's shares have 160.
const NARROW_OUTPUTS: usize = 32;

/// A product with a small matrix: `out[t, o] = then(sum over i of input[t, i] * matrix[i, o])`.
pub(crate) struct LowRank<'a> {
    pub(crate) matrix: &'a Matrix,
    /// (rows, matrix inputs)
    pub(crate) input: Rows<'a, f32>,
    /// (rows, matrix outputs)
    pub(crate) out: &'a mut [f32],
    pub(crate) then: Then,
}

/// What comes of the sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Same,
    Tanh,
    Sigmoid,
}

/// Some outputs of a small matrix for some rows of activations: `columns` of its columns, into `out`, (rows, columns.n).
pub(crate) fn columns_of(
    kernels: KernelSet,
    matrix: &Matrix,
    columns: std::ops::Range<usize>,
    input: Rows<'_, f32>,
    out: &mut [f32],
) {
    let columns = kernels::Columns {
        stride: matrix.n_cols,
        first: columns.start,
        n: columns.len(),
    };
    match matrix.weights.by_input() {
        ByInput::Floats(FloatSums::F32(weights)) => {
            kernels.low_rank_f32(weights.as_slice(), columns, input, out);
        }
        ByInput::Floats(FloatSums::F16(weights)) => {
            kernels.low_rank_f16(weights.as_slice(), columns, input, out);
        }
        // The table stores none of them so; NaN would show.
        ByInput::Integers(_) => out.fill(f32::NAN),
    }
}

/// [`multiply`](super::multiply), and small products in the same run of the pool. All have the same number of rows.
pub(crate) fn multiply_with<const N: usize, const M: usize>(
    machine: Machine<'_>,
    scratch: &mut [Scratch],
    products: [Product<'_>; N],
    small: [Option<LowRank<'_>>; M],
    next: &[&Matrix],
) {
    let Machine { pool, kernels, .. } = machine;
    let paged = products
        .iter()
        .any(|product| machine.paged(product.matrix).is_some());
    let mut small_operands = [None; M];
    let mut outputs: [Columns<'_, f32>; M] = {
        let mut operands = small_operands.iter_mut();
        small.map(|small| {
            let Some(LowRank {
                matrix,
                input,
                out,
                then,
            }) = small
            else {
                operands.next();
                return Columns::none();
            };
            debug_assert!(matrix.layout == Layout::LowRank);
            if let Some(operand) = operands.next() {
                *operand = Some((matrix, input, then));
            }
            Columns::new(out, matrix.n_cols)
        })
    };
    let small_work = |index: usize, mut block: ColumnBlock<'_, f32>, scratch: &mut Scratch| {
        let Some((matrix, input, then)) = small_operands[index] else {
            return;
        };
        let columns = block.columns();
        let n = columns.len();
        let sums = &mut scratch.product[..input.n * n];
        columns_of(kernels, matrix, columns, input, sums);
        match then {
            Then::Same => {}
            Then::Tanh => kernels.tanh_of(sums),
            Then::Sigmoid => kernels.sigmoid_of(sums),
        }
        for (row, sums) in sums.chunks_exact(n).enumerate() {
            block.row_mut(row).copy_from_slice(sums);
        }
    };
    let ahead = |thread| beginning_of_part(next, thread, pool.n_threads());
    if paged {
        super::multiply(machine, scratch, products, &[]);
        return pool.run_blocks(&mut outputs, BLOCK_OUTPUTS, scratch, &ahead, small_work);
    }
    machine.show(&products);
    let width = match N {
        // Few outputs are to be spread over all threads.
        0 => NARROW_OUTPUTS,
        _ if by_gemm(kernels, products.iter()) => GEMM_OUTPUTS,
        _ => BLOCK_OUTPUTS,
    };
    let mut operands = [None; N];
    let mut large = {
        let mut operands = operands.iter_mut();
        products.map(|product| {
            let (matrix, input) = (product.matrix, product.input);
            debug_assert!(matrix.layout == Layout::RowPerOutput);
            if let Some(operand) = operands.next() {
                *operand = Some((matrix, input));
            }
            Columns::new(product.out, matrix.n_outputs())
        })
    };
    let work = |index: usize, block: ColumnBlock<'_, f32>, scratch: &mut Scratch| match operands
        .get(index)
    {
        Some(Some((matrix, input))) => multiply_block(kernels, matrix, input, block, scratch),
        _ => small_work(index.wrapping_sub(N), block, scratch),
    };
    pool.run_two_lists(&mut large, &mut outputs, width, scratch, &ahead, work);
}
