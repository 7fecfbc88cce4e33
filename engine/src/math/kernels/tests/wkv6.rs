//! The kernels of RWKV-5 and 6 of every set: the scalar twin's bits, and the formulas in f64.

use super::*;

/// What a head of so many channels is made of, and tokens for it.
struct Made {
    n: usize,
    vectors: Vec<f32>,
    decays: Vec<f32>,
    /// RWKV-5.0 has no gate.
    has_gate: bool,
}

const N_TOKENS: usize = 5;

impl Made {
    fn new(n: usize, has_gate: bool) -> Self {
        let mut random = Random::new(n + 6000);
        let decays = random.floats(N_TOKENS * n);
        Made {
            n,
            vectors: random.floats((3 + 4 * N_TOKENS) * n),
            decays: decays.iter().map(|x| 0.5 + 0.49 * x.sin()).collect(),
            has_gate,
        }
    }

    fn vector(&self, index: usize) -> &[f32] {
        &self.vectors[index * self.n..][..self.n]
    }

    fn head(&self) -> Wkv6Head<'_> {
        Wkv6Head {
            bonus: self.vector(0),
            norm_weight: self.vector(1),
            norm_bias: self.vector(2),
            norm_epsilon: 64e-5,
        }
    }

    fn token(&self, index: usize) -> Wkv6Token<'_> {
        let first = 3 + 4 * index;
        Wkv6Token {
            receptance: self.vector(first),
            key: self.vector(first + 1),
            value: self.vector(first + 2),
            decay: &self.decays[index * self.n..][..self.n],
            gate: self.has_gate.then(|| self.vector(first + 3)),
        }
    }

    /// Outputs of all tokens, and the state behind them.
    fn run(&self, set: KernelSet) -> (Vec<f32>, Vec<f32>) {
        let mut state = vec![0.0; self.n * self.n];
        let mut outputs = vec![9.0; N_TOKENS * self.n];
        for (index, out) in outputs.chunks_exact_mut(self.n).enumerate() {
            set.wkv6_step(self.head(), self.token(index), &mut state, out);
        }
        (outputs, state)
    }

    /// The same by the formulas of the paper on RWKV-5 and 6, section 4.
    fn expected(&self) -> (Vec<f64>, Vec<f64>) {
        let n = self.n;
        let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| x.into()).collect() };
        let head = self.head();
        let bonus = wide(head.bonus);
        let (weight, bias) = (wide(head.norm_weight), wide(head.norm_bias));
        let (mut outputs, mut state) = (Vec::new(), vec![0.0; n * n]);
        for index in 0..N_TOKENS {
            let token = self.token(index);
            let (r, k, v) = (wide(token.receptance), wide(token.key), wide(token.value));
            let (w, g) = (wide(token.decay), token.gate.map(wide));
            let mut o = vec![0.0; n];
            for i in 0..n {
                for j in 0..n {
                    let held = &mut state[i * n + j];
                    o[j] += r[i] * (bonus[i] * k[i] * v[j] + *held);
                    *held = w[i] * *held + k[i] * v[j];
                }
            }
            let mean = o.iter().sum::<f64>() / n as f64;
            let variance = o.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
            outputs.extend((0..n).map(|j| {
                let normed = (o[j] - mean) / (variance + 64e-5).sqrt() * weight[j] + bias[j];
                normed * g.as_ref().map_or(1.0, |g| g[j] / (1.0 + (-g[j]).exp()))
            }));
        }
        (outputs, state)
    }
}

#[test]
fn heads_have_the_same_bits_on_every_set() {
    let sizes = (1..=20).chain([31, 32, 63, 64, 65, 72, 128, 130]);
    for (n, has_gate) in sizes.flat_map(|n| [(n, true), (n, false)]) {
        let made = Made::new(n, has_gate);
        let (outputs, state) = made.run(KernelSet::Scalar);
        for set in KernelSet::available() {
            let found = made.run(set);
            let what = format!("{n} channels, {}, gate {has_gate}", set.name());
            assert_same_bits(&outputs, &found.0, &what);
            assert_same_bits(&state, &found.1, &what);
        }
    }
}

#[test]
fn heads_follow_the_formulas() {
    let distance = |found: &[f32], expected: &[f64]| {
        let pairs = found.iter().zip(expected);
        let difference: f64 = pairs.map(|(&a, b)| (f64::from(a) - b).powi(2)).sum();
        (difference / expected.iter().map(|b| b * b).sum::<f64>()).sqrt()
    };
    let sizes = [2, 7, 8, 32, 64, 72];
    for (n, has_gate) in sizes.into_iter().flat_map(|n| [(n, true), (n, false)]) {
        let made = Made::new(n, has_gate);
        let (outputs, state) = made.run(KernelSet::Scalar);
        let expected = made.expected();
        // Norms of two channels lose digits where both are nearly the same.
        let bound = if n < 8 { 1e-4 } else { 1e-5 };
        assert!(distance(&outputs, &expected.0) < bound, "{n}");
        assert!(distance(&state, &expected.1) < 1e-6, "{n}");
    }
}

#[test]
fn decays_and_shares_have_the_same_bits_on_every_set() {
    for set in KernelSet::available() {
        for n in SIZES {
            let mut random = Random::new(n + 7000);
            let [base, part, x, y] = [(); 4].map(|()| random.floats(n));
            let what = |op: &str| format!("{op}, n = {n}, {}", set.name());
            let mut out = vec![9.0; n];
            set.lerp_by_sum(&x, &y, &base, &part, &mut out);
            let sum = |i: usize| x[i] + (y[i] - x[i]) * (base[i] + part[i]);
            let expected: Vec<f32> = (0..n).map(sum).collect();
            assert_same_bits(&expected, &out, &what("lerp_by_sum"));
            let mut expected = vec![9.0; n];
            KernelSet::Scalar.decay_of(&base, &part, &mut expected);
            set.decay_of(&base, &part, &mut out);
            assert_same_bits(&expected, &out, &what("decay_of"));
            for i in 0..n {
                let exact = (-(f64::from(base[i]) + f64::from(part[i])).exp()).exp();
                assert!(
                    (f64::from(out[i]) - exact).abs() < 1e-6,
                    "{}",
                    what("decay_of")
                );
            }
        }
    }
    // A decay of all and of nothing, and what is no number.
    for (sum, expected) in [(200.0, 0.0), (f32::INFINITY, 0.0), (-200.0, 1.0)] {
        let mut out = [9.0];
        KernelSet::Scalar.decay_of(&[sum], &[0.0], &mut out);
        assert_eq!(out, [expected], "{sum}");
    }
    let mut out = [9.0];
    KernelSet::Scalar.decay_of(&[f32::NAN], &[0.0], &mut out);
    assert!(out[0].is_nan());
}
