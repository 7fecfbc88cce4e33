//! Opens the model that the arguments name, or the built-in demo model.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use rwkv_edge::{Model, Options, Target, Tokenizer};

use crate::args::ModelArgs;
use crate::progress::Progress;
use crate::{detail, devices, hub, memory, note, paths, quantised, verbosity};

/// A Hugging Face directory as part of the program; its README says what the model is.
#[cfg(feature = "demo")]
static DEMO: &[(&str, &[u8])] = &[
    ("config.json", include_bytes!("../demo/config.json")),
    ("model.safetensors", &WEIGHTS.0),
    ("tokenizer.json", include_bytes!("../demo/tokenizer.json")),
];

/// Weights are used in place where their address allows it; `include_bytes!` alone gives any address.
#[cfg(feature = "demo")]
static WEIGHTS: &Aligned<[u8]> = &Aligned(*include_bytes!("../demo/model.safetensors"));

#[cfg(feature = "demo")]
#[repr(align(64))]
struct Aligned<T: ?Sized>(T);

/// Bytes of this program that come into memory while a model runs: code, stacks of threads, buffers of
/// output. Measured, and rounded up.
const PROGRAM_GROWS_BY: u64 = 4 << 20;
/// What is assumed to be in memory where the system does not say.
const PROGRAM_BYTES: u64 = 8 << 20;

/// Opens a model that will be given text: where its tokenizer is missing and known, that is found
/// too.
pub(crate) fn open(args: &ModelArgs) -> Result<Model> {
    open_model(args, options(args), Purpose::Text { is_sure: true })
}

/// Opens a model that may be given text.
pub(crate) fn open_for_some_text(args: &ModelArgs) -> Result<Model> {
    open_model(args, options(args), Purpose::Text { is_sure: false })
}

/// Opens a model that will be given token ids at most.
pub(crate) fn open_without_text(args: &ModelArgs) -> Result<Model> {
    open_model(args, options(args), Purpose::Tokens)
}

/// Opens a model that is only looked at.
pub(crate) fn open_to_look(args: &ModelArgs) -> Result<Model> {
    open_model(args, options(args), Purpose::Look)
}

/// Opens a model of which a quantised copy is made, and hints at no other way to make one.
///
/// With tokens it is calibrated by them.
pub(crate) fn open_to_copy(
    args: &ModelArgs,
    target: Option<Target>,
    tokens: Option<&[u32]>,
) -> Result<Model> {
    let options = options(args).target(target);
    match tokens {
        None => open_model(args, options, Purpose::Copy),
        Some(tokens) => open_calibrated(args, options, tokens),
    }
}

/// Opens a checkpoint and quantises it by these tokens.
fn open_calibrated(args: &ModelArgs, mut options: Options, tokens: &[u32]) -> Result<Model> {
    let start = Instant::now();
    args.lora.checked()?;
    let Some(model) = &args.model else {
        bail!("no model to calibrate, expected --model");
    };
    let path = hub::locate(model)?.path;
    if options.tokenizer.is_none() {
        // The text was cut by that one.
        options.tokenizer = missing_tokenizer(&path)?;
    }
    let mut progress = Progress::at_once("calibrating");
    let model = Model::open_calibrated(&path, &options, tokens, &mut |p| {
        progress.show(p.done, p.total)
    })?;
    drop(progress);
    describe(&model, start.elapsed());
    tell_of_small_tokenizer(&model);
    Ok(model)
}

pub(crate) fn open_with(args: &ModelArgs, no_sparsity: bool) -> Result<Model> {
    let options = options(args).no_sparsity(no_sparsity);
    open_model(args, options, Purpose::Tokens)
}

/// What a model is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Whether surely: a state can be gone on from without any text.
    Text {
        is_sure: bool,
    },
    Tokens,
    Copy,
    Look,
}

/// The model with another empty state, where one is named.
pub(crate) fn begin_with(model: Model, initial: Option<&Path>) -> Result<Model> {
    match initial {
        None => Ok(model),
        Some(path) => {
            paths::check_link(path)?;
            Ok(model.with_initial_state(path)?)
        }
    }
}

fn open_model(args: &ModelArgs, mut options: Options, purpose: Purpose) -> Result<Model> {
    let needs_text = matches!(purpose, Purpose::Text { .. });
    options.memory_for_text = needs_text;
    args.lora.checked()?;
    let start = Instant::now();
    let Some(model) = &args.model else {
        if options.huge_pages {
            note!("--huge-pages changes nothing here: the demo model is a part of this program");
        }
        let model = open_demo(&options)?;
        describe(&model, start.elapsed());
        if needs_text || purpose == Purpose::Copy {
            tell_of_small_tokenizer(&model);
        }
        return Ok(model);
    };
    let source = hub::locate(model)?;
    let path = match options.quant {
        // Copies are of models without adapters.
        Some(quant) if options.loras.is_empty() => {
            quantised::find(&source, quant).unwrap_or_else(|| {
                if !matches!(purpose, Purpose::Copy | Purpose::Look) {
                    quantised::hint(&source, quant);
                }
                source.path.clone()
            })
        }
        _ => source.path,
    };
    if needs_text && options.tokenizer.is_none() {
        paths::check_tokenizer(&path)?;
        options.tokenizer = missing_tokenizer(&path)?;
    }
    match purpose {
        Purpose::Text { is_sure: true } => check_tokenizer(&path, &options, true)?,
        Purpose::Copy => check_tokenizer(&path, &options, false)?,
        _ => {}
    }
    let mut progress = Progress::after_a_second("loading");
    let model =
        Model::open_with_progress(&path, &options, &mut |p| progress.show(p.done, p.total))?;
    drop(progress);
    describe(&model, start.elapsed());
    if options.quant.is_none() {
        tell_of_blocks(&path, &model);
    }
    if needs_text || purpose == Purpose::Copy {
        tell_of_small_tokenizer(&model);
    }
    if options.huge_pages && model.info().huge_page_bytes == 0 {
        note!(
            "--huge-pages changes nothing here: it is for a model on the CPU whose weights are used as they are \
             stored; `quantize` writes such a file"
        );
    }
    Ok(model)
}

/// Whether texts can be turned into tokens, before weights are converted, which may take minutes. Where they are used as
/// they are stored, nothing is lost by finding out later, and the tokenizer is not read twice; nor where memory is
/// limited.
fn check_tokenizer(path: &Path, options: &Options, is_needed: bool) -> Result<()> {
    // What is wrong with a model that has no outline, opening it tells.
    let Ok(outline) = Model::outline(path, options) else {
        return Ok(());
    };
    let is_there = outline.has_tokenizer || options.tokenizer.is_some();
    let is_converted = options.quant.is_some() && !outline.is_model_file;
    let is_read_now = is_there && is_converted && options.memory_max.is_none();
    if is_read_now || is_needed && !is_there {
        Model::open_tokenizer(path, options)?;
    }
    Ok(())
}

/// A vocabulary is padded by some rows; one with far fewer tokens is of another model, mostly.
fn tell_of_small_tokenizer(model: &Model) {
    if !model.has_tokenizer() {
        return;
    }
    // What is wrong with it, whoever needs it tells.
    let Ok(tokenizer) = model.tokenizer() else {
        return;
    };
    let (n_tokens, n_vocab) = (tokenizer.n_tokens(), model.n_vocab());
    if n_tokens < n_vocab / 10 * 9 {
        note!(
            "the tokenizer has {n_tokens} tokens, and the model rows for {n_vocab}: it may be another model's"
        );
    }
}

/// Says what became of weights that are stored as nothing here computes with.
fn tell_of_blocks(path: &Path, model: &Model) {
    let info = model.info();
    if let Some(blocks) = info.stored_blocks {
        let (place, quant) = (path.display(), info.quant);
        note!(
            "{place}: its {blocks} weights become {quant}: --quant int8 makes them smaller, --quant f32 keeps their \
             exact values"
        );
    }
}

/// What `--verbose` says of a model that was opened, and what everybody should know.
pub(crate) fn describe(model: &Model, time: Duration) {
    if let Some(reason) = model.info().device_note {
        note!("auto: the model runs on the CPU: {reason}");
    }
    if let Some(correction) = model.info().correction {
        note!("{correction}");
    }
    if !verbosity::is_verbose() {
        return;
    }
    let info = model.info();
    let mb = |bytes: u64| bytes as f64 / 1e6;
    detail!(
        "{}: opened in {:.1} ms; {} parameters, {:.1} MB as {}, {:.1} MB of them in place from the file, \
         {:.1} MB in huge pages",
        info.place,
        time.as_secs_f64() * 1e3,
        info.n_params,
        mb(info.weight_bytes),
        info.quant,
        mb(info.mapped_bytes),
        mb(info.huge_page_bytes)
    );
    if devices::is_on_device(&info) {
        for stage in &info.stages {
            detail!("{}", devices::describe(stage));
        }
    }
    detail!(
        "tokenizer {}; {} kernels, {} threads; state of {} bytes",
        info.tokenizer.as_deref().unwrap_or("none"),
        info.kernels,
        info.threads,
        info.state_bytes
    );
    if info.paged_bytes > 0 {
        detail!(
            "{:.1} MB of the weights do not fit the memory limit and are read again for every batch, of up \
             to {} tokens",
            mb(info.paged_bytes),
            model.prefill_rows()
        );
    }
}

/// Bytes that this program takes at most without a model, beside what is counted.
pub(crate) fn program_bytes() -> u64 {
    memory::peak_resident_bytes().unwrap_or(PROGRAM_BYTES) + PROGRAM_GROWS_BY
}

/// Only the tokenizer: weights are neither read nor converted.
pub(crate) fn open_tokenizer(args: &ModelArgs) -> Result<Tokenizer> {
    let is_limited = args.max_memory.is_some();
    let model = match (&args.tokenizer, &args.model) {
        (_, Some(model)) => model,
        (Some(path), None) => return Ok(Tokenizer::open_within(path, is_limited)?),
        (None, None) => return demo_tokenizer(is_limited),
    };
    let remote = match args.tokenizer {
        Some(_) => None,
        None => hub::tokenizer_of(model)?,
    };
    if let Some(remote) = remote {
        return open_remote_tokenizer(&remote, is_limited);
    }
    let path = hub::locate(model)?.path;
    let mut options = options(args);
    if options.tokenizer.is_none() {
        paths::check_tokenizer(&path)?;
        options.tokenizer = missing_tokenizer(&path)?;
    }
    Ok(Model::open_tokenizer(&path, &options)?)
}

fn open_remote_tokenizer(remote: &hub::RemoteTokenizer, is_limited: bool) -> Result<Tokenizer> {
    let path = match (&remote.path, remote.n_vocab) {
        (Some(path), _) => path.clone(),
        (None, Some(n_vocab)) if Tokenizer::is_of_20b(n_vocab) => hub::tokenizer_20b()?,
        (None, _) => bail!(
            "{}: no tokenizer.json, rwkv_vocab*.txt or vocab.txt in the repository; name a tokenizer with \
             --tokenizer FILE",
            remote.id
        ),
    };
    let tokenizer = Tokenizer::open_within(&path, is_limited)?;
    if let Some(n_vocab) = remote.n_vocab {
        tokenizer.check_fits(n_vocab)?;
    }
    Ok(tokenizer)
}

/// The 20B tokenizer, from the hub or its cache, if a model needs it and has none.
pub(crate) fn missing_tokenizer(path: &Path) -> Result<Option<PathBuf>> {
    // What is wrong with a model that has no outline, opening it tells.
    let n_vocab = match Model::outline(path, &Options::default()) {
        Ok(outline) if Tokenizer::is_of_20b(outline.n_vocab) && !outline.has_tokenizer => {
            outline.n_vocab
        }
        _ => return Ok(None),
    };
    let tokenizer = hub::tokenizer_20b().with_context(|| {
        format!(
            "{}: no tokenizer in or beside it; a vocabulary of {n_vocab} is that of \
             tokenizer.json of EleutherAI/gpt-neox-20b, which --tokenizer FILE can name",
            path.display()
        )
    })?;
    Ok(Some(tokenizer))
}

pub(crate) fn options(args: &ModelArgs) -> Options {
    let mut options = Options::new()
        .quant(args.quant.map(Into::into))
        .threads(args.threads)
        .no_mmap(args.no_mmap)
        .huge_pages(args.huge_pages)
        .device_map(args.devices.map())
        .device_memory_max(args.devices.limits())
        .memory_max(args.max_memory.map_or(0, |size| size.0))
        .memory_taken(memory::resident_bytes().unwrap_or(PROGRAM_BYTES) + PROGRAM_GROWS_BY);
    options.tokenizer = args.tokenizer.clone();
    options.loras = args.lora.loras.clone();
    options
}

#[cfg(feature = "demo")]
fn open_demo(options: &Options) -> Result<Model> {
    Ok(Model::open_embedded(DEMO, options)?)
}

#[cfg(feature = "demo")]
fn demo_tokenizer(is_limited: bool) -> Result<Tokenizer> {
    let (name, bytes) = DEMO[2];
    Ok(Tokenizer::from_bytes_within(name, bytes, is_limited)?)
}

#[cfg(not(feature = "demo"))]
fn open_demo(_options: &Options) -> Result<Model> {
    bail!("--model is needed: {NO_DEMO}")
}

#[cfg(not(feature = "demo"))]
fn demo_tokenizer(_is_limited: bool) -> Result<Tokenizer> {
    bail!("--model or --tokenizer is needed: {NO_DEMO}")
}

/// Why, and what helps.
#[cfg(not(feature = "demo"))]
const NO_DEMO: &str = match cfg!(feature = "wheel") {
    true => "no demo model is installed, pip install \"rwkv-edge[demo]\" brings one",
    false => "this build has no demo model",
};
