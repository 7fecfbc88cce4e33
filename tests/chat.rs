//! `rwkv-edge chat`, black box: lines in, answers out, and what is saved. Answers and states are
//! compared with what the library computes for the conversation written out.

#![allow(clippy::unwrap_used)]

#[path = "common/command.rs"]
mod command;
mod common;
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
            .env("HOME", self.folder.path())
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

    /// The user's cache folder.
    fn cache(&self) -> PathBuf {
        match cfg!(target_os = "macos") {
            true => self.path("Library/Caches"),
            false => self.path("cache"),
        }
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
        feed(&mut session, &format!("{system}\n\n"));
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
    let (answer, state) = save(&["--stop", "problem"]);
    assert_eq!(answer, "therefore not a \n");
    let mut session = model.session();
    feed(&mut session, "Ownership is");
    feed(&mut session, " therefore not a \n\n");
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

/// Greedy, split anywhere, for every kind of weights; and what `generate` makes of the same file.
#[test]
fn saved_conversations_go_on_as_if_nothing_had_been() {
    let chat = Chat::new();
    let path = chat.text_path("my talk.state");
    let lines = [
        "Ownership is",
        "And what is a slice?",
        "A trait is",
        "The borrow checker",
    ];
    for quant in ["int8", "f16", "f32"] {
        let args = ["--quant", quant, "--template", "plain", "-n", "60"];
        let run = |more: &[&str], lines: &[&str]| {
            let mut command = command();
            command.arg("chat").args(args).args(more);
            stdout(&chat.feed(command, &lines.join("\n")))
        };
        let whole = run(&[], &lines);
        for at in 1..4 {
            let save = format!("/save {path}");
            let first = run(&[], &[&lines[..at], &[save.as_str()]].concat());
            let second = run(&["--load-state", &path], &lines[at..]);
            assert_eq!(first + &second, whole, "{quant} {at}");
        }
        let text: Value =
            serde_json::from_slice(&fs::read(format!("{path}.json")).unwrap()).unwrap();
        assert_eq!(text["template"], "plain");
        assert_eq!(text["turns"].as_array().unwrap().len(), 3);
        assert_eq!(text["turns"][2]["user"], lines[2]);
        let generated = command()
            .args([
                "--quant",
                quant,
                "--load-state",
                &path,
                "--no-echo",
                "--stop",
                "\n\n",
                lines[3],
            ])
            .output()
            .unwrap();
        let last = whole.lines().next_back().unwrap();
        assert_eq!(stdout(&generated).trim(), last, "{quant}");
    }
}

#[test]
fn loading_brings_the_text_back_and_says_what_is_missing() {
    let chat = Chat::new();
    let path = chat.text_path("talk");
    let save = format!("/save {path}\n");
    let lines = format!("Hello\nWhat is\na trait?\\\n\nTell me.\n{save}");
    let saved = chat.run(
        &["--template", "Ann/Robot", "--system", "Two talk."],
        &lines,
    );
    let said = stderr(&saved);
    for part in [
        "talk: the state after",
        "talk.json: the text, 4 turns",
        "not kept",
    ] {
        assert!(said.contains(part), "{said}: no {part}");
    }
    // The template comes with the conversation, and /reset with its system text.
    let loaded = chat.run(&["--load-state", &path], "/show\n/reset\n/system\n");
    let said = stderr(&loaded);
    for part in [
        "tokens, 4 turns, Ann/Robot",
        "Two talk.\n\nAnn: Hello\nRobot: ",
        "Ann: Tell me.\n",
    ] {
        assert!(said.contains(part), "{said}: no {part}");
    }
    assert!(said.ends_with("Two talk.\n"), "{said}");
    let sampled = ["--load-state", &path, "--temperature", "1"];
    assert!(stderr(&chat.run(&sampled, "")).contains("seed and penalties start anew"));

    let answer = |input: &str| {
        let found = chat.run(
            &["--template", "Ann/Robot"],
            &format!("/load {path}\n{input}"),
        );
        (stdout(&found), stderr(&found))
    };
    let (expected, _) = answer("And now?\n");
    let json = fs::read(format!("{path}.json")).unwrap();
    let other = String::from_utf8(json.clone())
        .unwrap()
        .replace("\"state_tokens\": ", "\"state_tokens\": 9");
    for (text, reason) in [
        (Some(other.as_bytes()), "talk.json is of another state"),
        (Some(&json[..json.len() / 2]), "talk.json: "),
        (Some(b"{}"), "talk.json: missing field"),
        (None, "without its text: no "),
    ] {
        match text {
            Some(bytes) => fs::write(format!("{path}.json"), bytes).unwrap(),
            None => fs::remove_file(format!("{path}.json")).unwrap(),
        }
        let (found, said) = answer("And now?\n");
        assert_eq!(found, expected, "the state is all that is needed");
        assert!(said.contains(reason), "{said}: no {reason}");
    }
}

#[test]
fn states_that_do_not_belong_are_refused() {
    let chat = Chat::new();
    let path = chat.text_path("talk");
    chat.answers(&["--save-state", &path], "Hello\n");
    let good = fs::read(&path).unwrap();
    let mut flipped = good.clone();
    flipped[300] ^= 1;
    let odd = command()
        .args(["--model", golden("odd-bin").to_str().unwrap()])
        .args([
            "--tokens",
            "1,2,3",
            "-n",
            "0",
            "--save-state",
            &chat.text_path("odd"),
        ])
        .output()
        .unwrap();
    assert!(odd.status.success());
    for (bytes, reason) in [
        (&flipped[..], "damaged"),
        (&good[..good.len() - 1], "bytes, expected"),
        (b"text", "not a saved state"),
        (&fs::read(chat.path("odd")).unwrap(), "another model"),
    ] {
        let bad = chat.text_path("bad");
        fs::write(&bad, bytes).unwrap();
        for (args, input) in [
            (&["--load-state", &bad][..], ""),
            (&[], &*format!("/load {bad}\n")),
        ] {
            let output = chat.run(args, input);
            assert_eq!(output.status.code(), Some(1));
            assert!(
                stderr(&output).contains(reason),
                "{}: no {reason}",
                stderr(&output)
            );
        }
    }
    // A failed save leaves what was there.
    let output = chat.run(
        &[],
        &format!("/save {}\n", chat.text_path("no/such/folder")),
    );
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(fs::read(&path).unwrap(), good);
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn system_texts_are_read_once() {
    let chat = Chat::new();
    let system = fs::read_to_string(repository("cli/demo/validation.txt")).unwrap();
    let system = &system[..3000];
    fs::write(chat.path("system"), system).unwrap();
    let file = chat.text_path("system");
    let input = "Ownership is\n/reset\nOwnership is\n";
    let expected = chat.answers(&["--system-file", &file], input);
    assert!(!chat.cache().exists());
    let cached = ["--system-file", &file, "--cache-prompt"];
    let run = |reported: &[&str]| {
        let output = chat.run(&cached, input);
        assert_eq!(stdout(&output), expected);
        let said = stderr(&output);
        for part in reported {
            assert!(said.contains(part), "{said}: no {part}");
        }
    };
    run(&["tokens, kept in"]);
    let folder = chat.cache().join("rwkv-edge/prompts");
    let [path] = &files(&folder)[..] else {
        panic!("one file expected");
    };
    run(&["tokens, from", path.to_str().unwrap()]);
    // A damaged file is told, and replaced.
    let good = fs::read(path).unwrap();
    let mut bad = good.clone();
    bad[1000] ^= 4;
    fs::write(path, bad).unwrap();
    run(&["damaged", "tokens, kept in"]);
    assert_eq!(fs::read(path).unwrap(), good);
    // Another state of this model in its place.
    let other = chat.text_path("other");
    chat.answers(&["--save-state", &other], "Hello\n");
    fs::copy(&other, path).unwrap();
    run(&["not the state of this text", "tokens, kept in"]);
    // Another text, template or quantisation has another file; also by /system.
    chat.answers(
        &["--cache-prompt", "--system", "Short."],
        "/system Other.\n/system Short.\n",
    );
    assert_eq!(files(&folder).len(), 3);
    let mut f16 = command();
    f16.args([
        "chat",
        "--cache-prompt",
        "--quant",
        "f16",
        "--system",
        "Short.",
    ]);
    assert!(chat.feed(f16, "").status.success());
    assert_eq!(files(&folder).len(), 4);
}

#[test]
fn system_texts_are_kept_beside_the_model_where_that_can_be_written() {
    let chat = Chat::new();
    let model = tiny::write_model(chat.folder.path(), 4096, &[(300, 1.0)]);
    let tokenizer = repository("cli/demo/tokenizer.json");
    let folder = chat.folder.path().to_str().unwrap().to_owned();
    for (place, prefix) in [
        (model.to_str().unwrap(), "model.safetensors.prompt-"),
        (&folder, "prompt-"),
    ] {
        let args = [
            "--model",
            place,
            "--tokenizer",
            tokenizer.to_str().unwrap(),
            "-n",
            "3",
        ];
        let args = [&args[..], &["--system", "Be kind.", "--cache-prompt"]].concat();
        let expected = chat.answers(&args, "Hello\n");
        let is_state = |path: &&PathBuf| {
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with(prefix)
        };
        let kept = files(chat.folder.path())
            .iter()
            .find(is_state)
            .cloned()
            .unwrap();
        let again = chat.run(&args, "Hello\n");
        assert_eq!(stdout(&again), expected);
        assert!(
            stderr(&again).contains(&format!("from {}", kept.display())),
            "{}",
            stderr(&again)
        );
        // A folder of that name cannot be written as a file: the cache folder can.
        fs::remove_file(&kept).unwrap();
        fs::create_dir(&kept).unwrap();
        assert!(!chat.cache().exists());
        assert_eq!(chat.answers(&args, "Hello\n"), expected);
        assert_eq!(files(&chat.cache().join("rwkv-edge/prompts")).len(), 1);
        let again = chat.run(&args, "Hello\n");
        assert!(stderr(&again).contains("from ") && stderr(&again).contains("prompts"));
        fs::remove_dir(&kept).unwrap();
        fs::remove_dir_all(chat.cache()).unwrap();
    }
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

#[test]
fn what_cannot_be_done_ends_a_script() {
    let chat = Chat::new();
    let odd = golden("odd-bin");
    let odd = odd.to_str().unwrap();
    for (args, input, code, part) in [
        (&[][..], "/frobnicate\n", 1, "/frobnicate: no such command"),
        (
            &[],
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
        (&["--top-p", "2"], "", 1, "top_p"),
        (&["--stop", ""], "", 1, "stop text"),
        (&["--template", "x"], "", 2, "expected raven, world"),
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

/// A person at a terminal, as far as a program can be one.
#[cfg(unix)]
mod terminal {
    use super::*;
    use nix::pty::openpty;
    use nix::sys::signal::{kill, Signal};
    use nix::unistd::Pid;
    use std::fs::File;
    use std::io::Read;
    use std::process::Child;

    struct Terminal {
        child: Child,
        /// The keyboard and the screen.
        tty: File,
        screen: Vec<u8>,
        folder: tempfile::TempDir,
    }

    impl Terminal {
        fn start(args: &[&str]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            Self::start_in(folder, args)
        }

        fn start_in(folder: tempfile::TempDir, args: &[&str]) -> Self {
            let pty = openpty(None, None).unwrap();
            let slave = || Stdio::from(pty.slave.try_clone().unwrap());
            let child = command()
                .arg("chat")
                .args(args)
                .env("HOME", folder.path())
                .env("XDG_STATE_HOME", folder.path())
                .env("TERM", "xterm")
                .stdin(slave())
                .stdout(slave())
                .stderr(slave())
                .spawn()
                .unwrap();
            let tty = File::from(pty.master);
            Terminal {
                child,
                tty,
                screen: Vec::new(),
                folder,
            }
        }

        /// Keys reach the editor only once its prompt is there; before, the system's own line editing
        /// would take them.
        fn press(&mut self, keys: &str) {
            self.tty.write_all(keys.as_bytes()).unwrap();
        }

        fn enter(&mut self, prompt: &str, line: &str) {
            self.wait_for(prompt);
            self.press(&format!("{line}\r"));
        }

        /// Reads until this appears on the screen, and forgets all up to it.
        fn wait_for(&mut self, text: &str) -> String {
            loop {
                let size = text.len();
                let found = self
                    .screen
                    .windows(size)
                    .position(|part| part == text.as_bytes());
                if let Some(at) = found {
                    let before: Vec<u8> = self.screen.drain(..at + size).collect();
                    return String::from_utf8_lossy(&before).into_owned();
                }
                let mut piece = [0; 4096];
                let n = self.tty.read(&mut piece).unwrap_or(0);
                let screen = String::from_utf8_lossy(&self.screen);
                assert!(
                    n > 0,
                    "the program ended before {text:?} appeared: {screen}"
                );
                self.screen.extend(&piece[..n]);
            }
        }

        fn interrupt(&self) {
            kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT).unwrap();
        }

        fn end(mut self, prompt: &str) -> tempfile::TempDir {
            self.wait_for(prompt);
            self.press("\x04");
            assert_eq!(self.child.wait().unwrap().code(), Some(0));
            self.folder
        }
    }

    /// The model would go on for a year.
    #[test]
    fn ctrl_c_ends_the_answer_and_not_the_program() {
        let folder = tempfile::tempdir().unwrap();
        let model = tiny::write_model(folder.path(), 65_536, &[(WORLD_A, 1.0)]);
        let world = repository("tests/fixtures/tokenizer/world_small.txt");
        let args = [
            "--model",
            model.to_str().unwrap(),
            "--tokenizer",
            world.to_str().unwrap(),
        ];
        let mut terminal = Terminal::start(&[&args[..], &["-n", "2000000000"]].concat());
        for _ in 0..2 {
            terminal.enter("User: ", "Hello");
            terminal.wait_for("Assistant: aaaaaaaa");
            terminal.interrupt();
            terminal.wait_for("(interrupted; /undo takes the turn back)");
        }
        // What there was of the answers is part of the conversation.
        terminal.enter("User: ", "/show");
        for _ in 0..2 {
            terminal.wait_for("User: Hello\r\nAssistant: aaaaaaaa");
        }
        terminal.enter("User: ", "/undo");
        terminal.wait_for("taken back: Hello");
        terminal.enter("User: ", "/stats");
        terminal.wait_for("1 turns");
        // At the prompt it ends nothing either.
        terminal.wait_for("User: ");
        terminal.press("half a line\x03");
        terminal.wait_for("Ctrl-D or /quit ends");
        terminal.end("User: ");
    }

    #[test]
    fn lines_are_edited_completed_and_kept() {
        let plain = ["--template", "plain"];
        let mut terminal = Terminal::start(&plain);
        // Ctrl-A, Ctrl-E, backspace; Tab behind a part of a command; errors end nothing.
        terminal.enter("> ", "wnership is\x01O\x05x\x7f");
        terminal.wait_for("therefore not a problem.");
        terminal.enter("> ", "/sta\t");
        terminal.wait_for("1 turns");
        terminal.enter("> ", "/load /no/such/file");
        terminal.wait_for("/no/such/file: cannot");
        let folder = terminal.end("> ");
        let state = match cfg!(target_os = "macos") {
            true => folder.path().join("Library/Application Support"),
            false => folder.path().to_owned(),
        };
        let history = state.join("rwkv-edge/chat_history");
        assert!(fs::read_to_string(&history)
            .unwrap()
            .contains("Ownership is"));

        // Up three times is the first line again, in another session.
        let mut terminal = Terminal::start_in(folder, &plain);
        terminal.enter("> ", "\x1b[A\x1b[A\x1b[A");
        terminal.wait_for("therefore not a problem.");
        let folder = terminal.end("> ");

        let no_history = ["--template", "plain", "--no-history"];
        let mut terminal = Terminal::start_in(folder, &no_history);
        terminal.enter("> ", "/system secret");
        terminal.wait_for("/undo brings the old one back");
        let folder = terminal.end("> ");
        assert!(!fs::read_to_string(&history).unwrap().contains("secret"));
        drop(folder);
    }
}
