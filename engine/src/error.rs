//! The one public error of this crate.
//!
//! [`Error::kind`] is for programs, the `Display` text for people, `source()` for causes. The text is
//! lower case, has no full stop, and says what, where, expected and found:
//! `model.safetensors: tensor blocks.3.att.key.weight: shape [768, 512], expected [768, 768]`.
//! What it quotes of a file is escaped, so that a terminal shows it and does not obey it.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

/// What sort of failure an [`Error`] is. The kinds match the status codes of the C interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A value given by the caller is out of range, such as a token id beyond the vocabulary.
    Argument,
    /// The operating system refused: missing file, permission, full disk, a mapped file that shrank.
    Io,
    /// Damaged, truncated, or no checkpoint at all; also weights that are NaN or infinite, once they show in
    /// results.
    Format,
    /// Well formed, but an architecture, dtype or quantisation that is not supported.
    Unsupported,
    /// Not enough memory or address space.
    Memory,
    /// A saved state of another model, cut, padded or damaged.
    State,
    /// The model has no tokenizer, or the tokenizer does not fit the model.
    Tokenizer,
    /// A device plugin is missing, or a device failed. States that a failed device was working on are
    /// undefined.
    Backend,
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed.
///
/// Its text says what, where, expected and found:
/// `model.safetensors: tensor blocks.3.att.key.weight: shape [768, 512], expected [768, 768]`.
/// It is one line without control characters: what is quoted of files, names and paths is escaped as
/// [`printable`] does.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// A failure of this kind and text, without a cause: crates on top of this one report theirs by it too.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        shorten(&mut message);
        let message = match printable(&message) {
            Cow::Borrowed(_) => message,
            Cow::Owned(escaped) => escaped,
        };
        Error(Box::new(Inner {
            kind,
            message,
            source: None,
        }))
    }

    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Argument, message)
    }

    pub(crate) fn format(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Format, message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    pub(crate) fn backend(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Backend, message)
    }

    pub(crate) fn memory(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Memory, message)
    }

    pub(crate) fn state(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::State, message)
    }

    /// An operating-system error met while doing `action` (such as "open") with `path`.
    pub(crate) fn io(action: &str, path: &Path, source: std::io::Error) -> Self {
        Self::new(
            ErrorKind::Io,
            format!("{}: cannot {action}: {source}", path.display()),
        )
        .with_source(source)
    }

    pub(crate) fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Puts `place` (a file or tensor) before the text: `place: text`.
    pub(crate) fn at(mut self, place: impl fmt::Display) -> Self {
        let place = place.to_string();
        self.0.message = format!("{}: {}", printable(&place), self.0.message);
        self
    }
}

/// What is quoted may be as long as a file; nobody reads more than this.
const MESSAGE_BYTES_MAX: usize = 4096;

fn shorten(message: &mut String) {
    if message.len() > MESSAGE_BYTES_MAX {
        let mut end = MESSAGE_BYTES_MAX;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        let left_out = message.len() - end;
        message.truncate(end);
        *message += &format!("... ({left_out} bytes more)");
    }
}

/// Text from outside, such as a name in a file, as one line that a terminal can be given: control characters and
/// those that turn the direction of writing become escapes, such as `\u{1b}` and `\n`.
///
/// ```
/// assert_eq!(rwkv_edge::printable("emb\u{1b}[31m.weight"), "emb\\u{1b}[31m.weight");
/// assert_eq!(rwkv_edge::printable("wörter, 単語"), "wörter, 単語");
/// ```
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unprintable) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        match is_unprintable(char) {
            true => escaped.extend(char.escape_default()),
            false => escaped.push(char),
        }
    }
    Cow::Owned(escaped)
}

/// C0, DEL, C1, breaks of lines and paragraphs, and marks, embeddings, overrides and isolates of direction.
fn is_unprintable(char: char) -> bool {
    let turns = matches!(
        char,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    char.is_control() || turns
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.0.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_of_a_file_is_in_an_error() {
        for bad in [
            "\u{1b}]0;x\u{7}",
            "\r",
            "\n",
            "\u{7f}",
            "\u{9b}31m",
            "\u{202e}",
            "\u{2028}",
        ] {
            let file = Path::new("a").join(bad);
            let error = Error::io("open", &file, std::io::ErrorKind::NotFound.into())
                .at(format_args!("tensor {bad}"));
            let other = Error::format(format!("x{bad}")).at(bad);
            for text in [error.to_string(), other.to_string(), format!("{error:?}")] {
                assert!(!text.contains(is_unprintable), "{text:?}");
                let shown = bad
                    .chars()
                    .next()
                    .map(|char| char.escape_default().to_string());
                assert!(text.contains(&shown.unwrap_or_default()), "{text:?}");
            }
        }
        let long = Error::format("ü".repeat(100_000)).to_string();
        assert!(
            long.len() < 5000 && long.ends_with("ü... (195904 bytes more)"),
            "{}",
            long.len()
        );
        assert_eq!(printable("Grüße, 世界 \\n"), "Grüße, 世界 \\n");
    }
}
