//! The recurrent state: all that a model remembers of the tokens it has read.
//!
//! Its size does not depend on how many those were. It is a plain value: clone it to branch, keep it to
//! come back. [`State::to_bytes`] writes it with a checked header; the layout of the numbers is the
//! same on every little-endian platform and for every quantisation of the same checkpoint.

#![forbid(unsafe_code)]

use std::any::Any;
use std::ops::Range;
use std::sync::OnceLock;

use super::config::Sizes;
use super::fingerprint::Fingerprint;
use crate::error::{Error, Result};
use crate::math::{copied, zeroed};

mod initial;
mod saved;

pub(crate) use initial::{time_state_name, Initial, TIME_STATE};
#[cfg(test)]
pub(crate) use saved::NAME;

/// Parts of a state that an architecture may have.
pub(crate) const PARTS_MAX: usize = 8;

/// Where a state's numbers are: part after part of each layer, layer after layer, as the architecture's table says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StateLayout {
    pub(crate) sizes: Sizes,
    /// Of the checkpoint, the same for every quantisation.
    pub(crate) fingerprint: Fingerprint,
    /// Where in a layer each part ends.
    ends: [usize; PARTS_MAX],
}

impl StateLayout {
    /// Of states that belong to no model.
    pub(crate) fn of_sizes(sizes: &Sizes) -> Self {
        let nothing = Fingerprint {
            first: 0,
            rows: None,
        };
        Self::new(sizes, nothing)
    }

    pub(crate) fn new(sizes: &Sizes, fingerprint: Fingerprint) -> Self {
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

    /// Whether a state of this layout is one of that, too: as far as is known, both are of one checkpoint.
    pub(crate) fn fits(&self, other: &Self) -> bool {
        self.sizes == other.sizes && self.fingerprint.fits(&other.fingerprint)
    }

    /// What checkpoints that were tuned hold for each layer: heads, values, keys. `None` where the architecture's
    /// states cannot be tuned.
    pub(crate) fn tuned_shape(&self) -> Option<[usize; 3]> {
        let part = self.sizes.architecture.tuned_part?;
        let side = self.sizes.head_size.max(1);
        Some([self.parts(part..part + 1).len() / (side * side), side, side])
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
    /// What [`reset`](Self::reset) goes back to, where it is not the empty state of the architecture.
    initial: Option<Initial>,
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
    /// The empty state, which is `initial` where there is one; it is of the same layout.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub(crate) fn new(layout: StateLayout, initial: Option<Initial>) -> Result<Self> {
        let mut state = State {
            layout,
            initial,
            n_tokens: 0,
            data: zeroed(layout.len(), "a state")?,
            elsewhere: None,
            is_undefined: false,
            unreadable: OnceLock::new(),
        };
        state.reset();
        Ok(state)
    }

    /// Back to the empty state: that of the model which the state is of, or the tuned one that was loaded into it
    /// ([`Session::load_state`](crate::Session::load_state)). Copies go back to the same one.
    pub fn reset(&mut self) {
        self.n_tokens = 0;
        self.is_undefined = false;
        self.host_is_newer();
        if let Some(initial) = &self.initial {
            self.data.copy_from_slice(initial.numbers());
            return;
        }
        let layout = &self.layout;
        let parts = layout.sizes.architecture.state;
        for layer in self.data.chunks_exact_mut(layout.layer_len()) {
            for (index, part) in parts.iter().enumerate() {
                layer[layout.parts(index..index + 1)].fill(part.empty);
            }
        }
    }

    /// Tells tuned empty states apart: a hash of the numbers that [`reset`](Self::reset) goes back to, `None` where
    /// these are the architecture's own.
    pub fn initial_hash(&self) -> Option<u64> {
        self.initial.as_ref().map(Initial::hash)
    }

    /// Becomes a tuned empty state, which is what it goes back to from now on.
    pub(crate) fn begin_with(&mut self, initial: Initial) {
        self.initial = Some(initial);
        self.reset();
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
    /// not end, because a device failed in its middle, a mapped file shrank, numbers became NaN or infinite, or a thread
    /// panicked. A clone of it is undefined,
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
            let numbers = copied(old.numbers(&self.data)?, "a state")?;
            self.data = numbers;
        }
        self.elsewhere = elsewhere;
        Ok(())
    }

    /// A clone, on the devices that have this state, or on the host where they have no room.
    ///
    /// # Errors
    /// Those of [`numbers`](Self::numbers), where `clone` gives a state that is undefined, and
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory), where `clone` ends the process.
    pub fn try_clone(&self) -> Result<Self> {
        self.check()?;
        let elsewhere = self.elsewhere.as_ref().and_then(|there| there.try_clone());
        let data = match elsewhere {
            Some(_) => copied(&self.data, "a state")?,
            None => copied(self.numbers()?, "a state")?,
        };
        Ok(State {
            layout: self.layout,
            initial: self.initial.clone(),
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
        self.initial.clone_from(&other.initial);
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
        // What a saved state says is below half of what there can be.
        self.n_tokens = self.n_tokens.saturating_add(n_tokens as u64);
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
}

impl Clone for State {
    fn clone(&self) -> Self {
        self.try_clone().unwrap_or_else(|_| State {
            layout: self.layout,
            initial: self.initial.clone(),
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
        let same = self.layout.fits(&other.layout) && self.n_tokens == other.n_tokens;
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
