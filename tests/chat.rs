//! `rwkv-edge chat`, black box: lines in, answers out, and what is saved. Answers and states are
//! compared with what the library computes for the conversation written out.

#![allow(clippy::unwrap_used)]

#[path = "common/command.rs"]
mod command;
mod common;
#[path = "chat/files.rs"]
mod files;
#[path = "chat/own_template.rs"]
mod own_template;
#[cfg(unix)]
#[path = "chat/terminal.rs"]
mod terminal;
#[path = "common/tiny.rs"]
mod tiny;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use command::{command, stderr, stdout};
use common::{golden, open, repository};
use rwkv_edge::{Model, Quant, Session, State};
use serde_json::Value;

/// Runs a chat with these lines on stdin, in folders of its own.
struct Chat {
    folder: tempfile::TempDir,
}

impl Chat {
    fn new() -> Self {
        Chat {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text_path(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// With the demo model in int8, unless the arguments say which.
    fn run(&self, args: &[&str], input: &str) -> Output {
        let mut command = command();
        command.arg("chat").args(["--quant", "int8"]).args(args);
        self.feed(command, input)
    }

    fn feed(&self, mut command: std::process::Command, input: &str) -> Output {
        command
            .env_remove("RWKV_EDGE_CACHE")
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("XDG_STATE_HOME", self.path("state"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        // A program that fails early does not read its input.
        let _ = pipe.write_all(input.as_bytes());
        drop(pipe);
        child.wait_with_output().unwrap()
    }

    /// Of a chat that succeeds.
    fn answers(&self, args: &[&str], input: &str) -> String {
        stdout(&self.run(args, input))
    }
}

fn demo() -> Model {
    open(repository("cli/demo"), Quant::Int8, 1)
}

fn encode(model: &Model, text: &str) -> Vec<u32> {
    model.tokenizer().unwrap().encode(text).unwrap()
}

fn feed(session: &mut Session, text: &str) {
    let tokens = encode(session.model(), text);
    session.eval(&tokens).unwrap();
}

/// Greedy text up to and with the token that completes `stop`, at most `n_max` tokens. It begins with a
/// word: before there is one, neither the end of text nor line breaks are taken.
fn greedy(session: &mut Session, stop: &str, n_max: usize) -> String {
    let model = session.model().clone();
    let tokenizer = model.tokenizer().unwrap();
    let mut tokens = Vec::new();
    loop {
        let text = tokenizer.decode(&tokens).unwrap();
        if tokens.len() == n_max || text.contains(stop) {
            return text;
        }
        let logits = session.logits().unwrap();
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let logit = |id: u32| logits[id as usize];
        ids.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)).then(a.cmp(&b)));
        let may_begin = |id: u32| {
            let token = tokenizer.decode(&[id]).unwrap();
            id != 0 && !(token.contains('\n') && token.trim().is_empty())
        };
        let next = ids
            .into_iter()
            .find(|&id| !text.trim().is_empty() || may_begin(id));
        tokens.push(next.unwrap());
        session.eval(&tokens[tokens.len() - 1..]).unwrap();
    }
}

fn load(model: &Model, path: &Path) -> State {
    let mut state = model.new_state();
    state.load(path).unwrap();
    state
}

#[test]
fn answers_and_states_are_those_of_the_conversation_written_out() {
    let (chat, model) = (Chat::new(), demo());
    let path = chat.text_path("talk");
    let system = "Notes about the Rust language.\n\nAll of them are true.";
    let messages = [
        "What does the borrow checker do?",
        "A trait is",
        "And what is a slice?",
    ];
    for (template, user, assistant) in [
        ("raven", "Bob: ", "\n\nAlice:"),
        ("world", "User: ", "\n\nAssistant:"),
        ("qa", "Question: ", "\n\nAnswer:"),
        ("Ann/Robot", "Ann: ", "\n\nRobot:"),
        ("plain", "", ""),
    ] {
        let mut session = model.session();
        let read = match template {
            "world" => "System: Notes about the Rust language.\nAll of them are true.\n\n".into(),
            _ => format!("{system}\n\n"),
        };
        feed(&mut session, &read);
        let mut expected = String::new();
        for message in messages {
            feed(&mut session, &format!("{user}{message}{assistant}"));
            let text = greedy(&mut session, "\n\n", 1000);
            let (answer, rest) = text.split_once("\n\n").unwrap();
            assert!(
                !answer.trim().is_empty() && rest.is_empty(),
                "{template}: {text:?}"
            );
            expected += &format!("{}\n", answer.trim());
        }
        let args = [
            "--template",
            template,
            "--system",
            system,
            "--save-state",
            &path,
        ];
        let found = chat.run(&args, &messages.join("\n"));
        assert_eq!(stdout(&found), expected, "{template}");
        assert!(
            stderr(&found).starts_with(&path),
            "only what was saved: {}",
            stderr(&found)
        );
        assert!(
            load(&model, Path::new(&path)) == *session.state(),
            "{template}"
        );
    }
}

/// The state is that behind the text shown and a blank line, whatever ended the answer.
#[test]
fn answers_that_are_cut_end_their_turn_all_the_same() {
    let (chat, model) = (Chat::new(), demo());
    let path = chat.text_path("talk");
    let save = |args: &[&str]| {
        let args = [args, &["--save-state", &path]].concat();
        let answer = stdout(&chat.run(&args, "Ownership is\n"));
        (answer, load(&model, Path::new(&path)))
    };
    let mut session = model.session();
    feed(&mut session, "Ownership is");
    let text = greedy(&mut session, "\n\n", 4);
    feed(&mut session, "\n\n");
    let (answer, state) = save(&["-n", "4"]);
    assert_eq!(answer, format!("{}\n", text.trim()));
    assert!(state == *session.state());

    // A stop text in the middle of what was drawn: what is behind it was never said.
    let (answer, state) = save(&["--stop", "rules"]);
    assert_eq!(answer, "a bit more complicated than the ownership \n");
    let mut session = model.session();
    feed(&mut session, "Ownership is");
    feed(
        &mut session,
        " a bit more complicated than the ownership \n\n",
    );
    assert!(state == *session.state());
}

#[test]
fn undo_retry_and_reset_go_back_and_forth() {
    let (chat, model) = (Chat::new(), demo());
    let path = chat.text_path("talk");
    let [a, b] = ["Ownership is", "The borrow checker"];
    let one = chat.answers(&[], a);
    let both = chat.answers(&[], &format!("{a}\n{b}"));
    let second = both.strip_prefix(&one).unwrap();
    assert_ne!(
        second,
        chat.answers(&[], b),
        "the conversation so far matters"
    );
    for (lines, expected) in [
        (vec![a, b, "/undo", b], format!("{both}{second}")),
        (vec![a, b, "/retry"], format!("{both}{second}")),
        (vec![a, "/reset", a, b], format!("{one}{both}")),
        (vec![a, "/reset", "/undo", b], both.clone()),
        (vec![a, "/system Rust.", "/undo", b], both.clone()),
        (
            vec![a, "/system x", a, "/undo", "/undo", b, "/undo", "/undo", a],
            String::new(),
        ),
    ] {
        let found = chat.answers(&["--save-state", &path], &lines.join("\n"));
        if expected.is_empty() {
            assert!(
                found.ends_with(&format!("{second}{one}")),
                "{lines:?}: {found}"
            );
        } else {
            assert_eq!(found, expected, "{lines:?}");
        }
    }
    chat.answers(&["--save-state", &path], &[a, "/undo"].join("\n"));
    assert!(load(&model, Path::new(&path)) == model.new_state());

    let sampled = ["--temperature", "1", "--seed", "4"];
    let twice = chat.answers(&sampled, &[a, "/retry"].join("\n"));
    assert_eq!(
        twice,
        chat.answers(&sampled, &[a, "/retry"].join("\n")),
        "the seed decides"
    );
    let [first, again] = twice.lines().collect::<Vec<_>>()[..] else {
        panic!("{twice}");
    };
    assert_ne!(first, again, "another seed for each answer");
    assert_eq!(chat.answers(&sampled, a).trim_end(), first);
    let set = [a, "/undo", "/set temperature 1", "/set seed 4", a, "/retry"].join("\n");
    assert_eq!(chat.answers(&[], &set), format!("{one}{twice}"));
    let cut = chat.answers(&[], &["/set max-new-tokens 2", a].join("\n"));
    assert!(
        !cut.trim().is_empty() && one.starts_with(cut.trim()),
        "{cut}"
    );
}

#[test]
fn the_template_is_that_of_the_family() {
    let chat = Chat::new();
    let world = repository("tests/fixtures/tokenizer/world_small.txt");
    let demo = repository("cli/demo/tokenizer.json");
    for (n_vocab, tokenizer, expected) in [
        (65_536, &world, "template world (User/Assistant)"),
        (65_600, &world, "template world (User/Assistant)"),
        (50_277, &demo, "template raven (Bob/Alice)"),
        (50_304, &demo, "template plain"),
    ] {
        let model = tiny::write_model(chat.folder.path(), n_vocab, &[(300, 1.0)]);
        let args = [
            "--model",
            model.to_str().unwrap(),
            "--tokenizer",
            tokenizer.to_str().unwrap(),
        ];
        let said = stderr(&chat.run(&args, "/stats\n"));
        assert!(said.contains(expected), "{n_vocab}: {said}");
        // What is not known is told, and what is known is not worth a word.
        let told = said.contains(&format!(
            "because a vocabulary of {n_vocab} is of no family"
        ));
        assert_eq!(told, expected.ends_with("plain"), "{said}");
        let other = chat.run(&[&args[..], &["--template", "qa"]].concat(), "/stats\n");
        assert!(stderr(&other).contains("template qa (Question/Answer)"));
    }
}

/// Tokens of the World vocabulary: 98 is `a`, 11 a line break, 261 two of them.
const WORLD_A: usize = 98;

#[test]
fn an_answer_begins_with_a_word_and_is_made_of_whole_characters() {
    let chat = Chat::new();
    let world = repository("tests/fixtures/tokenizer/world_small.txt");
    let answer = |favourites: &[(usize, f32)], n: &str| {
        let model = tiny::write_model(chat.folder.path(), 65_536, favourites);
        let args = [
            "--model",
            model.to_str().unwrap(),
            "--tokenizer",
            world.to_str().unwrap(),
        ];
        let found = chat.answers(&[&args[..], &["-n", n, "--json"]].concat(), "Hello\n");
        let found: Value = serde_json::from_str(&found).unwrap();
        (
            found["text"].as_str().unwrap().to_owned(),
            found["ending"].as_str().unwrap().to_owned(),
        )
    };
    let ended = |text: &str, ending: &str| (text.to_owned(), ending.to_owned());
    assert_eq!(answer(&[(WORLD_A, 1.0)], "5"), ended("aaaaa", "length"));
    assert_eq!(
        answer(&[(0, 3.0), (WORLD_A, 1.0)], "5"),
        ended("a", "end_of_text")
    );
    assert_eq!(
        answer(&[(11, 4.0), (0, 3.0), (WORLD_A, 1.0)], "5"),
        ended("a", "stop")
    );
    // 0xe9, again and again: each begins a character that never becomes whole.
    assert_eq!(answer(&[(0xe9 + 1, 1.0)], "1"), ended("", "length"));
    assert_eq!(
        answer(&[(0xe9 + 1, 1.0)], "3"),
        ended("\u{fffd}\u{fffd}", "length")
    );
}

#[test]
fn lines_are_messages_whatever_ends_them() {
    let chat = Chat::new();
    let expected = chat.answers(&[], "Ownership is\nA trait is\n");
    for input in [
        "Ownership is\nA trait is",
        "Ownership is\r\nA trait is\r\n",
        "\n  \nOwnership is  \n\n\tA trait is\n\n",
        "Ownership is\nA trait is\n/quit\nnever said\n",
    ] {
        assert_eq!(chat.answers(&[], input), expected, "{input:?}");
    }
    let first = |input: &str| {
        let found = chat.answers(&["--json"], input);
        let found: Value = serde_json::from_str(found.lines().next().unwrap()).unwrap();
        found["user"].as_str().unwrap().to_owned()
    };
    assert_eq!(first("one\\\ntwo\\\r\nthree\n"), "one\ntwo\nthree");
    assert_eq!(first("one\\"), "one");
    assert_eq!(first("//undo\n"), "/undo");
}

#[test]
fn json_has_an_object_for_every_answer() {
    let chat = Chat::new();
    let text = chat.answers(&[], "Ownership is\nA trait is\n");
    let found = chat.answers(&["--json"], "Ownership is\n/stats\nA trait is\n");
    let objects: Vec<Value> = found
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let answers: Vec<&str> = objects
        .iter()
        .map(|object| object["text"].as_str().unwrap())
        .collect();
    assert_eq!(answers.join("\n") + "\n", text);
    for object in objects {
        assert_eq!(object["ending"], "stop");
        assert!(object["tokens"].as_u64() > Some(2) && object["prompt_tokens"].as_u64() > Some(2));
        assert!(
            object["decode_tokens_per_s"].as_f64() > Some(0.0),
            "{object}"
        );
    }
}

/// Only answers go to a pipe, and with --json thoughts come apart from them.
#[test]
fn thoughts_are_apart_from_answers() {
    let chat = Chat::new();
    let (model, tokenizer) = tiny::write_thinker(chat.folder.path());
    let path = chat.text_path("talk");
    let model = [
        "--model",
        model.to_str().unwrap(),
        "--tokenizer",
        tokenizer.to_str().unwrap(),
    ];
    let run = |args: &[&str], input: &str| {
        let save = ["--save-state", &path];
        chat.answers(&[&model[..], &save, args].concat(), input)
    };
    assert_eq!(run(&[], "Hi\n"), "Yes\n");
    for how in ["on", "short", "long"] {
        assert_eq!(run(&["--think", how], "Hi\n"), "Yes\n\nNo\n");
        let found = run(&["--think", how, "--json"], "Hi\n");
        let found: Value = serde_json::from_str(&found).unwrap();
        assert_eq!(found["thought"], "Ab\n\nc", "{how}");
        assert_eq!(
            (&found["text"], &found["ending"]),
            (&"Yes\n\nNo".into(), &"stop".into())
        );
        let saved: Value =
            serde_json::from_slice(&fs::read(format!("{path}.json")).unwrap()).unwrap();
        assert_eq!(saved["turns"][0]["user"], "Hi");
        assert_eq!(saved["turns"][0]["answer"], "Yes\n\nNo");
    }
    let found = run(&["--json"], "/set think on\nHi\n/set think off\nHi\n");
    let thoughts: Vec<Value> = found
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["thought"].clone())
        .collect();
    assert_eq!(thoughts, [Value::from("Ab\n\nc"), Value::Null]);
    let output = chat.run(&["--think", "on"], "");
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("template plain has no thoughts"), "{said}");
}

#[test]
fn what_cannot_be_done_ends_a_script() {
    let chat = Chat::new();
    let odd = golden("odd-bin");
    let odd = odd.to_str().unwrap();
    for (args, input, code, part) in [
        (
            &[][..],
            "/set heat 1\n",
            1,
            "no setting heat, expected temperature",
        ),
        (&[], "/set top-p x\n", 1, "top-p x: not such a number"),
        (&[], "/set top-p 2\n", 1, "top_p: 2"),
        (&[], "/undo\n", 1, "nothing to undo"),
        (&[], "/retry\n", 1, "nothing to retry"),
        (&[], "/load /no/such/file\n", 1, "/no/such/file"),
        (&["--model", odd], "hi\n", 1, "no tokenizer"),
        (&["--system-file", "/no/such/file"], "", 1, "/no/such/file"),
        (&["--load-state", "/no/such/file"], "", 1, "/no/such/file"),
        (&["--top-p", "2"], "", 2, "--top-p"),
        (&["--stop", ""], "", 2, "--stop"),
        (&["--template", "x"], "", 2, "expected raven, world"),
        (&["--think", "x"], "", 2, "expected off, on, fake"),
        (&["--system", "a", "--system-file", "b"], "", 2, "--system"),
        (
            &["--system", "a", "--load-state", "b"],
            "",
            2,
            "--load-state",
        ),
    ] {
        let output = chat.run(args, input);
        assert_eq!(output.status.code(), Some(code), "{args:?} {input:?}");
        assert!(output.stdout.is_empty(), "{args:?} {input:?}");
        let said = stderr(&output);
        assert!(
            said.contains(part) && !said.contains("panicked"),
            "{said}: no {part}"
        );
    }
}

/// Nothing was done, so what follows is as it was meant.
#[test]
fn lines_that_say_nothing_are_told_and_passed_over() {
    let chat = Chat::new();
    let expected = chat.answers(&[], "Ownership is\nA trait is\n");
    for (line, part) in [
        ("/frobnicate", "/frobnicate: no such command; /help"),
        ("/undo 3", "/undo takes nothing behind it"),
        ("/save", "/save FILE"),
        ("/set temperature", "/set NAME VALUE"),
    ] {
        let found = chat.run(&[], &format!("Ownership is\n{line}\nA trait is\n"));
        assert_eq!(stdout(&found), expected, "{line}");
        let said = stderr(&found);
        assert!(said.contains(part), "{said}: no {part}");
    }
}

/// A line for every message, and for an empty one a reason.
#[test]
fn answers_that_are_all_thought_say_so() {
    let chat = Chat::new();
    let (model, tokenizer) = tiny::write_thinker(chat.folder.path());
    let model = [
        "--model",
        model.to_str().unwrap(),
        "--tokenizer",
        tokenizer.to_str().unwrap(),
        "--think",
        "on",
    ];
    let found = chat.run(&[&model[..], &["-n", "7"]].concat(), "Hi\n");
    assert_eq!(stdout(&found), "\n");
    let said = stderr(&found);
    let reason = "(no answer: all 7 tokens went into the thought; see --max-new-tokens)";
    assert!(said.contains(reason), "{said}");
    let found = chat.run(&[&model[..], &["--stop", "c"]].concat(), "Hi\n");
    assert_eq!(stdout(&found), "\n");
    let said = stderr(&found);
    let reason = "(an empty answer while it was still thought about";
    assert!(said.contains(reason), "{said}");
    // JSON says it all, and --quiet is quiet.
    let found = chat.run(&[&model[..], &["-n", "7", "--json"]].concat(), "Hi\n");
    let object: Value = serde_json::from_str(&stdout(&found)).unwrap();
    assert_eq!(object["thought"], "Ab\n\nc</");
    assert!(!stderr(&found).contains("no answer"));
    let found = chat.run(&[&model[..], &["-n", "7", "--quiet"]].concat(), "Hi\n");
    assert_eq!((&*stdout(&found), &*stderr(&found)), ("\n", ""));
}

#[test]
fn a_closed_pipe_is_success() {
    let mut child = command()
        .args(["chat", "--template", "plain"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut pipe = child.stdin.take().unwrap();
    let _ = pipe.write_all("Ownership is\n".repeat(50).as_bytes());
    drop(pipe);
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), stderr(&output)),
        (Some(0), String::new())
    );
}
