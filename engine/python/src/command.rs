//! The command `rwkv-edge`.

use std::ffi::OsString;

use pyo3::exceptions::PyModuleNotFoundError;
use pyo3::prelude::*;

use crate::error::Result;

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
