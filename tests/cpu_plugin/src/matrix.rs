//! Matrices as they come from the host, and products with them.
//!
//! A stored row is widened to f32 when it is needed, and then meets all rows of the batch.

use rwkv_edge_plugin as abi;

use crate::{wrong, Result};

/// (n_rows, n_cols) as stored.
pub(crate) struct Matrix {
    pub(crate) n_rows: usize,
    pub(crate) n_cols: usize,
    values: Values,
}

enum Values {
    F32(Vec<f32>),
    F16(Vec<u16>),
    Int8 {
        values: Vec<i8>,
        /// (n_rows) f16
        row_scales: Vec<u16>,
        /// (n_cols) 2^(exponent / 4)
        column_factors: Vec<f32>,
    },
}

impl Matrix {
    /// No rows yet, and room for all; its sizes and dtype were checked.
    pub(crate) fn new(tensor: &abi::Tensor) -> Self {
        let (n_rows, n_cols) = (tensor.n_rows as usize, tensor.n_cols as usize);
        let n = n_rows * n_cols;
        let values = match tensor.dtype {
            abi::F32 => Values::F32(Vec::with_capacity(n)),
            abi::F16 => Values::F16(Vec::with_capacity(n)),
            _ => Values::Int8 {
                values: Vec::with_capacity(n),
                row_scales: Vec::with_capacity(n_rows),
                column_factors: Vec::new(),
            },
        };
        Matrix {
            n_rows,
            n_cols,
            values,
        }
    }

    /// How many rows have come.
    pub(crate) fn rows_so_far(&self) -> usize {
        let n = match &self.values {
            Values::F32(values) => values.len(),
            Values::F16(values) => values.len(),
            Values::Int8 { values, .. } => values.len(),
        };
        n / self.n_cols
    }

    /// Takes the next rows.
    ///
    /// # Safety
    /// The tensor's pointers are to as many elements as its sizes and dtype say, which were checked.
    pub(crate) unsafe fn append(&mut self, tensor: &abi::Tensor) -> Result {
        let n_rows = tensor.row_count as usize;
        let n = n_rows * self.n_cols;
        // SAFETY: the caller's promise is the same.
        unsafe {
            match &mut self.values {
                Values::F32(all) => all.extend(copied::<f32>(tensor.values.cast(), n)),
                Values::F16(all) => all.extend(copied::<u16>(tensor.values.cast(), n)),
                Values::Int8 {
                    values,
                    row_scales,
                    column_factors,
                } => {
                    let factors: Vec<f32> = match tensor.column_exponents.is_null() {
                        true => vec![1.0; self.n_cols],
                        false => copied(tensor.column_exponents, self.n_cols)
                            .map(|exponent| (f32::from(exponent) / 4.0).exp2())
                            .collect(),
                    };
                    if !column_factors.is_empty() && *column_factors != factors {
                        return wrong("column_exponents are not those of the first rows");
                    }
                    *column_factors = factors;
                    values.extend(copied::<i8>(tensor.values.cast(), n));
                    row_scales.extend(copied(tensor.row_scales, n_rows));
                }
            }
        }
        Ok(())
    }

    /// Widens one stored row.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        let range = row * self.n_cols..(row + 1) * self.n_cols;
        match &self.values {
            Values::F32(values) => out.copy_from_slice(&values[range]),
            Values::F16(values) => {
                for (out, &bits) in out.iter_mut().zip(&values[range]) {
                    *out = f16_to_f32(bits);
                }
            }
            Values::Int8 {
                values,
                row_scales,
                column_factors,
            } => {
                let scale = f16_to_f32(row_scales[row]);
                for ((out, &q), factor) in out.iter_mut().zip(&values[range]).zip(column_factors) {
                    *out = f32::from(q) * scale * factor;
                }
            }
        }
    }

    /// (rows, n_cols) to (rows, n_rows): a stored row is an output.
    pub(crate) fn multiply(&self, x: &[f32]) -> Vec<f32> {
        let n = x.len() / self.n_cols;
        let mut out = vec![0.0; n * self.n_rows];
        let mut weights = vec![0.0; self.n_cols];
        for row in 0..self.n_rows {
            self.row(row, &mut weights);
            for (x, out) in x
                .chunks_exact(self.n_cols)
                .zip(out.chunks_exact_mut(self.n_rows))
            {
                out[row] = dot(&weights, x);
            }
        }
        out
    }

    /// (rows, n_rows) to (rows, n_cols): a stored row is an input.
    pub(crate) fn multiply_transposed(&self, x: &[f32]) -> Vec<f32> {
        let n = x.len() / self.n_rows;
        let mut out = vec![0.0; n * self.n_cols];
        let mut weights = vec![0.0; self.n_cols];
        for row in 0..self.n_rows {
            self.row(row, &mut weights);
            for (x, out) in x
                .chunks_exact(self.n_rows)
                .zip(out.chunks_exact_mut(self.n_cols))
            {
                // The squared ReLU makes most inputs exactly 0.
                if x[row] != 0.0 {
                    out.iter_mut()
                        .zip(&weights)
                        .for_each(|(out, w)| *out += w * x[row]);
                }
            }
        }
        out
    }
}

/// In eight sums, which a compiler can keep side by side.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder());
    let rest: f32 = rest.map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// # Safety
/// The pointer is to `n` values for as long as the iterator is used.
pub(crate) unsafe fn copied<T: Copy>(pointer: *const T, n: usize) -> impl Iterator<Item = T> {
    // SAFETY: the caller's promise is the same. The values may lie anywhere: no alignment is needed.
    (0..n).map(move |i| unsafe { pointer.add(i).read_unaligned() })
}

/// IEEE half precision.
fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let exponent = u32::from(bits >> 10 & 0x1f);
    let mantissa = u32::from(bits & 0x3ff);
    match exponent {
        0 => {
            // 2^-24 is the smallest number.
            let value = mantissa as f32 / 16_777_216.0;
            f32::from_bits(value.to_bits() | sign)
        }
        0x1f => f32::from_bits(sign | 0x7f80_0000 | mantissa << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | mantissa << 13),
    }
}

#[cfg(test)]
mod tests {
    use super::f16_to_f32;

    #[test]
    fn halves() {
        for (bits, value) in [
            (0x0000, 0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0001, 5.960_464_5e-8),
            (0x8001, -5.960_464_5e-8),
            (0x0400, 6.103_515_6e-5),
            (0x7c00, f32::INFINITY),
        ] {
            assert_eq!(f16_to_f32(bits), value, "{bits:x}");
        }
        assert!(f16_to_f32(0x7e00).is_nan());
    }
}
