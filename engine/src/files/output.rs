//! Files written whole or not at all: under a temporary name in the same folder, synced, renamed. A
//! mapping of the old file stays valid, and a failed or killed write leaves the old file. The new file
//! takes over the permissions of the old one; where the name is a link, the file it leads to is replaced.
//!
//! A process that is killed leaves its temporary file behind. The next one that writes to the folder removes
//! it: see [`remove_left_overs`].

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::{NamedTempFile, TempPath};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};

/// Names of files that are not complete.
const PREFIX: &str = ".rwkv-edge-";
const SUFFIX: &str = ".part";

/// Whether another machine still writes to a file shows in its time only, and so late.
const FOREIGN_AGE: Duration = Duration::from_secs(3600);

/// Large pieces: weights are written row by row.
const BUFFER_BYTES: usize = 1 << 20;

/// Whether a file of this name was being written by us, or still is.
pub(crate) fn is_unfinished(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(SUFFIX)
}

/// A file being written; nothing is at its path before [`commit`](Self::commit).
///
/// Until then it has a temporary name in the same folder, and what was at its path stays. Dropped before, it is
/// gone.
#[derive(Debug)]
pub struct OutputFile {
    path: PathBuf,
    writer: BufWriter<NamedTempFile>,
}

impl OutputFile {
    /// Begins a file under a temporary name.
    ///
    /// # Errors
    ///
    /// When the folder is missing or not writable, or the path is a folder or a device.
    pub fn create(path: &Path) -> Result<Self> {
        let failed = |e| Error::io("create", path, e);
        let old = fs::metadata(path).ok();
        match &old {
            Some(old) if old.is_dir() => {
                return Err(failed(io::Error::from(io::ErrorKind::IsADirectory)));
            }
            // A rename would put a file in the place of /dev/null.
            Some(old) if !old.is_file() => {
                return Err(failed(io::Error::other("not a regular file")));
            }
            _ => {}
        }
        let target = match old.is_some() && path.is_symlink() {
            true => fs::canonicalize(path).map_err(failed)?,
            false => path.to_owned(),
        };
        let file = temporary_beside(&target).map_err(failed)?;
        if let Some(old) = old {
            file.as_file()
                .set_permissions(old.permissions())
                .map_err(failed)?;
        }
        Ok(OutputFile {
            path: target,
            writer: BufWriter::with_capacity(BUFFER_BYTES, file),
        })
    }

    /// As [`create`](Self::create), but where the name is a link, the link is replaced and what it leads
    /// to stays: folders of shared caches are made of links.
    pub(crate) fn create_in_place_of_link(path: &Path) -> Result<Self> {
        let file = temporary_beside(path).map_err(|e| Error::io("create", path, e))?;
        Ok(OutputFile {
            path: path.to_owned(),
            writer: BufWriter::with_capacity(BUFFER_BYTES, file),
        })
    }

    /// Appends bytes.
    ///
    /// # Errors
    ///
    /// Those of the system, such as a full disk.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer
            .write_all(bytes)
            .map_err(|e| Error::io("write", &self.path, e))
    }

    /// Overwrites bytes written before.
    pub(crate) fn overwrite(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut overwrite = || {
            self.writer.seek(SeekFrom::Start(offset))?;
            self.writer.write_all(bytes)?;
            self.writer.seek(SeekFrom::End(0)).map(|_| ())
        };
        overwrite().map_err(|e| Error::io("write", &self.path, e))
    }

    /// Syncs the file and gives it its name.
    ///
    /// # Errors
    ///
    /// Those of the system; the old file is then as it was.
    pub fn commit(self) -> Result<()> {
        self.finish()?.rename()
    }

    /// Syncs the file, which stays under its temporary name; closes it.
    pub(crate) fn finish(self) -> Result<FinishedFile> {
        let OutputFile { path, writer } = self;
        let file = writer
            .into_inner()
            .map_err(|e| Error::io("write", &path, e.into_error()))?;
        file.as_file()
            .sync_all()
            .map_err(|e| Error::io("sync", &path, e))?;
        let (file, temporary) = file.into_parts();
        // Elsewhere an open file cannot be renamed.
        let lock = cfg!(unix).then_some(file);
        Ok(FinishedFile {
            path,
            temporary,
            _lock: lock,
        })
    }
}

/// An empty file with a name of its own in the folder of `path`, locked as long as it is open.
fn temporary_beside(path: &Path) -> io::Result<NamedTempFile> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    remove_left_overs(folder);
    let prefix = format!("{PREFIX}{}", this_machine());
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(SUFFIX);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Temporary files are private by default; this one becomes an ordinary file. The
        // process's umask still applies.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    loop {
        let file = builder.tempfile_in(folder)?;
        // Between these two lines another process may have taken it for a left-over.
        match fs4::FileExt::try_lock(file.as_file()) {
            Err(fs4::TryLockError::WouldBlock) => continue,
            Ok(()) if is_removed(file.as_file()) => continue,
            // Where the file system knows no locks, left-overs stay.
            Ok(()) | Err(fs4::TryLockError::Error(_)) => return Ok(file),
        }
    }
}

#[cfg(unix)]
fn is_removed(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    file.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
}

#[cfg(not(unix))]
fn is_removed(_file: &File) -> bool {
    false
}

/// Begins the names of this machine's temporary files, another one after each start; empty where the
/// system has no name for that.
fn this_machine() -> String {
    let id = fs::read("/proc/sys/kernel/random/boot_id");
    id.map_or(String::new(), |id| format!("{:016x}-", xxh3_64(&id)))
}

/// Removes temporary files of processes that ended before they were done: files on which nobody holds the
/// lock that their writer does. Some network file systems keep a lock from other machines, so files of
/// another one, or from before the last start, must also be old.
///
/// No more than a service: what cannot be looked at or removed stays.
fn remove_left_overs(folder: &Path) {
    if !cfg!(unix) {
        return;
    }
    let own = format!("{PREFIX}{}", this_machine());
    let own = own.as_str();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| is_unfinished(name)) else {
            continue;
        };
        let is_ours = own.len() > PREFIX.len() && name.starts_with(own);
        if is_ours || is_old(&entry) {
            // `None` for what is no file: opening a pipe would wait.
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            let file = is_file.then(|| File::open(entry.path()));
            if let Some(Ok(file)) = file {
                if fs4::FileExt::try_lock(&file).is_ok() {
                    drop(fs::remove_file(entry.path()));
                }
            }
        }
    }
}

fn is_old(entry: &fs::DirEntry) -> bool {
    let modified = entry.metadata().and_then(|metadata| metadata.modified());
    let age = modified.map(|time| SystemTime::now().duration_since(time));
    matches!(age, Ok(Ok(age)) if age > FOREIGN_AGE)
}

/// A complete file that does not have its name yet. Dropped, it is gone.
pub(crate) struct FinishedFile {
    path: PathBuf,
    temporary: TempPath,
    /// Held until it has its name.
    _lock: Option<File>,
}

impl FinishedFile {
    /// Gives the file its name, in place of a file that has it now.
    pub(crate) fn rename(self) -> Result<()> {
        let FinishedFile {
            path,
            temporary,
            _lock,
        } = self;
        temporary
            .persist(&path)
            .map_err(|e| Error::io("rename to", &path, e.error))
    }
}

/// Makes what was renamed and removed in a folder last, where the system can be asked to.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|e| Error::io("sync", folder, e))?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// Writes a whole file.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = OutputFile::create(path)?;
    file.write(bytes)?;
    file.commit()
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::{symlink, PermissionsExt};

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_its_permissions_and_behind_its_link() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        write_whole(&file, b"first").expect("can be written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("ours");
        symlink("file", &link).expect("can be made");
        let begun = OutputFile::create(&link).expect("can be begun");
        assert_eq!(fs::read(&file).expect("there"), b"first");
        drop(begun);
        write_whole(&link, b"second").expect("can be written");
        assert_eq!(fs::read(&file).expect("there"), b"second");
        assert!(link.is_symlink());
        let mode = fs::metadata(&file).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let names = fs::read_dir(folder.path()).expect("there").count();
        assert_eq!(names, 2, "nothing temporary is left");
    }

    #[test]
    fn files_of_dead_processes_go_and_those_of_living_ones_stay() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let own = |name: &str| at(&format!("{PREFIX}{}{name}{SUFFIX}", this_machine()));
        let other = |name: &str| at(&format!("{PREFIX}0123456789abcdef-{name}{SUFFIX}"));
        let old = SystemTime::now() - 2 * FOREIGN_AGE;
        for path in [own("dead"), other("old"), other("new"), at("other.part")] {
            fs::write(&path, b"half").expect("can be written");
        }
        let times = fs::FileTimes::new().set_modified(old);
        let file = File::options().write(true).open(other("old"));
        file.expect("there").set_times(times).expect("ours");

        let living = OutputFile::create(&at("a")).expect("can be begun");
        let finished = OutputFile::create(&at("b")).expect("can be begun");
        let finished = finished.finish().expect("room on the disk");
        write_whole(&at("c"), b"whole").expect("can be written");
        let is_there = |path: PathBuf| path.exists();
        assert!(!is_there(own("dead")) && !is_there(other("old")));
        assert!(is_there(other("new")) && is_there(at("other.part")));
        living.commit().expect("is still there");
        finished.rename().expect("is still there");
        assert!(is_there(at("a")) && is_there(at("b")) && is_there(at("c")));
    }

    #[test]
    fn what_is_no_file_is_not_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        for path in [
            folder.path(),
            Path::new("/dev/null"),
            Path::new("no/such/folder/file"),
        ] {
            let error = write_whole(path, b"x").expect_err("no file");
            let text = error.to_string();
            assert!(text.starts_with(&path.display().to_string()), "{text}");
        }
        let null = fs::metadata("/dev/null").expect("there");
        assert!(!null.is_file());
    }
}
