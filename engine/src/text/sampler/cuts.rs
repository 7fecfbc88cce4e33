//! What may be drawn: each cut takes the candidates that the one before it left, and leaves at least one.
//!
//! Weights are probabilities times a constant: (n_vocab), e to the power of minus the distance from the
//! best. A candidate may have a weight of 0; it is never drawn.

#![forbid(unsafe_code)]

use crate::math::exp;

/// A token with its rank: distance from the best score in the high half, id in the low half. Distances
/// are not negative, and bits of such floats are in the order of the floats, so comparing candidates
/// compares distances, then ids, as one integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate(u64);

impl Candidate {
    pub(super) fn new(distance: f32, token: u32) -> Self {
        Candidate(u64::from(distance.to_bits()) << 32 | u64::from(token))
    }

    fn distance(self) -> f32 {
        f32::from_bits((self.0 >> 32) as u32)
    }

    pub(super) fn token(self) -> u32 {
        self.0 as u32
    }

    pub(super) fn weight(self, weights: &[f32]) -> f32 {
        weights[self.token() as usize]
    }
}

/// Keeps the `top_k` best candidates, best first.
pub(super) fn to_top_k(candidates: &mut Vec<Candidate>, top_k: usize) {
    if top_k < candidates.len() {
        candidates.select_nth_unstable(top_k - 1);
        candidates.truncate(top_k);
        // Sums must not depend on the order in which the selection leaves them.
        candidates.sort_unstable();
    }
}

/// Keeps the fewest best candidates that have at least `top_p` of all candidates' weight.
pub(super) fn to_top_p(candidates: &mut Vec<Candidate>, weights: &[f32], top_p: f32) {
    if top_p >= 1.0 {
        return;
    }
    let top_p = f64::from(top_p);
    let weight = |c: &Candidate| f64::from(c.weight(weights));
    let total: f64 = candidates.iter().map(weight).sum();
    // Sorting is the dear part. If a token other than the best weighs less than the rest's share
    // divided by the number of other tokens, then it and all below it weigh less than that share: it
    // cannot be needed. In real text this leaves some hundred tokens of 50,277. The best weighs 1.
    let n_other = candidates.len().saturating_sub(1).max(1);
    let needed = ((1.0 - top_p) * total / n_other as f64).min(1.0);
    candidates.retain(|c| weight(c) >= needed);
    candidates.sort_unstable();
    keep_until(candidates, weight, top_p * total);
}

/// Keeps candidates with at least `min_p` of the best one's weight, which is 1.
pub(super) fn to_min_p(candidates: &mut Vec<Candidate>, weights: &[f32], min_p: f32) {
    if min_p > 0.0 {
        candidates.retain(|c| c.weight(weights) >= min_p);
    }
}

/// Keeps the fewest most typical candidates that have at least `typical_p` of all candidates' weight, best
/// first.
///
/// With Z the sum of the weights a candidate's surprise is -ln p = distance + ln Z, and the entropy is
/// ln Z more than the mean distance: ln Z goes out of their difference.
pub(super) fn to_typical_p(candidates: &mut Vec<Candidate>, weights: &[f32], typical_p: f32) {
    if typical_p >= 1.0 {
        return;
    }
    // Their distances may be infinite.
    candidates.retain(|c| c.weight(weights) > 0.0);
    let weight = |c: &Candidate| f64::from(c.weight(weights));
    let total: f64 = candidates.iter().map(weight).sum();
    let distances = candidates
        .iter()
        .map(|c| weight(c) * f64::from(c.distance()));
    let mean = distances.sum::<f64>() / total;
    // As of a candidate, bits of floats that are not negative are in their order.
    let key = |c: &Candidate| ((f64::from(c.distance()) - mean).abs().to_bits(), c.token());
    candidates.sort_unstable_by_key(key);
    keep_until(candidates, weight, f64::from(typical_p) * total);
    candidates.sort_unstable();
}

/// Keeps the first candidates whose weights sum to at least `enough`, or all.
fn keep_until(candidates: &mut Vec<Candidate>, weight: impl Fn(&Candidate) -> f64, enough: f64) {
    let mut sum = 0.0;
    let reached = candidates.iter().position(|c| {
        sum += weight(c);
        sum >= enough
    });
    if let Some(last) = reached {
        candidates.truncate(last + 1);
    }
}

/// Keeps candidates whose surprise is at most so many bits, or the best one.
pub(super) fn to_surprise(candidates: &mut Vec<Candidate>, weights: &[f32], bits_max: f64) {
    let Some(&best) = candidates.iter().min() else {
        return;
    };
    let weight = |c: &Candidate| f64::from(c.weight(weights));
    let bits_of_total = exp::log2(candidates.iter().map(weight).sum());
    let bits = |c: &Candidate| {
        let distance = f64::from(c.distance());
        distance * std::f64::consts::LOG2_E + bits_of_total
    };
    candidates.retain(|c| bits(c) <= bits_max);
    if candidates.is_empty() {
        candidates.push(best);
    }
}

/// Makes the candidates' weights what they are at a temperature, where their distances are those at
/// temperature 1. The best of them has weight 1.
pub(super) fn heat(candidates: &[Candidate], weights: &mut [f32], temperature: f32) {
    let least = candidates.iter().min().map_or(0.0, |c| c.distance());
    for candidate in candidates {
        // A subnormal temperature may count as 0 on some CPUs, and 0 / 0 is NaN.
        let above = candidate.distance() - least;
        let distance = if above > 0.0 {
            above / temperature
        } else {
            0.0
        };
        weights[candidate.token() as usize] = exp::exp(-distance);
    }
}

/// How surprising it was to draw a token of these by their weights, in bits.
pub(super) fn surprise(candidates: &[Candidate], weights: &[f32], token: u32) -> f64 {
    let weight = |c: &Candidate| f64::from(c.weight(weights));
    let total: f64 = candidates.iter().map(weight).sum();
    exp::log2(total) - exp::log2(f64::from(weights[token as usize]))
}

/// The token at `uniform` (0 to below 1) of the way through the weights in their order, or None when
/// all are 0.
pub(super) fn draw(weights: impl Iterator<Item = (f32, u32)> + Clone, uniform: f64) -> Option<u32> {
    let total: f64 = weights.clone().map(|(weight, _)| f64::from(weight)).sum();
    let target = uniform * total;
    let mut sum = 0.0;
    let mut last = None;
    for (weight, token) in weights {
        if weight > 0.0 {
            sum += f64::from(weight);
            last = Some(token);
            if sum > target {
                break;
            }
        }
    }
    last
}
