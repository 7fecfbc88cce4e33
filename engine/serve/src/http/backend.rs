//! What the handlers need of a model: a worker, or in tests something that answers as it is told.

use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use rwkv_edge::{Model, Result};
use rwkv_edge_chat::Template;

use crate::constrain::{Compiler, Constraint, Grammar};
use crate::job::{Job, Owner};
use crate::worker::{SessionInfo, Work, Worker};

/// Whoever answers jobs for one model. Calls that say so may take a while and are made on threads that may wait.
pub trait Backend: Send + Sync {
    /// The model.
    fn model(&self) -> &Model;

    /// Gives it a job, at once.
    fn submit(&self, job: Job);

    /// Gives it other work, at once.
    fn work(&self, work: Box<dyn Work>);

    /// Compiles a grammar; takes a while.
    ///
    /// # Errors
    ///
    /// With what of the grammar is not honoured.
    fn compile(&self, grammar: &Grammar) -> Result<Constraint>;

    /// The sessions of an owner, by name; takes a while.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    fn sessions(&self, owner: &Owner) -> Result<Vec<SessionInfo>>;

    /// The session of a name; takes a while.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    fn session(&self, owner: &Owner, name: &str) -> Result<Option<SessionInfo>>;

    /// Copies a session under another name; takes a while.
    ///
    /// # Errors
    ///
    /// When there is none of the first name, or one of the second.
    fn fork_session(&self, owner: &Owner, from: &str, to: &str) -> Result<SessionInfo>;

    /// Forgets a session; whether there was one. Takes a while.
    ///
    /// # Errors
    ///
    /// When its file cannot be removed.
    fn delete_session(&self, owner: &Owner, name: &str) -> Result<bool>;

    /// A session as bytes; takes a while.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    fn export_session(&self, owner: &Owner, name: &str) -> Result<Option<Vec<u8>>>;

    /// Makes a session of bytes, or replaces it; takes a while.
    ///
    /// # Errors
    ///
    /// When they are no state of this model.
    fn import_session(&self, owner: &Owner, name: &str, bytes: &[u8]) -> Result<SessionInfo>;
}

/// A worker with the compiler of its grammars.
pub struct WorkerBackend {
    worker: Worker,
    compiler: OnceLock<Result<Compiler, String>>,
}

impl WorkerBackend {
    /// The compiler is made with the first grammar.
    pub fn new(worker: Worker) -> Self {
        WorkerBackend {
            worker,
            compiler: OnceLock::new(),
        }
    }
}

impl Backend for WorkerBackend {
    fn model(&self) -> &Model {
        self.worker.model()
    }

    fn submit(&self, job: Job) {
        self.worker.submit(job);
    }

    fn work(&self, work: Box<dyn Work>) {
        self.worker.work(work);
    }

    fn compile(&self, grammar: &Grammar) -> Result<Constraint> {
        let made = || Compiler::new(self.worker.model()).map_err(|error| error.to_string());
        let compiler = self.compiler.get_or_init(made).as_ref();
        let compiler = compiler.map_err(|text| {
            rwkv_edge::Error::new(rwkv_edge::ErrorKind::Tokenizer, text.as_str())
        })?;
        compiler.compile(grammar)
    }

    fn sessions(&self, owner: &Owner) -> Result<Vec<SessionInfo>> {
        self.worker.sessions(owner)
    }

    fn session(&self, owner: &Owner, name: &str) -> Result<Option<SessionInfo>> {
        self.worker.session(owner, name)
    }

    fn fork_session(&self, owner: &Owner, from: &str, to: &str) -> Result<SessionInfo> {
        self.worker.fork_session(owner, from, to)
    }

    fn delete_session(&self, owner: &Owner, name: &str) -> Result<bool> {
        self.worker.delete_session(owner, name)
    }

    fn export_session(&self, owner: &Owner, name: &str) -> Result<Option<Vec<u8>>> {
        self.worker.export_session(owner, name)
    }

    fn import_session(&self, owner: &Owner, name: &str, bytes: &[u8]) -> Result<SessionInfo> {
        self.worker.import_session(owner, name, bytes)
    }
}

/// A model as clients know it.
#[derive(Clone)]
pub struct Served {
    pub(super) name: String,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) template: Template,
    /// Since when, in seconds since 1970.
    pub(super) created: u64,
    /// What conversations begin with, where the version was trained so.
    pub(super) first_token: Option<u32>,
}

/// Texts of RWKV-7's training begin behind this token.
const FIRST_TOKEN: u32 = 0;

impl Served {
    /// A model under this name, with the form of its conversations.
    pub fn new(name: &str, backend: Arc<dyn Backend>, template: Template) -> Self {
        let model = backend.model();
        let is_world = template.is_world() && model.tokenizer().is_ok_and(|one| one.is_world());
        // A tuned state is itself what comes in front of a text.
        let is_tuned = || model.new_state().initial_hash().is_some();
        let has_first = is_world && model.info().version == 7 && !is_tuned();
        Served {
            name: name.to_owned(),
            template,
            created: seconds_since_1970(),
            first_token: has_first.then_some(FIRST_TOKEN),
            backend,
        }
    }

    pub(super) fn model(&self) -> &Model {
        self.backend.model()
    }
}

pub(super) fn seconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs())
}

impl SessionInfo {
    /// A session, for backends of other crates. Times are in seconds since 1970.
    pub fn new(name: &str, n_tokens: u64, created: u64, used: u64) -> Self {
        SessionInfo {
            name: name.to_owned(),
            n_tokens,
            created,
            used,
        }
    }
}
