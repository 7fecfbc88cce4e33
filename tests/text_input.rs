//! Where commands take their text from, and what they say when a tokenizer is none.

#[path = "common/command.rs"]
mod command;

use std::fs;
use std::path::Path;

use command::{run, run_with_stdin, stderr, stdout};

/// `-` names stdin for every command that reads a text.
#[test]
fn a_dash_is_stdin() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("text");
    let file = file.to_str().expect("test paths are UTF-8");
    let text = "Ownership is a set of rules.\nA trait is shared behaviour.\n";
    let passages = "{\"text\": \"Ownership is a set of rules\"}\n";
    for (args, text) in [
        (&["generate", "-n", "3", "--file"][..], text),
        (&["tokenize", "--json", "--file"], text),
        (&["tokenize", "--decode", "--file"], "5,6,7"),
        (&["perplexity", "--json"], text),
        (&["embed", "--file"], text),
        (&["eval", "lambada", "--json"], passages),
    ] {
        fs::write(file, text).expect("room on the disk");
        let from_file = stdout(&run(args.iter().chain(&[file])));
        let from_stdin = stdout(&run_with_stdin(args.iter().chain(&["-"]), text.as_bytes()));
        // Speeds differ.
        let without_speed = |output: &str| {
            let (before, _) = output
                .split_once("\"tokens_per_s\"")
                .unwrap_or((output, ""));
            before.to_owned()
        };
        assert_eq!(
            without_speed(&from_stdin),
            without_speed(&from_file),
            "{args:?}"
        );
    }
    let missing = run(["perplexity", "/no/such/file"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("/no/such/file: cannot read"));
    let folder = folder.path().to_str().expect("test paths are UTF-8");
    let unreadable = run(["perplexity", folder]);
    assert_eq!(unreadable.status.code(), Some(1));
    assert!(
        stderr(&unreadable).contains(folder),
        "{}",
        stderr(&unreadable)
    );
}

/// Long outputs are written as they come; what they consist of has not changed.
#[test]
fn json_of_tokens() {
    let ids = stdout(&run(["tokenize", "Ownership is"]));
    let json = stdout(&run(["tokenize", "--json", "Ownership is"]));
    assert_eq!(json, format!("{{\"tokens\":[{}]}}\n", ids.trim_end()));
    let json = stdout(&run(["tokenize", "--json", "--decode", ids.trim_end()]));
    let expected = format!(
        "{{\"text\":\"Ownership is\",\"tokens\":[{}]}}\n",
        ids.trim_end()
    );
    assert_eq!(json, expected);
    assert_eq!(stdout(&run(["tokenize", ""])), "\n");
    let report = stdout(&run(["generate", "--json", "-n", "2", "Ownership is"]));
    let prompt = format!("\"prompt_tokens\":[{}]", ids.trim_end());
    assert!(
        report.contains(&prompt) && report.ends_with("}\n"),
        "{report}"
    );
}

/// What lies where a tokenizer should be is named with its path.
#[test]
fn files_that_are_no_tokenizer_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(demo.join(name), folder.path().join(name)).expect("room on the disk");
    }
    let tokenizer = folder.path().join("tokenizer.json");
    let model = folder.path().to_str().expect("test paths are UTF-8");
    for (content, part) in [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "Git LFS pointer",
        ),
        ("<!doctype html><html><body>404</body></html>", "a web page"),
        ("{\"hello\": 0}", "no `model`"),
        ("{\"decoder\":{", "EOF"),
    ] {
        fs::write(&tokenizer, content).expect("room on the disk");
        for args in [
            ["generate", "--model", model, "hi"],
            ["tokenize", "--model", model, "hi"],
        ] {
            let output = run(args);
            let text = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{text}");
            let path = tokenizer.display().to_string();
            assert!(text.contains(part) && text.contains(&path), "{text}");
            assert_eq!(text.lines().count(), 1, "{text}");
        }
    }
}
