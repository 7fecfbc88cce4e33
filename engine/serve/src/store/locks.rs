//! Locks of sessions, for servers that share a folder. Whoever dies lets them go: the system sees to that.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// The lock of one session, until this is dropped.
pub(crate) struct SessionLock {
    path: PathBuf,
    _file: File,
}

impl SessionLock {
    /// Takes a lock; `None` when somebody else has it. Where the file system knows no locks, each server has it.
    pub(super) fn take(path: &Path) -> io::Result<Option<Self>> {
        loop {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            let file = options.open(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {}
                Err(TryLockError::Error(e)) => return Err(e),
            }
            // Whoever had it may have removed the file meanwhile, and somebody else may have made another.
            if is_at(&file, path)? {
                return Ok(Some(SessionLock {
                    path: path.to_owned(),
                    _file: file,
                }));
            }
        }
    }
}

impl Drop for SessionLock {
    fn drop(&mut self) {
        // Before the lock goes. Elsewhere files that are open stay, and are used again.
        if cfg!(unix) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let own = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((own.dev(), own.ino()) == (there.dev(), there.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(not(unix))]
fn is_at(_file: &File, _path: &Path) -> io::Result<bool> {
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn one_at_a_time_has_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.lock");
        let lock = SessionLock::take(&path).expect("readable");
        assert!(lock.is_some());
        assert!(SessionLock::take(&path).expect("readable").is_none());
        drop(lock);
        // While files come and go.
        let (n_now, n_taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let Some(_lock) = SessionLock::take(&path).expect("readable") else {
                            continue;
                        };
                        assert_eq!(n_now.fetch_add(1, Ordering::SeqCst), 0);
                        n_taken.fetch_add(1, Ordering::SeqCst);
                        n_now.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(n_taken.into_inner() > 100);
        assert_eq!(path.exists(), cfg!(not(unix)));
    }
}
