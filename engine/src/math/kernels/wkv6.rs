//! The time mixing of RWKV-5 and 6 behind its matrices: one token of one head.
//!
//! Written once in plain Rust and compiled for every instruction set, like `wkv7.rs`: nothing is
//! fused or reordered, so all sets agree to the last bit. The state of a head is (key, value), as
//! the papers write it. The output reads the state as it was before the token; what the token adds
//! to its own output is one number times its value, because the sum over keys of
//! `receptance * bonus * key` does not depend on the value.

#![forbid(unsafe_code)]

use super::elementwise::LANES;
use super::wkv7::{head_norm, sum, HEAD};
use super::{Wkv6Head, Wkv6Token};
use crate::math::exp::{exp, sigmoid};

#[inline(always)]
pub(super) fn lerp_by_sum(
    present: &[f32],
    previous: &[f32],
    mix: &[f32],
    part: &[f32],
    out: &mut [f32],
) {
    let rows = out.iter_mut().zip(present).zip(previous);
    for (((out, &present), &previous), (&mix, &part)) in rows.zip(mix.iter().zip(part)) {
        *out = present + (previous - present) * (mix + part);
    }
}

#[inline(always)]
pub(super) fn decay_of(base: &[f32], part: &[f32], out: &mut [f32]) {
    for ((out, &base), &part) in out.iter_mut().zip(base).zip(part) {
        *out = exp(-exp(base + part));
    }
}

#[inline(always)]
pub(super) fn wkv6_step(
    head: Wkv6Head<'_>,
    token: Wkv6Token<'_>,
    state: &mut [f32],
    out: &mut [f32],
) {
    // A length that the compiler knows lets it drop the checks of bounds and unroll.
    if out.len() == HEAD {
        step(HEAD, head, token, state, out);
    } else {
        step(out.len(), head, token, state, out);
    }
}

#[inline(always)]
fn step(n: usize, head: Wkv6Head<'_>, token: Wkv6Token<'_>, state: &mut [f32], out: &mut [f32]) {
    let out = &mut out[..n];
    let mut at = 0;
    while at + HEAD <= n {
        walk::<HEAD>(n, at, token, state, out);
        at += HEAD;
    }
    while at + LANES <= n {
        walk::<LANES>(n, at, token, state, out);
        at += LANES;
    }
    while at < n {
        walk::<1>(n, at, token, state, out);
        at += 1;
    }

    let (receptance, key, bonus) = (&token.receptance[..n], &token.key[..n], &head.bonus[..n]);
    let own = sum(n, |i| receptance[i] * bonus[i] * key[i]);
    let value = &token.value[..n];
    for i in 0..n {
        out[i] += own * value[i];
    }
    let (mean, inverse) = head_norm(out, head.norm_epsilon);
    let (weight, bias) = (&head.norm_weight[..n], &head.norm_bias[..n]);
    let Some(gate) = token.gate.map(|gate| &gate[..n]) else {
        for i in 0..n {
            out[i] = (out[i] - mean) * inverse * weight[i] + bias[i];
        }
        return;
    };
    for i in 0..n {
        let normed = (out[i] - mean) * inverse * weight[i] + bias[i];
        out[i] = normed * (gate[i] * sigmoid(gate[i]));
    }
}

/// Reads `W` values of the state from `at` on, and moves them.
#[inline(always)]
fn walk<const W: usize>(
    n: usize,
    at: usize,
    token: Wkv6Token<'_>,
    state: &mut [f32],
    out: &mut [f32],
) {
    let (decay, key) = (&token.decay[..n], &token.key[..n]);
    let receptance = &token.receptance[..n];
    let Some(value) = token.value[at..].first_chunk::<W>() else {
        return;
    };
    let mut read = [0.0f32; W];
    for (i, row) in state.chunks_exact_mut(n).enumerate() {
        let Some(row) = row[at..].first_chunk_mut::<W>() else {
            return;
        };
        let (decay, key, receptance) = (decay[i], key[i], receptance[i]);
        for j in 0..W {
            let held = row[j];
            read[j] += held * receptance;
            row[j] = held * decay + value[j] * key;
        }
    }
    out[at..at + W].copy_from_slice(&read);
}
