//! The folder of states: one file each, written under a temporary name and renamed, so that a file is whole or not
//! there, whoever is killed. Several servers may share it. What a file holds, its name says: the model, the owner, what
//! was read; so nothing needs to be opened to find it.

use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rwkv_edge::{Error, ErrorKind, Model, Result, State};
use xxhash_rust::xxh3::xxh3_128;

use super::index::{lock, Index, OwnerId};
use super::keys::{Key, TextKey};
use super::locks::SessionLock;
use super::sessions::SessionFiles;
use super::{Kept, Session};
use crate::session_errors;

/// Where states are written, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// The folder; it is made if it is not there.
    pub folder: PathBuf,
    /// Bytes of states of one model at most; those of other models in the same folder are neither counted nor removed.
    pub n_bytes_max: u64,
}

const STATE: &str = ".state";
const SESSION: &str = ".session";
const LOCK: &str = ".lock";
const TEMPORARY: &str = ".being-written-";
/// Temporary files that are older are left-overs of somebody who was killed.
const LEFT_OVER_AGE: Duration = Duration::from_secs(600);
/// Looking through the folder takes at most this share of the time.
const SCAN_SHARE: u32 = 20;
/// How coarse the time of a folder's last change is.
const CHANGE_STEP: Duration = Duration::from_millis(20);
/// States that leave memory wait to be written; what is beyond so many bytes is forgotten.
const WAITING_BYTES_MAX: u64 = 64 << 20;

/// States and a session of one owner to be written, and what is done then.
pub(super) struct Write {
    pub(super) owner: OwnerId,
    pub(super) states: Vec<Kept>,
    pub(super) session: Option<Session>,
    pub(super) then: Option<Box<dyn FnOnce(Result<()>) + Send>>,
}

enum Command {
    Write(Write),
    Flush(Sender<()>),
}

pub(super) struct Disk {
    files: Arc<Files>,
    commands: Option<Sender<Command>>,
    writer: Option<JoinHandle<()>>,
    scanned: Mutex<Scanned>,
}

/// What the thread that writes and those that read share.
struct Files {
    folder: PathBuf,
    n_bytes_max: u64,
    root: Key,
    index: Arc<Mutex<Index>>,
    waiting: Mutex<u64>,
}

/// When the folder was looked through last.
struct Scanned {
    changed: Option<SystemTime>,
    at: Instant,
    took: Duration,
}

impl Disk {
    pub(super) fn open(options: &DiskOptions, root: Key, index: Arc<Mutex<Index>>) -> Result<Self> {
        let folder = &options.folder;
        make_private(folder).map_err(|e| failed("make", folder, &e))?;
        let files = Arc::new(Files {
            folder: folder.clone(),
            n_bytes_max: options.n_bytes_max,
            root,
            index,
            waiting: Mutex::new(0),
        });
        files.remove_left_overs();
        // Not only when the first answer is to be kept.
        let tried = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempfile_in(folder);
        tried.map_err(|e| failed("write into", folder, &e))?;
        let begin = Instant::now();
        let changed = files.changed();
        files.scan().map_err(|e| failed("read", folder, &e))?;
        let (commands, receiver) = mpsc::channel();
        let of_thread = files.clone();
        let writer = std::thread::Builder::new()
            .name("rwkv-edge-states".into())
            .spawn(move || of_thread.write_all(&receiver))
            .map_err(|e| Error::new(ErrorKind::Io, format!("cannot start a thread: {e}")))?;
        Ok(Disk {
            files,
            commands: Some(commands),
            writer: Some(writer),
            scanned: Mutex::new(Scanned {
                changed,
                at: Instant::now(),
                took: begin.elapsed(),
            }),
        })
    }

    /// Writes on another thread, and calls what is to be called then. What nobody waits for is forgotten when too much
    /// waits already.
    pub(super) fn write(&self, write: Write) {
        let n_bytes = write.n_bytes();
        {
            let waiting = self.files.waiting.lock();
            let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
            if write.then.is_none() && *waiting + n_bytes > WAITING_BYTES_MAX {
                return;
            }
            *waiting += n_bytes;
        }
        if let Some(commands) = &self.commands {
            // The thread ends only after this end of the channel has.
            let _ = commands.send(Command::Write(write));
        }
    }

    pub(super) fn flush(&self) {
        let (done, is_done) = mpsc::channel();
        if let Some(commands) = &self.commands {
            if commands.send(Command::Flush(done)).is_ok() {
                let _ = is_done.recv();
            }
        }
    }

    /// Looks for files that others have written or removed, if the folder has changed.
    pub(super) fn refresh(&self) {
        let scanned = self.scanned.lock();
        let mut scanned = scanned.unwrap_or_else(PoisonError::into_inner);
        if scanned.at.elapsed() >= scanned.took * SCAN_SHARE {
            self.look(&mut scanned);
        }
    }

    /// The same at once, for what must be there.
    pub(super) fn refresh_now(&self) {
        let scanned = self.scanned.lock();
        self.look(&mut scanned.unwrap_or_else(PoisonError::into_inner));
    }

    fn look(&self, scanned: &mut Scanned) {
        let changed = self.files.changed();
        if changed.is_some() && changed == scanned.changed {
            return;
        }
        let begin = Instant::now();
        // A folder that cannot be read now has nothing new.
        let is_read = self.files.scan().is_ok();
        // Another change in the same step of the file system's clock would have the same time.
        let is_settled = changed
            .is_some_and(|changed| changed.elapsed().is_ok_and(|elapsed| elapsed > CHANGE_STEP));
        *scanned = Scanned {
            changed: changed.filter(|_| is_read && is_settled),
            at: Instant::now(),
            took: begin.elapsed(),
        };
    }

    /// The state of a file, or `None`, and the index knows, when it is gone, damaged or of another model.
    pub(super) fn read(
        &self,
        model: &Model,
        owner: OwnerId,
        key: Key,
        text: Option<TextKey>,
    ) -> Option<State> {
        let path = self.files.path(owner, key, text);
        let state = read_state(&path, model);
        let is_useless = match &state {
            Ok(Some(_)) => false,
            Ok(None) => true,
            // Torn or of other bytes. Other errors, such as too many open files, say nothing about the file.
            Err(error) => error.kind() == ErrorKind::State,
        };
        if is_useless {
            lock(&self.files.index).remove_file(owner, key);
            // It may not be there.
            let _ = fs::remove_file(path);
        }
        state.ok().flatten()
    }

    pub(super) fn session(&self, owner: OwnerId, name: &str) -> Result<Option<Session>> {
        let path = self.files.session_path(owner, name);
        let read = match read_session(&path)? {
            Some(Ok(session)) => Some(session),
            // What a power failure tears.
            Some(Err(_)) => return Err(session_errors::damaged(name)),
            None => None,
        };
        // Two names of one hash are not to be feared, but cost nothing to tell apart.
        Ok(read.filter(|session| session.name == name))
    }

    pub(super) fn sessions(&self, owner: OwnerId) -> Result<Vec<Session>> {
        let begin = self.files.beginning(owner);
        let folder = &self.files.folder;
        let entries = fs::read_dir(folder).map_err(|e| failed("read", folder, &e))?;
        let mut sessions = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| failed("read", folder, &e))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(&begin) && name.ends_with(SESSION) {
                // One that cannot be read is no reason not to tell of the others.
                sessions.extend(
                    read_session(&entry.path())
                        .ok()
                        .flatten()
                        .and_then(Result::ok),
                );
            }
        }
        sessions.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(sessions)
    }

    /// So that no other server works on it; `None` when one does.
    pub(super) fn lock_session(&self, owner: OwnerId, name: &str) -> Result<Option<SessionLock>> {
        let path = self
            .files
            .session_path(owner, name)
            .with_extension(&LOCK[1..]);
        SessionLock::take(&path).map_err(|e| failed("lock", &path, &e))
    }

    pub(super) fn delete_session(&self, owner: OwnerId, name: &str) -> Result<bool> {
        self.flush();
        let path = self.files.session_path(owner, name);
        match fs::remove_file(&path) {
            Ok(()) => {
                lock(&self.files.index).session_files.remove(owner);
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(failed("remove", &path, &e)),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The thread writes what waits, and ends.
        self.commands = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Write {
    fn n_bytes(&self) -> u64 {
        let states = self.states.iter();
        states.map(|kept| kept.state.size_bytes() as u64).sum()
    }
}

impl Files {
    /// What names of an owner's files begin with.
    fn beginning(&self, owner: OwnerId) -> String {
        format!("{}-{:032x}-", self.root, owner.0)
    }

    fn path(&self, owner: OwnerId, key: Key, text: Option<TextKey>) -> PathBuf {
        let of_text = text.map_or(String::new(), |TextKey { size, hash, next }| {
            let next = next.map_or(String::new(), |next| format!("-{next:x}"));
            format!("-{size:x}-{hash:032x}{next}")
        });
        let begin = self.beginning(owner);
        self.folder.join(format!("{begin}{key}{of_text}{STATE}"))
    }

    fn session_path(&self, owner: OwnerId, name: &str) -> PathBuf {
        let begin = self.beginning(owner);
        let hash = xxh3_128(name.as_bytes());
        self.folder.join(format!("{begin}{hash:032x}{SESSION}"))
    }

    /// The other way round.
    fn parse(&self, name: &str) -> Option<(OwnerId, Key, Option<TextKey>)> {
        let rest = name.strip_suffix(STATE)?;
        let mut parts = rest.split('-');
        let mut number = || u128::from_str_radix(parts.next()?, 16).ok();
        let (root, owner, key) = (number()?, number()?, number()?);
        if root != self.root.0 {
            return None;
        }
        let text = match number() {
            None => None,
            Some(size) => Some(TextKey {
                size: u64::try_from(size).ok()?,
                hash: number()?,
                next: number().and_then(|next| u32::try_from(next).ok()),
            }),
        };
        Some((OwnerId(owner), Key(key), text))
    }

    /// Whose session a file is.
    fn owner_of_session(&self, name: &str) -> Option<OwnerId> {
        let mut parts = name.strip_suffix(SESSION)?.split('-');
        let mut number = || u128::from_str_radix(parts.next()?, 16).ok();
        (number()? == self.root.0).then_some(())?;
        number().map(OwnerId)
    }

    fn changed(&self) -> Option<SystemTime> {
        fs::metadata(&self.folder).and_then(|m| m.modified()).ok()
    }

    /// Compares the index with the folder.
    fn scan(&self) -> io::Result<()> {
        let before = lock(&self.index).files();
        let mut new = Vec::new();
        let mut there = std::collections::HashSet::new();
        let mut sessions = SessionFiles::default();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if let Some(owner) = self.owner_of_session(name) {
                sessions.add(owner);
            }
            let Some((owner, key, text)) = self.parse(name) else {
                continue;
            };
            there.insert((owner, key));
            if lock(&self.index).has_file(owner, key) {
                continue;
            }
            // One that is gone by now is no file.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            new.push((used, owner, key, text, metadata.len()));
        }
        new.sort_by_key(|&(used, ..)| used);
        let mut index = lock(&self.index);
        index.session_files = sessions;
        for (_, owner, key, text, n_bytes) in new {
            index.insert_file(owner, key, text, n_bytes);
        }
        for (owner, key) in before {
            if !there.contains(&(owner, key)) {
                index.remove_file(owner, key);
            }
        }
        Ok(())
    }

    fn remove_left_overs(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(LOCK) {
                // One that nobody has is removed with the lock.
                drop(SessionLock::take(&entry.path()));
            }
            let is_temporary = name.starts_with(TEMPORARY);
            let is_old = entry
                .metadata()
                .and_then(|m| m.modified())
                .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > LEFT_OVER_AGE));
            if is_temporary && is_old {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn write_all(&self, commands: &Receiver<Command>) {
        for command in commands {
            match command {
                Command::Write(write) => {
                    // The others' files are still to be written; whoever waited for this one is told by what is dropped.
                    let _ = catch_unwind(AssertUnwindSafe(|| self.write(write)));
                }
                Command::Flush(done) => drop(done.send(())),
            }
        }
    }

    fn write(&self, write: Write) {
        let n_bytes = write.n_bytes();
        let Write {
            owner,
            states,
            session,
            then,
        } = write;
        let written = self.write_parts(owner, &states, session.as_ref());
        drop(states);
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) -= n_bytes;
        if let Some(then) = then {
            then(written);
        }
        let gone = lock(&self.index).shrink_disk(self.n_bytes_max);
        for (owner, key, text) in gone {
            // Somebody else may have removed it.
            let _ = fs::remove_file(self.path(owner, key, text));
        }
    }

    fn write_parts(
        &self,
        owner: OwnerId,
        states: &[Kept],
        session: Option<&Session>,
    ) -> Result<()> {
        for Kept {
            key, text, state, ..
        } in states
        {
            let path = self.path(owner, *key, *text);
            let older = lock(&self.index).file_text(owner, *key);
            if let Some(older) = older {
                // One by its text is found by its tokens, too. Another server may have removed it.
                let older_path = self.path(owner, *key, older);
                if (older == *text || text.is_none()) && older_path.exists() {
                    continue;
                }
                let _ = fs::remove_file(older_path);
            }
            state.check()?;
            let bytes = state.to_bytes(&[]);
            self.write_file(&path, &bytes)?;
            let n_bytes = bytes.len() as u64;
            lock(&self.index).insert_file(owner, *key, *text, n_bytes);
        }
        if let Some(session) = session {
            let path = self.session_path(owner, &session.name);
            let text = serde_json::to_vec(session)
                .map_err(|e| Error::new(ErrorKind::Io, format!("a session: {e}")))?;
            let is_new = !path.exists();
            self.write_file(&path, &text)?;
            if is_new {
                lock(&self.index).session_files.add(owner);
            }
        }
        Ok(())
    }

    /// Whole or not at all. Without waiting for the disk: what a power failure tears, the checksum finds.
    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let write = || {
            let mut builder = tempfile::Builder::new();
            // Readable by nobody else, as tempfile makes them.
            let mut file = builder.prefix(TEMPORARY).tempfile_in(&self.folder)?;
            file.write_all(bytes)?;
            file.persist(path).map_err(|e| e.error)?;
            Ok(())
        };
        write().map_err(|e: io::Error| failed("write", path, &e))
    }
}

/// `None` when there is no such file.
fn read_bytes(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(mut file) => {
            file.read_to_end(&mut bytes)?;
            // By this time those go first that were not used for longest, also by other servers.
            let _ = file.set_modified(SystemTime::now());
            Ok(Some(bytes))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn read_state(path: &Path, model: &Model) -> Result<Option<State>> {
    let Some(bytes) = read_bytes(path).map_err(|e| failed("read", path, &e))? else {
        return Ok(None);
    };
    let mut state = model.try_new_state()?;
    state.load_bytes(&bytes)?;
    Ok(Some(state))
}

/// `None` when there is no such file; inside, what it holds if that is a session.
fn read_session(path: &Path) -> Result<Option<serde_json::Result<Session>>> {
    let bytes = read_bytes(path).map_err(|e| failed("read", path, &e))?;
    Ok(bytes.map(|bytes| serde_json::from_slice(&bytes)))
}

fn failed(action: &str, path: &Path, e: &io::Error) -> Error {
    let text = format!("{}: cannot {action}: {e}", path.display());
    Error::new(ErrorKind::Io, text)
}

/// Makes a folder that nobody else can look into; one that is there must be empty or ours to become that.
fn make_private(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
        builder.mode(0o700);
        builder.create(folder)?;
        let mode = fs::metadata(folder)?.permissions().mode();
        if mode & 0o077 != 0 {
            for entry in fs::read_dir(folder)? {
                let name = entry?.file_name();
                let name = name.to_string_lossy();
                let is_ours = [STATE, SESSION, LOCK].iter().any(|end| name.ends_with(end));
                if !is_ours && !name.starts_with(TEMPORARY) {
                    let text = format!(
                        "others can look into it, and it holds {name:?}, which is no state: expected a folder of mode 700"
                    );
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
                }
            }
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
        }
    }
    #[cfg(not(unix))]
    builder.create(folder)?;
    Ok(())
}
