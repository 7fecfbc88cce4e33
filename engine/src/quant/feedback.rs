//! What a text shows of the inputs of a matrix, and rounding that makes up for its own errors with it.
//!
//! With `H = E[x x^T]` over the inputs `x` of a text, the errors `e` of a row's weights make an expected squared error
//! `e H e^T` of its output. Decomposed, `H = L D L^T` with L 1 on its diagonal and 0 above it,
//!
//! ```text
//! e H e^T = sum over k of D[k] * (e[k] + sum over j > k of e[j] * L[j, k])^2
//! ```
//!
//! So weights are rounded from the last to the first, and what the errors of those behind it would do is taken out of
//! each weight before: `w[k] + sum over j > k of e[j] * L[j, k]`. What is left of the error is what rounding that does. It
//! is the order of GPTQ (Frantar and others, 2022) from the other end, in the form that QuIP (Chee and others, 2023) calls
//! LDLQ and shows to be the same, which needs no inverse.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use super::exponents::Importance;
use crate::error::Result;
use crate::math::kernels::Rows;
use crate::math::linear::{add_product, Tiles, View, TILE};
use crate::math::threads::Pool;
use crate::math::{collected, zeroed};

/// What is added to the diagonal of the moments, as a part of its mean. An output matters more for some tokens than for
/// others, which the moments do not show: with 0.01, as is usual elsewhere, the error of outputs is smallest, and
/// predictions are 2 to 4 % farther off (docs/QUANTIZATION.md).
const DAMPING: f64 = 0.5;
const MOMENTS: &str = "moments of activations";

/// Second moments of the inputs of a matrix, while a text is read.
pub(crate) struct Moments {
    /// Rows of inputs that were seen.
    n: usize,
    squares: Squares,
}

/// Sums of products of inputs.
enum Squares {
    /// Of each with itself, (n_inputs).
    Alone(Vec<f64>),
    /// Of all with all.
    Pairs(Tiles),
}

impl Moments {
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub(crate) fn new(n_inputs: usize, with_pairs: bool) -> Result<Self> {
        Ok(Moments {
            n: 0,
            squares: match with_pairs {
                true => Squares::Pairs(Tiles::new(n_inputs)?),
                false => Squares::Alone(zeroed(n_inputs, MOMENTS)?),
            },
        })
    }

    /// Adds rows of inputs.
    pub(crate) fn add(&mut self, rows: Rows<'_, f32>, pool: &Pool) {
        self.n += rows.n;
        match &mut self.squares {
            Squares::Pairs(tiles) => tiles.add_squares(rows, pool),
            Squares::Alone(squares) => {
                for row in rows.values.chunks(rows.stride).take(rows.n) {
                    for (square, &x) in squares.iter_mut().zip(row) {
                        *square += f64::from(x) * f64::from(x);
                    }
                }
            }
        }
    }

    /// Mean squares of the inputs.
    fn mean_squares(&self) -> Result<Vec<f32>> {
        let n = self.n.max(1) as f64;
        match &self.squares {
            Squares::Alone(squares) => collected(squares.iter().map(|x| (x / n) as f32), MOMENTS),
            Squares::Pairs(tiles) => {
                let squares = tiles.diagonal().map(|x| (f64::from(x) / n) as f32);
                collected(squares, MOMENTS)
            }
        }
    }

    /// What they say of the rounding errors of a matrix: of one with a row for each output, whose inputs were seen in pairs, or of
    /// one with a row for each input.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub(crate) fn importance(self, pool: &Pool) -> Result<Importance> {
        let squares = self.mean_squares()?;
        Ok(match self.squares {
            Squares::Alone(_) => Importance {
                rows: squares.into(),
                ..Importance::default()
            },
            Squares::Pairs(tiles) => Importance {
                columns: squares,
                feedback: ErrorFeedback::new(tiles, pool)?.map(Arc::new),
                ..Importance::default()
            },
        })
    }
}

/// How the errors of weights that are rounded already are made up for by those in front of them.
#[derive(PartialEq)]
pub(crate) struct ErrorFeedback {
    /// L, without the ones.
    factor: Tiles,
    /// (n_cols) D, relative to its mean: what is left of the error in each column costs so much.
    pub(super) costs: Vec<f32>,
}

impl ErrorFeedback {
    /// `None` where nothing was seen but zeros, or numbers that are too large to be multiplied.
    fn new(mut tiles: Tiles, pool: &Pool) -> Result<Option<Self>> {
        let n = tiles.n() as f64;
        let mean = tiles.diagonal().map(f64::from).sum::<f64>() / n;
        let damping = (mean * DAMPING) as f32;
        if !(damping.is_normal() && damping > 0.0) {
            return Ok(None);
        }
        let mut costs = tiles.decompose(damping, pool)?;
        let mean = costs.iter().map(|&cost| f64::from(cost)).sum::<f64>() / n;
        for cost in &mut costs {
            *cost = (f64::from(*cost) / mean) as f32;
        }
        let factor = tiles;
        Ok(Some(ErrorFeedback { factor, costs }))
    }

    /// Columns of each tile, in the order in which they are rounded.
    pub(super) fn tiles(&self) -> impl Iterator<Item = Range<usize>> {
        let n = self.factor.n();
        let tiles = (0..self.factor.n_tiles()).rev();
        tiles.map(move |tile| tile * TILE..((tile + 1) * TILE).min(n))
    }

    /// What an error of 1 in a column does to the columns in front of it in its tile, from the tile's first on, 0 behind them.
    #[inline]
    pub(super) fn within_tile(&self, column: usize) -> &[f32] {
        let (tile, at) = (column / TILE, column % TILE);
        &self.factor.tile(tile, tile)[at * TILE..][..TILE]
    }

    /// Takes what errors of some columns of a tile would do out of the columns of the tile in front of them. `errors` are (rows,
    /// TILE), and `rows` whole rows of weights.
    pub(super) fn pass_on_within(&self, columns: Range<usize>, errors: &[f32], rows: &mut [f32]) {
        let n_cols = self.factor.n();
        let (tile, first) = (columns.start / TILE, columns.start / TILE * TILE);
        let before = columns.start - first;
        let factor = &self.factor.tile(tile, tile)[before * TILE..];
        let size = (errors.len() / TILE, columns.len(), before);
        let errors = View::of_rows(&errors[before..], TILE);
        let factor = View::of_rows(factor, TILE);
        add_product(size, 1.0, errors, factor, &mut rows[first..], n_cols);
    }

    /// The same for all tiles in front of the one that begins with column `first`.
    pub(super) fn pass_on(&self, columns: Range<usize>, errors: &[f32], rows: &mut [f32]) {
        let n_cols = self.factor.n();
        let (tile, n_rows) = (columns.start / TILE, errors.len() / TILE);
        for earlier in 0..tile {
            let factor = View::of_rows(self.factor.tile(tile, earlier), TILE);
            let errors = View::of_rows(errors, TILE);
            let size = (n_rows, columns.len(), TILE);
            let out = &mut rows[earlier * TILE..];
            add_product(size, 1.0, errors, factor, out, n_cols);
        }
    }
}

impl std::fmt::Debug for ErrorFeedback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ErrorFeedback")
            .field("n_cols", &self.factor.n())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::blocks::{Blocks, RowSource};
    use crate::quant::convert::{convert_rows, convert_rows_in_pieces};
    use crate::quant::{Quant, Weights};

    /// (rows, n_cols)
    struct Made {
        n_cols: usize,
        numbers: Vec<f32>,
    }

    impl RowSource for Made {
        fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
            out.copy_from_slice(&self.numbers[rows.start * self.n_cols..rows.end * self.n_cols]);
            Ok(())
        }

        fn place(&self) -> String {
            "made".into()
        }
    }

    /// Numbers that look random, from -1 to 1.
    fn noise(n: usize, mut seed: u64) -> Vec<f32> {
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// Inputs of which a few sums make most, as where a layer norm is in front of the matrix.
    fn inputs(n_rows: usize, n_cols: usize) -> Vec<f32> {
        const SUMS: usize = 12;
        let (sums, shares) = (noise(n_rows * SUMS, 3), noise(SUMS * n_cols, 4));
        let own = noise(n_rows * n_cols, 5);
        let input = |index: usize| {
            let (row, column) = (index / n_cols, index % n_cols);
            let terms = (0..SUMS).map(|k| sums[row * SUMS + k] * shares[k * n_cols + column]);
            terms.sum::<f32>() + 0.3 * own[index]
        };
        (0..n_rows * n_cols).map(input).collect()
    }

    fn importance(inputs: &[f32], n_cols: usize, pool: &Pool) -> Importance {
        let mut moments = Moments::new(n_cols, true).expect("memory");
        for rows in inputs.chunks(100 * n_cols) {
            let n = rows.len() / n_cols;
            let (values, stride) = (rows, n_cols);
            moments.add(Rows { values, stride, n }, pool);
        }
        moments.importance(pool).expect("memory")
    }

    /// The mean square of what rounding does to outputs.
    fn output_error(made: &Made, weights: &Weights, inputs: &[f32]) -> f64 {
        let n_cols = made.n_cols;
        let mut row = vec![0.0; n_cols];
        let mut sum = 0.0;
        for (index, numbers) in made.numbers.chunks_exact(n_cols).enumerate() {
            weights.read_row(index, &mut row);
            for input in inputs.chunks_exact(n_cols) {
                let terms = row.iter().zip(numbers).zip(input);
                let off: f32 = terms.map(|((a, b), x)| (a - b) * x).sum();
                sum += f64::from(off) * f64::from(off);
            }
        }
        sum / (made.numbers.len() / n_cols * inputs.len() / n_cols) as f64
    }

    #[test]
    fn errors_make_up_for_each_other() {
        let pool = Pool::new(2);
        for (n_rows, n_cols) in [(40, 200), (33, 256), (5, 70)] {
            let made = Made {
                n_cols,
                numbers: noise(n_rows * n_cols, 1),
            };
            let inputs = inputs(400, n_cols);
            let (seen, others) = inputs.split_at(300 * n_cols);
            for quant in [Quant::Q4, Quant::Q5, Quant::Q6] {
                let convert = |importance: Importance| {
                    let blocks = Blocks::new(&made, n_rows, n_cols, &pool);
                    let mut blocks = blocks.with_importance(importance);
                    convert_rows(&mut blocks, quant).expect("finite")
                };
                let known = importance(seen, n_cols, &pool);
                assert!(known.feedback.is_some());
                let plain = output_error(&made, &convert(Importance::default()), others);
                let fed_back = output_error(&made, &convert(known), others);
                println!("{quant} {n_cols}: {:.3}", fed_back / plain);
                assert!(fed_back < 0.5 * plain, "{quant}: {fed_back} {plain}");
            }
        }
    }

    #[test]
    fn threads_change_nothing_and_pieces_are_the_whole() {
        let (n_rows, n_cols) = (70, 131);
        let made = Made {
            n_cols,
            numbers: noise(n_rows * n_cols, 1),
        };
        let inputs = inputs(300, n_cols);
        let rounded = |n_threads: usize| {
            let pool = Pool::new(n_threads);
            let known = importance(&inputs, n_cols, &pool);
            let blocks = || {
                let blocks = Blocks::new(&made, n_rows, n_cols, &pool);
                blocks.with_importance(known.clone())
            };
            let whole = convert_rows(&mut blocks(), Quant::Q4).expect("finite");
            let mut pieces = Vec::new();
            convert_rows_in_pieces(&mut blocks(), Quant::Q4, &mut |rows| {
                pieces.extend_from_slice(rows.parts()[0].1);
                Ok(())
            })
            .expect("finite");
            assert!(whole.values() == pieces);
            pieces
        };
        assert!(rounded(1) == rounded(3));
    }

    #[test]
    fn inputs_that_are_all_zero_or_too_large_are_nothing_to_go_by() {
        let pool = Pool::new(1);
        for input in [0.0, 1e30] {
            let known = importance(&vec![input; 300 * 40], 40, &pool);
            assert!(known.feedback.is_none(), "{input}");
        }
    }
}
