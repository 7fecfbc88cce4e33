//! Several files that make one model, put into a folder together: at any time the folder holds all of the old ones or
//! all of the new ones, whenever the process is killed.
//!
//! The new files are written into a temporary folder within it, under the names they will have; an empty file `x.gone`
//! stands for a file x that the old model has and the new one has not. When all is complete, the temporary folder is
//! renamed to [`FOLDER`]. From that moment on the new model is there: [`current`], by which files of a folder are
//! found, looks into [`FOLDER`] first. Then the files move to where other programs look for them, one by one, which
//! nobody who looks that way can see; should that not come to its end, whoever next writes to the folder finishes it.
//! Other programs find no `config.json` meanwhile, rather than a mixture.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempDir;

use super::left_overs::{is_old, take_over, temporary_folder, Lock};
use super::output::{sync_folder, OutputFile};
use super::retry::{is_there, names_in, remove_file, retried};
use crate::error::{Error, ErrorKind, Result};

/// Holds a complete model until its files are where they belong.
pub(super) const FOLDER: &str = ".rwkv-edge-new";
/// Behind the name of a file that is no more.
const GONE: &str = ".gone";
/// Without it no program takes the files for a model: it is the first to go and the last to come.
const CONFIG: &str = "config.json";
/// So long a writer waits for another one that is just moving its files.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where the file of a name is, or would be; `None` if it is no more.
pub(crate) fn current(folder: &Path, name: &str) -> io::Result<Option<PathBuf>> {
    let pending = folder.join(FOLDER);
    if is_there(&pending)? {
        let path = pending.join(name);
        if is_there(&path)? {
            return Ok(Some(path));
        }
        if is_there(&pending.join(format!("{name}{GONE}")))? {
            return Ok(None);
        }
    }
    Ok(Some(folder.join(name)))
}

/// The names of all files of a folder, in no order, without those of this module.
pub(crate) fn current_names(folder: &Path) -> io::Result<Vec<String>> {
    let names = |folder: &Path| -> io::Result<Vec<String>> {
        let names = names_in(folder)?.into_iter();
        // None of the files that are looked for has a name that is not UTF-8.
        Ok(names.filter_map(|name| name.into_string().ok()).collect())
    };
    // A file that moves in between is seen twice and not never.
    let pending = match names(&folder.join(FOLDER)) {
        // A file of that name is somebody else's.
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Vec::new()
        }
        pending => pending?,
    };
    let mut all = names(folder)?;
    all.retain(|name| name != FOLDER);
    // New ones after those that are gone: a file that is both is there, as `current` says.
    let (gone, new): (Vec<_>, Vec<_>) = pending.iter().partition(|name| name.ends_with(GONE));
    let gone: Vec<_> = gone.iter().filter_map(|n| n.strip_suffix(GONE)).collect();
    all.retain(|name| !gone.contains(&name.as_str()));
    for name in new {
        if !all.contains(name) {
            all.push(name.clone());
        }
    }
    Ok(all)
}

/// Files of one model that are being written. Dropped before [`commit`](Self::commit), they are gone.
pub(crate) struct PendingFiles {
    folder: PathBuf,
    staging: TempDir,
    /// Held until all are where they belong.
    _lock: Option<File>,
}

impl PendingFiles {
    /// Begins in a folder that is there.
    pub(crate) fn begin(folder: &Path) -> Result<Self> {
        let pending = folder.join(FOLDER);
        if retried(|| fs::symlink_metadata(&pending)).is_ok_and(|found| !found.is_dir()) {
            let text = "is in the way, expected no file of this name";
            return Err(Error::new(ErrorKind::Io, text).at(pending.display()));
        }
        let made =
            temporary_folder(folder).map_err(|e| Error::io("create files in it", folder, e))?;
        let (staging, lock) = made;
        Ok(PendingFiles {
            folder: folder.to_owned(),
            staging,
            _lock: lock,
        })
    }

    /// A file to be written and committed by itself. Where the name is a link, the link will be replaced, and what it
    /// leads to stays: folders of shared caches are made of links.
    pub(crate) fn create(&self, name: &str) -> Result<OutputFile> {
        let created =
            OutputFile::create_for(self.staging.path().join(name), self.folder.join(name));
        // Without a descriptor left, an empty folder can be removed, but not by looking into it.
        created.inspect_err(|_| drop(fs::remove_dir(self.staging.path())))
    }

    /// Removes a file of this name together with the coming of the others.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let name = format!("{name}{GONE}");
        self.create(&name)?.finish()?.rename()
    }

    /// Puts all of them into the folder. On failure it is as it was, unless the error says that the new files are in it.
    ///
    /// `last_look` sees the folder as it is then, when nobody else's files are on their way in it, and may refuse, or
    /// [remove](Self::remove) some.
    ///
    /// What could not be synced when all was in its place already is no failure: that is given back.
    pub(crate) fn commit(
        self,
        last_look: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<Option<Error>> {
        // By the clock of the file system, as of just now: all files came into it.
        let now = fs::metadata(self.staging.path()).and_then(|found| found.modified());
        settle_left_over(&self.folder, now.ok(), PATIENCE)?;
        last_look(&self)?;
        let PendingFiles {
            folder,
            staging,
            _lock,
        } = self;
        let pending = folder.join(FOLDER);
        sync_folder(staging.path())?;
        retried(|| fs::rename(staging.path(), &pending))
            .map_err(|e| Error::io("rename to", &pending, e))?;
        if let Err(error) = sync_folder(&folder) {
            // Whether the new files would be there after a power failure is not known: back, if that can be.
            if retried(|| fs::rename(&pending, staging.path())).is_ok() {
                return Err(error);
            }
        }
        let mut moves = Moves::default();
        // Once more, should it have been a passing failure.
        let failed = match moves.make(&folder).or_else(|_| moves.make(&folder)) {
            Ok(()) => None,
            Err((action, path, e)) if !moves.have_begun => {
                match retried(|| fs::rename(&pending, staging.path())) {
                    Ok(()) => return Err(Error::io(action, &path, e)),
                    Err(_) => Some((action, path, e)),
                }
            }
            Err(failed) => Some(failed),
        };
        // Nothing is left of it under its temporary name.
        let _ = staging.keep();
        match failed {
            None => Ok(moves.unsynced),
            Some(failed) => Err(half_way(&folder, failed)),
        }
    }
}

/// Finishes what a process left undone that ended while its files moved to where they belong. Without locks that shows
/// in their age only.
///
/// # Errors
/// When the process still lives after a time of patience, and what the system says.
pub(super) fn settle_left_over(
    folder: &Path,
    now: Option<SystemTime>,
    patience: Duration,
) -> Result<()> {
    let pending = folder.join(FOLDER);
    let begin = Instant::now();
    loop {
        let found = match retried(|| fs::symlink_metadata(&pending)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            found => found.map_err(|e| Error::io("open", &pending, e))?,
        };
        if !found.is_dir() {
            return Ok(());
        }
        let (lock, _held) = take_over(&pending);
        if lock == Lock::Held || lock == Lock::Unknown && is_old(&pending, &found, now) {
            let moved = Moves::default().make(folder);
            return moved.map_err(|failed| half_way(folder, failed));
        }
        if begin.elapsed() >= patience {
            let text = "another process is just putting a model here, try again later";
            return Err(Error::new(ErrorKind::Io, text).at(folder.display()));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// What could not be done with which file.
type Failed = (&'static str, PathBuf, io::Error);

fn half_way(folder: &Path, (action, path, e): Failed) -> Error {
    let text = format!(
        "the new model is there, whole, but only this program finds all of it, in {FOLDER}, because it cannot {action} \
         {}: {e}; the next conversion into this folder tries again",
        path.display()
    );
    let error = Error::new(ErrorKind::Io, text).at(folder.display());
    error.with_source(e)
}

/// The files of [`FOLDER`] on their way to where they belong.
#[derive(Default)]
struct Moves {
    /// Whether other programs see that something has changed.
    have_begun: bool,
    /// What could not be synced.
    unsynced: Option<Error>,
}

impl Moves {
    /// Moves all, or the rest. Each step leaves what [`current`] finds as it is.
    fn make(&mut self, folder: &Path) -> Result<(), Failed> {
        let pending = folder.join(FOLDER);
        let names = names_in(&pending).map_err(|e| ("list", pending.clone(), e))?;
        let (gone, new): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| is_gone(name));
        let is_new_config = new.iter().any(|name| name == CONFIG);
        if is_new_config {
            remove_because_of(&pending.join(CONFIG), folder.join(CONFIG))?;
        }
        self.have_begun = true;
        for name in &gone {
            // Without the suffix, which is ASCII.
            if let Some(old) = name.to_str().and_then(|name| name.strip_suffix(GONE)) {
                remove_because_of(&pending.join(name), folder.join(old))?;
            }
        }
        // The old ones go before what hides them does.
        self.sync(folder);
        for name in &gone {
            remove(pending.join(name))?;
        }
        for name in new.iter().filter(|name| *name != CONFIG) {
            move_one(&pending.join(name), folder.join(name))?;
        }
        if is_new_config {
            self.sync(folder);
            move_one(&pending.join(CONFIG), folder.join(CONFIG))?;
        }
        match retried(|| fs::remove_dir(&pending)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(("remove", pending, e)),
            _ => {}
        }
        self.sync(folder);
        Ok(())
    }

    fn sync(&mut self, folder: &Path) {
        if let Err(error) = sync_folder(folder) {
            self.unsynced.get_or_insert(error);
        }
    }
}

fn is_gone(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.ends_with(GONE))
}

/// Removes an old file as long as there is what hides it. If that is not there any more, another process has brought it
/// to where it belongs, which is where the old file was.
fn remove_because_of(hides: &Path, old: PathBuf) -> Result<(), Failed> {
    match is_there(hides) {
        Ok(true) => remove(old),
        Ok(false) => Ok(()),
        Err(e) => Err(("open", hides.to_owned(), e)),
    }
}

fn remove(path: PathBuf) -> Result<(), Failed> {
    remove_file(&path).map_err(|e| ("remove", path, e))
}

fn move_one(from: &Path, to: PathBuf) -> Result<(), Failed> {
    match retried(|| fs::rename(from, &to)) {
        // Another process has.
        Err(e) if e.kind() == io::ErrorKind::NotFound && !from.exists() => Ok(()),
        result => result.map_err(|e| ("rename to", to, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wherever the moves of a killed process ended, the files are those of the new model, and the next writer
    /// finishes.
    #[test]
    fn files_on_their_way_are_found() {
        let old = [
            ("a", "old"),
            ("b", "old"),
            ("config.json", "old"),
            ("other", "mine"),
        ];
        let read = |folder: &Path, name: &str| {
            let path = current(folder, name).expect("can be looked at");
            path.and_then(|path| fs::read_to_string(path).ok())
        };
        for n_moved in 0..4 {
            let folder = tempfile::tempdir().expect("a folder");
            let folder = folder.path();
            for (name, text) in old {
                fs::write(folder.join(name), text).expect("can be written");
            }
            let files = PendingFiles::begin(folder).expect("can be begun");
            for name in ["a", "c", "config.json"] {
                let mut file = files.create(name).expect("can be made");
                file.write(b"new").expect("room on the disk");
                file.commit().expect("can be renamed");
            }
            files.remove("b").expect("can be said");
            assert_eq!(read(folder, "a").as_deref(), Some("old"));
            assert_eq!(read(folder, "b").as_deref(), Some("old"));
            // As commit does, but for the rest of it.
            let pending = folder.join(FOLDER);
            fs::rename(files.staging.path(), &pending).expect("same folder");
            drop(files);
            if n_moved > 0 {
                fs::remove_file(folder.join("config.json")).expect("there");
                fs::remove_file(folder.join("b")).expect("there");
            }
            if n_moved > 1 {
                fs::remove_file(pending.join("b.gone")).expect("there");
            }
            if n_moved > 2 {
                fs::rename(pending.join("a"), folder.join("a")).expect("there");
            }
            for finished in [false, true] {
                for name in ["a", "c", "config.json"] {
                    assert_eq!(
                        read(folder, name).as_deref(),
                        Some("new"),
                        "{name}, {n_moved}"
                    );
                }
                assert_eq!(read(folder, "b"), None, "{n_moved}");
                assert_eq!(read(folder, "other").as_deref(), Some("mine"));
                let mut names = current_names(folder).expect("can be listed");
                names.sort();
                assert_eq!(names, ["a", "c", "config.json", "other"], "{n_moved}");
                if !finished {
                    drop(PendingFiles::begin(folder).expect("can be begun"));
                }
            }
            assert_eq!(fs::read_dir(folder).expect("there").count(), 4);
        }
    }

    /// A file that is gone and new at once is new; a file in the place of the folder of new ones is nobody's.
    #[test]
    fn odd_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path();
        for name in ["a", "b"] {
            fs::write(folder.join(name), "old").expect("can be written");
        }
        fs::create_dir(folder.join(FOLDER)).expect("can be made");
        for name in ["a", "a.gone", "b.gone", "c", "c.gone"] {
            fs::write(folder.join(FOLDER).join(name), "new").expect("can be written");
        }
        let names = || {
            let mut names = current_names(folder).expect("can be listed");
            names.sort();
            names
        };
        assert_eq!(names(), ["a", "c"]);
        // Locks there are, so that it is known to be a left-over.
        settle_left_over(folder, None, Duration::ZERO).expect("nobody holds it");
        assert_eq!(names(), ["a", "c"]);
        fs::write(folder.join(FOLDER), "mine").expect("can be written");
        assert_eq!(names(), ["a", "c"]);
        assert_eq!(current(folder, "a").expect("known"), Some(folder.join("a")));
        let error = PendingFiles::begin(folder).err().expect("in the way");
        assert!(error.to_string().contains("in the way"), "{error}");
        let mine = fs::read_to_string(folder.join(FOLDER));
        assert_eq!(mine.expect("there"), "mine");
    }

    /// What another process has brought to its place meanwhile stays there.
    #[test]
    fn an_old_file_goes_only_because_of_a_new_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let (hides, old) = (folder.path().join("new"), folder.path().join("old"));
        fs::write(&old, "").expect("can be written");
        assert!(remove_because_of(&hides, old.clone()).is_ok());
        assert!(old.exists());
        fs::write(&hides, "").expect("can be written");
        assert!(remove_because_of(&hides, old.clone()).is_ok());
        assert!(!old.exists());
    }

    #[test]
    fn a_writer_waits_for_another_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path();
        fs::create_dir(folder.join(FOLDER)).expect("can be made");
        let (lock, held) = take_over(&folder.join(FOLDER));
        if lock != Lock::Held {
            return;
        }
        settle_left_over(folder, None, Duration::ZERO).expect_err("held");
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(50));
                drop(held);
            });
            let waited = settle_left_over(folder, None, Duration::from_secs(60));
            waited.expect("is free soon");
        });
        assert!(!folder.join(FOLDER).exists());
    }

    #[test]
    fn files_that_come_together() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path();
        fs::write(folder.join("a"), "old").expect("can be written");
        let files = PendingFiles::begin(folder).expect("can be begun");
        files
            .create("a")
            .expect("can be made")
            .commit()
            .expect("can be kept");
        drop(files);
        assert_eq!(fs::read_to_string(folder.join("a")).expect("there"), "old");
        assert_eq!(fs::read_dir(folder).expect("there").count(), 1);
        let files = PendingFiles::begin(folder).expect("can be begun");
        files.remove("a").expect("can be said");
        files
            .create("b")
            .expect("can be made")
            .commit()
            .expect("can be kept");
        assert!(files.commit(|_| Ok(())).expect("can be renamed").is_none());
        assert_eq!(current_names(folder).expect("can be listed"), ["b"]);
    }
}
