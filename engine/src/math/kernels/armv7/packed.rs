//! Packed weights of 4 to 6 bits; the inner loops are in `packed.s`, a row at a time, and `packed.rs` beside the instruction
//! sets has the layout.
//!
//! Activations have 16 bits, so each is split into two signed bytes, `x = 256 * high + low`. With 4 bits products are made
//! with codes, with 5 and 6 bits with the numbers `u` themselves, which are bytes below 64; what `code = 2 * u - offset`
//! leaves out is the same for every row but for the scales, the sum of a block's activations. All sums are exact modulo 2^32.
//!
//! Products take 50 instructions for a unit of 64 weights, as int8 takes 48; reading them for sums and panels widens them
//! first, which takes 32 to 39.

use std::arch::global_asm;
use std::mem::MaybeUninit;

use super::super::packed::{PackedRow, PackedRows, BLOCK, NIBBLE_CODES, UNIT};
use super::super::{Rows, PANEL_WIDTH};
use super::{padded, rwkv_edge_add_row_i16, STEP};

global_asm!(include_str!("packed.s"), options(raw));

/// Units whose activations are split at once: 4,096 columns, 9 KiB on the stack.
const SPLIT_UNITS: usize = 64;
/// Bytes of the split activations of a unit, with four sums.
const SPLIT_BYTES: usize = 2 * UNIT + 16;
/// Units that are widened at once for a gather: 2 KiB on the stack.
const WIDENED_UNITS: usize = 16;

/// Products of a row in the low word; those of scales and activations alone in the high one.
type Dot = unsafe extern "C" fn(*const u8, *const u8, *const u8, *const i8, usize) -> u64;
type Widen = unsafe extern "C" fn(*const u8, *const u8, *const u8, *mut i16, usize);

// None may be called with 0 units. Low bits, high bits, of which rows of four bits have none and pass the codes, and scales.
extern "C" {
    fn rwkv_edge_dot_q4(
        low: *const u8,
        codes: *const u8,
        scales: *const u8,
        x: *const i8,
        units: usize,
    ) -> u64;
    fn rwkv_edge_dot_q5(
        low: *const u8,
        high: *const u8,
        scales: *const u8,
        x: *const i8,
        units: usize,
    ) -> u64;
    fn rwkv_edge_dot_q6(
        low: *const u8,
        high: *const u8,
        scales: *const u8,
        x: *const i8,
        units: usize,
    ) -> u64;
    fn rwkv_edge_widen_q4(
        low: *const u8,
        codes: *const u8,
        scales: *const u8,
        out: *mut i16,
        units: usize,
    );
    fn rwkv_edge_widen_q5(
        low: *const u8,
        high: *const u8,
        scales: *const u8,
        out: *mut i16,
        units: usize,
    );
    fn rwkv_edge_widen_q6(
        low: *const u8,
        high: *const u8,
        scales: *const u8,
        out: *mut i16,
        units: usize,
    );
    fn rwkv_edge_split(x: *const i16, target: *mut i8, units: usize);
}

/// What depends on the bits of a weight.
#[derive(Clone, Copy)]
struct Kind {
    dot: Dot,
    widen: Widen,
    /// `code = factor * u - offset` of the numbers that products are made with.
    factor: i32,
    offset: i32,
    /// High bytes of a unit.
    n_high: usize,
}

impl Kind {
    fn new(bits: u32) -> Self {
        let (dot, widen, factor, offset): (Dot, Widen, i32, i32) = match bits {
            5 => (rwkv_edge_dot_q5, rwkv_edge_widen_q5, 2, 31),
            6 => (rwkv_edge_dot_q6, rwkv_edge_widen_q6, 2, 63),
            // Numbers are codes.
            _ => (rwkv_edge_dot_q4, rwkv_edge_widen_q4, 1, 0),
        };
        Kind {
            dot,
            widen,
            factor,
            offset,
            n_high: 8 * (bits as usize - 4),
        }
    }

    /// Where the low bits, the high bits or codes, and the scales of a row are, from a unit on, of which it has `n` or more.
    fn parts(self, row: &PackedRow<'_>, unit: usize, n: usize) -> [*const u8; 3] {
        let high = match self.n_high {
            0 => NIBBLE_CODES.as_ptr().cast(),
            n_high => row.high[unit * n_high..][..n * n_high].as_ptr(),
        };
        let low = row.low[unit * BLOCK..][..n * BLOCK].as_ptr();
        [low, high, row.scales[unit..][..n].as_ptr()]
    }

    /// The weights of some whole units from `unit` on as integers, as many as there is room for.
    fn widen(self, row: &PackedRow<'_>, unit: usize, out: &mut [i16]) {
        let n = out.len() / UNIT;
        let [low, high, scales] = self.parts(row, unit, n);
        if n > 0 {
            // SAFETY: `parts` has seen that the row has so many units; a `Neon` was at hand.
            unsafe { (self.widen)(low, high, scales, out.as_mut_ptr(), n) };
        }
    }
}

/// Activations of some units, as products want them: of each sixteen the high and the low bytes, behind each unit the sums of
/// its first block, in two parts, and of its second.
struct Split(MaybeUninit<[i8; SPLIT_UNITS * SPLIT_BYTES]>);

impl Split {
    /// Splits up to `SPLIT_UNITS * UNIT` activations, missing ones being 0; returns how many units there are.
    fn fill(&mut self, x: &[i16]) -> usize {
        assert!(x.len() <= SPLIT_UNITS * UNIT);
        let target: *mut i8 = self.0.as_mut_ptr().cast();
        let (whole, part) = x.split_at(x.len() / UNIT * UNIT);
        let n = whole.len() / UNIT;
        if n > 0 {
            // SAFETY: `whole` has `n` units, for which there is room; a `Neon` was at hand.
            unsafe { rwkv_edge_split(whole.as_ptr(), target, n) };
        }
        if part.is_empty() {
            return n;
        }
        let mut last = [0_i16; UNIT];
        last[..part.len()].copy_from_slice(part);
        // SAFETY: as above; with this unit there are no more than `SPLIT_UNITS`.
        unsafe { rwkv_edge_split(last.as_ptr(), target.add(n * SPLIT_BYTES), 1) };
        n + 1
    }
}

// The functions below are called with lengths that `KernelSet` asserted, by a `Neon`.

pub(super) fn dots(weights: PackedRows<'_>, x: Rows<'_, i16>, out: &mut [i32]) {
    out.fill(0);
    let kind = Kind::new(weights.bits);
    let n_out = weights.n_rows();
    let mut split = Split(MaybeUninit::uninit());
    for t in 0..x.n {
        let x = &x.values[t * x.stride..][..weights.cols];
        let out = &mut out[t * n_out..][..n_out];
        for (piece, x) in x.chunks(SPLIT_UNITS * UNIT).enumerate() {
            let n = split.fill(x);
            for (index, out) in out.iter_mut().enumerate() {
                let row = weights.row(index);
                let [low, high, scales] = kind.parts(&row, piece * SPLIT_UNITS, n);
                // SAFETY: `parts` has seen that the row has these units, which are one or more, and `split` has their
                // activations.
                let sums = unsafe { (kind.dot)(low, high, scales, split.0.as_ptr().cast(), n) };
                let products = (sums as i32).wrapping_mul(kind.factor);
                let of_x = ((sums >> 32) as i32).wrapping_mul(kind.offset);
                *out = out.wrapping_add(products.wrapping_sub(of_x));
            }
        }
    }
}

pub(super) fn widen(weights: PackedRows<'_>, out: &mut [i16]) {
    let kind = Kind::new(weights.bits);
    for (index, out) in out.chunks_exact_mut(weights.cols).enumerate() {
        let row = weights.row(index);
        let n = out.len() / UNIT;
        let (whole, part) = out.split_at_mut(n * UNIT);
        kind.widen(&row, 0, whole);
        if !part.is_empty() {
            let mut last = [0; UNIT];
            kind.widen(&row, n, &mut last);
            part.copy_from_slice(&last[..part.len()]);
        }
    }
}

pub(super) fn gather(weights: PackedRows<'_>, rows: &[u32], values: &[i16], out: &mut [i32]) {
    out.fill(0);
    let kind = Kind::new(weights.bits);
    let mut widened = [0_i16; WIDENED_UNITS * UNIT];
    for (&row, value) in rows.iter().zip(values) {
        let row = weights.row(row as usize);
        for (piece, out) in out.chunks_mut(WIDENED_UNITS * UNIT).enumerate() {
            let widened = &mut widened[..out.len().next_multiple_of(UNIT)];
            kind.widen(&row, piece * WIDENED_UNITS, widened);
            let steps = out.len() / STEP;
            if steps > 0 {
                // SAFETY: both have so many steps; a `Neon` was at hand.
                unsafe {
                    rwkv_edge_add_row_i16(widened.as_ptr(), out.as_mut_ptr(), steps, value);
                }
            }
            let part = &mut out[steps * STEP..];
            if !part.is_empty() {
                let mut sums = padded(part);
                let weights = &widened[steps * STEP..][..STEP];
                // SAFETY: both have one step: a unit is four.
                unsafe { rwkv_edge_add_row_i16(weights.as_ptr(), sums.as_mut_ptr(), 1, value) };
                part.copy_from_slice(&sums[..part.len()]);
            }
        }
    }
}

pub(super) fn pack(weights: PackedRows<'_>, first: usize, n: usize, panel: &mut [i16]) {
    panel.fill(0);
    let kind = Kind::new(weights.bits);
    let mut widened = [0; 2 * UNIT];
    // The columns lie in one unit or in two.
    let (unit, at) = (first / UNIT, first % UNIT);
    let n_units = (at + n).div_ceil(UNIT);
    for r in 0..weights.n_rows() {
        kind.widen(&weights.row(r), unit, &mut widened[..n_units * UNIT]);
        let columns = &widened[at..at + n];
        let panel = &mut panel[r / 2 * 2 * PANEL_WIDTH + r % 2..];
        for (panel, &weight) in panel.iter_mut().step_by(2).zip(columns) {
            *panel = weight;
        }
    }
}
