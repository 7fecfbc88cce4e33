//! States that are kept, so that nothing is read twice: in memory and in a folder.
//!
//! Where there is no more room those go that were not used for longest. In memory, spent ones go before all others: a
//! state is spent when exactly one other goes on from it, such as the end of a prompt whose answer is kept, and no
//! session is there. Ends of conversations stay, and what several go on from, such as a system prompt.
//!
//! A state is found by the tokens that it has read, or, behind an answer, by the text: what a client sends back is cut
//! into tokens in another way than the model drew them. Each owner has states of its own, and finds no others.

mod disk;
mod index;
mod keys;
mod links;
mod locks;
mod sessions;

use std::sync::{Arc, Mutex, MutexGuard};

use rwkv_edge::{Model, Result, State};

use crate::job::Owner;
use crate::metrics::ModelMetrics;
use crate::session_errors;
use disk::{Disk, Write};
use index::{Index, OwnerId};

pub use disk::DiskOptions;
pub use keys::{Key, TextHash, TextKey};
pub(crate) use locks::SessionLock;
pub(crate) use sessions::now;
pub use sessions::{Pending, Session};

/// A state that was found.
#[derive(Clone)]
pub struct Hit {
    /// What it has read.
    pub key: Key,
    /// How many of the tokens that were looked for, or bytes of the text.
    pub size: usize,
    /// The state; nobody changes it.
    pub state: Arc<State>,
}

/// A state to be kept.
#[derive(Clone)]
pub struct Kept {
    /// What it has read.
    pub key: Key,
    /// All text that it has read, behind an answer.
    pub text: Option<TextKey>,
    /// Of the state that it goes on from, if that is known.
    pub before: Option<Key>,
    /// The state.
    pub state: Arc<State>,
}

/// How many states are kept, and what they take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// States.
    pub n_states: u64,
    /// Their bytes.
    pub n_bytes: u64,
}

/// The states of one model.
pub struct Store {
    model: Model,
    root: Key,
    memory_max: u64,
    index: Arc<Mutex<Index>>,
    disk: Option<Disk>,
}

impl Store {
    /// A store with so many bytes of memory, and a folder or none.
    ///
    /// # Errors
    ///
    /// When the folder cannot be made, read or written.
    pub fn new(
        model: &Model,
        memory_max: u64,
        disk: Option<&DiskOptions>,
        metrics: &ModelMetrics,
    ) -> Result<Self> {
        let root = Key::root(model);
        let index = Arc::new(Mutex::new(Index::new(metrics)));
        let disk = disk.map(|options| Disk::open(options, root, index.clone()));
        Ok(Store {
            model: model.clone(),
            root,
            memory_max,
            index,
            disk: disk.transpose()?,
        })
    }

    /// The key of the state before any token.
    pub fn root(&self) -> Key {
        self.root
    }

    /// Bytes that states may take in memory.
    pub fn memory_max(&self) -> u64 {
        self.memory_max
    }

    /// What is in memory.
    pub fn in_memory(&self) -> Size {
        self.lock().in_memory()
    }

    /// What is in the folder.
    pub fn on_disk(&self) -> Size {
        self.lock().on_disk()
    }

    /// The state that has read the most of some tokens; `keys` are those [behind each](Key::chain).
    pub fn find_tokens(&self, owner: &Owner, keys: &[Key]) -> Option<Hit> {
        let owner = OwnerId::of(owner);
        self.refresh();
        let mut n = keys.len();
        loop {
            n = self.lock().longest(owner, &keys[..n])?;
            let key = keys[n - 1];
            if let Some(state) = self.fetch(owner, key) {
                let size = n;
                return Some(Hit { key, size, state });
            }
            // Its file was there, and is not, or is damaged.
            n -= 1;
        }
    }

    /// The state that has read the most of a text behind `root`, of those that are kept behind answers and that are fit to
    /// go on from, by the size of what each has read and the token that was drawn behind it.
    pub fn find_text(
        &self,
        owner: &Owner,
        root: Key,
        text: &str,
        is_fit: impl Fn(usize, Option<u32>) -> bool,
    ) -> Option<Hit> {
        let owner = OwnerId::of(owner);
        self.refresh();
        let found = self.lock().beginnings(owner, root, text.as_bytes());
        found.into_iter().rev().find_map(|(size, key, next)| {
            let state = match text.is_char_boundary(size) && is_fit(size, next) {
                true => self.fetch(owner, key)?,
                false => return None,
            };
            Some(Hit { key, size, state })
        })
    }

    /// The state of a key.
    pub fn find(&self, owner: &Owner, key: Key) -> Option<Arc<State>> {
        self.refresh();
        let owner = OwnerId::of(owner);
        self.fetch(owner, key).or_else(|| {
            // Another server may have written it just now.
            self.disk.as_ref()?.refresh_now();
            self.fetch(owner, key)
        })
    }

    /// Whether a state is in memory, which is looked at by whoever would make it.
    pub fn has(&self, owner: &Owner, key: Key) -> bool {
        self.lock().has_in_memory(OwnerId::of(owner), key)
    }

    /// Keeps a state in memory.
    pub fn keep(&self, owner: &Owner, kept: Kept) {
        let owner = OwnerId::of(owner);
        self.lock().insert(owner, &kept);
        self.make_room();
    }

    /// Keeps states and a session in memory, and in the folder if there is one, and then calls `then`: on another
    /// thread where something is written.
    pub fn keep_whole(
        &self,
        owner: &Owner,
        kept: Vec<Kept>,
        session: Option<Session>,
        then: impl FnOnce(Result<()>) + Send + 'static,
    ) {
        let id = OwnerId::of(owner);
        {
            let mut index = self.lock();
            for one in &kept {
                index.insert(id, one);
            }
            if let (Some(session), None) = (&session, &self.disk) {
                index.insert_session(id, session.clone());
            }
        }
        self.make_room();
        let Some(disk) = &self.disk else {
            then(Ok(()));
            return;
        };
        disk.write(Write {
            owner: id,
            states: kept,
            session,
            then: Some(Box::new(then)),
        });
    }

    /// Forgets a state that is in memory alone.
    pub fn forget(&self, owner: &Owner, key: Key) {
        self.lock().forget(OwnerId::of(owner), key);
    }

    /// The session of a name.
    ///
    /// # Errors
    ///
    /// When its file is damaged or cannot be read.
    pub fn session(&self, owner: &Owner, name: &str) -> Result<Option<Session>> {
        let owner = OwnerId::of(owner);
        match &self.disk {
            Some(disk) => disk.session(owner, name),
            None => Ok(self.lock().sessions().get(owner, name)),
        }
    }

    /// How many sessions an owner has.
    pub fn n_sessions(&self, owner: &Owner) -> usize {
        let owner = OwnerId::of(owner);
        let index = self.lock();
        match &self.disk {
            Some(_) => index.session_files.n(owner),
            None => index.sessions().n(owner),
        }
    }

    /// So that no other server works on a session; none is needed where there is no folder.
    ///
    /// # Errors
    ///
    /// When another one does, or its file cannot be locked.
    pub(crate) fn lock_session(&self, owner: &Owner, name: &str) -> Result<Option<SessionLock>> {
        let Some(disk) = &self.disk else {
            return Ok(None);
        };
        let lock = disk.lock_session(OwnerId::of(owner), name)?;
        lock.ok_or_else(|| session_errors::busy(name)).map(Some)
    }

    /// All sessions of an owner, by name.
    ///
    /// # Errors
    ///
    /// When the folder cannot be read.
    pub fn sessions(&self, owner: &Owner) -> Result<Vec<Session>> {
        let owner = OwnerId::of(owner);
        match &self.disk {
            Some(disk) => disk.sessions(owner),
            None => Ok(self.lock().sessions().all(owner)),
        }
    }

    /// Forgets a session; whether there was one. Its state stays as long as others do.
    ///
    /// # Errors
    ///
    /// When its file cannot be removed.
    pub fn delete_session(&self, owner: &Owner, name: &str) -> Result<bool> {
        let owner = OwnerId::of(owner);
        match &self.disk {
            Some(disk) => disk.delete_session(owner, name),
            None => Ok(self.lock().remove_session(owner, name)),
        }
    }

    /// Waits until everything is written.
    pub fn flush(&self) {
        if let Some(disk) = &self.disk {
            disk.flush();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        index::lock(&self.index)
    }

    /// Looks at what other programs have written.
    fn refresh(&self) {
        if let Some(disk) = &self.disk {
            disk.refresh();
        }
    }

    /// From memory, or from the folder into memory.
    fn fetch(&self, owner: OwnerId, key: Key) -> Option<Arc<State>> {
        let (state, text) = self.lock().get(owner, key)?;
        if state.is_some() {
            return state;
        }
        let of_file = self.lock().file_text(owner, key)?;
        let read = self.disk.as_ref()?.read(&self.model, owner, key, of_file);
        let state = Arc::new(read?);
        let kept = Kept {
            key,
            text,
            before: None,
            state: state.clone(),
        };
        self.lock().insert(owner, &kept);
        self.make_room();
        Some(state)
    }

    /// Lets go what is beyond the limit of memory; to the folder, if there is one.
    fn make_room(&self) {
        let gone = self.lock().shrink_memory(self.memory_max);
        let Some(disk) = &self.disk else { return };
        for (owner, kept) in gone {
            disk.write(Write {
                owner,
                states: vec![kept],
                session: None,
                then: None,
            });
        }
    }
}
