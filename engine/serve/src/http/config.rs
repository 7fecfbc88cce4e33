//! What a server is told.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::http::uri::Authority;
use rwkv_edge::{Error, ErrorKind, Result};

use super::backend::Served;
use super::keys::Keys;
use super::log::LogFormat;
use crate::metrics::Metrics;

/// Where lines about requests and the server go.
pub type Log = Arc<dyn Fn(&str) + Send + Sync>;

/// How a server listens, whom it lets in, and how much it takes.
#[derive(Clone)]
#[non_exhaustive]
pub struct Config {
    /// The models; the first one stands for those of a request that names none, where there is no other.
    pub models: Vec<Served>,
    /// The address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// A file of API keys, a line each: a name, white space and a key.
    pub api_key_file: Option<PathBuf>,
    /// Whether everybody may ask where the address is not this machine's own.
    pub no_key: bool,
    /// Pages that may ask, such as `https://chat.example.org`; `*` stands for all.
    pub allow_origins: Vec<String>,
    /// Hosts that requests may name beside this machine's own, with or without a port.
    pub allow_hosts: Vec<String>,
    /// Tokens of an answer at most, whatever is asked for; `None` is no limit.
    pub max_tokens: Option<usize>,
    /// Answers that a model draws at once: no prompt may have more.
    pub n_sequences: usize,
    /// Answers of one request at most, over all prompts.
    pub choices_max: usize,
    /// Requests of one owner that are worked on at once.
    pub running_max: usize,
    /// Requests of one owner that wait for those.
    pub waiting_max: usize,
    /// Connections at once; more wait in the system.
    pub connections_max: usize,
    /// Bytes of a head.
    pub head_bytes_max: usize,
    /// Bytes of a body.
    pub body_bytes_max: usize,
    /// Bytes of a state that is imported.
    pub state_bytes_max: usize,
    /// Bytes of all bodies that are read at once; at least those of the largest one.
    pub bodies_bytes_max: usize,
    /// Until a head has come, from the connection or the answer before on.
    pub head_timeout: Duration,
    /// Until a body has come.
    pub body_timeout: Duration,
    /// Until a client takes what is written.
    pub write_timeout: Duration,
    /// How long a stream is silent before something is said in it.
    pub ping: Duration,
    /// How long answers may go on when the server is told to end.
    pub drain: Duration,
    /// Whether the signals of the process are heard: SIGTERM and SIGINT end the server, a second one at once, SIGHUP reads
    /// the keys again.
    pub signals: bool,
    /// Where lines go; nothing is said without it.
    pub log: Option<Log>,
    /// How lines about requests are written.
    pub log_format: LogFormat,
    /// Whether prompts are logged.
    pub log_prompts: bool,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl Config {
    /// The defaults: this machine alone, on port 8080.
    pub fn new(models: Vec<Served>) -> Self {
        Config {
            models,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            api_key_file: None,
            no_key: false,
            allow_origins: Vec::new(),
            allow_hosts: Vec::new(),
            max_tokens: None,
            n_sequences: 16,
            choices_max: 512,
            running_max: 128,
            waiting_max: 256,
            connections_max: 1024,
            head_bytes_max: 16 << 10,
            body_bytes_max: 4 << 20,
            state_bytes_max: 128 << 20,
            bodies_bytes_max: 192 << 20,
            head_timeout: Duration::from_secs(15),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            ping: Duration::from_secs(10),
            drain: Duration::from_secs(10),
            signals: true,
            log: None,
            log_format: LogFormat::Plain,
            log_prompts: false,
            metrics: Arc::default(),
        }
    }

    /// Looks whether a server would start, but for its models and its address: to be asked before models are loaded.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for an address that others reach without keys, and for hosts and origins that are none;
    /// when there is something wrong with the file of keys.
    pub fn check(&self) -> Result<()> {
        let argument = |text: String| Err(Error::new(ErrorKind::Argument, text));
        let listen = self.listen;
        let is_open = !listen.ip().to_canonical().is_loopback();
        if is_open && self.api_key_file.is_none() && !self.no_key {
            return argument(format!(
                "{listen} is open to others: expected a file of API keys, or that nobody needs one is said"
            ));
        }
        for origin in self.allow_origins.iter().filter(|origin| *origin != "*") {
            let host = origin.split_once("://").map(|(_, host)| host);
            if !host.is_some_and(is_host) {
                return argument(format!(
                    "origin {origin:?}: expected one such as https://chat.example.org, or *"
                ));
            }
        }
        match self.allow_hosts.iter().find(|host| !is_host(host)) {
            Some(host) => argument(format!(
                "host {host:?}: expected one such as models.example.org"
            )),
            None => self.keys().map(drop),
        }
    }

    pub(super) fn keys(&self) -> Result<Option<Keys>> {
        self.api_key_file.as_deref().map(Keys::open).transpose()
    }
}

/// A host with or without a port, and nothing else.
fn is_host(text: &str) -> bool {
    let parsed = text.parse::<Authority>();
    parsed.is_ok_and(|one| !one.host().is_empty() && !text.contains('@'))
}
