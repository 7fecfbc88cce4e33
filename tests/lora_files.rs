//! `--lora` on the command line, black box: every command has the merged model, and never takes it for its base.

#[path = "common/command.rs"]
mod command;
mod common;
#[path = "common/conversion.rs"]
mod conversion;
#[path = "common/lora.rs"]
mod merged;
#[path = "common/tensors.rs"]
mod tensors;

use std::process::Output;

use command::{run, stderr, stdout};
use common::golden;
use conversion::text;
use merged::{lora, Base, Matrix};
use rwkv_edge::Quant;
use serde_json::Value;

fn logits(args: &[&str]) -> String {
    let command = ["logits", "--json", "--tokens", "1,2,3"];
    stdout(&run(command.iter().chain(args)))
}

fn info(args: &[&str]) -> Value {
    let told = stdout(&run(["info", "--json"].iter().chain(args)));
    serde_json::from_str(&told).expect("JSON")
}

/// Code 1 and these words.
fn assert_refused(output: &Output, words: &[&str]) {
    let told = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(words.iter().all(|word| told.contains(word)), "{told}");
}

/// What reads texts, too, here by a vocabulary of the bytes.
#[test]
fn commands_that_read_texts_have_the_merged_model() {
    let (base, lora) = base_and_lora("small-safetensors");
    let inside = |name: &str| base.folder.path().join(name);
    let line = |byte: u8| format!("{} b'\\x{byte:02x}' 1\n", u32::from(byte) + 1);
    let write = |name: &str, text: &str| {
        std::fs::write(inside(name), text).expect("can be written");
        inside(name).to_str().expect("UTF-8").to_owned()
    };
    let tokenizer = write("bytes.txt", &(0..=255).map(line).collect::<String>());
    let lines = write("text.txt", "Ownership is\na trait\n");
    let passages = write("passages.jsonl", "{\"text\": \"one two three\"}\n");
    let more = ["--dtype", "f32", &lora];
    conversion::convert(&base.path, &inside("directory"), &more);
    for command in [
        &["embed", "--file", &lines][..],
        &["perplexity", "--json", &lines],
        &["eval", "lambada", "--json", &passages],
        &["generate", "-n", "8", "--no-echo", "a"],
        &["tokenize", "a"],
    ] {
        let told = |model: &std::path::Path, more: &[&str]| {
            let options = ["-m", text(model), "--tokenizer", &tokenizer];
            let all = stdout(&run([command, &options, more].concat()));
            // Times and sizes differ.
            let is_result = |line: &&str| !line.contains("seconds") && !line.contains("_per_s");
            let parsed: Result<Value, _> = serde_json::from_str(&all);
            match parsed {
                Ok(Value::Object(fields)) => {
                    let mut fields = fields;
                    fields.retain(|name, _| {
                        [
                            "perplexity",
                            "accuracy",
                            "nats",
                            "bits_per_byte",
                            "n_tokens",
                        ]
                        .contains(&name.as_str())
                    });
                    assert!(!fields.is_empty(), "{all}");
                    Value::Object(fields).to_string()
                }
                _ => all.lines().filter(is_result).collect(),
            }
        };
        let merged = told(&base.path, &[&lora]);
        assert_eq!(merged, told(&inside("directory"), &[]), "{command:?}");
        if command[0] != "tokenize" {
            assert_ne!(merged, told(&base.path, &[]), "{command:?}");
        }
    }
}

/// A base, an adapter file and an option that names it with its alpha.
fn base_and_lora(name: &str) -> (Base, String) {
    let base = Base::new(golden(name));
    let (adapter, _) = lora(&base, 4, 8.0, 1);
    let file = base.file("lora.safetensors", &adapter);
    (base, format!("--lora={}:8", text(&file)))
}

#[test]
fn commands_have_the_merged_model() {
    for name in ["small-safetensors", "v7-hf"] {
        let (base, lora) = base_and_lora(name);
        let model = text(&base.path);
        let alone = logits(&["-m", model, "--quant", "int8"]);
        let merged = logits(&["-m", model, "--quant", "int8", &lora]);
        assert_ne!(alone, merged);
        let inside = |name: &str| base.folder.path().join(name);

        let file = inside("model.bin");
        let quantised = run(["quantize", "-m", model, &lora, "-o", text(&file)]);
        assert_eq!(stdout(&quantised), "");
        assert_eq!(logits(&["-m", text(&file)]), merged);
        assert_refused(
            &run(["logits", "--tokens", "1", "-m", text(&file), &lora]),
            &["model file", "quantised already", "checkpoint"],
        );

        for (form, target) in [("hf", inside("directory")), ("raw", inside("model.pth"))] {
            let more = ["--to", form, "--dtype", "f32", &lora];
            conversion::convert(&base.path, &target, &more);
            let converted = logits(&["-m", text(&target), "--quant", "int8"]);
            assert_eq!(converted, merged, "{form}");
        }

        let told = info(&["-m", model, &lora]);
        let adapters = &told["adapters"];
        let adapter = format!("{}, alpha 8", text(&inside("lora.safetensors")));
        assert_eq!(adapters[0], adapter);
        assert_eq!(info(&["-m", text(&file)])["adapters"], *adapters);
        assert_eq!(info(&["-m", model])["adapters"], serde_json::json!([]));
        let shown = stdout(&run(["info", "-m", text(&file)]));
        assert!(
            shown.contains(&format!("merged with   {adapter}")),
            "{shown}"
        );
    }
}

#[test]
fn states_are_of_the_merged_model() {
    let (base, lora) = base_and_lora("small-safetensors");
    let model = text(&base.path);
    let state = base.folder.path().join("state");
    let tokens = ["generate", "-n", "0", "--tokens", "1,2,3", "-m", model];
    let saved = run(tokens
        .iter()
        .chain(&[lora.as_str(), "--save-state", text(&state)]));
    assert!(saved.status.success(), "{}", stderr(&saved));
    let load = [
        "generate",
        "-n",
        "1",
        "--tokens",
        "4",
        "-m",
        model,
        "--load-state",
        text(&state),
    ];
    assert_refused(&run(load), &["another"]);
    let loaded = run(load.iter().chain(&[lora.as_str()]));
    assert!(loaded.status.success(), "{}", stderr(&loaded));
}

/// Several, in their order, and what PiSSA began with in front of what it trained.
#[test]
fn several_times() {
    let base = Base::new(golden("small-safetensors"));
    let key = "blocks.0.att.key";
    let matrix = Matrix::random(1, 64, 0.25, 1);
    let adapter = |a: &str, b: &str, size: f64| {
        let tensors = [
            (format!("{key}.{a}"), matrix.tensor()),
            (
                format!("{key}.{b}"),
                Matrix::random(64, 1, size, 2).tensor(),
            ),
        ];
        base.file(a, &tensors.into())
    };
    let files = [
        adapter("init_lora_A", "init_lora_B", 0.5),
        adapter("lora_A", "lora_B", 0.5),
    ];
    let model = text(&base.path);
    let both = ["--lora", text(&files[0]), "--lora", text(&files[1])];
    let found = logits(&[&["-m", model, "--quant", "f32"], &both[..]].concat());
    // One takes away what the other adds, but for one rounding.
    let numbers = |text: &str| {
        let object: Value = serde_json::from_str(text).expect("JSON");
        common::floats(&object["logits"][0])
    };
    let alone = logits(&["-m", model, "--quant", Quant::F32.name()]);
    let difference = conversion::largest_difference(&numbers(&found), &numbers(&alone));
    assert!(difference < 1e-4, "{difference}");
    let second = ["-m", model, "--lora", text(&files[1])];
    let refused = run(["logits", "--tokens", "1"].iter().chain(&second));
    assert_refused(&refused, &["lora_A", "lora_alpha", "FILE:ALPHA"]);
    let first = ["-m", model, "--lora", text(&files[0])];
    let refused = run(["logits", "--tokens", "1"].iter().chain(&first));
    assert_refused(&refused, &["init_lora_A", "behind it"]);
    let bad = format!("--lora={}:many", text(&files[1]));
    let refused = run(["logits", "--tokens", "1", "-m", model, &bad]);
    assert_refused(&refused, &["alpha \"many\"", "expected a number"]);
    let nan = format!("--lora={}:nan", text(&files[1]));
    let refused = run(["logits", "--tokens", "1", "-m", model, &nan]);
    assert_refused(&refused, &["alpha NaN", "finite number above 0"]);
}

/// `pull --quant` has made a copy of the base.
#[cfg(feature = "hub")]
#[test]
fn a_quantised_copy_is_not_taken_for_the_merged_model() {
    let (base, lora) = base_and_lora("small-safetensors");
    let cache = base.folder.path().join("cache");
    let told = |args: &[&str]| {
        let mut command = command::command();
        command.env("RWKV_EDGE_CACHE", &cache).args(args);
        stdout(&command.output().expect("the binary starts"))
    };
    let model = text(&base.path);
    told(&["pull", model, "--quant", "int8"]);
    let logits = ["logits", "--tokens", "1,2", "--quant", "int8", "-m", model];
    let with_copy = told(&[&logits[..], &[&lora]].concat());
    std::fs::remove_dir_all(&cache).expect("a copy was made");
    assert_eq!(told(&[&logits[..], &[&lora]].concat()), with_copy);
    assert_ne!(told(&logits), with_copy);
}
