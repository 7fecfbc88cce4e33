//! Products of many rows of activations with a matrix stored row per input: a chunk of inputs by a few outputs is
//! widened to a panel, which then meets all rows.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::transposed::chunk;
use super::{
    beginning_of_part, Activations, Machine, Product, Scratch, BLOCK_PANELS, CHUNK_INPUTS,
};
use crate::math::kernels::{KernelSet, PANEL_WIDTH};
use crate::math::threads::{ColumnBlock, Columns};
use crate::quant::matrix::Matrix;
use crate::quant::{ByInput, FloatSums, IntegerSums};

/// A product with a matrix stored row per input of so many rows that all weights are needed.
pub(super) fn multiply_many(
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
        |_, block, scratch| match matrix.weights.by_input() {
            ByInput::Floats(weights) => {
                multiply_panels(kernels, matrix, weights, input, block, scratch);
            }
            ByInput::Integers(weights) => {
                multiply_panels_i8(kernels, matrix, weights, input, block, scratch);
            }
        },
    );
}

/// Inputs of a matrix in chunks, in order.
fn chunks(n_inputs: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n_inputs.div_ceil(CHUNK_INPUTS)).map(move |index| chunk(n_inputs, index))
}

fn multiply_panels_i8(
    kernels: KernelSet,
    matrix: &Matrix,
    weights: IntegerSums<'_>,
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
        let x = input.integers(n_inputs, inputs.start);
        for (outputs, sums) in panels(&columns).zip(sums.chunks_exact_mut(size)) {
            weights.pack(kernels, matrix.n_cols, inputs.clone(), outputs, panel);
            kernels.multiply_panel_i8(panel, x, sums);
        }
    }
    let factors = weights.output_factors(matrix.layout);
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

fn multiply_panels(
    kernels: KernelSet,
    matrix: &Matrix,
    weights: FloatSums<'_>,
    input: &Activations,
    mut block: ColumnBlock<'_, f32>,
    scratch: &mut Scratch,
) {
    let (columns, n_inputs) = (block.columns(), matrix.n_inputs());
    let size = input.n_rows * PANEL_WIDTH;
    let product = &mut scratch.product[..columns.len().div_ceil(PANEL_WIDTH) * size];
    product.fill(0.0);
    for inputs in chunks(n_inputs) {
        let panel = &mut scratch.panel[..inputs.len() * PANEL_WIDTH];
        let x = input.floats(n_inputs, inputs.start);
        for (outputs, product) in panels(&columns).zip(product.chunks_exact_mut(size)) {
            weights.pack(kernels, matrix.n_cols, inputs.clone(), outputs, panel);
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
