//! What the scheduler counts.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::scheduler::Ended;

/// Counts of one model.
#[derive(Default)]
pub struct Counters {
    running: AtomicUsize,
}

impl Counters {
    pub(crate) fn set_running(&self, n: usize) {
        self.running.store(n, Ordering::Relaxed);
    }

    /// Sequences whose prompts are read or whose answers are drawn.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    pub(crate) fn step(&self, _n_drawing: usize, _n_prompt: usize, _took: Duration) {}

    pub(crate) fn ended(&self, _ended: &Ended) {}
}
