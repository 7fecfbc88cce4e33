//! Options of `generate` and `chat` that say how tokens are chosen: presets, what wins over them, bans, and what
//! is wrong. The steps themselves are tests of the library.

#[path = "common/command.rs"]
mod command;
mod common;

use command::{run, run_with_stdin, stderr, stdout};
use serde_json::Value;

/// The new text of the demo model and its tokens.
fn generate(args: &[&str]) -> (String, Vec<u64>) {
    let first = ["--quant", "int8", "-n", "40", "--json", "--seed", "7"];
    let output = run(first.iter().chain(args).chain(&["Ownership is"]));
    let object: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    let tokens = object["tokens"].as_array().expect("tokens");
    (
        object["text"].as_str().expect("a text").to_owned(),
        tokens.iter().filter_map(Value::as_u64).collect(),
    )
}

fn assert_wrong(code: i32, args: &[&str], words: &[&str]) {
    let output = run(args);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert!(output.stdout.is_empty(), "{args:?}");
    for word in words {
        assert!(said.contains(word), "{args:?}: not said: {word}\n{said}");
    }
}

#[test]
fn presets_are_options_that_could_be_given() {
    let pip = generate(&["--preset", "pip"]);
    let same = [
        "--temperature-last",
        "--temperature",
        "1",
        "--top-p",
        "0.85",
        "--presence-penalty",
        "0.2",
        "--frequency-penalty",
        "0.2",
        "--penalty-decay",
        "0.996",
    ];
    assert_eq!(generate(&same), pip);
    assert_ne!(generate(&["--preset", "creative"]), pip);
    // What is given wins, wherever it stands.
    let maths = ["--preset", "maths"];
    assert_eq!(generate(&[&same[..], &maths].concat()), pip);
    let greedy = generate(&[]);
    assert_ne!(greedy, pip);
    assert_eq!(
        generate(&["--preset", "precise", "--temperature", "0"]),
        greedy
    );
    assert_eq!(generate(&["--preset", "maths", "--top-p", "0"]), greedy);
    let hot = [
        "--preset",
        "creative",
        "--temperature",
        "3",
        "--top-p",
        "0.9",
    ];
    let first = generate(&[&hot[..], &["--temperature-last=false"]].concat());
    assert_ne!(generate(&hot), first, "the order matters");
}

#[test]
fn banned_tokens_are_neither_likeliest_nor_drawn() {
    let (_, tokens) = generate(&[]);
    let banned: Vec<String> = tokens[..2].iter().map(u64::to_string).collect();
    let list = banned.join(",");
    for args in [
        &["--ban-token", &list][..],
        &["--ban-token", &banned[0], "--ban-token", &banned[1]],
        &["--preset", "chat", "--ban-token", &list],
    ] {
        let (_, found) = generate(args);
        let is_banned = |token: &u64| tokens[..2].contains(token);
        assert!(!found.iter().any(is_banned), "{args:?}");
        assert_eq!(found.len(), 40);
    }
}

#[test]
fn every_cut_follows_the_seed() {
    let plain = generate(&["--temperature", "1.5"]);
    for args in [
        &["--min-p", "0.2"][..],
        &["--typical-p", "0.5"],
        &["--mirostat-tau", "2"],
        &["--mirostat-tau", "2", "--mirostat-eta", "0.5"],
    ] {
        let args = [&["--temperature", "1.5"], args].concat();
        let found = generate(&args);
        assert_ne!(found, plain, "{args:?}");
        assert_eq!(generate(&args), found, "{args:?}");
    }
    // What makes the draw certain is greedy.
    let greedy = generate(&[]);
    for option in ["--min-p", "--top-k"] {
        assert_eq!(generate(&["--temperature", "1.5", option, "1"]), greedy);
    }
}

#[test]
fn what_is_wrong_is_named() {
    for (args, words) in [
        (
            &["--preset", "wild", "hi"][..],
            &[
                "'wild' for '--preset <NAME>'",
                "pip, chat, creative, precise, maths",
            ][..],
        ),
        (
            &["chat", "--preset", "Pip"],
            &["'Pip' for '--preset <NAME>'"],
        ),
        (&["--min-p", "1.1", "hi"], &["'1.1'", "from 0 to 1"]),
        (&["--typical-p", "-1", "hi"], &["'-1'", "from 0 to 1"]),
        (&["--penalty-decay", "2", "hi"], &["'2'", "from 0 to 1"]),
        (&["--mirostat-tau", "nan", "hi"], &["'nan'", "at least 0"]),
        (&["--mirostat-eta", "0.1", "hi"], &["--mirostat-tau <X>"]),
        (&["--ban-token", "the", "hi"], &["`the` is not a token id"]),
        (&["--ban-token", "", "hi"], &["at least one token id"]),
        (&["--temperature-last=2", "hi"], &["'2'", "true, false"]),
    ] {
        assert_wrong(2, args, words);
    }
    let far = ["--ban-token", "1,99999999", "-n", "1", "hi"];
    assert_wrong(1, &far, &["banned_tokens: 99999999, expected ids below"]);
}

#[test]
fn options_without_effect_are_told() {
    let run = |args: &[&str]| stderr(&run([&["-n", "1", "hi"], args].concat()));
    let said = run(&["--min-p", "0.1", "--mirostat-tau", "5"]);
    assert!(
        said.contains("--min-p, --mirostat-tau without effect: at temperature 0"),
        "{said}"
    );
    assert_eq!(run(&["--min-p", "0.1", "--temperature", "1"]), "");
    assert_eq!(run(&["--min-p", "0.1", "--quiet"]), "");
    assert_eq!(run(&["--ban-token", "1"]), "");
}

#[test]
fn a_chat_has_the_same_settings() {
    let chat = |args: &[&str], input: &str| {
        let first = ["chat", "--quant", "int8", "-n", "20", "--seed", "7"];
        run_with_stdin(first.iter().chain(args), input.as_bytes())
    };
    let with = stdout(&chat(&["--preset", "pip"], "What is a trait?\n"));
    let set = stdout(&chat(&[], "/set preset pip\nWhat is a trait?\n"));
    assert_eq!(set, with);
    let lines = "/set ban-token 5,6\n/set preset creative\n/set min-p 0.1\n/set typical-p 0.9\n\
                 /set mirostat-tau 4\n/set mirostat-eta 0.2\n/set penalty-decay 0.9\n\
                 /set temperature-last false\n/stats\n/set ban-token none\n/set mirostat-tau 0\n/stats\n/set preset chat\n/stats\n";
    let said = stderr(&chat(&[], lines));
    for words in [
        "temperature 1.4, top-p 0.4, top-k 0, min-p 0.1, typical-p 0.9, mirostat tau 4 eta 0.2; \
         penalties 0.2 presence, 0.2 frequency, decay 0.9, 1 repetition; 2 tokens banned; \
         21 tokens not counted; seed 7",
        "typical-p 0.9; penalties 0.2 presence, 0.2 frequency, decay 0.9, 1 repetition; \
         21 tokens not counted; seed 7",
        "0.5 presence, 0.5 frequency, decay 0.996, 1 repetition; seed 7",
    ] {
        assert!(said.contains(words), "{said}");
    }
    for (line, words) in [
        ("/set preset wild", "preset wild: expected pip, chat"),
        ("/set min-p 2", "min_p: 2, expected a number from 0 to 1"),
        ("/set penalty-decay x", "penalty-decay x: not such a number"),
        ("/set mirostat-tau -1", "mirostat_tau: -1, expected"),
        (
            "/set temperature-last 3",
            "temperature-last 3: expected true or false",
        ),
        ("/set ban-token x", "ban-token x: `x` is not a token id"),
        (
            "/set ban-token 99999999",
            "banned_tokens: 99999999, expected ids below",
        ),
        (
            "/set heat 1",
            "no setting heat, expected temperature, preset",
        ),
    ] {
        let output = chat(&[], line);
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert!(
            stderr(&output).contains(words),
            "{line}: {}",
            stderr(&output)
        );
    }
}
