//! Products with the small matrices of RWKV-7, which stay floats in every quantisation.
//!
//! They are stored with a row for each input, so a sum of one output is one column, and columns are what vector code
//! has side by side: each output adds up its inputs one after the other, first a multiplication, then an addition, and
//! needs no sum across a register. So every instruction set gives the same bits, for one row and for many. Written
//! once in plain Rust; AVX2 has a version of its own, whose halves are widened by one instruction.

#![forbid(unsafe_code)]

use half::f16;

use super::elementwise::f16_to_f32;
use super::{Columns, Rows};

#[inline(always)]
pub(super) fn low_rank_f32(weights: &[f32], columns: Columns, x: Rows<'_, f32>, out: &mut [f32]) {
    low_rank(weights, columns, x, out, |weight| weight);
}

#[inline(always)]
pub(super) fn low_rank_f16(weights: &[f16], columns: Columns, x: Rows<'_, f32>, out: &mut [f32]) {
    low_rank(weights, columns, x, out, f16_to_f32);
}

#[inline(always)]
fn low_rank<W: Copy>(
    weights: &[W],
    columns: Columns,
    x: Rows<'_, f32>,
    out: &mut [f32],
    widen: impl Fn(W) -> f32 + Copy,
) {
    let mut row = 0;
    while row + 4 <= x.n {
        rows::<4, 16, W>(weights, columns, x, row, out, widen);
        row += 4;
    }
    while row < x.n {
        rows::<1, 32, W>(weights, columns, x, row, out, widen);
        row += 1;
    }
}

/// `R` rows of activations from `row` on, `C` outputs at a time.
#[inline(always)]
fn rows<const R: usize, const C: usize, W: Copy>(
    weights: &[W],
    columns: Columns,
    x: Rows<'_, f32>,
    row: usize,
    out: &mut [f32],
    widen: impl Fn(W) -> f32 + Copy,
) {
    let mut at = 0;
    while at + C <= columns.n {
        tile::<R, C, W>(weights, columns, x, (row, at), out, widen);
        at += C;
    }
    while at + 8 <= columns.n {
        tile::<R, 8, W>(weights, columns, x, (row, at), out, widen);
        at += 8;
    }
    while at < columns.n {
        tile::<R, 1, W>(weights, columns, x, (row, at), out, widen);
        at += 1;
    }
}

#[inline(always)]
fn tile<const R: usize, const C: usize, W: Copy>(
    weights: &[W],
    columns: Columns,
    x: Rows<'_, f32>,
    (row, at): (usize, usize),
    out: &mut [f32],
    widen: impl Fn(W) -> f32,
) {
    let mut sums = [[0.0f32; C]; R];
    for (input, weights) in weights.chunks_exact(columns.stride).enumerate() {
        let Some(weights) = weights[columns.first + at..].first_chunk::<C>() else {
            return;
        };
        let weights = std::array::from_fn::<f32, C, _>(|column| widen(weights[column]));
        for (r, sums) in sums.iter_mut().enumerate() {
            let x = x.values[(row + r) * x.stride + input];
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum += x * weight;
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        out[(row + r) * columns.n + at..][..C].copy_from_slice(sums);
    }
}
