//! The secrets of a hub in texts that come from it: a server may repeat what it was sent, in an error, in an
//! address, or as the name of a file, and none of that is shown.

#![forbid(unsafe_code)]

use std::sync::Arc;

use base64::prelude::{Engine, BASE64_STANDARD};

use crate::address::{unescape, HIDDEN};
use crate::settings::Settings;

/// Shorter ones are hidden where they are a whole word: a letter would be found in every text.
const ANYWHERE_BYTES: usize = 8;

/// What is sent to prove who asks, in all the forms in which it is sent.
#[derive(Clone, Default)]
pub(crate) struct Secrets(Arc<[String]>);

impl Secrets {
    pub(crate) fn of(settings: &Settings) -> Self {
        let mut found: Vec<String> = settings.token.iter().map(|it| it.secret.clone()).collect();
        let proxy = settings.proxy.as_ref();
        let proxy = proxy.and_then(|it| it.proxy.uri().authority()?.as_str().rsplit_once('@'));
        let credentials = settings.credentials.as_deref();
        for pair in credentials.into_iter().chain(proxy.map(|it| it.0)) {
            for pair in [pair.to_owned(), unescape(pair)] {
                // A user name alone is a token.
                let (user, password) = pair.split_once(':').unwrap_or(("", &pair));
                for sent in [
                    &pair,
                    &format!("{user}:{password}"),
                    &format!("{password}:"),
                ] {
                    let encoded = BASE64_STANDARD.encode(sent);
                    found.push(encoded.trim_end_matches('=').to_owned());
                }
                found.push(password.to_owned());
                found.push(pair);
            }
        }
        found.retain(|secret| !secret.is_empty());
        // What is a part of another one comes after it.
        found.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        found.dedup();
        Secrets(found.into())
    }

    /// The text without them.
    pub(crate) fn hide(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &*self.0 {
            text = replace(&text, secret);
        }
        text
    }
}

fn replace(text: &str, secret: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(secret) {
        let (before, after) = (&rest[..at], &rest[at + secret.len()..]);
        // A letter before may have been passed already.
        let last = before.chars().next_back().or(shown.chars().next_back());
        let is_word = |c: Option<char>| !c.is_some_and(char::is_alphanumeric);
        let is_it =
            secret.len() >= ANYWHERE_BYTES || is_word(last) && is_word(after.chars().next());
        shown.push_str(before);
        shown.push_str(if is_it { HIDDEN } else { secret });
        rest = after;
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Token;

    #[test]
    fn all_forms_are_hidden() {
        let token = Token::new("hf_abcdefgh", "a test").expect("right");
        let mut settings = Settings::new("/cache")
            .endpoint("https://me:p%40ss@hub.example")
            .token(token);
        settings.separate_credentials();
        let secrets = Secrets::of(&settings);
        for (text, shown) in [
            (
                "authorization: Bearer hf_abcdefgh.",
                "authorization: Bearer ***.",
            ),
            ("Xhf_abcdefghX", "X***X"),
            ("Basic bWU6cEBzcw==", "Basic ***=="),
            ("is me:p@ss or me:p%40ss", "is *** or ***"),
            ("'p@ss', p%40ss", "'***', ***"),
            ("me, p@ssage, ap@ss", "me, p@ssage, ap@ss"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(secrets.hide(text), shown);
        }
    }
}
