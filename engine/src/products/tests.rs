//! Products with matrices of every quantisation, in every way, against the rows of the matrix as they are read.

use std::ops::Range;

use super::low_rank::{multiply_with, LowRank, Then};
use super::{multiply, Activations, Machine, Product, Scratch, Transposed, GEMM_ROWS};
use crate::error::Result;
use crate::math::kernels::{KernelSet, Rows};
use crate::math::threads::Pool;
use crate::quant::blocks::{Blocks, RowSource};
use crate::quant::convert::convert_rows;
use crate::quant::matrix::{Layout, Matrix};
use crate::quant::Quant;

/// More than a block, a chunk and a panel, and multiples of none.
const N_INPUTS: usize = 301;
const N_OUTPUTS: usize = 149;

struct Noise {
    n_cols: usize,
}

impl RowSource for Noise {
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let numbers = rows.flat_map(|row| (0..self.n_cols).map(move |column| (row, column)));
        for (out, (row, column)) in out.iter_mut().zip(numbers) {
            let size = (1 + row % 5 + column % 7) as f32;
            *out = size * (((row * 7919 + column * 104_729) % 20_011) as f32 / 1e4 - 1.0);
        }
        Ok(())
    }

    fn place(&self) -> String {
        "noise".into()
    }
}

/// Activations, of which a good part is 0.
fn input(row: usize, index: usize) -> f32 {
    match (row + index) % 3 {
        0 => 0.0,
        _ => ((row * 31 + index * 6007) % 997) as f32 / 500.0 - 1.0,
    }
}

fn product(matrix: &Matrix, kernels: KernelSet, pool: &Pool, n_rows: usize) -> Vec<f32> {
    let machine = Machine {
        pool,
        kernels,
        paging: None,
        observer: None,
    };
    let threads = 0..pool.n_threads();
    let scratch = |_| Scratch::new(n_rows, N_INPUTS, N_OUTPUTS).expect("memory");
    let mut scratch: Vec<_> = threads.map(scratch).collect();
    let mut activations = Activations::new(N_INPUTS, n_rows).expect("memory");
    activations.prepare(pool, kernels, matrix, n_rows, |row, out| {
        let numbers = out.iter_mut().enumerate();
        numbers.for_each(|(index, out)| *out = input(row, index));
    });
    let mut out = vec![f32::NAN; n_rows * N_OUTPUTS];
    if matrix.layout == Layout::LowRank {
        let inputs = (0..n_rows).flat_map(|row| (0..N_INPUTS).map(move |i| input(row, i)));
        let inputs: Vec<f32> = inputs.collect();
        let small = LowRank {
            matrix,
            input: Rows {
                values: &inputs,
                stride: N_INPUTS,
                n: n_rows,
            },
            out: &mut out,
            then: Then::Same,
        };
        multiply_with(machine, &mut scratch, [], [None, Some(small)], &[]);
        return out;
    }
    let product = Product {
        matrix,
        input: &activations,
        out: &mut out,
    };
    match matrix.layout {
        Layout::RowPerOutput => multiply(machine, &mut scratch, [product], &[]),
        Layout::RowPerInput | Layout::LowRank => {
            Transposed::new(N_INPUTS, N_OUTPUTS, n_rows, false)
                .expect("memory")
                .multiply(machine, &mut scratch, product, &[]);
        }
    }
    out
}

/// Sums of products of the numbers as read, and of their sizes.
fn expected(matrix: &Matrix, row: usize) -> Vec<(f64, f64)> {
    let mut stored = vec![0.0; matrix.n_cols];
    let mut sums = vec![(0.0, 0.0); N_OUTPUTS];
    for stored_row in 0..matrix.n_rows {
        matrix.read_row(stored_row, &mut stored);
        for (column, &weight) in stored.iter().enumerate() {
            let (index, output) = match matrix.layout {
                Layout::RowPerOutput => (column, stored_row),
                Layout::RowPerInput | Layout::LowRank => (stored_row, column),
            };
            let product = f64::from(weight) * f64::from(input(row, index));
            sums[output].0 += product;
            sums[output].1 += product.abs();
        }
    }
    sums
}

#[test]
fn products_are_those_with_the_rows_as_read() {
    let pool = Pool::new(2);
    for &quant in Quant::ALL {
        let layouts = [Layout::RowPerOutput, Layout::RowPerInput, Layout::LowRank];
        let is_any = |layout: &Layout| *layout != Layout::LowRank || quant.floats().is_some();
        for layout in layouts.into_iter().filter(is_any) {
            let (n_rows, n_cols) = layout.stored_shape(N_OUTPUTS, N_INPUTS);
            let source = Noise { n_cols };
            let mut blocks = Blocks::new(&source, n_rows, n_cols, &pool);
            let matrix = Matrix {
                name: "w".into(),
                n_rows,
                n_cols,
                layout,
                weights: convert_rows(&mut blocks, quant).expect("finite"),
            };
            for kernels in KernelSet::available() {
                let one = product(&matrix, kernels, &pool, 1);
                for batch in [1, 7, 8, GEMM_ROWS + 1] {
                    let what = format!("{quant} {layout:?} {batch} {}", kernels.name());
                    let out = product(&matrix, kernels, &pool, batch);
                    // Of all sets alike but that, the sums have one order.
                    if !quant.has_gemm() || batch < GEMM_ROWS || layout != Layout::RowPerOutput {
                        assert_eq!(out[..N_OUTPUTS], one, "{what}: not the row alone");
                    }
                    for row in [0, batch - 1] {
                        let out = &out[row * N_OUTPUTS..][..N_OUTPUTS];
                        let expected = expected(&matrix, row);
                        for (output, (&found, (sum, size))) in out.iter().zip(expected).enumerate()
                        {
                            // Activations of 16 bits are finer than this, and f32 far finer.
                            let error = (f64::from(found) - sum).abs();
                            assert!(error <= 1e-4 * size, "{what} [{row}, {output}]: {error}");
                        }
                    }
                }
            }
        }
    }
}
