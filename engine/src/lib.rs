//! RWKV language models on small machines (crate documentation follows).
#![allow(dead_code)]
mod batch;
mod checkpoint;
mod error;
mod file;
mod format;
mod kernels;
mod load;
mod math;
mod matrix;
mod model;
mod output;
mod product;
mod quant;
mod sampler;
mod session;
mod state;
mod synthetic;
mod text;
mod threads;
mod tokenizer;
mod v4;

pub use batch::{Output, Span};
pub use error::{Error, ErrorKind, Result};
pub use matrix::Quant;
pub use model::{Info, Model, Options, TensorInfo, Workspace};
pub use sampler::{Sampler, SamplerOptions};
pub use session::{Ending, GenerateOptions, Generated, Session};
pub use state::State;
pub use synthetic::SyntheticSize;
pub use text::{StopTexts, TextStream};
pub use tokenizer::Tokenizer;

/// For the benchmarks of this repository; not part of the interface.
#[doc(hidden)]
pub mod internals {
    pub use crate::kernels::{KernelSet, WkvChannels, PANEL_WIDTH};
}
