//! `bench` of a model on the CPU: speed beside the limits of this machine.

use std::io::{self, Write};

use anyhow::Result;
use rwkv_edge::{Info, Model, Output, Sampler, SamplerOptions, Span, Yardstick};
use serde_json::{json, Value};

use super::start::start;
use super::{batch, chunk, decode_once, median, seconds, tokens, Args};
use crate::again::Program;
use crate::devices;

fn prefill_once(args: &Args, model: &Model) -> Result<f64> {
    let tokens = &tokens(model, args.prompt_tokens)?;
    let mut state = model.try_new_state()?;
    let mut workspace = model.try_workspace(chunk(args, model))?;
    let mut logits = vec![0.0; model.n_vocab()];
    let time = seconds(|| {
        let span = Span::new(&mut state, tokens, Output::Last);
        Ok(model.forward(&mut workspace, &mut [span], &mut logits)?)
    })?;
    Ok(tokens.len() as f64 / time)
}

pub(super) fn measure(args: &Args, model: &Model, program: &Program) -> Result<Value> {
    let info = model.info();
    let yardstick = Yardstick::new(model)?;
    let text = tokens(model, args.prompt_tokens.max(args.max_new_tokens))?;
    let mut session = model.try_session()?;
    let mut sampler = Sampler::new(SamplerOptions::default(), model.n_vocab())?;
    // Brings the weights into memory.
    decode_once(
        &mut session,
        &mut sampler,
        &text[..args.max_new_tokens.min(4)],
    )?;
    prefill_once(args, model)?;

    let [mut read, mut f32_macs, mut int8_macs, mut decode, mut prefill] =
        [const { Vec::new() }; 5];
    for _ in 0..args.rounds {
        read.push(yardstick.read_bytes_per_s());
        decode.push(decode_once(
            &mut session,
            &mut sampler,
            &text[..args.max_new_tokens],
        )?);
        f32_macs.push(yardstick.f32_macs_per_s());
        int8_macs.push(yardstick.int8_macs_per_s());
        prefill.push(prefill_once(args, model)?);
    }
    drop(yardstick);
    let workspace_bytes = |rows| Ok::<_, rwkv_edge::Error>(model.try_workspace(rows)?.size_bytes());
    let workspaces = (workspace_bytes(1)?, workspace_bytes(chunk(args, model))?);
    let [read, f32_macs, int8_macs] = [read, f32_macs, int8_macs].map(median);
    let [decode, prefill] = [decode, prefill].map(median);
    // Prefill computes the logits of its last token only.
    let n = args.prompt_tokens as f64;
    let prefill_macs_per_s = prefill * (info.layer_macs as f64 + info.head_macs as f64 / n);
    let path_peak = match info.quant.is_float() {
        true => f32_macs,
        false => int8_macs,
    };
    // The state is read and written.
    let decode_bytes = info.decode_bytes + 2 * info.state_bytes as u64;
    let sparsity = session.sparsity();
    let start = start(args, model.has_tokenizer(), program)?;
    Ok(json!({
        "quant": info.quant.name(),
        "device": devices::names(&info),
        "threads": info.threads,
        "huge_pages": info.huge_page_bytes > 0,
        "kernels": info.kernels,
        "read_bytes_per_s": read,
        "f32_macs_per_s": f32_macs,
        "int8_macs_per_s": int8_macs,
        "decode_tokens_per_s": decode,
        "decode_bytes_per_token": decode_bytes,
        "decode_share_of_limit": decode * decode_bytes as f64 / read,
        "ffn_value_rows_skipped": sparsity.skipped as f64 / sparsity.total.max(1) as f64,
        "prefill_tokens_per_s": prefill,
        "prefill_tokens": args.prompt_tokens,
        "prefill_share_of_limit": prefill_macs_per_s / path_peak,
        "prefill_share_of_f32_peak": prefill_macs_per_s / f32_macs,
        "first_token_ms": start.first_token_ms,
        "peak_rss_bytes": start.peak_rss_bytes,
        "private_bytes": start.private_bytes,
        "weight_bytes": info.weight_bytes,
        "state_bytes": info.state_bytes,
        "decode_workspace_bytes": workspaces.0,
        "prefill_workspace_bytes": workspaces.1,
        "prefill_chunk": chunk(args, model),
    }))
}

pub(super) fn print(report: &Value, info: &Info, out: &mut impl Write) -> io::Result<()> {
    let number = |key: &str| report[key].as_f64().unwrap_or(f64::NAN);
    let percent = |key: &str| 100.0 * number(key);
    writeln!(
        out,
        "{}: {}, {} parameters, {} threads, {} kernels",
        rwkv_edge::printable(&info.place),
        info.quant,
        info.n_params,
        info.threads,
        info.kernels
    )?;
    // Under a limit of memory there may be no room to measure it.
    let (read, share) = match report["read_bytes_per_s"].as_f64() {
        None => ("not measured".to_owned(), String::new()),
        Some(read) => (
            format!("{:.1} GB/s", read / 1e9),
            format!(
                ", {:.1} % of the limit of {:.1} MB a token",
                percent("decode_share_of_limit"),
                number("decode_bytes_per_token") / 1e6
            ),
        ),
    };
    writeln!(
        out,
        "limits    read {read}; multiply-adds: f32 {:.1} G/s, int8 path {:.1} G/s",
        number("f32_macs_per_s") / 1e9,
        number("int8_macs_per_s") / 1e9
    )?;
    writeln!(
        out,
        "decode    {:.1} tokens/s{share}; {:.0} % of the rows of ffn.value skipped",
        number("decode_tokens_per_s"),
        percent("ffn_value_rows_skipped")
    )?;
    writeln!(
        out,
        "prefill   {:.1} tokens/s of {}, {:.1} % of the peak of its path, {:.1} % of the f32 peak",
        number("prefill_tokens_per_s"),
        number("prefill_tokens"),
        percent("prefill_share_of_limit"),
        percent("prefill_share_of_f32_peak")
    )?;
    if !report["first_token_ms"].is_null() {
        writeln!(
            out,
            "start     first token after {:.1} ms; {:.1} MB resident at most, {:.1} MB of its own",
            number("first_token_ms"),
            number("peak_rss_bytes") / 1e6,
            number("private_bytes") / 1e6
        )?;
    }
    writeln!(
        out,
        "memory    state {} bytes; workspace {:.1} MB for decode, {:.1} MB for prefill in chunks of {}",
        info.state_bytes,
        number("decode_workspace_bytes") / 1e6,
        number("prefill_workspace_bytes") / 1e6,
        number("prefill_chunk")
    )?;
    batch::print(report, out)?;
    #[cfg(feature = "serve")]
    if !report["serve"].is_null() {
        super::serve::print(&report["serve"], out)?;
    }
    if !report["busy_decode_tokens_per_s"].is_null() {
        let speed = number("busy_decode_tokens_per_s");
        writeln!(
            out,
            "busy      decode beside a process that keeps one core busy: {speed:.1} tokens/s, {:.0} %",
            100.0 * speed / number("decode_tokens_per_s")
        )?;
    }
    Ok(())
}
