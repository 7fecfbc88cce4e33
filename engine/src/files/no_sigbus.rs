//! In place of `sigbus.rs` where systems have no such handler.

#![forbid(unsafe_code)]

use std::fs::File;

use memmap2::Mmap;

use super::watch::Watch;
use crate::error::{Error, Result};

pub(super) struct Known;

impl Known {
    pub(super) fn new(_map: &Mmap, _file: &File, _watch: Watch) -> Self {
        Known
    }
}

/// Would let a mapped model file that shrinks become an error; on this system there is no such handler.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported): nothing has changed.
pub fn install_sigbus_handler() -> Result<()> {
    let text = "a handler of SIGBUS: only on Linux and Android";
    Err(Error::unsupported(text))
}
