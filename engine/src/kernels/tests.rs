//! Every kernel set of this CPU against the scalar twin.
//!
//! Sizes run around the edges of registers and blocks (1, 7, 8, 15, 16, 17, 31, 32, 33, 63 .. 129), data
//! are seeded. Elementwise and integer kernels must agree to the bit. Float products may differ by the
//! rounding of n multiply-adds: |error| <= n * 2^-23 * sum |w x|, far above what is seen.

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::*;

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

const SIZES: [usize; 22] = [
    1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 37, 47, 48, 63, 64, 65, 127, 129, 768,
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
            let (mut a, mut b) = (vec![0; n], vec![0; n]);
            let scale_a = KernelSet::Scalar.quantise_activations(&x, &mut a);
            let scale_b = set.quantise_activations(&x, &mut b);
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
            let scale = KernelSet::Scalar.quantise_activations(&x, &mut out);
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
                set.matvec_i8(&weights, &out, &mut total);
                assert_eq!(i64::from(total[0]), exact, "n = {n}, {}", set.name());
            }
        }
    }
    let mut out = [1_i16; 3];
    assert_eq!(
        KernelSet::Scalar.quantise_activations(&[0.0; 3], &mut out),
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

#[test]
fn float_matvec_agrees_with_scalar() {
    for_each_set(|set| {
        for n in SIZES {
            for rows in [1, 2, 5, 16] {
                let mut random = Random::new(n * 100 + rows);
                let x = random.floats(n);
                let w = random.halves(n * rows);
                let wide: Vec<f32> = w.iter().map(|w| w.to_f32()).collect();
                let (mut a, mut b, mut c) = (vec![0.0; rows], vec![0.0; rows], vec![0.0; rows]);
                KernelSet::Scalar.matvec_f32(&wide, &x, &mut a);
                set.matvec_f32(&wide, &x, &mut b);
                set.matvec_f16(&w, &x, &mut c);
                assert_same_bits(&b, &c, "f16 weights are widened exactly");
                for r in 0..rows {
                    let terms = wide[r * n..][..n]
                        .iter()
                        .zip(&x)
                        .map(|(w, x)| (w * x).abs());
                    assert_close(a[r], b[r], n, terms.sum(), &format!("n = {n}, row {r}"));
                }
            }
        }
    });
}

#[test]
fn float_gather_agrees_with_scalar() {
    for_each_set(|set| {
        for n_used in [0, 1, 3, 4, 5, 9, 40] {
            for (first, width) in [(0, 48), (16, 33), (3, 7), (0, 1)] {
                let (stride, n_rows) = (50, 61);
                let mut random = Random::new(n_used * 10 + width);
                let w = random.halves(stride * n_rows);
                let wide: Vec<f32> = w.iter().map(|w| w.to_f32()).collect();
                let rows: Vec<u32> = (0..n_used).map(|i| (i * 7 % n_rows) as u32).collect();
                let values = random.floats(n_used);
                let mut outs = [vec![9.0; width], vec![9.0; width], vec![9.0; width]];
                let [a, b, c] = &mut outs;
                KernelSet::Scalar.gather_f32(&wide, stride, first, &rows, &values, a);
                set.gather_f32(&wide, stride, first, &rows, &values, b);
                set.gather_f16(&w, stride, first, &rows, &values, c);
                assert_same_bits(b, c, "f16 weights are widened exactly");
                for (a, b) in a.iter().zip(b) {
                    assert_close(*a, *b, n_used, 3.0 * n_used as f32, "gather");
                }
            }
        }
    });
}

#[test]
fn integer_kernels_agree_with_scalar_exactly() {
    for_each_set(|set| {
        for n in SIZES {
            for rows in [1, 5, 15, 16] {
                let mut random = Random::new(n * 31 + rows);
                let (w, x) = (random.bytes(n * rows), random.shorts(n));
                let (mut a, mut b) = (vec![0; rows], vec![1; rows]);
                KernelSet::Scalar.matvec_i8(&w, &x, &mut a);
                set.matvec_i8(&w, &x, &mut b);
                assert_eq!(a, b, "matvec, n = {n}, rows = {rows}");
                // The transposed product of the same numbers: one gather over all rows.
                let used: Vec<u32> = (0..n as u32).filter(|i| i % 3 != 1).collect();
                let values: Vec<i16> = used.iter().map(|&i| x[i as usize]).collect();
                let (mut a, mut b) = (vec![0; rows], vec![1; rows]);
                KernelSet::Scalar.gather_i8(&w, rows, 0, &used, &values, &mut a);
                set.gather_i8(&w, rows, 0, &used, &values, &mut b);
                assert_eq!(a, b, "gather, n = {n}, rows = {rows}");
            }
        }
        let mut random = Random::new(5);
        let (stride, n_rows) = (300, 41);
        let (w, values) = (random.bytes(stride * n_rows), random.shorts(n_rows));
        let rows: Vec<u32> = (0..n_rows as u32).rev().collect();
        let (mut a, mut b) = (vec![0; 270], vec![1; 270]);
        KernelSet::Scalar.gather_i8(&w, stride, 21, &rows, &values, &mut a);
        set.gather_i8(&w, stride, 21, &rows, &values, &mut b);
        assert_eq!(a, b, "wide gather");
    });
}

#[test]
fn panels_give_the_same_products_as_matvec() {
    for set in KernelSet::available() {
        for cols in SIZES {
            for rows in [1, 9, 16] {
                for n in [1, 2, 3, 4, 5, 6, 7, 13] {
                    let mut random = Random::new(cols * 7 + rows + n);
                    let w = random.bytes(rows * cols);
                    let width = cols.next_multiple_of(2);
                    let mut x = random.shorts(n * width);
                    if width > cols {
                        x.chunks_exact_mut(width).for_each(|row| row[cols] = 0);
                    }
                    let mut panel = vec![7; width * PANEL_WIDTH];
                    set.pack_rows_i8(&w, cols, &mut panel);
                    // The same matrix stored transposed, inside a wider one.
                    let (stride, first) = (rows + 4, 3);
                    let mut transposed = vec![99_i8; cols * stride];
                    for r in 0..rows {
                        for c in 0..cols {
                            transposed[c * stride + first + r] = w[r * cols + c];
                        }
                    }
                    let mut panel_t = vec![7; width * PANEL_WIDTH];
                    set.pack_columns_i8(&transposed, stride, first, rows, &mut panel_t);
                    assert_eq!(panel, panel_t, "{} {rows}x{cols}", set.name());
                    let mut out = vec![7; n * PANEL_WIDTH];
                    set.multiply_panel_i8(&panel, &x, &mut out);
                    for t in 0..n {
                        let mut expected = vec![0; rows];
                        KernelSet::Scalar.matvec_i8(&w, &x[t * width..][..cols], &mut expected);
                        assert_eq!(out[t * PANEL_WIDTH..][..rows], expected, "{}", set.name());
                    }
                }
            }
        }
    }
}
