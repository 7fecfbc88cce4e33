//! Vector operations, each written once in plain Rust.
//!
//! Every function is `inline(always)`: the scalar set calls it as it is, the other sets call it from a
//! function compiled for their instructions, where the compiler turns these loops into vector code.
//! It may not reorder or fuse float operations, so all sets agree to the last bit. Sums run in
//! [`LANES`] partial sums that are added in a fixed tree.

#![forbid(unsafe_code)]

use half::f16;

use super::{ActivationBounds, WkvChannels};
use crate::math::exp::{exp, sigmoid};

/// Partial sums of a reduction: one AVX2 register of f32.
pub(super) const LANES: usize = 8;

/// Adds up the lanes as vector code does: halves onto halves.
#[inline(always)]
pub(super) fn add_lanes(lanes: [f32; LANES]) -> f32 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// Sum of `term(x[i])` over all elements.
#[inline(always)]
fn sum_of(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += term(value);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += term(value);
    }
    add_lanes(lanes)
}

#[inline(always)]
pub(super) fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32]) {
    let n = x.len() as f32;
    let mean = sum_of(x, |v| v) / n;
    // Two passes: the one-pass formula loses digits when the mean is large.
    let variance = sum_of(x, |v| (v - mean) * (v - mean)) / n;
    let inverse = 1.0 / (variance + epsilon).sqrt();
    for (((out, &x), &weight), &bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
        *out = (x - mean) * inverse * weight + bias;
    }
}

#[inline(always)]
pub(super) fn token_shift(present: &[f32], previous: &[f32], mix: &[f32], out: &mut [f32]) {
    for (((out, &present), &previous), &mix) in out.iter_mut().zip(present).zip(previous).zip(mix) {
        *out = present * mix + previous * (1.0 - mix);
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) fn wkv_step(
    channels: WkvChannels<'_>,
    key: &[f32],
    value: &[f32],
    receptance: &[f32],
    numerator: &mut [f32],
    denominator: &mut [f32],
    exponent_max: &mut [f32],
    out: &mut [f32],
) {
    let n = out.len();
    // Slices of one known length: lets the compiler drop the bounds checks and vectorise.
    let (decay_log, bonus) = (&channels.decay_log[..n], &channels.bonus[..n]);
    let (key, value, receptance) = (&key[..n], &value[..n], &receptance[..n]);
    let (numerator, denominator) = (&mut numerator[..n], &mut denominator[..n]);
    let exponent_max = &mut exponent_max[..n];
    for i in 0..n {
        let (k, v, top) = (key[i], value[i], exponent_max[i]);
        // The output weighs the present token with a bonus.
        let with_bonus = bonus[i] + k;
        let q = if top > with_bonus { top } else { with_bonus };
        let past = exp(top - q);
        let present = exp(with_bonus - q);
        let wkv = (past * numerator[i] + present * v) / (past * denominator[i] + present);
        // A key of minus infinity, which only bad weights give, would pass for a weight of 0: 0 times it is NaN.
        out[i] = sigmoid(receptance[i] + k * 0.0) * wkv;
        // The state decays and takes the present token in.
        let decayed = top + decay_log[i];
        let q = if decayed > k { decayed } else { k };
        let past = exp(decayed - q);
        let present = exp(k - q);
        numerator[i] = past * numerator[i] + present * v;
        denominator[i] = past * denominator[i] + present;
        exponent_max[i] = q;
    }
}

#[inline(always)]
pub(super) fn squared_relu(x: &mut [f32]) {
    for x in x {
        // 0 times x is 0, but for NaN and minus infinity, of which it makes NaN: they must not pass for 0.
        let positive = if *x > 0.0 { *x } else { *x * 0.0 };
        *x = positive * positive;
    }
}

#[inline(always)]
pub(super) fn add(x: &mut [f32], y: &[f32]) {
    for (x, &y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

#[inline(always)]
pub(super) fn add_sums(x: &mut [i32], y: &[i32]) {
    for (x, &y) in x.iter_mut().zip(y) {
        *x = x.wrapping_add(y);
    }
}

#[inline(always)]
pub(super) fn list_nonzero_f32(
    x: &[f32],
    first: u32,
    indices: &mut [u32],
    values: &mut [f32],
) -> usize {
    list_nonzero(x, first, indices, values, |x| x != 0.0)
}

#[inline(always)]
pub(super) fn list_nonzero_i16(
    x: &[i16],
    first: u32,
    indices: &mut [u32],
    values: &mut [i16],
) -> usize {
    list_nonzero(x, first, indices, values, |x| x != 0)
}

/// Writes every element, and goes on behind those that count: a branch on half-random data would be
/// mispredicted, which cost four times as much.
#[inline(always)]
fn list_nonzero<T: Copy>(
    x: &[T],
    first: u32,
    indices: &mut [u32],
    values: &mut [T],
    counts: impl Fn(T) -> bool,
) -> usize {
    let (indices, values) = (&mut indices[..x.len()], &mut values[..x.len()]);
    let mut n = 0;
    for (index, &value) in (first..).zip(x) {
        indices[n] = index;
        values[n] = value;
        n += usize::from(counts(value));
    }
    n
}

#[inline(always)]
pub(super) fn add_gated(x: &mut [f32], gate: &[f32], y: &[f32]) {
    for ((x, &gate), &y) in x.iter_mut().zip(gate).zip(y) {
        *x += sigmoid(gate) * y;
    }
}

#[inline(always)]
pub(super) fn scale(x: &mut [f32], factors: &[f32]) {
    for (x, &factor) in x.iter_mut().zip(factors) {
        *x *= factor;
    }
}

#[inline(always)]
pub(super) fn quantise_activations(x: &[f32], bounds: ActivationBounds, out: &mut [i16]) -> f32 {
    /// 1.5 * 2^23: adding it rounds to the nearest integer, ties to even.
    const ROUND: f32 = 12_582_912.0;

    let (mut sums, mut largest) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    let mut take = |chunk: &[f32]| {
        for ((sum, largest), &value) in sums.iter_mut().zip(&mut largest).zip(chunk) {
            let value = value.abs();
            *sum += value;
            *largest = if value > *largest { value } else { *largest };
        }
    };
    chunks.for_each(&mut take);
    take(rest);
    let sum = add_lanes(sums);
    let largest = largest
        .iter()
        .fold(0.0_f32, |a, &b| if b > a { b } else { a });
    // Rounding adds at most 1/2 an element to the sum of the integers; the other half of the length
    // that is taken off covers the rounding of `sum` itself, at most 1/8 an element.
    let sum_max = (1_u32 << 31) as f32 / bounds.weight_max as f32;
    let by_sum = sum / (sum_max - x.len() as f32);
    let by_largest = largest / f32::from(bounds.largest);
    let scale = if by_sum > by_largest {
        by_sum
    } else {
        by_largest
    };
    // Below this 1 / scale would overflow; such a vector is 0 for every purpose. NaN and infinities end here too, and
    // make NaN of all that comes of the vector: of NaN the largest knows nothing, but the sum is NaN.
    let is_usable = scale > 1e-35 && sum < f32::INFINITY;
    if !is_usable {
        out.fill(0);
        return 0.0 * sum;
    }
    let inverse = 1.0 / scale;
    for (out, &x) in out.iter_mut().zip(x) {
        // |x * inverse| <= 32767 + rounding, far below 2^22, where this trick is exact.
        *out = ((x * inverse + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32) as i16;
    }
    scale
}

#[inline(always)]
pub(super) fn rescale_sums(sums: &[i32], scale: f32, factors: &[f32], out: &mut [f32]) {
    for ((out, &sum), &factor) in out.iter_mut().zip(sums).zip(factors) {
        *out = sum as f32 * (scale * factor);
    }
}

/// Exact f16 to f32 without branches, for every value: zeros, subnormals, infinities and NaN too.
#[inline(always)]
pub(super) fn f16_to_f32(x: f16) -> f32 {
    let bits = u32::from(x.to_bits());
    let sign = (bits & 0x8000) << 16;
    let magnitude = (bits & 0x7fff) << 13;
    // The f16 exponent bias is 15, that of f32 127: 2^112 moves one to the other, subnormals included.
    let scaled = f32::from_bits(magnitude) * f32::from_bits((112 + 127) << 23);
    let special = f32::from_bits(magnitude | 0x7f80_0000);
    let value = if magnitude >= 0x7c00 << 13 {
        special
    } else {
        scaled
    };
    f32::from_bits(sign | value.to_bits())
}

#[inline(always)]
pub(super) fn widen_f16(x: &[f16], out: &mut [f32]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = f16_to_f32(x);
    }
}
