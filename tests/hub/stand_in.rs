//! A hub for tests: plain HTTP/1.1 on loopback, with the endpoints and headers that the real one
//! documents, and faults on demand. Large files are redirected to a storage on another port, as the
//! real hub does.
#![allow(dead_code)] // Every test binary uses its own part of this.

mod uploads;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufReader;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use serde_json::{json, Value};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use wire::{read_request, unescape, write_answer, Answer};
pub use wire::{Fault, Request};

pub type Files = BTreeMap<String, Vec<u8>>;

/// Endings of the files that go to the storage.
const LARGE: [&str; 4] = [".safetensors", ".bin", ".pth", ".npz"];

struct FaultRule {
    method: &'static str,
    path: String,
    fault: Fault,
    times: usize,
}

#[derive(Default)]
struct Repository {
    revisions: BTreeMap<String, String>,
    commits: BTreeMap<String, Files>,
    /// Needs this token to be seen.
    secret: Option<String>,
    gated: bool,
}

#[derive(Default)]
struct State {
    repositories: BTreeMap<String, Repository>,
    faults: Vec<FaultRule>,
    log: Vec<Request>,
    /// Objects in the storage, by SHA-256.
    objects: BTreeMap<String, Vec<u8>>,
    /// Parts of objects, before they are joined.
    parts: BTreeMap<String, BTreeMap<u64, Vec<u8>>>,
    verified: BTreeSet<String>,
    /// Uploads above this come in parts of this.
    part_bytes: Option<usize>,
    hub: String,
    storage: String,
}

/// A running stand-in. Its threads end with the process.
#[derive(Clone)]
pub struct Hub(Arc<Mutex<State>>);

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// As git counts a blob.
pub fn git_sha1(bytes: &[u8]) -> String {
    let mut hash = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a file goes to the storage, which takes no empty ones.
fn is_large(name: &str, bytes: &[u8]) -> bool {
    !bytes.is_empty() && LARGE.iter().any(|ending| name.ends_with(ending))
}

/// The name of a file's blob in the cache.
pub fn etag(name: &str, bytes: &[u8]) -> String {
    match is_large(name, bytes) {
        true => sha256(bytes),
        false => git_sha1(bytes),
    }
}

impl Hub {
    pub fn start() -> Self {
        let hub = TcpListener::bind("127.0.0.1:0").expect("a port");
        let storage = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = |listener: &TcpListener| {
            let address = listener.local_addr().expect("is bound");
            format!("http://{address}")
        };
        let state = State {
            hub: address(&hub),
            storage: address(&storage),
            ..State::default()
        };
        let this = Hub(Arc::new(Mutex::new(state)));
        for (listener, is_storage) in [(hub, false), (storage, true)] {
            let this = this.clone();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let this = this.clone();
                    thread::spawn(move || this.serve(stream, is_storage));
                }
            });
        }
        this
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn endpoint(&self) -> String {
        self.state().hub.clone()
    }

    /// Adds a commit to a branch and gives its hash.
    pub fn commit(&self, repository: &str, branch: &str, files: Files) -> String {
        let mut state = self.state();
        let repository = state.repositories.entry(repository.to_owned()).or_default();
        let commit = git_sha1(format!("{branch} {files:?}").as_bytes());
        repository
            .revisions
            .insert(branch.to_owned(), commit.clone());
        repository.commits.insert(commit.clone(), files);
        commit
    }

    /// From now on only this token may see it.
    pub fn make_private(&self, repository: &str, token: &str) {
        let mut state = self.state();
        let repository = state.repositories.entry(repository.to_owned()).or_default();
        repository.secret = Some(token.to_owned());
    }

    pub fn make_gated(&self, repository: &str) {
        let mut state = self.state();
        state
            .repositories
            .entry(repository.to_owned())
            .or_default()
            .gated = true;
    }

    /// The next `times` requests with this method, whose path contains `path`, go wrong.
    pub fn fail(&self, method: &'static str, path: &str, times: usize, fault: Fault) {
        let path = path.to_owned();
        self.state().faults.push(FaultRule {
            method,
            path,
            fault,
            times,
        });
    }

    pub fn set_part_bytes(&self, part_bytes: usize) {
        self.state().part_bytes = Some(part_bytes);
    }

    /// All requests since the last call.
    pub fn take_log(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().log)
    }

    /// The files of the last commit of `main`.
    pub fn files(&self, repository: &str) -> Files {
        let state = self.state();
        let repository = &state.repositories[repository];
        repository.commits[&repository.revisions["main"]].clone()
    }

    /// Whether the upload of an object was confirmed.
    pub fn is_verified(&self, oid: &str) -> bool {
        self.state().verified.contains(oid)
    }

    fn serve(&self, stream: TcpStream, to_storage: bool) {
        let Ok(reader) = stream.try_clone() else {
            return;
        };
        let mut reader = BufReader::new(reader);
        while let Some(request) = read_request(&mut reader, to_storage) {
            let fault = self.note(&request);
            let answer = match &fault {
                Some(Fault::Drop) => break,
                Some(Fault::Status(status, headers)) => {
                    let mut answer = Answer::error(*status, "", "told to fail");
                    for (name, value) in headers {
                        answer = answer.with(name, value);
                    }
                    answer
                }
                _ => self.answer(&request),
            };
            if write_answer(&stream, &request, answer, fault).is_err() {
                break;
            }
        }
        let _ = stream.shutdown(Shutdown::Both);
    }

    /// Keeps the request, and says what is to go wrong with it.
    fn note(&self, request: &Request) -> Option<Fault> {
        let mut state = self.state();
        state.log.push(request.clone());
        let applies = |rule: &FaultRule| {
            rule.times > 0 && rule.method == request.method && request.path.contains(&rule.path)
        };
        let rule = state.faults.iter_mut().find(|rule| applies(rule))?;
        rule.times -= 1;
        Some(rule.fault.clone())
    }

    fn answer(&self, request: &Request) -> Answer {
        let path = request.path.split('?').next().unwrap_or_default();
        let parts: Vec<String> = path.trim_matches('/').split('/').map(unescape).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let mut state = self.state();
        if request.to_storage {
            return state.storage_request(request, &parts);
        }
        match (request.method.as_str(), &parts[..]) {
            ("GET", ["api", "models"]) => state.models(&request.path),
            ("GET", ["api", "whoami-v2"]) => state.who_am_i(request),
            ("POST", ["api", "repos", "create"]) => state.create(request),
            ("GET", ["api", "models", owner, name]) => {
                state.info(request, &format!("{owner}/{name}"), "main")
            }
            ("GET", ["api", "models", owner, name, "refs"]) => {
                state.refs(&format!("{owner}/{name}"))
            }
            ("GET", ["api", "models", owner, name, "revision", revision]) => {
                state.info(request, &format!("{owner}/{name}"), revision)
            }
            ("POST", ["api", "models", owner, name, "preupload", "main"]) => {
                state.preupload(request, &format!("{owner}/{name}"))
            }
            ("POST", ["api", "models", owner, name, "commit", "main"]) => {
                state.commit(request, &format!("{owner}/{name}"))
            }
            (_, ["api", "resolve-cache", "models", owner, name, commit, file @ ..]) => {
                state.small_file(&format!("{owner}/{name}"), commit, &file.join("/"))
            }
            (_, [owner, name, "resolve", revision, file @ ..]) => state.resolve(
                request,
                &format!("{owner}/{name}"),
                revision,
                &file.join("/"),
            ),
            ("POST", [owner, name, "info", "lfs", "objects", "batch"]) => {
                let name = name.trim_end_matches(".git");
                state.batch(request, &format!("{owner}/{name}"))
            }
            ("POST", ["complete", oid]) => state.complete(request, oid),
            ("POST", ["verify", oid]) => state.verify(request, oid),
            _ => Answer::error(404, "", "no such page"),
        }
    }
}

impl State {
    /// The repository, if the sender of the request may see it.
    fn visible(&self, request: &Request, name: &str) -> Result<&Repository, Answer> {
        let token = token(request);
        if token == Some("wrong") {
            let message = "Invalid credentials in Authorization header";
            return Err(Answer::error(401, "", message));
        }
        // Without a token the real hub does not even say that it knows nothing.
        let missing = match token {
            Some(_) => Answer::error(404, "RepoNotFound", "Repository not found"),
            None => Answer::error(401, "RepoNotFound", "Repository not found"),
        };
        let Some(repository) = self.repositories.get(name) else {
            return Err(missing);
        };
        match &repository.secret {
            Some(secret) if token != Some(secret) => Err(missing),
            _ => Ok(repository),
        }
    }

    fn info(&self, request: &Request, name: &str, revision: &str) -> Answer {
        let repository = match self.visible(request, name) {
            Ok(repository) => repository,
            Err(answer) => return answer,
        };
        let Some(commit) = repository.commit_of(revision) else {
            return Answer::error(404, "RevisionNotFound", "Invalid rev id");
        };
        let entry = |file: &String| json!({ "rfilename": file });
        let siblings: Vec<Value> = repository.commits[&commit].keys().map(entry).collect();
        let info = json!({
            "_id": "1", "id": name, "modelId": name, "sha": commit, "private": false, "tags": [],
            "siblings": siblings,
        });
        Answer::json(&info)
    }

    fn refs(&self, name: &str) -> Answer {
        let Some(repository) = self.repositories.get(name) else {
            return Answer::error(404, "RepoNotFound", "Repository not found");
        };
        let entry = |(name, commit): (&String, &String)| {
            let reference = format!("refs/heads/{name}");
            json!({ "name": name, "ref": reference, "targetCommit": commit })
        };
        let branches: Vec<Value> = repository.revisions.iter().map(entry).collect();
        Answer::json(&json!({ "branches": branches, "tags": [], "converts": [] }))
    }

    fn models(&self, path: &str) -> Answer {
        let query = path.split_once('?').map_or("", |(_, query)| query);
        let of = |key: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs
                .find(|(name, _)| *name == key)
                .map(|(_, value)| unescape(value))
        };
        let (author, search) = (of("author"), of("search"));
        let fits = |name: &&String| {
            let of_author = |author: &String| name.starts_with(&format!("{author}/"));
            let has = |text: &String| name.to_lowercase().contains(&text.to_lowercase());
            author.as_ref().is_none_or(of_author) && search.as_ref().is_none_or(has)
        };
        let names = self.repositories.keys().filter(fits);
        Answer::json(
            &names
                .map(|name| json!({ "id": name, "modelId": name }))
                .collect(),
        )
    }

    fn resolve(&self, request: &Request, name: &str, revision: &str, file: &str) -> Answer {
        let repository = match self.visible(request, name) {
            Ok(repository) => repository,
            Err(answer) => return answer,
        };
        if repository.gated {
            return Answer::error(403, "GatedRepo", "Access to this model is restricted");
        }
        let Some(commit) = repository.commit_of(revision) else {
            return Answer::error(404, "RevisionNotFound", "Invalid rev id");
        };
        let Some(bytes) = repository.commits[&commit].get(file) else {
            return Answer::error(404, "EntryNotFound", "Entry not found");
        };
        let location = match is_large(file, bytes) {
            true => format!(
                "{}/objects/{}?signature=secret",
                self.storage,
                sha256(bytes)
            ),
            false => format!("/api/resolve-cache/models/{name}/{commit}/{file}"),
        };
        let status = if is_large(file, bytes) { 302 } else { 307 };
        Answer::new(status, b"Redirecting".to_vec())
            .with("Location", &location)
            .with("X-Repo-Commit", &commit)
            .with("X-Linked-Etag", &format!("\"{}\"", etag(file, bytes)))
            .with("X-Linked-Size", &bytes.len().to_string())
    }

    fn small_file(&self, name: &str, commit: &str, file: &str) -> Answer {
        let files = self
            .repositories
            .get(name)
            .and_then(|it| it.commits.get(commit));
        let Some(bytes) = files.and_then(|files| files.get(file)) else {
            return Answer::error(404, "EntryNotFound", "Entry not found");
        };
        Answer::new(200, bytes.clone())
            .with("X-Repo-Commit", commit)
            .with("ETag", &format!("W/\"{}\"", git_sha1(bytes)))
    }

    fn storage_request(&mut self, request: &Request, parts: &[&str]) -> Answer {
        match (request.method.as_str(), parts) {
            ("GET" | "HEAD", ["objects", oid]) => {
                let commits = self
                    .repositories
                    .values()
                    .flat_map(|it| it.commits.values());
                let mut files = commits
                    .flat_map(BTreeMap::values)
                    .chain(self.objects.values());
                match files.find(|bytes| sha256(bytes) == *oid) {
                    Some(bytes) => {
                        Answer::new(200, bytes.clone()).with("ETag", "\"of-the-storage\"")
                    }
                    None => Answer::error(404, "", "no such object"),
                }
            }
            ("PUT", ["objects", oid]) => {
                self.objects.insert((*oid).to_owned(), request.body.clone());
                Answer::new(200, Vec::new())
            }
            ("PUT", ["objects", oid, number]) => {
                let parts = self.parts.entry((*oid).to_owned()).or_default();
                parts.insert(number.parse().expect("a number"), request.body.clone());
                Answer::new(200, Vec::new()).with("ETag", &format!("\"part-{number}\""))
            }
            _ => Answer::error(404, "", "no such object"),
        }
    }
}

impl Repository {
    fn commit_of(&self, revision: &str) -> Option<String> {
        match self.commits.contains_key(revision) {
            true => Some(revision.to_owned()),
            false => self.revisions.get(revision).cloned(),
        }
    }
}

fn token(request: &Request) -> Option<&str> {
    request
        .headers
        .get("authorization")?
        .strip_prefix("Bearer ")
}
