//! GGUF files as models and as sources of conversions, black box: against what a reference computes from the same
//! numbers. Their reader is tested closer by in engine/src/checkpoint/tests/gguf.rs.

#[path = "common/command.rs"]
mod command;
mod common;
#[path = "common/conversion.rs"]
mod conversion;

use std::path::PathBuf;

use command::{run, run_with_stdin, stderr, stdout};
use common::{floats, golden, ids, json, open};
use conversion::{convert, fingerprint, logits, text};
use rwkv_edge::{Model, Options, Quant};

/// Folders of golden models, and the files in them.
const FILES: [(&str, &str); 2] = [
    ("v7-gguf-f16", "model-F16.gguf"),
    ("v7-gguf-q8_0", "model-Q8_0.gguf"),
];

fn file(at: usize) -> PathBuf {
    golden(FILES[at].0).join(FILES[at].1)
}

/// The reference computed with the exact values of what is stored.
#[test]
fn logits_are_those_of_the_exact_values() {
    for (index, (folder, _)) in FILES.into_iter().enumerate() {
        let expected = json(golden(folder).join("expected.json"));
        let tokens = ids(&expected["input_ids"]);
        let last = floats(&expected["logits_last"]);
        let deviation = expected["logits_std"].as_f64().expect("a number");
        for (quant, tolerance) in [(Quant::F32, 1e-4), (Quant::F16, 0.02)] {
            let model = open(file(index), quant, 2);
            let found = model.session().eval(&tokens).expect("tokens").to_vec();
            let pairs = found.iter().zip(&last);
            let difference = pairs.map(|(&a, &b)| (f64::from(a) - b).abs());
            let difference = difference.fold(0.0, f64::max) / deviation;
            assert!(difference <= tolerance, "{folder} {quant}: {difference}");
        }
    }
}

/// A folder with one such file is a model, too; blocks become f16 unless something else is asked for.
#[test]
fn models_stay_as_small_as_they_can() {
    for (index, (folder, _)) in FILES.into_iter().enumerate() {
        let options = Options::new().threads(1);
        let outline = Model::outline(file(index), &options).expect("a model");
        assert_eq!(outline.stored, Quant::F16);
        assert_eq!(outline.stored_blocks, [None, Some("Q8_0")][index]);
        assert!(outline.has_tokenizer && !outline.is_model_file);
        let model = Model::open(golden(folder), &options).expect("a model");
        assert_eq!(model.info().quant, Quant::F16);
        let own = open(file(index), Quant::F32, 1).info().fingerprint;
        assert_eq!(model.info().fingerprint, own);
    }
}

#[test]
fn what_becomes_of_blocks_is_said() {
    let said = |index: usize, more: &[&str]| {
        let path = file(index);
        let args = ["logits", "-m", text(&path), "--tokens", "1"];
        let output = run(args.iter().chain(more));
        stdout(&output);
        stderr(&output)
    };
    let note = said(1, &[]);
    for word in ["model-Q8_0.gguf", "Q8_0 weights become f16", "--quant f32"] {
        assert!(note.contains(word), "{note}");
    }
    assert_eq!(said(1, &["--quant", "f32"]), "");
    assert_eq!(said(1, &["--quiet"]), "");
    assert_eq!(said(0, &[]), "");
}

#[test]
fn texts_go_through_the_vocabulary_inside() {
    let path = file(1);
    let args = ["tokenize", "-m", text(&path)];
    let ids = stdout(&run_with_stdin(args, b"\n\n<s>\xff"));
    assert_eq!(ids.trim(), "261,61,116,63,256");
    let model = open(path, Quant::F32, 1);
    let tokenizer = model.tokenizer().expect("is inside");
    assert!(tokenizer.is_world());
    assert_eq!(tokenizer.encode("[PAD399]").expect("text").len(), 8);
    let name = model.info().tokenizer;
    assert_eq!(name.as_deref(), Some("rwkv_vocab_v20230424.txt"));
}

#[test]
fn files_become_raw_checkpoints_and_model_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, raw) = (file(1), folder.path().join("m.pth"));
    convert(&source, &raw, &["--to", "raw"]);
    assert!(raw.is_file());
    assert_eq!(fingerprint(&raw), fingerprint(&source));
    // The vocabulary comes beside it, and one that is there already stays.
    let args = ["tokenize", "-m", text(&raw)];
    assert_eq!(stdout(&run_with_stdin(args, b"\n\n")).trim(), "261");
    let vocabulary = folder.path().join("rwkv_vocab_v20230424.txt");
    std::fs::write(&vocabulary, "another").expect("can be written");
    convert(&source, &raw, &["--to", "raw", "--force"]);
    let kept = std::fs::read_to_string(&vocabulary).expect("is there");
    assert_eq!(kept, "another");
    let model_file = folder.path().join("m.rwkv");
    let args = ["quantize", "-m", text(&source), "-o", text(&model_file)];
    stdout(&run(args.iter().chain(&["--quant", "f16"])));
    assert_eq!(logits(&model_file), logits(&source));
    let args = ["tokenize", "-m", text(&model_file)];
    assert_eq!(stdout(&run_with_stdin(args, b"\n\n")).trim(), "261");
}

#[test]
fn other_files_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bytes = std::fs::read(file(0)).expect("a fixture");
    let name = bytes.windows(5).position(|five| five == b"rwkv7");
    bytes[name.expect("its architecture") + 4] = b'8';
    let path = folder.path().join("v8.gguf");
    std::fs::write(&path, bytes).expect("room");
    let output = run(["logits", "-m", text(&path), "--tokens", "1"]);
    assert!(!output.status.success());
    let error = stderr(&output);
    assert!(
        error.contains("v8.gguf: a GGUF file: architecture rwkv8, expected rwkv7 or rwkv6"),
        "{error}"
    );
}
