//! The vocabulary of the RWKV World models, `rwkv_vocab_v20230424.txt`, and files like it.
//!
//! Input: lines `id literal size`, where the literal is Python's and the size counts the bytes it
//! stands for. Every line is checked, and an error names it. Token 0 ends a text and is in no line.
//!
//! A text is cut by taking the longest token at each place. Since all 256 single bytes are tokens
//! (a vocabulary without one of them is refused), every text, and every file, has tokens, and they
//! stand for exactly its bytes: no character is replaced, no form normalised, no name of a special
//! token recognised. So does the reference, BlinkDL's `rwkv_tokenizer.py`.

#![forbid(unsafe_code)]

use super::literal::unescape;
use super::tokenizer_error;
use super::trie::{Duplicate, Trie};
use crate::error::Result;

/// The end of a text, which has no line.
pub(super) const END_OF_TEXT: u32 = 0;

/// The World vocabulary's highest id is 65,529; a damaged number must not become a huge table.
const ID_MAX: u32 = (1 << 20) - 1;

pub(super) struct World {
    /// The bytes of all tokens, in the order of their ids.
    bytes: Vec<u8>,
    /// (n_tokens + 1) where in `bytes` each token starts, and then their end; a token that no line
    /// has is empty
    starts: Vec<u32>,
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
        let mut bytes = Vec::with_capacity(text.len() / 2);
        let mut starts = vec![0, 0];
        // (n_tokens) the number of the line of each token, for error texts
        let mut line_of = vec![0];
        for (line, number) in text.split('\n').zip(1u32..) {
            let line = line.strip_suffix('\r').unwrap_or(line);
            let id = Self::parse_line(line, line_of.len(), &mut bytes)
                .map_err(|e| tokenizer_error(format!("line {number}: {e}")))?;
            let start = starts[starts.len() - 1];
            starts.resize(id + 1, start);
            starts.push(bytes.len() as u32);
            line_of.resize(id, 0);
            line_of.push(number);
        }
        let tokens = starts.windows(2).zip(0u32..).filter_map(|(ends, id)| {
            let token = &bytes[ends[0] as usize..ends[1] as usize];
            (!token.is_empty()).then_some((id, token))
        });
        let trie = Trie::new(tokens).map_err(|Duplicate(a, b)| {
            let (a, b) = (line_of[a as usize], line_of[b as usize]);
            tokenizer_error(format!("line {b}: the same bytes as in line {a}"))
        })?;
        if let Some(byte) = (0..=255u8).find(|&byte| trie.longest(&[byte]).is_none()) {
            return Err(tokenizer_error(format!(
                "no token for the byte 0x{byte:02x}, expected one for each of the 256 bytes"
            )));
        }
        Ok(World {
            bytes,
            starts,
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

    pub(super) fn encode(&self, mut text: &[u8]) -> Vec<u32> {
        // English has 4 bytes a token, other scripts and code fewer.
        let mut tokens = Vec::with_capacity(text.len() / 3 + 1);
        while let Some((id, size)) = self.trie.longest(text) {
            tokens.push(id);
            text = &text[size..];
        }
        debug_assert!(text.is_empty(), "every single byte is a token");
        tokens
    }

    /// What a token stands for; nothing for the end of text and for ids of no token.
    pub(super) fn token_bytes(&self, token: u32) -> &[u8] {
        match self.starts.get(token as usize..) {
            Some([start, end, ..]) => &self.bytes[*start as usize..*end as usize],
            _ => &[],
        }
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
            assert_eq!(world.encode(b"abcabcd"), [300, a + 2, 301]);
            assert_eq!(world.encode("龍".as_bytes()), [302]);
            assert_eq!(world.encode(b"\xe9\xbe\xff"), [400, 256]);
            assert!(world.encode(b"").is_empty());
            assert_eq!(world.token_bytes(302), "龍".as_bytes());
            assert_eq!(world.token_bytes(400), b"\xe9\xbe");
            for nothing in [0, 257, 299, 399, 401, u32::MAX] {
                assert_eq!(world.token_bytes(nothing), b"", "{nothing}");
            }
        }
    }

    #[test]
    fn damaged_lines_are_named() {
        let cases: [(&str, &str); 17] = [
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
