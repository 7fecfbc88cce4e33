//! The sampler, black box. Distributions are compared by chi-square at fixed seeds, so that a test
//! passes or fails for good; penalties with numbers worked out by hand; and some drawn sequences are
//! pinned, so that a change of the random stream, of `exp` or of the order of sums is noticed.

#![allow(clippy::unwrap_used)]

use rwkv_edge::{ErrorKind, Sampler, SamplerOptions};

fn options(temperature: f32) -> SamplerOptions {
    SamplerOptions::new().temperature(temperature).seed(42)
}

fn sampler(options: SamplerOptions, n_vocab: usize) -> Sampler {
    Sampler::new(options, n_vocab).unwrap()
}

/// Logits without a pattern, from -8 to 8, that every platform computes alike.
fn noise(n_vocab: usize, seed: u32) -> Vec<f32> {
    let mut x = seed;
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 8) as f32 / (1 << 20) as f32 - 8.0
    };
    (0..n_vocab).map(|_| next()).collect()
}

/// What the documentation says, in f64 and by sorting everything: the probability of each token.
fn specification(options: &SamplerOptions, logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let temperature = f64::from(options.temperature);
    let mut weights: Vec<(f64, usize)> = logits
        .iter()
        .enumerate()
        .map(|(id, &x)| ((f64::from(x - max) / temperature).exp(), id))
        .collect();
    weights.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    if let Some(top_k) = options.top_k {
        weights.truncate(top_k.get());
    }
    let total: f64 = weights.iter().map(|w| w.0).sum();
    let mut sum = 0.0;
    let mut kept = weights.clone();
    for (index, weight) in weights.iter().enumerate() {
        sum += weight.0 / total;
        if sum >= f64::from(options.top_p) {
            kept.truncate(index + 1);
            break;
        }
    }
    let total: f64 = kept.iter().map(|w| w.0).sum();
    let mut probabilities = vec![0.0; logits.len()];
    for (weight, id) in kept {
        probabilities[id] = weight / total;
    }
    probabilities
}

/// Chi-square of `n_draws` draws against the probabilities; infinite when an impossible token comes.
/// Tokens that are expected fewer than 5 times are counted as one.
fn chi_square(sampler: &mut Sampler, logits: &[f32], expected: &[f64], n_draws: u32) -> (f64, f64) {
    let mut counts = vec![0u32; logits.len()];
    for _ in 0..n_draws {
        counts[sampler.sample(logits) as usize] += 1;
    }
    let (mut chi2, mut n_cells) = (0.0, 0.0);
    let (mut rare_count, mut rare_expected) = (0.0, 0.0);
    for (&count, &p) in counts.iter().zip(expected) {
        let expected = p * f64::from(n_draws);
        if p == 0.0 && count > 0 {
            return (f64::INFINITY, 1.0);
        } else if expected < 5.0 {
            rare_count += f64::from(count);
            rare_expected += expected;
        } else {
            chi2 += (f64::from(count) - expected).powi(2) / expected;
            n_cells += 1.0;
        }
    }
    if rare_expected > 1.0 {
        chi2 += (rare_count - rare_expected).powi(2) / rare_expected;
        n_cells += 1.0;
    }
    // Mean of chi-square plus 4 standard deviations: about 1 seed in 10,000 exceeds it.
    let freedom: f64 = f64::max(n_cells - 1.0, 1.0);
    (chi2, freedom + 4.0 * (2.0 * freedom).sqrt())
}

#[test]
fn draws_follow_the_documented_distribution() {
    let cases = [
        (1.0, 1.0, 0),
        (0.5, 1.0, 0),
        (3.0, 1.0, 0),
        (1.0, 0.9, 0),
        (1.0, 0.3, 0),
        (2.5, 0.95, 0),
        (1.0, 1.0, 5),
        (4.0, 1.0, 40),
        (4.0, 0.8, 40),
        (4.0, 0.2, 7),
        (1.0, 0.999, 63),
        (1.0, 0.9, 1000),
        (1.0, 0.0, 0),
    ];
    let mut failures = Vec::new();
    for (index, &(temperature, top_p, top_k)) in cases.iter().enumerate() {
        let options = SamplerOptions::new()
            .temperature(temperature)
            .top_p(top_p)
            .top_k(top_k)
            .seed(index as u64);
        let logits = noise(64, 5 + index as u32);
        let expected = specification(&options, &logits);
        let mut sampler = sampler(options.clone(), 64);
        let (chi2, limit) = chi_square(&mut sampler, &logits, &expected, 50_000);
        if chi2 > limit {
            failures.push(format!("{options:?}: chi-square {chi2}, limit {limit}"));
        }
        // The same test notices a temperature that is 5 % off, unless only one token is left.
        let other = options.clone().temperature(temperature * 1.05);
        let wrong = specification(&other, &logits);
        let n_left = expected.iter().filter(|&&p| p > 0.01).count();
        let (chi2, limit) = chi_square(&mut sampler, &logits, &wrong, 200_000);
        if n_left > 2 && chi2 < limit {
            failures.push(format!("{other:?}: not noticed, {chi2} of {limit}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_large_vocabulary_keeps_exactly_the_documented_tokens() {
    // An emulator takes a minute for all of them.
    let is_emulated = std::env::var_os("RWKV_EDGE_EMULATED").is_some();
    let n_draws = if is_emulated { 300 } else { 3_000 };
    // Flat enough that thousands of tokens stay: every one that is drawn must be among them.
    for (top_p, top_k) in [(0.5, 0), (0.9, 0), (0.9, 3000), (1.0, 500)] {
        let options = SamplerOptions::new()
            .temperature(2.0)
            .top_p(top_p)
            .top_k(top_k);
        let logits = noise(50_277, 9);
        let expected = specification(&options, &logits);
        let mut sampler = sampler(options, logits.len());
        for _ in 0..n_draws {
            let token = sampler.sample(&logits) as usize;
            assert!(expected[token] > 0.0, "{token} with {top_p}, {top_k}");
        }
    }
}

#[test]
fn sequences_for_a_seed_are_pinned() {
    let logits = noise(1000, 1);
    let cut = options(1.5).top_p(0.9).top_k(50);
    let nucleus = options(1.5).top_p(0.7);
    let penalised = options(0.7)
        .frequency_penalty(0.5)
        .repetition_penalty(1.2)
        .seed(u64::MAX);
    let cases: [(SamplerOptions, [u32; 10]); 4] = [
        (options(1.5), PINNED_PLAIN),
        (cut, PINNED_CUT),
        (nucleus, PINNED_NUCLEUS),
        (penalised, PINNED_PENALISED),
    ];
    for (options, expected) in cases {
        let mut sampler = sampler(options.clone(), logits.len());
        for round in 0..2 {
            let tokens: Vec<u32> = (0..10)
                .map(|_| {
                    let token = sampler.sample(&logits);
                    sampler.accept(token);
                    token
                })
                .collect();
            assert_eq!(tokens, expected, "round {round}: {options:?}");
            sampler.reset();
        }
    }
}

const PINNED_PLAIN: [u32; 10] = [661, 939, 430, 613, 317, 140, 347, 812, 759, 262];
const PINNED_CUT: [u32; 10] = [644, 639, 422, 33, 592, 445, 358, 284, 818, 931];
const PINNED_NUCLEUS: [u32; 10] = [489, 90, 484, 939, 753, 592, 180, 779, 559, 532];
const PINNED_PENALISED: [u32; 10] = [661, 426, 401, 430, 644, 820, 252, 966, 358, 954];

#[test]
fn greedy_takes_the_highest_and_the_first_of_equals() {
    let inf = f32::INFINITY;
    let nan = f32::NAN;
    let cases: [(&[f32], u32); 11] = [
        (&[0.0, 1.0, 2.0], 2),
        (&[3.0, 1.0, 3.0], 0),
        (&[0.0, 0.0, 0.0], 0),
        (&[-0.0, 0.0], 0),
        (&[nan, -5.0, nan, -4.0], 3),
        (&[1.0, nan], 0),
        (&[nan, nan], 0),
        (&[nan, -inf], 1),
        (&[-inf, -1e30, -inf], 1),
        (&[1e30, inf, inf], 1),
        (&[-7.0], 0),
    ];
    // Penalties take another way through the sampler; uncounted, they change nothing.
    let penalised = SamplerOptions::new().presence_penalty(1.0);
    for options in [options(0.0), options(-1.0), penalised] {
        for (logits, expected) in cases {
            let mut sampler = sampler(options.clone(), logits.len());
            assert_eq!(sampler.sample(logits), expected, "{options:?} {logits:?}");
        }
    }
}

#[test]
fn extreme_logits() {
    let inf = f32::INFINITY;
    let nan = f32::NAN;
    // (logits, the tokens that may be drawn; each of them must be)
    let cases: [(&[f32], &[u32]); 10] = [
        (&[1e30, -1e30, 0.0], &[0]),
        (&[-1e30, -1e30, -2e30], &[0, 1]),
        (&[f32::MAX, f32::MIN], &[0]),
        (&[0.0, 0.0, 0.0], &[0, 1, 2]),
        (&[-inf, 1.0, -inf], &[1]),
        (&[inf, 1.0, inf], &[0, 2]),
        (&[nan, 1.0, 1.0], &[1, 2]),
        (&[nan, -inf], &[1]),
        (&[nan, nan], &[0]),
        (&[-inf, -inf], &[0]),
    ];
    for (logits, allowed) in cases {
        for temperature in [1e-30, 1.0] {
            for (top_p, top_k) in [(1.0, 0), (0.999, 0), (1.0, 3), (0.999, 3)] {
                let options = options(temperature).top_p(top_p).top_k(top_k);
                let mut sampler = sampler(options.clone(), logits.len());
                let mut drawn: Vec<u32> = (0..200).map(|_| sampler.sample(logits)).collect();
                drawn.sort_unstable();
                drawn.dedup();
                assert_eq!(drawn, allowed, "{logits:?} {options:?}");
            }
        }
    }
}

#[test]
fn cuts_that_leave_one_token_are_greedy() {
    let logits = noise(500, 3);
    let best = sampler(options(0.0), 500).sample(&logits);
    for (top_p, top_k) in [(1.0, 1), (0.0, 0), (1e-6, 0), (0.5, 1)] {
        let options = options(5.0).top_p(top_p).top_k(top_k);
        let mut sampler = sampler(options, 500);
        assert!((0..500).all(|_| sampler.sample(&logits) == best));
    }
    // Also where exp cannot tell the two best apart any more.
    let close = [1.0, 1.000_000_1, 0.0];
    let options = options(8.0).top_k(1);
    assert_eq!(sampler(options, 3).sample(&close), 1);
}

#[test]
fn equal_tokens_are_cut_by_id() {
    let logits = [1.0, 2.0, 1.0, 1.0, 1.0];
    // e / (e + 4) = 0.405 for token 1 and 0.149 for each of the others.
    for (top_p, top_k, last) in [(1.0, 3, 2), (0.6, 0, 2), (0.5, 0, 0), (0.71, 0, 3)] {
        let options = options(1.0).top_p(top_p).top_k(top_k);
        let mut sampler = sampler(options, 5);
        let drawn = (0..500).map(|_| sampler.sample(&logits));
        let highest = drawn.filter(|&token| token != 1).max();
        assert_eq!(highest, Some(last), "{top_p}, {top_k}");
    }
}

/// The lowest logit with which token 1 still beats token 0: what is left of token 0's logit.
fn penalised_logit(options: &SamplerOptions, logit: f32, n_generated: usize) -> f32 {
    let mut sampler = sampler(options.clone(), 2);
    for _ in 0..n_generated {
        sampler.accept(0);
    }
    let (mut low, mut high) = (-100.0f32, 100.0f32);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if sampler.sample(&[logit, middle]) == 1 {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

#[test]
fn penalties_by_hand() {
    // (presence, frequency, repetition, logit, times generated, expected)
    let cases = [
        (0.0, 0.0, 1.0, 3.0, 5, 3.0),
        (0.5, 0.0, 1.0, 3.0, 0, 3.0),
        (0.5, 0.0, 1.0, 3.0, 1, 2.5),
        (0.5, 0.0, 1.0, 3.0, 4, 2.5),
        (0.0, 0.25, 1.0, 3.0, 1, 2.75),
        (0.0, 0.25, 1.0, 3.0, 4, 2.0),
        (0.0, 0.0, 2.0, 3.0, 4, 1.5),
        (0.0, 0.0, 2.0, -3.0, 1, -6.0),
        (0.0, 0.0, 0.5, 3.0, 1, 6.0),
        (0.5, 0.25, 2.0, 3.0, 4, 0.0),
        (-1.0, -0.5, 1.0, 3.0, 2, 5.0),
    ];
    for (presence, frequency, repetition, logit, n_generated, expected) in cases {
        let options = SamplerOptions::new()
            .presence_penalty(presence)
            .frequency_penalty(frequency)
            .repetition_penalty(repetition);
        let found = penalised_logit(&options, logit, n_generated);
        assert!(
            (found - expected).abs() < 1e-5,
            "{options:?}, logit {logit}, {n_generated} times: {found}, expected {expected}"
        );
    }
}

#[test]
fn penalties_act_before_the_softmax_and_reset_forgets_them() {
    let penalised = options(0.8).frequency_penalty(0.5);
    let logits = noise(16, 8);
    let mut sampler = sampler(penalised.clone(), 16);
    let mut shifted = logits.clone();
    for token in [2, 2, 7] {
        sampler.accept(token);
        shifted[token as usize] -= 0.5;
    }
    sampler.accept(16); // no token: ignored
    sampler.accept(u32::MAX);
    let expected = specification(&penalised, &shifted);
    let (chi2, limit) = chi_square(&mut sampler, &logits, &expected, 50_000);
    assert!(chi2 < limit, "{chi2}, limit {limit}");
    sampler.reset();
    let expected = specification(&penalised, &logits);
    let (chi2, limit) = chi_square(&mut sampler, &logits, &expected, 50_000);
    assert!(chi2 < limit, "after reset: {chi2}, limit {limit}");
}

#[test]
fn options_out_of_range_are_refused_by_name() {
    let base = SamplerOptions::default;
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let mut cases = Vec::new();
    for temperature in [nan, inf, -inf] {
        let options = base().temperature(temperature);
        cases.push(("temperature", options));
    }
    for top_p in [nan, -0.1, 1.001, inf] {
        cases.push(("top_p", base().top_p(top_p)));
    }
    for value in [nan, inf, -inf] {
        let presence = base().presence_penalty(value);
        let frequency = base().frequency_penalty(value);
        cases.extend([
            ("presence_penalty", presence),
            ("frequency_penalty", frequency),
        ]);
    }
    for repetition_penalty in [nan, inf, 0.0, -1.0] {
        let options = base().repetition_penalty(repetition_penalty);
        cases.push(("repetition_penalty", options));
    }
    for (name, options) in cases {
        let error = Sampler::new(options, 10).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Argument);
        assert!(error.to_string().starts_with(name), "{error}");
    }
    let error = Sampler::new(base(), 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Argument);
}

#[test]
#[should_panic(expected = "logits must be one row")]
fn a_row_of_another_length_is_the_callers_mistake() {
    sampler(options(0.0), 3).sample(&[0.0; 4]);
}

/// A sampler that has all its room and is given other options chooses as a new one with these options.
#[test]
fn options_may_change() {
    let logits = noise(500, 11);
    let mut changed = Sampler::new(SamplerOptions::default(), 500).expect("valid options");
    changed.reserve().unwrap();
    for i in 0..64_u64 {
        let options = SamplerOptions::new()
            .temperature(if i % 4 == 0 { 0.0 } else { 0.9 })
            .top_p(if i % 3 == 0 { 1.0 } else { 0.8 })
            .top_k(if i % 5 == 0 { 0 } else { 40 })
            .presence_penalty(if i % 2 == 0 { 0.0 } else { 0.5 })
            .frequency_penalty(if i % 7 == 0 { 0.0 } else { 0.1 })
            .seed(i);
        let mut new = Sampler::new(options.clone(), 500).expect("valid options");
        changed.set_options(options).expect("valid options");
        changed.reset();
        for _ in 0..20 {
            let token = new.sample(&logits);
            assert_eq!(changed.sample(&logits), token, "{:?}", changed.options());
            new.accept(token);
            changed.accept(token);
        }
    }
    let bad = SamplerOptions::new().top_p(2.0);
    let before = changed.options().clone();
    assert!(changed.set_options(bad).is_err());
    assert_eq!(changed.options(), &before);
}
