//! Ctrl-C in work that is one call of the engine.

use std::cell::Cell;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use rwkv_edge_cli::parts;

use crate::error::{Failed, Result};

/// Python's handlers of signals need the GIL, which other threads may hold for 5 ms each time.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

thread_local! {
    /// When this thread has looked for signals last, while its work can be interrupted.
    static LOOKED: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// What a handler of signals raised.
struct Interrupted(PyErr);

/// Work without the GIL that ends where a signal raises an exception, such as Ctrl-C, at its next step: all that tells
/// how far it is has steps, and so has whatever calls [`look`]. It ends by unwinding, since such work has no other way
/// out; its own destructors put away what is half done.
pub(crate) fn interruptible<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> engine::Result<T> + Send,
) -> Result<T> {
    parts::on_step(look);
    py.detach(|| {
        LOOKED.set(Some(Instant::now()));
        let outcome = catch_unwind(AssertUnwindSafe(work));
        LOOKED.set(None);
        match outcome {
            Ok(outcome) => outcome.map_err(Failed::Engine),
            Err(payload) => match payload.downcast::<Interrupted>() {
                Ok(interrupted) => Err(Failed::Python(interrupted.0)),
                Err(payload) => resume_unwind(payload),
            },
        }
    })
}

/// Ends the work of this thread if a signal wants that.
pub(crate) fn look() {
    let is_due = |looked: Instant| looked.elapsed() >= BETWEEN_LOOKS;
    if !LOOKED.get().is_some_and(is_due) {
        return;
    }
    LOOKED.set(Some(Instant::now()));
    // Not as a panic, which would be reported on stderr.
    if let Err(raised) = Python::attach(|py| py.check_signals()) {
        resume_unwind(Box::new(Interrupted(raised)));
    }
}
