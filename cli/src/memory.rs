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

/// A line of /proc/self/status, which is in KiB.
fn status(key: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(1024 * kib)
}
