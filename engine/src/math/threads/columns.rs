//! Safe ways to share one buffer among the threads of a pool.
//!
//! This module holds `unsafe` code: [`Columns`] hands out disjoint parts of one slice.

use std::marker::PhantomData;
use std::ops::Range;

use super::{Ahead, Pool};

/// A matrix (n_rows, stride) of which threads may write disjoint blocks of columns at the same time.
pub(crate) struct Columns<'a, T> {
    data: *mut T,
    n_rows: usize,
    stride: usize,
    /// The columns that are to be written, all of them if nothing else is said.
    part: Range<usize>,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it is an exclusive borrow of a slice of `T`; blocks handed out by `run_blocks` are disjoint.
unsafe impl<T: Send> Sync for Columns<'_, T> {}

impl<'a, T> Columns<'a, T> {
    /// # Panics
    /// When the length of `data` is not a multiple of `stride`.
    pub(crate) fn new(data: &'a mut [T], stride: usize) -> Self {
        assert!(stride > 0 && data.len() % stride == 0);
        Columns {
            n_rows: data.len() / stride,
            stride,
            part: 0..stride,
            data: data.as_mut_ptr(),
            borrow: PhantomData,
        }
    }

    /// From here on only these columns are cut into blocks.
    ///
    /// # Panics
    /// When there are no such columns.
    pub(crate) fn only(&mut self, columns: Range<usize>) {
        assert!(columns.start <= columns.end && columns.end <= self.stride);
        self.part = columns;
    }

    /// # Safety
    /// No other block that shares a column with this one is in use.
    unsafe fn block(&self, columns: Range<usize>) -> ColumnBlock<'_, T> {
        assert!(columns.start <= columns.end && columns.end <= self.stride);
        ColumnBlock {
            data: self.data,
            n_rows: self.n_rows,
            stride: self.stride,
            columns,
            borrow: PhantomData,
        }
    }
}

/// Some columns of every row of a matrix, to be written by one thread.
pub(crate) struct ColumnBlock<'a, T> {
    data: *mut T,
    n_rows: usize,
    stride: usize,
    columns: Range<usize>,
    borrow: PhantomData<&'a mut [T]>,
}

impl<T> ColumnBlock<'_, T> {
    /// Which columns these are.
    pub(crate) fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    /// This block's part of all three rows of a matrix of three.
    ///
    /// # Panics
    /// When the matrix does not have exactly three rows.
    pub(crate) fn three_rows_mut(&mut self) -> [&mut [T]; 3] {
        assert!(self.n_rows == 3 && self.columns.len() <= self.stride);
        // SAFETY: as in `row_mut`; three different rows do not overlap, since no row's part is longer
        // than the stride.
        std::array::from_fn(|row| unsafe {
            let start = self.data.add(row * self.stride + self.columns.start);
            std::slice::from_raw_parts_mut(start, self.columns.len())
        })
    }

    /// This block's part of a row.
    ///
    /// # Panics
    /// When there is no such row.
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.n_rows);
        // SAFETY: the row and the columns lie inside the slice that `Columns::new` borrowed, no other
        // block has these columns, and `&mut self` keeps this block's rows from overlapping in time.
        unsafe {
            let start = self.data.add(row * self.stride + self.columns.start);
            std::slice::from_raw_parts_mut(start, self.columns.len())
        }
    }
}

impl Pool {
    /// Cuts the columns of all `outputs` into blocks of `width` and runs `work(output index, block,
    /// the thread's own scratch)` once for each. `scratch` has one element a thread; `ahead` is as in
    /// [`run_then_fetch`](Self::run_then_fetch).
    ///
    /// # Panics
    /// When `scratch` is shorter than the number of threads, or `width` is 0.
    pub(crate) fn run_blocks<T: Send, S: Send>(
        &self,
        outputs: &mut [Columns<'_, T>],
        width: usize,
        scratch: &mut [S],
        ahead: &Ahead<'_>,
        work: impl Fn(usize, ColumnBlock<'_, T>, &mut S) + Sync,
    ) {
        assert!(width > 0 && scratch.len() >= self.n_threads());
        let outputs = &*outputs;
        let scratch = Columns::new(scratch, 1);
        let n_blocks = |output: &Columns<'_, T>| output.part.len().div_ceil(width);
        let n_tasks = outputs.iter().map(n_blocks).sum();
        let job = |task: usize, thread: usize| {
            let mut block = task;
            for (index, output) in outputs.iter().enumerate() {
                if block >= n_blocks(output) {
                    block -= n_blocks(output);
                    continue;
                }
                let start = output.part.start + block * width;
                let columns = start..(start + width).min(output.part.end);
                // SAFETY: every task runs once, and different tasks have different columns or outputs.
                let block = unsafe { output.block(columns) };
                // SAFETY: no two threads that run at the same time have the same number, and `scratch`
                // has a row for each.
                let scratch = unsafe { scratch.element(thread) };
                return work(index, block, scratch);
            }
        };
        self.run_then_fetch(n_tasks, &job, ahead);
    }

    /// Cuts the columns of two matrices of equal stride alike and runs `work` on each pair of blocks.
    ///
    /// # Panics
    /// When the strides differ or `width` is 0.
    pub(crate) fn run_paired_blocks<T: Send>(
        &self,
        a: &mut Columns<'_, T>,
        b: &mut Columns<'_, T>,
        width: usize,
        work: impl Fn(ColumnBlock<'_, T>, ColumnBlock<'_, T>) + Sync,
    ) {
        assert!(width > 0 && a.stride == b.stride);
        let (a, b) = (&*a, &*b);
        self.run(a.stride.div_ceil(width), &|task, _| {
            let columns = task * width..((task + 1) * width).min(a.stride);
            // SAFETY: every task runs once and has its own columns; `a` and `b` are two borrows.
            let blocks = unsafe { (a.block(columns.clone()), b.block(columns)) };
            work(blocks.0, blocks.1);
        });
    }

    /// Runs `work(row, row of a, row of b, element of c)` once for every row; `c` has one element a row.
    ///
    /// # Panics
    /// When the numbers of rows differ.
    pub(crate) fn run_rows<A: Send, B: Send, C: Send>(
        &self,
        (a, b): (Columns<'_, A>, Columns<'_, B>),
        c: &mut [C],
        work: impl Fn(usize, &mut [A], &mut [B], &mut C) + Sync,
    ) {
        let n_rows = c.len();
        assert!(a.n_rows == n_rows && b.n_rows == n_rows);
        let c = Columns::new(c, 1);
        self.run(n_rows, &|row, _| {
            // SAFETY: every task runs once and has its own row of each of the three borrows.
            unsafe { work(row, a.row(row), b.row(row), c.element(row)) };
        });
    }

    /// Cuts `data` into chunks of `length` and runs `work(chunk index, chunk)` once for each.
    ///
    /// # Panics
    /// When `length` is 0.
    pub(crate) fn run_chunks<T: Send>(
        &self,
        data: &mut [T],
        length: usize,
        work: impl Fn(usize, &mut [T]) + Sync,
    ) {
        assert!(length > 0);
        let n = data.len();
        let data = Columns::new(data, n.max(1));
        self.run(n.div_ceil(length), &|task, _| {
            let columns = task * length..((task + 1) * length).min(n);
            // SAFETY: every task runs once and has its own part of the only row.
            let mut chunk = unsafe { data.block(columns) };
            work(task, chunk.row_mut(0));
        });
    }
}

impl<T> Columns<'_, T> {
    /// # Safety
    /// No other reference into this row is in use.
    #[allow(clippy::mut_from_ref)]
    unsafe fn row(&self, row: usize) -> &mut [T] {
        assert!(row < self.n_rows);
        // SAFETY: inside the borrowed slice; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.stride), self.stride) }
    }

    /// The only element of a row of stride 1.
    ///
    /// # Safety
    /// No other reference to this element is in use.
    #[allow(clippy::mut_from_ref)]
    unsafe fn element(&self, row: usize) -> &mut T {
        assert!(row < self.n_rows && self.stride == 1);
        // SAFETY: inside the borrowed slice; exclusive by the caller's promise.
        unsafe { &mut *self.data.add(row) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::kernels::fetch::Fetch;

    #[test]
    fn blocks_cover_every_element_once() {
        let pool = Pool::new(2);
        let (mut a, mut b) = (vec![0; 3 * 50], vec![0; 2 * 7]);
        let mut scratch = [0, 0];
        let mut outputs = [Columns::new(&mut a, 50), Columns::new(&mut b, 7)];
        pool.run_blocks(
            &mut outputs,
            16,
            &mut scratch,
            &|_| Fetch::nothing(),
            |index, mut block, used| {
                *used += 1;
                for row in 0..block.n_rows {
                    block.row_mut(row).iter_mut().for_each(|v| *v += index + 1);
                }
            },
        );
        assert!(a.iter().all(|&v| v == 1) && b.iter().all(|&v| v == 2));
        assert_eq!(scratch.iter().sum::<i32>(), 4 + 1);
        let mut chunks = vec![0; 11];
        pool.run_chunks(&mut chunks, 4, |index, chunk| chunk.fill(index));
        assert_eq!(chunks, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]);
    }
}
