//! The vocabulary within a GGUF file, as the text file that the World models are published with.
//!
//! llama.cpp's converter writes each token as Python writes bytes, without the quotes: `\xHH`, `\t`, `\n`,
//! `\r`, `\\` and `\'` are escapes, all else stands for itself. Token 0 ends a text and has no bytes, though a name
//! is listed for it; ids that the vocabulary lacks are listed as `[PADi]`. Both become no tokens here, so that no
//! text is taken for them. What comes out is checked by who reads it, as a file would be.

#![forbid(unsafe_code)]

use std::io::Write;

use super::metadata::{Kind, List, Metadata};
use super::{TokenizerFile, Vocabulary};
use crate::error::{Error, ErrorKind, Result};
use crate::files::{GrowingBytes, SourceFile};

const MODEL: &str = "tokenizer.ggml.model";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";

/// What the file would be called.
const NAME: &str = "rwkv_vocab_v20230424.txt";

/// Published vocabularies have a sixteenth.
const TOKENS_MAX: u64 = 1 << 20;
/// A token of the World vocabulary has at most 128 bytes, each of which is written as four.
const TOKEN_BYTES_MAX: usize = 4 << 10;

/// Numbers of ggml's types of tokens.
const NORMAL: u32 = 1;
const CONTROL: u32 = 3;
/// Added by who trained the model further.
const USER_DEFINED: u32 = 4;
const UNUSED: u32 = 5;

/// What a file says of its tokens.
pub(super) struct Found {
    pub(super) tokenizer: Vocabulary,
    /// How many are listed, and under which key.
    pub(super) n_listed: Option<(&'static str, u64)>,
}

/// Reads the vocabulary. One that cannot be used is no error before somebody needs it.
pub(super) fn read(file: &SourceFile, metadata: &Metadata<'_>) -> Result<Found> {
    let tokens = metadata.list(TOKENS, |kind| kind == Kind::Text)?;
    let n_listed = tokens.map(|list| (TOKENS, list.len));
    let place = format!("{}: {TOKENS}", file.name());
    let unusable = |text: String| Vocabulary::Unusable(format!("{}: {text}", file.name()));
    let tokenizer = match (metadata.text(MODEL)?, tokens) {
        (Some(model), Some(tokens)) if model == "rwkv" => match world(metadata, tokens) {
            Ok(text) => Vocabulary::Found(TokenizerFile {
                name: NAME.to_owned(),
                place,
                bytes: text.into(),
            }),
            Err(e) if e.kind() == ErrorKind::Memory => return Err(e),
            Err(e) => unusable(e.to_string()),
        },
        (Some(model), _) if model == "rwkv" => unusable(format!("key {TOKENS}: missing")),
        (Some(model), _) => unusable(format!(
            "its tokenizer is of the kind {model:?}, expected \"rwkv\""
        )),
        (None, _) => unusable("it has no tokenizer".into()),
    };
    Ok(Found {
        tokenizer,
        n_listed,
    })
}

/// The lines of a vocabulary file.
fn world(metadata: &Metadata<'_>, tokens: List) -> Result<Vec<u8>> {
    if tokens.len > TOKENS_MAX {
        let n = tokens.len;
        return Err(Error::format(format!(
            "key {TOKENS}: {n} tokens, expected at most {TOKENS_MAX}"
        )));
    }
    let types = metadata.list(TYPES, |kind| {
        matches!(kind, Kind::Signed(4) | Kind::Unsigned(4))
    })?;
    if let Some(types) = types.filter(|types| types.len != tokens.len) {
        return Err(Error::format(format!(
            "key {TYPES}: {} types of {} tokens",
            types.len, tokens.len
        )));
    }
    let mut types = types.map(|types| metadata.reader(types.at));
    let mut reader = metadata.reader(tokens.at);
    let mut lines = GrowingBytes::default();
    let mut token = Vec::new();
    for id in 0..tokens.len {
        let kind = types.as_mut().map_or(Ok(NORMAL), |types| types.u32())?;
        let text = reader.text_bytes()?;
        if id == 0 || is_padding(text, id) || matches!(kind, CONTROL | UNUSED) {
            continue;
        }
        let at = |e: Error| e.at(format!("token {id}"));
        if !matches!(kind, NORMAL | USER_DEFINED) {
            let text = format!(
                "type {kind}, expected {NORMAL} (normal), {CONTROL} (control) or {UNUSED} (unused)"
            );
            return Err(at(Error::format(text)));
        }
        if text.len() > TOKEN_BYTES_MAX {
            let n = text.len();
            let text = format!("{n} bytes, expected at most {TOKEN_BYTES_MAX}");
            return Err(at(Error::format(text)));
        }
        token.clear();
        unescape(text, &mut token).map_err(at)?;
        lines.append(|lines| write_line(lines, id, &token))?;
    }
    Ok(lines.into_vec())
}

/// Whether this stands in place of a token that there is none for.
fn is_padding(text: &[u8], id: u64) -> bool {
    text.starts_with(b"[PAD") && text == format!("[PAD{id}]").as_bytes()
}

/// Appends the bytes that an escaped token stands for.
fn unescape(text: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        (rest, _) = match (first, tail) {
            (b'\\', [b'x', tail @ ..]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let number = match tail {
                    [high, low, ..] => digit(*high).zip(digit(*low)),
                    _ => None,
                };
                let Some((high, low)) = number else {
                    return Err(Error::format("an escape \\x without its two digits"));
                };
                (&tail[2..], out.push((high << 4 | low) as u8))
            }
            (b'\\', [b't', tail @ ..]) => (tail, out.push(b'\t')),
            (b'\\', [b'n', tail @ ..]) => (tail, out.push(b'\n')),
            (b'\\', [b'r', tail @ ..]) => (tail, out.push(b'\r')),
            (b'\\', [quoted @ (b'\\' | b'\'' | b'"'), tail @ ..]) => (tail, out.push(*quoted)),
            (b'\\', _) => {
                return Err(Error::format(
                    "an escape that is none of \\xHH, \\t, \\n, \\r, \\\\ and \\'",
                ))
            }
            (&byte, tail) => (tail, out.push(byte)),
        };
    }
    Ok(())
}

/// `id b'literal' length`: with escapes for all but printable ASCII.
fn write_line(out: &mut impl Write, id: u64, token: &[u8]) -> std::io::Result<()> {
    write!(out, "{id} b'")?;
    for &byte in token {
        match byte {
            b'\\' | b'\'' => out.write_all(&[b'\\', byte])?,
            b' '..=b'~' => out.write_all(&[byte])?,
            _ => write!(out, "\\x{byte:02x}")?,
        }
    }
    writeln!(out, "' {}", token.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        let mut out = Vec::new();
        unescape(br#"a\x00\xfF\t\n\r\\\'\"'"<s>"#, &mut out).expect("sound");
        assert_eq!(out, b"a\0\xff\t\n\r\\'\"'\"<s>");
        unescape("ü".as_bytes(), &mut out).expect("bytes that stand for themselves");
        assert!(out.ends_with("ü".as_bytes()));
        for bad in [r"\", r"\x", r"\x1", r"\xg0", r"\x0g", r"\u0041", r"a\q"] {
            let error = unescape(bad.as_bytes(), &mut out)
                .expect_err(bad)
                .to_string();
            assert!(error.starts_with("an escape"), "{bad}: {error}");
        }
        assert!(is_padding(b"[PAD65530]", 65530) && !is_padding(b"[PAD1]", 2));
    }

    #[test]
    fn lines_are_those_of_a_vocabulary_file() {
        let mut out = Vec::new();
        write_line(&mut out, 7, b"a b'\\\n\xff~").expect("memory");
        assert_eq!(out, b"7 b'a b\\'\\\\\\x0a\\xff~' 8\n");
    }
}
