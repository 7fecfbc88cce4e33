//! Weights quantised in blocks, as ggml stores them and rwkv.cpp and llama.cpp write them.
//!
//! Used by `tensor.rs`, which sees to it that whole blocks are there. A block has one f16 scale for its
//! 32 numbers, some formats an offset too, and those of 256 numbers smaller scales within; what comes out
//! is `scale * integer + offset` in f32, which rounds at most once: a scale has 11 bits, a scale within a
//! block at most 8 and an integer at most 8, never more than 24 together.

#![forbid(unsafe_code)]

use half::f16;

/// Numbers of the largest blocks.
const BLOCK_MAX: usize = 256;

/// Numbers of the small blocks, and of the parts of the large ones.
const SMALL: usize = 32;

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
    /// f16 scale, 32 x 4 bits that number a step of [`STEPS`].
    Iq4Nl,
    /// f16 scale of scales, f16 scale of offsets, 8 scales and 8 offsets of 6 bits, 256 x 4 bits.
    Q4K,
    /// As `Q4K`, with the fifth bits in front of the others.
    Q5K,
    /// 256 x the low 4 bits, then the high 2, 32 less than stored; 16 scales of i8, and their f16 scale.
    Q6K,
}

/// What the 4 bits of `IQ4_NL` stand for: steps that are narrower near 0, where most weights are.
const STEPS: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

impl BlockFormat {
    /// Numbers of one block.
    pub(crate) fn numbers(self) -> usize {
        match self {
            BlockFormat::Q4_0
            | BlockFormat::Q4_1
            | BlockFormat::Q5_0
            | BlockFormat::Q5_1
            | BlockFormat::Q8_0
            | BlockFormat::Iq4Nl => SMALL,
            BlockFormat::Q4K | BlockFormat::Q5K | BlockFormat::Q6K => BLOCK_MAX,
        }
    }

    /// Of one block.
    pub(crate) fn size_bytes(self) -> usize {
        match self {
            BlockFormat::Q4_0 | BlockFormat::Iq4Nl => 2 + 16,
            BlockFormat::Q4_1 => 4 + 16,
            BlockFormat::Q5_0 => 2 + 4 + 16,
            BlockFormat::Q5_1 => 4 + 4 + 16,
            BlockFormat::Q8_0 => 2 + 32,
            BlockFormat::Q4K => 4 + 12 + 128,
            BlockFormat::Q5K => 4 + 12 + 32 + 128,
            BlockFormat::Q6K => 128 + 64 + 16 + 2,
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
            BlockFormat::Iq4Nl => "IQ4_NL",
            BlockFormat::Q4K => "Q4_K",
            BlockFormat::Q5K => "Q5_K",
            BlockFormat::Q6K => "Q6_K",
        }
    }

    /// The numbers of one block.
    fn widen_block(self, bytes: &[u8], out: &mut [f32]) {
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
            (BlockFormat::Iq4Nl, &[a, b, ref nibbles @ ..]) => {
                let step = |nibble: u8| half(a, b) * f32::from(STEPS[usize::from(nibble & 15)]);
                let (low, high) = out.split_at_mut(SMALL / 2);
                for ((low, high), &byte) in low.iter_mut().zip(high).zip(nibbles) {
                    (*low, *high) = (step(byte), step(byte >> 4));
                }
            }
            (BlockFormat::Q4K, &[a, b, c, d, ref rest @ ..]) if rest.len() == 12 + 128 => {
                let (scales, nibbles) = rest.split_at(12);
                k_groups((half(a, b), half(c, d)), scales, &[0; SMALL], nibbles, out);
            }
            (BlockFormat::Q5K, &[a, b, c, d, ref rest @ ..]) if rest.len() == 12 + 32 + 128 => {
                let (scales, rest) = rest.split_at(12);
                let (fifth, nibbles) = rest.split_at(SMALL);
                k_groups((half(a, b), half(c, d)), scales, fifth, nibbles, out);
            }
            (BlockFormat::Q6K, &[ref rest @ .., a, b]) if rest.len() == 128 + 64 + 16 => {
                let (low, rest) = rest.split_at(128);
                let (high, scales) = rest.split_at(64);
                let halves = low.chunks_exact(64).zip(high.chunks_exact(32));
                let halves = halves.zip(scales.chunks_exact(8));
                for (((low, high), scales), out) in halves.zip(out.chunks_exact_mut(128)) {
                    six_bits(half(a, b), scales, low, high, out);
                }
            }
            // Callers hand over whole blocks.
            _ => out.fill(f32::NAN),
        }
    }

    /// Numbers of a row of blocks: `bytes` are the blocks that hold them, `skip` the numbers of the
    /// first block before the first that is wanted.
    pub(crate) fn widen(self, bytes: &[u8], skip: usize, out: &mut [f32]) {
        let mut numbers = [0.0; BLOCK_MAX];
        let numbers = &mut numbers[..self.numbers()];
        let (mut skip, mut done) = (skip, 0);
        for block in bytes.chunks_exact(self.size_bytes()) {
            let n = (numbers.len() - skip).min(out.len() - done);
            self.widen_block(block, numbers);
            out[done..done + n].copy_from_slice(&numbers[skip..skip + n]);
            (skip, done) = (0, done + n);
        }
    }
}

fn half(low: u8, high: u8) -> f32 {
    f16::from_le_bytes([low, high]).to_f32()
}

/// The low halves of the bytes are the first 16 numbers, the high halves the others.
fn four_bits(scale: f32, offset: f32, nibbles: &[u8], out: &mut [f32]) {
    five_bits(scale, offset, 0, nibbles, out);
}

/// As [`four_bits`], and bit i of `fifth` is the highest bit of number i.
///
/// A product of the 11 bits of a scale and the 5 of an integer is exact, so the sum is what is
/// rounded, and with an offset of some integers times the scale it is exact too.
fn five_bits(scale: f32, offset: f32, fifth: u32, nibbles: &[u8], out: &mut [f32]) {
    let (low, high) = out.split_at_mut(SMALL / 2);
    for (i, ((low, high), &byte)) in low.iter_mut().zip(high).zip(nibbles).enumerate() {
        let bit = |at: usize| ((fifth >> at) & 1) << 4;
        let number = |value: u32| scale * value as f32 + offset;
        *low = number(u32::from(byte & 15) | bit(i));
        *high = number(u32::from(byte >> 4) | bit(i + SMALL / 2));
    }
}

/// The 8 groups of 32 numbers of `Q4_K` and `Q5_K`. Two groups share 32 bytes: the first has their low
/// halves, the second the high ones. Bit g of a byte of `fifth` (32 bytes) belongs to group g. `wide`:
/// what the scales and the offsets in `scales` (12 bytes) are multiplied by.
fn k_groups(wide: (f32, f32), scales: &[u8], fifth: &[u8], nibbles: &[u8], out: &mut [f32]) {
    for (group, out) in out.chunks_exact_mut(SMALL).enumerate() {
        let (scale, offset) = k_scale(scales, group);
        let (scale, offset) = (wide.0 * f32::from(scale), wide.1 * f32::from(offset));
        let nibbles = &nibbles[group / 2 * SMALL..][..SMALL];
        for ((out, &byte), &fifth) in out.iter_mut().zip(nibbles).zip(fifth) {
            let low = (byte >> (group % 2 * 4)) & 15;
            *out = scale * f32::from(low | ((fifth >> group) & 1) << 4) - offset;
        }
    }
}

/// Scale and offset of a group, 6 bits each: those of the first four are the low bits of 8 bytes, those of
/// the others lie in the last 4 bytes, with their highest two bits above the first ones'.
fn k_scale(packed: &[u8], group: usize) -> (u8, u8) {
    match group {
        0..4 => (packed[group] & 63, packed[group + 4] & 63),
        _ => (
            packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
            packed[group + 4] >> 4 | packed[group] >> 6 << 4,
        ),
    }
}

/// A half of `Q6_K`'s 128 numbers, in four runs of 32: of the 64 bytes of `low` the first two runs have the
/// low halves, the others the high ones; a byte of `high` has two bits for each run. 16 numbers share one
/// of the `scales`.
fn six_bits(wide: f32, scales: &[u8], low: &[u8], high: &[u8], out: &mut [f32]) {
    for (run, out) in out.chunks_exact_mut(SMALL).enumerate() {
        let low = &low[run % 2 * SMALL..][..SMALL];
        for (i, ((out, &low), &high)) in out.iter_mut().zip(low).zip(high).enumerate() {
            let scale = f32::from(scales[run * 2 + i / 16] as i8);
            let low = (low >> (run / 2 * 4)) & 15;
            let value = low | ((high >> (run * 2)) & 3) << 4;
            *out = wide * scale * (f32::from(value) - 32.0);
        }
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
            let mut all = [0.0; SMALL];
            format.widen(&bytes, 0, &mut all);
            assert_eq!(at.map(|i| all[i]), expected, "{}", format.name());
            // Parts of a row of two blocks.
            let two = [&bytes[..], &bytes].concat();
            let whole = [all, all].concat();
            for (start, end) in [(0usize, 64usize), (5, 9), (31, 33), (40, 64), (32, 64)] {
                let first = start / SMALL;
                let blocks = &two[first * bytes.len()..end.div_ceil(SMALL) * bytes.len()];
                let mut out = vec![0.0; end - start];
                format.widen(blocks, start % SMALL, &mut out);
                assert_eq!(out, whole[start..end]);
            }
        }
    }

    /// Random blocks of every format, against what llama.cpp's gguf-py reads from them: bit for bit.
    #[test]
    fn every_format_is_read_as_gguf_py_reads_it() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/gguf/blocks.json"
        );
        let text = std::fs::read_to_string(path).expect("a fixture");
        let cases: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let cases = cases.as_object().expect("an object");
        let formats = [
            BlockFormat::Q4_0,
            BlockFormat::Q4_1,
            BlockFormat::Q5_0,
            BlockFormat::Q5_1,
            BlockFormat::Q8_0,
            BlockFormat::Iq4Nl,
            BlockFormat::Q4K,
            BlockFormat::Q5K,
            BlockFormat::Q6K,
        ];
        assert_eq!(cases.len(), formats.len());
        for format in formats {
            let name = format.name();
            let case = &cases[name];
            assert_eq!(case["block_values"], format.numbers(), "{name}");
            assert_eq!(case["block_bytes"], format.size_bytes(), "{name}");
            let hex = case["hex"].as_str().expect("text").as_bytes();
            let digit = |byte: u8| (byte as char).to_digit(16).expect("a digit") as u8;
            let pairs = hex.chunks_exact(2);
            let bytes: Vec<u8> = pairs
                .map(|two| digit(two[0]) << 4 | digit(two[1]))
                .collect();
            let values = case["values"].as_array().expect("a list").iter();
            // Nine digits tell every f32 from its neighbours.
            let values: Vec<f32> = values
                .map(|value| value.as_f64().expect("a number") as f32)
                .collect();
            let mut found = vec![0.0; values.len()];
            format.widen(&bytes, 0, &mut found);
            let differ = found.iter().zip(&values).position(|(a, b)| a != b);
            assert_eq!(differ.map(|i| (i, found[i], values[i])), None, "{name}");
            // From any number on to any other.
            for (start, end) in [
                (1, values.len()),
                (31, 33),
                (97, 98),
                (100, values.len() - 1),
            ] {
                let blocks = start / format.numbers()..end.div_ceil(format.numbers());
                let size = format.size_bytes();
                let mut part = vec![0.0; end - start];
                let bytes = &bytes[blocks.start * size..blocks.end * size];
                format.widen(bytes, start % format.numbers(), &mut part);
                assert_eq!(part, values[start..end], "{name}: {start}..{end}");
            }
        }
    }
}
