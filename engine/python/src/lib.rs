//! The Python module `rwkv_edge`, of which this is all that is not Python: `rwkv_edge._native`.
//!
//! docs/PYTHON.md is its guide, `python/rwkv_edge/__init__.pyi` its interface. Whatever computes lets other threads
//! of Python run meanwhile (`passes.rs`); numbers lie in memory of Python from the start (`array.rs`).

mod array;
mod chat;
mod command;
mod error;
mod files;
mod generate;
mod interrupt;
mod keywords;
mod lanes;
mod model;
mod opening;
mod passes;
mod sampling;
mod scoring;
mod state;
mod texts;

use pyo3::prelude::*;

/// RWKV language models on small machines.
#[pymodule]
mod _native {
    #[pymodule_export]
    use crate::command::_command;
    #[pymodule_export]
    use crate::error::Error;
    #[pymodule_export]
    use crate::files::{convert, quantize};
    #[pymodule_export]
    use crate::generate::{Generated, Stream, TokenLogprob};
    #[pymodule_export]
    use crate::model::{Model, Tokenizer};
    #[pymodule_export]
    use crate::scoring::perplexity;
    #[pymodule_export]
    use crate::state::State;

    #[allow(non_upper_case_globals)]
    #[pymodule_export]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
