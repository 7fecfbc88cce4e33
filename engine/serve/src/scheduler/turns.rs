//! What is taken in turns, and which sessions a job works on.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use rwkv_edge::Result;

use super::guard;
use crate::job::Owner;
use crate::session_errors;
use crate::store::{SessionLock, Store};

/// What the workers of one server take in turns: the CPU, one step after the other, in the order in which they came.
/// A plain lock goes back to whoever just left it.
#[derive(Debug, Default)]
pub struct Turn {
    /// The next number to be given out, and the one whose turn it is.
    numbers: Mutex<(u64, u64)>,
    changed: Condvar,
}

/// That it is somebody's turn, until this is dropped.
pub(crate) struct MyTurn<'a>(&'a Turn);

impl Turn {
    pub(crate) fn take(&self) -> MyTurn<'_> {
        let mut numbers = guard(&self.numbers);
        let mine = numbers.0;
        numbers.0 += 1;
        while numbers.1 != mine {
            let waited = self.changed.wait(numbers);
            numbers = waited.unwrap_or_else(PoisonError::into_inner);
        }
        MyTurn(self)
    }
}

impl Drop for MyTurn<'_> {
    fn drop(&mut self) {
        guard(&self.0.numbers).1 += 1;
        self.0.changed.notify_all();
    }
}

/// The sessions that jobs work on.
pub(crate) struct OpenSessions {
    open: Mutex<HashSet<(Owner, String)>>,
    store: Arc<Store>,
    n_max: usize,
}

/// That a session is worked on, here and by no other server, until this is dropped.
pub(crate) struct IsOpen {
    sessions: Arc<OpenSessions>,
    session: (Owner, String),
    lock: Option<SessionLock>,
}

impl OpenSessions {
    /// Those of a store, of which an owner may have so many.
    pub(crate) fn new(store: Arc<Store>, n_max: usize) -> Self {
        OpenSessions {
            open: Mutex::default(),
            store,
            n_max,
        }
    }

    /// # Errors
    ///
    /// When another job works on it, and those of the store's folder.
    pub(crate) fn open(self: &Arc<Self>, owner: &Owner, name: &str) -> Result<IsOpen> {
        let session = (owner.clone(), name.to_owned());
        if !guard(&self.open).insert(session.clone()) {
            return Err(session_errors::busy(name));
        }
        let mut open = IsOpen {
            sessions: self.clone(),
            session,
            lock: None,
        };
        open.lock = self.store.lock_session(owner, name)?;
        Ok(open)
    }

    /// # Errors
    ///
    /// When there may be no other session of an owner.
    pub(crate) fn check_new(&self, owner: &Owner, name: &str) -> Result<()> {
        match self.store.n_sessions(owner) < self.n_max {
            true => Ok(()),
            false => Err(session_errors::too_many(name, self.n_max)),
        }
    }
}

impl Drop for IsOpen {
    fn drop(&mut self) {
        // Whoever opens it here next wants the lock, too.
        self.lock = None;
        guard(&self.sessions.open).remove(&self.session);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::time::Duration;

    use super::*;

    #[test]
    fn turns_are_taken_in_turns() {
        let turn = Turn::default();
        let order = Mutex::new(Vec::new());
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            for name in [1, 2] {
                let (turn, order, start) = (&turn, &order, &start);
                scope.spawn(move || {
                    start.wait();
                    for _ in 0..50 {
                        let _turn = turn.take();
                        guard(order).push(name);
                        std::thread::sleep(Duration::from_micros(200));
                    }
                });
            }
        });
        let order = order.into_inner().expect("no panic");
        // Where one is not stopped by the system in between, neither goes twice; without turns nearly all would.
        let again = order[10..90].windows(2).filter(|two| two[0] == two[1]);
        assert!(again.count() <= 30, "{order:?}");
    }
}
