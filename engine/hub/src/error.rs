//! The one public error of this crate.
//!
//! [`Error::kind`] is for programs, the `Display` text for people, `source()` for causes, which the text
//! names too. The text is lower case but for names, has no full stop, and says what, where, expected and
//! found.

#![forbid(unsafe_code)]

use std::fmt;

use crate::address::without_secrets;
#[cfg(feature = "network")]
use crate::secrets::Secrets;

/// What sort of failure an [`Error`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A name or setting that the caller gave makes no sense.
    Argument,
    /// The operating system refused: missing file, permission, full disk.
    Io,
    /// Nobody answers, the connection was lost, or the network is forbidden; and the cache does not have
    /// what was asked for.
    Network,
    /// There is no such model, revision or file.
    NotFound,
    /// A token is missing or not accepted, or does not allow what was asked for.
    Access,
    /// The hub refuses for another reason, or its answer makes no sense.
    Hub,
    /// What the hub has is damaged, or no model of the kind that is run here.
    Content,
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed.
///
/// Its text says what, where, expected and found:
/// `RWKV/rwkv-4-169m-pile: no branch, tag or commit v2; it has main`.
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

    /// Whatever addresses the message has, their passwords and tokens are not shown.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind,
            message: without_secrets(&message.into()).into_owned(),
            source: None,
        }))
    }
}

#[cfg(feature = "network")]
impl Error {
    /// An error with a cause, whose text follows the message.
    pub(crate) fn caused(
        kind: ErrorKind,
        message: impl fmt::Display,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        let cause = source.to_string();
        let mut error = Self::new(kind, format!("{message}: {cause}"));
        // A cause that names a secret would show it when it is asked for itself.
        if without_secrets(&cause) == cause {
            error.0.source = Some(Box::new(source));
        }
        error
    }

    /// Without secrets that whoever was asked has repeated.
    pub(crate) fn without(mut self, secrets: &Secrets) -> Self {
        self.0.message = secrets.hide(&self.0.message);
        let mut cause = self
            .0
            .source
            .as_deref()
            .map(|it| it as &dyn std::error::Error);
        while let Some(error) = cause {
            let text = error.to_string();
            if secrets.hide(&text) != text {
                self.0.source = None;
                break;
            }
            cause = error.source();
        }
        self
    }

    /// Puts `place` before the text: `place: text`.
    pub(crate) fn at(mut self, place: impl fmt::Display) -> Self {
        let message = format!("{place}: {}", self.0.message);
        self.0.message = without_secrets(&message).into_owned();
        self
    }
}

/// Says what was being done when something else failed.
#[cfg(feature = "network")]
pub(crate) trait Context<T> {
    /// An error of this kind and text, with the cause where there is one.
    fn context(self, kind: ErrorKind, message: impl FnOnce() -> String) -> Result<T>;
}

#[cfg(feature = "network")]
impl<T, E: std::error::Error + Send + Sync + 'static> Context<T> for std::result::Result<T, E> {
    fn context(self, kind: ErrorKind, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::caused(kind, message(), error))
    }
}

#[cfg(feature = "network")]
impl<T> Context<T> for Option<T> {
    fn context(self, kind: ErrorKind, message: impl FnOnce() -> String) -> Result<T> {
        self.ok_or_else(|| Error::new(kind, message()))
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
