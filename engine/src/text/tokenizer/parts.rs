//! The parts of a `tokenizer.json` beside its vocabulary: those that tokenizers of RWKV models use, made by the
//! `tokenizers` crate's constructors. Any other is refused by its name.

#![forbid(unsafe_code)]

use serde::Deserialize;
use tokenizers::decoders::{byte_fallback, fuse, sequence as decoders, wordpiece};
use tokenizers::normalizers::{Lowercase, Sequence as Normalizers, NFC, NFD, NFKC, NFKD};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::whitespace::{Whitespace, WhitespaceSplit};
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};

use super::cuts::WordEnds;
use super::json_file::{of_crate, printable, List};
use super::tokenizer_error;
use crate::error::{Error, Result};

/// Parts of a sequence: two or three are usual.
const PARTS_MAX: usize = 16;
/// Published patterns have some 150 bytes.
const PATTERN_BYTES_MAX: usize = 1024;

/// Any part, with the fields of all that are known; others are passed over.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct Part {
    #[serde(rename = "type")]
    kind: Option<String>,
    normalizers: Option<List<Part, PARTS_MAX>>,
    pretokenizers: Option<List<Part, PARTS_MAX>>,
    decoders: Option<List<Part, PARTS_MAX>>,
    add_prefix_space: Option<bool>,
    use_regex: Option<bool>,
    individual_digits: Option<bool>,
    pattern: Option<Pattern>,
    behavior: Option<String>,
    invert: Option<bool>,
    prefix: Option<String>,
    cleanup: Option<bool>,
    replacement: Option<String>,
    prepend_scheme: Option<String>,
}

/// One of the two.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Pattern {
    #[serde(rename = "String")]
    text: Option<String>,
    #[serde(rename = "Regex")]
    regex: Option<String>,
}

impl Part {
    fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or("")
    }

    fn refused(&self, role: &str, known: &str) -> Error {
        let kind = printable(self.kind());
        Error::unsupported(format!("{role} \"{kind}\", expected one of {known}"))
    }

    fn lacks(&self, field: &str) -> Error {
        tokenizer_error(format!("{} without a usable `{field}`", self.kind()))
    }
}

pub(super) fn normalizer(part: &Part) -> Result<NormalizerWrapper> {
    Ok(match part.kind() {
        "NFC" => NFC.into(),
        "NFD" => NFD.into(),
        "NFKC" => NFKC.into(),
        "NFKD" => NFKD.into(),
        "Lowercase" => Lowercase.into(),
        "Sequence" => {
            let list = part.normalizers.as_ref();
            let list = list.ok_or_else(|| part.lacks("normalizers"))?;
            let list: Result<Vec<_>> = list.0.iter().map(normalizer).collect();
            Normalizers::new(list?).into()
        }
        _ => {
            let known = "NFC, NFD, NFKC, NFKD, Lowercase, Sequence";
            return Err(part.refused("normalizer", known));
        }
    })
}

pub(super) fn pre_tokenizer(part: &Part) -> Result<PreTokenizerWrapper> {
    Ok(match part.kind() {
        "ByteLevel" => {
            let prefix = part.add_prefix_space;
            let prefix = prefix.ok_or_else(|| part.lacks("add_prefix_space"))?;
            ByteLevel::new(prefix, true, part.use_regex.unwrap_or(true)).into()
        }
        "Digits" => Digits::new(part.individual_digits.unwrap_or(false)).into(),
        "Whitespace" => Whitespace.into(),
        "WhitespaceSplit" => WhitespaceSplit.into(),
        "Split" => split(part)?.into(),
        "Sequence" => {
            let list = part.pretokenizers.as_ref();
            let list = list.ok_or_else(|| part.lacks("pretokenizers"))?;
            let list: Result<Vec<_>> = list.0.iter().map(pre_tokenizer).collect();
            PreTokenizers::new(list?).into()
        }
        _ => {
            let known = "ByteLevel, Digits, Sequence, Split, Whitespace, WhitespaceSplit";
            return Err(part.refused("pre_tokenizer", known));
        }
    })
}

fn split(part: &Part) -> Result<Split> {
    let pattern = match &part.pattern {
        Some(Pattern {
            text: Some(text),
            regex: None,
        }) => SplitPattern::String(text.clone()),
        Some(Pattern {
            text: None,
            regex: Some(regex),
        }) => SplitPattern::Regex(regex.clone()),
        _ => return Err(part.lacks("pattern")),
    };
    let (SplitPattern::String(text) | SplitPattern::Regex(text)) = &pattern;
    if !(1..=PATTERN_BYTES_MAX).contains(&text.len()) {
        return Err(tokenizer_error(format!(
            "a pattern of {} bytes, expected 1 to {PATTERN_BYTES_MAX}",
            text.len()
        )));
    }
    let behavior = match part.behavior.as_deref() {
        Some("Removed") => SplitDelimiterBehavior::Removed,
        Some("Isolated") => SplitDelimiterBehavior::Isolated,
        Some("MergedWithPrevious") => SplitDelimiterBehavior::MergedWithPrevious,
        Some("MergedWithNext") => SplitDelimiterBehavior::MergedWithNext,
        Some("Contiguous") => SplitDelimiterBehavior::Contiguous,
        _ => return Err(part.lacks("behavior")),
    };
    Split::new(pattern, behavior, part.invert.unwrap_or(false)).map_err(of_crate)
}

pub(super) fn decoder(part: &Part) -> Result<DecoderWrapper> {
    Ok(match part.kind() {
        // Its settings are for the other direction.
        "ByteLevel" => ByteLevel::default().into(),
        "ByteFallback" => byte_fallback::ByteFallback::new().into(),
        "Fuse" => fuse::Fuse::new().into(),
        "WordPiece" => {
            let prefix = part.prefix.clone().unwrap_or_else(|| "##".into());
            wordpiece::WordPiece::new(prefix, part.cleanup.unwrap_or(true)).into()
        }
        "Metaspace" => {
            let mut chars = part.replacement.as_deref().unwrap_or("").chars();
            let (Some(replacement), None) = (chars.next(), chars.next()) else {
                return Err(part.lacks("replacement"));
            };
            let scheme = match (part.prepend_scheme.as_deref(), part.add_prefix_space) {
                (Some("never"), _) | (None, Some(false)) => PrependScheme::Never,
                (Some("first"), _) => PrependScheme::First,
                (Some("always") | None, _) => PrependScheme::Always,
                _ => return Err(part.lacks("prepend_scheme")),
            };
            Metaspace::new(replacement, scheme, true).into()
        }
        "Sequence" => {
            let list = part.decoders.as_ref();
            let list = list.ok_or_else(|| part.lacks("decoders"))?;
            let list: Result<Vec<_>> = list.0.iter().map(decoder).collect();
            decoders::Sequence::new(list?).into()
        }
        _ => {
            let known = "ByteFallback, ByteLevel, Fuse, Metaspace, Sequence, WordPiece";
            return Err(part.refused("decoder", known));
        }
    })
}

/// Patterns of GPT-4's kind, as Qwen 2 and Llama 3 have them.
const LIKE_GPT_4: [&str; 2] = [
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*\
     |\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*\
     |\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
];

/// Between which characters words always end, as far as that is known.
pub(super) fn word_ends(
    normalizer: Option<&Part>,
    pre_tokenizer: Option<&Part>,
    added: &[AddedToken],
) -> WordEnds {
    let reaches_out = |token: &AddedToken| token.lstrip || token.rstrip || token.single_word;
    if added.iter().any(reaches_out) {
        return WordEnds::Unknown;
    }
    let ends = pre_tokenizer.map_or(WordEnds::Unknown, word_ends_of);
    match normalizer.map(Part::kind) {
        None | Some("NFC") => ends,
        // Of spellings in other case it is only known that none holds white space.
        Some("Lowercase") => match (ends, added.iter().any(has_space)) {
            (WordEnds::Unknown, _) | (_, true) => WordEnds::Unknown,
            (WordEnds::Classes, _) => WordEnds::WhiteSpace,
            (ends, _) => ends,
        },
        Some(_) => WordEnds::Unknown,
    }
}

fn has_space(token: &AddedToken) -> bool {
    token.content.contains(char::is_whitespace)
}

fn word_ends_of(part: &Part) -> WordEnds {
    match part.kind() {
        "ByteLevel" => match (part.use_regex, part.add_prefix_space) {
            (Some(false), _) => WordEnds::Unknown,
            // A piece that begins with a space gets no other one.
            (_, Some(false)) => WordEnds::Classes,
            _ => WordEnds::Space,
        },
        "WhitespaceSplit" => WordEnds::WhiteSpace,
        "Split" => {
            let regex = part.pattern.as_ref();
            let regex = regex.and_then(|pattern| pattern.regex.as_deref());
            let is_known = regex.is_some_and(|regex| LIKE_GPT_4.contains(&regex));
            let is_plain =
                part.behavior.as_deref() == Some("Isolated") && part.invert != Some(true);
            match is_known && is_plain {
                true => WordEnds::Space,
                false => WordEnds::Unknown,
            }
        }
        // Parts split what the parts before them have left, and of these the first is enough.
        "Sequence" => {
            let list = part.pretokenizers.as_ref().map_or(&[][..], |list| &list.0);
            list.first().map_or(WordEnds::Unknown, word_ends_of)
        }
        _ => WordEnds::Unknown,
    }
}
