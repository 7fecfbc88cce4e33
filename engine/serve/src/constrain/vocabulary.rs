//! A model's vocabulary as a trie of bytes.

use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie, INVALID_TOKEN};
use rwkv_edge::{Error, ErrorKind, Result, Tokenizer};

/// Bytes of a token in the trie at most, which allows fewer than 1024.
const TOKEN_BYTES_MAX: usize = 1000;

/// The trie, and the tokens that end a text.
pub(super) struct Vocabulary {
    pub(super) trie: TokEnv,
    pub(super) ends_of_text: Vec<u32>,
}

impl Vocabulary {
    /// Tokens that are special, that end a text or that stand for nothing are no part of any text.
    pub(super) fn new(tokenizer: &Tokenizer, ends_of_text: &[u32]) -> Result<Self> {
        let n_tokens = tokenizer.n_tokens();
        let bytes_of = |token: u32| {
            let bytes = tokenizer.token_bytes(token);
            let bytes = bytes.filter(|_| !ends_of_text.contains(&token));
            // No text has the byte 0xff, by which the trie marks what is special.
            bytes.filter(|bytes| !bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER))
        };
        let words: Vec<Vec<u8>> = (0..n_tokens as u32)
            .map(|token| bytes_of(token).unwrap_or_default())
            .collect();
        if words.iter().all(Vec::is_empty) {
            return Err(Error::new(
                ErrorKind::Tokenizer,
                "the tokens of this tokenizer have no bytes of their own, which grammars need",
            ));
        }
        if let Some(word) = words.iter().find(|word| word.len() > TOKEN_BYTES_MAX) {
            return Err(Error::new(
                ErrorKind::Tokenizer,
                format!(
                    "a token of {} bytes, expected at most {TOKEN_BYTES_MAX} for grammars",
                    word.len()
                ),
            ));
        }
        let ends_of_text: Vec<u32> = ends_of_text
            .iter()
            .copied()
            .filter(|&end| (end as usize) < n_tokens)
            .collect();
        let first = ends_of_text.first().copied().unwrap_or(INVALID_TOKEN);
        let mut trie = TokTrie::from(&TokRxInfo::new(n_tokens as u32, first), &words);
        if ends_of_text.len() > 1 {
            trie = trie.with_eos_tokens(&ends_of_text);
        }
        Ok(Vocabulary {
            trie: Arc::new(ApproximateTokEnv::new(trie)),
            ends_of_text,
        })
    }
}
