//! The cache of one repository, in the layout of Python's `huggingface_hub`, which shares it.
//!
//! `blobs/<etag>` are the files, each once, named by what the hub calls their content;
//! `snapshots/<commit>/<file>` are relative links to them; `refs/<revision>` hold commits. A blob
//! has its name only when it is complete and verified: until then it is `<etag>.incomplete`, which
//! Python goes on from as well, under a lock that Python takes too. A link is made last. So what is
//! in a snapshot is whole.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use fs4::FileExt;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Observer;
use crate::id::{is_file_path, is_hex, is_plain_name};
use crate::retry::uninterrupted;

/// The folder of one repository.
#[derive(Clone, Debug)]
pub(crate) struct RepositoryCache {
    folder: PathBuf,
    locks: PathBuf,
}

/// Keeps other processes from downloading the same blob until it is dropped.
pub(crate) struct Lock {
    /// `None` where the file system knows no locks.
    _file: Option<File>,
}

impl RepositoryCache {
    /// `repository` is `OWNER/NAME`.
    pub(crate) fn new(cache: &Path, repository: &str) -> Self {
        let name = format!("models--{}", repository.replace('/', "--"));
        RepositoryCache {
            folder: cache.join(&name),
            locks: cache.join(".locks").join(name),
        }
    }

    /// Refuses folders that may not be looked into: whatever is in them would count as missing.
    pub(crate) fn check(&self) -> Result<()> {
        for folder in ["", "refs", "snapshots", "blobs"] {
            let folder = self.folder.join(folder);
            match fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    let text = format!("{}", folder.display());
                    return Err(Error::caused(ErrorKind::Io, text, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The folder of a commit's files, whether it is there or not.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The commit that a revision was when it was last looked up.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        let commit = commit.trim();
        is_plain_name(commit).then(|| commit.to_owned())
    }

    /// Commits of which there is anything.
    pub(crate) fn commits(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.join("snapshots"))
            .into_iter()
            .flatten();
        let name = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
        let mut commits: Vec<String> = entries.filter_map(name).collect();
        commits.sort();
        commits
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Where a blob is until it is complete.
    pub(crate) fn incomplete(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Waits until no other process downloads the blob.
    pub(crate) fn lock(&self, etag: &str, file: &str, observer: &Observer) -> Result<Lock> {
        create_folder(&self.locks)?;
        create_folder(&self.folder.join("blobs"))?;
        let path = self.locks.join(format!("{etag}.lock"));
        let failed = || format!("{}: cannot lock", path.display());
        let lock = File::options().create(true).append(true).open(&path);
        let lock = lock.context(ErrorKind::Io, failed)?;
        let is_free = uninterrupted(|| match FileExt::try_lock(&lock) {
            Ok(()) => Ok(true),
            Err(fs4::TryLockError::WouldBlock) => Ok(false),
            Err(fs4::TryLockError::Error(error)) => Err(error),
        });
        let locked = is_free.and_then(|is_free| {
            if is_free {
                return Ok(());
            }
            observer.note(format_args!(
                "waiting for another program that downloads {file}"
            ));
            uninterrupted(|| FileExt::lock(&lock))
        });
        match locked {
            Ok(()) => Ok(Lock { _file: Some(lock) }),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(Lock { _file: None }),
            Err(error) => Err(error).context(ErrorKind::Io, failed),
        }
    }

    /// Makes a file or link beside and gives it its name, so that whoever reads the old one always finds a file.
    ///
    /// One process at a time does so, under a lock, and always by the same name: what a process that was killed
    /// has left there, the next one takes away.
    fn replace(&self, path: &Path, make: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
        uninterrupted(|| fs::create_dir_all(&self.locks))?;
        let lock = self.locks.join("links.lock");
        let lock = File::options().create(true).append(true).open(lock)?;
        let beside = match uninterrupted(|| FileExt::lock(&lock)) {
            Ok(()) => self.folder.join(".new"),
            // Without locks each process has a name of its own.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                self.folder.join(format!(".new.{}", std::process::id()))
            }
            Err(error) => return Err(error),
        };
        let made = uninterrupted(|| {
            match fs::remove_file(&beside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            make(&beside)
        });
        made.and_then(|()| uninterrupted(|| fs::rename(&beside, path)))
            .inspect_err(|_| drop(fs::remove_file(&beside)))
    }

    /// Puts a complete blob into a snapshot, in place of whatever is there.
    pub(crate) fn link(&self, etag: &str, commit: &str, file: &str) -> Result<()> {
        if !is_plain_name(commit) || !is_file_path(file) {
            let text = format!("{file} of commit {commit}: not a name that a file can have here");
            return Err(Error::new(ErrorKind::Hub, text));
        }
        let link = self.snapshot(commit).join(file);
        let folder = link.parent().unwrap_or(&self.folder);
        create_folder(folder)?;
        // From the folder of the link up to that of the repository.
        let n_up = 2 + file.matches('/').count();
        let target: PathBuf = std::iter::repeat_n("..", n_up)
            .chain(["blobs", etag])
            .collect();
        self.replace(&link, |new| link_or_copy(&target, &self.blob(etag), new))
            .context(ErrorKind::Io, || format!("{}: cannot link", link.display()))
    }

    /// Notes which commit a revision is.
    pub(crate) fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        let failed = || format!("{}: cannot write", path.display());
        let folder = path.parent().unwrap_or(&self.folder);
        create_folder(folder)?;
        // Like Python: the commit and no line end.
        self.replace(&path, |new| fs::write(new, commit))
            .context(ErrorKind::Io, failed)
    }
}

/// A full commit hash, which no branch or tag can move.
pub(crate) fn is_commit(revision: &str) -> bool {
    is_hex(revision, 40)
}

fn create_folder(path: &Path) -> Result<()> {
    uninterrupted(|| fs::create_dir_all(path)).context(ErrorKind::Io, || {
        format!("{}: cannot create", path.display())
    })
}

#[cfg(unix)]
fn link_or_copy(target: &Path, blob: &Path, link: &Path) -> io::Result<()> {
    // Some file systems have no links.
    std::os::unix::fs::symlink(target, link).or_else(|_| fs::copy(blob, link).map(|_| ()))
}

#[cfg(windows)]
fn link_or_copy(target: &Path, blob: &Path, link: &Path) -> io::Result<()> {
    // Links need a privilege on Windows.
    std::os::windows::fs::symlink_file(target, link).or_else(|_| fs::copy(blob, link).map(|_| ()))
}

#[cfg(not(any(unix, windows)))]
fn link_or_copy(_target: &Path, blob: &Path, link: &Path) -> io::Result<()> {
    fs::copy(blob, link).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_a_killed_process_left_is_taken_away() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = RepositoryCache::new(folder.path(), "a/b");
        let commit = "0123456789abcdef0123456789abcdef01234567";
        cache.set_commit("main", commit).expect("can be set");
        let left = folder.path().join("models--a--b/.new");
        fs::write(&left, "half").expect("can be written");
        cache
            .link("etag", commit, "x/y.json")
            .expect("can be linked");
        assert!(!left.is_symlink() && !left.exists());
        fs::write(&left, "half").expect("can be written");
        cache.set_commit("refs/pr/1", commit).expect("can be set");
        assert!(!left.exists());
        assert_eq!(cache.commit("refs/pr/1").as_deref(), Some(commit));
    }

    #[test]
    fn processes_do_not_take_away_what_others_make() {
        let folder = tempfile::tempdir().expect("a folder");
        let commits: Vec<String> = (0..4).map(|n| format!("{n:040x}")).collect();
        thread::scope(|scope| {
            for commit in &commits {
                // Each as a process of its own would, with its own lock.
                let cache = RepositoryCache::new(folder.path(), "a/b");
                scope.spawn(move || {
                    for n in 0..50 {
                        cache.set_commit("main", commit).expect("can be set");
                        let name = format!("file-{n}");
                        cache.link("etag", commit, &name).expect("can be linked");
                        let main = cache.commit("main").expect("is there");
                        assert!(is_commit(&main), "{main}");
                    }
                });
            }
        });
        let left = folder.path().join("models--a--b/.new");
        assert!(!left.is_symlink() && !left.exists());
    }
}
