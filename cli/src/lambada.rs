//! `rwkv-edge eval lambada`: the last word of passages, by the convention of the published RWKV numbers.
//!
//! The context is token 0 and the passage up to its last space, the target the last word with that
//! space; both are tokenised on their own. A passage counts as right when every token of its target is
//! the likeliest one. docs/EVALUATION.md says more.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{anyhow, bail, Context, Result};
use clap::value_parser;
use rwkv_edge::{Model, Reservation};
use rwkv_edge_scoring::{feed, likeliest, negative_log_likelihood, Sequence};
use serde_json::{json, Value};

use crate::args::{InitialStateArgs, ModelArgs};
use crate::input::Input;
use crate::model;
use crate::perplexity::describe_feeding;
use crate::progress::Progress;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// One JSON object with a `text` a line, such as lambada_test.jsonl; - is stdin
    ///
    /// The last word of each text is to be predicted. The context is token 0 and the text up to the last
    /// space, the target the last word with that space; each is tokenised on its own. A passage is right
    /// when every token of the target is the likeliest one. Perplexity is exp of the mean over passages
    /// of the target's summed negative log likelihood.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Only the first N passages
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    limit: Option<u64>,

    #[command(flatten)]
    initial: InitialStateArgs,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) const EXAMPLES: &str = "\
Examples:
  rwkv-edge eval lambada --model rwkv-4-169m-pile lambada_test.jsonl
  rwkv-edge eval lambada --quant int8 --limit 500 --json lambada_test.jsonl";

/// What every context begins with: the token that separates texts in training.
const FIRST_TOKEN: u32 = 0;

/// Context and target of a passage.
struct Passage {
    tokens: Vec<u32>,
    n_context: usize,
}

/// What was predicted of a passage so far.
#[derive(Clone, Copy)]
struct Score {
    /// Summed over the target's tokens.
    nll: f64,
    right: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut input = Input::open(&args.file)?;
    let model = model::open(&args.model)?;
    let model = model::begin_with(model, args.initial.initial.as_deref())?;
    let limit = args.limit.and_then(|limit| usize::try_from(limit).ok());
    let limit = limit.unwrap_or(usize::MAX);
    let (passages, _held) = read(&mut input, &model, limit)?;
    let sequences = passages.iter().map(|passage| {
        Sequence::new(&passage.tokens, passage.n_context)
            .expect("a passage has a first token and a last word")
    });
    let n_fed: usize = sequences.clone().map(|sequence| sequence.n_fed()).sum();
    let none = Score {
        nll: 0.0,
        right: true,
    };
    let mut scores = vec![none; passages.len()];
    let (quant, start) = (model.info().quant, Instant::now());
    let mut progress = Progress::at_once("lambada");
    let fed = feed(
        &[model][..],
        sequences,
        |predictions| {
            let judged = predictions.judge(|target, logits, _| {
                let nll = negative_log_likelihood(logits, target.token);
                (nll, likeliest(logits) == target.token)
            });
            for (target, (nll, right)) in predictions.targets.iter().zip(judged) {
                let score = &mut scores[target.sequence];
                score.nll += nll;
                score.right &= right;
            }
        },
        |done| progress.show(done, n_fed as u64),
    )?;
    drop(progress);
    describe_feeding(&fed, 1, start.elapsed());
    let n = scores.len() as f64;
    let n_right = scores.iter().filter(|score| score.right).count();
    let (accuracy, loss) = (
        n_right as f64 / n,
        scores.iter().map(|s| s.nll).sum::<f64>() / n,
    );
    let tokens_per_s = n_fed as f64 / start.elapsed().as_secs_f64();
    let mut stdout = io::stdout().lock();
    if args.json {
        let object = json!({
            "task": "lambada",
            "passages": scores.len(),
            "right": n_right,
            "accuracy": accuracy,
            "perplexity": loss.exp(),
            "tokens": n_fed,
            "quant": quant.name(),
            "tokens_per_s": tokens_per_s,
        });
        writeln!(stdout, "{object}")?;
    } else {
        let (n, percent, perplexity) = (scores.len(), 100.0 * accuracy, loss.exp());
        writeln!(
            stdout,
            "lambada: accuracy {percent:.2} % ({n_right} of {n} passages), perplexity \
             {perplexity:.4}, {quant}, {tokens_per_s:.0} tokens/s"
        )?;
    }
    Ok(())
}

/// Reads and tokenises all passages before the first is fed, so that a bad line costs no time.
fn read(input: &mut Input, model: &Model, limit: usize) -> Result<(Vec<Passage>, Reservation)> {
    let place = input.name().to_owned();
    let mut passages: Vec<Passage> = Vec::new();
    let (mut held, mut n_bytes) = (model.reserve_memory(0)?, 0);
    let mut number = 0;
    while passages.len() < limit && input.has_line()? {
        number += 1;
        let line = input.line(model)?;
        if line.text.trim_ascii().is_empty() {
            continue;
        }
        let passage = passage(&line.text, model);
        let passage = passage.with_context(|| format!("{place}: line {number}"))?;
        // A score each, and a list that may double.
        n_bytes += passage.tokens.capacity() * size_of::<u32>();
        n_bytes += 2 * size_of::<Passage>() + size_of::<Score>();
        held.grow_to(n_bytes as u64, "the passages")?;
        passages.push(passage);
    }
    if passages.is_empty() {
        bail!("{place}: no passages, expected a JSON object with `text` a line");
    }
    Ok((passages, held))
}

fn passage(line: &[u8], model: &Model) -> Result<Passage> {
    let line = std::str::from_utf8(line).context("not UTF-8")?;
    let value: Value = serde_json::from_str(line).map_err(|e| anyhow!("not JSON: {e}"))?;
    let text = value["text"]
        .as_str()
        .ok_or_else(|| anyhow!("no `text`, expected an object such as {{\"text\": \"..\"}}"))?;
    let at = text.rfind(' ').filter(|at| at + 1 < text.len());
    let Some(at) = at else {
        bail!("no last word, expected a context, a space and a word");
    };
    let context = model.tokenize(&text.as_bytes()[..at], usize::MAX)?;
    let target = model.tokenize(&text.as_bytes()[at..], usize::MAX)?;
    if target.is_empty() {
        bail!("no tokens in the last word {:?}", &text[at..]);
    }
    let n_context = 1 + context.len();
    let mut tokens = Vec::new();
    tokens
        .try_reserve_exact(n_context + target.len())
        .context("not enough memory for a passage")?;
    tokens.push(FIRST_TOKEN);
    tokens.extend_from_slice(&context);
    tokens.extend_from_slice(&target);
    Ok(Passage { tokens, n_context })
}
