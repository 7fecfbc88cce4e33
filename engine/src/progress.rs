//! How far long work has come, for callers who show it.

#![forbid(unsafe_code)]

use std::fmt;

/// How far long work has come.
///
/// Callbacks get it again and again while the work goes on, and the last one is [`is_finished`](Self::is_finished) unless
/// the work fails. Where there is nothing to wait for, such as a model file that is used in place, they are not called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// So much of it is done.
    pub done: u64,
    /// All of it: the same in every call.
    pub total: u64,
    /// What is counted.
    pub unit: ProgressUnit,
}

impl Progress {
    /// So much of so much, for who tells of work in crates on top of this one.
    pub fn new(unit: ProgressUnit, done: u64, total: u64) -> Self {
        Progress { done, total, unit }
    }

    /// Whether all of it is done.
    pub fn is_finished(&self) -> bool {
        self.done >= self.total
    }
}

/// What a [`Progress`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProgressUnit {
    /// Numbers of a model.
    Weights,
    /// Bytes of a file.
    Bytes,
    /// Tokens of a text.
    Tokens,
}

impl fmt::Display for ProgressUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ProgressUnit::Weights => "weights",
            ProgressUnit::Bytes => "bytes",
            ProgressUnit::Tokens => "tokens",
        })
    }
}

/// Counts what is done, and tells it.
pub(crate) struct Counter<'a> {
    progress: Progress,
    tell: &'a mut dyn FnMut(Progress),
}

impl<'a> Counter<'a> {
    pub(crate) fn new(unit: ProgressUnit, total: u64, tell: &'a mut dyn FnMut(Progress)) -> Self {
        let progress = Progress::new(unit, 0, total);
        Counter { progress, tell }
    }

    /// So much more is done.
    pub(crate) fn advance(&mut self, by: u64) {
        self.progress.done += by;
        (self.tell)(self.progress);
    }
}
