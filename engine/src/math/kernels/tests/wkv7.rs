//! The kernels of RWKV-7 of every set: the scalar twin's bits, the formulas of the paper in f64, and what is not
//! finite.

use super::*;

/// What a kernel's sets have in common, in f64.
fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[test]
fn elementwise_operations_have_the_same_bits_on_every_set() {
    let mix_of = |present: f32, previous: f32, mix: f32| present + (previous - present) * mix;
    for set in KernelSet::available() {
        for n in SIZES {
            let mut random = Random::new(n + 3000);
            let (x, y, z) = (random.floats(n), random.floats(n), random.floats(n));
            let what = |op: &str| format!("{op}, n = {n}, {}", set.name());
            let mut out = vec![9.0; n];
            set.lerp(&x, &y, &z, &mut out);
            let expected: Vec<f32> = (0..n).map(|i| mix_of(x[i], y[i], z[i])).collect();
            assert_same_bits(&expected, &out, &what("lerp"));
            let (mut a, mut b) = (x.clone(), x.clone());
            KernelSet::Scalar.tanh_of(&mut a);
            set.tanh_of(&mut b);
            assert_same_bits(&a, &b, &what("tanh_of"));
            let close =
                |(&x, &found): (&f32, &f32)| (f64::from(found) - f64::from(x).tanh()).abs() < 1e-6;
            assert!(x.iter().zip(&b).all(close), "{}", what("tanh_of"));
            let (mut a, mut b) = (x.clone(), x.clone());
            KernelSet::Scalar.sigmoid_of(&mut a);
            set.sigmoid_of(&mut b);
            assert_same_bits(&a, &b, &what("sigmoid_of"));
            let close =
                |(&x, &found): (&f32, &f32)| (f64::from(found) - sigmoid(x.into())).abs() < 1e-6;
            assert!(x.iter().zip(&b).all(close), "{}", what("sigmoid_of"));
        }
    }
}

/// A product with some columns of a small matrix, and what it must be: one input after the other, nothing fused.
fn check_low_rank(set: KernelSet, n_rows: usize, n_inputs: usize, columns: Columns) {
    let mut random = Random::new(n_rows * 100_000 + n_inputs * 100 + columns.n);
    let halves = random.halves(n_inputs * columns.stride);
    let wide: Vec<f32> = halves.iter().map(|half| half.to_f32()).collect();
    let stride = n_inputs + n_rows % 3;
    let values = random.floats(n_rows * stride);
    let x = Rows {
        values: &values,
        stride,
        n: n_rows,
    };
    let mut expected = vec![0.0; n_rows * columns.n];
    for (row, expected) in expected.chunks_exact_mut(columns.n).enumerate() {
        for (input, weights) in wide.chunks_exact(columns.stride).enumerate() {
            for (sum, weight) in expected.iter_mut().zip(&weights[columns.first..]) {
                *sum += values[row * stride + input] * weight;
            }
        }
    }
    let what = format!("{n_rows} rows of {n_inputs}, {columns:?}, {}", set.name());
    let [mut floats, mut narrow] = [(); 2].map(|()| vec![9.0; n_rows * columns.n]);
    set.low_rank_f32(&wide, columns, x, &mut floats);
    assert_same_bits(&expected, &floats, &what);
    set.low_rank_f16(&halves, columns, x, &mut narrow);
    assert_same_bits(&expected, &narrow, &format!("f16, {what}"));
}

#[test]
fn low_rank_products_have_the_same_bits_on_every_set() {
    let inputs = [1, 2, 7, 8, 9, 33, 64, 130];
    for set in KernelSet::available() {
        for n_rows in 1..=9 {
            for n in 1..=70 {
                let first = (n * 7 + n_rows) % 5;
                let columns = Columns {
                    stride: first + n + n % 3,
                    first,
                    n,
                };
                check_low_rank(set, n_rows, inputs[(n_rows + n) % inputs.len()], columns);
            }
        }
        for n_inputs in 1..=130 {
            for (n_rows, first, n) in [(1, 0, 9), (5, 3, 17)] {
                let columns = Columns {
                    stride: 21,
                    first,
                    n,
                };
                check_low_rank(set, n_rows, n_inputs, columns);
            }
        }
    }
}

/// A bad number shows in the outputs that meet it, and in no others.
#[test]
fn low_rank_products_keep_what_is_not_finite() {
    let (n_inputs, columns) = (
        5,
        Columns {
            stride: 40,
            first: 2,
            n: 35,
        },
    );
    for set in KernelSet::available() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in 0..columns.stride {
                let mut weights = vec![0.5; n_inputs * columns.stride];
                weights[3 * columns.stride + at] = bad;
                let halves: Vec<f16> = weights.iter().map(|&x| f16::from_f32(x)).collect();
                // An input of 0 hides nothing.
                let values = vec![0.0; 6 * n_inputs];
                let x = Rows {
                    values: &values,
                    stride: n_inputs,
                    n: 6,
                };
                let [mut floats, mut narrow] = [(); 2].map(|()| vec![9.0; 6 * columns.n]);
                set.low_rank_f32(&weights, columns, x, &mut floats);
                set.low_rank_f16(&halves, columns, x, &mut narrow);
                for out in [floats, narrow] {
                    for (index, value) in out.iter().enumerate() {
                        let meets = index % columns.n + columns.first == at;
                        assert_eq!(value.is_finite(), !meets, "{} {bad} at {at}", set.name());
                    }
                }
            }
            let (weights, mut values) = (
                vec![0.0; n_inputs * columns.stride],
                vec![0.5; 6 * n_inputs],
            );
            values[4 * n_inputs + 1] = bad;
            let x = Rows {
                values: &values,
                stride: n_inputs,
                n: 6,
            };
            let mut out = vec![9.0; 6 * columns.n];
            set.low_rank_f32(&weights, columns, x, &mut out);
            for (row, out) in out.chunks_exact(columns.n).enumerate() {
                assert!(
                    out.iter().all(|x| x.is_finite() != (row == 4)),
                    "{} {bad}",
                    set.name()
                );
            }
        }
    }
}

#[test]
fn sizes_of_low_rank_products_that_wrap_are_refused() {
    let (wide, half, values) = ([1.0_f32; 16], [f16::ONE; 16], [1.0_f32; 16]);
    for set in KernelSet::available() {
        let check = |columns: Columns, stride: usize, n: usize, n_out: usize| {
            let x = || Rows {
                values: &values[..],
                stride,
                n,
            };
            let out = &mut vec![0.0; n_out];
            let floats = refusal(|| set.low_rank_f32(&wide, columns, x(), out));
            let narrow = refusal(|| set.low_rank_f16(&half, columns, x(), out));
            for text in [floats, narrow] {
                assert!(text.starts_with("assertion"), "{}: {text}", set.name());
            }
        };
        let whole = Columns {
            stride: 4,
            first: 0,
            n: 4,
        };
        let first = usize::MAX;
        check(Columns { first, ..whole }, 4, 1, 4);
        check(
            Columns {
                first,
                n: 2,
                ..whole
            },
            4,
            1,
            2,
        );
        check(Columns { first: 1, ..whole }, 4, 1, 4);
        check(Columns { stride: 0, ..whole }, 4, 1, 4);
        check(Columns { stride: 5, ..whole }, 4, 1, 4);
        check(whole, 4, 5, 20);
        check(whole, usize::MAX, 2, 8);
        check(whole, usize::MAX / 2 + 1, 3, 12);
        check(whole, 0, usize::MAX / 4 + 1, 0);
        check(whole, 4, 1, 5);
    }
}

/// Constants of a head and numbers of some tokens.
struct Made {
    n: usize,
    /// decay_bias, iclr_bias, key_scale, key_iclr, bonus, norm_weight, norm_bias
    head: [Vec<f32>; 7],
    tokens: Vec<Vectors>,
}

/// receptance, key, value, decay, iclr, gate; first, part and bias of the value's mix
type Vectors = [Vec<f32>; 9];

const EPSILON: f32 = 64e-5;
const N_TOKENS: usize = 7;

impl Made {
    fn new(n: usize, seed: usize) -> Self {
        let mut random = Random::new(seed);
        let mut vectors = || random.floats(n);
        let head = std::array::from_fn(|_| vectors());
        let mut tokens: Vec<Vectors> = (0..N_TOKENS)
            .map(|_| std::array::from_fn(|_| vectors()))
            .collect();
        // A key of no length is divided by the shortest that there is.
        tokens[2][1].fill(0.0);
        Made { n, head, tokens }
    }

    fn head(&self) -> Wkv7Head<'_> {
        let [decay_bias, iclr_bias, key_scale, key_iclr, bonus, norm_weight, norm_bias] =
            &self.head;
        Wkv7Head {
            decay_bias,
            iclr_bias,
            key_scale,
            key_iclr,
            bonus,
            norm_weight,
            norm_bias,
            norm_epsilon: EPSILON,
        }
    }

    fn token(&self, index: usize, is_mixed: bool) -> Wkv7Token<'_> {
        let [receptance, key, value, decay, iclr, gate, first, part, bias] = &self.tokens[index];
        Wkv7Token {
            receptance,
            key,
            value,
            decay,
            iclr,
            gate,
            value_mix: is_mixed.then_some(Wkv7ValueMix { first, part, bias }),
        }
    }

    /// All outputs, and the state behind them.
    fn run(&self, set: KernelSet, is_mixed: bool) -> (Vec<f32>, Vec<f32>) {
        let mut state = vec![0.0; self.n * self.n];
        let mut outs = Vec::new();
        for index in 0..self.tokens.len() {
            // Whatever is in memory that is only written.
            let (mut work, mut out) = (vec![f32::NAN; 5 * self.n + 3], vec![f32::NAN; self.n]);
            set.wkv7_step(
                self.head(),
                self.token(index, is_mixed),
                &mut state,
                &mut work,
                &mut out,
            );
            outs.extend(out);
        }
        (outs, state)
    }

    /// The same by the formulas of the paper; the state is (value, key) there.
    fn formulas(&self, is_mixed: bool) -> (Vec<f64>, Vec<f64>) {
        let n = self.n;
        let wide = |values: &Vec<f32>| -> Vec<f64> { values.iter().map(|&x| x.into()).collect() };
        let [w0, a0, k_k, k_a, r_k, weight, bias] = self.head.each_ref().map(wide);
        let (mut state, mut outs) = (vec![vec![0.0; n]; n], Vec::new());
        for token in &self.tokens {
            let [r, k, mut v, w, a, g, v_first, v_part, v0] = token.each_ref().map(wide);
            let each = |f: &dyn Fn(usize) -> f64| -> Vec<f64> { (0..n).map(f).collect() };
            let w = each(&|i| (-(-0.5_f64).exp() * sigmoid(w0[i] + w[i])).exp());
            let a = each(&|i| sigmoid(a0[i] + a[i]));
            let kk = each(&|i| k[i] * k_k[i]);
            let length = kk.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
            let kk = each(&|i| kk[i] / length);
            let k = each(&|i| k[i] * (1.0 + (a[i] - 1.0) * k_a[i]));
            if is_mixed {
                v = each(&|i| v[i] + (v_first[i] - v[i]) * sigmoid(v0[i] + v_part[i]));
            }
            for (row, value) in state.iter_mut().zip(&v) {
                let removed: f64 = row.iter().zip(&kk).map(|(held, kk)| held * kk).sum();
                for i in 0..n {
                    row[i] = row[i] * w[i] - removed * kk[i] * a[i] + value * k[i];
                }
            }
            let read = |row: &Vec<f64>| row.iter().zip(&r).map(|(held, r)| held * r).sum::<f64>();
            let o: Vec<f64> = state.iter().map(read).collect();
            let mean = o.iter().sum::<f64>() / n as f64;
            let variance = o.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n as f64;
            let inverse = 1.0 / (variance + f64::from(EPSILON)).sqrt();
            let bonus: f64 = (0..n).map(|i| r[i] * k[i] * r_k[i]).sum();
            outs.extend(each(&|i| {
                ((o[i] - mean) * inverse * weight[i] + bias[i] + bonus * v[i]) * g[i]
            }));
        }
        (outs, state.concat())
    }
}

const HEADS: [usize; 9] = [1, 2, 8, 16, 24, 64, 80, 100, 128];

#[test]
fn heads_have_the_same_bits_on_every_set() {
    for_each_set(|set| {
        for n in HEADS {
            for is_mixed in [false, true] {
                let made = Made::new(n, n * 2 + usize::from(is_mixed));
                let (a, b) = (
                    made.run(KernelSet::Scalar, is_mixed),
                    made.run(set, is_mixed),
                );
                let what = format!("{n} channels, mixed: {is_mixed}, {}", set.name());
                assert_same_bits(&a.0, &b.0, &what);
                assert_same_bits(&a.1, &b.1, &format!("state, {what}"));
            }
        }
    });
}

#[test]
fn heads_are_what_the_formulas_say() {
    let close = |found: &[f32], expected: &[f64], what: &str| {
        let size = expected.iter().fold(1.0, |max: f64, x| max.max(x.abs()));
        for (index, (&found, expected)) in found.iter().zip(expected).enumerate() {
            let error = (f64::from(found) - expected).abs() / size;
            assert!(
                error < 1e-5,
                "{what} [{index}]: {found}, expected {expected}"
            );
        }
        assert_eq!(found.len(), expected.len());
    };
    for n in HEADS {
        for is_mixed in [false, true] {
            let made = Made::new(n, n * 2 + usize::from(is_mixed));
            let (outs, state) = made.run(KernelSet::Scalar, is_mixed);
            let (expected, of_values) = made.formulas(is_mixed);
            let what = format!("{n} channels, mixed: {is_mixed}");
            close(&outs, &expected, &what);
            // (value, key) to (key, value).
            let by_keys = (0..n * n).map(|i| of_values[i % n * n + i / n]);
            close(
                &state,
                &by_keys.collect::<Vec<_>>(),
                &format!("state, {what}"),
            );
        }
    }
}

/// Wherever it is, in weights, activations or the state.
#[test]
fn heads_keep_what_is_not_finite() {
    for set in KernelSet::available() {
        for n in [5, 16, 64] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for vector in 0..17 {
                    let made = || Made::new(n, n + 40);
                    // Every channel of a small head, some of a large one.
                    for at in (0..n).step_by(n / 16 + 1) {
                        let mut made = made();
                        made.tokens.truncate(2);
                        let mut state = vec![0.25; n * n];
                        match vector {
                            0..7 => made.head[vector][at] = bad,
                            7..16 => made.tokens[1][vector - 7][at] = bad,
                            _ => state[at * n + (at * 7 + 3) % n] = bad,
                        }
                        let (mut work, mut out) = (vec![0.0; 5 * n], vec![0.0; n]);
                        set.wkv7_step(
                            made.head(),
                            made.token(1, true),
                            &mut state,
                            &mut work,
                            &mut out,
                        );
                        let shows = out.iter().any(|x| !x.is_finite());
                        assert!(
                            shows,
                            "{}: {bad} in vector {vector} at {at} of {n}",
                            set.name()
                        );
                    }
                }
            }
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in 0..20 {
                let good = vec![0.5; 20];
                let mut x = good.clone();
                x[at] = bad;
                let (mut tanh, mut sigmoid) = (x.clone(), x.clone());
                set.tanh_of(&mut tanh);
                set.sigmoid_of(&mut sigmoid);
                let mut mixed = [(); 3].map(|()| good.clone());
                set.lerp(&x, &good, &good, &mut mixed[0]);
                set.lerp(&good, &x, &good, &mut mixed[1]);
                set.lerp(&good, &good, &x, &mut mixed[2]);
                for out in [tanh, sigmoid].iter().chain(&mixed) {
                    for (index, x) in out.iter().enumerate() {
                        assert_eq!(x.is_finite(), index != at, "{} {bad}", set.name());
                    }
                }
            }
        }
    }
}

/// Lengths that do not fit each other are refused before anything is read.
#[test]
fn heads_of_other_sizes_are_refused() {
    let (eight, nine) = (Made::new(8, 1), Made::new(9, 1));
    for set in KernelSet::available() {
        let check = |head: Wkv7Head<'_>, token: Wkv7Token<'_>, n_state, n_work, n| {
            let [mut state, mut work, mut out] = [n_state, n_work, n].map(|n| vec![0.0; n]);
            let text = refusal(|| set.wkv7_step(head, token, &mut state, &mut work, &mut out));
            assert!(text.starts_with("assertion"), "{}: {text}", set.name());
        };
        check(eight.head(), nine.token(0, true), 64, 40, 8);
        check(nine.head(), eight.token(0, true), 64, 40, 8);
        check(eight.head(), eight.token(0, true), 64, 40, 9);
        check(eight.head(), eight.token(0, true), 63, 40, 8);
        check(eight.head(), eight.token(0, true), 64, 39, 8);
        let mut mixed = eight.token(0, false);
        mixed.value_mix = nine.token(0, true).value_mix;
        check(eight.head(), mixed, 64, 40, 8);
    }
}
