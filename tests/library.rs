//! The command as a library: several commands in one process, as a package of another language runs them.
//! What a command prints and writes, the other tests see from outside; here it is the exit codes that count, and
//! that one command leaves nothing behind for the next.

mod common;

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use common::golden;

/// One command at a time: they share stdout.
static RUNNING: Mutex<()> = Mutex::new(());

fn arguments(arguments: &[&str]) -> Vec<OsString> {
    let name = std::iter::once(&"rwkv-edge");
    name.chain(arguments).map(OsString::from).collect()
}

fn main_with(program: &[OsString], args: &[&str]) -> u8 {
    let _running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    rwkv_edge_cli::main_of(program, arguments(args))
}

fn main(args: &[&str]) -> u8 {
    let _running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    rwkv_edge_cli::main(arguments(args))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

#[test]
fn commands_follow_one_another() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("model.safetensors");
    let source = golden("small-safetensors");
    // Stands for no option, and is not the command's to remove.
    std::env::set_var("RWKV_EDGE_THREADS", "");
    let quantize = [
        "quantize",
        "--quiet",
        "-m",
        text(&source),
        "-o",
        text(&file),
    ];
    for round in 0..2 {
        assert_eq!(main(&quantize), 0, "{round}");
        assert!(file.is_file(), "{round}");
        fs::remove_file(&file).expect("is there");
        // What clap refuses, what it cannot know, and what is no error.
        assert_eq!(main(&["quantize", "--no-such-option"]), 2, "{round}");
        assert_eq!(main(&["--model", "m", "info"]), 2, "{round}");
        let file = text(&file);
        let wrong = ["perplexity", "--window", "4", "--stride", "5", file];
        assert_eq!(main(&wrong), 2, "{round}");
        assert_eq!(main(&["--version"]), 0, "{round}");
        // There is no such model.
        assert_eq!(main(&["info", "--quiet", "-m", file]), 1, "{round}");
        let threads = std::env::var_os("RWKV_EDGE_THREADS");
        assert_eq!(threads, Some(OsString::new()));
    }
}

/// `bench` measures a new process, which is not this one.
#[test]
fn a_new_process_is_started_as_the_caller_says() {
    let model = golden("small-safetensors");
    let bench = [
        "bench",
        "--quiet",
        "--json",
        "-m",
        text(&model),
        "-n",
        "1",
        "-p",
        "4",
        "-r",
        "1",
    ];
    let program = OsString::from(env!("CARGO_BIN_EXE_rwkv-edge"));
    assert_eq!(main_with(&[program], &bench), 0);
    // This program takes other arguments.
    assert_eq!(main(&bench), 1);
}

/// What a name was found to be counts for one command only.
#[cfg(feature = "hub")]
#[test]
fn a_name_may_be_another_model_the_next_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let (full, empty) = (folder.path().join("full"), folder.path().join("empty"));
    let repository = full.join("models--some--model");
    let snapshot = repository.join("snapshots/0123");
    fs::create_dir_all(&snapshot).expect("can be made");
    fs::create_dir_all(repository.join("refs")).expect("can be made");
    fs::write(repository.join("refs/main"), "0123").expect("can be written");
    for entry in fs::read_dir(golden("small-safetensors")).expect("is there") {
        let entry = entry.expect("can be read");
        fs::copy(entry.path(), snapshot.join(entry.file_name())).expect("can be copied");
    }
    std::env::set_var("HF_HUB_OFFLINE", "1");
    for _ in 0..2 {
        for (cache, code) in [(&full, 0), (&empty, 1)] {
            std::env::set_var("HF_HUB_CACHE", cache);
            let logits = ["logits", "--quiet", "--tokens", "1", "-m", "some/model"];
            assert_eq!(main(&logits), code, "{}", cache.display());
        }
    }
}
