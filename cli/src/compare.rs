//! `rwkv-edge quantize --compare`: what each quantisation of a model costs, before one is chosen.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{bail, Context, Result};
use rwkv_edge::Model;
use rwkv_edge_scoring::{measure, Outcome, Windows};
use serde_json::{json, Value};

use crate::args::{ModelArgs, Quant};
use crate::bench::median;
use crate::calibrate::CalibrateArgs;
use crate::input::Input;
use crate::model;
use crate::numbers;
use crate::perplexity::add_summary;
use crate::plot::{Plot, Series};
use crate::progress::Progress;

/// Tokens of which the speed of decode is the median.
const TIMED_TOKENS: usize = 32;

/// What to compare, and with what.
#[derive(clap::Args)]
pub(crate) struct CompareArgs {
    /// Write nothing: print what quantisations cost, such as f16,int8,q5,q4
    ///
    /// With --calibrate each that is of 4 to 6 bits is calibrated. Of each the bits a weight, the megabytes of its weights,
    /// its perplexity on --text, how far its predictions are from those of f32, how often the likeliest token is the same,
    /// and the tokens a second that it generates here. Two models are open at a time.
    #[arg(
        long, value_name = "LIST", value_delimiter = ',', requires = "text",
        conflicts_with_all = ["output", "quant", "target_bits", "target_size"],
    )]
    compare: Vec<Quant>,

    /// The text for --compare; - is stdin
    #[arg(long, value_name = "FILE", requires = "compare")]
    text: Option<PathBuf>,

    /// Use so many tokens of --text at most
    #[arg(
        long, value_name = "N", default_value_t = 8192, requires = "compare",
        value_parser = numbers::whole::<u32>(2..=u32::MAX.into()),
    )]
    limit: u32,

    /// Draw the KL divergence against the bits, as SVG
    #[arg(long, value_name = "FILE", requires = "compare")]
    plot: Option<PathBuf>,
}

/// One line of the table.
struct Line {
    quant: rwkv_edge::Quant,
    bits: f64,
    weight_bytes: u64,
    outcome: Outcome,
    tokens_per_s: f64,
}

/// What is quantised is calibrated, where there is a text for that.
pub(crate) fn run(
    args: &CompareArgs,
    calibrate: &CalibrateArgs,
    model_args: &ModelArgs,
    as_json: bool,
) -> Result<()> {
    let file = args.text.as_deref().unwrap_or(Path::new("-"));
    if calibrate.reads_stdin() && file.as_os_str() == "-" {
        bail!("--text - and --calibrate -: stdin is one text, expected a file for one of them");
    }
    let plot = args.plot.as_deref().map(Plot::create).transpose()?;
    let mut input = Input::open(file)?;
    let calibration = calibrate.tokens(model_args)?;
    let open = |quant| {
        let mut wanted = model_args.clone();
        wanted.quant = Some(quant);
        let opened = match &calibration {
            Some(tokens) if matches!(quant, Quant::Q4 | Quant::Q5 | Quant::Q6) => {
                model::open_to_copy(&wanted, None, Some(tokens))
            }
            _ => model::open(&wanted),
        };
        opened.with_context(|| format!("the model as {}", rwkv_edge::Quant::from(quant)))
    };
    let reference = open(Quant::F32)?;
    let tokens = input.tokenize(&reference, args.limit as usize)?;
    if tokens.len() < 2 {
        bail!(
            "{}: {} tokens, expected at least 2",
            input.name(),
            tokens.len()
        );
    }
    let mut of_reference = None;
    let mut lines = Vec::new();
    for &quant in &args.compare {
        let model = open(quant)?;
        let tokens_per_s = decode_speed(&model, &tokens)?;
        let info = model.info();
        let models = [reference.clone(), model];
        let total = 2 * tokens.len() as u64;
        let mut progress = Progress::at_once("comparing");
        let sequences = Windows::WHOLE.sequences(&tokens);
        let measured = measure(&models[..], sequences, |n_fed| progress.show(n_fed, total))?;
        drop(progress);
        let mut outcomes = measured.outcomes.into_iter();
        let (Some(exact), Some(outcome)) = (outcomes.next(), outcomes.next()) else {
            bail!("two models were measured, expected two results");
        };
        of_reference = Some(exact);
        lines.push(Line {
            quant: info.quant,
            bits: info.bits_per_weight,
            weight_bytes: info.weight_bytes,
            outcome,
            tokens_per_s,
        });
    }
    let of_reference = of_reference.map_or(f64::NAN, |outcome| outcome.likelihood.perplexity());
    let mut stdout = io::stdout().lock();
    match as_json {
        true => writeln!(stdout, "{}", to_json(&lines, of_reference, tokens.len()))?,
        false => write!(stdout, "{}", to_text(&lines, of_reference, tokens.len()))?,
    }
    if let Some(plot) = plot {
        let mut series = Series::new("bits a weight");
        let point = |line: &Line| (line.bits, line.outcome.divergence.summary().kl_mean);
        series.points = lines.iter().map(point).collect();
        series.points.sort_by(|a, b| a.0.total_cmp(&b.0));
        plot.write("KL divergence from f32", "nats a token", &[series])?;
    }
    Ok(())
}

/// Tokens a second, one after the other, of a session that has read a little.
fn decode_speed(model: &Model, tokens: &[u32]) -> Result<f64> {
    let mut session = model.try_session()?;
    let mut times = Vec::with_capacity(TIMED_TOKENS);
    for &token in tokens.iter().cycle().take(TIMED_TOKENS) {
        let start = Instant::now();
        session.eval(&[token])?;
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(1.0 / median(times))
}

fn to_text(lines: &[Line], of_reference: f64, n_tokens: usize) -> String {
    let mut text = format!(
        "{n_tokens} tokens; f32 has a perplexity of {of_reference:.4}\n\
         quant   bits      MB  perplexity             KL mean  same likeliest  tokens/s here\n"
    );
    for line in lines {
        let (likelihood, summary) = (&line.outcome.likelihood, line.outcome.divergence.summary());
        let perplexity = likelihood.perplexity();
        text += &format!(
            "{:<5} {:6.3} {:7.1}  {:7.4} ({:+6.3} %) {:11.6} {:13.2} % {:14.1}\n",
            line.quant.name(),
            line.bits,
            line.weight_bytes as f64 / 1e6,
            perplexity,
            100.0 * (perplexity / of_reference - 1.0),
            summary.kl_mean,
            100.0 * summary.top1_agreement,
            line.tokens_per_s,
        );
    }
    if let Some(line) = lines.first() {
        let error = line.outcome.likelihood.perplexity_stderr();
        text += &format!(
            "A perplexity here is known to +- {error:.2} by itself; the KL divergence shows differences that this hides.\n"
        );
    }
    text
}

fn to_json(lines: &[Line], of_reference: f64, n_tokens: usize) -> Value {
    let line = |line: &Line| {
        let likelihood = &line.outcome.likelihood;
        let mut object = json!({
            "quant": line.quant.name(),
            "bits_per_weight": line.bits,
            "weight_bytes": line.weight_bytes,
            "perplexity": likelihood.perplexity(),
            "perplexity_stderr": likelihood.perplexity_stderr(),
            "tokens_per_s": line.tokens_per_s,
        });
        add_summary(&mut object, &line.outcome.divergence.summary());
        object
    };
    json!({
        "tokens": n_tokens,
        "against": "f32",
        "against_perplexity": of_reference,
        "compared": lines.iter().map(line).collect::<Vec<_>>(),
    })
}
