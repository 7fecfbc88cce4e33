//! Models from the Hugging Face hub, by their names: `--model RWKV/rwkv-4-169m-pile`.
//!
//! Sits between the subcommands and the network, and gives paths that the engine opens. Files are
//! downloaded once into the cache that Python's `huggingface_hub` uses too, and found there without
//! a network. Without the cargo feature `hub` names are recognised, and refused.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;

pub(crate) use id::{is_hex, ModelId};

#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod download;
#[cfg(feature = "hub")]
mod explain;
mod id;
#[cfg(feature = "hub")]
mod lfs;
#[cfg(feature = "hub")]
mod online;
#[cfg(feature = "hub")]
mod push;
#[cfg(feature = "hub")]
mod repository;
#[cfg(feature = "hub")]
mod settings;

#[cfg(feature = "hub")]
use online as access;

/// The repository of the vocabulary of the RWKV-4 Pile models, and the file in it.
const TOKENIZER_20B: (&str, &str) = ("EleutherAI/gpt-neox-20b", "tokenizer.json");

/// A model to open.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    /// Of a file or folder.
    pub(crate) path: PathBuf,
    /// What it is called on the hub, if that is how it was named.
    pub(crate) id: Option<ModelId>,
}

/// Finds what `--model` names: a local path that exists, else a model of the hub, which is
/// downloaded if it is not in the cache. Anything else is a path too, for whoever opens it to say
/// that it does not exist.
///
/// The same name is the same model as long as the program runs, and the hub is asked once.
pub(crate) fn locate(model: &Path) -> Result<Located> {
    static FOUND: Mutex<BTreeMap<PathBuf, Located>> = Mutex::new(BTreeMap::new());
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(located) = found.get(model) {
        return Ok(located.clone());
    }
    let located = find(model)?;
    found.insert(model.to_owned(), located.clone());
    Ok(located)
}

fn find(model: &Path) -> Result<Located> {
    let id = match model.exists() {
        true => None,
        false => ModelId::of_path(model),
    };
    let path = match &id {
        Some(id) => access::fetch(id)?,
        None => model.to_owned(),
    };
    Ok(Located { path, id })
}

/// A tokenizer that lies beside a model of the hub.
pub(crate) struct RemoteTokenizer {
    /// In the cache; `None` where the repository has none.
    pub(crate) path: Option<PathBuf>,
    /// Of the model's configuration, where there is one.
    pub(crate) n_vocab: Option<usize>,
    pub(crate) id: ModelId,
}

/// The tokenizer of a model of the hub without the model. `None` for local models, for those that are in
/// the cache already, and where a tokenizer can only be inside the model file.
pub(crate) fn tokenizer_of(model: &Path) -> Result<Option<RemoteTokenizer>> {
    let id = match model.exists() {
        true => None,
        false => ModelId::of_path(model),
    };
    let Some(id) = id else {
        return Ok(None);
    };
    let Some((folder, name)) = access::fetch_tokenizer(&id)? else {
        return Ok(None);
    };
    if name.is_none() && id.file.is_some() {
        return Ok(None);
    }
    // What is wrong with a configuration, opening the model tells.
    let config = std::fs::read(folder.join("config.json")).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap_or_default();
    let n_vocab = config["vocab_size"].as_u64();
    Ok(Some(RemoteTokenizer {
        path: name.map(|name| folder.join(name)),
        n_vocab: n_vocab.and_then(|n| usize::try_from(n).ok()),
        id,
    }))
}

/// The tokenizer of the RWKV-4 Pile models, which their checkpoints do not bring: from the cache,
/// or downloaded.
pub(crate) fn tokenizer_20b() -> Result<PathBuf> {
    let (repository, file) = TOKENIZER_20B;
    access::fetch_unchanging(repository, file)
}

/// Refuses what [`push`] could not do, before there is anything to push.
pub(crate) fn check_push(name: &str) -> Result<()> {
    access::check_push(name)
}

/// Commits all files of a folder to a repository of the hub, `OWNER/NAME`, or `NAME` of the token's
/// owner; it is made if it does not exist. Gives the address of the commit, or of the repository
/// where its files are the same already.
pub(crate) fn push(folder: &Path, name: &str, summary: &str) -> Result<String> {
    access::push(folder, name, summary)
}

#[cfg(not(feature = "hub"))]
mod access {
    use std::path::{Path, PathBuf};

    use anyhow::{bail, Result};

    use super::ModelId;

    pub(super) fn fetch(id: &ModelId) -> Result<PathBuf> {
        bail!(
            "{id}: no such file or folder; if a model of the Hugging Face hub is meant: this build \
             cannot download (cargo feature `hub`)"
        )
    }

    pub(super) fn fetch_tokenizer(_id: &ModelId) -> Result<Option<(PathBuf, Option<String>)>> {
        Ok(None)
    }

    pub(super) fn fetch_unchanging(repository: &str, file: &str) -> Result<PathBuf> {
        bail!(
            "{file} of {repository} on the Hugging Face hub: this build cannot download (cargo \
             feature `hub`)"
        )
    }

    pub(super) fn check_push(name: &str) -> Result<()> {
        push(Path::new(""), name, "").map(drop)
    }

    pub(super) fn push(_folder: &Path, name: &str, _summary: &str) -> Result<String> {
        bail!("{name}: this build cannot upload to the Hugging Face hub (cargo feature `hub`)")
    }
}
