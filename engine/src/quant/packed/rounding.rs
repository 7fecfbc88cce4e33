//! How rows of floats become codes and scales of blocks.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;
use std::sync::Arc;

use half::f16;

use super::codes::{Codes, PackedRowMut};
use super::{Packed, SCALE_MAX, STEP};
use crate::error::Result;
use crate::math::kernels::packed::{packed_row_bytes, BLOCK, UNIT};
use crate::math::threads::Columns;
use crate::math::{collected, zeroed};
use crate::quant::blocks::{Block, Blocks};
use crate::quant::feedback::ErrorFeedback;
use crate::quant::scales::{self, check_scales, ColumnExponents};

/// How the rows of a matrix are rounded.
pub(super) struct Rounding<const BITS: u32> {
    pub(super) columns: ColumnExponents,
    /// (n_cols, filled up to whole units) what an error of one in the integers of a column costs, relative to the others
    weights: Vec<f32>,
    /// Where a text was read: how errors are made up for.
    feedback: Option<Arc<ErrorFeedback>>,
}

impl<const BITS: u32> Rounding<BITS> {
    /// Reads the matrix, several times where it is large.
    ///
    /// # Errors
    /// Those of reading it.
    pub(super) fn new(blocks: &mut Blocks<'_>) -> Result<Self> {
        let columns = ColumnExponents::new(blocks)?;
        let feedback = blocks.importance.feedback.clone();
        let squares = match &feedback {
            Some(feedback) => &feedback.costs,
            None => &blocks.importance.columns,
        };
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
        Ok(Rounding {
            columns,
            weights,
            feedback,
        })
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
        if let Some(feedback) = &self.feedback {
            self.round_with_feedback(feedback, block, values, row_scales)?;
            return check_scales(block, row_scales, (Packed::<BITS>::NAME, "6e4"));
        }
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
            *scale = Self::row_scale(largest);
            values.fill(0);
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
    /// The scale of a row whose blocks have these scales at best, the largest of which is `largest`.
    #[inline]
    pub(super) fn row_scale(largest: f32) -> f16 {
        f16::from_f32(largest / (f32::from(SCALE_MAX) * STEP))
    }

    /// One block of a row, with the columns' factors taken out; 0 behind the last column.
    #[inline]
    pub(super) fn block(&self, row: &[f32], index: usize) -> BlockOfRow {
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
pub(super) struct BlockOfRow {
    pub(super) x: [f32; BLOCK],
    /// What errors cost.
    pub(super) weights: [f32; BLOCK],
}

impl BlockOfRow {
    /// The scale with the least error: of some that make the largest weight a certain code, each with the factor that fits best
    /// what it rounds to.
    #[inline]
    pub(super) fn best_scale(&self, codes: &Codes) -> f32 {
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
        let mut least = f32::INFINITY;
        for scale in scales_near(best_scale, step) {
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

/// The scales of a block, in units of `step`, which is not 0, that may be best where `best_scale` is the best one.
#[inline]
pub(super) fn scales_near(best_scale: f32, step: f32) -> RangeInclusive<u8> {
    let wanted = (best_scale / step).round();
    let wanted = wanted.clamp(1.0, f32::from(SCALE_MAX)) as u8;
    wanted.saturating_sub(1).max(1)..=(wanted + 1).min(SCALE_MAX)
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
