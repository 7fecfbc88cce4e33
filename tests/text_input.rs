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

/// A text without spaces needs memory for all of it, and the limit that an error names is enough.
#[test]
fn tokenize_keeps_to_its_memory() {
    let text = "a".repeat(400_000);
    let tokenize = |limit: &str| {
        let args = ["tokenize", "--json", "--max-memory", limit];
        run_with_stdin(args, text.as_bytes())
    };
    let output = tokenize("100MB");
    let words = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("400000 bytes of text"), "{words}");
    let total = words.split_once("takes ").expect("a size").1;
    let total = total.split_once(' ').expect("a size").0;
    let ids = stdout(&tokenize(total));
    assert_eq!(
        ids,
        stdout(&run_with_stdin(["tokenize", "--json"], text.as_bytes()))
    );
    for args in [&["tokenize"][..], &["tokenize", "-d"]] {
        let output = run(args.iter().chain(&["5", "--max-memory", "1M"]));
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(
            stderr(&output).contains("expected at most 1048576"),
            "{args:?}"
        );
    }
}

/// Ids are read as they come.
#[test]
fn decoding_needs_no_end() {
    let ids = stdout(&run(["tokenize", "Ownership is \"a\" set\n of rules"]));
    let many = format!("{} ", ids.trim()).repeat(20_000);
    let folder = tempfile::tempdir().expect("a folder");
    // Not by stdin: text comes out before all ids are in, and nobody would read it.
    let file = folder.path().join("ids");
    let file = file.to_str().expect("test paths are UTF-8");
    fs::write(file, many).expect("room on the disk");
    let text = stdout(&run(["tokenize", "-d", "--file", file]));
    assert_eq!(text, "Ownership is \"a\" set\n of rules".repeat(20_000));
    let json = stdout(&run(["tokenize", "-d", "--json", "--file", file]));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["text"], text);
    let output = run_with_stdin(["tokenize", "-d"], &vec![0; 1 << 20]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("is not a token id"));
}

/// Of what has no end only so much is read.
#[cfg(unix)]
#[test]
fn a_chat_reads_no_more_than_a_message() {
    let endless = vec![b'a'; (16 << 20) + 1];
    let output = run_with_stdin(["chat"], &endless);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("a message of more than"));
    let output = run(["chat", "--system-file", "/dev/zero"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("of a system text"));
}
