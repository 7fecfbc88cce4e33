//! torch's checkpoint files, `.pth` and `.bin`: a zip archive with a pickled table and one record
//! for each storage.
//!
//! Joins `zip.rs` and `pickle.rs`: every tensor of the table is given its place in the file, which
//! must lie within its storage's record. The records themselves are only touched when a tensor is
//! read, and then checked against the archive's checksum once.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use super::checksum::{crc32, Checksum};
use super::name_file;
use super::pickle::{self, PickledTensor, Storage};
use super::tensor::RawTensor;
use super::zip::{self, Record};
use crate::error::{Error, Result};
use crate::files::{FileBytes, SourceFile};

/// The table has some hundred bytes a tensor, and the largest models some thousand tensors, training
/// checkpoints three times as many. What it builds in memory is bounded by the reader of pickles.
const PICKLE_BYTES_MAX: u64 = 16 << 20;

/// Numbers that tensors have beyond those of their storages, because one number stands for many, as
/// `torch.Tensor.expand` makes them. In memory they are all there, so that a file of some bytes must not
/// have any number of them.
const EXPANDED_MAX: u64 = 1 << 26;

/// The name of the table, within the archive's own folder.
const TABLE: &str = "data.pkl";

/// Whether the first bytes are those of a zip archive.
pub(super) fn recognises(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06")
}

/// The tensors of a torch file, in its order.
pub(super) fn read(file: &SourceFile) -> Result<Vec<RawTensor>> {
    read_archive(file).map_err(|e| name_file(e, file))
}

fn read_archive(file: &SourceFile) -> Result<Vec<RawTensor>> {
    let archive = Archive::open(file)?;
    let table = archive.small_record(TABLE, PICKLE_BYTES_MAX)?;
    let table = table.ok_or_else(|| {
        Error::unsupported(format!(
            "a zip archive without {TABLE}, expected one written by torch.save"
        ))
    })?;
    // Archives written before this record was introduced are little-endian too, in practice.
    if let Some(order) = archive.small_record("byteorder", 64)? {
        if *order != *b"little" {
            let order = String::from_utf8_lossy(&order).into_owned();
            let message = format!("numbers in {order:?} byte order, expected \"little\"");
            return Err(Error::unsupported(message));
        }
    }
    let mut checksums = HashMap::new();
    let mut expanded = 0u64;
    pickle::read(&table)?
        .into_iter()
        .map(|(name, tensor)| {
            let PickledTensor {
                storage,
                first,
                shape,
                strides,
            } = tensor;
            let record = archive
                .storage(&storage)
                .map_err(|e| e.at(format!("tensor {name}")))?;
            let place = (shape, strides);
            let data = record.data.clone();
            let mut tensor = RawTensor::new(name, file.clone(), storage.dtype, place, first, data)?;
            expanded = expanded.saturating_add((tensor.len() as u64).saturating_sub(storage.len));
            if expanded > EXPANDED_MAX {
                let text = format!(
                    "shape {:?} in a storage of {} elements: its elements overlap, and tensors like \
                     it have more than {EXPANDED_MAX} elements in all; save contiguous() ones",
                    tensor.shape, storage.len
                );
                return Err(Error::format(text).at(tensor.place()));
            }
            tensor.checksum = archive.has_checksums.then(|| {
                let checksum = checksums
                    .entry(storage.key)
                    .or_insert_with_key(|key| Arc::new(checksum(key, record)));
                checksum.clone()
            });
            Ok(tensor)
        })
        .collect()
}

fn checksum(key: &str, record: &Record) -> Checksum {
    Checksum {
        record: format!("data/{key}"),
        range: record.data.clone(),
        crc32: record.crc32,
        found: OnceLock::new(),
    }
}

struct Archive<'a> {
    file: &'a SourceFile,
    /// The folder that torch puts all records in, with its slash.
    prefix: String,
    records: BTreeMap<String, Record>,
    has_checksums: bool,
}

impl<'a> Archive<'a> {
    fn open(file: &'a SourceFile) -> Result<Self> {
        let records = zip::records(file)?;
        let mut tables = records.iter().filter_map(|(name, record)| {
            let prefix = name.strip_suffix(TABLE)?;
            let is_folder = prefix
                .strip_suffix('/')
                .is_some_and(|folder| !folder.contains('/'));
            (prefix.is_empty() || is_folder).then_some((prefix, record))
        });
        let (prefix, has_checksums) = match (tables.next(), tables.next()) {
            // torch can be told not to compute checksums. It then writes 0 for every record, which
            // no table has by itself.
            (Some((prefix, table)), None) => (prefix.to_owned(), table.crc32 != 0),
            (None, _) => (String::new(), true),
            (Some(_), Some(_)) => {
                let message = format!("a zip archive with several {TABLE}, expected one");
                return Err(Error::format(message));
            }
        };
        Ok(Archive {
            file,
            prefix,
            records,
            has_checksums,
        })
    }

    fn record(&self, name: &str) -> Option<&Record> {
        self.records.get(&format!("{}{name}", self.prefix))
    }

    /// The checked bytes of a record that is read whole.
    fn small_record(&self, name: &str, max: u64) -> Result<Option<FileBytes>> {
        let Some(record) = self.record(name) else {
            return Ok(None);
        };
        let size = record.data.end - record.data.start;
        if size > max {
            let message = format!("record {name}: {size} bytes, expected at most {max}");
            return Err(Error::format(message));
        }
        if self.has_checksums {
            let found = crc32(self.file, record.data.clone())?;
            if found != record.crc32 {
                return Err(Error::format(format!(
                    "record {name}: damaged: checksum {found:08x}, expected {:08x}",
                    record.crc32
                )));
            }
        }
        self.file.bytes(record.data.clone()).map(Some)
    }

    /// The record of a storage, once it has the size that the table says.
    fn storage(&self, storage: &Storage) -> Result<&Record> {
        let key = &storage.key;
        let name = format!("data/{key}");
        let Some(record) = self.record(&name) else {
            return Err(Error::format(format!("record {name}: missing")));
        };
        let found = record.data.end - record.data.start;
        let expected = storage
            .dtype
            .size()
            .and_then(|size| storage.len.checked_mul(size as u64));
        if expected != Some(found) {
            return Err(Error::format(format!(
                "record {name}: {found} bytes, expected {} elements of {}",
                storage.len, storage.dtype
            )));
        }
        Ok(record)
    }
}
