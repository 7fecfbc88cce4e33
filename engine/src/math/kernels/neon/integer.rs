//! Products with int8 weights for every 64-bit ARM CPU: sixteen weights are widened to i16 (`sxtl`) and
//! multiplied by 16-bit activations onto i32 (`smlal`, four a time), which cannot saturate. Weights of 16 bits, which
//! packed ones are widened to for many rows of activations, need no widening; the rest is the same.
//!
//! Sums are exact in any order; the tiles are those of `float.rs` with one register of sums a product:
//! 4 rows of weights x up to 4 rows of activations.

use std::arch::aarch64::*;

use super::super::{scalar, Rows, PANEL_WIDTH};
use super::{load_part, tiles};

/// Columns of one step.
const STEP: usize = 16;
/// Rows of one pass of a gather.
const GROUP: usize = 8;

/// Sixteen weights or activations.
pub(super) type Sixteen = [int16x8_t; 2];

/// The types that weights have.
pub(super) trait Weight: Copy + Default {
    /// # Safety
    /// Sixteen weights are readable at `p`.
    unsafe fn load(p: *const Self) -> Sixteen;
}

impl Weight for i8 {
    #[inline(always)]
    unsafe fn load(p: *const i8) -> Sixteen {
        // SAFETY: the caller's promise.
        unsafe {
            let weights = vld1q_s8(p);
            [vmovl_s8(vget_low_s8(weights)), vmovl_high_s8(weights)]
        }
    }
}

impl Weight for i16 {
    #[inline(always)]
    unsafe fn load(p: *const i16) -> Sixteen {
        // SAFETY: the caller's promise.
        unsafe { load_x(p) }
    }
}

/// # Safety
/// Sixteen numbers are readable at `p`.
#[inline(always)]
pub(super) unsafe fn load_x(p: *const i16) -> Sixteen {
    // SAFETY: the caller's promise.
    unsafe { [vld1q_s16(p), vld1q_s16(p.add(8))] }
}

/// The four products of one step, each with four sums: `sums[i % n] += weights[4i..] * x[4i..]`.
///
/// # Safety
/// None on this architecture; unsafe on Rust 1.85.
#[inline(always)]
pub(super) unsafe fn multiply_add<const N: usize>(
    sums: &mut [int32x4_t; N],
    weights: Sixteen,
    x: Sixteen,
) {
    // SAFETY: NEON belongs to the architecture.
    unsafe {
        for i in 0..2 {
            let (w, x) = (weights[i], x[i]);
            let low = &mut sums[2 * i % N];
            *low = vmlal_s16(*low, vget_low_s16(w), vget_low_s16(x));
            let high = &mut sums[(2 * i + 1) % N];
            *high = vmlal_high_s16(*high, w, x);
        }
    }
}

/// # Safety
/// Lengths are as `check_dots` demands.
pub(super) unsafe fn dots<W: Weight>(
    weights: &[W],
    x: Rows<'_, i16>,
    cols: usize,
    out: &mut [i32],
) {
    let pass = Pass {
        weights: weights.as_ptr(),
        cols,
        x: x.values.as_ptr(),
        x_stride: x.stride,
        out: out.as_mut_ptr(),
        n_out: weights.len() / cols,
    };
    // SAFETY: these are rows of `x`, and `n_out` rows of weights.
    unsafe {
        if x.n == 1 {
            // Four registers of sums, so that no product waits for the one before.
            return (0..pass.n_out).for_each(|o| pass.tile::<1, 1, 4>(o, 0));
        }
        for (t, n) in tiles(x.n, 4) {
            match n {
                4 => pass.run::<4>(t),
                3 => pass.run::<3>(t),
                2 => pass.run::<2>(t),
                _ => pass.run::<1>(t),
            }
        }
    }
}

/// Rows of weights, rows of activations, and where their products go.
struct Pass<W> {
    /// (n_out, cols)
    weights: *const W,
    cols: usize,
    /// (.., x_stride)
    x: *const i16,
    x_stride: usize,
    /// (.., n_out)
    out: *mut i32,
    n_out: usize,
}

impl<W: Weight> Pass<W> {
    /// All rows of weights times rows of activations `t .. t + T`.
    ///
    /// # Safety
    /// The pointers are of the sizes named above, and these rows exist.
    #[inline(always)]
    unsafe fn run<const T: usize>(&self, t: usize) {
        let mut o = 0;
        // SAFETY: rows of weights stay below `n_out`; the rest is the caller's promise.
        unsafe {
            while o + 4 <= self.n_out {
                self.tile::<4, T, 1>(o, t);
                o += 4;
            }
            while o < self.n_out {
                self.tile::<1, T, 2>(o, t);
                o += 1;
            }
        }
    }

    /// With `N` registers of sums a product.
    ///
    /// # Safety
    /// As [`run`](Self::run); rows of weights `o .. o + O` exist.
    #[inline(always)]
    unsafe fn tile<const O: usize, const T: usize, const N: usize>(&self, o: usize, t: usize) {
        let full = self.cols / STEP * STEP;
        // SAFETY: columns stay below `cols` and rows below `o + O` and `t + T`.
        unsafe {
            let weights = self.weights.add(o * self.cols);
            let x = self.x.add(t * self.x_stride);
            let mut sums = [[[vdupq_n_s32(0); N]; T]; O];
            let mut c = 0;
            while c < full {
                let mut rows = [[vdupq_n_s16(0); 2]; O];
                for (i, row) in rows.iter_mut().enumerate() {
                    *row = W::load(weights.add(i * self.cols + c));
                }
                for t in 0..T {
                    let x = load_x(x.add(t * self.x_stride + c));
                    for (sums, &row) in sums.iter_mut().zip(&rows) {
                        multiply_add(&mut sums[t], row, x);
                    }
                }
                c += STEP;
            }
            if c < self.cols {
                let left = self.cols - c;
                for t in 0..T {
                    let x = load_part(x.add(t * self.x_stride + c), left);
                    let x = load_x(x.as_ptr());
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let row = load_part(weights.add(i * self.cols + c), left);
                        multiply_add(&mut sums[t], W::load(row.as_ptr()), x);
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                for (j, sums) in sums.iter().enumerate() {
                    let mut sum = sums[0];
                    for &other in &sums[1..] {
                        sum = vaddq_s32(sum, other);
                    }
                    *self.out.add((t + j) * self.n_out + o + i) = vaddvq_s32(sum);
                }
            }
        }
    }
}

/// # Safety
/// Lengths and rows are as `check_gather` demands.
pub(super) unsafe fn gather(weights: &[i8], rows: &[u32], values: &[i16], out: &mut [i32]) {
    out.fill(0);
    let width = out.len();
    let start = |row: u32| weights[row as usize * width..][..width].as_ptr();
    let full = rows.len() / GROUP * GROUP;
    for (rows, values) in rows[..full]
        .chunks_exact(GROUP)
        .zip(values.chunks_exact(GROUP))
    {
        let rows: [_; GROUP] = std::array::from_fn(|i| start(rows[i]));
        let values: [_; GROUP] = std::array::from_fn(|i| values[i]);
        // SAFETY: each pointer is at the beginning of a row of `width` weights.
        unsafe { add_rows(rows, values, out) };
    }
    for (&row, &value) in rows[full..].iter().zip(&values[full..]) {
        // SAFETY: as above.
        unsafe { add_rows([start(row)], [value], out) };
    }
}

/// `out[c] += sum over i of values[i] * rows[i][c]`.
///
/// # Safety
/// Every row has `out.len()` weights.
#[inline(always)]
unsafe fn add_rows<const N: usize>(rows: [*const i8; N], values: [i16; N], out: &mut [i32]) {
    let n = out.len();
    let mut c = 0;
    // SAFETY: offsets stay below `n`, the length of `out` and of every row.
    unsafe {
        while c + STEP <= n {
            let target = out.as_mut_ptr().add(c);
            let mut sums = [vdupq_n_s32(0); 4];
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = vld1q_s32(target.add(4 * i));
            }
            for (row, &value) in rows.iter().zip(&values) {
                multiply_add(&mut sums, i8::load(row.add(c)), [vdupq_n_s16(value); 2]);
            }
            for (i, &sum) in sums.iter().enumerate() {
                vst1q_s32(target.add(4 * i), sum);
            }
            c += STEP;
        }
        for (c, out) in out.iter_mut().enumerate().skip(c) {
            for (row, &value) in rows.iter().zip(&values) {
                *out = out.wrapping_add(i32::from(*row.add(c)) * i32::from(value));
            }
        }
    }
}

/// # Safety
/// `first + n <= stride`, `n <= 16`, `weights` is (rows, stride) and `panel` is (ceil(rows / 2), 16, 2).
pub(super) unsafe fn pack(
    weights: &[i8],
    stride: usize,
    first: usize,
    n: usize,
    panel: &mut [i16],
) {
    if n < PANEL_WIDTH {
        return scalar::pack_i8(weights, stride, first, n, panel);
    }
    let rows = weights.len() / stride;
    let mut panel = panel.as_mut_ptr();
    // SAFETY: each load of 16 columns from `first` stays in its row; there are ceil(rows / 2) stores
    // of 32 values each.
    unsafe {
        for r in (0..rows).step_by(2) {
            let a = vld1q_s8(weights.as_ptr().add(r * stride + first));
            let b = if r + 1 < rows {
                vld1q_s8(weights.as_ptr().add((r + 1) * stride + first))
            } else {
                vdupq_n_s8(0)
            };
            for (i, pairs) in [vzip1q_s8(a, b), vzip2q_s8(a, b)].into_iter().enumerate() {
                vst1q_s16(panel.add(16 * i), vmovl_s8(vget_low_s8(pairs)));
                vst1q_s16(panel.add(16 * i + 8), vmovl_high_s8(pairs));
            }
            panel = panel.add(2 * PANEL_WIDTH);
        }
    }
}

/// # Safety
/// `panel` is (steps, 16, 2), each row of `x` has `2 * steps` numbers, `out` is (x.n, 16).
pub(super) unsafe fn multiply_panel(panel: &[i16], x: Rows<'_, i16>, out: &mut [i32]) {
    for (t, n) in tiles(x.n, 5) {
        let rows = x.values[t * x.stride..].as_ptr();
        let out = out[t * PANEL_WIDTH..].as_mut_ptr();
        // SAFETY: there are `n` rows of `x` from row `t` on, and as many of `out`.
        unsafe {
            match n {
                5 => panel_tile::<5>(panel, rows, x.stride, out),
                4 => panel_tile::<4>(panel, rows, x.stride, out),
                3 => panel_tile::<3>(panel, rows, x.stride, out),
                2 => panel_tile::<2>(panel, rows, x.stride, out),
                _ => panel_tile::<1>(panel, rows, x.stride, out),
            }
        }
    }
}

/// # Safety
/// As [`multiply_panel`], for `T` rows of `x` and of `out`.
#[inline(always)]
unsafe fn panel_tile<const T: usize>(panel: &[i16], x: *const i16, x_stride: usize, out: *mut i32) {
    // SAFETY: reads end with the last step of the panel and of each row of `x`.
    unsafe {
        let mut sums = [[vdupq_n_s32(0); 4]; T];
        for (step, panel) in panel.chunks_exact(2 * PANEL_WIDTH).enumerate() {
            // Columns 0 to 7 of both rows, then 8 to 15.
            let halves = [
                vld2q_s16(panel.as_ptr()),
                vld2q_s16(panel.as_ptr().add(PANEL_WIDTH)),
            ];
            let rows = [[halves[0].0, halves[1].0], [halves[0].1, halves[1].1]];
            for (t, sums) in sums.iter_mut().enumerate() {
                let x = x.add(t * x_stride + 2 * step);
                multiply_add(sums, rows[0], [vdupq_n_s16(*x); 2]);
                multiply_add(sums, rows[1], [vdupq_n_s16(*x.add(1)); 2]);
            }
        }
        for (t, sums) in sums.iter().enumerate() {
            for (i, &sum) in sums.iter().enumerate() {
                let out = out.add(t * PANEL_WIDTH + 4 * i);
                vst1q_s32(out, vaddq_s32(vld1q_s32(out), sum));
            }
        }
    }
}
