//! `rwkv-edge pull`: downloads a model, and quantises it once and for all if told to.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{bail, Result};
use rwkv_edge::{Model, Options};
use serde_json::json;

use crate::args::Quant;
use crate::hub::{self, Located};
use crate::numbers::{whole, THREADS_MAX};
use crate::progress::notice;
use crate::{model, quantised};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model on the Hugging Face hub, such as RWKV/rwkv-4-169m-pile; with @REVISION another branch,
    /// tag or commit, with /FILE one file of the repository. With --quant also a local checkpoint
    #[arg(value_name = "MODEL")]
    model: PathBuf,

    /// Quantise it, too: f32, f16, int8, q6, q5 or q4
    ///
    /// Into the cache: whoever opens the model with this --quant opens that file.
    #[arg(short, long, hide_possible_values = true)]
    quant: Option<Quant>,

    /// Threads to quantise with; 0: one for each physical core
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    #[arg(value_parser = whole::<usize>(0..=THREADS_MAX))]
    threads: usize,

    /// Print one JSON object instead of a path
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let source = hub::locate(&args.model)?;
    if source.id.is_none() && args.quant.is_none() {
        let path = args.model.display();
        match source.path.exists() {
            true => bail!("{path}: is here already; --quant int8 would quantise it into the cache"),
            false => {
                bail!("{path}: no such file or folder, and not the name of a model on the hub")
            }
        }
    }
    let tokenizer = tokenizer(&source);
    let quantised = match args.quant {
        Some(quant) => Some(quantise(args, &source, quant.into(), tokenizer)?),
        None => None,
    };
    let mut stdout = io::stdout().lock();
    if args.json {
        let text = |path: &PathBuf| path.display().to_string();
        let object = json!({
            "path": text(&source.path),
            "quantised": quantised.as_ref().map(text),
        });
        writeln!(stdout, "{object}")?;
    } else {
        let path = quantised.unwrap_or(source.path);
        writeln!(stdout, "{}", path.display())?;
    }
    Ok(())
}

/// The 20B tokenizer, where the model will need it and has none: a later use may be without a
/// network.
fn tokenizer(source: &Located) -> Option<PathBuf> {
    model::missing_tokenizer(&source.path).unwrap_or_else(|error| {
        notice(format_args!("{error:#}"));
        None
    })
}

fn quantise(
    args: &Args,
    source: &Located,
    quant: rwkv_edge::Quant,
    tokenizer: Option<PathBuf>,
) -> Result<PathBuf> {
    let outline = Model::outline(&source.path, &Options::default())?;
    if outline.is_model_file && outline.stored == quant {
        let path = source.path.display();
        bail!("{path}: is an {quant} model file already, and opens at once as it is");
    }
    if let Some(copy) = quantised::find(source, quant) {
        notice(format_args!(
            "{} has an {quant} copy already",
            args.model.display()
        ));
        return Ok(copy);
    }
    let mut options = Options::new().quant(quant).threads(args.threads);
    options.tokenizer = tokenizer;
    let copy = quantised::make(source, &options, quant)?;
    let size = fs::metadata(&copy)?.len() as f64 / 1e6;
    notice(format_args!(
        "{quant} copy of {size:.1} MB, used from now on by --quant {quant}"
    ));
    Ok(copy)
}
