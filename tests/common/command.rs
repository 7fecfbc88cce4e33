//! Runs the real binary.
#![allow(dead_code)]

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// Variables that change what the command does or how it looks.
const VARIABLES: [&str; 8] = [
    "RWKV_EDGE_KERNELS",
    "RWKV_EDGE_MODEL",
    "RWKV_EDGE_PLUGIN_PATH",
    "RWKV_EDGE_THREADS",
    "NO_COLOR",
    "CLICOLOR",
    "CLICOLOR_FORCE",
    "COLUMNS",
];

pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rwkv-edge"));
    // Whatever the caller's shell has set.
    for name in VARIABLES {
        command.env_remove(name);
    }
    // A model that is no file is no reason to ask a hub; tests of the hub have their own.
    command.env("HF_HUB_OFFLINE", "1").stdin(Stdio::null());
    command
}

pub fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    command().args(args).output().expect("the binary starts")
}

pub fn run_with_stdin<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>, stdin: &[u8]) -> Output {
    let mut command = command();
    command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let mut pipe = child.stdin.take().expect("was asked for");
    // A program that fails early does not read its input.
    let _ = pipe.write_all(stdin);
    drop(pipe);
    child.wait_with_output().expect("the binary ends")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a successful command printed.
pub fn stdout(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{:?}: {}",
        output.status,
        stderr(output)
    );
    String::from_utf8(output.stdout.clone()).expect("output is UTF-8")
}
