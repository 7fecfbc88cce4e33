//! Kernels for x86-64 with AVX2, FMA and F16C (Intel since Haswell, AMD since Zen).
//!
//! [`Avx2`] can only be made on a CPU that has the three features, so holding one is the proof that
//! every function here may run. Each public method is safe: it passes slices whose lengths
//! [`KernelSet`](super::KernelSet) has asserted to one `unsafe` function compiled for the features.
//! What each computes is specified by the function of the same name in `scalar.rs`.
//!
//! Integer products: 16 int8 weights are widened to i16 (`vpmovsxbw`), multiplied by 16-bit activations
//! and added in pairs to i32 (`vpmaddwd`), which cannot saturate: 2 * 127 * 32767 is far below 2^31.

// From Rust 1.87 on, most intrinsics are safe inside these functions; on 1.85 they are not.
#![allow(unused_unsafe)]

use std::arch::x86_64::*;

use half::f16;

use super::{elementwise, yardstick};
use super::{WkvChannels, PANEL_WIDTH};

pulp::simd_type!({
    /// The CPU features this module is compiled for; must match every `target_feature` below.
    struct Features {
        avx2: target_feature!("avx2"),
        fma: target_feature!("fma"),
        f16c: target_feature!("f16c"),
    }
});

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub struct Avx2 {
    _features: Features,
}

impl Avx2 {
    /// The proof, if this CPU has the features.
    pub(crate) fn try_new() -> Option<Self> {
        Features::try_new().map(|_features| Avx2 { _features })
    }
}

/// Methods of [`Avx2`] that run the function of the same name in `$module`, compiled for the features.
macro_rules! compiled_for_features {
    ($module:ident: $(fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)?;)*) => {
        impl Avx2 {
            $(
                #[allow(clippy::too_many_arguments)]
                pub(super) fn $name(self, $($arg: $type),*) $(-> $ret)? {
                    #[target_feature(enable = "avx2,fma,f16c")]
                    unsafe fn compiled($($arg: $type),*) $(-> $ret)? {
                        $module::$name($($arg),*)
                    }
                    // SAFETY: `self` proves that the CPU has these features.
                    unsafe { compiled($($arg),*) }
                }
            )*
        }
    };
}

compiled_for_features! { elementwise:
    fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32]);
    fn token_shift(present: &[f32], previous: &[f32], mix: &[f32], out: &mut [f32]);
    fn wkv_step(
        channels: WkvChannels<'_>, key: &[f32], value: &[f32], receptance: &[f32],
        numerator: &mut [f32], denominator: &mut [f32], exponent_max: &mut [f32], out: &mut [f32],
    );
    fn squared_relu(x: &mut [f32]);
    fn add(x: &mut [f32], y: &[f32]);
    fn add_gated(x: &mut [f32], gate: &[f32], y: &[f32]);
    fn scale(x: &mut [f32], factors: &[f32]);
    fn quantise_activations(x: &[f32], out: &mut [i16]) -> f32;
    fn rescale_sums(sums: &[i32], scale: f32, factors: &[f32], out: &mut [f32]);
    fn widen_f16(x: &[f16], out: &mut [f32]);
}

compiled_for_features! { yardstick:
    fn read_words(words: &[u64]) -> u64;
}

/// Methods of [`Avx2`] that run an `unsafe` function of this module.
macro_rules! kernels {
    ($($name:ident => $kernel:expr, ($($arg:ident: $type:ty),* $(,)?);)*) => {
        impl Avx2 {
            $(
                pub(super) fn $name(self, $($arg: $type),*) {
                    // SAFETY: `self` proves the features; `KernelSet` asserted the lengths that the
                    // kernel relies on just before this call.
                    unsafe { $kernel($($arg),*) }
                }
            )*
        }
    };
}

kernels! {
    matvec_f32 => matvec_float::<f32>, (weights: &[f32], x: &[f32], out: &mut [f32]);
    matvec_f16 => matvec_float::<f16>, (weights: &[f16], x: &[f32], out: &mut [f32]);
    matvec_i8 => matvec_i8, (weights: &[i8], x: &[i16], out: &mut [i32]);
    gather_f32 => gather_float::<f32>, (
        weights: &[f32], stride: usize, first: usize, rows: &[u32], values: &[f32], out: &mut [f32],
    );
    gather_f16 => gather_float::<f16>, (
        weights: &[f16], stride: usize, first: usize, rows: &[u32], values: &[f32], out: &mut [f32],
    );
    gather_i8 => gather_i8, (
        weights: &[i8], stride: usize, first: usize, rows: &[u32], values: &[i16], out: &mut [i32],
    );
    pack_rows_i8 => pack_rows_i8, (weights: &[i8], cols: usize, panel: &mut [i16]);
    pack_columns_i8 => pack_columns_i8, (
        weights: &[i8], stride: usize, first: usize, n: usize, panel: &mut [i16],
    );
    multiply_panel_i8 => multiply_panel_i8, (panel: &[i16], x: &[i16], out: &mut [i32]);
}

impl Avx2 {
    pub(super) fn multiply_add_floats(self, rounds: usize) -> f32 {
        // SAFETY: `self` proves the features.
        unsafe { multiply_add_floats(rounds) }
    }

    pub(super) fn multiply_add_integers(self, rounds: usize) -> i32 {
        // SAFETY: `self` proves the features.
        unsafe { multiply_add_integers(rounds) }
    }
}

/// Two registers times six, as the tile of a matrix product: 12 sums hide the latency of any CPU. The
/// two change in every round, so that no product can be moved out of the loop.
///
/// # Safety
/// The CPU has the features.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply_add_floats(rounds: usize) -> f32 {
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
unsafe fn multiply_add_integers(rounds: usize) -> i32 {
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

/// f32 lanes of one register.
const LANES: usize = 8;

/// A weight type of which eight load as one register of f32.
trait Weight: Copy + Default {
    /// # Safety
    /// The CPU has AVX and F16C, and eight values are readable at `p`.
    unsafe fn load8(p: *const Self) -> __m256;
    fn widen(self) -> f32;
}

impl Weight for f32 {
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

impl Weight for f16 {
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

/// # Safety
/// The CPU has the features; `weights.len() == x.len() * out.len()`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn matvec_float<W: Weight>(weights: &[W], x: &[f32], out: &mut [f32]) {
    for (out, row) in out.iter_mut().zip(weights.chunks_exact(x.len().max(1))) {
        // SAFETY: `row` and `x` have the same length.
        *out = unsafe { dot_float(row, x) };
    }
}

/// # Safety
/// The CPU has the features; `row.len() == x.len()`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_float<W: Weight>(row: &[W], x: &[f32]) -> f32 {
    let n = row.len();
    let (w, v) = (row.as_ptr(), x.as_ptr());
    // SAFETY: every offset read is below `n`, the length of both slices.
    unsafe {
        let mut sums = [_mm256_setzero_ps(); 4];
        let mut c = 0;
        while c + 4 * LANES <= n {
            for (r, sum) in sums.iter_mut().enumerate() {
                let at = c + r * LANES;
                *sum = _mm256_fmadd_ps(W::load8(w.add(at)), _mm256_loadu_ps(v.add(at)), *sum);
            }
            c += 4 * LANES;
        }
        while c + LANES <= n {
            sums[0] = _mm256_fmadd_ps(W::load8(w.add(c)), _mm256_loadu_ps(v.add(c)), sums[0]);
            c += LANES;
        }
        if c < n {
            let (mut w_tail, mut x_tail) = ([W::default(); LANES], [0.0_f32; LANES]);
            w_tail[..n - c].copy_from_slice(&row[c..]);
            x_tail[..n - c].copy_from_slice(&x[c..]);
            let (w, x) = (W::load8(w_tail.as_ptr()), _mm256_loadu_ps(x_tail.as_ptr()));
            sums[0] = _mm256_fmadd_ps(w, x, sums[0]);
        }
        let sum = _mm256_add_ps(
            _mm256_add_ps(sums[0], sums[1]),
            _mm256_add_ps(sums[2], sums[3]),
        );
        let mut lanes = [0.0; LANES];
        _mm256_storeu_ps(lanes.as_mut_ptr(), sum);
        elementwise::add_lanes(lanes)
    }
}

/// # Safety
/// The CPU has the features; `weights.len() == x.len() * out.len()`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn matvec_i8(weights: &[i8], x: &[i16], out: &mut [i32]) {
    for (out, row) in out.iter_mut().zip(weights.chunks_exact(x.len().max(1))) {
        // SAFETY: `row` and `x` have the same length.
        *out = unsafe { dot_i8(row, x) };
    }
}

/// # Safety
/// The CPU has the features; `row.len() == x.len()`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_i8(row: &[i8], x: &[i16]) -> i32 {
    /// Weights of one 128-bit load, widened to one register of i16.
    const STEP: usize = 16;
    let n = row.len();
    let (w, v) = (row.as_ptr(), x.as_ptr());
    // SAFETY: every offset read is below `n`, the length of both slices.
    unsafe {
        let mut sums = [_mm256_setzero_si256(); 4];
        let mut c = 0;
        while c + 4 * STEP <= n {
            for (r, sum) in sums.iter_mut().enumerate() {
                let at = c + r * STEP;
                let weights = _mm256_cvtepi8_epi16(_mm_loadu_si128(w.add(at).cast()));
                let products = _mm256_madd_epi16(weights, _mm256_loadu_si256(v.add(at).cast()));
                *sum = _mm256_add_epi32(*sum, products);
            }
            c += 4 * STEP;
        }
        while c + STEP <= n {
            let weights = _mm256_cvtepi8_epi16(_mm_loadu_si128(w.add(c).cast()));
            let products = _mm256_madd_epi16(weights, _mm256_loadu_si256(v.add(c).cast()));
            sums[0] = _mm256_add_epi32(sums[0], products);
            c += STEP;
        }
        let sum = _mm256_add_epi32(
            _mm256_add_epi32(sums[0], sums[1]),
            _mm256_add_epi32(sums[2], sums[3]),
        );
        let sum = _mm_add_epi32(
            _mm256_castsi256_si128(sum),
            _mm256_extracti128_si256(sum, 1),
        );
        let sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0b_01_00_11_10));
        let sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0b_10_11_00_01));
        let mut total = _mm_cvtsi128_si32(sum);
        for (&w, &x) in row[c..].iter().zip(&x[c..]) {
            total = total.wrapping_add(i32::from(w) * i32::from(x));
        }
        total
    }
}

/// # Safety
/// The CPU has the features; every `rows[i] * stride + first + out.len() <= weights.len()`, and
/// `rows.len() == values.len()`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn gather_float<W: Weight>(
    weights: &[W],
    stride: usize,
    first: usize,
    rows: &[u32],
    values: &[f32],
    out: &mut [f32],
) {
    out.fill(0.0);
    // Four rows a pass: the running sums are read and written a quarter as often.
    let mut row_groups = rows.chunks_exact(4);
    let mut value_groups = values.chunks_exact(4);
    for (rows, values) in row_groups.by_ref().zip(value_groups.by_ref()) {
        let starts: [usize; 4] = std::array::from_fn(|i| rows[i] as usize * stride + first);
        let values: [f32; 4] = std::array::from_fn(|i| values[i]);
        // SAFETY: the caller's promise covers each of these rows.
        unsafe { add_rows_float(weights, starts, values, out) };
    }
    for (&row, &value) in row_groups.remainder().iter().zip(value_groups.remainder()) {
        let start = row as usize * stride + first;
        // SAFETY: as above.
        unsafe { add_rows_float(weights, [start], [value], out) };
    }
}

/// `out[c] += sum over i of values[i] * weights[starts[i] + c]`, i in order.
///
/// # Safety
/// The CPU has the features; every `starts[i] + out.len() <= weights.len()`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_rows_float<W: Weight, const N: usize>(
    weights: &[W],
    starts: [usize; N],
    values: [f32; N],
    out: &mut [f32],
) {
    let n = out.len();
    // SAFETY: offsets into `out` stay below `n`, those into `weights` below `starts[i] + n`.
    unsafe {
        let pointers: [*const W; N] = std::array::from_fn(|i| weights.as_ptr().add(starts[i]));
        let factors: [__m256; N] = std::array::from_fn(|i| _mm256_set1_ps(values[i]));
        let mut c = 0;
        while c + LANES <= n {
            let mut sum = _mm256_loadu_ps(out.as_ptr().add(c));
            for (pointer, &factor) in pointers.iter().zip(&factors) {
                sum = _mm256_fmadd_ps(W::load8(pointer.add(c)), factor, sum);
            }
            _mm256_storeu_ps(out.as_mut_ptr().add(c), sum);
            c += LANES;
        }
        for (c, out) in out.iter_mut().enumerate().skip(c) {
            for (pointer, &value) in pointers.iter().zip(&values) {
                *out = (*pointer.add(c)).widen().mul_add(value, *out);
            }
        }
    }
}

/// # Safety
/// As [`gather_float`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn gather_i8(
    weights: &[i8],
    stride: usize,
    first: usize,
    rows: &[u32],
    values: &[i16],
    out: &mut [i32],
) {
    out.fill(0);
    // Rows go in pairs through `vpmaddwd`, four pairs a pass over the running sums.
    let mut row_groups = rows.chunks_exact(8);
    let mut value_groups = values.chunks_exact(8);
    for (rows, values) in row_groups.by_ref().zip(value_groups.by_ref()) {
        let starts: [usize; 8] = std::array::from_fn(|i| rows[i] as usize * stride + first);
        let values: [i16; 8] = std::array::from_fn(|i| values[i]);
        // SAFETY: the caller's promise covers each of these rows.
        unsafe { add_rows_i8::<8>(weights, starts, values, out) };
    }
    let (rows, values) = (row_groups.remainder(), value_groups.remainder());
    for (rows, values) in rows.chunks(2).zip(values.chunks(2)) {
        // A missing second row: the first again, times 0.
        let second = rows.len() - 1;
        let starts = [rows[0], rows[second]].map(|row| row as usize * stride + first);
        let values = [values[0], if second == 1 { values[1] } else { 0 }];
        // SAFETY: as above.
        unsafe { add_rows_i8::<2>(weights, starts, values, out) };
    }
}

/// `out[c] += sum over i of values[i] * weights[starts[i] + c]`; `N` is even.
///
/// # Safety
/// The CPU has the features; every `starts[i] + out.len() <= weights.len()`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_rows_i8<const N: usize>(
    weights: &[i8],
    starts: [usize; N],
    values: [i16; N],
    out: &mut [i32],
) {
    const STEP: usize = 16;
    let n = out.len();
    // SAFETY: offsets into `out` stay below `n`, those into `weights` below `starts[i] + n`.
    unsafe {
        let pointers: [*const i8; N] = std::array::from_fn(|i| weights.as_ptr().add(starts[i]));
        let mut c = 0;
        while c + STEP <= n {
            let target = out.as_mut_ptr().add(c).cast::<__m256i>();
            let mut low = _mm256_loadu_si256(target);
            let mut high = _mm256_loadu_si256(target.add(1));
            for pair in 0..N / 2 {
                let a = _mm_loadu_si128(pointers[2 * pair].add(c).cast());
                let b = _mm_loadu_si128(pointers[2 * pair + 1].add(c).cast());
                let factors = pair_of_i16(values[2 * pair], values[2 * pair + 1]);
                // a0 b0 a1 b1 ...: eight columns of both rows, then the other eight.
                let first = _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b));
                let second = _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b));
                low = _mm256_add_epi32(low, _mm256_madd_epi16(first, factors));
                high = _mm256_add_epi32(high, _mm256_madd_epi16(second, factors));
            }
            _mm256_storeu_si256(target, low);
            _mm256_storeu_si256(target.add(1), high);
            c += STEP;
        }
        for (c, out) in out.iter_mut().enumerate().skip(c) {
            for (pointer, &value) in pointers.iter().zip(&values) {
                *out = out.wrapping_add(i32::from(*pointer.add(c)) * i32::from(value));
            }
        }
    }
}

/// `low, high` in every 32-bit lane.
///
/// # Safety
/// The CPU has the features.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pair_of_i16(low: i16, high: i16) -> __m256i {
    let bits = u32::from(low as u16) | u32::from(high as u16) << 16;
    // SAFETY: the CPU has AVX2.
    unsafe { _mm256_set1_epi32(bits as i32) }
}

/// # Safety
/// The CPU has the features; `weights` is (n, cols) with `n <= 16`, `panel` is (ceil(cols / 2), 16, 2).
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pack_rows_i8(weights: &[i8], cols: usize, panel: &mut [i16]) {
    let n = weights.len() / cols;
    let vector_cols = if n == PANEL_WIDTH { cols / 16 * 16 } else { 0 };
    // SAFETY: all 16 rows exist, and each load of 16 columns ends at or before `vector_cols <= cols`;
    // each store of 8 pairs goes to pair index below `vector_cols / 2`.
    unsafe {
        for c in (0..vector_cols).step_by(16) {
            for half in 0..2 {
                let rows: [__m256i; 8] = std::array::from_fn(|r| {
                    let row = weights.as_ptr().add((half * 8 + r) * cols + c);
                    _mm256_cvtepi8_epi16(_mm_loadu_si128(row.cast()))
                });
                for (pair, lane) in transpose_i32(rows).into_iter().enumerate() {
                    let at = ((c / 2 + pair) * PANEL_WIDTH + half * 8) * 2;
                    _mm256_storeu_si256(panel.as_mut_ptr().add(at).cast(), lane);
                }
            }
        }
    }
    let rest = &mut panel[vector_cols / 2 * PANEL_WIDTH * 2..];
    rest.fill(0);
    for (r, row) in weights.chunks_exact(cols).enumerate() {
        for (c, &w) in row[vector_cols..].iter().enumerate() {
            rest[(c / 2 * PANEL_WIDTH + r) * 2 + c % 2] = i16::from(w);
        }
    }
}

/// Transposes 8 registers of 8 i32.
///
/// # Safety
/// The CPU has the features.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn transpose_i32(r: [__m256i; 8]) -> [__m256i; 8] {
    // SAFETY: the CPU has AVX2.
    unsafe {
        // Pairs of rows, then quadruples, within each 128-bit half; then the halves.
        let low: [__m256i; 4] =
            std::array::from_fn(|i| _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]));
        let high: [__m256i; 4] =
            std::array::from_fn(|i| _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]));
        let quad = |i: usize| {
            [
                _mm256_unpacklo_epi64(low[2 * i], low[2 * i + 1]),
                _mm256_unpackhi_epi64(low[2 * i], low[2 * i + 1]),
                _mm256_unpacklo_epi64(high[2 * i], high[2 * i + 1]),
                _mm256_unpackhi_epi64(high[2 * i], high[2 * i + 1]),
            ]
        };
        let (a, b) = (quad(0), quad(1));
        [
            _mm256_permute2x128_si256(a[0], b[0], 0x20),
            _mm256_permute2x128_si256(a[1], b[1], 0x20),
            _mm256_permute2x128_si256(a[2], b[2], 0x20),
            _mm256_permute2x128_si256(a[3], b[3], 0x20),
            _mm256_permute2x128_si256(a[0], b[0], 0x31),
            _mm256_permute2x128_si256(a[1], b[1], 0x31),
            _mm256_permute2x128_si256(a[2], b[2], 0x31),
            _mm256_permute2x128_si256(a[3], b[3], 0x31),
        ]
    }
}

/// # Safety
/// The CPU has the features; `first + n <= stride`, `n <= 16`, `weights` is (rows, stride) and `panel`
/// is (ceil(rows / 2), 16, 2).
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pack_columns_i8(
    weights: &[i8],
    stride: usize,
    first: usize,
    n: usize,
    panel: &mut [i16],
) {
    if n < PANEL_WIDTH {
        return super::scalar::pack_columns_i8(weights, stride, first, n, panel);
    }
    let rows = weights.len() / stride;
    let mut panel = panel.as_mut_ptr();
    // SAFETY: each load of 16 columns from `first` stays in its row; there are ceil(rows / 2) stores
    // of 32 values each.
    unsafe {
        for r in (0..rows).step_by(2) {
            let a = _mm_loadu_si128(weights.as_ptr().add(r * stride + first).cast());
            let b = if r + 1 < rows {
                _mm_loadu_si128(weights.as_ptr().add((r + 1) * stride + first).cast())
            } else {
                _mm_setzero_si128()
            };
            _mm256_storeu_si256(panel.cast(), _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b)));
            _mm256_storeu_si256(
                panel.add(16).cast(),
                _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b)),
            );
            panel = panel.add(32);
        }
    }
}

/// Six rows of `x` at a time: 12 registers of sums, two of weights, one for the broadcast pair of
/// activations, out of 16.
///
/// # Safety
/// The CPU has the features; `x` is (n, width), `panel` (width / 2, 16, 2), `out` (n, 16).
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply_panel_i8(panel: &[i16], x: &[i16], out: &mut [i32]) {
    let width = panel.len() / PANEL_WIDTH;
    let n = x.len() / width;
    let mut row = 0;
    while row < n {
        let rows = (n - row).min(6);
        let x = &x[row * width..(row + rows) * width];
        let out = &mut out[row * PANEL_WIDTH..(row + rows) * PANEL_WIDTH];
        // SAFETY: `x` has exactly the rows the tile reads, `out` those it writes.
        unsafe {
            match rows {
                6 => tile_i8::<6>(panel, x, width, out),
                5 => tile_i8::<5>(panel, x, width, out),
                4 => tile_i8::<4>(panel, x, width, out),
                3 => tile_i8::<3>(panel, x, width, out),
                2 => tile_i8::<2>(panel, x, width, out),
                _ => tile_i8::<1>(panel, x, width, out),
            }
        }
        row += rows;
    }
}

/// # Safety
/// The CPU has the features; `x` is (N, width), `panel` (width / 2, 16, 2), `out` (N, 16).
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile_i8<const N: usize>(panel: &[i16], x: &[i16], width: usize, out: &mut [i32]) {
    // SAFETY: pairs run to width / 2, so reads end with the last pair of each row and of the panel;
    // `out` takes two registers a row.
    unsafe {
        let mut sums = [[_mm256_setzero_si256(); 2]; N];
        let (panel, x) = (panel.as_ptr(), x.as_ptr());
        for pair in 0..width / 2 {
            let low = _mm256_loadu_si256(panel.add(pair * 32).cast());
            let high = _mm256_loadu_si256(panel.add(pair * 32 + 16).cast());
            for (row, sums) in sums.iter_mut().enumerate() {
                let two = x.add(row * width + pair * 2).cast::<i32>().read_unaligned();
                let two = _mm256_set1_epi32(two);
                sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(low, two));
                sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(high, two));
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            let out = out.as_mut_ptr().add(row * PANEL_WIDTH).cast::<__m256i>();
            _mm256_storeu_si256(out, sums[0]);
            _mm256_storeu_si256(out.add(1), sums[1]);
        }
    }
}
