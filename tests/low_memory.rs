//! Models larger than the memory they may use: the same numbers, within the limit.
//!
//! The limit is held against the peak that the system counts for a process, VmHWM: everything resident, mapped
//! files and the program included.
#![cfg(any(target_os = "linux", target_os = "android"))]

#[path = "common/cgroup.rs"]
mod cgroup;
#[path = "common/command.rs"]
mod command;
mod common;
#[path = "common/large.rs"]
mod large;
#[path = "common/skipped.rs"]
mod skipped;

use std::path::{Path, PathBuf};
use std::process::Command;

use command::{command, run, run_with_stdin, stderr, stdout};
use large::MIB;
use rwkv_edge::{ErrorKind, Model, Options, Output, Quant, Session, Span};
use serde_json::Value;

/// Model files of one made-up checkpoint: 31 MB as int8, 62 as f16, 124 as f32.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let files = Files { folder };
        large::write_checkpoint(&files.checkpoint());
        files
    }

    fn checkpoint(&self) -> PathBuf {
        self.folder.path().join("checkpoint.safetensors")
    }

    fn model(&self, quant: Quant) -> PathBuf {
        let path = self.folder.path().join(format!("{quant}.safetensors"));
        if !path.exists() {
            let model = open(&self.checkpoint(), Some(quant), 0).expect("a valid checkpoint");
            model.save(&path, &mut |_| {}).expect("room on the disk");
        }
        path
    }
}

fn open(path: &Path, quant: Option<Quant>, memory_max: u64) -> rwkv_edge::Result<Model> {
    let options = Options::new()
        .quant(quant)
        .threads(2)
        .memory_max(memory_max);
    Model::open(path, &options)
}

/// The smallest limit that a model is opened with.
fn enough(path: &Path) -> u64 {
    let error = open(path, None, 1).expect_err("one byte is too little");
    assert_eq!(error.kind(), ErrorKind::Memory);
    number_behind(&error.to_string(), "needs ")
}

fn number_behind(text: &str, words: &str) -> u64 {
    let at = text
        .find(words)
        .unwrap_or_else(|| panic!("{words:?} in {text}"))
        + words.len();
    let digits: String = text[at..]
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().expect("a number")
}

/// Logits of every token of prompts that go through the network token by token, by a few, and by many at once.
fn logits(model: &Model) -> Vec<u32> {
    let n_vocab = model.n_vocab() as u32;
    let tokens: Vec<u32> = (0..200).map(|i| i * 7919 % n_vocab).collect();
    let mut all = Vec::new();
    let mut state = model.new_state();
    let mut workspace = model.workspace(50);
    for length in [1, 1, 5, 7, 8, 40, 50] {
        let mut logits = vec![0.0; length * model.n_vocab()];
        let span = Span::new(&mut state, &tokens[..length], Output::All);
        model
            .forward(&mut workspace, &mut [span], &mut logits)
            .expect("valid tokens");
        all.extend(logits.iter().map(|logit| logit.to_bits()));
    }
    all
}

#[test]
fn a_limit_changes_no_bit() {
    let files = Files::new();
    for quant in [Quant::Int8, Quant::F16, Quant::F32] {
        let path = files.model(quant);
        let free = open(&path, None, 0).expect("no limit");
        assert_eq!(free.info().paged_bytes, 0);
        let expected = logits(&free);
        let enough = enough(&path);
        assert!(enough < free.info().weight_bytes, "{quant}: {enough}");
        for more in [0, 3_000_000, 11_000_000] {
            let limited = open(&path, None, enough + more).expect("is enough");
            let paged = limited.info().paged_bytes;
            assert!(paged > 0, "{quant}, {more} more");
            assert!(logits(&limited) == expected, "{quant}, {more} more");
            // What was taken has been given back.
            assert_eq!(limited.info().paged_bytes, paged, "{quant}, {more} more");
        }
        open(&path, None, enough - 1).expect_err("is not enough");
    }
}

#[test]
fn everything_that_is_taken_counts() {
    let files = Files::new();
    let path = files.model(Quant::Int8);
    // With room for all, nothing is read again, and nothing is counted twice.
    let all = open(&path, None, 200 * MIB).expect("fits");
    assert_eq!(all.info().paged_bytes, 0);
    let left = all.memory_left().expect("a limit");
    assert!(left < 200 * MIB - all.info().weight_bytes, "{left}");
    let session = all.session();
    assert!(all.memory_left() < Some(left));
    drop(session);
    assert_eq!(all.memory_left(), Some(left));

    // A limit that fits one session, and not two.
    let limited = open(&path, None, enough(&path)).expect("is enough");
    let (one, _sampler) = Session::with_all_memory(&limited).expect("fits");
    let error = Session::with_all_memory(&limited).expect_err("does not fit");
    assert_eq!(error.kind(), ErrorKind::Memory);
    assert!(error.to_string().contains("another session of"), "{error}");
    drop(one);
    Session::with_all_memory(&limited).expect("fits again");
    // Shorter pieces of a prompt are what made it fit.
    assert!(limited.prefill_rows() < all.prefill_rows());

    // Weights make room for what callers take.
    let limited = open(&path, None, enough(&path) + 8 * MIB).expect("is enough");
    let paged = limited.info().paged_bytes;
    let held = limited.reserve_memory(4 * MIB).expect("is there");
    assert_eq!(limited.info().paged_bytes, paged + 4 * MIB);
    limited.reserve_memory(40 * MIB).expect_err("is not there");
    drop(held);

    // What is converted while loading, or read, has no file to come back from.
    let error = open(&files.checkpoint(), Some(Quant::Int8), 24 * MIB).expect_err("too little");
    assert!(error.to_string().contains("`quantize`"), "{error}");
    let no_mmap = Options::new().no_mmap(true).memory_max(24 * MIB);
    // Nor have copies; they are counted before they are made.
    let huge_pages = |memory_max| {
        no_mmap
            .clone()
            .huge_pages(true)
            .no_mmap(false)
            .memory_max(memory_max)
    };
    for file in [&path, &files.checkpoint()] {
        let error = Model::open(file, &huge_pages(1)).expect_err("too little");
        let needs = number_behind(&error.to_string(), "needs ");
        let length = std::fs::metadata(file).expect("is there").len();
        assert!(needs > length, "{error}");
        Model::open(file, &huge_pages(needs - 1)).expect_err("one byte too little");
        let copied = Model::open(file, &huge_pages(needs)).expect("is enough");
        assert!(copied.info().huge_page_bytes > 0 && copied.info().paged_bytes == 0);
    }
    let error = Model::open(&path, &no_mmap).expect_err("too little");
    let does = number_behind(&error.to_string(), "does with ");
    // In M, as a limit is given.
    assert!(does > 1 && does * MIB < 26 * MIB, "{error}");
    // A checkpoint's own matrices are used in place, all but those that are stored the other way round.
    let checkpoint = open(&files.checkpoint(), None, 100 * MIB).expect("fits in part");
    assert!(checkpoint.info().paged_bytes > 0);
}

/// Several callers at once share the window.
#[test]
fn threads_take_turns() {
    let files = Files::new();
    let path = files.model(Quant::Int8);
    let expected = logits(&open(&path, None, 0).expect("no limit"));
    let limited = open(&path, None, enough(&path) + MIB).expect("is enough");
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert!(logits(&limited) == expected));
        }
    });
}

fn json(output: &str) -> Value {
    serde_json::from_str(output).expect("JSON")
}

/// Generates 12 tokens behind a prompt of 40; gives the tokens and the process's own peak.
fn generate(command: &mut Command, model: &Path, limit: Option<u64>) -> (Value, u64) {
    generate_with(command, &[], model, limit)
}

/// The same with more options.
fn generate_with(
    command: &mut Command,
    options: &[&str],
    model: &Path,
    limit: Option<u64>,
) -> (Value, u64) {
    let prompt: Vec<String> = (1..=40).map(|i| (i * 577).to_string()).collect();
    command
        .args([
            "generate",
            "--json",
            "--ignore-eos",
            "-n",
            "12",
            "--threads",
            "2",
        ])
        .args(options)
        .args(["--tokens", &prompt.join(","), "--model"])
        .arg(model);
    if let Some(limit) = limit {
        command.args(["--max-memory", &limit.to_string()]);
    }
    let report = json(&stdout(&command.output().expect("the binary starts")));
    let peak = report["peak_rss_bytes"].as_u64().expect("Linux tells");
    (report["tokens"].clone(), peak)
}

#[test]
fn the_process_stays_within_its_limit() {
    let files = Files::new();
    for quant in [Quant::F16, Quant::F32] {
        let path = files.model(quant);
        let (expected, free_peak) = generate(&mut command(), &path, None);
        let refused = command()
            .args(["generate", "--tokens", "1", "--max-memory", "1M", "--model"])
            .arg(&path)
            .output()
            .expect("the binary starts");
        assert_eq!(refused.status.code(), Some(1));
        let text = stderr(&refused);
        let enough = number_behind(&text, "needs ");
        assert!(text.contains("the program "), "{text}");
        // How much of the program is in memory is not the same each time.
        for limit in [enough + 2 * MIB, enough + 8 * MIB] {
            let (tokens, peak) = generate(&mut command(), &path, Some(limit));
            println!("{quant}: peak {peak} within {limit}, {free_peak} without a limit");
            assert_eq!(tokens, expected, "{quant} within {limit}");
            assert!(peak <= limit, "{quant}: {peak} within {limit}");
            assert!(limit < free_peak, "{quant}: the test is about nothing");
        }
    }
}

/// A copy in huge pages counts, and the file it is made from is not in memory beside it.
#[test]
fn a_copy_stays_within_the_limit() {
    let files = Files::new();
    for path in [files.model(Quant::F16), files.checkpoint()] {
        let (expected, _) = generate(&mut command(), &path, None);
        let refused = command()
            .args([
                "generate",
                "--tokens",
                "1",
                "--max-memory",
                "1M",
                "--huge-pages",
                "--model",
            ])
            .arg(&path)
            .output()
            .expect("the binary starts");
        assert_eq!(refused.status.code(), Some(1));
        let limit = number_behind(&stderr(&refused), "needs ") + 2 * MIB;
        let options = ["--huge-pages"];
        let (tokens, peak) = generate_with(&mut command(), &options, &path, Some(limit));
        println!("{}: peak {peak} within {limit}", path.display());
        assert_eq!(tokens, expected);
        assert!(peak <= limit, "{peak} within {limit}");
    }
}

#[test]
fn sizes_on_the_command_line() {
    for good in ["1GiB", "2G", "900MB", "1000000000"] {
        stdout(&run(["generate", "-n", "1", "--max-memory", good, "Hello"]));
    }
    for bad in ["", "0", "many", "5X"] {
        let output = run(["generate", "--max-memory", bad, "Hello"]);
        assert_eq!(output.status.code(), Some(2), "{bad:?}");
        assert!(stderr(&output).contains("--max-memory"), "{bad:?}");
    }
    let refused = run(["generate", "--max-memory", "20M", "Hello"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("expected at most 20971520"));
}

/// All that will be needed is told at once, the tokenizer included.
#[test]
fn the_number_of_a_refusal_is_enough_for_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("demo.safetensors");
    let file = path.to_str().expect("test paths are UTF-8");
    stdout(&run(["quantize", "--quant", "f16", "-o", file]));
    let say = |limit: &[&str]| {
        let args = ["generate", "-n", "8", "--model", file, "Ownership is"];
        run(args.iter().chain(limit))
    };
    let expected = stdout(&say(&[]));
    let refused = say(&["--max-memory", "1M"]);
    assert_eq!(refused.status.code(), Some(1));
    let text = stderr(&refused);
    assert!(text.contains("the tokenizer "), "{text}");
    // How much of the program is in memory is not the same each time, so what can be typed is some more.
    let enough = number_behind(&text, "(the memory limit): ");
    assert!(text.contains(&format!("): {enough}M will do")), "{text}");
    let enough = format!("{enough}M");
    assert_eq!(stdout(&say(&["--max-memory", &enough])), expected);
}

/// The process's own peak, as --verbose tells it.
fn told_peak(output: &std::process::Output) -> f64 {
    let text = stderr(output);
    let (_, told) = text
        .split_once("s in all, at most ")
        .expect("--verbose tells");
    let megabytes = told.split(' ').next().and_then(|n| n.parse().ok());
    let megabytes: f64 = megabytes.expect("a number");
    megabytes * 1e6
}

/// Prompts, and what makes tokens of them, count like the model: a text is read as far as there is room for it,
/// and one that there is none for is refused with the number.
#[test]
fn texts_stay_within_the_limit() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("room on the disk");
        path.to_str().expect("test paths are UTF-8").to_owned()
    };
    let model = folder.path().join("model.safetensors");
    let model = model.to_str().expect("test paths are UTF-8");
    stdout(&run(["quantize", "--quant", "int8", "-o", model]));
    let refused = run(["generate", "--max-memory", "1M", "--model", model, "Hello"]);
    let enough = number_behind(&stderr(&refused), "needs ");
    let sentence = "Ownership is a set of 12 rules that it's good to know, naïve or not.\n";
    let long = file("long.txt", &sentence.repeat(20_000));
    let short = file("short.txt", &sentence.repeat(60));
    let lines = format!("{{\"text\": \"{}\"}}\n", sentence.trim_end()).repeat(500);
    let lines = file("lines.jsonl", &lines);
    // 2 MB in which no word ends.
    let endless = "a".repeat(2_000_000);
    let uncut = file("uncut.txt", &endless);
    // `chat` keeps a state more than `generate`.
    for limit in [enough + 3 * MIB, enough + 9 * MIB] {
        let in_bytes = limit.to_string();
        for (args, stdin, fits) in [
            (vec!["perplexity", "--limit", "20", &long], "", true),
            (vec!["generate", "-n", "1", "--file", &short], "", true),
            (vec!["embed", "--file", &short], "", true),
            (vec!["eval", "lambada", "--limit", "9", &lines], "", true),
            (vec!["chat", "-n", "1"], sentence, true),
            (vec!["perplexity", "--limit", "20", &uncut], "", false),
            (vec!["generate", "-n", "1", "--file", &uncut], "", false),
            (vec!["embed", "--file", &uncut], "", false),
            (vec!["chat", "-n", "1"], endless.as_str(), false),
        ] {
            let more = ["--verbose", "--max-memory", &in_bytes, "--model", model];
            let output = run_with_stdin(args.iter().chain(&more), stdin.as_bytes());
            let (name, peak, text) = (args[0], told_peak(&output), stderr(&output));
            println!("{name}: {peak} within {limit}");
            assert!(
                peak <= limit as f64 + 1e5,
                "{name}: {peak} within {limit}: {text}"
            );
            assert_eq!(
                output.status.code(),
                Some(i32::from(!fits)),
                "{name}: {text}"
            );
            assert_eq!(text.contains("(the memory limit)"), !fits, "{name}: {text}");
        }
    }
}

/// Without a limit, too: no more of a text is in memory than is worked on.
#[test]
fn long_texts_take_little_memory() {
    if large::skipped_under_emulation() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("long.txt");
    let text = "hello world main 123 ".repeat(150_000);
    std::fs::write(&path, &text).expect("room on the disk");
    let path = path.to_str().expect("test paths are UTF-8");
    for args in [
        ["tokenize", "--json", "--file", path],
        ["perplexity", "--limit", "50", path],
    ] {
        let output = run(args.iter().chain(&["--verbose"]));
        stdout(&output);
        let peak = told_peak(&output);
        println!("{}: {peak}", args[0]);
        assert!(peak < 100e6, "{}: {peak}", args[0]);
    }
    // What does not fit is said, and nothing aborts.
    std::fs::write(path, "a".repeat(3_000_000)).expect("room on the disk");
    let script = "ulimit -v 400000 && exec \"$0\" tokenize --file \"$1\"";
    let mut limited = Command::new("sh");
    limited.args(["-c", script, env!("CARGO_BIN_EXE_rwkv-edge"), path]);
    let output = limited.output().expect("sh is there");
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("not enough memory") && text.lines().count() == 1,
        "{text}"
    );
}

/// Whatever the system counts, not the process itself.
fn in_cgroup(model: &Path, limit: u64, expected: &Value) {
    let Some(cgroup) = cgroup::Limited::new(limit) else {
        skipped::skipped("a cgroup with a memory limit that this process may make");
        return;
    };
    // Pages of a file count for the group that first read them.
    let copy = model.with_extension("copy");
    let mut cp = Command::new("cp");
    cp.args([model, &copy]);
    stdout(&cgroup.command(&cp).output().expect("sh is there"));
    let (model, mut command) = (copy.as_path(), cgroup.command(&command()));
    let (tokens, peak) = generate(&mut command, model, Some(limit));
    println!("in a cgroup of {limit} bytes: VmHWM {peak}");
    assert_eq!(&tokens, expected);
    assert!(peak <= limit);
}

#[test]
fn in_a_cgroup_with_that_limit() {
    let files = Files::new();
    let path = files.model(Quant::F32);
    let (expected, _) = generate(&mut command(), &path, None);
    in_cgroup(&path, 32 * MIB, &expected);
}

/// The published size: 170 MB of int8 weights within 64 MiB. Makes its own file, which takes a while.
#[test]
#[ignore = "slow: run by .ci/full"]
fn the_169m_model_runs_within_64_mib() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("169m.safetensors");
    let made = command()
        .args(["bench", "--synthetic", "169m", "--quant", "int8", "--save"])
        .arg(&path)
        .output()
        .expect("the binary starts");
    stdout(&made);
    let limit = 64 * MIB;
    let (expected, free_peak) = generate(&mut command(), &path, None);
    let (tokens, peak) = generate(&mut command(), &path, Some(limit));
    println!("169M int8: peak {peak} within {limit}, {free_peak} without a limit");
    assert_eq!(tokens, expected);
    assert!(peak <= limit && free_peak > limit, "{peak}, {free_peak}");
    let logits = |limit: &[&str]| {
        let mut command = command();
        command.args([
            "logits",
            "--json",
            "--all",
            "--tokens",
            "1,500,30000,7,7,12,50276,0,9,10",
        ]);
        let output = command.arg("--model").arg(&path).args(limit).output();
        stdout(&output.expect("the binary starts"))
    };
    assert!(
        logits(&["--max-memory", "64MiB"]) == logits(&[]),
        "logits differ"
    );
    in_cgroup(&path, limit, &expected);
}

/// What only measures has to fit, too.
#[test]
fn a_benchmark_keeps_to_its_limit() {
    let args = [
        "--json",
        "-r",
        "1",
        "-n",
        "2",
        "-p",
        "4",
        "--max-memory",
        "64M",
    ];
    let output = run([&["bench"][..], &args].concat());
    let report: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert!(report["read_bytes_per_s"].is_null(), "{report}");
    assert!(report["f32_macs_per_s"].as_f64() > Some(0.0), "{report}");
}
