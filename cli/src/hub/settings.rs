//! Where the hub, its cache and its token are: the environment variables of Python's
//! `huggingface_hub`, with the same meaning and the same defaults.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{bail, Result};

use crate::cache_folder::{home, of_user};

const ENDPOINT: &str = "https://huggingface.co";
/// For a connection to be made.
const CONNECT_TIMEOUT_S: u64 = 10;
/// Between two pieces of an answer. Longer than in Python, where 10 s of silence end a download:
/// slow lines and slow boards are what this program is for, and each try may go on from the last.
const READ_TIMEOUT_S: u64 = 30;

/// All that the environment says about the hub.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Without a slash at its end.
    pub(crate) endpoint: String,
    /// The folder of all repositories: `~/.cache/huggingface/hub`.
    pub(crate) cache: PathBuf,
    pub(crate) token: Option<Token>,
    /// The variable that forbids the network, if one does.
    pub(crate) offline: Option<&'static str>,
    pub(crate) connect_timeout: Duration,
    pub(crate) read_timeout: Duration,
    /// A file of certificates to trust instead of the usual ones.
    pub(crate) certificates: Option<PathBuf>,
}

/// A secret; its text is never shown.
#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) secret: String,
    /// The variable or file that it comes from.
    pub(crate) source: String,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token from {}", self.source)
    }
}

impl Settings {
    pub(crate) fn from_env() -> Result<Self> {
        Self::from(&|name| std::env::var_os(name))
    }

    /// `variable` looks up an environment variable.
    fn from(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).map(|value| value.to_string_lossy().into_owned());
        let folder = |name: &str| set(name).map(|value| expand_home(Path::new(&value), &set));
        let hf_home = match folder("HF_HOME") {
            Some(folder) => folder,
            None => of_user(&set)?.join("huggingface"),
        };
        let cache = folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE"));
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            bail!("HF_ENDPOINT={endpoint}: expected an address such as {ENDPOINT}");
        }
        let is_set = |name: &&'static str| text(name).is_some_and(|value| is_true(&value));
        let seconds = |name: &str, default: u64| -> Result<Duration> {
            let Some(value) = text(name) else {
                return Ok(Duration::from_secs(default));
            };
            match value.trim().parse() {
                Ok(0) | Err(_) => bail!("{name}={value}: expected a number of seconds above 0"),
                Ok(seconds) => Ok(Duration::from_secs(seconds)),
            }
        };
        let token_path = folder("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
        Ok(Settings {
            token: token(&text, &token_path)?,
            endpoint,
            cache: cache.unwrap_or_else(|| hf_home.join("hub")),
            offline: ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
                .into_iter()
                .find(is_set),
            connect_timeout: seconds("HF_HUB_ETAG_TIMEOUT", CONNECT_TIMEOUT_S)?,
            read_timeout: seconds("HF_HUB_DOWNLOAD_TIMEOUT", READ_TIMEOUT_S)?,
            certificates: folder("REQUESTS_CA_BUNDLE").or_else(|| folder("SSL_CERT_FILE")),
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
    let Some((secret, source)) = found else {
        return Ok(None);
    };
    let secret = secret.trim().to_owned();
    if !secret.chars().all(|c| c.is_ascii_graphic()) {
        bail!("{source}: holds characters that a token cannot have");
    }
    Ok((!secret.is_empty()).then_some(Token { secret, source }))
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
