//! How many sequences run at once, and which sessions a job works on.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rwkv_edge::Result;

use crate::job::Owner;
use crate::session_errors;

/// How often somebody who waits for room looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(50);

/// Room for sequences.
pub(crate) struct Rooms {
    n_free: Mutex<usize>,
    n_all: usize,
    is_closed: AtomicBool,
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
            is_closed: AtomicBool::new(false),
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
        let mut is_wanted = || is_wanted() && !self.is_closed.load(Ordering::Acquire);
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

impl Rooms {
    /// There is no room for anybody any more.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        self.freed.notify_all();
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        *guard(&self.rooms.n_free) += self.n;
        self.rooms.freed.notify_all();
    }
}

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
            false => Err(session_errors::busy(name)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_taken_in_turns() {
        let turn = Turn::default();
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for name in [1, 2] {
                let (turn, order) = (&turn, &order);
                scope.spawn(move || {
                    for _ in 0..50 {
                        let _turn = turn.take();
                        guard(order).push(name);
                        std::thread::sleep(Duration::from_micros(200));
                    }
                });
            }
        });
        let order = order.into_inner().expect("no panic");
        // Both work from about the tenth turn on, and neither goes twice then.
        let again = order[10..90].windows(2).filter(|two| two[0] == two[1]);
        assert!(again.count() <= 4, "{order:?}");
    }
}
