//! `perplexity` through the binary: against what transformers computes of an RWKV-4, against raw logits, and against
//! models put together by hand. docs/EVALUATION.md states the conventions.

#[path = "common/command.rs"]
mod command;
mod common;
#[path = "common/skipped.rs"]
mod skipped;

use std::fs;
use std::path::PathBuf;

use command::{run, stderr, stdout};
use common::{floats, golden, ids, json, repository};
use rwkv_edge::{Model, Options, Quant};
use serde_json::Value;

fn text(path: PathBuf) -> String {
    path.to_str().expect("test paths are UTF-8").to_owned()
}

fn validation() -> String {
    text(repository("cli/demo/validation.txt"))
}

/// What `perplexity --json` says of the demo model and its validation text.
fn perplexity(args: &[&str]) -> Value {
    let file = validation();
    let first = ["perplexity", &file, "--json"];
    let output = stdout(&run(first.iter().chain(args)));
    serde_json::from_str(&output).unwrap_or_else(|e| panic!("{e}: {output}"))
}

fn number(object: &Value, key: &str) -> f64 {
    let value = object[key].as_f64();
    value.unwrap_or_else(|| panic!("no {key} in {object}"))
}

fn assert_close(found: f64, expected: f64, relative: f64, what: &str) {
    let difference = (found / expected - 1.0).abs();
    assert!(
        difference < relative,
        "{what}: {found}, expected {expected}"
    );
}

#[test]
fn windows_are_those_of_transformers() {
    let expected = json(repository("tests/fixtures/evaluation/expected.json"));
    let cases = expected["sliding"].as_array().expect("cases");
    let model = text(repository("tests/fixtures/demo4"));
    let perplexity = |args: &[&str]| perplexity(&[&["-m", &model], args].concat());
    for case in cases {
        let [limit, window, stride] =
            ["limit", "window", "stride"].map(|key| case[key].to_string());
        let args = [
            "--quant", "f32", "--limit", &limit, "--window", &window, "--stride", &stride,
        ];
        let found = perplexity(&args);
        let what = format!("{window} every {stride}");
        assert_close(
            number(&found, "perplexity"),
            number(case, "perplexity"),
            1e-5,
            &what,
        );
        for key in ["predicted", "window", "stride"] {
            assert_eq!(found[key], case[key], "{key} of {what}");
        }
        assert_eq!(found["tokens"], case["limit"]);
        assert_close(
            number(&found, "loss").exp(),
            number(&found, "perplexity"),
            1e-12,
            &what,
        );
    }
    assert!(cases.len() >= 5);
    // A stride that is not given is half a window.
    let args = ["--quant", "int8", "--limit", "500", "--window", "100"];
    let half = perplexity(&[&args[..], &["--stride", "50"]].concat());
    let default = perplexity(&args);
    assert_eq!(half["loss"], default["loss"]);
    // One window that holds everything is the whole text.
    let args = ["--quant", "int8", "--limit", "500"];
    let whole = perplexity(&args);
    let window = perplexity(&[&args[..], &["--window", "500"]].concat());
    assert_eq!(whole["loss"], window["loss"]);
    assert_eq!(
        (&whole["window"], &whole["predicted"]),
        (&Value::Null, &Value::from(499))
    );
}

/// Rows of logits for the first `n` tokens of the text.
fn logits(quant: &str, tokens: &str) -> Vec<Vec<f64>> {
    let output = run([
        "logits", "--quant", quant, "--all", "--json", "--tokens", tokens,
    ]);
    let object: Value = serde_json::from_str(&stdout(&output)).expect("valid JSON");
    let rows = object["logits"].as_array().expect("rows").iter();
    rows.map(floats).collect()
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
    row.iter().map(|x| (x - max).exp() / sum).collect()
}

fn argmax(row: &[f64]) -> usize {
    let best = |best, i| if row[i] > row[best] { i } else { best };
    (0..row.len()).fold(0, best)
}

#[test]
fn divergence_is_that_of_the_raw_logits() {
    const TOKENS: usize = 150;
    let n = TOKENS.to_string();
    let tokens = stdout(&run(["tokenize", "--file", &validation()]));
    let tokens: Vec<_> = tokens.trim().split(',').take(TOKENS).collect();
    let list = tokens.join(",");
    let (reference, model) = (logits("f32", &list), logits("int8", &list));
    let (mut kls, mut agreeing, mut loss) = (Vec::new(), 0, 0.0);
    for at in 0..TOKENS - 1 {
        let (p, q) = (softmax(&reference[at]), softmax(&model[at]));
        kls.push(p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>());
        agreeing += usize::from(argmax(&p) == argmax(&q));
        let target: usize = tokens[at + 1].parse().expect("an id");
        loss -= q[target].ln();
    }
    kls.sort_by(f64::total_cmp);
    let at = 0.99 * (kls.len() - 1) as f64;
    let (low, high) = (kls[at as usize], kls[at as usize + 1]);
    let p99 = low + at.fract() * (high - low);
    let n_predicted = (TOKENS - 1) as f64;

    let found = perplexity(&["--quant", "int8", "--against", "f32", "--limit", &n]);
    // f32 logits depend in their last bits on how many tokens are fed at once.
    assert_close(
        number(&found, "kl_mean"),
        kls.iter().sum::<f64>() / n_predicted,
        1e-3,
        "mean",
    );
    assert_close(number(&found, "kl_p99"), p99, 1e-2, "99th percentile");
    assert_close(
        number(&found, "kl_max"),
        kls[kls.len() - 1],
        1e-2,
        "largest",
    );
    let agreement = agreeing as f64 / n_predicted;
    assert_close(
        number(&found, "top1_agreement"),
        agreement,
        1e-12,
        "agreement",
    );
    assert_close(number(&found, "loss"), loss / n_predicted, 1e-5, "loss");
    assert_eq!(
        (&found["against"], &found["quant"]),
        (&"f32".into(), &"int8".into())
    );
    // A model is no distance from itself, and f16 is nearer to f32 than int8 is.
    let same = perplexity(&["--quant", "f32", "--against", "f32", "--limit", &n]);
    assert!(number(&same, "kl_max") < 1e-9 && number(&same, "top1_agreement") == 1.0);
    assert_eq!(same["perplexity"], same["against_perplexity"]);
    assert_eq!(same["against_perplexity"], found["against_perplexity"]);
    let f16 = perplexity(&["--quant", "f16", "--against", "f32", "--limit", &n]);
    assert!(number(&f16, "kl_mean") < 0.01 * number(&found, "kl_mean"));
}

/// Then the first token of the text is predicted, too.
#[test]
fn token_0_stands_in_front_where_it_is_asked_for() {
    let args = ["--quant", "int8", "--limit", "60"];
    let (without, with) = (
        perplexity(&args),
        perplexity(&[&args[..], &["--bos"]].concat()),
    );
    assert_eq!(
        (&without["predicted"], &with["predicted"]),
        (&59.into(), &60.into())
    );
    let output = stdout(&run(["tokenize", "--json", "--", &validation_text()]));
    let object: Value = serde_json::from_str(&output).expect("JSON");
    let tokens = &ids(&object["tokens"])[..60];
    let list: Vec<String> = tokens.iter().map(u32::to_string).collect();
    let rows = logits("int8", &format!("0,{}", list.join(",")));
    let losses = rows
        .iter()
        .zip(tokens)
        .map(|(row, &token)| -softmax(row)[token as usize].ln());
    let loss = losses.sum::<f64>() / 60.0;
    assert_close(number(&with, "loss"), loss, 1e-5, "with token 0");
    assert!((number(&without, "loss") / loss - 1.0).abs() > 1e-3);
}

/// The beginning of the validation text.
fn validation_text() -> String {
    let text = std::fs::read_to_string(validation()).expect("is there");
    text.chars().take(2000).collect()
}

#[test]
fn a_model_file_is_compared_with_its_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = text(folder.path().join("demo.safetensors"));
    stdout(&run(["quantize", "--quant", "int8", "-o", &file]));
    let limit = ["--limit", "200"];
    let args = ["-m", &file, "--against", "f32"];
    let output = run(["perplexity", &validation()].iter().copied().chain(args));
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("--against-model") && said.contains("int8"),
        "{said}"
    );

    let demo = text(repository("cli/demo"));
    let of_file = perplexity(&[&args[..], &limit, &["--against-model", &demo]].concat());
    let at_load = perplexity(&[&["-q", "int8", "--against", "f32"], &limit[..]].concat());
    for key in [
        "kl_mean",
        "kl_p99",
        "top1_agreement",
        "perplexity",
        "against_perplexity",
    ] {
        assert_eq!(of_file[key], at_load[key], "{key}");
    }
    // Without --against, as it is stored.
    let stored = perplexity(&[&["-m", &file, "--against-model", &demo], &limit[..]].concat());
    assert_eq!(stored["against"], "f16");

    let other = text(golden("small-safetensors"));
    let args = ["-m", &file, "--against-model", &other];
    let output = run(["perplexity", &validation()].iter().copied().chain(args));
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(
        said.contains("vocabulary") && said.contains("4096"),
        "{said}"
    );
}

#[test]
fn matrices_are_ranked_by_what_each_alone_does() {
    const TOKENS: usize = 65;
    let folder = tempfile::tempdir().expect("a folder");
    let plot = folder.path().join("plot.svg");
    let n = TOKENS.to_string();
    let args = ["--limit", &n, "--by-tensor", "--plot", &text(plot.clone())];
    let found = perplexity(&args);
    assert_eq!(
        (&found["quant"], &found["against"]),
        (&"int8".into(), &"f32".into())
    );
    let ranking = found["by_tensor"].as_array().expect("a ranking");

    // Every matrix that is quantised once, the worst first.
    let open = |quant| {
        let options = Options::new().quant(quant);
        Model::open(repository("cli/demo"), &options).expect("the demo model")
    };
    let (reference, quantised) = (open(Quant::F32), open(Quant::Int8));
    let tensors = quantised.tensors().into_iter();
    let mut expected: Vec<_> = tensors
        .filter(|tensor| tensor.quant == Quant::Int8)
        .map(|tensor| tensor.name)
        .collect();
    let name = |entry: &Value| entry["name"].as_str().expect("a name").to_owned();
    let mut names: Vec<_> = ranking.iter().map(name).collect();
    let kls: Vec<_> = ranking
        .iter()
        .map(|entry| number(entry, "kl_mean"))
        .collect();
    assert!(kls.windows(2).all(|pair| pair[0] >= pair[1]));
    assert!(kls
        .iter()
        .all(|&kl| kl > 0.0 && kl < number(&found, "kl_mean")));
    let worst = ranking[0].clone();
    expected.sort();
    names.sort();
    assert_eq!((names.len(), &names), (2 + 6 * 8, &expected));

    // The worst one, by hand.
    let mixed = reference
        .with_matrices_of(&quantised, &[&name(&worst)])
        .expect("of the same checkpoint");
    let tokens = stdout(&run(["tokenize", "--json", "--file", &validation()]));
    let tokens: Value = serde_json::from_str(&tokens).expect("valid JSON");
    let tokens = &ids(&tokens["tokens"])[..TOKENS];
    let rows = |model: &Model| -> Vec<Vec<f64>> {
        let logits = model.session().eval_all(&tokens[..TOKENS - 1]);
        let logits = logits.expect("valid tokens");
        let rows = logits.chunks_exact(model.n_vocab());
        rows.map(|row| softmax(&row.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()))
            .collect()
    };
    let (p, q) = (rows(&reference), rows(&mixed));
    let kl = |(p, q): (&Vec<f64>, &Vec<f64>)| {
        p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum::<f64>()
    };
    let mean = p.iter().zip(&q).map(kl).sum::<f64>() / (TOKENS - 1) as f64;
    assert_close(number(&worst, "kl_mean"), mean, 1e-3, "kl_mean");
    let nll = |(row, &token): (&Vec<f64>, &u32)| -row[token as usize].ln();
    let loss = q.iter().zip(&tokens[1..]).map(nll).sum::<f64>() / (TOKENS - 1) as f64;
    assert_close(number(&worst, "perplexity"), loss.exp(), 1e-5, "perplexity");

    // All together are what --against alone says.
    let all = perplexity(&["--quant", "int8", "--against", "f32", "--limit", &n]);
    for key in [
        "kl_mean",
        "kl_p99",
        "kl_max",
        "top1_agreement",
        "perplexity",
    ] {
        assert_eq!(found[key], all[key], "{key}");
    }
    let svg = fs::read_to_string(plot).expect("was drawn");
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    assert!(names.iter().all(|name| svg.contains(name)));

    let table = stdout(&run([
        "perplexity",
        &validation(),
        "--limit",
        "20",
        "--by-tensor",
    ]));
    assert!(table.lines().count() >= 3 + names.len());
    assert!(table.lines().all(|line| line.len() <= 150));
    assert!(names.iter().all(|name| table.contains(name)));
}

#[test]
fn memory_does_not_grow_with_the_text() {
    // What --verbose says at the end; the peak of the whole process.
    let peak = |limit: &str| {
        let args = ["-q", "int8", "--against", "f16", "-v", "--limit", limit];
        let output = run(["perplexity", &validation()].iter().copied().chain(args));
        let said = stderr(&output);
        let last = said.lines().last().expect("a line").to_owned();
        let (_, megabytes) = last
            .split_once("at most ")
            .unwrap_or_else(|| panic!("{last}"));
        let megabytes = megabytes.split(' ').next().expect("a number");
        megabytes.parse::<f64>().expect("a number")
    };
    if !cfg!(target_os = "linux") {
        skipped::skipped("only Linux says how much memory a process had");
        return;
    }
    let (short, long) = (peak("300"), peak("4000"));
    println!("{short} MB for 300 tokens, {long} MB for 4000");
    assert!(long < short + 4.0);
}

#[test]
fn wrong_usage_and_bad_input() {
    let file = validation();
    let folder = tempfile::tempdir().expect("a folder");
    for (args, words) in [
        (&["--stride", "4"][..], "--window"),
        (&["--window", "8", "--stride", "9"], "--stride 9"),
        (&["--window", "1"], "--window"),
        (&["--window", "8", "--stride", "0"], "--stride"),
        (&["--limit", "1"], "--limit"),
        (&["--plot", "x.svg"], "--by-tensor"),
        (&["--against", "int4"], "int8"),
    ] {
        let output = run(["perplexity", &file].iter().chain(args));
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(
            stderr(&output).contains(words),
            "{args:?}: {}",
            stderr(&output)
        );
        assert!(output.stdout.is_empty());
    }
    let empty = text(folder.path().join("empty"));
    fs::write(&empty, "").expect("can be written");
    let folder_path = text(folder.path().to_owned());
    let plot = text(folder.path().join("missing/plot.svg"));
    let odd = text(golden("odd-bin"));
    for (args, words) in [
        (&["no/such/file"][..], "no/such/file: cannot read"),
        (&[&folder_path], "cannot read"),
        (&[&empty], "0 tokens, expected at least 2"),
        (&[&file, "--by-tensor", "--plot", &plot], "missing/plot.svg"),
        (
            &[&file, "--by-tensor", "-q", "f32"],
            "--by-tensor: both models are f32",
        ),
        (&[&file, "-m", &odd], "--tokenizer"),
    ] {
        let output = run(["perplexity"].iter().chain(args));
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(
            said.contains(words) && said.lines().count() == 1,
            "{args:?}: {said}"
        );
        assert!(output.stdout.is_empty());
    }
    let left = fs::read_dir(folder.path()).expect("readable").count();
    assert_eq!(left, 1, "nothing was written");
}
