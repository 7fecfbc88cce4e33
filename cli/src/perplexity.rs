//! `rwkv-edge perplexity`: how well a model predicts a text, and what its quantisation costs.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{bail, Result};
use clap::value_parser;
use rwkv_edge::{ErrorKind, Model};
use rwkv_edge_scoring::{measure, Fed, Likelihood, Models, Outcome, Summary, Windows};
use serde_json::{json, Value};

use crate::args::{InitialStateArgs, ModelArgs, Quant, BEGIN_OF_TEXT};
use crate::by_tensor::{self, ByTensor};
use crate::devices::DeviceArgs;
use crate::input::Input;
use crate::progress::Progress;
use crate::{detail, model, note, UsageError};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// The text: one sequence, nothing added; - is stdin
    ///
    /// Fed from the empty state as it is, no token added but by --bos.
    /// Perplexity is exp of the mean negative log likelihood of every token after the first, each
    /// predicted from all tokens before it, or with --window from those of its window.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Put token 0, which texts begin with in training, in front of the text
    ///
    /// Then the first token of the text is predicted, too. It is not repeated in later windows.
    #[arg(long)]
    bos: bool,

    /// Windows the text into windows of N tokens
    ///
    /// Each begins with the empty state. As transformers users know it: a window begins every --stride tokens, and only those of its
    /// tokens count that no window before it had.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(2..))]
    window: Option<u32>,

    /// Tokens to the next window [default: N / 2]
    ///
    /// At most N: then windows no longer overlap, and nothing predicts their first tokens.
    #[arg(long, value_name = "N", requires = "window", value_parser = value_parser!(u32).range(1..))]
    stride: Option<u32>,

    /// Only the first N tokens of the text
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(2..))]
    limit: Option<u64>,

    /// Compare with f32, f16, int8, q6, q5 or q4
    ///
    /// Both models run side by side. KL(reference || model) is in nats a token; its mean and its 99th
    /// percentile over all predicted tokens are shown, and for how many of them the likeliest token is
    /// the same.
    #[arg(long, value_name = "QUANT", hide_possible_values = true)]
    #[arg(conflicts_with = "max_memory")]
    against: Option<Quant>,

    /// Model to compare with, where it is another than --model
    ///
    /// A model file of int8 weights cannot be opened as f32: name the checkpoint that it was made from. --lora does not
    /// change it: compare a merged model with its base by naming that here, too.
    #[arg(long, value_name = "PATH", conflicts_with = "max_memory")]
    against_model: Option<PathBuf>,

    /// Rank the matrices by what each costs
    ///
    /// Quantises one matrix at a time and measures the damage done.
    ///
    /// All other matrices stay as --against says (default f32); --quant is what the one becomes
    /// (default int8). Takes one pass over the text for each matrix: --limit makes it shorter.
    #[arg(long, conflicts_with = "max_memory")]
    by_tensor: bool,

    /// Draw the ranking of --by-tensor, as SVG
    #[arg(long, value_name = "FILE", requires = "by_tensor")]
    plot: Option<PathBuf>,

    #[command(flatten)]
    initial: InitialStateArgs,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let cut = args.cut()?;
    let plot = args.plot.as_deref().map(by_tensor::Plot::create);
    let plot = plot.transpose()?;
    let mut input = Input::open(&args.file)?;
    let model = model::open(&args.model_args())?;
    let model = model::begin_with(model, args.initial.initial.as_deref())?;
    let limit = args.limit.and_then(|limit| usize::try_from(limit).ok());
    let mut tokens = input.tokenize(&model, limit.unwrap_or(usize::MAX))?;
    if args.bos {
        tokens = tokens.behind(BEGIN_OF_TEXT)?;
    }
    if tokens.len() < 2 {
        let (name, n) = (input.name(), tokens.len());
        bail!("{name}: {n} tokens, expected at least 2");
    }
    let reference = args.open_reference(&model)?;
    let run = Run {
        cut,
        tokens: &tokens,
        start: Instant::now(),
    };
    match reference {
        Some(reference) if args.by_tensor => {
            let by_tensor = ByTensor::new(reference, model)?;
            let results = run.measure(&by_tensor, "by tensor")?;
            let ranking = by_tensor.rank(results)?;
            if let Some(plot) = plot {
                plot.write(&ranking)?;
            }
            let mut report = run.report(ranking.quantised, &ranking.all);
            report.compare(ranking.reference, &ranking.all);
            ranking.print(&report, args.json)
        }
        Some(reference) => {
            let quants = (reference.info().quant, model.info().quant);
            let results = run.measure(&[reference, model][..], "perplexity")?;
            let mut report = run.report(quants.1, &results[1]);
            report.compare((quants.0, results[0].likelihood), &results[1]);
            report.print(args.json)
        }
        None => {
            let quant = model.info().quant;
            let results = run.measure(&[model][..], "perplexity")?;
            run.report(quant, &results[0]).print(args.json)
        }
    }
}

impl Args {
    /// How the text becomes sequences.
    fn cut(&self) -> Result<Windows> {
        let Some(window) = self.window else {
            return Ok(Windows::WHOLE);
        };
        let stride = self.stride.unwrap_or(window / 2);
        let cut = Windows::of(window as usize, stride as usize);
        cut.ok_or_else(|| {
            let text = format!(
                "--stride {stride}: expected at most the window's {window}, or tokens would be left out"
            );
            UsageError(text).into()
        })
    }

    fn model_args(&self) -> ModelArgs {
        let mut args = self.model.clone();
        if self.by_tensor {
            args.quant.get_or_insert(Quant::Int8);
        }
        args
    }

    /// The model to compare with, if there is to be one.
    fn open_reference(&self, model: &Model) -> Result<Option<Model>> {
        if self.against.is_none() && self.against_model.is_none() && !self.by_tensor {
            return Ok(None);
        }
        let mut args = self.model.clone();
        args.quant = match (self.against, &self.against_model) {
            (None, Some(_)) if !self.by_tensor => None,
            (against, _) => Some(against.unwrap_or(Quant::F32)),
        };
        args.devices = args.devices.without_quants();
        if let Some(path) = &self.against_model {
            args.model = Some(path.clone());
            args.lora.loras.clear();
        }
        let is_of = |error: &anyhow::Error, kinds: &[ErrorKind]| {
            let error = error.downcast_ref::<rwkv_edge::Error>();
            error.is_some_and(|e| kinds.contains(&e.kind()))
        };
        // It reads the tokens of the other's tokenizer.
        let reference = model::open_without_text(&args).or_else(|error| {
            let kinds = [ErrorKind::Unsupported, ErrorKind::Memory];
            if !is_of(&error, &kinds) || args.devices.are_only_the_cpu() {
                return Err(error);
            }
            // Devices need not have f32, nor room for two models.
            note!("the model to compare with runs on the CPU: {error:#}");
            args.devices = DeviceArgs::on_cpu();
            model::open_without_text(&args)
        });
        let reference = reference.map_err(|error| {
            match is_of(&error, &[ErrorKind::Unsupported]) && self.against_model.is_none() {
                true => error.context("the model to compare with: name one by --against-model"),
                false => error.context("the model to compare with"),
            }
        })?;
        let (found, expected) = (reference.n_vocab(), model.n_vocab());
        if found != expected {
            let place = reference.info().place;
            bail!("{place}: a vocabulary of {found} tokens, expected {expected} as the model has");
        }
        let initial = self.initial.initial.as_deref();
        Ok(Some(model::begin_with(reference, initial)?))
    }
}

/// A measurement under way.
struct Run<'a> {
    cut: Windows,
    tokens: &'a [u32],
    start: Instant,
}

impl Run<'_> {
    fn n_fed(&self) -> usize {
        let sequences = self.cut.sequences(self.tokens);
        sequences.map(|sequence| sequence.n_fed()).sum()
    }

    /// Feeds the text to all models; the first is the reference of the others.
    fn measure(
        &self,
        models: &(impl Models + ?Sized),
        label: &'static str,
    ) -> Result<Vec<Outcome>> {
        let total = (self.n_fed() * models.n_models()) as u64;
        let mut progress = Progress::at_once(label);
        let start = Instant::now();
        let sequences = self.cut.sequences(self.tokens);
        let measured = measure(models, sequences, |n_fed| progress.show(n_fed, total))?;
        drop(progress);
        describe_feeding(&measured.fed, models.n_models(), start.elapsed());
        Ok(measured.outcomes)
    }

    fn report(&self, quant: rwkv_edge::Quant, outcome: &Outcome) -> Report {
        let n_fed = self.n_fed();
        Report {
            quant,
            likelihood: outcome.likelihood,
            n_tokens: self.tokens.len(),
            cut: self.cut,
            tokens_per_s: n_fed as f64 / self.start.elapsed().as_secs_f64(),
            reference: None,
        }
    }
}

/// What is printed.
pub(crate) struct Report {
    quant: rwkv_edge::Quant,
    likelihood: Likelihood,
    n_tokens: usize,
    cut: Windows,
    tokens_per_s: f64,
    reference: Option<Reference>,
}

struct Reference {
    quant: rwkv_edge::Quant,
    likelihood: Likelihood,
    summary: Summary,
}

impl Report {
    fn compare(&mut self, reference: (rwkv_edge::Quant, Likelihood), outcome: &Outcome) {
        self.reference = Some(Reference {
            quant: reference.0,
            likelihood: reference.1,
            summary: outcome.divergence.summary(),
        });
    }

    fn print(&self, json: bool) -> Result<()> {
        let mut stdout = io::stdout().lock();
        match json {
            true => writeln!(stdout, "{}", self.to_json())?,
            false => write!(stdout, "{}", self.to_text())?,
        }
        Ok(())
    }

    pub(crate) fn to_json(&self) -> Value {
        let likelihood = &self.likelihood;
        let mut object = json!({
            "perplexity": likelihood.perplexity(),
            "perplexity_stderr": likelihood.perplexity_stderr(),
            "loss": likelihood.loss(),
            "tokens": self.n_tokens,
            "predicted": likelihood.n(),
            "quant": self.quant.name(),
        });
        if let Some((window, stride)) = self.cut.window_and_stride() {
            object["window"] = json!(window);
            object["stride"] = json!(stride);
        }
        if let Some(reference) = &self.reference {
            object["against"] = json!(reference.quant.name());
            object["against_perplexity"] = json!(reference.likelihood.perplexity());
            add_summary(&mut object, &reference.summary);
        } else {
            object["tokens_per_s"] = json!(self.tokens_per_s);
        }
        object
    }

    pub(crate) fn to_text(&self) -> String {
        let likelihood = &self.likelihood;
        let windows = match self.cut.window_and_stride() {
            None => String::new(),
            Some((window, stride)) => format!(", windows of {window} every {stride}"),
        };
        // Of several models at once the speed says nothing.
        let speed = match self.reference {
            Some(_) => String::new(),
            None => format!(", {:.0} tokens/s", self.tokens_per_s),
        };
        let mut text = format!(
            "perplexity {:.4} +- {:.4} ({:.5} nats a token) over {} tokens{windows}, {}{speed}\n",
            likelihood.perplexity(),
            likelihood.perplexity_stderr(),
            likelihood.loss(),
            likelihood.n(),
            self.quant,
        );
        if let Some(reference) = &self.reference {
            let of_reference = reference.likelihood.perplexity();
            let Summary {
                kl_mean,
                kl_p99,
                kl_max,
                top1_agreement,
                ..
            } = reference.summary;
            text += &format!(
                "against {}: perplexity {of_reference:.4} ({:+.3} %); KL divergence mean {kl_mean:.6}, \
                 99th percentile {kl_p99:.6}, largest {kl_max:.4}; same likeliest token {:.2} %\n",
                reference.quant,
                100.0 * (likelihood.perplexity() / of_reference - 1.0),
                100.0 * top1_agreement,
            );
        }
        text
    }
}

/// Adds the numbers of a summary to a JSON object.
pub(crate) fn add_summary(object: &mut Value, summary: &Summary) {
    object["kl_mean"] = json!(summary.kl_mean);
    object["kl_p99"] = json!(summary.kl_p99);
    object["kl_max"] = json!(summary.kl_max);
    object["top1_agreement"] = json!(summary.top1_agreement);
}

/// What `--verbose` says of it.
pub(crate) fn describe_feeding(fed: &Fed, n_models: usize, time: Duration) {
    detail!(
        "{} tokens fed to {n_models} models in {:.3} s, {} rows of logits at a time",
        fed.n_tokens,
        time.as_secs_f64(),
        fed.logit_rows_max
    );
}
