//! `rwkv-edge perplexity`: how well a model predicts a text.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{bail, Context, Result};
use rwkv_edge::{Output, Span};
use serde_json::json;

use crate::args::ModelArgs;
use crate::model;
use crate::progress::Progress;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// The text: one sequence from the empty state, no token added
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Tokens that are fed at once: 64 rows of logits of a vocabulary of 50,277 are 13 MB.
const ROWS_MAX: usize = 64;

pub(crate) fn run(args: &Args) -> Result<()> {
    let path = args.file.display();
    let text = std::fs::read(&args.file).with_context(|| format!("{path}: cannot read"))?;
    let model = model::open(&args.model)?;
    let tokens = model.tokenizer()?.encode_bytes(&text)?;
    if tokens.len() < 2 {
        bail!("{path}: {} tokens, expected at least 2", tokens.len());
    }
    let n_vocab = model.n_vocab();
    let mut progress = Progress::at_once("perplexity");
    let mut state = model.new_state();
    let mut workspace = model.workspace(ROWS_MAX);
    let mut logits = vec![0.0; ROWS_MAX * n_vocab];
    let (inputs, targets) = (&tokens[..tokens.len() - 1], &tokens[1..]);
    let start = Instant::now();
    let mut loss = 0.0;
    let mut done = 0;
    for (tokens, targets) in inputs.chunks(ROWS_MAX).zip(targets.chunks(ROWS_MAX)) {
        let logits = &mut logits[..tokens.len() * n_vocab];
        let span = Span {
            state: &mut state,
            tokens,
            output: Output::All,
        };
        model.forward(&mut workspace, &mut [span], logits)?;
        for (row, &target) in logits.chunks_exact(n_vocab).zip(targets) {
            loss += negative_log_likelihood(row, target as usize);
        }
        done += tokens.len();
        progress.show(done as u64, inputs.len() as u64);
    }
    drop(progress);
    let mean = loss / targets.len() as f64;
    let tokens_per_s = inputs.len() as f64 / start.elapsed().as_secs_f64();
    let quant = model.info().quant;
    let mut stdout = io::stdout().lock();
    if args.json {
        let object = json!({
            "perplexity": mean.exp(),
            "loss": mean,
            "tokens": tokens.len(),
            "predicted": targets.len(),
            "quant": quant.name(),
            "tokens_per_s": tokens_per_s,
        });
        writeln!(stdout, "{object}")?;
    } else {
        writeln!(
            stdout,
            "perplexity {:.4} ({mean:.5} nats a token) over {} tokens, {quant}, {tokens_per_s:.0} \
             tokens/s",
            mean.exp(),
            targets.len()
        )?;
    }
    Ok(())
}

/// -log(softmax(logits)[target]), summed in f64.
fn negative_log_likelihood(logits: &[f32], target: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    sum.ln() + f64::from(max) - f64::from(logits[target])
}
