//! RWKV language models on small machines (crate documentation follows).
mod error;
mod math;
mod sampler;
mod text;
mod tokenizer;

pub use error::{Error, ErrorKind, Result};
pub use sampler::{Sampler, SamplerOptions};
pub use text::{StopTexts, TextStream};
pub use tokenizer::Tokenizer;
