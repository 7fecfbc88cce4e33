//! Sums of some rows of packed weights, each times a number of its own.
//!
//! Two rows at a time: the bytes of both are interleaved and widened to pairs of 16 bits, which are multiplied by the scales of
//! both blocks, and `vpmaddwd` multiplies the pairs by both numbers: 24 instructions for the 64 weights of a unit. The offset of
//! the codes is taken away once a unit of eight rows.

use std::arch::x86_64::*;

use super::super::super::packed::{self, PackedRow, PackedRows, BLOCK, UNIT};
use super::super::gather::{Fetch, PassRows, GROUP as ROWS};
use super::codes::{unsigned, Constants};
use super::{factor_and_offset, unit_bytes};

/// # Safety
/// The CPU has the features; lengths and rows are as `KernelSet::gather_packed` demands.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) unsafe fn gather(
    weights: PackedRows<'_>,
    rows: &[u32],
    values: &[i16],
    out: &mut [i32],
) {
    // SAFETY: as here.
    unsafe { packed::of_bits!(weights, BITS => gather_of::<BITS>(weights, rows, values, out)) }
}

/// Pairs of the rows of one pass.
const PAIRS: usize = ROWS / 2;
/// Units of which the scales of a pair of rows are unpacked at once.
const PAIR_GROUP: usize = 8;

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
    for (first, values) in (0..).step_by(ROWS).zip(values.chunks(ROWS)) {
        // Missing rows are the first again, times 0.
        let index = |i: usize| rows[first + if i < values.len() { i } else { 0 }] as usize;
        let value = |i: usize| values.get(i).map_or(0, |&v| u32::from(v as u16));
        let pass = GatherPass::<BITS> {
            rows: std::array::from_fn(|i| weights.row(index(i))),
            values: std::array::from_fn(|pair| {
                (value(2 * pair) | value(2 * pair + 1) << 16) as i32
            }),
            n_pairs: values.len().div_ceil(2),
        };
        let mut fetch = match values.len() {
            ROWS => PassRows::new(weights.bytes, weights.row_bytes(), rows, first).fetch,
            _ => Fetch::nothing(),
        };
        // SAFETY: each row has as many units as `out`.
        unsafe { pass.add_to(out, &mut fetch) };
    }
}

/// Up to eight rows, each times a number of its own.
struct GatherPass<'a, const BITS: u32> {
    rows: [PackedRow<'a>; ROWS],
    /// Two numbers each.
    values: [i32; PAIRS],
    n_pairs: usize,
}

impl<const BITS: u32> GatherPass<'_, BITS> {
    /// `out[c] += sum over i of values[i] * rows[i][c]`.
    ///
    /// # Safety
    /// The CPU has the features; every row has as many units as `out`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn add_to(&self, out: &mut [i32], fetch: &mut Fetch) {
        // SAFETY: the CPU has AVX2.
        let (constants, values) = unsafe {
            (
                Constants::new::<BITS>(),
                self.values.map(|pair| _mm256_set1_epi32(pair)),
            )
        };
        // SAFETY: as above.
        let mut scales = [unsafe { _mm256_setzero_si256() }; PAIRS];
        for (unit, out) in out.chunks_mut(UNIT).enumerate() {
            if unit % PAIR_GROUP == 0 {
                for (pair, scales) in scales.iter_mut().enumerate().take(self.n_pairs) {
                    // SAFETY: the rows have this unit.
                    *scales = unsafe { self.scales(pair, unit) };
                }
            }
            // SAFETY: the CPU has AVX2.
            unsafe { fetch.go_on((ROWS * unit_bytes(BITS)).div_ceil(64)) };
            let mut padded = [0; UNIT];
            let target = match out.len() {
                UNIT => out.as_mut_ptr(),
                n => {
                    padded[..n].copy_from_slice(out);
                    padded.as_mut_ptr()
                }
            };
            // SAFETY: the rows have this unit, and `target` 64 sums.
            unsafe { self.add_unit(&constants, &scales, &values, unit, target) };
            if out.len() < UNIT {
                out.copy_from_slice(&padded[..out.len()]);
            }
        }
    }

    /// Scales of a pair of rows for eight units: two bytes a unit, of first blocks in the low half and of second blocks in
    /// the high half.
    ///
    /// # Safety
    /// The CPU has the features; the rows have units from `first` on.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(&self, pair: usize, first: usize) -> __m256i {
        // SAFETY: behind the scales of a row are its low bits, 32 bytes a unit, so that eight bytes can be read from
        // any of its scales on.
        unsafe {
            let load = |row: &PackedRow<'_>| {
                let scales = row.bytes.as_ptr().add(first);
                _mm_loadl_epi64(scales.cast())
            };
            let rows = &self.rows[2 * pair..];
            let bytes = _mm_unpacklo_epi8(load(&rows[0]), load(&rows[1]));
            let nibble = _mm_set1_epi8(15);
            let low = _mm_and_si128(bytes, nibble);
            let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), nibble);
            _mm256_add_epi8(_mm256_set_m128i(high, low), _mm256_set1_epi8(1))
        }
    }

    /// # Safety
    /// The CPU has the features; the rows have this unit, `scales` are those of its group, and there are 64 sums at `out`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn add_unit(
        &self,
        constants: &Constants,
        scales: &[__m256i; PAIRS],
        values: &[__m256i; PAIRS],
        unit: usize,
        out: *mut i32,
    ) {
        let n_high = 8 * (BITS as usize - 4);
        let (factor, offset) = factor_and_offset(BITS);
        // SAFETY: the caller's promise.
        unsafe {
            let zero = _mm256_setzero_si256();
            // Columns of first blocks are in the low halves: 0 to 3, 4 to 7 and so on of both blocks.
            let mut sums = [zero; 8];
            let mut offsets = zero;
            // The two bytes of this unit, widened to 16 bits, in all lanes.
            let byte = 2 * (unit % PAIR_GROUP) as i32;
            let index = _mm256_set1_epi32(0x8001_8000_u32 as i32 + byte + (byte << 16));
            for pair in 0..self.n_pairs {
                let codes = |row: &PackedRow<'_>| {
                    let low = row.low.as_ptr().add(unit * BLOCK);
                    let high = row.high.as_ptr().add(unit * n_high);
                    unsigned::<BITS>(constants, low, high)
                };
                let (a, b) = (codes(&self.rows[2 * pair]), codes(&self.rows[2 * pair + 1]));
                let scale = _mm256_shuffle_epi8(scales[pair], index);
                let value = values[pair];
                offsets = _mm256_add_epi32(offsets, _mm256_madd_epi16(scale, value));
                for half in 0..2 {
                    let bytes = [
                        _mm256_unpacklo_epi8(a[half], b[half]),
                        _mm256_unpackhi_epi8(a[half], b[half]),
                    ];
                    for (i, bytes) in bytes.into_iter().enumerate() {
                        let pairs = [
                            _mm256_unpacklo_epi8(bytes, zero),
                            _mm256_unpackhi_epi8(bytes, zero),
                        ];
                        for (j, pairs) in pairs.into_iter().enumerate() {
                            let sum = &mut sums[4 * half + 2 * i + j];
                            let integers = _mm256_mullo_epi16(pairs, scale);
                            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(integers, value));
                        }
                    }
                }
            }
            let offsets = _mm256_mullo_epi32(offsets, _mm256_set1_epi32(offset));
            let exact = |sum| {
                let sum = if factor == 2 {
                    _mm256_add_epi32(sum, sum)
                } else {
                    sum
                };
                _mm256_sub_epi32(sum, offsets)
            };
            for i in 0..4 {
                let (first, second) = (exact(sums[2 * i]), exact(sums[2 * i + 1]));
                let blocks = [
                    _mm256_permute2x128_si256::<0x20>(first, second),
                    _mm256_permute2x128_si256::<0x31>(first, second),
                ];
                for (block, sums) in blocks.into_iter().enumerate() {
                    let target = out.add(block * BLOCK + 8 * i).cast::<__m256i>();
                    _mm256_storeu_si256(target, _mm256_add_epi32(_mm256_loadu_si256(target), sums));
                }
            }
        }
    }
}
