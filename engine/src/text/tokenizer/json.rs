//! `tokenizer.json` through the `tokenizers` crate, the reference for that format.
//!
//! Without the cargo feature `tokenizer` the same interface is here, and parsing is refused.

#![forbid(unsafe_code)]

#[cfg(feature = "tokenizer")]
mod with_crate {
    use std::hint::black_box;

    use tokenizers::DecoderWrapper;

    use crate::error::Result;
    use crate::math::reserve;
    use crate::text::tokenizer::cuts::{Cuts, PIECE_BYTES};
    use crate::text::tokenizer::fence::fence;
    use crate::text::tokenizer::json_file;
    use crate::text::tokenizer::{append, tokenizer_error};

    /// Bytes that the crate takes at most for a byte of a text: measured with words of one byte, rounded up.
    const MEMORY_A_BYTE: usize = 512;
    /// Words whose tokens are kept, on each thread: as the crate does by itself,
    const CACHED_WORDS: usize = 10_000;
    /// and where memory is limited, with bytes for each: such words have up to some 60 bytes.
    const CACHED_WORDS_LIMITED: usize = 512;
    const CACHED_WORD_BYTES: usize = 2048;

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
                n_tokens: (read.highest as usize).saturating_add(1),
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
            // The crate cannot report that there is no memory; most likely there is what was there just now.
            let size = piece.len().saturating_mul(MEMORY_A_BYTE);
            drop(black_box(reserve::<u8>(size, "tokenizing a text")?));
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

    /// The byte that a character stands for in the spelling of byte-level tokens, which is GPT-2's:
    /// printable Latin-1 characters stand for themselves, the other 68 bytes follow from U+0100 on,
    /// in order.
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
