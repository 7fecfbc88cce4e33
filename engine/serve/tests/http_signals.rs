//! Signals, which concern the whole process, so that there is one test alone in it.

#![cfg(unix)]
#![allow(clippy::unwrap_used, dead_code)]

use std::fs;
use std::process::Command;
use std::time::Duration;

use tempfile::NamedTempFile;

#[path = "http/support.rs"]
mod support;

use support::{start_with, until, Script};

fn signal(name: &str) {
    let sent = Command::new("kill")
        .args([name, &std::process::id().to_string()])
        .status();
    assert!(sent.unwrap().success());
}

#[test]
fn keys_are_read_again_and_answers_end_before_the_server() {
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), "ann the-first-key\n").unwrap();
    let script = Script::Slowly(" a b c d e f", Duration::from_millis(50));
    let mut server = start_with(script, |config| {
        config.signals = true;
        config.api_key_file = Some(file.path().to_owned());
    });
    let ask = |key: &str| {
        let header = format!("Bearer {key}");
        server
            .ask("GET", "/v1/models", &[("Authorization", &header)], b"")
            .status
    };
    let is_logged = |part: &str| {
        server
            .lines
            .lock()
            .unwrap()
            .iter()
            .any(|line| line.contains(part))
    };
    assert_eq!((ask("the-first-key"), ask("the-second-key")), (200, 401));
    fs::write(file.path(), "ann the-second-key\n").unwrap();
    signal("-HUP");
    until("the keys were read", || {
        is_logged("API keys were read again: 1")
    });
    assert_eq!((ask("the-first-key"), ask("the-second-key")), (401, 200));
    // A file that is none changes nothing.
    fs::write(file.path(), "").unwrap();
    signal("-HUP");
    until("it was refused", || is_logged("API keys stay as they were"));
    assert_eq!(ask("the-second-key"), 200);
    let body = br#"{"prompt": "x", "stream": true}"#;
    let answer = std::thread::scope(|scope| {
        let header = ("Authorization", "Bearer the-second-key");
        let server = &server;
        let asking = scope.spawn(move || server.ask("POST", "/v1/completions", &[header], body));
        until("it has begun", || {
            !server.fake.seen.lock().unwrap().is_empty()
        });
        signal("-TERM");
        asking.join().unwrap()
    });
    assert!(answer.text().ends_with("data: [DONE]\n\n"));
    server.wait();
    assert!(server
        .lines
        .lock()
        .unwrap()
        .iter()
        .any(|line| line.contains("the server ends")));
}
