//! The part of the zip format that torch writes: records stored as they are, found by a directory
//! at the end of the file, with 64-bit sizes where they are needed.
//!
//! Used by `torch.rs`. The directory is trusted for nothing: every record is checked against its
//! own header, must lie before the directory, and may not overlap another one. The checksum of a
//! record is handed on, to be checked when the record is read.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::files::SourceFile;
use crate::math::{push, reserve};

const END: &[u8] = b"PK\x05\x06";
const END_BYTES: u64 = 22;
const END64: &[u8] = b"PK\x06\x06";
const END64_BYTES: u64 = 56;
const LOCATOR: &[u8] = b"PK\x06\x07";
const LOCATOR_BYTES: u64 = 20;
const ENTRY: &[u8] = b"PK\x01\x02";
const ENTRY_BYTES: usize = 46;
const LOCAL: &[u8] = b"PK\x03\x04";
const LOCAL_BYTES: u64 = 30;

/// A directory has some hundred bytes a tensor; the largest models have some thousand tensors.
const DIRECTORY_BYTES_MAX: u64 = 16 << 20;

/// How much memory a directory takes, at most, in bytes a byte of it. Pieces of it are small, so that it is
/// asked for before they are.
const MEMORY_FACTOR: usize = 6;

/// The extra field that holds 64-bit sizes.
const ZIP64_FIELD: u16 = 1;

/// A 32-bit size whose value is in the 64-bit field instead.
const IN_ZIP64: u32 = u32::MAX;

/// Flags of an entry: its bytes are encrypted; its sizes are not in its own header but behind it.
const FLAG_ENCRYPTED: u16 = 1;
const FLAG_SIZES_BEHIND: u16 = 1 << 3;

/// One file of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Bytes from the start of the file.
    pub(super) data: Range<u64>,
    pub(super) crc32: u32,
}

/// Little-endian numbers off the front of some bytes; `None` once they run out.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

/// The records of an archive, by name.
pub(super) fn records(file: &SourceFile) -> Result<BTreeMap<String, Record>> {
    let directory = find_directory(file)?;
    let size = directory.bytes.end - directory.bytes.start;
    if size > DIRECTORY_BYTES_MAX || directory.entries > size / ENTRY_BYTES as u64 {
        return Err(Error::format(format!(
            "zip directory of {size} bytes for {} records",
            directory.entries
        )));
    }
    drop(reserve::<u8>(
        MEMORY_FACTOR * size as usize,
        "a zip directory",
    )?);
    let bytes = file.bytes(directory.bytes.clone())?;
    let mut fields = Fields(&bytes);
    let mut records = BTreeMap::new();
    let mut places = Vec::new();
    for i in 0..directory.entries {
        let entry = Entry::read(&mut fields)
            .ok_or_else(|| Error::format(format!("zip directory: entry {i} is damaged")))?;
        let (name, header) = (entry.name.clone(), entry.header);
        let record = entry
            .locate(file, directory.bytes.start)
            .map_err(|e| e.at(format!("record {name}")))?;
        let place = (header..record.data.end, name.clone());
        push(&mut places, place, "a zip directory")?;
        if records.insert(name.clone(), record).is_some() {
            return Err(Error::format(format!("record {name}: occurs twice")));
        }
    }
    if !fields.0.is_empty() {
        let message = format!("zip directory: {} bytes too many", fields.0.len());
        return Err(Error::format(message));
    }
    refuse_overlap(places)?;
    Ok(records)
}

fn refuse_overlap(mut places: Vec<(Range<u64>, String)>) -> Result<()> {
    places.sort_by_key(|(range, _)| range.start);
    let mut end = 0;
    for (range, name) in places {
        if range.start < end {
            let message = format!("record {name}: overlaps the one before it");
            return Err(Error::format(message));
        }
        end = range.end;
    }
    Ok(())
}

struct Directory {
    bytes: Range<u64>,
    entries: u64,
}

/// Finds the directory from the end of the file. It must end where its own end mark begins, so that
/// a file with something before or behind the archive is not taken for a sound one.
fn find_directory(file: &SourceFile) -> Result<Directory> {
    let damaged = || Error::format("no zip directory at the end of the file: truncated or padded");
    let tail_start = file.len().saturating_sub(END_BYTES + u64::from(u16::MAX));
    let tail = file.bytes(tail_start..file.len())?;
    let (at, mut fields) = (0..tail.len().saturating_sub(END_BYTES as usize - 1))
        .rev()
        .find_map(|at| {
            let mark = tail.get(at..)?.strip_prefix(END)?;
            let comment = Fields(mark.get(16..)?).u16()?;
            let ends = at + END_BYTES as usize + usize::from(comment) == tail.len();
            ends.then_some((tail_start + at as u64, Fields(mark)))
        })
        .ok_or_else(damaged)?;
    let mut directory = (|| {
        let disks = (fields.u16()?, fields.u16()?);
        let entries = (fields.u16()?, fields.u16()?);
        let (size, start) = (fields.u32()?, fields.u32()?);
        (disks.0 == disks.1 && entries.0 == entries.1).then_some(())?;
        Some((u64::from(entries.0), u64::from(size), u64::from(start)))
    })()
    .ok_or_else(damaged)?;
    let mut end = at;
    if let Some((wide_at, wide)) = find_wide_end(file, at)? {
        // The narrow fields either hold the same number or all ones.
        let narrow = [
            (directory.0, wide.0, u64::from(u16::MAX)),
            (directory.1, wide.1, u64::from(IN_ZIP64)),
            (directory.2, wide.2, u64::from(IN_ZIP64)),
        ];
        if narrow
            .iter()
            .any(|(narrow, wide, ones)| narrow != wide && narrow != ones)
        {
            return Err(Error::format("the two ends of the zip directory disagree"));
        }
        directory = wide;
        end = wide_at;
    }
    let (entries, size, start) = directory;
    if start.checked_add(size) != Some(end) {
        return Err(Error::format(format!(
            "zip directory of {size} bytes at {start}, expected to end at {end}: \
             truncated or padded"
        )));
    }
    Ok(Directory {
        bytes: start..end,
        entries,
    })
}

/// The 64-bit end mark before the 32-bit one at `end`, and its number of entries, size and start.
#[allow(clippy::type_complexity)]
fn find_wide_end(file: &SourceFile, end: u64) -> Result<Option<(u64, (u64, u64, u64))>> {
    let Some(locator_at) = end.checked_sub(LOCATOR_BYTES) else {
        return Ok(None);
    };
    let locator = file.bytes(locator_at..end)?;
    let Some(locator) = locator.strip_prefix(LOCATOR) else {
        return Ok(None);
    };
    let damaged = || Error::format("the 64-bit end of the zip directory is damaged");
    let mut fields = Fields(locator);
    let wide_at = fields
        .u32()
        .and_then(|_disk| fields.u64())
        .ok_or_else(damaged)?;
    if wide_at.checked_add(END64_BYTES) != Some(locator_at) {
        return Err(damaged());
    }
    let wide = file.bytes(wide_at..locator_at)?;
    let mut fields = Fields(wide.strip_prefix(END64).ok_or_else(damaged)?);
    let numbers = (|| {
        let rest = fields.u64()?;
        fields.bytes(4)?; // versions
        let disks = (fields.u32()?, fields.u32()?);
        let entries = (fields.u64()?, fields.u64()?);
        let sound = rest == END64_BYTES - 12 && disks.0 == disks.1 && entries.0 == entries.1;
        sound.then_some((entries.0, fields.u64()?, fields.u64()?))
    })();
    Ok(Some((wide_at, numbers.ok_or_else(damaged)?)))
}

/// A line of the directory.
struct Entry {
    name: String,
    flags: u16,
    method: u16,
    crc32: u32,
    /// As stored and as it was: the same for records stored as they are.
    sizes: (u64, u64),
    /// Where the record's own header is.
    header: u64,
}

impl Entry {
    fn read(fields: &mut Fields<'_>) -> Option<Self> {
        (fields.bytes(4)? == ENTRY).then_some(())?;
        fields.bytes(4)?; // versions
        let (flags, method) = (fields.u16()?, fields.u16()?);
        fields.bytes(4)?; // time and date
        let crc32 = fields.u32()?;
        let (stored, size) = (fields.u32()?, fields.u32()?);
        let lengths = [fields.u16()?, fields.u16()?, fields.u16()?].map(usize::from);
        let _disk = fields.u16()?;
        fields.bytes(6)?; // attributes
        let header = fields.u32()?;
        let name = std::str::from_utf8(fields.bytes(lengths[0])?)
            .ok()?
            .to_owned();
        let mut wide = zip64_field(fields.bytes(lengths[1])?);
        fields.bytes(lengths[2])?; // comment
                                   // The 64-bit field holds those numbers that are all ones above,
                                   // in this order.
        let mut widened = |narrow: u32| match narrow {
            IN_ZIP64 => wide.as_mut()?.u64(),
            _ => Some(u64::from(narrow)),
        };
        let size = widened(size)?;
        let stored = widened(stored)?;
        let header = widened(header)?;
        Some(Entry {
            name,
            flags,
            method,
            crc32,
            sizes: (stored, size),
            header,
        })
    }

    /// Finds the record's bytes behind its own header, which must agree with the directory.
    fn locate(self, file: &SourceFile, directory_start: u64) -> Result<Record> {
        if self.method != 0 || self.flags & FLAG_ENCRYPTED != 0 {
            return Err(Error::unsupported(
                "compressed or encrypted, expected records stored as they are",
            ));
        }
        if self.sizes.0 != self.sizes.1 {
            let message = format!("{} bytes stored of {}", self.sizes.0, self.sizes.1);
            return Err(Error::format(message));
        }
        let outside = || {
            Error::format(format!(
                "{} bytes at {} do not lie before the zip directory at {directory_start}",
                self.sizes.0, self.header
            ))
        };
        let header_end = self.header.checked_add(LOCAL_BYTES);
        let header_end = header_end
            .filter(|&end| end <= directory_start)
            .ok_or_else(outside)?;
        let header = file.bytes(self.header..header_end)?;
        let (local, lengths) =
            LocalHeader::read(&header).ok_or_else(|| Error::format("its own header is damaged"))?;
        let name_end = header_end + u64::from(lengths.0);
        let start = name_end + u64::from(lengths.1);
        let end = start.checked_add(self.sizes.0);
        let end = end
            .filter(|&end| end <= directory_start)
            .ok_or_else(outside)?;
        let same_name = *file.bytes(header_end..name_end)? == *self.name.as_bytes();
        let sizes_behind = local.flags & FLAG_SIZES_BEHIND != 0;
        let same_size = sizes_behind
            || local.size == IN_ZIP64
            || (u64::from(local.size) == self.sizes.0 && local.crc32 == self.crc32);
        if !same_name || !same_size || local.method != 0 {
            return Err(Error::format(
                "its own header disagrees with the zip directory",
            ));
        }
        Ok(Record {
            data: start..end,
            crc32: self.crc32,
        })
    }
}

struct LocalHeader {
    flags: u16,
    method: u16,
    crc32: u32,
    size: u32,
}

impl LocalHeader {
    /// The header, and the lengths of name and extra fields behind it.
    fn read(bytes: &[u8]) -> Option<(Self, (u16, u16))> {
        let mut fields = Fields(bytes.strip_prefix(LOCAL)?);
        fields.u16()?; // version
        let (flags, method) = (fields.u16()?, fields.u16()?);
        fields.bytes(4)?; // time and date
        let crc32 = fields.u32()?;
        let (_stored, size) = (fields.u32()?, fields.u32()?);
        let lengths = (fields.u16()?, fields.u16()?);
        let header = LocalHeader {
            flags,
            method,
            crc32,
            size,
        };
        Some((header, lengths))
    }
}

/// The content of the 64-bit field among an entry's extra fields.
fn zip64_field(extra: &[u8]) -> Option<Fields<'_>> {
    let mut fields = Fields(extra);
    loop {
        let (id, length) = (fields.u16()?, fields.u16()?);
        let content = fields.bytes(usize::from(length))?;
        if id == ZIP64_FIELD {
            return Some(Fields(content));
        }
    }
}
