//! f32 matrix-matrix products by the `gemm` crate, which blocks for the caches of the CPU it finds.
//!
//! Used for many rows at a time, where it beats one matrix-vector product a row; called with one
//! thread's share of the outputs at a time, always cut alike, so that results do not depend on the
//! number of threads.

/// How a block of weights lies in memory.
#[derive(Clone, Copy)]
pub(crate) struct Strides {
    /// Distance in elements between the weights of two neighbouring outputs.
    pub(crate) output: usize,
    /// Distance in elements between the weights of two neighbouring inputs.
    pub(crate) input: usize,
}

/// `out[t, o] = sum over i of x[t, i] * weights[o * strides.output + i * strides.input]`;
/// `x` is (n, n_in), `out` is (n, n_out).
///
/// # Panics
/// When the slices do not have these sizes.
pub(crate) fn multiply_f32(
    x: &[f32],
    n_in: usize,
    weights: &[f32],
    strides: Strides,
    n_out: usize,
    out: &mut [f32],
) {
    let n = out.len() / n_out;
    assert!(n > 0 && n_out > 0 && n_in > 0);
    assert!(out.len() == n * n_out && x.len() == n * n_in);
    let last = (n_out - 1) * strides.output + (n_in - 1) * strides.input;
    assert!(last < weights.len());
    // SAFETY: `out` is (n, n_out), `x` (n, n_in) and the last weight read is inside `weights`, all just
    // asserted; strides are given in the crate's order, columns before rows.
    unsafe {
        gemm::gemm(
            n,
            n_out,
            n_in,
            out.as_mut_ptr(),
            1,
            n_out as isize,
            false,
            x.as_ptr(),
            1,
            n_in as isize,
            weights.as_ptr(),
            strides.output as isize,
            strides.input as isize,
            0.0,
            1.0,
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
    fn both_layouts_give_the_plain_product() {
        let (n, n_in, n_out) = (7, 13, 5);
        let x: Vec<f32> = (0..n * n_in).map(|i| (i * 37 % 11) as f32 - 5.0).collect();
        let w: Vec<f32> = (0..n_in * n_out)
            .map(|i| (i * 29 % 13) as f32 - 6.0)
            .collect();
        for (output, input) in [(n_in, 1), (1, n_out)] {
            let mut out = vec![0.0; n * n_out];
            multiply_f32(&x, n_in, &w, Strides { output, input }, n_out, &mut out);
            for t in 0..n {
                for o in 0..n_out {
                    let terms = (0..n_in).map(|i| x[t * n_in + i] * w[o * output + i * input]);
                    assert_eq!(
                        out[t * n_out + o],
                        terms.sum::<f32>(),
                        "small integers are exact"
                    );
                }
            }
        }
    }
}
