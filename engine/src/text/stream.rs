//! Text that appears token by token: whole characters only, and where to stop.
//!
//! [`TextStream`] turns ids into pieces of text that, put together, are exactly what
//! [`Tokenizer::decode`] gives for all the ids at once. [`StopTexts`] ends a text at given strings.
//! Stop texts are compared with text, not ids: the same text may be cut into tokens in several ways.

#![forbid(unsafe_code)]

use crate::error::{Error, Result};
use crate::text::tokenizer::Tokenizer;

/// Turns token ids into text as they come, holding back characters that are not whole yet.
///
/// For byte-level tokenizers (every RWKV one) a token costs the same however long the text is, and
/// the pieces together equal [`Tokenizer::decode`] for every sequence of ids. For other kinds of
/// `tokenizer.json` the text of a token may depend on its neighbours; there a window of recent tokens
/// is decoded again for each, which gives the same text as long as a token changes only what follows.
#[derive(Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    /// Byte-level: at most 3 bytes that may begin a character.
    bytes: Vec<u8>,
    window: Window,
    /// The piece given out last; kept for its memory.
    piece: String,
}

impl<'t> TextStream<'t> {
    /// A stream at the beginning of a text.
    pub fn new(tokenizer: &'t Tokenizer) -> Self {
        TextStream {
            tokenizer,
            bytes: Vec::new(),
            window: Window::default(),
            piece: String::new(),
        }
    }

    /// Takes the next token and returns the text that is certain now; often empty, or more than this
    /// token's own.
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::decode`]; never with a byte-level tokenizer.
    pub fn push(&mut self, token: u32) -> Result<&str> {
        self.piece.clear();
        if self.tokenizer.is_byte_level() {
            self.tokenizer.push_token_bytes(token, &mut self.bytes);
            let used = push_lossy(&self.bytes, &mut self.piece);
            self.bytes.drain(..used);
        } else if !self.tokenizer.is_special(token) {
            self.window.push(self.tokenizer, token, &mut self.piece)?;
        }
        Ok(&self.piece)
    }

    /// Whether nothing is held back: the pieces so far are the text of all tokens so far.
    pub fn is_whole(&self) -> bool {
        self.bytes.is_empty() && self.window.tokens.len() == self.window.n_context
    }

    /// Ends the text: returns what was held back, with U+FFFD for what is no whole character. The
    /// stream is then at the beginning of a new text.
    ///
    /// # Errors
    ///
    /// Those of [`push`](Self::push).
    pub fn finish(&mut self) -> Result<&str> {
        self.piece.clear();
        if !self.bytes.is_empty() {
            // However many bytes of one unfinished character there are, they become one U+FFFD.
            self.piece.push(char::REPLACEMENT_CHARACTER);
            self.bytes.clear();
        }
        let window = std::mem::take(&mut self.window);
        window.finish(self.tokenizer, &mut self.piece)?;
        Ok(&self.piece)
    }
}

/// Appends the text of `bytes`, invalid bytes as U+FFFD in the same places as
/// `String::from_utf8_lossy`, up to a character that is cut at the end. Returns how many bytes were
/// used; fewer than 4 remain.
fn push_lossy(bytes: &[u8], text: &mut String) -> usize {
    let mut start = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        start += chunk.valid().len();
        if chunk.invalid().is_empty() {
            continue;
        }
        let may_go_on = std::str::from_utf8(&bytes[start..])
            .err()
            .is_some_and(|e| e.error_len().is_none());
        if may_go_on {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        start += chunk.invalid().len();
    }
    start
}

/// The last tokens of a text whose tokenizer is not byte-level.
///
/// The text of a new token is what it adds to the text of the tokens before it. Two groups are kept:
/// tokens whose text was given out, as context, and those since. When the latter's text is given
/// out, they become the context: the window stays a few tokens long.
#[derive(Debug, Default)]
struct Window {
    tokens: Vec<u32>,
    /// The first so many tokens are the context.
    n_context: usize,
    /// Length of the context's text.
    context_size: usize,
}

/// Text that ends in U+FFFD waits for more tokens, but not for more than this, so that a text full of
/// invalid bytes still costs the same for each token.
const WINDOW_TOKENS_MAX: usize = 64;

impl Window {
    fn push(&mut self, tokenizer: &Tokenizer, token: u32, piece: &mut String) -> Result<()> {
        self.tokens.push(token);
        let text = tokenizer.decode(&self.tokens)?;
        let new = text.get(self.context_size..).unwrap_or("");
        let n_new = self.tokens.len() - self.n_context;
        let unfinished = new.is_empty() || new.ends_with(char::REPLACEMENT_CHARACTER);
        if unfinished && n_new < WINDOW_TOKENS_MAX {
            return Ok(());
        }
        piece.push_str(new);
        self.tokens.drain(..self.n_context);
        self.n_context = self.tokens.len();
        self.context_size = tokenizer.decode(&self.tokens)?.len();
        Ok(())
    }

    fn finish(self, tokenizer: &Tokenizer, piece: &mut String) -> Result<()> {
        if self.tokens.len() > self.n_context {
            let text = tokenizer.decode(&self.tokens)?;
            piece.push_str(text.get(self.context_size..).unwrap_or(""));
        }
        Ok(())
    }
}

/// Ends a text at the first of some strings, without ever giving out a part of it.
///
/// The stop text that is complete first ends the text; of several that end at the same place, the
/// longest. So the result does not depend on how the text is cut into pieces.
///
/// ```
/// let mut stops = rwkv_edge::StopTexts::new(vec!["\n\n".into()])?;
/// assert_eq!(stops.push("Hello.\n"), "Hello."); // the newline may be half of a stop text
/// assert_eq!(stops.push("World.\n"), "\nWorld.");
/// assert_eq!(stops.push("\nBob: "), "");
/// assert_eq!(stops.hit(), Some("\n\n"));
/// # Ok::<(), rwkv_edge::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct StopTexts {
    stops: Vec<String>,
    /// Text not given out yet, because it may begin a stop text. Before it lie `given` bytes that
    /// were given out by the last call and go with the next.
    held: String,
    given: usize,
    /// Index of the stop text that ended the text.
    hit: Option<usize>,
}

impl StopTexts {
    /// Watches for these texts; none at all is fine.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) when one is empty.
    pub fn new(stops: Vec<String>) -> Result<Self> {
        if let Some(index) = stops.iter().position(String::is_empty) {
            return Err(Error::argument(format!(
                "stop text {} of {}: empty, expected at least one character",
                index + 1,
                stops.len()
            )));
        }
        Ok(StopTexts {
            stops,
            held: String::new(),
            given: 0,
            hit: None,
        })
    }

    /// Takes the next piece of text and returns what can be given out now. After a hit: the text
    /// before the stop text, then always nothing.
    pub fn push(&mut self, piece: &str) -> &str {
        self.held.drain(..self.given);
        self.given = 0;
        if self.hit.is_some() {
            return "";
        }
        self.held.push_str(piece);
        if let Some((index, start)) = self.first_complete() {
            self.hit = Some(index);
            self.held.truncate(start);
            self.given = start;
        } else {
            self.given = self.held.len() - self.unfinished_size();
        }
        &self.held[..self.given]
    }

    /// Ends the text: returns what was held back. After a hit that is nothing. A stop text that had
    /// begun in it is no longer recognised. For a new text, [`reset`](Self::reset).
    pub fn flush(&mut self) -> &str {
        self.held.drain(..self.given);
        self.given = self.held.len();
        &self.held
    }

    /// The stop text that ended the text, if one did.
    pub fn hit(&self) -> Option<&str> {
        self.hit.map(|index| self.stops[index].as_str())
    }

    /// Forgets all text, to begin a new one.
    pub fn reset(&mut self) {
        self.held.clear();
        self.given = 0;
        self.hit = None;
    }

    /// Index and place of the stop text that ends first; of those that end there, the longest.
    fn first_complete(&self) -> Option<(usize, usize)> {
        self.stops
            .iter()
            .enumerate()
            .filter_map(|(index, stop)| Some((index, stop, self.held.find(stop.as_str())?)))
            .min_by_key(|&(_, stop, start)| (start + stop.len(), start))
            .map(|(index, _, start)| (index, start))
    }

    /// Size of the longest end of the held text that begins a stop text.
    fn unfinished_size(&self) -> usize {
        let held = self.held.as_bytes();
        let of_stop = |stop: &String| {
            let stop = stop.as_bytes();
            let longest = held.len().min(stop.len() - 1);
            // Equal bytes begin with a whole character, so this cannot cut one in `held`.
            (1..=longest)
                .rev()
                .find(|&size| held.ends_with(&stop[..size]))
        };
        self.stops.iter().filter_map(of_stop).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    /// Cuts into pieces as the random bits say, and returns all that was given out.
    fn run(stops: &[&str], text: &str, cuts: u64) -> (String, Option<String>) {
        let stops = stops.iter().map(|&s| s.to_owned()).collect();
        let mut stops = StopTexts::new(stops).expect("no stop text is empty");
        let (mut out, mut piece) = (String::new(), String::new());
        for (index, c) in text.chars().enumerate() {
            piece.push(c);
            if cuts >> (index % 64) & 1 == 1 {
                out.push_str(stops.push(&piece));
                piece.clear();
            }
        }
        out.push_str(stops.push(&piece));
        out.push_str(stops.flush());
        (out, stops.hit().map(str::to_owned))
    }

    /// The definition, without streaming: the first end of any stop text, the longest there.
    fn specification(stops: &[&str], text: &str) -> (String, Option<String>) {
        for end in 0..=text.len() {
            let here = stops
                .iter()
                .filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes()));
            if let Some(stop) = here.max_by_key(|stop| stop.len()) {
                return (text[..end - stop.len()].into(), Some((*stop).into()));
            }
        }
        (text.into(), None)
    }

    #[test]
    fn stop_texts_do_not_depend_on_the_pieces() {
        let lists: [&[&str]; 7] = [
            &[],
            &["aa"],
            &["ab", "b"],
            &["aab", "ba"],
            &["abab", "bb"],
            &["é", "aé"],
            &["\n\n", "aéb"],
        ];
        let mut random = 1u64;
        let mut next = || {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
            random >> 20
        };
        let mut hits = 0;
        for round in 0..20_000 {
            let stops = lists[round % lists.len()];
            let length = next() % 12;
            let text: String = (0..length)
                .map(|_| ['a', 'b', 'é', '\n', 'è'][(next() % 5) as usize])
                .collect();
            let expected = specification(stops, &text);
            hits += usize::from(expected.1.is_some());
            let cuts = next();
            assert_eq!(
                run(stops, &text, cuts),
                expected,
                "{stops:?} {text:?} {cuts:b}"
            );
        }
        assert!(hits > 5_000, "only {hits} texts had a stop text");
    }

    #[test]
    fn text_is_held_back_only_while_it_may_stop() -> Result<()> {
        let mut stops = StopTexts::new(vec!["STOP".into(), "\n\n".into()])?;
        assert_eq!(stops.push("a S"), "a ");
        assert_eq!(stops.push("T"), "");
        assert_eq!(stops.push("A"), "STA");
        assert_eq!(stops.push("\n"), "");
        assert_eq!(stops.flush(), "\n");
        assert_eq!(stops.flush(), "");
        assert_eq!(stops.push("b"), "b");
        assert_eq!(stops.hit(), None);
        assert_eq!(stops.push("xSTOPy"), "x");
        assert_eq!(stops.hit(), Some("STOP"));
        assert_eq!(stops.push("more"), "");
        assert_eq!(stops.flush(), "");
        stops.reset();
        assert_eq!(stops.hit(), None);
        assert_eq!(stops.push("y"), "y");
        Ok(())
    }

    #[test]
    fn empty_stop_texts_are_refused() {
        let error = StopTexts::new(vec!["a".into(), String::new()]).expect_err("one is empty");
        assert_eq!(error.kind(), ErrorKind::Argument);
        assert!(error.to_string().contains("stop text 2 of 2"), "{error}");
    }

    #[test]
    fn cut_characters_wait_and_invalid_bytes_do_not() {
        let mut text = String::new();
        assert_eq!(push_lossy(b"a\xe4\xbd", &mut text), 1);
        assert_eq!(push_lossy(b"\xff\xe4\xbd", &mut text), 1);
        assert_eq!(push_lossy(b"\xf0\x9f\x98b", &mut text), 4);
        assert_eq!(push_lossy(b"\xc0\x80", &mut text), 2);
        assert_eq!(text, "a\u{fffd}\u{fffd}b\u{fffd}\u{fffd}");
    }
}
