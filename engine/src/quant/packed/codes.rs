//! The codes of weights, and rows of them as they are stored.

#![forbid(unsafe_code)]

use crate::math::kernels::packed::{code, high_bits, packed_row_bytes, BLOCK, UNIT};

/// Half steps from the smallest code that there can be to the largest.
const HALVES: usize = 4 * 64 + 2;

/// The codes of a format, and which is nearest.
pub(super) struct Codes {
    /// What largest weights are scaled to.
    pub(super) largest: f32,
    /// Parts of that which are tried.
    pub(super) sizes: &'static [f32],
    /// The bits of the code 0, or of those beside it.
    zeros: [u8; 2],
    /// The code next to the numbers of each half step, from -64 on. Where two codes meet is a multiple of 1/2.
    nearest: [f32; HALVES],
    /// Its bits.
    bits: [u8; HALVES],
    /// What bits mean.
    meanings: [f32; 64],
}

impl Codes {
    pub(super) fn new<const BITS: u32>() -> Self {
        let all = (0..1_u8 << BITS).map(|bits| (code(BITS, bits), bits));
        let all: Vec<(i8, u8)> = all.collect();
        let mut codes = Codes {
            largest: all
                .iter()
                .map(|(code, _)| f32::from(code.unsigned_abs()))
                .fold(0.0, f32::max),
            // More are within 1 % of the error, fewer cost 4 % with 4 bits.
            sizes: match BITS {
                4 => &[0.93, 1.0, 1.09, 1.19, 1.32, 1.47],
                _ => &[1.0, 1.11, 1.25],
            },
            zeros: [0; 2],
            nearest: [0.0; HALVES],
            bits: [0; HALVES],
            meanings: [0.0; 64],
        };
        for &(code, bits) in &all {
            codes.meanings[usize::from(bits)] = f32::from(code);
        }
        let nearest = |x: f32| {
            let by_distance = |a: &&(i8, u8), b: &&(i8, u8)| {
                let distance = |code: i8| (f32::from(code) - x).abs();
                distance(a.0).total_cmp(&distance(b.0))
            };
            all.iter().min_by(by_distance).copied().unwrap_or_default()
        };
        for half in 0..HALVES {
            let (code, bits) = nearest(half as f32 / 2.0 - 64.0 + 0.25);
            codes.nearest[half] = f32::from(code);
            codes.bits[half] = bits;
        }
        codes.zeros = [nearest(0.25).1, nearest(-0.25).1];
        codes
    }

    /// The bits of a 0. Formats without such a code take turns, so that many zeros of a row do not add up.
    #[inline(always)]
    pub(super) fn zero(&self, column: usize) -> u8 {
        self.zeros[column % 2]
    }

    /// The code that these bits mean, which are those of one.
    #[inline(always)]
    pub(super) fn meaning(&self, bits: u8) -> f32 {
        self.meanings[usize::from(bits % 64)]
    }

    #[inline(always)]
    fn half(x: f32) -> usize {
        // Numbers below 0 become 0, and NaN does.
        let half = (2.0 * x + 128.0) as u32 as usize;
        half.min(HALVES - 1)
    }

    /// The code next to it.
    #[inline(always)]
    pub(super) fn nearest(&self, x: f32) -> f32 {
        self.nearest[Self::half(x)]
    }

    #[inline(always)]
    pub(super) fn bits(&self, x: f32) -> u8 {
        self.bits[Self::half(x)]
    }
}

/// A row that is being written, all 0 before.
pub(super) struct PackedRowMut<'a, const BITS: u32> {
    scales: &'a mut [u8],
    low: &'a mut [u8],
    high: &'a mut [u8],
}

impl<'a, const BITS: u32> PackedRowMut<'a, BITS> {
    pub(super) fn new(bytes: &'a mut [u8]) -> Self {
        let n_units = bytes.len() / packed_row_bytes(BITS, UNIT);
        let (scales, rest) = bytes.split_at_mut(n_units);
        let (low, high) = rest.split_at_mut(n_units * BLOCK);
        PackedRowMut { scales, low, high }
    }

    pub(super) fn put(&mut self, index: usize, scale: u8, bits: &[u8; BLOCK]) {
        let (unit, block) = (index / 2, index % 2);
        self.scales[unit] |= (scale - 1) << (4 * block);
        let low = &mut self.low[index * 16..][..16];
        for (at, bits) in bits.iter().enumerate() {
            low[at % 16] |= (bits & 15) << (4 * (at / 16));
        }
        let n_high = 8 * (BITS as usize - 4);
        let high = &mut self.high[unit * n_high..][..n_high];
        if n_high > 0 {
            for (at, bits) in bits.iter().enumerate() {
                let (byte, shift) = high_bits(BITS, block, at);
                high[byte] |= bits >> 4 << shift;
            }
        }
    }
}
