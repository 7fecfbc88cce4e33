//! RWKV language models on small machines (crate documentation follows).
#![allow(dead_code)]
mod error;
mod file;
mod kernels;
mod math;
mod matrix;
mod model;
mod output;
mod product;
mod sampler;
mod session;
mod state;
mod text;
mod threads;
mod tokenizer;
mod v4;

pub use error::{Error, ErrorKind, Result};
pub use matrix::Quant;
pub use model::{Info, Model, Options, Output, Span, TensorInfo, Workspace};
pub use sampler::{Sampler, SamplerOptions};
pub use session::{Ending, Generated, GenerateOptions, Session};
pub use state::State;
pub use text::{StopTexts, TextStream};
pub use tokenizer::Tokenizer;
