//! This machine's limits, measured with the threads and kernels of a model: decode cannot be faster than
//! its bytes over the read bandwidth, prefill not than its multiply-adds over the peak.

#![forbid(unsafe_code)]

use std::hint::black_box;
use std::io;
use std::time::Instant;

use memmap2::MmapMut;

use crate::error::{Error, Result};
use crate::math::kernels::{FLOAT_ROUND, INTEGER_ROUND};
use crate::memory::budget::Reservation;
use crate::model::Model;

/// Far beyond any last-level cache this is made for.
const BUFFER_BYTES: usize = 512 << 20;
/// Hardly beyond one: with less there is nothing to measure.
const BUFFER_BYTES_MIN: u64 = 64 << 20;
/// What one task reads: as much as a few blocks of a large matrix.
const TASK_WORDS: usize = (256 << 10) / 8;
/// A few milliseconds of multiply-adds a thread, in tasks of their own, so that a thread that lost its
/// core does not hold up the end.
const TASKS_A_THREAD: usize = 16;
const ROUNDS: usize = 100_000;

/// Measures what this machine can do at most, in the threads of a model. Every call takes one
/// measurement of some milliseconds; take several and their median, between what they are compared with.
pub struct Yardstick {
    model: Model,
    /// 512 MiB, or what a limit of memory leaves; `None` where that is too little.
    buffer: Option<MmapMut>,
    _reservation: Reservation,
}

impl Yardstick {
    /// With the threads and kernels of this model, and with huge pages where its weights are in them.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory) when there is none for a buffer of 512 MiB, or less under
    /// [`Options::memory_max`](crate::Options::memory_max).
    pub fn new(model: &Model) -> Result<Self> {
        let huge_pages = model.info().huge_page_bytes > 0;
        let size = match model.memory_left() {
            None => BUFFER_BYTES as u64,
            // A buffer would be in the place of weights.
            Some(_) if model.info().paged_bytes > 0 => 0,
            // What is measured beside this needs memory, too.
            Some(left) => (left / 2).min(BUFFER_BYTES as u64),
        };
        let size = if size < BUFFER_BYTES_MIN { 0 } else { size };
        let reservation = model.reserve_memory(size)?;
        let buffer = match size {
            0 => None,
            size => Some(buffer(size as usize, huge_pages).map_err(|e| {
                Error::memory("not enough memory to measure its bandwidth").with_source(e)
            })?),
        };
        Ok(Yardstick {
            model: model.clone(),
            buffer,
            _reservation: reservation,
        })
    }

    /// Bytes a second read from a buffer far larger than the caches. NaN where
    /// [`Options::memory_max`](crate::Options::memory_max) leaves no room for one.
    pub fn read_bytes_per_s(&self) -> f64 {
        let (pool, kernels) = self.model.machine();
        let Some(buffer) = &self.buffer else {
            return f64::NAN;
        };
        // Whole tasks, of whole words.
        let buffer = &buffer[..buffer.len() / size_of::<u64>() * size_of::<u64>()];
        let words: &[u64] = bytemuck::cast_slice(buffer);
        let n_tasks = words.len() / TASK_WORDS;
        let start = Instant::now();
        pool.run(n_tasks, &|task, _| {
            black_box(kernels.read_words(&words[task * TASK_WORDS..(task + 1) * TASK_WORDS]));
        });
        (n_tasks * TASK_WORDS * size_of::<u64>()) as f64 / start.elapsed().as_secs_f64()
    }

    /// Multiply-adds of f32 a second, from registers to registers.
    pub fn f32_macs_per_s(&self) -> f64 {
        let kernels = self.model.machine().1;
        self.macs_per_s(FLOAT_ROUND, |rounds| {
            black_box(kernels.multiply_add_floats(rounds));
        })
    }

    /// Multiply-adds a second with the instructions of the int8 products, from registers to registers.
    pub fn int8_macs_per_s(&self) -> f64 {
        let kernels = self.model.machine().1;
        self.macs_per_s(INTEGER_ROUND, |rounds| {
            black_box(kernels.multiply_add_integers(rounds));
        })
    }

    fn macs_per_s(&self, per_round: usize, work: impl Fn(usize) + Sync) -> f64 {
        let pool = self.model.machine().0;
        let n_tasks = TASKS_A_THREAD * pool.n_threads();
        let start = Instant::now();
        pool.run(n_tasks, &|_, _| work(black_box(ROUNDS)));
        (n_tasks * ROUNDS * per_round) as f64 / start.elapsed().as_secs_f64()
    }
}

/// A buffer in ordinary pages, as files are mapped, or in huge pages, which are read faster.
fn buffer(size: usize, huge_pages: bool) -> io::Result<MmapMut> {
    let mut map = MmapMut::map_anon(size)?;
    #[cfg(target_os = "linux")]
    {
        // Fails on kernels without huge pages, where all pages are ordinary.
        let _ = map.advise(match huge_pages {
            true => memmap2::Advice::HugePage,
            false => memmap2::Advice::NoHugePage,
        });
    }
    // A page that was never written is not there, and equal pages may be one and the same on a virtual
    // machine: reading those would measure the cache.
    let mut number = 0_u64;
    for word in map.chunks_exact_mut(size_of::<u64>()) {
        number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&(number ^ number >> 31).to_le_bytes());
    }
    Ok(map)
}

impl std::fmt::Debug for Yardstick {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Yardstick").finish_non_exhaustive()
    }
}
