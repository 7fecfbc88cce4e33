//! Fetching memory into the caches before it is read.
//!
//! A thread that waits for another, or for the part of a token that runs on one thread, fetches what it
//! will read next: memory would idle otherwise. A fetch names addresses and reads nothing, so it changes
//! no result, and may outlive the memory that it names.
//!
//! This module holds `unsafe` code: the instruction itself.

/// Bytes that one instruction brings.
const CACHE_LINE: usize = 64;
/// Bytes of one [`Fetch::step`]: a fraction of a microsecond, after which the thread looks around again.
const STEP: usize = 8 * CACHE_LINE;

/// Fetches all of it into the caches of the core. On CPUs for which this knows no instruction it does nothing.
#[inline]
pub(crate) fn fetch<T>(data: &[T]) {
    fetch_lines(data.as_ptr() as usize, size_of_val(data));
}

/// Every cache line of some bytes, into the first-level cache and from there down to the second: fetches
/// straight into the second are dropped on a Zen 4 when many are under way.
#[inline]
fn fetch_lines(start: usize, n_bytes: usize) {
    for at in (0..n_bytes).step_by(CACHE_LINE) {
        let address = start.wrapping_add(at) as *const i8;
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
            // SAFETY: every x86-64 CPU has the instruction, and it may name any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address) };
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: every 64-bit ARM CPU has the instruction, it may name any address, and it changes
        // nothing that a program can see.
        unsafe {
            std::arch::asm!(
                "prfm pldl1keep, [{address}]",
                address = in(reg) address,
                options(nostack, preserves_flags, readonly)
            );
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let _ = address;
    }
}

/// Memory that is fetched little by little.
#[derive(Clone, Copy)]
pub(crate) struct Fetch {
    address: usize,
    n_bytes: usize,
}

impl Fetch {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Fetch {
            address: bytes.as_ptr() as usize,
            n_bytes: bytes.len(),
        }
    }

    pub(crate) fn nothing() -> Self {
        Self::new(&[])
    }

    /// Fetches a little; `false` when nothing is left.
    pub(crate) fn step(&mut self) -> bool {
        let n_bytes = STEP.min(self.n_bytes);
        fetch_lines(self.address, n_bytes);
        self.address += n_bytes;
        self.n_bytes -= n_bytes;
        n_bytes > 0
    }
}
