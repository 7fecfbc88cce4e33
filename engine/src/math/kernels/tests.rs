//! Every kernel set of this CPU against the scalar twin.
//!
//! Sizes run around the edges of registers and blocks (1, 7, 8, 15, 16, 17, 31, 32, 33, 63 .. 129), data
//! are seeded. Elementwise and integer kernels must agree to the bit. Float products may differ by the
//! rounding of n multiply-adds: |error| <= n * 2^-23 * sum |w x|, far above what is seen.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::*;

mod packed;
mod wkv6;
mod wkv7;

struct Random(ChaCha8Rng);

impl Random {
    fn new(seed: usize) -> Self {
        Random(ChaCha8Rng::seed_from_u64(seed as u64))
    }

    /// Between -1 and 1.
    fn unit(&mut self) -> f32 {
        self.0.next_u32() as i32 as f32 / 2_147_483_648.0
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit() * 3.0).collect()
    }

    fn halves(&mut self, n: usize) -> Vec<f16> {
        (0..n).map(|_| f16::from_f32(self.unit())).collect()
    }

    fn bytes(&mut self, n: usize) -> Vec<i8> {
        (0..n)
            .map(|_| (self.0.next_u32() % 255) as i32 as i8)
            .map(|b| b.max(-127))
            .collect()
    }

    fn shorts(&mut self, n: usize) -> Vec<i16> {
        (0..n).map(|_| (self.unit() * 32_767.0) as i16).collect()
    }
}

const SIZES: [usize; 24] = [
    1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 37, 47, 48, 63, 64, 65, 127, 129, 768, 785, 1600,
];

/// Runs `check` for every set but the scalar one and says which.
fn for_each_set(check: impl Fn(KernelSet)) {
    let sets = KernelSet::available();
    if sets.len() == 1 {
        println!("skipped: this CPU has the scalar kernels only");
    }
    for set in sets.into_iter().skip(1) {
        println!("checking {}", set.name());
        check(set);
    }
}

fn assert_same_bits(a: &[f32], b: &[f32], what: &str) {
    let differing = a
        .iter()
        .zip(b)
        .position(|(a, b)| a.to_bits() != b.to_bits());
    assert_eq!(differing, None, "{what}: first difference");
    assert_eq!(a.len(), b.len());
}

#[test]
fn elementwise_operations_have_the_same_bits_on_every_set() {
    for_each_set(|set| {
        for n in SIZES {
            let mut random = Random::new(n);
            let (x, y, z) = (random.floats(n), random.floats(n), random.floats(n));
            let what = |op: &str| format!("{op}, n = {n}, {}", set.name());
            let both = |op: &str, run: &dyn Fn(KernelSet, &mut [f32])| {
                let (mut a, mut b) = (x.clone(), x.clone());
                run(KernelSet::Scalar, &mut a);
                run(set, &mut b);
                assert_same_bits(&a, &b, &what(op));
            };
            both("layer_norm", &|set, out| {
                set.layer_norm(&x, &y, &z, 1e-5, out)
            });
            both("token_shift", &|set, out| set.token_shift(&x, &y, &z, out));
            both("squared_relu", &|set, out| set.squared_relu(out));
            both("add", &|set, out| set.add(out, &y));
            both("add_gated", &|set, out| set.add_gated(out, &y, &z));
            both("scale", &|set, out| set.scale(out, &y));
            let halves = random.halves(n);
            both("widen_f16", &|set, out| set.widen_f16(&halves, out));
            let sums: Vec<i32> = (0..n).map(|_| random.0.next_u32() as i32).collect();
            both("rescale_sums", &|set, out| {
                set.rescale_sums(&sums, 0.37, &y, out)
            });
            let bounds = [ActivationBounds::INT8, ActivationBounds::PACKED][n % 2];
            let (mut a, mut b) = (vec![0; n], vec![0; n]);
            let scale_a = KernelSet::Scalar.quantise_activations(&x, bounds, &mut a);
            let scale_b = set.quantise_activations(&x, bounds, &mut b);
            assert_eq!(
                (a, scale_a.to_bits()),
                (b, scale_b.to_bits()),
                "{}",
                what("quantise")
            );
        }
    });
}

#[test]
fn wkv_has_the_same_bits_on_every_set() {
    for_each_set(|set| {
        for n in SIZES {
            let mut random = Random::new(n + 1000);
            let decay: Vec<f32> = random.floats(n).iter().map(|v| -v.abs()).collect();
            let bonus = random.floats(n);
            let channels = WkvChannels {
                decay_log: &decay,
                bonus: &bonus,
            };
            let run = |set: KernelSet| {
                let mut random = Random::new(n + 2000);
                let (mut num, mut den, mut top) = (vec![0.0; n], vec![0.0; n], vec![-1e30; n]);
                let mut outs = Vec::new();
                for _ in 0..9 {
                    let (k, v, r) = (random.floats(n), random.floats(n), random.floats(n));
                    let mut out = vec![0.0; n];
                    set.wkv_step(channels, &k, &v, &r, &mut num, &mut den, &mut top, &mut out);
                    outs.extend(out);
                }
                outs.extend(num.into_iter().chain(den).chain(top));
                outs
            };
            assert_same_bits(&run(KernelSet::Scalar), &run(set), &format!("wkv, n = {n}"));
        }
    });
}

/// Bad weights must show in the results: nothing takes what they make for a good number.
#[test]
fn elementwise_operations_keep_what_is_not_finite() {
    let n = 20;
    for set in KernelSet::available() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in 0..n {
                let what = format!("{} {bad} at {at}", set.name());
                let good = vec![0.5; n];
                let mut x = good.clone();
                x[at] = bad;
                let mut squares = x.clone();
                set.squared_relu(&mut squares);
                assert!(!squares[at].is_finite(), "{what}");
                let mut sums = good.clone();
                set.add_gated(&mut sums, &x, &good);
                assert!(!sums[at].is_finite(), "{what}");
                let mut sums = good.clone();
                set.add_gated(&mut sums, &good, &x);
                assert!(!sums[at].is_finite(), "{what}");
                let mut out = good.clone();
                set.layer_norm(&x, &good, &good, 1e-5, &mut out);
                assert!(out.iter().any(|x| !x.is_finite()), "{what}");
                for (key, value, receptance) in
                    [(&x, &good, &good), (&good, &x, &good), (&good, &good, &x)]
                {
                    let channels = WkvChannels {
                        decay_log: &vec![-0.5; n],
                        bonus: &good,
                    };
                    // Behind other tokens, whose state is good.
                    let state = [&mut vec![1.0; n], &mut vec![1.0; n], &mut vec![0.1; n]];
                    let [numerator, denominator, exponent_max] = state;
                    set.wkv_step(
                        channels,
                        key,
                        value,
                        receptance,
                        numerator,
                        denominator,
                        exponent_max,
                        &mut out,
                    );
                    assert!(!out[at].is_finite(), "{what}");
                }
            }
        }
    }
}

/// The worst case for the i32 sums: every activation at the top, every weight at 127 or -128.
#[test]
fn activations_are_scaled_so_that_integer_sums_cannot_overflow() {
    for n in [1, 16, 515, 516, 517, 768, 3072, 8260, 16384, 65536] {
        for x in [
            vec![1.0_f32; n],
            Random::new(n).floats(n),
            vec![-3e-30; n],
            vec![1e30; n],
        ] {
            let mut out = vec![0_i16; n];
            let scale =
                KernelSet::Scalar.quantise_activations(&x, ActivationBounds::INT8, &mut out);
            let sum: i64 = out.iter().map(|&v| i64::from(v).abs()).sum();
            assert!(sum * 128 < 1 << 31, "n = {n}: sum {sum}");
            let worst = x
                .iter()
                .zip(&out)
                .map(|(&x, &q)| (x - f32::from(q) * scale).abs());
            let worst = worst.fold(0.0, f32::max);
            assert!(
                worst <= scale * 0.51,
                "n = {n}: error {worst}, scale {scale}"
            );
            let weights: Vec<i8> = out
                .iter()
                .map(|&q| if q < 0 { -128 } else { 127 })
                .collect();
            let products = out.iter().zip(&weights);
            let exact: i64 = products.map(|(&q, &w)| i64::from(q) * i64::from(w)).sum();
            for set in KernelSet::available() {
                let mut total = [0];
                set.dots_i8(&weights, one_row(&out), n, &mut total);
                assert_eq!(i64::from(total[0]), exact, "n = {n}, {}", set.name());
            }
        }
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in 0..20 {
            let mut x = vec![1.0; 20];
            x[at] = bad;
            for set in KernelSet::available() {
                let mut out = [1_i16; 20];
                assert!(
                    set.quantise_activations(&x, ActivationBounds::INT8, &mut out)
                        .is_nan(),
                    "{bad} at {at}"
                );
                let mut rescaled = [0.0; 20];
                set.rescale_sums(&[0; 20], f32::NAN, &[1.0; 20], &mut rescaled);
                assert!(rescaled.iter().all(|x| x.is_nan()));
            }
        }
    }
    let mut out = [1_i16; 3];
    assert_eq!(
        KernelSet::Scalar.quantise_activations(&[0.0; 3], ActivationBounds::INT8, &mut out),
        0.0
    );
    assert_eq!(out, [0; 3]);
}

#[test]
fn f16_widens_exactly_for_every_bit_pattern() {
    let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    for set in KernelSet::available() {
        let mut out = vec![0.0; halves.len()];
        set.widen_f16(&halves, &mut out);
        for (half, wide) in halves.iter().zip(out) {
            let expected = half.to_f32();
            let equal = wide.to_bits() == expected.to_bits();
            assert!(
                equal || half.is_nan() && wide.is_nan(),
                "{half:?} gave {wide}"
            );
        }
    }
}

/// |a - b| within the rounding of `n` multiply-adds whose terms sum to `magnitude`.
fn assert_close(a: f32, b: f32, n: usize, magnitude: f32, what: &str) {
    let bound = n as f32 * magnitude * f32::EPSILON;
    assert!(
        (a - b).abs() <= bound,
        "{what}: {a} against {b}, bound {bound}"
    );
}

fn one_row<T>(values: &[T]) -> Rows<'_, T> {
    Rows {
        values,
        stride: values.len(),
        n: 1,
    }
}

/// Numbers of rows around the edges of tiles.
const ROWS: [usize; 9] = [1, 2, 3, 4, 5, 6, 7, 12, 13];

#[test]
fn float_dots_agree_with_scalar_and_do_not_depend_on_how_many_rows_there_are() {
    for_each_set(|set| {
        for cols in SIZES {
            for (n, n_out) in ROWS.into_iter().zip([1, 2, 3, 5, 16, 4, 9, 1, 7]) {
                let mut random = Random::new(cols * 100 + n);
                let stride = cols + n % 3;
                let x = random.floats(n * stride);
                let rows = Rows {
                    values: &x,
                    stride,
                    n,
                };
                let w = random.halves(cols * n_out);
                let wide: Vec<f32> = w.iter().map(|w| w.to_f32()).collect();
                let [mut a, mut b, mut c] = [(); 3].map(|()| vec![9.0; n * n_out]);
                KernelSet::Scalar.dots_f32(&wide, rows, cols, &mut a);
                set.dots_f32(&wide, rows, cols, &mut b);
                set.dots_f16(&w, rows, cols, &mut c);
                assert_same_bits(&b, &c, "f16 weights are widened exactly");
                for t in 0..n {
                    let x = &x[t * stride..][..cols];
                    let mut alone = vec![9.0; n_out];
                    set.dots_f16(&w, one_row(x), cols, &mut alone);
                    let together = &c[t * n_out..][..n_out];
                    assert_same_bits(&alone, together, &format!("{cols} columns, row {t} of {n}"));
                    for o in 0..n_out {
                        let terms = wide[o * cols..][..cols].iter().zip(x);
                        let magnitude = terms.map(|(w, x)| (w * x).abs()).sum();
                        let what = format!("{cols} columns, row {t} of {n}, output {o}");
                        assert_close(a[t * n_out + o], together[o], cols, magnitude, &what);
                    }
                }
            }
        }
    });
}

#[test]
fn float_gathers_agree_with_scalar_and_with_panels() {
    for_each_set(|set| {
        for n_rows in [1, 3, 8, 9, 16, 17, 40, 61] {
            for width in [1, 7, 16, 33, 48] {
                let mut random = Random::new(n_rows * 10 + width);
                let w = random.halves(width * n_rows);
                let wide: Vec<f32> = w.iter().map(|w| w.to_f32()).collect();
                // Two of three inputs are 0, and are left out by the gather.
                let mut x = random.floats(n_rows);
                x.iter_mut().skip(1).step_by(3).for_each(|x| *x = 0.0);
                x.iter_mut().skip(2).step_by(3).for_each(|x| *x = -0.0);
                let (mut indices, mut values) = (vec![0; n_rows], vec![0.0; n_rows]);
                let used = set.list_nonzero_f32(&x, 0, &mut indices, &mut values);
                assert_eq!(used, n_rows.div_ceil(3));
                let (indices, values) = (&indices[..used], &values[..used]);
                let [mut a, mut b, mut c] = [(); 3].map(|()| vec![9.0; width]);
                KernelSet::Scalar.gather_f32(&wide, indices, values, &mut a);
                set.gather_f32(&wide, indices, values, &mut b);
                set.gather_f16(&w, indices, values, &mut c);
                assert_same_bits(&b, &c, "f16 weights are widened exactly");
                for (a, b) in a.iter().zip(&b) {
                    assert_close(*a, *b, used, 3.0 * used as f32, "gather");
                }
                for first in (0..width).step_by(PANEL_WIDTH) {
                    let n = PANEL_WIDTH.min(width - first);
                    let mut panels = [(); 2].map(|()| vec![9.0; n_rows * PANEL_WIDTH]);
                    set.pack_f32(&wide, width, first, n, &mut panels[0]);
                    set.pack_f16(&w, width, first, n, &mut panels[1]);
                    assert_same_bits(&panels[0], &panels[1], "pack");
                    let mut out = vec![0.0; PANEL_WIDTH];
                    set.multiply_panel_f32(&panels[0], one_row(&x), &mut out);
                    assert_same_bits(&out[..n], &b[first..first + n], "panel and gather");
                    assert_eq!(out[n..], vec![0.0; PANEL_WIDTH - n]);
                }
            }
        }
    });
}

#[test]
fn integer_kernels_agree_with_scalar_exactly() {
    for_each_set(|set| {
        for cols in SIZES {
            for (n, n_out) in ROWS.into_iter().zip([1, 2, 3, 5, 16, 4, 9, 1, 7]) {
                let mut random = Random::new(cols * 31 + n);
                let stride = cols + n % 3;
                let (w, x) = (random.bytes(cols * n_out), random.shorts(n * stride));
                let rows = Rows {
                    values: &x,
                    stride,
                    n,
                };
                let (mut a, mut b) = (vec![0; n * n_out], vec![1; n * n_out]);
                KernelSet::Scalar.dots_i8(&w, rows, cols, &mut a);
                set.dots_i8(&w, rows, cols, &mut b);
                assert_eq!(a, b, "dots, {cols} columns, {n} rows, {n_out} outputs");
                // The transposed product of the same numbers.
                let mut x = x[..cols].to_vec();
                x.iter_mut().skip(1).step_by(3).for_each(|x| *x = 0);
                let (mut indices, mut values) = (vec![0; cols], vec![0; cols]);
                let used = set.list_nonzero_i16(&x, 0, &mut indices, &mut values);
                let (indices, values) = (&indices[..used], &values[..used]);
                let (mut a, mut b) = (vec![0; n_out], vec![1; n_out]);
                KernelSet::Scalar.gather_i8(&w, indices, values, &mut a);
                set.gather_i8(&w, indices, values, &mut b);
                assert_eq!(a, b, "gather of {used} rows, {n_out} outputs");
            }
        }
        let mut random = Random::new(5);
        let (width, n_rows) = (300, 41);
        let (w, values) = (random.bytes(width * n_rows), random.shorts(n_rows));
        let rows: Vec<u32> = (0..n_rows as u32).rev().collect();
        let (mut a, mut b) = (vec![0; width], vec![1; width]);
        KernelSet::Scalar.gather_i8(&w, &rows, &values, &mut a);
        set.gather_i8(&w, &rows, &values, &mut b);
        assert_eq!(a, b, "wide gather");
    });
}

/// What a call panics with.
fn refusal(call: impl FnOnce()) -> String {
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    let panic = panic.expect_err("refused");
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()))
        .expect("a text")
}

/// Sizes whose products or sums wrap are refused by the checks themselves, which a release build has too, and
/// not by the overflow checks that only a debug build has.
#[test]
fn sizes_that_wrap_are_refused() {
    const HALF: usize = 1 << (usize::BITS - 1);
    let rows = |stride, n| Rows {
        values: &[1.0_f32; 16][..],
        stride,
        n,
    };
    let integers = |stride, n| Rows {
        values: &[1_i16; 32][..],
        stride,
        n,
    };
    let (w, half, byte) = ([1.0_f32; 16], [f16::ONE; 16], [1_i8; 16]);
    for set in KernelSet::available() {
        let check = |what: &str, call: &mut dyn FnMut()| {
            let text = refusal(call);
            let asserted = text.starts_with("assertion");
            assert!(asserted, "{}: {what}: {text}", set.name());
        };
        let (out, sums) = (&mut [0.0; 16][..], &mut [0; 16][..]);
        // 2 * HALF is 0 where it wraps, so is 4 times a quarter.
        for (stride, n) in [(HALF, 3), (usize::MAX, 2), (HALF / 2, 5), (usize::MAX, 1)] {
            let out = &mut out[..n];
            check("dots_f32", &mut || {
                set.dots_f32(&w, rows(stride, n), 16, out)
            });
            check("dots_f16", &mut || {
                set.dots_f16(&half, rows(stride, n), 16, out)
            });
            let sums = &mut sums[..n];
            check("dots_i8", &mut || {
                set.dots_i8(&byte, integers(stride, n), 16, sums)
            });
            #[cfg(feature = "gemm")]
            check("gemm", &mut || {
                gemm::multiply_f32(&w, rows(stride, n), 16, out)
            });
        }
        // A row that is read again and again: no limit to their number but that of the outputs.
        check("dots_f32", &mut || {
            set.dots_f32(&w, rows(0, HALF), 8, &mut out[..0])
        });
        check("dots_f16", &mut || {
            set.dots_f16(&half, rows(0, HALF), 8, &mut out[..0])
        });
        check("dots_i8", &mut || {
            set.dots_i8(&byte, integers(0, HALF), 8, &mut sums[..0])
        });
        let n = HALF / 8;
        check("multiply_panel_f32", &mut || {
            set.multiply_panel_f32(&w, rows(0, n), &mut out[..0])
        });
        check("multiply_panel_i8", &mut || {
            let panel = [1; 2 * PANEL_WIDTH];
            set.multiply_panel_i8(&panel, integers(0, n), &mut sums[..0])
        });
        let first = usize::MAX - 15;
        let panel = &mut [0.0; PANEL_WIDTH];
        check("pack_f32", &mut || set.pack_f32(&w, 16, first, 16, panel));
        check("pack_f16", &mut || {
            set.pack_f16(&half, 16, first, 16, panel)
        });
        check("pack_i8", &mut || {
            set.pack_i8(&byte, 16, first, 16, &mut [0; 2 * PANEL_WIDTH])
        });
    }
}

#[test]
fn panels_give_the_same_products_as_dots() {
    for set in KernelSet::available() {
        for cols in SIZES {
            for n_out in [1, 9, 16] {
                for n in [1, 2, 3, 4, 5, 6, 7, 13] {
                    let mut random = Random::new(cols * 7 + n_out + n);
                    let w = random.bytes(n_out * cols);
                    let width = cols.next_multiple_of(2);
                    let mut x = random.shorts(n * width);
                    if width > cols {
                        x.chunks_exact_mut(width).for_each(|row| row[cols] = 0);
                    }
                    let rows = Rows {
                        values: &x,
                        stride: width,
                        n,
                    };
                    // The same matrix stored transposed, inside a wider one.
                    let (stride, first) = (n_out + 4, 3);
                    let mut transposed = vec![99_i8; cols * stride];
                    for r in 0..n_out {
                        for c in 0..cols {
                            transposed[c * stride + first + r] = w[r * cols + c];
                        }
                    }
                    let mut panel = vec![7; width * PANEL_WIDTH];
                    set.pack_i8(&transposed, stride, first, n_out, &mut panel);
                    let mut out = vec![7; n * PANEL_WIDTH];
                    set.multiply_panel_i8(&panel, rows, &mut out);
                    let mut expected = vec![0; n * n_out];
                    KernelSet::Scalar.dots_i8(&w, rows, cols, &mut expected);
                    for t in 0..n {
                        let expected = expected[t * n_out..][..n_out].iter().map(|sum| sum + 7);
                        let out = out[t * PANEL_WIDTH..][..n_out].iter().copied();
                        assert!(out.eq(expected), "{} {n_out}x{cols}, row {t}", set.name());
                    }
                }
            }
        }
    }
}

/// Work for `.ci/cross count`, which counts the instructions of an emulated CPU: products with 64 rows of 768
/// weights. `RWKV_EDGE_COUNT` has the kernel, the rows of activations and how often: "dots_i8 1 5".
#[test]
#[ignore = "there is nothing to check: for .ci/cross count"]
fn work_to_count() {
    const ROWS: usize = 64;
    const COLS: usize = 768;
    let wanted = std::env::var("RWKV_EDGE_COUNT").expect("kernel, rows and times");
    let words: Vec<&str> = wanted.split(' ').collect();
    let [kernel, n, times] = words.try_into().expect("three words");
    let [n, times]: [usize; 2] = [n, times].map(|word| word.parse().expect("a number"));
    let set = KernelSet::select().expect("a kernel set of this CPU");
    // Any numbers do: no kernel looks at them before it multiplies.
    let (bytes, shorts) = (vec![3_i8; ROWS * COLS], vec![500_i16; n * COLS]);
    let (halves, floats) = (vec![f16::ONE; ROWS * COLS], vec![0.5_f32; n * COLS]);
    let wide = vec![0.25_f32; ROWS * COLS];
    let (mut sums, mut out) = (vec![0; n * COLS], vec![0.0; n * COLS]);
    let (mut panel, mut panel_i8) = (vec![0.0; COLS * PANEL_WIDTH], vec![0; COLS * PANEL_WIDTH]);
    let rows: Vec<u32> = (0..ROWS as u32).collect();
    let (few, factors) = (&shorts[..ROWS], &floats[..ROWS]);
    let stride = COLS;
    let (x, y) = (
        Rows {
            values: &shorts[..],
            stride,
            n,
        },
        Rows {
            values: &floats[..],
            stride,
            n,
        },
    );
    if kernel.contains("_q") {
        return packed::work_to_count(set, kernel, (x, ROWS, COLS), times);
    }
    for _ in 0..times {
        match kernel {
            "dots_i8" => set.dots_i8(&bytes, x, COLS, &mut sums[..n * ROWS]),
            "dots_f16" => set.dots_f16(&halves, y, COLS, &mut out[..n * ROWS]),
            "dots_f32" => set.dots_f32(&wide, y, COLS, &mut out[..n * ROWS]),
            "gather_i8" => set.gather_i8(&bytes, &rows, few, &mut sums[..COLS]),
            "gather_f16" => set.gather_f16(&halves, &rows, factors, &mut out[..COLS]),
            "gather_f32" => set.gather_f32(&wide, &rows, factors, &mut out[..COLS]),
            // Sixteen columns of a matrix of 768 rows, four times: as many products.
            "panel_i8" => {
                for first in (0..ROWS).step_by(PANEL_WIDTH) {
                    set.pack_i8(&bytes, ROWS, first, PANEL_WIDTH, &mut panel_i8);
                    set.multiply_panel_i8(&panel_i8, x, &mut sums[..n * PANEL_WIDTH]);
                }
            }
            "panel_f16" => {
                for first in (0..ROWS).step_by(PANEL_WIDTH) {
                    set.pack_f16(&halves, ROWS, first, PANEL_WIDTH, &mut panel);
                    set.multiply_panel_f32(&panel, y, &mut out[..n * PANEL_WIDTH]);
                }
            }
            _ => panic!("no such kernel: {kernel}"),
        }
    }
    std::hint::black_box((sums, out));
}
