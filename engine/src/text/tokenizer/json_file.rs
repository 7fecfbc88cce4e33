//! `tokenizer.json`, read by types of our own.
//!
//! The `tokenizers` crate reads such a file by way of a tree of JSON values, and a damaged one makes it panic or
//! ask for gigabytes. Here vocabulary and merges go straight into what its builder takes, in half the time, and
//! of the other parts only those are known that tokenizers of RWKV models use (`parts.rs`); what is too large
//! or refers to what is not there is refused before the crate sees it. Padding, truncation and post-processor
//! are not read: nothing is added to a text here, whatever they say.

#![forbid(unsafe_code)]

use std::fmt;

use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::Deserialize;
use tokenizers::models::bpe::{Vocab, BPE};
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::{AddedToken, ModelWrapper, Tokenizer};

use super::cuts::Cuts;
use super::parts::{self, Part};
use super::{tokenizer_error, ID_MAX};
use crate::error::{Error, Result};

/// Spellings are of a few hundred bytes at most, of runs of spaces and the like.
const STRING_BYTES_MAX: usize = 16 << 10;
/// Published vocabularies have two merges a token, and half a million.
const MERGES_MAX: usize = 1 << 20;
/// Vocabularies add some hundreds.
const ADDED_MAX: usize = 64 << 10;
/// Added tokens, and a few parts.
const OBJECTS_MAX: usize = ADDED_MAX + 256;

/// A tokenizer of the crate, and what is known of it beside.
pub(super) struct Read {
    pub(super) tokenizer: Tokenizer,
    /// The highest id of its vocabulary and added tokens.
    pub(super) highest: Option<u32>,
    pub(super) cuts: Cuts,
}

/// `cached_words` of the vocabulary's first words are kept with their tokens, on each thread.
pub(super) fn read(bytes: &[u8], cached_words: usize) -> Result<Read> {
    check_shape(bytes)?;
    let file: File = serde_json::from_slice(bytes).map_err(|e| explain(bytes, e))?;
    if let Some(version) = file.version.filter(|version| version != "1.0") {
        return Err(Error::unsupported(format!(
            "version {version:?} of tokenizer.json, expected \"1.0\""
        )));
    }
    let Some(model) = file.model else {
        return Err(no_model());
    };
    let in_vocabulary = model.vocab.iter().flat_map(|vocab| &vocab.0);
    let ids = in_vocabulary.map(|&(_, id)| id);
    let ids = ids.chain(file.added_tokens.0.iter().map(|token| token.id));
    let highest = ids.max();
    let mut tokenizer = Tokenizer::new(model.build(cached_words)?);
    let normalizer = file.normalizer.as_ref().map(parts::normalizer);
    let with_normalizer = tokenizer.with_normalizer(normalizer.transpose()?);
    with_normalizer.map_err(of_crate)?;
    let pre_tokenizer = file.pre_tokenizer.as_ref().map(parts::pre_tokenizer);
    tokenizer.with_pre_tokenizer(pre_tokenizer.transpose()?);
    tokenizer.with_decoder(file.decoder.as_ref().map(parts::decoder).transpose()?);
    let added: Vec<AddedToken> = file.added_tokens.0.into_iter().map(Added::token).collect();
    tokenizer
        .add_tokens(added.iter().cloned())
        .map_err(of_crate)?;
    // The crate counts on from the vocabulary where a file's own ids do not.
    let added_ids = added
        .iter()
        .filter_map(|token| tokenizer.token_to_id(&token.content));
    let highest = added_ids.chain(highest).max();
    let word_ends = parts::word_ends(
        file.normalizer.as_ref(),
        file.pre_tokenizer.as_ref(),
        &added,
    );
    let cuts = Cuts::new(word_ends, added.iter().map(|token| token.content.as_str()));
    Ok(Read {
        tokenizer,
        highest,
        cuts,
    })
}

/// Strings are taken at their own length at once, and an object of a few bytes becomes a part of hundreds: both are
/// bounded before anything is taken.
fn check_shape(bytes: &[u8]) -> Result<()> {
    let (mut at, mut n_objects) = (0, 0);
    while let Some(quote) = find(bytes, at, |byte| byte == b'"') {
        n_objects += bytes[at..quote].iter().filter(|&&b| b == b'{').count();
        let start = quote + 1;
        at = start;
        let mut is_closed = false;
        while let Some(found) = find(bytes, at, |byte| matches!(byte, b'"' | b'\\')) {
            is_closed = bytes[found] == b'"';
            at = found + 1;
            if is_closed {
                break;
            }
            // What is escaped ends no string.
            at += 1;
        }
        let size = if is_closed { at } else { bytes.len() } - start;
        if size > STRING_BYTES_MAX {
            return Err(tokenizer_error(format!(
                "a string of {size} bytes at byte {quote}, expected at most {STRING_BYTES_MAX}"
            )));
        }
        if !is_closed {
            break;
        }
    }
    let rest = bytes.get(at..).unwrap_or_default();
    n_objects += rest.iter().filter(|&&b| b == b'{').count();
    if n_objects > OBJECTS_MAX {
        return Err(tokenizer_error(format!(
            "{n_objects} objects in a tokenizer.json, expected at most {OBJECTS_MAX}"
        )));
    }
    Ok(())
}

fn find(bytes: &[u8], from: usize, is_wanted: impl Fn(u8) -> bool) -> Option<usize> {
    let rest = bytes.get(from..)?;
    let found = rest.iter().position(|&byte| is_wanted(byte))?;
    Some(from + found)
}

fn no_model() -> Error {
    tokenizer_error(
        "JSON, but no tokenizer.json: it has no `model`; the World vocabulary is the file \
         rwkv_vocab_v20230424.txt"
            .into(),
    )
}

/// Why a file could not be read: a model of another kind is named, whatever it was that did not fit.
fn explain(bytes: &[u8], error: serde_json::Error) -> Error {
    #[derive(Deserialize)]
    struct Head {
        model: Option<Kind>,
    }
    #[derive(Deserialize)]
    struct Kind {
        #[serde(rename = "type")]
        kind: Option<String>,
    }
    match serde_json::from_slice::<Head>(bytes) {
        Ok(Head { model: None }) => return no_model(),
        Ok(Head { model: Some(model) }) => {
            if let Some(error) = model.kind.and_then(|kind| refuse_kind(&kind)) {
                return error;
            }
        }
        Err(_) => {}
    }
    let text = printable(&error.to_string());
    tokenizer_error(format!("not a usable tokenizer.json: {text}")).with_source(error)
}

fn refuse_kind(kind: &str) -> Option<Error> {
    let is_known = matches!(kind, "BPE" | "WordLevel");
    (!is_known).then(|| {
        Error::unsupported(format!(
            "a tokenizer of the type {kind:?}, expected \"BPE\" or \"WordLevel\""
        ))
    })
}

/// An error of the crate; its text may hold what a file does.
pub(super) fn of_crate(error: tokenizers::Error) -> Error {
    let text = printable(&error.to_string());
    tokenizer_error(format!("not a usable tokenizer.json: {text}")).with_source(error)
}

/// A text for people, of a sensible length and without control characters.
pub(super) fn printable(text: &str) -> String {
    const CHARS_MAX: usize = 300;
    let mut printable = String::new();
    for c in text.chars().take(CHARS_MAX) {
        match c.is_control() {
            true => printable.extend(c.escape_debug()),
            false => printable.push(c),
        }
    }
    if text.chars().nth(CHARS_MAX).is_some() {
        printable.push('…');
    }
    printable
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct File {
    version: Option<String>,
    #[serde(default)]
    added_tokens: List<Added, ADDED_MAX>,
    normalizer: Option<Part>,
    pre_tokenizer: Option<Part>,
    decoder: Option<Part>,
    model: Option<Model>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Added {
    #[serde(deserialize_with = "id")]
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl Added {
    fn token(self) -> AddedToken {
        let token = AddedToken::from(self.content, self.special);
        let normalized = self.normalized.unwrap_or(token.normalized);
        token
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(normalized)
    }
}

/// All that models of the known kinds have.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Model {
    /// Missing in old files.
    #[serde(rename = "type")]
    kind: Option<String>,
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
    vocab: Option<Pairs>,
    merges: Option<List<Merge, MERGES_MAX>>,
}

impl Model {
    fn build(self, cached_words: usize) -> Result<ModelWrapper> {
        let kind = self.kind.as_deref();
        let kind = kind.unwrap_or(match self.merges {
            Some(_) => "BPE",
            None => "WordLevel",
        });
        if let Some(error) = refuse_kind(kind) {
            return Err(error);
        }
        let is_bpe = kind == "BPE";
        let missing = |name| tokenizer_error(format!("a model of the type {kind} without {name}"));
        let pairs = self.vocab.ok_or_else(|| missing("`vocab`"))?;
        let vocab: Vocab = pairs.0.into_iter().collect();
        if !is_bpe {
            let builder = WordLevel::builder().vocab(vocab);
            let unknown = self.unk_token.unwrap_or_else(|| "<unk>".into());
            let words = builder.unk_token(unknown).build().map_err(of_crate)?;
            return Ok(words.into());
        }
        let is_missing = |token: &&String| !vocab.contains_key(token.as_str());
        if let Some(token) = self.unk_token.as_ref().filter(is_missing) {
            return Err(tokenizer_error(format!(
                "unk_token \"{}\" is not in the vocabulary",
                printable(token)
            )));
        }
        let merges = self.merges.ok_or_else(|| missing("`merges`"))?;
        let refused = [
            (
                "dropout",
                self.dropout.is_some_and(|dropout| dropout != 0.0),
            ),
            (
                "continuing_subword_prefix",
                self.continuing_subword_prefix
                    .is_some_and(|t| !t.is_empty()),
            ),
            (
                "end_of_word_suffix",
                self.end_of_word_suffix.is_some_and(|t| !t.is_empty()),
            ),
        ];
        if let Some((name, _)) = refused.iter().find(|(_, is_used)| *is_used) {
            return Err(Error::unsupported(format!(
                "a BPE model with {name}, which no tokenizer of an RWKV model has"
            )));
        }
        // The crate writes each pair into a buffer that is as long as the longest spelling.
        let longest = vocab.keys().map(String::len).max().unwrap_or(0);
        let too_long = |(a, b): &&(String, String)| a.len() + b.len() > longest;
        let merges: Vec<(String, String)> = merges.0.into_iter().map(|merge| merge.0).collect();
        if let Some((a, b)) = merges.iter().find(too_long) {
            return Err(tokenizer_error(format!(
                "the merge \"{}\" makes a token that is not in the vocabulary",
                printable(&format!("{a} {b}"))
            )));
        }
        let mut builder = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .cache_capacity(cached_words)
            .fuse_unk(self.fuse_unk)
            .byte_fallback(self.byte_fallback)
            .ignore_merges(self.ignore_merges);
        if let Some(token) = self.unk_token {
            builder = builder.unk_token(token);
        }
        Ok(builder.build().map_err(of_crate)?.into())
    }
}

fn id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let id = u32::deserialize(deserializer)?;
    match id <= ID_MAX {
        true => Ok(id),
        false => Err(D::Error::custom(format!(
            "id {id}, expected at most {ID_MAX}"
        ))),
    }
}

struct Id(u32);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        id(deserializer).map(Id)
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
                while let Some((spelling, Id(id))) = map.next_entry::<String, Id>()? {
                    push(&mut pairs, (spelling, id), ID_MAX as usize + 1)?;
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// A list of so many elements at most.
pub(super) struct List<T, const MAX: usize>(pub(super) Vec<T>);

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        List(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T, const MAX: usize>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Elements<T, MAX> {
            type Value = List<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(element) = seq.next_element()? {
                    push(&mut list, element, MAX)?;
                }
                Ok(List(list))
            }
        }

        deserializer.deserialize_seq(Elements(std::marker::PhantomData))
    }
}

fn push<T, E: serde::de::Error>(list: &mut Vec<T>, element: T, max: usize) -> Result<(), E> {
    if list.len() == max {
        return Err(E::custom(format!("more than {max} entries")));
    }
    list.try_reserve(1)
        .map_err(|_| E::custom("not enough memory for the list"))?;
    list.push(element);
    Ok(())
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
                let missing = || A::Error::custom("not two spellings");
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

    const DEMO: &str = include_str!("../../../../cli/demo/tokenizer.json");

    fn error(text: &str) -> String {
        match read(text.as_bytes(), 0) {
            Ok(_) => panic!("was taken: {text:.200}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn reads_what_the_crate_reads() {
        let quick = read(DEMO.as_bytes(), 100).expect("a plain BPE");
        let slow = Tokenizer::from_bytes(DEMO).expect("valid");
        assert_eq!(quick.tokenizer.get_vocab(true), slow.get_vocab(true));
        assert_eq!(slow.get_vocab(true).into_values().max(), quick.highest);
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
            let found = ids(&quick.tokenizer);
            assert_eq!(found, ids(&slow), "{text:?}");
            let decoded = quick.tokenizer.decode(&found, false).expect("can be");
            assert_eq!(decoded, slow.decode(&found, false).expect("can be"));
        }
    }

    /// What is not of RWKV tokenizers is named.
    #[test]
    fn other_parts_are_refused_by_name() {
        for (from, to, part) in [
            ("\"type\": \"BPE\"", "\"type\": \"Unigram\"", "Unigram"),
            ("\"type\": \"BPE\"", "\"type\": \"W\\u001b[1m\"", "W\\u{1b}"),
            ("\"version\": \"1.0\"", "\"version\": \"2.0\"", "2.0"),
            ("\"dropout\": null", "\"dropout\": 0.1", "dropout"),
            ("\"unk_token\": null", "\"unk_token\": \"no such\"", "no such"),
            (
                "\"continuing_subword_prefix\": null",
                "\"continuing_subword_prefix\": \"##\"",
                "continuing_subword_prefix",
            ),
            (
                "\"normalizer\": null",
                "\"normalizer\": {\"type\": \"Precompiled\", \"precompiled_charsmap\": \"AA==\"}",
                "Precompiled",
            ),
            (
                "\"pre_tokenizer\": {",
                "\"pre_tokenizer\": {\"type\": \"FixedLength\", \"length\": 0}, \"other\": {",
                "FixedLength",
            ),
            (
                "\"decoder\": {",
                "\"decoder\": {\"type\": \"Strip\", \"content\": \"h\", \"start\": 3}, \"other\": {",
                "Strip",
            ),
        ] {
            let changed = DEMO.replacen(from, to, 1);
            assert_ne!(changed, DEMO, "{from}");
            let text = error(&changed);
            assert!(text.contains(part), "{to}: {text}");
        }
    }

    #[test]
    fn sizes_are_bounded_before_anything_is_taken() {
        let long = format!("{{\"model\": \"{}\"}}", "a".repeat(STRING_BYTES_MAX + 1));
        assert!(error(&long).contains("at byte 10, expected at most 16384"));
        let escaped = format!("{{\"model\": \"{}", "\\\"".repeat(STRING_BYTES_MAX));
        assert!(error(&escaped).contains("a string of 32768 bytes"));
        let many = format!("{{\"decoder\": {}", "[{\"a\":{}},".repeat(OBJECTS_MAX));
        assert!(error(&many).contains("objects"));
        for id in ["4294967295", "1048576", "-1", "1e3"] {
            let text = error(&DEMO.replacen("\"id\": 0", &format!("\"id\": {id}"), 1));
            assert!(text.contains("id") || text.contains("u32"), "{text}");
        }
        let merge = DEMO.replacen("\"merges\": [", "\"merges\": [[\"no\", \"such\"],", 1);
        assert!(error(&merge).contains("no"));
        let merge = format!("\"merges\": [[\"{0}\", \"{0}\"],", "Ġ".repeat(70));
        assert!(error(&DEMO.replacen("\"merges\": [", &merge, 1)).contains("merge"));
    }
}
