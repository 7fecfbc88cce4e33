//! The one public error of this crate.
//!
//! [`Error::kind`] is for programs, the `Display` text for people, `source()` for causes. The text is
//! lower case, has no full stop, and says what, where, expected and found:
//! `model.safetensors: tensor blocks.3.att.key.weight: shape [768, 512], expected [768, 768]`.

#![forbid(unsafe_code)]

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
        Error(Box::new(Inner {
            kind,
            message: message.into(),
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
        self.0.message = format!("{place}: {}", self.0.message);
        self
    }
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
