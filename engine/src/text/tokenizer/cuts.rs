//! Where a text may be cut so that its pieces have the tokens of the whole.
//!
//! The `tokenizers` crate takes some 150 bytes of memory for each byte of a text, so it is given pieces. A cut
//! between two characters is right where each step comes to the same on both sides of it:
//!
//! * Added tokens are looked for anywhere. None can reach over the cut if the two characters are side by side
//!   in none of them; the others are then found in each piece as in the whole, from left to right.
//! * NFC changes nothing across the cut if what follows it is a character that never combines with what is in
//!   front of it, as all are that are cut before here; and a character in front of the cut that has a class
//!   here stays what it is. Changes of case look at one character at a time.
//! * The pattern that finds words must end a word there, whatever is around, and must come to the same without
//!   what follows. GPT-2's pattern,
//!   `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`, has no match that holds a
//!   character that is no space in front of a space, nor two of different classes (letters, digits, others),
//!   but for `'s` and its like. The patterns of GPT-4's kind have none that holds a space (U+0020) behind
//!   anything but white space. None of them looks behind itself, and only matches that end in white space look
//!   ahead.
//!
//! The model then works on words alone.

#![forbid(unsafe_code)]

/// Bytes of a piece, if there is a place to cut.
pub(super) const PIECE_BYTES: usize = 2048;

/// Between which characters words always end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WordEnds {
    /// Nowhere that is known.
    Unknown,
    /// In front of a space, U+0020, that follows a character which is no white space.
    Space,
    /// In front of any white space that follows another character.
    WhiteSpace,
    /// Also between letters, digits and other characters: GPT-2's pattern.
    Classes,
}

/// The places at which a text may be cut.
#[derive(Debug)]
pub(super) struct Cuts {
    word_ends: WordEnds,
    /// Neighbours in added tokens, the second first, sorted.
    neighbours: Vec<(char, char)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Space,
    Letter,
    Digit,
    Other,
}

/// The class of a character for which it is certain, now and in later versions of Unicode, and which NFC
/// neither changes nor combines with what is in front of it.
fn class(c: char) -> Option<Class> {
    match c {
        '\t'..='\r' | ' ' => Some(Class::Space),
        'A'..='Z' | 'a'..='z' => Some(Class::Letter),
        '0'..='9' => Some(Class::Digit),
        '\0'..='\x7f' => Some(Class::Other),
        // Hiragana, katakana, the first block of ideographs, syllables of hangul.
        '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}' => Some(Class::Letter),
        '\u{4e00}'..='\u{9fa5}' | '\u{ac00}'..='\u{d7a3}' => Some(Class::Letter),
        // Punctuation between them: full stop and comma, exclamation and question mark, colons, quotes.
        '\u{3001}' | '\u{3002}' | '\u{ff01}' | '\u{ff0c}' | '\u{ff1a}' | '\u{ff1b}'
        | '\u{ff1f}' | '\u{300c}' | '\u{300d}' => Some(Class::Other),
        _ => None,
    }
}

impl Cuts {
    /// `added` are the spellings of all added tokens.
    pub(super) fn new<'a>(word_ends: WordEnds, added: impl Iterator<Item = &'a str>) -> Self {
        let mut neighbours = Vec::new();
        for spelling in added {
            neighbours.extend(spelling.chars().skip(1).zip(spelling.chars()));
        }
        neighbours.sort_unstable();
        neighbours.dedup();
        Cuts {
            word_ends,
            neighbours,
        }
    }

    /// Whether a text may be cut between these characters.
    fn between(&self, before: char, behind: char) -> bool {
        let ends_word = match (self.word_ends, class(before), class(behind)) {
            (WordEnds::Unknown, ..) => false,
            (WordEnds::Space, ..) if behind != ' ' => false,
            (_, _, Some(Class::Space)) => !before.is_whitespace(),
            (WordEnds::Classes, Some(a), Some(b)) => {
                a != Class::Space && a != b && !(before == '\'' && b == Class::Letter)
            }
            _ => false,
        };
        if !ends_word {
            return false;
        }
        let start = self.neighbours.partition_point(|&(b, _)| b < behind);
        let same_behind = self.neighbours[start..]
            .iter()
            .take_while(|&&(b, _)| b == behind);
        let mut befores = same_behind.map(|&(_, a)| a).peekable();
        // What NFC makes of a character without a class, such as an accent, may be what a token has there.
        befores.peek().is_none() || class(before).is_some() && !befores.any(|a| a == before)
    }

    /// Whether bytes of a text may be cut at `at`. Bytes that are not UTF-8 count as U+FFFD.
    pub(super) fn at(&self, text: &[u8], at: usize) -> bool {
        let (before, behind) = text.split_at(at);
        let Some(behind) = first_char(behind) else {
            return false;
        };
        let before = last_char(before).unwrap_or(char::REPLACEMENT_CHARACTER);
        self.between(before, behind)
    }

    /// The end of the first piece of a text that goes on; `None` where there is no place to cut yet.
    /// There is none in the first `searched` bytes, and then none in as many as are noted there.
    pub(super) fn first_piece(&self, text: &[u8], searched: &mut usize) -> Option<usize> {
        if self.word_ends == WordEnds::Unknown || text.len() <= PIECE_BYTES {
            return None;
        }
        let from = (*searched).max(1);
        let near = (from..PIECE_BYTES.max(from)).rev();
        // The last bytes may be the beginning of a character.
        let end = text.len().saturating_sub(3);
        let far = PIECE_BYTES.max(from)..end;
        let found = near.chain(far).find(|&at| self.at(text, at));
        *searched = match found {
            Some(_) => 0,
            None => end,
        };
        found
    }
}

/// The character that the bytes begin with, if it is whole.
fn first_char(bytes: &[u8]) -> Option<char> {
    let length = match bytes.first()? {
        0..=0x7f => 1,
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return None,
    };
    std::str::from_utf8(bytes.get(..length)?)
        .ok()?
        .chars()
        .next()
}

/// The character that the bytes end with, if it is whole.
fn last_char(bytes: &[u8]) -> Option<char> {
    let tail = &bytes[bytes.len().saturating_sub(4)..];
    let start = tail.iter().rposition(|byte| byte & 0xc0 != 0x80)?;
    let c = first_char(&tail[start..])?;
    (start + c.len_utf8() == tail.len()).then_some(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may_cut(word_ends: WordEnds, added: &[&str], text: &str) -> bool {
        let (before, behind) = text.split_once('^').expect("a place");
        let cuts = Cuts::new(word_ends, added.iter().copied());
        cuts.at(format!("{before}{behind}").as_bytes(), before.len())
    }

    #[test]
    fn texts_are_cut_where_words_end() {
        use WordEnds::{Classes, Space, Unknown, WhiteSpace};
        for (text, expected) in [
            ("a^ b", [false, true, true, true]),
            ("a^\tb", [false, false, true, true]),
            ("é^ b", [false, true, true, true]),
            ("e\u{301}^ b", [false, true, true, true]),
            ("a1^b", [false, false, false, true]),
            ("a^1", [false, false, false, true]),
            ("a^'s", [false, false, false, true]),
            ("a'^s", [false; 4]),
            ("!^s", [false, false, false, true]),
            ("你^，", [false, false, false, true]),
            ("，^你", [false, false, false, true]),
            ("a ^b", [false; 4]),
            ("a ^ b", [false; 4]),
            ("\u{3000}^ b", [false; 4]),
            ("a^b", [false; 4]),
            ("a^é", [false; 4]),
            ("1^\u{301}", [false; 4]),
        ] {
            let found = [Unknown, Space, WhiteSpace, Classes].map(|ends| may_cut(ends, &[], text));
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn no_added_token_is_cut() {
        let added = ["<|end|>", "é x"];
        for (text, expected) in [
            ("<^|", false),
            ("|^e", false),
            ("d^|", false),
            ("a^|", true),
            ("a^ x", true),
            ("é^ x", false),
            ("e\u{301}^ x", false),
            ("e\u{301}^\tx", true),
        ] {
            assert_eq!(may_cut(WordEnds::Classes, &added, text), expected, "{text}");
        }
    }

    #[test]
    fn bytes_that_are_no_characters_are_not_cut() {
        let cuts = Cuts::new(WordEnds::Classes, std::iter::empty());
        assert!(cuts.at(b"\xff b", 1));
        assert!(cuts.at(b"\xe4\xbd b", 2));
        assert!(!cuts.at(b"a\xff", 1));
        assert!(!cuts.at("a，".as_bytes(), 2));
        assert!(!cuts.at(b"a\xef\xbc", 1));
    }

    /// Each byte is looked at once, however the text comes.
    #[test]
    fn pieces_are_short_where_they_can_be() {
        let cuts = Cuts::new(WordEnds::Classes, std::iter::empty());
        let text = "ab ".repeat(PIECE_BYTES);
        let end = cuts.first_piece(text.as_bytes(), &mut 0).expect("a place");
        assert!(end > PIECE_BYTES - 4 && end <= PIECE_BYTES, "{end}");
        let mut searched = 0;
        let long = "a".repeat(3 * PIECE_BYTES);
        assert_eq!(cuts.first_piece(long.as_bytes(), &mut searched), None);
        assert_eq!(searched, long.len() - 3);
        let text = long.clone() + " and so on";
        let end = cuts.first_piece(text.as_bytes(), &mut searched);
        assert_eq!((end, searched), (Some(long.len()), 0));
        assert_eq!(cuts.first_piece(b"a short text", &mut 0), None);
    }
}
