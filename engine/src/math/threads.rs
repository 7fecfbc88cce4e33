//! A small persistent pool; `threads/columns.rs` has the safe ways to share one buffer among its threads.
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
//! This module holds `unsafe` code: the job's closure is passed to the workers as a raw pointer.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::math::kernels::fetch::Fetch;

mod columns;

pub(crate) use columns::{BorrowList, ColumnBlock, Columns, Pieces};

/// Spins this often before the first look at the clock.
const SPINS: usize = 64;
/// A waiting worker yields its core between looks for this long, then sleeps. Longer than the
/// single-threaded part between two products of one token, so that no product pays for a wake-up.
const YIELD_TIME: Duration = Duration::from_micros(200);

/// What the names of all threads that this crate starts begin with.
pub const THREAD_NAME: &str = "rwkv-edge-";

/// What a panic carries.
type Payload = Box<dyn Any + Send>;
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
    parts: Box<[ThreadShare]>,
    n_sleeping: AtomicUsize,
    stop: AtomicBool,
    /// The first panic of a worker in the present job.
    panic: Mutex<Option<Payload>>,
}

// SAFETY: `work` is written only by the thread that holds `Pool::busy`, while the job is closed and no
// worker is inside, and read only by workers that entered while it was open.
unsafe impl Sync for Shared {}

/// Tasks that nobody has begun: the first in the low half, the end of them in the high half. On a cache
/// line of its own.
#[derive(Default)]
#[repr(align(64))]
struct ThreadShare(AtomicU64);

impl ThreadShare {
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
    /// The process that has the workers.
    process: u32,
}

impl Pool {
    /// A pool in which `n_threads` threads work, the caller's own included: 1 starts none. Fewer are
    /// started when the system refuses more.
    pub(crate) fn new(n_threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            work: UnsafeCell::new(None),
            parts: (0..n_threads.max(1))
                .map(|_| ThreadShare::default())
                .collect(),
            n_sleeping: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let workers: Vec<_> = (1..n_threads)
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                let builder = std::thread::Builder::new().name(format!("{THREAD_NAME}{index}"));
                builder.spawn(move || shared.work(index)).ok()
            })
            .collect();
        let worker_threads = workers.iter().map(|w| w.thread().clone()).collect();
        Pool {
            shared,
            workers,
            worker_threads,
            busy: AtomicBool::new(false),
            process: std::process::id(),
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
    /// When a task panics, after all others have ended or will not be begun any more. Of several panics
    /// the caller's own comes first; none outlives the call.
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
        // SAFETY: the references are only used between here and the end of `close`, which waits for every
        // worker that has entered; nothing in between unwinds, because the caller's own share of the work
        // is caught. So they do not outlive `job` and `ahead`.
        let work = unsafe { std::mem::transmute::<Work<'_>, Work<'static>>(work) };
        // SAFETY: `busy` was taken, the last job is closed and no worker is inside: nobody reads.
        unsafe { *shared.work.get() = Some(work) };
        let n_threads = self.n_threads();
        // In 64 bits, so that no product of two counts wraps on a machine of 32.
        let bound = |thread: usize| (n_tasks as u64 * thread as u64 / n_threads as u64) as usize;
        for (thread, part) in shared.parts.iter().enumerate().take(n_threads) {
            part.set(bound(thread)..bound(thread + 1));
        }
        let number = (shared.state.load(Ordering::Relaxed) & !(JOB_ONE - 1)).wrapping_add(JOB_ONE);
        shared.state.store(number | OPEN, Ordering::SeqCst);
        if shared.n_sleeping.load(Ordering::SeqCst) > 0 {
            self.worker_threads.iter().for_each(Thread::unpark);
        }
        let own = catch_unwind(AssertUnwindSafe(|| shared.share(work, 0)));
        let (own, next) = match own {
            Ok(next) => (None, next),
            Err(panic) => (Some(panic), Fetch::nothing()),
        };
        let of_worker = self.close(next);
        if let Some(panic) = own.or(of_worker) {
            resume_unwind(panic);
        }
    }

    /// Ends a job: closes it to workers that have not entered, waits for those that have, and gives the
    /// first of their panics. Only then may another caller have the workers, or it would find this panic.
    fn close(&self, mut ahead: Fetch) -> Option<Payload> {
        let shared = &*self.shared;
        // A panicking caller leaves tasks behind: nobody need start them.
        shared.parts.iter().for_each(|part| part.set(0..0));
        shared.state.fetch_and(!OPEN, Ordering::SeqCst);
        let mut spins = 0;
        while shared.state.load(Ordering::Acquire) & INSIDE != 0 {
            if ahead.step() {
                continue;
            }
            spins += 1;
            if spins < 1000 {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        let panic = shared.panic().take();
        self.busy.store(false, Ordering::Release);
        panic
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            // A process that was forked has a copy of the pool and none of its threads. Its jobs never waited for them,
            // since a pool with a worker inside is busy; whoever waits for one to end may wait for ever.
            self.workers.drain(..).for_each(std::mem::forget);
            return;
        }
        self.shared.stop.store(true, Ordering::SeqCst);
        self.worker_threads.iter().for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks, so it ends without one.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn panic(&self) -> MutexGuard<'_, Option<Payload>> {
        self.panic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What one thread does of a job; gives what it then fetches.
    fn share(&self, work: Work<'_>, thread: usize) -> Fetch {
        self.take_tasks(work.job, thread);
        (work.ahead)(thread)
    }

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
                match catch_unwind(AssertUnwindSafe(|| self.share(work, thread))) {
                    Ok(next) => ahead = next,
                    Err(panic) => {
                        self.panic().get_or_insert(panic);
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

    /// The text of the panic in which a job ends.
    fn panic_of(pool: &Pool, n_tasks: usize, job: &Job<'_>, ahead: &Ahead<'_>) -> Option<String> {
        let run = || pool.run_then_fetch(n_tasks, job, ahead);
        let panic = catch_unwind(AssertUnwindSafe(run)).err()?;
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()))
    }

    /// One task a thread, each of which waits for the other to have begun: both panic, in every job.
    #[test]
    fn a_panic_ends_with_its_job() {
        let pool = Pool::new(2);
        let nothing = |_| Fetch::nothing();
        for round in 0..50 {
            let begun = AtomicUsize::new(0);
            let found = panic_of(
                &pool,
                2,
                &|_, thread| {
                    begun.fetch_add(1, Ordering::SeqCst);
                    while begun.load(Ordering::SeqCst) < 2 {
                        std::thread::yield_now();
                    }
                    panic!("round {round} thread {thread}");
                },
                &nothing,
            );
            assert_eq!(found, Some(format!("round {round} thread 0")));
            let count = AtomicUsize::new(0);
            let healthy = |_, _| {
                count.fetch_add(1, Ordering::Relaxed);
            };
            assert_eq!(panic_of(&pool, 100, &healthy, &nothing), None);
            assert_eq!(count.into_inner(), 100);
        }
    }

    #[test]
    fn a_panic_in_what_is_fetched_ahead_leaves_the_pool_its_threads() {
        let pool = Pool::new(2);
        for bad in [0, 1] {
            let ahead = |thread| match thread == bad {
                true => panic!("ahead of {thread}"),
                false => Fetch::nothing(),
            };
            // Both threads have a task: a worker that has not woken up when a job ends is not waited for.
            let begun = AtomicUsize::new(0);
            let both = |_, _| {
                begun.fetch_add(1, Ordering::SeqCst);
                while begun.load(Ordering::SeqCst) < 2 {
                    std::thread::yield_now();
                }
            };
            let found = panic_of(&pool, 2, &both, &ahead);
            assert_eq!(found, Some(format!("ahead of {bad}")));
            assert!(!pool.busy.load(Ordering::SeqCst));
            // Neither could end without the other: both threads work again.
            begun.store(0, Ordering::SeqCst);
            assert_eq!(panic_of(&pool, 2, &both, &|_| Fetch::nothing()), None);
        }
    }

    /// The C library tells by the name whose panic it is.
    #[test]
    fn workers_are_known_by_their_names() {
        let pool = Pool::new(2);
        let begun = AtomicUsize::new(0);
        pool.run(2, &|_, thread| {
            begun.fetch_add(1, Ordering::SeqCst);
            while begun.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
            let current = std::thread::current();
            let is_named = current.name().is_some_and(|n| n.starts_with(THREAD_NAME));
            assert_eq!(is_named, thread > 0);
        });
    }
}
