//! Text to token ids and back, as a tokenizer file defines it.
//!
//! Input: a Hugging Face `tokenizer.json` (the format of the 20B tokenizer of the RWKV-4 Pile models)
//! or an RWKV World vocabulary (`rwkv_vocab*.txt`, or the same as JSON), told apart by their content. Nothing is added to a
//! text: no begin-of-text token, no space, whatever the file's post-processor says. The engine below
//! this module knows only ids; [`TextStream`](crate::TextStream) turns generated ids into text piece
//! by piece.
//!
//! Texts go through in pieces of a few KB, so that tokenizing takes little memory however long they are;
//! `cuts.rs` says where a text may be cut. What a damaged file, or a hostile one, makes the `tokenizers` crate
//! do is bounded before it sees it (`json_file.rs`, `parts.rs`) and fenced (`fence.rs`).
//!
//! Opening the 20B tokenizer (2.4 MB, 50,277 ids) takes 0.05 s, much longer than mapping a model, and
//! the World vocabulary (1.1 MB, 65,529 ids) 8 ms: open one only when text is needed. The bytes of
//! the file are not kept; who writes them into a model file keeps them, so that a running model does
//! not carry 2 MB that it never reads.
//!
//! Without the cargo feature `tokenizer` everything here exists, World vocabularies are read, and
//! opening a `tokenizer.json` is an [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) error.

#![forbid(unsafe_code)]

#[cfg(feature = "tokenizer")]
mod cuts;
#[cfg(feature = "tokenizer")]
mod fence;
mod json;
#[cfg(feature = "tokenizer")]
mod json_file;
mod literal;
#[cfg(feature = "tokenizer")]
mod parts;
mod trie;
mod word_pieces;
mod world;

use std::fs::File;
use std::hint::black_box;
use std::io::Read;
use std::path::Path;

use self::json::JsonTokenizer;
use self::world::World;
use crate::error::{Error, ErrorKind, Result};
use crate::math::reserve;

/// No tokenizer comes near this; a model file given by mistake is refused before it is read.
const FILE_SIZE_MAX_BYTES: u64 = 64 << 20;

/// Published vocabularies have up to a quarter of this; a damaged number must not become a huge table.
const ID_MAX: u32 = (1 << 20) - 1;

/// Bytes of memory for a byte of the file: measured with the 20B tokenizer and the World vocabulary, rounded up.
const JSON_MEMORY: u64 = 6;
const WORLD_MEMORY: u64 = 5;
/// As many at most with files unlike these, or nearly.
const ANY_MEMORY: usize = 12;

/// Ids of the 20B tokenizer, and rows of the models that use it.
const N_TOKENS_20B: usize = 50_277;
/// Rows of the World models: the vocabulary's 65,530 ids, padded.
pub(crate) const N_VOCAB_WORLD: usize = 65_536;

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
        Self::open_within(path, false)
    }

    /// The same; where memory `is_limited`, fewer words are kept with their tokens.
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::open`].
    pub fn open_within(path: impl AsRef<Path>, is_limited: bool) -> Result<Self> {
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
        Self::from_bytes_within(&name, &bytes, is_limited)
    }

    /// Reads a tokenizer from the bytes of its file; `name` is what error texts call it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Tokenizer`] when the bytes are no tokenizer or a damaged one, of a World vocabulary
    /// with the number of the line, [`ErrorKind::Unsupported`] for a `tokenizer.json` when this build
    /// has no reader for it.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self> {
        Self::from_bytes_within(name, bytes, false)
    }

    /// The same; where memory `is_limited`, fewer words are kept with their tokens.
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::from_bytes`].
    pub fn from_bytes_within(name: &str, bytes: &[u8], is_limited: bool) -> Result<Self> {
        Self::parse(name, bytes, is_limited).map_err(|e| e.at(name))
    }

    fn parse(name: &str, bytes: &[u8], is_limited: bool) -> Result<Self> {
        let format = recognise(bytes).ok_or_else(|| no_tokenizer(bytes))?;
        if bytes.len() as u64 > FILE_SIZE_MAX_BYTES {
            return Err(tokenizer_error(format!(
                "more than {FILE_SIZE_MAX_BYTES} bytes, too large for a tokenizer"
            )));
        }
        // What is made of many small pieces cannot report that there is no memory for the next.
        let size = bytes.len().saturating_mul(ANY_MEMORY);
        drop(black_box(reserve::<u8>(size, "reading a tokenizer")?));
        let bytes = without_mark(bytes);
        let world = match format {
            Format::World => Some(World::parse(bytes)?),
            Format::WorldJson => Some(World::parse_json(bytes)?),
            Format::Json => word_pieces::parse(bytes)?,
        };
        let (kind, n_tokens, special) = match world {
            Some(world) => {
                let n_tokens = world.n_tokens();
                (Kind::World(world), n_tokens, vec![world::END_OF_TEXT])
            }
            None => {
                let json = JsonTokenizer::parse(bytes, is_limited)?;
                let (n_tokens, special) = (json.n_tokens(), json.special_ids());
                (Kind::Json(Box::new(json)), n_tokens, special)
            }
        };
        if n_tokens == 0 {
            return Err(tokenizer_error("a tokenizer of no tokens".into()));
        }
        Ok(Tokenizer {
            name: name.to_owned(),
            kind,
            n_tokens,
            special,
        })
    }

    /// What should be left for texts and their tokens beside a model with a tokenizer: longer ones take what is
    /// left besides, or weights that are read again.
    pub(crate) const PROMPT_BYTES: u64 = 512 << 10;

    /// What tokenizing takes where memory is limited, but for what [`working_bytes`](Self::working_bytes) says.
    pub(crate) const WORKING_BYTES: u64 = JsonTokenizer::WORKING_BYTES;

    /// What reading a tokenizer from these bytes takes in memory at most, and about what it keeps; with that for
    /// tokenizing texts, but for what [`TokenStream::more_bytes`](crate::TokenStream) says.
    pub(crate) fn memory_bytes(bytes: &[u8]) -> u64 {
        let size = bytes.len() as u64;
        match recognise(bytes) {
            Some(Format::Json) => size * JSON_MEMORY + JsonTokenizer::WORKING_BYTES,
            Some(Format::World | Format::WorldJson) => size * WORLD_MEMORY,
            None => 0,
        }
    }

    /// The same for a file that is not read yet.
    pub(crate) fn memory_bytes_of_file(path: &Path) -> u64 {
        // What is wrong with the file, opening it tells. Its bytes are kept beside the tokenizer.
        let size = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        size.saturating_mul(JSON_MEMORY + 1)
            .saturating_add(JsonTokenizer::WORKING_BYTES)
    }

    /// What tokenizing takes beside [`memory_bytes`](Self::memory_bytes) where so many bytes of a text are at hand.
    pub(crate) fn working_bytes(&self, n_bytes: usize) -> u64 {
        match &self.kind {
            Kind::Json(_) => JsonTokenizer::working_bytes(n_bytes),
            Kind::World(_) => 0,
        }
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
    /// `tokenizer.json`, and are text like any other with a World vocabulary. A
    /// [`TokenStream`](crate::TokenStream) gives the same for a text that comes piece by piece.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Tokenizer`] when the file's rules fail on this text; byte-level ones never do.
    /// [`ErrorKind::Memory`] when there is not enough.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_bytes(text.as_bytes())
    }

    /// [`encode`](Self::encode) of bytes that should be UTF-8. Those that are not become U+FFFD with a
    /// `tokenizer.json`; a World vocabulary has tokens for any bytes.
    pub fn encode_bytes(&self, text: &[u8]) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.encode_some(text, true, &mut 0, &mut ids)?;
        Ok(ids)
    }

    /// Appends the ids of a text, or where that is not its end, of so much of it as is certain whatever follows;
    /// gives the bytes of that. There was nothing certain in the first `searched` bytes.
    pub(crate) fn encode_some(
        &self,
        text: &[u8],
        is_end: bool,
        searched: &mut usize,
        ids: &mut Vec<u32>,
    ) -> Result<usize> {
        match &self.kind {
            Kind::Json(json) => json.encode(text, is_end, searched, ids),
            Kind::World(world) => world.encode(text, is_end, ids),
        }
        .map_err(|e| e.at(&self.name))
    }

    /// The text of token ids. Special tokens are left out, and so are ids that stand for nothing
    /// (padding of the vocabulary); bytes that are no whole character become U+FFFD.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Tokenizer`] when the file's rules fail on these ids; byte-level ones never do.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        if !self.is_byte_level() {
            return self.decode_by_crate(tokens).map_err(|e| e.at(&self.name));
        }
        let mut bytes = Vec::new();
        for &token in tokens {
            if bytes.capacity() - bytes.len() < TOKEN_BYTES_USUAL {
                bytes.try_reserve(TOKEN_BYTES_USUAL).map_err(|e| {
                    Error::memory("not enough memory for the text of tokens").with_source(e)
                })?;
            }
            self.push_token_bytes(token, &mut bytes);
        }
        Ok(match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(e) => String::from_utf8_lossy(e.as_bytes()).into_owned(),
        })
    }

    fn decode_by_crate(&self, tokens: &[u32]) -> Result<String> {
        let Kind::Json(json) = &self.kind else {
            return Ok(String::new());
        };
        let mut ordinary = reserve(tokens.len(), "the text of tokens")?;
        ordinary.extend(tokens.iter().copied().filter(|&t| !self.is_special(t)));
        // The crate makes a string of each, and cannot report that there is no memory for it.
        let size = tokens.len().saturating_mul(TOKEN_BYTES_USUAL);
        drop(black_box(reserve::<u8>(size, "the text of tokens")?));
        json.decode(&ordinary)
    }

    /// Whether models of so many rows use the 20B tokenizer: as it is, or padded.
    pub fn is_of_20b(n_vocab: usize) -> bool {
        matches!(n_vocab, N_TOKENS_20B | 50_304)
    }

    /// Ids of the tokens whose whole text lies in `" \t0123456789"`: a space, a tab, both, a digit, or digits that
    /// follow one another there. The `rwkv` package does not count these for its frequency penalty; see
    /// [`SamplerOptions::uncounted_tokens`](crate::SamplerOptions::uncounted_tokens).
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::encode`].
    pub fn tokens_of_spaces_and_digits(&self) -> Result<Vec<u32>> {
        const TEXT: &str = " \t0123456789";
        let mut tokens = Vec::new();
        for start in 0..TEXT.len() {
            for end in start + 1..=TEXT.len() {
                let text = &TEXT[start..end];
                if let [token] = self.encode(text)?[..] {
                    // A tokenizer with rules of its own may make of a text what is not its token.
                    if self.decode(&[token])? == text {
                        tokens.push(token);
                    }
                }
            }
        }
        Ok(tokens)
    }

    /// Whether the token is special, such as the end of text: never part of decoded text.
    pub fn is_special(&self, token: u32) -> bool {
        self.special.binary_search(&token).is_ok()
    }

    /// The bytes that a token stands for wherever it is, which may be a part of a character. `None` for special
    /// tokens, for ids that stand for nothing (padding of the vocabulary), and for all tokens of a tokenizer whose
    /// tokens become text only together.
    pub fn token_bytes(&self, token: u32) -> Option<Vec<u8>> {
        if !self.is_byte_level() {
            return None;
        }
        let mut bytes = Vec::new();
        self.push_token_bytes(token, &mut bytes);
        (!bytes.is_empty()).then_some(bytes)
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

/// Bytes of memory for a token while its text is put together.
const TOKEN_BYTES_USUAL: usize = 128;

/// Adds ids to those that there are.
#[cfg(feature = "tokenizer")]
fn append(ids: &mut Vec<u32>, more: &[u32]) -> Result<()> {
    ids.try_reserve(more.len())
        .map_err(|e| Error::memory("not enough memory for the tokens of a text").with_source(e))?;
    ids.extend_from_slice(more);
    Ok(())
}

fn tokenizer_error(message: String) -> Error {
    Error::new(ErrorKind::Tokenizer, message)
}

/// What was given in place of a tokenizer.
fn no_tokenizer(bytes: &[u8]) -> Error {
    let start = without_mark(bytes).trim_ascii_start();
    if start.is_empty() {
        return tokenizer_error("an empty file, expected a tokenizer".into());
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return tokenizer_error("a text in UTF-16, expected UTF-8: save it so".into());
    }
    let answers: [&[u8]; 4] = [
        b"entry not found",
        b"repository not found",
        b"invalid username or password",
        b"not found",
    ];
    let begins = |with: &&[u8]| {
        let start = start.get(..with.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(with))
    };
    if answers.iter().any(begins) {
        return tokenizer_error(
            "the answer of a web server that gave no file; download it again".into(),
        );
    }
    if start.starts_with(b"version https://git-lfs") {
        return tokenizer_error(
            "a Git LFS pointer, not the tokenizer itself; fetch it with git lfs pull".into(),
        );
    }
    if start.first() == Some(&b'<') {
        return tokenizer_error(
            "a web page, not the tokenizer itself; download the file, such as by the link `raw`"
                .into(),
        );
    }
    tokenizer_error(
        "not a tokenizer: neither a JSON object (tokenizer.json) nor lines of id, literal and length \
         (rwkv_vocab*.txt)"
            .into(),
    )
}

/// The bytes behind the mark that some editors put in front of UTF-8.
fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

enum Format {
    Json,
    World,
    /// The World vocabulary as an object of ids and tokens.
    WorldJson,
}

fn recognise(bytes: &[u8]) -> Option<Format> {
    let text = without_mark(bytes).trim_ascii_start();
    if let Some(object) = text.strip_prefix(b"{") {
        // `{"1": ..`: the members of a tokenizer.json have names.
        let key = object.trim_ascii_start().strip_prefix(b"\"");
        let is_id = key.and_then(<[u8]>::first).is_some_and(u8::is_ascii_digit);
        return Some(match is_id {
            true => Format::WorldJson,
            false => Format::Json,
        });
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
    matches!(recognise(bytes), Some(Format::World | Format::WorldJson))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Single bytes as ids 1 to 256, a character, and a part of one.
    fn world() -> Tokenizer {
        let lines = (0..=255u8).map(|byte| format!("{} b'\\x{byte:02x}' 1\n", u32::from(byte) + 1));
        let file: String = lines.collect::<String>() + "300 '龍' 3\n301 b'\\xe9\\xbe' 2\n";
        Tokenizer::from_bytes("vocabulary", file.as_bytes()).expect("a vocabulary")
    }

    #[test]
    fn bytes_of_tokens_are_those_of_the_vocabulary() {
        let world = world();
        assert_eq!(world.token_bytes(98), Some(b"a".to_vec()));
        assert_eq!(world.token_bytes(300), Some("龍".as_bytes().to_vec()));
        assert_eq!(world.token_bytes(301), Some(b"\xe9\xbe".to_vec()));
        for nothing in [0, 299, 302, u32::MAX] {
            assert_eq!(world.token_bytes(nothing), None, "{nothing}");
        }
    }

    #[cfg(feature = "tokenizer")]
    #[test]
    fn bytes_of_tokens_are_those_of_the_text() {
        let file = include_bytes!("../../../../cli/demo/tokenizer.json");
        let tokenizer = Tokenizer::from_bytes("tokenizer.json", file).expect("a tokenizer");
        let text = "Zwei Drachen 龍, naïve\n";
        let ids = tokenizer.encode(text).expect("tokens");
        let bytes = ids
            .iter()
            .flat_map(|&id| tokenizer.token_bytes(id).expect("bytes"));
        assert_eq!(bytes.collect::<Vec<u8>>(), text.as_bytes());
        for id in 0..tokenizer.n_tokens() as u32 {
            assert_eq!(
                tokenizer.token_bytes(id).is_none(),
                tokenizer.is_special(id),
                "{id}"
            );
        }
        assert_eq!(tokenizer.token_bytes(tokenizer.n_tokens() as u32), None);
    }
}
