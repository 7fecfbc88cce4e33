//! Runs `convert`, and looks at what it wrote.
#![allow(dead_code)]

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::command::{run, stderr, stdout};
use crate::common::floats;

pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// Converts, and gives what was said.
pub fn convert(source: &Path, target: &Path, more: &[&str]) -> String {
    let args = ["convert", "-m", text(source), "-o", text(target)];
    let output = run(args.iter().chain(more));
    assert_eq!(stdout(&output), "", "everything but text goes to stderr");
    stderr(&output)
}

pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let name = |entry: std::io::Result<fs::DirEntry>| {
        let name = entry.expect("readable").file_name();
        name.into_string().expect("test names are UTF-8")
    };
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}

/// Of the last of six tokens.
pub fn logits(model: &Path) -> Vec<f64> {
    let args = [
        "logits",
        "-m",
        text(model),
        "--tokens",
        "1,2,3,4,5,6",
        "--json",
    ];
    let object: Value = serde_json::from_str(&stdout(&run(args))).expect("valid JSON");
    floats(&object["logits"][0])
}

pub fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b);
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// What tells checkpoints apart, whatever their form and type.
pub fn fingerprint(model: &Path) -> Value {
    let info = stdout(&run(["info", "-m", text(model), "--json"]));
    let info: Value = serde_json::from_str(&info).expect("valid JSON");
    info["fingerprint"].clone()
}

/// A World vocabulary of the 256 bytes and nothing else: ids 1 to 256.
pub fn byte_vocabulary() -> String {
    let line = |byte: usize| format!("{} b'\\x{byte:02x}' 1\n", byte + 1);
    (0..256).map(line).collect()
}
