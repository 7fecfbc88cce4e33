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

use half::f16;

use super::{elementwise, wkv6, wkv7, yardstick};
use super::{
    ActivationBounds, Columns, PackedRows, Rows, Wkv6Head, Wkv6Token, Wkv7Head, Wkv7Token,
    WkvChannels,
};

mod gather;
mod low_rank;
mod pack;
mod packed;
mod peak;
mod tile;
mod weight;

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

compiled_for_features! { wkv7:
    fn lerp(present: &[f32], previous: &[f32], mix: &[f32], out: &mut [f32]);
    fn tanh_of(x: &mut [f32]);
    fn sigmoid_of(x: &mut [f32]);
    fn wkv7_step(
        head: Wkv7Head<'_>, token: Wkv7Token<'_>, state: &mut [f32], work: &mut [f32],
        out: &mut [f32],
    );
}

compiled_for_features! { wkv6:
    fn lerp_by_sum(
        present: &[f32], previous: &[f32], mix: &[f32], part: &[f32], out: &mut [f32],
    );
    fn decay_of(base: &[f32], part: &[f32], out: &mut [f32]);
    fn wkv6_step(
        head: Wkv6Head<'_>, token: Wkv6Token<'_>, state: &mut [f32], out: &mut [f32],
    );
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
    dots_f32 => tile::dots, (weights: &[f32], x: Rows<'_, f32>, cols: usize, out: &mut [f32]);
    dots_f16 => tile::dots, (weights: &[f16], x: Rows<'_, f32>, cols: usize, out: &mut [f32]);
    dots_i8 => tile::dots, (weights: &[i8], x: Rows<'_, i16>, cols: usize, out: &mut [i32]);
    dots_i16 => tile::dots, (weights: &[i16], x: Rows<'_, i16>, cols: usize, out: &mut [i32]);
    dots_packed => packed::dots, (weights: PackedRows<'_>, x: Rows<'_, i16>, out: &mut [i32]);
    widen_packed => packed::widen, (weights: PackedRows<'_>, out: &mut [i16]);
    gather_packed => packed::gather, (
        weights: PackedRows<'_>, rows: &[u32], values: &[i16], out: &mut [i32],
    );
    pack_packed => packed::pack, (
        weights: PackedRows<'_>, first: usize, n: usize, panel: &mut [i16],
    );
    low_rank_f32 => low_rank::low_rank, (
        weights: &[f32], columns: Columns, x: Rows<'_, f32>, out: &mut [f32],
    );
    low_rank_f16 => low_rank::low_rank, (
        weights: &[f16], columns: Columns, x: Rows<'_, f32>, out: &mut [f32],
    );
    gather_f32 => gather::gather_float, (
        weights: &[f32], rows: &[u32], values: &[f32], out: &mut [f32],
    );
    gather_f16 => gather::gather_float, (
        weights: &[f16], rows: &[u32], values: &[f32], out: &mut [f32],
    );
    gather_i8 => gather::gather_i8, (
        weights: &[i8], rows: &[u32], values: &[i16], out: &mut [i32],
    );
    pack_f32 => pack::pack_float, (
        weights: &[f32], stride: usize, first: usize, n: usize, panel: &mut [f32],
    );
    pack_f16 => pack::pack_float, (
        weights: &[f16], stride: usize, first: usize, n: usize, panel: &mut [f32],
    );
    pack_i8 => pack::pack_i8, (
        weights: &[i8], stride: usize, first: usize, n: usize, panel: &mut [i16],
    );
    multiply_panel_f32 => tile::multiply_panel::<f32>, (
        panel: &[f32], x: Rows<'_, f32>, out: &mut [f32],
    );
    multiply_panel_i8 => tile::multiply_panel::<i8>, (
        panel: &[i16], x: Rows<'_, i16>, out: &mut [i32],
    );
}

impl Avx2 {
    pub(super) fn multiply_add_floats(self, rounds: usize) -> f32 {
        // SAFETY: `self` proves the features.
        unsafe { peak::multiply_add_floats(rounds) }
    }

    pub(super) fn multiply_add_integers(self, rounds: usize) -> i32 {
        // SAFETY: `self` proves the features.
        unsafe { peak::multiply_add_integers(rounds) }
    }
}

/// f32 lanes of one register.
const LANES: usize = 8;
