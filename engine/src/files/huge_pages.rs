//! Copies of bytes of files in huge pages, which are faster to read than the pages of a mapped file and belong to this
//! process alone.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use memmap2::MmapMut;

use super::bytes::{FileBytes, Storage};
use super::map::map_huge_pages;
use super::{SourceFile, BUFFER_ALIGN};
use crate::error::{Error, Result};

/// So much of a file is in memory twice while it is copied.
const COPY_BYTES: u64 = 1 << 20;

/// Memory for copies, which fill it one after the other.
pub(crate) struct HugePages {
    map: MmapMut,
    used: usize,
    /// What error texts call the copies.
    name: String,
}

impl HugePages {
    /// With room for ranges of these lengths.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory)
    pub(crate) fn new(lengths: impl Iterator<Item = u64>, name: &str) -> Result<Self> {
        let mut total = 0_u64;
        for length in lengths {
            total = total.saturating_add(length.saturating_add(BUFFER_ALIGN as u64));
        }
        let failed = || Error::memory(format!("no memory for a copy of {total} bytes"));
        let size = usize::try_from(total).map_err(|_| failed().at(name))?;
        let map = map_huge_pages(size.max(1)).map_err(|e| failed().with_source(e).at(name))?;
        Ok(HugePages {
            map,
            used: 0,
            name: name.to_owned(),
        })
    }

    /// Copies a range of a file, and gives the place of the copy among the others.
    ///
    /// # Errors
    /// Those of [`SourceFile::bytes`], and when more is copied than there was to be room for.
    pub(crate) fn copy(&mut self, file: &SourceFile, range: Range<u64>) -> Result<u64> {
        let begin = self.used.next_multiple_of(BUFFER_ALIGN);
        let (mut at, mut start) = (begin, range.start);
        while start < range.end {
            let end = range.end.min(start.saturating_add(COPY_BYTES));
            let bytes = file.bytes(start..end)?;
            let room = self.map.get_mut(at..at + bytes.len());
            let room = room.ok_or_else(|| Error::memory("no room for a copy").at(file.name()))?;
            room.copy_from_slice(&bytes);
            at += bytes.len();
            drop(bytes);
            file.watch().check()?;
            file.release(start..end);
            start = end;
        }
        self.used = at;
        Ok(begin as u64)
    }

    /// All copies as one file, of which they are ranges.
    ///
    /// # Errors
    /// When the system does not protect them.
    pub(crate) fn finish(self) -> Result<SourceFile> {
        let failed = |e| Error::memory("the copy cannot be protected").with_source(e);
        let map = self.map.make_read_only();
        let map = map.map_err(|e| failed(e).at(&self.name))?;
        let all = FileBytes::new(Storage::HugePages(Arc::new(map)));
        // A file that was copied whole is as long as it was.
        let used = all.slice(0..self.used);
        let used = used.ok_or_else(|| Error::memory("no room for a copy").at(&self.name))?;
        Ok(SourceFile::from_bytes(&self.name, used))
    }
}
