//! Calls of the system that a signal may interrupt, made again until they are done.
//!
//! The standard library does so for opening, reading, writing and syncing, but not for what only a network file
//! system or one in a process of its own is slow enough for: renaming, removing, listing, locking.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

/// Makes a call again for as long as it says that it was interrupted.
pub(crate) fn retried<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// The names of all that is in a folder. A listing that breaks off is an error: who takes it for the whole would miss
/// files without a word.
pub(crate) fn names_in(folder: &Path) -> io::Result<Vec<OsString>> {
    retried(|| {
        let entries = fs::read_dir(folder)?;
        entries.map(|entry| Ok(entry?.file_name())).collect()
    })
}

/// Removes a file, if it is there.
pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    match retried(|| fs::remove_file(path)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Whether there is anything of this name, be it a link that leads nowhere. Within what is no folder there is nothing.
pub(super) fn is_there(path: &Path) -> io::Result<bool> {
    match retried(|| fs::symlink_metadata(path)) {
        Ok(_) => Ok(true),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_interrupted_is_done_all_the_same() {
        let mut left = 3;
        let result = retried(|| {
            left -= 1;
            match left {
                0 => Ok("done"),
                _ => Err(io::Error::from(io::ErrorKind::Interrupted)),
            }
        });
        assert_eq!(result.expect("in the end"), "done");
        let denied = retried(|| io::Result::<()>::Err(io::ErrorKind::PermissionDenied.into()));
        let kind = denied.expect_err("is said once").kind();
        assert_eq!(kind, io::ErrorKind::PermissionDenied);
    }
}
