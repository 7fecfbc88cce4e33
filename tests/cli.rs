//! The command line, black box: what is printed where, exit codes, and the JSON that scripts rely on.

#[path = "common/command.rs"]
mod command;
mod common;
#[path = "common/tiny.rs"]
mod tiny;

use std::fs;
use std::process::Stdio;

use command::{command, run, run_with_stdin, stderr, stdout};
use common::{floats, golden, ids, json, repository, CHECKPOINTS};
use serde_json::Value;

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn path(path: std::path::PathBuf) -> String {
    path.to_str().expect("test paths are UTF-8").to_owned()
}

/// The built-in model, a trained RWKV-7, and a trained RWKV-4, as options that name them.
fn trained() -> [(std::path::PathBuf, Vec<String>); 2] {
    let rwkv_4 = repository("tests/fixtures/demo4");
    let named = vec!["--model".to_owned(), path(rwkv_4.clone())];
    [(repository("cli/demo"), vec![]), (rwkv_4, named)]
}

/// Greedy continuations in f32 are those of the `rwkv` package and of transformers.
#[test]
fn trained_models_continue_prompts_as_their_references_do() {
    for (folder, model) in trained() {
        let reference = json(folder.join("reference.json"));
        let cases = reference["greedy"].as_array().expect("prompts");
        let run = |args: &[&str]| run(args.iter().copied().chain(model.iter().map(|arg| &arg[..])));
        for case in cases {
            let prompt = case["prompt"].as_str().expect("text");
            let expected = case["text"].as_str().expect("text");
            let n = case["ids"].as_array().expect("ids").len().to_string();
            let output = run(&["generate", "--quant", "f32", "-n", &n, prompt]);
            assert_eq!(stdout(&output), format!("{prompt}{expected}"));
            assert_eq!(
                stderr(&output),
                "",
                "only text, and no progress bar without a terminal"
            );
            let args = ["generate", "--no-echo", "--json", "-n", &n, prompt];
            let output = run(&[&args[..], &["--quant", "f32"]].concat());
            let object = parse(&stdout(&output));
            assert_eq!(object["text"].as_str(), Some(expected));
            assert_eq!(ids(&object["tokens"]), ids(&case["ids"]));
            assert_eq!(ids(&object["prompt_tokens"]), ids(&case["prompt_ids"]));
            assert!(object["decode_tokens_per_s"].as_f64() > Some(0.0));
            assert!(object["prefill_tokens_per_s"].as_f64() > Some(0.0));
            // Where no two tokens are nearly as likely, rounding changes nothing.
            if case["min_top2_gap"].as_f64() > Some(0.03) {
                let output = run(&[&args[..], &["--quant", "int8"]].concat());
                let object = parse(&stdout(&output));
                assert_eq!(object["text"].as_str(), Some(expected), "int8");
            }
        }
        assert!(cases.len() >= 8);
    }
}

#[test]
fn int8_text_is_the_same_on_every_kernel_set_and_number_of_threads() {
    let text = |kernels: &str, threads: &str| {
        let mut command = command();
        command.env("RWKV_EDGE_KERNELS", kernels);
        let output = command
            .args(["--quant", "int8", "-t", threads, "Ownership is"])
            .output();
        stdout(&output.expect("the binary starts"))
    };
    let expected = text("", "2");
    assert!(expected.len() > 200, "{expected}");
    for (kernels, threads) in [("scalar", "1"), ("scalar", "2"), ("", "1"), ("", "5")] {
        assert_eq!(text(kernels, threads), expected, "{kernels} {threads}");
    }
}

#[test]
fn golden_models_run_by_token_ids() {
    for name in CHECKPOINTS {
        let expected = json(golden(name).join("expected.json"));
        let model = path(golden(name));
        let greedy = ids(&expected["greedy_ids"]);
        let n_prompt = expected["greedy_prompt_len"].as_u64().expect("a length") as usize;
        let list = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let prompt = list(&greedy[..n_prompt]);
        let args = [
            "--model",
            &model,
            "--tokens",
            &prompt,
            "--ignore-eos",
            "-n",
            "40",
        ];
        let output = run(args.iter().chain(&["--json"]));
        let object = parse(&stdout(&output));
        assert_eq!(ids(&object["tokens"]), greedy[n_prompt..], "{name}");
        assert_eq!(object["text"], Value::Null, "there is no tokenizer");
        assert_eq!(
            stdout(&run(args)),
            format!("{}\n", list(&greedy[n_prompt..]))
        );

        let tokens = list(&ids(&expected["input_ids"]));
        let output = run(["logits", "--model", &model, "--tokens", &tokens, "--json"]);
        let last = parse(&stdout(&output));
        let output = run([
            "logits", "--model", &model, "--tokens", &tokens, "--json", "--all",
        ]);
        let all = parse(&stdout(&output));
        assert_eq!(ids(&last["tokens"]), ids(&expected["input_ids"]));
        let rows = all["logits"].as_array().expect("rows");
        assert_eq!(last["logits"].as_array().map(Vec::len), Some(1));
        assert_eq!(rows.len(), ids(&expected["input_ids"]).len());
        let expected = floats(&expected["logits_last"]);
        for found in [floats(&last["logits"][0]), floats(&rows[rows.len() - 1])] {
            let pairs = found.iter().zip(&expected);
            let difference = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(
                found.len() == expected.len() && difference < 1e-4,
                "{name}: {difference}"
            );
        }
    }
}

#[test]
fn prompts_come_from_argument_file_or_stdin_unchanged() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("prompt");
    let prompt = "fn main() {\n\n  ";
    fs::write(&file, prompt).expect("can be written");
    let expected = stdout(&run(["-n", "5", prompt]));
    assert!(expected.starts_with(prompt) && expected.len() > prompt.len());
    let file = file.to_str().expect("UTF-8");
    assert_eq!(stdout(&run(["-n", "5", "--file", file])), expected);
    assert_eq!(
        stdout(&run_with_stdin(["-n", "5"], prompt.as_bytes())),
        expected
    );
    let tokens = stdout(&run(["tokenize", prompt]));
    assert_eq!(
        stdout(&run(["-n", "5", "--tokens", tokens.trim()])),
        expected
    );
    let new = stdout(&run(["-n", "5", "--no-echo", prompt]));
    assert_eq!(format!("{prompt}{new}"), expected);
    assert_eq!(stdout(&run(["-n", "0", prompt])), prompt);
    // Bytes that are no UTF-8 are fed as U+FFFD, and echoed as they came.
    let output = run_with_stdin(["-n", "0"], b"a\xffb");
    assert_eq!(
        (output.status.code(), &output.stdout[..]),
        (Some(0), &b"a\xffb"[..])
    );
}

#[test]
fn sampling_follows_the_seed_and_stops_where_it_should() {
    let sample = |seed: &str| {
        let args = [
            "--temperature",
            "1",
            "--top-p",
            "0.9",
            "--top-k",
            "50",
            "--seed",
            seed,
            "A trait",
        ];
        stdout(&run(args))
    };
    assert_eq!(sample("7"), sample("7"));
    assert_ne!(sample("7"), sample("8"));
    let random = || stdout(&run(["--temperature", "1", "A trait"]));
    assert_ne!(random(), random(), "another seed each time");
    let plain = stdout(&run(["Ownership is"]));
    let penalised = stdout(&run(["Ownership is", "--repetition-penalty", "1.5"]));
    assert_ne!(plain, penalised);
    let output = run([
        "Ownership is",
        "--json",
        "--stop",
        "never there",
        "--stop",
        "rules",
    ]);
    let object = parse(&stdout(&output));
    assert_eq!(
        object["text"].as_str(),
        Some(" a bit more complicated than the ownership ")
    );
    assert_eq!(object["ending"].as_str(), Some("stop"));
}

#[test]
fn states_are_saved_and_gone_on_from() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("state");
    let state = state.to_str().expect("UTF-8");
    let whole = stdout(&run(["Ownership is", "-n", "30"]));
    let first = stdout(&run(["Ownership is", "-n", "10", "--save-state", state]));
    let second = stdout(&run(["--load-state", state, "-n", "20"]));
    assert_eq!(first + &second, whole);
    // A prompt of no tokens moves nothing.
    let again = stdout(&run(["--load-state", state, "-n", "20", ""]));
    assert_eq!(again, second);
    for (other, words) in [
        ("v7-hf", "another model"),
        ("odd-bin", "expected one of rwkv-4"),
    ] {
        let model = path(golden(other));
        let output = run(["--load-state", state, "--model", &model, "--tokens", "1"]);
        assert_eq!(output.status.code(), Some(1));
        let said = stderr(&output);
        assert!(said.contains(words), "{said}");
    }
}

/// Weights that are used as they are stored, wherever they are stored; whoever gets none of it is told.
#[test]
fn huge_pages_are_for_files_and_folders() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = |name: &str| path(folder.path().join(name));
    let (file, shards, torch) = (place("file"), place("shards"), place("model.pth"));
    // Its matrices are f16, which is used as it is.
    let demo = path(repository("tests/fixtures/demo4"));
    stdout(&run([
        "quantize", "--quant", "f16", "-m", &demo, "-o", &file,
    ]));
    let convert = |args: &[&str]| {
        stdout(&run(
            [&["convert", "-m", &demo, "--dtype", "f16"], args].concat()
        ))
    };
    convert(&["--max-shard-size", "5MB", "-o", &shards]);
    convert(&["--to", "raw", "-o", &torch]);
    assert!(fs::read_dir(&shards).expect("was written").count() > 5);
    let tokens = "1,2,3,4,5,6,7,8,9";
    let info = |args: &[&str]| parse(&stdout(&run([&["info", "--json"], args].concat())));
    let bytes = |info: &Value, key: &str| info[key].as_u64().expect("a number");
    for model in [&demo, &file, &shards, &torch] {
        let mapped = info(&["-m", model]);
        assert!(bytes(&mapped, "mapped_bytes") > 13_000_000, "{mapped}");
        assert_eq!(bytes(&mapped, "huge_page_bytes"), 0);
        let expected = stdout(&run(["logits", "--tokens", tokens, "--all", "-m", model]));
        for more in [&["--huge-pages"][..], &["--huge-pages", "--no-mmap"]] {
            let copied = info(&[&["-m", model], more].concat());
            assert_eq!(bytes(&copied, "mapped_bytes"), 0, "{model} {more:?}");
            let expected_bytes = bytes(&mapped, "mapped_bytes");
            assert_eq!(
                bytes(&copied, "huge_page_bytes"),
                expected_bytes,
                "{model} {more:?}"
            );
            let args = ["logits", "--tokens", tokens, "--all", "-m", model];
            let output = run([&args[..], more].concat());
            assert!(
                stdout(&output) == expected,
                "{model} {more:?}: other logits"
            );
            assert_eq!(stderr(&output), "", "{model} {more:?}");
        }
    }
    for args in [
        &["--huge-pages", "--quant", "int8", "-m", &demo][..],
        &["--huge-pages", "--quant", "int8", "-m", &file],
        &["--huge-pages"],
    ] {
        let output = run([&["logits", "--tokens", "1"], args].concat());
        stdout(&output);
        let note = stderr(&output);
        assert!(
            note.starts_with("--huge-pages changes nothing here"),
            "{args:?}: {note}"
        );
        assert_eq!(note.lines().count(), 1, "{note}");
    }
    let refused = run(["bench", "--synthetic", "169m", "--huge-pages"]);
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn quantize_writes_one_file_that_is_a_whole_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("demo.safetensors");
    let file = file.to_str().expect("UTF-8");
    let output = run(["quantize", "--quant", "int8", "-o", file]);
    assert_eq!(stdout(&output), "", "everything but text goes to stderr");
    assert!(
        stderr(&output).contains("8.07 bits a weight"),
        "{}",
        stderr(&output)
    );
    assert!(fs::metadata(file).expect("was written").len() < 10_300_000);
    let expected = stdout(&run(["--quant", "int8", "A trait is"]));
    assert_eq!(stdout(&run(["--model", file, "A trait is"])), expected);
    assert_eq!(
        stdout(&run(["--model", file, "--no-mmap", "A trait is"])),
        expected
    );
    let info = parse(&stdout(&run([
        "info",
        "--json",
        "--verify",
        "--tensors",
        "-m",
        file,
    ])));
    assert_eq!(info["quant"], "int8");
    assert_eq!(info["verified"], true);
    assert_eq!(
        info["tensors"].as_array().map(Vec::len),
        Some(4 + 2 + 8 * 30 + 7 * 3)
    );
    let output = run(["quantize", "-m", file, "-o", file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("is the model itself"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn info_says_what_a_model_is() {
    let info = parse(&stdout(&run(["info", "--json"])));
    assert_eq!(info["architecture"], "rwkv-7");
    assert_eq!(info["n_params"], 9_067_264);
    assert_eq!(info["n_layer"], 8);
    assert_eq!(info["n_embd"], 256);
    assert_eq!(info["n_vocab"], 4096);
    assert_eq!(info["quant"], "f16");
    // In each layer two last inputs, and a number for each key and value of four heads of 64.
    assert_eq!(info["state_bytes"], 8 * (2 * 256 + 4 * 64 * 64) * 4);
    // They are stored as bf16, which becomes f16.
    assert_eq!(info["mapped_bytes"], 0);
    assert_eq!(info["tokenizer"], "tokenizer.json");
    let text = stdout(&run(["info", "--quant", "int8", "--tensors"]));
    assert!(text.contains("9067264 parameters") && text.contains("blocks.7.ffn.value.weight"));
}

#[test]
fn info_says_what_an_rwkv_4_is() {
    let model = path(repository("tests/fixtures/demo4"));
    let info = parse(&stdout(&run(["info", "--json", "--model", &model])));
    assert_eq!(info["architecture"], "rwkv-4");
    assert_eq!(info["n_params"], 8_936_448);
    assert_eq!(info["state_bytes"], 8 * 5 * 256 * 4);
    // All but ffn.value, which is stored the other way round, are used where they lie in the file.
    assert!(info["mapped_bytes"].as_u64() > Some(13_000_000), "{info}");
}

#[test]
fn tokenize_goes_there_and_back() {
    let text = "Ünïcödé \u{1f980}\n\n\tlet x = 0;   \r\n";
    let tokens = stdout(&run_with_stdin(["tokenize"], text.as_bytes()));
    assert_eq!(stdout(&run(["tokenize", "--decode", tokens.trim()])), text);
    let object = parse(&stdout(&run(["tokenize", "--json", text])));
    let list: Vec<_> = ids(&object["tokens"]).iter().map(u32::to_string).collect();
    assert_eq!(list.join(","), tokens.trim());
    assert_eq!(stdout(&run(["tokenize", ""])), "\n", "no text, no tokens");
}

/// A model of the World family, of which nothing but one file remains.
/// Nothing is put in front of tokens that was not asked for.
#[test]
fn token_0_comes_first_where_it_is_asked_for() {
    let asked = run(["logits", "--bos", "--tokens", "5,6", "--all", "--json"]);
    let written = run(["logits", "--tokens", "0,5,6", "--all", "--json"]);
    assert_eq!(stdout(&asked), stdout(&written));
    let prompt = |args: &[&str]| {
        let output = run([&["--json", "-n", "3"], args].concat());
        let object = parse(&stdout(&output));
        (ids(&object["prompt_tokens"]), ids(&object["tokens"]))
    };
    assert_eq!(
        prompt(&["--bos", "--tokens", "5,6"]),
        prompt(&["--tokens", "0,5,6"])
    );
    let (with, _) = prompt(&["--bos", "Ownership is"]);
    let (without, _) = prompt(&["Ownership is"]);
    assert_eq!(with, [&[0], &without[..]].concat());
    assert_ne!(without[0], 0);
}

#[test]
fn the_world_vocabulary_travels_in_a_model_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = path(tiny::write_model(folder.path(), 65_536, &[(98, 1.0)]));
    let vocabulary = repository("tests/fixtures/tokenizer/world_small.txt");
    fs::copy(vocabulary, folder.path().join("rwkv_vocab_v20230424.txt")).expect("can be copied");
    let text = "Hi, 龍 \u{1f980}\n\n";
    let tokens = stdout(&run(["tokenize", "-m", &model, text]));
    let file = tempfile::NamedTempFile::new().expect("a file");
    let file = path(file.path().to_owned());
    assert_eq!(
        stdout(&run([
            "quantize", "-m", &model, "--quant", "int8", "-o", &file
        ])),
        ""
    );
    drop(folder);
    assert_eq!(stdout(&run(["tokenize", "-m", &file, text])), tokens);
    assert_eq!(
        stdout(&run(["tokenize", "-m", &file, "--decode", tokens.trim()])),
        text
    );
    assert_eq!(
        stdout(&run(["-m", &file, "-n", "3", text])),
        format!("{text}aaa")
    );
    let info = parse(&stdout(&run(["info", "--json", "-m", &file])));
    let name = info["tokenizer"].as_str().expect("there is one");
    assert!(name.starts_with("rwkv_vocab_v20230424.txt"), "{name}");
    fs::remove_file(&file).expect("was written");
}

/// The whole validation text, in f32; int8 on the beginning of it.
#[test]
fn perplexities_are_those_of_the_references() {
    let file = path(repository("cli/demo/validation.txt"));
    let number = |object: &Value, key: &str| object[key].as_f64().expect("a number");
    for (folder, model) in trained() {
        let run = |args: &[&str]| {
            let first = ["perplexity", &file, "--json"];
            let args = first.iter().chain(args).copied();
            parse(&stdout(&run(args.chain(model.iter().map(|arg| &arg[..])))))
        };
        let f32 = run(&["--quant", "f32"]);
        assert_eq!(
            (&f32["tokens"], &f32["quant"]),
            (&32_282.into(), &"f32".into())
        );
        let found = number(&f32, "perplexity");
        let expected = &json(folder.join("reference.json"))["validation"];
        let all = number(expected, "perplexity");
        assert!((found / all - 1.0).abs() < 1e-5, "{found}, expected {all}");

        let args = ["--quant", "int8", "--against", "f32", "--limit", "8192"];
        let int8 = run(&args);
        assert_eq!(
            (&int8["tokens"], &int8["quant"]),
            (&8192.into(), &"int8".into())
        );
        let [int8, f32] = ["perplexity", "against_perplexity"].map(|key| number(&int8, key));
        let rise = int8 / f32 - 1.0;
        println!(
            "{}: f32 {found:.5}; of 8192 tokens {f32:.5}, in int8 {int8:.5}, {:+.3} %",
            folder.display(),
            100.0 * rise
        );
        assert!(rise < 0.002, "int8 costs {rise}");
        if let Some(first) = expected["perplexity_first_8192_tokens"].as_f64() {
            assert!((f32 / first - 1.0).abs() < 1e-5, "{f32}, expected {first}");
        }
    }
}

#[test]
fn a_single_token_has_no_perplexity() {
    let folder = tempfile::tempdir().expect("a folder");
    let short = folder.path().join("short");
    fs::write(&short, "a").expect("can be written");
    let output = run(["perplexity", short.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("1 tokens, expected at least 2"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn exit_codes_and_streams() {
    for args in [
        &["--no-such-option"][..],
        &["--temperature", "x"],
        &["quantize"],
        &["logits"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
    for args in [
        &["--help"][..],
        &["--version"],
        &["completions", "bash"],
        &["info", "--help"],
    ] {
        assert!(!stdout(&run(args)).is_empty());
    }
    let script = stdout(&run(["completions", "fish"]));
    assert!(script.contains("perplexity"));
    let output = command()
        .env("RWKV_EDGE_KERNELS", "mmx")
        .arg("A")
        .output()
        .expect("starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("RWKV_EDGE_KERNELS=mmx"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_closed_pipe_is_success() {
    for args in [
        &["-n", "400", "--ignore-eos", "A"][..],
        &["info", "--tensors"],
    ] {
        let mut child = command()
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("ends");
        assert_eq!(
            (output.status.code(), stderr(&output)),
            (Some(0), String::new()),
            "{args:?}"
        );
    }
}

#[test]
fn bench_writes_a_report_that_can_be_compared() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let quick = ["bench", "-n", "4", "-p", "16", "-r", "1", "--quant", "int8"];
    let report = |file: &str| {
        let printed = stdout(&run([&quick[..], &["--report", file]].concat()));
        assert!(printed.contains("decode"), "{printed}");
        let text = fs::read_to_string(file).expect("was written");
        serde_json::from_str::<Value>(&text).expect("JSON")
    };
    let (a, b) = (path("a.json"), path("b.json"));
    let found = report(&a);
    assert_eq!(found["rwkv_edge_report"], 1);
    assert!(found["bench"]["decode_tokens_per_s"].as_f64() > Some(0.0));
    let threads = found["decode_by_threads"].as_array().expect("a list");
    assert_eq!(threads[0]["threads"], 1);
    for key in ["machine", "before", "after"] {
        assert!(found[key].is_object(), "{key}");
    }
    assert!(found.pointer("/machine/usable_threads").is_some());
    report(&b);
    // Another one may take its place.
    report(&b);
    let compared = stdout(&run(["bench", "--compare", &a, &b]));
    let decode = compared.lines().find(|line| line.starts_with("decode  "));
    assert_eq!(
        decode.map(|line| line.matches("tokens/s").count()),
        Some(2),
        "{compared}"
    );

    let other = path("other.json");
    fs::write(&other, "{\"mine\": 1}").expect("writable");
    for args in [
        [&quick[..], &["--report", &other]].concat(),
        vec!["bench", "--compare", &a, &other],
        vec!["bench", "--compare", &a, &path("none")],
    ] {
        let output = run(args.clone());
        assert_eq!(output.status.code(), Some(1), "{args:?}");
    }
    assert_eq!(
        fs::read_to_string(&other).expect("is there"),
        "{\"mine\": 1}"
    );
}
