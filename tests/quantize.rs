//! `rwkv-edge quantize`: sizes that are asked for, and what each quantisation costs.

use std::fs;

#[path = "common/command.rs"]
mod command;
mod common;

use command::{run, stderr, stdout};
use common::repository;
use serde_json::Value;

fn parse(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn compared_quantisations_are_a_table_and_json() {
    let folder = tempfile::tempdir().expect("a folder");
    let plot = folder.path().join("damage.svg");
    let plot = plot.to_str().expect("UTF-8");
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/validation.txt");
    let args = [
        "quantize",
        "--compare",
        "int8,q5,q4",
        "--text",
        text,
        "--limit",
        "200",
    ];
    let table = stdout(&run([&args[..], &["--plot", plot]].concat()));
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].starts_with("200 tokens; f32 has a perplexity of "),
        "{table}"
    );
    let names: Vec<_> = lines[2..5]
        .iter()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(names, ["int8", "q5", "q4"], "{table}");
    assert!(fs::read_to_string(plot)
        .expect("was drawn")
        .contains("<svg"));

    let json = parse(&stdout(&run([&args[..], &["--json"]].concat())));
    let number = |quant: usize, key: &str| json["compared"][quant][key].as_f64().expect("a number");
    let rising = |key: &str| (0..3).map(|quant| number(quant, key)).collect::<Vec<_>>();
    let (bits, divergence) = (rising("bits_per_weight"), rising("kl_mean"));
    assert!(bits.windows(2).all(|pair| pair[0] > pair[1]), "{bits:?}");
    assert!(
        divergence.windows(2).all(|pair| pair[0] < pair[1]),
        "{divergence:?}"
    );
    assert!(rising("tokens_per_s").iter().all(|&speed| speed > 0.0));
    // The text shows the same numbers, alone and beside others.
    let alone = [
        "perplexity",
        "--quant",
        "q4",
        "--against",
        "f32",
        "--limit",
        "200",
        "--json",
        text,
    ];
    let alone = parse(&stdout(&run(alone)));
    assert_eq!(alone["kl_mean"], json["compared"][2]["kl_mean"]);
}

#[test]
fn files_are_as_large_as_was_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("mixed.safetensors");
    let file = file.to_str().expect("UTF-8");
    stdout(&run(["quantize", "--target-size", "6500K", "-o", file]));
    let size = fs::metadata(file).expect("was written").len();
    assert!((6_200_000..=6500 * 1024).contains(&size), "{size}");
    assert!(!stdout(&run(["-m", file, "-n", "8", "A trait is"])).is_empty());

    stdout(&run(["quantize", "--target-bits", "5", "-o", file]));
    let info = parse(&stdout(&run(["info", "--json", "-m", file])));
    let bits = info["bits_per_weight"].as_f64().expect("a number");
    assert!((4.9..=5.0).contains(&bits), "{bits}");

    for (args, said) in [
        (&["--target-size", "2M"][..], "expected "),
        (&["--target-bits", "3"], "expected 4 to 8.5"),
        (
            &["--target-bits", "5", "--quant", "int8"],
            "cannot be used with",
        ),
        (
            &["--target-bits", "5", "-m", file],
            "expected the checkpoint",
        ),
        (&["--compare", "q4", "--text", "x"], "cannot be used with"),
    ] {
        let other = folder.path().join("other.safetensors");
        let other = other.to_str().expect("UTF-8");
        let output = run([&["quantize", "-o", other], args].concat());
        assert!(!output.status.success(), "{args:?}");
        assert!(
            stderr(&output).contains(said),
            "{args:?}: {}",
            stderr(&output)
        );
        assert!(fs::metadata(other).is_err(), "{args:?}: wrote a file");
    }
}

#[test]
fn files_are_calibrated_by_a_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let demo = repository("cli/demo").display().to_string();
    let (model, text) = (demo.as_str(), format!("{demo}/validation.txt"));
    let write = |file: &str, more: &[&str]| {
        let args = ["quantize", "-m", model, "--quant", "q4", "-o", file];
        stdout(&run([&args[..], more].concat()));
        fs::read(file).expect("was written")
    };
    let plain = write(&path("plain"), &[]);
    let few = ["--calibrate", &text, "--calibrate-tokens", "700"];
    let calibrated = write(&path("a"), &few);
    assert_ne!(calibrated, plain);
    assert_eq!(
        write(&path("b"), &[&few[..], &["--threads", "1"]].concat()),
        calibrated
    );
    assert!(!stdout(&run(["-m", &path("a"), "-n", "8", "A trait is"])).is_empty());

    let compared = |more: &[&str]| {
        let args = [
            "quantize",
            "-m",
            model,
            "--compare",
            "f16,q4",
            "--json",
            "--limit",
            "300",
        ];
        let args = [&args[..], &["--text", &text], more].concat();
        parse(&stdout(&run(args)))["compared"].clone()
    };
    let (plain, calibrated) = (compared(&[]), compared(&few));
    assert_eq!(
        plain[0]["kl_mean"], calibrated[0]["kl_mean"],
        "floats are as they are"
    );
    assert_ne!(plain[1]["kl_mean"], calibrated[1]["kl_mean"]);

    fs::write(path("empty"), "").expect("writable");
    let none = path("none");
    for (args, said) in [
        (&["-m", model, "--calibrate-tokens", "5"][..], "--calibrate"),
        (&["--calibrate", &text], "--model"),
        (
            &["-m", model, "--quant", "q4", "--calibrate", &path("empty")],
            "no tokens",
        ),
        (&["-m", model, "--quant", "q4", "--calibrate", &none], &none),
        (
            &["-m", model, "--quant", "f16", "--calibrate", &text],
            "expected q4, q5 or q6",
        ),
        (
            &["-m", model, "--calibrate", &text],
            "expected q4, q5 or q6",
        ),
        (
            &["-m", &path("plain"), "--quant", "q4", "--calibrate", &text],
            "expected the checkpoint",
        ),
    ] {
        let other = path("other");
        let output = run([&["quantize", "-o", &other], args].concat());
        assert!(!output.status.success(), "{args:?}");
        assert!(
            stderr(&output).contains(said),
            "{args:?}: {}",
            stderr(&output)
        );
        assert!(fs::metadata(&other).is_err(), "{args:?}: wrote a file");
    }
    let both = [
        "quantize",
        "-m",
        model,
        "--compare",
        "q4",
        "--text",
        "-",
        "--calibrate",
        "-",
    ];
    assert!(stderr(&run(both)).contains("expected a file for one of them"));
}
