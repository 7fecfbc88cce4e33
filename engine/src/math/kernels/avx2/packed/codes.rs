//! From the bits of packed weights to their codes.

use std::arch::asm;
use std::arch::x86_64::*;

use super::super::super::packed::{NIBBLE_CODES, NIBBLE_OFFSET};
use super::factor_and_offset;

/// What unpacking needs beside the weights. Compilers put constants back into memory, which costs a load an instruction in
/// loops that are bound by loads; these stay in registers.
#[derive(Clone, Copy)]
pub(super) struct Constants {
    nibble: __m256i,
    /// What four bits mean, plus the offset; or the bits above the low four.
    codes: __m256i,
    /// Where each word of eight bytes has its high bits: the first halves of blocks, and the second.
    shifts: [__m256i; 2],
}

impl Constants {
    /// # Safety
    /// The CPU has the features.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn new<const BITS: u32>() -> Self {
        const TABLE: [i8; 16] = {
            let mut table = NIBBLE_CODES;
            let mut i = 0;
            while i < 16 {
                table[i] += NIBBLE_OFFSET as i8;
                i += 1;
            }
            table
        };
        // SAFETY: the CPU has AVX2, and the table 16 bytes.
        unsafe {
            let codes = match BITS {
                4 => _mm256_broadcastsi128_si256(_mm_loadu_si128(TABLE.as_ptr().cast())),
                5 => _mm256_set1_epi8(0x10),
                _ => _mm256_set1_epi8(0x30),
            };
            let shifts = match BITS {
                6 => [
                    _mm256_setr_epi64x(4, 4, 2, 2),
                    _mm256_setr_epi64x(0, 0, 2, 2),
                ],
                _ => [
                    _mm256_setr_epi64x(4, 3, 2, 1),
                    _mm256_setr_epi64x(0, 1, 2, 3),
                ],
            };
            Constants {
                nibble: in_register(_mm256_set1_epi8(15)),
                codes: in_register(codes),
                shifts: shifts.map(|shift| in_register(shift)),
            }
        }
    }
}

/// The same, of which the compiler does not know what it is.
///
/// # Safety
/// The CPU has the features.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn in_register(mut value: __m256i) -> __m256i {
    // SAFETY: nothing is executed.
    unsafe {
        asm!("/* {0} */", inout(ymm_reg) value, options(pure, nomem, nostack, preserves_flags));
    }
    value
}

/// The codes of one unit plus their offset, those of the first halves of both blocks and those of the second halves.
///
/// # Safety
/// The CPU has the features; 32 bytes are readable at `low`, `8 * (BITS - 4)` at `high`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn unsigned<const BITS: u32>(
    constants: &Constants,
    low: *const u8,
    high: *const u8,
) -> [__m256i; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = _mm256_loadu_si256(low.cast());
        let first = _mm256_and_si256(bytes, constants.nibble);
        let second = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), constants.nibble);
        if BITS == 4 {
            return [
                _mm256_shuffle_epi8(constants.codes, first),
                _mm256_shuffle_epi8(constants.codes, second),
            ];
        }
        let high = match BITS {
            5 => _mm256_set1_epi64x(high.cast::<i64>().read_unaligned()),
            _ => _mm256_broadcastsi128_si256(_mm_loadu_si128(high.cast())),
        };
        let above = _mm256_sllv_epi64(high, constants.shifts[0]);
        let below = _mm256_srlv_epi64(high, constants.shifts[1]);
        [
            _mm256_or_si256(first, _mm256_and_si256(above, constants.codes)),
            _mm256_or_si256(second, _mm256_and_si256(below, constants.codes)),
        ]
    }
}

/// Sixteen unsigned codes, widened, as integers with this scale.
///
/// # Safety
/// The CPU has the features.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn scaled<const BITS: u32>(codes: __m128i, scale: i16) -> __m256i {
    let (factor, offset) = factor_and_offset(BITS);
    // SAFETY: the CPU has AVX2.
    unsafe {
        let scale = _mm256_set1_epi16(scale);
        let codes = _mm256_cvtepu8_epi16(codes);
        let codes = match factor {
            1 => codes,
            _ => _mm256_add_epi16(codes, codes),
        };
        _mm256_mullo_epi16(
            _mm256_sub_epi16(codes, _mm256_set1_epi16(offset as i16)),
            scale,
        )
    }
}

/// The scales of both blocks of a unit.
#[inline(always)]
pub(super) fn scales_of(byte: u8) -> [i16; 2] {
    [byte & 15, byte >> 4].map(|scale| i16::from(scale) + 1)
}

/// The codes of the first or second half of a block plus their offset.
///
/// # Safety
/// The CPU has the features; 16 bytes are readable at `low`, `8 * (BITS - 4)` at `high`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn half_of_block<const BITS: u32, const HALF: usize>(
    constants: &Constants,
    low: *const u8,
    high: *const u8,
    block: usize,
) -> __m128i {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = _mm_loadu_si128(low.cast());
        let bytes = if HALF == 0 {
            bytes
        } else {
            _mm_srli_epi16::<4>(bytes)
        };
        let bytes = _mm_and_si128(bytes, _mm256_castsi256_si128(constants.nibble));
        let codes = _mm256_castsi256_si128(constants.codes);
        if BITS == 4 {
            return _mm_shuffle_epi8(codes, bytes);
        }
        let high = match BITS {
            5 => _mm_set1_epi64x(high.cast::<i64>().read_unaligned()),
            _ => _mm_loadu_si128(high.cast()),
        };
        let shift = match block {
            0 => _mm256_castsi256_si128(constants.shifts[HALF]),
            _ => _mm256_extracti128_si256::<1>(constants.shifts[HALF]),
        };
        let high = match HALF {
            0 => _mm_sllv_epi64(high, shift),
            _ => _mm_srlv_epi64(high, shift),
        };
        _mm_or_si128(bytes, _mm_and_si128(high, codes))
    }
}
