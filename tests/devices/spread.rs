//! The threads of a model that is on several devices as a whole.

use std::collections::BTreeSet;

use super::{refused, with_plugin, PROMPT};
use crate::command::{stderr, stdout};

/// One for each device, for all passes: a thread for every token would cost as much as a small model's token.
#[test]
fn threads_live_as_long_as_their_model() {
    let mut command = with_plugin();
    command
        .env("CPUPLUG_TELL_THREADS", "1")
        .args(["bench", "--device-map", "data-parallel", "-r", "1", "-n"])
        .args(["30", "-p", "8", "--batch", "--sequences", "4"]);
    let output = command.output().expect("the binary starts");
    stdout(&output);
    let text = stderr(&output);
    let passes = text.lines().filter(|line| line.starts_with("forward on "));
    let threads: BTreeSet<&str> = passes.clone().collect();
    assert!(passes.count() > 60, "{text}");
    assert!(threads.len() <= 2, "{threads:?}");
}

/// Before anything has changed, and also where the first pass would need one thread only.
#[test]
fn a_system_without_threads_is_told_when_the_model_is_opened() {
    // No stack of that size can be had.
    let mut command = with_plugin();
    command
        .env("RUST_MIN_STACK", (1_u64 << 60).to_string())
        .args(["--threads", "1", "-n", "1"]);
    let alone = command.args(["--device", "cpuplug", PROMPT]).output();
    stdout(&alone.expect("the binary starts"));
    let mut command = with_plugin();
    command
        .env("RUST_MIN_STACK", (1_u64 << 60).to_string())
        .args(["--threads", "1", "-n", "1", "--device-map"]);
    let output = command.args(["data-parallel", PROMPT]).output();
    refused(
        &output.expect("the binary starts"),
        &["data-parallel: the system gives 1 of 2 threads, one a device"],
    );
}
