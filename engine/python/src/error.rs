//! The one exception of the module, and how the engine's errors become it.

use engine::ErrorKind;
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

create_exception!(
    rwkv_edge,
    Error,
    PyException,
    "What went wrong in the engine: its text says what, where, expected and found.

`kind` is for programs: 'argument' (a value out of range, such as a token beyond the vocabulary), 'io', 'format' (a
damaged file), 'unsupported', 'memory', 'state' (of another model, or damaged), 'tokenizer' or 'backend'. Values of a
wrong type are a TypeError, as everywhere in Python."
);

/// Why a call failed: in the engine, or in Python itself, such as a KeyboardInterrupt.
pub(crate) enum Failed {
    Engine(engine::Error),
    Python(PyErr),
}

/// Shorthand for results of this crate.
pub(crate) type Result<T, E = Failed> = std::result::Result<T, E>;

impl Failed {
    /// A value that makes no sense.
    pub(crate) fn argument(text: impl Into<String>) -> Self {
        Self::new(ErrorKind::Argument, text)
    }

    pub(crate) fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        Failed::Engine(engine::Error::new(kind, text))
    }
}

impl From<engine::Error> for Failed {
    fn from(error: engine::Error) -> Self {
        Failed::Engine(error)
    }
}

impl From<PyErr> for Failed {
    fn from(error: PyErr) -> Self {
        Failed::Python(error)
    }
}

impl From<Failed> for PyErr {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Python(error) => error,
            Failed::Engine(error) => Python::attach(|py| {
                let exception = Error::new_err(error.to_string());
                match exception.value(py).setattr("kind", kind_name(error.kind())) {
                    Ok(()) => exception,
                    Err(of_python) => of_python,
                }
            }),
        }
    }
}

fn kind_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Argument => "argument",
        ErrorKind::Io => "io",
        ErrorKind::Format => "format",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::Memory => "memory",
        ErrorKind::State => "state",
        ErrorKind::Tokenizer => "tokenizer",
        ErrorKind::Backend => "backend",
        _ => "other",
    }
}
