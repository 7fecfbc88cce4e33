//! Mappings of files, and how their pages go. Nothing else in this crate maps.
//!
//! This module holds `unsafe` code: a mapped file could be changed by others, and pages are dropped.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};

use memmap2::{Mmap, MmapMut, MmapOptions};

use super::sigbus::Known;
use super::watch::Watch;

/// So far around what is released pages go as well. A system maps more than is touched: some 64 KiB
/// around it, and all of a large page of 2 MiB where it keeps files in those. Of a file read from end
/// to end the edges of all ranges would stay, which is up to a tenth of it.
pub(crate) const RELEASE_MARGIN: u64 = 2 << 20;
/// The largest page of the systems we know, large ones aside.
const PAGE_MAX: u64 = 64 << 10;

/// A read-only mapping of a file, or of a range of one.
pub(super) struct Mapping {
    /// In front of the mapping, and so dropped before it.
    _known: Known,
    map: Mmap,
    watch: Watch,
}

impl Mapping {
    pub(super) fn map(&self) -> &Mmap {
        &self.map
    }

    pub(super) fn watch(&self) -> &Watch {
        &self.watch
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// `None` where the whole file does not fit the address space, or the system maps no such file.
pub(super) fn map_whole(file: &File, len: u64, whole_max: u64, watch: &Watch) -> Option<Mapping> {
    let size = usize::try_from(len).ok().filter(|_| len <= whole_max)?;
    map_range(file, 0, size, watch)
}

pub(super) fn map_range(file: &File, start: u64, size: usize, watch: &Watch) -> Option<Mapping> {
    // Where a file is cut in place, the process ends, or reads zeros and sees that it did (see `sigbus.rs`).
    // SAFETY: the mapping is read-only and within the length the file had when it was opened. Its bytes stay as they are
    // unless another process rewrites the file in place; files of checkpoints are replaced by renaming, which leaves
    // the mapped one untouched, and whoever cannot promise that opens without mapping (see `files/mod.rs`).
    let map = unsafe { MmapOptions::new().offset(start).len(size).map(file) }.ok()?;
    Some(Mapping {
        _known: Known::new(&map, file, watch.clone()),
        map,
        watch: watch.clone(),
    })
}

/// Memory of no file in huge pages, where the system has them. All of it is 0.
pub(super) fn map_huge_pages(size: usize) -> io::Result<MmapMut> {
    let map = MmapMut::map_anon(size)?;
    #[cfg(target_os = "linux")]
    {
        // Where it fails there are none, and the memory is in ordinary pages.
        let _ = map.advise(memmap2::Advice::HugePage);
    }
    Ok(map)
}

/// Drops the pages of a range, and those that came with them.
pub(super) fn drop_pages_around(map: &Mmap, range: Range<usize>) {
    let (margin, page) = (RELEASE_MARGIN as usize, PAGE_MAX as usize);
    let start = range.start.saturating_sub(margin) / page * page;
    let end = range.end.saturating_add(margin).min(map.len());
    if start < end {
        drop_pages(map, start..end);
    }
}

#[cfg(unix)]
fn drop_pages(map: &Mmap, range: Range<usize>) {
    let advice = memmap2::UncheckedAdvice::DontNeed;
    // SAFETY: the pages are a shared read-only mapping of a file, within the mapping. Dropped pages
    // are read from the file again when touched, and hold the same bytes: nobody can see a change.
    let dropped = unsafe { map.unchecked_advise_range(advice, range.start, range.len()) };
    // Advice: where the system does not take it, the pages just stay.
    let _ = dropped;
}

#[cfg(not(unix))]
fn drop_pages(_map: &Mmap, _range: Range<usize>) {}
