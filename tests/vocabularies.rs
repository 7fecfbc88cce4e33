//! Tokenizers that lie beside a model and are another model's, or missing, or far too small: told, and told before
//! weights are converted. And what `convert` does with them.

#[path = "common/command.rs"]
mod command;
mod common;

use std::fs;
use std::path::{Path, PathBuf};

use command::{run, stderr, stdout};
use common::{golden, repository};

const WORLD: &str = "rwkv_vocab_v20230424.txt";

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

fn world_small() -> PathBuf {
    repository("tests/fixtures/tokenizer/world_small.txt")
}

/// A vocabulary of the bytes, whose last id is 256.
fn bytes_alone() -> String {
    let line = |byte: u8| format!("{} b'\\x{byte:02x}' 1\n", u32::from(byte) + 1);
    (0..=255).map(line).collect()
}

/// A lone model of 320 rows, or with less, and a vocabulary beside it.
fn model_beside(folder: &Path, vocabulary: Option<&str>) -> PathBuf {
    let path = folder.join("model.pth");
    fs::copy(golden("v5-pth").join("model.pth"), &path).expect("can be copied");
    if let Some(vocabulary) = vocabulary {
        fs::write(folder.join(WORLD), vocabulary).expect("can be written");
    }
    path
}

fn assert_fails(args: &[&str], words: &[&str]) {
    let output = run(args);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{args:?}: not said: {word}\n{said}");
    }
}

#[test]
fn another_models_vocabulary_is_passed_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = fs::read_to_string(world_small()).expect("is there");
    let model = model_beside(folder.path(), Some(&world));
    let alone = golden("v5-pth").join("model.pth");
    let ids = |model: &Path| {
        let output = run([
            "generate",
            "-n",
            "5",
            "--tokens",
            "1,2,3",
            "-m",
            text(model),
        ]);
        (stdout(&output), stderr(&output))
    };
    let (found, said) = ids(&model);
    assert_eq!(ids(&alone), (found, String::new()));
    for word in ["passed over", WORLD, "tokens, expected at most"] {
        assert!(said.contains(word), "{said}");
    }
    assert_eq!(said.lines().count(), 1, "{said}");
    // A folder with one model and the vocabulary is no other case.
    assert!(ids(folder.path()).1.contains("passed over"));
    let json = stdout(&run(["info", "--json", "-m", text(&model)]));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert!(json["tokenizer"].is_null(), "{json}");
    // Texts need one; one that is named has to fit.
    assert_fails(
        &["-m", text(&model), "Hello"],
        &["no tokenizer", "passed over", WORLD, "--tokenizer"],
    );
    let named = world_small();
    let options = ["--tokenizer", text(&named)];
    assert_fails(
        &[&["-m", text(&model), "Hello"], &options[..]].concat(),
        &["does not belong to this model"],
    );
    // One that fits is used as before.
    model_beside(folder.path(), Some(&bytes_alone()));
    let output = run(["-n", "1", "-m", text(&model), "Hello"]);
    stdout(&output);
    assert!(!stderr(&output).contains("passed over"));
}

/// The weights of this model cannot be converted, so that what is said is said before that.
#[test]
fn a_tokenizer_is_looked_for_before_weights_are_converted() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = golden("small-safetensors");
    let model = folder.path().join("model");
    fs::create_dir(&model).expect("can be made");
    fs::copy(source.join("config.json"), model.join("config.json")).expect("can be copied");
    let mut bytes = fs::read(source.join("model.safetensors")).expect("is there");
    let start = bytes.len() / 2;
    bytes[start..].fill(0xff);
    fs::write(model.join("model.safetensors"), bytes).expect("can be written");
    let model = text(&model);
    let ids = ["generate", "--quant", "int8", "-m", model, "--tokens", "1"];
    let said = stderr(&run(ids));
    assert!(!said.contains("tokenizer"), "{said}");
    let world = world_small();
    for command in [
        &["generate", "Hello"][..],
        &["chat"],
        &["embed"],
        &["perplexity", "Cargo.toml"],
    ] {
        let with = [command, &["--quant", "int8", "-m", model]].concat();
        assert_fails(&with, &["no tokenizer", "looked for"]);
        let named = [&with[..], &["--tokenizer", text(&world)]].concat();
        assert_fails(&named, &["does not belong to this model"]);
    }
    let output = folder.path().join("out.safetensors");
    let copy = ["quantize", "-m", model, "-o", text(&output)];
    let named = [&copy[..], &["--tokenizer", text(&world)]].concat();
    assert_fails(&named, &["does not belong to this model"]);
}

#[test]
fn one_with_far_fewer_tokens_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("bytes.txt");
    fs::write(&path, bytes_alone()).expect("can be written");
    let words = "the tokenizer has 257 tokens, and the model rows for 4096";
    let with = ["-n", "1", "--tokenizer", text(&path), "Hello"];
    let output = run(with);
    stdout(&output);
    assert!(stderr(&output).contains(words), "{}", stderr(&output));
    assert!(!stderr(&run(["-n", "1", "Hello"])).contains("tokens, and the model"));
    let model = folder.path().join("model.safetensors");
    let copy = ["quantize", "-o", text(&model), "--tokenizer", text(&path)];
    assert!(stderr(&run(copy)).contains(words));
}

#[test]
fn convert_takes_the_vocabulary_beside_a_file_along() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_beside(folder.path(), Some(&bytes_alone()));
    let inside = |name: &str| folder.path().join(name);
    let convert = |output: &Path, more: &[&str]| {
        let args = ["convert", "-m", text(&model), "-o", text(output)];
        run([&args[..], more].concat())
    };
    let output = convert(&inside("directory"), &[]);
    stdout(&output);
    assert!(
        !stderr(&output).contains("no tokenizer"),
        "{}",
        stderr(&output)
    );
    let taken = fs::read_to_string(inside("directory").join(WORLD)).expect("is there");
    assert_eq!(taken, bytes_alone());
    stdout(&run(["-n", "1", "-m", text(&inside("directory")), "Hello"]));
    // A raw file has no place for it, and the same folder has it already.
    fs::create_dir(inside("raw")).expect("can be made");
    let output = convert(&inside("raw/x.pth"), &["--to", "raw"]);
    stdout(&output);
    for word in [WORLD, "no part of a raw checkpoint"] {
        assert!(stderr(&output).contains(word), "{}", stderr(&output));
    }
    let output = convert(&inside("x.pth"), &["--to", "raw"]);
    assert!(!stderr(&output).contains("no part"), "{}", stderr(&output));
    // That of another model stays behind, and is named.
    let world = fs::read_to_string(world_small()).expect("is there");
    model_beside(folder.path(), Some(&world));
    let output = convert(&inside("other"), &[]);
    stdout(&output);
    for word in ["passed over", WORLD, "no tokenizer, since none"] {
        assert!(stderr(&output).contains(word), "{}", stderr(&output));
    }
    assert!(!inside("other").join(WORLD).exists());
}

#[test]
fn convert_makes_no_directory_that_is_called_like_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_beside(folder.path(), None);
    for name in ["x.pth", "x.safetensors", "x.bin"] {
        let path = folder.path().join(name);
        let output = run(["convert", "-m", text(&model), "-o", text(&path)]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("--to raw") && said.contains(name), "{said}");
        assert!(!path.exists());
    }
    // One that is there was meant.
    let there = folder.path().join("there.pth");
    fs::create_dir(&there).expect("can be made");
    stdout(&run(["convert", "-m", text(&model), "-o", text(&there)]));
}
