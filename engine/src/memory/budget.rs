//! The count of the memory that a model and its sessions take, and the limit that it keeps.
//!
//! Made by `fit.rs`, which fits a model into the caller's limit, and used by all that takes memory
//! later: sessions, workspaces, the tokenizer. Where weights are read from their file again and again, they
//! get what the others leave.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::products::paging::Paging;

/// Bytes that a model and its sessions may keep in memory, and how many they do.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    max: Option<u64>,
    used: AtomicU64,
    rows_max: Option<usize>,
    paged: Option<PagedWeights>,
}

/// Weights that are read again for every batch.
#[derive(Debug)]
struct PagedWeights {
    paging: Paging,
    /// Bytes of them that are in memory while a batch goes through.
    window: u64,
    /// Held by the batch that has the window.
    turn: Mutex<()>,
}

/// The right to read paged weights.
pub(crate) struct Turn<'a> {
    pub(crate) paging: &'a Paging,
    _turn: MutexGuard<'a, ()>,
}

/// Bytes of a model's memory limit that someone holds, until this is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    /// A budget of which so much is used already.
    pub(crate) fn new(max: Option<u64>, used: u64, rows_max: Option<usize>) -> Self {
        Budget {
            max,
            used: AtomicU64::new(used),
            rows_max,
            paged: None,
        }
    }

    /// Reads these weights again for every batch, as far as there is no room for them.
    pub(crate) fn page(&mut self, paging: Paging, window: u64) {
        self.paged = Some(PagedWeights {
            paging,
            window,
            turn: Mutex::new(()),
        });
        self.make_room();
    }

    /// Rows of a batch at most, where there is a limit.
    pub(crate) fn rows_max(&self) -> Option<usize> {
        self.rows_max
    }

    pub(crate) fn has_limit(&self) -> bool {
        self.max.is_some()
    }

    pub(crate) fn paging(&self) -> Option<&Paging> {
        self.paged.as_ref().map(|paged| &paged.paging)
    }

    /// Bytes that nobody has taken, where there is a limit; paged weights use them until someone does.
    pub(crate) fn left(&self) -> Option<u64> {
        let window = self.paged.as_ref().map_or(0, |paged| paged.window);
        let used = self.used.load(Ordering::Relaxed);
        let max = self.max?;
        Some(max.saturating_sub(used.saturating_add(window)))
    }

    /// Bytes of the weights for which there is no room now.
    pub(crate) fn paged_bytes(&self) -> u64 {
        match (self.paging(), self.left()) {
            (Some(paging), Some(left)) => paging.size_bytes().saturating_sub(left),
            _ => 0,
        }
    }

    /// Paged weights keep to what is left.
    fn make_room(&self) {
        if let (Some(paging), Some(left)) = (self.paging(), self.left()) {
            paging.keep(left);
        }
    }

    /// Where weights are paged, waits for those who read them: several at once would take a multiple of the
    /// memory.
    pub(crate) fn turn(&self) -> Option<Turn<'_>> {
        let paged = self.paged.as_ref()?;
        let turn = paged.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.make_room();
        Some(Turn {
            paging: &paged.paging,
            _turn: turn,
        })
    }

    /// Takes memory for what `name` says.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory), with the numbers, when it is not within the limit.
    pub(crate) fn take(&self, bytes: u64, name: &str) -> Result<()> {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let window = self.paged.as_ref().map_or(0, |paged| paged.window);
        let total = before.saturating_add(bytes).saturating_add(window);
        let Some(max) = self.max.filter(|max| total > *max && bytes > 0) else {
            self.make_room();
            return Ok(());
        };
        self.give_back(bytes);
        Err(Error::memory(format!(
            "{name} of {bytes} bytes makes {total} bytes, expected at most {max} (the memory limit)"
        )))
    }

    /// Counts memory that is taken in any case.
    fn take_anyway(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        self.make_room();
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Reservation {
    pub(crate) fn new(budget: &Arc<Budget>, bytes: u64, name: &str) -> Result<Self> {
        budget.take(bytes, name)?;
        let budget = budget.clone();
        Ok(Reservation { budget, bytes })
    }

    /// Takes what is missing to so many bytes in all; what is held already stays.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory), with the numbers, when it is not within the limit.
    pub fn grow_to(&mut self, bytes: u64, name: &str) -> Result<()> {
        let more = bytes.saturating_sub(self.bytes);
        self.budget.take(more, name)?;
        self.bytes += more;
        Ok(())
    }

    /// For memory that cannot be refused; `None` where nobody asks.
    pub(crate) fn anyway(budget: &Arc<Budget>, bytes: usize) -> Option<Self> {
        let bytes = bytes as u64;
        budget.has_limit().then(|| {
            budget.take_anyway(bytes);
            let budget = budget.clone();
            Reservation { budget, bytes }
        })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_kept_and_given_back() {
        let budget = Budget::new(Some(100), 60, None);
        budget.take(40, "a session").expect("fits exactly");
        assert_eq!(budget.left(), Some(0));
        let error = budget.take(1, "a session").expect_err("does not fit");
        assert_eq!(error.kind(), crate::ErrorKind::Memory);
        assert!(error.to_string().contains("101"), "{error}");
        budget.give_back(40);
        assert_eq!(budget.left(), Some(40));
        let unlimited = Budget::new(None, 60, None);
        unlimited.take(u64::MAX / 2, "a session").expect("no limit");
        assert_eq!(unlimited.left(), None);
    }
}
