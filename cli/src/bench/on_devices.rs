//! `bench` of a model with layers on devices: speed beside the limits of the device, which its plugin
//! measures, and memory as it was told and as it was taken.

use std::io::{self, Write};

use anyhow::Result;
use rwkv_edge::{Info, Model, Output, Span};
use serde_json::{json, Value};

use super::start::start;
use super::{batch, chunk, median, seconds, tokens, Args};
use crate::again::Program;
use crate::{devices, memory};

/// Sequences at once in `--batch`.
pub(super) const BATCHES: [usize; 7] = [1, 4, 16, 64, 128, 256, 512];

/// Decodes so many tokens greedily, each the one that follows from the last; gives tokens a second.
fn decode_once(model: &Model, n: usize) -> Result<f64> {
    let mut state = model.try_new_state()?;
    let mut workspace = model.try_workspace(1)?;
    let mut chosen = [1];
    let mut step = || -> Result<()> {
        let token = chosen;
        let span = Span::new(&mut state, &token, Output::Last);
        Ok(model.forward_tokens(&mut workspace, &mut [span], &mut chosen)?)
    };
    // The state gets its place, and a plugin may prepare what the first step of a kind needs.
    for _ in 0..4 {
        step()?;
    }
    let time = seconds(|| (0..n).try_for_each(|_| step()))?;
    Ok(n as f64 / time)
}

/// Feeds a prompt, and gives tokens a second.
fn prefill_once(args: &Args, model: &Model) -> Result<f64> {
    let tokens = tokens(model, args.prompt_tokens)?;
    let mut state = model.try_new_state()?;
    let mut workspace = model.try_workspace(chunk(args, model))?;
    let mut logits = vec![0.0; model.n_vocab()];
    let mut feed = |tokens: &[u32]| -> Result<()> {
        let span = Span::new(&mut state, tokens, Output::Last);
        Ok(model.forward(&mut workspace, &mut [span], &mut logits)?)
    };
    // The state gets its place on the device.
    feed(&tokens[..1])?;
    let time = seconds(|| feed(&tokens))?;
    Ok(tokens.len() as f64 / time)
}

pub(super) fn measure(args: &Args, model: &Model, program: &Program) -> Result<Value> {
    let info = model.info();
    let limits = model.device_limits()?;
    prefill_once(args, model)?;
    decode_once(model, args.max_new_tokens.min(4))?;
    let (mut decode, mut prefill) = (Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        decode.push(decode_once(model, args.max_new_tokens)?);
        prefill.push(prefill_once(args, model)?);
    }
    let [decode, prefill] = [decode, prefill].map(median);
    let n = args.prompt_tokens as f64;
    // Only the last token's logits are computed.
    let prefill_macs_per_s = prefill * (info.layer_macs as f64 + info.head_macs as f64 / n);
    // Where the CPU has a part, a device's limits are not those of the whole.
    let is_whole = info.stages.iter().all(|stage| stage.device != "cpu");
    let limits = limits.filter(|_| is_whole);
    let share = |speed: f64, limit: Option<f64>| limit.filter(|&l| l > 0.0).map(|l| speed / l);
    let private_bytes = memory::private_bytes();
    let sum = |of: fn(&rwkv_edge::StageInfo) -> u64| info.stages.iter().map(of).sum::<u64>();
    let start = start(args, model.has_tokenizer(), program)?;
    Ok(json!({
        "quant": info.quant.name(),
        "device": devices::names(&info),
        "stages": model.info().stages.iter().map(devices::stage_json).collect::<Vec<_>>(),
        "threads": info.threads,
        "kernels": info.kernels,
        "read_bytes_per_s": limits.map(|l| l.read_bytes_per_s),
        "macs_per_s": limits.map(|l| l.macs_per_s),
        "step_seconds": limits.and_then(|l| l.step_seconds),
        "decode_tokens_per_s": decode,
        "decode_bytes_per_token": info.decode_bytes,
        "decode_share_of_limit":
            share(decode * info.decode_bytes as f64, limits.map(|l| l.read_bytes_per_s)),
        "decode_steps_per_token":
            share(1.0 / decode, limits.and_then(|l| l.step_seconds)),
        "prefill_tokens_per_s": prefill,
        "prefill_tokens": args.prompt_tokens,
        "prefill_chunk": chunk(args, model),
        "prefill_share_of_limit": share(prefill_macs_per_s, limits.map(|l| l.macs_per_s)),
        "first_token_ms": start.first_token_ms,
        "peak_rss_bytes": start.peak_rss_bytes.or(memory::peak_resident_bytes()),
        "private_bytes": start.private_bytes.or(private_bytes),
        "weight_bytes": info.weight_bytes,
        "state_bytes": info.state_bytes,
        "device_estimated_bytes": sum(|stage| stage.estimated_bytes),
        "device_allocated_bytes": model.info().stages.iter().map(|s| s.allocated_bytes).sum::<u64>(),
    }))
}

pub(super) fn print(report: &Value, info: &Info, out: &mut impl Write) -> io::Result<()> {
    let number = |key: &str| report[key].as_f64().unwrap_or(f64::NAN);
    let share = |key: &str| match report[key].as_f64() {
        Some(share) => format!(", {:.1} % of the limit", 100.0 * share),
        None => String::new(),
    };
    writeln!(
        out,
        "{}: {}, {} parameters on {}",
        rwkv_edge::printable(&info.place),
        info.quant,
        info.n_params,
        devices::names(info)
    )?;
    for stage in &info.stages {
        writeln!(out, "stage     {}", devices::describe(stage))?;
    }
    let step = match report["step_seconds"].as_f64() {
        Some(seconds) => format!("; a dependent step {:.2} us", seconds * 1e6),
        None => String::new(),
    };
    if !report["read_bytes_per_s"].is_null() {
        writeln!(
            out,
            "limits    read {:.1} GB/s; multiply-adds {:.1} T/s{}",
            number("read_bytes_per_s") / 1e9,
            number("macs_per_s") / 1e12,
            step
        )?;
    }
    writeln!(
        out,
        "decode    {:.1} tokens/s{} of {:.1} MB a token",
        number("decode_tokens_per_s"),
        share("decode_share_of_limit"),
        number("decode_bytes_per_token") / 1e6
    )?;
    writeln!(
        out,
        "prefill   {:.1} tokens/s of {} in chunks of {}{}",
        number("prefill_tokens_per_s"),
        number("prefill_tokens"),
        number("prefill_chunk"),
        share("prefill_share_of_limit")
    )?;
    if !report["first_token_ms"].is_null() {
        writeln!(
            out,
            "start     first token after {:.1} ms",
            number("first_token_ms")
        )?;
    }
    writeln!(
        out,
        "memory    {:.1} MB of devices taken, {:.1} MB expected; {:.1} MB of the host's own; state {} bytes",
        number("device_allocated_bytes") / 1e6,
        number("device_estimated_bytes") / 1e6,
        number("private_bytes") / 1e6,
        info.state_bytes
    )?;
    batch::print(report, out)
}
