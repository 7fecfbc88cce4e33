//! RWKV language models on small machines (crate documentation follows).
#![allow(dead_code)]
mod checkpoint;
mod error;
mod file;
mod kernels;
mod math;
mod matrix;
mod output;
mod product;
mod sampler;
mod state;
mod text;
mod threads;
mod tokenizer;

pub use error::{Error, ErrorKind, Result};
pub use matrix::Quant;
pub use sampler::{Sampler, SamplerOptions};
pub use state::State;
pub use text::{StopTexts, TextStream};
pub use tokenizer::Tokenizer;
