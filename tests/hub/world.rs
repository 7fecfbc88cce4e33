//! What each test has to itself: a hub, an empty home, and the golden models to put on the hub.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::command::{command, stderr, stdout};
use crate::common::{golden, ids, json};
use crate::stand_in::{Files, Hub, Request};

/// The name under which tests put models on the hub.
pub const MODEL: &str = "RWKV/tiny";

pub struct World {
    pub hub: Hub,
    pub home: tempfile::TempDir,
}

impl World {
    /// A hub on which `MODEL` is one of the golden models, and its commit.
    pub fn with_model(name: &str) -> (Self, String) {
        let world = World {
            hub: Hub::start(),
            home: tempfile::tempdir().expect("a folder"),
        };
        let commit = world.hub.commit(MODEL, "main", files_of(&golden(name)));
        (world, commit)
    }

    /// The binary in this world, whatever the caller's shell has set.
    pub fn command(&self) -> Command {
        let mut command = command();
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy().to_lowercase();
            let is_ours = [
                "hf_",
                "hugging",
                "transformers_",
                "xdg_",
                "rwkv_edge_",
                "ssl_cert",
            ];
            if is_ours.iter().any(|start| text.starts_with(start)) || text.ends_with("_proxy") {
                command.env_remove(name);
            }
        }
        command
            .env_remove("REQUESTS_CA_BUNDLE")
            .env_remove("HF_HUB_OFFLINE")
            .env("HOME", self.home.path())
            .env("USERPROFILE", self.home.path())
            .env("HF_ENDPOINT", self.hub.endpoint());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command()
            .args(args)
            .output()
            .expect("the binary starts")
    }

    pub fn run_with(&self, variables: &[(&str, &str)], args: &[&str]) -> Output {
        let mut command = self.command();
        command.envs(variables.iter().copied());
        command.args(args).output().expect("the binary starts")
    }

    /// The cache of `MODEL`.
    pub fn cache(&self) -> PathBuf {
        self.hub_cache().join("models--RWKV--tiny")
    }

    pub fn hub_cache(&self) -> PathBuf {
        self.home.path().join(".cache/huggingface/hub")
    }

    /// Names of all files in `MODEL`'s folder of blobs.
    pub fn blobs(&self) -> Vec<String> {
        names(&self.cache().join("blobs"))
    }

    /// The requests since the last call that fetch the content of files.
    pub fn transfers(&self) -> Vec<Request> {
        let mut log = self.hub.take_log();
        let is_content = |request: &Request| {
            request.method == "GET"
                && (request.to_storage || request.path.contains("/resolve-cache/"))
        };
        log.retain(is_content);
        log
    }
}

pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The files of a folder that a model on the hub has.
pub fn files_of(folder: &Path) -> Files {
    let mut files = Files::new();
    for name in names(folder)
        .into_iter()
        .filter(|name| name != "expected.json")
    {
        files.insert(name.clone(), fs::read(folder.join(name)).expect("readable"));
    }
    // What no model needs.
    files.insert("README.md".into(), b"# A model\n".to_vec());
    files.insert("flax_model.npz".into(), vec![1; 1000]);
    files
}

/// Arguments that make a golden model go on as transformers did, and how it goes on.
pub fn greedy(name: &str) -> (Vec<String>, Vec<u32>) {
    let expected = json(golden(name).join("expected.json"));
    let all = ids(&expected["greedy_ids"]);
    let n_prompt = expected["greedy_prompt_len"].as_u64().expect("a length") as usize;
    let prompt: Vec<String> = all[..n_prompt].iter().map(u32::to_string).collect();
    let n_new = (all.len() - n_prompt).to_string();
    let args = [
        "--ignore-eos",
        "--json",
        "-n",
        &n_new,
        "--tokens",
        &prompt.join(","),
    ];
    (args.map(str::to_owned).to_vec(), all[n_prompt..].to_vec())
}

/// The model must go on as transformers did.
pub fn assert_generates(output: &Output, name: &str) {
    let object: Value = serde_json::from_str(&stdout(output)).expect("JSON");
    assert_eq!(ids(&object["tokens"]), greedy(name).1, "{name}");
}

/// The command must have failed with one line that has all these words.
pub fn assert_refused(output: &Output, words: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let last = said.lines().last().unwrap_or_default();
    for word in words {
        assert!(last.contains(word), "not said: {word}\n{said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}
