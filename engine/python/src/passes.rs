//! A model with memory for forward passes, and what goes on with it outside of the GIL.

use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use engine::{ErrorKind, Workspace};
use pyo3::prelude::*;

use crate::error::{Failed, Result};

/// An open model, as all objects share it that are made of it.
pub(crate) struct Shared {
    pub(crate) model: engine::Model,
    /// The file or folder that it was opened from.
    pub(crate) path: PathBuf,
    /// The process in which the model was opened, or used last.
    process: AtomicU32,
    /// Calls that are under way, in all threads.
    n_under_way: AtomicUsize,
    /// Locked with the GIL held only: a fork comes from Python, so nobody else has it then.
    spare: Mutex<Vec<Buffers>>,
}

/// Memory for the passes of one call, each made when it is first wanted.
#[derive(Default)]
pub(crate) struct Buffers {
    decode: Option<Workspace>,
    prefill: Option<Workspace>,
}

impl Buffers {
    /// The workspace for so many rows.
    pub(crate) fn of_rows(
        &mut self,
        model: &engine::Model,
        n_rows: usize,
    ) -> engine::Result<&mut Workspace> {
        let (slot, rows_max) = match n_rows {
            0 | 1 => (&mut self.decode, 1),
            _ => (&mut self.prefill, model.prefill_rows()),
        };
        Ok(match slot {
            Some(workspace) => workspace,
            None => slot.insert(model.try_workspace(rows_max)?),
        })
    }
}

/// A call under way. It begins and ends with the GIL held.
pub(crate) struct Call<'a> {
    shared: &'a Shared,
    pub(crate) buffers: Buffers,
}

impl Shared {
    pub(crate) fn new(model: engine::Model, path: PathBuf) -> Self {
        Shared {
            model,
            path,
            process: AtomicU32::new(process::id()),
            n_under_way: AtomicUsize::new(0),
            spare: Mutex::new(Vec::new()),
        }
    }

    /// Begins a call that will let other threads run.
    ///
    /// A process that was forked has none of its parent's other threads. Where none of them was in a call, the model
    /// goes on in the child, on one thread. Where one was, it may have held a lock that nobody opens any more, so
    /// that every call is refused there.
    pub(crate) fn begin(&self, _py: Python<'_>) -> Result<Call<'_>> {
        let process = process::id();
        if self.process.load(Ordering::Relaxed) != process {
            if self.n_under_way.load(Ordering::Relaxed) > 0 {
                return Err(Failed::new(
                    ErrorKind::Unsupported,
                    "this process was forked while another thread used the model: open it again, here",
                ));
            }
            self.process.store(process, Ordering::Relaxed);
        }
        self.n_under_way.fetch_add(1, Ordering::Relaxed);
        Ok(Call {
            shared: self,
            buffers: self.spare().pop().unwrap_or_default(),
        })
    }

    /// One piece of work without the GIL.
    pub(crate) fn work<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&engine::Model, &mut Buffers) -> engine::Result<T> + Send,
    ) -> Result<T> {
        let mut call = self.begin(py)?;
        let (model, buffers) = (&self.model, &mut call.buffers);
        Ok(py.detach(|| work(model, buffers))?)
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Buffers>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.shared.spare().push(std::mem::take(&mut self.buffers));
        self.shared.n_under_way.fetch_sub(1, Ordering::Relaxed);
    }
}
