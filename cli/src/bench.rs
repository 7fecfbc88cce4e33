//! `rwkv-edge bench`: speed and memory, beside what this machine can do at most.
//!
//! Every figure is a median of several measurements, and the machine's limits are measured between them,
//! because on a shared machine both move.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use clap::ValueEnum;
use rwkv_edge::{
    Info, Model, Options, Output, Sampler, SamplerOptions, Session, Span, State, SyntheticSize,
    Workspace, Yardstick,
};
use serde_json::{json, Value};

use crate::args::{ModelArgs, Quant};
use crate::byte_size::ByteSize;
use crate::plot::{self, Series};
use crate::progress::Progress;
use crate::{devices, model};

mod on_devices;

#[derive(clap::Args, Clone)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Made-up weights of a published size instead of a model; about half of their hidden units are 0
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["model", "max_memory"])]
    synthetic: Option<Size>,

    /// Write the model to this file, as `quantize` does, and measure nothing
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,

    /// Tokens that are decoded one by one in each measurement
    #[arg(short = 'n', long, value_name = "N", default_value_t = 32)]
    max_new_tokens: usize,

    /// Tokens of the prompt
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    prompt_tokens: usize,

    /// Tokens of the prompt that are fed at once [default: as `generate` does]
    #[arg(long, value_name = "N")]
    chunk: Option<usize>,

    /// Measurements of each kind, whose median counts
    #[arg(short, long, value_name = "N", default_value_t = 7)]
    rounds: usize,

    /// Read the weights of hidden units that are 0 too
    #[arg(long)]
    no_sparsity: bool,

    /// Also measure many sequences at once: 1, 2, 4 ... 64
    #[arg(long)]
    batch: bool,

    /// How many sequences --batch measures, such as 64,256
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "batch")]
    sequences: Vec<usize>,

    /// Also measure decode beside a process that keeps one core busy
    #[arg(long)]
    busy: bool,

    /// Draw decode speed against threads and against the length of the context, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Taken for granted; accepted for scripts that say so
    #[arg(long, hide = true)]
    ignore_eos: bool,

    /// The process that keeps a core busy
    #[arg(long, hide = true)]
    spin: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Size {
    #[value(name = "169m")]
    M169,
    #[value(name = "430m")]
    M430,
    #[value(name = "1b5")]
    B1_5,
    #[value(name = "3b")]
    B3,
}

impl From<Size> for SyntheticSize {
    fn from(size: Size) -> Self {
        match size {
            Size::M169 => SyntheticSize::M169,
            Size::M430 => SyntheticSize::M430,
            Size::B1_5 => SyntheticSize::B1_5,
            Size::B3 => SyntheticSize::B3,
        }
    }
}

/// Sequences at once in `--batch`.
const BATCHES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Tokens before the measured ones in `--plot`.
const CONTEXTS: [usize; 6] = [16, 128, 512, 1024, 2048, 4096];

/// Fed where the model has a tokenizer: which hidden units are 0 depends on the text.
const TEXT: &str = "A small computer on a shelf can read and write text if its program is careful with \
memory. Every token that it writes needs most of the weights once, so the weights should be small and \
lie side by side, and nothing else should be read. The state between two tokens has a fixed size, which \
is why the thousandth token takes as long as the first. The following function returns the number of \
elements in the vector:\n\n    pub fn len(&self) -> usize {\n        self.len\n    }\n\nWhen the buffer is \
full, the database server writes it to disk and starts a new one. A transaction that has not been \
committed is rolled back. ";

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.spin {
        spin();
    }
    if args.rounds == 0 || args.max_new_tokens == 0 || args.prompt_tokens == 0 {
        bail!("--rounds, --max-new-tokens and --prompt-tokens must be at least 1");
    }
    let model = open(args, args.model.threads)?;
    if let Some(path) = &args.save {
        let mut progress = Progress::at_once("writing");
        model.save(path, &mut |done, total| progress.show(done, total))?;
        return Ok(());
    }
    let on_device = devices::is_on_device(&model.info());
    let mut report = match on_device {
        true => on_devices::measure(args, &model)?,
        false => measure(args, &model)?,
    };
    if args.batch {
        report["batch"] = batch(args, &model)?;
    }
    if args.busy {
        let tokens_per_s = beside_busy_process(args, &model)?;
        report["busy_decode_tokens_per_s"] = json!(tokens_per_s);
    }
    if let Some(path) = &args.plot {
        draw(args, &model, path)?;
    }
    let mut stdout = io::stdout().lock();
    if args.json {
        writeln!(stdout, "{report}")?;
    } else if on_device {
        on_devices::print(&report, &model.info(), &mut stdout)?;
    } else {
        print(&report, &model.info(), &mut stdout)?;
    }
    Ok(())
}

fn open(args: &Args, threads: usize) -> Result<Model> {
    let mut model_args = args.model.clone();
    model_args.threads = threads;
    let Some(size) = args.synthetic else {
        return model::open_with(&model_args, args.no_sparsity);
    };
    let options = Options {
        quant: Some(model_args.quant.unwrap_or(Quant::Int8).into()),
        no_sparsity: args.no_sparsity,
        ..model::options(&model_args)
    };
    let mut progress = Progress::after_a_second("making weights");
    Ok(Model::synthetic(
        size.into(),
        &options,
        &mut |done, total| progress.show(done, total),
    )?)
}

/// At least `n` tokens: of the text, or of no meaning where there is no tokenizer.
fn tokens(model: &Model, n: usize) -> Result<Vec<u32>> {
    let some = match model.has_tokenizer() {
        true => model.tokenizer()?.encode(TEXT)?,
        false => (0..997)
            .map(|i| (i * 7919 % model.n_vocab()) as u32)
            .collect(),
    };
    Ok(some.into_iter().cycle().take(n).collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn seconds(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Decodes all tokens one by one, greedily but for what is fed; gives tokens a second.
fn decode_once(session: &mut Session, sampler: &mut Sampler, tokens: &[u32]) -> Result<f64> {
    let time = seconds(|| {
        for &token in tokens {
            let logits = session.eval(&[token])?;
            std::hint::black_box(sampler.sample(logits));
        }
        Ok(())
    })?;
    Ok(tokens.len() as f64 / time)
}

fn measure(args: &Args, model: &Model) -> Result<Value> {
    let info = model.info();
    let yardstick = Yardstick::new(model, args.model.huge_pages)?;
    let text = tokens(model, args.prompt_tokens.max(args.max_new_tokens))?;
    let mut session = model.session();
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
    let [read, f32_macs, int8_macs] = [read, f32_macs, int8_macs].map(median);
    let [decode, prefill] = [decode, prefill].map(median);
    // Prefill computes the logits of its last token only.
    let n = args.prompt_tokens as f64;
    let prefill_macs_per_s = prefill * (info.layer_macs as f64 + info.head_macs as f64 / n);
    let path_peak = match info.quant {
        rwkv_edge::Quant::Int8 => int8_macs,
        _ => f32_macs,
    };
    let (skipped, seen) = session.sparsity();
    let start = start(args, model.has_tokenizer())?;
    Ok(json!({
        "quant": info.quant.name(),
        "device": devices::names(&info),
        "threads": info.threads,
        "huge_pages": args.model.huge_pages,
        "kernels": info.kernels,
        "read_bytes_per_s": read,
        "f32_macs_per_s": f32_macs,
        "int8_macs_per_s": int8_macs,
        "decode_tokens_per_s": decode,
        "decode_bytes_per_token": info.decode_bytes,
        "decode_share_of_limit": decode * info.decode_bytes as f64 / read,
        "ffn_value_rows_skipped": skipped as f64 / seen.max(1) as f64,
        "prefill_tokens_per_s": prefill,
        "prefill_tokens": args.prompt_tokens,
        "prefill_share_of_limit": prefill_macs_per_s / path_peak,
        "prefill_share_of_f32_peak": prefill_macs_per_s / f32_macs,
        "first_token_ms": start.first_token_ms,
        "peak_rss_bytes": start.peak_rss_bytes,
        "private_bytes": start.private_bytes,
        "weight_bytes": info.weight_bytes,
        "state_bytes": info.state_bytes,
        "decode_workspace_bytes": model.workspace(1).size_bytes(),
        "prefill_workspace_bytes": model.workspace(chunk(args, model)).size_bytes(),
        "prefill_chunk": chunk(args, model),
    }))
}

fn chunk(args: &Args, model: &Model) -> usize {
    args.chunk.unwrap_or(model.prefill_rows())
}

fn prefill_once(args: &Args, model: &Model) -> Result<f64> {
    let tokens = &tokens(model, args.prompt_tokens)?;
    let mut state = model.new_state();
    let mut workspace = model.workspace(chunk(args, model));
    let mut logits = vec![0.0; model.n_vocab()];
    let time = seconds(|| {
        let span = Span {
            state: &mut state,
            tokens,
            output: Output::Last,
        };
        Ok(model.forward(&mut workspace, &mut [span], &mut logits)?)
    })?;
    Ok(tokens.len() as f64 / time)
}

/// What a new process needs for its first token; `None` for made-up weights, which no file holds.
#[derive(Default)]
struct Start {
    first_token_ms: Option<f64>,
    peak_rss_bytes: Option<u64>,
    private_bytes: Option<u64>,
}

fn start(args: &Args, has_tokenizer: bool) -> Result<Start> {
    if args.synthetic.is_some() {
        return Ok(Start::default());
    }
    let run = |n: &str| -> Result<(f64, Value)> {
        let mut command = command()?;
        command.args(["generate", "--json", "--ignore-eos", "-n", n]);
        let model = &args.model;
        let threads = model.threads.to_string();
        command.args(["--threads", &threads]);
        let quant = model.quant.and_then(|quant| quant.to_possible_value());
        if let Some(quant) = &quant {
            command.args(["--quant", quant.get_name()]);
        }
        if let Some(path) = &model.model {
            command.arg("--model").arg(path);
        }
        if let Some(path) = &model.tokenizer {
            command.arg("--tokenizer").arg(path);
        }
        command.args(model.devices.to_options());
        if model.no_mmap {
            command.arg("--no-mmap");
        }
        if model.huge_pages {
            command.arg("--huge-pages");
        }
        if let Some(ByteSize(bytes)) = model.max_memory {
            command.args(["--max-memory", &bytes.to_string()]);
        }
        // With a tokenizer a prompt of one token makes it be opened too.
        match has_tokenizer {
            true => command.arg(" a"),
            false => command.args(["--tokens", "1"]),
        };
        let start = Instant::now();
        let output = command
            .stdin(Stdio::null())
            .output()
            .context("cannot start again")?;
        let time_ms = start.elapsed().as_secs_f64() * 1e3;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok((time_ms, serde_json::from_slice(&output.stdout)?))
    };
    let mut first_token_ms = Vec::new();
    for _ in 0..args.rounds {
        first_token_ms.push(run("1")?.0);
    }
    let (_, memory) = run("32")?;
    Ok(Start {
        first_token_ms: Some(median(first_token_ms)),
        peak_rss_bytes: memory["peak_rss_bytes"].as_u64(),
        private_bytes: memory["private_bytes"].as_u64(),
    })
}

fn command() -> Result<Command> {
    Ok(Command::new(
        std::env::current_exe().context("cannot find this program")?,
    ))
}

/// Steps of a round with many sequences at least.
const MIN_STEPS: usize = 4;

/// Sequences that go on together.
struct Group {
    states: Vec<State>,
    workspace: Workspace,
    chosen: Vec<u32>,
}

impl Group {
    fn new(model: &Model, n: usize) -> Self {
        Group {
            states: vec![model.new_state(); n],
            workspace: model.workspace(n),
            chosen: vec![0; n],
        }
    }

    fn step(&mut self, model: &Model, text: &[u32], at: usize) -> Result<()> {
        let mut spans: Vec<_> = self
            .states
            .iter_mut()
            .enumerate()
            .map(|(i, state)| {
                let token = (at + i) % text.len();
                Span {
                    state,
                    tokens: &text[token..=token],
                    output: Output::Last,
                }
            })
            .collect();
        Ok(model.forward_tokens(&mut self.workspace, &mut spans, &mut self.chosen)?)
    }
}

fn run_group(
    model: &Model,
    group: &mut Group,
    text: &[u32],
    mut steps: std::ops::Range<usize>,
) -> Result<()> {
    steps.try_for_each(|at| group.step(model, text, at))
}

/// Many sequences of which each goes on by one token.
fn batch(args: &Args, model: &Model) -> Result<Value> {
    let text = tokens(model, 64)?;
    let mut rows = Vec::new();
    let batches = match (
        args.sequences.is_empty(),
        devices::is_on_device(&model.info()),
    ) {
        (false, _) => &args.sequences[..],
        (true, true) => &on_devices::BATCHES,
        (true, false) => &BATCHES,
    };
    for &n in batches {
        if n == 0 {
            bail!("--sequences: 0, expected at least 1");
        }
        // Stages that follow each other work on different groups at the same time.
        let n_groups = devices::pipeline_length(&model.info()).min(n);
        let mut groups: Vec<_> = (0..n_groups)
            .map(|i| Group::new(model, n * (i + 1) / n_groups - n * i / n_groups))
            .collect();
        let mut run = |steps: std::ops::Range<usize>| -> Result<()> {
            if let [group] = &mut groups[..] {
                return run_group(model, group, &text, steps);
            }
            std::thread::scope(|scope| {
                let start = |group| {
                    let (steps, text) = (steps.clone(), &text);
                    scope.spawn(move || run_group(model, group, text, steps))
                };
                let running: Vec<_> = groups.iter_mut().map(start).collect();
                running
                    .into_iter()
                    .try_for_each(|group| match group.join() {
                        Ok(outcome) => outcome,
                        Err(_) => bail!("a thread of the benchmark panicked"),
                    })
            })
        };
        run(0..1)?;
        let mut speeds = Vec::new();
        for round in 0..args.rounds {
            let steps = (args.max_new_tokens / n).max(MIN_STEPS);
            let first = 1 + round * steps;
            let time = seconds(|| run(first..first + steps))?;
            speeds.push((steps * n) as f64 / time);
        }
        rows.push(json!({ "sequences": n, "tokens_per_s": median(speeds) }));
    }
    Ok(Value::Array(rows))
}

/// Decode while another process keeps one core busy.
fn beside_busy_process(args: &Args, model: &Model) -> Result<f64> {
    let mut busy = command()?
        .args(["bench", "--spin"])
        .spawn()
        .context("cannot start again")?;
    std::thread::sleep(Duration::from_millis(200));
    let speed = decode(args, model, 0);
    busy.kill().context("cannot end the busy process")?;
    busy.wait().context("cannot end the busy process")?;
    speed
}

fn spin() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

/// Median decode speed behind `context` tokens.
fn decode(args: &Args, model: &Model, context: usize) -> Result<f64> {
    let text = tokens(model, context.max(args.max_new_tokens))?;
    let mut session = model.session();
    let mut sampler = Sampler::new(SamplerOptions::default(), model.n_vocab())?;
    if context > 0 {
        session.eval(&text[..context])?;
    }
    decode_once(
        &mut session,
        &mut sampler,
        &text[..args.max_new_tokens.min(4)],
    )?;
    let once = |_| decode_once(&mut session, &mut sampler, &text[..args.max_new_tokens]);
    Ok(median((0..args.rounds).map(once).collect::<Result<_>>()?))
}

fn draw(args: &Args, model: &Model, path: &Path) -> Result<()> {
    let info = model.info();
    let mut threads = Series::new("threads");
    let threads_max = std::thread::available_parallelism().map_or(1, usize::from);
    for n in 1..=threads_max.max(info.threads) {
        threads
            .points
            .push((n as f64, decode(args, &open(args, n)?, 0)?));
    }
    let mut contexts = Series::new("tokens of context");
    for n in CONTEXTS {
        contexts.points.push((n as f64, decode(args, model, n)?));
    }
    let title = format!(
        "decode, {}, {}, {} kernels",
        info.place, info.quant, info.kernels
    );
    plot::write(path, &title, "tokens/s", &[threads, contexts])
}

fn print(report: &Value, info: &Info, out: &mut impl Write) -> io::Result<()> {
    let number = |key: &str| report[key].as_f64().unwrap_or(f64::NAN);
    let percent = |key: &str| 100.0 * number(key);
    writeln!(
        out,
        "{}: {}, {} parameters, {} threads, {} kernels",
        info.place, info.quant, info.n_params, info.threads, info.kernels
    )?;
    writeln!(
        out,
        "limits    read {:.1} GB/s; multiply-adds: f32 {:.1} G/s, int8 path {:.1} G/s",
        number("read_bytes_per_s") / 1e9,
        number("f32_macs_per_s") / 1e9,
        number("int8_macs_per_s") / 1e9
    )?;
    writeln!(
        out,
        "decode    {:.1} tokens/s, {:.1} % of the limit of {:.1} MB a token; {:.0} % of the rows of \
         ffn.value skipped",
        number("decode_tokens_per_s"),
        percent("decode_share_of_limit"),
        number("decode_bytes_per_token") / 1e6,
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
    print_batch(report, out)?;
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

fn print_batch(report: &Value, out: &mut impl Write) -> io::Result<()> {
    for row in report["batch"].as_array().into_iter().flatten() {
        let (n, speed) = (
            &row["sequences"],
            row["tokens_per_s"].as_f64().unwrap_or(f64::NAN),
        );
        writeln!(out, "batch     {n:>3} sequences: {speed:.1} tokens/s")?;
    }
    Ok(())
}
