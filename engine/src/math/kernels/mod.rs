//! The arithmetic of one operation, for each instruction set.
//!
//! ```text
//! elementwise.rs  vector operations, written once in plain Rust, compiled once per instruction set
//! wkv6.rs         the same for the heads of RWKV-5 and 6
//! wkv7.rs         the same for the heads of RWKV-7
//! heads.rs        what the kernels of the time mixing take
//! packed.rs       weights of 4 to 6 bits: their layout, and the specification of the kernels for them
//! low_rank.rs     the small matrices of RWKV-6 and 7, the same bits on every set
//! fetch.rs        fetching memory into caches before it is read
//! gemm.rs         f32 products of many rows, by the gemm crate
//! scalar.rs       matrix kernels in plain Rust: the specification
//! avx2.rs         the same for x86-64 with AVX2, FMA and F16C (avx2/: one file a kind of kernel)
//! neon.rs         the same for 64-bit ARM, without and with the dot product of bytes (neon/: likewise)
//! armv7.rs        the same for 32-bit ARM with NEON; the inner loops are in armv7.s and armv7/packed.s
//! ```
//!
//! [`KernelSet`] is chosen once, when a model is opened; every call then matches on it, which costs
//! nothing beside the thousands of multiplications behind each call. Kernels take slices whose
//! lengths are asserted here, once a call; they know nothing of models, threads or files.
//!
//! Promises, held by `tests.rs` for every set that the CPU at hand has:
//! - elementwise operations and integer kernels give the same bits on every set;
//! - f32 and f16 products differ between sets only by the rounding of fused multiply-adds: the order
//!   of summation is the same.

mod elementwise;
pub(crate) mod fetch;
#[cfg(feature = "gemm")]
pub(crate) mod gemm;
mod heads;
mod low_rank;
pub(crate) mod packed;
mod scalar;
mod wkv6;
mod wkv7;
mod yardstick;

#[cfg(all(target_arch = "arm", target_os = "linux"))]
mod armv7;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(test)]
mod tests;

use half::f16;

pub use heads::{Wkv6Head, Wkv6Token, Wkv7Head, Wkv7Token, Wkv7ValueMix, WkvChannels};

pub use packed::PackedRows;

use crate::error::{Error, Result};

/// Columns of outputs that [`KernelSet::multiply_panel_i8`] and its twin for floats compute at once.
pub const PANEL_WIDTH: usize = 16;

pub(crate) use yardstick::{FLOAT_ROUND, INTEGER_ROUND};

/// One instruction set's kernels. A value of this type proves that the CPU has the set.
#[derive(Clone, Copy, Debug)]
pub enum KernelSet {
    /// Plain Rust, the specification of the others.
    Scalar,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    /// NEON, which every 64-bit ARM CPU has.
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
    /// NEON with VFPv4, on 32-bit ARM.
    #[cfg(all(target_arch = "arm", target_os = "linux"))]
    Neon(armv7::Neon),
    /// NEON and the dot product of bytes.
    #[cfg(target_arch = "aarch64")]
    NeonDotprod(neon::NeonDotprod),
}

impl KernelSet {
    /// Every set that this CPU can run, slowest first.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut)]
        let mut sets = vec![KernelSet::Scalar];
        #[cfg(target_arch = "x86_64")]
        sets.extend(avx2::Avx2::try_new().map(KernelSet::Avx2));
        #[cfg(all(target_arch = "arm", target_os = "linux"))]
        sets.extend(armv7::Neon::try_new().map(KernelSet::Neon));
        #[cfg(target_arch = "aarch64")]
        {
            sets.extend(neon::Neon::try_new().map(KernelSet::Neon));
            sets.extend(neon::NeonDotprod::try_new().map(KernelSet::NeonDotprod));
        }
        sets
    }

    /// The set to use: the fastest of this CPU, or the one that `RWKV_EDGE_KERNELS` names.
    ///
    /// # Errors
    /// When the variable names a set that does not exist or that this CPU cannot run.
    pub(crate) fn select() -> Result<Self> {
        let sets = Self::available();
        match std::env::var("RWKV_EDGE_KERNELS") {
            Ok(wanted) if !wanted.is_empty() => {
                let found = sets.iter().find(|set| set.name() == wanted).copied();
                found.ok_or_else(|| {
                    let names: Vec<_> = sets.iter().map(|set| set.name()).collect();
                    Error::argument(format!(
                        "RWKV_EDGE_KERNELS={wanted}: no such kernel set on this CPU; it has {}",
                        names.join(", ")
                    ))
                })
            }
            _ => Ok(sets.last().copied().unwrap_or(KernelSet::Scalar)),
        }
    }

    /// The name that `info` shows and `RWKV_EDGE_KERNELS` takes.
    pub fn name(self) -> &'static str {
        match self {
            KernelSet::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            KernelSet::Avx2(_) => "avx2",
            #[cfg(any(target_arch = "aarch64", all(target_arch = "arm", target_os = "linux")))]
            KernelSet::Neon(_) => "neon",
            #[cfg(target_arch = "aarch64")]
            KernelSet::NeonDotprod(_) => "neon-dotprod",
        }
    }

    /// Whether f32 products of very many rows are faster in the gemm crate. It has no vector code for 32-bit ARM,
    /// and the scalar set is for results that depend on no instruction set.
    pub(crate) fn has_gemm(self) -> bool {
        cfg!(all(feature = "gemm", not(target_arch = "arm"))) && !matches!(self, KernelSet::Scalar)
    }
}

/// Declares methods of [`KernelSet`] that pass their arguments on to the function of the same name in
/// `$scalar`, or to the method of the same name of the instruction set's token.
macro_rules! dispatch {
    ($scalar:ident; $(
        $(#[$doc:meta])*
        fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? $(where $check:block)?;
    )*) => {
        impl KernelSet {
            $(
                $(#[$doc])*
                #[inline]
                #[allow(clippy::too_many_arguments)]
                pub fn $name(self, $($arg: $type),*) $(-> $ret)? {
                    $($check)?
                    match self {
                        KernelSet::Scalar => $scalar::$name($($arg),*),
                        #[cfg(target_arch = "x86_64")]
                        KernelSet::Avx2(token) => token.$name($($arg),*),
                        #[cfg(any(
                            target_arch = "aarch64",
                            all(target_arch = "arm", target_os = "linux")
                        ))]
                        KernelSet::Neon(token) => token.$name($($arg),*),
                        #[cfg(target_arch = "aarch64")]
                        KernelSet::NeonDotprod(token) => token.$name($($arg),*),
                    }
                }
            )*
        }
    };
}

dispatch! { elementwise;
    /// `out = (x - mean) / sqrt(variance + epsilon) * weight + bias`; all of length n_embd.
    fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32]) where {
        assert!(weight.len() == x.len() && bias.len() == x.len() && out.len() == x.len());
    };

    /// `out = present * mix + previous * (1 - mix)`: the token shift.
    fn token_shift(present: &[f32], previous: &[f32], mix: &[f32], out: &mut [f32]) where {
        let n = out.len();
        assert!(present.len() == n && previous.len() == n && mix.len() == n);
    };

    /// One token of WKV over some channels: writes `sigmoid(receptance) * wkv` to `out` and moves
    /// the state (`numerator`, `denominator`, `exponent_max`). All of the same length.
    fn wkv_step(
        channels: WkvChannels<'_>,
        key: &[f32],
        value: &[f32],
        receptance: &[f32],
        numerator: &mut [f32],
        denominator: &mut [f32],
        exponent_max: &mut [f32],
        out: &mut [f32],
    ) where {
        let n = out.len();
        assert!(channels.decay_log.len() == n && channels.bonus.len() == n);
        assert!(key.len() == n && value.len() == n && receptance.len() == n);
        assert!(numerator.len() == n && denominator.len() == n && exponent_max.len() == n);
    };

    /// `x = max(x, 0)^2`.
    fn squared_relu(x: &mut [f32]);

    /// `x += y`.
    fn add(x: &mut [f32], y: &[f32]) where {
        assert_eq!(x.len(), y.len());
    };

    /// `x += y` in integers.
    fn add_sums(x: &mut [i32], y: &[i32]) where {
        assert_eq!(x.len(), y.len());
    };

    /// Lists the elements of `x` that are not 0: their indices, plus `first`, and their values.
    /// Returns how many there are.
    fn list_nonzero_f32(x: &[f32], first: u32, indices: &mut [u32], values: &mut [f32]) -> usize where {
        assert!(indices.len() >= x.len() && values.len() >= x.len());
    };

    /// As [`list_nonzero_f32`](Self::list_nonzero_f32) for integers.
    fn list_nonzero_i16(x: &[i16], first: u32, indices: &mut [u32], values: &mut [i16]) -> usize where {
        assert!(indices.len() >= x.len() && values.len() >= x.len());
    };

    /// `x += sigmoid(gate) * y`.
    fn add_gated(x: &mut [f32], gate: &[f32], y: &[f32]) where {
        assert!(gate.len() == x.len() && y.len() == x.len());
    };

    /// `x *= factors`, element by element.
    fn scale(x: &mut [f32], factors: &[f32]) where {
        assert_eq!(x.len(), factors.len());
    };

    /// Rounds `x` to 16-bit integers times one scale, which is returned: `x ~ out * scale`.
    ///
    /// The scale is the finest that keeps the bounds: a dot product with the weights that they are for cannot overflow
    /// an i32, in any order of summation and for any length.
    fn quantise_activations(x: &[f32], bounds: ActivationBounds, out: &mut [i16]) -> f32 where {
        assert_eq!(x.len(), out.len());
    };

    /// `out = sums * (scale * factors)`, element by element: integer sums back to numbers.
    fn rescale_sums(sums: &[i32], scale: f32, factors: &[f32], out: &mut [f32]) where {
        assert!(sums.len() == out.len() && factors.len() == out.len());
    };

    /// Exact conversion of f16 to f32.
    fn widen_f16(x: &[f16], out: &mut [f32]) where {
        assert_eq!(x.len(), out.len());
    };
}

dispatch! { wkv7;
    /// `out = present + (previous - present) * mix`: the token shift of RWKV-6 and 7.
    fn lerp(present: &[f32], previous: &[f32], mix: &[f32], out: &mut [f32]) where {
        let n = out.len();
        assert!(present.len() == n && previous.len() == n && mix.len() == n);
    };

    /// `x = tanh(x)`.
    fn tanh_of(x: &mut [f32]);

    /// `x = sigmoid(x)`.
    fn sigmoid_of(x: &mut [f32]);

    /// One token of one head of RWKV-7: moves `state` (key, value), and writes what the output matrix reads, (head size).
    /// `work` is memory for five vectors of a head.
    fn wkv7_step(
        head: Wkv7Head<'_>,
        token: Wkv7Token<'_>,
        state: &mut [f32],
        work: &mut [f32],
        out: &mut [f32],
    ) where {
        let n = out.len();
        head.check(n);
        token.check(n);
        assert!(n > 0 && n.checked_mul(n) == Some(state.len()));
        assert!(n.checked_mul(5).is_some_and(|n| n <= work.len()));
    };
}

dispatch! { wkv6;
    /// `out = present + (previous - present) * (mix + part)`: the token shift of RWKV-6 whose
    /// shares depend on the token.
    fn lerp_by_sum(
        present: &[f32],
        previous: &[f32],
        mix: &[f32],
        part: &[f32],
        out: &mut [f32],
    ) where {
        let n = out.len();
        assert!(present.len() == n && previous.len() == n && mix.len() == n && part.len() == n);
    };

    /// `out = exp(-exp(base + part))`: the decay a step of RWKV-5 and 6.
    fn decay_of(base: &[f32], part: &[f32], out: &mut [f32]) where {
        assert!(base.len() == out.len() && part.len() == out.len());
    };

    /// One token of one head of RWKV-5 or 6: moves `state` (key, value), and writes what the output
    /// matrix reads, (head size).
    fn wkv6_step(
        head: Wkv6Head<'_>,
        token: Wkv6Token<'_>,
        state: &mut [f32],
        out: &mut [f32],
    ) where {
        let n = out.len();
        head.check(n);
        token.check(n);
        assert!(n > 0 && n.checked_mul(n) == Some(state.len()));
    };
}

dispatch! { low_rank;
    /// `out[t, o] = sum over i of x[t, i] * weights[i, first + o]`, of the columns named of a matrix stored row per
    /// input, (inputs, stride); `out` is (x.n, columns.n). Inputs are added one after the other, and nothing is fused.
    fn low_rank_f32(weights: &[f32], columns: Columns, x: Rows<'_, f32>, out: &mut [f32]) where {
        check_low_rank(weights.len(), columns, &x, out.len());
    };

    /// As [`low_rank_f32`](Self::low_rank_f32), weights in f16.
    fn low_rank_f16(weights: &[f16], columns: Columns, x: Rows<'_, f32>, out: &mut [f32]) where {
        check_low_rank(weights.len(), columns, &x, out.len());
    };
}

dispatch! { scalar;
    /// `out[t, o] = sum over c of weights[o, c] * x[t, c]`: each row of `weights`, (n_out, cols), times
    /// each row of `x`; `out` is (n, n_out).
    fn dots_f32(weights: &[f32], x: Rows<'_, f32>, cols: usize, out: &mut [f32]) where {
        check_dots(weights.len(), &x, cols, out.len());
    };

    /// As [`dots_f32`](Self::dots_f32), weights in f16.
    fn dots_f16(weights: &[f16], x: Rows<'_, f32>, cols: usize, out: &mut [f32]) where {
        check_dots(weights.len(), &x, cols, out.len());
    };

    /// As [`dots_f32`](Self::dots_f32) in integers, exact as long as no sum leaves the i32, which
    /// [`quantise_activations`](Self::quantise_activations) makes sure of.
    fn dots_i8(weights: &[i8], x: Rows<'_, i16>, cols: usize, out: &mut [i32]) where {
        check_dots(weights.len(), &x, cols, out.len());
    };

    /// As [`dots_i8`](Self::dots_i8), weights of 16 bits, at most 1024 in size.
    fn dots_i16(weights: &[i16], x: Rows<'_, i16>, cols: usize, out: &mut [i32]) where {
        check_dots(weights.len(), &x, cols, out.len());
    };

    /// `out[c] = sum over i of values[i] * weights[rows[i], c]`, `weights` being (.., out.len()): the
    /// product with a transposed matrix, of which only the named rows are read.
    fn gather_f32(weights: &[f32], rows: &[u32], values: &[f32], out: &mut [f32]) where {
        check_gather(weights.len(), rows, values.len(), out.len());
    };

    /// As [`gather_f32`](Self::gather_f32), weights in f16.
    fn gather_f16(weights: &[f16], rows: &[u32], values: &[f32], out: &mut [f32]) where {
        check_gather(weights.len(), rows, values.len(), out.len());
    };

    /// As [`gather_f32`](Self::gather_f32) in integers; exact like [`dots_i8`](Self::dots_i8).
    fn gather_i8(weights: &[i8], rows: &[u32], values: &[i16], out: &mut [i32]) where {
        check_gather(weights.len(), rows, values.len(), out.len());
    };

    /// Copies `n <= 16` columns, beginning with `first`, of a matrix (rows, stride) into a panel (rows,
    /// [`PANEL_WIDTH`]), missing columns 0.
    fn pack_f32(weights: &[f32], stride: usize, first: usize, n: usize, panel: &mut [f32]) where {
        check_pack((weights.len(), stride), (first, n), (panel.len(), 1));
    };

    /// As [`pack_f32`](Self::pack_f32), widened from f16.
    fn pack_f16(weights: &[f16], stride: usize, first: usize, n: usize, panel: &mut [f32]) where {
        check_pack((weights.len(), stride), (first, n), (panel.len(), 1));
    };

    /// As [`pack_f32`](Self::pack_f32), widened from int8, rows in pairs: (ceil(rows / 2),
    /// [`PANEL_WIDTH`], 2), a missing row 0.
    fn pack_i8(weights: &[i8], stride: usize, first: usize, n: usize, panel: &mut [i16]) where {
        check_pack((weights.len(), stride), (first, n), (panel.len(), 2));
    };

    /// `out[t, o] += sum over i of x[t, i] * panel[i, o]` for every row of `x`; `out` is (n, PANEL_WIDTH).
    fn multiply_panel_f32(panel: &[f32], x: Rows<'_, f32>, out: &mut [f32]) where {
        check_panel((panel.len(), 1), &x, out.len());
    };

    /// The same in integers; a panel of an odd number of rows wants a 0 behind each row of `x`.
    fn multiply_panel_i8(panel: &[i16], x: Rows<'_, i16>, out: &mut [i32]) where {
        check_panel((panel.len(), 2), &x, out.len());
    };
}

dispatch! { packed;
    /// As [`dots_i8`](Self::dots_i8) with packed weights; no activation may be larger than 32,639.
    fn dots_packed(weights: PackedRows<'_>, x: Rows<'_, i16>, out: &mut [i32]) where {
        weights.check();
        x.check(weights.cols);
        assert_eq!(Some(out.len()), weights.n_rows().checked_mul(x.n));
    };

    /// Rows of packed weights as integers, (rows, cols).
    fn widen_packed(weights: PackedRows<'_>, out: &mut [i16]) where {
        weights.check();
        assert_eq!(Some(out.len()), weights.n_rows().checked_mul(weights.cols));
    };

    /// As [`gather_i8`](Self::gather_i8) with packed weights.
    fn gather_packed(
        weights: PackedRows<'_>,
        rows: &[u32],
        values: &[i16],
        out: &mut [i32],
    ) where {
        weights.check();
        assert!(rows.len() == values.len() && out.len() == weights.cols);
        assert!(rows.iter().all(|&row| (row as usize) < weights.n_rows()));
    };

    /// As [`pack_i8`](Self::pack_i8) with packed weights.
    fn pack_packed(weights: PackedRows<'_>, first: usize, n: usize, panel: &mut [i16]) where {
        weights.check();
        assert!(n <= PANEL_WIDTH && first.checked_add(n).is_some_and(|end| end <= weights.cols));
        let n_panel = weights.n_rows().div_ceil(2) * 2 * PANEL_WIDTH;
        assert_eq!(panel.len(), n_panel);
    };
}

dispatch! { yardstick;
    /// Exclusive or of all words: nothing but reading, as fast as this set reads memory.
    fn read_words(words: &[u64]) -> u64;

    /// [`FLOAT_ROUND`] multiply-adds a round from registers to registers, each lane's result returned
    /// in one sum so that none can be left out.
    fn multiply_add_floats(rounds: usize) -> f32;

    /// [`INTEGER_ROUND`] multiply-adds a round, as the int8 products do them.
    fn multiply_add_integers(rounds: usize) -> i32;
}

/// How large 16-bit activations may be, and all of a row together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActivationBounds {
    /// Bounds the size of each.
    pub largest: i16,
    /// No weight is larger: so many times the sum of their sizes stays below 2^31. A power of two.
    pub weight_max: i32,
}

impl ActivationBounds {
    /// For weights of 8 bits. 128 and not 127, so that a weight of -128 in a damaged file cannot overflow either.
    pub const INT8: Self = ActivationBounds {
        largest: i16::MAX,
        weight_max: 128,
    };
    /// For packed weights.
    pub const PACKED: Self = ActivationBounds {
        largest: packed::PACKED_ACTIVATION_MAX,
        weight_max: packed::PACKED_WEIGHT_MAX,
    };
}

/// Some columns of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct Columns {
    /// From the beginning of one row to that of the next.
    pub stride: usize,
    /// The first of them, and how many there are.
    pub first: usize,
    /// See `first`.
    pub n: usize,
}

/// Rows of activations.
#[derive(Clone, Copy)]
pub struct Rows<'a, T> {
    /// The first row, and all that lies behind it.
    pub values: &'a [T],
    /// From the beginning of one row to that of the next.
    pub stride: usize,
    /// How many rows there are.
    pub n: usize,
}

// Sizes come from public fields and arguments. Where their products and sums wrapped, as they do in release builds,
// large ones would pass for small ones, and kernels would follow pointers far beyond their slices.

impl<T> Rows<'_, T> {
    /// Whether every row has so many columns.
    fn check(&self, cols: usize) {
        let last = self.n.checked_sub(1);
        let start = last.and_then(|last| last.checked_mul(self.stride));
        let end = start.and_then(|start| start.checked_add(cols));
        assert!(end.is_some_and(|end| end <= self.values.len()));
        // The gemm crate takes it with a sign.
        assert!(isize::try_from(self.stride).is_ok());
    }
}

fn check_dots<T>(n_weights: usize, x: &Rows<'_, T>, cols: usize, n_out: usize) {
    x.check(cols);
    assert!(cols > 0 && n_weights % cols == 0);
    assert_eq!(Some(n_out), (n_weights / cols).checked_mul(x.n));
}

fn check_low_rank(n_weights: usize, columns: Columns, x: &Rows<'_, f32>, n_out: usize) {
    let Columns { stride, first, n } = columns;
    assert!(stride > 0 && n_weights % stride == 0);
    assert!(first.checked_add(n).is_some_and(|end| end <= stride));
    x.check(n_weights / stride);
    assert_eq!(Some(n_out), x.n.checked_mul(n));
}

fn check_gather(n_weights: usize, rows: &[u32], n_values: usize, width: usize) {
    assert_eq!(rows.len(), n_values);
    assert!(width > 0 && n_weights % width == 0);
    let n_rows = n_weights / width;
    assert!(rows.iter().all(|&row| (row as usize) < n_rows));
}

/// Columns `first .. first + n` of a matrix of `n_weights`; each row of the panel has `together` of its rows.
fn check_pack(
    (n_weights, stride): (usize, usize),
    (first, n): (usize, usize),
    (n_panel, together): (usize, usize),
) {
    assert!(stride > 0 && n_weights % stride == 0);
    assert!(n <= PANEL_WIDTH && first.checked_add(n).is_some_and(|end| end <= stride));
    let n_rows = (n_weights / stride).div_ceil(together);
    assert_eq!(Some(n_panel), n_rows.checked_mul(together * PANEL_WIDTH));
}

/// As [`check_pack`] for the panel, which then meets every row of `x`.
fn check_panel<T>((n_panel, together): (usize, usize), x: &Rows<'_, T>, n_out: usize) {
    assert!(n_panel % (together * PANEL_WIDTH) == 0);
    x.check(n_panel / PANEL_WIDTH);
    assert_eq!(Some(n_out), x.n.checked_mul(PANEL_WIDTH));
}
