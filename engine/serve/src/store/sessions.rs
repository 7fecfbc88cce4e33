//! Sessions: names that clients give to states, so that only what is new is sent.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::index::OwnerId;
use super::keys::Key;

/// What comes behind a state and is read with what comes next.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pending {
    /// Tokens.
    pub tokens: Vec<u32>,
    /// Behind these the tokens of a text, and the text.
    pub text: Option<(Vec<u32>, String)>,
}

/// A session as it is kept: which state it goes on from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// As the client chose it.
    pub name: String,
    /// Of its state, in hexadecimal digits.
    key: String,
    /// Tokens that the state has read.
    pub n_tokens: u64,
    /// Tokens that come behind the state and are read with what comes next.
    pub pending: Vec<u32>,
    /// The text of the last so many of these, which is cut into tokens together with a text that comes next: at the seam
    /// of two texts there may be other tokens.
    #[serde(default)]
    text: (usize, String),
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// When it was used last, in seconds since 1970.
    pub used: u64,
}

impl Session {
    /// A session that goes on from the state of a key.
    pub fn new(name: &str, key: Key, n_tokens: u64, pending: Pending, created: u64) -> Self {
        let Pending { mut tokens, text } = pending;
        let n_text = text.as_ref().map_or(0, |(tokens, _)| tokens.len());
        let mut of_text = String::new();
        if let Some((more, text)) = text {
            tokens.extend(more);
            of_text = text;
        }
        Session {
            name: name.into(),
            key: key.to_string(),
            n_tokens,
            pending: tokens,
            text: (n_text, of_text),
            created,
            used: now(),
        }
    }

    /// Of its state; `None` in a damaged file.
    pub fn key(&self) -> Option<Key> {
        u128::from_str_radix(&self.key, 16).ok().map(Key)
    }

    /// The tokens that are pending, and behind them the text that is to be cut into tokens with what comes next.
    pub fn pending_text(&self) -> (&[u32], &str) {
        let (n_text, text) = &self.text;
        match self.pending.len().checked_sub(*n_text) {
            Some(n) => (&self.pending[..n], text),
            None => (&self.pending, ""),
        }
    }

    /// The same under another name.
    pub fn renamed(&self, name: &str) -> Self {
        Session {
            name: name.into(),
            created: now(),
            used: now(),
            ..self.clone()
        }
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// How many there are of each owner in the folder.
#[derive(Default)]
pub(super) struct SessionFiles(HashMap<OwnerId, usize>);

impl SessionFiles {
    pub(super) fn add(&mut self, owner: OwnerId) {
        *self.0.entry(owner).or_default() += 1;
    }

    pub(super) fn remove(&mut self, owner: OwnerId) {
        if let Some(n) = self.0.get_mut(&owner) {
            *n = n.saturating_sub(1);
        }
    }

    pub(super) fn n(&self, owner: OwnerId) -> usize {
        self.0.get(&owner).copied().unwrap_or(0)
    }
}

/// Those that are in memory, where there is no folder.
#[derive(Default)]
pub(super) struct Sessions {
    by_name: BTreeMap<(OwnerId, String), Session>,
    /// The states that they go on from, and their names.
    by_key: BTreeSet<(OwnerId, Key, String)>,
}

impl Sessions {
    /// Gives the one that had the name until now.
    pub(super) fn insert(&mut self, owner: OwnerId, session: Session) -> Option<Session> {
        let older = self.remove(owner, &session.name);
        if let Some(key) = session.key() {
            self.by_key.insert((owner, key, session.name.clone()));
        }
        self.by_name.insert((owner, session.name.clone()), session);
        older
    }

    pub(super) fn get(&self, owner: OwnerId, name: &str) -> Option<Session> {
        self.by_name.get(&(owner, name.to_owned())).cloned()
    }

    pub(super) fn remove(&mut self, owner: OwnerId, name: &str) -> Option<Session> {
        let removed = self.by_name.remove(&(owner, name.to_owned()))?;
        if let Some(key) = removed.key() {
            self.by_key.remove(&(owner, key, name.to_owned()));
        }
        Some(removed)
    }

    /// Whether any goes on from a state.
    pub(super) fn is_at(&self, owner: OwnerId, key: Key) -> bool {
        let mut from = self.by_key.range((owner, key, String::new())..);
        from.next().is_some_and(|at| (at.0, at.1) == (owner, key))
    }

    pub(super) fn n(&self, owner: OwnerId) -> usize {
        self.of(owner).count()
    }

    pub(super) fn all(&self, owner: OwnerId) -> Vec<Session> {
        self.of(owner).cloned().collect()
    }

    fn of(&self, owner: OwnerId) -> impl Iterator<Item = &Session> {
        let of_owner = self.by_name.range((owner, String::new())..);
        let of_owner = of_owner.take_while(move |((of, _), _)| *of == owner);
        of_owner.map(|(_, session)| session)
    }
}
