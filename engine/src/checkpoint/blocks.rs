//! Weights quantised in blocks of 32, as ggml stores them and rwkv.cpp writes them.
//!
//! Used by `tensor.rs`, which sees to it that whole blocks are there. A block has one scale for its
//! 32 numbers, some formats an offset too, all in f16; what comes out is `scale * integer + offset`
//! in f32, which rounds at most once.

#![forbid(unsafe_code)]

use half::f16;

/// Numbers that share a scale.
pub(crate) const BLOCK: usize = 32;

/// How a block is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockFormat {
    /// f16 scale, 32 x 4 bits, 8 less than stored.
    Q4_0,
    /// f16 scale, f16 offset, 32 x 4 bits.
    Q4_1,
    /// f16 scale, the fifth bits, 32 x 4 bits, 16 less than stored.
    Q5_0,
    /// f16 scale, f16 offset, the fifth bits, 32 x 4 bits.
    Q5_1,
    /// f16 scale, 32 x i8.
    Q8_0,
}

impl BlockFormat {
    /// Of one block.
    pub(crate) fn size_bytes(self) -> usize {
        match self {
            BlockFormat::Q4_0 => 2 + 16,
            BlockFormat::Q4_1 => 4 + 16,
            BlockFormat::Q5_0 => 2 + 4 + 16,
            BlockFormat::Q5_1 => 4 + 4 + 16,
            BlockFormat::Q8_0 => 2 + 32,
        }
    }

    /// As ggml calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            BlockFormat::Q4_0 => "Q4_0",
            BlockFormat::Q4_1 => "Q4_1",
            BlockFormat::Q5_0 => "Q5_0",
            BlockFormat::Q5_1 => "Q5_1",
            BlockFormat::Q8_0 => "Q8_0",
        }
    }

    /// The numbers of one block.
    fn widen_block(self, bytes: &[u8], out: &mut [f32; BLOCK]) {
        match (self, bytes) {
            (BlockFormat::Q4_0, &[a, b, ref nibbles @ ..]) => {
                four_bits(half(a, b), -8.0 * half(a, b), nibbles, out);
            }
            (BlockFormat::Q4_1, &[a, b, c, d, ref nibbles @ ..]) => {
                four_bits(half(a, b), half(c, d), nibbles, out);
            }
            (BlockFormat::Q5_0, &[a, b, e, f, g, h, ref nibbles @ ..]) => {
                let fifth = u32::from_le_bytes([e, f, g, h]);
                five_bits(half(a, b), -16.0 * half(a, b), fifth, nibbles, out);
            }
            (BlockFormat::Q5_1, &[a, b, c, d, e, f, g, h, ref nibbles @ ..]) => {
                let fifth = u32::from_le_bytes([e, f, g, h]);
                five_bits(half(a, b), half(c, d), fifth, nibbles, out);
            }
            (BlockFormat::Q8_0, &[a, b, ref values @ ..]) => {
                for (out, &value) in out.iter_mut().zip(values) {
                    *out = half(a, b) * f32::from(value as i8);
                }
            }
            // Callers hand over whole blocks.
            _ => out.fill(f32::NAN),
        }
    }

    /// Numbers of a row of blocks: `bytes` are the blocks that hold them, `skip` the numbers of the
    /// first block before the first that is wanted.
    pub(crate) fn widen(self, bytes: &[u8], skip: usize, out: &mut [f32]) {
        let mut numbers = [0.0; BLOCK];
        let (mut skip, mut done) = (skip, 0);
        for block in bytes.chunks_exact(self.size_bytes()) {
            let n = (BLOCK - skip).min(out.len() - done);
            self.widen_block(block, &mut numbers);
            out[done..done + n].copy_from_slice(&numbers[skip..skip + n]);
            (skip, done) = (0, done + n);
        }
    }
}

fn half(low: u8, high: u8) -> f32 {
    f16::from_le_bytes([low, high]).to_f32()
}

/// The low halves of the bytes are the first 16 numbers, the high halves the others.
fn four_bits(scale: f32, offset: f32, nibbles: &[u8], out: &mut [f32; BLOCK]) {
    five_bits(scale, offset, 0, nibbles, out);
}

/// As [`four_bits`], and bit i of `fifth` is the highest bit of number i.
///
/// A product of the 11 bits of a scale and the 5 of an integer is exact, so the sum is what is
/// rounded, and with an offset of some integers times the scale it is exact too.
fn five_bits(scale: f32, offset: f32, fifth: u32, nibbles: &[u8], out: &mut [f32; BLOCK]) {
    let (low, high) = out.split_at_mut(BLOCK / 2);
    for (i, ((low, high), &byte)) in low.iter_mut().zip(high).zip(nibbles).enumerate() {
        let bit = |at: usize| ((fifth >> at) & 1) << 4;
        let number = |value: u32| scale * value as f32 + offset;
        *low = number(u32::from(byte & 15) | bit(i));
        *high = number(u32::from(byte >> 4) | bit(i + BLOCK / 2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scale 2, offset 0.5 where there is one, and every format's extremes.
    #[test]
    fn layouts() {
        let scale = f16::from_f32(2.0).to_le_bytes();
        let offset = f16::from_f32(0.5).to_le_bytes();
        let mut nibbles = [0u8; 16];
        nibbles[0] = 0xf1; // number 0 is 1, number 16 is 15
        nibbles[15] = 0x72; // number 15 is 2, number 31 is 7
        let fifth: [u8; 4] = (1u32 << 15 | 1 << 16).to_le_bytes();
        let values: Vec<u8> = (0..32u8)
            .map(|i| i.wrapping_sub(16).wrapping_mul(8))
            .collect();
        let at = [0, 15, 16, 31, 1];
        let cases = [
            (
                BlockFormat::Q4_0,
                [&scale[..], &nibbles].concat(),
                [-14.0, -12.0, 14.0, -2.0, -16.0],
            ),
            (
                BlockFormat::Q4_1,
                [&scale[..], &offset, &nibbles].concat(),
                [2.5, 4.5, 30.5, 14.5, 0.5],
            ),
            (
                BlockFormat::Q5_0,
                [&scale[..], &fifth, &nibbles].concat(),
                [-30.0, 4.0, 30.0, -18.0, -32.0],
            ),
            (
                BlockFormat::Q5_1,
                [&scale[..], &offset, &fifth, &nibbles].concat(),
                [2.5, 36.5, 62.5, 14.5, 0.5],
            ),
            (
                BlockFormat::Q8_0,
                [&scale[..], &values].concat(),
                [-256.0, -16.0, 0.0, 240.0, -240.0],
            ),
        ];
        for (format, bytes, expected) in cases {
            assert_eq!(bytes.len(), format.size_bytes());
            let mut all = [0.0; BLOCK];
            format.widen(&bytes, 0, &mut all);
            assert_eq!(at.map(|i| all[i]), expected, "{}", format.name());
            // Parts of a row of two blocks.
            let two = [&bytes[..], &bytes].concat();
            let whole = [all, all].concat();
            for (start, end) in [(0usize, 64usize), (5, 9), (31, 33), (40, 64), (32, 64)] {
                let first = start / BLOCK;
                let blocks = &two[first * bytes.len()..end.div_ceil(BLOCK) * bytes.len()];
                let mut out = vec![0.0; end - start];
                format.widen(blocks, start % BLOCK, &mut out);
                assert_eq!(out, whole[start..end]);
            }
        }
    }
}
