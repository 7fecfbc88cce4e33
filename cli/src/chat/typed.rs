//! Bytes that were typed or pasted, cut into pieces for the line editor.

/// What comes in front of and behind pasted text, from terminals that tell it from typed text.
const PASTE_BEGINS: &[u8] = b"\x1b[200~";
const PASTE_ENDS: &[u8] = b"\x1b[201~";
/// Nobody types so much text between two looks: it is given as pasted, which the editor draws once and not after
/// each character, and in which a tab is a tab.
const PASTED_FROM_BYTES: usize = 16;

const CTRL_C: u8 = 0x03;
const CTRL_Z: u8 = 0x1a;

/// What was typed and is still to be given.
#[derive(Default)]
pub(crate) struct Typed {
    bytes: Vec<u8>,
    /// Between the two marks of a paste, where line ends are text.
    in_paste: bool,
    /// Bytes of the next mark that were seen last.
    seen_of_mark: usize,
    /// A line feed right behind it would be the same line end.
    after_return: bool,
}

/// What the editor gets at once.
#[derive(Debug, PartialEq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    /// The editor comes back with a line, or wants another one.
    pub(crate) ends_line: bool,
    /// It is the key that suspends the program.
    pub(crate) suspends: bool,
}

impl Typed {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// What was not taken comes first the next time.
    pub(crate) fn put_back(&mut self, bytes: &[u8]) {
        self.bytes.splice(..0, bytes.iter().copied());
    }

    /// At most one line. What is not UTF-8 is U+FFFD in it; a character that is not whole yet waits.
    pub(crate) fn next_piece(&mut self) -> Option<Piece> {
        let was_after_return = std::mem::take(&mut self.after_return);
        if was_after_return && self.bytes.first() == Some(&b'\n') {
            self.bytes.remove(0);
        }
        let began_in_paste = self.in_paste;
        let (n, ends_line, suspends) = self.scan();
        if n == 0 {
            self.after_return = was_after_return && self.bytes.is_empty();
            return None;
        }
        let bytes: Vec<u8> = self.bytes.drain(..n).collect();
        self.after_return = ends_line && bytes.ends_with(b"\r");
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let has_keys = began_in_paste || text.contains('\x1b');
        Some(Piece {
            text: if has_keys { text } else { pasted(&text) },
            ends_line,
            suspends,
        })
    }

    /// The size of the next piece, and what it is.
    fn scan(&mut self) -> (usize, bool, bool) {
        for (at, &byte) in self.bytes.iter().enumerate() {
            match byte {
                CTRL_Z if !self.in_paste && at > 0 => return (at, false, false),
                CTRL_Z if !self.in_paste => return (1, false, true),
                b'\r' | b'\n' | CTRL_C if !self.in_paste => return (at + 1, true, false),
                _ => {}
            }
            let mark = match self.in_paste {
                true => PASTE_ENDS,
                false => PASTE_BEGINS,
            };
            self.seen_of_mark = match mark.get(self.seen_of_mark) {
                Some(expected) if *expected == byte => self.seen_of_mark + 1,
                _ => usize::from(byte == mark[0]),
            };
            if self.seen_of_mark == mark.len() {
                self.in_paste = !self.in_paste;
                self.seen_of_mark = 0;
            }
        }
        (self.bytes.len() - unfinished(&self.bytes), false, false)
    }
}

/// Bytes at the end that begin a character and are not all of it.
fn unfinished(bytes: &[u8]) -> usize {
    let last = bytes.utf8_chunks().last();
    let invalid = last.map_or(&[][..], |chunk| chunk.invalid());
    match std::str::from_utf8(invalid) {
        Err(error) if error.error_len().is_none() => invalid.len(),
        _ => 0,
    }
}

/// Typed text with the marks of a paste around what is too much to be typed.
fn pasted(text: &str) -> String {
    let is_key = |c: char| c.is_control() && c != '\t';
    let mut marked = String::with_capacity(text.len() + 16);
    for part in text.split_inclusive(is_key) {
        let (run, key) = match part.char_indices().next_back() {
            Some((at, c)) if is_key(c) => part.split_at(at),
            _ => (part, ""),
        };
        match run.len() < PASTED_FROM_BYTES {
            true => marked.push_str(run),
            false => marked.extend(["\x1b[200~", run, "\x1b[201~"]),
        }
        marked.push_str(key);
    }
    marked
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All pieces of what is typed in these portions.
    fn pieces(portions: &[&[u8]]) -> Vec<String> {
        let mut typed = Typed::default();
        let mut pieces = Vec::new();
        for portion in portions {
            typed.push(portion);
            pieces.extend(std::iter::from_fn(|| typed.next_piece()).map(|piece| {
                let end = if piece.ends_line { "|" } else { "" };
                piece.text + end
            }));
        }
        pieces
    }

    #[test]
    fn a_piece_is_a_line_at_most() {
        assert_eq!(pieces(&[b"a\rb\nc\r\nd"]), ["a\r|", "b\n|", "c\r|", "d"]);
        assert_eq!(pieces(&[b"a\r", b"\nb\r"]), ["a\r|", "b\r|"]);
        assert_eq!(pieces(&[b"a\n\nb\r\r"]), ["a\n|", "\n|", "b\r|", "\r|"]);
        assert_eq!(pieces(&[b"ab\x03c\x04"]), ["ab\x03|", "c\x04"]);
        assert_eq!(pieces(&[b"ab\x1ac"]), ["ab", "\x1a", "c"]);
        assert_eq!(pieces(&[b"\x1b[A\x1b", b"b\r"]), ["\x1b[A\x1b", "b\r|"]);
    }

    #[test]
    fn line_ends_in_pasted_text_are_text() {
        let paste = b"\x1b[200~one\r\ntwo\x03\x1a\x1b[201~";
        let text = std::str::from_utf8(paste).expect("ASCII");
        assert_eq!(pieces(&[paste, b"\r"]), [text, "\r|"]);
        // Wherever it is cut.
        for at in 1..paste.len() {
            let (a, b) = paste.split_at(at);
            assert_eq!(pieces(&[a, b, b"x\r"]).concat(), format!("{text}x\r|"));
        }
    }

    #[test]
    fn what_is_not_utf8_is_replaced() {
        assert_eq!(pieces(&[b"caf\xe9\r"]), ["caf\u{fffd}\r|"]);
        assert_eq!(pieces(&[b"caf\xe9", b"\r"]), ["caf", "\u{fffd}\r|"]);
        assert_eq!(
            pieces(&[b"\xe9", b"\x9f\xb3", b"\xff"]),
            ["\u{97f3}", "\u{fffd}"]
        );
        assert_eq!(pieces(&[b"\xff\xfe\0\r"]), ["\u{fffd}\u{fffd}\0\r|"]);
    }

    #[test]
    fn much_text_at_once_is_pasted() {
        let long = "0123456789abcdef\tx";
        let typed = format!("ab\x01{long}\r");
        let marked = format!("ab\x01\x1b[200~{long}\x1b[201~\r|");
        assert_eq!(pieces(&[typed.as_bytes()]), [marked]);
    }

    #[test]
    fn what_is_put_back_comes_first() {
        let mut typed = Typed::default();
        typed.push(b"b\r");
        typed.put_back(b"a");
        assert_eq!(
            typed.next_piece().map(|piece| piece.text).as_deref(),
            Some("ab\r")
        );
        assert_eq!(typed.next_piece(), None);
    }
}
