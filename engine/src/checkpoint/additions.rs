//! What adapters add to a matrix, computed for those rows of it that are read.
//!
//! The formulas are those of the merge scripts of RWKV-PEFT. Nothing is merged ahead of time: a matrix is read a few rows
//! at a time, and each time the sums of these rows are made in f32, so that a merged model needs no memory of its own.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::tensor::RawTensor;
use crate::error::Result;
use crate::math::resized;

/// Rows of a right factor that are in memory at once: all of most adapters.
const RANKS_AT_ONCE: usize = 64;

/// Of one adapter to one matrix, whose rows are its outputs unless it was transposed.
#[derive(Clone, Debug)]
pub(super) enum Addition {
    /// `scale * left * right`: (rows, rank) times (rank, columns). LoRA's B and A.
    Product {
        left: RawTensor,
        right: RawTensor,
        scale: f64,
    },
    /// For input j row `j mod r` of a tensor (r, outputs): DiSHA, which its paper calls MiSS.
    Repeated { tensor: RawTensor, inputs: Inputs },
    /// For inputs of block b: each `size` by `size` block of the matrix times block b of the tensor, and that block
    /// itself. The tensor has the blocks below each other. Bone, the earlier form of DiSHA.
    Blocks {
        tensor: RawTensor,
        size: usize,
        inputs: Inputs,
    },
}

/// Where the inputs of a matrix are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inputs {
    Columns,
    /// Of one that is read as its transpose.
    Rows,
}

/// Reads rows of the matrix as it is before an addition.
type Base<'a> = dyn Fn(Range<usize>, &mut [f32]) -> Result<()> + 'a;

impl Inputs {
    fn transposed(self) -> Self {
        match self {
            Inputs::Columns => Inputs::Rows,
            Inputs::Rows => Inputs::Columns,
        }
    }
}

impl Addition {
    /// To the transpose of the matrix.
    pub(super) fn transposed(self) -> Self {
        match self {
            Addition::Product { left, right, scale } => Addition::Product {
                left: right.transposed(),
                right: left.transposed(),
                scale,
            },
            Addition::Repeated { tensor, inputs } => Addition::Repeated {
                tensor,
                inputs: inputs.transposed(),
            },
            Addition::Blocks {
                tensor,
                size,
                inputs,
            } => Addition::Blocks {
                tensor,
                size,
                inputs: inputs.transposed(),
            },
        }
    }

    /// Fills `out` with rows of the sum.
    fn read(&self, base: &Base<'_>, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        // No rows, or rows of nothing.
        if out.is_empty() {
            return Ok(());
        }
        let n_cols = out.len() / rows.len();
        match self {
            Addition::Product { left, right, scale } => {
                base(rows.clone(), out)?;
                add_product((left, right), *scale, rows, out)
            }
            Addition::Repeated {
                tensor,
                inputs: Inputs::Columns,
            } => {
                base(rows.clone(), out)?;
                let r = tensor.shape[0];
                let by_output = read(&tensor.clone().transposed(), rows)?;
                for (row, added) in out.chunks_exact_mut(n_cols).zip(by_output.chunks_exact(r)) {
                    row.chunks_mut(r).for_each(|part| add(part, 1.0, added));
                }
                Ok(())
            }
            Addition::Repeated {
                tensor,
                inputs: Inputs::Rows,
            } => {
                base(rows.clone(), out)?;
                for (row, input) in out.chunks_exact_mut(n_cols).zip(rows) {
                    let at = input % tensor.shape[0];
                    add(row, 1.0, &read(tensor, at..at + 1)?);
                }
                Ok(())
            }
            Addition::Blocks {
                tensor,
                size,
                inputs: Inputs::Columns,
            } => {
                base(rows.clone(), out)?;
                add_blocks(tensor, *size, rows, out)
            }
            Addition::Blocks {
                tensor,
                size,
                inputs: Inputs::Rows,
            } => read_blocks_across(tensor, *size, base, rows, out),
        }
    }
}

impl RawTensor {
    /// Whether adapters were merged with it, so that its numbers are not those in the file.
    pub(crate) fn is_merged(&self) -> bool {
        !self.additions.is_empty()
    }

    /// Reads rows after the first `n` additions.
    pub(super) fn read_after(
        &self,
        n: usize,
        rows: Range<usize>,
        out: &mut [f32],
        once: bool,
    ) -> Result<()> {
        let Some(before) = n.checked_sub(1) else {
            return self.read_stored(rows, out, once);
        };
        let base = |rows: Range<usize>, out: &mut [f32]| self.read_after(before, rows, out, once);
        self.additions[before].read(&base, rows, out)
    }
}

/// Rows of a tensor in memory.
fn read(tensor: &RawTensor, rows: Range<usize>) -> Result<Vec<f32>> {
    let mut numbers = Vec::new();
    let n = rows.len() * tensor.shape[1];
    resized(&mut numbers, n, 0.0, "rows of an adapter")?;
    tensor.read_rows(rows, &mut numbers)?;
    Ok(numbers)
}

/// `out += factor * added`, as far as the shorter one reaches.
fn add(out: &mut [f32], factor: f32, added: &[f32]) {
    for (out, added) in out.iter_mut().zip(added) {
        *out += factor * added;
    }
}

/// The sums over up to [`RANKS_AT_ONCE`] ranks are made in f64, so that they are rounded once.
fn add_product(
    (left, right): (&RawTensor, &RawTensor),
    scale: f64,
    rows: Range<usize>,
    out: &mut [f32],
) -> Result<()> {
    let (rank, n_cols) = (right.shape[0], right.shape[1]);
    let factors = read(left, rows)?;
    let mut sums = Vec::new();
    resized(&mut sums, n_cols, 0.0, "a row of a matrix")?;
    for start in (0..rank).step_by(RANKS_AT_ONCE) {
        let ranks = start..(start + RANKS_AT_ONCE).min(rank);
        let lines = read(right, ranks.clone())?;
        let rows = out.chunks_exact_mut(n_cols);
        for (row, factors) in rows.zip(factors.chunks_exact(rank)) {
            sums.fill(0.0);
            let lines = lines.chunks_exact(n_cols);
            for (&factor, line) in factors[ranks.clone()].iter().zip(lines) {
                for (sum, &number) in sums.iter_mut().zip(line) {
                    *sum += f64::from(factor) * f64::from(number);
                }
            }
            for (number, sum) in row.iter_mut().zip(&sums) {
                *number = (f64::from(*number) + scale * sum) as f32;
            }
        }
    }
    Ok(())
}

/// Each row of a block is one row of the matrix: row i gets its part times the tensor's block, and row `i mod size` of
/// that.
fn add_blocks(tensor: &RawTensor, size: usize, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
    let n_cols = tensor.shape[0];
    for start in (0..n_cols).step_by(size) {
        let block = read(tensor, start..start + size)?;
        let line = |i: usize| &block[i * size..(i + 1) * size];
        for (row, output) in out.chunks_exact_mut(n_cols).zip(rows.clone()) {
            let part = &mut row[start..start + size];
            let before = part.to_vec();
            for (i, &factor) in before.iter().enumerate() {
                add(part, factor, line(i));
            }
            add(part, 1.0, line(output % size));
        }
    }
    Ok(())
}

/// The same where the rows are inputs: each one's sum has all rows of its block in it.
fn read_blocks_across(
    tensor: &RawTensor,
    size: usize,
    base: &Base<'_>,
    rows: Range<usize>,
    out: &mut [f32],
) -> Result<()> {
    let n_cols = out.len() / rows.len();
    let mut before = Vec::new();
    resized(&mut before, size * n_cols, 0.0, "a block of a matrix")?;
    for start in (rows.start / size * size..rows.end).step_by(size) {
        let of_block = start..start + size;
        base(of_block.clone(), &mut before)?;
        let block = read(tensor, of_block.clone())?;
        for input in rows.start.max(start)..rows.end.min(of_block.end) {
            let (at, within) = ((input - rows.start) * n_cols, input - start);
            let row = &mut out[at..at + n_cols];
            row.copy_from_slice(&before[within * n_cols..(within + 1) * n_cols]);
            let column = |i: usize| block[i * size + within];
            for (i, line) in before.chunks_exact(n_cols).enumerate() {
                add(row, column(i), line);
            }
            for (output, number) in row.iter_mut().enumerate() {
                *number += column(output % size);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Dtype;
    use crate::files::SourceFile;

    fn tensor(shape: [usize; 2], seed: usize) -> RawTensor {
        let n = shape[0] * shape[1];
        let number = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0;
        let bytes: Vec<u8> = (0..n).flat_map(|i| number(i).to_le_bytes()).collect();
        let file = SourceFile::from_bytes("file", bytes.into());
        RawTensor::in_order("t".into(), file, Dtype::F32, shape.to_vec(), 0).expect("valid")
    }

    fn numbers(tensor: &RawTensor) -> Vec<f32> {
        read(tensor, 0..tensor.shape[0]).expect("finite")
    }

    fn turned(numbers: &[f32], n_rows: usize) -> Vec<f32> {
        let n_cols = numbers.len() / n_rows;
        let at = |i: usize| numbers[i % n_rows * n_cols + i / n_rows];
        (0..numbers.len()).map(at).collect()
    }

    /// All forms one after the other, by the formulas, read in rows and in columns, whole and in pieces.
    #[test]
    fn rows_and_columns_have_the_same_sums() {
        let (n_rows, n_cols) = (12, 18);
        let (rank, size, r) = (70, 6, 5);
        let mut merged = tensor([n_rows, n_cols], 1);
        let (left, right) = (tensor([n_rows, rank], 2), tensor([rank, n_cols], 3));
        let (blocks, repeated) = (tensor([n_cols, size], 4), tensor([r, n_rows], 5));
        let inputs = Inputs::Columns;
        merged.additions = vec![
            Addition::Product {
                left: left.clone(),
                right: right.clone(),
                scale: 0.5,
            },
            Addition::Blocks {
                tensor: blocks.clone(),
                size,
                inputs,
            },
            Addition::Repeated {
                tensor: repeated.clone(),
                inputs,
            },
        ];
        let base = numbers(&tensor([n_rows, n_cols], 1));
        let [left, right, blocks, repeated] = [&left, &right, &blocks, &repeated].map(numbers);
        let first = |row: usize, col: usize| {
            let terms = (0..rank)
                .map(|k| f64::from(left[row * rank + k]) * f64::from(right[k * n_cols + col]));
            f64::from(base[row * n_cols + col]) + 0.5 * terms.sum::<f64>()
        };
        let mut expected = Vec::new();
        for row in 0..n_rows {
            for col in 0..n_cols {
                let start = col / size * size;
                let of_block = |i: usize| f64::from(blocks[(start + i) * size + col - start]);
                let terms = (0..size).map(|i| first(row, start + i) * of_block(i));
                let sum = first(row, col) + terms.sum::<f64>() + of_block(row % size);
                expected.push(sum + f64::from(repeated[col % r * n_rows + row]));
            }
        }
        let check = |found: &[f32], what: &str| {
            for (found, expected) in found.iter().zip(&expected) {
                let difference = (f64::from(*found) - expected).abs();
                assert!(difference < 1e-4, "{what}: {found} {expected}");
            }
        };
        let whole = numbers(&merged);
        check(&whole, "whole");
        let across = merged.clone().transposed();
        check(&turned(&numbers(&across), n_cols), "across");
        for (tensor, whole) in [(&merged, whole), (&across, numbers(&across))] {
            let n_cols = tensor.shape[1];
            for rows in [0..1, 3..5, 4..10, 11..12] {
                let found = read(tensor, rows.clone()).expect("finite");
                assert!(found == whole[rows.start * n_cols..rows.end * n_cols]);
            }
        }
    }
}
