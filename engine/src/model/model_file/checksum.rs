//! The checksum over a whole model file, which stands in its header.

#![forbid(unsafe_code)]

use xxhash_rust::xxh3::Xxh3;

use super::WRITE_BYTES;
use crate::error::{Error, Result};
use crate::files::SourceFile;
use crate::math::copied;
use crate::progress::{Counter, Progress, ProgressUnit};

/// The checksum's place in the header, with what is hashed in its stead.
const KEY: &str = "\"checksum\":\"";
pub(super) const BLANK: &str = "0000000000000000";

/// Where the digits of the checksum begin.
pub(super) fn find(header: &[u8]) -> Option<usize> {
    let key = KEY.as_bytes();
    let at = header.windows(key.len()).position(|window| window == key)? + key.len();
    (at + BLANK.len() <= header.len()).then_some(at)
}

/// Reads a whole model file and compares its checksum; `progress` counts bytes.
pub(crate) fn verify(file: &SourceFile, progress: &mut dyn FnMut(Progress)) -> Result<()> {
    let failed = |text: String| Error::format(text).at(file.name());
    let mut counter = Counter::new(ProgressUnit::Bytes, file.len(), progress);
    let mut hash = Xxh3::new();
    let mut written = None;
    let mut begin = 0;
    while begin < file.len() {
        let end = (begin + WRITE_BYTES as u64).min(file.len());
        let bytes = file.bytes(begin..end)?;
        if begin == 0 {
            // Of a header larger than a piece only the beginning is searched: metadata comes first.
            let mut first = copied(&bytes, "the beginning of a file")?;
            let at = find(&first).ok_or_else(|| failed("no checksum".into()))?;
            let digits = &mut first[at..at + BLANK.len()];
            written = Some(String::from_utf8_lossy(digits).into_owned());
            digits.copy_from_slice(BLANK.as_bytes());
            hash.update(&first);
        } else {
            hash.update(&bytes);
        }
        drop(bytes);
        file.watch().check()?;
        file.release(begin..end);
        counter.advance(end - begin);
        begin = end;
    }
    let computed = format!("{:016x}", hash.digest());
    match written {
        Some(written) if written == computed => Ok(()),
        written => {
            let written = written.unwrap_or_default();
            Err(failed(format!(
                "damaged: checksum {computed}, expected {written}"
            )))
        }
    }
}
