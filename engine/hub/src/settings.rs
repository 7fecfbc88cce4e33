//! Where the hub, its cache and its token are: the environment variables of Python's
//! `huggingface_hub`, with the same meaning and the same defaults.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::address::split_credentials;
use crate::error::{Error, ErrorKind, Result};
use crate::folders::{self, home};
use crate::proxy::Proxy;

const ENDPOINT: &str = "https://huggingface.co";
/// For a connection to be made.
const CONNECT_TIMEOUT_S: u64 = 10;
/// Between two pieces of an answer. Longer than in Python, where 10 s of silence end a download:
/// slow lines and slow boards are what this program is for, and each try may go on from the last.
const READ_TIMEOUT_S: u64 = 30;

/// Where the hub is and what it may be asked: all that the environment says about it.
#[derive(Clone)]
#[non_exhaustive]
#[must_use = "settings do nothing until a hub is made of them"]
pub struct Settings {
    /// The hub's address, without a slash at its end. A user name and password in it are for the hub alone:
    /// they are sent to it and never shown.
    pub endpoint: String,
    /// The folder of all repositories: `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// Who asks; public models need none.
    pub token: Option<Token>,
    /// What forbids the network, if something does: the name of a variable, for error texts.
    pub offline: Option<&'static str>,
    /// For a connection to be made.
    pub connect_timeout: Duration,
    /// Between two pieces of an answer.
    pub read_timeout: Duration,
    /// A file of certificates to trust instead of the usual ones.
    pub certificates: Option<PathBuf>,
    /// The `model_type` of models that can be used, each with its name for people: others are refused before their weights are
    /// downloaded. Empty: none is refused.
    pub model_types: Vec<(&'static str, &'static str)>,
    /// Through which the hub is asked, where the environment says so.
    pub(crate) proxy: Option<Proxy>,
    /// User name and password that the endpoint came with, as they are written in an address.
    pub(crate) credentials: Option<String>,
}

/// A secret; its text is never shown.
#[derive(Clone)]
pub struct Token {
    pub(crate) secret: String,
    /// The variable or file that it comes from.
    pub(crate) source: String,
}

impl Token {
    /// A token, and the place that error texts name: the variable, file or option that it comes from.
    /// `None` for an empty one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for characters that a token cannot have.
    pub fn new(secret: &str, source: impl Into<String>) -> Result<Option<Self>> {
        let (secret, source) = (secret.trim().to_owned(), source.into());
        if !secret.chars().all(|c| c.is_ascii_graphic()) {
            let text = format!("{source}: holds characters that a token cannot have");
            return Err(Error::new(ErrorKind::Argument, text));
        }
        Ok((!secret.is_empty()).then_some(Token { secret, source }))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token from {}", self.source)
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("endpoint", &split_credentials(&self.endpoint).0)
            .field("cache", &self.cache)
            .field("token", &self.token)
            .field("offline", &self.offline)
            .field("proxy", &self.proxy.as_ref().map(|proxy| proxy.variable))
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Those of the public hub, with a cache in this folder and no token.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Settings {
            endpoint: ENDPOINT.to_owned(),
            cache: cache.into(),
            token: None,
            offline: None,
            connect_timeout: Duration::from_secs(CONNECT_TIMEOUT_S),
            read_timeout: Duration::from_secs(READ_TIMEOUT_S),
            certificates: None,
            model_types: Vec::new(),
            proxy: None,
            credentials: None,
        }
    }

    /// Sets [`model_types`](field@Self::model_types).
    pub fn model_types(mut self, types: Vec<(&'static str, &'static str)>) -> Self {
        self.model_types = types;
        self
    }

    /// Sets [`endpoint`](field@Self::endpoint), without slashes at its end.
    pub fn endpoint(mut self, address: impl Into<String>) -> Self {
        self.endpoint = address.into();
        let length = self.endpoint.trim_end_matches('/').len();
        self.endpoint.truncate(length);
        self
    }

    /// Sets [`cache`](field@Self::cache).
    pub fn cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = folder.into();
        self
    }

    /// Sets [`token`](field@Self::token).
    pub fn token(mut self, token: impl Into<Option<Token>>) -> Self {
        self.token = token.into();
        self
    }

    /// Sets [`offline`](field@Self::offline).
    pub fn offline(mut self, offline: impl Into<Option<&'static str>>) -> Self {
        self.offline = offline.into();
        self
    }

    /// Sets [`connect_timeout`](field@Self::connect_timeout).
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets [`read_timeout`](field@Self::read_timeout).
    pub fn read_timeout(mut self, timeout: Duration) -> Self {
        self.read_timeout = timeout;
        self
    }

    /// Sets [`certificates`](field@Self::certificates).
    pub fn certificates(mut self, file: impl Into<PathBuf>) -> Self {
        self.certificates = Some(file.into());
        self
    }

    /// What the environment variables of Python's `huggingface_hub` say, and those of proxies: `HTTPS_PROXY`,
    /// `HTTP_PROXY` and `ALL_PROXY`, with `NO_PROXY` for the hosts that are asked directly. A proxy may speak
    /// HTTP, HTTPS, SOCKS4 or SOCKS5; a request never goes around one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`], with the name of a variable whose value makes no sense, or where nothing
    /// says where a cache could be.
    pub fn from_env() -> Result<Self> {
        Self::from(&|name| std::env::var_os(name))
    }

    /// From here on the endpoint is an address that may be shown.
    pub(crate) fn separate_credentials(&mut self) {
        let (endpoint, credentials) = split_credentials(&self.endpoint);
        if let Some(credentials) = credentials {
            self.credentials = Some(credentials.to_owned());
            self.endpoint = endpoint;
        }
    }

    /// `variable` looks up an environment variable.
    fn from(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).map(|value| value.to_string_lossy().into_owned());
        let folder = |name: &str| set(name).map(|value| expand_home(Path::new(&value), &set));
        let hf_home = match folder("HF_HOME") {
            Some(folder) => folder,
            None => folders::cache(&set)?.join("huggingface"),
        };
        let cache = folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE"));
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            let shown = split_credentials(&endpoint).0;
            let text = format!("HF_ENDPOINT={shown}: expected an address such as {ENDPOINT}");
            return Err(Error::new(ErrorKind::Argument, text));
        }
        let is_set = |name: &&'static str| text(name).is_some_and(|value| is_true(&value));
        let seconds = |name: &str, default: Duration| -> Result<Duration> {
            let Some(value) = text(name) else {
                return Ok(default);
            };
            match value.trim().parse() {
                Ok(0) | Err(_) => {
                    let text = format!("{name}={value}: expected a number of seconds above 0");
                    Err(Error::new(ErrorKind::Argument, text))
                }
                Ok(seconds) => Ok(Duration::from_secs(seconds)),
            }
        };
        let token_path = folder("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
        let plain = Settings::new(cache.unwrap_or_else(|| hf_home.join("hub")));
        Ok(Settings {
            token: token(&text, &token_path)?,
            proxy: Proxy::from(&endpoint, &text)?,
            endpoint,
            offline: ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
                .into_iter()
                .find(is_set),
            connect_timeout: seconds("HF_HUB_ETAG_TIMEOUT", plain.connect_timeout)?,
            read_timeout: seconds("HF_HUB_DOWNLOAD_TIMEOUT", plain.read_timeout)?,
            certificates: folder("REQUESTS_CA_BUNDLE").or_else(|| folder("SSL_CERT_FILE")),
            ..plain
        })
    }
}

/// `HF_TOKEN`, else its old name, else the file that `hf auth login` writes.
fn token(text: &dyn Fn(&str) -> Option<String>, path: &Path) -> Result<Option<Token>> {
    let of_variable = |name: &str| text(name).map(|secret| (secret, name.to_owned()));
    let found = of_variable("HF_TOKEN")
        .or_else(|| of_variable("HUGGING_FACE_HUB_TOKEN"))
        .or_else(|| {
            // A file that cannot be read is no token: most models need none.
            let secret = fs::read_to_string(path).ok()?;
            Some((secret, path.display().to_string()))
        });
    match found {
        Some((secret, source)) => Token::new(&secret, source),
        None => Ok(None),
    }
}

fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str())
}

/// A leading `~` is the home folder, also where no shell has seen the value.
fn expand_home(path: &Path, variable: &dyn Fn(&str) -> Option<OsString>) -> PathBuf {
    match (path.strip_prefix("~"), home(variable)) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings> {
        let find = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Settings::from(&find)
    }

    #[test]
    fn methods_set_fields() -> Result<()> {
        let seconds = Duration::from_secs;
        let settings = Settings::new("/cache")
            .endpoint("https://mirror.example/")
            .cache("/other")
            .token(Token::new("secret", "a test")?)
            .offline("a test")
            .connect_timeout(seconds(1))
            .read_timeout(seconds(2))
            .certificates("/certificates.pem");
        assert_eq!(settings.endpoint, "https://mirror.example");
        assert_eq!(settings.cache, Path::new("/other"));
        assert!(settings
            .token
            .as_ref()
            .is_some_and(|token| token.secret == "secret"));
        assert_eq!(settings.offline, Some("a test"));
        let timeouts = (settings.connect_timeout, settings.read_timeout);
        assert_eq!(timeouts, (seconds(1), seconds(2)));
        let certificates = settings.certificates.as_deref();
        assert_eq!(certificates, Some(Path::new("/certificates.pem")));
        let settings = settings.token(None).offline(None);
        assert!(settings.token.is_none() && settings.offline.is_none());
        Ok(())
    }

    /// Compiles only where threads may have it.
    #[test]
    fn threads_may_share_a_hub() {
        fn shared<T: Send + Sync + 'static>() {}
        shared::<crate::Hub>();
        shared::<Settings>();
    }

    #[test]
    fn the_cache_is_where_huggingface_hub_has_it() {
        for (variables, expected) in [
            (&[][..], "/home/u/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/c")], "/c/huggingface/hub"),
            (
                &[("HF_HOME", "~/h"), ("XDG_CACHE_HOME", "/c")],
                "/home/u/h/hub",
            ),
            (&[("HF_HUB_CACHE", "/x"), ("HF_HOME", "/h")], "/x"),
            (&[("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (
                &[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/x")],
                "/x",
            ),
        ] {
            let variables = [variables, &[("HOME", "/home/u")]].concat();
            let found = settings(&variables).expect("valid").cache;
            assert_eq!(found, Path::new(expected), "{variables:?}");
        }
        let error = settings(&[]).expect_err("no home").to_string();
        assert!(error.contains("HOME"), "{error}");
    }

    #[test]
    fn tokens_come_from_their_variables_and_then_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("token"), "hf_file\n").expect("can be written");
        let home = folder.path().to_str().expect("UTF-8");
        let secret = |variables: &[(&str, &str)]| {
            let variables = [&[("HF_HOME", home)], variables].concat();
            let token = settings(&variables).expect("valid").token;
            token.map(|token| token.secret)
        };
        assert_eq!(secret(&[]).as_deref(), Some("hf_file"));
        let old = ("HUGGING_FACE_HUB_TOKEN", "hf_old");
        assert_eq!(secret(&[old]).as_deref(), Some("hf_old"));
        assert_eq!(
            secret(&[old, ("HF_TOKEN", "hf_new")]).as_deref(),
            Some("hf_new")
        );
        assert_eq!(secret(&[("HF_TOKEN_PATH", "/nowhere")]), None);
        let error = settings(&[("HF_HOME", home), ("HF_TOKEN", "a\u{e4}b")]);
        let error = error.expect_err("no header can hold it").to_string();
        assert!(error.contains("HF_TOKEN"), "{error}");
        let debug = format!("{:?}", settings(&[("HF_HOME", home)]).expect("valid"));
        assert!(!debug.contains("hf_file"), "{debug}");
    }

    #[test]
    fn endpoint_offline_and_timeouts() {
        let home = ("HOME", "/nowhere");
        let plain = settings(&[home]).expect("valid");
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!((plain.offline, plain.connect_timeout.as_secs()), (None, 10));
        let all = settings(&[
            home,
            ("HF_ENDPOINT", "http://127.0.0.1:1/"),
            ("HF_HUB_OFFLINE", "yes"),
            ("HF_HUB_ETAG_TIMEOUT", "3"),
            ("SSL_CERT_FILE", "/certs.pem"),
        ]);
        let all = all.expect("valid");
        assert_eq!(all.endpoint, "http://127.0.0.1:1");
        assert_eq!(all.offline, Some("HF_HUB_OFFLINE"));
        assert_eq!(all.connect_timeout.as_secs(), 3);
        assert_eq!(all.certificates.as_deref(), Some(Path::new("/certs.pem")));
        let off = settings(&[home, ("HF_HUB_OFFLINE", "0")]).expect("valid");
        assert_eq!(off.offline, None);
        for bad in [("HF_ENDPOINT", "hub"), ("HF_HUB_ETAG_TIMEOUT", "soon")] {
            let error = settings(&[home, bad]).expect_err("refused").to_string();
            assert!(error.contains(bad.0), "{error}");
        }
    }
}
