//! Quantising, and the command `rwkv-edge`.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use engine::{Model, Options};
use pyo3::exceptions::PyModuleNotFoundError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::{Failed, Result};
use crate::model::quant_of;

/// Writes a checkpoint as one model file, which appears only when it is complete: smaller, and opened without a
/// wait.
///
/// `quant` is 'int8', 'q6', 'q5', 'q4', 'f16' or 'f32'. The tokenizer goes into the file, `tokenizer` another one
/// than that of the checkpoint. Gives a dict of facts: file, quant, n_params, bytes, bits_per_weight. Ctrl-C waits
/// until it is done.
#[pyfunction]
#[pyo3(signature = (source, target, quant="int8", threads=None, tokenizer=None))]
pub(crate) fn quantize<'py>(
    py: Python<'py>,
    source: PathBuf,
    target: PathBuf,
    quant: &str,
    threads: Option<usize>,
    tokenizer: Option<PathBuf>,
) -> Result<Bound<'py, PyDict>> {
    let mut options = Options::new()
        .quant(quant_of(Some(quant))?)
        .threads(threads.unwrap_or(0));
    options.tokenizer = tokenizer;
    if let (Ok(a), Ok(b)) = (fs::canonicalize(&source), fs::canonicalize(&target)) {
        if a == b {
            let text = format!(
                "{}: is the model itself, expected another file",
                target.display()
            );
            return Err(Failed::argument(text));
        }
    }
    let (info, n_bytes) = py.detach(|| -> engine::Result<_> {
        // Not only when everything is read, which may take minutes.
        drop(engine::OutputFile::create(&target)?);
        let model = Model::open(&source, &options)?;
        model.save(&target, &mut |_| ())?;
        let n_bytes = fs::metadata(&target).map_or(0, |found| found.len());
        Ok((model.info(), n_bytes))
    })?;
    let facts = PyDict::new(py);
    facts.set_item("file", target)?;
    facts.set_item("quant", info.quant.name())?;
    facts.set_item("n_params", info.n_params)?;
    facts.set_item("bytes", n_bytes)?;
    facts.set_item("bits_per_weight", info.bits_per_weight)?;
    Ok(facts)
}

/// The command, with the arguments of this process; gives its exit code.
#[pyfunction]
pub(crate) fn _command(py: Python<'_>) -> Result<u8> {
    let sys = py.import("sys")?;
    let arguments: Vec<OsString> = sys.getattr("argv")?.extract()?;
    let python: OsString = sys.getattr("executable")?.extract()?;
    // Python's handler would wait for Python code to run, and there is none until the command has ended.
    let signal = py.import("signal")?;
    signal.call_method1(
        "signal",
        (signal.getattr("SIGINT")?, signal.getattr("SIG_DFL")?),
    )?;
    // What runs the command once more, for measuring how it starts.
    let program: Vec<OsString> = [python]
        .into_iter()
        .chain(arguments.first().cloned())
        .collect();
    take_demo(py)?;
    engine::ignore_file_size_signal();
    Ok(py.detach(|| rwkv_edge_cli::main_of(&program, arguments)))
}

/// Where no model is named, the command takes that of the package rwkv-edge-demo, if it is installed.
fn take_demo(py: Python<'_>) -> Result<()> {
    const MODEL: &str = "RWKV_EDGE_MODEL";
    let environment = py.import("os")?.getattr("environ")?;
    let named = environment.call_method1("get", (MODEL, ""))?;
    if named.is_truthy()? {
        return Ok(());
    }
    match py.import("rwkv_edge_demo") {
        Ok(demo) => Ok(environment.set_item(MODEL, demo.getattr("PATH")?)?),
        Err(error) if error.is_instance_of::<PyModuleNotFoundError>(py) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
