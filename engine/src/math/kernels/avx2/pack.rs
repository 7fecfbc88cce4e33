//! Columns of a transposed matrix widened into a panel.

use std::arch::x86_64::*;

use super::super::{scalar, PANEL_WIDTH};
use super::weight::Float;
use super::LANES;

/// # Safety
/// The CPU has the features; `first + n <= stride`, `n <= 16`, `weights` is (rows, stride) and `panel` is
/// (rows, 16).
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn pack_float<W: Float>(
    weights: &[W],
    stride: usize,
    first: usize,
    n: usize,
    panel: &mut [f32],
) {
    let rows = weights.chunks_exact(stride);
    for (row, panel) in rows.zip(panel.chunks_exact_mut(PANEL_WIDTH)) {
        if n == PANEL_WIDTH {
            // SAFETY: 16 columns from `first` on lie in the row, and the panel's row has 16.
            unsafe {
                let row = row.as_ptr().add(first);
                let panel = panel.as_mut_ptr();
                _mm256_storeu_ps(panel, W::load8(row));
                _mm256_storeu_ps(panel.add(LANES), W::load8(row.add(LANES)));
            }
        } else {
            panel.fill(0.0);
            for (panel, &w) in panel.iter_mut().zip(&row[first..first + n]) {
                *panel = w.widen();
            }
        }
    }
}

/// # Safety
/// As [`pack_float`]; `panel` is (ceil(rows / 2), 16, 2).
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn pack_i8(
    weights: &[i8],
    stride: usize,
    first: usize,
    n: usize,
    panel: &mut [i16],
) {
    if n < PANEL_WIDTH {
        return scalar::pack_i8(weights, stride, first, n, panel);
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
