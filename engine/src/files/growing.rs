//! Bytes put together in memory before they are written.

#![forbid(unsafe_code)]

use std::io::{self, Write};

use crate::error::{Error, Result};

/// Bytes that grow while there is memory: what a file's size decides must not end the process.
#[derive(Default)]
pub(crate) struct GrowingBytes(Vec<u8>);

impl GrowingBytes {
    /// Appends what `fill` writes; fails with [`ErrorKind::Memory`](crate::ErrorKind::Memory) only.
    pub(crate) fn append<E>(
        &mut self,
        fill: impl FnOnce(&mut Self) -> Result<(), E>,
    ) -> Result<()> {
        let failed = |_| Error::memory("not enough memory for the header of a file");
        fill(self).map_err(failed)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn into_vec(self) -> Vec<u8> {
        self.0
    }
}

impl Write for GrowingBytes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let reserved = self.0.try_reserve(bytes.len());
        reserved.map_err(|e| io::Error::new(io::ErrorKind::OutOfMemory, e))?;
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
