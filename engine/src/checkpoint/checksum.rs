//! Checksums of what an archive holds.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::files::SourceFile;

/// Bytes of a record checked at a time, so that checking a large one needs no memory of its size.
const CHECK_STEP: u64 = 1 << 20;

/// The CRC-32 a zip directory gives for one of its records. Several tensors may share a record; it
/// is checked when the first of them is read, and then never again.
#[derive(Debug)]
pub(crate) struct Checksum {
    pub(crate) record: String,
    pub(crate) range: Range<u64>,
    pub(crate) crc32: u32,
    pub(crate) found: OnceLock<u32>,
}

impl Checksum {
    pub(super) fn check(&self, file: &SourceFile, place: impl Fn() -> String) -> Result<()> {
        let found = match self.found.get() {
            Some(found) => *found,
            None => {
                let found = crc32(file, self.range.clone())?;
                *self.found.get_or_init(|| found)
            }
        };
        if found == self.crc32 {
            return Ok(());
        }
        Err(Error::format(format!(
            "record {}: damaged: checksum {found:08x}, expected {:08x}",
            self.record, self.crc32
        ))
        .at(place()))
    }
}

/// CRC-32 of a range, however large, leaving no pages behind.
pub(crate) fn crc32(file: &SourceFile, range: Range<u64>) -> Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    let mut start = range.start;
    while start < range.end {
        let end = range.end.min(start.saturating_add(CHECK_STEP));
        hasher.update(&file.bytes(start..end)?);
        file.watch().check()?;
        file.release(start..end);
        start = end;
    }
    Ok(hasher.finalize())
}
