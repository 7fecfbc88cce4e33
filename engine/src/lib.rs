//! RWKV language models on small machines (crate documentation follows).
#![allow(dead_code)]
mod error;
mod kernels;
mod math;
mod threads;

pub use error::{Error, ErrorKind, Result};
