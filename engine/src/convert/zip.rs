//! Writes zip archives the way torch does: records stored as they are, their bytes on 64-byte
//! boundaries, 64-bit numbers where 32 bits do not hold them.
//!
//! A record's bytes pass through once. Its checksum is known only then, and is put into its header
//! afterwards.

#![forbid(unsafe_code)]

use super::Put;
use crate::error::{Error, Result};
use crate::files::output::OutputFile;

/// Of every record's bytes, so that tensors can be used in a mapped file.
const ALIGNMENT: u64 = 64;

const LOCAL_BYTES: u64 = 30;
/// Of the checksum, in a record's own header.
const CRC32_AT: u64 = 14;
/// Version of the format that a reader must know: 1.0, or 4.5 for 64-bit numbers.
const VERSION: u16 = 10;
const VERSION_64: u16 = 45;
/// 1980-01-01, the first day that the format can say.
const DATE: u16 = 1 << 5 | 1;
/// Stands for a number that is in the 64-bit field instead.
const IN_ZIP64: u32 = u32::MAX;
const ZIP64_FIELD: u16 = 1;
/// The extra field that torch fills with padding.
const PADDING_FIELD: [u8; 2] = *b"FB";
const PADDING: u8 = b'Z';

/// Where an archive is written to.
pub(super) trait Sink {
    fn write(&mut self, bytes: &[u8]) -> Result<()>;
    /// Overwrites bytes written before.
    fn overwrite(&mut self, offset: u64, bytes: &[u8]) -> Result<()>;
}

impl Sink for OutputFile {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        OutputFile::write(self, bytes)
    }

    fn overwrite(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        OutputFile::overwrite(self, offset, bytes)
    }
}

/// An archive being written.
pub(super) struct ZipWriter<S> {
    sink: S,
    /// Bytes written.
    at: u64,
    records: Vec<Record>,
}

struct Record {
    name: String,
    size: u64,
    crc32: u32,
    header: u64,
}

impl<S: Sink> ZipWriter<S> {
    pub(super) fn new(sink: S) -> Self {
        ZipWriter {
            sink,
            at: 0,
            records: Vec::new(),
        }
    }

    /// Writes a record of `size` bytes, which `fill` hands to its argument a piece at a time.
    ///
    /// # Errors
    /// Those of `fill` and of the sink; another number of bytes.
    pub(super) fn record(
        &mut self,
        name: &str,
        size: u64,
        fill: impl FnOnce(&mut Put<'_>) -> Result<()>,
    ) -> Result<()> {
        let header = self.at;
        self.put(&local_header(name, size, header))?;
        let start = self.at;
        let mut hasher = crc32fast::Hasher::new();
        fill(&mut |bytes| {
            hasher.update(bytes);
            self.put(bytes)
        })?;
        let found = self.at - start;
        if found != size {
            let text = format!("record {name}: {found} bytes written, {size} announced");
            return Err(Error::format(text));
        }
        let crc32 = hasher.finalize();
        self.sink
            .overwrite(header + CRC32_AT, &crc32.to_le_bytes())?;
        self.records.push(Record {
            name: name.to_owned(),
            size,
            crc32,
            header,
        });
        Ok(())
    }

    /// Writes the directory of all records; gives back what was written to.
    pub(super) fn finish(mut self) -> Result<S> {
        let start = self.at;
        let records = std::mem::take(&mut self.records);
        for record in &records {
            self.put(&directory_entry(record))?;
        }
        self.put(&directory_end(records.len() as u64, start, self.at))?;
        Ok(self.sink)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.sink.write(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// Little-endian numbers one after the other.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u16(mut self, number: u16) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn u32(mut self, number: u32) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn u64(mut self, number: u64) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

/// The number, or what stands for it where it is in the 64-bit field.
fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(IN_ZIP64)
}

fn is_wide(number: u64) -> bool {
    narrow(number) == IN_ZIP64
}

/// A record's own header, to be written at `at`, with no checksum yet.
fn local_header(name: &str, size: u64, at: u64) -> Vec<u8> {
    let mut extra = Bytes::default();
    if is_wide(size) {
        extra = extra.u16(ZIP64_FIELD).u16(16).u64(size).u64(size);
    }
    let end = at + LOCAL_BYTES + (name.len() + extra.0.len() + 4) as u64;
    let padding = (end.next_multiple_of(ALIGNMENT) - end) as u16;
    extra = extra.raw(&PADDING_FIELD).u16(padding);
    extra
        .0
        .extend(std::iter::repeat_n(PADDING, usize::from(padding)));
    let version = if is_wide(size) { VERSION_64 } else { VERSION };
    Bytes::default()
        .raw(b"PK\x03\x04")
        .u16(version)
        .u16(0) // flags
        .u16(0) // stored as it is
        .u16(0) // time
        .u16(DATE)
        .u32(0) // checksum
        .u32(narrow(size))
        .u32(narrow(size))
        .u16(name.len() as u16)
        .u16(extra.0.len() as u16)
        .raw(name.as_bytes())
        .raw(&extra.0)
        .0
}

fn directory_entry(record: &Record) -> Vec<u8> {
    // Holds those numbers that are all ones outside it, in this order.
    let mut wide = Bytes::default();
    for number in [record.size, record.size, record.header] {
        if is_wide(number) {
            wide = wide.u64(number);
        }
    }
    let mut extra = Bytes::default();
    if !wide.0.is_empty() {
        extra = extra.u16(ZIP64_FIELD).u16(wide.0.len() as u16).raw(&wide.0);
    }
    let version = if wide.0.is_empty() {
        VERSION
    } else {
        VERSION_64
    };
    Bytes::default()
        .raw(b"PK\x01\x02")
        .u16(version)
        .u16(version)
        .u16(0) // flags
        .u16(0) // stored as it is
        .u16(0) // time
        .u16(DATE)
        .u32(record.crc32)
        .u32(narrow(record.size))
        .u32(narrow(record.size))
        .u16(record.name.len() as u16)
        .u16(extra.0.len() as u16)
        .u16(0) // comment
        .u16(0) // disk
        .u16(0) // internal attributes
        .u32(0) // external attributes
        .u32(narrow(record.header))
        .raw(record.name.as_bytes())
        .raw(&extra.0)
        .0
}

/// What stands behind the directory of `count` records at `start..end`.
fn directory_end(count: u64, start: u64, end: u64) -> Vec<u8> {
    let size = end - start;
    let narrow_count = u16::try_from(count).unwrap_or(u16::MAX);
    let mut bytes = Bytes::default();
    if is_wide(start) || is_wide(size) || narrow_count == u16::MAX {
        bytes = bytes
            .raw(b"PK\x06\x06")
            .u64(44) // bytes of this that follow
            .u16(VERSION_64)
            .u16(VERSION_64)
            .u32(0) // disks
            .u32(0)
            .u64(count)
            .u64(count)
            .u64(size)
            .u64(start)
            .raw(b"PK\x06\x07")
            .u32(0) // disk
            .u64(end)
            .u32(1); // disks
    }
    bytes
        .raw(b"PK\x05\x06")
        .u32(0) // disks
        .u16(narrow_count)
        .u16(narrow_count)
        .u32(narrow(size))
        .u32(narrow(start))
        .u16(0) // comment
        .0
}
