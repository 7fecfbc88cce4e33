//! Sessions: names that clients give to states, so that only what is new is sent.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::index::OwnerId;
use super::keys::Key;

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
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// When it was used last, in seconds since 1970.
    pub used: u64,
}

impl Session {
    /// A session that goes on from the state of a key.
    pub fn new(name: &str, key: Key, n_tokens: u64, pending: Vec<u32>, created: u64) -> Self {
        Session {
            name: name.into(),
            key: key.to_string(),
            n_tokens,
            pending,
            created,
            used: now(),
        }
    }

    /// Of its state; `None` in a damaged file.
    pub fn key(&self) -> Option<Key> {
        u128::from_str_radix(&self.key, 16).ok().map(Key)
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
pub(super) struct Sessions(BTreeMap<(OwnerId, String), Session>);

impl Sessions {
    pub(super) fn insert(&mut self, owner: OwnerId, session: Session) {
        self.0.insert((owner, session.name.clone()), session);
    }

    pub(super) fn get(&self, owner: OwnerId, name: &str) -> Option<Session> {
        self.0.get(&(owner, name.to_owned())).cloned()
    }

    pub(super) fn remove(&mut self, owner: OwnerId, name: &str) -> bool {
        self.0.remove(&(owner, name.to_owned())).is_some()
    }

    pub(super) fn n(&self, owner: OwnerId) -> usize {
        self.of(owner).count()
    }

    pub(super) fn all(&self, owner: OwnerId) -> Vec<Session> {
        self.of(owner).cloned().collect()
    }

    fn of(&self, owner: OwnerId) -> impl Iterator<Item = &Session> {
        let of_owner = self.0.range((owner, String::new())..);
        let of_owner = of_owner.take_while(move |((of, _), _)| *of == owner);
        of_owner.map(|(_, session)| session)
    }
}
