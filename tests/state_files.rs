//! Saved states through the binary: a text goes on as if it had never stopped, files are written whole or
//! not at all, and what is no state of the model is refused and loses nothing.

#[path = "common/command.rs"]
mod command;
mod common;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use command::{command, run, stderr, stdout};
use common::golden;

const PROMPT: &str = "The borrow checker";
const QUANTS: [&str; 3] = ["f32", "f16", "int8"];

fn text(path: &Path) -> String {
    path.to_str().expect("test paths are UTF-8").to_owned()
}

/// Greedy text of so many tokens in f32, f16 or int8.
fn generate(quant: &str, args: &[&str]) -> String {
    let first = ["--quant", quant, "--no-echo", "--ignore-eos"];
    stdout(&run(first.iter().chain(args)))
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).expect("readable");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("readable").file_name();
    let mut names: Vec<_> = names
        .map(|entry| name(entry).to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The beginning of one: what is no state is not replaced by one.
const OLDER_STATE: &str = "RWKVST\0 and so on";

#[test]
fn greedy_text_goes_on_as_if_it_had_never_stopped() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = text(&folder.path().join("state"));
    for quant in QUANTS {
        let whole = generate(quant, &["-n", "48", PROMPT]);
        for n in [0, 1, 17, 48] {
            let (first, second) = (n.to_string(), (48 - n).to_string());
            let first = generate(quant, &["-n", &first, PROMPT, "--save-state", &state]);
            let second = generate(quant, &["-n", &second, "--load-state", &state]);
            assert_eq!(first + &second, whole, "{quant}, stopped after {n} tokens");
        }
        // Stopped again and again, each time in the same file.
        let mut pieces = generate(quant, &["-n", "0", PROMPT, "--save-state", &state]);
        for _ in 0..3 {
            let args = ["-n", "16", "--load-state", &state, "--save-state", &state];
            pieces += &generate(quant, &args);
        }
        assert_eq!(pieces, whole, "{quant}, in pieces");
    }
    assert_eq!(names(folder.path()), ["state"], "nothing temporary is left");
}

/// A model file that is cut while it is used is an error, and what would have been written is not.
#[cfg(target_os = "linux")]
#[test]
fn a_model_that_shrinks_leaves_no_state() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, state) = (folder.path().join("model"), folder.path().join("state"));
    for quant in ["int8", "f16"] {
        let output = run(["quantize", "--quant", quant, "-o", &text(&model)]);
        assert!(output.status.success(), "{}", stderr(&output));
        let args = ["-n", "1000000", "--ignore-eos", "--no-echo", PROMPT];
        let mut child = command()
            .args(["--model", &text(&model), "--save-state", &text(&state)])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut first = [0];
        let stdout = child.stdout.as_mut().expect("was asked for");
        stdout.read_exact(&mut first).expect("some text");
        let file = fs::OpenOptions::new().write(true).open(&model);
        file.and_then(|file| file.set_len(4096)).expect("is cut");
        let output = child.wait_with_output().expect("ends");
        let (code, said) = (output.status.code(), stderr(&output));
        assert_eq!(code, Some(1), "{quant}: {:?}: {said}", output.status);
        let expected = format!("rwkv-edge: {}: the file shrank", text(&model));
        assert!(said.starts_with(&expected), "{quant}: {said}");
        assert_eq!(said.lines().count(), 1, "{quant}: {said}");
        assert_eq!(names(folder.path()), ["model"], "{quant}");
    }
}

#[test]
fn a_prompt_may_be_read_in_two_pieces() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = text(&folder.path().join("state"));
    // By token ids: a text cut in two may become other tokens.
    let tokens = stdout(&run([
        "tokenize",
        "A trait is a collection of methods that",
    ]));
    let tokens: Vec<_> = tokens.trim().split(',').collect();
    for quant in QUANTS {
        let whole = generate(quant, &["-n", "30", "--tokens", &tokens.join(",")]);
        for at in [1, tokens.len() / 2, tokens.len() - 1] {
            let (first, second) = (tokens[..at].join(","), tokens[at..].join(","));
            generate(
                quant,
                &["-n", "0", "--tokens", &first, "--save-state", &state],
            );
            let args = ["-n", "30", "--tokens", &second, "--load-state", &state];
            assert_eq!(generate(quant, &args), whole, "{quant}, cut at {at}");
        }
    }
}

#[test]
fn a_state_goes_on_in_every_other_quantisation() {
    let folder = tempfile::tempdir().expect("a folder");
    // Greedy continuations of this prompt are the same in f32, f16 and int8, so the resumed ones must be.
    let prompt = "Ownership is";
    let whole = generate("f32", &["-n", "30", prompt]);
    for from in QUANTS {
        assert_eq!(generate(from, &["-n", "30", prompt]), whole, "{from}");
        let state = text(&folder.path().join(from));
        let first = generate(from, &["-n", "13", prompt, "--save-state", &state]);
        for to in QUANTS {
            let second = generate(to, &["-n", "17", "--load-state", &state]);
            assert_eq!(first.clone() + &second, whole, "{from} to {to}");
        }
    }
    // And in a model file of its own.
    let file = text(&folder.path().join("demo.safetensors"));
    stdout(&run(["quantize", "--quant", "int8", "-o", &file]));
    let state = text(&folder.path().join("f32"));
    let args = ["--no-echo", "--ignore-eos", "-n", "17", "-m", &file];
    let second = stdout(&run(args.iter().chain(&["--load-state", &state])));
    assert!(whole.ends_with(&second) && !second.is_empty());
}

#[test]
fn feeding_nothing_saves_the_same_state() {
    let folder = tempfile::tempdir().expect("a folder");
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    generate("int8", &["-n", "5", PROMPT, "--save-state", &text(&a)]);
    let args = [
        "-n",
        "0",
        "--load-state",
        &text(&a),
        "--save-state",
        &text(&b),
    ];
    assert_eq!(generate("int8", &args), "");
    let read = |path: &PathBuf| fs::read(path).expect("just written");
    assert!(read(&a) == read(&b));
    // 8 layers of 2 vectors of 256 numbers and 4 heads of 64 times 64, 4096 logits, and a header: not a byte more for
    // more tokens.
    let n_state = 8 * (2 * 256 + 4 * 64 * 64);
    assert_eq!(read(&a).len(), 72 + 4 * (n_state + 4096));
}

#[test]
fn sampling_begins_anew_and_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = text(&folder.path().join("state"));
    generate("int8", &["-n", "5", PROMPT, "--save-state", &state]);
    let resume = |args: &[&str]| {
        let first = ["-n", "10", "--load-state", &state];
        run(first.iter().chain(args))
    };
    for args in [
        &["--temperature", "1", "--seed", "3"][..],
        &["--presence-penalty", "0.5"],
        &["--frequency-penalty", "-0.5"],
        &["--repetition-penalty", "1.2"],
    ] {
        let output = resume(args);
        assert!(stderr(&output).contains("begin anew"), "{args:?}");
        assert_eq!(stderr(&output).lines().count(), 1);
        let quiet = resume(&[args, &["--quiet"]].concat());
        assert_eq!(stderr(&quiet), "");
        assert_eq!(stdout(&quiet), stdout(&output), "the same seed");
    }
    assert_eq!(stderr(&resume(&[])), "", "greedy text simply goes on");
    let help = stdout(&run(["generate", "--help"]));
    assert!(help.contains("begin anew"));
}

/// Everything in a folder, to be compared later.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |name: String| {
        let bytes = fs::read(folder.join(&name)).unwrap_or_default();
        (name, bytes)
    };
    names(folder).into_iter().map(read).collect()
}

#[test]
fn what_is_no_state_of_the_model_is_refused_and_nothing_is_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| text(&folder.path().join(name));
    let good_path = path("good");
    generate("int8", &["-n", "5", PROMPT, "--save-state", &good_path]);
    let good = fs::read(&good_path).expect("just written");
    let logits_at = good.len() - 4 * 4096;
    for (file, name) in [("other", "v7-hf"), ("older", "odd-bin")] {
        let (model, file) = (text(&golden(name)), path(file));
        let args = ["-m", &model, "--tokens", "1,2", "-n", "0"];
        stdout(&run([&args[..], &["--save-state", &file]].concat()));
    }

    let mut cases: Vec<(String, Vec<u8>, &str)> = vec![
        ("empty".into(), Vec::new(), "not a saved state"),
        (
            "text".into(),
            b"once upon a time".repeat(10),
            "not a saved state",
        ),
        ("padded".into(), [&good[..], b"\0"].concat(), "padded"),
        ("twice".into(), good.repeat(2), "padded"),
    ];
    for size in [
        1,
        47,
        48,
        63,
        64,
        65,
        71,
        72,
        73,
        1000,
        logits_at,
        good.len() - 1,
    ] {
        let words = if size < 48 {
            "not a saved state"
        } else {
            "cut"
        };
        cases.push((format!("cut to {size}"), good[..size].to_vec(), words));
    }
    for (what, at, words) in [
        ("magic", 0, "not a saved state"),
        ("version", 7, "version"),
        ("fingerprint", 8, "another model"),
        ("end of the fingerprint", 15, "another model"),
        ("checksum", 16, "checksum"),
        ("end of the checksum", 23, "checksum"),
        ("architecture", 24, "expected one of rwkv-7"),
        ("what stands behind its name", 39, "expected one of rwkv-7"),
        ("layers", 40, "layers"),
        ("number of logits", 44, "logits"),
        ("number of tokens", 48, "checksum"),
        ("number of numbers", 56, "numbers"),
        ("second fingerprint", 64, "another model"),
        ("end of the second fingerprint", 71, "another model"),
        ("first number", 72, "checksum"),
        ("middle", good.len() / 2, "checksum"),
        ("last number of the state", logits_at - 1, "checksum"),
        ("first logit", logits_at, "checksum"),
        ("last byte", good.len() - 1, "checksum"),
    ] {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        cases.push((format!("a bit of the {what}"), bad, words));
    }
    fs::create_dir(path("folder")).expect("can be made");
    fs::write(path("kept"), OLDER_STATE).expect("can be written");
    let mut failures = Vec::new();
    let mut refuse = |what: &str, file: &str, words: &str| {
        let before = contents(folder.path());
        let output = run([
            "--quant",
            "int8",
            "-n",
            "5",
            "--load-state",
            file,
            "--save-state",
            &path("kept"),
            "on",
        ]);
        let said = stderr(&output);
        let good = output.status.code() == Some(1)
            && output.stdout.is_empty()
            && said.lines().count() == 1
            && said.contains(file)
            && said.contains(words)
            && contents(folder.path()) == before;
        if !good {
            failures.push(format!("{what}: {output:?}"));
        }
    };
    for (what, bytes, words) in &cases {
        let file = path("case");
        fs::write(&file, bytes).expect("can be written");
        refuse(what, &file, words);
    }
    refuse("of another model", &path("other"), "another model");
    refuse("of RWKV-4", &path("older"), "expected one of rwkv-7");
    refuse("a folder", &path("folder"), "directory");
    refuse("no file", &path("nothing"), "cannot read");
    refuse("an endless device", "/dev/zero", "not a saved state");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(cases.len() > 25);
    // The good one still is.
    generate("int8", &["-n", "5", "--load-state", &good_path]);
}

#[test]
fn a_state_replaces_an_older_one_whole_or_not_at_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let (state, link) = (folder.path().join("state"), folder.path().join("link"));
    fs::write(&state, OLDER_STATE).expect("can be written");
    // A second name of the same file shows whether it is rewritten in place.
    fs::hard_link(&state, &link).expect("can be made");
    generate("int8", &["-n", "3", PROMPT, "--save-state", &text(&state)]);
    assert_eq!(fs::read(&link).expect("there"), OLDER_STATE.as_bytes());
    assert!(fs::read(&state).expect("there").starts_with(b"RWKVST"));
    assert_eq!(names(folder.path()), ["link", "state"]);

    // Where it cannot be written, that is said before anything is read or printed.
    let missing = text(&folder.path().join("missing/state"));
    let folder_path = text(folder.path());
    for target in [&missing, &folder_path, "/dev/null"] {
        let output = run(["-n", "3", PROMPT, "--save-state", target]);
        let said = stderr(&output);
        assert_eq!(
            (output.status.code(), &output.stdout[..]),
            (Some(1), &b""[..])
        );
        assert!(said.contains(target) && said.lines().count() == 1, "{said}");
    }
    assert_eq!(names(folder.path()), ["link", "state"]);
}

#[test]
fn a_killed_program_leaves_the_older_state() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("state");
    fs::write(&state, OLDER_STATE).expect("can be written");
    let mut child = command()
        .args([
            "-n",
            "1000000",
            "--ignore-eos",
            "A",
            "--save-state",
            &text(&state),
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut first = [0; 8];
    let mut pipe = child.stdout.take().expect("was asked for");
    pipe.read_exact(&mut first).expect("there is text");
    child.kill().expect("runs");
    child.wait().expect("ends");
    assert_eq!(fs::read(&state).expect("there"), OLDER_STATE.as_bytes());
    assert_eq!(names(folder.path()), ["state"]);
}

#[test]
fn a_reader_that_goes_away_loses_no_state() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("state");
    let mut child = command()
        .args([
            "-n",
            "2000",
            "--ignore-eos",
            PROMPT,
            "--save-state",
            &text(&state),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    drop(child.stdout.take());
    let output: Output = child.wait_with_output().expect("ends");
    assert_eq!(
        (output.status.code(), stderr(&output)),
        (Some(0), String::new())
    );
    assert!(!generate("f16", &["-n", "5", "--load-state", &text(&state)]).is_empty());
}
