//! RWKV language models on small machines (crate documentation follows).
#![allow(dead_code)]
mod checkpoint;
mod error;
mod file;
mod format;
mod kernels;
mod load;
mod math;
mod matrix;
mod output;
mod product;
mod quant;
mod sampler;
mod state;
mod synthetic;
mod text;
mod threads;
mod tokenizer;

pub use batch::{Output, Span};
pub use error::{Error, ErrorKind, Result};
pub use matrix::Quant;
pub use sampler::{Sampler, SamplerOptions};
pub use state::State;
pub use synthetic::SyntheticSize;
pub use text::{StopTexts, TextStream};
pub use tokenizer::Tokenizer;

/// For the benchmarks of this repository; not part of the interface.
#[doc(hidden)]
pub mod internals {
    pub use crate::kernels::{KernelSet, WkvChannels, PANEL_WIDTH};
}
