//! A border that no panic of another crate crosses: it becomes an error, and prints nothing.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::panic::{catch_unwind, set_hook, take_hook, AssertUnwindSafe};
use std::sync::Once;
use std::thread;

use super::tokenizer_error;
use crate::error::Result;

thread_local! {
    /// Whether this thread is behind the border.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; a panic in it is an error that says `what` failed. What `work` was changing must not be used
/// behind an error.
pub(super) fn fence<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    silence_panics();
    let before = INSIDE.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    INSIDE.set(before);
    result.unwrap_or_else(|_| {
        Err(tokenizer_error(format!(
            "{what}: the file's rules failed inside the `tokenizers` crate"
        )))
    })
}

/// The default hook prints. Ours leaves all panics but those behind the border to the hook that was there before.
fn silence_panics() {
    static SILENCED: Once = Once::new();
    // A thread that is panicking must not change the hook; then a later call does.
    if SILENCED.is_completed() || thread::panicking() {
        return;
    }
    SILENCED.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |panic| {
            // A thread that ends may have no such variable any more.
            if !INSIDE.try_with(Cell::get).unwrap_or(false) {
                before(panic);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_panic_is_an_error() {
        let error = fence("encoding", || -> Result<()> { panic!("within") }).expect_err("panics");
        assert_eq!(error.kind(), ErrorKind::Tokenizer);
        assert!(error.to_string().starts_with("encoding: "), "{error}");
        assert!(!INSIDE.get());
        assert_eq!(fence("encoding", || Ok(5)).expect("no panic"), 5);
    }
}
