//! Every kernel on every instruction set of this CPU, at the shapes of the published models, on one thread.
//!
//! `cargo bench --bench kernels`; the matrix-vector kernels state bytes of weights a second, since reading
//! those is what bounds decode. The matrices fit into the last-level cache of many CPUs: compare with
//! `decode`, which does not.

#![allow(missing_docs)] // of what the macros make

use std::hint::black_box;

use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use half::f16;
use rwkv_edge::internals::{
    gemm_f32, ActivationBounds, Aligned, KernelSet, Rows, WkvChannels, PANEL_WIDTH,
};
use rwkv_edge::{Sampler, SamplerOptions};

const N_EMBD: usize = 768;
const N_HIDDEN: usize = 3072;
/// Rows of activations of a prefill.
const N_TOKENS: usize = 128;

/// Numbers that look random, from -1 to 1.
fn floats(n: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Outputs and inputs of the matrices of the published sizes: n_embd 768, 1024 and 2048.
const SHAPES: [(usize, usize); 3] = [(3072, 768), (1024, 1024), (2048, 2048)];

/// Outputs of one call, as products cut them.
const BLOCK: usize = 64;

fn aligned<T: Copy + Default>(values: &[T]) -> Aligned<T> {
    let mut out = Aligned::new(T::default(), values.len());
    out.copy_from_slice(values);
    out
}

/// Every product of `n_out` rows of weights with `n` rows of activations, on every set, in blocks.
fn dots(c: &mut Criterion) {
    for (n_out, cols) in SHAPES {
        let weights = floats(n_out * cols);
        let weights_f16: Vec<f16> = weights.iter().map(|&w| f16::from_f32(w)).collect();
        let weights_i8: Vec<i8> = weights.iter().map(|&w| (127.0 * w) as i8).collect();
        let x = aligned(&floats(N_TOKENS * cols));
        let x_i16: Vec<i16> = x.iter().map(|&x| (20_000.0 * x) as i16).collect();
        let x_i16 = aligned(&x_i16);
        let block = BLOCK * cols;
        for set in KernelSet::available() {
            for n in [1, 16, N_TOKENS] {
                let mut out = Aligned::new(0.0, n * BLOCK);
                let mut sums = Aligned::new(0, n * BLOCK);
                let mut all = vec![0.0; n * n_out];
                let (values, stride) = (&x[..], cols);
                let x = Rows { values, stride, n };
                let values = &x_i16[..];
                let x_i16 = Rows { values, stride, n };
                let name = format!("dots {n_out}x{cols}, {n} rows/{}", set.name());
                let mut group = c.benchmark_group(name);
                let n_weights = (n_out * cols) as u64;
                group.throughput(throughput(n, 4 * n_weights, n_weights));
                group.bench_function("f32", |b| {
                    b.iter(|| {
                        for weights in black_box(&weights).chunks_exact(block) {
                            set.dots_f32(weights, x, cols, &mut out);
                        }
                    })
                });
                if n > 1 {
                    group.bench_function("f32 by the gemm crate", |b| {
                        b.iter(|| gemm_f32(black_box(&weights), x, cols, &mut all))
                    });
                }
                group.throughput(throughput(n, 2 * n_weights, n_weights));
                group.bench_function("f16", |b| {
                    b.iter(|| {
                        for weights in black_box(&weights_f16).chunks_exact(block) {
                            set.dots_f16(weights, x, cols, &mut out);
                        }
                    })
                });
                group.throughput(throughput(n, n_weights, n_weights));
                group.bench_function("int8", |b| {
                    b.iter(|| {
                        for weights in black_box(&weights_i8).chunks_exact(block) {
                            set.dots_i8(weights, x_i16, cols, &mut sums);
                        }
                    })
                });
            }
        }
    }
}

/// Bytes of weights for one row of activations, multiply-adds for many.
fn throughput(n: usize, bytes: u64, n_weights: u64) -> Throughput {
    match n {
        1 => Throughput::Bytes(bytes),
        _ => Throughput::Elements(n as u64 * n_weights),
    }
}

/// Rows of `ffn.value` whose hidden unit is not 0: one of ten, as in trained models, and all.
fn gather(c: &mut Criterion) {
    for (n_rows, width) in SHAPES {
        let weights = floats(n_rows * width);
        let weights_f16: Vec<f16> = weights.iter().map(|&w| f16::from_f32(w)).collect();
        let weights_i8: Vec<i8> = weights.iter().map(|&w| (127.0 * w) as i8).collect();
        let (mut out, mut sums) = (vec![0.0; width], vec![0; width]);
        for step in [1, 10] {
            let rows: Vec<u32> = (0..n_rows as u32).step_by(step).collect();
            let values = floats(rows.len());
            let values_i16: Vec<i16> = values.iter().map(|&x| (20_000.0 * x) as i16).collect();
            let read = (rows.len() * width) as u64;
            for set in KernelSet::available() {
                let name = format!("gather {} of {n_rows}x{width}/{}", rows.len(), set.name());
                let mut group = c.benchmark_group(name);
                group.throughput(Throughput::Bytes(4 * read));
                group.bench_function("f32", |b| {
                    b.iter(|| set.gather_f32(black_box(&weights), &rows, &values, &mut out))
                });
                group.throughput(Throughput::Bytes(2 * read));
                group.bench_function("f16", |b| {
                    b.iter(|| set.gather_f16(black_box(&weights_f16), &rows, &values, &mut out))
                });
                group.throughput(Throughput::Bytes(read));
                group.bench_function("int8", |b| {
                    b.iter(|| set.gather_i8(black_box(&weights_i8), &rows, &values_i16, &mut sums))
                });
            }
        }
    }
}

/// Inputs of one panel, as products use it.
const PANEL_INPUTS: usize = 256;

fn panels(c: &mut Criterion) {
    let weights = floats(PANEL_INPUTS * N_EMBD);
    let weights_f16: Vec<f16> = weights.iter().map(|&w| f16::from_f32(w)).collect();
    let weights_i8: Vec<i8> = weights.iter().map(|&w| (127.0 * w) as i8).collect();
    let values = floats(N_TOKENS * PANEL_INPUTS);
    let values_i16: Vec<i16> = values.iter().map(|&x| (20_000.0 * x) as i16).collect();
    let (stride, n) = (PANEL_INPUTS, N_TOKENS);
    let (values, values_i16) = (&values[..], &values_i16[..]);
    let x = Rows { values, stride, n };
    let values = values_i16;
    let x_i16 = Rows { values, stride, n };
    let mut panel = vec![0.0; PANEL_WIDTH * PANEL_INPUTS];
    let mut panel_i16 = vec![0; PANEL_WIDTH * PANEL_INPUTS];
    let (mut out, mut sums) = (vec![0.0; n * PANEL_WIDTH], vec![0; n * PANEL_WIDTH]);
    for set in KernelSet::available() {
        let name = format!("panel 256x16, {N_TOKENS} rows/{}", set.name());
        let mut group = c.benchmark_group(name);
        let macs = (PANEL_WIDTH * PANEL_INPUTS * N_TOKENS) as u64;
        group.throughput(Throughput::Elements(macs));
        group.bench_function("multiply f32", |b| {
            b.iter(|| set.multiply_panel_f32(black_box(&panel), x, &mut out))
        });
        group.bench_function("multiply int8", |b| {
            b.iter(|| set.multiply_panel_i8(black_box(&panel_i16), x_i16, &mut sums))
        });
        group.throughput(Throughput::Elements((PANEL_WIDTH * PANEL_INPUTS) as u64));
        group.bench_function("pack f32", |b| {
            b.iter(|| set.pack_f32(black_box(&weights), N_EMBD, 0, PANEL_WIDTH, &mut panel))
        });
        group.bench_function("pack f16", |b| {
            b.iter(|| set.pack_f16(black_box(&weights_f16), N_EMBD, 0, PANEL_WIDTH, &mut panel))
        });
        group.bench_function("pack int8", |b| {
            b.iter(|| {
                set.pack_i8(
                    black_box(&weights_i8),
                    N_EMBD,
                    0,
                    PANEL_WIDTH,
                    &mut panel_i16,
                )
            })
        });
    }
}

fn elementwise(c: &mut Criterion) {
    let [x, weight, bias] = [1, 2, 3].map(|i| floats(N_EMBD * i)[N_EMBD * (i - 1)..].to_vec());
    let decay_log: Vec<f32> = x.iter().map(|x| -x.abs()).collect();
    let mut out = vec![0.0; N_EMBD];
    let mut hidden = floats(N_HIDDEN);
    let mut integers = vec![0; N_EMBD];
    let mut state = [vec![0.0; N_EMBD], vec![0.0; N_EMBD], vec![-1e30; N_EMBD]];
    for set in KernelSet::available() {
        let mut group = c.benchmark_group(format!("elementwise/{}", set.name()));
        group.throughput(Throughput::Elements(N_EMBD as u64));
        group.bench_function("layer_norm 768", |b| {
            b.iter(|| set.layer_norm(black_box(&x), &weight, &bias, 1e-5, &mut out))
        });
        group.bench_function("token_shift 768", |b| {
            b.iter(|| set.token_shift(black_box(&x), &weight, &bias, &mut out))
        });
        group.bench_function("quantise_activations 768", |b| {
            b.iter(|| {
                set.quantise_activations(black_box(&x), ActivationBounds::INT8, &mut integers)
            })
        });
        let channels = WkvChannels {
            decay_log: &decay_log,
            bonus: &bias,
        };
        group.bench_function("wkv_step 768", |b| {
            let [numerator, denominator, exponent_max] = &mut state;
            b.iter(|| {
                set.wkv_step(
                    channels,
                    black_box(&x),
                    &weight,
                    &bias,
                    numerator,
                    denominator,
                    exponent_max,
                    &mut out,
                )
            })
        });
        group.throughput(Throughput::Elements(N_HIDDEN as u64));
        group.bench_function("squared_relu 3072", |b| {
            b.iter(|| set.squared_relu(black_box(&mut hidden)))
        });
    }
}

fn sampler(c: &mut Criterion) {
    // As peaked as a trained model's: the best token has a few per cent.
    let logits = floats(50_277);
    let logits: Vec<f32> = logits.iter().map(|x| 8.0 * x * x * x.abs()).collect();
    let mut group = c.benchmark_group("sampler 50277");
    for (name, temperature, top_p, top_k) in [
        ("greedy", 0.0, 1.0, 0),
        ("temperature", 1.0, 1.0, 0),
        ("top-p 0.9", 1.0, 0.9, 0),
        ("top-p 0.9, top-k 40", 1.0, 0.9, 40),
    ] {
        let options = SamplerOptions::new()
            .temperature(temperature)
            .top_p(top_p)
            .top_k(top_k);
        let mut sampler = Sampler::new(options, logits.len()).expect("valid options");
        group.bench_function(name, |b| b.iter(|| sampler.sample(black_box(&logits))));
    }
}

criterion_group!(benches, dots, gather, panels, elementwise, sampler);
criterion_main!(benches);
