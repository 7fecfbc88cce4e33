//! Safe ways to share one buffer among the threads of a pool.
//!
//! This module holds `unsafe` code: [`Columns`] hands out disjoint parts of one slice.

use std::marker::PhantomData;
use std::ops::Range;

use super::{Ahead, Pool};
use crate::error::Result;
use crate::math::reserve;

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

    /// Nothing to write.
    pub(crate) fn none() -> Self {
        let mut none = Self::new(&mut [], 1);
        none.part = 0..0;
        none
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
        self.run_two_lists(outputs, &mut [], width, scratch, ahead, work);
    }

    /// As [`run_blocks`](Self::run_blocks) for outputs in two lists, which are numbered one behind the other.
    ///
    /// # Panics
    /// When `scratch` is shorter than the number of threads, or `width` is 0.
    pub(crate) fn run_two_lists<T: Send, S: Send>(
        &self,
        outputs: &mut [Columns<'_, T>],
        more: &mut [Columns<'_, T>],
        width: usize,
        scratch: &mut [S],
        ahead: &Ahead<'_>,
        work: impl Fn(usize, ColumnBlock<'_, T>, &mut S) + Sync,
    ) {
        assert!(width > 0 && scratch.len() >= self.n_threads());
        let (outputs, more) = (&*outputs, &*more);
        let all = || outputs.iter().chain(more);
        let scratch = Columns::new(scratch, 1);
        let n_blocks = |output: &Columns<'_, T>| output.part.len().div_ceil(width);
        let n_tasks = all().map(n_blocks).sum();
        let job = |task: usize, thread: usize| {
            let mut block = task;
            for (index, output) in all().enumerate() {
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

    /// Cuts the columns of `out` into blocks of `width`, and each of `buffers` into as many pieces, and runs `work(block,
    /// the pieces with its number, the thread's own scratch)` once for each. `scratch` and `ahead` are as in
    /// [`run_blocks`](Self::run_blocks).
    ///
    /// # Panics
    /// When `scratch` is shorter than the number of threads, `width` does not divide the columns, or the number of blocks a
    /// buffer.
    pub(crate) fn run_with_pieces<T: Send, S: Send>(
        &self,
        out: &mut Columns<'_, T>,
        width: usize,
        buffers: &mut Borrowed<'_, T>,
        scratch: &mut [S],
        ahead: &Ahead<'_>,
        work: impl Fn(ColumnBlock<'_, T>, Pieces<'_, T>, &mut S) + Sync,
    ) {
        assert!(width > 0 && scratch.len() >= self.n_threads());
        assert!(out.stride % width == 0);
        let n_tasks = out.stride / width;
        assert!(buffers.list.iter().all(|buffer| buffer.1 % n_tasks == 0));
        let (out, buffers) = (&*out, &*buffers);
        let scratch = Columns::new(scratch, 1);
        let job = |task: usize, thread: usize| {
            // SAFETY: every task runs once and has its own columns.
            let block = unsafe { out.block(task * width..(task + 1) * width) };
            // SAFETY: likewise.
            let pieces = unsafe { buffers.pieces(task, n_tasks) };
            // SAFETY: no two threads that run at the same time have the same number, and `scratch` has a row for each.
            let scratch = unsafe { scratch.element(thread) };
            work(block, pieces, scratch);
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

/// Room for a list of exclusive borrows, so that a pass over many states need not allocate. What is in it between uses is
/// never looked at.
pub(crate) struct BorrowList<T> {
    list: Vec<(*mut T, usize)>,
}

// SAFETY: only `borrow` makes something of what is in the list, and it writes it anew; in use, `Borrowed` has it.
unsafe impl<T> Send for BorrowList<T> {}
// SAFETY: a shared reference to it does nothing.
unsafe impl<T> Sync for BorrowList<T> {}

impl<T> BorrowList<T> {
    /// For at most so many borrows.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub(crate) fn new(n: usize, what: &str) -> Result<Self> {
        Ok(BorrowList {
            list: reserve(n, what)?,
        })
    }

    /// Bytes that [`new`](Self::new) takes.
    pub(crate) fn bytes_for(n: usize) -> u64 {
        n as u64 * size_of::<(*mut T, usize)>() as u64
    }

    /// What it takes in memory.
    pub(crate) fn size_bytes(&self) -> usize {
        self.list.capacity() * size_of::<(*mut T, usize)>()
    }

    /// Borrows all of these for as long as the result lives.
    pub(crate) fn borrow<'a>(
        &'a mut self,
        buffers: impl Iterator<Item = &'a mut [T]>,
    ) -> Borrowed<'a, T> {
        self.list.clear();
        let parts = buffers.map(|buffer| (buffer.as_mut_ptr(), buffer.len()));
        self.list.extend(parts);
        Borrowed {
            list: &self.list,
            borrow: PhantomData,
        }
    }
}

/// Exclusive borrows of several buffers.
pub(crate) struct Borrowed<'a, T> {
    list: &'a [(*mut T, usize)],
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for exclusive borrows of slices of `T`; what `run_with_pieces` hands out of them is disjoint.
unsafe impl<T: Send> Sync for Borrowed<'_, T> {}

impl<T> Borrowed<'_, T> {
    /// # Safety
    /// No other pieces of this number are in use.
    unsafe fn pieces(&self, task: usize, n_tasks: usize) -> Pieces<'_, T> {
        Pieces {
            list: self.list,
            task,
            n_tasks,
            borrow: PhantomData,
        }
    }
}

/// One piece of each of several buffers.
pub(crate) struct Pieces<'a, T> {
    list: &'a [(*mut T, usize)],
    /// Each buffer is cut into `n_tasks` pieces, of which these are number `task`.
    task: usize,
    n_tasks: usize,
    borrow: PhantomData<&'a mut [T]>,
}

impl<T> Pieces<'_, T> {
    /// The piece of a buffer.
    ///
    /// # Panics
    /// When there is no such buffer.
    pub(crate) fn get_mut(&mut self, buffer: usize) -> &mut [T] {
        let (data, len) = self.list[buffer];
        let n = len / self.n_tasks;
        // SAFETY: the piece lies inside the slice that `BorrowList::borrow` borrowed, no other task has this piece, and
        // `&mut self` keeps the pieces of this one from being had twice.
        unsafe { std::slice::from_raw_parts_mut(data.add(self.task * n), n) }
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

    /// What a call panics with.
    fn refusal(call: impl FnOnce()) -> String {
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
        let panic = panic.expect_err("refused");
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()))
            .expect("a text")
    }

    #[test]
    fn two_lists_are_numbered_one_behind_the_other() {
        let pool = Pool::new(3);
        let (mut a, mut b, mut c) = (vec![0; 2 * 40], vec![0; 2 * 9], vec![0; 3 * 33]);
        let mut scratch = [0; 3];
        let mut part = Columns::new(&mut c, 33);
        part.only(5..22);
        pool.run_two_lists(
            &mut [Columns::new(&mut a, 40), Columns::none()],
            &mut [Columns::none(), Columns::new(&mut b, 9), part],
            16,
            &mut scratch,
            &|_| Fetch::nothing(),
            |index, mut block, used| {
                *used += 1;
                assert!(!block.columns().is_empty() && block.columns().len() <= 16);
                for row in 0..block.n_rows {
                    block.row_mut(row).iter_mut().for_each(|v| *v += index + 1);
                }
            },
        );
        assert!(a.iter().all(|&v| v == 1) && b.iter().all(|&v| v == 4));
        for (index, &v) in c.iter().enumerate() {
            let is_written = (5..22).contains(&(index % 33));
            assert_eq!(v, if is_written { 5 } else { 0 }, "{index}");
        }
        // 40 columns are three blocks, 9 one, and 17 of 33 two.
        assert_eq!(scratch.iter().sum::<i32>(), 3 + 1 + 2);
        let mut few = [0; 2];
        let text = refusal(|| {
            pool.run_two_lists(
                &mut [Columns::new(&mut a, 40)],
                &mut [],
                16,
                &mut few,
                &|_| Fetch::nothing(),
                |_, _, _| {},
            );
        });
        assert!(text.starts_with("assertion"), "{text}");
    }

    #[test]
    fn pieces_cover_every_buffer_once() {
        let pool = Pool::new(3);
        let mut list = BorrowList::new(3, "a list").expect("memory");
        let taken = list.size_bytes();
        assert!(taken as u64 >= BorrowList::<u32>::bytes_for(3));
        // Again with others: nothing is left of the first.
        for n_buffers in [3, 1, 0, 2] {
            let mut out = vec![0_u32; 2 * 20];
            let mut buffers: Vec<Vec<u32>> = (0..n_buffers).map(|n| vec![0; 5 * n]).collect();
            let mut scratch = [0; 3];
            {
                let mut borrowed = list.borrow(buffers.iter_mut().map(Vec::as_mut_slice));
                pool.run_with_pieces(
                    &mut Columns::new(&mut out, 20),
                    4,
                    &mut borrowed,
                    &mut scratch,
                    &|_| Fetch::nothing(),
                    |mut block, mut pieces, used| {
                        *used += 1;
                        let task = block.columns().start / 4;
                        assert_eq!(block.columns().len(), 4);
                        for row in 0..2 {
                            block.row_mut(row).iter_mut().for_each(|v| *v += 1);
                        }
                        for buffer in 0..n_buffers {
                            let piece = pieces.get_mut(buffer);
                            assert_eq!(piece.len(), buffer);
                            piece.iter_mut().for_each(|v| *v += task as u32 + 1);
                        }
                    },
                );
            }
            assert!(out.iter().all(|&v| v == 1));
            assert_eq!(scratch.iter().sum::<i32>(), 5);
            for (n, buffer) in buffers.iter().enumerate() {
                let expected: Vec<u32> = (1..=5).flat_map(|task| vec![task; n]).collect();
                assert_eq!(*buffer, expected);
            }
        }
        assert_eq!(list.size_bytes(), taken, "nothing was allocated on the way");
    }

    #[test]
    fn pieces_of_sizes_that_do_not_divide_are_refused() {
        let pool = Pool::new(2);
        let mut list = BorrowList::new(2, "a list").expect("memory");
        let mut refused = |stride: usize, width: usize, len: usize, n_scratch: usize| {
            let (mut out, mut buffer) = (vec![0; 2 * stride], vec![0; len]);
            let mut good = vec![0; 5 * stride];
            let buffers = [&mut good[..], &mut buffer[..]];
            let mut borrowed = list.borrow(buffers.into_iter());
            refusal(|| {
                pool.run_with_pieces(
                    &mut Columns::new(&mut out, stride),
                    width,
                    &mut borrowed,
                    &mut vec![0; n_scratch],
                    &|_| Fetch::nothing(),
                    |_, _, _| panic!("work"),
                );
            })
        };
        // Ten columns are five blocks of two.
        assert_eq!(refused(10, 2, 15, 2), "work");
        for (stride, width, len, n_scratch) in [
            (10, 3, 15, 2),
            (10, 0, 15, 2),
            (10, 2, 16, 2),
            (10, 2, 4, 2),
            (10, 2, 15, 1),
            (10, 20, 15, 2),
        ] {
            let text = refused(stride, width, len, n_scratch);
            assert!(
                text.starts_with("assertion"),
                "{stride} {width} {len}: {text}"
            );
        }
        // There are no more pieces than buffers.
        let (mut out, mut buffer, mut scratch) = (vec![0; 4], vec![0; 4], [0; 2]);
        let text = refusal(|| {
            let mut borrowed = list.borrow(std::iter::once(&mut buffer[..]));
            pool.run_with_pieces(
                &mut Columns::new(&mut out, 4),
                2,
                &mut borrowed,
                &mut scratch,
                &|_| Fetch::nothing(),
                |_, mut pieces, _| pieces.get_mut(1).fill(1),
            );
        });
        assert!(text.contains("index out of bounds"), "{text}");
    }
}
