//! What is wrong with a session, as errors, and what these are called: the one error type has no kinds of its own for it.

use rwkv_edge::{Error, ErrorKind};

const BEGIN: &str = "session ";
const BUSY: &str = "another request works on it";
const DAMAGED: &str = "its file is damaged";
const TOO_MANY: &str = "there are as many sessions as may be";
const LOST: &str = "its state is no longer there";

/// Another job works on it.
pub(crate) fn busy(name: &str) -> Error {
    let text = format!("{BEGIN}{name:?}: {BUSY}, expected one at a time");
    Error::new(ErrorKind::State, text)
}

/// Its state is gone.
pub(crate) fn lost(name: &str) -> Error {
    let text = format!(
        "{BEGIN}{name:?}: {LOST}, since others took its room, expected a new session, or more memory for states or a \
         folder for them"
    );
    Error::new(ErrorKind::State, text)
}

/// Its file holds something else.
pub(crate) fn damaged(name: &str) -> Error {
    let text = format!("{BEGIN}{name:?}: {DAMAGED}, expected one to be deleted or replaced");
    Error::new(ErrorKind::State, text)
}

/// It would be one more.
pub(crate) fn too_many(name: &str, n_max: usize) -> Error {
    let text = format!(
        "{BEGIN}{name:?}: {TOO_MANY}, {n_max} of this key and model, expected one of them, or that others are deleted"
    );
    Error::new(ErrorKind::State, text)
}

/// What clients are told of such an error, if it is one.
pub(crate) fn code(error: &Error) -> Option<&'static str> {
    let text = error.to_string();
    if error.kind() != ErrorKind::State || !text.starts_with(BEGIN) {
        return None;
    }
    let codes = [
        (BUSY, "session_busy"),
        (LOST, "session_lost"),
        (DAMAGED, "session_lost"),
        (TOO_MANY, "session_limit"),
    ];
    let code = codes.into_iter().find(|(what, _)| text.contains(what));
    code.map(|(_, code)| code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_sessions_have_codes_and_no_others() {
        assert_eq!(code(&busy("a\n\"b")), Some("session_busy"));
        assert_eq!(code(&lost("a")), Some("session_lost"));
        assert_eq!(code(&damaged("a")), Some("session_lost"));
        assert_eq!(code(&too_many("a", 3)), Some("session_limit"));
        let other = Error::new(ErrorKind::State, "saved state is damaged");
        assert_eq!(code(&other), None);
        assert_eq!(
            code(&Error::new(ErrorKind::Io, busy("a").to_string())),
            None
        );
    }
}
