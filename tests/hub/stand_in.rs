//! A hub for tests: plain HTTP/1.1 on loopback, with the endpoints and headers that the real one documents,
//! and faults on demand. Large files are redirected to a storage on another port, as the real hub does.
#![allow(dead_code)] // Every test binary uses its own part of this.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use serde_json::{json, Value};
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub type Files = BTreeMap<String, Vec<u8>>;

/// Endings of the files that go to the storage.
const LARGE: [&str; 4] = [".safetensors", ".bin", ".pth", ".npz"];

/// What goes wrong with an answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// After so many bytes nothing more comes, but the connection stays.
    Stall(usize),
    /// It ends before any answer.
    Drop,
    /// Another status, with these headers.
    Status(u16, Vec<(&'static str, String)>),
    /// One byte is another.
    Garble,
    /// The body is so many bytes shorter, and says so.
    Shorter(usize),
    /// The same, but the end of the body is the end of the connection.
    ShorterUnannounced(usize),
    /// A range is not honoured.
    IgnoreRange,
    /// The size that the hub speaks of differs by so much from the file's.
    SizeOff(i64),
}

struct FaultRule {
    method: &'static str,
    path: String,
    fault: Fault,
    times: usize,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// With the query.
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    pub to_storage: bool,
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

/// What is sent back.
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: u16, body: Vec<u8>) -> Self {
        Answer {
            status,
            headers: Vec::new(),
            body,
        }
    }

    fn json(value: &Value) -> Self {
        Self::new(200, value.to_string().into_bytes()).with("Content-Type", "application/json")
    }

    fn error(status: u16, code: &str, message: &str) -> Self {
        let body = json!({ "error": message }).to_string().into_bytes();
        let answer = Self::new(status, body).with("X-Error-Message", message);
        match code {
            "" => answer,
            code => answer.with("X-Error-Code", code),
        }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
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
        let entry = |(name, commit): (&String, &String)| json!({ "name": name, "ref": format!("refs/heads/{name}"), "targetCommit": commit });
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

    fn who_am_i(&self, request: &Request) -> Answer {
        match token(request) {
            Some("writer") => Answer::json(&json!({ "name": "me", "type": "user" })),
            _ => Answer::error(401, "", "Invalid username or password."),
        }
    }

    fn may_write(request: &Request) -> Option<Answer> {
        match token(request) {
            Some("writer") => None,
            Some("reader") => Some(Answer::error(403, "", "this token may only read")),
            _ => Some(Answer::error(401, "", "Invalid username or password.")),
        }
    }

    fn create(&mut self, request: &Request) -> Answer {
        if let Some(refused) = Self::may_write(request) {
            return refused;
        }
        let asked: Value = serde_json::from_slice(&request.body).expect("JSON");
        assert!(
            asked.get("type").is_none_or(|kind| kind == "model"),
            "{asked}"
        );
        let of = |key: &str| asked[key].as_str().expect("a name").to_owned();
        let name = format!("{}/{}", of("organization"), of("name"));
        if self.repositories.contains_key(&name) {
            return Answer::error(409, "", "You already created this model repo");
        }
        self.repositories
            .insert(name.clone(), Repository::default());
        Answer::json(&json!({ "url": format!("{}/{name}", self.hub) }))
    }

    fn preupload(&self, request: &Request, name: &str) -> Answer {
        if let Some(refused) = Self::may_write(request) {
            return refused;
        }
        let asked: Value = serde_json::from_slice(&request.body).expect("JSON");
        let there = self.repositories[name].commit_of("main");
        let there = there.map(|commit| &self.repositories[name].commits[&commit]);
        let entry = |file: &Value| {
            let path = file["path"].as_str().expect("a path");
            assert!(
                file["sample"].is_string() && file["size"].is_u64(),
                "{file}"
            );
            let oid = there
                .and_then(|files| files.get(path))
                .map(|bytes| etag(path, bytes));
            let mode = if is_large(path, b"x") {
                "lfs"
            } else {
                "regular"
            };
            json!({
                "path": path, "uploadMode": mode, "shouldIgnore": path.ends_with(".pyc"), "oid": oid,
            })
        };
        let files: Vec<Value> = asked["files"]
            .as_array()
            .expect("files")
            .iter()
            .map(entry)
            .collect();
        Answer::json(&json!({ "files": files }))
    }

    fn batch(&self, request: &Request, _name: &str) -> Answer {
        if let Some(refused) = Self::may_write(request) {
            return refused;
        }
        let asked: Value = serde_json::from_slice(&request.body).expect("JSON");
        assert_eq!(request.headers["accept"], "application/vnd.git-lfs+json");
        assert_eq!(
            (&asked["operation"], &asked["hash_algo"]),
            (&json!("upload"), &json!("sha256"))
        );
        let entry = |object: &Value| {
            let (oid, size) = (
                object["oid"].as_str().expect("an oid"),
                object["size"].as_u64(),
            );
            let mut answer = json!({ "oid": oid, "size": size });
            if !self.objects.contains_key(oid) {
                answer["actions"] = self.actions(oid, size.expect("a size") as usize);
            }
            answer
        };
        let objects = asked["objects"].as_array().expect("objects").iter();
        Answer::json(
            &json!({ "transfer": "basic", "objects": objects.map(entry).collect::<Vec<_>>() }),
        )
    }

    fn actions(&self, oid: &str, size: usize) -> Value {
        let (hub, storage) = (&self.hub, &self.storage);
        let upload = match self.part_bytes.filter(|part_bytes| size > *part_bytes) {
            None => json!({ "href": format!("{storage}/objects/{oid}"), "header": {} }),
            Some(part_bytes) => {
                let mut header = json!({ "chunk_size": part_bytes.to_string() });
                for number in 1..=size.div_ceil(part_bytes) {
                    header[format!("{number:05}")] =
                        json!(format!("{storage}/objects/{oid}/{number}"));
                }
                json!({ "href": format!("{hub}/complete/{oid}"), "header": header })
            }
        };
        json!({ "upload": upload, "verify": { "href": format!("{hub}/verify/{oid}") } })
    }

    fn complete(&mut self, request: &Request, oid: &str) -> Answer {
        let asked: Value = serde_json::from_slice(&request.body).expect("JSON");
        let parts = self.parts.remove(oid).unwrap_or_default();
        let expected: Vec<Value> = parts
            .keys()
            .map(|number| json!({ "partNumber": number, "etag": format!("\"part-{number}\"") }))
            .collect();
        assert_eq!(
            (&asked["oid"], &asked["parts"]),
            (&json!(oid), &json!(expected))
        );
        let joined = parts.into_values().flatten().collect();
        self.objects.insert(oid.to_owned(), joined);
        Answer::json(&json!({}))
    }

    fn verify(&mut self, request: &Request, oid: &str) -> Answer {
        if let Some(refused) = Self::may_write(request) {
            return refused;
        }
        let asked: Value = serde_json::from_slice(&request.body).expect("JSON");
        let Some(object) = self.objects.get(oid) else {
            return Answer::error(404, "", "no such object");
        };
        if sha256(object) != oid || asked != json!({ "oid": oid, "size": object.len() }) {
            return Answer::error(422, "", "not what was announced");
        }
        self.verified.insert(oid.to_owned());
        Answer::json(&json!({}))
    }

    fn commit(&mut self, request: &Request, name: &str) -> Answer {
        if let Some(refused) = Self::may_write(request) {
            return refused;
        }
        assert_eq!(request.headers["content-type"], "application/x-ndjson");
        let body = String::from_utf8(request.body.clone()).expect("UTF-8");
        let mut lines = body
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let header = lines.next().expect("a header");
        assert!(header["key"] == "header" && header["value"]["summary"].is_string());
        let there = self.repositories[name].commit_of("main");
        let mut files = there.map_or_else(Files::new, |commit| {
            self.repositories[name].commits[&commit].clone()
        });
        for line in lines {
            let value = &line["value"];
            let path = value["path"].as_str().expect("a path").to_owned();
            let bytes = match line["key"].as_str() {
                Some("file") => from_base64(value["content"].as_str().expect("content")),
                Some("lfsFile") => {
                    let oid = value["oid"].as_str().expect("an oid");
                    assert_eq!(value["algo"], "sha256");
                    let Some(object) = self.objects.get(oid).cloned() else {
                        return Answer::error(400, "", "an object that was not uploaded");
                    };
                    assert_eq!(value["size"], object.len());
                    object
                }
                other => panic!("key {other:?}"),
            };
            files.insert(path, bytes);
        }
        let oid = git_sha1(body.as_bytes());
        let repository = self.repositories.entry(name.to_owned()).or_default();
        repository.revisions.insert("main".into(), oid.clone());
        repository.commits.insert(oid.clone(), files);
        let url = format!("{}/{name}/commit/{oid}", self.hub);
        Answer::json(&json!({ "success": true, "commitOid": oid, "commitUrl": url }))
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

fn read_request(reader: &mut impl BufRead, to_storage: bool) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    assert!(
        !headers.contains_key("transfer-encoding"),
        "storages take no chunks"
    );
    let size = headers
        .get("content-length")
        .map_or(0, |size| size.parse().expect("a size"));
    let mut body = vec![0; size];
    reader.read_exact(&mut body).ok()?;
    Some(Request {
        method,
        path,
        headers,
        body,
        to_storage,
    })
}

/// Fails when the connection is to end.
fn write_answer(
    mut stream: &TcpStream,
    request: &Request,
    mut answer: Answer,
    fault: Option<Fault>,
) -> std::io::Result<()> {
    let end = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
    let mut announced = true;
    match fault {
        Some(Fault::Garble) => {
            // Not within a character of text.
            let middle = answer.body.len() / 2;
            answer.body[middle] ^= 0x80;
        }
        Some(Fault::Shorter(n)) => answer.body.truncate(answer.body.len() - n),
        Some(Fault::ShorterUnannounced(n)) => {
            answer.body.truncate(answer.body.len() - n);
            announced = false;
        }
        Some(Fault::SizeOff(n)) => {
            for (name, value) in &mut answer.headers {
                if name == "X-Linked-Size" {
                    *value = (value.parse::<i64>().expect("a size") + n).to_string();
                }
            }
        }
        _ => {}
    }
    let ignores_range = matches!(fault, Some(Fault::IgnoreRange));
    let range = request
        .headers
        .get("range")
        .filter(|_| answer.status == 200 && !ignores_range);
    if let Some(range) = range {
        let size = answer.body.len();
        let start = range
            .strip_prefix("bytes=")
            .and_then(|range| range.strip_suffix('-'));
        let start: usize = start
            .and_then(|start| start.parse().ok())
            .expect("an open range");
        if start >= size {
            answer = Answer::error(416, "", "beyond the end");
            answer = answer.with("Content-Range", &format!("bytes */{size}"));
        } else {
            answer.status = 206;
            answer.body.drain(..start);
            let range = format!("bytes {start}-{}/{size}", size - 1);
            answer = answer.with("Content-Range", &range);
        }
    }
    let mut head = format!("HTTP/1.1 {} Reason\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    match announced {
        true => head.push_str(&format!("Content-Length: {}\r\n\r\n", answer.body.len())),
        false => head.push_str("Connection: close\r\n\r\n"),
    }
    stream.write_all(head.as_bytes())?;
    if request.method != "HEAD" {
        match fault {
            Some(Fault::Cut(n)) => {
                stream.write_all(&answer.body[..n.min(answer.body.len())])?;
                return Err(end());
            }
            Some(Fault::Stall(n)) => {
                stream.write_all(&answer.body[..n])?;
                // Until the other side has had enough.
                let _ = stream.read(&mut [0]);
                return Err(end());
            }
            _ => stream.write_all(&answer.body)?,
        }
    }
    match announced {
        true => stream.flush(),
        false => Err(end()),
    }
}

/// Without the escapes of an address.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            plain.push(u8::from_str_radix(&text[at + 1..at + 3], 16).expect("two digits"));
            at += 3;
        } else {
            plain.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(plain).expect("UTF-8")
}

/// Not by the library that made it.
fn from_base64(text: &str) -> Vec<u8> {
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut n_bits, mut bytes) = (0u32, 0, Vec::new());
    for c in text.chars().filter(|c| *c != '=') {
        bits = bits << 6 | alphabet.find(c).expect("of the alphabet") as u32;
        n_bits += 6;
        if n_bits >= 8 {
            n_bits -= 8;
            bytes.push((bits >> n_bits) as u8);
            bits &= (1 << n_bits) - 1;
        }
    }
    bytes
}
