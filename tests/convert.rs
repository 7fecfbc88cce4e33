//! `convert`, black box: names, shapes, types and bytes of what it writes, in every direction.
//!
//! What transformers itself wrote is in tests/fixtures/golden, and compared byte for byte; that it loads
//! what is written here, and computes the same logits, is checked by tests/reference/check_convert.py.

#[path = "common/command.rs"]
mod command;
mod common;
#[path = "common/conversion.rs"]
mod conversion;
#[path = "common/tensors.rs"]
mod tensors;

use std::fs;
use std::path::{Path, PathBuf};

use command::{run, stderr, stdout};
use common::{floats, golden, json, repository, CHECKPOINTS};
use conversion::{byte_vocabulary, convert, fingerprint, logits, names, text};
use serde_json::{json, Value};
use tensors::{hugging_face_name, read_folder, Tensor, Tensors};

fn checkpoint(name: &str) -> PathBuf {
    repository("tests/fixtures/checkpoints").join(name)
}

/// The model of the small checkpoints, as a Hugging Face directory must hold it.
fn small_model(dtype: &str) -> Tensors {
    let expected = json(checkpoint("expected.json"));
    let tensors = expected.as_object().expect("an object").iter();
    tensors
        .map(|(name, entry)| {
            let shape = entry["shape"].as_array().expect("a list").iter();
            let shape = shape.map(|n| n.as_u64().expect("a number") as usize);
            let values: Vec<f32> = floats(&entry["values"]).iter().map(|&v| v as f32).collect();
            let tensor = Tensor::from_f32(shape.collect(), &values).as_type(dtype);
            (hugging_face_name(name), tensor)
        })
        .collect()
}

#[test]
fn every_form_becomes_the_same_directory() {
    let folder = tempfile::tempdir().expect("a folder");
    for (form, dtype, torch_dtype) in [
        ("raw-f32.pth", "F32", "float32"),
        ("raw-f16.pth", "F16", "float16"),
        ("raw-bf16.pth", "BF16", "bfloat16"),
        ("raw-strided.pth", "F32", "float32"),
        ("raw-strided-bf16.pth", "BF16", "bfloat16"),
        ("raw-protocol-4.pth", "F32", "float32"),
        ("raw-metadata.pth", "F32", "float32"),
        ("raw-no-crc.pth", "F32", "float32"),
        ("raw.safetensors", "F32", "float32"),
        ("hf-bf16.safetensors", "BF16", "bfloat16"),
        ("hf-sharded-bin", "F32", "float32"),
    ] {
        let target = folder.path().join(format!("{form} as hf"));
        let said = convert(&checkpoint(form), &target, &[]);
        assert_eq!(
            names(&target),
            ["config.json", "generation_config.json", "model.safetensors"]
        );
        assert_eq!(read_folder(&target), small_model(dtype), "{form}");
        let expected = json!({
            "architectures": ["RwkvForCausalLM"], "attention_hidden_size": 6, "bos_token_id": 0,
            "context_length": 1024, "dtype": torch_dtype, "eos_token_id": 0, "hidden_size": 4,
            "intermediate_size": 5, "layer_norm_epsilon": 1e-5, "model_type": "rwkv",
            "num_hidden_layers": 2, "rescale_every": 6, "tie_word_embeddings": false,
            "transformers_version": "4.57.6", "use_cache": true, "vocab_size": 7,
        });
        assert_eq!(json(target.join("config.json")), expected, "{form}");
        let expected = json!({
            "_from_model_config": true, "bos_token_id": 0, "eos_token_id": 0,
            "transformers_version": "4.57.6",
        });
        assert_eq!(json(target.join("generation_config.json")), expected);
        assert!(
            said.contains("no tokenizer") && said.contains("--tokenizer-file"),
            "{said}"
        );
        assert!(said.contains("in 1 file"), "{said}");
    }
}

/// What transformers wrote is what is written, from its own directories and by way of raw files.
#[test]
fn golden_directories_come_out_as_transformers_writes_them() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, size) in [("small-safetensors", "5GB"), ("deep-sharded", "300KB")] {
        let raw = folder.path().join(format!("{name}.pth"));
        convert(&golden(name), &raw, &["--to", "raw"]);
        for (i, source) in [golden(name), raw].iter().enumerate() {
            let target = folder.path().join(format!("{name}-{i}"));
            convert(source, &target, &["--max-shard-size", size]);
            let mut expected = names(&golden(name));
            expected.retain(|name| name != "expected.json");
            assert_eq!(names(&target), expected);
            for file in expected {
                let (found, expected) = (target.join(&file), golden(name).join(&file));
                if file == "config.json" {
                    // But for the spelling of 1e-5.
                    assert_eq!(json(found), json(expected));
                } else {
                    let same =
                        fs::read(found).expect("there") == fs::read(expected).expect("there");
                    assert!(same, "{name}: {file}");
                }
            }
        }
    }
}

#[test]
fn there_and_back_is_the_same_model() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in CHECKPOINTS {
        let at = |step: &str| folder.path().join(format!("{name}-{step}"));
        let (first, raw, second) = (at("first"), at("raw.pth"), at("second"));
        convert(&golden(name), &first, &["--max-shard-size", "1KB"]);
        assert!(names(&first).len() > 20, "a file for every matrix");
        convert(&first, &raw, &["--to", "raw"]);
        convert(&raw, &second, &[]);
        let whole = read_folder(&second);
        assert_eq!(read_folder(&first), whole, "{name}");
        let expected = logits(&golden(name));
        for step in [&first, &raw, &second] {
            assert_eq!(logits(step), expected, "{name}: {}", step.display());
            assert_eq!(fingerprint(step), fingerprint(&golden(name)), "{name}");
        }
        let config = |folder: &Path| {
            let mut config = json(folder.join("config.json"));
            // Which a raw checkpoint does not say.
            config["max_position_embeddings"].take();
            config
        };
        assert_eq!(config(&first), config(&second), "{name}");
    }
}

#[test]
fn numbers_are_rounded_to_the_type_that_is_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = golden("small-safetensors");
    let stored = read_folder(&source);
    for (dtype, in_file, in_config) in [
        ("f16", "F16", "float16"),
        ("bf16", "BF16", "bfloat16"),
        ("f32", "F32", "float32"),
    ] {
        let target = folder.path().join(dtype);
        let said = convert(&source, &target, &["--dtype", dtype, "--no-mmap"]);
        assert!(
            said.contains(&format!("{dtype}, 203072 parameters")),
            "{said}"
        );
        let expected: Tensors = stored
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.as_type(in_file)))
            .collect();
        assert_eq!(read_folder(&target), expected, "{dtype}");
        assert_eq!(json(target.join("config.json"))["dtype"], in_config);
        // From 16 bits to 32 and back nothing changes.
        let (raw, back) = (folder.path().join("raw.pth"), folder.path().join("back"));
        convert(&target, &raw, &["--to", "raw", "--dtype", "f32", "--force"]);
        convert(&raw, &back, &["--dtype", dtype, "--force"]);
        assert_eq!(read_folder(&back), expected, "{dtype}");
    }
}

/// What a source directory says and has beside its weights goes along.
#[test]
fn directories_keep_their_configuration_and_tokenizer() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, target) = (folder.path().join("source"), folder.path().join("target"));
    fs::create_dir(&source).expect("can be made");
    fs::copy(
        checkpoint("hf-bf16.safetensors"),
        source.join("model.safetensors"),
    )
    .expect("can be copied");
    let config = json!({
        "architectures": ["RwkvForCausalLM"], "attention_hidden_size": 6, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_size": 4, "intermediate_size": 5, "layer_norm_epsilon": 1e-6,
        "max_position_embeddings": 4096, "model_type": "rwkv", "num_hidden_layers": 2,
        "rescale_every": 0, "torch_dtype": "float16", "use_cache": false, "vocab_size": 7,
        "transformers_version": "4.30.0", "license": "of the owner's own",
    });
    fs::write(source.join("config.json"), config.to_string()).expect("can be written");
    let own = [
        ("generation_config.json", "{\"temperature\": 0.5}"),
        ("tokenizer.json", "{}"),
        ("rwkv_vocab_small.txt", "1 'a' 1\n"),
        ("tokenizer_config.json", "{\"a\": 1}"),
        ("chat_template.jinja", "{{ messages }}"),
    ];
    for (name, content) in own.iter().chain(&[("README.md", "stays")]) {
        fs::write(source.join(name), content).expect("can be written");
    }
    let said = convert(&source, &target, &[]);
    assert!(!said.contains("no tokenizer"), "{said}");
    for (name, content) in own {
        let found = fs::read_to_string(target.join(name)).expect("was written");
        assert_eq!(found, content, "{name}");
    }
    assert!(!target.join("README.md").exists());
    let expected = json!({
        "architectures": ["RwkvForCausalLM"], "attention_hidden_size": 6, "bos_token_id": 1,
        "context_length": 4096, "dtype": "bfloat16", "eos_token_id": 2, "hidden_size": 4,
        "intermediate_size": 5, "layer_norm_epsilon": 1e-6, "license": "of the owner's own",
        "model_type": "rwkv", "num_hidden_layers": 2, "rescale_every": 0,
        "tie_word_embeddings": false, "transformers_version": "4.57.6", "use_cache": false,
        "vocab_size": 7,
    });
    assert_eq!(json(target.join("config.json")), expected);
}

/// A head that is the embedding is not stored in a directory that says so, and stored in a raw file,
/// which cannot.
#[test]
fn tied_heads() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let mut expected = small_model("F16");
    expected.remove("head.weight");
    convert(&checkpoint("hf-tied"), &at("tied"), &[]);
    assert_eq!(read_folder(&at("tied")), expected);
    assert_eq!(json(at("tied/config.json"))["tie_word_embeddings"], true);
    convert(&at("tied"), &at("raw.pth"), &["--to", "raw"]);
    convert(&at("raw.pth"), &at("untied"), &[]);
    let embedding = expected["rwkv.embeddings.weight"].clone();
    expected.insert("head.weight".into(), embedding);
    assert_eq!(read_folder(&at("untied")), expected);
    assert_eq!(json(at("untied/config.json"))["tie_word_embeddings"], false);
    assert_eq!(logits(&at("untied")), logits(&checkpoint("hf-tied")));
}

#[test]
fn tokenizers() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let demo = repository("tests/fixtures/demo4");
    let tokenizer = demo.join("tokenizer.json");
    // The flags as transformers' script spells them.
    let (raw, target) = (at("RWKV-4-demo.pth"), at("with"));
    convert(&demo, &raw, &["--to", "raw"]);
    let args = [
        "convert",
        "--checkpoint_file",
        text(&raw),
        "--output_dir",
        text(&target),
        "--tokenizer_file",
        text(&tokenizer),
        "--max_shard_size",
        "2GB",
    ];
    let said = stderr(&run(args));
    assert!(
        said.contains("parameters") && !said.contains("no tokenizer"),
        "{said}"
    );
    assert_eq!(
        fs::read(target.join("tokenizer.json")).expect("was written"),
        fs::read(&tokenizer).expect("there")
    );
    let settings = json(target.join("tokenizer_config.json"));
    assert_eq!(settings["tokenizer_class"], "PreTrainedTokenizerFast");
    assert_eq!(settings["eos_token"], "<|endoftext|>");
    assert_eq!(
        settings["added_tokens_decoder"]["0"]["content"],
        "<|endoftext|>"
    );
    assert_eq!(settings["added_tokens_decoder"]["1"]["special"], true);
    assert_eq!(settings["added_tokens_decoder"]["1"]["id"], Value::Null);
    let special = json(target.join("special_tokens_map.json"));
    assert_eq!(special["bos_token"], "<|endoftext|>");
    let expected = stdout(&run(["-m", text(&demo), "A trait is"]));
    assert_eq!(stdout(&run(["-m", text(&target), "A trait is"])), expected);

    // A World vocabulary keeps a name under which it is found.
    for (name, kept) in [
        ("rwkv_vocab_v1.txt", "rwkv_vocab_v1.txt"),
        ("world", "vocab.txt"),
    ] {
        let (vocabulary, target) = (at(name), at(&format!("of-{name}")));
        fs::write(&vocabulary, byte_vocabulary()).expect("can be written");
        let flags = ["--tokenizer-file", text(&vocabulary)];
        convert(&golden("small-safetensors"), &target, &flags);
        let mut expected = vec![
            kept,
            "config.json",
            "generation_config.json",
            "model.safetensors",
        ];
        expected.sort_unstable();
        assert_eq!(names(&target), expected);
        let (found, own) = (fs::read(target.join(kept)), fs::read(vocabulary));
        assert_eq!(found.expect("was written"), own.expect("there"));
    }

    // Another model's, or none at all, is refused before anything is written.
    let target = at("bad");
    let noise = at("noise");
    fs::write(&noise, "noise").expect("can be written");
    for (file, words) in [
        (&tokenizer, "4096 tokens, expected at most 7"),
        (&noise, "not a tokenizer"),
    ] {
        let source = checkpoint("raw-f32.pth");
        let args = ["convert", "-m", text(&source), "-o", text(&target)];
        let output = run(args.iter().chain(&["--tokenizer-file", text(file)]));
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
        assert!(!target.exists());
    }
}

/// A checkpoint of zeros with a published model's layers and width, and nothing else of its size.
fn hollow_checkpoint(path: &Path, n_layer: usize, n_embd: usize) {
    let mut shapes = vec![
        ("emb.weight".to_owned(), vec![1, n_embd]),
        ("head.weight".into(), vec![1, n_embd]),
    ];
    let mut norms = vec!["ln_out".to_owned(), "blocks.0.ln0".into()];
    for layer in 0..n_layer {
        let block = format!("blocks.{layer}");
        norms.extend([format!("{block}.ln1"), format!("{block}.ln2")]);
        for (name, shape) in [
            ("att.time_decay", vec![1]),
            ("att.time_first", vec![1]),
            ("att.time_mix_k", vec![1, 1, n_embd]),
            ("att.time_mix_v", vec![1, 1, n_embd]),
            ("att.time_mix_r", vec![1, 1, n_embd]),
            ("att.key.weight", vec![1, n_embd]),
            ("att.value.weight", vec![1, n_embd]),
            ("att.receptance.weight", vec![1, n_embd]),
            ("att.output.weight", vec![n_embd, 1]),
            ("ffn.time_mix_k", vec![1, 1, n_embd]),
            ("ffn.time_mix_r", vec![1, 1, n_embd]),
            ("ffn.key.weight", vec![1, n_embd]),
            ("ffn.receptance.weight", vec![n_embd, n_embd]),
            ("ffn.value.weight", vec![n_embd, 1]),
        ] {
            shapes.push((format!("{block}.{name}"), shape));
        }
    }
    for norm in norms {
        for part in ["weight", "bias"] {
            shapes.push((format!("{norm}.{part}"), vec![n_embd]));
        }
    }
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in shapes {
        let begin = end;
        end += 2 * shape.iter().product::<usize>();
        let entry = json!({"dtype": "F16", "shape": shape, "data_offsets": [begin, end]});
        header.insert(name, entry);
    }
    let header = Value::from(header).to_string();
    let start = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    fs::write(path, &start).expect("can be written");
    let file = fs::File::options().write(true).open(path).expect("there");
    file.set_len((start.len() + end) as u64).expect("sparse");
}

#[test]
fn sizes_are_checked_against_the_shapes() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, target) = (folder.path().join("hollow"), folder.path().join("target"));
    hollow_checkpoint(&source, 12, 768);
    for size in ["430M", "1B5", "3B", "7B", "14b"] {
        let args = [
            "convert",
            "-m",
            text(&source),
            "-o",
            text(&target),
            "--size",
            size,
        ];
        let output = run(args);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("12 layers of width 768, expected "), "{said}");
        assert!(
            said.contains(&format!("--size {}", size.to_uppercase())),
            "{said}"
        );
        assert!(!target.exists());
    }
    convert(&source, &target, &["--size", "169M"]);
    assert_eq!(json(target.join("config.json"))["hidden_size"], 768);
    assert_eq!(json(target.join("config.json"))["vocab_size"], 1);
    let output = run(["convert", "-m", "x", "-o", "y", "--size", "2B"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn json_says_what_was_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let target = folder.path().join("target");
    let (source, tokenizer) = (golden("small-safetensors"), folder.path().join("vocab"));
    fs::write(&tokenizer, byte_vocabulary()).expect("can be written");
    let args = [
        "convert",
        "-m",
        text(&source),
        "-o",
        text(&target),
        "--json",
    ];
    let more = [
        "--max-shard-size",
        "600KB",
        "--tokenizer-file",
        text(&tokenizer),
    ];
    let output = run(args.iter().chain(&more));
    let object: Value = serde_json::from_str(&stdout(&output)).expect("valid JSON");
    assert_eq!(stderr(&output), "");
    let path = |name: &str| text(&target.join(name)).to_owned();
    let expected = json!({
        "output": text(&target), "dtype": "f32", "n_params": 203_072, "bytes": 812_288,
        "tokenizer_files": [path("vocab.txt")],
        "weight_files": [
            path("model-00001-of-00002.safetensors"), path("model-00002-of-00002.safetensors"),
        ],
    });
    assert_eq!(object, expected);
    let output = run(args.iter().chain(&more).chain(&["--force", "--quiet"]));
    assert!(output.status.success() && output.stderr.is_empty());
}

#[test]
fn what_cannot_be_converted_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let target = folder.path().join("target");
    let source = checkpoint("raw-f32.pth");
    let file = folder.path().join("file");
    fs::write(&file, "in the way").expect("can be written");
    let (t, s) = (text(&target), text(&source));
    let cases: [(&[&str], i32, &str); 13] = [
        (
            &["-m", "nowhere.pth", "-o", t],
            1,
            "name its repository with --repo-id",
        ),
        (
            &[
                "-m",
                "nowhere.pth",
                "-o",
                t,
                "--repo_id",
                "BlinkDL/rwkv-4-pile-169m",
            ],
            1,
            "BlinkDL/rwkv-4-pile-169m",
        ),
        (&["-m", s, "-o", t, "--push_to_hub"], 2, "--model-name"),
        (
            &["-m", s, "-o", t, "--push-to-hub", "--model_name", "me/mine"],
            1,
            "me/mine",
        ),
        (&["-m", s], 2, "--output-dir"),
        (&["-o", t], 2, "--checkpoint-file"),
        (&["-m", s, "-o", t, "--max-shard-size", "5XB"], 2, "unit XB"),
        (&["-m", s, "-o", t, "--dtype", "int8"], 2, "bf16"),
        (&["-m", s, "-o", text(&file)], 1, "file: cannot list"),
        (
            &["-m", s, "-o", t, "--to", "raw", "--tokenizer-file", "x"],
            2,
            "--to raw",
        ),
        (
            &["-m", s, "-o", t, "--to", "raw", "--max-shard-size", "1GB"],
            2,
            "--max-shard-size",
        ),
        (
            &["-m", s, "-o", t, "--to", "raw", "--model-name", "me/mine"],
            2,
            "--model-name",
        ),
        (&["-m", text(&file), "-o", t], 1, "not a checkpoint"),
    ];
    for (args, code, words) in cases {
        let output = run(["convert"].iter().chain(args));
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(words), "{args:?}: {said}");
        assert!(!target.exists(), "{args:?}");
    }
    // A repository is not needed where there is a file.
    convert(&source, &target, &["--repo_id", "BlinkDL/rwkv-4-pile-169m"]);
}
