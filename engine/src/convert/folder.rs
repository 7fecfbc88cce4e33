//! A folder that holds a whole new model or none: all files are written under temporary names first,
//! then they get their names, and the ones that make a model of them get theirs last.
//!
//! An earlier model in the folder is only replaced when asked for. Its `config.json` and index go
//! first, so that at no time a configuration stands beside weights of another model.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::hugging_face::SideFile;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::files::output::{is_unfinished, sync_folder, FinishedFile, OutputFile};

/// The list of a model's several files.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// A folder being filled. Dropped before [`commit`](Self::commit) it is as it was.
pub(super) struct ModelFolder {
    path: PathBuf,
    /// Whether it was made here, and goes again when nothing comes of it.
    made: Option<PathBuf>,
    /// Files of the earlier model that no new one replaces.
    obsolete: Vec<PathBuf>,
    /// In the order in which they get their names.
    finished: Vec<FinishedFile>,
    /// What runs that did not come to their end have left here.
    pub(super) unfinished: Vec<PathBuf>,
}

impl ModelFolder {
    /// Sees to it that the folder is there, and that files of these names may be written into it.
    ///
    /// # Errors
    /// A model that is there already, unless `overwrite`; a source that would be overwritten.
    pub(super) fn prepare(
        path: &Path,
        names: &BTreeSet<String>,
        source: &Checkpoint,
        overwrite: bool,
    ) -> Result<Self> {
        let mut folder = ModelFolder {
            path: path.to_owned(),
            made: None,
            obsolete: Vec::new(),
            finished: Vec::new(),
            unfinished: Vec::new(),
        };
        let there = match list(path)? {
            Some(there) => there,
            None => {
                folder.made = make(path)?;
                return Ok(folder);
            }
        };
        let unfinished = there.iter().filter(|name| is_unfinished(name));
        folder.unfinished = unfinished.map(|name| path.join(name)).collect();
        let replaced = there
            .iter()
            .filter(|name| names.contains(*name) || is_weight_file(name));
        let sources: BTreeSet<_> = source
            .tensors
            .values()
            .filter_map(|tensor| fs::canonicalize(tensor.file.name()).ok())
            .collect();
        for name in replaced {
            let file = path.join(name);
            if fs::canonicalize(&file).is_ok_and(|file| sources.contains(&file)) {
                let text = "is the checkpoint itself, expected another folder to write to";
                return Err(Error::argument(text).at(file.display()));
            }
            if !overwrite {
                let text =
                    "is there already: name another folder, or replace the model with --force";
                return Err(Error::argument(text).at(file.display()));
            }
            if !names.contains(name) {
                folder.obsolete.push(file);
            }
        }
        Ok(folder)
    }

    /// A file to be written into, and then handed to [`add`](Self::add).
    pub(super) fn create(&self, name: &str) -> Result<OutputFile> {
        OutputFile::create_in_place_of_link(&self.path.join(name))
    }

    /// Keeps a file whose content is complete. Files get their names in this order.
    pub(super) fn add(&mut self, file: OutputFile) -> Result<()> {
        self.finished.push(file.finish()?);
        Ok(())
    }

    pub(super) fn add_whole(&mut self, file: &SideFile) -> Result<()> {
        let mut output = self.create(&file.name)?;
        output.write(&file.bytes)?;
        self.add(output)
    }

    /// Gives every file its name. The last one, `config`, is what makes a model of the others.
    pub(super) fn commit(mut self, config: &str) -> Result<()> {
        for file in [config, INDEX].map(|name| self.path.join(name)) {
            remove(&file)?;
        }
        for file in &self.obsolete {
            remove(file)?;
        }
        sync_folder(&self.path)?;
        self.made = None;
        let finished = std::mem::take(&mut self.finished);
        let last = finished.len().saturating_sub(1);
        for (i, file) in finished.into_iter().enumerate() {
            if i == last {
                sync_folder(&self.path)?;
            }
            file.rename()?;
        }
        sync_folder(&self.path)
    }
}

impl Drop for ModelFolder {
    fn drop(&mut self) {
        // The temporary files go first: a folder with something in it stays.
        self.finished.clear();
        let mut folder = self.path.as_path();
        while let Some(made) = &self.made {
            if fs::remove_dir(folder).is_err() || folder == made {
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
    fs::create_dir_all(path).map_err(|e| Error::io("make the folder", path, e))?;
    Ok(outermost)
}

/// The names of what is in a folder; `None` if there is no such folder.
fn list(path: &Path) -> Result<Option<Vec<String>>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("list", path, e)),
    };
    let entries = entries
        .collect::<io::Result<Vec<_>>>()
        .map_err(|e| Error::io("list", path, e))?;
    // Other names are none of ours.
    let names = entries
        .into_iter()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
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

fn remove(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", file, e)),
        _ => Ok(()),
    }
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
            obsolete: Vec::new(),
            finished: Vec::new(),
            unfinished: Vec::new(),
        };
        fs::write(path.join("other"), "").expect("can be written");
        drop(new());
        assert!(path.exists(), "something is in it");
        fs::remove_file(path.join("other")).expect("is there");
        let mut folder = new();
        let file = folder.create("file").expect("can be made");
        folder.add(file).expect("can be kept");
        drop(folder);
        assert!(!around.path().join("a").exists());
        assert!(around.path().exists());
    }
}
