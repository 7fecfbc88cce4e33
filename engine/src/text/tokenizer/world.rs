//! The vocabulary of the RWKV World models, `rwkv_vocab_v20230424.txt`, and files like it.
//!
//! Input: lines `id literal size`, where the literal is Python's and the size counts the bytes it
//! stands for. Every line is checked, and an error names it. Token 0 ends a text and is in no line.
//! Or a JSON object of ids and tokens, each a string, or a list of bytes where these are not UTF-8.
//!
//! A text is cut by taking the longest token at each place. Since all 256 single bytes are tokens
//! (a vocabulary without one of them is refused), every text, and every file, has tokens, and they
//! stand for exactly its bytes: no character is replaced, no form normalised, no name of a special
//! token recognised. So does the reference, BlinkDL's `rwkv_tokenizer.py`.

#![forbid(unsafe_code)]

use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::Deserialize;

use super::literal::unescape;
use super::trie::{Duplicate, Trie};
use super::{tokenizer_error, ID_MAX};
use crate::error::{Error, Result};
use crate::math::reserve;

/// The end of a text, which has no line.
pub(super) const END_OF_TEXT: u32 = 0;

/// The longest token of the World vocabulary has 128 bytes, a run of spaces. The time for a text goes with it.
pub(super) const TOKEN_BYTES_MAX: usize = 512;

pub(super) struct World {
    /// The bytes of all tokens, in the order of their ids.
    bytes: Vec<u8>,
    /// (n_tokens + 1) where in `bytes` each token starts, and then their end; a token that no line
    /// has is empty
    starts: Vec<u32>,
    /// Bytes of the longest token.
    longest: usize,
    trie: Trie,
}

impl World {
    pub(super) fn parse(file: &[u8]) -> Result<Self> {
        let lines_up_to = |end: usize| file[..end].iter().filter(|&&b| b == b'\n').count();
        let text = std::str::from_utf8(file).map_err(|e| {
            tokenizer_error(format!(
                "line {}: not UTF-8",
                1 + lines_up_to(e.valid_up_to())
            ))
        })?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        let mut bytes = reserve(text.len() / 2, "a vocabulary")?;
        let mut starts = vec![0, 0];
        // (n_tokens) the number of the line of each token, for error texts
        let mut line_of = vec![0];
        for (line, number) in text.split('\n').zip(1u32..) {
            let line = line.strip_suffix('\r').unwrap_or(line);
            let id = Self::parse_line(line, line_of.len(), &mut bytes)
                .map_err(|e| tokenizer_error(format!("line {number}: {e}")))?;
            let start = starts[starts.len() - 1];
            make_room(&mut starts, id + 2)?;
            make_room(&mut line_of, id + 1)?;
            starts.resize(id + 1, start);
            starts.push(bytes.len() as u32);
            line_of.resize(id, 0);
            line_of.push(number);
        }
        Self::new(bytes, starts, |a, b| {
            let (a, b) = (line_of[a as usize], line_of[b as usize]);
            format!("line {b}: the same bytes as in line {a}")
        })
    }

    /// From an object `{"1": "\u0000", .., "258": [194, 162], ..}`.
    pub(super) fn parse_json(file: &[u8]) -> Result<Self> {
        let entries: Entries = serde_json::from_slice(file)
            .map_err(|e| tokenizer_error(format!("not a World vocabulary as JSON: {e}")))?;
        Self::of_entries(entries)
    }

    /// From ids and tokens in any order.
    pub(super) fn of_entries(entries: Entries) -> Result<Self> {
        let mut sorted: Vec<(u32, &[u8])> = reserve(entries.ends.len(), "a vocabulary")?;
        let mut start = 0;
        for &(id, end) in &entries.ends {
            sorted.push((id, &entries.bytes[start..end]));
            start = end;
        }
        sorted.sort_unstable();
        let mut bytes = reserve(entries.bytes.len(), "a vocabulary")?;
        let mut starts = vec![0, 0];
        for (id, token) in sorted {
            let least = starts.len() as u32 - 1;
            if id < least {
                return Err(tokenizer_error(format!("id {id}: twice")));
            }
            make_room(&mut starts, id as usize + 2)?;
            starts.resize(id as usize + 1, bytes.len() as u32);
            bytes.extend_from_slice(token);
            starts.push(bytes.len() as u32);
        }
        Self::new(bytes, starts, |a, b| {
            format!("id {b}: the same bytes as id {a}")
        })
    }

    fn new(bytes: Vec<u8>, starts: Vec<u32>, same: impl Fn(u32, u32) -> String) -> Result<Self> {
        let tokens = starts.windows(2).zip(0u32..).filter_map(|(ends, id)| {
            let token = &bytes[ends[0] as usize..ends[1] as usize];
            (!token.is_empty()).then_some((id, token))
        });
        let longest = tokens.clone().map(|(_, token)| token.len()).max();
        let trie = Trie::new(tokens).map_err(|Duplicate(a, b)| tokenizer_error(same(a, b)))?;
        if let Some(byte) = (0..=255u8).find(|&byte| trie.longest(&[byte]).is_none()) {
            return Err(tokenizer_error(format!(
                "no token for the byte 0x{byte:02x}, expected one for each of the 256 bytes"
            )));
        }
        Ok(World {
            bytes,
            starts,
            longest: longest.unwrap_or(0),
            trie,
        })
    }

    /// Appends the bytes of a line's token and returns its id, which must be `least` or more.
    fn parse_line(
        line: &str,
        least: usize,
        bytes: &mut Vec<u8>,
    ) -> std::result::Result<usize, String> {
        let parts = line.split_once(' ').and_then(|(id, rest)| {
            let (literal, size) = rest.rsplit_once(' ')?;
            Some((id, literal, size))
        });
        let Some((id, literal, size)) = parts else {
            return Err("expected an id, a literal and a length, with a space between".into());
        };
        let id = number(id).ok_or_else(|| format!("id {id:?}, expected a number"))?;
        if id == END_OF_TEXT as usize || id > ID_MAX as usize {
            return Err(format!("id {id}, expected 1 to {ID_MAX}"));
        }
        if id < least {
            return Err(format!(
                "id {id}, expected more than {} of a line before",
                least - 1
            ));
        }
        let start = bytes.len();
        if literal.contains(['\r', '\0']) {
            return Err("a control character within the literal".into());
        }
        unescape(literal, bytes)?;
        let found = bytes.len() - start;
        match number(size) {
            _ if found == 0 => Err("an empty token".into()),
            _ if found > TOKEN_BYTES_MAX => Err(too_long(found)),
            Some(size) if size == found => Ok(id),
            _ => Err(format!(
                "length {size:?}, expected {found}, the literal's bytes"
            )),
        }
    }

    /// The highest id plus one.
    pub(super) fn n_tokens(&self) -> usize {
        self.starts.len() - 1
    }

    /// Appends the ids of a text, or where that is not its end, of so much of it as is certain whatever follows;
    /// gives the bytes of that.
    pub(super) fn encode(&self, text: &[u8], is_end: bool, ids: &mut Vec<u32>) -> Result<usize> {
        let mut rest = text;
        // A longer token may begin where less is left.
        let least = if is_end { 1 } else { self.longest };
        while rest.len() >= least {
            let Some((id, size)) = self.trie.longest(rest) else {
                break;
            };
            if ids.len() == ids.capacity() {
                // English has 4 bytes a token, other scripts and code fewer.
                ids.try_reserve(rest.len() / 3 + 1).map_err(|e| {
                    Error::memory("not enough memory for the tokens of a text").with_source(e)
                })?;
            }
            ids.push(id);
            rest = &rest[size..];
        }
        debug_assert!(rest.len() < least, "every single byte is a token");
        Ok(text.len() - rest.len())
    }

    /// What a token stands for; nothing for the end of text and for ids of no token.
    pub(super) fn token_bytes(&self, token: u32) -> &[u8] {
        match self.starts.get(token as usize..) {
            Some([start, end, ..]) => &self.bytes[*start as usize..*end as usize],
            _ => &[],
        }
    }
}

/// Room for so many numbers in all.
fn make_room(numbers: &mut Vec<u32>, n: usize) -> Result<()> {
    numbers
        .try_reserve(n - numbers.len().min(n))
        .map_err(|e| Error::memory("not enough memory for a vocabulary").with_source(e))
}

fn too_long(size: usize) -> String {
    format!("a token of {size} bytes, expected at most {TOKEN_BYTES_MAX}")
}

/// The tokens of a JSON object, in its order.
#[derive(Default)]
pub(super) struct Entries {
    pub(super) bytes: Vec<u8>,
    /// Ids, and where in `bytes` their tokens end.
    pub(super) ends: Vec<(u32, usize)>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of ids and tokens")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                use serde::de::Error;
                let (mut bytes, mut ends) = (Vec::new(), Vec::new());
                while let Some(key) = map.next_key::<Text>()? {
                    let id = number(&key.0).and_then(|id| u32::try_from(id).ok());
                    let id = id.filter(|id| (1..=ID_MAX).contains(id));
                    let id = id.ok_or_else(|| {
                        A::Error::custom(format!("id {:?}, expected 1 to {ID_MAX}", key.0))
                    })?;
                    let Token(token) = map.next_value()?;
                    if token.is_empty() {
                        return Err(A::Error::custom(format!("id {id}: an empty token")));
                    }
                    // A file of 64 MiB has fewer.
                    bytes.extend_from_slice(&token);
                    ends.push((id, bytes.len()));
                }
                Ok(Entries { bytes, ends })
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// A string no longer than a token may be.
struct Text(String);

/// A string or a list of bytes, no longer than a token may be.
struct Token(Vec<u8>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Token(bytes) = Token::deserialize(deserializer)?;
        let text = String::from_utf8(bytes);
        text.map(Text)
            .map_err(|_| serde::de::Error::custom("not UTF-8"))
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl<'de> Visitor<'de> for Bytes {
            type Value = Token;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of bytes")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Token, E> {
                match text.len() <= TOKEN_BYTES_MAX {
                    true => Ok(Token(text.as_bytes().to_vec())),
                    false => Err(E::custom(too_long(text.len()))),
                }
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut seq: A,
            ) -> Result<Token, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = seq.next_element()? {
                    if bytes.len() == TOKEN_BYTES_MAX {
                        return Err(serde::de::Error::custom(too_long(TOKEN_BYTES_MAX + 1)));
                    }
                    bytes.push(byte);
                }
                Ok(Token(bytes))
            }
        }

        deserializer.deserialize_any(Bytes)
    }
}

/// Digits only: Python's int() takes more forms, but no vocabulary has them.
fn number(text: &str) -> Option<usize> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines for all single bytes, as ids 1 to 256, and then some more.
    fn vocabulary(more: &[&str]) -> String {
        let mut lines: Vec<String> = (0..=255u8)
            .map(|byte| format!("{} b'\\x{byte:02x}' 1", u32::from(byte) + 1))
            .collect();
        lines.extend(more.iter().map(|&line| line.to_owned()));
        lines.join("\n") + "\n"
    }

    fn error(file: impl AsRef<[u8]>) -> String {
        match World::parse(file.as_ref()) {
            Ok(_) => panic!("was taken"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_longest_token_is_taken_at_each_place() {
        let world = vocabulary(&[
            "300 'ab' 2",
            "301 'abcd' 4",
            "302 '龍' 3",
            "400 b'\\xe9\\xbe' 2",
        ]);
        for file in [
            world.clone(),
            world.replace('\n', "\r\n"),
            world.trim_end().to_owned(),
        ] {
            let world = World::parse(file.as_bytes()).expect("a vocabulary");
            assert_eq!(world.n_tokens(), 401);
            let a = u32::from(b'a') + 1;
            let encode = |text: &[u8]| {
                let mut ids = Vec::new();
                let n = world.encode(text, true, &mut ids).expect("memory");
                assert_eq!(n, text.len());
                ids
            };
            assert_eq!(encode(b"abcabcd"), [300, a + 2, 301]);
            assert_eq!(encode("龍".as_bytes()), [302]);
            assert_eq!(encode(b"\xe9\xbe\xff"), [400, 256]);
            assert!(encode(b"").is_empty());
            // A text that may go on: what might become a longer token is left.
            let mut ids = Vec::new();
            assert_eq!(
                world.encode(b"abcabcd", false, &mut ids).expect("memory"),
                7
            );
            assert_eq!(world.encode(b"abab", false, &mut ids).expect("memory"), 2);
            assert_eq!(ids, [300, a + 2, 301, 300]);
            assert_eq!(world.token_bytes(302), "龍".as_bytes());
            assert_eq!(world.token_bytes(400), b"\xe9\xbe");
            for nothing in [0, 257, 299, 399, 401, u32::MAX] {
                assert_eq!(world.token_bytes(nothing), b"", "{nothing}");
            }
        }
    }

    /// As BlinkDL's rwkv_vocab_v20230424.json has them.
    #[test]
    fn the_same_as_json() {
        let bytes: Vec<String> = (0..=255u8)
            .map(|byte| format!("\"{}\": [{byte}]", u32::from(byte) + 1))
            .collect();
        let json = |more: &str| format!("{{{}, {more}}}", bytes.join(", "));
        let world = World::parse_json(json(r#""400": "龍", "300": "a\nb""#).as_bytes());
        let world = world.expect("a vocabulary");
        assert_eq!(world.n_tokens(), 401);
        assert_eq!(world.token_bytes(300), b"a\nb");
        assert_eq!(world.token_bytes(400), "龍".as_bytes());
        let long = format!("\"300\": \"{}\"", "a".repeat(TOKEN_BYTES_MAX + 1));
        for (more, part) in [
            (r#""300": "a""#, "id 300: the same bytes as id 98"),
            (r#""256": "ab""#, "id 256: twice"),
            (r#""0": "ab""#, "id \"0\", expected 1 to 1048575"),
            (r#""x": "ab""#, "id \"x\""),
            (r#""9999999": "ab""#, "id \"9999999\""),
            (r#""300": """#, "id 300: an empty token"),
            (r#""300": [256]"#, "256"),
            (r#""300": {}"#, "a string or a list of bytes"),
            (&long, "a token of 513 bytes"),
        ] {
            let error = World::parse_json(json(more).as_bytes()).err();
            let text = error.expect(more).to_string();
            assert!(text.contains(part), "{more}: {text}");
        }
    }

    #[test]
    fn damaged_lines_are_named() {
        let long = format!("300 '{}' 513", "a".repeat(513));
        let cases: [(&str, &str); 18] = [
            (&long, "a token of 513 bytes, expected at most 512"),
            ("", "an id, a literal and a length"),
            ("300", "an id, a literal and a length"),
            ("300 'ab'", "an id, a literal and a length"),
            ("x 'ab' 2", "id \"x\", expected a number"),
            ("-3 'ab' 2", "id \"-3\", expected a number"),
            ("+300 'ab' 2", "id \"+300\", expected a number"),
            ("0 'ab' 2", "id 0, expected 1 to 1048575"),
            ("1048576 'ab' 2", "id 1048576, expected 1 to 1048575"),
            ("99999999999999999999999 'ab' 2", "expected a number"),
            ("256 'ab' 2", "id 256, expected more than 299"),
            ("300 'ab' 3", "length \"3\", expected 2"),
            ("300 'ab' ", "length \"\", expected 2"),
            ("300 'é' 1", "length \"1\", expected 2"),
            ("300 '' 0", "an empty token"),
            ("300 'a\\x6' 2", "2 hexadecimal digits"),
            ("300 'ab 2", "closing '"),
            ("300 'a\rb' 3", "a control character"),
        ];
        for (line, part) in cases {
            let text = error(vocabulary(&["299 'xy' 2", line, "500 'ef' 2"]));
            assert!(
                text.starts_with("line 258: ") && text.contains(part),
                "{line:?}: {text}"
            );
        }
        let twice = error(vocabulary(&["300 'ab' 2", "301 'cd' 2", "310 b'ab' 2"]));
        assert_eq!(twice, "line 259: the same bytes as in line 257");
        let missing = error(vocabulary(&[]).replace("b'\\x80' 1", "b'\\x80\\x80' 2"));
        assert!(missing.contains("no token for the byte 0x80"), "{missing}");
        let mut not_utf8 = vocabulary(&["300 'ab' 2"]).into_bytes();
        let at = not_utf8.len() - 4;
        not_utf8[at] = 0xff;
        assert_eq!(error(not_utf8), "line 257: not UTF-8");
    }
}
