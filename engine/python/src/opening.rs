//! Models by path or name, opened as the command opens what `--model` and the options beside it say.

use std::path::{Path, PathBuf};

use engine::{DeviceMap, Lora, Options, Quant};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString, PyTuple};
use rwkv_edge_cli::parts;

use crate::error::{Failed, Result};
use crate::keywords::{read, Keywords};

/// A model that is to be opened.
pub(crate) struct Opening {
    /// A path, or a name on the hub.
    pub(crate) name: PathBuf,
    pub(crate) options: Options,
    /// A tuned initial state.
    state: Option<PathBuf>,
    /// Whether bars are shown.
    pub(crate) shows: bool,
}

/// The quantisation of a name.
pub(crate) fn quant_of(name: Option<&str>) -> Result<Option<Quant>> {
    let unknown = |name: &str| {
        let all: Vec<_> = Quant::ALL.iter().map(|quant| quant.name()).collect();
        let expected = all.join(", ");
        Failed::argument(format!("quant: {name:?}, expected one of {expected}"))
    };
    let quant = |name: &str| Quant::from_name(name).ok_or_else(|| unknown(name));
    name.map(quant).transpose()
}

impl Opening {
    /// Takes the arguments that every function has which opens a model: threads, max_memory, device, tokenizer, lora,
    /// state, revision and progress.
    pub(crate) fn read(
        name: PathBuf,
        quant: Option<Quant>,
        keywords: &mut Keywords<'_>,
    ) -> Result<Self> {
        let mut opening = Self::read_source(name, quant, keywords)?;
        let memory: Option<u64> = keywords.take("max_memory")?;
        let device: Option<String> = keywords.take("device")?;
        opening.options = opening.options.memory_max(memory.unwrap_or(0));
        if let Some(device) = device {
            let map = device.parse::<DeviceMap>();
            opening.options = opening.options.device_map(map.map_err(Failed::Engine)?);
        }
        opening.state = keywords.take("state")?;
        Ok(opening)
    }

    /// The same for functions that write another file: threads, tokenizer, lora, revision and progress.
    pub(crate) fn read_source(
        name: PathBuf,
        quant: Option<Quant>,
        keywords: &mut Keywords<'_>,
    ) -> Result<Self> {
        let threads: Option<usize> = keywords.take("threads")?;
        let mut options = Options::new().quant(quant).threads(threads.unwrap_or(0));
        options.tokenizer = keywords.take("tokenizer")?;
        options.loras = adapters(keywords)?;
        let revision: Option<String> = keywords.take("revision")?;
        Ok(Opening {
            name: with_revision(name, revision.as_deref())?,
            options,
            state: None,
            shows: keywords.take_progress()?,
        })
    }

    /// The path of the model, which is downloaded where it is a name and not yet there; a tokenizer that it lacks is
    /// set. With `finds_copies` it is a quantised copy where the command's `pull --quant` has made one.
    pub(crate) fn find(&mut self, finds_copies: bool) -> engine::Result<PathBuf> {
        parts::show(self.shows);
        let finds_copies = finds_copies && self.options.loras.is_empty();
        let copy_of = self.options.quant.filter(|_| finds_copies);
        let found = parts::find_model(&self.name, copy_of)?;
        if self.options.tokenizer.is_none() {
            self.options.tokenizer = found.tokenizer;
        }
        Ok(found.path)
    }

    /// The model, and its path.
    pub(crate) fn open(mut self) -> engine::Result<(engine::Model, PathBuf)> {
        // A file that is cut while it is used becomes an error then. Faults of others go to whoever had them before,
        // such as faulthandler.
        let _ = engine::install_sigbus_handler();
        let names_tokenizer = self.options.tokenizer.is_some();
        let path = self.find(true)?;
        let mut bar = parts::Progress::after_a_second("loading");
        let mut show = |p: engine::Progress| bar.show(p.done, p.total);
        let mut model = engine::Model::open_with_progress(&path, &self.options, &mut show)?;
        // A wrong file is told here, and not by the first text.
        if names_tokenizer {
            model.tokenizer()?;
        }
        if let Some(state) = &self.state {
            model = model.with_initial_state(state)?;
        }
        Ok((model, path))
    }
}

fn with_revision(name: PathBuf, revision: Option<&str>) -> Result<PathBuf> {
    let Some(revision) = revision else {
        return Ok(name);
    };
    match name.to_str() {
        Some(text) if !name.exists() => Ok(format!("{text}@{revision}").into()),
        _ => Err(Failed::argument(format!(
            "revision: {revision:?}, but {} is a path, expected a name on the Hugging Face hub",
            name.display()
        ))),
    }
}

/// `lora`: one adapter, or a list of them.
fn adapters(keywords: &mut Keywords<'_>) -> Result<Vec<Lora>> {
    let Some(given) = keywords.take_any("lora")? else {
        return Ok(Vec::new());
    };
    match given.cast::<PyList>() {
        Ok(list) => list.iter().map(|one| adapter(&one)).collect(),
        Err(_) => Ok(vec![adapter(&given)?]),
    }
}

/// 'FILE', 'FILE:ALPHA' or (file, alpha).
fn adapter(given: &Bound<'_, PyAny>) -> Result<Lora> {
    if given.is_instance_of::<PyTuple>() {
        let (file, alpha): (PathBuf, f64) = read("lora", given)?;
        return Ok(Lora::new(file, alpha));
    }
    let file: PathBuf = read("lora", given)?;
    Ok(match given.is_instance_of::<PyString>() {
        true => parts::adapter(file.into()),
        false => Lora::new(file, None),
    })
}

/// Whether two paths lead to the same file or folder.
pub(crate) fn are_the_same(a: &Path, b: &Path) -> bool {
    match (std::fs::canonicalize(a), std::fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}
