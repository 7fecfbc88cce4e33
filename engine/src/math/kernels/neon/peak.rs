//! Multiply-adds from registers to registers: the most that these instructions can do, measured by `bench`
//! beside what the kernels achieve.

use std::arch::aarch64::*;

/// Two registers times six, twice a round: 12 sums hide the latency of any CPU. The two change each time, so
/// that no product can be moved out of the loop.
///
/// # Safety
/// None on this architecture; unsafe as its neighbours are.
pub(super) unsafe fn multiply_add_floats(rounds: usize) -> f32 {
    // SAFETY: NEON belongs to the architecture.
    unsafe {
        let step = vdupq_n_f32(std::hint::black_box(1e-9));
        let mut a = [0.5, -0.25].map(|a| vdupq_n_f32(a));
        let b: [f32; 6] = std::hint::black_box([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]);
        let mut sums = [[vdupq_n_f32(0.0); 2]; 6];
        for _ in 0..2 * rounds {
            for (sums, &b) in sums.iter_mut().zip(&b) {
                for (sum, &a) in sums.iter_mut().zip(&a) {
                    *sum = vfmaq_n_f32(*sum, a, b);
                }
            }
            a = a.map(|a| vaddq_f32(a, step));
        }
        let zero = vdupq_n_f32(0.0);
        let total = sums.iter().flatten();
        vaddvq_f32(total.fold(zero, |total, &sum| vaddq_f32(total, sum)))
    }
}

/// The same with the instruction of the int8 products, eight numbers a register.
///
/// # Safety
/// None on this architecture; unsafe as its neighbours are.
pub(super) unsafe fn multiply_add_integers(rounds: usize) -> i32 {
    // SAFETY: NEON belongs to the architecture.
    unsafe {
        let step = vdupq_n_s16(std::hint::black_box(1));
        let mut a = [5, -3].map(|a| vdupq_n_s16(a));
        let b: [i16; 6] = std::hint::black_box([1, 2, 3, 4, 5, 6]);
        let mut sums = [[vdupq_n_s32(0); 2]; 6];
        for _ in 0..2 * rounds {
            for (sums, &b) in sums.iter_mut().zip(&b) {
                let b = vdupq_n_s16(b);
                for (sum, &a) in sums.iter_mut().zip(&a) {
                    *sum = vmlal_s16(*sum, vget_low_s16(a), vget_low_s16(b));
                    *sum = vmlal_high_s16(*sum, a, b);
                }
            }
            a = a.map(|a| vaddq_s16(a, step));
        }
        let zero = vdupq_n_s32(0);
        let total = sums.iter().flatten();
        vaddvq_s32(total.fold(zero, |total, &sum| veorq_s32(total, sum)))
    }
}
