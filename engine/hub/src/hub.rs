//! How a model on the hub becomes a path: from the cache where that needs no question, else with
//! the hub's answer, else from the cache after all.

#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};

use crate::address::without_secrets;
use crate::client::{Client, Failure};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Observer};
use crate::explain::{explain, offline};
use crate::id::ModelId;
use crate::push;
use crate::repository::{self, tries, Repository};
use crate::secrets::Secrets;
use crate::settings::Settings;

/// The repository of the vocabulary of the RWKV-4 Pile models, and the file in it.
const TOKENIZER_20B: (&str, &str) = ("EleutherAI/gpt-neox-20b", "tokenizer.json");

/// The hub and its cache.
pub struct Hub {
    settings: Settings,
    /// Of the settings; never shown, whatever the hub says.
    secrets: Secrets,
    observer: Observer,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// The tokenizer that lies beside a model of the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemoteTokenizer {
    /// In the cache; `None` where the repository has none.
    pub path: Option<PathBuf>,
    /// Tokens of the vocabulary by the model's configuration, where there is one.
    pub n_vocab: Option<usize>,
}

impl Hub {
    /// The hub that these settings name. It is not asked yet.
    pub fn new(mut settings: Settings) -> Self {
        settings.separate_credentials();
        Hub {
            secrets: Secrets::of(&settings),
            settings,
            observer: Observer::default(),
        }
    }

    /// The hub that the environment names.
    ///
    /// # Errors
    ///
    /// Those of [`Settings::from_env`].
    pub fn from_env() -> Result<Self> {
        Ok(Self::new(Settings::from_env()?))
    }

    /// Tells what goes on, on whatever thread asks the hub.
    #[must_use]
    pub fn with_observer(mut self, observer: impl Fn(Event<'_>) + Send + Sync + 'static) -> Self {
        self.observer = Observer::new(observer).without(self.secrets.clone());
        self
    }

    /// Where the hub and its cache are.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn client(&self) -> Result<Client> {
        Client::new(self.settings.clone(), self.observer.clone())
    }

    /// The path of a model in the cache, downloaded as far as needed: a folder, or the file that the id
    /// names.
    ///
    /// A branch or tag is looked up each time, as Python does; what is in the cache is used when the
    /// hub cannot be asked, with a note that says so. A commit that is in the cache needs no question.
    ///
    /// # Errors
    ///
    /// When the model cannot be had, with what is wrong and what to do about it; near names where there is
    /// no such model.
    pub fn fetch(&self, id: &ModelId) -> Result<PathBuf> {
        self.guarded(self.find(id))
    }

    /// An outcome whose error shows no secret.
    fn guarded<T>(&self, outcome: Result<T>) -> Result<T> {
        outcome.map_err(|error| error.without(&self.secrets))
    }

    fn find(&self, id: &ModelId) -> Result<PathBuf> {
        let client = self.client()?;
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
                self.observer
                    .note(format_args!("{failure}; using {id} as it is in the cache"));
                Ok(path)
            }
            (Err(failure), None) => Err(explain(&client, id, failure)),
        }
    }

    /// The tokenizer of a model without the model: downloaded as far as needed, with the configuration and
    /// nothing else. `None` where that takes more than the hub's answer, and where a tokenizer can only be
    /// inside the model file: the model itself then has to be looked at.
    ///
    /// # Errors
    ///
    /// Those of [`fetch`](Self::fetch).
    pub fn fetch_tokenizer(&self, id: &ModelId) -> Result<Option<RemoteTokenizer>> {
        self.guarded(self.find_tokenizer(id))
    }

    fn find_tokenizer(&self, id: &ModelId) -> Result<Option<RemoteTokenizer>> {
        let client = self.client()?;
        let repository = Repository::new(&client, id);
        if client.settings.offline.is_some() || repository.pinned().is_some() {
            return Ok(None);
        }
        let tries = tries(repository.cached().is_some());
        let found = repository.list(tries).and_then(|listing| {
            match repository.brings_tokenizer(&listing) {
                true => Ok(None),
                false => repository.fetch_tokenizer(&listing).map(Some),
            }
        });
        let (folder, name) = match found {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(None),
            Err(Failure::Other(error)) => return Err(error),
            Err(_) if repository.cached().is_some() => return Ok(None),
            Err(failure) => return Err(explain(&client, id, failure)),
        };
        if name.is_none() && id.file().is_some() {
            return Ok(None);
        }
        let n_vocab = repository::n_vocab(&folder);
        Ok(Some(RemoteTokenizer {
            path: name.map(|name| folder.join(name)),
            n_vocab: n_vocab.and_then(|n| usize::try_from(n).ok()),
        }))
    }

    /// The tokenizer of the RWKV-4 Pile models, which their checkpoints do not bring: from the cache,
    /// or downloaded.
    ///
    /// # Errors
    ///
    /// Those of [`fetch`](Self::fetch).
    pub fn tokenizer_20b(&self) -> Result<PathBuf> {
        let (repository, file) = TOKENIZER_20B;
        self.fetch_unchanging(repository, file)
    }

    /// A file that does not change: what is in the cache is not compared with the hub.
    fn fetch_unchanging(&self, repository: &str, file: &str) -> Result<PathBuf> {
        let id = ModelId::parse(repository)
            .ok_or_else(|| Error::new(ErrorKind::Argument, format!("{repository}: no model id")))?;
        let id = id.with_file(file);
        let client = self.client()?;
        if let Some(path) = Repository::new(&client, &id).cached() {
            return Ok(path);
        }
        if client.settings.offline.is_none() {
            let hub = &client.settings.endpoint;
            self.observer.note(format_args!(
                "downloading {file} of {repository} from {hub}"
            ));
        }
        self.fetch(&id)
    }

    /// Refuses what [`push`](Self::push) could not do, before there is anything to push. The hub is not
    /// asked.
    ///
    /// # Errors
    ///
    /// Without a token, or without a network.
    pub fn check_push(&self, name: &str) -> Result<()> {
        push::check(&self.settings, name).map(drop)
    }

    /// Commits all files of a folder to a repository of the hub, `OWNER/NAME`, or `NAME` of the token's
    /// owner; it is made if it does not exist. Gives the address of the commit, or of the repository
    /// where its files are the same already.
    ///
    /// # Errors
    ///
    /// When the folder cannot be read or the hub refuses. Nothing of it is visible to others then; what was
    /// uploaded is kept, so that another try has less to do.
    pub fn push(&self, folder: &Path, name: &str, summary: &str) -> Result<String> {
        let pushed = push::push(self.settings.clone(), &self.observer, folder, name, summary);
        let address = self.guarded(pushed)?;
        Ok(self.secrets.hide(&without_secrets(&address)))
    }
}
