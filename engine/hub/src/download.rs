//! One file from the hub into the cache: asked about, fetched or gone on with, verified, and only
//! then put where models are opened from.
//!
//! Sizes are checked against what the hub says, the content against what it calls the file: the
//! SHA-256 of large files, git's SHA-1 of small ones. What is not right never gets the name of a
//! blob.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::thread;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::cache::RepositoryCache;
use crate::client::{header, wait_after, Client, Failure, Follow, Request, Response, TRIES};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{Progress, Work};
use crate::id::{content_hash, is_hex, is_plain_name, ModelId};
use crate::retry::uninterrupted;

/// Bytes read, hashed and written at once.
const RECEIVE_BYTES: usize = 256 << 10;

/// What the hub says about a file.
#[derive(Debug)]
struct Described {
    /// Names the content, and the blob.
    etag: String,
    size_bytes: u64,
}

/// A file of one commit of a repository.
pub(crate) struct RemoteFile<'a> {
    pub(crate) client: &'a Client,
    pub(crate) cache: &'a RepositoryCache,
    pub(crate) id: &'a ModelId,
    pub(crate) commit: &'a str,
    /// With slashes between its folders.
    pub(crate) name: &'a str,
}

impl RemoteFile<'_> {
    /// Puts the file into the snapshot of its commit.
    pub(crate) fn fetch(&self) -> Result<(), Failure> {
        let described = self.describe()?;
        let etag = &described.etag;
        let lock = self.cache.lock(etag, self.name, &self.client.observer)?;
        // Another program may have been faster, or another commit have the same file.
        let blob = self.cache.blob(etag);
        let there = fs::metadata(&blob).is_ok_and(|blob| blob.len() == described.size_bytes);
        if !there {
            self.transfer(&described)?;
        }
        self.cache.link(etag, self.commit, self.name)?;
        drop(lock);
        Ok(())
    }

    fn url(&self) -> String {
        let endpoint = &self.client.settings.endpoint;
        let (repository, commit) = (self.id.repository(), escape_part(self.commit));
        format!(
            "{endpoint}/{repository}/resolve/{commit}/{}",
            escape(self.name)
        )
    }

    fn error(&self, kind: ErrorKind, text: String) -> Failure {
        let text = format!("{}: {}: {text}", self.id.repository(), self.name);
        Failure::Other(Error::new(kind, text))
    }

    /// An answer of the hub that makes no sense.
    fn wrong_answer(&self, text: String) -> Failure {
        self.error(ErrorKind::Hub, text)
    }

    fn describe(&self) -> Result<Described, Failure> {
        let request = Request::head(self.url());
        let answer = self.client.send(&request, Follow::UntilDescribed, TRIES)?;
        if let Some(commit) = header(&answer, "x-repo-commit").filter(|it| *it != self.commit) {
            let text = format!(
                "the hub speaks of commit {commit}, expected {}",
                self.commit
            );
            return Err(self.wrong_answer(text));
        }
        let either = |linked, plain| header(&answer, linked).or_else(|| header(&answer, plain));
        let etag = either("x-linked-etag", "etag").map(plain_etag);
        let etag = etag.filter(|etag| is_plain_name(etag));
        let size = either("x-linked-size", "content-length");
        let size = size.and_then(|size| size.trim().parse().ok());
        match (etag, size) {
            (Some(etag), Some(size_bytes)) => Ok(Described {
                etag: etag.to_owned(),
                size_bytes,
            }),
            _ => {
                let text = "the hub gives no ETag or no size: cannot be verified";
                Err(self.wrong_answer(text.into()))
            }
        }
    }

    /// Makes the blob. The caller holds its lock.
    fn transfer(&self, described: &Described) -> Result<(), Failure> {
        let path = self.cache.incomplete(&described.etag);
        let mut partial = Partial::open(&path, described)?;
        let progress = self.client.observer.begin(Work::Download(self.name));
        self.check_space(&path, described.size_bytes - partial.done)?;
        let began_with = partial.done;
        progress.show(partial.done, described.size_bytes);
        if let Err(failure) = self.receive_all(&mut partial, &progress) {
            if partial.done == 0 {
                // Nothing to go on from.
                drop(fs::remove_file(&path));
            }
            return Err(failure);
        }
        let mut wrong = partial.wrong_content();
        if wrong.is_some() && began_with > 0 {
            // What lay there may have been damaged or another's.
            self.client.observer.note(format_args!(
                "{}: the part that was there already is damaged: from the start again",
                self.name
            ));
            partial.restart()?;
            self.receive_all(&mut partial, &progress)?;
            wrong = partial.wrong_content();
        }
        if let Some(wrong) = wrong {
            drop(fs::remove_file(&path));
            let text =
                format!("{wrong}: damaged on the way or at the hub; nothing was kept, try again");
            return Err(self.error(ErrorKind::Content, text));
        }
        partial.finish(&path, &self.cache.blob(&described.etag))?;
        Ok(())
    }

    /// Refuses at the start what would fail after hours.
    fn check_space(&self, path: &Path, missing_bytes: u64) -> Result<(), Failure> {
        let folder = path.parent().unwrap_or(path);
        // Some file systems do not know, or say 0.
        let free = fs4::available_space(folder).unwrap_or(0);
        if free > 0 && free < missing_bytes {
            let text = format!(
                "{:.1} MB to download, but {} has only {:.1} MB free; HF_HUB_CACHE names another \
                 folder",
                megabytes(missing_bytes),
                folder.display(),
                megabytes(free)
            );
            return Err(self.error(ErrorKind::Io, text));
        }
        Ok(())
    }

    /// Receives what is missing, with new requests as long as they bring anything.
    fn receive_all(&self, partial: &mut Partial, progress: &Progress<'_>) -> Result<(), Failure> {
        let (mut failed, mut refused) = (0, 0);
        while partial.done < partial.size_bytes {
            let before = partial.done;
            let failure = match self.receive(partial, progress) {
                Ok(()) => continue,
                // Of the whole range: what is there already is no beginning of this file.
                Err(Failure::Refused(it)) if it.status == 416 && refused == 0 && before > 0 => {
                    refused += 1;
                    partial.restart()?;
                    continue;
                }
                Err(failure) => failure,
            };
            failed = if partial.done > before { 1 } else { failed + 1 };
            let (name, done) = (self.name, megabytes(partial.done));
            let total = megabytes(partial.size_bytes);
            match wait_after(&failure, failed).filter(|_| failed < TRIES) {
                Some(wait) => {
                    self.client
                        .observer
                        .note(format_args!("{name}: interrupted ({failure}), going on"));
                    thread::sleep(wait);
                }
                None => {
                    return Err(match failure {
                        Failure::Network(text) | Failure::Unreachable(text) => {
                            Failure::Network(format!(
                            "{text}; {name}: {done:.1} of {total:.1} MB are there, and the same \
                                 command goes on from them"
                        ))
                        }
                        failure => failure,
                    })
                }
            }
        }
        Ok(())
    }

    /// One request for what is missing, and one try.
    fn receive(&self, partial: &mut Partial, progress: &Progress<'_>) -> Result<(), Failure> {
        let mut request = Request::get(self.url());
        if partial.done > 0 {
            request = request.with_header("range", &format!("bytes={}-", partial.done));
        }
        let answer = self.client.send(&request, Follow::All, 1)?;
        self.check_answer(&answer, partial)?;
        let mut body = answer.into_body().into_reader();
        let mut piece = vec![0; RECEIVE_BYTES];
        loop {
            let n = match body.read(&mut piece) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Failure::Network(format!("connection lost: {e}"))),
            };
            if n as u64 > partial.size_bytes - partial.done {
                return Err(self.wrong_answer(format!(
                    "the hub sends more than the {} bytes it speaks of",
                    partial.size_bytes
                )));
            }
            partial.push(&piece[..n])?;
            progress.show(partial.done, partial.size_bytes);
        }
        match partial.done == partial.size_bytes {
            true => Ok(()),
            false => Err(Failure::Network("connection lost".into())),
        }
    }

    /// Whether the answer is what is missing; starts over where it is the whole file instead.
    fn check_answer(&self, answer: &Response, partial: &mut Partial) -> Result<(), Failure> {
        let status = answer.status().as_u16();
        match status {
            200 if partial.done > 0 => partial.restart()?,
            200 => {}
            206 => {
                let expected = (partial.done, partial.size_bytes);
                let range = header(answer, "content-range").unwrap_or("");
                if parse_content_range(range) != Some(expected) {
                    let (start, size) = expected;
                    return Err(self.wrong_answer(format!(
                        "the hub sends bytes {range:?}, expected those from {start} of {size}"
                    )));
                }
            }
            _ => return Err(self.wrong_answer(format!("status {status}, expected the file"))),
        }
        let length = header(answer, "content-length").and_then(|it| it.trim().parse::<u64>().ok());
        let missing = partial.size_bytes - partial.done;
        match length.filter(|length| *length != missing) {
            Some(length) => Err(self.wrong_answer(format!(
                "the hub sends {length} bytes, expected {missing}: not the file that it describes"
            ))),
            None => Ok(()),
        }
    }
}

/// A file as far as it has come, with the hash of what is there.
struct Partial {
    file: File,
    done: u64,
    size_bytes: u64,
    etag: String,
    hash: ContentHash,
}

impl Partial {
    /// Goes on with what another run has left.
    fn open(path: &Path, described: &Described) -> Result<Self> {
        let failed = || format!("{}: cannot open", path.display());
        let mut options = File::options();
        options.create(true).read(true).append(true);
        let file = uninterrupted(|| options.open(path)).context(ErrorKind::Io, failed)?;
        let mut partial = Partial {
            file,
            done: 0,
            size_bytes: described.size_bytes,
            etag: described.etag.clone(),
            hash: ContentHash::new(&described.etag, described.size_bytes),
        };
        let metadata = uninterrupted(|| partial.file.metadata()).context(ErrorKind::Io, failed)?;
        let there = metadata.len();
        if there > described.size_bytes {
            partial.restart()?;
            return Ok(partial);
        }
        let mut piece = vec![0; RECEIVE_BYTES];
        loop {
            let n = uninterrupted(|| partial.file.read(&mut piece));
            let n = n.context(ErrorKind::Io, failed)?;
            if n == 0 {
                break;
            }
            partial.hash.update(&piece[..n]);
            partial.done += n as u64;
        }
        Ok(partial)
    }

    fn restart(&mut self) -> Result<()> {
        let emptied = uninterrupted(|| self.file.set_len(0));
        emptied.context(ErrorKind::Io, || "cannot empty a partial file".into())?;
        self.hash = ContentHash::new(&self.etag, self.size_bytes);
        self.done = 0;
        Ok(())
    }

    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            let missing = megabytes(self.size_bytes - self.done);
            let text =
                format!("cannot write to the cache: {error}; {missing:.1} MB are still to come");
            return Err(Error::new(ErrorKind::Io, text));
        }
        self.hash.update(bytes);
        self.done += bytes.len() as u64;
        Ok(())
    }

    /// What is wrong with the content, if something is.
    fn wrong_content(&self) -> Option<String> {
        let (name, found) = self.hash.clone().finish()?;
        let expected = &self.etag;
        (found != *expected).then(|| format!("{name} {found}, expected {expected}"))
    }

    /// Gives the file the name of a blob.
    fn finish(self, path: &Path, blob: &Path) -> Result<()> {
        let synced = uninterrupted(|| self.file.sync_all());
        synced.context(ErrorKind::Io, || format!("{}: cannot sync", path.display()))?;
        uninterrupted(|| fs::rename(path, blob)).context(ErrorKind::Io, || {
            format!("{}: cannot rename to", blob.display())
        })
    }
}

/// The hash by which the hub knows a file.
#[derive(Clone)]
enum ContentHash {
    /// Of large files, which the hub keeps by the LFS protocol.
    Sha256(Sha256),
    /// Of a small file, as git counts it.
    Git(Sha1),
    /// Another server's own word: nothing to check.
    Unknown,
}

impl ContentHash {
    fn new(etag: &str, size_bytes: u64) -> Self {
        if is_hex(etag, 64) {
            return ContentHash::Sha256(Sha256::new());
        }
        if is_hex(etag, 40) {
            return ContentHash::Git(Sha1::new_with_prefix(format!("blob {size_bytes}\0")));
        }
        ContentHash::Unknown
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            ContentHash::Sha256(hash) => hash.update(bytes),
            ContentHash::Git(hash) => hash.update(bytes),
            ContentHash::Unknown => {}
        }
    }

    /// Name of the hash, and its digits.
    fn finish(self) -> Option<(&'static str, String)> {
        match self {
            ContentHash::Sha256(hash) => Some(("SHA-256", hex(&hash.finalize()))),
            ContentHash::Git(hash) => Some(("git's SHA-1", hex(&hash.finalize()))),
            ContentHash::Unknown => None,
        }
    }
}

/// Whether a file of the cache still has the content that its name is the hash of: all of it is read.
///
/// `file` is its real path, and no link to it. A file of another name has no content that would be right.
///
/// # Errors
///
/// Those of the system, when the file cannot be read.
pub fn content_is_right(file: &Path) -> io::Result<bool> {
    let Some(expected) = content_hash(file) else {
        return Ok(false);
    };
    let mut blob = uninterrupted(|| File::open(file))?;
    let mut hash = ContentHash::new(expected, blob.metadata()?.len());
    let mut piece = vec![0; RECEIVE_BYTES];
    loop {
        match uninterrupted(|| blob.read(&mut piece))? {
            0 => break,
            n => hash.update(&piece[..n]),
        }
    }
    Ok(hash.finish().is_some_and(|(_, found)| found == expected))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An ETag without what HTTP puts around it.
fn plain_etag(etag: &str) -> &str {
    let etag = etag.trim();
    etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"')
}

/// `bytes START-END/SIZE`, of an answer that goes to the end: start and size.
fn parse_content_range(range: &str) -> Option<(u64, u64)> {
    let (range, size) = range.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end, size) = (start.parse().ok()?, end.parse().ok()?, size.parse().ok()?);
    (u64::checked_add(end, 1)? == size).then_some((start, size))
}

/// A path as part of an address. Of what a name may have only these characters mean themselves
/// there.
pub(crate) fn escape(path: &str) -> String {
    let mut escaped = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// A part of a path, in which a slash is nothing special.
pub(crate) fn escape_part(part: &str) -> String {
    escape(part).replace('/', "%2F")
}

pub(crate) fn megabytes(n_bytes: u64) -> f64 {
    n_bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_they_are_written() {
        for etag in ["abc", "\"abc\"", "W/\"abc\"", " \"abc\" "] {
            assert_eq!(plain_etag(etag), "abc");
        }
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, 10)));
        for bad in ["", "bytes 5-8/10", "bytes */10", "bytes 5-9/*", "5-9/10"] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
        assert_eq!(escape("a/b c+d%.pth"), "a/b%20c%2Bd%25.pth");
        assert_eq!(escape_part("refs/\u{e4}"), "refs%2F%C3%A4");
    }

    #[test]
    fn contents_are_hashed_as_the_hub_does() {
        let of = |etag: &str| {
            let mut hash = ContentHash::new(etag, 6);
            hash.update(b"hel");
            hash.update(b"lo\n");
            hash.finish().map(|(_, digits)| digits)
        };
        // git hash-object, and sha256sum.
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(of(git).as_deref(), Some(git));
        assert_eq!(of(sha256).as_deref(), Some(sha256));
        assert_eq!(of("abc-3"), None);
    }
}
