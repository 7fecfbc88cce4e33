//! The command `rwkv-edge`.

use std::ffi::OsString;

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
    engine::ignore_file_size_signal();
    Ok(py.detach(|| rwkv_edge_cli::main_of(&program, arguments)))
}
