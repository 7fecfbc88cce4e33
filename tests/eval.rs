//! `eval lambada` through the binary: the scores of transformers, and bad lines.

#[path = "common/command.rs"]
mod command;
mod common;
#[path = "common/skipped.rs"]
mod skipped;

use std::fs;
use std::path::{Path, PathBuf};

use command::{run, stderr, stdout};
use common::{json, repository};
use serde_json::Value;

fn text(path: &Path) -> String {
    path.to_str().expect("test paths are UTF-8").to_owned()
}

/// The model that transformers' scores are of.
fn rwkv_4() -> String {
    text(&repository("tests/fixtures/demo4"))
}

fn lambada(file: &Path, args: &[&str]) -> Value {
    let (file, model) = (text(file), rwkv_4());
    let first = ["eval", "lambada", &file, "--json", "--model", &model];
    let output = stdout(&run(first.iter().chain(args)));
    serde_json::from_str(&output).unwrap_or_else(|e| panic!("{e}: {output}"))
}

fn passages() -> PathBuf {
    repository("tests/fixtures/evaluation/passages.jsonl")
}

fn expected() -> Value {
    json(repository("tests/fixtures/evaluation/expected.json"))
}

fn assert_scores(found: &Value, expected: &Value, relative: f64) {
    for key in ["passages", "right", "accuracy"] {
        assert_eq!(found[key], expected[key], "{key}");
    }
    let [found, expected] = [found, expected].map(|v| v["perplexity"].as_f64().expect("a number"));
    let difference = (found / expected - 1.0).abs();
    assert!(difference < relative, "{found}, expected {expected}");
}

#[test]
fn scores_are_those_of_transformers() {
    let expected = &expected()["passages"];
    let right = expected["right"].as_u64().expect("a number");
    assert!(
        right > 5 && right < 20,
        "the fixture tells right from wrong"
    );
    let found = lambada(&passages(), &["--quant", "f32"]);
    assert_scores(&found, expected, 5e-5);
    assert_eq!(
        (&found["task"], &found["quant"]),
        (&"lambada".into(), &"f32".into())
    );
    let int8 = lambada(&passages(), &["--quant", "int8"]);
    assert_scores(&int8, expected, 0.05);
    // Scores do not depend on threads, nor on which passages share a batch.
    let one = lambada(&passages(), &["--quant", "int8", "--threads", "1"]);
    let sum = |from: &Value| {
        let n = from["passages"].as_f64().expect("a number");
        n * from["perplexity"].as_f64().expect("a number").ln()
    };
    assert_eq!(one["perplexity"], int8["perplexity"]);
    let folder = tempfile::tempdir().expect("a folder");
    let lines = fs::read_to_string(passages()).expect("there");
    let mut alone = 0.0;
    for line in lines.lines() {
        let file = folder.path().join("one");
        fs::write(&file, line).expect("can be written");
        alone += sum(&lambada(&file, &["--quant", "int8"]));
    }
    assert!(
        (alone - sum(&int8)).abs() < 1e-9 * alone,
        "{alone}, {}",
        sum(&int8)
    );
    let (file, model) = (text(&passages()), rwkv_4());
    let output = run(["eval", "lambada", &file, "--quant", "f32", "-m", &model]);
    assert!(stdout(&output)
        .starts_with("lambada: accuracy 58.33 % (14 of 24 passages), perplexity 35.57"));
}

#[test]
fn published_passages_give_the_scores_of_transformers() {
    let Some(file) = skipped::test_data("lambada_test.jsonl") else {
        return;
    };
    let found = lambada(&file, &["--quant", "f32", "--limit", "100"]);
    assert_scores(&found, &expected()["lambada_test_first_100"], 5e-5);
}

#[test]
fn lines_are_taken_as_people_write_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("passages");
    let line = |text: &str| format!("{{\"text\": \"{text}\", \"other\": 1}}");
    let two = [line("a trait is a type"), line("two words")];
    fs::write(&file, two.join("\n")).expect("can be written");
    let plain = lambada(&file, &["--quant", "int8"]);
    fs::write(&file, format!("\n{}\r\n\r\n{}\r\n \n", two[0], two[1])).expect("can be written");
    let spaced = lambada(&file, &["--quant", "int8"]);
    assert_eq!(plain["passages"], 2);
    assert_eq!(plain["perplexity"], spaced["perplexity"]);
    let first = lambada(&file, &["--limit", "1"]);
    assert_eq!(first["passages"], 1);
    // A target of more tokens than are fed at once.
    let long = "x\u{e9}\u{6f22}".repeat(200);
    fs::write(&file, line(&format!("the word {long}"))).expect("can be written");
    let long = lambada(&file, &["--quant", "int8"]);
    assert!(long["tokens"].as_u64() > Some(500) && long["right"] == 0);
}

#[test]
fn bad_lines_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("passages");
    let good = "{\"text\": \"two words\"}\n";
    for (bad, words) in [
        (&b"{\"text\": \"cut of"[..], "line 2: not JSON"),
        (b"just text", "line 2: not JSON"),
        (b"[1]", "line 2: no `text`"),
        (b"{\"text\": 7}", "line 2: no `text`"),
        (b"{\"prompt\": \"two words\"}", "line 2: no `text`"),
        (b"{\"text\": \"word\"}", "line 2: no last word"),
        (b"{\"text\": \"two words \"}", "line 2: no last word"),
        (b"{\"text\": \"\"}", "line 2: no last word"),
        (b"{\"text\": \"a \xff\"}", "UTF-8"),
    ] {
        fs::write(&file, [good.as_bytes(), bad].concat()).expect("can be written");
        let output = run(["eval", "lambada", &text(&file)]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(words) && said.contains("passages"), "{said}");
        assert!(
            said.lines().count() == 1 && output.stdout.is_empty(),
            "{said}"
        );
    }
    for nothing in ["", "\n\n"] {
        fs::write(&file, nothing).expect("can be written");
        let output = run(["eval", "lambada", &text(&file)]);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output).contains("no passages"),
            "{}",
            stderr(&output)
        );
    }
    let output = run(["eval", "lambada", "no/such/file"]);
    assert!(stderr(&output).contains("no/such/file: cannot read"));
    for args in [
        &["eval"][..],
        &["eval", "no-such-test"],
        &["eval", "lambada"],
    ] {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}");
    }
}
