//! f32 matrix-matrix products by the `gemm` crate, which packs for the caches of the CPU it finds.
//!
//! Used for f32 weights and many rows of activations. There, weights come from the second-level cache
//! faster than a core takes them only if they are packed: 41 G multiply-adds a second on one core at a
//! width of 2048, where the tiles of our own do 29 (Zen 4). With f16 and int8 weights, which are half and a quarter of
//! the bytes, the tiles win.

use super::Rows;
use crate::math::linear::View;

/// `out[t, o] = sum over c of weights[o, c] * x[t, c]`: `weights` is (n_out, cols), `out` (x.n, n_out).
///
/// # Panics
/// When the slices do not have these sizes.
pub fn multiply_f32(weights: &[f32], x: Rows<'_, f32>, cols: usize, out: &mut [f32]) {
    super::check_dots(weights.len(), &x, cols, out.len());
    let n_out = weights.len() / cols;
    // SAFETY: `weights`, `x` and `out` have the sizes that were just checked; strides are given in the
    // crate's order, columns before rows, and `weights` is read transposed.
    unsafe {
        gemm::gemm(
            x.n,
            n_out,
            cols,
            out.as_mut_ptr(),
            1,
            n_out as isize,
            false,
            x.values.as_ptr(),
            1,
            x.stride as isize,
            weights.as_ptr(),
            cols as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// `out[r, c] += factor * sum over k of a[r, k] * b[k, c]`, where `a` is (n_rows, n), `b` (n, n_cols), and rows of `out` are
/// `out_stride` apart.
///
/// # Panics
/// When the slices do not have these sizes.
pub(crate) fn add_product_f32(
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
    let last_row = (n_rows - 1).saturating_mul(out_stride);
    assert!(n_cols <= out_stride && last_row.saturating_add(n_cols) <= out.len());
    // SAFETY: the last element that each of the three reaches was just checked to lie in its slice, and rows of `out` do
    // not overlap; strides are given in the crate's order, columns before rows.
    unsafe {
        gemm::gemm(
            n_rows,
            n_cols,
            n,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            true,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            factor,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_plain_product() {
        let (n, cols, n_out, stride) = (7, 13, 5, 14);
        let values: Vec<f32> = (0..n * stride)
            .map(|i| (i * 37 % 11) as f32 - 5.0)
            .collect();
        let w: Vec<f32> = (0..cols * n_out)
            .map(|i| (i * 29 % 13) as f32 - 6.0)
            .collect();
        let x = Rows {
            values: &values,
            stride,
            n,
        };
        let mut out = vec![9.0; n * n_out];
        multiply_f32(&w, x, cols, &mut out);
        for t in 0..n {
            for o in 0..n_out {
                let terms = (0..cols).map(|c| values[t * stride + c] * w[o * cols + c]);
                let sum: f32 = terms.sum();
                assert_eq!(out[t * n_out + o], sum, "small integers are exact");
            }
        }
    }
}
