//! Packed weights as integers of 16 bits, for products with many rows of activations.

use std::arch::x86_64::*;

use super::super::super::packed::{self, PackedRows, BLOCK, UNIT};
use super::super::super::PANEL_WIDTH;
use super::codes::{half_of_block, scaled, scales_of, unsigned, Constants};

/// # Safety
/// The CPU has the features; lengths are as `KernelSet::widen_packed` demands.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) unsafe fn widen(weights: PackedRows<'_>, out: &mut [i16]) {
    // SAFETY: as here.
    unsafe { packed::of_bits!(weights, BITS => widen_of::<BITS>(weights, out)) }
}

/// # Safety
/// As [`widen`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn widen_of<const BITS: u32>(weights: PackedRows<'_>, out: &mut [i16]) {
    let n_high = 8 * (BITS as usize - 4);
    // SAFETY: the CPU has AVX2.
    let constants = unsafe { Constants::new::<BITS>() };
    for (index, out) in out.chunks_exact_mut(weights.cols).enumerate() {
        let row = weights.row(index);
        for (unit, out) in out.chunks_mut(UNIT).enumerate() {
            let mut padded = [0_i16; UNIT];
            let target = match out.len() {
                UNIT => out.as_mut_ptr(),
                _ => padded.as_mut_ptr(),
            };
            let scales = scales_of(row.scales[unit]);
            // SAFETY: the row has as many units as `out` has chunks; `target` has 64 numbers.
            unsafe {
                let low = row.low.as_ptr().add(unit * BLOCK);
                let high = row.high.as_ptr().add(unit * n_high);
                let [a, b] = unsigned::<BITS>(&constants, low, high);
                let sixteen = [
                    scaled::<BITS>(_mm256_castsi256_si128(a), scales[0]),
                    scaled::<BITS>(_mm256_castsi256_si128(b), scales[0]),
                    scaled::<BITS>(_mm256_extracti128_si256::<1>(a), scales[1]),
                    scaled::<BITS>(_mm256_extracti128_si256::<1>(b), scales[1]),
                ];
                for (i, sixteen) in sixteen.into_iter().enumerate() {
                    _mm256_storeu_si256(target.add(16 * i).cast(), sixteen);
                }
            }
            if out.len() < UNIT {
                out.copy_from_slice(&padded[..out.len()]);
            }
        }
    }
}

/// # Safety
/// The CPU has the features; lengths are as `KernelSet::pack_packed` demands.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in super::super) unsafe fn pack(
    weights: PackedRows<'_>,
    first: usize,
    n: usize,
    panel: &mut [i16],
) {
    if n < PANEL_WIDTH || first % PANEL_WIDTH != 0 {
        return packed::pack_packed(weights, first, n, panel);
    }
    // SAFETY: as here; the sixteen columns lie in one unit.
    unsafe { packed::of_bits!(weights, BITS => pack_of::<BITS>(weights, first, panel)) }
}

/// # Safety
/// The CPU has the features; rows have columns `first .. first + 16`, which begin at a multiple of 16; `panel` is
/// (ceil(rows / 2), 16, 2).
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pack_of<const BITS: u32>(weights: PackedRows<'_>, first: usize, panel: &mut [i16]) {
    let (n_rows, row_bytes) = (weights.n_rows(), weights.row_bytes());
    let n_units = weights.cols.div_ceil(UNIT);
    let (unit, block) = (first / UNIT, first / BLOCK % 2);
    let n_high = 8 * (BITS as usize - 4);
    // Where these columns are in each row.
    let scale_at = unit;
    let low_at = n_units + unit * BLOCK + block * 16;
    let high_at = n_units * (1 + BLOCK) + unit * n_high;
    // SAFETY: rows are below `n_rows` and have the columns; a row of the panel has 32 numbers.
    unsafe {
        let constants = Constants::new::<BITS>();
        let sixteen = |row: usize| {
            let row = weights.bytes.as_ptr().add(row * row_bytes);
            let scale = scales_of(*row.add(scale_at))[block];
            let (low, high) = (row.add(low_at), row.add(high_at));
            let codes = match first / 16 % 2 {
                0 => half_of_block::<BITS, 0>(&constants, low, high, block),
                _ => half_of_block::<BITS, 1>(&constants, low, high, block),
            };
            scaled::<BITS>(codes, scale)
        };
        for (pair, panel) in panel.chunks_exact_mut(2 * PANEL_WIDTH).enumerate() {
            let a = sixteen(2 * pair);
            let b = match 2 * pair + 1 < n_rows {
                true => sixteen(2 * pair + 1),
                false => _mm256_setzero_si256(),
            };
            let (low, high) = (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
            let target = panel.as_mut_ptr().cast::<__m256i>();
            _mm256_storeu_si256(target, _mm256_permute2x128_si256::<0x20>(low, high));
            _mm256_storeu_si256(target.add(1), _mm256_permute2x128_si256::<0x31>(low, high));
        }
    }
}
