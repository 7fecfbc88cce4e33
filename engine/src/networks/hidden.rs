//! The hidden units of the channel mixing, which every version squares behind a ReLU: most of them are exactly 0, and
//! their rows of the value matrix need not be read.

#![forbid(unsafe_code)]

use super::common::Pass;
use super::config::Sizes;
use crate::error::Result;
use crate::math::aligned::Aligned;
use crate::products::{Activations, Product, Scratch, Transposed, BUFFERS};
use crate::quant::matrix::Matrix;

/// Memory for them, (rows, n_hidden) each.
pub(crate) struct HiddenUnits {
    /// What the key matrix gives.
    keys: Aligned<f32>,
    /// Their squares, as the value matrix wants them.
    squares: Activations,
    transposed: Transposed,
}

impl HiddenUnits {
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub(crate) fn new(sizes: &Sizes, rows_max: usize, no_sparsity: bool) -> Result<Self> {
        let (n_embd, n_hidden) = (sizes.n_embd, sizes.n_hidden);
        Ok(HiddenUnits {
            keys: Aligned::zeroed(rows_max.saturating_mul(n_hidden), BUFFERS)?,
            squares: Activations::new(n_hidden, rows_max)?,
            transposed: Transposed::new(n_hidden, n_embd, rows_max, no_sparsity)?,
        })
    }

    /// Bytes that [`new`](Self::new) takes.
    pub(crate) fn bytes_for(sizes: &Sizes, rows_max: usize) -> u64 {
        let (n_embd, n_hidden) = (sizes.n_embd, sizes.n_hidden);
        Aligned::<f32>::bytes_for(rows_max as u64 * n_hidden as u64)
            + Activations::bytes_for(n_hidden, rows_max)
            + Transposed::bytes_for(n_hidden, n_embd, rows_max)
    }

    /// What they take in memory.
    pub(crate) fn size_bytes(&self) -> usize {
        self.keys.size_bytes() + self.squares.size_bytes() + self.transposed.size_bytes()
    }

    /// Where the key matrix writes so many rows.
    pub(crate) fn keys_mut(&mut self, n_rows: usize, n_hidden: usize) -> &mut [f32] {
        &mut self.keys[..n_rows * n_hidden]
    }

    /// Squares what the key matrix gave, for the matrix `value`.
    pub(crate) fn square(&mut self, pass: &Pass<'_>, value: &Matrix) {
        let (pool, kernels) = (pass.machine.pool, pass.machine.kernels);
        let (keys, n_hidden) = (&self.keys, value.n_inputs());
        self.squares
            .prepare(pool, kernels, value, pass.n_rows, |row, out| {
                out.copy_from_slice(&keys[row * n_hidden..][..n_hidden]);
                kernels.squared_relu(out);
            });
    }

    /// Multiplies the squares by `value` into `out`, (rows, n_embd); `next` are the matrices behind it.
    pub(crate) fn multiply(
        &mut self,
        pass: &Pass<'_>,
        scratch: &mut [Scratch],
        value: &Matrix,
        out: &mut [f32],
        next: &[&Matrix],
    ) {
        let product = Product {
            matrix: value,
            input: &self.squares,
            out: &mut out[..pass.n_rows * value.n_outputs()],
        };
        self.transposed
            .multiply(pass.machine, scratch, product, next);
    }

    /// Rows of the value matrix that were not read, of those that there were.
    pub(crate) fn sparsity(&self) -> (u64, u64) {
        self.transposed.sparsity()
    }
}
