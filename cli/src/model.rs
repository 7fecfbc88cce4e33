//! Opens the model that the arguments name, or the built-in demo model.

use std::time::{Duration, Instant};

use anyhow::Result;
use rwkv_edge::{Model, Options, Tokenizer};

use crate::args::ModelArgs;
use crate::progress::Progress;
use crate::{detail, verbosity};

/// A Hugging Face directory as part of the program; its README says what the model is.
#[cfg(feature = "demo")]
const DEMO: &[(&str, &[u8])] = &[
    ("config.json", include_bytes!("../demo/config.json")),
    (
        "model.safetensors",
        include_bytes!("../demo/model.safetensors"),
    ),
    ("tokenizer.json", include_bytes!("../demo/tokenizer.json")),
];

pub(crate) fn open(args: &ModelArgs) -> Result<Model> {
    open_with(args, false)
}

pub(crate) fn open_with(args: &ModelArgs, no_sparsity: bool) -> Result<Model> {
    let options = Options {
        no_sparsity,
        ..options(args)
    };
    let start = Instant::now();
    let model = match &args.model {
        Some(path) => {
            let mut progress = Progress::after_a_second("loading");
            Model::open_with_progress(path, &options, &mut |d, t| progress.show(d, t))?
        }
        None => open_demo(&options)?,
    };
    if verbosity::is_verbose() {
        describe(&model, start.elapsed());
    }
    Ok(model)
}

/// What `--verbose` says of a model that was opened.
fn describe(model: &Model, time: Duration) {
    let info = model.info();
    let mb = |bytes: u64| bytes as f64 / 1e6;
    detail!(
        "{}: opened in {:.1} ms; {} parameters, {:.1} MB as {}, {:.1} MB of them in place from the file",
        info.place,
        time.as_secs_f64() * 1e3,
        info.n_params,
        mb(info.weight_bytes),
        info.quant,
        mb(info.mapped_bytes)
    );
    detail!(
        "tokenizer {}; {} kernels, {} threads; state of {} bytes",
        info.tokenizer.as_deref().unwrap_or("none"),
        info.kernels,
        info.threads,
        info.state_bytes
    );
}

/// Only the tokenizer: weights are neither read nor converted.
pub(crate) fn open_tokenizer(args: &ModelArgs) -> Result<Tokenizer> {
    match (&args.tokenizer, &args.model) {
        (Some(path), None) => Ok(Tokenizer::open(path)?),
        (_, Some(path)) => Ok(Model::open_tokenizer(path, &options(args))?),
        (None, None) => demo_tokenizer(),
    }
}

fn options(args: &ModelArgs) -> Options {
    Options {
        quant: args.quant.map(Into::into),
        threads: args.threads,
        tokenizer: args.tokenizer.clone(),
        no_mmap: args.no_mmap,
        huge_pages: args.huge_pages,
        ..Options::default()
    }
}

#[cfg(feature = "demo")]
fn open_demo(options: &Options) -> Result<Model> {
    Ok(Model::open_embedded(DEMO, options)?)
}

#[cfg(feature = "demo")]
fn demo_tokenizer() -> Result<Tokenizer> {
    let (name, bytes) = DEMO[2];
    Ok(Tokenizer::from_bytes(name, bytes)?)
}

#[cfg(not(feature = "demo"))]
fn open_demo(_options: &Options) -> Result<Model> {
    Err(anyhow::anyhow!(
        "--model is needed: this build has no demo model"
    ))
}

#[cfg(not(feature = "demo"))]
fn demo_tokenizer() -> Result<Tokenizer> {
    Err(anyhow::anyhow!(
        "--model or --tokenizer is needed: this build has no demo model"
    ))
}
