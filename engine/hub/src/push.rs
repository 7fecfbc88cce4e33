//! A folder to the hub, as one commit: what `push_to_hub` of Python's libraries does, by the same
//! endpoints.
//!
//! The repository is made if need be. The hub then says of each file whether it goes to its storage
//! for large files (`lfs.rs`) or into the commit itself. Files that the hub has already are left
//! out. Nothing is visible to others before the commit, which is all or nothing.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::prelude::{Engine, BASE64_STANDARD};
use serde_json::{json, Value};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::client::{Client, Failure, Request, TRIES};
use crate::download::hex;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{Observer, Work};
use crate::id::ModelId;
use crate::lfs::{Object, Uploads};
use crate::retry::uninterrupted;
use crate::settings::Settings;

const REVISION: &str = "main";
/// From the start of a file; by it the hub tells text from other content.
const SAMPLE_BYTES: usize = 512;
/// As many as Python's library names in one request.
const FILES_PER_REQUEST: usize = 256;
const HASH_BYTES: usize = 256 << 10;
/// A hub that makes a commit of many files is silent for a while.
const PATIENCE: Duration = Duration::from_secs(600);

/// A file of the folder.
struct LocalFile {
    path: PathBuf,
    /// In the repository, with slashes.
    name: String,
    size_bytes: u64,
    sample: Vec<u8>,
    sha256: String,
    git_sha1: String,
    is_large: bool,
}

/// Refuses what cannot work, before there is anything to push.
pub(crate) fn check(settings: &Settings, name: &str) -> Result<String> {
    if let Some(variable) = settings.offline {
        let text = format!("{name}: cannot push, since {variable} is set");
        return Err(Error::new(ErrorKind::Network, text));
    }
    let Some(token) = &settings.token else {
        let text = format!(
            "{name}: pushing needs a token that may write, in HF_TOKEN; make one on \
             {}/settings/tokens",
            settings.endpoint
        );
        return Err(Error::new(ErrorKind::Access, text));
    };
    Ok(token.source.clone())
}

/// What `Hub::push` promises.
pub(crate) fn push(
    settings: Settings,
    observer: &Observer,
    folder: &Path,
    name: &str,
    summary: &str,
) -> Result<String> {
    let token_source = check(&settings, name)?;
    let patience = PATIENCE.max(settings.read_timeout);
    let client = Client::with_patience(settings, observer.clone(), patience)?;
    let mut files = read_folder(folder, observer)?;
    let explain = |failure| explain(name, &token_source, &client, failure);
    let repository = make_repository(&client, name).map_err(explain)?;
    choose_ways(&client, &repository, &mut files).map_err(explain)?;
    if files.is_empty() {
        return Ok(format!("{}/{repository}", client.settings.endpoint));
    }
    upload_large(&client, &repository, &files).map_err(explain)?;
    commit(&client, &repository, &files, summary).map_err(explain)
}

fn explain(name: &str, token_source: &str, client: &Client, failure: Failure) -> Error {
    let hub = &client.settings.endpoint;
    let (kind, text) = match failure {
        Failure::Other(error) => return error.at(format_args!("{name}: cannot push")),
        Failure::Refused(refusal) if refusal.status == 401 => (
            ErrorKind::Access,
            format!(
                "{hub} does not accept the token in {token_source} (401); make another, that may \
                 write, on {hub}/settings/tokens"
            ),
        ),
        Failure::Refused(refusal) if refusal.status == 403 => (
            ErrorKind::Access,
            format!(
                "{refusal}; the token in {token_source} may not write there: see \
                 {hub}/settings/tokens"
            ),
        ),
        failure => (
            match failure {
                Failure::Refused(_) => ErrorKind::Hub,
                _ => ErrorKind::Network,
            },
            format!("{failure}; what was uploaded is kept, so push again"),
        ),
    };
    Error::new(kind, text).at(format_args!("{name}: cannot push"))
}

/// All files below a folder, hashed. Hidden ones stay: they are git's, or the system's.
fn read_folder(folder: &Path, observer: &Observer) -> Result<Vec<LocalFile>> {
    let mut paths = Vec::new();
    collect(folder, &mut paths)?;
    paths.sort();
    if paths.is_empty() {
        let text = format!("{}: no files to push", folder.display());
        return Err(Error::new(ErrorKind::Argument, text));
    }
    let mut total_bytes = 0;
    for path in &paths {
        let found = fs::metadata(path).context(ErrorKind::Io, || cannot_read(path))?;
        total_bytes += found.len();
    }
    let progress = observer.begin(Work::Hash);
    let mut done = 0;
    progress.show(done, total_bytes);
    let mut files = Vec::new();
    for path in paths {
        let file = read_file(folder, path, &mut |n| {
            done += n;
            progress.show(done, total_bytes);
        });
        files.push(file?);
    }
    Ok(files)
}

pub(crate) fn cannot_read(path: &Path) -> String {
    format!("{}: cannot read", path.display())
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    let failed = || cannot_read(folder);
    for entry in fs::read_dir(folder).context(ErrorKind::Io, failed)? {
        let path = entry.context(ErrorKind::Io, failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') {
            continue;
        }
        match fs::metadata(&path).context(ErrorKind::Io, || cannot_read(&path))? {
            found if found.is_dir() => collect(&path, paths)?,
            found if found.is_file() => paths.push(path),
            _ => {}
        }
    }
    Ok(())
}

fn read_file(folder: &Path, path: PathBuf, read: &mut dyn FnMut(u64)) -> Result<LocalFile> {
    let failed = || cannot_read(&path);
    let below = path.strip_prefix(folder);
    let below = below.context(ErrorKind::Io, failed)?;
    let parts: Option<Vec<&str>> = below.iter().map(|part| part.to_str()).collect();
    let parts = parts.context(ErrorKind::Argument, || {
        format!("{}: its name is not UTF-8", path.display())
    })?;
    let mut file = File::open(&path).context(ErrorKind::Io, failed)?;
    let size_bytes = file.metadata().context(ErrorKind::Io, failed)?.len();
    let mut sha256 = Sha256::new();
    let mut git_sha1 = Sha1::new_with_prefix(format!("blob {size_bytes}\0"));
    let mut sample = Vec::new();
    let mut piece = vec![0; HASH_BYTES];
    loop {
        let n = uninterrupted(|| file.read(&mut piece)).context(ErrorKind::Io, failed)?;
        if n == 0 {
            break;
        }
        let missing = SAMPLE_BYTES.saturating_sub(sample.len());
        sample.extend_from_slice(&piece[..n.min(missing)]);
        sha256.update(&piece[..n]);
        git_sha1.update(&piece[..n]);
        read(n as u64);
    }
    Ok(LocalFile {
        name: parts.join("/"),
        size_bytes,
        sample,
        sha256: hex(&sha256.finalize()),
        git_sha1: hex(&git_sha1.finalize()),
        is_large: false,
        path,
    })
}

/// Makes the repository, unless it exists, and gives its full name.
fn make_repository(client: &Client, name: &str) -> Result<String, Failure> {
    let endpoint = &client.settings.endpoint;
    let repository = match name.contains('/') {
        true => name.to_owned(),
        false => format!("{}/{name}", user(client)?),
    };
    let id = ModelId::parse(&repository).filter(|id| id.repository() == repository);
    let id = id.context(ErrorKind::Argument, || {
        format!("{repository}: not a name that a repository can have")
    })?;
    let body = json!({ "name": id.name(), "organization": id.owner() });
    let body = body.to_string().into_bytes();
    let url = format!("{endpoint}/api/repos/create");
    let request = Request::post(url, "application/json", &body);
    match client.json(&request, 1) {
        Ok(_) => Ok(repository),
        Err(Failure::Refused(refusal)) if refusal.status == 409 => Ok(repository),
        // Who may not make repositories there may still write to one that exists.
        Err(Failure::Refused(refusal)) if refusal.status == 403 => {
            let url = format!("{endpoint}/api/models/{repository}");
            match client.json(&Request::get(url), TRIES) {
                Ok(_) => Ok(repository),
                Err(_) => Err(Failure::Refused(refusal)),
            }
        }
        Err(failure) => Err(failure),
    }
}

/// The account that the token is of.
fn user(client: &Client) -> Result<String, Failure> {
    let url = format!("{}/api/whoami-v2", client.settings.endpoint);
    let answer = client.json(&Request::get(url), TRIES)?;
    let name = answer.get("name").and_then(Value::as_str);
    let name = name.context(ErrorKind::Hub, || {
        "the hub does not say whose token this is; name OWNER/NAME".into()
    })?;
    Ok(name.to_owned())
}

/// Asks how each file goes to the hub, and drops those that it has or does not want.
fn choose_ways(
    client: &Client,
    repository: &str,
    files: &mut Vec<LocalFile>,
) -> Result<(), Failure> {
    let endpoint = &client.settings.endpoint;
    let url = format!("{endpoint}/api/models/{repository}/preupload/{REVISION}");
    let mut kept = Vec::new();
    let mut rest = std::mem::take(files);
    while !rest.is_empty() {
        let later = rest.split_off(rest.len().min(FILES_PER_REQUEST));
        let entry = |file: &LocalFile| {
            let sample = BASE64_STANDARD.encode(&file.sample);
            json!({ "path": file.name, "sample": sample, "size": file.size_bytes })
        };
        let body = json!({ "files": rest.iter().map(entry).collect::<Vec<_>>() });
        let body = body.to_string().into_bytes();
        let request = Request::post(url.clone(), "application/json", &body);
        let answer = client.json(&request, TRIES)?;
        let answers = answer.get("files").and_then(Value::as_array);
        let answers = answers.context(ErrorKind::Hub, || {
            "the hub names no files in its answer".into()
        })?;
        for mut file in rest {
            let answer = answers
                .iter()
                .find(|answer| answer["path"] == file.name.as_str());
            let answer = answer.context(ErrorKind::Hub, || {
                format!("the hub is silent about {}", file.name)
            })?;
            file.is_large = match answer["uploadMode"].as_str() {
                // Storage takes no empty files.
                Some("lfs") => file.size_bytes > 0,
                Some("regular") => false,
                other => {
                    let text = format!("{}: unknown way of upload {other:?}", file.name);
                    return Err(Error::new(ErrorKind::Hub, text).into());
                }
            };
            let hash = if file.is_large {
                &file.sha256
            } else {
                &file.git_sha1
            };
            let is_there = answer["oid"].as_str() == Some(hash.as_str());
            let is_unwanted = answer["shouldIgnore"] == true;
            if !is_there && !is_unwanted {
                kept.push(file);
            }
        }
        rest = later;
    }
    *files = kept;
    Ok(())
}

fn upload_large(client: &Client, repository: &str, files: &[LocalFile]) -> Result<(), Failure> {
    let large = files.iter().filter(|file| file.is_large);
    let objects: Vec<_> = large
        .map(|file| Object {
            path: &file.path,
            oid: &file.sha256,
            size_bytes: file.size_bytes,
        })
        .collect();
    let uploads = Uploads {
        client,
        repository,
        revision: REVISION,
        progress: client.observer.begin(Work::Upload),
        total_bytes: objects.iter().map(|object| object.size_bytes).sum(),
    };
    match objects.is_empty() {
        true => Ok(()),
        false => uploads.upload(&objects),
    }
}

/// Makes the commit and gives its address.
fn commit(
    client: &Client,
    repository: &str,
    files: &[LocalFile],
    summary: &str,
) -> Result<String, Failure> {
    let mut lines =
        vec![json!({ "key": "header", "value": { "summary": summary, "description": "" } })];
    for file in files {
        lines.push(match file.is_large {
            true => json!({ "key": "lfsFile", "value": {
                "path": file.name, "algo": "sha256", "oid": file.sha256, "size": file.size_bytes,
            } }),
            false => {
                let content = fs::read(&file.path);
                let content = content.context(ErrorKind::Io, || cannot_read(&file.path))?;
                let content = BASE64_STANDARD.encode(content);
                json!({ "key": "file", "value": {
                    "path": file.name, "content": content, "encoding": "base64",
                } })
            }
        });
    }
    let mut body = String::new();
    for line in lines {
        body.push_str(&line.to_string());
        body.push('\n');
    }
    let endpoint = &client.settings.endpoint;
    let url = format!("{endpoint}/api/models/{repository}/commit/{REVISION}");
    // Once only: after a lost answer the commit may have been made.
    let answer = client.json(
        &Request::post(url, "application/x-ndjson", body.as_bytes()),
        1,
    )?;
    let address = answer.get("commitUrl").and_then(Value::as_str);
    Ok(address.map_or_else(|| format!("{endpoint}/{repository}"), str::to_owned))
}
