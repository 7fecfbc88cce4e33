//! Models and sessions that begin with a tuned initial state from a file of its own.

#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;

use super::Model;
use crate::checkpoint::{may_hold_tensors, read_lone};
use crate::error::{Error, Result};
use crate::files::{retried, SourceFile};
use crate::math::copied;
use crate::memory::budget::{Budget, Reservation};
use crate::networks::state::{Initial, State, StateLayout};

/// Bytes that show what a file is.
const START: u64 = 64;

/// A tuned initial state, and what it takes of the model's memory limit.
pub(super) struct Tuned {
    initial: Initial,
    _reservation: Option<Reservation>,
}

impl Tuned {
    /// One that was counted with its model.
    pub(super) fn counted(initial: Initial) -> Arc<Self> {
        Arc::new(Tuned {
            initial,
            _reservation: None,
        })
    }
}

impl Model {
    /// This model with another empty state: a tuned one from a `.pth` or `.safetensors` file that holds nothing but
    /// `blocks.N.att.time_state` of each layer, (head, value, key) of f32, f16 or bf16, as "state tuning" saves them.
    /// Its sessions and [states](Self::new_state) begin with it and are reset to it, and [`save`](Self::save) keeps it.
    /// Weights and threads are shared with this model, not copied. A state that was saved with the one fits the other.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::State`](crate::ErrorKind::State) when the file holds something else or has other sizes than the
    /// model, also for an RWKV-4 model, whose states cannot be tuned; [`ErrorKind::Format`](crate::ErrorKind::Format) when it
    /// is damaged or a number is not finite; [`ErrorKind::Io`](crate::ErrorKind::Io),
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub fn with_initial_state(&self, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let initial = read_file(path, self.0.state_layout())?.ok_or_else(|| {
            let text =
                "not a tuned initial state, expected a .pth or .safetensors file of nothing but \
                        blocks.N.att.time_state";
            Error::state(text).at(path.display())
        })?;
        let tuned = Tuned {
            _reservation: Some(reservation(self.budget(), &initial)?),
            initial,
        };
        Ok(Model(self.0.clone(), Some(Arc::new(tuned))))
    }

    /// Whether a file begins as those do that [`with_initial_state`](Self::with_initial_state) reads: as a `.pth` or
    /// `.safetensors` file, and not as a saved state.
    pub fn is_initial_state(path: impl AsRef<Path>) -> bool {
        matches!(open(path.as_ref()), Ok(Some(_)))
    }

    pub(super) fn initial(&self) -> Option<&Initial> {
        self.1.as_ref().map(|tuned| &tuned.initial)
    }
}

/// What a tuned state takes of a memory limit while it is held.
pub(super) fn reservation(budget: &Arc<Budget>, initial: &Initial) -> Result<Reservation> {
    let bytes = size_of_val(initial.numbers()) as u64;
    Reservation::new(budget, bytes, "a tuned initial state")
}

/// The tuned state that a file holds; `None` for what is no file of tensors, such as a saved state.
pub(super) fn read_file(path: &Path, layout: StateLayout) -> Result<Option<Initial>> {
    let file = open(path)?;
    file.map(|file| read_lone(file, layout)).transpose()
}

/// A file of tensors.
fn open(path: &Path) -> Result<Option<SourceFile>> {
    // What can be read only once, such as a pipe, is left to the reader of saved states, which tells of what is not
    // there at all, too.
    let found = retried(|| std::fs::metadata(path));
    if !found.is_ok_and(|found| found.is_file() && found.len() > 0) {
        return Ok(None);
    }
    let file = SourceFile::open_without_mapping(path)?;
    let start = file.bytes(0..file.len().min(START))?;
    Ok(is_tuned(&start).then_some(file))
}

/// The same of bytes in memory.
pub(super) fn read_bytes(bytes: &[u8], layout: StateLayout) -> Result<Option<Initial>> {
    if !is_tuned(bytes) {
        return Ok(None);
    }
    let bytes = copied(bytes, "a tuned initial state")?;
    let file = SourceFile::from_bytes("tuned initial state", bytes.into());
    read_lone(file, layout).map(Some)
}

fn is_tuned(start: &[u8]) -> bool {
    !State::begins_saved(start) && may_hold_tensors(start)
}
