//! Weights that are NaN or infinite, through the binary: every command that runs the model ends with one clear line and
//! exit code 1, and leaves no file behind.

#[path = "common/command.rs"]
mod command;
mod common;
#[path = "common/patch.rs"]
mod patch;

use std::fs;
use std::path::Path;

use command::{run, run_with_stdin, stderr, stdout};
use common::repository;
use patch::Image;

fn text(path: &Path) -> String {
    path.to_str().expect("test paths are UTF-8").to_owned()
}

#[test]
fn every_command_says_that_the_numbers_are_not_finite() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| text(&folder.path().join(name));
    let model = path("demo.safetensors");
    stdout(&run(["quantize", "--quant", "f16", "-o", &model]));
    let mut image = Image::new(fs::read(&model).expect("just written"));
    let name = "blocks.3.att.value.weight";
    image.set(name, &[[5, 6]], f32::NAN);
    fs::write(&model, &image.bytes).expect("can be written");
    fs::write(path("text"), "Ownership is a set of rules.").expect("can be written");

    let passages = text(&repository("tests/fixtures/evaluation/passages.jsonl"));
    let (state, plain) = (path("state"), path("text"));
    let mut failures = Vec::new();
    for args in [
        &["Ownership", "-n", "3"][..],
        &["--tokens", "1", "-n", "3"],
        &["Ownership", "-n", "0", "--save-state", &state],
        &["logits", "--tokens", "1,2"],
        &["perplexity", &plain],
        &["eval", "lambada", &passages],
    ] {
        let all = args.iter().copied().chain(["-m", &model]);
        let output = run(all);
        let said = stderr(&output);
        let is_told = said.lines().filter(|line| line.contains("finite")).count() == 1
            && said.contains(&format!("tensor {name}: NaN at [5, 6]"));
        if output.status.code() != Some(1) || !is_told {
            failures.push(format!("{args:?}: {output:?}"));
        }
        assert!(!Path::new(&state).exists(), "{args:?}");
    }
    for name in ["chat", "embed"] {
        let output = run_with_stdin([name, "-m", &model], b"Hello\n");
        if !stderr(&output).contains("finite") {
            failures.push(format!("{name}: {output:?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
