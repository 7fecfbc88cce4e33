//! Kernels for 32-bit ARM with NEON and VFPv4 (Cortex-A5, A7, A15, A17, and the 64-bit ones in 32-bit mode).
//!
//! Stable Rust has no NEON on this architecture, neither its intrinsics nor its detection: inner loops are in
//! `armv7.s`, those for packed weights in `armv7/packed.s`, and Linux tells what the CPU has. VFPv4, because it
//! came with both what floats need: fused multiply-adds, so that sums are those of `avx2.rs`, and the conversion of
//! f16. A CPU without it (Cortex-A8, A9) runs the scalar kernels.
//!
//! [`Neon`] can only be made where Linux names both, so holding one is the proof that every function here may
//! run. What each computes is specified by the function of the same name in `scalar.rs`; NEON takes numbers below
//! 2^-126 for 0, which is far below the rounding of any sum that matters. Elementwise operations are the plain
//! ones.

use std::arch::global_asm;

use half::f16;

use super::elementwise::{self, add_lanes, f16_to_f32, LANES};
use super::{low_rank, scalar, wkv6, wkv7, yardstick};
use super::{
    ActivationBounds, Columns, PackedRows, Rows, Wkv6Head, Wkv6Token, Wkv7Head, Wkv7Token,
    WkvChannels, PANEL_WIDTH,
};

mod packed;

global_asm!(include_str!("armv7.s"), options(raw));

/// Columns of one step of every loop in `armv7.s`.
const STEP: usize = 16;

// Those of sums begin with what is in `sums`. None may be called with 0 steps.
extern "C" {
    fn rwkv_edge_dot_f32(weights: *const f32, x: *const f32, steps: usize, sums: *mut f32);
    fn rwkv_edge_dot_f16(weights: *const f16, x: *const f32, steps: usize, sums: *mut f32);
    fn rwkv_edge_dot_i8(weights: *const i8, x: *const i16, steps: usize) -> i32;
    fn rwkv_edge_dot_i16(weights: *const i16, x: *const i16, steps: usize) -> i32;
    fn rwkv_edge_add_row_f32(row: *const f32, out: *mut f32, steps: usize, value: *const f32);
    fn rwkv_edge_add_row_f16(row: *const f16, out: *mut f32, steps: usize, value: *const f32);
    fn rwkv_edge_add_row_i8(row: *const i8, out: *mut i32, steps: usize, value: *const i16);
    fn rwkv_edge_add_row_i16(row: *const i16, out: *mut i32, steps: usize, value: *const i16);
    fn rwkv_edge_panel_f32(panel: *const f32, x: *const f32, steps: usize, sums: *mut f32);
    fn rwkv_edge_panel_i8(panel: *const i16, x: *const i16, steps: usize, sums: *mut i32);
    /// Of the C library.
    fn getauxval(kind: std::ffi::c_ulong) -> std::ffi::c_ulong;
}

/// Proof that the CPU has NEON and VFPv4.
#[derive(Clone, Copy, Debug)]
pub struct Neon {
    _proof: (),
}

impl Neon {
    /// The proof, if this CPU has the features.
    pub(crate) fn try_new() -> Option<Self> {
        /// Bits of Linux's asm/hwcap.h.
        const AT_HWCAP: std::ffi::c_ulong = 16;
        const HWCAP_NEON: std::ffi::c_ulong = 1 << 12;
        const HWCAP_VFPV4: std::ffi::c_ulong = 1 << 16;
        const NEEDED: std::ffi::c_ulong = HWCAP_NEON | HWCAP_VFPV4;
        // SAFETY: it may be called with any number.
        let has = unsafe { getauxval(AT_HWCAP) };
        (has & NEEDED == NEEDED).then_some(Neon { _proof: () })
    }
}

/// Methods of [`Neon`] that run the function of the same name in `$module`.
macro_rules! plain {
    ($module:ident: $(fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)?;)*) => {
        impl Neon {
            $(
                #[allow(clippy::too_many_arguments)]
                pub(super) fn $name(self, $($arg: $type),*) $(-> $ret)? {
                    $module::$name($($arg),*)
                }
            )*
        }
    };
}

plain! { elementwise:
    fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32]);
    fn token_shift(present: &[f32], previous: &[f32], mix: &[f32], out: &mut [f32]);
    fn wkv_step(
        channels: WkvChannels<'_>, key: &[f32], value: &[f32], receptance: &[f32],
        numerator: &mut [f32], denominator: &mut [f32], exponent_max: &mut [f32], out: &mut [f32],
    );
    fn squared_relu(x: &mut [f32]);
    fn add(x: &mut [f32], y: &[f32]);
    fn add_sums(x: &mut [i32], y: &[i32]);
    fn list_nonzero_f32(
        x: &[f32], first: u32, indices: &mut [u32], values: &mut [f32],
    ) -> usize;
    fn list_nonzero_i16(
        x: &[i16], first: u32, indices: &mut [u32], values: &mut [i16],
    ) -> usize;
    fn add_gated(x: &mut [f32], gate: &[f32], y: &[f32]);
    fn scale(x: &mut [f32], factors: &[f32]);
    fn quantise_activations(x: &[f32], bounds: ActivationBounds, out: &mut [i16]) -> f32;
    fn rescale_sums(sums: &[i32], scale: f32, factors: &[f32], out: &mut [f32]);
    fn widen_f16(x: &[f16], out: &mut [f32]);
}

plain! { wkv7:
    fn lerp(present: &[f32], previous: &[f32], mix: &[f32], out: &mut [f32]);
    fn tanh_of(x: &mut [f32]);
    fn sigmoid_of(x: &mut [f32]);
    fn wkv7_step(
        head: Wkv7Head<'_>, token: Wkv7Token<'_>, state: &mut [f32], work: &mut [f32],
        out: &mut [f32],
    );
}

plain! { wkv6:
    fn lerp_by_sum(
        present: &[f32], previous: &[f32], mix: &[f32], part: &[f32], out: &mut [f32],
    );
    fn decay_of(base: &[f32], part: &[f32], out: &mut [f32]);
    fn wkv6_step(
        head: Wkv6Head<'_>, token: Wkv6Token<'_>, state: &mut [f32], out: &mut [f32],
    );
}

plain! { low_rank:
    fn low_rank_f32(
        weights: &[f32], columns: Columns, x: Rows<'_, f32>, out: &mut [f32],
    );
    fn low_rank_f16(
        weights: &[f16], columns: Columns, x: Rows<'_, f32>, out: &mut [f32],
    );
}

plain! { scalar:
    fn pack_f32(weights: &[f32], stride: usize, first: usize, n: usize, panel: &mut [f32]);
    fn pack_f16(weights: &[f16], stride: usize, first: usize, n: usize, panel: &mut [f32]);
    fn pack_i8(weights: &[i8], stride: usize, first: usize, n: usize, panel: &mut [i16]);
}

plain! { yardstick:
    fn read_words(words: &[u64]) -> u64;
    fn multiply_add_floats(rounds: usize) -> f32;
    fn multiply_add_integers(rounds: usize) -> i32;
}

// The unsafe blocks below rest on `self` for the features, and on the lengths that `KernelSet` asserted just
// before for the rest.
impl Neon {
    pub(super) fn dots_f32(self, weights: &[f32], x: Rows<'_, f32>, cols: usize, out: &mut [f32]) {
        dots_float(weights, x, cols, out, |row, x, steps, sums| {
            // SAFETY: `dots_float` has so many steps in each slice.
            unsafe { rwkv_edge_dot_f32(row.as_ptr(), x.as_ptr(), steps, sums.as_mut_ptr()) }
        });
    }

    pub(super) fn dots_f16(self, weights: &[f16], x: Rows<'_, f32>, cols: usize, out: &mut [f32]) {
        dots_float(weights, x, cols, out, |row, x, steps, sums| {
            // SAFETY: as above.
            unsafe { rwkv_edge_dot_f16(row.as_ptr(), x.as_ptr(), steps, sums.as_mut_ptr()) }
        });
    }

    pub(super) fn dots_i8(self, weights: &[i8], x: Rows<'_, i16>, cols: usize, out: &mut [i32]) {
        dots_integer(weights, x, cols, out, |row, x, steps| {
            // SAFETY: `dots_integer` has so many steps in both slices.
            unsafe { rwkv_edge_dot_i8(row.as_ptr(), x.as_ptr(), steps) }
        });
    }

    pub(super) fn dots_i16(self, weights: &[i16], x: Rows<'_, i16>, cols: usize, out: &mut [i32]) {
        dots_integer(weights, x, cols, out, |row, x, steps| {
            // SAFETY: as above.
            unsafe { rwkv_edge_dot_i16(row.as_ptr(), x.as_ptr(), steps) }
        });
    }

    pub(super) fn dots_packed(self, weights: PackedRows<'_>, x: Rows<'_, i16>, out: &mut [i32]) {
        packed::dots(weights, x, out);
    }

    pub(super) fn widen_packed(self, weights: PackedRows<'_>, out: &mut [i16]) {
        packed::widen(weights, out);
    }

    pub(super) fn gather_packed(
        self,
        weights: PackedRows<'_>,
        rows: &[u32],
        values: &[i16],
        out: &mut [i32],
    ) {
        packed::gather(weights, rows, values, out);
    }

    pub(super) fn pack_packed(
        self,
        weights: PackedRows<'_>,
        first: usize,
        n: usize,
        panel: &mut [i16],
    ) {
        packed::pack(weights, first, n, panel);
    }

    pub(super) fn gather_f32(self, weights: &[f32], rows: &[u32], values: &[f32], out: &mut [f32]) {
        out.fill(0.0);
        let fused = |w: f32, value: f32, out: f32| fused(w, value, out);
        gather(
            weights,
            rows,
            values,
            out,
            fused,
            |row, out, steps, value| {
                // SAFETY: `gather` has so many steps in both slices.
                unsafe { rwkv_edge_add_row_f32(row.as_ptr(), out.as_mut_ptr(), steps, value) }
            },
        );
    }

    pub(super) fn gather_f16(self, weights: &[f16], rows: &[u32], values: &[f32], out: &mut [f32]) {
        out.fill(0.0);
        let fused = |w: f16, value: f32, out: f32| fused(f16_to_f32(w), value, out);
        gather(
            weights,
            rows,
            values,
            out,
            fused,
            |row, out, steps, value| {
                // SAFETY: as above.
                unsafe { rwkv_edge_add_row_f16(row.as_ptr(), out.as_mut_ptr(), steps, value) }
            },
        );
    }

    pub(super) fn gather_i8(self, weights: &[i8], rows: &[u32], values: &[i16], out: &mut [i32]) {
        out.fill(0);
        let add = |w: i8, value: i16, out: i32| out.wrapping_add(i32::from(w) * i32::from(value));
        gather(weights, rows, values, out, add, |row, out, steps, value| {
            // SAFETY: as above.
            unsafe { rwkv_edge_add_row_i8(row.as_ptr(), out.as_mut_ptr(), steps, value) }
        });
    }

    pub(super) fn multiply_panel_f32(self, panel: &[f32], x: Rows<'_, f32>, out: &mut [f32]) {
        let steps = panel.len() / PANEL_WIDTH;
        for (t, out) in out
            .chunks_exact_mut(PANEL_WIDTH)
            .enumerate()
            .filter(|_| steps > 0)
        {
            let x = &x.values[t * x.stride..][..steps];
            // SAFETY: the panel and the row have so many steps, `out` sixteen sums.
            unsafe { rwkv_edge_panel_f32(panel.as_ptr(), x.as_ptr(), steps, out.as_mut_ptr()) };
        }
    }

    pub(super) fn multiply_panel_i8(self, panel: &[i16], x: Rows<'_, i16>, out: &mut [i32]) {
        let steps = panel.len() / (2 * PANEL_WIDTH);
        for (t, out) in out
            .chunks_exact_mut(PANEL_WIDTH)
            .enumerate()
            .filter(|_| steps > 0)
        {
            let x = &x.values[t * x.stride..][..2 * steps];
            // SAFETY: as above, with two numbers a step.
            unsafe { rwkv_edge_panel_i8(panel.as_ptr(), x.as_ptr(), steps, out.as_mut_ptr()) };
        }
    }
}

/// `add_steps(row, x, steps, sums)` adds whole steps to the sixteen partial sums of a dot product.
#[inline(always)]
fn dots_float<W: Copy + Default>(
    weights: &[W],
    x: Rows<'_, f32>,
    cols: usize,
    out: &mut [f32],
    add_steps: impl Fn(&[W], &[f32], usize, &mut [f32; STEP]),
) {
    let n_out = weights.len() / cols;
    let steps = cols / STEP;
    for (o, row) in weights.chunks_exact(cols).enumerate() {
        let (whole, part) = row.split_at(steps * STEP);
        for t in 0..x.n {
            let x = &x.values[t * x.stride..][..cols];
            let mut sums = [0.0; STEP];
            if steps > 0 {
                add_steps(whole, x, steps, &mut sums);
            }
            if !part.is_empty() {
                add_steps(&padded(part), &padded(&x[whole.len()..]), 1, &mut sums);
            }
            let lanes = std::array::from_fn(|lane| sums[lane] + sums[lane + LANES]);
            out[t * n_out + o] = add_lanes(lanes);
        }
    }
}

/// `dot_steps(row, x, steps)` is the product of whole steps.
#[inline(always)]
fn dots_integer<W: Copy + Default>(
    weights: &[W],
    x: Rows<'_, i16>,
    cols: usize,
    out: &mut [i32],
    dot_steps: impl Fn(&[W], &[i16], usize) -> i32,
) {
    let n_out = weights.len() / cols;
    let steps = cols / STEP;
    for (o, row) in weights.chunks_exact(cols).enumerate() {
        let (whole, part) = row.split_at(steps * STEP);
        for t in 0..x.n {
            let x = &x.values[t * x.stride..][..cols];
            let mut sum = 0;
            if steps > 0 {
                sum = dot_steps(whole, x, steps);
            }
            if !part.is_empty() {
                let x = padded(&x[whole.len()..]);
                sum = sum.wrapping_add(dot_steps(&padded(part), &x, 1));
            }
            out[t * n_out + o] = sum;
        }
    }
}

/// `add_steps(row, out, steps, value)` adds whole steps of a row times a value, `add(weight, value, out)` what
/// is left.
#[inline(always)]
fn gather<W: Copy, X: Copy, S: Copy>(
    weights: &[W],
    rows: &[u32],
    values: &[X],
    out: &mut [S],
    add: impl Fn(W, X, S) -> S,
    add_steps: impl Fn(&[W], &mut [S], usize, *const X),
) {
    let width = out.len();
    let steps = width / STEP;
    for (&row, value) in rows.iter().zip(values) {
        let row = &weights[row as usize * width..][..width];
        if steps > 0 {
            add_steps(row, out, steps, value);
        }
        for (out, &w) in out.iter_mut().zip(row).skip(steps * STEP) {
            *out = add(w, *value, *out);
        }
    }
}

/// `w * value + out` rounded once, by the same instruction as the rest of the row.
fn fused(w: f32, value: f32, out: f32) -> f32 {
    let (row, mut sums) = (padded(&[w]), padded(&[out]));
    // SAFETY: both have one step; a `Neon` was at hand.
    unsafe { rwkv_edge_add_row_f32(row.as_ptr(), sums.as_mut_ptr(), 1, &value) };
    sums[0]
}

/// The last columns of a row, padded with zeros to a step.
fn padded<T: Copy + Default>(part: &[T]) -> [T; STEP] {
    let mut numbers = [T::default(); STEP];
    numbers[..part.len()].copy_from_slice(part);
    numbers
}
