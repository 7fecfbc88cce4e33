//! Text to token ids and back, as a tokenizer file defines it.
//!
//! Input: a Hugging Face `tokenizer.json` (the format of the 20B tokenizer of the RWKV-4 Pile models)
//! or an RWKV World vocabulary (`rwkv_vocab*.txt`), told apart by their content. Nothing is added to a
//! text: no begin-of-text token, no space, whatever the file's post-processor says. The engine below
//! this module knows only ids; [`TextStream`](crate::TextStream) turns generated ids into text piece
//! by piece.
//!
//! Opening the 20B tokenizer (2.4 MB, 50,277 ids) takes 0.05 s, much longer than mapping a model, and
//! the World vocabulary (1.1 MB, 65,529 ids) 8 ms: open one only when text is needed. The bytes of
//! the file are not kept; who writes them into a model file keeps them, so that a running model does
//! not carry 2 MB that it never reads.
//!
//! Without the cargo feature `tokenizer` everything here exists, World vocabularies are read, and
//! opening a `tokenizer.json` is an [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) error.

#![forbid(unsafe_code)]

mod json;
mod literal;
#[cfg(feature = "tokenizer")]
mod quick;
mod trie;
mod world;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use self::json::JsonTokenizer;
use self::world::World;
use crate::error::{Error, ErrorKind, Result};

/// No tokenizer comes near this; a model file given by mistake is refused before it is read.
const FILE_SIZE_MAX_BYTES: u64 = 256 << 20;

/// Bytes of memory for a byte of the file: measured with the 20B tokenizer and the World vocabulary, rounded up.
const JSON_MEMORY: u64 = 6;
const WORLD_MEMORY: u64 = 5;

/// Ids of the 20B tokenizer, and rows of the models that use it.
const N_TOKENS_20B: usize = 50_277;
/// Rows of the World models: the vocabulary's 65,530 ids, padded.
const N_VOCAB_WORLD: usize = 65_536;

/// A tokenizer: immutable, and shared between threads without locks of our own.
pub struct Tokenizer {
    /// Of the file, for error texts.
    name: String,
    kind: Kind,
    n_tokens: usize,
    /// Ids of special tokens, ascending. A handful: a binary search beats hashing.
    special: Vec<u32>,
}

enum Kind {
    Json(Box<JsonTokenizer>),
    World(World),
}

impl Tokenizer {
    /// Opens a tokenizer file.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] when it cannot be read, and those of [`Tokenizer::from_bytes`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let mut bytes = Vec::new();
        file.take(FILE_SIZE_MAX_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io("read", path, e))?;
        if bytes.len() as u64 > FILE_SIZE_MAX_BYTES {
            return Err(tokenizer_error(format!(
                "{name}: more than {FILE_SIZE_MAX_BYTES} bytes, too large for a tokenizer"
            )));
        }
        Self::from_bytes(&name, &bytes)
    }

    /// Reads a tokenizer from the bytes of its file; `name` is what error texts call it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Tokenizer`] when the bytes are no tokenizer or a damaged one, of a World vocabulary
    /// with the number of the line, [`ErrorKind::Unsupported`] for a `tokenizer.json` when this build
    /// has no reader for it.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self> {
        let (kind, n_tokens, special) = match recognise(bytes) {
            Some(Format::Json) => {
                let json = JsonTokenizer::parse(bytes).map_err(|e| e.at(name))?;
                let (n_tokens, special) = (json.n_tokens(), json.special_ids());
                (Kind::Json(Box::new(json)), n_tokens, special)
            }
            Some(Format::World) => {
                let world = World::parse(bytes).map_err(|e| e.at(name))?;
                let n_tokens = world.n_tokens();
                (Kind::World(world), n_tokens, vec![world::END_OF_TEXT])
            }
            None => {
                return Err(tokenizer_error(format!(
                    "{name}: not a tokenizer: neither a JSON object (tokenizer.json) nor lines of \
                     id, literal and length (rwkv_vocab*.txt)"
                )))
            }
        };
        if n_tokens == 0 {
            return Err(tokenizer_error(format!("{name}: a tokenizer of no tokens")));
        }
        Ok(Tokenizer {
            name: name.to_owned(),
            kind,
            n_tokens,
            special,
        })
    }

    /// What reading a tokenizer from these bytes takes in memory at most, and about what it keeps.
    pub(crate) fn memory_bytes(bytes: &[u8]) -> u64 {
        let factor = match recognise(bytes) {
            Some(Format::Json) => JSON_MEMORY,
            Some(Format::World) => WORLD_MEMORY,
            None => 0,
        };
        bytes.len() as u64 * factor
    }

    /// The same for a file that is not read yet.
    pub(crate) fn memory_bytes_of_file(path: &Path) -> u64 {
        // What is wrong with the file, opening it tells. Its bytes are kept beside the tokenizer.
        let size = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        size.saturating_mul(JSON_MEMORY + 1)
    }

    /// The highest id plus one.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Whether this is an RWKV World vocabulary, and not a `tokenizer.json`.
    pub fn is_world(&self) -> bool {
        matches!(self.kind, Kind::World(_))
    }

    /// Whether a model with `n_vocab` rows of embedding has a row for every token. Fewer tokens than
    /// rows is usual padding, and fits; but the 20B tokenizer does not belong to a model with the
    /// rows of the World vocabulary, though all its ids are below them.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Tokenizer`], naming both numbers.
    pub fn check_fits(&self, n_vocab: usize) -> Result<()> {
        let belongs = match n_vocab {
            N_VOCAB_WORLD if !self.is_world() && self.n_tokens == N_TOKENS_20B => {
                return Err(tokenizer_error(format!(
                    "{}: does not belong to this model: the 20B tokenizer ({N_TOKENS_20B} tokens), \
                     expected that of RWKV World, rwkv_vocab_v20230424.txt, for a vocabulary of \
                     {n_vocab}",
                    self.name
                )))
            }
            N_TOKENS_20B => ", the size of the 20B tokenizer",
            N_VOCAB_WORLD => ", the size of the RWKV World vocabulary",
            _ => "",
        };
        if self.n_tokens <= n_vocab {
            return Ok(());
        }
        Err(tokenizer_error(format!(
            "{}: does not belong to this model: {} tokens, expected at most {n_vocab} (the model's \
             vocabulary{belongs})",
            self.name, self.n_tokens
        )))
    }

    /// Token ids of a text. Names of special tokens in the text become those tokens with a
    /// `tokenizer.json`, and are text like any other with a World vocabulary.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Tokenizer`] when the file's rules fail on this text; byte-level ones never do.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Json(json) => json.encode(text).map_err(|e| e.at(&self.name)),
            Kind::World(world) => Ok(world.encode(text.as_bytes())),
        }
    }

    /// [`encode`](Self::encode) of bytes that should be UTF-8. Those that are not become U+FFFD with a
    /// `tokenizer.json`; a World vocabulary has tokens for any bytes.
    pub fn encode_bytes(&self, text: &[u8]) -> Result<Vec<u32>> {
        match &self.kind {
            Kind::Json(_) => self.encode(&String::from_utf8_lossy(text)),
            Kind::World(world) => Ok(world.encode(text)),
        }
    }

    /// The text of token ids. Special tokens are left out, and so are ids that stand for nothing
    /// (padding of the vocabulary); bytes that are no whole character become U+FFFD.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Tokenizer`] when the file's rules fail on these ids; byte-level ones never do.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        match &self.kind {
            Kind::Json(json) => {
                let is_ordinary = |token: &u32| !self.is_special(*token);
                let ordinary: Vec<u32> = tokens.iter().copied().filter(is_ordinary).collect();
                json.decode(&ordinary).map_err(|e| e.at(&self.name))
            }
            Kind::World(world) => {
                let bytes = tokens.iter().flat_map(|&token| world.token_bytes(token));
                let bytes: Vec<u8> = bytes.copied().collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
        }
    }

    /// Whether the token is special, such as the end of text: never part of decoded text.
    pub fn is_special(&self, token: u32) -> bool {
        self.special.binary_search(&token).is_ok()
    }

    /// Whether every token stands for a fixed string of bytes, whatever is around it.
    pub(crate) fn is_byte_level(&self) -> bool {
        match &self.kind {
            Kind::Json(json) => json.is_byte_level(),
            Kind::World(_) => true,
        }
    }

    /// Appends the bytes that a token of a byte-level tokenizer stands for.
    pub(crate) fn push_token_bytes(&self, token: u32, bytes: &mut Vec<u8>) {
        if self.is_special(token) {
            return;
        }
        match &self.kind {
            Kind::Json(json) => json.push_token_bytes(token, bytes),
            Kind::World(world) => bytes.extend_from_slice(world.token_bytes(token)),
        }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("name", &self.name)
            .field("n_tokens", &self.n_tokens)
            .finish_non_exhaustive()
    }
}

fn tokenizer_error(message: String) -> Error {
    Error::new(ErrorKind::Tokenizer, message)
}

enum Format {
    Json,
    World,
}

fn recognise(bytes: &[u8]) -> Option<Format> {
    let text = bytes.trim_ascii_start();
    if text.first() == Some(&b'{') {
        return Some(Format::Json);
    }
    // A World vocabulary starts with `1 '\x00' 1`: id, Python literal, length in bytes.
    let line = text.split(|&byte| byte == b'\n').next()?.trim_ascii_end();
    let space = line.iter().position(|&byte| byte == b' ')?;
    let last_space = line.iter().rposition(|&byte| byte == b' ')?;
    let is_number = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    let literal = line.get(space + 1..last_space)?;
    let is_literal = [b"'".as_slice(), b"\"", b"b'", b"b\""]
        .iter()
        .any(|quote| literal.starts_with(quote));
    let is_world = is_number(&line[..space]) && is_number(&line[last_space + 1..]) && is_literal;
    is_world.then_some(Format::World)
}

/// Whether these are the bytes of an RWKV World vocabulary.
pub(crate) fn are_world(bytes: &[u8]) -> bool {
    matches!(recognise(bytes), Some(Format::World))
}
