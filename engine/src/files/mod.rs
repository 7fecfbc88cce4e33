//! Files as ranges of bytes: mapped into memory, read on demand, or built into the program.
//!
//! The bottom of the way of the data: readers of checkpoints and model files ask a [`SourceFile`]
//! for ranges and get [`FileBytes`], which stay valid for as long as they are held. Every range is
//! checked against the length of the file, and offsets are 64-bit on every target, so a file larger
//! than the address space works: what cannot be mapped whole is mapped one range at a time.
//!
//! `map.rs` is the only place where files are mapped. A mapped file must not be rewritten in place
//! while it is in use; this project's own writers replace files by renaming, which leaves the
//! mapped one as it was. Where one is cut all the same, `sigbus.rs` keeps the process alive, if the
//! program asked for it, and `watch.rs` says so to whoever read it: every reader looks there before it
//! uses what it read. `bytes.rs` are the bytes, `folder.rs` names files in a folder, `huge_pages.rs`
//! copies what is to be read faster than from a mapping. `output.rs` writes one file, `pending.rs`
//! several that belong together, `left_overs.rs` removes what killed processes leave; `retry.rs` makes
//! interrupted calls again, `file_size.rs` knows the limit of the size of files, `growing.rs` holds
//! bytes that are yet to be written.

#![deny(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};

mod bytes;
#[allow(unsafe_code)]
mod file_size;
mod folder;
mod growing;
mod huge_pages;
mod left_overs;
#[allow(unsafe_code)]
mod map;
pub(crate) mod output;
pub(crate) mod pending;
mod retry;
#[cfg(any(target_os = "linux", target_os = "android"))]
#[allow(unsafe_code)]
mod sigbus;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
#[path = "no_sigbus.rs"]
mod sigbus;
mod watch;

use bytes::Storage;
use map::{drop_pages_around, map_range, map_whole, Mapping};

pub(crate) use bytes::FileBytes;
pub use file_size::ignore_file_size_signal;
pub(crate) use folder::Folder;
pub(crate) use growing::GrowingBytes;
pub(crate) use huge_pages::HugePages;
pub(crate) use left_overs::is_unfinished;
pub(crate) use map::RELEASE_MARGIN;
pub(crate) use retry::retried;
pub use sigbus::install_sigbus_handler;
pub(crate) use watch::Watch;

/// Files up to this size are mapped whole. A 32-bit address space has at most 2 to 4 GiB for
/// everything, and seldom more than one of them in one piece.
const MAP_WHOLE_MAX: u64 = if usize::BITS >= 64 { u64::MAX } else { 1 << 30 };

/// Whether pages of a mapped file can be dropped and come back when they are touched. Other systems take
/// the same advice in other ways.
pub(crate) const PAGES_CAN_BE_DROPPED: bool = cfg!(any(target_os = "linux", target_os = "android"));
/// Where buffers of files that are not mapped start: as the tensors of model files are aligned.
const BUFFER_ALIGN: usize = 64;

/// How the bytes of a file on disk are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Mapped: whole when the file is at most this long, else one range at a time.
    Mapped { whole_max: u64 },
    /// Read into memory, one range at a time.
    Read,
}

impl Access {
    /// Mapped, as is best on this target, or read.
    pub(crate) fn new(mapped: bool) -> Self {
        if mapped {
            Access::Mapped {
                whole_max: MAP_WHOLE_MAX,
            }
        } else {
            Access::Read
        }
    }
}

/// An open file of known length. Cheap to clone.
#[derive(Clone)]
pub(crate) struct SourceFile(Arc<Inner>);

struct Inner {
    name: String,
    len: u64,
    backing: Backing,
    /// Of a mapped file: all of its mappings have the same.
    watch: Watch,
}

enum Backing {
    Bytes(FileBytes),
    /// In memory, but not aligned as tensors must be to be used in place: ranges are copied.
    Unaligned(FileBytes),
    Whole(Arc<Mapping>),
    Windows(ReadAt),
    Read(ReadAt),
}

impl SourceFile {
    /// Opens a file whose ranges are read into memory when they are asked for.
    pub(crate) fn open_without_mapping(path: &Path) -> Result<Self> {
        Self::open_with(path, Access::Read)
    }

    /// Opens a regular, non-empty file.
    pub(crate) fn open_with(path: &Path, access: Access) -> Result<Self> {
        // Asked before opening, because opening a named pipe waits for a writer.
        let found = retried(|| std::fs::metadata(path)).map_err(|e| Error::io("open", path, e))?;
        require_regular(path, &found)?;
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let found =
            retried(|| file.metadata()).map_err(|e| Error::io("read the length", path, e))?;
        require_regular(path, &found)?;
        let len = found.len();
        if len == 0 {
            return Err(Error::format("the file is empty").at(path.display()));
        }
        let name = path.display().to_string();
        let file = Arc::new(file);
        let watch = Watch::new(&name, Some(file.clone()), len);
        let backing = match access {
            Access::Read => Backing::Read(ReadAt::new(file)),
            Access::Mapped { whole_max } => match map_whole(&file, len, whole_max, &watch) {
                Some(map) => Backing::Whole(Arc::new(map)),
                None => Backing::Windows(ReadAt::new(file)),
            },
        };
        Ok(SourceFile(Arc::new(Inner {
            name,
            len,
            backing,
            watch,
        })))
    }

    /// A file that is part of the program.
    pub(crate) fn from_static(name: &str, bytes: &'static [u8]) -> Self {
        Self::from_bytes(name, FileBytes::from_static(bytes))
    }

    /// A file that lies in memory for as long as anyone uses it, such as in flash. Aligned to 64 bytes its
    /// ranges are used in place; else they are copied.
    ///
    /// # Errors
    /// When there are no bytes.
    pub(crate) fn in_memory_image(name: &str, bytes: &'static [u8]) -> Result<Self> {
        if bytes.is_empty() {
            return Err(Error::format("no bytes, expected a model").at(name));
        }
        let aligned = bytes.as_ptr().align_offset(BUFFER_ALIGN) == 0;
        let image = FileBytes::from_static(bytes);
        let backing = match aligned {
            true => Backing::Bytes(image),
            false => Backing::Unaligned(image),
        };
        Ok(SourceFile(Arc::new(Inner {
            name: name.to_owned(),
            len: bytes.len() as u64,
            backing,
            watch: Watch::new(name, None, 0),
        })))
    }

    /// Whether ranges lie in memory of the caller and are used there.
    pub(crate) fn is_in_memory(&self) -> bool {
        matches!(self.0.backing, Backing::Bytes(_))
    }

    /// A file whose content is in memory.
    pub(crate) fn from_bytes(name: &str, bytes: FileBytes) -> Self {
        SourceFile(Arc::new(Inner {
            name: name.to_owned(),
            len: bytes.len() as u64,
            backing: Backing::Bytes(bytes),
            watch: Watch::new(name, None, 0),
        }))
    }

    /// The path, for error texts.
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.0.len
    }

    /// Whether the bytes come from the page cache without a copy.
    #[cfg(test)]
    pub(crate) fn is_mapped(&self) -> bool {
        matches!(self.0.backing, Backing::Whole(_) | Backing::Windows(_))
    }

    /// The bytes of a range.
    ///
    /// # Errors
    /// A range outside the file, a failed read, or a range too large for the memory.
    pub(crate) fn bytes(&self, range: Range<u64>) -> Result<FileBytes> {
        if range.start > range.end || range.end > self.len() {
            return Err(self.outside(&range));
        }
        if range.is_empty() {
            return Ok(FileBytes::from_static(&[]));
        }
        let size = usize::try_from(range.end - range.start).map_err(|_| self.too_large(&range))?;
        match &self.0.backing {
            Backing::Bytes(bytes) => bytes
                .slice(self.in_memory(&range)?)
                .ok_or_else(|| self.outside(&range)),
            Backing::Unaligned(bytes) => {
                let (mut copy, start) =
                    aligned_buffer(size).ok_or_else(|| self.too_large(&range))?;
                let wanted = bytes.get(self.in_memory(&range)?);
                let wanted = wanted.ok_or_else(|| self.outside(&range))?;
                copy[start..start + size].copy_from_slice(wanted);
                FileBytes::new(Storage::Owned(Arc::new(copy)))
                    .slice(start..start + size)
                    .ok_or_else(|| self.too_large(&range))
            }
            Backing::Whole(map) => FileBytes::new(Storage::Mapped(map.clone()))
                .slice(self.in_memory(&range)?)
                .ok_or_else(|| self.outside(&range)),
            Backing::Windows(file) => {
                match map_range(file.file(), range.start, size, &self.0.watch) {
                    Some(map) => Ok(FileBytes::new(Storage::Mapped(Arc::new(map)))),
                    None => self.read(file, &range, size),
                }
            }
            Backing::Read(file) => self.read(file, &range, size),
        }
    }

    /// Says that the bytes of this range are not needed for now, so that a mapped file read once
    /// from end to end does not count as used memory. They may be asked for again; they are read
    /// again then.
    pub(crate) fn release(&self, range: Range<u64>) {
        if let (Backing::Whole(map), Ok(start), Ok(end)) = (
            &self.0.backing,
            usize::try_from(range.start),
            usize::try_from(range.end),
        ) {
            drop_pages_around(map.map(), start..end);
        }
    }

    /// Whether ranges are mapped, and their pages can be dropped and come back.
    pub(crate) fn pages_can_be_dropped(&self) -> bool {
        PAGES_CAN_BE_DROPPED && matches!(self.0.backing, Backing::Whole(_) | Backing::Windows(_))
    }

    /// Who knows whether its bytes could all be read.
    pub(crate) fn watch(&self) -> &Watch {
        &self.0.watch
    }

    fn read(&self, file: &ReadAt, range: &Range<u64>, size: usize) -> Result<FileBytes> {
        let (mut bytes, start) = aligned_buffer(size).ok_or_else(|| self.too_large(range))?;
        let wanted = bytes
            .get_mut(start..start + size)
            .ok_or_else(|| self.too_large(range))?;
        file.read_exact_at(wanted, range.start)
            .map_err(|e| match e.kind() {
                // It was long enough when it was opened.
                io::ErrorKind::UnexpectedEof => self.0.watch.lost(),
                _ => Error::io("read", Path::new(self.name()), e),
            })?;
        FileBytes::new(Storage::Owned(Arc::new(bytes)))
            .slice(start..start + size)
            .ok_or_else(|| self.too_large(range))
    }

    fn in_memory(&self, range: &Range<u64>) -> Result<Range<usize>> {
        match (usize::try_from(range.start), usize::try_from(range.end)) {
            (Ok(start), Ok(end)) => Ok(start..end),
            _ => Err(self.too_large(range)),
        }
    }

    fn outside(&self, range: &Range<u64>) -> Error {
        Error::format(format!(
            "bytes {}..{} are outside the file, which has {}",
            range.start,
            range.end,
            self.len()
        ))
        .at(self.name())
    }

    fn too_large(&self, range: &Range<u64>) -> Error {
        let message = format!(
            "no memory for the {} bytes at {}",
            range.end - range.start,
            range.start
        );
        Error::new(ErrorKind::Memory, message).at(self.name())
    }
}

impl std::fmt::Debug for SourceFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SourceFile({:?}, {} bytes)", self.name(), self.len())
    }
}

fn require_regular(path: &Path, found: &std::fs::Metadata) -> Result<()> {
    let what = if found.is_file() {
        return Ok(());
    } else if found.is_dir() {
        "a directory"
    } else {
        "a pipe, socket or device"
    };
    let message = format!("{}: {what}, expected a regular file", path.display());
    Err(Error::new(ErrorKind::Io, message))
}

/// A buffer and where in it `size` bytes start on a 64-byte boundary; `None` without the memory.
fn aligned_buffer(size: usize) -> Option<(Vec<u8>, usize)> {
    let with_slack = size.checked_add(BUFFER_ALIGN)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(with_slack).ok()?;
    bytes.resize(with_slack, 0);
    let start = bytes.as_ptr().align_offset(BUFFER_ALIGN);
    (start <= BUFFER_ALIGN).then_some((bytes, start))
}

/// Reads at an offset, from several threads at once.
struct ReadAt {
    file: Arc<File>,
    /// Held over seek and read, where the system has no read at an offset.
    #[cfg(not(unix))]
    position: std::sync::Mutex<()>,
}

impl ReadAt {
    fn new(file: Arc<File>) -> Self {
        ReadAt {
            file,
            #[cfg(not(unix))]
            position: std::sync::Mutex::new(()),
        }
    }

    fn file(&self) -> &File {
        &self.file
    }

    #[cfg(unix)]
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&*self.file, buffer, offset)
    }

    #[cfg(not(unix))]
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        let _held = self.position.lock();
        let mut file = &*self.file;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn open(path: &Path) -> Result<SourceFile> {
        SourceFile::open_with(path, Access::new(true))
    }

    fn sample() -> (tempfile::NamedTempFile, Vec<u8>) {
        let content: Vec<u8> = (0..300_000u32).map(|i| (i * 31 % 251) as u8).collect();
        let mut file = tempfile::NamedTempFile::new().expect("temporary file");
        file.write_all(&content).expect("write");
        (file, content)
    }

    /// Every way to reach a file gives the same bytes, at any offset, before and after a release.
    #[test]
    fn all_ways_to_read_agree() {
        let (file, content) = sample();
        let ways = [
            Access::new(true),
            Access::Mapped { whole_max: 0 },
            Access::Read,
        ];
        for access in ways {
            let source = SourceFile::open_with(file.path(), access).expect("open");
            assert_eq!(source.len(), 300_000);
            assert_eq!(source.is_mapped(), access != Access::Read);
            for range in [0..1, 4095..4097, 70_001..299_999, 5..5, 0..300_000] {
                let bytes = source.bytes(range.start..range.end).expect("range");
                let range = range.start as usize..range.end as usize;
                assert_eq!(&*bytes, &content[range.clone()], "{access:?} {range:?}");
                source.release(0..300_000);
                assert_eq!(&*bytes, &content[range.clone()], "{access:?} {range:?}");
            }
            let outside = source.bytes(299_999..300_001).expect_err("outside");
            assert!(outside.to_string().contains("299999..300001"), "{outside}");
            assert!(source.bytes(Range { start: 9, end: 8 }).is_err());
            let bytes = source.bytes(64..256).expect("range");
            assert_eq!(&*bytes.slice(3..7).expect("part"), &content[67..71]);
            assert!(bytes.slice(0..193).is_none());
            if access == Access::Read {
                assert_eq!(bytes.as_ptr().align_offset(BUFFER_ALIGN), 0);
            }

            let ranges = [7..8, 0..300_000, 5..5, 70_001..299_999];
            let lengths = ranges.iter().map(|range| range.end - range.start);
            let mut pages = HugePages::new(lengths, "copies").expect("memory");
            let places = ranges
                .clone()
                .map(|range| pages.copy(&source, range).expect("within the file"));
            assert!(
                pages.copy(&source, 0..300_000).is_err(),
                "more than was said"
            );
            let copies = pages.finish().expect("can be protected");
            assert!(!copies.is_mapped() && copies.name() == "copies");
            let end = places[3] + 229_998;
            assert_eq!(copies.len(), end, "nothing behind the last");
            for (range, place) in ranges.into_iter().zip(places) {
                let bytes = copies.bytes(place..place + range.end - range.start);
                let bytes = bytes.expect("was copied");
                let is_aligned = bytes.as_ptr().align_offset(BUFFER_ALIGN) == 0;
                assert!(bytes.is_empty() || bytes.is_in_huge_pages() && is_aligned);
                // A page that is dropped would be lost.
                copies.release(0..copies.len());
                bytes.release(0..bytes.len());
                assert_eq!(&*bytes, &content[range.start as usize..range.end as usize]);
            }
        }
    }

    /// Whatever the way, a file that shrank gives no bytes without an error.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[test]
    fn a_file_that_is_cut_is_seen() {
        install_sigbus_handler().expect("a handler");
        for access in [Access::new(true), Access::Mapped { whole_max: 0 }] {
            let (file, content) = sample();
            let source = SourceFile::open_with(file.path(), access).expect("open");
            let bytes = source.bytes(5000..300_000).expect("range");
            let behind = source.bytes(299_990..300_000).expect("range");
            assert_eq!(&*behind, &content[299_990..]);
            source.watch().check().expect("whole");
            // The last page is still there.
            file.as_file().set_len(299_999).expect("is cut");
            source.watch().check().expect("nothing was read");
            assert_eq!(behind[9], 0);
            source.watch().judge(Ok(())).expect_err("is shorter");

            let (file, _) = sample();
            let source = SourceFile::open_with(file.path(), access).expect("open");
            let held = source.bytes(5000..300_000).expect("range");
            file.as_file().set_len(0).expect("is cut");
            assert!(held.iter().all(|&byte| byte == 0), "{access:?}");
            let error = held.check_readable().expect_err("lost");
            assert_eq!(error.kind(), ErrorKind::Io);
            let place = file.path().display().to_string();
            assert!(error.to_string().starts_with(&place), "{error}");
            source.watch().check().expect_err("lost");
            // What the file said is no reason for another error.
            let damaged: Result<()> = Err(Error::format("damaged"));
            let judged = source.watch().judge(damaged).expect_err("lost");
            assert_eq!(judged.kind(), ErrorKind::Io);
            drop(bytes);
        }
        let (file, _) = sample();
        let source = SourceFile::open_with(file.path(), Access::Read).expect("open");
        file.as_file().set_len(10).expect("is cut");
        let error = source.bytes(5..20).expect_err("is shorter");
        assert!(error.to_string().contains("shrank"), "{error}");
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let missing = open(&folder.path().join("no")).expect_err("missing");
        assert_eq!(missing.kind(), ErrorKind::Io);
        let directory = open(folder.path()).expect_err("directory");
        assert!(directory.to_string().contains("a directory"), "{directory}");
        let empty = tempfile::NamedTempFile::new().expect("temporary file");
        let empty = open(empty.path()).expect_err("empty");
        assert_eq!(empty.kind(), ErrorKind::Format);
        assert!(empty.to_string().contains("empty"), "{empty}");
        #[cfg(unix)]
        {
            let device = open(Path::new("/dev/zero")).expect_err("device");
            assert!(device.to_string().contains("device"), "{device}");
        }
    }

    #[test]
    fn folders_on_disk_and_in_memory() {
        static FILES: [(&str, &[u8]); 2] = [("b", b"two"), ("a", b"one")];
        let disk = tempfile::tempdir().expect("temporary folder");
        for (name, bytes) in FILES {
            std::fs::write(disk.path().join(name), bytes).expect("write");
        }
        for folder in [Folder::Memory(&FILES), Folder::Disk(disk.path().into())] {
            assert_eq!(folder.list().expect("list"), ["a", "b"]);
            let file = folder.open("a", true).expect("open").expect("there");
            assert_eq!(&*file.bytes(0..3).expect("bytes"), b"one");
            assert!(folder.open("c", true).expect("open").is_none());
        }
    }
}
