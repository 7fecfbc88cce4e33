//! The World vocabulary as a `tokenizer.json` of word pieces, as the newest repositories of RWKV-7 have it.
//!
//! The longest piece that fits is what both take at each place, so such a file is the vocabulary itself, if nothing is
//! done to a text before or between: no normaliser, no cutting into words, no mark in front of later pieces, each of
//! which is checked. Keys are in GPT-2's spelling of bytes. Ids that no text has stand for themselves, between
//! characters of private use, and token 0 for the end of a text; neither is a piece.

#![forbid(unsafe_code)]

use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::Deserialize;

use super::world::{Entries, World, END_OF_TEXT, TOKEN_BYTES_MAX};
use super::{tokenizer_error, ID_MAX};
use crate::error::Result;

/// What models of this kind are called.
const KIND: &str = "WordPiece";
/// In front of the number of an id that no text has.
const UNUSED: char = '\u{e000}';

/// The vocabulary of such a file; `None` of one of another kind, which is read elsewhere.
pub(super) fn parse(file: &[u8]) -> Result<Option<World>> {
    let is_named = file.windows(KIND.len()).any(|text| text == KIND.as_bytes());
    if !is_named {
        return Ok(None);
    }
    #[derive(Deserialize)]
    struct Head {
        model: Kind,
    }
    #[derive(Deserialize)]
    struct Kind {
        #[serde(rename = "type")]
        kind: String,
    }
    match serde_json::from_slice::<Head>(file) {
        Ok(head) if head.model.kind == KIND => {}
        _ => return Ok(None),
    }
    let damaged = |text: &dyn fmt::Display| {
        tokenizer_error(format!(
            "a tokenizer.json of word pieces, expected one that is a World vocabulary: {text}"
        ))
    };
    let file: File = serde_json::from_slice(file).map_err(|e| damaged(&e))?;
    let cut = &file.pre_tokenizer;
    for (is_right, expected) in [
        (file.normalizer.is_none(), "no normalizer"),
        (cut.kind == "ByteLevel", "the pre_tokenizer ByteLevel"),
        (!cut.use_regex, "use_regex false"),
        (!cut.add_prefix_space, "add_prefix_space false"),
        (
            file.model.continuing_subword_prefix.is_empty(),
            "no continuing_subword_prefix",
        ),
    ] {
        if !is_right {
            return Err(damaged(&format_args!("expected {expected}")));
        }
    }
    World::of_entries(file.model.vocab.0).map(Some)
}

#[derive(Deserialize)]
struct File {
    normalizer: Option<IgnoredAny>,
    pre_tokenizer: Cut,
    model: Model,
}

#[derive(Deserialize)]
struct Cut {
    #[serde(rename = "type")]
    kind: String,
    use_regex: bool,
    add_prefix_space: bool,
}

#[derive(Deserialize)]
struct Model {
    continuing_subword_prefix: String,
    vocab: Vocabulary,
}

struct Vocabulary(Entries);

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Vocabulary;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tokens and ids")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Vocabulary, A::Error> {
                use serde::de::Error;
                let mut entries = Entries::default();
                // A file of 64 MiB has fewer than fill memory.
                while let Some((key, id)) = map.next_entry::<String, u32>()? {
                    if id == END_OF_TEXT || key.starts_with(UNUSED) {
                        continue;
                    }
                    let start = entries.bytes.len();
                    for c in key.chars() {
                        let byte = byte_of_char(c);
                        entries.bytes.push(byte.ok_or_else(|| {
                            A::Error::custom(format!("id {id}: {c:?} stands for no byte"))
                        })?);
                    }
                    let n = entries.bytes.len() - start;
                    if n == 0 || n > TOKEN_BYTES_MAX || id > ID_MAX {
                        return Err(A::Error::custom(format!(
                            "id {id}: a token of {n} bytes, expected 1 to {TOKEN_BYTES_MAX}, and ids up to {ID_MAX}"
                        )));
                    }
                    entries.ends.push((id, entries.bytes.len()));
                }
                Ok(Vocabulary(entries))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// The byte that a character stands for in the spelling of byte-level tokens, which is GPT-2's:
/// printable Latin-1 characters stand for themselves, the other 68 bytes follow from U+0100 on,
/// in order.
pub(super) fn byte_of_char(c: char) -> Option<u8> {
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

#[cfg(test)]
mod tests {
    use serde_json::{json, Map, Value};

    use super::super::Tokenizer;
    use super::byte_of_char;

    fn key(bytes: &[u8]) -> String {
        let char_of = |byte: u8| {
            let mut chars = (0..0x200).filter_map(char::from_u32);
            chars.find(|&c| byte_of_char(c) == Some(byte)).expect("all")
        };
        bytes.iter().map(|&byte| char_of(byte)).collect()
    }

    fn file() -> Value {
        let mut vocab = Map::new();
        vocab.insert("<|endoftext|>".into(), json!(0));
        for byte in 0..=255u8 {
            vocab.insert(key(&[byte]), json!(u32::from(byte) + 1));
        }
        for (id, token) in (257..).zip(["\n\n", "User", "User:", "é", " the"]) {
            vocab.insert(key(token.as_bytes()), json!(id));
        }
        vocab.insert("\u{e000}262\u{e001}".into(), json!(262));
        json!({
            "version": "1.0",
            "normalizer": null,
            "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "use_regex": false },
            "decoder": { "type": "ByteLevel" },
            "model": {
                "type": "WordPiece", "unk_token": "<|endoftext|>", "continuing_subword_prefix": "",
                "max_input_chars_per_word": 2_147_483_647, "vocab": vocab,
            },
        })
    }

    #[test]
    fn the_longest_piece_is_taken_as_from_the_list() {
        let tokenizer = Tokenizer::from_bytes("t", file().to_string().as_bytes()).expect("valid");
        assert!(tokenizer.is_world());
        let ids = tokenizer.encode("User: é\n\n the<").expect("text");
        assert_eq!(ids, [259, 33, 260, 257, 261, 61]);
        assert_eq!(tokenizer.decode(&ids).expect("ids"), "User: é\n\n the<");
    }

    #[test]
    fn others_are_refused() {
        type Change = fn(&mut Value);
        let cases: [(&str, Change); 6] = [
            ("no normalizer", |f| {
                f["normalizer"] = json!({ "type": "NFC" })
            }),
            ("use_regex false", |f| {
                f["pre_tokenizer"]["use_regex"] = json!(true)
            }),
            ("add_prefix_space false", |f| {
                f["pre_tokenizer"]["add_prefix_space"] = json!(true);
            }),
            ("no continuing_subword_prefix", |f| {
                f["model"]["continuing_subword_prefix"] = json!("##");
            }),
            ("stands for no byte", |f| {
                f["model"]["vocab"]["漢"] = json!(300)
            }),
            ("no token for the byte 0x41", |f| {
                f["model"]["vocab"]
                    .as_object_mut()
                    .expect("an object")
                    .remove("A");
            }),
        ];
        for (expected, change) in cases {
            let mut file = file();
            change(&mut file);
            let error = Tokenizer::from_bytes("t", file.to_string().as_bytes());
            let error = error.expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
