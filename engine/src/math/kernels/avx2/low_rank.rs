//! Products with small matrices stored row per input, outputs side by side in registers.
//!
//! Not fused: `low_rank.rs` beside this folder is the specification, to the last bit.

use std::arch::x86_64::*;

use super::super::{Columns, Rows};
use super::weight::Float;
use super::LANES;

/// Outputs of one row that are summed up at once: eight chains of additions, whose latency they hide.
const WIDE: usize = 8;
/// Registers of outputs, and rows, of a tile of many rows.
const TILE: usize = 2;
const TILE_ROWS: usize = 4;

/// # Safety
/// The CPU has the features; lengths are as `KernelSet` asserts them.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn low_rank<W: Float>(
    weights: &[W],
    columns: Columns,
    x: Rows<'_, f32>,
    out: &mut [f32],
) {
    let mut row = 0;
    // SAFETY: rows and columns are within what was asserted, so all tiles are.
    unsafe {
        while row + TILE_ROWS <= x.n {
            rows::<TILE_ROWS, TILE, W>(weights, columns, x, row, out);
            row += TILE_ROWS;
        }
        while row < x.n {
            rows::<1, WIDE, W>(weights, columns, x, row, out);
            row += 1;
        }
    }
}

/// `R` rows of activations, `C` registers of outputs at a time.
///
/// # Safety
/// As [`low_rank`]; the rows are there.
#[inline(always)]
unsafe fn rows<const R: usize, const C: usize, W: Float>(
    weights: &[W],
    columns: Columns,
    x: Rows<'_, f32>,
    row: usize,
    out: &mut [f32],
) {
    let mut at = 0;
    // SAFETY: the caller's promise; a tile ends at or before the last of the columns.
    unsafe {
        while at + C * LANES <= columns.n {
            tile::<R, C, W>(weights, columns, x, (row, at), out);
            at += C * LANES;
        }
        while at + LANES <= columns.n {
            tile::<R, 1, W>(weights, columns, x, (row, at), out);
            at += LANES;
        }
    }
    let n_inputs = weights.len() / columns.stride;
    for at in at..columns.n {
        for row in row..row + R {
            let mut sum = 0.0;
            for input in 0..n_inputs {
                let weight = weights[input * columns.stride + columns.first + at];
                sum += x.values[row * x.stride + input] * weight.widen();
            }
            out[row * columns.n + at] = sum;
        }
    }
}

/// # Safety
/// As [`low_rank`]; rows and outputs are there.
#[inline(always)]
unsafe fn tile<const R: usize, const C: usize, W: Float>(
    weights: &[W],
    columns: Columns,
    x: Rows<'_, f32>,
    (row, at): (usize, usize),
    out: &mut [f32],
) {
    // SAFETY: the caller's promise: every address below is within its slice.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); C]; R];
        let x_rows: [*const f32; R] =
            std::array::from_fn(|r| x.values.as_ptr().add((row + r) * x.stride));
        let mut weight = weights.as_ptr().add(columns.first + at);
        for input in 0..weights.len() / columns.stride {
            let registers: [__m256; C] = std::array::from_fn(|c| W::load8(weight.add(c * LANES)));
            for (sums, x) in sums.iter_mut().zip(x_rows) {
                let x = _mm256_set1_ps(*x.add(input));
                for (sum, register) in sums.iter_mut().zip(registers) {
                    *sum = _mm256_add_ps(*sum, _mm256_mul_ps(x, register));
                }
            }
            weight = weight.wrapping_add(columns.stride);
        }
        for (r, sums) in sums.iter().enumerate() {
            let out = out.as_mut_ptr().add((row + r) * columns.n + at);
            for (c, sum) in sums.iter().enumerate() {
                _mm256_storeu_ps(out.add(c * LANES), *sum);
            }
        }
    }
}
