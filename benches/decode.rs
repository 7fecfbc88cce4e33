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
        let options = Options::new().quant(quant);
        let model = Model::synthetic(SyntheticSize::M169, &options, &mut |_| {});
        let model = model.expect("fits into memory");
        let info = model.info();
        let mut group = c.benchmark_group(format!("169m {quant}, {} threads", info.threads));
        group.sample_size(10);

        let mut session = model.session();
        session.eval(&[187]).expect("a valid token");
        eprintln!(
            "{quant}: weights {:.1} MB, state {} bytes, process {:.1} MB resident",
            info.weight_bytes as f64 / 1e6,
            info.state_bytes,
            resident_bytes() as f64 / 1e6
        );
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
                let span = Span::new(&mut state, &tokens, Output::None);
                model
                    .forward(&mut workspace, &mut [span], &mut [])
                    .expect("valid tokens")
            })
        });
    }
}

/// Memory that this process occupies; 0 where the system does not say.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    1024 * kib.unwrap_or(0)
}

criterion_group!(benches, decode);
criterion_main!(benches);
