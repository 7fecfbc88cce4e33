//! Whether all bytes of a mapped file could be read so far.

#![forbid(unsafe_code)]

use std::error::Error as _;
use std::fs::File;
use std::io;
use std::sync::atomic::{fence, AtomicBool, Ordering};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};

/// What system calls answer that were given memory whose bytes cannot be read; the number of every Unix.
const EFAULT: i32 = 14;

/// Knows whether bytes of a mapped file were lost: the file shrank, or its disk failed, and zeros took their
/// place. Cheap to clone; keeps the file open, but no mapping alive.
#[derive(Clone)]
pub(crate) struct Watch(Arc<Watched>);

struct Watched {
    name: String,
    /// None of what is in memory, which is never lost.
    file: Option<Arc<File>>,
    /// When it was opened.
    len: u64,
    /// Set by the handler of SIGBUS, and then never cleared: what was there does not come back.
    is_lost: AtomicBool,
}

impl Watch {
    pub(super) fn new(name: &str, file: Option<Arc<File>>, len: u64) -> Self {
        Watch(Arc::new(Watched {
            name: name.to_owned(),
            file,
            len,
            is_lost: AtomicBool::new(false),
        }))
    }

    /// All of them, each once.
    pub(crate) fn each_once<'a>(all: impl Iterator<Item = &'a Watch>) -> Vec<Watch> {
        let mut watches: Vec<Watch> = Vec::new();
        for watch in all {
            if !watches.iter().any(|other| Arc::ptr_eq(&other.0, &watch.0)) {
                watches.push(watch.clone());
            }
        }
        watches
    }

    /// For the handler.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(super) fn flag(&self) -> &AtomicBool {
        &self.0.is_lost
    }

    /// Refuses what was read if some of it was lost. Costs next to nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Io`]
    pub(crate) fn check(&self) -> Result<()> {
        // The flag is set before the bytes change: whoever has read changed ones must not look at it earlier.
        fence(Ordering::Acquire);
        match self.0.is_lost.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(self.lost()),
        }
    }

    /// What came of work that read the file: an error if bytes were lost, which comes before any other, or if the
    /// file is shorter than it was. The rest of a last page reads as zeros then, without a fault.
    pub(crate) fn judge<T>(&self, result: Result<T>) -> Result<T> {
        let found = self.0.file.as_ref().and_then(|file| file.metadata().ok());
        let is_shorter = found.is_some_and(|found| found.len() < self.0.len);
        // Bytes that the system reads for us are an error of it, without a fault of ours.
        if is_shorter || result.as_ref().is_err_and(is_fault) {
            self.0.is_lost.store(true, Ordering::Relaxed);
        }
        self.check().and(result)
    }

    /// [`judge`](Self::judge) for work that read several files.
    pub(crate) fn judge_all<T>(watches: &[Watch], result: Result<T>) -> Result<T> {
        watches.iter().try_for_each(|watch| watch.judge(Ok(())))?;
        result
    }

    /// The error of a file that no more has bytes which it had when it was opened.
    pub(super) fn lost(&self) -> Error {
        let text = "the file shrank or could not be read while it was in use; replace a file in use by renaming \
                    another one to its name";
        Error::new(ErrorKind::Io, text).at(&self.0.name)
    }
}

fn is_fault(error: &Error) -> bool {
    let source = error.source().and_then(|e| e.downcast_ref::<io::Error>());
    cfg!(unix) && source.and_then(io::Error::raw_os_error) == Some(EFAULT)
}
