//! Which files of a repository a model needs, and bringing them into the cache.
//!
//! Small files come first: configuration, tokenizer, chat template, index; a repository of another kind of model
//! is refused by them before gigabytes are fetched. Weights are taken in the order in which the
//! engine looks for them; what a snapshot already has whole, in whatever form, is enough.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cache::{is_commit, RepositoryCache};
use crate::client::{Client, Failure, Request, TRIES};
use crate::download::{escape_part, RemoteFile};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::id::{is_plain_name, ModelId};

/// Where the engine looks for weights, best first.
const WEIGHT_FILES: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];
const INDEX_ENDING: &str = ".index.json";
/// An index has a line a tensor.
const INDEX_BYTES_MAX: u64 = 64 << 20;
/// By these a file may hold weights, under whatever name.
const WEIGHT_ENDINGS: [&str; 5] = [".pth", ".safetensors", ".bin", ".st", GGUF_ENDING];
/// A file of this kind is a model by itself, with its tokenizer.
const GGUF_ENDING: &str = ".gguf";
/// Tokens of a model whose vocabulary is World's.
const WORLD_VOCABULARY: u64 = 65_536;
/// Names of files listed in an error.
const LISTED_MAX: usize = 20;

/// A commit of a repository, and the files in it.
pub(crate) struct Listing {
    pub(crate) commit: String,
    pub(crate) files: BTreeSet<String>,
}

impl Listing {
    /// The weights that the engine would open.
    fn weights(&self) -> Option<&str> {
        let mut usual = WEIGHT_FILES.iter().copied();
        let usual = usual.find(|name| self.files.contains(*name));
        usual.or_else(|| only_gguf(self.files.iter().map(String::as_str)))
    }
}

/// What is wanted of a repository.
pub(crate) struct Repository<'a> {
    pub(crate) client: &'a Client,
    pub(crate) cache: RepositoryCache,
    pub(crate) id: &'a ModelId,
}

impl<'a> Repository<'a> {
    pub(crate) fn new(client: &'a Client, id: &'a ModelId) -> Self {
        let cache = RepositoryCache::new(&client.settings.cache, &id.repository());
        Repository { client, cache, id }
    }

    /// The model's path in the cache, if all of it is there.
    pub(crate) fn cached(&self) -> Option<PathBuf> {
        self.cached_commit(&self.cache.commit(self.id.revision())?)
    }

    fn cached_commit(&self, commit: &str) -> Option<PathBuf> {
        let snapshot = self.cache.snapshot(commit);
        match self.id.file() {
            Some(file) => {
                let path = snapshot.join(file);
                let beside = path.parent().unwrap_or(&snapshot);
                let is_whole = path.is_file()
                    && !links_to_nothing(beside)
                        .iter()
                        .any(|name| goes_beside(name));
                is_whole.then_some(path)
            }
            None => {
                let lacks_small = links_to_nothing(&snapshot)
                    .iter()
                    .any(|name| is_small(name));
                (!lacks_small && has_weights(&snapshot)).then_some(snapshot)
            }
        }
    }

    /// What the cache should have of the revision and does not have: files whose blobs are gone, and those that
    /// an index or the id names.
    pub(crate) fn missing(&self) -> Vec<String> {
        let Some(commit) = self.cache.commit(self.id.revision()) else {
            return Vec::new();
        };
        let snapshot = self.cache.snapshot(&commit);
        let mut missing = BTreeSet::new();
        match self.id.file() {
            Some(file) => {
                let folder = file.rfind('/').map_or("", |slash| &file[..=slash]);
                let beside = links_to_nothing(&snapshot.join(folder));
                let beside = beside.into_iter().filter(|name| goes_beside(name));
                missing.extend(beside.map(|name| format!("{folder}{name}")));
                if !snapshot.join(file).is_file() {
                    missing.insert(file.to_owned());
                }
            }
            None => {
                missing.extend(links_to_nothing(&snapshot));
                if found_weights(&snapshot).is_none()
                    && !missing
                        .iter()
                        .any(|name| is_weights(name) || name.ends_with(INDEX_ENDING))
                {
                    missing.insert("its weights".to_owned());
                }
                if let Some(index) =
                    found_weights(&snapshot).filter(|name| name.ends_with(INDEX_ENDING))
                {
                    match shards(&snapshot.join(&index)) {
                        Ok(shards) => missing.extend(shards),
                        Err(_) => drop(missing.insert(index.clone())),
                    }
                    missing.retain(|name| *name == index || !snapshot.join(name).is_file());
                }
            }
        }
        missing.into_iter().collect()
    }

    /// Whether nothing of it is in the cache, not even a part.
    pub(crate) fn is_unknown(&self) -> bool {
        self.cache.commits().is_empty() && self.cache.commit(self.id.revision()).is_none()
    }

    /// The commits of which all of the model is in the cache.
    pub(crate) fn commits(&self) -> Vec<String> {
        let mut commits = self.cache.commits();
        commits.retain(|commit| self.cached_commit(commit).is_some());
        commits
    }

    /// The model's path in the cache if it needs no question to the hub: a commit never changes.
    pub(crate) fn pinned(&self) -> Option<PathBuf> {
        is_commit(self.id.revision()).then(|| self.cached())?
    }

    /// Asks the hub which commit the revision is, and for its files.
    pub(crate) fn list(&self, tries: u32) -> Result<Listing, Failure> {
        let endpoint = &self.client.settings.endpoint;
        let (repository, revision) = (self.id.repository(), escape_part(self.id.revision()));
        let url = format!("{endpoint}/api/models/{repository}/revision/{revision}");
        let answer = self.client.json(&Request::get(url), tries)?;
        let commit = answer.get("sha").and_then(Value::as_str);
        let commit = commit.filter(|commit| is_plain_name(commit));
        let files = answer.get("siblings").and_then(Value::as_array);
        let (Some(commit), Some(files)) = (commit, files) else {
            let text = format!("{repository}: the hub names no commit or no files");
            return Err(Error::new(ErrorKind::Hub, text).into());
        };
        let name = |file: &Value| Some(file.get("rfilename")?.as_str()?.to_owned());
        Ok(Listing {
            commit: commit.to_owned(),
            files: files.iter().filter_map(name).collect(),
        })
    }

    /// Downloads what of the model is missing, and gives its path.
    pub(crate) fn fetch(&self, listing: &Listing) -> Result<PathBuf, Failure> {
        let snapshot = self.cache.snapshot(&listing.commit);
        let path = match self.id.file() {
            Some(file) => {
                self.fetch_file(file, listing)?;
                snapshot.join(file)
            }
            None => {
                self.fetch_model(&snapshot, listing)?;
                snapshot
            }
        };
        // Not before everything is there: until then the old commit is what is used without a
        // network.
        if let Err(error) = self.cache.set_commit(self.id.revision(), &listing.commit) {
            self.client.observer.note(format_args!(
                "{error}; without a network the model will not be found"
            ));
        }
        Ok(path)
    }

    /// Whether the model is a file that has its tokenizer inside.
    pub(crate) fn brings_tokenizer(&self, listing: &Listing) -> bool {
        let weights = self.id.file().or_else(|| listing.weights());
        weights.is_some_and(|name| name.ends_with(GGUF_ENDING))
    }

    /// Downloads what of the tokenizer is missing, and the configuration; gives the tokenizer's path if there
    /// is one. The order is that in which the engine looks for one.
    pub(crate) fn fetch_tokenizer(
        &self,
        listing: &Listing,
    ) -> Result<(PathBuf, Option<String>), Failure> {
        let file = self.id.file().unwrap_or_default();
        let folder = file.rfind('/').map_or("", |slash| &file[..=slash]);
        let beside = |name: &&str| name.strip_prefix(folder).is_some_and(is_tokenizer);
        let names = listing.files.iter().map(String::as_str);
        let tokenizers: Vec<&str> = names.filter(beside).collect();
        let config = format!("{folder}config.json");
        let config = listing.files.contains(&config).then_some(&*config);
        self.fetch_missing(config.as_slice(), listing)?;
        let snapshot = self.cache.snapshot(&listing.commit).join(folder);
        // As in the engine, World's own list counts more than what others made of it.
        let is_world = n_vocab(&snapshot) == Some(WORLD_VOCABULARY);
        let rank = |name: &&&str| match name.strip_prefix(folder) {
            Some("tokenizer.json") => 1,
            Some("vocab.txt") => 3,
            _ if is_world => 0,
            _ => 2,
        };
        let tokenizer = tokenizers.iter().min_by_key(rank).copied();
        self.fetch_missing(tokenizer.as_slice(), listing)?;
        if self.cache.commit(self.id.revision()).is_none() {
            // Without a network it is found again. What is not worth an error: that it is not.
            drop(self.cache.set_commit(self.id.revision(), &listing.commit));
        }
        let tokenizer = tokenizer.map(|name| name[folder.len()..].to_owned());
        Ok((snapshot, tokenizer))
    }

    /// One named file, and the tokenizer and the chat template beside it.
    fn fetch_file(&self, file: &str, listing: &Listing) -> Result<(), Failure> {
        if !listing.files.contains(file) {
            let near = near_names(file, listing.files.iter().map(String::as_str));
            let text = format!("{}: no file {file}{}", self.id.repository(), or_else(&near));
            return Err(Error::new(ErrorKind::NotFound, text).into());
        }
        let folder = file.rfind('/').map_or("", |slash| &file[..=slash]);
        let is_beside = |name: &&String| name.strip_prefix(folder).is_some_and(goes_beside);
        let mut wanted: Vec<&str> = Vec::new();
        if is_weights(file) && !file.ends_with(GGUF_ENDING) {
            wanted.extend(listing.files.iter().filter(is_beside).map(String::as_str));
        }
        wanted.push(file);
        self.fetch_missing(&wanted, listing)
    }

    fn fetch_model(&self, snapshot: &Path, listing: &Listing) -> Result<(), Failure> {
        let weights = found_weights(snapshot).or_else(|| listing.weights().map(str::to_owned));
        let weights = weights.ok_or_else(|| self.no_weights(listing))?;
        let weights = &*weights;
        if weights.ends_with(GGUF_ENDING) {
            return self.fetch_missing(&[weights], listing);
        }
        let mut wanted: Vec<&str> = listing.files.iter().map(String::as_str).collect();
        wanted.retain(|name| is_small(name));
        if weights.ends_with(INDEX_ENDING) {
            wanted.push(weights);
        }
        self.fetch_missing(&wanted, listing)?;
        check_model_type(
            &snapshot.join("config.json"),
            &self.client.settings.model_types,
        )
        .map_err(|error| error.at(self.id.repository()))?;
        if !weights.ends_with(INDEX_ENDING) {
            return self.fetch_missing(&[weights], listing);
        }
        let shards = shards(&snapshot.join(weights))?;
        let missing = shards.iter().find(|shard| !listing.files.contains(*shard));
        if let Some(shard) = missing {
            let repository = self.id.repository();
            let text = format!("{repository}: {weights} names {shard}, which is not there");
            return Err(Error::new(ErrorKind::Content, text).into());
        }
        let shards: Vec<&str> = shards.iter().map(String::as_str).collect();
        self.fetch_missing(&shards, listing)
    }

    fn fetch_missing(&self, names: &[&str], listing: &Listing) -> Result<(), Failure> {
        let snapshot = self.cache.snapshot(&listing.commit);
        let mut missing: Vec<&str> = names.to_vec();
        missing.retain(|name| !snapshot.join(name).is_file());
        if !missing.is_empty() && !snapshot.exists() {
            let short = listing.commit.get(..8).unwrap_or(&listing.commit);
            let (hub, cache) = (&self.client.settings.endpoint, &self.client.settings.cache);
            let (id, cache) = (self.id.repository(), cache.display());
            self.client.observer.note(format_args!(
                "downloading {id}, commit {short}, from {hub} to {cache}"
            ));
        }
        for name in missing {
            let file = RemoteFile {
                client: self.client,
                cache: &self.cache,
                id: self.id,
                commit: &listing.commit,
                name,
            };
            file.fetch()?;
        }
        Ok(())
    }

    /// Nothing under the usual names: lists what might be meant.
    fn no_weights(&self, listing: &Listing) -> Error {
        let repository = self.id.repository();
        let candidates: Vec<&str> = listing
            .files
            .iter()
            .map(String::as_str)
            .filter(|name| is_weights(name))
            .collect();
        let looked_for = WEIGHT_FILES.join(", ");
        let Some(first) = candidates.first() else {
            let text = format!(
                "{repository}: no weights: looked for {looked_for}, *.safetensors, *.pth, *.gguf"
            );
            return Error::new(ErrorKind::Content, text);
        };
        let one = self.id.with_file(first);
        let files = list_of(&candidates);
        let text = format!(
            "{repository}: no {looked_for}, but {files}; name the one you want: --model {}",
            quoted(&one.to_string())
        );
        Error::new(ErrorKind::Argument, text)
    }
}

/// Whether all weights of a model are in a snapshot.
fn has_weights(snapshot: &Path) -> bool {
    let Some(name) = found_weights(snapshot) else {
        return false;
    };
    if !name.ends_with(INDEX_ENDING) {
        return true;
    }
    let shards = shards(&snapshot.join(&name));
    shards.is_ok_and(|shards| shards.iter().all(|shard| snapshot.join(shard).is_file()))
}

/// The weights that the engine would open in a snapshot.
fn found_weights(snapshot: &Path) -> Option<String> {
    let mut usual = WEIGHT_FILES.iter();
    if let Some(found) = usual.find(|name| snapshot.join(name).is_file()) {
        return Some((*found).to_owned());
    }
    let entries = fs::read_dir(snapshot).into_iter().flatten().flatten();
    let files = entries.filter(|entry| entry.path().is_file());
    let names: Vec<String> = files
        .filter_map(|file| file.file_name().into_string().ok())
        .collect();
    only_gguf(names.iter().map(String::as_str)).map(str::to_owned)
}

/// The GGUF file among these files, if no other has weights; the engine takes it from the folder that they lie in.
fn only_gguf<'n>(names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let mut weights = names.filter(|name| is_weights(name));
    let (first, second) = (weights.next()?, weights.next());
    let is_taken = first.ends_with(GGUF_ENDING) && !first.contains('/');
    (is_taken && second.is_none()).then_some(first)
}

/// The files that an index names.
fn shards(index: &Path) -> Result<BTreeSet<String>> {
    let place = index.display();
    let failed = || format!("{place}: cannot read");
    let size = fs::metadata(index).context(ErrorKind::Io, failed)?.len();
    if size > INDEX_BYTES_MAX {
        let text = format!("{place}: {size} bytes, expected at most {INDEX_BYTES_MAX}");
        return Err(Error::new(ErrorKind::Content, text));
    }
    let text = fs::read(index).context(ErrorKind::Io, failed)?;
    let parsed: Value = serde_json::from_slice(&text)
        .context(ErrorKind::Content, || format!("{place}: not valid JSON"))?;
    let map = parsed.get("weight_map").and_then(Value::as_object);
    let map = map.filter(|map| !map.is_empty());
    let map = map.context(ErrorKind::Content, || format!("{place}: no weight_map"))?;
    let mut shards = BTreeSet::new();
    for shard in map.values() {
        match shard.as_str().filter(|name| is_plain_name(name)) {
            Some(name) => shards.insert(name.to_owned()),
            None => {
                let text = format!("{place}: shard {shard}, expected a plain file name");
                return Err(Error::new(ErrorKind::Content, text));
            }
        };
    }
    Ok(shards)
}

/// Tokens of the vocabulary by the configuration in a folder. What is wrong with one, opening the model tells.
pub(crate) fn n_vocab(folder: &Path) -> Option<u64> {
    let text = fs::read(folder.join("config.json")).ok()?;
    let config: Value = serde_json::from_slice(&text).ok()?;
    config.get("vocab_size")?.as_u64()
}

/// Refuses what is plainly none of these models, before its weights are downloaded. The engine checks the rest.
fn check_model_type(config: &Path, known: &[(&str, &str)]) -> Result<()> {
    let Ok(text) = fs::read(config) else {
        return Ok(());
    };
    let parsed: Value = serde_json::from_slice(&text)
        .context(ErrorKind::Content, || "config.json: not valid JSON".into())?;
    match parsed.get("model_type") {
        Some(Value::String(found))
            if !known.is_empty() && known.iter().all(|(name, _)| name != found) =>
        {
            let known = known
                .iter()
                .map(|(name, title)| format!("{name:?} ({title})"));
            let known = known.collect::<Vec<_>>().join(" or ");
            let text = format!("config.json: model_type {found:?}, expected {known}");
            Err(Error::new(ErrorKind::Content, text))
        }
        _ => Ok(()),
    }
}

/// Whether a file goes with weights of one file, too: what cuts texts into tokens, and what writes conversations.
fn goes_beside(name: &str) -> bool {
    matches!(name, "chat_template.jinja" | "tokenizer_config.json") || is_tokenizer(name)
}

/// Whether a file goes with the weights of a model.
fn is_small(name: &str) -> bool {
    matches!(name, "config.json" | "generation_config.json") || goes_beside(name)
}

/// Names of a folder that are links to nothing: what they led to was removed.
fn links_to_nothing(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let links = entries.filter(|entry| entry.path().is_symlink() && !entry.path().exists());
    links
        .filter_map(|link| link.file_name().into_string().ok())
        .collect()
}

/// Whether a name is one by which the engine finds a tokenizer.
fn is_tokenizer(name: &str) -> bool {
    let is_list = name.starts_with("rwkv_vocab") && name.ends_with(".txt") && !name.contains('/');
    matches!(name, "tokenizer.json" | "vocab.txt") || is_list
}

fn is_weights(name: &str) -> bool {
    WEIGHT_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// Names that differ little from the one that is wanted, nearest first.
pub(crate) fn near_names<'n>(wanted: &str, names: impl Iterator<Item = &'n str>) -> Vec<&'n str> {
    /// Below this two names have little in common.
    const NEAR: f64 = 0.8;
    const NAMED_MAX: usize = 5;
    let wanted = wanted.to_lowercase();
    let score = |name: &'n str| (strsim::jaro_winkler(&wanted, &name.to_lowercase()), name);
    let mut scored: Vec<_> = names
        .map(score)
        .filter(|(score, _)| *score > NEAR)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.truncate(NAMED_MAX);
    scored.into_iter().map(|(_, name)| name).collect()
}

/// The end of an error about a name.
pub(crate) fn or_else(near: &[&str]) -> String {
    match near {
        [] => String::new(),
        near => format!("; near names: {}", list_of(near)),
    }
}

pub(crate) fn list_of(names: &[&str]) -> String {
    let listed = names[..names.len().min(LISTED_MAX)].join(", ");
    match names.len().saturating_sub(LISTED_MAX) {
        0 => listed,
        more => format!("{listed} and {more} more"),
    }
}

/// As it has to be typed into a shell.
fn quoted(text: &str) -> String {
    match text.contains(' ') {
        true => format!("'{text}'"),
        false => text.to_owned(),
    }
}

/// Asks the hub for a list of models; an empty one where it gives none.
pub(crate) fn model_names(client: &Client, query: &str) -> Vec<String> {
    let url = format!("{}/api/models?{query}", client.settings.endpoint);
    let Ok(Value::Array(models)) = client.json(&Request::get(url), 1) else {
        return Vec::new();
    };
    let name = |model: &Value| {
        let id = model.get("id").or_else(|| model.get("modelId"))?;
        Some(id.as_str()?.to_owned())
    };
    models.iter().filter_map(name).collect()
}

/// How often the hub is asked for a listing when a copy in the cache would do.
pub(crate) fn tries(is_cached: bool) -> u32 {
    match is_cached {
        true => 1,
        false => TRIES,
    }
}
