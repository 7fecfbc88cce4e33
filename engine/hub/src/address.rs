//! Addresses in texts: what in them is secret, and which model they are of.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::id::ModelId;

/// What is shown in place of a secret.
pub(crate) const HIDDEN: &str = "***";
/// The hosts of the public hub.
const HUB_HOSTS: [&str; 3] = ["huggingface.co", "www.huggingface.co", "hf.co"];

/// A text with its addresses as they may be shown: without user names and passwords, and without what follows
/// a `?`, which may hold a token or a signature.
///
/// ```
/// use rwkv_edge_hub::without_secrets;
///
/// let text = "https://user:pw@hub.co/a?token=x: no answer";
/// assert_eq!(without_secrets(text), "https://***@hub.co/a?***: no answer");
/// ```
pub fn without_secrets(text: &str) -> Cow<'_, str> {
    if !text.contains("://") {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, address) = rest.split_at(at + 3);
        shown.push_str(before);
        let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | '`');
        let (address, after) = address.split_at(address.find(ends).unwrap_or(address.len()));
        push_address(&mut shown, address);
        rest = after;
    }
    shown.push_str(rest);
    Cow::Owned(shown)
}

/// An address without its scheme. Punctuation at its end belongs to the sentence.
fn push_address(shown: &mut String, address: &str) {
    let host_end = address.find(['/', '?', '#']).unwrap_or(address.len());
    let (authority, path) = address.split_at(host_end);
    match authority.rsplit_once('@') {
        Some((_, host)) => {
            shown.push_str(HIDDEN);
            shown.push('@');
            shown.push_str(host);
        }
        None => shown.push_str(authority),
    }
    let Some(query) = path.find(['?', '#']) else {
        shown.push_str(path);
        return;
    };
    shown.push_str(&path[..=query]);
    shown.push_str(HIDDEN);
    let sentence = path.trim_end_matches([':', ';', ',', '.', ')']).len();
    shown.push_str(&path[sentence.max(query + 1)..]);
}

/// An address without its user name and password, and these two as they are written, if there are any. A
/// password may have any characters: the last `@` ends it.
#[cfg(feature = "network")]
pub(crate) fn split_credentials(address: &str) -> (String, Option<&str>) {
    let start = address.find("://").map_or(0, |at| at + 3);
    match address[start..].rsplit_once('@') {
        Some((credentials, rest)) => {
            let plain = format!("{}{rest}", &address[..start]);
            (plain, Some(credentials))
        }
        None => (address.to_owned(), None),
    }
}

/// What a text with a `://` in it is the address of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// A model, by whose name it can be asked for; on the hub itself, or on a host that may be a mirror of it.
    #[non_exhaustive]
    Model {
        /// Its name.
        id: ModelId,
        /// Whether the host is the hub.
        on_hub: bool,
    },
    /// A file of this machine.
    File(PathBuf),
    /// Anything else.
    Other,
}

impl Address {
    /// `None` for what is no address but a path or a name.
    pub fn parse(text: &Path) -> Option<Self> {
        let text = text.to_string_lossy();
        // As git writes it.
        if let Some((host, path)) = text.strip_prefix("git@").and_then(|it| it.split_once(':')) {
            return HUB_HOSTS
                .contains(&host)
                .then(|| Self::of_model(path, true));
        }
        let of_scheme = |scheme: &'static str| {
            // A slash too few; `file:` may be written so.
            let rest = text.get(scheme.len()..)?.strip_prefix(':')?;
            let is_it = text[..scheme.len()].eq_ignore_ascii_case(scheme);
            let is_path = rest.starts_with('/') && !rest.starts_with("//");
            (is_it && is_path).then_some((scheme, rest))
        };
        let short = ["file", "http", "https", "hf"]
            .into_iter()
            .find_map(of_scheme);
        let short = short.map(|(scheme, path)| match scheme {
            // The path begins with its slash.
            "file" => (scheme, path),
            _ => (scheme, &path[1..]),
        });
        let Some((scheme, rest)) = short.or_else(|| text.split_once("://")) else {
            // Such as what browsers show of an address.
            let host = text.split('/').next().unwrap_or_default();
            let is_hub = HUB_HOSTS.contains(&host)
                && ModelId::parse(&text).is_none_or(|id| id.file().is_some());
            return is_hub.then(|| Self::of_web(&text));
        };
        let is_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        if scheme.is_empty() || !scheme.chars().all(is_scheme) {
            return None;
        }
        Some(match &*scheme.to_ascii_lowercase() {
            "http" | "https" => Self::of_web(rest),
            "hf" => Self::of_model(rest, true),
            "file" => Address::File(unescape(&rest[rest.find('/').unwrap_or(0)..]).into()),
            _ => Address::Other,
        })
    }

    /// `HOST/OWNER/NAME`, with what the hub's pages have behind it.
    fn of_web(address: &str) -> Self {
        let address = address.split(['?', '#']).next().unwrap_or_default();
        let (authority, path) = address.split_once('/').unwrap_or((address, ""));
        let host = authority.rsplit('@').next().unwrap_or_default();
        let host = host.split(':').next().unwrap_or_default();
        let on_hub = HUB_HOSTS.contains(&&*host.to_ascii_lowercase());
        Self::of_model(path, on_hub)
    }

    /// `OWNER/NAME`, `OWNER/NAME/tree/REVISION` or `OWNER/NAME/blob/REVISION/FILE`, also below `api/models`.
    fn of_model(path: &str, on_hub: bool) -> Self {
        let path = path
            .split(['?', '#'])
            .next()
            .unwrap_or_default()
            .trim_matches('/');
        let path = ["api/models/", "models/"]
            .iter()
            .find_map(|start| path.strip_prefix(start))
            .unwrap_or(path);
        let parts = path.split('/').filter(|part| !part.is_empty());
        let parts: Vec<String> = parts.map(unescape).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let revision = |revision: &str| match revision {
            "main" => String::new(),
            revision => format!("@{revision}"),
        };
        let name = match parts[..] {
            ["datasets" | "spaces" | "docs" | "blog", ..] => return Address::Other,
            [owner, name, "resolve" | "blob" | "raw", at, ref file @ ..] if !file.is_empty() => {
                format!("{owner}/{name}/{}{}", file.join("/"), revision(at))
            }
            [owner, name, "tree" | "resolve" | "blob" | "raw" | "commits" | "commit" | "revision", at, ..] =>
            {
                format!("{owner}/{name}{}", revision(at))
            }
            [owner, name, "tree" | "resolve" | "blob" | "raw" | "commits" | "discussions", ..] => {
                format!("{owner}/{name}")
            }
            _ => parts.join("/"),
        };
        match ModelId::parse(name.trim_end_matches(".git")) {
            Some(id) => Address::Model { id, on_hub },
            None => Address::Other,
        }
    }
}

/// Without the escapes of an address.
pub(crate) fn unescape(text: &str) -> String {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = match (first, after) {
            (b'%', [high, low, ..]) => hex_digit(*high).zip(hex_digit(*low)),
            _ => None,
        };
        plain.push(escaped.map_or(*first, |(high, low)| 16 * high + low));
        rest = escaped.map_or(after, |_| &after[2..]);
    }
    String::from_utf8_lossy(&plain).into_owned()
}

fn hex_digit(byte: u8) -> Option<u8> {
    let digit = char::from(byte).to_digit(16)?;
    u8::try_from(digit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        for (text, shown) in [
            ("no address @ all", "no address @ all"),
            ("https://u:p%40w@h.co: no", "https://***@h.co: no"),
            (
                "a https://tok@h.co:8/x/y@main b",
                "a https://***@h.co:8/x/y@main b",
            ),
            ("'http://h/x?token=1', see", "'http://h/x?***', see"),
            (
                "https://h/x?a=b; http://u:p@i#t=1.",
                "https://h/x?***; http://***@i#***.",
            ),
            ("socks5://a:b@c:1", "socks5://***@c:1"),
        ] {
            assert_eq!(without_secrets(text), shown);
        }
    }

    #[cfg(feature = "network")]
    #[test]
    fn credentials_are_told_from_the_address() {
        let split = |text| {
            let (plain, credentials) = split_credentials(text);
            (plain, credentials.map(str::to_owned))
        };
        let of = |plain: &str, credentials: Option<&str>| {
            (plain.to_owned(), credentials.map(str::to_owned))
        };
        assert_eq!(split("https://h.co"), of("https://h.co", None));
        assert_eq!(
            split("https://u:p/w@x@h.co/a"),
            of("https://h.co/a", Some("u:p/w@x"))
        );
        assert_eq!(split("u:p@h.co"), of("h.co", Some("u:p")));
    }

    #[test]
    fn addresses_are_of_models() {
        let found = |text: &str| match Address::parse(Path::new(text)) {
            Some(Address::Model { id, on_hub }) => format!("{id} {on_hub}"),
            Some(Address::File(path)) => path.display().to_string(),
            Some(Address::Other) => "other".into(),
            None => "none".into(),
        };
        for (text, expected) in [
            ("https://huggingface.co/a/b", "a/b true"),
            ("HTTPS://HuggingFace.co/a/b/", "a/b true"),
            ("https://u:p@hf.co/a/b?x=y#z", "a/b true"),
            ("https://huggingface.co/a/b/tree/main", "a/b true"),
            ("https://huggingface.co/a/b/tree/v1/sub", "a/b@v1 true"),
            (
                "https://huggingface.co/a/b/tree/refs%2Fpr%2F1",
                "a/b@refs/pr/1 true",
            ),
            (
                "https://huggingface.co/a/b/resolve/main/x.pth?download=true",
                "a/b/x.pth true",
            ),
            (
                "https://huggingface.co/a/b/blob/v1/d/x%20y.pth",
                "a/b/d/x y.pth@v1 true",
            ),
            ("https://huggingface.co/a/b.git", "a/b true"),
            (
                "https://mirror.example:8443/a/b/resolve/main/x.pth",
                "a/b/x.pth false",
            ),
            ("hf://a/b@v1", "a/b@v1 true"),
            ("huggingface.co/a/b", "a/b true"),
            ("https://huggingface.co/datasets/a/b", "other"),
            ("https://huggingface.co/", "other"),
            ("https://example.com/x.pth", "other"),
            ("s3://bucket/x", "other"),
            ("git@hf.co:a/b", "a/b true"),
            ("git@huggingface.co:a/b.git", "a/b true"),
            ("git@example.com:a/b", "none"),
            ("https:/huggingface.co/a/b", "a/b true"),
            ("https://huggingface.co//a//b", "a/b true"),
            ("hf:/a/b", "a/b true"),
            ("file:/models/x%20y.pth", "/models/x y.pth"),
            ("file:x.pth", "none"),
            ("file:///models/x%20y.pth", "/models/x y.pth"),
            ("a/b", "none"),
            ("./x://y", "none"),
            ("/models/x.pth", "none"),
        ] {
            assert_eq!(found(text), expected, "{text}");
        }
    }
}
