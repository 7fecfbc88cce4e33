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

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::super::packed::{self, PackedRow, PackedRows, BLOCK, NIBBLE_CODES, NIBBLE_OFFSET, UNIT};
use super::super::{Rows, PANEL_WIDTH};

/// Bytes that a prefetch brings.
const CACHE_LINE: usize = 64;
/// How far ahead of itself decode fetches weights; see `tile.rs`.
const DECODE_FETCH: usize = 6 << 10;
/// Units whose activations are split at once: 4,096 columns, 8 KiB of bytes on the stack.
const SPLIT_UNITS: usize = 64;
/// Units whose scales are unpacked at once.
const GROUP: usize = 16;

/// `code * scale = (FACTOR * u - OFFSET) * scale` of the unsigned numbers `u` that products are made with.
const fn factor_and_offset(bits: u32) -> (i32, i32) {
    match bits {
        5 => (2, 31),
        6 => (2, 63),
        _ => (1, NIBBLE_OFFSET),
    }
}

/// Activations of some units, as products want them.
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
    unsafe {
        match weights.bits {
            4 => dots_of::<4>(weights, x, out),
            5 => dots_of::<5>(weights, x, out),
            _ => dots_of::<6>(weights, x, out),
        }
    }
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

/// The codes of one unit plus their offset, those of the first halves of both blocks and those of the second halves.
///
/// # Safety
/// The CPU has the features; 32 bytes are readable at `low`, `8 * (BITS - 4)` at `high`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unsigned<const BITS: u32>(low: *const u8, high: *const u8) -> [__m256i; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = _mm256_loadu_si256(low.cast());
        let mask = _mm256_set1_epi8(15);
        let first = _mm256_and_si256(bytes, mask);
        let second = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask);
        match BITS {
            4 => {
                let codes = table();
                [
                    _mm256_shuffle_epi8(codes, first),
                    _mm256_shuffle_epi8(codes, second),
                ]
            }
            // Each word of eight bytes has its bits at another place.
            5 => {
                let high = _mm256_set1_epi64x(high.cast::<i64>().read_unaligned());
                let bit = _mm256_set1_epi8(16);
                let above = _mm256_sllv_epi64(high, _mm256_setr_epi64x(4, 3, 2, 1));
                let below = _mm256_srlv_epi64(high, _mm256_setr_epi64x(0, 1, 2, 3));
                [
                    _mm256_or_si256(first, _mm256_and_si256(above, bit)),
                    _mm256_or_si256(second, _mm256_and_si256(below, bit)),
                ]
            }
            _ => {
                let high = _mm256_broadcastsi128_si256(_mm_loadu_si128(high.cast()));
                let two_bits = _mm256_set1_epi8(48);
                let above = _mm256_sllv_epi64(high, _mm256_setr_epi64x(4, 4, 2, 2));
                let below = _mm256_srlv_epi64(high, _mm256_setr_epi64x(0, 0, 2, 2));
                [
                    _mm256_or_si256(first, _mm256_and_si256(above, two_bits)),
                    _mm256_or_si256(second, _mm256_and_si256(below, two_bits)),
                ]
            }
        }
    }
}

/// What four bits mean, plus the offset, in both halves.
///
/// # Safety
/// The CPU has the features.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn table() -> __m256i {
    const TABLE: [i8; 16] = {
        let mut table = NIBBLE_CODES;
        let mut i = 0;
        while i < 16 {
            table[i] += NIBBLE_OFFSET as i8;
            i += 1;
        }
        table
    };
    // SAFETY: the array has 16 bytes.
    unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(TABLE.as_ptr().cast())) }
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
    // SAFETY: units stay below `first + n`, also in `split`; a group's scales that are no more in the row are read from a
    // copy; a prefetch may name any address.
    unsafe {
        let mut low = row.low.as_ptr().add(first * BLOCK);
        let mut high = row.high.as_ptr().add(first * n_high);
        let mut x = split.bytes().cast::<__m256i>();
        let mut sums_high = _mm256_setzero_si256();
        let mut sums_low = _mm256_setzero_si256();
        let mut offsets = _mm256_setzero_si256();
        for group in (0..n).step_by(GROUP) {
            let n_units = GROUP.min(n - group);
            let scales = load_scales(&row.scales[first + group..first + group + n_units]);
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
                if low as usize % CACHE_LINE < BLOCK {
                    _mm_prefetch::<_MM_HINT_T1>(low.wrapping_add(DECODE_FETCH).cast());
                }
                let scale = _mm256_shuffle_epi8(scales, index);
                index = _mm256_add_epi16(index, _mm256_set1_epi16(1));
                let [a, b] = unsigned::<BITS>(low, high);
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

/// Up to 16 bytes of scales.
///
/// # Safety
/// The CPU has the features.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_scales(scales: &[u8]) -> __m128i {
    if scales.len() == GROUP {
        // SAFETY: there are 16 bytes.
        return unsafe { _mm_loadu_si128(scales.as_ptr().cast()) };
    }
    let mut padded = [0; GROUP];
    padded[..scales.len()].copy_from_slice(scales);
    // SAFETY: there are 16 bytes.
    unsafe { _mm_loadu_si128(padded.as_ptr().cast()) }
}

/// The weights of one unit as integers: the first and the second half of its first block, then of its second.
///
/// # Safety
/// The CPU has the features; the row has this unit.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn widen_unit<const BITS: u32>(row: &PackedRow<'_>, unit: usize) -> [__m256i; 4] {
    let n_high = 8 * (BITS as usize - 4);
    let (factor, offset) = factor_and_offset(BITS);
    // SAFETY: the row has this unit.
    unsafe {
        let low = row.low.as_ptr().add(unit * BLOCK);
        let high = row.high.as_ptr().add(unit * n_high);
        let [a, b] = unsigned::<BITS>(low, high);
        let scale = *row.scales.get_unchecked(unit);
        let scales = [scale & 15, scale >> 4].map(|s| i16::from(s) + 1);
        let widen = |half, scale: i16| {
            let scale = i32::from(scale);
            let codes = _mm256_cvtepu8_epi16(half);
            let scaled = _mm256_mullo_epi16(codes, _mm256_set1_epi16((factor * scale) as i16));
            _mm256_sub_epi16(scaled, _mm256_set1_epi16((offset * scale) as i16))
        };
        [
            widen(_mm256_castsi256_si128(a), scales[0]),
            widen(_mm256_castsi256_si128(b), scales[0]),
            widen(_mm256_extracti128_si256::<1>(a), scales[1]),
            widen(_mm256_extracti128_si256::<1>(b), scales[1]),
        ]
    }
}

/// # Safety
/// The CPU has the features; lengths are as `KernelSet::widen_packed` demands.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn widen(weights: PackedRows<'_>, out: &mut [i16]) {
    // SAFETY: as here.
    unsafe {
        match weights.bits {
            4 => widen_of::<4>(weights, out),
            5 => widen_of::<5>(weights, out),
            _ => widen_of::<6>(weights, out),
        }
    }
}

/// # Safety
/// As [`widen`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn widen_of<const BITS: u32>(weights: PackedRows<'_>, out: &mut [i16]) {
    for (index, out) in out.chunks_exact_mut(weights.cols).enumerate() {
        let row = weights.row(index);
        for (unit, out) in out.chunks_mut(UNIT).enumerate() {
            // SAFETY: the row has as many units as `out` has chunks.
            let widened = unsafe { widen_unit::<BITS>(&row, unit) };
            let mut numbers = [0_i16; UNIT];
            for (numbers, register) in numbers.chunks_exact_mut(16).zip(widened) {
                // SAFETY: there are 16 numbers.
                unsafe { _mm256_storeu_si256(numbers.as_mut_ptr().cast(), register) };
            }
            out.copy_from_slice(&numbers[..out.len()]);
        }
    }
}

/// # Safety
/// The CPU has the features; lengths and rows are as `KernelSet::gather_packed` demands.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn gather(
    weights: PackedRows<'_>,
    rows: &[u32],
    values: &[i16],
    out: &mut [i32],
) {
    // SAFETY: as here.
    unsafe {
        match weights.bits {
            4 => gather_of::<4>(weights, rows, values, out),
            5 => gather_of::<5>(weights, rows, values, out),
            _ => gather_of::<6>(weights, rows, values, out),
        }
    }
}

/// Rows of one pass of a gather.
const ROWS: usize = 8;

/// # Safety
/// As [`gather`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn gather_of<const BITS: u32>(
    weights: PackedRows<'_>,
    rows: &[u32],
    values: &[i16],
    out: &mut [i32],
) {
    out.fill(0);
    for (rows, values) in rows.chunks(ROWS).zip(values.chunks(ROWS)) {
        // Missing rows are the first again, times 0.
        let n = rows.len().next_multiple_of(2);
        let row = |i: usize| weights.row(rows[if i < rows.len() { i } else { 0 }] as usize);
        let rows: [PackedRow<'_>; ROWS] = std::array::from_fn(row);
        let pairs: [i32; ROWS / 2] = std::array::from_fn(|pair| {
            let value = |i: usize| values.get(i).map_or(0, |&v| u32::from(v as u16));
            (value(2 * pair) | value(2 * pair + 1) << 16) as i32
        });
        for (unit, out) in out.chunks_mut(UNIT).enumerate() {
            let mut padded = [0; UNIT];
            padded[..out.len()].copy_from_slice(out);
            // SAFETY: every row has as many units as `out` has chunks; `padded` has 64 numbers.
            unsafe { add_unit::<BITS>(&rows[..n], &pairs, unit, &mut padded) };
            out.copy_from_slice(&padded[..out.len()]);
        }
    }
}

/// `out[c] += sum over i of values[i] * rows[i][c]` for one unit; `rows` are even in number, and `pairs` their values two
/// by two.
///
/// # Safety
/// The CPU has the features; every row has the unit, and `pairs` all rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_unit<const BITS: u32>(
    rows: &[PackedRow<'_>],
    pairs: &[i32; ROWS / 2],
    unit: usize,
    out: &mut [i32; UNIT],
) {
    // SAFETY: the caller's promise; there are 64 sums.
    unsafe {
        // Each register of 16 columns becomes two of sums: columns 0 to 3 and 8 to 11, and the others.
        let mut sums = [_mm256_setzero_si256(); 8];
        for (rows, &pair) in rows.chunks_exact(2).zip(pairs) {
            let (a, b) = (
                widen_unit::<BITS>(&rows[0], unit),
                widen_unit::<BITS>(&rows[1], unit),
            );
            let values = _mm256_set1_epi32(pair);
            for (i, (a, b)) in a.into_iter().zip(b).enumerate() {
                let first = _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), values);
                let second = _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), values);
                sums[2 * i] = _mm256_add_epi32(sums[2 * i], first);
                sums[2 * i + 1] = _mm256_add_epi32(sums[2 * i + 1], second);
            }
        }
        for i in 0..4 {
            let target = out.as_mut_ptr().add(16 * i).cast::<__m256i>();
            let (first, second) = (sums[2 * i], sums[2 * i + 1]);
            let low = _mm256_permute2x128_si256::<0x20>(first, second);
            let high = _mm256_permute2x128_si256::<0x31>(first, second);
            _mm256_storeu_si256(target, _mm256_add_epi32(_mm256_loadu_si256(target), low));
            let target = target.add(1);
            _mm256_storeu_si256(target, _mm256_add_epi32(_mm256_loadu_si256(target), high));
        }
    }
}

/// # Safety
/// The CPU has the features; lengths are as `KernelSet::pack_packed` demands.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn pack(weights: PackedRows<'_>, first: usize, n: usize, panel: &mut [i16]) {
    if n < PANEL_WIDTH || first % PANEL_WIDTH != 0 {
        return packed::pack_packed(weights, first, n, panel);
    }
    // SAFETY: as here; the sixteen columns lie in one unit.
    unsafe {
        match weights.bits {
            4 => pack_of::<4>(weights, first, panel),
            5 => pack_of::<5>(weights, first, panel),
            _ => pack_of::<6>(weights, first, panel),
        }
    }
}

/// # Safety
/// The CPU has the features; rows have columns `first .. first + 16`, which begin at a multiple of 16; `panel` is
/// (ceil(rows / 2), 16, 2).
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pack_of<const BITS: u32>(weights: PackedRows<'_>, first: usize, panel: &mut [i16]) {
    let (unit, sixteen) = (first / UNIT, first % UNIT / PANEL_WIDTH);
    let n_rows = weights.n_rows();
    for (pair, panel) in panel.chunks_exact_mut(2 * PANEL_WIDTH).enumerate() {
        // SAFETY: rows are below `n_rows`, and have the unit; a row of the panel has 32 numbers.
        unsafe {
            let a = widen_unit::<BITS>(&weights.row(2 * pair), unit)[sixteen];
            let b = match 2 * pair + 1 < n_rows {
                true => widen_unit::<BITS>(&weights.row(2 * pair + 1), unit)[sixteen],
                false => _mm256_setzero_si256(),
            };
            let (low, high) = (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
            let target = panel.as_mut_ptr().cast::<__m256i>();
            _mm256_storeu_si256(target, _mm256_permute2x128_si256::<0x20>(low, high));
            _mm256_storeu_si256(target.add(1), _mm256_permute2x128_si256::<0x31>(low, high));
        }
    }
}
