//! Matrix kernels in plain Rust: slow, portable, and the specification of all others.
//!
//! Float sums: element c of a row goes to partial sum c mod 32 of four registers of eight lanes; full
//! blocks of 32 first, then blocks of 8 into the first register, then the tail, zero-padded, into the
//! first register; then register 0 + 1, 2 + 3, both together, and the lanes as
//! [`add_lanes`](super::elementwise::add_lanes) does. Integer sums are exact in any order.

#![forbid(unsafe_code)]

use half::f16;

use super::elementwise::{add_lanes, f16_to_f32, LANES};
use super::PANEL_WIDTH;

/// Registers of partial sums in a dot product: two would already hide the latency of an addition
/// from L1, four leave room for cores with longer pipes.
const REGISTERS: usize = 4;

pub(super) fn matvec_f32(weights: &[f32], x: &[f32], out: &mut [f32]) {
    for (out, row) in out.iter_mut().zip(weights.chunks_exact(x.len().max(1))) {
        *out = dot(row, x, |w| w);
    }
}

pub(super) fn matvec_f16(weights: &[f16], x: &[f32], out: &mut [f32]) {
    for (out, row) in out.iter_mut().zip(weights.chunks_exact(x.len().max(1))) {
        *out = dot(row, x, f16_to_f32);
    }
}

#[inline(always)]
fn dot<T: Copy>(row: &[T], x: &[f32], widen: impl Fn(T) -> f32) -> f32 {
    let mut sums = [[0.0_f32; LANES]; REGISTERS];
    let full = row.len() / (LANES * REGISTERS) * (LANES * REGISTERS);
    let (row_full, row_rest) = row.split_at(full);
    let (x_full, x_rest) = x.split_at(full);
    let blocks = row_full.chunks_exact(LANES * REGISTERS);
    for (row, x) in blocks.zip(x_full.chunks_exact(LANES * REGISTERS)) {
        for (r, sums) in sums.iter_mut().enumerate() {
            for (lane, sum) in sums.iter_mut().enumerate() {
                *sum += widen(row[r * LANES + lane]) * x[r * LANES + lane];
            }
        }
    }
    for (row, x) in row_rest.chunks(LANES).zip(x_rest.chunks(LANES)) {
        for ((sum, &w), &x) in sums[0].iter_mut().zip(row).zip(x) {
            *sum += widen(w) * x;
        }
    }
    let mut lanes = [0.0; LANES];
    for (lane, total) in lanes.iter_mut().enumerate() {
        *total = (sums[0][lane] + sums[1][lane]) + (sums[2][lane] + sums[3][lane]);
    }
    add_lanes(lanes)
}

pub(super) fn matvec_i8(weights: &[i8], x: &[i16], out: &mut [i32]) {
    for (out, row) in out.iter_mut().zip(weights.chunks_exact(x.len().max(1))) {
        let products = row
            .iter()
            .zip(x)
            .map(|(&w, &x)| i32::from(w) * i32::from(x));
        *out = products.fold(0, i32::wrapping_add);
    }
}

pub(super) fn gather_f32(
    weights: &[f32],
    stride: usize,
    first: usize,
    rows: &[u32],
    values: &[f32],
    out: &mut [f32],
) {
    gather(weights, stride, first, rows, values, out, |w| w);
}

pub(super) fn gather_f16(
    weights: &[f16],
    stride: usize,
    first: usize,
    rows: &[u32],
    values: &[f32],
    out: &mut [f32],
) {
    gather(weights, stride, first, rows, values, out, f16_to_f32);
}

/// Rows are added in the order given, one after the other.
#[inline(always)]
fn gather<T: Copy>(
    weights: &[T],
    stride: usize,
    first: usize,
    rows: &[u32],
    values: &[f32],
    out: &mut [f32],
    widen: impl Fn(T) -> f32,
) {
    out.fill(0.0);
    for (&row, &value) in rows.iter().zip(values) {
        let start = row as usize * stride + first;
        for (out, &w) in out.iter_mut().zip(&weights[start..]) {
            *out += widen(w) * value;
        }
    }
}

pub(super) fn gather_i8(
    weights: &[i8],
    stride: usize,
    first: usize,
    rows: &[u32],
    values: &[i16],
    out: &mut [i32],
) {
    out.fill(0);
    for (&row, &value) in rows.iter().zip(values) {
        let start = row as usize * stride + first;
        for (out, &w) in out.iter_mut().zip(&weights[start..]) {
            *out = out.wrapping_add(i32::from(w) * i32::from(value));
        }
    }
}

pub(super) fn pack_rows_i8(weights: &[i8], cols: usize, panel: &mut [i16]) {
    panel.fill(0);
    for (r, row) in weights.chunks_exact(cols).enumerate() {
        for (c, &w) in row.iter().enumerate() {
            panel[(c / 2 * PANEL_WIDTH + r) * 2 + c % 2] = i16::from(w);
        }
    }
}

pub(super) fn pack_columns_i8(
    weights: &[i8],
    stride: usize,
    first: usize,
    n: usize,
    panel: &mut [i16],
) {
    panel.fill(0);
    for (c, row) in weights.chunks_exact(stride).enumerate() {
        for (o, &w) in row[first..first + n].iter().enumerate() {
            panel[(c / 2 * PANEL_WIDTH + o) * 2 + c % 2] = i16::from(w);
        }
    }
}

pub(super) fn multiply_panel_i8(panel: &[i16], x: &[i16], out: &mut [i32]) {
    let width = panel.len() / PANEL_WIDTH;
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(PANEL_WIDTH)) {
        out.fill(0);
        for (x, panel) in x.chunks_exact(2).zip(panel.chunks_exact(2 * PANEL_WIDTH)) {
            for (out, w) in out.iter_mut().zip(panel.chunks_exact(2)) {
                let pair = i32::from(x[0]) * i32::from(w[0]) + i32::from(x[1]) * i32::from(w[1]);
                *out = out.wrapping_add(pair);
            }
        }
    }
}
