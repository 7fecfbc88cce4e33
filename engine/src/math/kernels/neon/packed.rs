//! Products with packed weights of 4 to 6 bits; `packed.rs` beside the instruction sets has their layout.
//!
//! Activations have 16 bits, so each is split into two signed bytes, `x = 256 * high + low`, once for all rows of weights.
//! Sixteen numbers of a row lie in order in a register: with 4 bits a look-up (`tbl`) makes codes of them; with 5 and 6
//! bits products are made with the numbers `u` themselves, which are bytes below 64, and what `code = 2 * u - offset`
//! leaves out is the same for every row but for the scales, the sum of a block's activations.
//!
//! ```text
//! for 2 rows of weights a time, so that activations are loaded half as often:
//!     for each unit: products with high bytes, times 256, plus products with low bytes: four sums of i32 a block;
//!         those to two (addp), times the block's scale onto the row's sums (mla)
//! ```
//!
//! Products are those of bytes on every CPU: with `sdot` two instructions for sixteen weights, without it four and another for
//! every sixteen to i32, which is less than to widen numbers to i16 and multiply them by whole activations.
//!
//! Instructions for a unit of 64 weights, as compiled (Rust 1.95): the loop over units; with the ends of rows and the split of
//! activations, at 64 rows of 768 columns, as `.ci/cross count` counts them; and the bytes a cycle that the loop lets a core
//! read which begins one instruction a cycle. One that begins two (Cortex-A76) reads up to twice as much, 5 GB/s at 2.4 GHz.
//!
//! ```text
//! bits  bytes   with sdot              without
//! 4     33      29     34    1.1       39.5   44    0.84
//! 5     41      36.5   42    1.1       46.5   57    0.88
//! 6     49      33     39    1.5       46     52    1.1
//! ```
//!
//! Of the 29: 1 load of weights, 8 for their codes, 2 loads of activations, 8 products, 4 that begin and shift sums, 3 for the
//! scale, and what the loop takes.
//!
//! All sums are exact modulo 2^32.

use std::arch::aarch64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::super::packed::{self, PackedRows, UNIT};
use super::super::{Rows, PANEL_WIDTH};
use super::integer::{self, Sixteen};
use super::packed_row::{factor_and_offset, Row, GROUP};
use super::{dotprod, split_sixteen};

/// Units whose activations are split at once: 4,096 columns, 8 KiB of bytes on the stack.
const SPLIT_UNITS: usize = 64;
/// Bytes of the split activations of a unit.
const SPLIT_BYTES: usize = 2 * UNIT;
/// Rows of one pass of a gather.
const GATHER_ROWS: usize = 8;

/// Activations of some units, as products want them.
struct Split {
    /// (units, 4, 2, 16): the high and the low bytes of each sixteen columns
    bytes: MaybeUninit<[i8; SPLIT_UNITS * SPLIT_BYTES]>,
    /// (units, 4): sums of the activations of the first block, in two parts, and of the second
    sums: MaybeUninit<[[i32; 4]; SPLIT_UNITS]>,
}

impl Split {
    /// Splits up to `SPLIT_UNITS * UNIT` activations; missing ones are 0.
    #[inline(always)]
    fn fill(&mut self, x: &[i16]) {
        assert!(x.len() <= SPLIT_UNITS * UNIT);
        let target: *mut i8 = self.bytes.as_mut_ptr().cast();
        let sums: *mut i32 = self.sums.as_mut_ptr().cast();
        for (unit, x) in x.chunks(UNIT).enumerate() {
            let mut padded = [0_i16; UNIT];
            let x = if x.len() == UNIT {
                x
            } else {
                padded[..x.len()].copy_from_slice(x);
                &padded
            };
            // SAFETY: a unit has 64 activations, `SPLIT_BYTES` in `bytes`, and four sums.
            unsafe {
                let target = target.add(unit * SPLIT_BYTES);
                let mut blocks = [vdupq_n_s32(0); 2];
                for sixteen in 0..4 {
                    let numbers = integer::load_x(x.as_ptr().add(16 * sixteen));
                    split_sixteen(numbers, target.add(32 * sixteen));
                    let sum = &mut blocks[sixteen / 2];
                    *sum = vpadalq_s16(vpadalq_s16(*sum, numbers[0]), numbers[1]);
                }
                vst1q_s32(sums.add(4 * unit), vpaddq_s32(blocks[0], blocks[1]));
            }
        }
    }
}

/// How products of bytes are made.
pub(super) trait Products {
    /// The products of one unit of some rows of numbers, none larger than 63, with split activations: of each block
    /// four sums.
    ///
    /// # Safety
    /// The CPU has the features of this kind; a unit of split activations is readable at `x`.
    unsafe fn unit<const O: usize>(
        numbers: &[[int8x16_t; 4]; O],
        x: *const i8,
    ) -> [[int32x4_t; 2]; O];
}

/// Bytes are multiplied onto i16 (`smull`, `smlal`), of which each of eight lanes holds a block's four products of at most
/// 63 * 128.
pub(super) struct Bytes;

impl Products for Bytes {
    #[inline(always)]
    unsafe fn unit<const O: usize>(
        numbers: &[[int8x16_t; 4]; O],
        x: *const i8,
    ) -> [[int32x4_t; 2]; O] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[vdupq_n_s32(0); 2]; O];
            for block in 0..2 {
                for part in 0..2 {
                    let x = x.add(64 * block + 16 * part);
                    let x = [vld1q_s8(x), vld1q_s8(x.add(32))];
                    for (sums, numbers) in sums.iter_mut().zip(numbers) {
                        let (a, b) = (numbers[2 * block], numbers[2 * block + 1]);
                        let products = vmull_s8(vget_low_s8(a), vget_low_s8(x[0]));
                        let products = vmlal_high_s8(products, a, x[0]);
                        let products = vmlal_s8(products, vget_low_s8(b), vget_low_s8(x[1]));
                        let products = vmlal_high_s8(products, b, x[1]);
                        let sum = &mut sums[block];
                        *sum = match part {
                            0 => vshlq_n_s32::<8>(vpaddlq_s16(products)),
                            _ => vpadalq_s16(*sum, products),
                        };
                    }
                }
            }
            sums
        }
    }
}

/// Bytes are multiplied by `sdot`.
pub(super) struct Dotprod;

impl Products for Dotprod {
    #[inline(always)]
    unsafe fn unit<const O: usize>(
        numbers: &[[int8x16_t; 4]; O],
        x: *const i8,
    ) -> [[int32x4_t; 2]; O] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[vdupq_n_s32(0); 2]; O];
            for part in 0..2 {
                // Blocks in turns, so that no product waits for the one before.
                for sixteen in [0, 2, 1, 3] {
                    let x = vld1q_s8(x.add(32 * sixteen + 16 * part));
                    for (sums, numbers) in sums.iter_mut().zip(numbers) {
                        let sum = &mut sums[sixteen / 2];
                        *sum = dotprod::sdot(*sum, numbers[sixteen], x);
                    }
                }
                if part == 0 {
                    for sum in sums.as_flattened_mut() {
                        *sum = vshlq_n_s32::<8>(*sum);
                    }
                }
            }
            sums
        }
    }
}

/// # Safety
/// The CPU has the features of `P`; lengths are as `KernelSet::dots_packed` demands.
#[inline(always)]
pub(super) unsafe fn dots<P: Products>(weights: PackedRows<'_>, x: Rows<'_, i16>, out: &mut [i32]) {
    // SAFETY: as here.
    unsafe { packed::of_bits!(weights, BITS => dots_of::<P, BITS>(weights, x, out)) }
}

/// # Safety
/// As [`dots`].
#[inline(always)]
unsafe fn dots_of<P: Products, const BITS: u32>(
    weights: PackedRows<'_>,
    x: Rows<'_, i16>,
    out: &mut [i32],
) {
    out.fill(0);
    let n_out = weights.n_rows();
    let mut split = Split {
        bytes: MaybeUninit::uninit(),
        sums: MaybeUninit::uninit(),
    };
    for t in 0..x.n {
        let x = &x.values[t * x.stride..][..weights.cols];
        let out = &mut out[t * n_out..][..n_out];
        for (piece, x) in x.chunks(SPLIT_UNITS * UNIT).enumerate() {
            split.fill(x);
            let units = piece * SPLIT_UNITS..piece * SPLIT_UNITS + x.len().div_ceil(UNIT);
            let mut pairs = out.chunks_exact_mut(2);
            // SAFETY: the units of this piece are in every row, and `split` has their activations.
            unsafe {
                for (pair, out) in pairs.by_ref().enumerate() {
                    let first = 2 * pair;
                    let rows = [Row::new(&weights, first), Row::new(&weights, first + 1)];
                    add_dots::<P, BITS, 2>(rows, &split, units.clone(), out);
                }
                let last = pairs.into_remainder();
                if !last.is_empty() {
                    let rows = [Row::new(&weights, n_out - 1)];
                    add_dots::<P, BITS, 1>(rows, &split, units, last);
                }
            }
        }
    }
}

/// Adds the products of some units of `O` rows with split activations to `out`.
///
/// # Safety
/// The CPU has the features of `P`; rows have these units, and `split` their activations from its beginning on.
#[inline(always)]
unsafe fn add_dots<P: Products, const BITS: u32, const O: usize>(
    rows: [Row; O],
    split: &Split,
    units: Range<usize>,
    out: &mut [i32],
) {
    let (factor, offset) = factor_and_offset(BITS);
    // SAFETY: units stay below the end of the range, also in `split`.
    unsafe {
        let mut x: *const i8 = split.bytes.as_ptr().cast();
        let mut x_sums: *const i32 = split.sums.as_ptr().cast();
        // Of products, and of activations alone.
        let mut sums = [[vdupq_n_s32(0); 2]; O];
        for group in units.clone().step_by(GROUP) {
            let mut scales = [vdupq_n_u8(0); O];
            for (scales, row) in scales.iter_mut().zip(rows) {
                *scales = row.group_scales(group);
            }
            // Which of the scales is the lowest byte of each lane; from 16 on, a byte is 0.
            let first: [u32; 4] = [0xffff_ff00, 0xffff_ff00, 0xffff_ff01, 0xffff_ff01];
            let mut index = vld1q_u32(first.as_ptr());
            for unit in group..units.end.min(group + GROUP) {
                let mut numbers = [[vdupq_n_s8(0); 4]; O];
                for (numbers, row) in numbers.iter_mut().zip(rows) {
                    *numbers = row.numbers::<BITS>(unit);
                }
                let products = P::unit(&numbers, x);
                for o in 0..O {
                    let scales = vqtbl1q_u8(scales[o], vreinterpretq_u8_u32(index));
                    let scales = vreinterpretq_s32_u8(scales);
                    let blocks = vpaddq_s32(products[o][0], products[o][1]);
                    sums[o][0] = vmlaq_s32(sums[o][0], blocks, scales);
                    if offset != 0 {
                        sums[o][1] = vmlaq_s32(sums[o][1], vld1q_s32(x_sums), scales);
                    }
                }
                index = vaddq_u32(index, vdupq_n_u32(2));
                x = x.add(SPLIT_BYTES);
                x_sums = x_sums.add(4);
            }
        }
        for (out, [products, x]) in out.iter_mut().zip(sums) {
            let sum = vmlsq_n_s32(vmulq_n_s32(products, factor), x, offset);
            *out = out.wrapping_add(vaddvq_s32(sum));
        }
    }
}

/// # Safety
/// Lengths are as `KernelSet::widen_packed` demands.
pub(super) unsafe fn widen(weights: PackedRows<'_>, out: &mut [i16]) {
    // SAFETY: as here.
    unsafe { packed::of_bits!(weights, BITS => widen_of::<BITS>(weights, out)) }
}

/// # Safety
/// As [`widen`].
#[inline(always)]
unsafe fn widen_of<const BITS: u32>(weights: PackedRows<'_>, out: &mut [i16]) {
    for (index, out) in out.chunks_exact_mut(weights.cols).enumerate() {
        let row = Row::new(&weights, index);
        let mut units = out.chunks_exact_mut(UNIT);
        // SAFETY: the row has as many units as `out` has chunks, whose length is a unit's.
        unsafe {
            let mut unit = 0;
            for out in units.by_ref() {
                store_unit(row.widened::<BITS>(unit), out.as_mut_ptr());
                unit += 1;
            }
            let last = units.into_remainder();
            if !last.is_empty() {
                let mut padded = [0; UNIT];
                store_unit(row.widened::<BITS>(unit), padded.as_mut_ptr());
                last.copy_from_slice(&padded[..last.len()]);
            }
        }
    }
}

/// # Safety
/// 64 numbers are writable at `out`.
#[inline(always)]
unsafe fn store_unit(weights: [Sixteen; 4], out: *mut i16) {
    // SAFETY: the caller's promise.
    unsafe {
        for (i, [first, second]) in weights.into_iter().enumerate() {
            vst1q_s16(out.add(16 * i), first);
            vst1q_s16(out.add(16 * i + 8), second);
        }
    }
}

/// # Safety
/// Lengths and rows are as `KernelSet::gather_packed` demands.
pub(super) unsafe fn gather(
    weights: PackedRows<'_>,
    rows: &[u32],
    values: &[i16],
    out: &mut [i32],
) {
    // SAFETY: as here.
    unsafe { packed::of_bits!(weights, BITS => gather_of::<BITS>(weights, rows, values, out)) }
}

/// # Safety
/// As [`gather`].
#[inline(always)]
unsafe fn gather_of<const BITS: u32>(
    weights: PackedRows<'_>,
    rows: &[u32],
    values: &[i16],
    out: &mut [i32],
) {
    out.fill(0);
    for (rows, values) in rows.chunks(GATHER_ROWS).zip(values.chunks(GATHER_ROWS)) {
        // Those that are not there are never read.
        let row = |i: usize| Row::new(&weights, rows[i.min(rows.len() - 1)] as usize);
        let starts: [Row; GATHER_ROWS] = std::array::from_fn(row);
        // Each in all lanes, in memory: of a number the compiler makes four lanes, which cost moves of halves.
        // SAFETY: NEON belongs to the architecture.
        let value = |i: usize| unsafe { vdupq_n_s16(values.get(i).copied().unwrap_or(0)) };
        let values: [int16x8_t; GATHER_ROWS] = std::array::from_fn(value);
        let (starts, values) = (&starts[..rows.len()], &values[..rows.len()]);
        let mut units = out.chunks_exact_mut(UNIT);
        // SAFETY: every row has as many units as `out` has chunks, whose length is a unit's.
        unsafe {
            let mut unit = 0;
            for out in units.by_ref() {
                add_unit::<BITS>(starts, values, unit, out.as_mut_ptr());
                unit += 1;
            }
            let last = units.into_remainder();
            if !last.is_empty() {
                let mut padded = [0; UNIT];
                padded[..last.len()].copy_from_slice(last);
                add_unit::<BITS>(starts, values, unit, padded.as_mut_ptr());
                last.copy_from_slice(&padded[..last.len()]);
            }
        }
    }
}

/// `out[c] += sum over i of values[i] * rows[i][c]` for one unit.
///
/// # Safety
/// Every row has this unit; 64 sums are readable and writable at `out`.
#[inline(always)]
unsafe fn add_unit<const BITS: u32>(
    rows: &[Row],
    values: &[int16x8_t],
    unit: usize,
    out: *mut i32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[vdupq_n_s32(0); 4]; 4];
        for (i, sum) in sums.as_flattened_mut().iter_mut().enumerate() {
            *sum = vld1q_s32(out.add(4 * i));
        }
        for (row, &value) in rows.iter().zip(values) {
            let weights = row.widened::<BITS>(unit);
            for (sums, weights) in sums.iter_mut().zip(weights) {
                integer::multiply_add(sums, weights, [value; 2]);
            }
        }
        for (i, &sum) in sums.as_flattened().iter().enumerate() {
            vst1q_s32(out.add(4 * i), sum);
        }
    }
}

/// # Safety
/// Lengths are as `KernelSet::pack_packed` demands.
pub(super) unsafe fn pack(weights: PackedRows<'_>, first: usize, n: usize, panel: &mut [i16]) {
    if n < PANEL_WIDTH || first % PANEL_WIDTH != 0 {
        return packed::pack_packed(weights, first, n, panel);
    }
    // SAFETY: as here; the sixteen columns lie in one unit.
    unsafe { packed::of_bits!(weights, BITS => pack_of::<BITS>(weights, first, panel)) }
}

/// # Safety
/// Rows have columns `first .. first + 16`, which begin at a multiple of 16; `panel` is (ceil(rows / 2), 16, 2).
#[inline(always)]
unsafe fn pack_of<const BITS: u32>(weights: PackedRows<'_>, first: usize, panel: &mut [i16]) {
    let n_rows = weights.n_rows();
    for (pair, panel) in panel.chunks_exact_mut(2 * PANEL_WIDTH).enumerate() {
        // SAFETY: rows are below `n_rows`, and have these columns; a row of the panel has 32 numbers.
        unsafe {
            let a = Row::new(&weights, 2 * pair).sixteen::<BITS>(first);
            let b = match 2 * pair + 1 < n_rows {
                true => Row::new(&weights, 2 * pair + 1).sixteen::<BITS>(first),
                false => [vdupq_n_s16(0); 2],
            };
            for (i, (a, b)) in a.into_iter().zip(b).enumerate() {
                let panel = panel.as_mut_ptr().add(16 * i);
                vst1q_s16(panel, vzip1q_s16(a, b));
                vst1q_s16(panel.add(8), vzip2q_s16(a, b));
            }
        }
    }
}
