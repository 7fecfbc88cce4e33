//! 4, 5 and 6 bits: `weight[r, c] ~ integer[r, c] * row_scales[r] / 512 * 2^(column_exponents[c] / 4)`, where the integer is the
//! code that the weight's bits mean times the scale of its block, 1 to 16.
//!
//! ```text
//! part           model file             device plugin
//! weights        U8 (r, bytes a row)    values             see `math/kernels/packed.rs`; every byte is valid
//! scales                                                    see `scales.rs`
//! ```
//!
//! A block of 32 weights with its scale takes 4.125, 5.125 or 6.125 bits a weight. Sums are exact integers, as with int8.
//!
//! When quantising, the scale of each block is searched for: of some sizes of its largest weight, with the best factor for
//! what each rounds to, the one with the least expected error of the outputs; then the integer that is nearest to it, or
//! one beside that, whichever errs less. docs/QUANTIZATION.md has what else was tried, and the numbers.

#![forbid(unsafe_code)]

use std::ops::Range;

use half::f16;

use super::blocks::{Block, Blocks};
use super::matrix::{Buffer, Layout};
use super::parts::{Numbers, PartKind};
use super::scales::{self, check_scales, ColumnExponents, Scales};
use super::{
    ByInput, Format, Inputs, IntegerSums, Quant, Room, SumsOfIntegers, TakeParts, Weights,
};
use crate::error::Result;
use crate::files::FileBytes;

use crate::math::kernels::fetch::fetch;
use crate::math::kernels::packed::{code, high_bits, packed_row_bytes, BLOCK, UNIT};
use crate::math::kernels::{ActivationBounds, KernelSet, PackedRows};
use crate::math::threads::{ColumnBlock, Columns};
use crate::math::{collected, zeroed};

/// A weight of 1 in the scale of its row: then row scales are about as large as the largest weights, and in the range of f16
/// where these are.
const STEP: f32 = 1.0 / 512.0;
/// The largest scale of a block.
const SCALE_MAX: u8 = 16;
/// From so many rows of activations on, weights are widened to 16 bits once for all rows: in AVX2 that takes 0.05 ns a weight,
/// then 0.014 a row, where each row takes 0.025 from the bits.
const WIDENED_FROM: usize = 5;

/// A matrix of numbers of `BITS` bits.
#[derive(Clone)]
pub(crate) struct Packed<const BITS: u32> {
    /// (n_rows, [`packed_row_bytes`])
    values: Buffer<u8>,
    scales: Scales,
}

impl<const BITS: u32> Packed<BITS> {
    const QUANT: Quant = match BITS {
        4 => Quant::Q4,
        5 => Quant::Q5,
        _ => Quant::Q6,
    };
    const NAME: &'static str = match BITS {
        4 => "q4",
        5 => "q5",
        _ => "q6",
    };

    #[inline]
    fn rows(&self, n_cols: usize, rows: &Range<usize>) -> PackedRows<'_> {
        let row_bytes = packed_row_bytes(BITS, n_cols);
        PackedRows {
            bytes: &self.values.as_slice()[rows.start * row_bytes..rows.end * row_bytes],
            cols: n_cols,
            bits: BITS,
        }
    }
}

impl<const BITS: u32> SumsOfIntegers for Packed<BITS> {
    fn output_factors(&self, layout: Layout) -> &[f32] {
        self.scales.output_factors(layout)
    }

    #[inline]
    fn gather(
        &self,
        kernels: KernelSet,
        inputs: Range<usize>,
        rows: &[u32],
        values: &[i16],
        out: &mut [i32],
    ) {
        kernels.gather_packed(self.rows(out.len(), &inputs), rows, values, out);
    }

    fn pack(
        &self,
        kernels: KernelSet,
        n_cols: usize,
        inputs: Range<usize>,
        outputs: Range<usize>,
        panel: &mut [i16],
    ) {
        kernels.pack_packed(
            self.rows(n_cols, &inputs),
            outputs.start,
            outputs.len(),
            panel,
        );
    }
}

macro_rules! into_weights {
    ($($bits:literal => $variant:ident),*) => {
        $(
            impl From<Packed<$bits>> for Weights {
                fn from(packed: Packed<$bits>) -> Self {
                    Weights::$variant(packed)
                }
            }

            impl<'a> From<&'a Packed<$bits>> for IntegerSums<'a> {
                fn from(packed: &'a Packed<$bits>) -> Self {
                    IntegerSums::$variant(packed)
                }
            }
        )*
    };
}
into_weights!(4 => Q4, 5 => Q5, 6 => Q6);

impl<const BITS: u32> Format for Packed<BITS>
where
    Weights: From<Packed<BITS>>,
    for<'a> IntegerSums<'a>: From<&'a Packed<BITS>>,
{
    const QUANT: Quant = Self::QUANT;
    const NAME: &'static str = Self::NAME;

    fn parts(n_rows: usize, n_cols: usize) -> Vec<PartKind> {
        let values = PartKind::values(Numbers::U8, n_rows, packed_row_bytes(BITS, n_cols));
        std::iter::once(values)
            .chain(Scales::parts(n_rows, n_cols))
            .collect()
    }

    fn kept_bytes(n_rows: u64, n_cols: u64) -> u64 {
        Scales::kept_bytes(n_rows, n_cols)
    }

    fn check_part(index: usize, bytes: &[u8]) -> std::result::Result<(), String> {
        Scales::check_part(index, bytes)
    }

    fn from_parts(
        (_, n_cols): (usize, usize),
        parts: &[Option<FileBytes>],
    ) -> Result<Option<Self>> {
        let Some((Some(values), beside)) = parts.split_first() else {
            return Ok(None);
        };
        let Some(values) = Buffer::in_file(values.clone()) else {
            return Ok(None);
        };
        let scales = Scales::from_parts(n_cols, beside, STEP)?;
        Ok(scales.map(|scales| Packed { values, scales }))
    }

    #[inline]
    fn values(&self) -> &[u8] {
        self.values.as_slice()
    }

    fn beside(&self) -> Vec<&[u8]> {
        self.scales.beside()
    }

    fn in_file_bytes(&self) -> Option<&FileBytes> {
        self.values.file_bytes()
    }

    fn convert(blocks: &mut Blocks<'_>) -> Result<Self> {
        let rounding = Rounding::<BITS>::new(blocks)?;
        let (values, scales) = scales::convert(blocks, rounding)?;
        let values = Buffer::owned(values);
        Ok(Packed { values, scales })
    }

    fn convert_in_pieces(blocks: &mut Blocks<'_>, take: &mut TakeParts<'_>) -> Result<()> {
        let rounding = Rounding::<BITS>::new(blocks)?;
        scales::convert_in_pieces(blocks, &rounding, take)
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        let n_cols = out.len();
        let rows = self.rows(n_cols, &(row..row + 1));
        let (scale, factors) = (self.scales.row_factors[row], &self.scales.column_factors);
        let units = out.chunks_mut(UNIT).zip(factors.chunks(UNIT));
        for (unit, (out, factors)) in units.enumerate() {
            let integers = rows.row(0).unit(unit);
            for ((out, integer), &factor) in out.iter_mut().zip(integers).zip(factors) {
                *out = f32::from(integer) * scale * factor;
            }
        }
    }

    fn input_factors(&self, layout: Layout) -> Option<&[f32]> {
        Some(self.scales.input_factors(layout))
    }

    fn activation_bounds(&self) -> ActivationBounds {
        ActivationBounds::PACKED
    }

    #[inline]
    fn dots(
        &self,
        kernels: KernelSet,
        n_cols: usize,
        inputs: &Inputs<'_>,
        room: Room<'_>,
        out: &mut ColumnBlock<'_, f32>,
    ) {
        let outputs = out.columns();
        let factors = &self.scales.row_factors[outputs.clone()];
        fetch(factors);
        let x = inputs.integers;
        let n_widened = room.widened.len() / n_cols;
        if x.n < WIDENED_FROM || n_widened == 0 {
            let weights = self.rows(n_cols, &outputs);
            kernels.dots_packed(weights, x, room.sums);
            return inputs.rescale(kernels, room.sums, factors, 0, out);
        }
        for first in outputs.clone().step_by(n_widened) {
            let rows = first..(first + n_widened).min(outputs.end);
            let widened = &mut room.widened[..rows.len() * n_cols];
            let sums = &mut room.sums[..rows.len() * x.n];
            kernels.widen_packed(self.rows(n_cols, &rows), widened);
            kernels.dots_i16(widened, x, n_cols, sums);
            let first = rows.start - outputs.start;
            let factors = &factors[first..][..rows.len()];
            inputs.rescale(kernels, sums, factors, first, out);
        }
    }

    fn by_input(&self) -> ByInput<'_> {
        ByInput::Integers(self.into())
    }
}

/// How the rows of a matrix are rounded.
struct Rounding<const BITS: u32> {
    columns: ColumnExponents,
    /// (n_cols, filled up to whole units) what an error of one in the integers of a column costs, relative to the others
    weights: Vec<f32>,
}

impl<const BITS: u32> Rounding<BITS> {
    /// Reads the matrix, several times where it is large.
    ///
    /// # Errors
    /// Those of reading it.
    fn new(blocks: &mut Blocks<'_>) -> Result<Self> {
        let columns = ColumnExponents::new(blocks)?;
        let squares = &blocks.importance.columns;
        let n_cols = columns.inverses.len();
        let is_known = squares.len() == n_cols;
        let mean = squares.iter().map(|&x| f64::from(x)).sum::<f64>() / n_cols as f64;
        let is_known = is_known && mean.is_finite() && mean > 0.0;
        let weight = |column: usize| match columns.inverses.get(column) {
            None => 0.0,
            Some(inverse) => {
                // What is known are means over many texts: no input is taken to be 0.
                let square = match is_known {
                    true => (f64::from(squares[column]) / mean).max(INPUT_SQUARE_MIN) as f32,
                    false => 1.0,
                };
                square / (inverse * inverse)
            }
        };
        let weights = collected(
            (0..n_cols.next_multiple_of(UNIT)).map(weight),
            scales::SCALES,
        )?;
        Ok(Rounding { columns, weights })
    }
}

/// See [`Rounding::new`].
const INPUT_SQUARE_MIN: f64 = 1.0 / 4096.0;

impl<const BITS: u32> scales::Rounding for Rounding<BITS> {
    type Number = u8;
    const STEP: f32 = STEP;

    fn columns(&self) -> &ColumnExponents {
        &self.columns
    }

    fn row_numbers(&self) -> usize {
        packed_row_bytes(BITS, self.columns.inverses.len())
    }

    fn round(&self, block: &Block<'_>, values: &mut [u8], row_scales: &mut [f16]) -> Result<()> {
        let (n_cols, row_bytes) = (self.columns.inverses.len(), self.row_numbers());
        let (codes, n_blocks) = (Codes::new::<BITS>(), self.weights.len() / BLOCK);
        let mut best_scales = zeroed(block.rows.len().saturating_mul(n_blocks), scales::SCALES)?;
        let rows = (
            Columns::new(values, row_bytes),
            Columns::new(&mut best_scales, n_blocks),
        );
        let round = |row: usize, values: &mut [u8], best: &mut [f32], scale: &mut f16| {
            let numbers = &block.numbers[row * n_cols..][..n_cols];
            let mut largest = 0.0_f32;
            for (index, best) in best.iter_mut().enumerate() {
                *best = self.block(numbers, index).best_scale(&codes);
                largest = if *best > largest { *best } else { largest };
            }
            *scale = f16::from_f32(largest / (f32::from(SCALE_MAX) * STEP));
            let mut packed = PackedRowMut::<BITS>::new(values);
            let step = scale.to_f32() * STEP;
            for (index, &best) in best.iter().enumerate() {
                let (scale, bits) = self.block(numbers, index).round(&codes, best, step);
                packed.put(index, scale, &bits);
            }
        };
        block.pool.run_rows(rows, row_scales, round);
        check_scales(block, row_scales, (Packed::<BITS>::NAME, "6e4"))
    }
}

impl<const BITS: u32> Rounding<BITS> {
    /// One block of a row, with the columns' factors taken out; 0 behind the last column.
    #[inline]
    fn block(&self, row: &[f32], index: usize) -> BlockOfRow {
        let columns = index * BLOCK..((index + 1) * BLOCK).min(row.len());
        let mut block = BlockOfRow {
            x: [0.0; BLOCK],
            weights: [0.0; BLOCK],
        };
        if !columns.is_empty() && columns.start < row.len() {
            let numbers = row[columns.clone()].iter();
            let numbers = numbers.zip(&self.columns.inverses[columns.clone()]);
            for (x, (number, inverse)) in block.x.iter_mut().zip(numbers) {
                *x = number * inverse;
            }
        }
        block
            .weights
            .copy_from_slice(&self.weights[index * BLOCK..][..BLOCK]);
        block
    }
}

/// The weights of one block.
struct BlockOfRow {
    x: [f32; BLOCK],
    /// What errors cost.
    weights: [f32; BLOCK],
}

impl BlockOfRow {
    /// The scale with the least error: of some that make the largest weight a certain code, each with the factor that fits best
    /// what it rounds to.
    #[inline]
    fn best_scale(&self, codes: &Codes) -> f32 {
        let largest = self.x.iter().fold(0.0_f32, |a, &x| a.max(x.abs()));
        if !largest.is_finite() {
            return f32::INFINITY;
        }
        let inverse = codes.largest / largest;
        // A block of zeros, or of numbers so small that their inverses overflow.
        if !inverse.is_finite() {
            return 0.0;
        }
        let (mut best, mut best_saved) = (0.0, 0.0);
        for size in codes.sizes {
            let (mut along, mut square) = ([0.0_f32; BLOCK], [0.0_f32; BLOCK]);
            for i in 0..BLOCK {
                let rounded = codes.nearest(self.x[i] * (inverse * size));
                along[i] = self.weights[i] * self.x[i] * rounded;
                square[i] = self.weights[i] * rounded * rounded;
            }
            // With the best factor the error is the sum of all squares less this.
            let (along, square) = (sum(along), sum(square));
            let saved = along * along / square;
            if saved > best_saved {
                (best, best_saved) = (along / square, saved);
            }
        }
        best
    }

    /// The scale of the block, 1 to 16 times `step`, near the best one, and the bits of its weights.
    #[inline]
    fn round(&self, codes: &Codes, best_scale: f32, step: f32) -> (u8, [u8; BLOCK]) {
        let mut best = (1, std::array::from_fn(|i| codes.zero(i)));
        if step == 0.0 {
            return best;
        }
        let wanted = (best_scale / step).round();
        let wanted = wanted.clamp(1.0, f32::from(SCALE_MAX)) as u8;
        let mut least = f32::INFINITY;
        for scale in wanted.saturating_sub(1).max(1)..=(wanted + 1).min(SCALE_MAX) {
            let scaled = step * f32::from(scale);
            let inverse = 1.0 / scaled;
            let error = sum(std::array::from_fn(|i| {
                let error = self.x[i] - scaled * codes.nearest(self.x[i] * inverse);
                self.weights[i] * error * error
            }));
            if error < least {
                least = error;
                best.0 = scale;
                best.1 = std::array::from_fn(|i| match self.x[i] {
                    0.0 => codes.zero(i),
                    x => codes.bits(x * inverse),
                });
            }
        }
        best
    }
}

/// In one order, without a chain of additions.
#[inline(always)]
fn sum(mut numbers: [f32; BLOCK]) -> f32 {
    let mut n = BLOCK;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            numbers[i] += numbers[i + n];
        }
    }
    numbers[0]
}

/// Half steps from the smallest code that there can be to the largest.
const HALVES: usize = 4 * 64 + 2;

/// The codes of a format, and which is nearest.
struct Codes {
    /// What largest weights are scaled to.
    largest: f32,
    /// Parts of that which are tried.
    sizes: &'static [f32],
    /// The bits of the code 0, or of those beside it.
    zeros: [u8; 2],
    /// The code next to the numbers of each half step, from -64 on. Where two codes meet is a multiple of 1/2.
    nearest: [f32; HALVES],
    /// Its bits.
    bits: [u8; HALVES],
}

impl Codes {
    fn new<const BITS: u32>() -> Self {
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
        };
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
    fn zero(&self, column: usize) -> u8 {
        self.zeros[column % 2]
    }

    #[inline(always)]
    fn half(x: f32) -> usize {
        // Numbers below 0 become 0, and NaN does.
        let half = (2.0 * x + 128.0) as u32 as usize;
        half.min(HALVES - 1)
    }

    /// The code next to it.
    #[inline(always)]
    fn nearest(&self, x: f32) -> f32 {
        self.nearest[Self::half(x)]
    }

    #[inline(always)]
    fn bits(&self, x: f32) -> u8 {
        self.bits[Self::half(x)]
    }
}

/// A row that is being written, all 0 before.
struct PackedRowMut<'a, const BITS: u32> {
    scales: &'a mut [u8],
    low: &'a mut [u8],
    high: &'a mut [u8],
}

impl<'a, const BITS: u32> PackedRowMut<'a, BITS> {
    fn new(bytes: &'a mut [u8]) -> Self {
        let n_units = bytes.len() / packed_row_bytes(BITS, UNIT);
        bytes.fill(0);
        let (scales, rest) = bytes.split_at_mut(n_units);
        let (low, high) = rest.split_at_mut(n_units * BLOCK);
        PackedRowMut { scales, low, high }
    }

    fn put(&mut self, index: usize, scale: u8, bits: &[u8; BLOCK]) {
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
