//! A small persistent pool, and the safe ways to share one buffer among its threads.
//!
//! A matrix-vector product of a small model takes tens of microseconds, so waking threads through a
//! general scheduler would cost more than the work. Here the workers spin for a moment after each
//! job, then yield the core, then sleep. Tasks are taken one by one from a counter, so a thread that
//! lost its core to another process delays only the task it holds; a worker that has not woken up when
//! a job ends is not waited for.
//!
//! Every task's result depends on its index alone, never on which thread ran it: results have the same
//! bits for any number of threads. That is also why a pool that is busy with another caller's job may
//! simply be left alone: the second caller runs its tasks itself.
//!
//! This module holds `unsafe` code: the job's closure is passed to the workers as a raw pointer, and
//! [`Columns`] hands out disjoint parts of one slice.

use std::any::Any;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::kernels::fetch::Fetch;

/// Spins this often before the first look at the clock.
const SPINS: usize = 64;
/// A waiting worker yields its core between looks for this long, then sleeps. Longer than the
/// single-threaded part between two products of one token, so that no product pays for a wake-up.
const YIELD_TIME: Duration = Duration::from_micros(200);

/// One task: (task index, thread index).
type Job<'a> = dyn Fn(usize, usize) + Sync + 'a;
/// What a thread, named by its index, fetches into its caches when it has no more tasks.
pub(crate) type Ahead<'a> = dyn Fn(usize) -> Fetch + Sync + 'a;

/// A job as the workers see it.
#[derive(Clone, Copy)]
struct Work<'a> {
    job: &'a Job<'a>,
    ahead: &'a Ahead<'a>,
}

/// The state word: a job number in the high half, an open flag, and how many workers are inside.
const JOB_ONE: u64 = 1 << 32;
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

struct Shared {
    state: AtomicU64,
    work: UnsafeCell<Option<Work<'static>>>,
    /// One a thread.
    parts: Box<[Part]>,
    n_sleeping: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `work` is written only by the thread that holds `Pool::busy`, while the job is closed and no
// worker is inside, and read only by workers that entered while it was open.
unsafe impl Sync for Shared {}

/// Tasks that nobody has begun: the first in the low half, the end of them in the high half. On a cache
/// line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Part(AtomicU64);

impl Part {
    fn set(&self, tasks: Range<usize>) {
        let packed = (tasks.end as u64) << 32 | tasks.start as u64;
        self.0.store(packed, Ordering::Relaxed);
    }

    /// Takes the first task.
    fn first(&self) -> Option<usize> {
        self.take(|start, end| (start, (start + 1, end)))
    }

    /// Takes the last task.
    fn last(&self) -> Option<usize> {
        self.take(|start, end| (end - 1, (start, end - 1)))
    }

    /// `choose(start, end)` gives the task and what is left.
    fn take(&self, choose: impl Fn(u64, u64) -> (u64, (u64, u64))) -> Option<usize> {
        let mut packed = self.0.load(Ordering::Relaxed);
        loop {
            let (start, end) = (packed & u64::from(u32::MAX), packed >> 32);
            if start >= end {
                return None;
            }
            let (task, left) = choose(start, end);
            let new = left.1 << 32 | left.0;
            let order = Ordering::Relaxed;
            match self.0.compare_exchange_weak(packed, new, order, order) {
                Ok(_) => return Some(task as usize),
                Err(changed) => packed = changed,
            }
        }
    }
}

/// A fixed set of worker threads.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    worker_threads: Vec<Thread>,
    busy: AtomicBool,
}

impl Pool {
    /// A pool in which `n_threads` threads work, the caller's own included: 1 starts none. Fewer are
    /// started when the system refuses more.
    pub(crate) fn new(n_threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            work: UnsafeCell::new(None),
            parts: (0..n_threads.max(1)).map(|_| Part::default()).collect(),
            n_sleeping: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let workers: Vec<_> = (1..n_threads)
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                let builder = std::thread::Builder::new().name(format!("rwkv-edge-{index}"));
                builder.spawn(move || shared.work(index)).ok()
            })
            .collect();
        let worker_threads = workers.iter().map(|w| w.thread().clone()).collect();
        Pool {
            shared,
            workers,
            worker_threads,
            busy: AtomicBool::new(false),
        }
    }

    /// Threads that work, the caller's own included.
    pub(crate) fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job(task, thread)` once for every task below `n_tasks`, and returns when all are done.
    /// Threads are numbered below [`n_threads`](Self::n_threads), and no two that run at the same time
    /// within one call have the same number.
    ///
    /// # Panics
    /// When a task panics, after all others have ended.
    pub(crate) fn run(&self, n_tasks: usize, job: &Job<'_>) {
        self.run_then_fetch(n_tasks, job, &|_| Fetch::nothing());
    }

    /// As [`run`](Self::run). Threads that have no more tasks fetch what `ahead` names: the caller's until
    /// all tasks are done, the others' until there is another job.
    pub(crate) fn run_then_fetch(&self, n_tasks: usize, job: &Job<'_>, ahead: &Ahead<'_>) {
        let alone = n_tasks <= 1 || n_tasks > u32::MAX as usize || self.workers.is_empty();
        if alone || self.busy.swap(true, Ordering::Acquire) {
            (0..n_tasks).for_each(|task| job(task, 0));
            return;
        }
        let shared = &*self.shared;
        let work = Work { job, ahead };
        // SAFETY: the references are only used between here and the end of `Closing::drop`, which waits
        // for every worker that has entered; so they do not outlive `job` and `ahead`.
        let work = unsafe { std::mem::transmute::<Work<'_>, Work<'static>>(work) };
        // SAFETY: `busy` was taken, the last job is closed and no worker is inside: nobody reads.
        unsafe { *shared.work.get() = Some(work) };
        let n_threads = self.n_threads();
        for (thread, part) in shared.parts.iter().enumerate().take(n_threads) {
            part.set(n_tasks * thread / n_threads..n_tasks * (thread + 1) / n_threads);
        }
        let closing = Closing {
            pool: self,
            ahead: ahead(0),
        };
        let number = (shared.state.load(Ordering::Relaxed) & !(JOB_ONE - 1)).wrapping_add(JOB_ONE);
        shared.state.store(number | OPEN, Ordering::SeqCst);
        if shared.n_sleeping.load(Ordering::SeqCst) > 0 {
            self.worker_threads.iter().for_each(Thread::unpark);
        }
        shared.take_tasks(job, 0);
        drop(closing);
        let panic = shared.panic.lock().ok().and_then(|mut panic| panic.take());
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

/// Ends a job, also when the caller's own task panicked: closes it to workers that have not entered,
/// waits for those that have.
struct Closing<'a> {
    pool: &'a Pool,
    ahead: Fetch,
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let shared = &*self.pool.shared;
        // A panicking caller leaves tasks behind: nobody need start them.
        shared.parts.iter().for_each(|part| part.set(0..0));
        shared.state.fetch_and(!OPEN, Ordering::SeqCst);
        let mut spins = 0;
        while shared.state.load(Ordering::Acquire) & INSIDE != 0 {
            if self.ahead.step() {
                continue;
            }
            spins += 1;
            if spins < 1000 {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        self.pool.busy.store(false, Ordering::Release);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.worker_threads.iter().for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks, so it ends without one.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn take_tasks(&self, job: &Job<'_>, thread: usize) {
        while let Some(task) = self.parts[thread].first() {
            job(task, thread);
        }
        for part in &self.parts {
            while let Some(task) = part.last() {
                job(task, thread);
            }
        }
    }

    fn work(&self, thread: usize) {
        let (mut last_job, mut ahead) = (0, Fetch::nothing());
        while let Some(number) = self.enter(last_job, ahead) {
            last_job = number;
            // SAFETY: this worker is inside an open job, so the caller waits and does not write.
            if let Some(work) = unsafe { *self.work.get() } {
                let run = || {
                    self.take_tasks(work.job, thread);
                    (work.ahead)(thread)
                };
                match catch_unwind(AssertUnwindSafe(run)) {
                    Ok(next) => ahead = next,
                    Err(panic) => {
                        if let Ok(mut slot) = self.panic.lock() {
                            slot.get_or_insert(panic);
                        }
                    }
                }
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for an open job other than `last_job` and enters it; `None` when the pool ends. Meanwhile
    /// it fetches what is `ahead`.
    fn enter(&self, last_job: u64, mut ahead: Fetch) -> Option<u64> {
        let mut spins = 0;
        let mut waiting_since = None;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            let state = self.state.load(Ordering::Relaxed);
            let number = state & !(JOB_ONE - 1);
            if state & OPEN != 0 && number != last_job {
                let entered = state + 1;
                let order = (Ordering::Acquire, Ordering::Relaxed);
                if self
                    .state
                    .compare_exchange_weak(state, entered, order.0, order.1)
                    .is_ok()
                {
                    return Some(number);
                }
                continue;
            }
            if ahead.step() {
                continue;
            }
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
                continue;
            }
            let since = *waiting_since.get_or_insert_with(Instant::now);
            if since.elapsed() < YIELD_TIME {
                // Not a pure spin: another process that wants this core gets it.
                std::thread::yield_now();
                continue;
            }
            self.n_sleeping.fetch_add(1, Ordering::SeqCst);
            let state = self.state.load(Ordering::SeqCst);
            let closed = state & OPEN == 0 || state & !(JOB_ONE - 1) == last_job;
            if closed && !self.stop.load(Ordering::SeqCst) {
                // A caller that opens a job after the look above sees this sleeper and unparks it.
                std::thread::park();
            }
            self.n_sleeping.fetch_sub(1, Ordering::SeqCst);
            waiting_since = None;
        }
    }
}

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

    #[test]
    fn every_task_runs_once_whatever_the_number_of_threads() {
        for n_threads in [1, 2, 3, 8] {
            let pool = Pool::new(n_threads);
            for round in 0..2000 {
                let n = round % 37;
                let counts: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n, &|task, thread| {
                    assert!(thread < n_threads);
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_sleeping_pool_wakes_up() {
        let pool = Pool::new(3);
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(2));
            let count = AtomicUsize::new(0);
            pool.run(100, &|_, _| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 100);
        }
    }

    #[test]
    fn callers_may_share_a_pool() {
        let pool = Pool::new(2);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let count = AtomicUsize::new(0);
                        pool.run(10, &|_, _| {
                            count.fetch_add(1, Ordering::Relaxed);
                        });
                        assert_eq!(count.into_inner(), 10);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        for bad in [0, 1, 50, 99] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(100, &|task, _| assert_ne!(task, bad));
            }));
            assert!(result.is_err());
        }
        let count = AtomicUsize::new(0);
        pool.run(100, &|_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 100);
    }

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
