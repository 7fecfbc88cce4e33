//! Tests of the checkpoint readers, on files written by torch and safetensors (see
//! tests/reference/make_checkpoints.py) and on files made bad on purpose.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use super::{open_path, Checkpoint, Opened};
use crate::error::Result;

mod bad_input;
mod build;
mod fixtures;
mod large;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}

/// Opens what must be a checkpoint and no model file.
fn open(path: &Path, mapped: bool) -> Result<Checkpoint> {
    match open_path(path, mapped)? {
        Opened::Checkpoint(checkpoint) => Ok(checkpoint),
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
