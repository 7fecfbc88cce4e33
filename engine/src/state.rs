//! The recurrent state: all that a model remembers of the tokens it has read.
//!
//! Its size does not depend on how many those were. It is a plain value: clone it to branch, keep it to
//! come back. [`State::to_bytes`] writes it with a checked header; the layout of the numbers is the
//! same on every little-endian platform and for every quantisation of the same checkpoint.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::output;
use crate::plugin;
use crate::residence::Residence;

/// Start of the WKV running maximum. Not 0: exp(u + k - 0) underflows for keys below about -104, and
/// 0 / 0 would follow.
const EMPTY_EXPONENT: f32 = -1e30;

/// First bytes of a state file; the last is its version.
const MAGIC: [u8; 8] = *b"RWKVST\x00\x01";
/// magic 8, model fingerprint 8, checksum 8, n_layer 4, n_embd 4, n_attention 4, n_vocab 4
/// (0: without logits), n_tokens 8
const HEADER_BYTES: usize = 48;

/// What a state must agree with: sizes, and which checkpoint they are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StateShape {
    pub(crate) n_layer: usize,
    pub(crate) n_embd: usize,
    pub(crate) n_attention: usize,
    pub(crate) n_vocab: usize,
    /// Of the checkpoint, the same for every quantisation.
    pub(crate) fingerprint: u64,
}

impl StateShape {
    fn layer_len(&self) -> usize {
        layer_len(self.n_embd, self.n_attention)
    }

    pub(crate) fn len(&self) -> usize {
        self.n_layer * self.layer_len()
    }
}

/// Numbers of one layer: see [`LayerState`].
pub(crate) fn layer_len(n_embd: usize, n_attention: usize) -> usize {
    2 * n_embd + 3 * n_attention
}

/// The recurrent state of one sequence.
///
/// Where its model has layers on a device, so has the state from its first token on, and its numbers are
/// fetched when they are asked for.
pub struct State {
    shape: StateShape,
    /// Tokens read since the empty state.
    n_tokens: u64,
    /// (n_layer, 2 n_embd + 3 n_attention): see [`LayerState`]. Old where a device has newer ones.
    data: Vec<f32>,
    device: Option<Box<Residence>>,
}

/// One layer's part of a state.
pub(crate) struct LayerState<'a> {
    /// (n_embd) last normalised input of the channel mixing
    pub(crate) ffn_previous: &'a mut [f32],
    /// (n_embd) last normalised input of the time mixing
    pub(crate) att_previous: &'a mut [f32],
    /// (3, n_attention): numerator, denominator, exponent_max
    pub(crate) wkv: &'a mut [f32],
}

impl State {
    pub(crate) fn new(shape: StateShape) -> Self {
        let mut state = State {
            shape,
            n_tokens: 0,
            data: vec![0.0; shape.len()],
            device: None,
        };
        state.reset();
        state
    }

    /// Back to the empty state.
    pub fn reset(&mut self) {
        self.n_tokens = 0;
        self.data.fill(0.0);
        self.host_is_newer();
        let n_attention = self.shape.n_attention;
        for layer in self.data.chunks_exact_mut(self.shape.layer_len()) {
            let top = layer.len() - n_attention;
            layer[top..].fill(EMPTY_EXPONENT);
        }
    }

    /// Tokens read since the empty state.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// Size of the numbers in bytes: 184,320 for RWKV-4 169M, for one token or a million.
    pub fn size_bytes(&self) -> usize {
        self.data.len() * size_of::<f32>()
    }

    /// The numbers, layer after layer: the last inputs of channel mixing and time mixing (n_embd each),
    /// then numerator, denominator and running maximum of WKV (n_attention each).
    ///
    /// Of layers on a device they are fetched, once for each pass in between; they are all NaN if the device
    /// fails.
    pub fn as_slice(&self) -> &[f32] {
        match (self.numbers(), &self.device) {
            (Ok(numbers), _) => numbers,
            (Err(_), Some(device)) => device.unreadable(self.data.len()),
            (Err(_), None) => &self.data,
        }
    }

    /// The numbers of all layers, wherever they are.
    pub(crate) fn numbers(&self) -> Result<&[f32]> {
        match &self.device {
            None => Ok(&self.data),
            Some(device) => device.numbers(&self.data, self.shape.layer_len()),
        }
    }

    /// What the time mixing of a layer remembers, one number a channel (n_attention): the mean of all
    /// values so far, weighted as WKV weighs them; 0 before the first token. Unlike the numbers of
    /// which it is the quotient it does not depend on how they are scaled.
    ///
    /// # Panics
    /// When the model has no such layer.
    pub fn memory(&self, layer: usize) -> impl Iterator<Item = f32> + '_ {
        let (n_embd, n_attention) = (self.shape.n_embd, self.shape.n_attention);
        assert!(layer < self.shape.n_layer, "layers are numbered from 0");
        let start = layer * self.shape.layer_len() + 2 * n_embd;
        let (numerator, rest) = self.as_slice()[start..].split_at(n_attention);
        let pairs = numerator.iter().zip(&rest[..n_attention]);
        pairs.map(|(&sum, &weight)| if weight > 0.0 { sum / weight } else { 0.0 })
    }

    /// Makes the numbers be where a pass through these stages needs them: each of them gets its part, the
    /// other layers' are on the host. Nothing but a few comparisons if they are there already.
    pub(crate) fn place(&mut self, stages: &[Arc<plugin::Stage>]) -> Result<()> {
        let layer_len = self.shape.layer_len();
        match &mut self.device {
            None if stages.is_empty() => Ok(()),
            Some(device) if device.is_on(stages) => device.begin_pass(&self.data, layer_len),
            _ => {
                self.come_home()?;
                if !stages.is_empty() {
                    let mut device = Residence::new(stages)?;
                    device.begin_pass(&self.data, layer_len)?;
                    self.device = Some(Box::new(device));
                }
                Ok(())
            }
        }
    }

    /// Brings all numbers to the host, and leaves the devices.
    fn come_home(&mut self) -> Result<()> {
        if let Some(device) = &self.device {
            device.fetch(&mut self.data, self.shape.layer_len())?;
        }
        self.device = None;
        Ok(())
    }

    /// What the devices have is out of date.
    fn host_is_newer(&mut self) {
        if let Some(device) = &mut self.device {
            device.host_is_newer();
        }
    }

    /// The parts on the stages that it was [placed](Self::place) on.
    pub(crate) fn device_parts_mut(&mut self) -> &mut [plugin::State] {
        self.device
            .as_mut()
            .map_or(&mut [], |device| device.parts_mut())
    }

    /// The parts on devices, if what they hold is this state.
    pub(crate) fn device_parts(&self) -> &[plugin::State] {
        self.device.as_ref().map_or(&[], |device| device.parts())
    }

    /// The first stage on a device that it was [placed](Self::place) on.
    pub(crate) fn home(&self) -> Option<&Arc<plugin::Stage>> {
        self.device.as_ref()?.home()
    }

    pub(crate) fn shape(&self) -> &StateShape {
        &self.shape
    }

    pub(crate) fn advance(&mut self, n_tokens: usize) {
        self.n_tokens += n_tokens as u64;
    }

    pub(crate) fn layer_mut(&mut self, layer: usize) -> LayerState<'_> {
        let (length, n_embd) = (self.shape.layer_len(), self.shape.n_embd);
        let layer = &mut self.data[layer * length..(layer + 1) * length];
        let (ffn_previous, rest) = layer.split_at_mut(n_embd);
        let (att_previous, wkv) = rest.split_at_mut(n_embd);
        LayerState {
            ffn_previous,
            att_previous,
            wkv,
        }
    }

    /// Last normalised input of the time mixing of a layer (n_embd).
    pub(crate) fn att_previous(&self, layer: usize) -> &[f32] {
        let start = layer * self.shape.layer_len() + self.shape.n_embd;
        &self.data[start..start + self.shape.n_embd]
    }

    /// Last normalised input of the channel mixing of a layer (n_embd).
    pub(crate) fn ffn_previous(&self, layer: usize) -> &[f32] {
        let start = layer * self.shape.layer_len();
        &self.data[start..start + self.shape.n_embd]
    }

    /// The state as bytes with a checked header; `logits` (n_vocab, or empty) are the output row of the
    /// last token, which a continuation without a new token needs.
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

    /// [`to_bytes`](Self::to_bytes) into memory of the caller. Where `out` has room for a row of logits
    /// and there are none, zeros take their place.
    ///
    /// # Panics
    /// When `out` has neither the size without logits nor that with n_vocab, or `logits` do not fit it.
    pub(crate) fn write_bytes(&self, logits: &[f32], out: &mut [u8]) {
        let shape = &self.shape;
        let has_row = out.len() == self.saved_size(shape.n_vocab);
        let n_logits = if has_row { shape.n_vocab } else { 0 };
        assert!(out.len() == self.saved_size(n_logits));
        assert!(logits.is_empty() || logits.len() == n_logits);
        let (header, numbers) = out.split_at_mut(HEADER_BYTES);
        header[..8].copy_from_slice(&MAGIC);
        header[8..16].copy_from_slice(&shape.fingerprint.to_le_bytes());
        let sizes = [shape.n_layer, shape.n_embd, shape.n_attention, n_logits];
        for (slot, size) in header[24..40].chunks_exact_mut(4).zip(sizes) {
            slot.copy_from_slice(&(size as u32).to_le_bytes());
        }
        header[40..].copy_from_slice(&self.n_tokens.to_le_bytes());
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
        let n_logits = self.check_header(bytes)?;
        let mut values = bytes[HEADER_BYTES..].chunks_exact(4).map(|four| {
            let mut value = [0; 4];
            value.copy_from_slice(four);
            f32::from_le_bytes(value)
        });
        self.data
            .iter_mut()
            .zip(&mut values)
            .for_each(|(slot, value)| *slot = value);
        self.n_tokens = u64_at(bytes, 40);
        self.host_is_newer();
        logits.clear();
        // Behind no token there are no logits: what stands in their place only keeps the size the same.
        if self.n_tokens > 0 {
            logits.extend(values.take(n_logits));
        }
        Ok(())
    }

    /// Checks everything about saved bytes; gives the number of logits behind the state.
    fn check_header(&self, bytes: &[u8]) -> Result<usize> {
        if bytes.len() < HEADER_BYTES || bytes[..7] != MAGIC[..7] {
            return Err(Error::state("not a saved state"));
        }
        if bytes[7] != MAGIC[7] {
            let text = format!(
                "state of format version {}, expected {}",
                bytes[7], MAGIC[7]
            );
            return Err(Error::state(text));
        }
        let shape = &self.shape;
        let found = u64_at(bytes, 8);
        if found != shape.fingerprint {
            return Err(Error::state(format!(
                "state of another model: fingerprint {found:016x}, expected {:016x}",
                shape.fingerprint
            )));
        }
        let sizes: [usize; 4] = std::array::from_fn(|i| u32_at(bytes, 24 + 4 * i) as usize);
        let expected = [shape.n_layer, shape.n_embd, shape.n_attention];
        if sizes[..3] != expected || ![0, shape.n_vocab].contains(&sizes[3]) {
            return Err(Error::state(format!(
                "state of layers, width, attention width, logits {sizes:?}, expected {expected:?} \
                 and 0 or {}",
                shape.n_vocab
            )));
        }
        let size = HEADER_BYTES + 4 * (shape.len() + sizes[3]);
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
        Ok(sizes[3])
    }

    /// Writes [`to_bytes`](Self::to_bytes) to a file, whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written, or a device does not give its numbers; an older file of that name
    /// is then as it was.
    pub fn save(&self, path: &Path, logits: &[f32]) -> Result<()> {
        self.numbers()?;
        output::write_whole(path, &self.to_bytes(logits))
    }

    /// Reads a file written by [`save`](Self::save), as [`load_bytes`](Self::load_bytes) does.
    ///
    /// # Errors
    /// Those of [`load_bytes`](Self::load_bytes), or an I/O error.
    pub fn load(&mut self, path: &Path) -> Result<Vec<f32>> {
        let failed = |e| Error::io("read", path, e);
        // One byte more than a state of this model has: whatever else the file is, it is not read whole.
        let size_max = HEADER_BYTES + 4 * (self.shape.len() + self.shape.n_vocab) + 1;
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(failed)?;
        file.take(size_max as u64)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        self.load_bytes(&bytes).map_err(|e| e.at(path.display()))
    }
}

impl Clone for State {
    fn clone(&self) -> Self {
        // Where the device has no room for another state, the clone is on the host.
        let device = self.device.as_ref().and_then(|device| device.try_clone());
        let data = match device {
            Some(_) => self.data.clone(),
            None => self.as_slice().to_vec(),
        };
        State {
            shape: self.shape,
            n_tokens: self.n_tokens,
            data,
            device: device.map(Box::new),
        }
    }

    fn clone_from(&mut self, other: &Self) {
        let copied = match (&mut self.device, &other.device) {
            (Some(to), Some(from)) => to.copy_from(from),
            _ => false,
        };
        let data = if copied {
            &other.data
        } else {
            other.as_slice()
        };
        data.clone_into(&mut self.data);
        (self.shape, self.n_tokens) = (other.shape, other.n_tokens);
        if !copied {
            self.host_is_newer();
        }
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        let same = self.shape == other.shape && self.n_tokens == other.n_tokens;
        same && self.as_slice() == other.as_slice()
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("shape", &self.shape)
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
