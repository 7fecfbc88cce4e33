//! Calls of the system that a signal may interrupt, such as those on network file systems.

#![forbid(unsafe_code)]

use std::io;

/// Calls again as long as signals interrupt the call.
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_interruptions_are_tried_again() {
        let mut kinds = vec![io::ErrorKind::NotFound, io::ErrorKind::Interrupted];
        let mut call = || match kinds.pop() {
            Some(kind) => Err(io::Error::from(kind)),
            None => Ok(()),
        };
        let error = uninterrupted(&mut call).expect_err("comes second");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(uninterrupted(call).is_ok());
    }
}
