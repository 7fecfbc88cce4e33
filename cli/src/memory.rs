//! Memory of this process, as the system counts it.

use std::fs;

/// The most that was resident at any time, mapped files included; `None` where the system does not say.
pub(crate) fn peak_resident_bytes() -> Option<u64> {
    status("VmHWM:")
}

/// What is resident now, mapped files included.
pub(crate) fn resident_bytes() -> Option<u64> {
    status("VmRSS:")
}

/// What is resident now and belongs to this process alone: without mapped files.
pub(crate) fn private_bytes() -> Option<u64> {
    status("RssAnon:")
}

/// What programs of this machine could still take without writing to a swap disk.
#[cfg(feature = "serve")]
pub(crate) fn available_bytes() -> Option<u64> {
    line("/proc/meminfo", "MemAvailable:")
}

fn status(key: &str) -> Option<u64> {
    line("/proc/self/status", key)
}

/// A line of one of the system's files whose numbers are in KiB.
fn line(path: &str, key: &str) -> Option<u64> {
    let status = fs::read_to_string(path).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(1024 * kib)
}
