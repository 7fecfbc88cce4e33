//! A model and the threads that run it.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::mpsc::{self, Sender};
use std::sync::Arc;
use std::thread::JoinHandle;

use rwkv_edge::{Error, ErrorKind, Model, Result};

use crate::job::{Event, Job, Owner};
use crate::metrics::{Metrics, ModelMetrics};
use crate::scheduler::{
    ending, panicked, Command, Given, Next, OpenSessions, Preparer, Queue, Scheduler, Turn,
};
use crate::store::{self, DiskOptions, Kept, Key, Pending, Session, Store};

/// What a worker may use.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WorkerOptions {
    /// Sequences that run at once; more wait.
    pub n_sequences: usize,
    /// Bytes of states that are kept in memory.
    pub state_memory: u64,
    /// Sessions of an owner at most.
    pub sessions_max: usize,
    /// Where states are kept, too.
    pub disk: Option<DiskOptions>,
    /// What the workers of one server take in turns: the CPU.
    pub turn: Arc<Turn>,
    /// What is counted.
    pub metrics: ModelMetrics,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        WorkerOptions {
            n_sequences: 16,
            state_memory: 256 << 20,
            sessions_max: 1 << 16,
            disk: None,
            turn: Arc::default(),
            metrics: Metrics::new().model(""),
        }
    }
}

/// In the bytes of a session, in front of pending tokens that stand for a text: no vocabulary has as many.
const TEXT_FOLLOWS: u32 = u32::MAX;

/// What is known of a session.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SessionInfo {
    /// Its name.
    pub name: String,
    /// Tokens that it holds.
    pub n_tokens: u64,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// When it was used last, in seconds since 1970.
    pub used: u64,
}

impl SessionInfo {
    fn of(session: &Session) -> Self {
        SessionInfo {
            name: session.name.clone(),
            n_tokens: session.n_tokens + session.pending.len() as u64,
            created: session.created,
            used: session.used,
        }
    }
}

/// Runs a model: one thread of its own makes batches of all jobs, another finds out where they begin.
pub struct Worker {
    model: Model,
    store: Arc<Store>,
    metrics: ModelMetrics,
    sessions: Arc<OpenSessions>,
    queue: Arc<Queue>,
    commands: Option<Sender<Command>>,
    threads: Vec<JoinHandle<()>>,
}

/// Something else that needs the model, in steps between those of the jobs, such as texts to be embedded.
pub trait Work: Send {
    /// Does one step, of at most about as much as a batch; whether it has ended. A step that panics ends it.
    fn step(&mut self, model: &Model) -> bool;
}

impl Worker {
    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// When there is no memory for the batches, no thread can be started, or the folder of states cannot be used.
    pub fn start(model: Model, options: &WorkerOptions) -> Result<Self> {
        let store = Store::new(
            &model,
            options.state_memory,
            options.disk.as_ref(),
            &options.metrics,
        )?;
        let store = Arc::new(store);
        let metrics = options.metrics.clone();
        let sessions = Arc::new(OpenSessions::new(store.clone(), options.sessions_max));
        let n_sequences = options.n_sequences.max(1);
        let queue = Queue::new(n_sequences, metrics.sequences_waiting.clone());
        let (commands, to_do) = mpsc::channel();
        let (is_started, has_started) = mpsc::channel();

        let (of_thread, its_store) = (model.clone(), store.clone());
        let (its_metrics, turn) = (metrics.clone(), options.turn.clone());
        let scheduler = spawn("rwkv-edge-batches", move || {
            let made = Scheduler::new(&of_thread, its_store, its_metrics, turn, n_sequences);
            match made {
                Ok(mut scheduler) => {
                    let _ = is_started.send(Ok(()));
                    scheduler.run(&to_do);
                }
                Err(error) => drop(is_started.send(Err(error))),
            }
        })?;
        let gone = |_| Error::new(ErrorKind::Memory, "a thread ended before it began");
        has_started.recv().map_err(gone)??;

        let preparer = Preparer {
            model: model.clone(),
            store: store.clone(),
            sessions: sessions.clone(),
        };
        let (its_commands, its_queue) = (commands.clone(), queue.clone());
        let preparing = spawn("rwkv-edge-prompts", move || {
            while let Some(next) = its_queue.next() {
                let command = match next {
                    Next::More => Some(Command::More),
                    Next::Begin(job, given) => begin(&preparer, *job, given),
                };
                let sent = command.map_or(Ok(()), |command| its_commands.send(command));
                if sent.is_err() {
                    return;
                }
            }
        })?;
        Ok(Worker {
            model,
            store,
            metrics,
            sessions,
            queue,
            commands: Some(commands),
            threads: vec![preparing, scheduler],
        })
    }

    /// Gives a job to the model. It begins when there is room; until then there are no events.
    pub fn submit(&self, job: Job) {
        self.queue.push(job);
    }

    /// Gives the model other work.
    pub fn work(&self, work: Box<dyn Work>) {
        if let Some(commands) = &self.commands {
            // Work that is dropped tells so by whatever it holds.
            let _ = commands.send(Command::Work(work));
        }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The states that are kept.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What is counted.
    pub fn metrics(&self) -> &ModelMetrics {
        &self.metrics
    }

    /// The sessions of an owner, by name.
    ///
    /// # Errors
    ///
    /// When the folder cannot be read.
    pub fn sessions(&self, owner: &Owner) -> Result<Vec<SessionInfo>> {
        let sessions = self.store.sessions(owner)?;
        Ok(sessions.iter().map(SessionInfo::of).collect())
    }

    /// A session, if there is one of this name.
    ///
    /// # Errors
    ///
    /// When its file cannot be read.
    pub fn session(&self, owner: &Owner, name: &str) -> Result<Option<SessionInfo>> {
        let session = self.store.session(owner, name)?;
        Ok(session.as_ref().map(SessionInfo::of))
    }

    /// Copies a session under another name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] when there is none of the first name, or one of the second; when it cannot be written.
    pub fn fork_session(&self, owner: &Owner, from: &str, to: &str) -> Result<SessionInfo> {
        let session = self.store.session(owner, from)?.ok_or_else(|| {
            let text = format!("there is no session {from:?}");
            Error::new(ErrorKind::Argument, text)
        })?;
        let _is_open = self.sessions.open(owner, to)?;
        if self.store.session(owner, to)?.is_some() {
            let text = format!("there is a session {to:?}, expected a new name");
            return Err(Error::new(ErrorKind::Argument, text));
        }
        self.sessions.check_new(owner, to)?;
        let fork = session.renamed(to);
        let info = SessionInfo::of(&fork);
        self.keep(owner, Vec::new(), fork)?;
        Ok(info)
    }

    /// Forgets a session; whether there was one.
    ///
    /// # Errors
    ///
    /// When a job works on it, or its file cannot be removed.
    pub fn delete_session(&self, owner: &Owner, name: &str) -> Result<bool> {
        let _is_open = self.sessions.open(owner, name)?;
        self.store.delete_session(owner, name)
    }

    /// A session as bytes that any machine with the same model can go on from; `None` without such a session, or when
    /// its state is no longer there.
    ///
    /// # Errors
    ///
    /// When the state cannot be read.
    pub fn export_session(&self, owner: &Owner, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(session) = self.store.session(owner, name)? else {
            return Ok(None);
        };
        let state = match session.key() {
            Some(key) if key == self.store.root() => Some(Arc::new(self.model.try_new_state()?)),
            key => key.and_then(|key| self.store.find(owner, key)),
        };
        let Some(state) = state else { return Ok(None) };
        state.check()?;
        // What is pending goes behind the state, which says its own size.
        let mut bytes = state.to_bytes(&[]);
        let (tokens, text) = session.pending_text();
        let mut pending = tokens.to_vec();
        if !text.is_empty() {
            pending.push(TEXT_FOLLOWS);
            pending.extend(&session.pending[tokens.len()..]);
        }
        bytes.extend(pending.iter().flat_map(|token| token.to_le_bytes()));
        Ok(Some(bytes))
    }

    /// Makes a session of such bytes, or replaces it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::State`] when they are damaged, of another model, or not finite.
    pub fn import_session(&self, owner: &Owner, name: &str, bytes: &[u8]) -> Result<SessionInfo> {
        let _is_open = self.sessions.open(owner, name)?;
        if matches!(self.store.session(owner, name), Ok(None)) {
            self.sessions.check_new(owner, name)?;
        }
        let mut state = self.model.try_new_state()?;
        let size = state.to_bytes(&[]).len();
        let (of_state, pending) = bytes.split_at(size.min(bytes.len()));
        state.load_bytes(of_state)?;
        let n_vocab = self.model.n_vocab();
        let pending: Option<Vec<u32>> = pending
            .chunks(4)
            .map(|four| Some(u32::from_le_bytes(four.try_into().ok()?)))
            .map(|token| token.filter(|&token| (token as usize) < n_vocab || token == TEXT_FOLLOWS))
            .collect();
        let Some(pending) = pending else {
            let text = "behind the state: expected token ids of 4 bytes each";
            return Err(Error::new(ErrorKind::State, text));
        };
        // Nobody knows what it has read, but that it is the same bytes.
        let key = Key::of_bytes(of_state);
        let n_tokens = state.n_tokens();
        let pending = self.pending(&pending)?;
        let session = Session::new(name, key, n_tokens, pending, store::now());
        let info = SessionInfo::of(&session);
        let kept = Kept {
            key,
            text: None,
            before: None,
            state: Arc::new(state),
        };
        self.keep(owner, vec![kept], session)?;
        Ok(info)
    }

    /// Pending tokens, of which the last ones may stand for a text.
    fn pending(&self, all: &[u32]) -> Result<Pending> {
        let mut parts = all.splitn(2, |&token| token == TEXT_FOLLOWS);
        let tokens = parts.next().unwrap_or_default().to_vec();
        let of_text = parts.next().unwrap_or_default();
        if of_text.contains(&TEXT_FOLLOWS) {
            let text = "behind the state: expected at most one text";
            return Err(Error::new(ErrorKind::State, text));
        }
        let text = match of_text.is_empty() {
            true => None,
            false => {
                let text = self.model.tokenizer()?.decode(of_text)?;
                Some((of_text.to_vec(), text))
            }
        };
        Ok(Pending { tokens, text })
    }

    /// Keeps a session, and waits until it is written.
    fn keep(&self, owner: &Owner, states: Vec<Kept>, session: Session) -> Result<()> {
        let (done, is_done) = mpsc::channel();
        self.store
            .keep_whole(owner, states, Some(session), move |written| {
                let _ = done.send(written);
            });
        is_done.recv().unwrap_or_else(|_| Err(ending()))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Whoever waits for room gets none.
        self.queue.close();
        self.commands = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.store.flush();
    }
}

/// What the batches are told of a job that there is room for; a client whose job cannot begin is told why.
fn begin(preparer: &Preparer, job: Job, given: Arc<Given>) -> Option<Command> {
    let events = job.events.clone();
    let prepared = catch_unwind(AssertUnwindSafe(|| preparer.prepare(job, given)));
    let error = match prepared {
        Ok(Ok(prepared)) => return Some(Command::Begin(Box::new(prepared))),
        Ok(Err(error)) => error,
        Err(_) => panicked(),
    };
    let _ = events.send(Event::Failed(error));
    None
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let spawned = std::thread::Builder::new().name(name.into()).spawn(work);
    spawned.map_err(|e| Error::new(ErrorKind::Memory, format!("cannot start a thread: {e}")))
}
