//! The user's folder for caches, where the system's conventions put it.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// `$XDG_CACHE_HOME`, else `.cache` in the home folder, on every system: Python's `huggingface_hub`
/// does the same, and shares what lies there. `variable` looks up an environment variable.
pub(crate) fn of_user(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    if let Some(folder) = variable("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        return Ok(folder.into());
    }
    let home = home(variable).context("HOME is not set, so there is no place for a cache")?;
    Ok(home.join(".cache"))
}

pub(crate) fn home(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let name = if cfg!(windows) { "USERPROFILE" } else { "HOME" };
    let home = variable(name).filter(|value| !value.is_empty())?;
    Some(home.into())
}
