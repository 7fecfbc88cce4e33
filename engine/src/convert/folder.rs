//! A folder that holds a whole new model or none: see [`pending`](crate::files::pending) for how the files come in.
//!
//! An earlier model in the folder is only replaced when asked for. Its files that no new one replaces go with it.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::hugging_face::SideFile;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::files::output::OutputFile;
use crate::files::pending::{current, current_names, PendingFiles};
use crate::files::{is_unfinished, retried};

/// The list of a model's several files.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// A folder being filled. Dropped before [`commit`](Self::commit) it is as it was.
pub(super) struct ModelFolder {
    path: PathBuf,
    /// Whether it was made here, and goes again when nothing comes of it.
    made: Option<PathBuf>,
    rules: Rules,
    files: Option<PendingFiles>,
    /// What runs that did not come to their end have left here.
    pub(super) unfinished: Vec<PathBuf>,
}

/// What of a folder may be replaced.
#[derive(Default)]
struct Rules {
    /// Of the files to come.
    names: BTreeSet<String>,
    /// Where the files of the checkpoint are.
    sources: Vec<Option<PathBuf>>,
    overwrite: bool,
}

impl ModelFolder {
    /// Sees to it that the folder is there, and that files of these names may be written into it.
    ///
    /// # Errors
    /// A model that is there already, unless `overwrite`; a source that would be overwritten.
    pub(super) fn prepare(
        path: &Path,
        names: BTreeSet<String>,
        source: &Checkpoint,
        overwrite: bool,
    ) -> Result<Self> {
        let sources: BTreeSet<&str> = source.tensors.values().map(|t| t.file.name()).collect();
        let sources = sources.into_iter().map(|name| canonical(Path::new(name)));
        let mut folder = ModelFolder {
            path: path.to_owned(),
            made: None,
            rules: Rules {
                names,
                sources: sources.collect::<Result<_>>()?,
                overwrite,
            },
            files: None,
            unfinished: Vec::new(),
        };
        match list(path)? {
            Some(there) => {
                folder.rules.obsolete(path, &there)?;
                let unfinished = there.iter().filter(|name| is_unfinished(name));
                folder.unfinished = unfinished.map(|name| path.join(name)).collect();
            }
            None => folder.made = make(path)?,
        }
        folder.files = Some(PendingFiles::begin(path)?);
        Ok(folder)
    }

    fn files(&self) -> Result<&PendingFiles> {
        let gone = || Error::argument("nothing is being written").at(self.path.display());
        self.files.as_ref().ok_or_else(gone)
    }

    /// A file to be written and committed by itself, which is then there when all are.
    pub(super) fn create(&self, name: &str) -> Result<OutputFile> {
        self.files()?.create(name)
    }

    pub(super) fn write_whole(&self, file: &SideFile) -> Result<()> {
        let mut output = self.create(&file.name)?;
        output.write(&file.bytes)?;
        output.finish()?.rename()
    }

    /// Puts all files into the folder. What could not be synced at the end, when all are there, is given back.
    pub(super) fn commit(mut self) -> Result<Option<Error>> {
        // Another conversion may have come to its end here since the first look.
        let last_look = |files: &PendingFiles| {
            let there = list(&self.path)?.unwrap_or_default();
            let obsolete = self.rules.obsolete(&self.path, &there)?;
            obsolete.into_iter().try_for_each(|name| files.remove(name))
        };
        let unsynced = match self.files.take() {
            Some(files) => files.commit(last_look)?,
            None => None,
        };
        self.made = None;
        Ok(unsynced)
    }
}

impl Rules {
    /// Which files that are there belong to an earlier model, and no new one replaces them.
    fn obsolete<'a>(&self, folder: &Path, there: &'a [String]) -> Result<Vec<&'a str>> {
        let mut obsolete = Vec::new();
        for name in there {
            let is_new = self.names.contains(name);
            if !is_new && !is_weight_file(name) {
                continue;
            }
            let file = folder.join(name);
            let now = current(folder, name).map_err(|e| Error::io("open", &file, e))?;
            let now = now.map_or(Ok(None), |now| canonical(&now))?;
            if now.is_some() && self.sources.contains(&now) {
                let text = "is the checkpoint itself, expected another folder to write to";
                return Err(Error::argument(text).at(file.display()));
            }
            if !self.overwrite {
                let text =
                    "is there already: name another folder, or replace the model with --force";
                return Err(Error::argument(text).at(file.display()));
            }
            if !is_new {
                obsolete.push(name.as_str());
            }
        }
        Ok(obsolete)
    }
}

impl Drop for ModelFolder {
    fn drop(&mut self) {
        // The temporary files go first: a folder with something in it stays.
        self.files = None;
        let mut folder = self.path.as_path();
        while let Some(made) = &self.made {
            if retried(|| fs::remove_dir(folder)).is_err() || folder == made {
                return;
            }
            match folder.parent() {
                Some(parent) => folder = parent,
                None => return,
            }
        }
    }
}

/// Makes a folder and those around it; gives the outermost that was not there.
fn make(path: &Path) -> Result<Option<PathBuf>> {
    let missing = path
        .ancestors()
        .take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
    let outermost = missing.last().map(Path::to_owned);
    retried(|| fs::create_dir_all(path)).map_err(|e| Error::io("make the folder", path, e))?;
    Ok(outermost)
}

/// Where a path leads to; `None` where nothing is. Other failures must not pass for that: the checkpoint itself would
/// not be known.
pub(super) fn canonical(path: &Path) -> Result<Option<PathBuf>> {
    match retried(|| fs::canonicalize(path)) {
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        there => there.map(Some).map_err(|e| Error::io("open", path, e)),
    }
}

/// The names of what is in a folder; `None` if there is no such folder.
fn list(path: &Path) -> Result<Option<Vec<String>>> {
    let mut names = match current_names(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        names => names.map_err(|e| Error::io("list", path, e))?,
    };
    names.sort_unstable();
    Ok(Some(names))
}

/// Whether a loader would take a file of this name for weights of the model beside the new ones.
fn is_weight_file(name: &str) -> bool {
    let shard = name
        .strip_prefix("model-")
        .and_then(|rest| rest.strip_suffix(".safetensors"))
        .and_then(|rest| rest.split_once("-of-"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let is_shard = shard.is_some_and(|(index, count)| is_number(index) && is_number(count));
    is_shard || name == "model.safetensors" || name == INDEX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weight_files() {
        for name in [
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model-100000-of-100001.safetensors",
            "model.safetensors.index.json",
        ] {
            assert!(is_weight_file(name), "{name}");
        }
        for name in [
            "model-of-.safetensors",
            "model-a-of-b.safetensors",
            "other.safetensors",
            "RWKV-4.pth",
            "config.json",
        ] {
            assert!(!is_weight_file(name), "{name}");
        }
    }

    #[test]
    fn folders_made_for_nothing_go() {
        let around = tempfile::tempdir().expect("a folder");
        let path = around.path().join("a/b/c");
        let outermost = make(&path).expect("can be made");
        assert_eq!(outermost, Some(around.path().join("a")));
        let new = || ModelFolder {
            path: path.clone(),
            made: outermost.clone(),
            rules: Rules::default(),
            files: Some(PendingFiles::begin(&path).expect("can be made")),
            unfinished: Vec::new(),
        };
        fs::write(path.join("other"), "").expect("can be written");
        drop(new());
        assert!(path.exists(), "something is in it");
        fs::remove_file(path.join("other")).expect("is there");
        let folder = new();
        let file = folder.create("file").expect("can be made");
        file.commit().expect("can be kept");
        drop(folder);
        assert!(!around.path().join("a").exists());
        assert!(around.path().exists());
    }
}
