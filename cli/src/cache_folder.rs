//! The user's folders for caches and histories, where the conventions put them.

#![forbid(unsafe_code)]

use std::env::var_os;
use std::path::PathBuf;

use anyhow::Result;
use rwkv_edge_hub::folders;

/// `$RWKV_EDGE_CACHE`, else `rwkv-edge` in the user's folder for caches.
pub(crate) fn of_program() -> Result<PathBuf> {
    match var_os("RWKV_EDGE_CACHE").filter(|value| !value.is_empty()) {
        Some(folder) => Ok(folder.into()),
        None => Ok(folders::cache(&|name| var_os(name))?.join("rwkv-edge")),
    }
}

/// For what should outlive a cache but is no setting: `$XDG_STATE_HOME`, else `.local/state` in the home
/// folder.
pub(crate) fn of_histories() -> Option<PathBuf> {
    match var_os("XDG_STATE_HOME").filter(|value| !value.is_empty()) {
        Some(folder) => Some(folder.into()),
        None => Some(home()?.join(".local/state")),
    }
}

pub(crate) fn home() -> Option<PathBuf> {
    folders::home(&|name| var_os(name))
}
