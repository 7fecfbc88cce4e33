//! The usual form of `tokenizer.json`, BPE without special options, read in half the time.
//!
//! The `tokenizers` crate reads a model by way of a tree of JSON values. Here vocabulary and merges go
//! straight into what its builder takes; everything else is read by the crate's own types, in the crate's own
//! order. Any other form, or anything odd, is left to the crate's own reader, which says what is wrong.

#![forbid(unsafe_code)]

use std::fmt;

use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::Deserialize;
use tokenizers::models::bpe::{Vocab, BPE};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    Tokenizer,
};

/// A tokenizer, and the highest id of its vocabulary and added tokens.
pub(super) fn read(bytes: &[u8]) -> Option<(Tokenizer, u32)> {
    let file: File = serde_json::from_slice(bytes).ok()?;
    let model = file.model;
    if file.version != "1.0" || !model.is_plain() {
        return None;
    }
    let in_vocabulary = model.vocab.0.iter().map(|&(_, id)| id);
    let added = file.added_tokens.iter().map(|token| token.id);
    let highest = in_vocabulary.chain(added).max()?;
    let vocab: Vocab = model.vocab.0.into_iter().collect();
    let merges = model.merges.into_iter().map(|merge| merge.0).collect();
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .fuse_unk(model.fuse_unk)
        .ignore_merges(model.ignore_merges)
        .build()
        .ok()?;
    let mut tokenizer = Tokenizer::new(bpe);
    tokenizer.with_normalizer(file.normalizer).ok()?;
    tokenizer.with_pre_tokenizer(file.pre_tokenizer);
    tokenizer.with_post_processor(file.post_processor);
    tokenizer.with_decoder(file.decoder);
    let ids: Vec<u32> = file.added_tokens.iter().map(|token| token.id).collect();
    let contents: Vec<String> = file
        .added_tokens
        .iter()
        .map(|token| token.token.content.clone())
        .collect();
    let tokens = file.added_tokens.into_iter().map(|token| token.token);
    tokenizer.add_tokens(tokens).ok()?;
    // Where ids are not as the file says, the crate's own reader decides.
    let as_said = contents
        .iter()
        .zip(ids)
        .all(|(content, id)| tokenizer.token_to_id(content) == Some(id));
    as_said.then_some((tokenizer, highest))
}

#[derive(Deserialize)]
struct File {
    version: String,
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    post_processor: Option<PostProcessorWrapper>,
    decoder: Option<DecoderWrapper>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: String,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: Pairs,
    merges: Vec<Merge>,
}

impl Model {
    fn is_plain(&self) -> bool {
        let texts = [
            &self.unk_token,
            &self.continuing_subword_prefix,
            &self.end_of_word_suffix,
        ];
        let is_plain = self.dropout.is_none() && !self.byte_fallback;
        self.kind == "BPE" && is_plain && texts.iter().all(|text| text.is_none())
    }
}

/// Spellings and their ids, in the order of the file.
struct Pairs(Vec<(String, u32)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("spellings and ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// Two spellings: `"a b"`, or `["a", "b"]` in newer files.
struct Merge((String, String));

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Two;

        impl<'de> Visitor<'de> for Two {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("two spellings")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Merge, E> {
                let parts = text.split_once(' ').filter(|(_, b)| !b.contains(' '));
                let (a, b) = parts.ok_or_else(|| E::custom("not two spellings"))?;
                Ok(Merge((a.to_owned(), b.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge, A::Error> {
                let missing = || serde::de::Error::custom("not two spellings");
                let a = seq.next_element()?.ok_or_else(missing)?;
                let b = seq.next_element()?.ok_or_else(missing)?;
                match seq.next_element::<serde::de::IgnoredAny>()? {
                    None => Ok(Merge((a, b))),
                    Some(_) => Err(missing()),
                }
            }
        }

        deserializer.deserialize_any(Two)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_crate_reads() {
        let bytes = include_bytes!("../../../../cli/demo/tokenizer.json");
        let (quick, highest) = read(bytes).expect("a plain BPE");
        let slow = Tokenizer::from_bytes(bytes).expect("valid");
        assert_eq!(quick.get_vocab(true), slow.get_vocab(true));
        assert_eq!(slow.get_vocab(true).into_values().max(), Some(highest));
        for text in [
            "Ownership is",
            "fn main() {}\n\n    x",
            "é\u{301} 你好 \u{1f600}",
            "",
        ] {
            let ids = |tokenizer: &Tokenizer| {
                let encoding = tokenizer.encode_fast(text, false).expect("can be");
                encoding.get_ids().to_vec()
            };
            assert_eq!(ids(&quick), ids(&slow), "{text:?}");
            let decoded = quick.decode(&ids(&quick), false).expect("can be");
            assert_eq!(decoded, slow.decode(&ids(&slow), false).expect("can be"));
        }
    }

    #[test]
    fn other_forms_are_left_to_the_crate() {
        let text = include_str!("../../../../cli/demo/tokenizer.json");
        assert!(read(text.as_bytes()).is_some());
        for (from, to) in [
            ("\"type\": \"BPE\"", "\"type\": \"WordPiece\""),
            ("\"version\": \"1.0\"", "\"version\": \"2.0\""),
            ("\"dropout\": null", "\"dropout\": 0.1"),
            ("\"byte_fallback\": false", "\"byte_fallback\": true"),
            ("\"unk_token\": null", "\"unk_token\": \"a\""),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "{from}");
            assert!(read(changed.as_bytes()).is_none(), "{to}");
        }
        assert!(read(b"{").is_none());
    }
}
