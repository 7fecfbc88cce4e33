//! A state as bytes, and back: what state files consist of. docs/FORMAT.md is the specification.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use super::State;
use crate::error::{Error, Result};
use crate::files::{output, retried};
use crate::math::{all_finite, reserve, zeroed};
use crate::networks::fingerprint::Fingerprint;

/// First bytes of a state file; the last is its version.
const MAGIC: [u8; 8] = *b"RWKVST\x00\x03";
/// The version that knew one fingerprint.
const VERSION_2: u8 = 2;
/// The version of 0.1 of the program, which knew one architecture.
const VERSION_1: u8 = 1;
const ARCHITECTURE_1: &str = "rwkv-4";
/// magic 8, model fingerprint 8, checksum 8, n_layer 4, n_embd 4, n_attention 4, n_vocab 4
/// (0: without logits), n_tokens 8
const HEADER_BYTES_1: usize = 48;
/// magic 8, model fingerprint 8, checksum 8, name of the architecture 16 (zeros behind it), n_layer 4, n_vocab 4
/// (0: without logits), n_tokens 8, how many numbers 8
const HEADER_BYTES_2: usize = 64;
/// The same, then the second fingerprint 8 (0: unknown)
const HEADER_BYTES: usize = 72;
/// No text is so long: what says so is damaged, and must not make the count wrap.
const N_TOKENS_MAX: u64 = u64::MAX / 2;
pub(crate) const NAME: Range<usize> = 24..40;

impl State {
    /// The state as bytes with a checked header; `logits` (n_vocab, or empty) are the output row of the
    /// last token, which a continuation without a new token needs. Where [`numbers`](Self::numbers) gives
    /// an error, they are those of no state.
    ///
    /// # Panics
    /// When `logits` is neither empty nor of length n_vocab.
    pub fn to_bytes(&self, logits: &[f32]) -> Vec<u8> {
        let mut bytes = vec![0; self.saved_size(logits.len())];
        self.write_bytes(logits, &mut bytes);
        bytes
    }

    /// Bytes that a saved state with so many logits takes.
    pub(crate) fn saved_size(&self, n_logits: usize) -> usize {
        HEADER_BYTES + 4 * (self.data.len() + n_logits)
    }

    /// [`to_bytes`](Self::to_bytes) into memory of the caller. Zeros take the place of logits that there are not.
    ///
    /// # Panics
    /// When `out` has neither the size without logits nor that with n_vocab, or `logits` do not fit it.
    pub(crate) fn write_bytes(&self, logits: &[f32], out: &mut [u8]) {
        let sizes = &self.layout.sizes;
        let has_row = out.len() == self.saved_size(sizes.n_vocab);
        let n_logits = if has_row { sizes.n_vocab } else { 0 };
        assert!(out.len() == self.saved_size(n_logits));
        assert!(logits.is_empty() || logits.len() == n_logits);
        let (header, numbers) = out.split_at_mut(HEADER_BYTES);
        header.fill(0);
        header[..8].copy_from_slice(&MAGIC);
        let fingerprint = self.layout.fingerprint;
        header[8..16].copy_from_slice(&fingerprint.first.to_le_bytes());
        let name = sizes.architecture.name.as_bytes();
        header[NAME][..name.len()].copy_from_slice(name);
        header[40..44].copy_from_slice(&(sizes.n_layer as u32).to_le_bytes());
        header[44..48].copy_from_slice(&(n_logits as u32).to_le_bytes());
        header[48..56].copy_from_slice(&self.n_tokens.to_le_bytes());
        header[56..64].copy_from_slice(&(self.data.len() as u64).to_le_bytes());
        header[64..].copy_from_slice(&fingerprint.rows.unwrap_or(0).to_le_bytes());
        let zeros = std::iter::repeat(&0.0_f32);
        let values = self.as_slice().iter().chain(logits).chain(zeros);
        for (slot, value) in numbers.chunks_exact_mut(4).zip(values) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        let checksum = checksum(out);
        out[16..24].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote into this state, and gives the saved logits
    /// (n_vocab, or none). Nothing is changed when it fails.
    ///
    /// # Errors
    /// [`ErrorKind::State`](crate::ErrorKind::State) when the bytes are cut, padded or damaged, of a
    /// newer version, or the state of another model.
    pub fn load_bytes(&mut self, bytes: &[u8]) -> Result<Vec<f32>> {
        let mut logits = Vec::new();
        self.load_bytes_into(bytes, &mut logits)?;
        Ok(logits)
    }

    /// [`load_bytes`](Self::load_bytes) with the logits in memory of the caller: none, or n_vocab.
    pub(crate) fn load_bytes_into(&mut self, bytes: &[u8], logits: &mut Vec<f32>) -> Result<()> {
        let header = self.read_header(bytes)?;
        let mut values = numbers(&bytes[header.size..]);
        logits
            .try_reserve_exact(header.n_logits.saturating_sub(logits.len()))
            .map_err(|e| {
                Error::memory("not enough memory for the logits of a state").with_source(e)
            })?;
        self.data
            .iter_mut()
            .zip(&mut values)
            .for_each(|(slot, value)| *slot = value);
        self.n_tokens = header.n_tokens;
        self.is_undefined = false;
        self.host_is_newer();
        logits.clear();
        // Behind no token there are no logits: what stands in their place only keeps the size the same.
        if self.n_tokens > 0 {
            logits.extend(values.take(header.n_logits));
        }
        Ok(())
    }

    /// Whether bytes, of which a few are enough, begin as those of a saved state do.
    pub fn begins_saved(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC[..7])
    }

    /// Checks everything about saved bytes.
    fn read_header(&self, bytes: &[u8]) -> Result<Header> {
        if bytes.len() < HEADER_BYTES_1 || !Self::begins_saved(bytes) {
            return Err(Error::state("not a saved state"));
        }
        let version = bytes[7];
        if ![VERSION_1, VERSION_2, MAGIC[7]].contains(&version) {
            let text = format!("state of format version {version}, expected {}", MAGIC[7]);
            return Err(Error::state(text));
        }
        let header = match version {
            VERSION_1 => self.header_1(bytes)?,
            VERSION_2 => self.header_2(bytes, HEADER_BYTES_2)?,
            _ => self.header_2(bytes, HEADER_BYTES)?,
        };
        let size = header.size + 4 * (self.layout.len() + header.n_logits);
        if bytes.len() != size {
            return Err(Error::state(match bytes.len() < size {
                true => format!("saved state is cut: {} bytes, expected {size}", bytes.len()),
                false => format!("saved state is padded: more than the expected {size} bytes"),
            }));
        }
        if u64_at(bytes, 16) != checksum(bytes) {
            return Err(Error::state(
                "saved state is damaged: its checksum does not match",
            ));
        }
        if header.n_tokens > N_TOKENS_MAX {
            return Err(Error::state(format!(
                "saved state is damaged: of {} tokens, expected at most {N_TOKENS_MAX}",
                header.n_tokens
            )));
        }
        // All of the numbers before any is taken over.
        if let Some((at, value)) = first_not_finite(numbers(&bytes[header.size..])) {
            return Err(Error::state(format!(
                "saved state is damaged: number {at} is {value}, expected finite numbers"
            )));
        }
        Ok(header)
    }

    fn check_fingerprint(&self, first: u64, rows: u64) -> Result<()> {
        let found = Fingerprint {
            first,
            rows: (rows != 0).then_some(rows),
        };
        let expected = self.layout.fingerprint;
        if found.fits(&expected) {
            return Ok(());
        }
        Err(Error::state(format!(
            "state of another model: fingerprint {found}, expected {expected}"
        )))
    }

    fn header_1(&self, bytes: &[u8]) -> Result<Header> {
        let sizes = &self.layout.sizes;
        if sizes.architecture.name != ARCHITECTURE_1 {
            return Err(Error::state(format!(
                "state of {ARCHITECTURE_1}, expected one of {}",
                sizes.architecture.name
            )));
        }
        self.check_fingerprint(u64_at(bytes, 8), 0)?;
        let found: [usize; 4] = std::array::from_fn(|i| u32_at(bytes, 24 + 4 * i) as usize);
        let expected = [sizes.n_layer, sizes.n_embd, sizes.n_attention];
        if found[..3] != expected || ![0, sizes.n_vocab].contains(&found[3]) {
            return Err(Error::state(format!(
                "state of layers, width, attention width, logits {found:?}, expected {expected:?} \
                 and 0 or {}",
                sizes.n_vocab
            )));
        }
        Ok(Header {
            size: HEADER_BYTES_1,
            n_logits: found[3],
            n_tokens: u64_at(bytes, 40),
        })
    }

    /// Of version 2, or of one that has more behind the same.
    fn header_2(&self, bytes: &[u8], size: usize) -> Result<Header> {
        if bytes.len() < size {
            return Err(Error::state("saved state is cut within its header"));
        }
        let sizes = &self.layout.sizes;
        let name = String::from_utf8_lossy(&bytes[NAME]);
        let (name, expected) = (name.trim_end_matches('\0'), sizes.architecture.name);
        if name != expected {
            let text = format!("state of {name:?}, expected one of {expected}");
            return Err(Error::state(text));
        }
        let rows = match size {
            HEADER_BYTES_2 => 0,
            _ => u64_at(bytes, HEADER_BYTES_2),
        };
        self.check_fingerprint(u64_at(bytes, 8), rows)?;
        let found = (u32_at(bytes, 40) as usize, u64_at(bytes, 56));
        let expected = (sizes.n_layer, self.layout.len() as u64);
        let n_logits = u32_at(bytes, 44) as usize;
        if found != expected || ![0, sizes.n_vocab].contains(&n_logits) {
            return Err(Error::state(format!(
                "state of {} layers, {} numbers and {n_logits} logits, expected {}, {} and 0 or {}",
                found.0, found.1, expected.0, expected.1, sizes.n_vocab
            )));
        }
        Ok(Header {
            size,
            n_logits,
            n_tokens: u64_at(bytes, 48),
        })
    }

    /// Writes [`to_bytes`](Self::to_bytes) to a file, whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written, a device does not give its numbers, there is no memory for the bytes, or the
    /// numbers or logits are not finite, which a state that was loaded from such a file would be refused for; an older
    /// file is then as it was.
    pub fn save(&self, path: impl AsRef<Path>, logits: &[f32]) -> Result<()> {
        self.check_savable(logits)?;
        let mut bytes = zeroed(self.saved_size(logits.len()), "a saved state")?;
        self.write_bytes(logits, &mut bytes);
        output::write_whole(path.as_ref(), &bytes)
    }

    /// Refuses what [`load_bytes`](Self::load_bytes) would refuse of what is to be saved.
    pub(crate) fn check_savable(&self, logits: &[f32]) -> Result<()> {
        match all_finite(self.numbers()?) && all_finite(logits) {
            true => Ok(()),
            false => Err(Error::state(
                "the state cannot be saved: not all of its numbers are finite",
            )),
        }
    }

    /// Reads a file written by [`save`](Self::save), as [`load_bytes`](Self::load_bytes) does.
    ///
    /// # Errors
    /// Those of [`load_bytes`](Self::load_bytes), or an I/O error.
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<Vec<f32>> {
        let path = path.as_ref();
        let failed = |e| Error::io("read", path, e);
        // One byte more than a state of this model has: whatever else the file is, it is not read whole.
        let size_max = self.saved_size(self.layout.sizes.n_vocab) + 1;
        let file = retried(|| File::open(path)).map_err(failed)?;
        // Room for one byte more, in which the end is found.
        let mut bytes = reserve(size_max + 1, "a saved state")?;
        let read = file.take(size_max as u64).read_to_end(&mut bytes);
        read.map_err(failed)?;
        self.load_bytes(&bytes).map_err(|e| e.at(path.display()))
    }
}

/// What the beginning of a saved state says.
struct Header {
    /// Its own bytes.
    size: usize,
    n_logits: usize,
    n_tokens: u64,
}

/// The floats that bytes are.
fn numbers(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(4).map(|four| {
        let mut value = [0; 4];
        value.copy_from_slice(four);
        f32::from_le_bytes(value)
    })
}

fn first_not_finite(numbers: impl Iterator<Item = f32>) -> Option<(usize, f32)> {
    numbers.enumerate().find(|(_, value)| !value.is_finite())
}

/// Of all bytes but the checksum's own.
fn checksum(bytes: &[u8]) -> u64 {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    hash.update(&bytes[..16]);
    hash.update(&bytes[24..]);
    hash.digest()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}
