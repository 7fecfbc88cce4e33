//! Tests of the checkpoint readers, on files written by torch and safetensors (see
//! tests/reference/make_checkpoints.py) and on files made bad on purpose.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use super::{open_path, Checkpoint, Opened};
use crate::error::{ErrorKind, Result};
use crate::files::Access;

mod bad_folders;
mod bad_gguf;
mod bad_gguf_tensors;
mod bad_input;
mod bad_pickles;
mod build;
mod build_gguf;
mod damage;
mod fixtures;
mod gguf;
mod large;
mod lora;
mod other_networks;
mod readable;
mod rwkv_cpp;
mod rwkv_cpp7;
mod stand_ins;
mod training;

/// Of bytes that are damaged one after the other, an emulated CPU tries one in so many: all of them take it minutes, and
/// what reads them is the same code.
fn emulated_step() -> usize {
    match std::env::var_os("RWKV_EDGE_EMULATED") {
        Some(_) => 11,
        None => 1,
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}

/// Opens what must be a checkpoint and no model file.
fn open(path: &Path, mapped: bool) -> Result<Checkpoint> {
    match open_path(path, Access::new(mapped))? {
        Opened::Checkpoint(checkpoint) => Ok(*checkpoint),
        Opened::ModelFile(file) => panic!("{}: a model file", file.file.name()),
    }
}

/// Reads every tensor as the model does: a few rows at a time.
fn read_all(checkpoint: &Checkpoint) -> Result<Vec<(String, Vec<f32>)>> {
    let mut all = Vec::new();
    for (name, tensor) in &checkpoint.tensors {
        let mut values = Vec::new();
        if let [rows, cols] = tensor.shape[..] {
            for start in (0..rows).step_by(3) {
                let block = start..rows.min(start + 3);
                let mut out = vec![0.0; block.len() * cols];
                tensor.read_rows(block.clone(), &mut out)?;
                tensor.release(block);
                values.extend(out);
            }
        } else {
            values = tensor.read_vector(tensor.len())?;
        }
        all.push((name.clone(), values));
    }
    Ok(all)
}

/// A folder of files whose opening, or reading, must fail.
struct Case {
    name: &'static str,
    files: Vec<(&'static str, Vec<u8>)>,
    /// The file to open; the folder if `None`.
    file: Option<&'static str>,
    kind: ErrorKind,
    /// What the message must hold.
    words: &'static [&'static str],
}

/// Runs all cases, mapped and not, and reports every one that did not fail as it should.
fn run(cases: &[Case]) {
    let mut failures = Vec::new();
    for case in cases {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in &case.files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        let path = case
            .file
            .map_or(folder.path().to_owned(), |name| folder.path().join(name));
        for mapped in [true, false] {
            let result = open(&path, mapped).and_then(|checkpoint| read_all(&checkpoint));
            let message = match result {
                Ok(_) => "it was read".to_owned(),
                Err(e) if e.kind() != case.kind => format!("{e:?}, expected {:?}", case.kind),
                Err(e) => {
                    let text = e.to_string();
                    let folder = folder.path().display().to_string();
                    let complete = case.words.iter().all(|word| text.contains(word));
                    if complete && text.starts_with(&folder) && text.matches(&folder).count() == 1 {
                        continue;
                    }
                    format!(
                        "{text:?}, expected {:?} and the file named once",
                        case.words
                    )
                }
            };
            failures.push(format!("{} (mapped: {mapped}): {message}", case.name));
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// A lone file that must be refused.
fn file(
    name: &'static str,
    bytes: Vec<u8>,
    kind: ErrorKind,
    words: &'static [&'static str],
) -> Case {
    Case {
        name,
        files: vec![("m", bytes)],
        file: Some("m"),
        kind,
        words,
    }
}

fn read_fixture(name: &str) -> Vec<u8> {
    std::fs::read(fixture("checkpoints").join(name)).unwrap()
}
