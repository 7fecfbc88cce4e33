//! Every kernel on every instruction set of this CPU, at the shapes of the 169M model, on one thread.
//!
//! `cargo bench --bench kernels`; the matrix-vector kernels state bytes of weights a second, since reading
//! those is what bounds decode. The matrices fit into the last-level cache of many CPUs: compare with
//! `decode`, which does not.

#![allow(missing_docs)] // of what the macros make

use std::hint::black_box;

use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use half::f16;
use rwkv_edge::internals::{KernelSet, WkvChannels, PANEL_WIDTH};
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

fn matrix_vector(c: &mut Criterion) {
    let weights = floats(N_HIDDEN * N_EMBD);
    let weights_f16: Vec<f16> = weights.iter().map(|&w| f16::from_f32(w)).collect();
    let weights_i8: Vec<i8> = weights.iter().map(|&w| (127.0 * w) as i8).collect();
    let x = floats(N_EMBD);
    let x_i16: Vec<i16> = x.iter().map(|&x| (20_000.0 * x) as i16).collect();
    // One hidden unit of ten is not 0, as in trained models.
    let rows: Vec<u32> = (0..N_HIDDEN as u32).step_by(10).collect();
    let values = floats(rows.len());
    let values_i16: Vec<i16> = values.iter().map(|&x| (20_000.0 * x) as i16).collect();
    let (mut out, mut sums) = (vec![0.0; N_HIDDEN], vec![0; N_HIDDEN]);
    let n = weights.len() as u64;
    let read = (rows.len() * N_EMBD) as u64;
    for set in KernelSet::available() {
        let mut group = c.benchmark_group(format!("matvec 3072x768/{}", set.name()));
        group.throughput(Throughput::Bytes(4 * n));
        group.bench_function("f32", |b| {
            b.iter(|| set.matvec_f32(black_box(&weights), &x, &mut out))
        });
        group.throughput(Throughput::Bytes(2 * n));
        group.bench_function("f16", |b| {
            b.iter(|| set.matvec_f16(black_box(&weights_f16), &x, &mut out))
        });
        group.throughput(Throughput::Bytes(n));
        group.bench_function("int8", |b| {
            b.iter(|| set.matvec_i8(black_box(&weights_i8), &x_i16, &mut sums))
        });
        group.finish();

        let (out, sums) = (&mut out[..N_EMBD], &mut sums[..N_EMBD]);
        let mut group = c.benchmark_group(format!("gather 307 of 3072x768/{}", set.name()));
        group.throughput(Throughput::Bytes(4 * read));
        group.bench_function("f32", |b| {
            b.iter(|| set.gather_f32(black_box(&weights), N_EMBD, 0, &rows, &values, out))
        });
        group.throughput(Throughput::Bytes(2 * read));
        group.bench_function("f16", |b| {
            b.iter(|| set.gather_f16(black_box(&weights_f16), N_EMBD, 0, &rows, &values, out))
        });
        group.throughput(Throughput::Bytes(read));
        group.bench_function("int8", |b| {
            b.iter(|| set.gather_i8(black_box(&weights_i8), N_EMBD, 0, &rows, &values_i16, sums))
        });
    }
}

fn matrix_matrix(c: &mut Criterion) {
    let weights: Vec<i8> = floats(PANEL_WIDTH * N_EMBD)
        .iter()
        .map(|&w| (127.0 * w) as i8)
        .collect();
    let x: Vec<i16> = floats(N_TOKENS * N_EMBD)
        .iter()
        .map(|&x| (20_000.0 * x) as i16)
        .collect();
    let mut panel = vec![0; PANEL_WIDTH * N_EMBD];
    let mut out = vec![0; N_TOKENS * PANEL_WIDTH];
    for set in KernelSet::available() {
        let mut group = c.benchmark_group(format!("int8 panel 16x768, 128 rows/{}", set.name()));
        group.throughput(Throughput::Elements(
            (PANEL_WIDTH * N_EMBD * N_TOKENS) as u64,
        ));
        group.bench_function("multiply", |b| {
            b.iter(|| set.multiply_panel_i8(black_box(&panel), &x, &mut out))
        });
        group.throughput(Throughput::Bytes(weights.len() as u64));
        group.bench_function("pack", |b| {
            b.iter(|| set.pack_rows_i8(black_box(&weights), N_EMBD, &mut panel))
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
            b.iter(|| set.quantise_activations(black_box(&x), &mut integers))
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
        let options = SamplerOptions {
            temperature,
            top_p,
            top_k,
            ..SamplerOptions::default()
        };
        let mut sampler = Sampler::new(options, logits.len()).expect("valid options");
        group.bench_function(name, |b| b.iter(|| sampler.sample(black_box(&logits))));
    }
}

criterion_group!(benches, matrix_vector, matrix_matrix, elementwise, sampler);
criterion_main!(benches);
