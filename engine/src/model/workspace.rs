//! Memory of one caller's forward passes.

#![forbid(unsafe_code)]

use crate::devices::stages::Lane;
use crate::error::Result;
use crate::memory::budget::Reservation;
use crate::networks::Buffers;

/// Memory of one caller's forward passes; made by [`Model::workspace`](crate::Model::workspace). It fits that model, and all
/// that [`Model::with_matrices_of`](crate::Model::with_matrices_of) made of it.
pub struct Workspace {
    /// One a pipeline of the model.
    pub(super) lanes: Vec<Lane>,
    pub(super) _reservation: Option<Reservation>,
}

/// What hidden units that are 0 have saved: see [`Workspace::sparsity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sparsity {
    /// Rows that were not read.
    pub skipped: u64,
    /// All rows that there were.
    pub total: u64,
}

impl Workspace {
    /// What it takes in memory, in bytes: about in proportion to the rows that it was made for.
    pub fn size_bytes(&self) -> usize {
        self.buffers().map(Buffers::size_bytes).sum()
    }

    /// Rows of `ffn.value` that sparsity saved, over all batches of few tokens so far: with more tokens at
    /// once all rows are used.
    pub fn sparsity(&self) -> Sparsity {
        let counts = self.buffers().map(Buffers::sparsity);
        let (skipped, total) = counts.fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
        Sparsity { skipped, total }
    }

    /// Those of the CPU's part.
    fn buffers(&self) -> impl Iterator<Item = &Buffers> {
        self.lanes.iter().filter_map(|lane| lane.buffers.as_ref())
    }
}

impl std::fmt::Debug for Workspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rows_max = self.lanes.first().map_or(0, |lane| lane.rows_max);
        f.debug_struct("Workspace")
            .field("rows_max", &rows_max)
            .finish_non_exhaustive()
    }
}

/// What the caller takes for granted.
///
/// # Panics
/// When there is no memory for it.
pub(crate) fn enough<T>(made: Result<T>) -> T {
    made.unwrap_or_else(|error| panic!("{error}"))
}
