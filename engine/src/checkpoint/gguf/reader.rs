//! The header of a GGUF file, taken apart from front to back.

#![forbid(unsafe_code)]

use crate::error::{Error, Result};
use crate::files::{FileBytes, SourceFile};

/// Those of RWKV have some megabytes: the vocabulary and a few hundred bytes a tensor.
pub(super) const HEADER_MAX: u64 = 16 << 20;

/// Bytes that are asked of the file at a time, where it is read and not mapped.
const WINDOW: u64 = 256 << 10;

/// Walks over a header. Nothing is read beyond the file or [`HEADER_MAX`].
pub(super) struct Reader<'a> {
    file: &'a SourceFile,
    /// Bytes from the start of the file.
    at: u64,
    window: FileBytes,
    /// Of the window, in bytes from the start of the file.
    window_start: u64,
}

impl<'a> Reader<'a> {
    /// Begins `at` so many bytes from the start of the file.
    pub(super) fn new(file: &'a SourceFile, at: u64) -> Self {
        Reader {
            file,
            at,
            window: FileBytes::from_static(&[]),
            window_start: at,
        }
    }

    /// Where the next byte is.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Bytes that a header may still have from here on.
    pub(super) fn room(&self) -> u64 {
        self.file.len().min(HEADER_MAX).saturating_sub(self.at)
    }

    /// Goes on behind `n` bytes.
    pub(super) fn skip(&mut self, n: u64) -> Result<()> {
        if n > self.room() {
            return Err(match self.file.len() <= HEADER_MAX {
                true => Error::format(format!(
                    "its header is cut: {n} bytes at byte {}, but the file ends at byte {}",
                    self.at,
                    self.file.len()
                )),
                false => Error::format(format!(
                    "{n} bytes at byte {} of its header, expected one of at most {HEADER_MAX}",
                    self.at
                )),
            });
        }
        self.at += n;
        Ok(())
    }

    /// The next `n` bytes.
    pub(super) fn bytes(&mut self, n: u64) -> Result<&[u8]> {
        let start = self.at;
        self.skip(n)?;
        let window_end = self.window_start + self.window.len() as u64;
        if start < self.window_start || self.at > window_end {
            let end = self.at.max(start + WINDOW).min(self.file.len());
            self.window = self.file.bytes(start..end)?;
            self.window_start = start;
        }
        // Within the window, whose length is a `usize`.
        let first = (start - self.window_start) as usize;
        Ok(&self.window[first..first + n as usize])
    }

    /// The bytes of the next number, the lowest first.
    pub(super) fn number<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut number = [0; N];
        number.copy_from_slice(self.bytes(N as u64)?);
        Ok(number)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        self.number().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        self.number().map(u64::from_le_bytes)
    }

    /// The bytes of the next text: its length, then itself.
    pub(super) fn text_bytes(&mut self) -> Result<&[u8]> {
        let n = self.u64()?;
        self.bytes(n)
    }

    /// The next text, of 1 to `max` bytes: what is called `what`.
    pub(super) fn name(&mut self, what: &str, max: u64) -> Result<String> {
        let (at, n) = (self.at, self.u64()?);
        if !(1..=max).contains(&n) {
            return Err(Error::format(format!(
                "{what} of {n} bytes at byte {at}, expected 1 to {max}: damaged"
            )));
        }
        let text = std::str::from_utf8(self.bytes(n)?);
        let text = text.map_err(|_| Error::format(format!("{what} at byte {at} is not text")))?;
        Ok(text.to_owned())
    }
}
