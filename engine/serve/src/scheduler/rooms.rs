//! How many sequences run at once, and which sessions a job works on.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rwkv_edge::{Error, ErrorKind, Result};

use crate::job::Owner;

/// How often somebody who waits for room looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(50);

/// Room for sequences.
pub(crate) struct Rooms {
    n_free: Mutex<usize>,
    n_all: usize,
    freed: Condvar,
}

/// Room that is taken until this is dropped.
pub(crate) struct Room {
    rooms: Arc<Rooms>,
    n: usize,
}

impl Rooms {
    pub(crate) fn new(n: usize) -> Self {
        Rooms {
            n_free: Mutex::new(n),
            n_all: n,
            freed: Condvar::new(),
        }
    }

    /// Takes so much room, or all of it for those who want more, when there is; `None` as soon as it is not wanted.
    pub(crate) fn take(
        self: &Arc<Self>,
        n: usize,
        mut is_wanted: impl FnMut() -> bool,
    ) -> Option<Room> {
        let n = n.min(self.n_all);
        let mut n_free = guard(&self.n_free);
        while *n_free < n {
            if !is_wanted() {
                return None;
            }
            let waited = self.freed.wait_timeout(n_free, LOOK);
            n_free = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *n_free -= n;
        drop(n_free);
        let rooms = self.clone();
        is_wanted().then_some(Room { rooms, n })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        *guard(&self.rooms.n_free) += self.n;
        self.rooms.freed.notify_all();
    }
}

/// The sessions that jobs work on.
#[derive(Default)]
pub(crate) struct OpenSessions(Mutex<HashSet<(Owner, String)>>);

/// That a session is worked on, until this is dropped.
pub(crate) struct IsOpen {
    sessions: Arc<OpenSessions>,
    session: (Owner, String),
}

impl OpenSessions {
    /// # Errors
    ///
    /// When another job works on it.
    pub(crate) fn open(self: &Arc<Self>, owner: &Owner, name: &str) -> Result<IsOpen> {
        let session = (owner.clone(), name.to_owned());
        match guard(&self.0).insert(session.clone()) {
            true => Ok(IsOpen {
                sessions: self.clone(),
                session,
            }),
            false => {
                let text = format!(
                    "session {name:?}: another request works on it, expected one at a time"
                );
                Err(Error::new(ErrorKind::Argument, text))
            }
        }
    }
}

impl Drop for IsOpen {
    fn drop(&mut self) {
        guard(&self.sessions.0).remove(&self.session);
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
