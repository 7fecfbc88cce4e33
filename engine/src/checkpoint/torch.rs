//! torch's checkpoint files: a zip archive of a pickled table and one record for each storage.

#![forbid(unsafe_code)]

use super::tensor::RawTensor;
use crate::error::{Error, Result};
use crate::file::SourceFile;

/// Whether the first bytes are those of a zip archive.
pub(super) fn recognises(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06")
}

/// The tensors of a torch file, in its order.
pub(super) fn read(file: &SourceFile) -> Result<Vec<RawTensor>> {
    Err(Error::unsupported("torch files are not read yet").at(file.name()))
}
