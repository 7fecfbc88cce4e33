//! The time mixing of RWKV-7 behind its matrices: one token of one head.
//!
//! Written once in plain Rust and compiled for every instruction set, like `elementwise.rs`: nothing is fused or
//! reordered, so all sets agree to the last bit. The state of a head is (key, value) here, the transpose of what papers
//! write: what is summed over keys (what the state holds for a key, and the output) is then summed one key after the other
//! for all values side by side, without a sum across a register, which took four times as long. Sums over the channels of
//! a head run in the lanes of `elementwise.rs`.

#![forbid(unsafe_code)]

use super::elementwise::{add_lanes, LANES};
use super::{Wkv7Head, Wkv7Token};
use crate::math::exp::{exp, sigmoid, tanh};

/// Log of the fastest decay a step: `-exp(-1/2)`.
const DECAY_LOG_MIN: f32 = -0.606_530_66;

/// Shortest length that a key is divided by.
const LENGTH_MIN: f32 = 1e-12;

/// Channels of the published models' heads, for which the compiler keeps all sums in registers.
pub(super) const HEAD: usize = 64;

#[inline(always)]
pub(super) fn lerp(present: &[f32], previous: &[f32], mix: &[f32], out: &mut [f32]) {
    for (((out, &present), &previous), &mix) in out.iter_mut().zip(present).zip(previous).zip(mix) {
        *out = present + (previous - present) * mix;
    }
}

#[inline(always)]
pub(super) fn tanh_of(x: &mut [f32]) {
    for x in x {
        *x = tanh(*x);
    }
}

#[inline(always)]
pub(super) fn sigmoid_of(x: &mut [f32]) {
    for x in x {
        *x = sigmoid(*x);
    }
}

/// Sum over channels in lanes.
#[inline(always)]
pub(super) fn sum(n: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let whole = n / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(at + lane);
        }
    }
    for at in whole..n {
        lanes[at - whole] += term(at);
    }
    add_lanes(lanes)
}

/// The group norm of a head's output: the mean of `x`, and what its distance from the mean is
/// multiplied with. In two passes: the one-pass formula loses digits when the mean is large.
#[inline(always)]
pub(super) fn head_norm(x: &[f32], epsilon: f32) -> (f32, f32) {
    let n = x.len();
    let mean = sum(n, |i| x[i]) / n as f32;
    let variance = sum(n, |i| (x[i] - mean) * (x[i] - mean)) / n as f32;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

#[inline(always)]
pub(super) fn wkv7_step(
    head: Wkv7Head<'_>,
    token: Wkv7Token<'_>,
    state: &mut [f32],
    work: &mut [f32],
    out: &mut [f32],
) {
    // A length that the compiler knows lets it drop the checks of bounds and unroll.
    if out.len() == HEAD {
        step(HEAD, head, token, state, work, out);
    } else {
        step(out.len(), head, token, state, work, out);
    }
}

#[inline(always)]
fn step(
    n: usize,
    head: Wkv7Head<'_>,
    token: Wkv7Token<'_>,
    state: &mut [f32],
    work: &mut [f32],
    out: &mut [f32],
) {
    let out = &mut out[..n];
    let (decay, work) = work.split_at_mut(n);
    let (removal_key, work) = work.split_at_mut(n);
    let (replacement, work) = work.split_at_mut(n);
    let (key, work) = work.split_at_mut(n);
    let value = &mut work[..n];
    let receptance = &token.receptance[..n];
    prepare(n, head, token, decay, removal_key, replacement, key, value);

    let keys = Keys {
        decay,
        removal_key,
        replacement,
        key,
        receptance,
    };
    let mut at = 0;
    while at + HEAD <= n {
        walk::<HEAD>(n, at, keys, value, state, out);
        at += HEAD;
    }
    while at + LANES <= n {
        walk::<LANES>(n, at, keys, value, state, out);
        at += LANES;
    }
    while at < n {
        walk::<1>(n, at, keys, value, state, out);
        at += 1;
    }

    let (mean, inverse) = head_norm(out, head.norm_epsilon);
    let bonus = &head.bonus[..n];
    let bonus = sum(n, |i| receptance[i] * key[i] * bonus[i]);
    let (weight, bias) = (&head.norm_weight[..n], &head.norm_bias[..n]);
    let gate = &token.gate[..n];
    for i in 0..n {
        let normed = (out[i] - mean) * inverse * weight[i] + bias[i];
        out[i] = (normed + bonus * value[i]) * gate[i];
    }
}

/// The vectors of one token that the state meets.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn prepare(
    n: usize,
    head: Wkv7Head<'_>,
    token: Wkv7Token<'_>,
    decay: &mut [f32],
    removal_key: &mut [f32],
    replacement: &mut [f32],
    key: &mut [f32],
    value: &mut [f32],
) {
    let (decay_bias, decay_part) = (&head.decay_bias[..n], &token.decay[..n]);
    for i in 0..n {
        decay[i] = exp(DECAY_LOG_MIN * sigmoid(decay_bias[i] + decay_part[i]));
    }
    let (raw_key, key_scale) = (&token.key[..n], &head.key_scale[..n]);
    for i in 0..n {
        removal_key[i] = raw_key[i] * key_scale[i];
    }
    let square = {
        let removal_key = &*removal_key;
        sum(n, |i| removal_key[i] * removal_key[i])
    };
    let length = square.sqrt();
    // NaN stays: it is in the key, too.
    let inverse = 1.0
        / if length > LENGTH_MIN {
            length
        } else {
            LENGTH_MIN
        };
    let (iclr_bias, iclr_part) = (&head.iclr_bias[..n], &token.iclr[..n]);
    let key_iclr = &head.key_iclr[..n];
    for i in 0..n {
        let iclr = sigmoid(iclr_bias[i] + iclr_part[i]);
        removal_key[i] *= inverse;
        replacement[i] = removal_key[i] * iclr;
        key[i] = raw_key[i] * (1.0 + (iclr - 1.0) * key_iclr[i]);
    }
    value.copy_from_slice(&token.value[..n]);
    if let Some(mix) = token.value_mix {
        let (first, part, bias) = (&mix.first[..n], &mix.part[..n], &mix.bias[..n]);
        for i in 0..n {
            value[i] += (first[i] - value[i]) * sigmoid(bias[i] + part[i]);
        }
    }
}

/// What the rows of a state are multiplied with, a number a key each.
#[derive(Clone, Copy)]
struct Keys<'a> {
    decay: &'a [f32],
    removal_key: &'a [f32],
    replacement: &'a [f32],
    key: &'a [f32],
    receptance: &'a [f32],
}

/// Moves `W` values of the state from `at` on, and reads them.
#[inline(always)]
fn walk<const W: usize>(
    n: usize,
    at: usize,
    keys: Keys<'_>,
    value: &[f32],
    state: &mut [f32],
    out: &mut [f32],
) {
    let (removal_key, decay) = (&keys.removal_key[..n], &keys.decay[..n]);
    let (replacement, key) = (&keys.replacement[..n], &keys.key[..n]);
    let receptance = &keys.receptance[..n];
    // What the state holds for the key that is replaced.
    let mut removed = [0.0f32; W];
    for (row, &factor) in state.chunks_exact(n).zip(removal_key) {
        let Some(row) = row[at..].first_chunk::<W>() else {
            return;
        };
        for (removed, &held) in removed.iter_mut().zip(row) {
            *removed += held * factor;
        }
    }
    let Some(value) = value[at..].first_chunk::<W>() else {
        return;
    };
    let mut read = [0.0f32; W];
    for (i, row) in state.chunks_exact_mut(n).enumerate() {
        let Some(row) = row[at..].first_chunk_mut::<W>() else {
            return;
        };
        let (decay, replacement) = (decay[i], replacement[i]);
        let (key, receptance) = (key[i], receptance[i]);
        for j in 0..W {
            let held = (row[j] * decay - removed[j] * replacement) + value[j] * key;
            row[j] = held;
            read[j] += held * receptance;
        }
    }
    out[at..at + W].copy_from_slice(&read);
}
