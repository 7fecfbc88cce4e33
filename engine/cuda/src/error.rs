//! What goes wrong, and how the host hears of it: a status and, per thread, one line of text.

use std::cell::RefCell;

use rwkv_edge_plugin::{
    Status, ERROR_ARGUMENT, ERROR_DEVICE, ERROR_MEMORY, ERROR_PANIC, ERROR_UNSUPPORTED, OK,
};

/// A failure, for one call.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    pub(crate) text: String,
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub(crate) fn argument(text: impl Into<String>) -> Self {
        Failure::new(ERROR_ARGUMENT, text)
    }

    pub(crate) fn unsupported(text: impl Into<String>) -> Self {
        Failure::new(ERROR_UNSUPPORTED, text)
    }

    pub(crate) fn memory(text: impl Into<String>) -> Self {
        Failure::new(ERROR_MEMORY, text)
    }

    pub(crate) fn device(text: impl Into<String>) -> Self {
        Failure::new(ERROR_DEVICE, text)
    }

    fn new(status: Status, text: impl Into<String>) -> Self {
        let text = text.into();
        Failure { status, text }
    }
}

thread_local! {
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs one call of the host: keeps why it failed, and turns a panic into a status.
pub(crate) fn answer(call: impl FnOnce() -> Result<()>) -> Status {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    let (status, text) = match outcome {
        Ok(Ok(())) => (OK, String::new()),
        Ok(Err(failure)) => (failure.status, failure.text),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            let text = text.unwrap_or("without a message");
            (ERROR_PANIC, format!("a bug in the CUDA plugin: {text}"))
        }
    };
    LAST.with(|last| *last.borrow_mut() = text);
    status
}

/// Why the last call of this thread failed.
pub(crate) fn last() -> String {
    LAST.with(|last| last.borrow().clone())
}
