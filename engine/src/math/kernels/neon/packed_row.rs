//! Rows of packed weights in registers: their numbers, their scales, and the integers that both mean; `packed.rs` beside the
//! instruction sets has the layout.

use std::arch::aarch64::*;

use super::super::packed::{PackedRows, BLOCK, NIBBLE_CODES, UNIT};
use super::integer::Sixteen;

/// Units whose scales are unpacked at once.
pub(super) const GROUP: usize = 8;

/// `code = factor * u - offset` of the numbers that products are made with.
pub(super) const fn factor_and_offset(bits: u32) -> (i32, i32) {
    match bits {
        5 => (2, 31),
        6 => (2, 63),
        // Numbers are codes.
        _ => (1, 0),
    }
}

/// Where the parts of one row begin; each pointer may be read from to the end of the row.
#[derive(Clone, Copy)]
pub(super) struct Row {
    scales: *const u8,
    low: *const u8,
    high: *const u8,
}

impl Row {
    #[inline(always)]
    pub(super) fn new(weights: &PackedRows<'_>, index: usize) -> Self {
        let n_units = weights.cols.div_ceil(UNIT);
        let row = &weights.bytes[index * weights.row_bytes()..][..weights.row_bytes()];
        Row {
            scales: row.as_ptr(),
            low: row[n_units..].as_ptr(),
            high: row[n_units * (1 + BLOCK)..].as_ptr(),
        }
    }

    /// The numbers of one unit, sixteen columns a register: `u`, or codes where these have four bits.
    ///
    /// # Safety
    /// The row has this unit, and weights of `BITS` bits.
    #[inline(always)]
    pub(super) unsafe fn numbers<const BITS: u32>(self, unit: usize) -> [int8x16_t; 4] {
        // SAFETY: a unit has 32 low bytes; the rest is the caller's promise.
        unsafe {
            let low = self.low.add(unit * BLOCK);
            let [a, b] = [vld1q_u8(low), vld1q_u8(low.add(16))];
            if BITS == 4 {
                let nibble = vdupq_n_u8(15);
                let (first, second) = (vandq_u8(a, nibble), vandq_u8(b, nibble));
                let codes = vld1q_s8(NIBBLE_CODES.as_ptr());
                return [
                    vqtbl1q_s8(codes, first),
                    vqtbl1q_s8(codes, vshrq_n_u8::<4>(a)),
                    vqtbl1q_s8(codes, second),
                    vqtbl1q_s8(codes, vshrq_n_u8::<4>(b)),
                ];
            }
            // Each sixteen columns of the unit have their bits at another place: 0, 4, 2 and 6. Shifts that insert (sli,
            // sri) put them together with the low bits.
            let (high, mask) = self.high::<BITS>(unit);
            let all = vorrq_u8(mask, vdupq_n_u8(15));
            let from_2 = vshrq_n_u8::<2>(high);
            // With six bits nothing is above the last.
            let last = match BITS {
                5 => vandq_u8(from_2, mask),
                _ => from_2,
            };
            [
                vreinterpretq_s8_u8(vandq_u8(vsliq_n_u8::<4>(a, high), all)),
                vreinterpretq_s8_u8(vsriq_n_u8::<4>(vandq_u8(high, mask), a)),
                vreinterpretq_s8_u8(vandq_u8(vsliq_n_u8::<4>(b, from_2), all)),
                vreinterpretq_s8_u8(vsriq_n_u8::<4>(last, b)),
            ]
        }
    }

    /// The high bits of a unit, byte `i` those of column `i` of all its sixteens, and which of them are one column's when
    /// they are where a number has them. With five bits the two words have theirs one place apart.
    ///
    /// # Safety
    /// As [`numbers`](Self::numbers).
    #[inline(always)]
    unsafe fn high<const BITS: u32>(self, unit: usize) -> (uint8x16_t, uint8x16_t) {
        // SAFETY: a unit has 8 high bytes or 16.
        unsafe {
            if BITS == 5 {
                let word = self.high.add(unit * 8).cast::<u64>().read_unaligned();
                let places = vcombine_s8(vdup_n_s8(0), vdup_n_s8(-1));
                let high = vshlq_u8(vreinterpretq_u8_u64(vdupq_n_u64(word)), places);
                (high, vdupq_n_u8(0x10))
            } else {
                (vld1q_u8(self.high.add(unit * 16)), vdupq_n_u8(0x30))
            }
        }
    }

    /// The scale of a block of a unit, 1 to 16, in all lanes.
    ///
    /// # Safety
    /// The row has this unit.
    #[inline(always)]
    unsafe fn block_scale(self, unit: usize, block: usize) -> int8x16_t {
        // SAFETY: the caller's promise.
        unsafe {
            let scales = *self.scales.add(unit);
            vdupq_n_s8((scales >> (4 * block) & 15) as i8 + 1)
        }
    }

    /// The scales of a group of units, 1 to 16: those of both blocks of the first unit, of the second, and so on. Of a
    /// group that the row ends in, those of missing units are any.
    ///
    /// # Safety
    /// The row has this unit.
    #[inline(always)]
    pub(super) unsafe fn group_scales(self, unit: usize) -> uint8x16_t {
        // SAFETY: eight bytes are readable from each scale on: 32 bytes or more follow the last.
        unsafe {
            let scales = vld1_u8(self.scales.add(unit));
            let first = vand_u8(scales, vdup_n_u8(15));
            let second = vshr_n_u8::<4>(scales);
            let scales = vcombine_u8(vzip1_u8(first, second), vzip2_u8(first, second));
            vaddq_u8(scales, vdupq_n_u8(1))
        }
    }

    /// The weights of one unit as integers.
    ///
    /// # Safety
    /// As [`numbers`](Self::numbers).
    #[inline(always)]
    pub(super) unsafe fn widened<const BITS: u32>(self, unit: usize) -> [Sixteen; 4] {
        // SAFETY: the caller's promise.
        unsafe {
            let numbers = self.numbers::<BITS>(unit);
            let scales = [self.block_scale(unit, 0), self.block_scale(unit, 1)];
            [
                scaled::<BITS>(numbers[0], scales[0]),
                scaled::<BITS>(numbers[1], scales[0]),
                scaled::<BITS>(numbers[2], scales[1]),
                scaled::<BITS>(numbers[3], scales[1]),
            ]
        }
    }

    /// The weights of columns `first .. first + 16` as integers; `first` is a multiple of 16.
    ///
    /// # Safety
    /// The row has these columns, and weights of `BITS` bits.
    #[inline(always)]
    pub(super) unsafe fn sixteen<const BITS: u32>(self, first: usize) -> Sixteen {
        let (unit, block, half) = (first / UNIT, first % UNIT / BLOCK, first % BLOCK / 16);
        // SAFETY: the caller's promise.
        unsafe {
            let low = vld1q_u8(self.low.add(unit * BLOCK + 16 * block));
            let low = vshlq_u8(low, vdupq_n_s8(-4 * half as i8));
            let low = vandq_u8(low, vdupq_n_u8(15));
            let numbers = if BITS == 4 {
                vqtbl1q_s8(vld1q_s8(NIBBLE_CODES.as_ptr()), low)
            } else {
                let (high, mask) = self.high::<BITS>(unit);
                let place = 4 * half + 2 * block;
                let high = vshlq_u8(high, vdupq_n_s8(4 - place as i8));
                vreinterpretq_s8_u8(vbslq_u8(mask, high, low))
            };
            scaled::<BITS>(numbers, self.block_scale(unit, block))
        }
    }
}

/// Numbers times their scales: at most 64 times 16.
///
/// # Safety
/// None on this architecture; unsafe on Rust 1.85.
#[inline(always)]
unsafe fn scaled<const BITS: u32>(numbers: int8x16_t, scales: int8x16_t) -> Sixteen {
    // SAFETY: NEON belongs to the architecture.
    unsafe {
        let codes = match factor_and_offset(BITS) {
            (1, _) => numbers,
            (_, offset) => vsubq_s8(vaddq_s8(numbers, numbers), vdupq_n_s8(offset as i8)),
        };
        [
            vmull_s8(vget_low_s8(codes), vget_low_s8(scales)),
            vmull_high_s8(codes, scales),
        ]
    }
}
