//! RWKV language models on small machines (crate documentation follows).
mod error;
mod math;

pub use error::{Error, ErrorKind, Result};
