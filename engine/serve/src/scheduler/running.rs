//! What the answers of one job share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rwkv_edge::{Error, Result, State};

use super::prepare::OpenSession;
use super::queue::Room;
use crate::job::{Ending, Event, Job};
use crate::store::{Kept, Key, Pending, Session, Store, TextHash};

/// A job whose prompt has been read.
pub(crate) struct Running {
    pub(crate) job: Job,
    /// Of the prompt's text, where there is one.
    pub(crate) text: Option<TextHash>,
    /// Where the prompt's last token begins: where the next prompt goes on from if the answer is not in it.
    pub(crate) prompt_end: PromptEnd,
    session: Mutex<Option<OpenSession>>,
    n_left: AtomicUsize,
    has_failed: AtomicBool,
}

/// The state before the last token of a prompt.
pub(crate) struct PromptEnd {
    pub(crate) key: Key,
    /// Of the state that it was read behind, if that was kept.
    pub(crate) before: Option<Key>,
    /// `None` before any token.
    pub(crate) state: Option<Arc<State>>,
    /// The last token.
    pub(crate) token: u32,
}

/// An answer that has ended, and what is kept of it.
pub(crate) struct Ended {
    pub(crate) choice: usize,
    /// What clients have not got of it.
    pub(crate) text: String,
    pub(crate) ending: Ending,
    pub(crate) n_tokens: usize,
    /// The state that a prompt with this answer goes on from.
    pub(crate) kept: Option<Kept>,
    /// What the session's next prompt begins with, behind that state, or, where there is none, behind the prompt's.
    pub(crate) pending: Pending,
    /// Where it was drawn, which is free again when it is kept.
    pub(crate) room: Option<Room>,
}

impl Running {
    pub(crate) fn new(
        job: Job,
        text: Option<TextHash>,
        prompt_end: PromptEnd,
        session: Option<OpenSession>,
    ) -> Self {
        let n_choices = job.n_choices.max(1);
        Running {
            job,
            text,
            prompt_end,
            session: Mutex::new(session),
            n_left: AtomicUsize::new(n_choices),
            has_failed: AtomicBool::new(false),
        }
    }

    /// Whether nobody waits for the answers any more.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.job.events.is_closed() || self.has_failed.load(Ordering::Acquire)
    }

    pub(crate) fn n_choices(&self) -> usize {
        self.job.n_choices.max(1)
    }

    pub(crate) fn is_session(&self) -> bool {
        let session = self.session.lock();
        session.unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Tells the client; one that has gone is noticed at the next step. Nothing is told behind a failure.
    pub(crate) fn tell(&self, event: Event) {
        if !self.has_failed.load(Ordering::Acquire) {
            let _ = self.job.events.send(event);
        }
    }

    /// Tells the client that all of it has failed, once.
    pub(crate) fn fail(&self, error: Error) {
        if !self.has_failed.swap(true, Ordering::AcqRel) {
            let _ = self.job.events.send(Event::Failed(error));
        }
    }

    /// Keeps what is to be kept of an answer, and then tells the client that it has ended.
    pub(crate) fn end(self: &Arc<Self>, ended: Ended, store: &Store) {
        let Ended {
            choice,
            text,
            ending,
            n_tokens,
            kept,
            pending,
            room,
        } = ended;
        let prompt_end = &self.prompt_end;
        let mut states = Vec::new();
        states.extend(prompt_end.state.as_ref().map(|state| Kept {
            key: prompt_end.key,
            text: None,
            before: prompt_end.before,
            state: state.clone(),
        }));
        let session = self.session.lock();
        let session = session.unwrap_or_else(PoisonError::into_inner).take();
        let session = session.map(|open| {
            let (key, n_tokens) = match (&kept, &prompt_end.state) {
                (Some(kept), _) => (kept.key, kept.state.n_tokens()),
                (None, state) => (prompt_end.key, state.as_ref().map_or(0, |s| s.n_tokens())),
            };
            let session = Session::new(&open.name, key, n_tokens, pending, open.created);
            // Others may go on with it once it is kept.
            (session, open.is_open)
        });
        let (session, is_open) = session.unzip();
        let is_session = session.is_some();
        states.extend(kept);
        let running = self.clone();
        let then = move |written: Result<()>| {
            drop((is_open, room));
            match written {
                Ok(()) => {}
                // The next request of the session would go on from what was before.
                Err(error) if is_session => return running.fail(error),
                // The answer is right; only a restart will not know it.
                Err(error) => running.tell(Event::NotWritten(error)),
            }
            running.tell(Event::Ended {
                choice,
                text,
                ending,
                n_tokens,
            });
            if running.n_left.fetch_sub(1, Ordering::AcqRel) == 1 {
                running.tell(Event::Done);
            }
        };
        store.keep_whole(&self.job.owner, states, session, then);
    }
}
