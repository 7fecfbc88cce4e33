//! Products with int8 weights for CPUs with `sdot`, which adds four products of bytes to each of four sums.
//!
//! Activations have 16 bits, so each is split into two signed bytes, `x = 256 * high + low`, and each group of
//! sixteen weights is multiplied twice: two instructions instead of two widenings and four `smlal`.
//!
//! ```text
//! for tiles of up to 3 rows of activations, for pieces of their columns that fit SPLIT_BYTES:
//!     split the rows of the piece: sixteen high bytes, sixteen low ones, and so on
//!     for 4 rows of weights a time:
//!         sums = 256 * sum(weights * high) + sum(weights * low)
//! ```
//!
//! One range of numbers does not fit: from [`TOO_LARGE`] on `high` would be 128, which as a byte is -128; the
//! product is then short of 65536 times the weight, which is added afterwards. A row has few such numbers, most
//! of the time one or none, because its largest is scaled to 32767; with more than [`EXCEPTIONS_MAX`] the
//! kernels of `integer.rs` take over. All sums are exact modulo 2^32, as everywhere.

use std::arch::aarch64::*;
use std::arch::asm;
use std::mem::MaybeUninit;

use super::super::{PackedRows, Rows};
use super::{integer, load_part, packed, split_sixteen, tiles};

/// Columns of one step.
const STEP: usize = 16;
/// Rows of activations of one tile.
const ROWS_MAX: usize = 3;
/// Room for split activations, on the stack: 8192 columns of one row. With three rows it is the half of the
/// first-level cache that weights leave.
const SPLIT_BYTES: usize = 16 << 10;
/// The smallest number whose high byte is not what it should be: 127 * 256 + 128.
const TOO_LARGE: i16 = 32_640;
/// Such numbers in one row.
const EXCEPTIONS_MAX: usize = 8;

/// `sums[i] += the sum over j < 4 of a[4i + j] * b[4i + j]`.
///
/// # Safety
/// The CPU has the features.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn sdot(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction touches nothing but registers. Its intrinsic is not stable in Rust 1.85.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sums, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

/// # Safety
/// The CPU has the features; lengths are as `check_dots` demands.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn dots(weights: &[i8], x: Rows<'_, i16>, cols: usize, out: &mut [i32]) {
    for t in 0..x.n {
        let row = &x.values[t * x.stride..][..cols];
        if row.iter().map(|&x| u32::from(x >= TOO_LARGE)).sum::<u32>() > EXCEPTIONS_MAX as u32 {
            // SAFETY: as here.
            return unsafe { integer::dots(weights, x, cols, out) };
        }
    }
    out.fill(0);
    let n_out = weights.len() / cols;
    let mut split = Split::new();
    for (t, n) in tiles(x.n, ROWS_MAX) {
        let x_tile = &x.values[t * x.stride..];
        let piece = SPLIT_BYTES / (2 * n) / STEP * STEP;
        for first in (0..cols).step_by(piece) {
            let len = piece.min(cols - first);
            split.fill(x_tile, x.stride, n, first..first + len);
            let pass = Pass {
                weights: weights[first..].as_ptr(),
                cols,
                len,
                split: &split,
                out: out[t * n_out..].as_mut_ptr(),
                n_out,
            };
            // SAFETY: columns `first .. first + len` lie in each row of weights; `out` has `n` rows from row
            // `t` on, and `split` is filled.
            unsafe {
                match n {
                    3 => pass.run::<3>(),
                    2 => pass.run::<2>(),
                    _ => pass.run::<1>(),
                }
            }
        }
    }
}

/// # Safety
/// The CPU has the features; lengths are as `KernelSet::dots_packed` demands.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn dots_packed(weights: PackedRows<'_>, x: Rows<'_, i16>, out: &mut [i32]) {
    // SAFETY: as here.
    unsafe { packed::dots::<packed::Dotprod>(weights, x, out) }
}

/// Some columns of some rows of activations as bytes.
struct Split {
    /// (rows, steps, 2, STEP) high bytes and low bytes, the last columns of a row 0
    bytes: MaybeUninit<[i8; SPLIT_BYTES]>,
    /// (row, column) of the numbers whose high byte is too small by 256
    exceptions: [(usize, usize); ROWS_MAX * EXCEPTIONS_MAX],
    n_exceptions: usize,
}

impl Split {
    fn new() -> Self {
        Split {
            bytes: MaybeUninit::uninit(),
            exceptions: [(0, 0); ROWS_MAX * EXCEPTIONS_MAX],
            n_exceptions: 0,
        }
    }

    fn bytes(&self) -> *const i8 {
        self.bytes.as_ptr().cast()
    }

    /// Splits columns of `n` rows, which have at most `EXCEPTIONS_MAX` exceptions each.
    #[inline]
    fn fill(&mut self, x: &[i16], stride: usize, n: usize, columns: std::ops::Range<usize>) {
        self.n_exceptions = 0;
        let steps = columns.len().div_ceil(STEP);
        assert!(n * steps * 2 * STEP <= SPLIT_BYTES);
        let mut target: *mut i8 = self.bytes.as_mut_ptr().cast();
        for t in 0..n {
            let row = &x[t * stride..][columns.clone()];
            for (step, numbers) in row.chunks(STEP).enumerate() {
                // SAFETY: sixteen numbers are readable, or as many as there are; `n * steps` times two
                // registers fit the room, as was just checked.
                unsafe {
                    let is_any = if numbers.len() == STEP {
                        split_step(numbers.as_ptr(), target)
                    } else {
                        let numbers = load_part(numbers.as_ptr(), numbers.len());
                        split_step(numbers.as_ptr(), target)
                    };
                    target = target.add(2 * STEP);
                    if is_any {
                        self.note(t, step * STEP, numbers);
                    }
                }
            }
        }
    }

    #[cold]
    fn note(&mut self, row: usize, first: usize, numbers: &[i16]) {
        for (column, &x) in (first..).zip(numbers) {
            if x >= TOO_LARGE {
                self.exceptions[self.n_exceptions] = (row, column);
                self.n_exceptions += 1;
            }
        }
    }
}

/// Writes the high and the low bytes of sixteen numbers; returns whether there is an exception.
///
/// # Safety
/// Sixteen numbers are readable at `x`, twice as many bytes writable at `target`.
#[inline(always)]
unsafe fn split_step(x: *const i16, target: *mut i8) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let numbers = integer::load_x(x);
        split_sixteen(numbers, target);
        vmaxvq_s16(vmaxq_s16(numbers[0], numbers[1])) >= TOO_LARGE
    }
}

/// Some columns of all rows of weights, and of a tile of activations.
struct Pass<'a> {
    /// (n_out, cols), from the first column of these on
    weights: *const i8,
    cols: usize,
    /// Columns of these.
    len: usize,
    split: &'a Split,
    /// (tile, n_out)
    out: *mut i32,
    n_out: usize,
}

impl Pass<'_> {
    /// Adds the products of `T` rows of activations to `out`.
    ///
    /// # Safety
    /// The CPU has the features; the pointers are of the sizes named above, `split` holds `T` rows.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn run<const T: usize>(&self) {
        let mut o = 0;
        // SAFETY: rows of weights stay below `n_out`, exceptions lie in the tile; the rest is the caller's
        // promise.
        unsafe {
            // One row of activations is decode, which reads weights strictly in order.
            while T > 1 && o + 4 <= self.n_out {
                self.tile::<4, T, 1>(o);
                o += 4;
            }
            while o < self.n_out {
                self.tile::<1, T, 2>(o);
                o += 1;
            }
            for &(t, column) in &self.split.exceptions[..self.split.n_exceptions] {
                for o in 0..self.n_out {
                    let weight = i32::from(*self.weights.add(o * self.cols + column));
                    let out = self.out.add(t * self.n_out + o);
                    *out = (*out).wrapping_add(weight << 16);
                }
            }
        }
    }

    /// `N` steps in turns go to registers of their own, so that no product waits for the one before.
    ///
    /// # Safety
    /// As [`run`](Self::run); rows of weights `o .. o + O` exist.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn tile<const O: usize, const T: usize, const N: usize>(&self, o: usize) {
        let steps = self.len.div_ceil(STEP);
        let full = self.len / STEP;
        // SAFETY: columns stay below `len` and rows below `o + O` and `T`; the last step of split
        // activations is whole.
        unsafe {
            let weights = self.weights.add(o * self.cols);
            let x = self.split.bytes();
            // High and low.
            let mut sums = [[[[vdupq_n_s32(0); 2]; N]; T]; O];
            let mut step = 0;
            while step + N <= full {
                for turn in 0..N {
                    let rows = load_rows(weights.add(step * STEP), self.cols);
                    add_step(&mut sums, turn, rows, x.add(step * 2 * STEP), steps);
                    step += 1;
                }
            }
            while step < full {
                let rows = load_rows(weights.add(step * STEP), self.cols);
                add_step(&mut sums, 0, rows, x.add(step * 2 * STEP), steps);
                step += 1;
            }
            if step < steps {
                let mut rows = [vdupq_n_s8(0); O];
                for (i, row) in rows.iter_mut().enumerate() {
                    let part = weights.add(i * self.cols + step * STEP);
                    *row = vld1q_s8(load_part(part, self.len - step * STEP).as_ptr());
                }
                add_step(&mut sums, 0, rows, x.add(step * 2 * STEP), steps);
            }
            for (i, sums) in sums.iter().enumerate() {
                for (t, sums) in sums.iter().enumerate() {
                    let mut sum = sums[0];
                    for other in &sums[1..] {
                        sum = [vaddq_s32(sum[0], other[0]), vaddq_s32(sum[1], other[1])];
                    }
                    let sum = vaddvq_s32(vaddq_s32(vshlq_n_s32::<8>(sum[0]), sum[1]));
                    let out = self.out.add(t * self.n_out + o + i);
                    *out = (*out).wrapping_add(sum);
                }
            }
        }
    }
}

/// One step of some rows of weights that are `cols` long.
///
/// # Safety
/// Sixteen weights are readable in each of `O` rows.
#[inline(always)]
unsafe fn load_rows<const O: usize>(weights: *const i8, cols: usize) -> [int8x16_t; O] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = [vdupq_n_s8(0); O];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = vld1q_s8(weights.add(i * cols));
        }
        rows
    }
}

/// One step of some rows of weights and of activations, whose rows of split numbers have `steps`.
///
/// # Safety
/// The CPU has the features; `T` rows of split activations are readable at `x`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn add_step<const O: usize, const T: usize, const N: usize>(
    sums: &mut [[[[int32x4_t; 2]; N]; T]; O],
    turn: usize,
    rows: [int8x16_t; O],
    x: *const i8,
    steps: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for t in 0..T {
            let x = x.add(t * steps * 2 * STEP);
            let (high, low) = (vld1q_s8(x), vld1q_s8(x.add(STEP)));
            for (sums, &row) in sums.iter_mut().zip(&rows) {
                let sums = &mut sums[t][turn];
                sums[0] = sdot(sums[0], row, high);
                sums[1] = sdot(sums[1], row, low);
            }
        }
    }
}

/// As `peak::multiply_add_integers`, with this instruction: two for sixteen 16-bit multiply-adds.
///
/// # Safety
/// The CPU has the features.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn multiply_add_integers(rounds: usize) -> i32 {
    // SAFETY: the CPU has the features.
    unsafe {
        let step = vdupq_n_s8(std::hint::black_box(1));
        let mut a = [5, -3].map(|a| vdupq_n_s8(a));
        let b: [i8; 6] = std::hint::black_box([1, 2, 3, 4, 5, 6]);
        let mut sums = [[vdupq_n_s32(0); 2]; 6];
        for _ in 0..2 * rounds {
            for (sums, &b) in sums.iter_mut().zip(&b) {
                let b = vdupq_n_s8(b);
                for (sum, &a) in sums.iter_mut().zip(&a) {
                    *sum = sdot(*sum, a, b);
                }
            }
            a = a.map(|a| vaddq_s8(a, step));
        }
        let zero = vdupq_n_s32(0);
        let total = sums.iter().flatten();
        vaddvq_s32(total.fold(zero, |total, &sum| veorq_s32(total, sum)))
    }
}
