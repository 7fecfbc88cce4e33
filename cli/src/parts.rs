//! What packages that bring the command along have of it beside the command itself: what names of models mean, presets,
//! and bars on stderr. Errors are those of the engine.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use rwkv_edge::{Error, ErrorKind, Lora, Model, Quant, Result, SamplerOptions};

use crate::{convert, hub, lora, model, paths, quantised, sampling, text_of, verbosity};

pub use crate::progress::{on_step, Progress};

/// A model to open.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Found {
    /// Its file or folder.
    pub path: PathBuf,
    /// The tokenizer that its files do not bring, where it is known which that is and it could be had.
    pub tokenizer: Option<PathBuf>,
}

/// Whether bars and notes are shown on stderr, from now on and in all of the process.
pub fn show(shows: bool) {
    verbosity::show(shows);
}

/// What the option `--model` means: a path, or a name on the Hugging Face hub with a revision behind an `@`, which is
/// downloaded where the cache does not have it. With `copy_of`, the copy in that quantisation where `pull --quant` has
/// made one.
///
/// # Errors
///
/// When it cannot be had. What is no path of something and no name either is given back, for whoever opens it.
pub fn find_model(name: &Path, copy_of: Option<Quant>) -> Result<Found> {
    // A branch may have moved since.
    hub::forget();
    let source = hub::locate(name).map_err(to_engine)?;
    let copy = copy_of.and_then(|quant| quantised::find(&source, quant));
    let path = copy.unwrap_or(source.path);
    paths::check_tokenizer(&path).map_err(to_engine)?;
    // A model without one still reads token ids; what is missing the first text tells.
    let tokenizer = model::missing_tokenizer(&path).unwrap_or_default();
    Ok(Found { path, tokenizer })
}

/// Refuses to write a model file over a file that holds something else.
///
/// # Errors
///
/// Then, and when it cannot be read.
pub fn check_model_file(path: &Path) -> Result<()> {
    paths::check_replaced(path, paths::Written::ModelFile).map_err(to_engine)
}

/// The file that `convert --to raw` writes for a source: the one that is named, or one called like the source in the
/// folder that is named.
///
/// # Errors
///
/// When the folder cannot be made.
pub fn raw_file(output: &Path, source: &Path) -> Result<PathBuf> {
    convert::raw_file(output, source).map_err(to_engine)
}

/// An adapter as `--lora` names it: `FILE`, or `FILE:ALPHA`.
pub fn adapter(text: OsString) -> Lora {
    lora::parse(text)
}

/// The settings of `--preset`, where there is one of this name.
pub fn preset(name: &str) -> Option<SamplerOptions> {
    let preset = sampling::Preset::from_str(name, false).ok()?;
    Some(preset.options())
}

/// The tokens whose frequency does not matter with such a preset.
///
/// # Errors
///
/// Those of the model's tokenizer.
pub fn uncounted_tokens(preset: &str, model: &Model) -> Result<Vec<u32>> {
    match sampling::Preset::from_str(preset, false) {
        Ok(preset) => preset.uncounted_tokens(model).map_err(to_engine),
        Err(_) => Ok(Vec::new()),
    }
}

/// The names of all presets.
pub fn preset_names() -> Vec<String> {
    let all = sampling::Preset::value_variants().iter();
    let names = all.filter_map(|preset| preset.to_possible_value());
    names.map(|value| value.get_name().to_owned()).collect()
}

/// With the kind of the first cause that has one.
fn to_engine(error: anyhow::Error) -> Error {
    let kind = error.chain().find_map(|cause| {
        let of_engine = cause.downcast_ref::<Error>().map(Error::kind);
        let of_hub = cause.downcast_ref::<rwkv_edge_hub::Error>();
        let of_system = cause.downcast_ref::<io::Error>().map(|_| ErrorKind::Io);
        of_engine
            .or(of_hub.map(|error| kind_of_hub(error.kind())))
            .or(of_system)
    });
    Error::new(kind.unwrap_or(ErrorKind::Argument), text_of(&error))
}

fn kind_of_hub(kind: rwkv_edge_hub::ErrorKind) -> ErrorKind {
    use rwkv_edge_hub::ErrorKind as OfHub;
    match kind {
        OfHub::Argument => ErrorKind::Argument,
        OfHub::Content => ErrorKind::Format,
        _ => ErrorKind::Io,
    }
}
