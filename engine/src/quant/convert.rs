//! From rows of f32, wherever they come from, to stored weights: whole, in memory of their own, or in pieces for devices.

#![forbid(unsafe_code)]

use std::ops::Range;

use crate::error::Result;
use crate::quant::blocks::{Blocks, BLOCK_NUMBERS};
use crate::quant::parts::MatrixRows;
use crate::quant::{of_quant, Format, Quant, Weights};

/// Pieces of a matrix on its way to a device are at most this large, rows that are longer aside: one of them,
/// the block in f32 that it is made of, and what a plugin may pin are together far below 64 MiB.
pub(crate) const UPLOAD_BYTES: usize = 4 * BLOCK_NUMBERS;

/// Cuts `n_rows` rows of that size into pieces of at most [`UPLOAD_BYTES`], or of one row.
pub(super) fn pieces(n_rows: usize, row_size_bytes: usize) -> impl Iterator<Item = Range<usize>> {
    let step = (UPLOAD_BYTES / row_size_bytes.max(1)).max(1);
    let starts = (0..n_rows).step_by(step);
    starts.map(move |start| start..(start + step).min(n_rows))
}

/// Makes weights of rows, in memory of their own.
pub(crate) fn convert_rows(blocks: &mut Blocks<'_>, quant: Quant) -> Result<Weights> {
    of_quant!(quant, F => F::convert(blocks).map(Weights::from))
}

/// As [`convert_rows`], but gives the rows to `take` block by block.
pub(crate) fn convert_rows_in_pieces(
    blocks: &mut Blocks<'_>,
    quant: Quant,
    take: &mut dyn FnMut(MatrixRows<'_>) -> Result<()>,
) -> Result<()> {
    let shape = (blocks.n_rows, blocks.n_cols);
    let mut take = |rows: Range<usize>, parts: &[&[u8]]| {
        take(MatrixRows::new(quant, shape, rows, parts.iter().copied()))
    };
    of_quant!(quant, F => F::convert_in_pieces(blocks, &mut take))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_rows_go_one_by_one() {
        let all: Vec<_> = pieces(3, UPLOAD_BYTES + 1).collect();
        assert_eq!(all, [0..1, 1..2, 2..3]);
        assert_eq!(
            pieces(3, UPLOAD_BYTES / 2).collect::<Vec<_>>(),
            [0..2, 2..3]
        );
        assert_eq!(pieces(0, 1).count(), 0);
    }
}
