//! Bytes of a file, kept readable by whoever holds them.

#![forbid(unsafe_code)]

use std::ops::{Deref, Range};
use std::sync::Arc;

use memmap2::Mmap;

use super::map::{drop_pages_around, Mapping};
use super::watch::Watch;
use super::PAGES_CAN_BE_DROPPED;
use crate::error::Result;

/// Bytes of a file, kept readable for as long as this is held. Cheap to clone and to slice.
#[derive(Clone)]
pub(crate) struct FileBytes {
    storage: Storage,
    /// Within the storage: checked by every constructor.
    range: Range<usize>,
}

#[derive(Clone)]
pub(super) enum Storage {
    Static(&'static [u8]),
    /// Of a file, which has its pages.
    Mapped(Arc<Mapping>),
    /// A copy: a page that is dropped is lost.
    HugePages(Arc<Mmap>),
    Owned(Arc<Vec<u8>>),
}

impl Storage {
    fn all(&self) -> &[u8] {
        match self {
            Storage::Static(bytes) => bytes,
            Storage::Mapped(map) => map,
            Storage::HugePages(map) => map,
            Storage::Owned(bytes) => bytes,
        }
    }
}

impl FileBytes {
    pub(super) fn new(storage: Storage) -> Self {
        let range = 0..storage.all().len();
        FileBytes { storage, range }
    }

    /// Bytes that are part of the program.
    pub(crate) fn from_static(bytes: &'static [u8]) -> Self {
        Self::new(Storage::Static(bytes))
    }

    /// A part of these bytes, sharing them; `None` if the range is not within them.
    pub(crate) fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.range.len() {
            return None;
        }
        Some(FileBytes {
            storage: self.storage.clone(),
            range: self.range.start + range.start..self.range.start + range.end,
        })
    }

    /// Whether these are pages of a mapped file that can be dropped and come back.
    pub(crate) fn pages_can_be_dropped(&self) -> bool {
        PAGES_CAN_BE_DROPPED && matches!(self.storage, Storage::Mapped(_))
    }

    /// Who knows whether bytes of their mapped file were lost; `None` if they are in memory.
    pub(crate) fn watch(&self) -> Option<&Watch> {
        match &self.storage {
            Storage::Mapped(map) => Some(map.watch()),
            _ => None,
        }
    }

    /// Refuses what was read here and elsewhere in a mapped file of which some bytes were lost.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io)
    pub(crate) fn check_readable(&self) -> Result<()> {
        self.watch().map_or(Ok(()), Watch::check)
    }

    /// Whether this is a copy in memory of its own, in huge pages where the system has them.
    pub(crate) fn is_in_huge_pages(&self) -> bool {
        matches!(self.storage, Storage::HugePages(_))
    }

    /// As [`SourceFile::release`](super::SourceFile::release), for a range of these bytes.
    pub(crate) fn release(&self, range: Range<usize>) {
        if let Storage::Mapped(map) = &self.storage {
            let base = self.range.start;
            drop_pages_around(
                map.map(),
                base + range.start..base + range.end.min(self.len()),
            );
        }
    }

    /// Says that a range of these bytes is needed soon, so that reading it from a disk can begin.
    pub(crate) fn prefetch(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Storage::Mapped(map) = &self.storage {
            let end = range.end.min(self.len());
            let (start, len) = (
                self.range.start + range.start,
                end.saturating_sub(range.start),
            );
            // Advice: where the system does not take it, the bytes are read when they are touched.
            let _ = map
                .map()
                .advise_range(memmap2::Advice::WillNeed, start, len);
        }
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.storage.all()[self.range.clone()]
    }
}

impl From<Vec<u8>> for FileBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(Storage::Owned(Arc::new(bytes)))
    }
}

impl std::fmt::Debug for FileBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileBytes({} bytes)", self.len())
    }
}
