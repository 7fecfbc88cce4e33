//! The user's folders, where the conventions put them that Python's `huggingface_hub` follows too.
//!
//! The environment is the caller's: `variable` looks up one of its variables.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;

use crate::error::{Error, ErrorKind, Result};

/// The folder for caches: `$XDG_CACHE_HOME`, else `.cache` in the home folder, on every system.
///
/// # Errors
///
/// [`ErrorKind::Argument`] where neither variable is set.
pub fn cache(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    if let Some(folder) = variable("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        return Ok(folder.into());
    }
    match home(variable) {
        Some(home) => Ok(home.join(".cache")),
        None => Err(Error::new(
            ErrorKind::Argument,
            "HOME is not set, so there is no place for a cache",
        )),
    }
}

/// The home folder: `$HOME`, on Windows `%USERPROFILE%`.
pub fn home(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let name = if cfg!(windows) { "USERPROFILE" } else { "HOME" };
    let home = variable(name).filter(|value| !value.is_empty())?;
    Some(home.into())
}
