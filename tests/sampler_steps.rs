//! Each step of the sampler beside top-k and top-p: what stays and how often it is drawn, worked out by hand;
//! typical-p and mirostat against references that sort everything in f64; penalties with decay against
//! ChatRWKV's loop; bans; and the order of the steps.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use rwkv_edge::{ErrorKind, Sampler, SamplerOptions};

fn options() -> SamplerOptions {
    SamplerOptions::new().temperature(1.0).seed(42)
}

fn sampler(options: &SamplerOptions, n_vocab: usize) -> Sampler {
    Sampler::new(options.clone(), n_vocab).unwrap()
}

/// Numbers without a pattern, from -`size` to `size`, that every platform computes alike.
struct Noise {
    state: u32,
}

impl Noise {
    fn row(&mut self, n: usize, size: f32) -> Vec<f32> {
        let mut next = || {
            self.state = self
                .state
                .wrapping_mul(1_664_525)
                .wrapping_add(1_013_904_223);
            ((self.state >> 8) as f32 / (1 << 23) as f32 - 1.0) * size
        };
        (0..n).map(|_| next()).collect()
    }
}

/// How often each token is drawn of so many times; nothing is counted.
fn drawn(sampler: &mut Sampler, logits: &[f32], n_draws: u32) -> Vec<u32> {
    let mut counts = vec![0; logits.len()];
    for _ in 0..n_draws {
        counts[sampler.sample(logits) as usize] += 1;
    }
    counts
}

/// Frequencies are within 5 standard deviations, and what has no probability never comes.
fn assert_drawn_by(options: &SamplerOptions, logits: &[f32], expected: &[f64]) {
    const N_DRAWS: u32 = 20_000;
    let counts = drawn(&mut sampler(options, logits.len()), logits, N_DRAWS);
    let n = f64::from(N_DRAWS);
    for (token, (&count, &p)) in counts.iter().zip(expected).enumerate() {
        let limit = 5.0 * (n * p * (1.0 - p)).sqrt() + 1e-9;
        let error = (f64::from(count) - n * p).abs();
        assert!(
            error <= limit,
            "token {token}: {count} of {n}, expected {p}: {options:?}"
        );
    }
}

/// Natural logarithms of 1/2, 1/4, 1/8, 1/16 and 1/16, and 3 more than that: logits have no zero point.
fn halves() -> [f32; 5] {
    [0.5, 0.25, 0.125, 0.0625, 0.0625].map(|p: f32| p.ln() + 3.0)
}

/// Probabilities that are in proportion to these.
fn shares<const N: usize>(weights: [f64; N]) -> [f64; N] {
    let total: f64 = weights.iter().sum();
    weights.map(|w| w / total)
}

#[test]
fn min_p_asks_for_a_share_of_the_best() {
    let h = halves();
    for (min_p, weights) in [
        (0.0, [8.0, 4.0, 2.0, 1.0, 1.0]),
        (0.1, [8.0, 4.0, 2.0, 1.0, 1.0]),
        (0.2, [8.0, 4.0, 2.0, 0.0, 0.0]),
        (0.4, [8.0, 4.0, 0.0, 0.0, 0.0]),
        (0.6, [8.0, 0.0, 0.0, 0.0, 0.0]),
        (1.0, [8.0, 0.0, 0.0, 0.0, 0.0]),
    ] {
        assert_drawn_by(&options().min_p(min_p), &h, &shares(weights));
    }
    // At temperature 2 the probabilities are as their roots: the share of token 2 is 1/2.
    let root = std::f64::consts::SQRT_2;
    let hot = options().temperature(2.0).min_p(0.45);
    assert_drawn_by(&hot, &h, &shares([2.0, root, 1.0, 0.0, 0.0]));
    let last = hot.temperature_last(true);
    assert_drawn_by(&last, &h, &shares([2.0, root, 0.0, 0.0, 0.0]));
}

#[test]
fn typical_p_begins_at_the_entropy() {
    // The entropy is 1.300 nats. |-ln p - H|: 0.607, 0.087, 0.780, 1.473, 1.473.
    let h = halves();
    for (typical_p, weights) in [
        (0.0, [0.0, 4.0, 0.0, 0.0, 0.0]),
        (0.2, [0.0, 4.0, 0.0, 0.0, 0.0]),
        (0.3, [8.0, 4.0, 0.0, 0.0, 0.0]),
        (0.7, [8.0, 4.0, 0.0, 0.0, 0.0]),
        (0.8, [8.0, 4.0, 2.0, 0.0, 0.0]),
        (0.9, [8.0, 4.0, 2.0, 1.0, 0.0]),
        (0.99, [8.0, 4.0, 2.0, 1.0, 1.0]),
        (1.0, [8.0, 4.0, 2.0, 1.0, 1.0]),
    ] {
        let typical = options().typical_p(typical_p);
        assert_drawn_by(&typical, &h, &shares(weights));
        // Tokens of no probability change nothing.
        let none = [f32::NEG_INFINITY, f32::NAN];
        let mut expected = shares(weights).to_vec();
        expected.extend([0.0, 0.0]);
        assert_drawn_by(&typical, &[&h[..], &none[..]].concat(), &expected);
    }
}

/// Typical-p as transformers computes it, but that equal tokens rank by id: log-softmax, entropy, sorting by
/// the difference, cumulated probabilities.
fn typical_reference(logits: &[f32], typical_p: f64) -> Vec<f64> {
    let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    let log_p: Vec<f64> = logits.iter().map(|&x| f64::from(x) - total.ln()).collect();
    let entropy: f64 = log_p.iter().map(|x| -x * x.exp()).sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| {
        let shifted = |i: usize| (-log_p[i] - entropy).abs();
        shifted(a).total_cmp(&shifted(b)).then(a.cmp(&b))
    });
    let mut probabilities = vec![0.0; logits.len()];
    let mut sum = 0.0;
    for i in order {
        probabilities[i] = log_p[i].exp();
        sum += probabilities[i];
        if sum >= typical_p {
            break;
        }
    }
    probabilities.iter().map(|p| p / sum).collect()
}

#[test]
fn typical_p_is_that_of_transformers() {
    for (seed, size, typical_p) in [(1, 1.0, 0.5), (2, 4.0, 0.9), (3, 8.0, 0.3), (4, 0.1, 0.95)] {
        let logits = Noise { state: seed }.row(64, size);
        let expected = typical_reference(&logits, f64::from(typical_p));
        let n_kept = expected.iter().filter(|&&p| p > 0.0).count();
        assert!((1..64).contains(&n_kept), "{n_kept}");
        assert_drawn_by(&options().typical_p(typical_p), &logits, &expected);
        // With the temperature in front, of the logits that it has divided.
        let warmed: Vec<f32> = logits.iter().map(|x| x / 1.5).collect();
        let expected = typical_reference(&warmed, f64::from(typical_p));
        let warm = options().temperature(1.5).typical_p(typical_p);
        assert_drawn_by(&warm, &logits, &expected);
    }
}

/// Mirostat version 2 as llama.cpp does it: sorts, cuts where the surprise first exceeds mu, and divides by
/// the sum of what is left. The probability of each token.
fn mirostat_reference(logits: &[f32], mu: f64) -> Vec<f64> {
    let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
    let p = |i: usize| f64::from(logits[i]).exp() / total;
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| p(b).total_cmp(&p(a)).then(a.cmp(&b)));
    let n = order.iter().position(|&i| -p(i).log2() > mu);
    order.truncate(n.unwrap_or(order.len()).max(1));
    let kept: f64 = order.iter().map(|&i| p(i)).sum();
    let mut probabilities = vec![0.0; logits.len()];
    for i in order {
        probabilities[i] = p(i) / kept;
    }
    probabilities
}

#[test]
fn mirostat_is_that_of_llama_cpp() {
    for (tau, eta) in [(3.0_f32, 0.1_f32), (1.0, 0.3), (5.0, 0.05), (2.0, 0.0)] {
        let mirostat = options().mirostat_tau(tau).mirostat_eta(eta);
        let mut sampler = sampler(&mirostat, 48);
        let mut noise = Noise { state: 9 };
        let mut mu = 2.0 * f64::from(tau);
        let (mut n_cut, mut surprise) = (0, 0.0);
        for step in 0..300 {
            let logits = noise.row(48, 5.0);
            let expected = mirostat_reference(&logits, mu);
            n_cut += expected.iter().filter(|&&p| p == 0.0).count();
            if step % 30 == 0 {
                // What may be drawn here, on the side: what is not counted does not move the limit.
                let counts = drawn(&mut sampler.clone(), &logits, 1000);
                for (&count, &p) in counts.iter().zip(&expected) {
                    assert!(p > 0.0 || count == 0, "step {step} of tau {tau}");
                    assert!(p < 0.02 || count > 0, "step {step} of tau {tau}");
                }
            }
            let token = sampler.sample(&logits);
            let p = expected[token as usize];
            assert!(p > 0.0, "step {step} of tau {tau}, eta {eta}");
            surprise -= p.log2() / 300.0;
            mu -= f64::from(eta) * (-p.log2() - f64::from(tau));
            sampler.accept(token);
        }
        assert!(n_cut > 300, "{n_cut} tokens cut in 300 steps");
        // 48 such tokens do not have 5 bits, and eta 0 does not care.
        let is_reached = (surprise - f64::from(tau)).abs() < 0.1;
        assert!(
            is_reached || tau == 5.0 || eta == 0.0,
            "{surprise} of {tau}"
        );
    }
}

#[test]
fn mirostat_begins_anew_and_follows_what_is_counted() {
    for is_last in [false, true] {
        let mirostat = options().mirostat_tau(2.5).temperature_last(is_last);
        let mirostat = mirostat.temperature(1.3);
        let mut sampler = sampler(&mirostat, 500);
        let run = |sampler: &mut Sampler| -> Vec<u32> {
            let mut noise = Noise { state: 4 };
            let mut next = || {
                let token = sampler.sample(&noise.row(500, 4.0));
                sampler.accept(token);
                token
            };
            (0..100).map(|_| next()).collect()
        };
        let first = run(&mut sampler);
        assert_ne!(run(&mut sampler), first);
        sampler.reset();
        assert_eq!(run(&mut sampler), first, "after reset");
        sampler.set_options(mirostat).unwrap();
        assert_eq!(run(&mut sampler), first, "after other options");
        // A token that was not drawn does not move the limit: draws go on as if nothing had been counted.
        sampler.reset();
        let mut other = sampler.clone();
        let row = Noise { state: 5 }.row(500, 4.0);
        for _ in 0..50 {
            let token = other.sample(&row);
            other.accept((token + 1) % 500);
            assert_eq!(sampler.sample(&row), token);
        }
    }
}

#[test]
fn the_temperature_is_first_or_last() {
    let h = halves();
    let root = std::f64::consts::SQRT_2;
    // At temperature 2 in front, the probabilities are 0.343, 0.243, 0.172, 0.121 and 0.121.
    let first = options().temperature(2.0).top_p(0.7);
    assert_drawn_by(&first, &h, &shares([2.0, root, 1.0, 0.0, 0.0]));
    let last = first.temperature_last(true);
    assert_drawn_by(&last, &h, &shares([2.0, root, 0.0, 0.0, 0.0]));
    // Cold: p^2 of what is left.
    let cold = options().temperature(0.5).temperature_last(true);
    assert_drawn_by(
        &cold.clone().top_p(0.8),
        &h,
        &shares([16.0, 4.0, 1.0, 0.0, 0.0]),
    );
    // Without a cut there is no difference.
    assert_drawn_by(&cold, &h, &shares([64.0, 16.0, 4.0, 1.0, 1.0]));
    // Of two tokens alone the first has 2/3; of all it has 1/2, and both are needed for 0.6.
    let both = options().top_k(2).top_p(0.6);
    assert_drawn_by(&both, &h, &[1.0, 0.0, 0.0, 0.0, 0.0]);
    let last = both.temperature_last(true);
    assert_drawn_by(&last, &h, &shares([2.0, 1.0, 0.0, 0.0, 0.0]));
    let three = options().top_k(2).top_p(0.8).temperature_last(true);
    assert_drawn_by(&three, &h, &shares([2.0, 1.0, 0.0, 0.0, 0.0]));
    // Where typical-p has left the best out, temperatures near 0 still leave something.
    for temperature in [1e-30, 1e-3, 1.0, 1e30] {
        let typical = options().typical_p(0.2).temperature_last(true);
        let typical = typical.temperature(temperature);
        assert_drawn_by(&typical, &h, &[0.0, 1.0, 0.0, 0.0, 0.0]);
    }
}

#[test]
fn every_cut_has_its_place() {
    let h = halves();
    let root = std::f64::consts::SQRT_2;
    // top-k leaves 4 (8, 4, 2, 1 of 15), top-p 0.9 three of them (14 of 15), min-p 0.3 two, of which typical-p
    // takes the more typical one: H is 0.637 nats, and the surprises are 0.405 and 1.099.
    let all = options().top_k(4).top_p(0.9).min_p(0.3);
    assert_drawn_by(&all, &h, &shares([2.0, 1.0, 0.0, 0.0, 0.0]));
    let typical = all.clone().typical_p(0.5);
    assert_drawn_by(&typical, &h, &[1.0, 0.0, 0.0, 0.0, 0.0]);
    // Surprises are 0.585 and 1.585 bits of these two; of all of them token 1 has 2 bits.
    let mirostat = all.clone().mirostat_tau(0.9).mirostat_eta(0.0);
    assert_drawn_by(&mirostat, &h, &shares([2.0, 1.0, 0.0, 0.0, 0.0]));
    let alone = options().mirostat_tau(0.9).mirostat_eta(0.0);
    assert_drawn_by(&alone, &h, &[1.0, 0.0, 0.0, 0.0, 0.0]);
    // Below the surprise of the best there is the best.
    let least = options().mirostat_tau(0.1).mirostat_eta(0.0);
    assert_drawn_by(&least, &h, &[1.0, 0.0, 0.0, 0.0, 0.0]);
    let hot = all.temperature(2.0).temperature_last(true);
    assert_drawn_by(&hot, &h, &shares([root, 1.0, 0.0, 0.0, 0.0]));
}

#[test]
fn banned_tokens_never_come() {
    let logits = Noise { state: 2 }.row(40, 2.0);
    let mut order: Vec<u32> = (0..40).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
    let ways = [
        SamplerOptions::new(),
        SamplerOptions::new().presence_penalty(0.1),
        options(),
        options().temperature(5.0),
        options().top_k(40).top_p(0.99),
        options().typical_p(0.9),
        options().min_p(0.01).temperature_last(true),
        options().mirostat_tau(9.0),
    ];
    for way in ways {
        for n_banned in [1, 2, 39] {
            let banned = &order[..n_banned];
            let way = way.clone().banned_tokens(banned);
            let counts = drawn(&mut sampler(&way, 40), &logits, 500);
            let n = banned.iter().map(|&id| counts[id as usize]).sum::<u32>();
            assert_eq!(n, 0, "{way:?}");
            if way.temperature <= 0.0 || n_banned == 39 {
                assert_eq!(counts[order[n_banned] as usize], 500, "{way:?}");
            }
        }
        // Not even where there is nothing else to choose by.
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for (row, expected) in [
            ([nan, nan, nan], 1),
            ([1.0, -inf, -inf], 1),
            ([inf, nan, -inf], 2),
            ([inf, nan, 1.0], 2),
            ([3.0, nan, nan], 1),
        ] {
            let way = way.clone().top_k(0).banned_tokens([0]);
            assert_eq!(sampler(&way, 3).sample(&row), expected, "{way:?}, {row:?}");
        }
    }
}

/// The loop of `PIPELINE.generate` of the `rwkv` package (0.8.32), line by line, with the likeliest token for its draw.
/// `uncounted` are those whose text is in ' \t0123456789'.
fn chat_rwkv(
    rows: &[Vec<f32>],
    [presence, frequency, decay]: [f64; 3],
    ban: u32,
    uncounted: &[u32],
) -> Vec<u32> {
    let mut occurrence: BTreeMap<u32, f64> = BTreeMap::new();
    let mut all_tokens = Vec::new();
    for row in rows {
        let mut out: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
        out[ban as usize] = f64::NEG_INFINITY;
        for (&n, count) in &occurrence {
            out[n as usize] -= presence + count * frequency;
        }
        let mut token = 0;
        for (id, &x) in out.iter().enumerate() {
            if x > out[token] {
                token = id;
            }
        }
        let token = token as u32;
        all_tokens.push(token);
        for count in occurrence.values_mut() {
            *count *= decay;
        }
        let www = if uncounted.contains(&token) { 0.0 } else { 1.0 };
        *occurrence.entry(token).or_insert(0.0) += www;
    }
    all_tokens
}

#[test]
fn penalties_decay_as_in_chat_rwkv() {
    let mut noise = Noise { state: 3 };
    let rows: Vec<_> = (0..1500).map(|_| noise.row(30, 3.0)).collect();
    let mut different = Vec::new();
    let mut with_uncounted = Vec::new();
    for (presence, frequency, decay) in [
        (0.2_f32, 0.2_f32, 0.996_f32),
        (0.5, 0.5, 0.996),
        (1.0, 0.7, 0.9),
        (0.0, 0.4, 0.5),
        (0.7, 0.3, 0.0),
        (0.2, 0.2, 1.0),
    ] {
        let options = SamplerOptions::new()
            .presence_penalty(presence)
            .frequency_penalty(frequency)
            .penalty_decay(decay)
            .banned_tokens([5]);
        let penalties = [presence, frequency, decay].map(f64::from);
        for (uncounted, all) in [
            (&[][..], &mut different),
            (&[2, 11, 29], &mut with_uncounted),
        ] {
            let options = options.clone().uncounted_tokens(uncounted);
            let mut sampler = sampler(&options, 30);
            let tokens: Vec<u32> = rows
                .iter()
                .map(|row| {
                    let token = sampler.sample(row);
                    sampler.accept(token);
                    token
                })
                .collect();
            let expected = chat_rwkv(&rows, penalties, 5, uncounted);
            assert!(tokens == expected, "{options:?}");
            all.push(tokens);
        }
    }
    different.dedup();
    assert_eq!(different.len(), 6, "the settings matter");
    for (with, without) in with_uncounted.iter().zip(&different) {
        assert!(with != without, "what is not counted matters");
    }
}

/// What is left of the logit of token 0, by how high another must be to win.
fn left_of(sampler: &mut Sampler, logit: f32) -> f32 {
    let (mut low, mut high) = (-100.0f32, 100.0f32);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        match sampler.sample(&[logit, middle, -1e9]) {
            1 => high = middle,
            _ => low = middle,
        }
    }
    high
}

#[test]
fn counts_decay_and_presence_stays() {
    let options = SamplerOptions::new()
        .presence_penalty(0.5)
        .frequency_penalty(1.0)
        .penalty_decay(0.5);
    let mut sampler = sampler(&options, 3);
    let near = |found: f32, expected: f32| {
        assert!(
            (found - expected).abs() < 1e-5,
            "{found}, expected {expected}"
        );
    };
    near(left_of(&mut sampler, 4.0), 4.0);
    sampler.accept(0);
    near(left_of(&mut sampler, 4.0), 4.0 - 0.5 - 1.0);
    // 1 * 0.5 + 1, then half of it for each token of another kind.
    sampler.accept(0);
    near(left_of(&mut sampler, 4.0), 4.0 - 0.5 - 1.5);
    sampler.accept(2);
    near(left_of(&mut sampler, 4.0), 4.0 - 0.5 - 0.75);
    // No token: no decay.
    sampler.accept(3);
    near(left_of(&mut sampler, 4.0), 4.0 - 0.5 - 0.75);
    for _ in 0..2000 {
        sampler.accept(2);
    }
    near(left_of(&mut sampler, 4.0), 4.0 - 0.5);
    sampler.reset();
    near(left_of(&mut sampler, 4.0), 4.0);
}

#[test]
fn wrong_options_are_refused_by_name() {
    let base = SamplerOptions::default;
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let mut cases = Vec::new();
    for share in [nan, inf, -inf, -0.1, 1.001] {
        cases.push(("min_p", base().min_p(share)));
        cases.push(("typical_p", base().typical_p(share)));
        cases.push(("penalty_decay", base().penalty_decay(share)));
    }
    for number in [nan, inf, -inf, -0.1] {
        cases.push(("mirostat_tau", base().mirostat_tau(number)));
        cases.push(("mirostat_eta", base().mirostat_eta(number)));
    }
    cases.push(("banned_tokens: 10, expected", base().banned_tokens([1, 10])));
    let all: Vec<u32> = (0..10).rev().collect();
    cases.push(("banned_tokens: all 10, expected", base().banned_tokens(all)));
    let not_there = base().uncounted_tokens([10]);
    cases.push(("uncounted_tokens: 10, expected", not_there));
    for (words, options) in cases {
        let error = Sampler::new(options.clone(), 10).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Argument);
        assert!(error.to_string().starts_with(words), "{error}");
        let mut good = sampler(&base(), 10);
        assert!(good.set_options(options).is_err());
        assert_eq!(good.options(), &base());
    }
    assert_eq!(base().mirostat_tau(0.0).mirostat_tau, None);
    // Twice the same is no more than once.
    sampler(&base().banned_tokens([0; 20]), 10);
}

/// A change of the random stream, of `exp` or `log2` or of the order of sums would be noticed.
#[test]
fn sequences_for_a_seed_are_pinned() {
    let pip = options()
        .temperature_last(true)
        .top_p(0.85)
        .presence_penalty(0.2)
        .frequency_penalty(0.2)
        .penalty_decay(0.996);
    let cases = [
        (pip.temperature(1.4), PINNED_PIP),
        (options().temperature(1.5).typical_p(0.9), PINNED_TYPICAL),
        (options().mirostat_tau(3.0), PINNED_MIROSTAT),
        (options().temperature(2.0).min_p(0.05), PINNED_MIN),
    ];
    let logits = Noise { state: 1 }.row(1000, 8.0);
    let mut failures = Vec::new();
    for (options, expected) in cases {
        let mut sampler = sampler(&options, 1000);
        let tokens: Vec<u32> = (0..10)
            .map(|_| {
                let token = sampler.sample(&logits);
                sampler.accept(token);
                token
            })
            .collect();
        if tokens != expected {
            failures.push(format!("{tokens:?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

const PINNED_PIP: [u32; 10] = [210, 493, 484, 370, 753, 592, 250, 866, 91, 532];
const PINNED_TYPICAL: [u32; 10] = [768, 863, 614, 779, 644, 743, 15, 459, 463, 842];
const PINNED_MIROSTAT: [u32; 10] = [839, 839, 413, 533, 369, 357, 369, 759, 759, 357];
const PINNED_MIN: [u32; 10] = [661, 939, 430, 606, 313, 148, 336, 816, 761, 264];
