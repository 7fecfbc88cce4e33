//! Names of files and folders that are not complete, and what becomes of those whose process ended.
//!
//! A process that is killed leaves its temporary files behind. The next one that writes to the folder removes
//! them: what nobody holds the lock of that its writer does. A lock that could not be had, because the file system
//! has none or its server does not answer, says nothing: what was made without one has the name of another machine's
//! and goes by its age alone, so that nobody, its own process least of all, takes it for a left-over.

#![forbid(unsafe_code)]

use std::fs::{self, File, Metadata};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tempfile::{NamedTempFile, TempDir};
use xxhash_rust::xxh3::xxh3_64;

use super::pending;
use super::retry::{names_in, remove_file, retried};

const PREFIX: &str = ".rwkv-edge-";
const SUFFIX: &str = ".part";

/// Whether another machine still writes to a file shows in its time only, and so late.
const FOREIGN_AGE: Duration = Duration::from_secs(3600);

/// So often a new file is made because another process took one for a left-over, before that is taken for the answer of
/// a file system that knows no locks.
const TRIES: usize = 16;

/// Whether a file or folder of this name was being written by us, or still is.
pub(crate) fn is_unfinished(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(SUFFIX)
}

/// An empty file in a folder, with a name of its own, locked as long as it is open.
pub(super) fn temporary_file(folder: &Path) -> io::Result<NamedTempFile> {
    let (file, _) = temporary(
        folder,
        0o666,
        |builder| builder.tempfile_in(folder),
        |file: &NamedTempFile| file.as_file().try_clone(),
        NamedTempFile::path,
    )?;
    Ok(file)
}

/// An empty folder in a folder, with a name of its own and its lock, if it could be had.
pub(super) fn temporary_folder(folder: &Path) -> io::Result<(TempDir, Option<File>)> {
    temporary(
        folder,
        0o777,
        |builder| builder.tempdir_in(folder),
        |made: &TempDir| File::open(made.path()),
        TempDir::path,
    )
}

/// Makes something temporary that no other process takes for a left-over.
fn temporary<T>(
    folder: &Path,
    mode: u32,
    make: impl Fn(&tempfile::Builder<'_, '_>) -> io::Result<T>,
    open: impl Fn(&T) -> io::Result<File>,
    path: impl Fn(&T) -> &Path,
) -> io::Result<(T, Option<File>)> {
    let make = |prefix: &str| {
        let mut builder = tempfile::Builder::new();
        builder.prefix(prefix).suffix(SUFFIX);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // Temporary files are private by default; these become ordinary ones. The process's umask still
            // applies.
            builder.permissions(fs::Permissions::from_mode(mode));
        }
        #[cfg(not(unix))]
        let _ = mode;
        retried(|| make(&builder)).map_err(without_path)
    };
    for _ in 0..TRIES {
        let made = make(&own_prefix())?;
        let Ok(file) = open(&made) else {
            // Without a descriptor left, an empty folder can be removed, but not by looking into it.
            let _ = fs::remove_dir(path(&made));
            break;
        };
        match lock(&file, path(&made)) {
            Lock::Held => {
                let now = file.metadata().and_then(|found| found.modified());
                remove_left_overs(folder, now.ok());
                return Ok((made, Some(file)));
            }
            // Between its making and its lock another process has taken it for a left-over.
            Lock::Lost => {}
            Lock::Unknown => break,
        }
    }
    Ok((make(PREFIX)?, None))
}

/// The system's own error: a name that nobody gave would only be in the way of the one that somebody gave.
fn without_path(error: io::Error) -> io::Error {
    match error.to_string().rsplit_once(" at path ") {
        Some((said, _)) => io::Error::new(error.kind(), said.to_owned()),
        None => error,
    }
}

#[derive(PartialEq, Eq)]
pub(super) enum Lock {
    Held,
    /// Somebody else holds it, or what it was to protect is gone.
    Lost,
    /// The system does not say.
    Unknown,
}

fn lock(file: &File, path: &Path) -> Lock {
    loop {
        return match fs4::FileExt::try_lock(file) {
            Ok(()) if is_at(file, path) => Lock::Held,
            Ok(()) | Err(fs4::TryLockError::WouldBlock) => Lock::Lost,
            Err(fs4::TryLockError::Error(e)) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(fs4::TryLockError::Error(_)) => Lock::Unknown,
        };
    }
}

/// Tries to become the owner of what another process made, which is for as long as the file is open.
pub(super) fn take_over(path: &Path) -> (Lock, Option<File>) {
    match File::open(path) {
        Ok(file) => (lock(&file, path), Some(file)),
        Err(_) => (Lock::Unknown, None),
    }
}

/// Whether an open file is still what its path leads to.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let same = |a: &Metadata, b: &Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    let there = retried(|| fs::symlink_metadata(path));
    matches!((file.metadata(), there), (Ok(a), Ok(b)) if same(&a, &b))
}

#[cfg(not(unix))]
fn is_at(_file: &File, _path: &Path) -> bool {
    true
}

/// Begins the names of this machine's temporary files, other ones after each start; [`PREFIX`] alone where the system
/// has no name for that.
fn own_prefix() -> String {
    let id = fs::read("/proc/sys/kernel/random/boot_id");
    let machine = id.map_or(String::new(), |id| format!("{:016x}-", xxh3_64(&id)));
    format!("{PREFIX}{machine}")
}

/// Removes what processes left that ended before they were done, and lets a model take its place whose process
/// ended in the middle of that. Some network file systems keep a lock from other machines, so what is another one's,
/// or from before the last start, must also be old. `now` is the file system's own time, which may be another machine's.
///
/// No more than a service: what cannot be looked at or removed stays.
fn remove_left_overs(folder: &Path, now: Option<SystemTime>) {
    // Elsewhere an open file, as one with a lock is, cannot be renamed.
    if !cfg!(unix) {
        return;
    }
    let own = own_prefix();
    for name in names_in(folder).unwrap_or_default() {
        let path = folder.join(&name);
        let Some(name) = name.to_str() else { continue };
        if name == pending::FOLDER {
            drop(pending::settle_left_over(folder, now, Duration::ZERO));
        }
        let Ok(found) = retried(|| fs::symlink_metadata(&path)) else {
            continue;
        };
        // Opening a pipe would wait.
        if !is_unfinished(name) || !(found.is_file() || found.is_dir()) {
            continue;
        }
        let is_ours = own != PREFIX && name.starts_with(&own);
        if is_ours || is_old(&path, &found, now) {
            if let (Lock::Held, _lock) = take_over(&path) {
                let _ = match found.is_dir() {
                    true => retried(|| fs::remove_dir_all(&path)),
                    false => remove_file(&path),
                };
            }
        }
    }
}

/// Whether nothing was written for long; in a folder, to none of its files.
pub(super) fn is_old(path: &Path, found: &Metadata, now: Option<SystemTime>) -> bool {
    let age = |found: &Metadata| now?.duration_since(found.modified().ok()?).ok();
    let is_old = |found: &Metadata| age(found).is_some_and(|age| age > FOREIGN_AGE);
    if !found.is_dir() || !is_old(found) {
        return is_old(found);
    }
    let is_old_file =
        |name| retried(|| fs::symlink_metadata(path.join(&name))).is_ok_and(|found| is_old(&found));
    names_in(path).is_ok_and(|names| names.into_iter().all(is_old_file))
}

#[cfg(all(test, unix))]
mod tests {
    use super::super::output::{write_whole, OutputFile};
    use super::*;

    #[test]
    fn files_of_dead_processes_go_and_those_of_living_ones_stay() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let own = |name: &str| at(&format!("{}{name}{SUFFIX}", own_prefix()));
        let other = |name: &str| at(&format!("{PREFIX}0123456789abcdef-{name}{SUFFIX}"));
        let old = SystemTime::now() - 2 * FOREIGN_AGE;
        for path in [own("dead"), other("old"), other("new"), at("other.part")] {
            fs::write(&path, b"half").expect("can be written");
        }
        for (path, inside) in [
            (own("dead-folder"), "file"),
            (other("old-folder"), "file"),
            (other("busy-folder"), "new"),
        ] {
            fs::create_dir(&path).expect("can be made");
            fs::write(path.join(inside), b"half").expect("can be written");
        }
        let times = fs::FileTimes::new().set_modified(old);
        for path in [
            other("old"),
            other("old-folder").join("file"),
            other("old-folder"),
            other("busy-folder"),
        ] {
            let file = File::open(path).expect("there");
            file.set_times(times).expect("ours");
        }

        let living = OutputFile::create(&at("a")).expect("can be begun");
        let finished = OutputFile::create(&at("b")).expect("can be begun");
        let finished = finished.finish().expect("room on the disk");
        let (staging, _lock) = temporary_folder(folder.path()).expect("can be made");
        write_whole(&at("c"), b"whole").expect("can be written");
        let is_there = |path: std::path::PathBuf| path.exists();
        assert!(!is_there(own("dead")) && !is_there(other("old")));
        assert!(!is_there(own("dead-folder")) && !is_there(other("old-folder")));
        assert!(is_there(other("new")) && is_there(at("other.part")));
        assert!(is_there(other("busy-folder")) && staging.path().exists());
        living.commit().expect("is still there");
        finished.rename().expect("is still there");
        assert!(is_there(at("a")) && is_there(at("b")) && is_there(at("c")));
    }

    /// What could not be locked is nobody's left-over while it is young, whoever looks at it.
    #[test]
    fn files_without_a_lock_stay() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix(PREFIX).suffix(SUFFIX);
        let unlocked = builder.tempfile_in(folder.path()).expect("can be made");
        let now = unlocked
            .as_file()
            .metadata()
            .and_then(|found| found.modified());
        remove_left_overs(folder.path(), now.ok());
        remove_left_overs(folder.path(), None);
        write_whole(&folder.path().join("other"), b"whole").expect("can be written");
        assert!(unlocked.path().exists());
    }
}
