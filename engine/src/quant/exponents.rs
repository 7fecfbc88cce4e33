//! Column exponents: which inputs of a matrix get finer steps, and which coarser ones.
//!
//! A matrix with a scale for each row and a factor for each column, `weight[r, c] ~ q[r, c] * scale[r] * factor[c]`, rounds
//! in steps of `scale[r] * factor[c]`. A rounding error is spread evenly over a step, so the expected squared error of all
//! outputs is, up to a constant,
//!
//! ```text
//! sum over r of (importance[r] * scale[r]^2) * sum over c of (E[x[c]^2] * factor[c]^2)
//! scale[r] = max over c of |weight[r, c]| / factor[c]
//! ```
//!
//! `x` is what the matrix is multiplied with; [`Importance`] says what is known of it. This is the number that factors are
//! judged by. It is convex in their logarithms. Where its slope is zero, with the largest weight of a row written as an
//! 8-norm, `g[c] = sqrt(E[x[c]^2]) * factor[c]` has
//!
//! ```text
//! g[c]^10 = sum over r of importance[r] * scale[r]^2 * (g[c] * |weight[r, c]| / (factor[c] * scale[r]))^8
//! ```
//!
//! and each round computes the left side from the right one. Two rounds are as good as nine. No factors at all
//! is always a candidate. docs/QUANTIZATION.md has the numbers.

#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::error::Result;
use crate::math::{collected, resized, zeroed};
use crate::quant::blocks::Blocks;
use crate::quant::feedback::ErrorFeedback;

/// Exponents count quarters of a power of two. Within these bounds products of scales, factors and activations stay far
/// inside the range of f32.
pub(super) const EXPONENT_MAX: i8 = 96;
/// What arrays are called in errors.
const COLUMNS: &str = "columns of weights";
/// More change nothing that can be measured.
const ROUNDS: usize = 2;
/// Rows, and columns, of one task.
const TASK_ROWS: usize = 16;
const TASK_COLUMNS: usize = 64;
/// Inputs are never taken to be smaller than this part of their root mean square: what is known of them are means
/// over many texts, and a channel that is off by more than that would be rounded to nothing.
const INPUT_SIZE_MIN: f64 = 1.0 / 64.0;

/// See [`RowImportances`].
const ROW_IMPORTANCE_MIN: f32 = 1.0 / 64.0;

/// What is known of what the rounding errors of a matrix do: from the layer norm beside it, or from a text.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Importance {
    /// (n_cols) mean squares of the numbers that the columns are multiplied with; empty where nothing is known.
    pub(crate) columns: Vec<f32>,
    /// (n_cols) means of those numbers; empty where nothing is known.
    pub(crate) means: Vec<f32>,
    /// Whether each row is normalised after it was read, so that its errors count relative to its size.
    pub(crate) is_by_row: bool,
    /// (n_rows) mean squares of the numbers that rows are multiplied with, where there is a row for each input; empty where
    /// nothing is known.
    pub(crate) rows: Arc<[f32]>,
    /// Where a text was read, and columns are inputs.
    pub(crate) feedback: Option<Arc<ErrorFeedback>>,
}

/// 2^(exponent / 4), the same bits on every platform.
pub(super) fn column_factor(exponent: i8) -> f32 {
    const QUARTERS: [f32; 4] = [1.0, 1.189_207_1, std::f32::consts::SQRT_2, 1.681_792_8];
    let whole = i32::from(exponent).div_euclid(4);
    let power_of_two = f32::from_bits(((whole + 127) as u32) << 23);
    QUARTERS[usize::from(exponent.rem_euclid(4) as u8)] * power_of_two
}

/// 1 over the columns' factors.
///
/// # Errors
/// [`ErrorKind::Memory`](crate::ErrorKind::Memory)
pub(super) fn inverse_factors(exponents: &[i8]) -> Result<Vec<f32>> {
    let inverse = |&exponent: &i8| 1.0 / column_factor(exponent);
    collected(exponents.iter().map(inverse), COLUMNS)
}

/// Chooses the exponents (n_cols) by the error that they will make. Everything is summed in one order: the result does
/// not depend on blocks or threads.
///
/// # Errors
/// Those of reading the matrix.
pub(super) fn column_exponents(blocks: &mut Blocks<'_>) -> Result<Vec<i8>> {
    let n_cols = blocks.n_cols;
    let mut input_logs = input_logs(&blocks.importance.columns, n_cols)?;
    // (n_cols) log2 of the columns' factors
    let mut factor_logs: Vec<f64> = zeroed(n_cols, COLUMNS)?;
    let mut error_without = 0.0;
    for round in 0..ROUNDS {
        let inverses = factor_logs.iter().map(|log| (-log).exp2() as f32);
        let inverses = collected(inverses, COLUMNS)?;
        let mut sums: Vec<f32> = zeroed(n_cols, COLUMNS)?;
        let rows_error = rows_error(blocks, &inverses, Some(&mut sums))?;
        if round == 0 {
            // Columns of zeros have no errors.
            for (input, &sum) in input_logs.iter_mut().zip(&sums) {
                *input = if sum > 0.0 { *input } else { f64::NEG_INFINITY };
            }
            error_without = rows_error * columns_error(&input_logs, &factor_logs);
        }
        update(&mut factor_logs, &input_logs, &sums);
    }
    let limit = f64::from(EXPONENT_MAX);
    let exponent = |log: &f64| (4.0 * log).round().clamp(-limit, limit) as i8;
    let mut exponents = collected(factor_logs.iter().map(exponent), COLUMNS)?;
    for (log, &exponent) in factor_logs.iter_mut().zip(&exponents) {
        *log = f64::from(exponent) / 4.0;
    }
    let rows_error = rows_error(blocks, &inverse_factors(&exponents)?, None)?;
    let error = rows_error * columns_error(&input_logs, &factor_logs);
    // An error that is no number is no reason to choose any.
    if error.partial_cmp(&error_without) != Some(std::cmp::Ordering::Less) {
        exponents.fill(0);
    }
    Ok(exponents)
}

/// log2 of the root mean squares of the inputs, 0 for all where nothing is known.
fn input_logs(mean_squares: &[f32], n_cols: usize) -> Result<Vec<f64>> {
    let mean = mean_squares.iter().map(|&x| f64::from(x)).sum::<f64>() / n_cols as f64;
    if mean_squares.len() != n_cols || !mean.is_finite() || mean <= 0.0 {
        return zeroed(n_cols, COLUMNS);
    }
    let least = mean * INPUT_SIZE_MIN * INPUT_SIZE_MIN;
    let log = |&square: &f32| f64::from(square).max(least).log2() / 2.0;
    collected(mean_squares.iter().map(log), COLUMNS)
}

/// The second sum of the error.
fn columns_error(input_logs: &[f64], factor_logs: &[f64]) -> f64 {
    let pairs = input_logs.iter().zip(factor_logs);
    pairs
        .map(|(input, factor)| (2.0 * (input + factor)).exp2())
        .sum()
}

/// A row with the columns' factors taken out.
#[derive(Clone, Copy, Default)]
struct Row {
    /// 1 over its largest weight; 0 if that is 0.
    inverse: f32,
    /// Its part of the error: the square of its largest weight, times its importance.
    error: f32,
}

impl Row {
    /// `importance` is that of the row besides its size.
    fn new(weights: &[f32], inverses: &[f32], is_by_row: bool, importance: f32) -> Self {
        let largest = largest_product(weights, inverses);
        let inverse = 1.0 / largest;
        if !inverse.is_finite() {
            return Row::default();
        }
        let size = match is_by_row {
            // The square may leave the range of f32 before it is divided.
            true => largest / root_mean_square(weights),
            false => largest,
        };
        let error = size * size * importance;
        Row { inverse, error }
    }
}

/// How much rows matter, where that is known.
struct RowImportances {
    /// (n_rows), or none
    squares: Arc<[f32]>,
    mean: f32,
}

impl RowImportances {
    fn new(squares: &Arc<[f32]>, n_rows: usize) -> Self {
        let mean = squares.iter().map(|&x| f64::from(x)).sum::<f64>() / n_rows as f64;
        let is_known = squares.len() == n_rows && (mean as f32).is_normal();
        RowImportances {
            squares: if is_known {
                squares.clone()
            } else {
                Arc::default()
            },
            mean: mean as f32,
        }
    }

    /// Relative to the mean. What a text shows is not all that there is: no row is taken to be without any.
    fn of(&self, row: usize) -> f32 {
        let square = self.squares.get(row);
        square.map_or(1.0, |square| (square / self.mean).max(ROW_IMPORTANCE_MIN))
    }
}

/// The first sum of the error; adds to `sums` (n_cols) what each column contributes to it by the 8-norm.
fn rows_error(
    blocks: &mut Blocks<'_>,
    inverses: &[f32],
    mut sums: Option<&mut [f32]>,
) -> Result<f64> {
    let (n_cols, pool, is_by_row) = (blocks.n_cols, blocks.pool, blocks.importance.is_by_row);
    let of_rows = RowImportances::new(&blocks.importance.rows, blocks.n_rows);
    let mut error = 0.0;
    let mut rows = Vec::new();
    blocks.for_each(|block| {
        let (numbers, first) = (block.numbers, block.rows.start);
        resized(&mut rows, block.rows.len(), Row::default(), COLUMNS)?;
        pool.run_chunks(&mut rows, TASK_ROWS, |task, out| {
            let numbers = numbers[task * TASK_ROWS * n_cols..].chunks_exact(n_cols);
            for (at, (row, weights)) in out.iter_mut().zip(numbers).enumerate() {
                let importance = of_rows.of(first + task * TASK_ROWS + at);
                *row = Row::new(weights, inverses, is_by_row, importance);
            }
        });
        error += rows.iter().map(|row| f64::from(row.error)).sum::<f64>();
        if let Some(sums) = sums.as_deref_mut() {
            pool.run_chunks(sums, TASK_COLUMNS, |task, sums| {
                let first = task * TASK_COLUMNS;
                let inverses = &inverses[first..];
                for (weights, row) in numbers.chunks_exact(n_cols).zip(&rows) {
                    let columns = sums.iter_mut().zip(&weights[first..]).zip(inverses);
                    for ((sum, &weight), &inverse) in columns {
                        let square = (weight * inverse * row.inverse).powi(2);
                        let fourth = square * square;
                        *sum += row.error * (fourth * fourth);
                    }
                }
            });
        }
        Ok(())
    })?;
    Ok(error)
}

/// One round: factors from what they contribute, with a geometric mean of 1. Columns of zeros take the smallest factor
/// there is.
fn update(factor_logs: &mut [f64], input_logs: &[f64], sums: &[f32]) {
    let contributes = |column: usize| sums[column] > 0.0 && input_logs[column].is_finite();
    let mut smallest = f64::INFINITY;
    for (column, factor) in factor_logs.iter_mut().enumerate() {
        if contributes(column) {
            let input = input_logs[column];
            let g = (8.0 * (*factor + input) + f64::from(sums[column]).log2()) / 10.0;
            *factor = g - input;
            smallest = smallest.min(*factor);
        }
    }
    if smallest == f64::INFINITY {
        return factor_logs.fill(0.0);
    }
    for (column, factor) in factor_logs.iter_mut().enumerate() {
        if !contributes(column) {
            *factor = smallest;
        }
    }
    let mean = factor_logs.iter().sum::<f64>() / factor_logs.len() as f64;
    factor_logs.iter_mut().for_each(|factor| *factor -= mean);
}

/// The largest `|row[c] * factors[c]|`.
pub(super) fn largest_product(row: &[f32], factors: &[f32]) -> f32 {
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

fn root_mean_square(row: &[f32]) -> f32 {
    let squares = row.iter().map(|&x| f64::from(x) * f64::from(x));
    (squares.sum::<f64>() / row.len() as f64).sqrt() as f32
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::math::threads::Pool;
    use crate::quant::blocks::RowSource;
    use crate::quant::convert::convert_rows;
    use crate::quant::Quant;

    const N_ROWS: usize = 96;
    const N_COLS: usize = 128;

    /// (N_ROWS, N_COLS)
    struct Made(Vec<f32>);

    impl RowSource for Made {
        fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
            out.copy_from_slice(&self.0[rows.start * N_COLS..rows.end * N_COLS]);
            Ok(())
        }

        fn place(&self) -> String {
            "made".into()
        }
    }

    /// Numbers that look random, from -1 to 1, each times the size of its row and column.
    fn made(size: impl Fn(usize, usize) -> f32) -> Made {
        let mut bits = 1_u64;
        let mut next = || {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (bits >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let numbers = (0..N_ROWS * N_COLS).map(|i| next() * size(i / N_COLS, i % N_COLS));
        Made(numbers.collect())
    }

    fn exponents(made: &Made, importance: &Importance, pool: &Pool) -> Vec<i8> {
        let blocks = Blocks::new(made, N_ROWS, N_COLS, pool);
        column_exponents(&mut blocks.with_importance(importance.clone())).expect("finite")
    }

    /// The squared error that rounding really makes, with a scale a row and these exponents.
    fn error(made: &Made, importance: &Importance, exponents: &[i8]) -> f64 {
        let square = |x: f32| f64::from(x) * f64::from(x);
        let mut sum = 0.0;
        for row in made.0.chunks_exact(N_COLS) {
            let factors: Vec<f32> = exponents.iter().map(|&e| column_factor(e)).collect();
            let scale = largest_product(row, &inverse_factors(exponents).expect("memory")) / 127.0;
            let norm = if importance.is_by_row {
                root_mean_square(row)
            } else {
                1.0
            };
            for (column, (&weight, factor)) in row.iter().zip(factors).enumerate() {
                let step = scale * factor;
                let off = weight - (weight / step).round() * step;
                let input = importance
                    .columns
                    .get(column)
                    .map_or(1.0, |&x| f64::from(x));
                sum += input * square(off / norm);
            }
        }
        sum
    }

    fn by_column(columns: impl Fn(usize) -> f32) -> Importance {
        Importance {
            columns: (0..N_COLS).map(columns).collect(),
            ..Importance::default()
        }
    }

    /// Columns of several sizes, which meet inputs of several others: what is chosen never errs more than rows alone.
    #[test]
    fn exponents_never_lose_to_rows_alone() {
        let pool = Pool::new(2);
        let none = vec![0; N_COLS];
        let few_large = |_: usize, column: usize| if column % 40 == 3 { 20.0 } else { 1.0 };
        let weights = [
            made(|_, _| 1.0),
            made(few_large),
            made(|row, column| (1 + row % 7) as f32 * (1 + column % 11) as f32),
            made(|row, column| if row == column { 50.0 } else { 1.0 }),
            made(|_, column| if column % 5 == 0 { 0.0 } else { 1.0 }),
        ];
        let inputs = [
            Importance::default(),
            // Large weights meet small inputs, as where training made up for a gain; and large ones.
            by_column(|column| if column % 40 == 3 { 1.0 / 400.0 } else { 1.0 }),
            by_column(|column| if column % 40 == 3 { 400.0 } else { 1.0 }),
            by_column(|column| (1 + column % 3) as f32),
            by_column(|column| if column % 2 == 0 { 0.0 } else { 1.0 }),
            Importance {
                is_by_row: true,
                ..Importance::default()
            },
        ];
        for (w, weights) in weights.iter().enumerate() {
            for (i, importance) in inputs.iter().enumerate() {
                let chosen = error(weights, importance, &exponents(weights, importance, &pool));
                let without = error(weights, importance, &none);
                // What is judged is the expected error, off from the real one by 2 % at this size.
                assert!(chosen <= 1.03 * without, "{w} {i}: {chosen} {without}");
            }
        }
    }

    /// Large columns are what exponents are for; large columns that meet large inputs are not to be made coarser.
    #[test]
    fn exponents_go_by_what_the_columns_meet() {
        let pool = Pool::new(1);
        let few_large = made(|_, column| if column % 40 == 3 { 20.0 } else { 1.0 });
        let none = vec![0; N_COLS];
        let gain = |importance: &Importance| {
            let chosen = exponents(&few_large, importance, &pool);
            error(&few_large, importance, &none) / error(&few_large, importance, &chosen)
        };
        // Rows alone round in steps of 20 / 127. The best factor of 3 columns of 128 is near sqrt(20).
        let unknown = gain(&Importance::default());
        let small = gain(&by_column(
            |column| if column % 40 == 3 { 0.0025 } else { 1.0 },
        ));
        let large = gain(&by_column(
            |column| if column % 40 == 3 { 400.0 } else { 1.0 },
        ));
        assert!(unknown > 6.0 && small > 100.0, "{unknown} {small}");
        assert!((1.0..1.5).contains(&large), "{large}");
    }

    #[test]
    fn numbers_at_the_edge_of_f32_are_no_reason_to_choose_any() {
        let pool = Pool::new(1);
        for size in [0.0, 1e-42, 1e-25, 1e18] {
            let made = made(|_, column| if column % 3 == 0 { size } else { size / 8.0 });
            for is_by_row in [false, true] {
                let importance = Importance {
                    columns: vec![f32::MAX; N_COLS],
                    is_by_row,
                    ..Importance::default()
                };
                let chosen = exponents(&made, &importance, &pool);
                assert!(chosen.iter().all(|e| e.abs() <= 16), "{size}: {chosen:?}");
            }
        }
    }

    /// What is known of the inputs reaches the weights.
    #[test]
    fn weights_are_rounded_by_what_they_meet() {
        let pool = Pool::new(1);
        let few_large = made(|_, column| if column % 40 == 3 { 20.0 } else { 1.0 });
        let rounded = |importance: Importance| {
            let blocks = Blocks::new(&few_large, N_ROWS, N_COLS, &pool);
            let mut blocks = blocks.with_importance(importance);
            let weights = convert_rows(&mut blocks, Quant::Int8).expect("finite");
            let mut row = vec![0.0; N_COLS];
            weights.read_row(5, &mut row);
            row
        };
        let meets = by_column(|column| if column % 40 == 3 { 400.0 } else { 1.0 });
        assert_ne!(rounded(Importance::default()), rounded(meets));
    }
}
