//! How a model on the hub becomes a path: from the cache where that needs no question, else with
//! the hub's answer, else from the cache after all.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use anyhow::{anyhow, Result};

use super::client::{Client, Failure};
use super::explain::{explain, offline};
use super::repository::{tries, Repository};
use super::settings::Settings;
use super::ModelId;
use crate::progress::notice;

/// The path of a model in the cache, downloaded as far as needed.
///
/// A branch or tag is looked up each time, as Python does; what is in the cache is used when the
/// hub cannot be asked, with a line that says so. A commit that is in the cache needs no question.
pub(super) fn fetch(id: &ModelId) -> Result<PathBuf> {
    let client = Client::new(Settings::from_env()?)?;
    let repository = Repository::new(&client, id);
    if let Some(path) = repository.pinned() {
        return Ok(path);
    }
    let cached = repository.cached();
    if let Some(variable) = client.settings.offline {
        return cached.ok_or_else(|| offline(&client, id, variable));
    }
    let found = repository
        .list(tries(cached.is_some()))
        .and_then(|listing| repository.fetch(&listing));
    match (found, cached) {
        (Ok(path), _) => Ok(path),
        // What came is wrong: that is never passed over.
        (Err(Failure::Other(error)), _) => Err(error),
        (Err(failure), Some(path)) => {
            notice(format_args!("{failure}; using {id} as it is in the cache"));
            Ok(path)
        }
        (Err(failure), None) => Err(explain(&client, id, failure)),
    }
}

/// The folder of a model's configuration in the cache, and the name of the tokenizer's file in it, if
/// there is one: downloaded as far as needed, and nothing else. `None` where that takes more than the
/// hub's answer: the model itself then has to be looked at.
pub(super) fn fetch_tokenizer(id: &ModelId) -> Result<Option<(PathBuf, Option<String>)>> {
    let client = Client::new(Settings::from_env()?)?;
    let repository = Repository::new(&client, id);
    if client.settings.offline.is_some() || repository.pinned().is_some() {
        return Ok(None);
    }
    let tries = tries(repository.cached().is_some());
    let found = repository
        .list(tries)
        .and_then(|listing| repository.fetch_tokenizer(&listing));
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Failure::Other(error)) => Err(error),
        Err(_) if repository.cached().is_some() => Ok(None),
        Err(failure) => Err(explain(&client, id, failure)),
    }
}

/// A file that does not change: what is in the cache is not compared with the hub.
pub(super) fn fetch_unchanging(repository: &str, file: &str) -> Result<PathBuf> {
    let id = ModelId::parse(repository).ok_or_else(|| anyhow!("{repository}: no model id"))?;
    let id = id.with_file(file);
    let client = Client::new(Settings::from_env()?)?;
    if let Some(path) = Repository::new(&client, &id).cached() {
        return Ok(path);
    }
    if client.settings.offline.is_none() {
        let hub = &client.settings.endpoint;
        notice(format_args!(
            "downloading {file} of {repository} from {hub}"
        ));
    }
    fetch(&id)
}

pub(super) fn check_push(name: &str) -> Result<()> {
    super::push::check(&Settings::from_env()?, name).map(drop)
}

pub(super) fn push(folder: &Path, name: &str, summary: &str) -> Result<String> {
    super::push::push(Settings::from_env()?, folder, name, summary)
}
