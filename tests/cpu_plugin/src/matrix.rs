//! Matrices as they come from the host, and products with them.
//!
//! A stored row is widened to f32 when it is needed, and then meets all rows of the batch.

use crate::names::Quant;
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

/// Bytes of some rows.
pub(crate) struct Parts<'a> {
    pub(crate) values: &'a [u8],
    /// Of int8.
    pub(crate) row_scales: &'a [u8],
    /// Of int8, where some are not 0.
    pub(crate) column_exponents: Option<&'a [u8]>,
}

impl Matrix {
    /// No rows yet, and room for all.
    pub(crate) fn new(quant: Quant, n_rows: usize, n_cols: usize) -> Self {
        let n = n_rows * n_cols;
        let values = match quant {
            Quant::F32 => Values::F32(Vec::with_capacity(n)),
            Quant::F16 => Values::F16(Vec::with_capacity(n)),
            Quant::Int8 => Values::Int8 {
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
    pub(crate) fn append(&mut self, parts: &Parts<'_>) -> Result {
        match &mut self.values {
            Values::F32(all) => all.extend(floats(parts.values)),
            Values::F16(all) => all.extend(halves(parts.values)),
            Values::Int8 {
                values,
                row_scales,
                column_factors,
            } => {
                let factor = |&exponent: &u8| (f32::from(exponent as i8) / 4.0).exp2();
                let factors: Vec<f32> = match parts.column_exponents {
                    None => vec![1.0; self.n_cols],
                    Some(exponents) => exponents.iter().map(factor).collect(),
                };
                if !column_factors.is_empty() && *column_factors != factors {
                    return wrong("column_exponents are not those of the first rows");
                }
                *column_factors = factors;
                values.extend(parts.values.iter().map(|&byte| byte as i8));
                row_scales.extend(halves(parts.row_scales));
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

pub(crate) fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    let four = bytes.chunks_exact(4);
    four.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// Bits of f16.
fn halves(bytes: &[u8]) -> impl Iterator<Item = u16> + '_ {
    let two = bytes.chunks_exact(2);
    two.map(|b| u16::from_le_bytes([b[0], b[1]]))
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
