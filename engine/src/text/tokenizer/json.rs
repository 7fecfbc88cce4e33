//! `tokenizer.json` through the `tokenizers` crate, the reference for that format.
//!
//! Without the cargo feature `tokenizer` the same interface is here, and parsing is refused.

#![forbid(unsafe_code)]

#[cfg(feature = "tokenizer")]
mod with_crate {
    use tokenizers::DecoderWrapper;

    use crate::error::Result;
    use crate::text::tokenizer::{quick, tokenizer_error};

    pub(in crate::text::tokenizer) struct JsonTokenizer {
        inner: tokenizers::Tokenizer,
        n_tokens: usize,
    }

    impl JsonTokenizer {
        pub(in crate::text::tokenizer) fn parse(bytes: &[u8]) -> Result<Self> {
            if let Some((inner, highest)) = quick::read(bytes) {
                let n_tokens = (highest as usize).saturating_add(1);
                return Ok(JsonTokenizer { inner, n_tokens });
            }
            let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| {
                tokenizer_error(format!("not a usable tokenizer.json: {e}")).with_source(e)
            })?;
            // Files saved after training may carry these; a prompt is never cut or padded here.
            inner.with_padding(None);
            inner.with_truncation(None).map_err(|e| {
                tokenizer_error(format!("cannot switch truncation off: {e}")).with_source(e)
            })?;
            let highest = inner.get_vocab(true).into_values().max();
            let n_tokens = highest.map_or(0, |id| (id as usize).saturating_add(1));
            Ok(JsonTokenizer { inner, n_tokens })
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

        pub(in crate::text::tokenizer) fn encode(&self, text: &str) -> Result<Vec<u32>> {
            // "fast": without the offsets into the text, which nobody asks for.
            match self.inner.encode_fast(text, false) {
                Ok(encoding) => Ok(encoding.get_ids().to_vec()),
                Err(e) => {
                    Err(tokenizer_error(format!("cannot tokenize the text: {e}")).with_source(e))
                }
            }
        }

        /// The caller has taken the special tokens out.
        pub(in crate::text::tokenizer) fn decode(&self, tokens: &[u32]) -> Result<String> {
            self.inner.decode(tokens, false).map_err(|e| {
                tokenizer_error(format!("cannot turn tokens into text: {e}")).with_source(e)
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
        pub(in crate::text::tokenizer) fn parse(_bytes: &[u8]) -> Result<Self> {
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

        pub(in crate::text::tokenizer) fn encode(&self, _text: &str) -> Result<Vec<u32>> {
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
