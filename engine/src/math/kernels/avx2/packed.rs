//! Products with packed weights of 4 to 6 bits; `packed.rs` beside the instruction sets has their layout.
//!
//! Activations have 16 bits, so each is split into two signed bytes, `x = 256 * high + low`. Codes plus an offset are
//! unsigned bytes of at most 63, so `vpmaddubsw` multiplies 32 of them with bytes of activations and adds pairs, of which two
//! fit 16 bits; `vpmaddwd` multiplies these by the blocks' scales on the way to i32. What the offset adds is the same for
//! every row but for the scales: the sum of a block's activations, which is subtracted at the end of a row.
//!
//! ```text
//! a unit of 64 weights with 4 bits: a load, 2 masks, a shift, 2 look-ups, 4 products of bytes, 2 additions, 2 products with
//! the scales and their shuffle, 2 additions: 16 instructions for 33 bytes, so that four a cycle could read 24 GB/s at 3 GHz
//! ```
//!
//! All sums are exact modulo 2^32.
//!
//! `codes.rs` makes codes of bits, `widen.rs` integers of 16 bits, for many rows of activations; `gather.rs` is for matrices
//! stored row per input.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::super::packed::{self, PackedRow, PackedRows, BLOCK, NIBBLE_OFFSET, UNIT};
use super::super::Rows;

mod codes;
mod gather;
mod widen;

use codes::{in_register, unsigned, Constants};
pub(super) use gather::gather;
pub(super) use widen::{pack, widen};

/// How far ahead of itself decode fetches weights; see `tile.rs`.
const DECODE_FETCH: usize = 6 << 10;
/// Units whose activations are split at once: 4,096 columns, 8 KiB of bytes on the stack.
const SPLIT_UNITS: usize = 64;
/// Units whose scales are unpacked at once.
const GROUP: usize = 16;

/// Bytes of a unit.
const fn unit_bytes(bits: u32) -> usize {
    packed::packed_row_bytes(bits, UNIT)
}

/// `code * scale = (FACTOR * u - OFFSET) * scale` of the unsigned numbers `u` that products are made with.
const fn factor_and_offset(bits: u32) -> (i32, i32) {
    match bits {
        5 => (2, 31),
        6 => (2, 63),
        _ => (1, NIBBLE_OFFSET),
    }
}

/// Activations of some units, as products want them. Aligned, so that no load crosses a cache line.
#[repr(align(64))]
struct Split {
    /// (units, 4, 32): high bytes of the first halves of both blocks, their low bytes, those of the second halves
    bytes: MaybeUninit<[i8; SPLIT_UNITS * 4 * BLOCK]>,
    /// (2, units): sums of the activations of each unit's first block, and of its second
    sums: [[i32; SPLIT_UNITS]; 2],
}

impl Split {
    /// Splits up to `SPLIT_UNITS * UNIT` activations; missing ones are 0.
    ///
    /// # Safety
    /// The CPU has the features.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn fill(&mut self, x: &[i16]) {
        assert!(x.len() <= SPLIT_UNITS * UNIT);
        self.sums = [[0; SPLIT_UNITS]; 2];
        let target: *mut i8 = self.bytes.as_mut_ptr().cast();
        for (unit, x) in x.chunks(UNIT).enumerate() {
            let mut padded = [0_i16; UNIT];
            let x = if x.len() == UNIT {
                x
            } else {
                padded[..x.len()].copy_from_slice(x);
                &padded
            };
            // SAFETY: a unit has 64 activations, and 128 bytes in `bytes`.
            unsafe {
                let load = |at: usize| _mm256_loadu_si256(x.as_ptr().add(at).cast());
                let target = target.add(unit * 4 * BLOCK);
                for half in 0..2 {
                    let (first, second) = (load(half * 16), load(half * 16 + BLOCK));
                    let high =
                        |v| _mm256_srai_epi16::<8>(_mm256_add_epi16(v, _mm256_set1_epi16(128)));
                    let low = |v| _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(v));
                    // Packing works on halves of registers: what it interleaves is put in order.
                    let bytes =
                        |a, b| _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi16(a, b));
                    let target = target.add(half * 2 * BLOCK).cast::<__m256i>();
                    _mm256_storeu_si256(target, bytes(high(first), high(second)));
                    _mm256_storeu_si256(target.add(1), bytes(low(first), low(second)));
                }
                let ones = _mm256_set1_epi16(1);
                for block in 0..2 {
                    let pairs = |at| _mm256_madd_epi16(load(block * BLOCK + at), ones);
                    self.sums[block][unit] = total(_mm256_add_epi32(pairs(0), pairs(16)));
                }
            }
        }
    }

    fn bytes(&self) -> *const i8 {
        self.bytes.as_ptr().cast()
    }
}

/// The sum of all lanes.
///
/// # Safety
/// The CPU has the features.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn total(sums: __m256i) -> i32 {
    // SAFETY: the CPU has AVX2.
    unsafe {
        let high = _mm256_extracti128_si256::<1>(sums);
        let sum = _mm_add_epi32(_mm256_castsi256_si128(sums), high);
        let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b01_00_11_10>(sum));
        let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b10_11_00_01>(sum));
        _mm_cvtsi128_si32(sum)
    }
}

/// # Safety
/// The CPU has the features; lengths are as `KernelSet::dots_packed` demands.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn dots(weights: PackedRows<'_>, x: Rows<'_, i16>, out: &mut [i32]) {
    // SAFETY: as here.
    unsafe { packed::of_bits!(weights, BITS => dots_of::<BITS>(weights, x, out)) }
}

/// # Safety
/// As [`dots`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dots_of<const BITS: u32>(weights: PackedRows<'_>, x: Rows<'_, i16>, out: &mut [i32]) {
    out.fill(0);
    let n_out = weights.n_rows();
    let mut split = Split {
        bytes: MaybeUninit::uninit(),
        sums: [[0; SPLIT_UNITS]; 2],
    };
    for t in 0..x.n {
        let x = &x.values[t * x.stride..][..weights.cols];
        let out = &mut out[t * n_out..][..n_out];
        for (piece, x) in x.chunks(SPLIT_UNITS * UNIT).enumerate() {
            // SAFETY: the units of this piece are in every row, and `split` has their activations.
            unsafe {
                split.fill(x);
                for (index, out) in out.iter_mut().enumerate() {
                    let row = weights.row(index);
                    let sum =
                        dot::<BITS>(&row, &split, piece * SPLIT_UNITS, x.len().div_ceil(UNIT));
                    *out = out.wrapping_add(sum);
                }
            }
        }
    }
}

/// One row times split activations: units `first .. first + n`.
///
/// # Safety
/// The CPU has the features; the row has these units, and `split` their activations.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot<const BITS: u32>(row: &PackedRow<'_>, split: &Split, first: usize, n: usize) -> i32 {
    let n_high = 8 * (BITS as usize - 4);
    let (factor, offset) = factor_and_offset(BITS);
    // SAFETY: units stay below `first + n`, also in `split`, but for the scales of the last group: what is read behind them
    // are low bits, of which every unit has 32 bytes, and their sums are 0. A prefetch may name any address.
    unsafe {
        let mut low = row.low.as_ptr().add(first * BLOCK);
        let mut high = row.high.as_ptr().add(first * n_high);
        let mut x = split.bytes().cast::<__m256i>();
        // Rows follow each other: what lies so far ahead of a unit is a part of the next ones.
        let ahead = row.scales.as_ptr().wrapping_add(first * unit_bytes(BITS));
        let mut ahead = ahead.wrapping_add(DECODE_FETCH);
        let mut sums_high = _mm256_setzero_si256();
        let mut sums_low = _mm256_setzero_si256();
        let mut offsets = _mm256_setzero_si256();
        let (constants, one) = (Constants::new::<BITS>(), in_register(_mm256_set1_epi16(1)));
        for group in (0..n).step_by(GROUP) {
            let n_units = GROUP.min(n - group);
            let scales = _mm_loadu_si128(row.bytes.as_ptr().add(first + group).cast());
            let nibble = _mm_set1_epi8(15);
            let scales = [
                _mm_and_si128(scales, nibble),
                _mm_and_si128(_mm_srli_epi16::<4>(scales), nibble),
            ];
            let scales = scales.map(|s| _mm_add_epi8(s, _mm_set1_epi8(1)));
            for (scales, sums) in scales.iter().zip(&split.sums) {
                let sums = sums.as_ptr().add(group).cast::<__m256i>();
                let eight = [*scales, _mm_srli_si128::<8>(*scales)];
                for (i, eight) in eight.into_iter().enumerate() {
                    let products = _mm256_mullo_epi32(
                        _mm256_cvtepu8_epi32(eight),
                        _mm256_loadu_si256(sums.add(i)),
                    );
                    offsets = _mm256_add_epi32(offsets, products);
                }
            }
            let scales = _mm256_set_m128i(scales[1], scales[0]);
            // Byte `i` of each half, widened to 16 bits, in all its lanes.
            let mut index = _mm256_set1_epi16(0x8000_u16 as i16);
            for _ in 0..n_units {
                _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                ahead = ahead.wrapping_add(unit_bytes(BITS));
                let scale = _mm256_shuffle_epi8(scales, index);
                index = _mm256_add_epi16(index, one);
                let [a, b] = unsigned::<BITS>(&constants, low, high);
                let product =
                    |codes, at: usize| _mm256_maddubs_epi16(codes, _mm256_loadu_si256(x.add(at)));
                let products_high = _mm256_add_epi16(product(a, 0), product(b, 2));
                let products_low = _mm256_add_epi16(product(a, 1), product(b, 3));
                sums_high = _mm256_add_epi32(sums_high, _mm256_madd_epi16(products_high, scale));
                sums_low = _mm256_add_epi32(sums_low, _mm256_madd_epi16(products_low, scale));
                low = low.add(BLOCK);
                high = high.add(n_high);
                x = x.add(4);
            }
        }
        let sums = _mm256_add_epi32(_mm256_slli_epi32::<8>(sums_high), sums_low);
        let sums = _mm256_mullo_epi32(sums, _mm256_set1_epi32(factor));
        let offsets = _mm256_mullo_epi32(offsets, _mm256_set1_epi32(offset));
        total(_mm256_sub_epi32(sums, offsets))
    }
}
