//! `rwkv-edge embed`, black box, with the demo model: every vector is compared with what the library
//! computes for that line alone.

#![allow(clippy::unwrap_used)]

#[path = "common/command.rs"]
mod command;
mod common;

use std::process::Stdio;

use command::{command, run, run_with_stdin, stderr, stdout};
use common::{open, repository};
use rwkv_edge::{Model, Output, Quant, Span};

/// Lines of all sorts: long ones go through in pieces, many short ones in one batch.
fn lines() -> Vec<String> {
    let validation = std::fs::read_to_string(repository("cli/demo/validation.txt")).unwrap();
    let mut lines: Vec<String> = validation.lines().take(70).map(str::to_owned).collect();
    lines.push(
        validation
            .chars()
            .take(2_000)
            .filter(|&c| c != '\n')
            .collect(),
    );
    lines.push("Ünïcödé \u{1f980} 龍".into());
    lines.push("x".into());
    assert!(lines.iter().any(String::is_empty));
    lines
}

fn vectors(output: &std::process::Output) -> Vec<Vec<f32>> {
    let text = stdout(output);
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn embed(args: &[&str], input: &str) -> Vec<Vec<f32>> {
    let args = ["embed", "--quant", "int8"].iter().chain(args);
    vectors(&run_with_stdin(args, input.as_bytes()))
}

/// A line's vectors by the library: hidden-last, hidden-mean, state:5.
fn expected(model: &Model, line: &str) -> [Vec<f64>; 3] {
    let n_embd = model.info().n_embd;
    let tokens = model.tokenizer().unwrap().encode(line).unwrap();
    if tokens.is_empty() {
        return std::array::from_fn(|_| vec![0.0; n_embd]);
    }
    let mut state = model.new_state();
    let mut rows = vec![0.0; tokens.len() * n_embd];
    let span = Span::new(&mut state, &tokens, Output::All);
    let mut workspace = model.workspace(48);
    model
        .forward_hidden(&mut workspace, &mut [span], &mut rows)
        .unwrap();
    let mut mean = vec![0.0; n_embd];
    for row in rows.chunks(n_embd) {
        mean.iter_mut()
            .zip(row)
            .for_each(|(sum, &x)| *sum += f64::from(x));
    }
    mean.iter_mut().for_each(|sum| *sum /= tokens.len() as f64);
    let last = rows[rows.len() - n_embd..].iter().map(|&x| f64::from(x));
    [
        last.collect(),
        mean,
        state.memory(5).map(f64::from).collect(),
    ]
}

fn length(vector: impl Iterator<Item = f64>) -> f64 {
    vector.map(|x| x * x).sum::<f64>().sqrt()
}

#[test]
fn every_line_has_the_vector_that_it_has_alone() {
    let model = open(repository("cli/demo"), Quant::Int8, 1);
    let lines = lines();
    let input = lines.join("\n");
    let all_expected: Vec<_> = lines.iter().map(|line| expected(&model, line)).collect();
    for (index, from) in ["hidden-last", "hidden-mean", "state:5"]
        .into_iter()
        .enumerate()
    {
        let raw = embed(&["--from", from, "--no-normalize"], &input);
        let unit = embed(&["--from", from], &input);
        assert_eq!((raw.len(), unit.len()), (lines.len(), lines.len()));
        for (number, line) in lines.iter().enumerate() {
            let (raw, unit) = (&raw[number], &unit[number]);
            let expected = &all_expected[number][index];
            let rounded: Vec<f32> = expected.iter().map(|&x| x as f32).collect();
            // int8: the same bits, however lines are put together.
            assert_eq!(*raw, rounded, "{from} {line:?}");
            let size = length(expected.iter().copied());
            let scale = if line.is_empty() { 1.0 } else { 1.0 / size };
            let scaled: Vec<f32> = expected.iter().map(|&x| (x * scale) as f32).collect();
            let difference = unit
                .iter()
                .zip(&scaled)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(difference < 1e-6, "{from} {line:?}: {difference}");
            let size = length(unit.iter().map(|&x| f64::from(x)));
            let wanted = if line.is_empty() { 0.0 } else { 1.0 };
            assert!(
                (size - wanted).abs() < 1e-6,
                "{from} {line:?}: length {size}"
            );
        }
    }
}

#[test]
fn a_vector_for_every_line_whatever_ends_it() {
    let plain = embed(&[], "one\ntwo\n\nthree\n");
    assert_eq!(plain.len(), 4);
    assert_eq!(plain[2], vec![0.0; 256], "an empty line");
    assert_eq!(embed(&[], "one\ntwo\n\nthree"), plain);
    assert_eq!(embed(&[], "one\r\ntwo\r\n\r\nthree\r\n"), plain);
    assert_eq!(embed(&[], "three"), [plain[3].clone()]);
    assert_eq!(embed(&[], ""), Vec::<Vec<f32>>::new());
    let empty = embed(&["--from", "state:0"], &"\n".repeat(300));
    assert_eq!(empty, vec![vec![0.0; 256]; 300]);
    // Spaces are text, and bytes that are no UTF-8 do not stop anything.
    assert_ne!(embed(&[], " one")[0], plain[0]);
    let output = run_with_stdin(["embed", "--quant", "int8"], b"a\xff\nthree\n");
    assert_eq!(vectors(&output)[1], plain[3]);
}

#[test]
fn formats_hold_the_same_numbers() {
    let lines = lines();
    let input = lines.join("\n");
    let json = embed(&[], &input);
    let args = |format| ["embed", "--quant", "int8", "--format", format];
    let csv = stdout(&run_with_stdin(args("csv"), input.as_bytes()));
    let row = |line: &str| -> Vec<f32> { line.split(',').map(|x| x.parse().unwrap()).collect() };
    assert_eq!(csv.lines().map(row).collect::<Vec<_>>(), json);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lines");
    std::fs::write(&file, &input).unwrap();
    let file = file.to_str().unwrap();
    let output = run(args("npy").iter().chain(&["--file", file]));
    assert!(output.status.success(), "{}", stderr(&output));
    check_npy(&output.stdout, &json);
    check_npy(&run_with_stdin(args("npy"), b"").stdout, &[]);
}

/// Against the description of version 1.0 of the format.
fn check_npy(bytes: &[u8], expected: &[Vec<f32>]) {
    assert_eq!(bytes[..8], *b"\x93NUMPY\x01\x00");
    let size = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let (header, numbers) = bytes[10..].split_at(size);
    assert_eq!((10 + size) % 64, 0);
    let header = std::str::from_utf8(header).unwrap();
    let shape = format!("'shape': ({}, 256)", expected.len());
    for part in ["{'descr': '<f4'", "'fortran_order': False", &shape] {
        assert!(header.contains(part), "{header}: no {part}");
    }
    assert!(header.ends_with('\n'));
    let numbers = numbers
        .chunks(4)
        .map(|four| f32::from_le_bytes(four.try_into().unwrap()));
    assert!(numbers.eq(expected.iter().flatten().copied()));
}

/// Floors well below what docs/EMBEDDINGS.md reports, so that only a mistake falls through them.
#[test]
fn what_means_the_same_is_near() {
    let pairs = std::fs::read_to_string(repository("tests/fixtures/embed/pairs.tsv")).unwrap();
    let pairs = pairs.lines().filter(|line| !line.starts_with('#'));
    let pairs: Vec<Vec<&str>> = pairs.map(|line| line.split('\t').collect()).collect();
    let n = pairs.len();
    assert_eq!(n, 64);
    let sentences = |column: usize| pairs.iter().map(move |line| line[column]);
    let input: Vec<&str> = sentences(0).chain(sentences(1)).collect();
    let rwkv_4 = repository("tests/fixtures/demo4");
    let rwkv_4 = ["--model", rwkv_4.to_str().unwrap()];
    for (model, from, floor) in [
        (&[][..], "hidden-last", 0.87),
        (&[], "hidden-mean", 0.94),
        (&[], "state:7", 0.87),
        (&rwkv_4, "hidden-last", 0.8),
        (&rwkv_4, "hidden-mean", 0.9),
        (&rwkv_4, "state:6", 0.92),
    ] {
        let vectors = embed(&[model, &["--from", from]].concat(), &input.join("\n"));
        let near = |a: usize, b: usize| -> f32 {
            vectors[a]
                .iter()
                .zip(&vectors[n + b])
                .map(|(x, y)| x * y)
                .sum()
        };
        let mut won = 0;
        for (same, a, b) in (0..n * n * n).map(|i| (i / n / n, i / n % n, i % n)) {
            won += usize::from(a != b && near(same, same) > near(a, b));
        }
        let area = won as f64 / (n * n * (n - 1)) as f64;
        println!("{model:?} {from}: {area:.3}");
        assert!(area > floor, "{model:?} {from}: {area}");
    }
}

#[test]
fn what_cannot_be_embedded_is_said() {
    let golden = repository("tests/fixtures/golden/odd-bin");
    let golden = golden.to_str().unwrap();
    for (args, code, parts) in [
        (
            &["--from", "state:8"][..],
            1,
            &["state:8", "expected 0 to 7"][..],
        ),
        (
            &["--from", "state"],
            2,
            &["expected hidden-last, hidden-mean or state:LAYER"],
        ),
        (&["--from", "state:-1"], 2, &["state:LAYER"]),
        (&["--from", "all"], 2, &["state:LAYER"]),
        (&["--format", "xml"], 2, &["xml"]),
        (
            &["--file", "/no/such/file"],
            1,
            &["/no/such/file", "cannot read"],
        ),
        (&["--file", "/"], 1, &["/: cannot read"]),
        (&["--model", golden], 1, &["no tokenizer"]),
    ] {
        let output = run(["embed"].iter().chain(args));
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        assert!(output.stdout.is_empty());
        let said = stderr(&output);
        for part in parts {
            assert!(said.contains(part), "{args:?}: {said}: no {part}");
        }
    }
}

#[test]
fn a_closed_pipe_is_success() {
    let validation = repository("cli/demo/validation.txt");
    let mut child = command()
        .args(["embed", "--file", validation.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), stderr(&output)),
        (Some(0), String::new())
    );
}
