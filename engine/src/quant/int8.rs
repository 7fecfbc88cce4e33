//! Quantisation to int8: `weight[r, c] ~ q[r, c] * scale[r] * 2^(exponent[c] / 4)`.
//!
//! Trained RWKV has rows and columns much larger than the rest. The f16 scale of a row takes care of the
//! one, a power of 2^(1/4) a column, which is multiplied into the activations, of the other.
//! docs/QUANTIZATION.md has what else was tried, and the numbers.
//!
//! The matrix is read block by block, several times, so that nothing but the result is held. Everything
//! is summed in one order: the result does not depend on blocks, threads or the CPU.

#![forbid(unsafe_code)]

use half::f16;

use crate::error::{Error, Result};
use crate::model::load::{reserve, Block, Blocks};
use crate::quant::matrix::{Buffer, Int8};

/// Passes that balance rows and columns against each other; more change nothing that can be measured.
const ROUNDS: usize = 3;
/// Column exponents are left out where scales would cost more than half a bit a weight: only in
/// matrices narrower than about 50, which no published model has.
const SCALE_BITS_MAX: f64 = 0.5;
/// Rows, and columns, of one task.
const TASK_ROWS: usize = 16;
const TASK_COLUMNS: usize = 64;

/// Quantises a matrix.
///
/// # Errors
///
/// Those of [`Rounding::new`] and [`Rounding::round`].
pub(crate) fn to_int8(blocks: &mut Blocks<'_>) -> Result<Int8> {
    let (n_rows, n_cols) = (blocks.n_rows, blocks.n_cols);
    let rounding = Rounding::new(blocks)?;
    let mut values: Vec<i8> = reserve(n_rows * n_cols)?;
    let mut row_scales: Vec<f16> = reserve(n_rows)?;
    blocks.for_each(|block| {
        let rows = &block.rows;
        values.resize(rows.end * n_cols, 0);
        row_scales.resize(rows.end, f16::ZERO);
        rounding.round(
            block,
            &mut values[rows.start * n_cols..],
            &mut row_scales[rows.start..],
        )
    })?;
    Ok(Int8::new(
        Buffer::owned(values),
        row_scales,
        rounding.column_exponents,
    ))
}

/// Finds the exponents: a column's size is the 4-norm of its weights over its rows' largest ones, and a
/// row's largest weight is taken over the columns' sizes; so each is found from the other in turns.
fn column_exponents(blocks: &mut Blocks<'_>) -> Result<Vec<i8>> {
    let (n_rows, n_cols, pool) = (blocks.n_rows, blocks.n_cols, blocks.pool);
    // (n_cols) log2 of the columns' sizes
    let mut sizes_log = vec![0.0_f32; n_cols];
    let mut row_inverses = Vec::new();
    for _ in 0..ROUNDS {
        let inverses: Vec<f32> = sizes_log.iter().map(|size| (-size).exp2()).collect();
        let mut sums = vec![0.0_f32; n_cols];
        blocks.for_each(|block| {
            let (rows, block) = (&block.rows, block.numbers);
            row_inverses.resize(rows.len(), 0.0);
            pool.run_chunks(&mut row_inverses, TASK_ROWS, |task, out| {
                let rows = block[task * TASK_ROWS * n_cols..].chunks_exact(n_cols);
                for (out, row) in out.iter_mut().zip(rows) {
                    let largest = largest_product(row, &inverses);
                    *out = if largest > 0.0 { 1.0 / largest } else { 0.0 };
                }
            });
            pool.run_chunks(&mut sums, TASK_COLUMNS, |task, sums| {
                let first = task * TASK_COLUMNS;
                for (row, &inverse) in block.chunks_exact(n_cols).zip(&row_inverses) {
                    for (sum, &weight) in sums.iter_mut().zip(&row[first..]) {
                        let square = (weight * inverse) * (weight * inverse);
                        *sum += square * square;
                    }
                }
            });
            Ok(())
        })?;
        set_sizes(&mut sizes_log, &sums, n_rows);
    }
    let limit = f32::from(Int8::EXPONENT_MAX);
    Ok(sizes_log
        .iter()
        .map(|size| (4.0 * size).round().clamp(-limit, limit) as i8)
        .collect())
}

/// Sizes from sums of fourth powers, with a geometric mean of 1. Columns of zeros take the smallest
/// size there is.
fn set_sizes(sizes_log: &mut [f32], sums: &[f32], n_rows: usize) {
    let log = |&sum: &f32| (f64::from(sum) / n_rows as f64).log2() / 4.0;
    let logs = || sums.iter().filter(|&&sum| sum > 0.0).map(log);
    let smallest = logs().fold(f64::INFINITY, f64::min);
    if smallest == f64::INFINITY {
        return;
    }
    let size = |sum: &f32| if *sum > 0.0 { log(sum) } else { smallest };
    let mean = sums.iter().map(size).sum::<f64>() / sums.len() as f64;
    for (size_log, sum) in sizes_log.iter_mut().zip(sums) {
        *size_log = (size(sum) - mean) as f32;
    }
}

/// How the rows of a matrix are rounded to integers.
pub(crate) struct Rounding {
    /// (n_cols)
    pub(crate) column_exponents: Vec<i8>,
    /// (n_cols) 1 over the columns' factors
    inverses: Vec<f32>,
}

impl Rounding {
    /// Reads the matrix, several times where it is large.
    ///
    /// # Errors
    ///
    /// Those of reading it.
    pub(crate) fn new(blocks: &mut Blocks<'_>) -> Result<Self> {
        let (n_rows, n_cols) = (blocks.n_rows, blocks.n_cols);
        let scale_bits = 16.0 / n_cols as f64 + 8.0 / n_rows as f64;
        let column_exponents = if scale_bits <= SCALE_BITS_MAX {
            column_exponents(blocks)?
        } else {
            vec![0; n_cols]
        };
        let inverses = column_exponents
            .iter()
            .map(|&e| 1.0 / Int8::column_factor(e))
            .collect();
        Ok(Rounding {
            column_exponents,
            inverses,
        })
    }

    /// Rounds rows to `values` (rows, n_cols), with the scales (rows) that make a row's largest one 127.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) where a row's scale leaves the range of f16.
    pub(crate) fn round(
        &self,
        block: &Block<'_>,
        values: &mut [i8],
        row_scales: &mut [f16],
    ) -> Result<()> {
        let (numbers, n_cols, pool) = (block.numbers, self.inverses.len(), block.pool);
        pool.run_chunks(row_scales, TASK_ROWS, |task, scales| {
            let rows = numbers[task * TASK_ROWS * n_cols..].chunks_exact(n_cols);
            for (scale, row) in scales.iter_mut().zip(rows) {
                *scale = f16::from_f32(largest_product(row, &self.inverses) / 127.0);
            }
        });
        let infinite = row_scales.iter().position(|scale| !scale.is_finite());
        if let Some(row) = infinite {
            let row = block.rows.start + row;
            let text = format!("row {row}: weights too large for int8, expected less than 8e6");
            return Err(Error::unsupported(text).at(block.source.place()));
        }
        let scales = &*row_scales;
        pool.run_chunks(values, TASK_ROWS * n_cols, |task, values| {
            let first = task * TASK_ROWS;
            let rows = numbers[first * n_cols..].chunks_exact(n_cols);
            for ((values, row), scale) in values
                .chunks_exact_mut(n_cols)
                .zip(rows)
                .zip(&scales[first..])
            {
                let scale = scale.to_f32();
                round_row(
                    row,
                    &self.inverses,
                    if scale > 0.0 { 1.0 / scale } else { 0.0 },
                    values,
                );
            }
        });
        Ok(())
    }
}

/// The largest `|row[c] * factors[c]|`.
fn largest_product(row: &[f32], factors: &[f32]) -> f32 {
    // Lanes that do not depend on each other, so that the compiler uses vectors.
    let mut lanes = [0.0_f32; 16];
    for (row, factors) in row.chunks(16).zip(factors.chunks(16)) {
        for ((lane, &weight), &factor) in lanes.iter_mut().zip(row).zip(factors) {
            let size = (weight * factor).abs();
            *lane = if size > *lane { size } else { *lane };
        }
    }
    lanes.into_iter().fold(0.0, f32::max)
}

/// `values[c] = row[c] * factors[c] * inverse_scale`, rounded, ties to even.
fn round_row(row: &[f32], factors: &[f32], inverse_scale: f32, values: &mut [i8]) {
    /// 1.5 * 2^23: adding it rounds to an integer, which the low mantissa bits then hold.
    const ROUND: f32 = 12_582_912.0;
    for ((value, &weight), &factor) in values.iter_mut().zip(row).zip(factors) {
        // An f16 scale may be rounded down, so that the largest weight comes out above 127.
        let scaled = (weight * factor * inverse_scale).clamp(-127.0, 127.0);
        *value = (scaled + ROUND).to_bits() as i8;
    }
}
