//! Models from the Hugging Face hub, by their names: `--model RWKV/rwkv-4-169m-pile`.
//!
//! Sits between the subcommands and the library of the hub: notes and progress bars on stderr, and a model is
//! looked up once. Without the cargo feature `hub` names are recognised, and refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use rwkv_edge_hub::ModelId;

use crate::paths;

/// A model to open.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    /// Of a file or folder.
    pub(crate) path: PathBuf,
    /// What it is called on the hub, if that is how it was named.
    pub(crate) id: Option<ModelId>,
}

/// What names were found to be. A name is the same model as long as a command runs, and the hub is asked once.
static FOUND: Mutex<BTreeMap<PathBuf, Located>> = Mutex::new(BTreeMap::new());

/// A command begins: what names were in another one counts no more.
pub(crate) fn forget() {
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    found.clear();
}

/// Finds what `--model` names: a local path that exists, else a model of the hub, which is
/// downloaded if it is not in the cache. Anything else is a path too, for whoever opens it to say
/// that it does not exist.
pub(crate) fn locate(model: &Path) -> Result<Located> {
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(located) = found.get(model) {
        return Ok(located.clone());
    }
    paths::check_link(model)?;
    paths::check_address(model)?;
    let id = ModelId::of_missing(model);
    let path = match &id {
        Some(id) => access::fetch(id)?,
        None => model.to_owned(),
    };
    paths::check_folder(&path)?;
    let located = Located { path, id };
    found.insert(model.to_owned(), located.clone());
    Ok(located)
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
    paths::check_address(model)?;
    match ModelId::of_missing(model) {
        Some(id) => access::fetch_tokenizer(id),
        None => Ok(None),
    }
}

pub(crate) use access::{check_push, content_is_right, push, tokenizer_20b};

#[cfg(feature = "hub")]
mod access {
    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, PoisonError};

    use anyhow::Result;
    use rwkv_edge_hub::{Event, Hub, ModelId, Settings, Work};

    use super::RemoteTokenizer;
    use crate::progress::{notice, Progress};

    /// The hub that the environment names; what goes on is shown on stderr.
    fn hub() -> Result<Hub> {
        let bar: Mutex<Option<Progress>> = Mutex::new(None);
        let show = move |event: Event<'_>| {
            let mut bar = bar.lock().unwrap_or_else(PoisonError::into_inner);
            match event {
                Event::Note(text) => match &*bar {
                    Some(bar) => bar.notice(format_args!("{text}")),
                    None => notice(format_args!("{text}")),
                },
                Event::Progress {
                    work, done, total, ..
                } => {
                    let bar = bar.get_or_insert_with(|| match work {
                        Work::Hash => Progress::after_a_second("hashing"),
                        Work::Download(file) => Progress::of_bytes(file.to_owned()),
                        _ => Progress::of_bytes("uploading".to_owned()),
                    });
                    bar.show(done, total);
                }
                _ => *bar = None,
            }
        };
        Ok(
            Hub::new(Settings::from_env()?.model_types(rwkv_edge::model_types()))
                .with_observer(show),
        )
    }

    /// Whether a file of the cache still has the content that its name is the hash of.
    pub(crate) fn content_is_right(file: &Path) -> bool {
        rwkv_edge_hub::content_is_right(file).unwrap_or(false)
    }

    pub(super) fn fetch(id: &ModelId) -> Result<PathBuf> {
        Ok(hub()?.fetch(id)?)
    }

    pub(super) fn fetch_tokenizer(id: ModelId) -> Result<Option<RemoteTokenizer>> {
        let found = hub()?.fetch_tokenizer(&id)?;
        Ok(found.map(|found| RemoteTokenizer {
            path: found.path,
            n_vocab: found.n_vocab,
            id,
        }))
    }

    /// The tokenizer of the RWKV-4 Pile models, which their checkpoints do not bring: from the cache,
    /// or downloaded.
    pub(crate) fn tokenizer_20b() -> Result<PathBuf> {
        Ok(hub()?.tokenizer_20b()?)
    }

    /// Refuses what [`push`] could not do, before there is anything to push.
    pub(crate) fn check_push(name: &str) -> Result<()> {
        Ok(hub()?.check_push(name)?)
    }

    /// Commits all files of a folder to a repository of the hub, and gives the address of the commit.
    pub(crate) fn push(folder: &Path, name: &str, summary: &str) -> Result<String> {
        Ok(hub()?.push(folder, name, summary)?)
    }
}

#[cfg(not(feature = "hub"))]
mod access {
    use std::path::{Path, PathBuf};

    use anyhow::{bail, Result};
    use rwkv_edge_hub::ModelId;

    use super::RemoteTokenizer;

    /// Without the hub nobody knows hashes.
    pub(crate) fn content_is_right(_file: &Path) -> bool {
        false
    }

    pub(super) fn fetch(id: &ModelId) -> Result<PathBuf> {
        bail!(
            "{id}: no such file or folder; if a model of the Hugging Face hub is meant: this build \
             cannot download (cargo feature `hub`)"
        )
    }

    pub(super) fn fetch_tokenizer(_id: ModelId) -> Result<Option<RemoteTokenizer>> {
        Ok(None)
    }

    pub(crate) fn tokenizer_20b() -> Result<PathBuf> {
        bail!(
            "tokenizer.json of EleutherAI/gpt-neox-20b on the Hugging Face hub: this build cannot \
             download (cargo feature `hub`)"
        )
    }

    pub(crate) fn check_push(name: &str) -> Result<()> {
        push(Path::new(""), name, "").map(drop)
    }

    pub(crate) fn push(_folder: &Path, name: &str, _summary: &str) -> Result<String> {
        bail!("{name}: this build cannot upload to the Hugging Face hub (cargo feature `hub`)")
    }
}
