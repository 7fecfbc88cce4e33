//! `tokenizer.json` through the `tokenizers` crate, the reference for that format.
//!
//! Without the cargo feature `tokenizer` the same interface is here, and parsing is refused.

#![forbid(unsafe_code)]

#[cfg(feature = "tokenizer")]
mod with_crate {
    use std::hint::black_box;

    use tokenizers::DecoderWrapper;

    use crate::error::{Error, Result};
    use crate::math::reserve;
    use crate::text::tokenizer::cuts::{Cuts, PIECE_BYTES};
    use crate::text::tokenizer::fence::fence;
    use crate::text::tokenizer::json_file;
    use crate::text::tokenizer::word_pieces::byte_of_char;
    use crate::text::tokenizer::{append, tokenizer_error};

    /// Bytes that the crate takes at most for a byte of a text: measured with words of one byte, rounded up.
    const MEMORY_A_BYTE: usize = 512;
    /// Words whose tokens are kept, on each thread: as the crate does by itself,
    const CACHED_WORDS: usize = 10_000;
    /// and where memory is limited, with bytes for each: such words have up to some 60 bytes.
    const CACHED_WORDS_LIMITED: usize = 512;
    const CACHED_WORD_BYTES: usize = 2048;

    /// Characters of white space side by side. The crate's search for words takes a step back for each of them, gives
    /// up after a million, and says so to nobody: the ids would be wrong.
    const WHITE_SPACE_MAX: usize = 1 << 19;

    pub(in crate::text::tokenizer) struct JsonTokenizer {
        inner: tokenizers::Tokenizer,
        n_tokens: usize,
        cuts: Cuts,
    }

    impl JsonTokenizer {
        pub(in crate::text::tokenizer) fn parse(bytes: &[u8], is_limited: bool) -> Result<Self> {
            let cached_words = match is_limited {
                true => CACHED_WORDS_LIMITED,
                false => CACHED_WORDS,
            };
            let read = fence("reading it", || json_file::read(bytes, cached_words))?;
            Ok(JsonTokenizer {
                inner: read.tokenizer,
                n_tokens: read.highest.map_or(0, |id| (id as usize).saturating_add(1)),
                cuts: read.cuts,
            })
        }

        /// What tokenizing takes besides where memory is limited, as long as texts can be cut.
        pub(in crate::text::tokenizer) const WORKING_BYTES: u64 =
            (CACHED_WORDS_LIMITED * CACHED_WORD_BYTES + 2 * PIECE_BYTES * MEMORY_A_BYTE) as u64;

        /// The same for a text of which so many bytes may have to go through in one piece.
        pub(in crate::text::tokenizer) fn working_bytes(n_bytes: usize) -> u64 {
            let more = n_bytes.saturating_sub(2 * PIECE_BYTES);
            (more as u64).saturating_mul(MEMORY_A_BYTE as u64)
        }

        pub(in crate::text::tokenizer) fn n_tokens(&self) -> usize {
            self.n_tokens
        }

        /// Ascending.
        pub(in crate::text::tokenizer) fn special_ids(&self) -> Vec<u32> {
            let added = self.inner.get_added_tokens_decoder();
            let special = added.iter().filter(|(_, token)| token.special);
            let mut ids: Vec<u32> = special.map(|(&id, _)| id).collect();
            ids.sort_unstable();
            ids
        }

        /// Appends the ids of a text, or of so much of it as is certain whatever follows; gives its bytes.
        pub(in crate::text::tokenizer) fn encode(
            &self,
            text: &[u8],
            is_end: bool,
            searched: &mut usize,
            ids: &mut Vec<u32>,
        ) -> Result<usize> {
            let mut done = 0;
            loop {
                let rest = &text[done..];
                let piece = match self.cuts.first_piece(rest, searched) {
                    Some(end) => &rest[..end],
                    None if is_end && !rest.is_empty() => rest,
                    None => return Ok(done),
                };
                self.encode_piece(&String::from_utf8_lossy(piece), ids)?;
                done += piece.len();
            }
        }

        fn encode_piece(&self, piece: &str, ids: &mut Vec<u32>) -> Result<()> {
            check_white_space(piece)?;
            // The crate cannot report that there is no memory; most likely there is what was there just now.
            let size = piece.len().saturating_mul(MEMORY_A_BYTE);
            let room = reserve::<u8>(size, "tokenizing").map_err(|e| {
                let text = format!(
                    "not enough memory for tokenizing {} bytes of text without a place to cut them, which may take \
                     {size} bytes",
                    piece.len()
                );
                Error::memory(text).with_source(e)
            })?;
            drop(black_box(room));
            fence("tokenizing", || {
                // "fast": without the offsets into the text, which nobody asks for.
                let encoding = self.inner.encode_fast(piece, false);
                let encoding = encoding.map_err(|e| {
                    tokenizer_error(format!("cannot tokenize the text: {e}")).with_source(e)
                })?;
                append(ids, encoding.get_ids())
            })
        }

        /// The caller has taken the special tokens out.
        pub(in crate::text::tokenizer) fn decode(&self, tokens: &[u32]) -> Result<String> {
            fence("decoding", || {
                self.inner.decode(tokens, false).map_err(|e| {
                    tokenizer_error(format!("cannot turn tokens into text: {e}")).with_source(e)
                })
            })
        }

        /// Appends the bytes that a token of a byte-level tokenizer stands for.
        pub(in crate::text::tokenizer) fn push_token_bytes(&self, token: u32, bytes: &mut Vec<u8>) {
            let Some(spelling) = self.inner.id_to_token(token) else {
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

        pub(in crate::text::tokenizer) fn is_byte_level(&self) -> bool {
            matches!(self.inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_)))
        }
    }

    fn check_white_space(piece: &str) -> Result<()> {
        if piece.len() <= WHITE_SPACE_MAX {
            return Ok(());
        }
        let runs = piece.split(|c: char| !c.is_whitespace());
        let longest = runs.map(|run| run.chars().count()).max().unwrap_or(0);
        match longest <= WHITE_SPACE_MAX {
            true => Ok(()),
            false => Err(tokenizer_error(format!(
                "{longest} characters of white space side by side in the text, expected at most {WHITE_SPACE_MAX} \
                 with a tokenizer.json"
            ))),
        }
    }

    #[cfg(test)]
    mod tests {
        use rand_chacha::ChaCha8Rng;
        use rand_core::{RngCore, SeedableRng};

        use super::{byte_of_char, JsonTokenizer, WHITE_SPACE_MAX};

        const DEMO: &str = include_str!("../../../../cli/demo/tokenizer.json");

        /// What is hard about texts: white space, contractions, digits, scripts without spaces, characters that
        /// combine, names of added tokens and parts of them.
        const FRAGMENTS: [&str; 60] = [
            " ",
            " ",
            " ",
            "  ",
            "   ",
            "\t",
            "\n",
            "\n\n",
            "\r\n",
            "\x0b",
            "\x1c",
            "\0",
            "'",
            "'s",
            "'re",
            "'LL",
            "s",
            "e",
            "E",
            "the",
            "word",
            "1",
            "23",
            "4567",
            "!",
            "?!",
            "_",
            "$",
            "(",
            "<|endoftext|>",
            "<|",
            "endo",
            "|>",
            "two words",
            "two",
            "words",
            "é",
            "e\u{301}",
            "\u{301}",
            "é x",
            "x",
            "\u{3000}",
            "\u{a0}",
            "\u{85}",
            "\u{2028}",
            "你好",
            "，",
            "。",
            "か",
            "\u{3099}",
            "\u{1112}\u{1161}",
            "\u{11ab}",
            "한",
            "👍🏽",
            "\u{200d}",
            "ß",
            "İ",
            "Σ",
            "\u{2126}",
            "\u{1fef}",
        ];
        /// Bytes that are not UTF-8.
        const BROKEN: [&[u8]; 4] = [b"\xff", b"\xe4\xbd", b"\x80", b"\xf0\x9f"];

        /// The demo's file with other parts.
        fn variant(normalizer: &str, pre_tokenizer: &str, added: &[(&str, bool)]) -> String {
            let old = "\"pre_tokenizer\": {";
            assert!(DEMO.contains(old) && DEMO.contains("\"normalizer\": null"));
            let added = added.iter().zip(4096..).map(|((content, normalized), id)| {
                format!(
                    r#"{{"id": {id}, "content": "{content}", "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": {normalized}, "special": false}},"#
                )
            });
            let added: String = added.collect();
            let mut json = DEMO.to_owned();
            for (from, to) in [
                (
                    "\"normalizer\": null",
                    format!("\"normalizer\": {normalizer}"),
                ),
                (
                    old,
                    format!("\"pre_tokenizer\": {pre_tokenizer}, \"old\": {{"),
                ),
                ("\"added_tokens\": [", format!("\"added_tokens\": [{added}")),
            ] {
                json = json.replacen(from, &to, 1);
            }
            json
        }

        fn byte_level(prefix: bool, regex: bool) -> String {
            format!(
                r#"{{"type": "ByteLevel", "add_prefix_space": {prefix}, "trim_offsets": true,
                "use_regex": {regex}}}"#
            )
        }

        /// Wherever a text may be cut, both sides together have the tokens of the whole.
        #[test]
        fn cuts_change_no_token() {
            let nfc = r#"{"type": "NFC"}"#;
            let spaces = [
                ("  ", true),
                ("    ", true),
                ("é x", true),
                ("two words", false),
            ];
            let gpt_4 = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?\
                         [^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
            let gpt_4 = format!(
                r#"{{"type": "Sequence", "pretokenizers": [{{"type": "Split", "pattern": {{"Regex": {}}},
                "behavior": "Isolated", "invert": false}}, {}]}}"#,
                serde_json::Value::from(gpt_4),
                byte_level(false, false)
            );
            let words = r#"{"version": "1.0", "normalizer": {"type": "Lowercase"},
                "added_tokens": [{"id": 0, "content": "<|end|>", "special": true}],
                "pre_tokenizer": {"type": "WhitespaceSplit"},
                "model": {"type": "WordLevel", "unk_token": "e",
                "vocab": {"<|end|>": 0, "the": 1, "word": 2, "e": 3, "s": 4, "two": 5, "!": 6}}}"#;
            let kinds = [
                ("demo", DEMO.to_owned()),
                ("20B", variant(nfc, &byte_level(false, true), &spaces)),
                ("prefix", variant("null", &byte_level(true, true), &spaces)),
                ("GPT-4", variant(nfc, &gpt_4, &spaces)),
                ("words", words.to_owned()),
            ];
            let mut random = ChaCha8Rng::seed_from_u64(3);
            let mut below = |n: usize| random.next_u64() as usize % n;
            for (name, json) in kinds {
                let tokenizer = JsonTokenizer::parse(json.as_bytes(), false).expect(name);
                let ids = |text: &[u8]| {
                    let mut ids = Vec::new();
                    let text = String::from_utf8_lossy(text);
                    tokenizer.encode_piece(&text, &mut ids).expect(name);
                    ids
                };
                let mut n_cuts = 0;
                for _ in 0..400 {
                    let mut text = Vec::new();
                    for _ in 0..1 + below(24) {
                        text.extend_from_slice(match below(20) {
                            0 => BROKEN[below(BROKEN.len())],
                            _ => FRAGMENTS[below(FRAGMENTS.len())].as_bytes(),
                        });
                    }
                    let whole = ids(&text);
                    for at in 1..text.len() {
                        if tokenizer.cuts.at(&text, at) {
                            let (before, behind) = text.split_at(at);
                            let both = [ids(before), ids(behind)].concat();
                            let texts = [before, behind].map(String::from_utf8_lossy);
                            assert_eq!(both, whole, "{name}: {texts:?}");
                            n_cuts += 1;
                        }
                    }
                }
                assert!(n_cuts > 100, "{name}: {n_cuts}");
            }
        }

        /// Words behind white space are found however long that is, or the text is refused.
        #[test]
        fn white_space_hides_no_word() {
            let tokenizer = JsonTokenizer::parse(DEMO.as_bytes(), false).expect("the demo");
            let ids = |n: usize, space: &str| {
                let (mut ids, text) = (Vec::new(), space.repeat(n) + "the");
                let encoded = tokenizer.encode(text.as_bytes(), true, &mut 0, &mut ids);
                encoded.map(|_| ids)
            };
            for space in ["\n", "\u{3000}"] {
                let few = ids(9, space).expect("a short run");
                let many = ids(WHITE_SPACE_MAX, space).expect("the longest run");
                assert_eq!(many.last(), few.last());
                let error = ids(WHITE_SPACE_MAX + 1, space).expect_err("too long");
                let text = error.to_string();
                let expected = format!("{} characters of white space", WHITE_SPACE_MAX + 1);
                assert!(text.contains(&expected), "{text}");
            }
        }

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
}

/// No value of the type can exist.
#[cfg(not(feature = "tokenizer"))]
mod without_crate {
    use crate::error::{Error, Result};

    pub(in crate::text::tokenizer) enum JsonTokenizer {}

    impl JsonTokenizer {
        pub(in crate::text::tokenizer) const WORKING_BYTES: u64 = 0;

        pub(in crate::text::tokenizer) fn working_bytes(_n_bytes: usize) -> u64 {
            0
        }

        pub(in crate::text::tokenizer) fn parse(_bytes: &[u8], _is_limited: bool) -> Result<Self> {
            Err(Error::unsupported(
                "this build cannot read tokenizer.json files (cargo feature `tokenizer`), only RWKV \
                 World vocabularies",
            ))
        }

        pub(in crate::text::tokenizer) fn n_tokens(&self) -> usize {
            match *self {}
        }

        pub(in crate::text::tokenizer) fn special_ids(&self) -> Vec<u32> {
            match *self {}
        }

        pub(in crate::text::tokenizer) fn encode(
            &self,
            _text: &[u8],
            _is_end: bool,
            _searched: &mut usize,
            _ids: &mut Vec<u32>,
        ) -> Result<usize> {
            match *self {}
        }

        pub(in crate::text::tokenizer) fn decode(&self, _tokens: &[u32]) -> Result<String> {
            match *self {}
        }

        pub(in crate::text::tokenizer) fn push_token_bytes(
            &self,
            _token: u32,
            _bytes: &mut Vec<u8>,
        ) {
            match *self {}
        }

        pub(in crate::text::tokenizer) fn is_byte_level(&self) -> bool {
            match *self {}
        }
    }
}

#[cfg(feature = "tokenizer")]
pub(super) use with_crate::JsonTokenizer;
#[cfg(not(feature = "tokenizer"))]
pub(super) use without_crate::JsonTokenizer;
