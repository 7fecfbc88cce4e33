//! Folders of files, on disk or part of the program.

#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

use super::pending::{current, current_names};
use super::{retried, Access, SourceFile};
use crate::error::{Error, Result};

/// A folder on disk, or a set of files that are part of the program.
#[derive(Clone, Debug)]
pub(crate) enum Folder {
    Disk(PathBuf),
    Memory(&'static [(&'static str, &'static [u8])]),
}

impl Folder {
    /// The file of that name; `None` if there is none.
    pub(crate) fn open(&self, name: &str, mapped: bool) -> Result<Option<SourceFile>> {
        match self {
            Folder::Disk(folder) => open_current(folder, name, mapped),
            Folder::Memory(files) => Ok(files
                .iter()
                .find(|(file_name, _)| *file_name == name)
                .map(|(_, bytes)| SourceFile::from_static(name, bytes))),
        }
    }

    /// What tells the file of that name from another one that takes its place; `None` where there is none, or the
    /// system does not say.
    pub(crate) fn identity(&self, name: &str) -> Option<(u64, u64)> {
        #[cfg(unix)]
        if let Folder::Disk(folder) = self {
            use std::os::unix::fs::MetadataExt;
            let path = current(folder, name).ok()??;
            let found = retried(|| std::fs::metadata(&path)).ok()?;
            return Some((found.dev(), found.ino()));
        }
        let _ = name;
        None
    }

    /// The names of what is in the folder, sorted. Names that are not UTF-8 are left out: none of
    /// the files that are looked for has one.
    pub(crate) fn list(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = match self {
            Folder::Disk(folder) => {
                current_names(folder).map_err(|e| Error::io("list", folder, e))?
            }
            Folder::Memory(files) => files.iter().map(|(name, _)| (*name).to_owned()).collect(),
        };
        names.sort_unstable();
        Ok(names)
    }

    /// What to call the folder in texts for people.
    pub(crate) fn place(&self) -> String {
        match self {
            Folder::Disk(folder) => folder.display().to_string(),
            Folder::Memory(_) => "the built-in model".to_owned(),
        }
    }
}

/// The file of that name in a folder, where files of a new model may be on their way.
fn open_current(folder: &Path, name: &str, mapped: bool) -> Result<Option<SourceFile>> {
    let mut last = None;
    loop {
        let path = current(folder, name);
        let path = path.map_err(|e| Error::io("open", &folder.join(name), e))?;
        let Some(path) = path else { return Ok(None) };
        let opened = match retried(|| std::fs::metadata(&path)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            _ => SourceFile::open_with(&path, Access::new(mapped)).map(Some),
        };
        // A file that is not where it was has moved to its place in the meantime.
        if matches!(opened, Ok(Some(_))) || last.as_ref() == Some(&path) {
            return opened;
        }
        last = Some(path);
    }
}
