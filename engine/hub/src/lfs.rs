//! Large files to the hub's storage, by the batch protocol of Git LFS: the hub names the address of
//! each object that it lacks, or addresses of its parts, and the bytes go there.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use serde_json::{json, Map, Value};

use crate::client::{header, Client, Failure, Follow, Payload, Request, TRIES};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Progress;
use crate::push::cannot_read;
use crate::retry::uninterrupted;

const LFS_JSON: &str = "application/vnd.git-lfs+json";
const OBJECTS_PER_REQUEST: usize = 256;
/// The hub as it calls itself behind a mirror.
const HUB: &str = "https://huggingface.co";

/// A file that goes to the storage.
pub(crate) struct Object<'a> {
    pub(crate) path: &'a Path,
    /// SHA-256, in hexadecimal digits.
    pub(crate) oid: &'a str,
    pub(crate) size_bytes: u64,
}

/// Uploads of one push.
pub(crate) struct Uploads<'a> {
    pub(crate) client: &'a Client,
    /// `OWNER/NAME`
    pub(crate) repository: &'a str,
    pub(crate) revision: &'a str,
    pub(crate) progress: Progress<'a>,
    /// Of all objects.
    pub(crate) total_bytes: u64,
}

impl Uploads<'_> {
    /// Uploads those objects that the hub does not have.
    pub(crate) fn upload(&self, objects: &[Object<'_>]) -> Result<(), Failure> {
        let mut done = 0;
        for objects in objects.chunks(OBJECTS_PER_REQUEST) {
            let answers = self.batch(objects)?;
            for object in objects {
                let answer = answers.iter().find(|answer| answer["oid"] == object.oid);
                let answer = answer.context(ErrorKind::Hub, || {
                    format!("the hub is silent about {}", object.oid)
                });
                self.upload_one(object, answer?, done)?;
                done += object.size_bytes;
                self.progress.show(done, self.total_bytes);
            }
        }
        Ok(())
    }

    /// Asks where to put the objects.
    fn batch(&self, objects: &[Object<'_>]) -> Result<Vec<Value>, Failure> {
        let endpoint = &self.client.settings.endpoint;
        let url = format!("{endpoint}/{}.git/info/lfs/objects/batch", self.repository);
        let entry = |object: &Object<'_>| json!({ "oid": object.oid, "size": object.size_bytes });
        let body = json!({
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "objects": objects.iter().map(entry).collect::<Vec<_>>(),
            "hash_algo": "sha256",
            "ref": { "name": self.revision },
        });
        let body = body.to_string().into_bytes();
        let request = Request::post(url, LFS_JSON, &body).with_header("accept", LFS_JSON);
        match self
            .client
            .json(&request, TRIES)?
            .get_mut("objects")
            .map(Value::take)
        {
            Some(Value::Array(answers)) => Ok(answers),
            _ => Err(Error::new(ErrorKind::Hub, "the hub names no objects in its answer").into()),
        }
    }

    fn upload_one(&self, object: &Object<'_>, answer: &Value, done: u64) -> Result<(), Failure> {
        if let Some(error) = answer.get("error") {
            let message = error
                .get("message")
                .and_then(Value::as_str)
                .unwrap_or("refused");
            let place = object.path.display();
            let text = format!("{place}: the hub does not take it: {message}");
            return Err(Error::new(ErrorKind::Hub, text).into());
        }
        // Without an action the hub has the object already.
        let Some(upload) = answer.pointer("/actions/upload") else {
            return Ok(());
        };
        let none = Map::new();
        let headers = upload
            .get("header")
            .and_then(Value::as_object)
            .unwrap_or(&none);
        let url = self.address(upload)?;
        match headers.get("chunk_size") {
            Some(size) => {
                let size = part_bytes(size)?;
                self.upload_parts(object, url, headers, size, done)?;
            }
            None => {
                let whole = (0, object.size_bytes);
                let mut request_headers = Vec::new();
                for (name, value) in headers {
                    request_headers
                        .extend(value.as_str().map(|value| (name.clone(), value.into())));
                }
                self.put(object, url, whole, request_headers, done)?;
            }
        }
        if let Some(verify) = answer.pointer("/actions/verify") {
            let body = json!({ "oid": object.oid, "size": object.size_bytes });
            let body = body.to_string().into_bytes();
            let request = Request::post(self.address(verify)?, "application/json", &body);
            self.client.send(&request, Follow::All, TRIES)?;
        }
        Ok(())
    }

    /// Parts of equal size, each to its own address; then the hub is told that all are there.
    fn upload_parts(
        &self,
        object: &Object<'_>,
        url: String,
        addresses: &Map<String, Value>,
        part_bytes: u64,
        done: u64,
    ) -> Result<(), Failure> {
        let n_parts = object.size_bytes.div_ceil(part_bytes);
        let named = addresses
            .keys()
            .filter(|key| key.parse::<u64>().is_ok())
            .count() as u64;
        if named != n_parts {
            let place = object.path.display();
            let text = format!("{place}: the hub names {named} parts, expected {n_parts}");
            return Err(Error::new(ErrorKind::Hub, text).into());
        }
        let mut parts = Vec::new();
        for number in 1..=n_parts {
            // Numbers may have zeros in front.
            let of_part = |key: &str| key.parse() == Ok(number);
            let address = addresses.iter().find(|(key, _)| of_part(key));
            let address = address.and_then(|(_, address)| address.as_str());
            let address =
                address.context(ErrorKind::Hub, || format!("the hub names no part {number}"))?;
            let begin = (number - 1) * part_bytes;
            let range = (begin, part_bytes.min(object.size_bytes - begin));
            let etag = self.put(object, address.to_owned(), range, Vec::new(), done + begin)?;
            let etag = etag.context(ErrorKind::Hub, || {
                format!("the storage gives no ETag of part {number}")
            })?;
            parts.push(json!({ "partNumber": number, "etag": etag }));
        }
        let body = json!({ "oid": object.oid, "parts": parts })
            .to_string()
            .into_bytes();
        let request = Request::post(url, LFS_JSON, &body).with_header("accept", LFS_JSON);
        self.client.send(&request, Follow::All, TRIES)?;
        Ok(())
    }

    /// Sends a range of the file, and gives the storage's ETag of it.
    fn put(
        &self,
        object: &Object<'_>,
        url: String,
        (begin, size_bytes): (u64, u64),
        headers: Vec<(String, String)>,
        done: u64,
    ) -> Result<Option<String>, Failure> {
        let open = || {
            let failed = || cannot_read(object.path);
            let mut file = File::open(object.path).context(ErrorKind::Io, failed)?;
            file.seek(SeekFrom::Start(begin))
                .context(ErrorKind::Io, failed)?;
            let inner = file.take(size_bytes);
            let uploads = self;
            Ok(Box::new(Counted {
                inner,
                uploads,
                done,
            }) as Box<dyn Read>)
        };
        let payload = Payload::Stream {
            open: &open,
            size_bytes,
        };
        let mut request = Request::put(url, payload);
        request.headers = headers;
        let answer = self.client.send(&request, Follow::All, TRIES)?;
        Ok(header(&answer, "etag").map(str::to_owned))
    }

    /// The address of an action; a hub behind a mirror may give its own.
    fn address(&self, action: &Value) -> Result<String> {
        let Some(address) = action.get("href").and_then(Value::as_str) else {
            let text = "the hub gives no address for an upload";
            return Err(Error::new(ErrorKind::Hub, text));
        };
        Ok(match address.strip_prefix(HUB) {
            Some(path) if path.starts_with('/') => {
                format!("{}{path}", self.client.settings.endpoint)
            }
            _ => address.to_owned(),
        })
    }
}

fn part_bytes(value: &Value) -> Result<u64> {
    let number = match value {
        Value::String(digits) => digits.parse().ok(),
        value => value.as_u64(),
    };
    let number = number.filter(|number| *number > 0);
    number.context(ErrorKind::Hub, || {
        format!("the hub asks for parts of {value} bytes")
    })
}

/// A body that moves the bar as it is sent.
struct Counted<'a, R> {
    inner: R,
    uploads: &'a Uploads<'a>,
    done: u64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = uninterrupted(|| self.inner.read(buffer))?;
        self.done += n as u64;
        let uploads = self.uploads;
        uploads.progress.show(self.done, uploads.total_bytes);
        Ok(n)
    }
}
