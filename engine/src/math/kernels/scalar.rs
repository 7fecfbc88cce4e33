//! Matrix kernels in plain Rust: slow, portable, and the specification of all others.
//!
//! Float sums of a dot product: element c goes to lane c mod 16 of two registers of eight; the registers
//! are added, then the lanes as [`add_lanes`](super::elementwise::add_lanes) does. A gather and a panel add one product after the
//! other to each output. Integer sums are exact in any order.

#![forbid(unsafe_code)]

use half::f16;

use super::elementwise::{add_lanes, f16_to_f32, LANES};
use super::{Rows, PANEL_WIDTH};

pub(super) fn dots_f32(weights: &[f32], x: Rows<'_, f32>, cols: usize, out: &mut [f32]) {
    dots(weights, x, cols, out, |row, x| dot(row, x, |w| w));
}

pub(super) fn dots_f16(weights: &[f16], x: Rows<'_, f32>, cols: usize, out: &mut [f32]) {
    dots(weights, x, cols, out, |row, x| dot(row, x, f16_to_f32));
}

pub(super) fn dots_i8(weights: &[i8], x: Rows<'_, i16>, cols: usize, out: &mut [i32]) {
    dots(weights, x, cols, out, dot_of_integers);
}

pub(super) fn dots_i16(weights: &[i16], x: Rows<'_, i16>, cols: usize, out: &mut [i32]) {
    dots(weights, x, cols, out, dot_of_integers);
}

#[inline(always)]
fn dot_of_integers<W: Copy + Into<i32>>(row: &[W], x: &[i16]) -> i32 {
    let products = row.iter().zip(x);
    let products = products.map(|(&w, &x)| w.into() * i32::from(x));
    products.fold(0, i32::wrapping_add)
}

#[inline(always)]
fn dots<W, X, S>(
    weights: &[W],
    x: Rows<'_, X>,
    cols: usize,
    out: &mut [S],
    dot: impl Fn(&[W], &[X]) -> S,
) {
    let n_out = weights.len() / cols;
    for (t, out) in out.chunks_exact_mut(n_out.max(1)).enumerate() {
        let x = &x.values[t * x.stride..][..cols];
        for (out, row) in out.iter_mut().zip(weights.chunks_exact(cols)) {
            *out = dot(row, x);
        }
    }
}

#[inline(always)]
fn dot<T: Copy>(row: &[T], x: &[f32], widen: impl Fn(T) -> f32) -> f32 {
    let mut sums = [0.0_f32; 2 * LANES];
    for (row, x) in row.chunks(2 * LANES).zip(x.chunks(2 * LANES)) {
        for ((sum, &w), &x) in sums.iter_mut().zip(row).zip(x) {
            *sum += widen(w) * x;
        }
    }
    add_lanes(std::array::from_fn(|lane| sums[lane] + sums[lane + LANES]))
}

pub(super) fn gather_f32(weights: &[f32], rows: &[u32], values: &[f32], out: &mut [f32]) {
    gather(weights, rows, values, out, |w| w);
}

pub(super) fn gather_f16(weights: &[f16], rows: &[u32], values: &[f32], out: &mut [f32]) {
    gather(weights, rows, values, out, f16_to_f32);
}

/// Rows are added in the order given, one after the other.
#[inline(always)]
fn gather<T: Copy>(
    weights: &[T],
    rows: &[u32],
    values: &[f32],
    out: &mut [f32],
    widen: impl Fn(T) -> f32,
) {
    out.fill(0.0);
    let width = out.len();
    for (&row, &value) in rows.iter().zip(values) {
        let row = &weights[row as usize * width..][..width];
        for (out, &w) in out.iter_mut().zip(row) {
            *out += widen(w) * value;
        }
    }
}

pub(super) fn gather_i8(weights: &[i8], rows: &[u32], values: &[i16], out: &mut [i32]) {
    out.fill(0);
    let width = out.len();
    for (&row, &value) in rows.iter().zip(values) {
        let row = &weights[row as usize * width..][..width];
        for (out, &w) in out.iter_mut().zip(row) {
            *out = out.wrapping_add(i32::from(w) * i32::from(value));
        }
    }
}

pub(super) fn pack_f32(weights: &[f32], stride: usize, first: usize, n: usize, panel: &mut [f32]) {
    pack(weights, stride, first, n, panel, |w| w);
}

pub(super) fn pack_f16(weights: &[f16], stride: usize, first: usize, n: usize, panel: &mut [f32]) {
    pack(weights, stride, first, n, panel, f16_to_f32);
}

#[inline(always)]
fn pack<T: Copy>(
    weights: &[T],
    stride: usize,
    first: usize,
    n: usize,
    panel: &mut [f32],
    widen: impl Fn(T) -> f32,
) {
    panel.fill(0.0);
    let rows = weights.chunks_exact(stride);
    for (row, panel) in rows.zip(panel.chunks_exact_mut(PANEL_WIDTH)) {
        for (panel, &w) in panel.iter_mut().zip(&row[first..first + n]) {
            *panel = widen(w);
        }
    }
}

pub(super) fn pack_i8(weights: &[i8], stride: usize, first: usize, n: usize, panel: &mut [i16]) {
    panel.fill(0);
    for (r, row) in weights.chunks_exact(stride).enumerate() {
        for (o, &w) in row[first..first + n].iter().enumerate() {
            panel[(r / 2 * PANEL_WIDTH + o) * 2 + r % 2] = i16::from(w);
        }
    }
}

pub(super) fn multiply_panel_f32(panel: &[f32], x: Rows<'_, f32>, out: &mut [f32]) {
    for (t, out) in out.chunks_exact_mut(PANEL_WIDTH).enumerate() {
        let x = &x.values[t * x.stride..];
        let mut sums = [0.0_f32; PANEL_WIDTH];
        for (&x, panel) in x.iter().zip(panel.chunks_exact(PANEL_WIDTH)) {
            for (sum, &w) in sums.iter_mut().zip(panel) {
                *sum += w * x;
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out += sum;
        }
    }
}

pub(super) fn multiply_panel_i8(panel: &[i16], x: Rows<'_, i16>, out: &mut [i32]) {
    for (t, out) in out.chunks_exact_mut(PANEL_WIDTH).enumerate() {
        let x = &x.values[t * x.stride..];
        for (x, panel) in x.chunks(2).zip(panel.chunks_exact(2 * PANEL_WIDTH)) {
            for (out, w) in out.iter_mut().zip(panel.chunks_exact(2)) {
                let pair = i32::from(x[0]) * i32::from(w[0]) + i32::from(x[1]) * i32::from(w[1]);
                *out = out.wrapping_add(pair);
            }
        }
    }
}
