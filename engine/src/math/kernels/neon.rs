//! Kernels for 64-bit ARM: [`Neon`] for every CPU of that kind, [`NeonDotprod`] for those with the `sdot`
//! instruction (Cortex-A55, A75, A76 and all later ones).
//!
//! A value of either type can only be made on a CPU that has the features, so holding one is the proof that
//! its functions may run. Each public method is safe: it passes slices whose lengths
//! [`KernelSet`](super::KernelSet) has asserted to one `unsafe` function. What each computes is specified by
//! the function of the same name in `scalar.rs`; floats are summed exactly as in `avx2.rs`, fused, so that
//! both give the same bits.
//!
//! ```text
//! float.rs    f32 and f16 weights; f16 is widened by `fcvtl`, which every CPU of the kind has
//! integer.rs  int8 weights, widened to i16 (`sxtl`), times 16-bit activations onto i32 (`smlal`)
//! dotprod.rs  int8 weights as they are, times activations split into two signed bytes (`sdot`)
//! packed.rs   weights of 4 to 6 bits, times activations split likewise (`sdot`, or `smull` and `smlal`); packed_row.rs has
//!             what their rows mean
//! peak.rs     what the instructions can do at most
//! ```
//!
//! NEON belongs to the architecture: elementwise operations need no versions of their own, the compiler
//! makes vector code of the plain ones. There are no prefetches: they would need boards to be measured on.

// From Rust 1.87 on, most intrinsics are safe; on 1.85 they are not.
#![allow(unused_unsafe)]

use std::arch::aarch64::*;

use half::f16;

use super::{elementwise, low_rank, wkv6, wkv7, yardstick};
use super::{
    ActivationBounds, Columns, PackedRows, Rows, Wkv6Head, Wkv6Token, Wkv7Head, Wkv7Token,
    WkvChannels,
};

mod dotprod;
mod float;
mod integer;
mod packed;
mod packed_row;
mod peak;

pulp::simd_type!({
    struct Base {
        neon: target_feature!("neon"),
    }
});

pulp::simd_type!({
    /// Must match every `target_feature` of `dotprod.rs`.
    struct WithDotprod {
        neon: target_feature!("neon"),
        dotprod: target_feature!("dotprod"),
    }
});

/// Proof that the CPU has NEON.
#[derive(Clone, Copy, Debug)]
pub struct Neon {
    _features: Base,
}

impl Neon {
    /// The proof, if this CPU has the feature.
    pub(crate) fn try_new() -> Option<Self> {
        Base::try_new().map(|_features| Neon { _features })
    }
}

/// Proof that the CPU has NEON and the dot product of bytes.
#[derive(Clone, Copy, Debug)]
pub struct NeonDotprod {
    _features: WithDotprod,
}

impl NeonDotprod {
    /// The proof, if this CPU has the features.
    pub(crate) fn try_new() -> Option<Self> {
        WithDotprod::try_new().map(|_features| NeonDotprod { _features })
    }
}

/// Methods of `$set` that run the function of the same name in `$module`.
macro_rules! plain {
    ($set:ty, $module:ident: $(fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)?;)*) => {
        impl $set {
            $(
                #[allow(clippy::too_many_arguments)]
                pub(super) fn $name(self, $($arg: $type),*) $(-> $ret)? {
                    $module::$name($($arg),*)
                }
            )*
        }
    };
}

/// Methods of `$set` that run an `unsafe` function of this module.
macro_rules! kernels {
    ($set:ty: $($name:ident => $kernel:expr, ($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)?;)*) => {
        impl $set {
            $(
                pub(super) fn $name(self, $($arg: $type),*) $(-> $ret)? {
                    // SAFETY: `self` proves the features; `KernelSet` asserted the lengths that the
                    // kernel relies on just before this call.
                    unsafe { $kernel($($arg),*) }
                }
            )*
        }
    };
}

/// What both sets share.
macro_rules! shared {
    ($set:ty) => {
        plain! { $set, elementwise:
            fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32]);
            fn token_shift(present: &[f32], previous: &[f32], mix: &[f32], out: &mut [f32]);
            fn wkv_step(
                channels: WkvChannels<'_>, key: &[f32], value: &[f32], receptance: &[f32],
                numerator: &mut [f32], denominator: &mut [f32], exponent_max: &mut [f32],
                out: &mut [f32],
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

        plain! { $set, wkv7:
            fn lerp(present: &[f32], previous: &[f32], mix: &[f32], out: &mut [f32]);
            fn tanh_of(x: &mut [f32]);
            fn sigmoid_of(x: &mut [f32]);
            fn wkv7_step(
                head: Wkv7Head<'_>, token: Wkv7Token<'_>, state: &mut [f32], work: &mut [f32],
                out: &mut [f32],
            );
        }

        plain! { $set, wkv6:
            fn lerp_by_sum(
                present: &[f32], previous: &[f32], mix: &[f32], part: &[f32], out: &mut [f32],
            );
            fn decay_of(base: &[f32], part: &[f32], out: &mut [f32]);
            fn wkv6_step(
                head: Wkv6Head<'_>, token: Wkv6Token<'_>, state: &mut [f32], out: &mut [f32],
            );
        }

        plain! { $set, low_rank:
            fn low_rank_f32(
                weights: &[f32], columns: Columns, x: Rows<'_, f32>, out: &mut [f32],
            );
            fn low_rank_f16(
                weights: &[f16], columns: Columns, x: Rows<'_, f32>, out: &mut [f32],
            );
        }

        plain! { $set, yardstick:
            fn read_words(words: &[u64]) -> u64;
        }

        kernels! { $set:
            dots_f32 => float::dots, (
                weights: &[f32], x: Rows<'_, f32>, cols: usize, out: &mut [f32],
            );
            dots_f16 => float::dots, (
                weights: &[f16], x: Rows<'_, f32>, cols: usize, out: &mut [f32],
            );
            dots_i16 => integer::dots, (
                weights: &[i16], x: Rows<'_, i16>, cols: usize, out: &mut [i32],
            );
            gather_f32 => float::gather, (
                weights: &[f32], rows: &[u32], values: &[f32], out: &mut [f32],
            );
            gather_f16 => float::gather, (
                weights: &[f16], rows: &[u32], values: &[f32], out: &mut [f32],
            );
            gather_i8 => integer::gather, (
                weights: &[i8], rows: &[u32], values: &[i16], out: &mut [i32],
            );
            gather_packed => packed::gather, (
                weights: PackedRows<'_>, rows: &[u32], values: &[i16], out: &mut [i32],
            );
            pack_f32 => float::pack, (
                weights: &[f32], stride: usize, first: usize, n: usize, panel: &mut [f32],
            );
            pack_f16 => float::pack, (
                weights: &[f16], stride: usize, first: usize, n: usize, panel: &mut [f32],
            );
            pack_i8 => integer::pack, (
                weights: &[i8], stride: usize, first: usize, n: usize, panel: &mut [i16],
            );
            pack_packed => packed::pack, (
                weights: PackedRows<'_>, first: usize, n: usize, panel: &mut [i16],
            );
            widen_packed => packed::widen, (weights: PackedRows<'_>, out: &mut [i16]);
            multiply_panel_f32 => float::multiply_panel, (
                panel: &[f32], x: Rows<'_, f32>, out: &mut [f32],
            );
            multiply_panel_i8 => integer::multiply_panel, (
                panel: &[i16], x: Rows<'_, i16>, out: &mut [i32],
            );
            multiply_add_floats => peak::multiply_add_floats, (rounds: usize) -> f32;
        }
    };
}

shared!(Neon);
shared!(NeonDotprod);

kernels! { Neon:
    dots_i8 => integer::dots, (weights: &[i8], x: Rows<'_, i16>, cols: usize, out: &mut [i32]);
    dots_packed => packed::dots::<packed::Bytes>, (
        weights: PackedRows<'_>, x: Rows<'_, i16>, out: &mut [i32],
    );
    multiply_add_integers => peak::multiply_add_integers, (rounds: usize) -> i32;
}

kernels! { NeonDotprod:
    dots_i8 => dotprod::dots, (weights: &[i8], x: Rows<'_, i16>, cols: usize, out: &mut [i32]);
    dots_packed => dotprod::dots_packed, (
        weights: PackedRows<'_>, x: Rows<'_, i16>, out: &mut [i32],
    );
    multiply_add_integers => dotprod::multiply_add_integers, (rounds: usize) -> i32;
}

/// The last columns of a row, padded with zeros.
///
/// # Safety
/// `n <= 16` numbers are readable at `p`.
#[inline(always)]
unsafe fn load_part<T: Copy + Default>(p: *const T, n: usize) -> [T; 16] {
    let mut numbers = [T::default(); 16];
    // SAFETY: the caller's promise; they are numbers of another place than a new array.
    unsafe { std::ptr::copy_nonoverlapping(p, numbers.as_mut_ptr(), n) };
    numbers
}

/// Writes the high bytes of sixteen numbers, then their low bytes: `x = 256 * high + low`, both signed.
///
/// # Safety
/// 32 bytes are writable at `target`.
#[inline(always)]
unsafe fn split_sixteen(numbers: [int16x8_t; 2], target: *mut i8) {
    // SAFETY: the caller's promise.
    unsafe {
        // The low byte is signed, so the high byte is that of the number rounded to a multiple of 256.
        let rounded = numbers.map(|x| vaddq_s16(x, vdupq_n_s16(128)));
        let bytes = |x: [int16x8_t; 2]| x.map(|x| vreinterpretq_s8_s16(x));
        let (rounded, low) = (bytes(rounded), bytes(numbers));
        vst1q_s8(target, vuzp2q_s8(rounded[0], rounded[1]));
        vst1q_s8(target.add(16), vuzp1q_s8(low[0], low[1]));
    }
}

/// Cuts `n` rows into tiles of at most `most` that differ by at most one row: (first row, rows).
fn tiles(n: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let n_tiles = n.div_ceil(most);
    (0..n_tiles).map(move |i| {
        let first = n * i / n_tiles;
        (first, n * (i + 1) / n_tiles - first)
    })
}
