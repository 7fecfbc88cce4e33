//! A matrix block of rows by block of rows, from wherever its rows come.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Mutex;

use crate::error::Result;
use crate::math::resized;
use crate::math::threads::Pool;
use crate::quant::exponents::Importance;

/// Numbers in f32 that are converted at once: 16 MiB, which holds `ffn.value` of the 169M model whole.
pub(crate) const BLOCK_NUMBERS: usize = 4 << 20;
/// Rows that one task converts.
pub(crate) const TASK_ROWS: usize = 16;

/// Where the rows of a matrix come from.
pub(crate) trait RowSource: Sync {
    /// Fills `out`, (rows, columns), with finite numbers.
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// The rows are not needed for now.
    fn release(&self, _rows: Range<usize>) {}

    /// How many rows to read at once at best.
    fn task_rows(&self) -> usize {
        TASK_ROWS
    }

    /// For error texts.
    fn place(&self) -> String;
}

/// Some rows of a matrix.
pub(crate) struct Block<'a> {
    pub(crate) rows: Range<usize>,
    /// (rows, n_cols)
    pub(crate) numbers: &'a [f32],
    /// Where they come from, and who works on them.
    pub(crate) source: &'a dyn RowSource,
    pub(crate) pool: &'a Pool,
}

/// Reads a matrix block of rows by block of rows, as often as needed. What fits into one block is
/// read once.
pub(crate) struct Blocks<'a> {
    pub(crate) source: &'a dyn RowSource,
    pub(crate) n_rows: usize,
    pub(crate) n_cols: usize,
    pub(crate) pool: &'a Pool,
    /// What its rounding errors do.
    pub(crate) importance: Importance,
    buffer: Vec<f32>,
    /// Rows that `buffer` holds.
    held: Range<usize>,
}

impl<'a> Blocks<'a> {
    pub(crate) fn new(
        source: &'a dyn RowSource,
        n_rows: usize,
        n_cols: usize,
        pool: &'a Pool,
    ) -> Self {
        let (buffer, held) = (Vec::new(), 0..0);
        Blocks {
            source,
            n_rows,
            n_cols,
            pool,
            importance: Importance::default(),
            buffer,
            held,
        }
    }

    /// The same, with what is known of what its rounding errors do.
    pub(crate) fn with_importance(mut self, importance: Importance) -> Self {
        self.importance = importance;
        self
    }

    /// Calls `work` for every block in order.
    pub(crate) fn for_each(
        &mut self,
        mut work: impl FnMut(&Block<'_>) -> Result<()>,
    ) -> Result<()> {
        let step = (BLOCK_NUMBERS / self.n_cols).max(1);
        for start in (0..self.n_rows).step_by(step) {
            let rows = start..(start + step).min(self.n_rows);
            self.read(rows.clone())?;
            work(&Block {
                rows,
                numbers: &self.buffer,
                source: self.source,
                pool: self.pool,
            })?;
        }
        Ok(())
    }

    fn read(&mut self, rows: Range<usize>) -> Result<()> {
        if self.held == rows {
            return Ok(());
        }
        let (source, n_cols) = (self.source, self.n_cols);
        let task_rows = source.task_rows();
        self.held = 0..0;
        let n = rows.len() * n_cols;
        resized(&mut self.buffer, n, 0.0, "a piece of a matrix")?;
        let error = Mutex::new(None);
        self.pool
            .run_chunks(&mut self.buffer, task_rows * n_cols, |task, out| {
                let start = rows.start + task * task_rows;
                if let Err(e) = source.read_rows(start..start + out.len() / n_cols, out) {
                    if let Ok(mut error) = error.lock() {
                        error.get_or_insert(e);
                    }
                }
            });
        source.release(rows.clone());
        if let Some(error) = error.into_inner().ok().flatten() {
            return Err(error);
        }
        self.held = rows;
        Ok(())
    }
}
