//! A table of commands that must fail cleanly.

use std::fs;
use std::path::{Path, PathBuf};

use crate::command::{run, stderr};

/// A folder of bad inputs and what is said of each.
pub struct Table {
    pub folder: tempfile::TempDir,
    failures: Vec<String>,
    n_cases: usize,
}

impl Table {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("out")).expect("can be made");
        Table {
            folder,
            failures: Vec::new(),
            n_cases: 0,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("has one")).expect("can be made");
        fs::write(&path, bytes).expect("can be written");
        path
    }

    /// Runs a command that must fail, saying all of `words`.
    pub fn refuse(&mut self, what: &str, args: &[&str], words: &[&str]) {
        let output = run(args);
        self.check(what, &output, words);
    }

    pub fn check(&mut self, what: &str, output: &std::process::Output, words: &[&str]) {
        self.n_cases += 1;
        let said = stderr(output);
        let mut problems = Vec::new();
        if output.status.code() != Some(1) {
            problems.push(format!("exit {:?}", output.status));
        }
        problems.extend(
            words
                .iter()
                .filter(|word| !said.contains(**word))
                .map(|w| format!("not said: {w}")),
        );
        if said.contains("panicked") || said.lines().count() != 1 {
            problems.push("not one clear line".into());
        }
        if !output.stdout.is_empty() {
            problems.push("printed to stdout".into());
        }
        let left = fs::read_dir(self.path("out")).expect("readable").count();
        if left != 0 {
            problems.push("something was written".into());
        }
        if !problems.is_empty() {
            self.failures
                .push(format!("{what}: {problems:?}\n    {said}"));
        }
    }

    /// Quantising such a file or folder must fail.
    pub fn refuse_model(&mut self, what: &str, path: &Path, words: &[&str]) {
        self.refuse_model_as("int8", what, path, words);
    }

    pub fn refuse_model_as(&mut self, quant: &str, what: &str, path: &Path, words: &[&str]) {
        let (model, out) = (text(path), text(&self.path("out/model")));
        self.refuse(
            what,
            &["quantize", "-m", &model, "--quant", quant, "-o", &out],
            words,
        );
    }

    pub fn refuse_bytes(&mut self, what: &str, bytes: impl AsRef<[u8]>, words: &[&str]) {
        let path = self.write("case/model", bytes);
        self.refuse_model(what, &path, words);
    }

    pub fn finish(self, at_least: usize) {
        assert!(self.failures.is_empty(), "{}", self.failures.join("\n"));
        assert!(self.n_cases >= at_least, "only {} cases", self.n_cases);
    }
}

pub fn text(path: &Path) -> String {
    path.to_str().expect("test paths are UTF-8").to_owned()
}
