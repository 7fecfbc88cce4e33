//! Text to token ids and back, as a tokenizer file defines it.
//!
//! Input: a Hugging Face `tokenizer.json` (the format of the 20B tokenizer of the RWKV-4 Pile models),
//! recognised by its content. The RWKV World vocabulary (`rwkv_vocab*.txt`) is recognised and refused.
//! Nothing is added to a text: no begin-of-text token, no space, whatever the file's post-processor
//! says. The engine below this module knows only ids; [`TextStream`](crate::TextStream) turns
//! generated ids into text piece by piece.
//!
//! Opening the 20B tokenizer (2.4 MB, 50,277 ids) takes 0.13 s, much longer than mapping a model: open
//! one only when text is needed. The bytes of the file are not kept; who writes them into a model file
//! keeps them, so that a running model does not carry 2 MB that it never reads.
//!
//! Without the cargo feature `tokenizer` everything here exists, and opening is an
//! [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) error.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};

/// No tokenizer comes near this; a model file given by mistake is refused before it is read.
const FILE_SIZE_MAX_BYTES: u64 = 256 << 20;

/// A tokenizer: immutable, and shared between threads without locks of our own.
pub struct Tokenizer {
    /// Of the file, for error texts.
    name: String,
    json: json::JsonTokenizer,
    n_tokens: usize,
    /// Ids of special tokens, ascending. A handful: a binary search beats hashing.
    special: Vec<u32>,
}

impl Tokenizer {
    /// Opens a tokenizer file.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] when it cannot be read, and those of [`Tokenizer::from_bytes`].
    pub fn open(path: &Path) -> Result<Self> {
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
    /// [`ErrorKind::Tokenizer`] when the bytes are no tokenizer or a damaged one,
    /// [`ErrorKind::Unsupported`] for a World vocabulary, or when this build has no tokenizers.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self> {
        match recognise(bytes) {
            Some(Format::Json) => {}
            Some(Format::World) => {
                return Err(Error::unsupported(format!(
                    "{name}: an RWKV World vocabulary, which this version cannot read, expected a \
                     tokenizer.json"
                )))
            }
            None => {
                return Err(tokenizer_error(format!(
                    "{name}: not a tokenizer: neither a JSON object (tokenizer.json) nor lines of \
                     id, literal and length (rwkv_vocab*.txt)"
                )))
            }
        }
        let json = json::JsonTokenizer::parse(bytes).map_err(|e| e.at(name))?;
        let n_tokens = json.n_tokens();
        if n_tokens == 0 {
            return Err(tokenizer_error(format!("{name}: a tokenizer of no tokens")));
        }
        Ok(Tokenizer {
            name: name.to_owned(),
            n_tokens,
            special: json.special_ids(),
            json,
        })
    }

    /// The highest id plus one.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Whether a model with `n_vocab` rows of embedding has a row for every token. Fewer tokens than
    /// rows is usual padding, and fits.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Tokenizer`], naming both numbers.
    pub fn check_fits(&self, n_vocab: usize) -> Result<()> {
        if self.n_tokens <= n_vocab {
            return Ok(());
        }
        let known = match n_vocab {
            50_277 => ", the size of the 20B tokenizer",
            65_536 => ", the size of the RWKV World vocabulary",
            _ => "",
        };
        Err(tokenizer_error(format!(
            "{}: does not belong to this model: {} tokens, expected at most {n_vocab} (the model's \
             vocabulary{known})",
            self.name, self.n_tokens
        )))
    }

    /// Token ids of a text. Names of special tokens in the text become those tokens.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Tokenizer`] when the file's rules fail on this text; byte-level ones never do.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.json.encode(text).map_err(|e| e.at(&self.name))
    }

    /// [`encode`](Self::encode) of bytes that should be UTF-8; those that are not become U+FFFD.
    pub fn encode_bytes(&self, text: &[u8]) -> Result<Vec<u32>> {
        self.encode(&String::from_utf8_lossy(text))
    }

    /// The text of token ids. Special tokens are left out, and so are ids that stand for nothing
    /// (padding of the vocabulary); bytes that are no whole character become U+FFFD.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Tokenizer`] when the file's rules fail on these ids; byte-level ones never do.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        let ordinary: Vec<u32> = tokens
            .iter()
            .copied()
            .filter(|&token| !self.is_special(token))
            .collect();
        self.json.decode(&ordinary).map_err(|e| e.at(&self.name))
    }

    /// Whether the token is special, such as the end of text: never part of decoded text.
    pub fn is_special(&self, token: u32) -> bool {
        self.special.binary_search(&token).is_ok()
    }

    /// Whether every token stands for a fixed string of bytes, whatever is around it.
    pub(crate) fn is_byte_level(&self) -> bool {
        self.json.is_byte_level()
    }

    /// Appends the bytes that a token of a byte-level tokenizer stands for.
    pub(crate) fn push_token_bytes(&self, token: u32, bytes: &mut Vec<u8>) {
        if self.is_special(token) {
            return;
        }
        let Some(spelling) = self.json.spelling(token) else {
            return;
        };
        let start = bytes.len();
        for c in spelling.chars() {
            match byte_of_char(c) {
                Some(byte) => bytes.push(byte),
                None => {
                    // An added token, such as a run of spaces, is spelt as it is.
                    bytes.truncate(start);
                    bytes.extend_from_slice(spelling.as_bytes());
                    return;
                }
            }
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

/// The byte that a character stands for in the spelling of byte-level tokens, which is GPT-2's:
/// printable Latin-1 characters stand for themselves, the other 68 bytes follow from U+0100 on, in
/// order.
fn byte_of_char(c: char) -> Option<u8> {
    let code = u32::from(c);
    let byte = match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
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
pub(crate) fn is_world(bytes: &[u8]) -> bool {
    matches!(recognise(bytes), Some(Format::World))
}

/// `tokenizer.json` through the `tokenizers` crate, the reference for that format.
#[cfg(feature = "tokenizer")]
mod json {
    use super::{tokenizer_error, Result};
    use tokenizers::DecoderWrapper;

    pub(super) struct JsonTokenizer(tokenizers::Tokenizer);

    impl JsonTokenizer {
        pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
            let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| {
                tokenizer_error(format!("not a usable tokenizer.json: {e}")).with_source(e)
            })?;
            // Files saved after training may carry these; a prompt is never cut or padded here.
            inner.with_padding(None);
            inner.with_truncation(None).map_err(|e| {
                tokenizer_error(format!("cannot switch truncation off: {e}")).with_source(e)
            })?;
            Ok(JsonTokenizer(inner))
        }

        pub(super) fn n_tokens(&self) -> usize {
            let highest = self.0.get_vocab(true).into_values().max();
            highest.map_or(0, |id| (id as usize).saturating_add(1))
        }

        /// Ascending.
        pub(super) fn special_ids(&self) -> Vec<u32> {
            let added = self.0.get_added_tokens_decoder();
            let special = added.iter().filter(|(_, token)| token.special);
            let mut ids: Vec<u32> = special.map(|(&id, _)| id).collect();
            ids.sort_unstable();
            ids
        }

        pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
            // "fast": without the offsets into the text, which nobody asks for.
            match self.0.encode_fast(text, false) {
                Ok(encoding) => Ok(encoding.get_ids().to_vec()),
                Err(e) => {
                    Err(tokenizer_error(format!("cannot tokenize the text: {e}")).with_source(e))
                }
            }
        }

        /// The caller has taken the special tokens out.
        pub(super) fn decode(&self, tokens: &[u32]) -> Result<String> {
            self.0.decode(tokens, false).map_err(|e| {
                tokenizer_error(format!("cannot turn tokens into text: {e}")).with_source(e)
            })
        }

        /// The token as the vocabulary writes it.
        pub(super) fn spelling(&self, token: u32) -> Option<String> {
            self.0.id_to_token(token)
        }

        pub(super) fn is_byte_level(&self) -> bool {
            matches!(self.0.get_decoder(), Some(DecoderWrapper::ByteLevel(_)))
        }
    }
}

/// The same interface in a build without tokenizers: no value of the type can exist.
#[cfg(not(feature = "tokenizer"))]
mod json {
    use super::{Error, Result};

    pub(super) enum JsonTokenizer {}

    impl JsonTokenizer {
        pub(super) fn parse(_bytes: &[u8]) -> Result<Self> {
            Err(Error::unsupported(
                "this build has no tokenizers (cargo feature `tokenizer`): only token ids work",
            ))
        }

        pub(super) fn n_tokens(&self) -> usize {
            match *self {}
        }

        pub(super) fn special_ids(&self) -> Vec<u32> {
            match *self {}
        }

        pub(super) fn encode(&self, _text: &str) -> Result<Vec<u32>> {
            match *self {}
        }

        pub(super) fn decode(&self, _tokens: &[u32]) -> Result<String> {
            match *self {}
        }

        pub(super) fn spelling(&self, _token: u32) -> Option<String> {
            match *self {}
        }

        pub(super) fn is_byte_level(&self) -> bool {
            match *self {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::byte_of_char;

    #[test]
    fn every_byte_has_exactly_one_character() {
        let mut bytes: Vec<u8> = (0..=0x200)
            .filter_map(char::from_u32)
            .filter_map(byte_of_char)
            .collect();
        bytes.sort_unstable();
        assert!(bytes.iter().copied().eq(0..=255));
        // Spot checks against the table in the GPT-2 source.
        assert_eq!(byte_of_char('Ġ'), Some(b' '));
        assert_eq!(byte_of_char('Ċ'), Some(b'\n'));
        assert_eq!(byte_of_char('Ń'), Some(0xad));
        assert_eq!(byte_of_char(' '), None);
    }
}
