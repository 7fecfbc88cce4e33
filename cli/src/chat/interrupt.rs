//! Ctrl-C, which ends an answer and not the program.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result};

/// Set by Ctrl-C from [`catch`] on. There is one in a process, as there is one Ctrl-C.
pub(crate) fn flag() -> Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    FLAG.get_or_init(Arc::default).clone()
}

/// From now on Ctrl-C sets the [`flag`] and does nothing else. A process has one handler, which stays for the
/// conversations that follow.
pub(crate) fn catch() -> Result<()> {
    static IS_CAUGHT: Mutex<bool> = Mutex::new(false);
    let mut is_caught = IS_CAUGHT.lock().unwrap_or_else(PoisonError::into_inner);
    if !*is_caught {
        let flag = flag();
        ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))
            .context("cannot catch Ctrl-C")?;
        *is_caught = true;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second handler would be refused.
    #[test]
    fn conversations_follow_one_another() -> Result<()> {
        catch()?;
        catch()
    }
}
