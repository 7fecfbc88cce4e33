//! Jobs that wait, and room for answers: who is next when some becomes free.
//!
//! Owners take turns, so that nobody waits for all that another has asked for; what one of them has asked for is begun
//! in the order in which it came. A job begins with room for one answer, which its prompt is read in, and gets that for
//! its other choices in the same turns: nobody waits until room for all of them is free at once.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;

use super::{ending, guard};
use crate::job::{Event, Job, Owner};

/// How often is looked whether what waits is still wanted.
const LOOK: Duration = Duration::from_millis(50);

/// What waits, and how much room there is.
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Jobs that wait.
    waiting: Gauge,
}

struct Inner {
    n_free: usize,
    is_closed: bool,
    /// Those who wait for something, the next one first.
    owners: VecDeque<(Owner, VecDeque<Waiting>)>,
}

enum Waiting {
    Job(Box<Job>),
    /// Choices of a job that has begun.
    Choices(Weak<Given>, usize),
}

/// Room for one answer, until this is dropped.
pub(crate) struct Room(Arc<Queue>);

/// Room that a job was given and that none of its choices has taken; a job that ends gives it back.
#[derive(Default)]
pub(crate) struct Given(Mutex<Vec<Room>>);

/// What is next.
pub(crate) enum Next {
    /// A job, with room for its first choice.
    Begin(Box<Job>, Arc<Given>),
    /// A job that has begun was given more room.
    More,
}

impl Queue {
    /// With room for so many answers, and what counts the jobs that wait.
    pub(crate) fn new(n_rooms: usize, waiting: Gauge) -> Arc<Self> {
        Arc::new(Queue {
            inner: Mutex::new(Inner {
                n_free: n_rooms,
                is_closed: false,
                owners: VecDeque::new(),
            }),
            changed: Condvar::new(),
            waiting,
        })
    }

    /// A job waits, unless nothing is begun any more, which it is told then.
    pub(crate) fn push(&self, job: Job) {
        let mut inner = guard(&self.inner);
        if inner.is_closed {
            drop(inner);
            let _ = job.events.send(Event::Failed(ending()));
            return;
        }
        self.waiting.inc();
        let at = inner
            .owners
            .iter()
            .position(|(owner, _)| *owner == job.owner);
        let at = at.unwrap_or_else(|| {
            inner.owners.push_back((job.owner.clone(), VecDeque::new()));
            inner.owners.len() - 1
        });
        inner.owners[at].1.push_back(Waiting::Job(Box::new(job)));
        drop(inner);
        self.changed.notify_all();
    }

    /// Waits until there is room for somebody; `None` once nothing is begun any more.
    pub(crate) fn next(self: &Arc<Self>) -> Option<Next> {
        let mut inner = guard(&self.inner);
        loop {
            if inner.is_closed {
                return None;
            }
            let n_gone = inner.remove_unwanted();
            self.waiting.dec_by(n_gone);
            if inner.n_free > 0 {
                if let Some(turn) = inner.turn() {
                    drop(inner);
                    if let Some(next) = self.give(turn) {
                        return Some(next);
                    }
                    inner = guard(&self.inner);
                    continue;
                }
            }
            inner = match inner.owners.is_empty() {
                true => self
                    .changed
                    .wait(inner)
                    .unwrap_or_else(PoisonError::into_inner),
                false => {
                    let waited = self.changed.wait_timeout(inner, LOOK);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Room was taken for what has its turn.
    fn give(self: &Arc<Self>, turn: Turn) -> Option<Next> {
        let room = Room(self.clone());
        match turn {
            Turn::Job(job, given) => {
                self.waiting.dec();
                guard(&given.0).push(room);
                Some(Next::Begin(job, given))
            }
            Turn::Choice(given) => {
                // A job that has just ended takes none.
                let given = given.upgrade()?;
                guard(&given.0).push(room);
                Some(Next::More)
            }
        }
    }

    /// Nothing is begun any more; whoever waits is told.
    pub(crate) fn close(&self) {
        let mut inner = guard(&self.inner);
        inner.is_closed = true;
        let owners = std::mem::take(&mut inner.owners);
        drop(inner);
        self.changed.notify_all();
        for one in owners.into_iter().flat_map(|(_, waiting)| waiting) {
            if let Waiting::Job(job) = one {
                self.waiting.dec();
                let _ = job.events.send(Event::Failed(ending()));
            }
        }
    }
}

/// Whose turn it is.
enum Turn {
    Job(Box<Job>, Arc<Given>),
    Choice(Weak<Given>),
}

impl Inner {
    /// Takes room for the first one of the owner whose turn it is.
    fn turn(&mut self) -> Option<Turn> {
        let (owner, mut waiting) = self.owners.pop_front()?;
        let turn = match waiting.pop_front()? {
            Waiting::Job(job) => {
                let given = Arc::new(Given::default());
                if job.n_choices > 1 {
                    let more = Waiting::Choices(Arc::downgrade(&given), job.n_choices - 1);
                    waiting.push_front(more);
                }
                Turn::Job(job, given)
            }
            Waiting::Choices(given, n) => {
                if n > 1 {
                    waiting.push_front(Waiting::Choices(given.clone(), n - 1));
                }
                Turn::Choice(given)
            }
        };
        if !waiting.is_empty() {
            self.owners.push_back((owner, waiting));
        }
        self.n_free -= 1;
        Some(turn)
    }

    /// Forgets jobs whose clients have gone, and choices of jobs that have ended; how many jobs these were.
    fn remove_unwanted(&mut self) -> i64 {
        let mut n_gone = 0;
        for (_, waiting) in &mut self.owners {
            waiting.retain(|one| match one {
                Waiting::Job(job) => {
                    let is_gone = job.events.is_closed();
                    n_gone += i64::from(is_gone);
                    !is_gone
                }
                Waiting::Choices(given, _) => given.strong_count() > 0,
            });
        }
        self.owners.retain(|(_, waiting)| !waiting.is_empty());
        n_gone
    }
}

impl Given {
    /// Takes room for a choice, if there is some.
    pub(crate) fn take(&self) -> Option<Room> {
        guard(&self.0).pop()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        guard(&self.0.inner).n_free += 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use rwkv_edge::SamplerOptions;
    use tokio::sync::mpsc::{unbounded_channel, UnboundedReceiver};

    use super::*;
    use crate::job::{Prompt, Start};

    fn job(owner: &str, n_choices: usize) -> (Job, UnboundedReceiver<Event>) {
        let (events, receiver) = unbounded_channel();
        let job = Job {
            owner: Owner::new(owner),
            start: Start::Beginning,
            prompt: Prompt::Tokens(vec![1]),
            sampling: SamplerOptions::new(),
            bias: Vec::new(),
            n_choices,
            max_new_tokens: None,
            stops: Vec::new(),
            ignore_end_of_text: false,
            begins_with_word: false,
            top_logprobs: None,
            prompt_logprobs: false,
            constraint: None,
            remains: None,
            events,
        };
        (job, receiver)
    }

    /// Who gets room that becomes free one after the other.
    fn order(queue: &Arc<Queue>, n: usize) -> Vec<String> {
        let mut given_to = Vec::new();
        let mut order = Vec::new();
        for _ in 0..n {
            let name = match queue.next().expect("somebody waits") {
                Next::Begin(job, given) => {
                    let name = job.owner.name().to_owned();
                    drop(given.take());
                    given_to.push((name.clone(), given));
                    name
                }
                Next::More => {
                    let mut all = given_to.iter();
                    let found = all.find_map(|(name, given)| Some((name, given.take()?)));
                    found.expect("it has its room").0.clone()
                }
            };
            order.push(name);
        }
        order
    }

    #[test]
    fn owners_take_turns_and_choices_are_asked_for_one_by_one() {
        let waiting = Gauge::default();
        let queue = Queue::new(1, waiting.clone());
        let mut receivers = Vec::new();
        let mut push = |owner: &str, n_choices: usize| {
            let (job, receiver) = job(owner, n_choices);
            receivers.push(receiver);
            queue.push(job);
        };
        for _ in 0..4 {
            push("many", 1);
        }
        push("wide", 3);
        push("wide", 1);
        push("one", 1);
        assert_eq!(waiting.get(), 7);
        let order = order(&queue, 9);
        let expected = [
            "many", "wide", "one", "many", "wide", "many", "wide", "many", "wide",
        ];
        assert_eq!(order, expected);
        assert_eq!(waiting.get(), 0);
    }

    #[test]
    fn who_has_gone_takes_no_room() {
        let waiting = Gauge::default();
        let queue = Queue::new(2, waiting.clone());
        let (gone, receiver) = job("gone", 1);
        queue.push(gone);
        drop(receiver);
        let (wide, _wide) = job("wide", 3);
        queue.push(wide);
        let Some(Next::Begin(first, given)) = queue.next() else {
            panic!("it is the one that waits");
        };
        assert_eq!((first.owner.name(), waiting.get()), ("wide", 0));
        // It ends before its other choices have their room, which is all free again.
        drop(given);
        let (other, _other) = job("other", 2);
        queue.push(other);
        let Some(Next::Begin(second, _given)) = queue.next() else {
            panic!("the other one has its turn");
        };
        assert_eq!(second.owner.name(), "other");
        assert!(matches!(queue.next(), Some(Next::More)));
        let (late, mut told) = job("late", 1);
        queue.push(late);
        queue.close();
        assert!(queue.next().is_none());
        assert!(matches!(told.try_recv(), Ok(Event::Failed(_))));
        let (later, mut told) = job("later", 1);
        queue.push(later);
        assert!(matches!(told.try_recv(), Ok(Event::Failed(_))));
        assert_eq!(waiting.get(), 0);
    }
}
