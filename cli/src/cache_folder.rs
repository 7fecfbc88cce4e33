//! The user's folders for caches and histories, where the conventions put them.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// `$RWKV_EDGE_CACHE`, else `rwkv-edge` in the user's folder for caches.
pub(crate) fn of_program() -> Result<PathBuf> {
    match std::env::var_os("RWKV_EDGE_CACHE").filter(|value| !value.is_empty()) {
        Some(folder) => Ok(folder.into()),
        None => Ok(of_user(&|name| std::env::var_os(name))?.join("rwkv-edge")),
    }
}

/// For what should outlive a cache but is no setting: `$XDG_STATE_HOME`, else `.local/state` in the home
/// folder.
pub(crate) fn of_histories() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name);
    match variable("XDG_STATE_HOME").filter(|value| !value.is_empty()) {
        Some(folder) => Some(folder.into()),
        None => Some(home(&variable)?.join(".local/state")),
    }
}

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
