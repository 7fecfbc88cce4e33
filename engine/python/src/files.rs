//! Checkpoints and models to files of other kinds.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use engine::{CheckpointSource, ConvertOptions, ErrorKind, FloatType, Model, OutputFile, Target};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use rwkv_edge_cli::parts;

use crate::error::{Failed, Result};
use crate::interrupt::interruptible;
use crate::keywords::{read, Keywords};
use crate::opening::{are_the_same, quant_of, Opening};
use crate::texts::ids;

/// Bytes of a text that are read for each token that is wanted, as `quantize --calibrate` does: few vocabularies have
/// longer tokens, and of these a text is not made.
const BYTES_OF_TOKEN: u64 = 64;
const CALIBRATE_TOKENS: usize = 4096;

/// By what weights are rounded so that their errors cancel.
enum Calibration {
    Text(PathBuf),
    Tokens(Vec<u32>),
}

impl Calibration {
    fn of(given: &Bound<'_, PyAny>) -> Result<Self> {
        let is_path = given.is_instance_of::<PyString>() || given.hasattr("__fspath__")?;
        match is_path {
            true => Ok(Calibration::Text(read("calibrate", given)?)),
            false => Ok(Calibration::Tokens(ids(given)?)),
        }
    }

    fn tokens(
        self,
        model: &Path,
        options: &engine::Options,
        n_max: usize,
    ) -> engine::Result<Vec<u32>> {
        let mut tokens = match self {
            Calibration::Tokens(tokens) => tokens,
            Calibration::Text(file) => {
                let mut text = Vec::new();
                let n_bytes = (n_max as u64).saturating_mul(BYTES_OF_TOKEN);
                let read =
                    File::open(&file).and_then(|one| one.take(n_bytes).read_to_end(&mut text));
                read.map_err(|e| {
                    let text = format!("{}: cannot read: {e}", file.display());
                    engine::Error::new(ErrorKind::Io, text)
                })?;
                Model::open_tokenizer(model, options)?.encode_bytes(&text)?
            }
        };
        tokens.truncate(n_max);
        Ok(tokens)
    }
}

/// Writes a checkpoint as one model file, which appears only when it is complete: smaller, and opened without a
/// wait. `source` is a path, or a name on the Hugging Face hub.
///
/// quant: 'int8', 'q6', 'q5', 'q4', 'f16' or 'f32'
/// target_bits: mix formats of 4 to 8 bits, so many bits a weight on average, 4 to 8.5; in place of `quant`
/// target_size: the same for a file of at most so many bytes
/// calibrate: a file of text, or token ids, on which the errors of the rounded weights are to cancel (q4, q5, q6 and
///     mixes)
/// calibrate_tokens: so many tokens of that at most
/// lora: an adapter that is merged first, 'FILE', 'FILE:ALPHA' or (file, alpha), or a list of them
/// tokenizer: a file that becomes part of the model file instead of the checkpoint's own
/// threads: that work on it; None one for each physical core
/// revision: of a name on the hub: a branch, tag or commit
/// progress: whether bars are shown on stderr; None where that is a terminal
///
/// Gives a dict of facts: file, quant, n_params, bytes, bits_per_weight, tokenizer. Ctrl-C ends it and leaves no file.
#[pyfunction]
#[pyo3(signature = (source, destination, quant=None, **options), text_signature = "(source, destination, quant='int8', \
    *, target_bits=None, target_size=None, calibrate=None, calibrate_tokens=4096, lora=None, tokenizer=None, \
    threads=None, revision=None, progress=None)")]
pub(crate) fn quantize<'py>(
    py: Python<'py>,
    source: PathBuf,
    destination: PathBuf,
    quant: Option<&str>,
    options: Option<&Bound<'py, PyDict>>,
) -> Result<Bound<'py, PyDict>> {
    let mut keywords = Keywords::of("quantize", options)?;
    let target = target(&mut keywords)?;
    let quant = match (quant_of(quant)?, target) {
        (Some(_), Some(_)) => {
            let text = "quant and a size, expected one of quant, target_bits and target_size";
            return Err(Failed::argument(text));
        }
        (quant, None) => quant.or(Some(engine::Quant::Int8)),
        (None, Some(_)) => None,
    };
    let mut opening = Opening::read_source(source, quant, &mut keywords)?;
    opening.options = opening.options.target(target);
    let calibration = keywords.take_any("calibrate")?;
    let calibration = calibration.as_ref().map(Calibration::of).transpose()?;
    let n_max: Option<usize> = keywords.take("calibrate_tokens")?;
    keywords.finish()?;
    if are_the_same(&opening.name, &destination) {
        return Err(is_the_model_itself(&destination));
    }
    let output = destination.clone();
    let (info, n_bytes) = interruptible(py, move || {
        parts::check_model_file(&output)?;
        // Not only when everything is read, which may take minutes.
        drop(OutputFile::create(&output)?);
        let path = opening.find(false)?;
        let model = match calibration {
            None => {
                let mut bar = parts::Progress::after_a_second("loading");
                let mut show = |p: engine::Progress| bar.show(p.done, p.total);
                Model::open_with_progress(&path, &opening.options, &mut show)?
            }
            Some(calibration) => {
                let n_max = n_max.unwrap_or(CALIBRATE_TOKENS);
                let tokens = calibration.tokens(&path, &opening.options, n_max)?;
                let mut bar = parts::Progress::at_once("calibrating");
                let mut show = |p: engine::Progress| bar.show(p.done, p.total);
                Model::open_calibrated(&path, &opening.options, &tokens, &mut show)?
            }
        };
        let mut bar = parts::Progress::at_once("writing");
        model.save(&output, &mut |p| bar.show(p.done, p.total))?;
        let n_bytes = fs::metadata(&output).map_or(0, |found| found.len());
        Ok((model.info(), n_bytes))
    })?;
    let facts = PyDict::new(py);
    facts.set_item("file", destination)?;
    facts.set_item("quant", info.quant.name())?;
    facts.set_item("n_params", info.n_params)?;
    facts.set_item("bytes", n_bytes)?;
    facts.set_item("bits_per_weight", info.bits_per_weight)?;
    facts.set_item("tokenizer", info.tokenizer)?;
    Ok(facts)
}

fn is_the_model_itself(destination: &Path) -> Failed {
    let place = destination.display();
    Failed::argument(format!(
        "{place}: is the model itself, expected another file"
    ))
}

/// How large the file is to be.
fn target(keywords: &mut Keywords<'_>) -> Result<Option<Target>> {
    let bits: Option<f64> = keywords.take("target_bits")?;
    let bytes: Option<u64> = keywords.take("target_size")?;
    match (bits, bytes) {
        (None, None) => Ok(None),
        (None, Some(bytes)) => Ok(Some(Target::FileBytes(bytes))),
        (Some(bits), None) if (4.0..=8.5).contains(&bits) => {
            Ok(Some(Target::MilliBits((1000.0 * bits).round() as u32)))
        }
        (Some(bits), None) => Err(Failed::argument(format!(
            "target_bits: {bits}, expected 4 to 8.5"
        ))),
        (Some(_), Some(_)) => {
            let text = "target_bits and target_size, expected one of them";
            Err(Failed::argument(text))
        }
    }
}

/// Writes a checkpoint as another: a Hugging Face directory, or a .pth file as the RWKV models are published.
/// `source` is a path, or a name on the Hugging Face hub.
///
/// to: 'hf', a directory, or 'raw', a .pth file, for which `destination` may also be the directory that it lies in
/// dtype: 'f32', 'f16' or 'bf16'; None keeps the numbers as they are, and quantised ones become f32
/// tokenizer: a file that becomes part of the directory
/// max_shard_size: bytes of one file at most; None 5,000,000,000
/// lora: an adapter that is merged, 'FILE', 'FILE:ALPHA' or (file, alpha), or a list of them
/// overwrite: replace the model that is there already
/// revision: of a name on the hub: a branch, tag or commit
/// progress: whether bars are shown on stderr; None where that is a terminal
///
/// Gives a dict of facts: output, weight_files, tokenizer_files, dtype, n_params, bytes, notes. Ctrl-C ends it and leaves
/// nothing of it.
#[pyfunction]
#[pyo3(signature = (source, destination, **options), text_signature = "(source, destination, *, to='hf', dtype=None, \
    tokenizer=None, max_shard_size=None, lora=None, overwrite=False, revision=None, progress=None)")]
pub(crate) fn convert<'py>(
    py: Python<'py>,
    source: PathBuf,
    destination: PathBuf,
    options: Option<&Bound<'py, PyDict>>,
) -> Result<Bound<'py, PyDict>> {
    let mut keywords = Keywords::of("convert", options)?;
    let to: Option<String> = keywords.take("to")?;
    let dtype: Option<String> = keywords.take("dtype")?;
    let shard_bytes: Option<u64> = keywords.take("max_shard_size")?;
    let overwrite: Option<bool> = keywords.take("overwrite")?;
    let mut opening = Opening::read_source(source, None, &mut keywords)?;
    keywords.finish()?;
    let is_raw = match to.as_deref() {
        None | Some("hf") => false,
        Some("raw") => true,
        Some(other) => {
            return Err(Failed::argument(format!(
                "to: {other:?}, expected hf or raw"
            )));
        }
    };
    if is_raw && (shard_bytes.is_some() || opening.options.tokenizer.is_some()) {
        let text = "to: \"raw\" writes one file, which has no use for tokenizer and max_shard_size";
        return Err(Failed::argument(text));
    }
    let mut how = ConvertOptions::new()
        .dtype(dtype.as_deref().map(float_type).transpose()?)
        .overwrite(overwrite.unwrap_or(false));
    if let Some(bytes) = shard_bytes {
        how = how.shard_bytes_max(bytes);
    }
    how.tokenizer = opening.options.tokenizer.clone();
    let (output, converted) = interruptible(py, move || {
        let path = opening.find(false)?;
        let source = CheckpointSource::open(&path)?.with_loras(&opening.options.loras)?;
        let mut bar = parts::Progress::at_once("writing");
        let mut show = |p: engine::Progress| bar.show(p.done, p.total);
        match is_raw {
            false => {
                let converted = source.to_hugging_face(&destination, &how, &mut show)?;
                Ok((destination, converted))
            }
            true => {
                let file = parts::raw_file(&destination, &path)?;
                let converted = source.to_raw(&file, &how, &mut show)?;
                Ok((file, converted))
            }
        }
    })?;
    let facts = PyDict::new(py);
    facts.set_item("output", output)?;
    facts.set_item("weight_files", converted.weight_files)?;
    facts.set_item("tokenizer_files", converted.tokenizer_files)?;
    facts.set_item("dtype", converted.dtype.name())?;
    facts.set_item("n_params", converted.n_params)?;
    facts.set_item("bytes", converted.size_bytes)?;
    facts.set_item("notes", converted.notes)?;
    Ok(facts)
}

fn float_type(name: &str) -> Result<FloatType> {
    match name {
        "f32" => Ok(FloatType::F32),
        "f16" => Ok(FloatType::F16),
        "bf16" => Ok(FloatType::Bf16),
        _ => Err(Failed::argument(format!(
            "dtype: {name:?}, expected f32, f16 or bf16"
        ))),
    }
}
