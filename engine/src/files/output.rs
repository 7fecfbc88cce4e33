//! Files written whole or not at all: under a temporary name in the same folder, synced, renamed. A
//! mapping of the old file stays valid, and a failed or killed write leaves the old file. The new file
//! takes over the permissions of the old one; where the name is a link, the file it leads to is replaced.
//!
//! A process that is killed leaves its temporary file behind, which goes later: see [`left_overs`](super::left_overs).
//! A folder of files that belong together is put there by [`pending`](super::pending).

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

use super::file_size;
use super::left_overs::temporary_file;
use super::retry::{is_there, remove_file, retried};
use crate::error::{Error, Result};

/// Large pieces: weights are written row by row.
const BUFFER_BYTES: usize = 1 << 20;

/// A file being written; nothing is at its path before [`commit`](Self::commit).
///
/// Until then it has a temporary name in the same folder, and what was at its path stays. Dropped before, it is
/// gone.
#[derive(Debug)]
pub struct OutputFile {
    path: PathBuf,
    /// What error texts call it.
    shown: PathBuf,
    writer: BufWriter<NamedTempFile>,
    /// Bytes written, overwritten ones once.
    len: u64,
    /// More than this the system does not let this process write.
    len_max: Option<u64>,
}

impl OutputFile {
    /// Begins a file under a temporary name.
    ///
    /// # Errors
    ///
    /// When the folder is missing or not writable, or the path is a folder or a device.
    pub fn create(path: &Path) -> Result<Self> {
        let failed = |e| Error::io("create", path, e);
        let old = match retried(|| fs::metadata(path)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            old => Some(old.map_err(failed)?),
        };
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
        let is_link = match &old {
            Some(_) => retried(|| fs::symlink_metadata(path))
                .map_err(failed)?
                .is_symlink(),
            None => false,
        };
        let target = match is_link {
            true => retried(|| fs::canonicalize(path)).map_err(failed)?,
            false => path.to_owned(),
        };
        let file = Self::create_for(target.clone(), target)?;
        if let Some(old) = old {
            let temporary = file.writer.get_ref().as_file();
            retried(|| temporary.set_permissions(old.permissions())).map_err(failed)?;
        }
        Ok(file)
    }

    /// As [`create`](Self::create), but whatever is at the path is replaced, and error texts say `shown`.
    pub(super) fn create_for(path: PathBuf, shown: PathBuf) -> Result<Self> {
        let file = temporary_file(folder_of(&path)).map_err(|e| Error::io("create", &shown, e))?;
        Ok(OutputFile {
            path,
            shown,
            writer: BufWriter::with_capacity(BUFFER_BYTES, file),
            len: 0,
            len_max: file_size::limit(),
        })
    }

    /// Appends bytes.
    ///
    /// # Errors
    ///
    /// Those of the system, such as a full disk. A limit of the size of files (`ulimit -f`) is such an error too: the
    /// signal that the system would send with it ([SIGXFSZ]) does not come.
    ///
    /// [SIGXFSZ]: https://man7.org/linux/man-pages/man2/setrlimit.2.html
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let failed = |e| Error::io("write", &self.shown, e);
        let len = self.len.saturating_add(bytes.len() as u64);
        file_size::check(len, self.len_max).map_err(failed)?;
        self.writer.write_all(bytes).map_err(failed)?;
        self.len = len;
        Ok(())
    }

    /// Overwrites bytes written before.
    pub(crate) fn overwrite(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut overwrite = || {
            retried(|| self.writer.seek(SeekFrom::Start(offset)))?;
            self.writer.write_all(bytes)?;
            retried(|| self.writer.seek(SeekFrom::End(0))).map(drop)
        };
        overwrite().map_err(|e| Error::io("write", &self.shown, e))
    }

    /// Syncs the file and gives it its name.
    ///
    /// # Errors
    ///
    /// Those of the system; the old file is then as it was.
    pub fn commit(self) -> Result<()> {
        let folder = folder_of(&self.path).to_owned();
        self.finish()?.rename()?;
        // The file is there, whatever becomes of this.
        let _ = sync_folder(&folder);
        Ok(())
    }

    /// Syncs both files and gives them their names, so that a kill in between loses neither the old pair nor the new
    /// one: there is always a pair that belongs together, of `main` and of this file, under its name or
    /// [where it waits for it](Self::beside_waiting). Whoever reads them must be able to tell whether they do. So must
    /// the next writer: what waits goes, so what belongs to the `main` that is there [gets its name](Self::settle_beside)
    /// before that.
    ///
    /// # Errors
    ///
    /// Those of the system; both old files are then as they were, unless the error says that the new ones are there.
    pub fn commit_beside(self, main: OutputFile) -> Result<()> {
        let (mut beside, main) = (self.finish()?, main.finish()?);
        let (path, shown) = (beside.path.clone(), beside.shown.clone());
        let waiting = waiting_for(&path);
        let another_waits = is_there(&waiting).map_err(|e| Error::io("open", &waiting, e))?;
        beside.path = waiting.clone();
        beside.rename()?;
        let folder = folder_of(&main.path).to_owned();
        if let Err(error) = main.rename() {
            // The old pair is still there. Left, it would only be in the way.
            if !another_waits {
                let _ = remove_file(&waiting);
            }
            return Err(error);
        }
        // Both are there, whatever becomes of this.
        let _ = sync_folder(&folder);
        name_waiting(&waiting, &path, &shown)
    }

    /// Where a file written by [`commit_beside`](Self::commit_beside) is found, if it was ended in between.
    pub fn beside_waiting(path: &Path) -> PathBuf {
        waiting_for(&followed(path))
    }

    /// Gives the file of this path its name that was ended in between, in place of the one that has it.
    ///
    /// # Errors
    ///
    /// Those of the system; the file waits still.
    pub fn settle_beside(path: &Path) -> Result<()> {
        let target = followed(path);
        name_waiting(&waiting_for(&target), &target, path)
    }

    /// Syncs the file, which stays under its temporary name; closes it.
    pub(crate) fn finish(self) -> Result<FinishedFile> {
        let OutputFile {
            path,
            shown,
            writer,
            ..
        } = self;
        let file = writer
            .into_inner()
            .map_err(|e| Error::io("write", &shown, e.into_error()))?;
        retried(|| file.as_file().sync_all()).map_err(|e| Error::io("sync", &shown, e))?;
        let (file, temporary) = file.into_parts();
        // Elsewhere an open file cannot be renamed.
        let lock = cfg!(unix).then_some(file);
        Ok(FinishedFile {
            path,
            shown,
            temporary,
            _lock: lock,
        })
    }
}

/// Where a link leads to.
fn followed(path: &Path) -> PathBuf {
    retried(|| fs::canonicalize(path)).unwrap_or_else(|_| path.to_owned())
}

/// Where the second of two files is while the first one gets its name: a name that nobody gives to a file of theirs.
fn waiting_for(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".rwkv-edge-new");
    path.with_file_name(name)
}

fn name_waiting(waiting: &Path, path: &Path, shown: &Path) -> Result<()> {
    retried(|| fs::rename(waiting, path)).map_err(|e| {
        let text = format!("{e}; it is whole in {}", waiting.display());
        Error::io("rename to", shown, io::Error::new(e.kind(), text))
    })?;
    let _ = sync_folder(folder_of(path));
    Ok(())
}

/// The folder that a path is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    let parent = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// A complete file that does not have its name yet. Dropped, it is gone.
pub(crate) struct FinishedFile {
    path: PathBuf,
    shown: PathBuf,
    temporary: TempPath,
    /// Held until it has its name.
    _lock: Option<File>,
}

impl FinishedFile {
    /// Gives the file its name, in place of a file that has it now.
    pub(crate) fn rename(self) -> Result<()> {
        let FinishedFile {
            path,
            shown,
            mut temporary,
            _lock,
        } = self;
        loop {
            match temporary.persist(&path) {
                Err(e) if e.error.kind() == io::ErrorKind::Interrupted => temporary = e.path,
                result => return result.map_err(|e| Error::io("rename to", &shown, e.error)),
            }
        }
    }
}

/// Makes what was renamed and removed in a folder last, where the system can be asked to.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    let sync = || File::open(folder)?.sync_all();
    match retried(sync) {
        // Some file systems sync files only.
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
            ) =>
        {
            Ok(())
        }
        result => result.map_err(|e| Error::io("sync", folder, e)),
    }
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
    fn more_than_the_limit_of_file_sizes_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let mut file = OutputFile::create(&path).expect("can be begun");
        file.len_max = Some(10);
        file.write(&[0; 10]).expect("as much as may be");
        file.overwrite(2, &[1; 8]).expect("no more than that");
        let error = file.write(&[0]).expect_err("one too many");
        assert_eq!(error.kind(), crate::ErrorKind::Io);
        let text = error.to_string();
        assert!(
            text.contains("at most 10 bytes") && text.contains("file: cannot write"),
            "{text}"
        );
        file.commit().expect("what there is");
        assert_eq!(fs::read(&path).expect("there").len(), 10);
    }

    #[test]
    fn two_files_get_their_names_together() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let begin = |text: &[u8]| {
            let mut files = [at("main"), at("beside")]
                .map(|path| OutputFile::create(&path).expect("can be begun"));
            for file in &mut files {
                file.write(text).expect("room on the disk");
            }
            files
        };
        let [main, beside] = begin(b"old");
        beside.commit_beside(main).expect("can be renamed");
        let [main, beside] = begin(b"new");
        // The first one cannot get its name.
        fs::remove_file(at("main")).expect("there");
        fs::create_dir(at("main")).expect("can be made");
        beside
            .commit_beside(main)
            .expect_err("a folder is in the way");
        assert_eq!(fs::read(at("beside")).expect("there"), b"old");
        let names = fs::read_dir(folder.path()).expect("there").count();
        assert_eq!(names, 2, "nothing temporary is left");
        // One that waits is not removed, and gets its name when asked to.
        let waiting = OutputFile::beside_waiting(&at("beside"));
        fs::write(&waiting, "waits").expect("can be written");
        fs::write(at("beside.new"), "mine").expect("can be written");
        let [main, beside] = [at("main/x"), at("beside")]
            .map(|path| OutputFile::create(&path).expect("can be begun"));
        fs::create_dir(at("main/x")).expect("can be made");
        beside
            .commit_beside(main)
            .expect_err("a folder is in the way");
        assert!(waiting.exists());
        OutputFile::settle_beside(&at("beside")).expect("is there");
        assert!(!waiting.exists());
        assert_eq!(fs::read(at("beside")).expect("there"), b"");
        assert_eq!(fs::read(at("beside.new")).expect("there"), b"mine");
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
            assert!(!text.contains(".part"), "nobody's name: {text}");
        }
        let null = fs::metadata("/dev/null").expect("there");
        assert!(!null.is_file());
    }
}
