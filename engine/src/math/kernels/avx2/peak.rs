//! Multiply-adds from registers to registers: the most that this instruction set can do, measured by
//! `bench` beside what the kernels achieve.

use std::arch::x86_64::*;

use super::LANES;

/// Two registers times six, as the tile of a matrix product: 12 sums hide the latency of any CPU. The
/// two change in every round, so that no product can be moved out of the loop.
///
/// # Safety
/// The CPU has the features.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply_add_floats(rounds: usize) -> f32 {
    // SAFETY: the CPU has AVX and FMA.
    unsafe {
        let step = _mm256_set1_ps(std::hint::black_box(1e-9));
        let mut a = [_mm256_set1_ps(0.5), _mm256_set1_ps(-0.25)];
        let b: [f32; 6] = std::hint::black_box([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]);
        let mut sums = [[_mm256_setzero_ps(); 2]; 6];
        for _ in 0..rounds {
            for (sums, b) in sums.iter_mut().zip(&b) {
                let b = _mm256_set1_ps(*b);
                sums[0] = _mm256_fmadd_ps(a[0], b, sums[0]);
                sums[1] = _mm256_fmadd_ps(a[1], b, sums[1]);
            }
            a = a.map(|a| _mm256_add_ps(a, step));
        }
        let zero = _mm256_setzero_ps();
        let total = sums
            .iter()
            .flatten()
            .fold(zero, |total, &sum| _mm256_add_ps(total, sum));
        let mut lanes = [0.0; LANES];
        _mm256_storeu_ps(lanes.as_mut_ptr(), total);
        lanes.iter().sum()
    }
}

/// The same with the two instructions of the int8 products.
///
/// # Safety
/// The CPU has the features.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply_add_integers(rounds: usize) -> i32 {
    // SAFETY: the CPU has AVX2.
    unsafe {
        let step = _mm256_set1_epi32(std::hint::black_box(1));
        let mut a = [_mm256_set1_epi16(5), _mm256_set1_epi16(-3)];
        let b: [i32; 6] = std::hint::black_box([1, 2, 3, 4, 5, 6]);
        let mut sums = [[_mm256_setzero_si256(); 2]; 6];
        for _ in 0..rounds {
            for (sums, b) in sums.iter_mut().zip(&b) {
                let b = _mm256_set1_epi32(*b);
                sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(a[0], b));
                sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(a[1], b));
            }
            a = a.map(|a| _mm256_add_epi32(a, step));
        }
        let zero = _mm256_setzero_si256();
        let total = sums
            .iter()
            .flatten()
            .fold(zero, |total, &sum| _mm256_xor_si256(total, sum));
        let mut lanes = [0_i32; LANES];
        _mm256_storeu_si256(lanes.as_mut_ptr().cast(), total);
        lanes.iter().fold(0, |a, b| a ^ b)
    }
}
