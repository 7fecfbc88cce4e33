//! HTTP/1.1 of the stand-in: requests read, answers written, and what goes wrong on the way.

use std::collections::BTreeMap;
use std::io::{BufRead, Read, Write};
use std::net::TcpStream;

use serde_json::{json, Value};

/// What goes wrong with an answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection ends after so many bytes of the body.
    Windows(usize),
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

/// What is sent back.
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn new(status: u16, body: Vec<u8>) -> Self {
        Answer {
            status,
            headers: Vec::new(),
            body,
        }
    }

    pub fn json(value: &Value) -> Self {
        Self::new(200, value.to_string().into_bytes()).with("Content-Type", "application/json")
    }

    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let body = json!({ "error": message }).to_string().into_bytes();
        let answer = Self::new(status, body).with("X-Error-Message", message);
        match code {
            "" => answer,
            code => answer.with("X-Error-Code", code),
        }
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|header| header.0 != name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

pub fn read_request(reader: &mut impl BufRead, to_storage: bool) -> Option<Request> {
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
pub fn write_answer(
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
            Some(Fault::Windows(n)) => {
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
pub fn unescape(text: &str) -> String {
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
