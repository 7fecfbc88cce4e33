//! `rwkv-edge bench`: speed and memory, beside what this machine can do at most.
//!
//! Every figure is a median of several measurements, and the machine's limits are measured between them,
//! because on a shared machine both move.
//!
//! Here are the options and what the parts share; `on_cpu.rs` and `on_devices.rs` measure and print speed, `start.rs` a new
//! process, `batch.rs` many sequences at once, `serve.rs` the server; `report.rs` writes all of it to a file, with what
//! `machine.rs` knows of the machine.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;
use rwkv_edge::{Model, Sampler, SamplerOptions, Session, SyntheticSize};
use serde_json::json;

use crate::again::Program;
use crate::args::{ModelArgs, Quant};
use crate::numbers::whole;
use crate::plot::{Plot, Series};
use crate::progress::Progress;
use crate::{devices, model, paths};

mod batch;
mod machine;
mod on_cpu;
mod on_devices;
mod report;
#[cfg(feature = "serve")]
mod serve;
mod start;

pub(crate) use report::begins_report;
use report::Report;

#[derive(clap::Args, Clone)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Made-up weights of a published size instead of a model; about half of their hidden units are 0
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["model", "max_memory", "huge_pages", "loras"])]
    synthetic: Option<Size>,

    /// Write the model to this file, as `quantize` does, and measure nothing
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,

    /// Tokens that are decoded one by one in each measurement
    #[arg(short = 'n', long, value_name = "N", default_value_t = 32)]
    #[arg(value_parser = whole::<usize>(1..=TOKENS_MAX))]
    max_new_tokens: usize,

    /// Tokens of the prompt
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    #[arg(value_parser = whole::<usize>(1..=TOKENS_MAX))]
    prompt_tokens: usize,

    /// Tokens of the prompt that are fed at once [default: as `generate` does]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1..=ROWS_MAX))]
    chunk: Option<usize>,

    /// Measurements of each kind, whose median counts
    #[arg(short, long, value_name = "N", default_value_t = 7)]
    #[arg(value_parser = whole::<usize>(1..=ROUNDS_MAX))]
    rounds: usize,

    /// Read the weights of hidden units that are 0 too
    #[arg(long)]
    no_sparsity: bool,

    /// Also measure many sequences at once: 1, 2, 4 ... 64
    #[arg(long)]
    batch: bool,

    /// How many sequences --batch measures, such as 64,256
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "batch")]
    #[arg(value_parser = whole::<usize>(1..=ROWS_MAX))]
    sequences: Vec<usize>,

    /// Also measure `serve` with clients on this machine: one, many at once, long conversations, a long prompt
    #[cfg(feature = "serve")]
    #[arg(long, conflicts_with_all = ["synthetic", "loras"])]
    serve: bool,

    /// Also measure decode beside a process that keeps one core busy
    #[arg(long)]
    busy: bool,

    /// Draw decode speed against threads and against the length of the context, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,

    /// Write a report: speed by threads, this machine
    ///
    /// To be sent or kept. JSON: decode with 1, 2, 4 ... threads, the CPU, its cores, clocks, heat and throttling before
    /// and after, memory and how fast it is read, kernel and page size, power where the system counts it, and what else
    /// `bench` prints. Nothing of it names the machine's owner.
    #[arg(long, value_name = "FILE", conflicts_with = "save")]
    report: Option<PathBuf>,

    /// Print two reports side by side
    #[arg(long, value_names = ["A", "B"], num_args = 2)]
    #[arg(conflicts_with_all = ["synthetic", "save", "report", "plot", "json"])]
    compare: Vec<PathBuf>,

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
    #[value(name = "v5-1.5b")]
    V5B1_5,
    #[value(name = "v6-1.6b")]
    V6B1_6,
    #[value(name = "v7-0.1b")]
    V7B0_1,
    #[value(name = "v7-0.4b")]
    V7B0_4,
    #[value(name = "v7-1.5b")]
    V7B1_5,
    #[value(name = "v7-2.9b")]
    V7B2_9,
}

impl From<Size> for SyntheticSize {
    fn from(size: Size) -> Self {
        match size {
            Size::M169 => SyntheticSize::M169,
            Size::M430 => SyntheticSize::M430,
            Size::B1_5 => SyntheticSize::B1_5,
            Size::B3 => SyntheticSize::B3,
            Size::V5B1_5 => SyntheticSize::V5B1_5,
            Size::V6B1_6 => SyntheticSize::V6B1_6,
            Size::V7B0_1 => SyntheticSize::V7B0_1,
            Size::V7B0_4 => SyntheticSize::V7B0_4,
            Size::V7B1_5 => SyntheticSize::V7B1_5,
            Size::V7B2_9 => SyntheticSize::V7B2_9,
        }
    }
}

/// Far more than takes minutes, and what can be counted and held.
const TOKENS_MAX: u64 = 1 << 24;
const ROWS_MAX: u64 = 1 << 16;
const ROUNDS_MAX: u64 = 1_000_000;

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

pub(crate) fn run(args: &Args, program: &Program) -> Result<()> {
    if args.spin {
        spin();
    }
    if !args.compare.is_empty() {
        return report::compare(&args.compare);
    }
    let plot = args.plot.as_deref().map(Plot::create).transpose()?;
    let begun = args.report.as_deref().map(Report::begin).transpose()?;
    if let Some(path) = &args.save {
        paths::check_replaced(path, paths::Written::ModelFile)?;
    }
    let model = open(args, args.model.threads)?;
    if let Some(path) = &args.save {
        let mut progress = Progress::at_once("writing");
        model.save(path, &mut |p| progress.show(p.done, p.total))?;
        return Ok(());
    }
    let on_device = devices::is_on_device(&model.info());
    let mut report = match on_device {
        true => on_devices::measure(args, &model, program)?,
        false => on_cpu::measure(args, &model, program)?,
    };
    if args.batch {
        report["batch"] = batch::measure(args, &model)?;
    }
    #[cfg(feature = "serve")]
    if args.serve {
        report["serve"] = serve::measure(args, &model, program)?;
    }
    if args.busy {
        let tokens_per_s = beside_busy_process(args, &model, program)?;
        report["busy_decode_tokens_per_s"] = json!(tokens_per_s);
    }
    if let Some(plot) = plot {
        draw(args, &model, plot)?;
    }
    if let Some(begun) = begun {
        begun.write(args, &model, &report)?;
    }
    let mut stdout = io::stdout().lock();
    if args.json {
        writeln!(stdout, "{report}")?;
    } else if on_device {
        on_devices::print(&report, &model.info(), &mut stdout)?;
    } else {
        on_cpu::print(&report, &model.info(), &mut stdout)?;
    }
    Ok(())
}

fn open(args: &Args, threads: usize) -> Result<Model> {
    let mut model_args = args.model.clone();
    model_args.threads = threads;
    let Some(size) = args.synthetic else {
        return model::open_with(&model_args, args.no_sparsity);
    };
    let quant = model_args.quant.unwrap_or(Quant::Int8);
    let options = model::options(&model_args)
        .quant(rwkv_edge::Quant::from(quant))
        .no_sparsity(args.no_sparsity);
    let mut progress = Progress::after_a_second("making weights");
    Ok(Model::synthetic(size.into(), &options, &mut |p| {
        progress.show(p.done, p.total)
    })?)
}

/// At least `n` tokens: of the text, or of no meaning where there is no tokenizer.
fn tokens(model: &Model, n: usize) -> Result<Vec<u32>> {
    let some = match model.has_tokenizer() {
        true => model.tokenizer()?.encode(TEXT)?,
        false => (0..997)
            .map(|i| (i * 7919 % model.n_vocab()) as u32)
            .collect(),
    };
    let mut all = Vec::new();
    all.try_reserve_exact(n)
        .with_context(|| format!("not enough memory for {n} tokens"))?;
    all.extend(some.into_iter().cycle().take(n));
    Ok(all)
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
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

fn chunk(args: &Args, model: &Model) -> usize {
    args.chunk.unwrap_or(model.prefill_rows())
}

/// Decode while another process keeps one core busy.
fn beside_busy_process(args: &Args, model: &Model, program: &Program) -> Result<f64> {
    let mut busy = program
        .command()?
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
    let mut session = model.try_session()?;
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

fn draw(args: &Args, model: &Model, plot: Plot) -> Result<()> {
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
    plot.write(&title, "tokens/s", &[threads, contexts])
}
