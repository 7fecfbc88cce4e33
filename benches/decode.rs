//! Tokens a second of a synthetic 169M model: decode of one token at a time, and prefill of 512.
//!
//! `cargo bench --bench decode`. Decode states bytes of weights a second: all matrices but the embedding
//! are read once a token, and rows of `ffn.value` whose hidden unit is 0, which is half of them in this
//! model, are not.

#![allow(missing_docs)] // of what the macros make

use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use rwkv_edge::{Model, Options, Output, Quant, Span, SyntheticSize};

const PREFILL_TOKENS: usize = 512;

fn decode(c: &mut Criterion) {
    for quant in [Quant::F16, Quant::Int8] {
        let options = Options {
            quant: Some(quant),
            ..Options::default()
        };
        let model = Model::synthetic(SyntheticSize::M169, &options, &mut |_, _| {});
        let model = model.expect("fits into memory");
        let info = model.info();
        let mut group = c.benchmark_group(format!("169m {quant}, {} threads", info.threads));
        group.sample_size(10);

        let mut session = model.session();
        group.throughput(Throughput::Elements(1));
        group.bench_function("decode", |b| {
            b.iter(|| session.eval(&[187]).map(|_| ()).expect("a valid token"))
        });

        let tokens: Vec<u32> = (0..PREFILL_TOKENS as u32)
            .map(|i| i * 7919 % 50_277)
            .collect();
        let (mut state, mut workspace) = (model.new_state(), model.workspace(128));
        group.throughput(Throughput::Elements(PREFILL_TOKENS as u64));
        group.bench_function("prefill 512", |b| {
            b.iter(|| {
                let span = Span {
                    state: &mut state,
                    tokens: &tokens,
                    output: Output::None,
                };
                model
                    .forward(&mut workspace, &mut [span], &mut [])
                    .expect("valid tokens")
            })
        });
    }
}

criterion_group!(benches, decode);
criterion_main!(benches);
