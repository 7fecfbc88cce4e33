//! Rounding that makes up for its own errors: see `feedback.rs`.

#![forbid(unsafe_code)]

use half::f16;

use super::codes::{Codes, PackedRowMut};
use super::rounding::{scales_near, Rounding};
use super::STEP;
use crate::error::Result;
use crate::math::kernels::packed::{packed_row_bytes, BLOCK};
use crate::math::linear::TILE;
use crate::math::{collected, copied};
use crate::quant::blocks::Block;
use crate::quant::feedback::ErrorFeedback;

/// Rows of one task: enough for products of matrices, few enough for a second-level cache, with 512 KiB of 2,048 columns,
/// corrected and not.
const GROUP_ROWS: usize = 32;

/// Neighbouring rows on their way.
struct Group<'a> {
    /// (rows, n_cols)
    numbers: &'a [f32],
    /// (rows)
    scales: &'a mut [f16],
    /// (rows, n_cols) the same, less what the errors of columns behind would do
    corrected: &'a mut [f32],
    /// (rows, bytes of a row) all 0
    values: &'a mut [u8],
}

impl<const BITS: u32> Rounding<BITS> {
    /// Rounds rows as [`round`](crate::quant::scales::Rounding::round) does, from the last column to the first.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub(super) fn round_with_feedback(
        &self,
        feedback: &ErrorFeedback,
        block: &Block<'_>,
        values: &mut [u8],
        row_scales: &mut [f16],
    ) -> Result<()> {
        let n_cols = self.columns.inverses.len();
        let row_bytes = packed_row_bytes(BITS, n_cols);
        let mut corrected = copied(block.numbers, "a piece of a matrix")?;
        values.fill(0);
        let numbers = block.numbers.chunks(GROUP_ROWS * n_cols);
        let groups = numbers
            .zip(row_scales.chunks_mut(GROUP_ROWS))
            .zip(corrected.chunks_mut(GROUP_ROWS * n_cols))
            .zip(values.chunks_mut(GROUP_ROWS * row_bytes));
        let groups = groups.map(|(((numbers, scales), corrected), values)| Group {
            numbers,
            scales,
            corrected,
            values,
        });
        let mut groups = collected(groups, "a piece of a matrix")?;
        let codes = Codes::new::<BITS>();
        block.pool.run_chunks(&mut groups, 1, |_, groups| {
            groups
                .iter_mut()
                .for_each(|group| self.round_group(feedback, &codes, group));
        });
        Ok(())
    }

    fn round_group(&self, feedback: &ErrorFeedback, codes: &Codes, group: &mut Group<'_>) {
        let n_cols = self.columns.inverses.len();
        let row_bytes = packed_row_bytes(BITS, n_cols);
        let n_rows = group.scales.len();
        self.begin(codes, group);
        // (rows, columns of a tile)
        let mut errors = [0.0; GROUP_ROWS * TILE];
        let errors = &mut errors[..n_rows * TILE];
        for tile in feedback.tiles() {
            for first in tile.clone().step_by(BLOCK).rev() {
                let columns = first..(first + BLOCK).min(tile.end);
                for row in 0..n_rows {
                    let of_row = row * n_cols + columns.start..row * n_cols + columns.end;
                    let block = CalibratedBlock {
                        first,
                        numbers: padded(&group.numbers[of_row.clone()]),
                        corrected: padded(&group.corrected[of_row]),
                        inverses: padded(&self.columns.inverses[columns.clone()]),
                        feedback,
                    };
                    let found =
                        self.block(&group.corrected[row * n_cols..][..n_cols], first / BLOCK);
                    let step = group.scales[row].to_f32() * STEP;
                    let rounded = block.round(codes, found.best_scale(codes), step, columns.len());
                    let values = &mut group.values[row * row_bytes..][..row_bytes];
                    let mut packed = PackedRowMut::<BITS>::new(values);
                    packed.put(first / BLOCK, rounded.scale, &rounded.bits);
                    errors[row * TILE + first - tile.start..][..columns.len()]
                        .copy_from_slice(&rounded.errors[..columns.len()]);
                }
                feedback.pass_on_within(columns, errors, group.corrected);
            }
            feedback.pass_on(tile, errors, group.corrected);
        }
    }

    /// Chooses the scales of rows, and fills what is behind their last block.
    fn begin(&self, codes: &Codes, group: &mut Group<'_>) {
        let n_cols = self.columns.inverses.len();
        let row_bytes = packed_row_bytes(BITS, n_cols);
        let n_blocks = n_cols.div_ceil(BLOCK);
        let rows = group.numbers.chunks_exact(n_cols);
        let rows = rows.zip(group.values.chunks_exact_mut(row_bytes));
        for ((numbers, values), scale) in rows.zip(group.scales.iter_mut()) {
            let best = (0..n_blocks).map(|index| self.block(numbers, index).best_scale(codes));
            let largest = best.fold(
                0.0_f32,
                |largest, best| if best > largest { best } else { largest },
            );
            *scale = Self::row_scale(largest);
            if n_blocks % 2 == 1 {
                let zeros = std::array::from_fn(|at| codes.zero(at));
                PackedRowMut::<BITS>::new(values).put(n_blocks, 1, &zeros);
            }
        }
    }
}

/// One block of a row, 0 behind the row's end.
struct CalibratedBlock<'a> {
    /// Its first column.
    first: usize,
    numbers: [f32; BLOCK],
    corrected: [f32; BLOCK],
    /// 1 over the columns' factors.
    inverses: [f32; BLOCK],
    feedback: &'a ErrorFeedback,
}

/// What became of a block.
struct RoundedBlock {
    scale: u8,
    bits: [u8; BLOCK],
    /// What the numbers are more than what they were rounded to.
    errors: [f32; BLOCK],
}

impl CalibratedBlock<'_> {
    /// Tries the scales near the best one, each with what its own errors do to the columns in front of them, and takes
    /// the one that costs least.
    #[inline]
    fn round(&self, codes: &Codes, best_scale: f32, step: f32, n: usize) -> RoundedBlock {
        let mut best = RoundedBlock {
            scale: 1,
            bits: std::array::from_fn(|at| codes.zero(at)),
            errors: self.numbers,
        };
        if step == 0.0 {
            return best;
        }
        let mut least = f32::INFINITY;
        for scale in scales_near(best_scale, step) {
            let (tried, cost) = self.round_to(codes, scale, step, n);
            if cost < least {
                (best, least) = (tried, cost);
            }
        }
        best
    }

    #[inline]
    fn round_to(&self, codes: &Codes, scale: u8, step: f32, n: usize) -> (RoundedBlock, f32) {
        let scaled = step * f32::from(scale);
        let (inverse, mut cost) = (1.0 / scaled, 0.0);
        let mut corrected = self.corrected;
        let mut bits = std::array::from_fn(|at| codes.zero(at));
        let mut errors = [0.0; BLOCK];
        for at in (0..n).rev() {
            let x = corrected[at] * self.inverses[at] * inverse;
            bits[at] = if x == 0.0 {
                codes.zero(at)
            } else {
                codes.bits(x)
            };
            let rounded = codes.meaning(bits[at]) * scaled / self.inverses[at];
            errors[at] = self.numbers[at] - rounded;
            let left = corrected[at] - rounded;
            cost += self.feedback.costs[self.first + at] * left * left;
            let factors = self.feedback.within_tile(self.first + at);
            let factors = &factors[self.first % TILE..][..BLOCK];
            for (corrected, factor) in corrected.iter_mut().zip(factors) {
                *corrected += errors[at] * factor;
            }
        }
        let rounded = RoundedBlock {
            scale,
            bits,
            errors,
        };
        (rounded, cost)
    }
}

/// 0 behind their end.
fn padded(numbers: &[f32]) -> [f32; BLOCK] {
    let mut all = [0.0; BLOCK];
    all[..numbers.len()].copy_from_slice(numbers);
    all
}
