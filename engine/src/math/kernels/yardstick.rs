//! What a CPU can do at most: the yardstick that `bench` puts beside what the kernels achieve. Nothing
//! here computes anything of use.

#![forbid(unsafe_code)]

use super::elementwise::LANES;

/// Multiply-adds of f32 in one round: 12 registers.
pub(crate) const FLOAT_ROUND: usize = 12 * LANES;
/// Multiply-adds of integers in one round: 12 registers of pairs of i16.
pub(crate) const INTEGER_ROUND: usize = 2 * 12 * LANES;

#[inline(always)]
pub(super) fn read_words(words: &[u64]) -> u64 {
    // Lanes that do not depend on each other: eight registers of four.
    let mut lanes = [0_u64; 32];
    let mut blocks = words.chunks_exact(32);
    for block in &mut blocks {
        for (lane, word) in lanes.iter_mut().zip(block) {
            *lane ^= word;
        }
    }
    let rest = blocks.remainder().iter().fold(0, |a, b| a ^ b);
    lanes.iter().fold(rest, |a, b| a ^ b)
}

pub(super) fn multiply_add_floats(rounds: usize) -> f32 {
    let step = std::hint::black_box(1e-9);
    let b: [f32; 6] = std::hint::black_box([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]);
    let mut a = [[0.5_f32; LANES], [-0.25; LANES]];
    let mut sums = [[[0.0_f32; LANES]; 2]; 6];
    for _ in 0..rounds {
        for (sums, b) in sums.iter_mut().zip(b) {
            for (sums, a) in sums.iter_mut().zip(&a) {
                sums.iter_mut().zip(a).for_each(|(sum, a)| *sum += a * b);
            }
        }
        a.iter_mut().flatten().for_each(|a| *a += step);
    }
    sums.iter().flatten().flatten().sum()
}

pub(super) fn multiply_add_integers(rounds: usize) -> i32 {
    let step = std::hint::black_box(1_i16);
    let b: [[i16; 2]; 6] = std::hint::black_box([[1, 2], [3, 4], [5, 6], [7, 8], [9, 1], [2, 3]]);
    let mut a = [[5_i16; 2 * LANES], [-3; 2 * LANES]];
    let mut sums = [[[0_i32; LANES]; 2]; 6];
    for _ in 0..rounds {
        for (sums, b) in sums.iter_mut().zip(b) {
            for (sums, a) in sums.iter_mut().zip(&a) {
                for (sum, a) in sums.iter_mut().zip(a.chunks_exact(2)) {
                    let products = [a[0], a[1]].map(i32::from);
                    let products = products[0] * i32::from(b[0]) + products[1] * i32::from(b[1]);
                    *sum = sum.wrapping_add(products);
                }
            }
        }
        a.iter_mut()
            .flatten()
            .for_each(|a| *a = a.wrapping_add(step));
    }
    sums.iter().flatten().flatten().fold(0, |a, b| a ^ b)
}
