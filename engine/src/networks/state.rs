//! The recurrent state: all that a model remembers of the tokens it has read.
//!
//! Its size does not depend on how many those were. It is a plain value: clone it to branch, keep it to
//! come back. [`State::to_bytes`] writes it with a checked header; the layout of the numbers is the
//! same on every little-endian platform and for every quantisation of the same checkpoint.

#![forbid(unsafe_code)]

use std::any::Any;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use super::config::Sizes;
use crate::error::{Error, Result};
use crate::files::{output, retried};
use crate::math::reserve;

/// First bytes of a state file; the last is its version.
const MAGIC: [u8; 8] = *b"RWKVST\x00\x02";
/// The version of 0.1 of the program, which knew one architecture.
const VERSION_1: u8 = 1;
const ARCHITECTURE_1: &str = "rwkv-4";
/// magic 8, model fingerprint 8, checksum 8, n_layer 4, n_embd 4, n_attention 4, n_vocab 4
/// (0: without logits), n_tokens 8
const HEADER_BYTES_1: usize = 48;
/// magic 8, model fingerprint 8, checksum 8, name of the architecture 16 (zeros behind it), n_layer 4, n_vocab 4
/// (0: without logits), n_tokens 8, how many numbers 8
const HEADER_BYTES: usize = 64;
pub(crate) const NAME: Range<usize> = 24..40;

/// Parts of a state that an architecture may have.
pub(crate) const PARTS_MAX: usize = 8;

/// Where a state's numbers are: part after part of each layer, layer after layer, as the architecture's table says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct StateLayout {
    pub(crate) sizes: Sizes,
    /// Of the checkpoint, the same for every quantisation.
    pub(crate) fingerprint: u64,
    /// Where in a layer each part ends.
    ends: [usize; PARTS_MAX],
}

impl StateLayout {
    pub(crate) fn new(sizes: &Sizes, fingerprint: u64) -> Self {
        let mut ends = [0; PARTS_MAX];
        let mut end = 0;
        let mut parts = sizes.architecture.state.iter();
        for slot in &mut ends {
            end += parts.next().map_or(0, |part| (part.len)(sizes));
            *slot = end;
        }
        StateLayout {
            sizes: *sizes,
            fingerprint,
            ends,
        }
    }

    /// Numbers of one layer.
    pub(crate) fn layer_len(&self) -> usize {
        self.ends[PARTS_MAX - 1]
    }

    /// Numbers of all layers.
    pub(crate) fn len(&self) -> usize {
        self.sizes.n_layer * self.layer_len()
    }

    /// What the numbers take in memory.
    pub(crate) fn size_bytes(&self) -> usize {
        self.len().saturating_mul(size_of::<f32>())
    }

    /// Where neighbouring parts are in the numbers of their layer.
    pub(crate) fn parts(&self, parts: Range<usize>) -> Range<usize> {
        let start = parts
            .start
            .checked_sub(1)
            .map_or(0, |before| self.ends[before]);
        start..self.ends[parts.end - 1]
    }
}

/// Numbers of a state that are held by something else than [`State`], such as devices. What it holds is the truth
/// until the host has written newer numbers.
pub(crate) trait Elsewhere: Any + Send + Sync {
    /// The numbers of all layers; `host` has those that are nowhere else.
    fn numbers<'a>(&'a self, host: &'a [f32]) -> Result<&'a [f32]>;

    /// What it holds is out of date.
    fn host_is_newer(&mut self);

    /// `None` where there is nothing worth copying, or no room.
    fn try_clone(&self) -> Option<Box<dyn Elsewhere>>;

    /// Copies from the same place; whether it did.
    fn copy_from(&mut self, other: &dyn Elsewhere) -> bool;

    fn as_any(&self) -> &dyn Any;

    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// The recurrent state of one sequence.
///
/// Where its model has layers on a device, so has the state from its first token on, and its numbers are
/// fetched when they are asked for. A device that fails in the middle of a pass, or a mapped file that shrinks, leaves
/// a state that is undefined, and says so: see [`check`](Self::check).
pub struct State {
    layout: StateLayout,
    /// Tokens read since the empty state.
    n_tokens: u64,
    /// (n_layer, numbers of a layer). Old where something else has newer ones.
    data: Vec<f32>,
    elsewhere: Option<Box<dyn Elsewhere>>,
    /// What it holds is no state: a pass over it has begun and not ended.
    is_undefined: bool,
    /// What stands for the numbers where there are none.
    unreadable: OnceLock<Vec<f32>>,
}

impl State {
    pub(crate) fn new(layout: StateLayout) -> Self {
        let mut state = State {
            layout,
            n_tokens: 0,
            data: vec![0.0; layout.len()],
            elsewhere: None,
            is_undefined: false,
            unreadable: OnceLock::new(),
        };
        state.reset();
        state
    }

    /// Back to the empty state.
    pub fn reset(&mut self) {
        self.n_tokens = 0;
        self.is_undefined = false;
        self.host_is_newer();
        let layout = &self.layout;
        let parts = layout.sizes.architecture.state;
        for layer in self.data.chunks_exact_mut(layout.layer_len()) {
            for (index, part) in parts.iter().enumerate() {
                layer[layout.parts(index..index + 1)].fill(part.empty);
            }
        }
    }

    /// Tokens read since the empty state.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// Size of the numbers in bytes: 184,320 for RWKV-4 169M, for one token or a million.
    pub fn size_bytes(&self) -> usize {
        self.layout.size_bytes()
    }

    /// The numbers, layer after layer. Of RWKV-4: the last inputs of channel mixing and time mixing (n_embd each),
    /// then numerator, denominator and running maximum of WKV (n_attention each).
    ///
    /// Of layers on a device they are fetched, once for each pass in between; they are all NaN where
    /// [`numbers`](Self::numbers) gives an error.
    pub fn as_slice(&self) -> &[f32] {
        let nothing = || vec![f32::NAN; self.data.len()];
        let unreadable = |_| &self.unreadable.get_or_init(nothing)[..];
        self.numbers().unwrap_or_else(unreadable)
    }

    /// [`as_slice`](Self::as_slice) where the devices may have failed.
    ///
    /// # Errors
    /// Those of [`check`](Self::check), and [`ErrorKind::Backend`](crate::ErrorKind::Backend) when a device
    /// does not give its numbers.
    pub fn numbers(&self) -> Result<&[f32]> {
        self.check()?;
        match &self.elsewhere {
            None => Ok(&self.data),
            Some(elsewhere) => elsewhere.numbers(&self.data),
        }
    }

    /// Refuses a state that is undefined, as everything that needs its numbers does: a pass over it did
    /// not end, because a device failed in its middle, a mapped file shrank, or a thread panicked. A clone of it is undefined,
    /// too. [`reset`](Self::reset) and loading another state make it one again.
    ///
    /// # Errors
    /// [`ErrorKind::Backend`](crate::ErrorKind::Backend).
    pub fn check(&self) -> Result<()> {
        match self.is_undefined {
            false => Ok(()),
            true => Err(Error::backend(
                "the state is undefined since a pass over it failed in its middle: reset it, or load \
                 another",
            )),
        }
    }

    /// [`check`](Self::check) without a text.
    pub(crate) fn is_undefined(&self) -> bool {
        self.is_undefined
    }

    /// From here to [`end_pass`](Self::end_pass) it is neither the state before the pass nor that behind it.
    pub(crate) fn begin_pass(&mut self) {
        self.is_undefined = true;
    }

    /// Every part of the pass has gone well.
    pub(crate) fn end_pass(&mut self) {
        self.is_undefined = false;
    }

    /// What the time mixing of a layer remembers, one number a channel. Of RWKV-4 (n_attention): the mean of all
    /// values so far, weighted as WKV weighs them; 0 before the first token. Unlike the numbers of
    /// which it is the quotient it does not depend on how they are scaled.
    ///
    /// # Panics
    /// When the model has no such layer.
    pub fn memory(&self, layer: usize) -> impl Iterator<Item = f32> + '_ {
        let (layout, n) = (&self.layout, self.layout.layer_len());
        assert!(layer < layout.sizes.n_layer, "layers are numbered from 0");
        let layer = &self.as_slice()[layer * n..(layer + 1) * n];
        (layout.sizes.architecture.memory)(layout, layer).into_iter()
    }

    /// What else holds numbers of this state.
    pub(crate) fn elsewhere(&self) -> Option<&dyn Elsewhere> {
        self.elsewhere.as_deref()
    }

    /// What else holds numbers of this state, beside those that are on the host.
    pub(crate) fn elsewhere_mut(&mut self) -> (Option<&mut (dyn Elsewhere + 'static)>, &[f32]) {
        (self.elsewhere.as_deref_mut(), &self.data)
    }

    /// Brings all numbers to the host, and from there on to `elsewhere`.
    ///
    /// # Errors
    /// Those of fetching them; nothing has changed then.
    pub(crate) fn move_to(&mut self, elsewhere: Option<Box<dyn Elsewhere>>) -> Result<()> {
        if let Some(old) = &self.elsewhere {
            let numbers = old.numbers(&self.data)?.to_vec();
            self.data.copy_from_slice(&numbers);
        }
        self.elsewhere = elsewhere;
        Ok(())
    }

    /// A clone, on the devices that have this state, or on the host where they have no room.
    ///
    /// # Errors
    /// Those of [`numbers`](Self::numbers), where `clone` gives a state that is undefined.
    pub fn try_clone(&self) -> Result<Self> {
        self.check()?;
        let elsewhere = self.elsewhere.as_ref().and_then(|there| there.try_clone());
        let data = match elsewhere {
            Some(_) => self.data.clone(),
            None => self.numbers()?.to_vec(),
        };
        Ok(State {
            layout: self.layout,
            n_tokens: self.n_tokens,
            data,
            elsewhere,
            is_undefined: false,
            unreadable: OnceLock::new(),
        })
    }

    /// Becomes a copy of another state.
    ///
    /// # Errors
    /// Those of [`check`](Self::check) for the other state; nothing has changed then. Those of its devices;
    /// this one is undefined then.
    pub(crate) fn copy_from(&mut self, other: &State) -> Result<()> {
        other.check()?;
        self.is_undefined = true;
        let copied = match (&mut self.elsewhere, &other.elsewhere) {
            (Some(to), Some(from)) => to.copy_from(&**from),
            _ => false,
        };
        let data = match copied {
            true => &other.data,
            false => other.numbers()?,
        };
        data.clone_into(&mut self.data);
        (self.layout, self.n_tokens) = (other.layout, other.n_tokens);
        // There may have been another number of them.
        self.unreadable.take();
        if !copied {
            self.host_is_newer();
        }
        self.is_undefined = false;
        Ok(())
    }

    fn host_is_newer(&mut self) {
        if let Some(elsewhere) = &mut self.elsewhere {
            elsewhere.host_is_newer();
        }
    }

    pub(crate) fn layout(&self) -> &StateLayout {
        &self.layout
    }

    pub(crate) fn advance(&mut self, n_tokens: usize) {
        self.n_tokens += n_tokens as u64;
    }

    /// Neighbouring parts of a layer, as they are in the table of the architecture; on the host.
    pub(crate) fn parts(&self, layer: usize, parts: Range<usize>) -> &[f32] {
        let n = self.layout.layer_len();
        &self.data[layer * n..(layer + 1) * n][self.layout.parts(parts)]
    }

    /// The same, to be written.
    pub(crate) fn parts_mut(&mut self, layer: usize, parts: Range<usize>) -> &mut [f32] {
        let (n, parts) = (self.layout.layer_len(), self.layout.parts(parts));
        &mut self.data[layer * n..(layer + 1) * n][parts]
    }

    /// One part of a layer.
    pub(crate) fn part(&self, layer: usize, part: usize) -> &[f32] {
        self.parts(layer, part..part + 1)
    }

    /// The same, to be written.
    pub(crate) fn part_mut(&mut self, layer: usize, part: usize) -> &mut [f32] {
        self.parts_mut(layer, part..part + 1)
    }

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
        header[8..16].copy_from_slice(&self.layout.fingerprint.to_le_bytes());
        let name = sizes.architecture.name.as_bytes();
        header[NAME][..name.len()].copy_from_slice(name);
        header[40..44].copy_from_slice(&(sizes.n_layer as u32).to_le_bytes());
        header[44..48].copy_from_slice(&(n_logits as u32).to_le_bytes());
        header[48..56].copy_from_slice(&self.n_tokens.to_le_bytes());
        header[56..].copy_from_slice(&(self.data.len() as u64).to_le_bytes());
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
        let mut values = bytes[header.size..].chunks_exact(4).map(|four| {
            let mut value = [0; 4];
            value.copy_from_slice(four);
            f32::from_le_bytes(value)
        });
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

    /// Checks everything about saved bytes.
    fn read_header(&self, bytes: &[u8]) -> Result<Header> {
        if bytes.len() < HEADER_BYTES_1 || bytes[..7] != MAGIC[..7] {
            return Err(Error::state("not a saved state"));
        }
        let version = bytes[7];
        if version != MAGIC[7] && version != VERSION_1 {
            let text = format!("state of format version {version}, expected {}", MAGIC[7]);
            return Err(Error::state(text));
        }
        let header = match version {
            VERSION_1 => self.header_1(bytes)?,
            _ => self.header_2(bytes)?,
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
        Ok(header)
    }

    fn check_fingerprint(&self, bytes: &[u8]) -> Result<()> {
        let (found, expected) = (u64_at(bytes, 8), self.layout.fingerprint);
        if found == expected {
            return Ok(());
        }
        Err(Error::state(format!(
            "state of another model: fingerprint {found:016x}, expected {expected:016x}"
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
        self.check_fingerprint(bytes)?;
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

    fn header_2(&self, bytes: &[u8]) -> Result<Header> {
        if bytes.len() < HEADER_BYTES {
            return Err(Error::state("saved state is cut within its header"));
        }
        let sizes = &self.layout.sizes;
        let name = String::from_utf8_lossy(&bytes[NAME]);
        let (name, expected) = (name.trim_end_matches('\0'), sizes.architecture.name);
        if name != expected {
            let text = format!("state of {name:?}, expected one of {expected}");
            return Err(Error::state(text));
        }
        self.check_fingerprint(bytes)?;
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
            size: HEADER_BYTES,
            n_logits,
            n_tokens: u64_at(bytes, 48),
        })
    }

    /// Writes [`to_bytes`](Self::to_bytes) to a file, whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written, or a device does not give its numbers; an older file is then as it was.
    pub fn save(&self, path: impl AsRef<Path>, logits: &[f32]) -> Result<()> {
        self.numbers()?;
        let size = self.saved_size(logits.len());
        let mut bytes = reserve(size, "the saved state")?;
        bytes.resize(size, 0);
        self.write_bytes(logits, &mut bytes);
        output::write_whole(path.as_ref(), &bytes)
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
        let mut bytes = Vec::new();
        let file = retried(|| File::open(path)).map_err(failed)?;
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

impl Clone for State {
    fn clone(&self) -> Self {
        self.try_clone().unwrap_or_else(|_| State {
            layout: self.layout,
            n_tokens: self.n_tokens,
            data: self.data.clone(),
            elsewhere: None,
            is_undefined: true,
            unreadable: OnceLock::new(),
        })
    }

    fn clone_from(&mut self, other: &Self) {
        if self.copy_from(other).is_err() {
            *self = other.clone();
        }
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        let same = self.layout == other.layout && self.n_tokens == other.n_tokens;
        same && self.as_slice() == other.as_slice()
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("layout", &self.layout)
            .field("n_tokens", &self.n_tokens)
            .field("numbers", &self.as_slice())
            .finish_non_exhaustive()
    }
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
