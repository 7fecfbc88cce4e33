//! What a chat leaves in files: saved conversations, and states behind system texts.

use crate::*;

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
    // Nor is there a word about the template that it would have without.
    assert!(!said.contains("template plain"), "{said}");
    let sampled = ["--load-state", &path, "--temperature", "1"];
    assert!(stderr(&chat.run(&sampled, "")).contains("random numbers and penalties begin anew"));

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
    let of_model = |name: &str| {
        let mut command = command();
        command
            .args(["--model", golden(name).to_str().unwrap()])
            .args(["--tokens", "1,2,3", "-n", "0", "--save-state"])
            .arg(chat.path(name));
        assert!(command.output().unwrap().status.success());
        fs::read(chat.path(name)).unwrap()
    };
    for (bytes, reason) in [
        (&flipped[..], "damaged"),
        (&good[..good.len() - 1], "bytes, expected"),
        (b"text", "not a saved state"),
        (&of_model("v7-hf"), "another model"),
        (
            &of_model("odd-bin"),
            "state of \"rwkv-4\", expected one of rwkv-7",
        ),
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

/// Quiet or not, and whatever ends it.
#[test]
fn a_conversation_is_saved_at_its_end() {
    let chat = Chat::new();
    let path = chat.text_path("talk");
    let quiet = chat.run(&["--quiet", "--save-state", &path], "Ownership is\n/show\n");
    assert_eq!(
        stderr(&quiet),
        "> Ownership is\na bit more complicated than the ownership rules.\n\n"
    );
    let good = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let failed = chat.run(
        &["--save-state", &path],
        "Ownership is\n/set heat 1\nA trait is\n",
    );
    assert_eq!(failed.status.code(), Some(1));
    assert_eq!(fs::read(&path).unwrap(), good);
    // Where it cannot be saved, nothing is said in vain.
    let nowhere = chat.text_path("no/such/folder");
    let output = chat.run(&["--save-state", &nowhere], "Ownership is\n");
    assert_eq!(
        (output.status.code(), &output.stdout[..]),
        (Some(1), &b""[..])
    );
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
    assert!(!chat.path("cache").exists());
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
    let folder = chat.path("cache").join("rwkv-edge/prompts");
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
        assert!(!chat.path("cache").exists());
        assert_eq!(chat.answers(&args, "Hello\n"), expected);
        assert_eq!(
            files(&chat.path("cache").join("rwkv-edge/prompts")).len(),
            1
        );
        let again = chat.run(&args, "Hello\n");
        assert!(stderr(&again).contains("from ") && stderr(&again).contains("prompts"));
        fs::remove_dir(&kept).unwrap();
        fs::remove_dir_all(chat.path("cache")).unwrap();
    }
}

/// Made by version 0.1 of the program; tests/fixtures/v0.1 says how.
#[test]
fn conversations_of_version_0_1_go_on() {
    let fixture = |name: &str| repository("tests/fixtures/v0.1").join(name);
    let expected = common::json(fixture("expected.json"));
    let text = |key: &str| expected[key].as_str().unwrap();
    let chat = Chat::new();
    let mut command = command();
    command
        .args(["chat", "--quant", "int8", "--template", "plain", "-n", "40"])
        .arg("--model")
        .arg(repository("tests/fixtures/demo4"))
        .arg("--load-state")
        .arg(fixture("talk.state"));
    let output = chat.feed(command, &format!("/show\n{}\n", text("message")));
    // The conversation so far is shown on stderr, answers are on stdout.
    assert!(stderr(&output).contains("What is a slice?"));
    assert_eq!(stdout(&output).trim_end(), text("answer"));
}

#[cfg(unix)]
#[test]
fn links_to_nothing_are_neither_loaded_nor_replaced() {
    let chat = Chat::new();
    let link = chat.text_path("link");
    std::os::unix::fs::symlink("no-where", &link).unwrap();
    for command in ["save", "load"] {
        let output = chat.run(&[], &format!("/{command} {link}\n"));
        let said = stderr(&output);
        assert!(said.contains("a link to nothing"), "{command}: {said}");
    }
    assert!(std::path::Path::new(&link).is_symlink());
}

/// A name that was mistyped costs nobody a file: neither that of the state nor that of the text beside it.
#[test]
fn only_older_conversations_are_replaced() {
    let chat = Chat::new();
    let path = chat.text_path("talk");
    let text_path = format!("{path}.json");
    let save = ["--save-state", &path];
    chat.answers(&save, "Hello\n");
    chat.answers(&save, "Hello\nYou?\n");
    let text: Value = serde_json::from_slice(&fs::read(&text_path).unwrap()).unwrap();
    assert_eq!(text["turns"].as_array().unwrap().len(), 2);
    let state = fs::read(&path).unwrap();
    let mine = "{\"mine\": true}";
    fs::write(&text_path, mine).unwrap();
    for (args, input) in [
        (&save[..], "Hello\n"),
        (&[], &*format!("Hello\n/save {path}\n")),
    ] {
        let found = chat.run(args, input);
        assert_eq!(found.status.code(), Some(1), "{args:?}");
        let said = stderr(&found);
        assert!(
            said.contains("talk.json: exists and is not the text of a conversation"),
            "{said}"
        );
        assert_eq!(fs::read_to_string(&text_path).unwrap(), mine);
        assert_eq!(fs::read(&path).unwrap(), state);
    }
}
