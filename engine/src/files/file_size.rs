//! The limit of the size of files (`ulimit -f`), which the system enforces with a signal that ends the process.
//!
//! Files that this crate writes are measured before they are written, so that nothing more than an error comes of it in
//! any program. What is written elsewhere, such as to stdout, needs the signal to be ignored: that is for programs to
//! decide.
//!
//! This module holds `unsafe` code: ignoring a signal.

use std::io;

/// So many bytes a file may have, if there is a limit.
pub(super) fn limit() -> Option<u64> {
    #[cfg(unix)]
    return rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
    #[cfg(not(unix))]
    None
}

/// Refuses a file of that length.
pub(super) fn check(len: u64, max: Option<u64>) -> io::Result<()> {
    match max {
        Some(max) if len > max => {
            let text = format!("a file may have at most {max} bytes here (ulimit -f)");
            Err(io::Error::new(io::ErrorKind::FileTooLarge, text))
        }
        _ => Ok(()),
    }
}

/// Makes writing more to a file than `ulimit -f` allows an error like any other in this process: by default the
/// system ends a process that tries. For programs that write files of their own, or to stdout; files that
/// this crate writes end in an error in any case. Nothing to do on systems without such a limit.
pub fn ignore_file_size_signal() {
    #[cfg(unix)]
    // SAFETY: the disposition becomes "ignore", which runs no code of ours.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}
