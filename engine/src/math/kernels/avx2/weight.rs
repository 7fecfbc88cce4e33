//! The three kinds of weights, as the tiles of `tile.rs` see them: how they load and widen to a
//! register, and how a register of them is multiplied by one of activations and added to sums.

use std::arch::x86_64::*;

use half::f16;

use super::super::elementwise;
use super::LANES;

/// A type of weights.
pub(super) trait Weight: Copy + Default {
    /// What they are multiplied by.
    type X: Copy + Default;
    /// What products are summed in.
    type Sum: Copy;
    /// Weights as they lie in a panel.
    type Wide: Copy;
    type Register: Copy;
    /// Weights of one register.
    const STEP: usize;
    /// Rows of a matrix in one row of a panel: pairs for integers.
    const PAIR: usize;
    /// Registers that a dot product is summed in, of which each takes every other register of columns:
    /// one chain of additions alone could not keep up with memory. Integers are exact in any order.
    const CHAINS: usize;
    /// Registers that the product of one row with one row is summed in; as many as chains, where the order
    /// counts.
    const DOT_REGISTERS: usize;

    /// # Safety
    /// The CPU has the features.
    unsafe fn zero() -> Self::Register;
    /// # Safety
    /// The CPU has the features; `STEP` weights are readable at `p`.
    unsafe fn load(p: *const Self) -> Self::Register;
    /// # Safety
    /// The CPU has the features; `STEP` numbers are readable at `p`.
    unsafe fn load_x(p: *const Self::X) -> Self::Register;
    /// # Safety
    /// The CPU has the features; a register of numbers is readable at `p`.
    unsafe fn load_wide(p: *const Self::Wide) -> Self::Register;
    /// The `PAIR` numbers at `p` in every lane.
    ///
    /// # Safety
    /// The CPU has the features; they are readable.
    unsafe fn broadcast(p: *const Self::X) -> Self::Register;
    /// # Safety
    /// The CPU has the features.
    unsafe fn multiply_add(
        weights: Self::Register,
        x: Self::Register,
        sums: Self::Register,
    ) -> Self::Register;
    /// # Safety
    /// The CPU has the features.
    unsafe fn add(a: Self::Register, b: Self::Register) -> Self::Register;
    /// The sum of all lanes.
    ///
    /// # Safety
    /// The CPU has the features.
    unsafe fn total(sums: Self::Register) -> Self::Sum;
    /// Adds a register of sums to those at `p`.
    ///
    /// # Safety
    /// The CPU has the features; a register of sums is readable and writable at `p`.
    unsafe fn add_to(p: *mut Self::Sum, sums: Self::Register);
}

/// A float weight of which eight load as one register of f32.
pub(super) trait Float: Copy + Default {
    /// # Safety
    /// The CPU has AVX and F16C, and eight values are readable at `p`.
    unsafe fn load8(p: *const Self) -> __m256;
    fn widen(self) -> f32;
}

impl Float for f32 {
    #[inline(always)]
    unsafe fn load8(p: *const f32) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(p) }
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Float for f16 {
    #[inline(always)]
    unsafe fn load8(p: *const f16) -> __m256 {
        // SAFETY: the caller's promise; f16 is 16 bits, so eight are one 128-bit load.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        elementwise::f16_to_f32(self)
    }
}

// The unsafe blocks below rest on the promises of the trait's functions, which are their callers'.
impl<W: Float> Weight for W {
    type X = f32;
    type Sum = f32;
    type Wide = f32;
    type Register = __m256;
    const STEP: usize = LANES;
    const PAIR: usize = 1;
    const CHAINS: usize = 2;
    const DOT_REGISTERS: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(p: *const W) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { W::load8(p) }
    }

    #[inline(always)]
    unsafe fn load_x(p: *const f32) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn load_wide(p: *const f32) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn broadcast(p: *const f32) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_set1_ps(*p) }
    }

    #[inline(always)]
    unsafe fn multiply_add(weights: __m256, x: __m256, sums: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_fmadd_ps(weights, x, sums) }
    }

    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller's promise.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn total(sums: __m256) -> f32 {
        // SAFETY: the caller's promise. The order of the additions is that of `add_lanes`.
        unsafe {
            let high = _mm256_extractf128_ps(sums, 1);
            let sum = _mm_add_ps(_mm256_castps256_ps128(sums), high);
            let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
            let sum = _mm_add_ss(sum, _mm_movehdup_ps(sum));
            _mm_cvtss_f32(sum)
        }
    }

    #[inline(always)]
    unsafe fn add_to(p: *mut f32, sums: __m256) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(p, _mm256_add_ps(_mm256_loadu_ps(p), sums)) }
    }
}

/// Integers that widen to a register of i16.
macro_rules! integer_weight {
    ($weight:ty, $load:expr) => {
        impl Weight for $weight {
            type X = i16;
            type Sum = i32;
            type Wide = i16;
            type Register = __m256i;
            const STEP: usize = 16;
            const PAIR: usize = 2;
            const CHAINS: usize = 1;
            const DOT_REGISTERS: usize = 4;

            #[inline(always)]
            unsafe fn zero() -> __m256i {
                // SAFETY: the caller's promise.
                unsafe { _mm256_setzero_si256() }
            }

            #[inline(always)]
            unsafe fn load(p: *const $weight) -> __m256i {
                // SAFETY: the caller's promise.
                unsafe { $load(p.cast()) }
            }

            #[inline(always)]
            unsafe fn load_x(p: *const i16) -> __m256i {
                // SAFETY: the caller's promise.
                unsafe { _mm256_loadu_si256(p.cast()) }
            }

            #[inline(always)]
            unsafe fn load_wide(p: *const i16) -> __m256i {
                // SAFETY: the caller's promise.
                unsafe { _mm256_loadu_si256(p.cast()) }
            }

            #[inline(always)]
            unsafe fn broadcast(p: *const i16) -> __m256i {
                // SAFETY: the caller's promise.
                unsafe { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
            }

            #[inline(always)]
            unsafe fn multiply_add(weights: __m256i, x: __m256i, sums: __m256i) -> __m256i {
                // SAFETY: the caller's promise.
                unsafe { _mm256_add_epi32(sums, _mm256_madd_epi16(weights, x)) }
            }

            #[inline(always)]
            unsafe fn add(a: __m256i, b: __m256i) -> __m256i {
                // SAFETY: the caller's promise.
                unsafe { _mm256_add_epi32(a, b) }
            }

            #[inline(always)]
            unsafe fn total(sums: __m256i) -> i32 {
                // SAFETY: the caller's promise.
                unsafe {
                    let high = _mm256_extracti128_si256(sums, 1);
                    let sum = _mm_add_epi32(_mm256_castsi256_si128(sums), high);
                    let sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0b_01_00_11_10));
                    let sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0b_10_11_00_01));
                    _mm_cvtsi128_si32(sum)
                }
            }

            #[inline(always)]
            unsafe fn add_to(p: *mut i32, sums: __m256i) {
                // SAFETY: the caller's promise.
                unsafe {
                    let p = p.cast::<__m256i>();
                    _mm256_storeu_si256(p, _mm256_add_epi32(_mm256_loadu_si256(p), sums));
                }
            }
        }
    };
}

integer_weight!(i8, |p| _mm256_cvtepi8_epi16(_mm_loadu_si128(p)));
integer_weight!(i16, |p| _mm256_loadu_si256(p));
