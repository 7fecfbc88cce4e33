//! Weights of 4, 5 and 6 bits in blocks of 32, each with a scale of 4 bits: how they lie in memory, and kernels for them in
//! plain Rust, which are the specification of the others.
//!
//! A row is cut into units of 64 weights, which are two blocks; a row that ends inside a unit is filled up with weights
//! that nothing is multiplied with. With `bits` bits a weight and `n` units a row is
//!
//! ```text
//! scales     n bytes              scale of the unit's first block in the low four bits, of its second in the high ones
//! low bits   n * 32 bytes         byte 16 * block + j: four bits of weight j of the block, and above them of weight j + 16
//! high bits  n * 8 * (bits - 4)   the bits above those four; see `high_bits`
//! ```
//!
//! The bits of a weight are a number `u`, which means a code; the weight is `(scale + 1) * code`, an integer of at most
//! [`PACKED_WEIGHT_MAX`]. Every byte is valid. Sums of products with 16-bit activations are exact integers, so they are the
//! same in every order: the format holds for every instruction set, cutting and number of threads.
//!
//! The order of the bits is made for the kernels: one load, a mask and a shift give two registers of 32 codes of which each
//! half has one scale.

#![forbid(unsafe_code)]

use super::{Rows, PANEL_WIDTH};

/// Weights that share a scale.
pub(crate) const BLOCK: usize = 32;
/// Weights of two blocks, which lie together.
pub(crate) const UNIT: usize = 2 * BLOCK;
/// Bounds `|(scale + 1) * code|`.
pub(crate) const PACKED_WEIGHT_MAX: i32 = 1024;
/// The largest activation that products with packed weights take: its high byte, `(x + 128) >> 8`, still fits eight bits.
pub(crate) const PACKED_ACTIVATION_MAX: i16 = 127 * 256 + 127;

/// What four bits mean. The 16 steps lie where the weights of a block are: in halves of the densest steps near 0, wide
/// ones at the ends (docs/QUANTIZATION.md has how they were found). Plus [`NIBBLE_OFFSET`] they fit six bits, so that two
/// products with bytes of activations still fit 16 bits.
pub(crate) const NIBBLE_CODES: [i8; 16] = [
    -32, -26, -20, -16, -12, -9, -6, -3, 0, 3, 6, 9, 13, 17, 22, 29,
];
/// See [`NIBBLE_CODES`].
#[cfg(target_arch = "x86_64")]
pub(super) const NIBBLE_OFFSET: i32 = 32;

/// A call for packed weights with their bits as a constant, `$BITS`.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! of_bits {
    ($weights:expr, $BITS:ident => $call:expr) => {
        match $weights.bits {
            4 => {
                const $BITS: u32 = 4;
                $call
            }
            5 => {
                const $BITS: u32 = 5;
                $call
            }
            _ => {
                const $BITS: u32 = 6;
                $call
            }
        }
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) use of_bits;

/// Rows of packed weights.
#[derive(Clone, Copy)]
pub struct PackedRows<'a> {
    /// All rows, each as many bytes as its weights take in whole units of 64.
    pub bytes: &'a [u8],
    /// Weights of a row.
    pub cols: usize,
    /// Of one weight: 4, 5 or 6.
    pub bits: u32,
}

impl<'a> PackedRows<'a> {
    pub(super) fn row_bytes(&self) -> usize {
        packed_row_bytes(self.bits, self.cols)
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.bytes.len() / self.row_bytes().max(1)
    }

    pub(crate) fn row(&self, index: usize) -> PackedRow<'a> {
        let n_units = self.cols.div_ceil(UNIT);
        let row = &self.bytes[index * self.row_bytes()..][..self.row_bytes()];
        let (scales, rest) = row.split_at(n_units);
        let (low, high) = rest.split_at(n_units * BLOCK);
        PackedRow {
            bytes: row,
            scales,
            low,
            high,
            bits: self.bits,
        }
    }

    pub(super) fn check(&self) {
        assert!((4..=6).contains(&self.bits) && self.cols > 0);
        assert_eq!(self.bytes.len() % self.row_bytes(), 0);
    }
}

/// Bytes of one row of `cols` weights.
pub(crate) const fn packed_row_bytes(bits: u32, cols: usize) -> usize {
    let of_unit = 1 + BLOCK + 8 * (bits as usize - 4);
    cols.div_ceil(UNIT).saturating_mul(of_unit)
}

/// The parts of one row.
pub(crate) struct PackedRow<'a> {
    /// All of it, which begins with the scales.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) bytes: &'a [u8],
    pub(super) scales: &'a [u8],
    pub(super) low: &'a [u8],
    pub(super) high: &'a [u8],
    bits: u32,
}

impl PackedRow<'_> {
    /// The weights of one unit as integers.
    pub(crate) fn unit(&self, unit: usize) -> [i16; UNIT] {
        let n_high = 8 * (self.bits as usize - 4);
        let (low, high) = (&self.low[unit * BLOCK..], &self.high[unit * n_high..]);
        let mask = (1 << (self.bits - 4)) - 1;
        std::array::from_fn(|column| {
            let (block, at) = (column / BLOCK, column % BLOCK);
            let scale = self.scales[unit] >> (4 * block) & 15;
            let low = low[block * 16 + at % 16] >> (4 * (at / 16)) & 15;
            let high = match self.bits {
                4 => 0,
                bits => {
                    let (byte, shift) = high_bits(bits, block, at);
                    high[byte] >> shift & mask
                }
            };
            (i16::from(scale) + 1) * i16::from(code(self.bits, high << 4 | low))
        })
    }
}

/// Where the high bits of weight `at` of a block of a unit are: the byte among those of the unit, and the place in it.
///
/// A register of 32 codes is four words of eight bytes. With five bits, word `w` of the first register has its bits at
/// place `w` of the unit's eight bytes, that of the second at place `4 + w`; with six bits a unit has sixteen bytes, of
/// which each half of a register takes one pair of bits.
pub(crate) fn high_bits(bits: u32, block: usize, at: usize) -> (usize, usize) {
    let (register, in_half) = (at / 16, at % 16);
    match bits {
        6 => (in_half, 2 * (2 * register + block)),
        _ => (in_half % 8, 4 * register + 2 * block + in_half / 8),
    }
}

/// What the bits of one weight mean.
pub(crate) fn code(bits: u32, u: u8) -> i8 {
    match bits {
        5 => 2 * (u & 31) as i8 - 31,
        6 => 2 * (u & 63) as i8 - 63,
        _ => NIBBLE_CODES[usize::from(u & 15)],
    }
}

pub(super) fn dots_packed(weights: PackedRows<'_>, x: Rows<'_, i16>, out: &mut [i32]) {
    let n_out = weights.n_rows();
    for (t, out) in out.chunks_exact_mut(n_out.max(1)).enumerate() {
        let x = &x.values[t * x.stride..][..weights.cols];
        for (index, out) in out.iter_mut().enumerate() {
            let row = weights.row(index);
            *out = 0;
            for (unit, x) in x.chunks(UNIT).enumerate() {
                let products = row.unit(unit).into_iter().zip(x);
                *out = products.fold(*out, |sum, (weight, &x)| {
                    sum.wrapping_add(i32::from(weight) * i32::from(x))
                });
            }
        }
    }
}

pub(super) fn widen_packed(weights: PackedRows<'_>, out: &mut [i16]) {
    for (index, out) in out.chunks_exact_mut(weights.cols).enumerate() {
        let row = weights.row(index);
        for (unit, out) in out.chunks_mut(UNIT).enumerate() {
            out.copy_from_slice(&row.unit(unit)[..out.len()]);
        }
    }
}

pub(super) fn gather_packed(
    weights: PackedRows<'_>,
    rows: &[u32],
    values: &[i16],
    out: &mut [i32],
) {
    out.fill(0);
    for (&row, &value) in rows.iter().zip(values) {
        let row = weights.row(row as usize);
        for (unit, out) in out.chunks_mut(UNIT).enumerate() {
            for (out, weight) in out.iter_mut().zip(row.unit(unit)) {
                *out = out.wrapping_add(i32::from(weight) * i32::from(value));
            }
        }
    }
}

pub(super) fn pack_packed(weights: PackedRows<'_>, first: usize, n: usize, panel: &mut [i16]) {
    panel.fill(0);
    for r in 0..weights.n_rows() {
        let row = weights.row(r);
        for unit in first / UNIT..(first + n).div_ceil(UNIT) {
            let columns = (unit * UNIT..).zip(row.unit(unit));
            let wanted = columns.filter(|(column, _)| (first..first + n).contains(column));
            for (column, weight) in wanted {
                panel[(r / 2 * PANEL_WIDTH + column - first) * 2 + r % 2] = weight;
            }
        }
    }
}
