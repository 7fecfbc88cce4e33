//! Weights that are read from their file again for every batch, because memory is too short to keep them.
//!
//! Sits between `quant/matrix.rs` and the products: these go through such a matrix in pieces of rows, and its
//! pages are dropped behind each piece. `memory/budget.rs` decides before every batch how many bytes stay, the first
//! ones in the order in which a token needs them. The embedding never does: a token touches one row of it. What is dropped comes back with the same bytes, so no result depends on any of this.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::files::FileBytes;
use crate::quant::matrix::{Layout, Matrix};

/// Bytes of a matrix that are in memory at once. Larger pieces are no faster: each costs two calls of the
/// system, and the pages in it a few thousand times as much.
pub(crate) const PAGED_BYTES: u64 = 4 << 20;

/// The matrices of a network whose pages can be dropped.
#[derive(Debug)]
pub(crate) struct Paging {
    embedding: Option<Paged>,
    /// All others, in the order in which a token needs them.
    matrices: Vec<Paged>,
    /// Where a matrix begins in memory, and its index in `matrices`; sorted.
    by_address: Vec<(usize, usize)>,
    /// The first so many bytes of `matrices` stay.
    kept_bytes: AtomicU64,
}

#[derive(Debug)]
struct Paged {
    bytes: FileBytes,
    row_bytes: usize,
    /// Bytes of all matrices up to this one, its own included.
    end: u64,
}

impl Paged {
    fn of(matrix: &Matrix) -> Option<Self> {
        let bytes = matrix.in_file_bytes()?;
        // Low-rank matrices are used whole by every token, and count as what stays; some of their pages may be dropped
        // with those beside them, and come back with the next token.
        let is_paged = matrix.layout != Layout::LowRank;
        is_paged.then_some(())?;
        bytes.pages_can_be_dropped().then(|| Paged {
            bytes: bytes.clone(),
            row_bytes: bytes.len() / matrix.n_rows.max(1),
            end: 0,
        })
    }

    fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// The first rows, of which all are within so many bytes of all matrices.
    fn rows_within(&self, bytes: u64) -> usize {
        let own = bytes
            .saturating_sub(self.start())
            .min(self.bytes.len() as u64);
        own as usize / self.row_bytes.max(1)
    }

    fn release_from(&self, row: usize) {
        self.bytes.release(row * self.row_bytes..self.bytes.len());
    }

    fn rows(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.row_bytes..rows.end * self.row_bytes
    }

    /// Rows of a piece, a multiple of `step`.
    fn piece_rows(&self, step: usize) -> usize {
        let rows = PAGED_BYTES as usize / self.row_bytes.max(1);
        (rows / step * step).max(step)
    }
}

impl Paging {
    /// Of those matrices of a network that lie in mapped files; `others` in the order in which a token needs
    /// them.
    pub(crate) fn new<'a>(
        embedding: Option<&Matrix>,
        others: impl Iterator<Item = &'a Matrix>,
    ) -> Self {
        let mut end = 0;
        let matrices: Vec<_> = others
            .filter_map(Paged::of)
            .map(|paged| {
                end += paged.bytes.len() as u64;
                Paged { end, ..paged }
            })
            .collect();
        let address = |(index, paged): (usize, &Paged)| (paged.bytes.as_ptr() as usize, index);
        let mut by_address: Vec<_> = matrices.iter().enumerate().map(address).collect();
        by_address.sort_unstable();
        Paging {
            embedding: embedding.and_then(Paged::of),
            kept_bytes: AtomicU64::new(end),
            matrices,
            by_address,
        }
    }

    /// Bytes of the matrices, the embedding included.
    pub(crate) fn size_bytes(&self) -> u64 {
        let embedding = self.embedding.as_ref().map_or(0, |paged| paged.bytes.len());
        self.matrices.last().map_or(0, |paged| paged.end) + embedding as u64
    }

    /// Decides how many bytes stay in memory.
    pub(crate) fn keep(&self, bytes_max: u64) {
        let before = self.kept_bytes.swap(bytes_max, Ordering::Relaxed);
        if bytes_max < before {
            let first = self
                .matrices
                .partition_point(|paged| paged.end <= bytes_max);
            let mut matrices = self.matrices[first..].iter();
            while let Some(paged) = matrices.next().filter(|paged| paged.start() < before) {
                paged.release_from(paged.rows_within(bytes_max));
            }
        }
    }

    /// The matrix, if it is one that does not stay.
    pub(crate) fn find(&self, matrix: &Matrix) -> Option<PagedMatrix<'_>> {
        let address = matrix.in_file_bytes()?.as_ptr() as usize;
        let at = self
            .by_address
            .binary_search_by_key(&address, |entry| entry.0);
        let paged = &self.matrices[self.by_address[at.ok()?].1];
        let kept_bytes = self.kept_bytes.load(Ordering::Relaxed);
        (paged.end > kept_bytes).then_some(PagedMatrix {
            paging: self,
            paged,
            kept_bytes,
        })
    }

    /// A row of the embedding has been read.
    pub(crate) fn embedding_row_was_read(&self, row: usize) {
        if let Some(paged) = &self.embedding {
            paged.bytes.release(paged.rows(&(row..row + 1)));
        }
    }
}

/// A matrix of which not all stays.
#[derive(Clone, Copy)]
pub(crate) struct PagedMatrix<'a> {
    paging: &'a Paging,
    paged: &'a Paged,
    kept_bytes: u64,
}

impl PagedMatrix<'_> {
    /// Calls `work` for the rows below `n_rows` in pieces that begin at multiples of `step`; behind each its
    /// pages are dropped.
    pub(crate) fn for_each_piece(
        self,
        n_rows: usize,
        step: usize,
        mut work: impl FnMut(Range<usize>),
    ) {
        let paged = self.paged;
        // What stays is the first piece.
        let kept = paged.rows_within(self.kept_bytes) / step * step;
        if kept > 0 {
            work(0..kept);
        }
        let piece = paged.piece_rows(step);
        for start in (kept..n_rows).step_by(piece) {
            let rows = start..(start + piece).min(n_rows);
            self.prefetch_behind(rows.end, n_rows);
            work(rows.clone());
            paged.bytes.release(paged.rows(&rows));
        }
    }

    /// The same in one piece, for work that walks the matrix more than once.
    pub(crate) fn whole(self, n_rows: usize, work: impl FnOnce()) {
        self.prefetch_behind(n_rows, n_rows);
        work();
        self.paged
            .release_from(self.paged.rows_within(self.kept_bytes));
    }

    /// What is read after a row that does not stay: more of this matrix, or of the next one; after the last
    /// one, what the next token reads first.
    fn prefetch_behind(self, row: usize, n_rows: usize) {
        let matrices = &self.paging.matrices;
        let (paged, row) = match row < n_rows {
            true => (self.paged, row),
            false => {
                let after = |end: u64| matrices.partition_point(|paged| paged.end <= end);
                let next = matrices.get(after(self.paged.end));
                let Some(next) = next.or(matrices.get(after(self.kept_bytes))) else {
                    return;
                };
                (next, next.rows_within(self.kept_bytes))
            }
        };
        let start = row * paged.row_bytes;
        paged.bytes.prefetch(start..start + PAGED_BYTES as usize);
    }
}
