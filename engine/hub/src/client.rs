//! Requests to the hub: one blocking agent of the `ureq` crate, with the token where it belongs,
//! redirects, and another try where one may help.
//!
//! The token goes to the endpoint alone, never to the storage that it redirects to, not even to
//! another port of the same host; that is why redirects are followed here. Nothing here knows what
//! is asked for.

#![forbid(unsafe_code)]

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use base64::prelude::{Engine, BASE64_STANDARD};
use ureq::http;
use ureq::tls::{parse_pem, PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body, SendBody, Timeout};

use crate::address::unescape;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Observer;
use crate::settings::Settings;

pub(crate) type Response = http::Response<Body>;

const REDIRECTS_MAX: usize = 5;
/// Of the answer to a question about a repository; large ones list some thousand files.
const JSON_BYTES_MAX: u64 = 32 << 20;
/// Of what is read of an error page.
const ERROR_BYTES_MAX: u64 = 64 << 10;
/// A server that wants to be left alone for longer is not waited for.
const WAIT_MAX: Duration = Duration::from_secs(120);
/// Waits from here on are announced, for an answer or before another try.
const WAIT_QUIETLY: Duration = Duration::from_secs(3);
/// How often a request is made when nothing makes it succeed.
pub(crate) const TRIES: u32 = 5;
/// The same when nobody is there at all: mostly there is just no network.
const TRIES_UNREACHABLE: u32 = 3;

/// Why a request brought nothing.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server said no.
    Refused(Refusal),
    /// Nobody there: no network, no such host, none that can be trusted, or one that says nothing.
    Unreachable(String),
    /// No answer, or a broken one: another try may help.
    Network(String),
    /// The fault is on this side, or an answer makes no sense.
    Other(Error),
}

/// An answer with a status of 400 or above.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    /// The hub's own word for it, such as `RepoNotFound`.
    pub(crate) code: Option<String>,
    /// For people.
    pub(crate) message: Option<String>,
    pub(crate) url: String,
    retry_after: Option<Duration>,
}

impl Refusal {
    /// Whether the server is merely busy.
    fn is_passing(&self) -> bool {
        matches!(self.status, 408 | 429 | 500 | 502 | 503 | 504)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = http::StatusCode::from_u16(self.status).ok();
        let reason = reason.and_then(|status| status.canonical_reason());
        write!(f, "{} answers {}", self.url, self.status)?;
        if let Some(reason) = reason {
            write!(f, " {reason}")?;
        }
        match &self.message {
            Some(message) => write!(f, ": {message}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused(refusal) => refusal.fmt(f),
            Failure::Network(text) | Failure::Unreachable(text) => f.write_str(text),
            Failure::Other(error) => error.fmt(f),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Other(error)
    }
}

/// Of a request; made anew for every try.
pub(crate) enum Payload<'a> {
    Empty,
    Bytes(&'a [u8]),
    Stream {
        open: &'a dyn Fn() -> Result<Box<dyn Read + 'a>>,
        size_bytes: u64,
    },
}

/// What to ask for.
pub(crate) struct Request<'a> {
    pub(crate) method: http::Method,
    pub(crate) url: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) payload: Payload<'a>,
}

impl<'a> Request<'a> {
    pub(crate) fn get(url: String) -> Self {
        Self::new(http::Method::GET, url, Payload::Empty)
    }

    pub(crate) fn head(url: String) -> Self {
        Self::new(http::Method::HEAD, url, Payload::Empty)
    }

    pub(crate) fn post(url: String, content_type: &str, body: &'a [u8]) -> Self {
        let request = Self::new(http::Method::POST, url, Payload::Bytes(body));
        request.with_header("content-type", content_type)
    }

    pub(crate) fn put(url: String, payload: Payload<'a>) -> Self {
        Self::new(http::Method::PUT, url, payload)
    }

    pub(crate) fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    fn new(method: http::Method, url: String, payload: Payload<'a>) -> Self {
        Request {
            method,
            url,
            headers: Vec::new(),
            payload,
        }
    }
}

/// Which redirects are followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Follow {
    All,
    /// Only those within the server, and none that says what it leads to: the answer at which the
    /// hub sends its client elsewhere is the one that describes the file.
    UntilDescribed,
}

/// A connection to the hub.
pub(crate) struct Client {
    agent: Agent,
    /// For those that are asked without the proxy, if there is one.
    direct: Agent,
    /// User name and password of the hub's address, as a header has them.
    basic: Option<String>,
    pub(crate) settings: Settings,
    pub(crate) observer: Observer,
}

impl Client {
    pub(crate) fn new(settings: Settings, observer: Observer) -> Result<Self> {
        let read_timeout = settings.read_timeout;
        Self::with_patience(settings, observer, read_timeout)
    }

    /// A client that waits for so long for an answer, or the next piece of one.
    pub(crate) fn with_patience(
        settings: Settings,
        observer: Observer,
        patience: Duration,
    ) -> Result<Self> {
        let mut tls = TlsConfig::builder();
        if let Some(path) = &settings.certificates {
            tls = tls.root_certs(read_certificates(path)?);
        }
        let tls = tls.build();
        let agent = |proxy: Option<ureq::Proxy>| -> Agent {
            Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .max_redirects_will_error(false)
                .tls_config(tls.clone())
                .proxy(proxy)
                .user_agent(concat!("rwkv-edge/", env!("CARGO_PKG_VERSION")))
                .timeout_resolve(Some(settings.connect_timeout))
                .timeout_connect(Some(settings.connect_timeout))
                .timeout_per_read(Some(patience))
                .timeout_per_write(Some(patience))
                .build()
                .new_agent()
        };
        let proxy = settings.proxy.as_ref().map(|it| it.proxy.clone());
        let (agent, direct) = (agent(proxy), agent(None));
        let credentials = settings.credentials.as_deref();
        let basic = credentials.map(|it| format!("Basic {}", BASE64_STANDARD.encode(pair(it))));
        Ok(Client {
            agent,
            direct,
            basic,
            settings,
            observer,
        })
    }

    /// Makes a request, at most `tries` times.
    pub(crate) fn send(
        &self,
        request: &Request<'_>,
        follow: Follow,
        tries: u32,
    ) -> Result<Response, Failure> {
        let mut failed = 0;
        loop {
            let start = Instant::now();
            let failure = match self.try_once(request, follow) {
                Ok(response) => return Ok(response),
                Err(failure) => failure,
            };
            failed += 1;
            let tries = match failure {
                Failure::Unreachable(_) => tries.min(TRIES_UNREACHABLE),
                _ => tries,
            };
            match wait_after(&failure, failed) {
                Some(wait) if failed < tries => {
                    if wait.max(start.elapsed()) >= WAIT_QUIETLY {
                        let seconds = wait.as_secs_f32();
                        self.observer
                            .note(format_args!("{failure}; trying again in {seconds} s"));
                    }
                    thread::sleep(wait);
                }
                _ => return Err(failure),
            }
        }
    }

    /// Makes a request whose answer is JSON.
    pub(crate) fn json(
        &self,
        request: &Request<'_>,
        tries: u32,
    ) -> Result<serde_json::Value, Failure> {
        let response = self.send(request, Follow::All, tries)?;
        let mut body = response.into_body();
        let bytes = body.with_config().limit(JSON_BYTES_MAX).read_to_vec();
        let bytes = bytes.map_err(|e| network(&request.url, None, e))?;
        // Such as the page by which a public network asks for a password.
        serde_json::from_slice(&bytes).map_err(|_| {
            Failure::Network(format!(
                "{}: something else answers than the hub",
                request.url
            ))
        })
    }

    fn try_once(&self, request: &Request<'_>, follow: Follow) -> Result<Response, Failure> {
        let mut url = request.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let response = self.exchange(request, &url)?;
            let status = response.status();
            if status.is_client_error() || status.is_server_error() {
                return Err(Failure::Refused(refusal(response, url)));
            }
            let may_repeat = match request.payload {
                Payload::Empty => true,
                // Of the others only these two keep the method and the body.
                _ => matches!(status.as_u16(), 307 | 308),
            };
            let Some(location) =
                header(&response, "location").filter(|_| status.is_redirection() && may_repeat)
            else {
                return Ok(response);
            };
            if follow == Follow::UntilDescribed
                && (header(&response, "x-linked-etag").is_some() || is_absolute(location))
            {
                return Ok(response);
            }
            let next = join(&url, location);
            if url.starts_with("https://") && !next.starts_with("https://") {
                let text = format!("{url}: redirects to {next}, which is not encrypted");
                return Err(Error::new(ErrorKind::Hub, text).into());
            }
            url = next;
        }
        let text = format!("{}: more than {REDIRECTS_MAX} redirects", request.url);
        Err(Error::new(ErrorKind::Hub, text).into())
    }

    /// One request and its answer, whatever its status.
    fn exchange(&self, request: &Request<'_>, url: &str) -> Result<Response, Failure> {
        let mut built = http::Request::builder()
            .method(&request.method)
            .uri(url)
            // Sizes, ranges and checksums are those of the file itself.
            .header("accept-encoding", "identity");
        for (name, value) in &request.headers {
            built = built.header(name, value);
        }
        if origin(url) == origin(&self.settings.endpoint) {
            let token = self.settings.token.as_ref();
            let token = token.map(|token| format!("Bearer {}", token.secret));
            if let Some(secret) = token.as_ref().or(self.basic.as_ref()) {
                built = built.header("authorization", secret);
            }
        }
        let proxy = self.settings.proxy.as_ref().filter(|it| !it.spares(url));
        let agent = match &self.settings.proxy {
            Some(_) if proxy.is_none() => &self.direct,
            _ => &self.agent,
        };
        let network = |error| network(url, proxy.map(|it| it.variable), error);
        let failed = |e: http::Error| {
            let text = format!("{url}: not an address to ask");
            Failure::Other(Error::caused(ErrorKind::Hub, text, e))
        };
        let (mut bytes, mut stream);
        let (body, size_bytes): (&mut dyn Read, u64) = match &request.payload {
            Payload::Empty => {
                let built = built.body(()).map_err(failed)?;
                return agent.run(built).map_err(network);
            }
            Payload::Bytes(payload) => {
                bytes = *payload;
                (&mut bytes, payload.len() as u64)
            }
            Payload::Stream { open, size_bytes } => {
                stream = open()?;
                (&mut stream, *size_bytes)
            }
        };
        let built = built.header("content-length", size_bytes);
        let built = built.body(SendBody::from_reader(body)).map_err(failed)?;
        agent.run(built).map_err(network)
    }
}

/// How long to wait before another try, after so many; `None` where it would be no better. Half a
/// second, and twice as long each time, unless the server has said how long.
pub(crate) fn wait_after(failure: &Failure, failed: u32) -> Option<Duration> {
    let pause = Duration::from_millis(500 << failed.saturating_sub(1).min(4));
    let wait = match failure {
        Failure::Network(_) | Failure::Unreachable(_) => pause,
        Failure::Refused(refusal) if refusal.is_passing() => refusal.retry_after.unwrap_or(pause),
        _ => return None,
    };
    (wait <= WAIT_MAX).then_some(wait)
}

pub(crate) fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// What the network brought instead of an answer; `proxy` is the variable that names the proxy on the way.
fn network(url: &str, proxy: Option<&str>, error: ureq::Error) -> Failure {
    let place = match proxy {
        Some(variable) => format!("{}, by the proxy in {variable}", origin(url)),
        None => origin(url),
    };
    let text = error.to_string();
    let text = text.strip_prefix("io: ").unwrap_or(&text);
    let kind = match &error {
        ureq::Error::Io(error) => error.kind(),
        _ => io::ErrorKind::Other,
    };
    match error {
        ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => Failure::Unreachable(format!(
            "{place}: no connection in time, which HF_HUB_ETAG_TIMEOUT sets in seconds"
        )),
        ureq::Error::Timeout(_) => Failure::Unreachable(format!(
            "{place}: no answer in time, which HF_HUB_DOWNLOAD_TIMEOUT sets in seconds"
        )),
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => {
            Failure::Unreachable(format!("{place}: {text}"))
        }
        _ if text.contains("peer certificate") => Failure::Unreachable(format!(
            "{place}: {text}; SSL_CERT_FILE can name a file of certificates to trust"
        )),
        _ if text.contains("lookup") || kind == io::ErrorKind::ConnectionRefused => {
            Failure::Unreachable(format!("{place}: {text}"))
        }
        _ => Failure::Network(format!("{place}: {text}")),
    }
}

fn refusal(response: Response, url: String) -> Refusal {
    let text = |name: &str| header(&response, name).map(str::to_owned);
    let retry_after = text("retry-after").and_then(|seconds| seconds.trim().parse().ok());
    let (status, code) = (response.status().as_u16(), text("x-error-code"));
    let message = text("x-error-message").or_else(|| {
        let mut body = response.into_body();
        let body = body
            .with_config()
            .limit(ERROR_BYTES_MAX)
            .read_to_vec()
            .ok()?;
        let body: serde_json::Value = serde_json::from_slice(&body).ok()?;
        Some(body.get("error")?.as_str()?.to_owned())
    });
    Refusal {
        status,
        code,
        message,
        url,
        retry_after: retry_after.map(Duration::from_secs),
    }
}

fn read_certificates(path: &Path) -> Result<RootCerts> {
    let place = path.display();
    let pem = fs::read(path).context(ErrorKind::Io, || {
        format!("{place}: cannot read certificates")
    })?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        let item = item.context(ErrorKind::Argument, || {
            format!("{place}: not a file of certificates")
        })?;
        if let PemItem::Certificate(certificate) = item {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        let text = format!("{place}: holds no certificate, expected some in PEM form");
        return Err(Error::new(ErrorKind::Argument, text));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

/// `USER:PASSWORD` without the escapes of an address.
fn pair(credentials: &str) -> String {
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    format!("{}:{}", unescape(user), unescape(password))
}

/// Whether a `Location` header names a server.
fn is_absolute(location: &str) -> bool {
    ["//", "http://", "https://"]
        .iter()
        .any(|start| location.starts_with(start))
}

/// Scheme, host and port, always in the same spelling.
pub(crate) fn origin(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let default_port = match scheme {
        "https" => ":443",
        _ => ":80",
    };
    let host = rest[..end]
        .strip_suffix(default_port)
        .unwrap_or(&rest[..end]);
    format!("{scheme}://{}", host.to_ascii_lowercase())
}

/// The address that a `Location` header means.
fn join(base: &str, location: &str) -> String {
    if location.starts_with("//") {
        let scheme = base.split_once("://").map_or("https", |(scheme, _)| scheme);
        return format!("{scheme}:{location}");
    }
    if is_absolute(location) {
        return location.to_owned();
    }
    if location.starts_with('/') {
        return format!("{}{location}", origin(base));
    }
    let path = base.split(['?', '#']).next().unwrap_or(base);
    let folder = path.rfind('/').map_or(path, |slash| &path[..=slash]);
    format!("{folder}{location}")
}

#[cfg(test)]
mod tests {
    use super::{join, origin};

    #[test]
    fn redirects_lead_where_they_should() {
        let base = "https://hub.co/a/resolve/x?y=/z";
        for (location, expected) in [
            ("https://cdn.co/f?t=1", "https://cdn.co/f?t=1"),
            ("//cdn.co/f", "https://cdn.co/f"),
            (
                "/api/f?to=https://x.co",
                "https://hub.co/api/f?to=https://x.co",
            ),
            ("f", "https://hub.co/a/resolve/f"),
        ] {
            assert_eq!(join(base, location), expected);
        }
    }

    #[test]
    fn the_token_belongs_to_scheme_host_and_port() {
        let hub = origin("https://Hub.co/a");
        assert_eq!(hub, origin("https://hub.co:443"));
        for other in [
            "http://hub.co/a",
            "https://hub.co:8443/a",
            "https://hub.co.evil.co/a",
            "https://evil.co/?https://hub.co",
        ] {
            assert_ne!(hub, origin(other), "{other}");
        }
    }
}
