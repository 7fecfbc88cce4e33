//! How much a command says on stderr beside its errors: `--quiet` and `--verbose`.
//!
//! Set once when a command starts. [`note!`] prints what a user should know, such as what
//! was written where; [`detail!`] what one who looks for a fault or for time wants to
//! know. Progress bars ask [`is_quiet`]. Whoever reads stderr may go away at any time: that is no error.

use rwkv_edge::printable;
use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU8, Ordering};

/// Options of every command.
#[derive(clap::Args, Clone)]
pub(crate) struct Verbosity {
    /// No notes and no progress bars, only errors
    #[arg(long, global = true, conflicts_with = "verbose")]
    quiet: bool,

    /// More on stderr: what was loaded and how, and where the time went
    #[arg(short, long, global = true)]
    verbose: bool,
}

const QUIET: u8 = 0;
const NORMAL: u8 = 1;
const VERBOSE: u8 = 2;

static LEVEL: AtomicU8 = AtomicU8::new(NORMAL);

impl Verbosity {
    /// From now on.
    pub(crate) fn apply(&self) {
        let level = match (self.quiet, self.verbose) {
            (true, _) => QUIET,
            (_, true) => VERBOSE,
            _ => NORMAL,
        };
        LEVEL.store(level, Ordering::Relaxed);
    }
}

/// From now on, where no command is run.
pub(crate) fn show(shows: bool) {
    let level = match shows {
        true => NORMAL,
        false => QUIET,
    };
    LEVEL.store(level, Ordering::Relaxed);
}

/// Whether notes and progress bars are off.
pub(crate) fn is_quiet() -> bool {
    LEVEL.load(Ordering::Relaxed) == QUIET
}

/// Whether details are wanted.
pub(crate) fn is_verbose() -> bool {
    LEVEL.load(Ordering::Relaxed) == VERBOSE
}

/// Prints a line to stderr; use [`note!`] or [`detail!`].
pub(crate) fn print(line: fmt::Arguments<'_>) {
    // One write, so that lines of several threads or processes do not mix.
    let line = shown(&line.to_string()) + "\n";
    let _ = io::stderr().write_all(line.as_bytes());
}

/// A text of several lines as a terminal can be given it: what it quotes of files, paths and answers of servers is
/// shown and not obeyed.
fn shown(text: &str) -> String {
    let mut all = String::with_capacity(text.len());
    for piece in text.split_inclusive(['\n', '\t']) {
        let line = piece.strip_suffix(['\n', '\t']).unwrap_or(piece);
        all += &printable(line);
        all += &piece[line.len()..];
    }
    all
}

/// A line on stderr that a user asked for, such as an answer to a command in a conversation.
macro_rules! tell {
    ($($text:tt)*) => {
        $crate::verbosity::print(format_args!($($text)*))
    };
}

/// A line on stderr that `--quiet` leaves out.
macro_rules! note {
    ($($text:tt)*) => {
        if !$crate::verbosity::is_quiet() {
            $crate::verbosity::print(format_args!($($text)*));
        }
    };
}

/// A line on stderr that only `--verbose` shows.
macro_rules! detail {
    ($($text:tt)*) => {
        if $crate::verbosity::is_verbose() {
            $crate::verbosity::print(format_args!($($text)*));
        }
    };
}

pub(crate) use {detail, note, tell};

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn lines_stay_and_escapes_do_not() {
        assert_eq!(shown("a\n\tb\n"), "a\n\tb\n");
        assert_eq!(shown("a\u{1b}[2J\r\nb\u{9b}m"), "a\\u{1b}[2J\\r\nb\\u{9b}m");
        assert_eq!(shown(""), "");
    }
}
