//! rwkv.cpp's files as models and as sources of conversions, black box. Their reader is tested closer by in
//! engine/src/checkpoint/tests/rwkv_cpp.rs.

#[path = "common/command.rs"]
mod command;
mod common;
#[path = "common/conversion.rs"]
mod conversion;
#[path = "common/tensors.rs"]
mod tensors;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use command::{run, stderr, stdout};
use common::{floats, golden, json, repository};
use conversion::{convert, fingerprint, largest_difference, logits, text};
use serde_json::Value;
use tensors::{hugging_face_name, read_file, read_folder, Tensor};

/// An rwkv.cpp file of a directory's model, as its converter writes it.
fn rwkv_cpp_file(folder: &Path, is_f16: bool) -> Vec<u8> {
    let config = json(folder.join("config.json"));
    let mut bytes = b"fmgg".to_vec();
    let number = |bytes: &mut Vec<u8>, n: usize| bytes.extend((n as u32).to_le_bytes());
    number(&mut bytes, 101);
    for size in ["vocab_size", "hidden_size", "num_hidden_layers"] {
        number(
            &mut bytes,
            config[size].as_u64().expect("a number") as usize,
        );
    }
    number(&mut bytes, usize::from(is_f16));
    let raw_names: BTreeMap<String, String> = raw_names(&config);
    for (name, tensor) in read_folder(folder) {
        let raw = &raw_names[&name];
        let mut tensor = tensor;
        tensor.shape.retain(|&n| n != 1);
        if raw.ends_with("time_decay") {
            let values: Vec<f32> = tensor.floats().iter().map(|&v| -v.exp()).collect();
            tensor = Tensor::from_f32(tensor.shape, &values);
        }
        if is_f16 && tensor.shape.len() == 2 {
            tensor = tensor.as_type("F16");
        }
        number(&mut bytes, tensor.shape.len());
        number(&mut bytes, raw.len());
        number(&mut bytes, usize::from(tensor.dtype == "F16"));
        for &n in tensor.shape.iter().rev() {
            number(&mut bytes, n);
        }
        bytes.extend(raw.as_bytes());
        bytes.extend(tensor.bytes);
    }
    bytes
}

/// BlinkDL's names by Hugging Face's.
fn raw_names(config: &Value) -> BTreeMap<String, String> {
    let mut names: Vec<String> = ["emb.weight", "head.weight"].map(String::from).into();
    let mut norms = vec!["ln_out".to_owned(), "blocks.0.ln0".into()];
    for layer in 0..config["num_hidden_layers"].as_u64().expect("a number") {
        norms.extend([format!("blocks.{layer}.ln1"), format!("blocks.{layer}.ln2")]);
        let of_block =
            "att.time_decay att.time_first att.time_mix_k att.time_mix_v att.time_mix_r \
            att.key.weight att.value.weight att.receptance.weight att.output.weight ffn.time_mix_k \
            ffn.time_mix_r ffn.key.weight ffn.receptance.weight ffn.value.weight";
        names.extend(
            of_block
                .split(' ')
                .filter(|name| !name.is_empty())
                .map(|name| format!("blocks.{layer}.{name}")),
        );
    }
    for norm in norms {
        names.extend(["weight", "bias"].map(|part| format!("{norm}.{part}")));
    }
    names
        .into_iter()
        .map(|name| (hugging_face_name(&name), name))
        .collect()
}

/// rwkv.cpp's files give transformers' logits, wherever a model is taken, and become checkpoints.
#[test]
fn rwkv_cpp_files_are_checkpoints() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["small-safetensors", "deep-sharded"] {
        let expected = json(golden(name).join("expected.json"));
        let ids: Vec<String> = common::ids(&expected["input_ids"])
            .iter()
            .map(u32::to_string)
            .collect();
        let expected = floats(&expected["logits_last"]);
        let spread = expected.iter().fold(0.0, |max: f64, v| max.max(v.abs()));
        for (is_f16, bound) in [(false, 1e-4), (true, 1e-2 * spread)] {
            let file = folder.path().join(format!("{name}-{is_f16}.bin"));
            fs::write(&file, rwkv_cpp_file(&golden(name), is_f16)).expect("can be written");
            let args = [
                "logits",
                "-m",
                text(&file),
                "--tokens",
                &ids.join(","),
                "--json",
            ];
            let object: Value = serde_json::from_str(&stdout(&run(args))).expect("valid JSON");
            let found = floats(&object["logits"][0]);
            let difference = largest_difference(&found, &expected);
            assert!(difference < bound, "{name}, f16 {is_f16}: {difference}");

            let target = folder.path().join(format!("{name}-{is_f16}"));
            convert(&file, &target, &[]);
            assert!(largest_difference(&logits(&target), &logits(&file)) < 1e-5);
            assert_eq!(
                fingerprint(&target),
                fingerprint(&file),
                "states go on in either"
            );
            for (name, tensor) in read_folder(&golden(name)) {
                let found = &read_folder(&target)[&name];
                if name.ends_with("time_decay") {
                    let pairs = found.floats().into_iter().zip(tensor.floats());
                    let close = |(a, b): (f32, f32)| (a - b).abs() <= 2e-7 * (1.0 + b.abs());
                    assert!(pairs.into_iter().all(close) && found.shape == tensor.shape);
                } else {
                    let is_matrix = tensor.shape.len() == 2;
                    let dtype = if is_f16 && is_matrix { "F16" } else { "F32" };
                    assert_eq!(*found, tensor.as_type(dtype), "{name}");
                }
            }
            // f32 holds both.
            assert_eq!(json(target.join("config.json"))["dtype"], "float32");
            // A lone .bin in a folder is the folder's model, and quantize takes it.
            let lone = folder.path().join(format!("{name}-{is_f16}-lone"));
            fs::create_dir(&lone).expect("can be made");
            fs::rename(&file, lone.join("model-q.bin")).expect("can be renamed");
            let model = folder.path().join(format!("{name}-{is_f16}.model"));
            let output = run(["quantize", "-m", text(&lone), "-o", text(&model)]);
            assert!(output.status.success(), "{}", stderr(&output));
        }
    }
}

/// Quantised files become what their blocks stand for.
#[test]
fn quantised_rwkv_cpp_files_become_f32() {
    let folder = tempfile::tempdir().expect("a folder");
    let fixture = |name: &str| repository("tests/fixtures/rwkv-cpp").join(name);
    for name in ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"] {
        let source = fixture(&format!("{name}.bin"));
        let expected = read_file(&fixture(&format!("{name}.safetensors")));
        for more in [&[][..], &["--no-mmap"]] {
            let target = folder.path().join(format!("{name}{}", more.len()));
            convert(&source, &target, more);
            let found = read_folder(&target);
            assert_eq!(found.len(), expected.len());
            for (raw, expected) in &expected {
                let found = &found[&hugging_face_name(raw)];
                let is_ends = raw == "emb.weight" || raw == "head.weight";
                let found = match &found.dtype[..] {
                    // As in the f16 file that it was quantised from.
                    "F16" if is_ends => {
                        let expected = expected.as_type("F16");
                        assert_eq!(*found, expected, "{name}: {raw}");
                        continue;
                    }
                    _ => found.floats(),
                };
                let pairs = found.iter().zip(expected.floats());
                let bound = if raw.ends_with("time_decay") {
                    5e-7
                } else {
                    0.0
                };
                let same = |(a, b): (&f32, f32)| (a - b).abs() <= bound;
                assert!(pairs.into_iter().all(same), "{name}: {raw}");
            }
            // Kept as f16 where it is run.
            let info = stdout(&run(["info", "-m", text(&source), "--json"]));
            let info: Value = serde_json::from_str(&info).expect("valid JSON");
            assert_eq!(info["quant"], "f16");
            let of = |path: &Path| {
                let args = [
                    "logits",
                    "-m",
                    text(path),
                    "--tokens",
                    "1,2,3",
                    "--quant",
                    "f32",
                    "--json",
                ];
                let object: Value = serde_json::from_str(&stdout(&run(args))).expect("valid JSON");
                floats(&object["logits"][0])
            };
            assert_eq!(fingerprint(&target), fingerprint(&source), "{name}");
            let reference = fixture(&format!("{name}.safetensors"));
            assert!(
                largest_difference(&of(&source), &of(&reference)) < 1e-5,
                "{name}"
            );
            assert!(
                largest_difference(&of(&target), &of(&source)) < 1e-5,
                "{name}"
            );
        }
    }
}

/// Files of RWKV-7 are the checkpoint that they were made from: its logits, its facts, and it again.
#[test]
fn rwkv_7_files_are_checkpoints() {
    let fixture = |name: &str| repository("tests/fixtures/rwkv-cpp7").join(name);
    let folder = tempfile::tempdir().expect("a folder");
    let expected = json(fixture("expected.json"));
    let ids: Vec<String> = common::ids(&expected["tokens"])
        .iter()
        .map(u32::to_string)
        .collect();
    let of = |path: &Path| {
        let tokens = ids.join(",");
        let args = ["logits", "-m", text(path), "--tokens", &tokens];
        let output = run(args.iter().chain(&["--quant", "f32", "--json"]));
        let object: Value = serde_json::from_str(&stdout(&output)).expect("valid JSON");
        floats(&object["logits"][0])
    };
    let info = |path: &Path| -> Value {
        let output = run(["info", "-m", text(path), "--json"]);
        serde_json::from_str(&stdout(&output)).expect("valid JSON")
    };
    let original = fixture("original.safetensors");
    for name in ["FP32", "FP16", "Q8_0", "Q5_1", "Q4_0"] {
        let source = fixture(&format!("{name}.bin"));
        let found = of(&source);
        let reference = floats(&expected["files"][name]["logits"]);
        let spread = reference.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
        let difference = largest_difference(&found, &reference);
        assert!(
            difference < 2e-6 * spread,
            "{name}: {difference} of {spread}"
        );
        // The checkpoint's numbers have eight bits, which f16 holds, too.
        assert_eq!(of(&original) == found, name.starts_with("FP"), "{name}");

        let facts = info(&source);
        assert_eq!(facts["architecture"], "rwkv-7", "{facts}");
        for more in [&["--to", "raw"][..], &["--to", "raw", "--no-mmap"]] {
            let target = folder.path().join(format!("{name}{}.pth", more.len()));
            convert(&source, &target, more);
            assert_eq!(of(&target), found, "{name}: to the bit");
            assert_eq!(info(&target)["fingerprint"], facts["fingerprint"], "{name}");
        }
        let model = folder.path().join(format!("{name}.model"));
        let output = run(["quantize", "-m", text(&source), "-o", text(&model)]);
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert_eq!(
        info(&original)["fingerprint"],
        info(&fixture("FP32.bin"))["fingerprint"]
    );
}
