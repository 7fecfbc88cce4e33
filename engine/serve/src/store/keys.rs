//! Names of states: by the tokens that they have read, and by the text.

use std::fmt;

use xxhash_rust::xxh3::{xxh3_128, Xxh3};

/// Names a state by all tokens that it has read, one hashed onto the other, so that no ids need to be kept: states
/// behind the same tokens have the same key, and what begins with the same tokens passes through the same keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub(crate) u128);

impl Key {
    /// Of the state before any token: of these weights, quantised so, and of this tuned state.
    pub fn root(model: &rwkv_edge::Model) -> Self {
        let info = model.info();
        let empty = model.new_state().initial_hash();
        let text = format!(
            "{:016x} {} {:016x}",
            info.fingerprint,
            info.quant,
            empty.unwrap_or(0)
        );
        Key(xxh3_128(text.as_bytes()))
    }

    /// Of a state that came as bytes.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Key(xxh3_128(bytes))
    }

    /// Of the state behind one more token.
    pub fn then(self, token: u32) -> Self {
        let mut bytes = [0; 20];
        bytes[..16].copy_from_slice(&self.0.to_le_bytes());
        bytes[16..].copy_from_slice(&token.to_le_bytes());
        Key(xxh3_128(&bytes))
    }

    /// Of the states behind each of some tokens.
    pub fn chain(self, tokens: &[u32]) -> Vec<Self> {
        let next = |key: &mut Key, &token: &u32| {
            *key = key.then(token);
            Some(*key)
        };
        tokens.iter().scan(self, next).collect()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Names a state by the whole text that it has read, however that was cut into tokens, and says what was drawn behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TextKey {
    /// Of the text, in bytes.
    pub size: u64,
    pub(crate) hash: u128,
    /// The token that was drawn next and that the state has not read, if that has a text: an answer may end within a word,
    /// and goes on there as the model wrote it.
    pub next: Option<u32>,
}

/// Hashes a text and its beginnings.
#[derive(Clone)]
pub struct TextHash {
    hash: Xxh3,
    size: u64,
}

impl TextHash {
    /// Of a text that is read behind the state of that key.
    pub fn behind(root: Key) -> Self {
        let mut hash = Xxh3::new();
        hash.update(&root.0.to_le_bytes());
        TextHash { hash, size: 0 }
    }

    /// More of the text.
    pub fn push(&mut self, text: &[u8]) {
        self.hash.update(text);
        self.size += text.len() as u64;
    }

    /// Of the text so far, behind which a token was drawn, or none.
    pub fn key(&self, next: Option<u32>) -> TextKey {
        TextKey {
            size: self.size,
            hash: self.hash.digest128(),
            next,
        }
    }
}
