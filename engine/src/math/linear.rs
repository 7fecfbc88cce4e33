//! Dense linear algebra for calibration: sums of products of columns, and what a Cholesky decomposition makes of them.
//!
//! Symmetric matrices are kept as the lower triangle of square tiles, tile column after tile column: each tile is a task
//! of its own, so that no result depends on the number of threads. By the gemm crate, where it is built in.

#![forbid(unsafe_code)]

use crate::error::Result;
use crate::math::kernels::Rows;
use crate::math::threads::Pool;
use crate::math::zeroed;

/// Rows and columns of a tile: 64 KiB, so that three of them stay in a second-level cache.
pub(crate) const TILE: usize = 128;
const TILE_LEN: usize = TILE * TILE;

/// A matrix somewhere in a slice.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
}

impl<'a> View<'a> {
    /// Rows of this stride.
    pub(crate) fn of_rows(values: &'a [f32], row_stride: usize) -> Self {
        View {
            values,
            row_stride,
            column_stride: 1,
        }
    }

    /// The transpose of rows of this stride.
    pub(crate) fn of_columns(values: &'a [f32], column_stride: usize) -> Self {
        View {
            values,
            row_stride: 1,
            column_stride,
        }
    }

    /// # Panics
    /// When an element of a matrix (n_rows, n_cols), both at least 1, is not there.
    pub(crate) fn check(&self, n_rows: usize, n_cols: usize) {
        let last_row = (n_rows - 1).saturating_mul(self.row_stride);
        let last_column = (n_cols - 1).saturating_mul(self.column_stride);
        assert!(last_row.saturating_add(last_column) < self.values.len());
    }

    #[cfg(any(test, not(feature = "gemm")))]
    fn at(&self, row: usize, column: usize) -> f32 {
        self.values[row * self.row_stride + column * self.column_stride]
    }
}

/// `out[r, c] += factor * sum over k of a[r, k] * b[k, c]`, where `a` is (n_rows, n), `b` (n, n_cols), and rows of `out` are
/// `out_stride` apart.
///
/// # Panics
/// When the slices do not have these sizes.
#[cfg(feature = "gemm")]
pub(crate) use crate::math::kernels::gemm::add_product_f32 as add_product;

#[cfg(not(feature = "gemm"))]
pub(crate) use self::add_product_plain as add_product;

/// The same in plain loops: what the gemm crate is tested against, and taken without it.
///
/// # Panics
/// When the slices do not have these sizes.
#[cfg(any(test, not(feature = "gemm")))]
pub(crate) fn add_product_plain(
    (n_rows, n, n_cols): (usize, usize, usize),
    factor: f32,
    a: View<'_>,
    b: View<'_>,
    out: &mut [f32],
    out_stride: usize,
) {
    if n_rows == 0 || n == 0 || n_cols == 0 {
        return;
    }
    a.check(n_rows, n);
    b.check(n, n_cols);
    assert!(n_cols <= out_stride);
    for (row, out) in out.chunks_mut(out_stride).take(n_rows).enumerate() {
        for k in 0..n {
            let left = factor * a.at(row, k);
            for (column, out) in out[..n_cols].iter_mut().enumerate() {
                *out += left * b.at(k, column);
            }
        }
    }
}

/// The lower triangle of a symmetric matrix (n, n). Tiles at the edge are filled up with zeros.
#[derive(PartialEq)]
pub(crate) struct Tiles {
    n: usize,
    /// Of a side.
    n_tiles: usize,
    /// Tiles (i, j) with i >= j, by j and then by i, (TILE, TILE) each.
    numbers: Vec<f32>,
}

impl Tiles {
    /// All zeros.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub(crate) fn new(n: usize) -> Result<Self> {
        let n_tiles = n.div_ceil(TILE);
        let n_numbers = (n_tiles * (n_tiles + 1) / 2).saturating_mul(TILE_LEN);
        Ok(Tiles {
            n,
            n_tiles,
            numbers: zeroed(n_numbers, "moments of activations")?,
        })
    }

    pub(crate) fn n(&self) -> usize {
        self.n
    }

    pub(crate) fn n_tiles(&self) -> usize {
        self.n_tiles
    }

    /// Where tile column `j` begins in the numbers.
    fn column(&self, j: usize) -> usize {
        TILE_LEN * (j * (2 * self.n_tiles + 1 - j) / 2)
    }

    /// Row and column of tiles of the tile that comes `index` tiles after the beginning of tile column `first`.
    fn place(&self, first: usize, mut index: usize) -> (usize, usize) {
        let mut j = first;
        while index >= self.n_tiles - j {
            index -= self.n_tiles - j;
            j += 1;
        }
        (j + index, j)
    }

    /// Tile (i, j), i >= j.
    pub(crate) fn tile(&self, i: usize, j: usize) -> &[f32] {
        &self.numbers[self.column(j) + (i - j) * TILE_LEN..][..TILE_LEN]
    }

    /// Its diagonal.
    pub(crate) fn diagonal(&self) -> impl ExactSizeIterator<Item = f32> + '_ {
        (0..self.n).map(|at| {
            let (tile, at) = (at / TILE, at % TILE);
            self.tile(tile, tile)[at * TILE + at]
        })
    }

    /// Adds the products of all pairs of columns of `rows`, which are n wide, summed over the rows.
    pub(crate) fn add_squares(&mut self, rows: Rows<'_, f32>, pool: &Pool) {
        let (n, mut numbers) = (self.n, std::mem::take(&mut self.numbers));
        let range = |tile: usize| (tile * TILE, TILE.min(n - tile * TILE));
        pool.run_chunks(&mut numbers, TILE_LEN, |index, tile| {
            let (i, j) = self.place(0, index);
            let ((first_row, n_rows), (first_column, n_columns)) = (range(i), range(j));
            let left = View::of_columns(&rows.values[first_row..], rows.stride);
            let right = View::of_rows(&rows.values[first_column..], rows.stride);
            add_product((n_rows, rows.n, n_columns), 1.0, left, right, tile, TILE);
        });
        self.numbers = numbers;
    }

    /// Becomes the matrix L that is 1 on its diagonal and 0 above it, with `L D L^T` this matrix plus `damping`, which is
    /// above 0, on its diagonal; gives D (n). The diagonal is written as 0. A pivot that rounding errors made smaller than the
    /// damping is taken to be that.
    pub(crate) fn decompose(&mut self, damping: f32, pool: &Pool) -> Result<Vec<f32>> {
        let mut pivots = zeroed(self.n_tiles * TILE, "moments of activations")?;
        let mut transposed: Vec<f32> = zeroed(TILE_LEN, "moments of activations")?;
        let mut numbers = std::mem::take(&mut self.numbers);
        for k in 0..self.n_tiles {
            let (done, rest) = numbers.split_at_mut(self.column(k + 1));
            let column = &mut done[self.column(k)..];
            let (diagonal, below) = column.split_at_mut(TILE_LEN);
            decompose_tile(diagonal, damping, &mut pivots[k * TILE..][..TILE]);
            transpose(diagonal, &mut transposed);
            let factor = &transposed;
            pool.run_chunks(below, TILE_LEN, |_, tile| {
                tile.chunks_exact_mut(TILE)
                    .for_each(|row| solve(row, factor));
            });
            let column = &*column;
            let tile = |i: usize| &column[(i - k) * TILE_LEN..][..TILE_LEN];
            pool.run_chunks(rest, TILE_LEN, |index, out| {
                let (i, j) = self.place(k + 1, index);
                let (left, right) = (
                    View::of_rows(tile(i), TILE),
                    View::of_columns(tile(j), TILE),
                );
                add_product((TILE, TILE, TILE), -1.0, left, right, out, TILE);
            });
        }
        // L with a diagonal of 1 is the factor with each column divided by its pivot.
        let pivots_of = |j: usize| &pivots[j * TILE..][..TILE];
        pool.run_chunks(&mut numbers, TILE_LEN, |index, tile| {
            let (i, j) = self.place(0, index);
            for (row, numbers) in tile.chunks_exact_mut(TILE).enumerate() {
                let below = if i == j { row } else { TILE };
                for (number, pivot) in numbers[..below].iter_mut().zip(pivots_of(j)) {
                    *number /= pivot;
                }
                numbers[below..].fill(0.0);
            }
        });
        self.numbers = numbers;
        pivots.truncate(self.n);
        pivots.iter_mut().for_each(|pivot| *pivot *= *pivot);
        Ok(pivots)
    }
}

/// The Cholesky factor of a tile in its lower triangle, and its diagonal.
fn decompose_tile(tile: &mut [f32], damping: f32, pivots: &mut [f32]) {
    for (k, pivot) in pivots.iter_mut().enumerate() {
        let square = tile[k * TILE + k] + damping;
        *pivot = if square > damping { square } else { damping }.sqrt();
        let mut column = [0.0; TILE];
        for row in k + 1..TILE {
            let number = tile[row * TILE + k] / *pivot;
            tile[row * TILE + k] = number;
            column[row] = number;
        }
        tile[k * TILE + k] = *pivot;
        for row in k + 1..TILE {
            let left = column[row];
            let numbers = &mut tile[row * TILE + k + 1..row * TILE + row + 1];
            for (number, right) in numbers.iter_mut().zip(&column[k + 1..]) {
                *number -= left * right;
            }
        }
    }
}

/// Its lower triangle as the upper one.
fn transpose(tile: &[f32], out: &mut [f32]) {
    for row in 0..TILE {
        for column in 0..=row {
            out[column * TILE + row] = tile[row * TILE + column];
        }
    }
}

/// Solves `x factor = row` in place, where `factor` is an upper triangle.
fn solve(row: &mut [f32], factor: &[f32]) {
    for k in 0..TILE {
        let line = &factor[k * TILE..][..TILE];
        let x = row[k] / line[k];
        row[k] = x;
        for (number, right) in row[k + 1..].iter_mut().zip(&line[k + 1..]) {
            *number -= x * right;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (n_rows, n) small integers
    fn made(n_rows: usize, n: usize) -> Vec<f32> {
        let number = |i: usize| ((i * 7919 + i / n * 31) % 11) as f32 - 5.0;
        (0..n_rows * n).map(number).collect()
    }

    /// (n, n) with the upper triangle.
    fn dense(tiles: &Tiles) -> Vec<f64> {
        let n = tiles.n();
        let at = |i: usize, j: usize| {
            let (i, j) = (i.max(j), i.min(j));
            let tile = tiles.tile(i / TILE, j / TILE);
            f64::from(tile[i % TILE * TILE + j % TILE])
        };
        (0..n * n).map(|index| at(index / n, index % n)).collect()
    }

    #[test]
    fn products_are_those_of_plain_loops() {
        let (a, b) = (made(20, 20), made(20, 20));
        for (n_rows, n, n_cols) in [
            (1, 1, 1),
            (1, 7, 5),
            (6, 1, 9),
            (13, 17, 11),
            (0, 3, 3),
            (3, 0, 3),
        ] {
            for left in [View::of_rows(&a, 20), View::of_columns(&a, 20)] {
                for right in [View::of_rows(&b, 20), View::of_columns(&b, 20)] {
                    let size = (n_rows, n, n_cols);
                    let (mut found, mut expected) = (made(14, 14), made(14, 14));
                    add_product(size, -2.0, left, right, &mut found, 14);
                    add_product_plain(size, -2.0, left, right, &mut expected, 14);
                    assert_eq!(found, expected, "{size:?}: small integers are exact");
                }
            }
        }
    }

    #[test]
    fn squares_and_their_factors_are_those_of_plain_loops_for_any_number_of_threads() {
        for n in [1, 5, 127, 128, 129, 300] {
            let (n_rows, stride) = (90, n + 3);
            let values = made(n_rows, stride);
            let rows = Rows {
                values: &values,
                stride,
                n: n_rows,
            };
            let run = |pool: &Pool| {
                let mut tiles = Tiles::new(n).expect("memory");
                tiles.add_squares(rows, pool);
                tiles.add_squares(rows, pool);
                let squares = dense(&tiles);
                let pivots = tiles.decompose(3.0, pool).expect("memory");
                (squares, dense(&tiles), pivots)
            };
            let (squares, factor, pivots) = run(&Pool::new(1));
            let row = |t: usize| &values[t * stride..][..n];
            for (index, &square) in squares.iter().enumerate() {
                let (i, j) = (index / n, index % n);
                let sum: f32 = (0..n_rows).map(|t| row(t)[i] * row(t)[j]).sum();
                assert_eq!(square, 2.0 * f64::from(sum), "small integers are exact");
            }
            let lower = |i: usize, j: usize| match i.cmp(&j) {
                std::cmp::Ordering::Less => 0.0,
                std::cmp::Ordering::Equal => 1.0,
                std::cmp::Ordering::Greater => factor[i * n + j],
            };
            let largest = squares.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
            for i in 0..n {
                for j in 0..=i {
                    let terms = (0..=j).map(|k| lower(i, k) * f64::from(pivots[k]) * lower(j, k));
                    let damping = if i == j { 3.0 } else { 0.0 };
                    let off = terms.sum::<f64>() - squares[i * n + j] - damping;
                    assert!(off.abs() < 1e-5 * largest, "{n}: {i} {j}: {off}");
                }
            }
            let again = run(&Pool::new(3));
            assert!(again == (squares, factor, pivots), "{n}");
        }
    }
}
