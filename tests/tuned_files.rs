//! Tuned initial states on the command line: `--load-state` of every command that has it, black box. Each is compared with
//! the same command on a model file that brings the state itself.

#[path = "common/command.rs"]
mod command;
mod common;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use command::{run, run_with_stdin, stderr, stdout};
use common::{golden, ids, json, repository};
use serde_json::Value;

/// A base model, its tuned state, a model file with both, and a vocabulary of single bytes, which the golden model
/// lacks.
struct Files {
    folder: tempfile::TempDir,
    base: String,
    state: String,
    merged: String,
    vocabulary: String,
}

fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| text(&folder.path().join(name));
        let mut lines = String::new();
        for byte in 0..=255u8 {
            writeln!(lines, "{} b'\\x{byte:02x}' 1", u32::from(byte) + 1).expect("a string");
        }
        fs::write(path("vocabulary.txt"), lines).expect("can be written");
        let base = golden("v7-pth").join("model.pth");
        let state = repository("tests/fixtures/tuned/time_state.pth");
        let model = rwkv_edge::Model::open(&base, &rwkv_edge::Options::new()).expect("a fixture");
        let tuned = model.with_initial_state(&state).expect("a fixture");
        let merged = path("merged.model");
        tuned.save(&merged, &mut |_| {}).expect("can be written");
        Files {
            base: text(&base),
            state: text(&state),
            merged,
            vocabulary: path("vocabulary.txt"),
            folder,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What a command says on its own with the base, with the base and the state, and with the model file.
    fn three(&self, args: &[&str], stdin: &str) -> [String; 3] {
        let told = |model: &[&str]| {
            let (name, rest) = args.split_first().expect("a command");
            let name = name.split(' ');
            let tokenizer = ["--tokenizer", &self.vocabulary];
            let args = name.chain(["-m"]).chain(model.iter().copied());
            let args = args.chain(tokenizer).chain(rest.iter().copied());
            stdout(&run_with_stdin(args, stdin.as_bytes()))
        };
        [
            told(&[&self.base]),
            told(&[&self.base, "--load-state", &self.state]),
            told(&[&self.merged]),
        ]
    }
}

/// The numbers of a JSON report that do not depend on time.
fn without_times(report: &str) -> Value {
    let mut value: Value = serde_json::from_str(report).expect("JSON");
    let object = value.as_object_mut().expect("an object");
    object.retain(|name, _| !name.contains("_per_s") && !name.contains("bytes"));
    value
}

#[test]
fn every_command_begins_with_it() {
    let files = Files::new();
    let lines = files.path("lines");
    fs::write(&lines, "What is a state?\nIt is all that is left.\n").expect("can be written");
    let lines = text(&lines);
    let passages = files.path("passages");
    fs::write(&passages, "{\"text\": \"all that is left\"}\n").expect("can be written");
    let passages = text(&passages);
    for (args, is_report) in [
        (&["generate", "-n", "12", "--ignore-eos", "Once"][..], false),
        (&["logits", "--tokens", "3,1,4", "--json"], false),
        (&["embed", "--file", &lines], false),
        (&["embed", "--from", "state:1", "--file", &lines], false),
        (&["perplexity", "--json", &lines], true),
        (&["perplexity", "--json", "--window", "8", &lines], true),
        (&["eval lambada", "--json", &passages], true),
    ] {
        let [base, given, merged] = files.three(args, "");
        let [base, given, merged] = match is_report {
            true => [base, given, merged].map(|report| without_times(&report)),
            false => [base, given, merged].map(Value::String),
        };
        assert_eq!(given, merged, "{args:?}");
        assert_ne!(given, base, "{args:?}");
    }
}

#[test]
fn greedy_tokens_are_those_of_the_golden_file() {
    let files = Files::new();
    let expected = json(repository("tests/fixtures/tuned/expected_time_state.json"));
    let tokens = ids(&expected["greedy_ids"]);
    let n_prompt = expected["greedy_prompt_len"].as_u64().expect("a length") as usize;
    let prompt: Vec<String> = tokens[..n_prompt].iter().map(u32::to_string).collect();
    let n = (tokens.len() - n_prompt).to_string();
    let args = [
        "--tokens",
        &prompt.join(","),
        "-n",
        &n,
        "--ignore-eos",
        "--json",
        "-q",
        "f32",
    ];
    let model = ["generate", "-m", &files.base, "--load-state", &files.state];
    let output = run(model.iter().chain(&args));
    let report: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert_eq!(ids(&report["tokens"]), tokens[n_prompt..]);
}

#[test]
fn a_chat_comes_back_to_it() {
    let files = Files::new();
    let chat = |args: &[&str], input: &str| {
        let fixed = [
            "--template",
            "plain",
            "-n",
            "8",
            "--tokenizer",
            &files.vocabulary,
        ];
        let args = ["chat"].iter().chain(args).chain(&fixed);
        run_with_stdin(args, input.as_bytes())
    };
    let base = ["-m", &files.base];
    let given = ["-m", &files.base, "--load-state", &files.state];
    let merged = ["-m", &files.merged];
    for input in [
        "Hi\n/reset\nHi\nand\n",
        "Hi\n/system Be.\nHi\n/reset\nHi\n/undo\n/undo\n/undo\nHi\n",
    ] {
        let [base, given, merged] = [&base[..], &given, &merged].map(|args| chat(args, input));
        assert!(stderr(&given).contains("a tuned initial state"));
        assert_eq!(stdout(&given), stdout(&merged), "{input}");
        assert_ne!(stdout(&given), stdout(&base), "{input}");
    }
    // A system text goes behind it, also one whose state is kept, which is none of the untuned model.
    let system = ["--system", "Be brief.", "--cache-prompt"];
    let model = files.path("copy.pth");
    fs::copy(&files.base, &model).expect("can be copied");
    let copy = ["-m", &text(&model)];
    let untuned = chat(&[&copy[..], &system].concat(), "Hi\n");
    for _ in 0..2 {
        let tuned = [&copy[..], &given[2..], &system].concat();
        let tuned = stdout(&chat(&tuned, "Hi\n"));
        assert_eq!(
            tuned,
            stdout(&chat(&[&merged[..], &system[..2]].concat(), "Hi\n"))
        );
        assert_ne!(tuned, stdout(&untuned));
    }
    // Loaded in the middle of a conversation it begins a new one; undoing that brings the other back, and all of it.
    let load = format!(
        "Hi\n/load {}\nHi\n/reset\nHi\n/undo\n/undo\n/undo\n/undo\nHo\n/reset\nHi\n",
        files.state
    );
    let found = stdout(&chat(&base, &load));
    let found: Vec<&str> = found.lines().collect();
    let of = |args: &[&str], input: &str| stdout(&chat(args, input));
    let (untuned, tuned) = (of(&base, "Hi\nHo\n"), of(&given, "Hi\n"));
    let untuned: Vec<&str> = untuned.lines().collect();
    let tuned = tuned.trim_end();
    assert_eq!(found, [untuned[0], tuned, tuned, untuned[1], untuned[0]]);
    // Saved and loaded in one chat it still goes back to the tuned state.
    let saved = text(&files.path("talk"));
    let found = of(
        &given,
        &format!("Hi\n/save {saved}\n/load {saved}\n/reset\nHi\n"),
    );
    assert_eq!(found.lines().collect::<Vec<_>>(), [tuned, tuned]);
    // A saved conversation has its system text.
    let refused = chat(
        &["-m", &files.base, "--load-state", &saved, "--system", "a"],
        "",
    );
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
}

#[test]
fn what_does_not_fit_is_refused() {
    let files = Files::new();
    let demo = text(&golden("small-safetensors"));
    for (args, words) in [
        (
            vec![
                "logits",
                "-m",
                &demo,
                "--tokens",
                "1",
                "--load-state",
                &files.state,
            ],
            "RWKV-4",
        ),
        (
            vec![
                "generate",
                "-m",
                &demo,
                "--tokens",
                "1",
                "--load-state",
                &files.state,
            ],
            "RWKV-4",
        ),
        (
            vec!["logits", "-m", &files.state, "--tokens", "1"],
            "--load-state",
        ),
        (
            vec![
                "logits",
                "-m",
                &files.base,
                "--tokens",
                "1",
                "--load-state",
                &files.base,
            ],
            "time_state",
        ),
        (
            vec![
                "logits",
                "-m",
                &files.base,
                "--tokens",
                "1",
                "--load-state",
                &files.vocabulary,
            ],
            "not a tuned",
        ),
    ] {
        let output = run(&args);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains(words), "{args:?}: {said}");
    }
    let info = run(["info", "-m", &files.merged]);
    assert!(stdout(&info).contains("the empty one is tuned"));
}
