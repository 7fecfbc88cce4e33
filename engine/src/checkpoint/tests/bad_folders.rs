//! Folders that must be refused: without weights, with a wrong configuration, with wrong shards.

use super::build::*;
use super::{open, run, Case};
use crate::error::ErrorKind::{self, Format, Io, Unsupported};

type Files = Vec<(&'static str, Vec<u8>)>;

fn folder(
    name: &'static str,
    files: Files,
    kind: ErrorKind,
    words: &'static [&'static str],
) -> Case {
    Case {
        name,
        files,
        file: None,
        kind,
        words,
    }
}

fn model() -> Vec<u8> {
    safetensors_of(&tiny_model())
}

/// The tiny model beside a configuration in which one field is replaced.
fn config(field: &str, value: &str) -> Files {
    let mut fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(
        r#"{"model_type":"rwkv","vocab_size":7,"hidden_size":4,"num_hidden_layers":2,
            "attention_hidden_size":6,"intermediate_size":5}"#,
    )
    .unwrap();
    fields.insert(field.to_owned(), serde_json::from_str(value).unwrap());
    let text = serde_json::to_vec(&fields).unwrap();
    vec![("model.safetensors", model()), ("config.json", text)]
}

#[test]
fn folders_without_one_model() {
    run(&[
        folder(
            "empty",
            vec![],
            Format,
            &["no weights", "pytorch_model.bin", "*.pth"],
        ),
        folder(
            "only a config",
            vec![("config.json", b"{}".to_vec())],
            Format,
            &["no weights"],
        ),
        folder(
            "the start of a GGUF file",
            vec![("model.gguf", b"GGUF\x03\0\0\0".to_vec())],
            Format,
            &["model.gguf", "a GGUF file"],
        ),
        folder(
            "a split GGUF file",
            vec![
                ("m-00001-of-00002.gguf", b"GGUF".to_vec()),
                ("m-00002-of-00002.gguf", b"GGUF".to_vec()),
            ],
            Unsupported,
            &["m-00002-of-00002.gguf", "llama-gguf-split --merge"],
        ),
        folder(
            "several GGUF files",
            vec![
                ("m-F16.gguf", b"GGUF".to_vec()),
                ("m-Q8_0.gguf", b"GGUF".to_vec()),
            ],
            Format,
            &["m-F16.gguf", "m-Q8_0.gguf", "name one of them"],
        ),
        Case {
            name: "a list of shards",
            files: vec![("model.safetensors.index.json", b"{}".to_vec())],
            file: Some("model.safetensors.index.json"),
            kind: Format,
            words: &["index.json", "name its folder"],
        },
        folder(
            "two",
            vec![("a.pth", model()), ("b.pth", model())],
            Format,
            &["a.pth", "b.pth"],
        ),
        folder(
            "no json",
            vec![
                ("model.safetensors", model()),
                ("config.json", b"{".to_vec()),
            ],
            Format,
            &["config.json", "JSON"],
        ),
    ]);
    let missing = open(std::path::Path::new("/no/such/file"), true).unwrap_err();
    assert_eq!(missing.kind(), Io);
    assert!(missing.to_string().contains("/no/such/file"), "{missing}");
    // A folder where a file is expected is no reason to panic either.
    let odd = tempfile::tempdir().unwrap();
    std::fs::create_dir(odd.path().join("model.safetensors")).unwrap();
    let odd = open(odd.path(), true).unwrap_err();
    assert!(odd.to_string().contains("a directory"), "{odd}");
}

#[test]
fn configurations() {
    run(&[
        folder(
            "v5",
            config("model_type", "\"rwkv5\""),
            Format,
            &["tensors", "RWKV-4, expected RWKV-5 by config.json"],
        ),
        folder(
            "llama",
            config("model_type", "\"llama\""),
            Unsupported,
            &["llama"],
        ),
        folder(
            "no type",
            config("model_type", "null"),
            Format,
            &["model_type"],
        ),
        folder(
            "text",
            config("hidden_size", "\"4\""),
            Format,
            &["hidden_size", "\"4\""],
        ),
        folder(
            "zero",
            config("hidden_size", "0"),
            Format,
            &["hidden_size 0"],
        ),
        folder(
            "negative",
            config("vocab_size", "-1"),
            Format,
            &["vocab_size -1"],
        ),
        folder(
            "huge",
            config("num_hidden_layers", "1e300"),
            Format,
            &["num_hidden_layers"],
        ),
        folder(
            "huge too",
            config("vocab_size", "99999999999"),
            Format,
            &["99999999999"],
        ),
        folder(
            "epsilon",
            config("layer_norm_epsilon", "0"),
            Format,
            &["layer_norm_epsilon 0"],
        ),
        folder(
            "tie",
            config("tie_word_embeddings", "1"),
            Format,
            &["tie_word_embeddings"],
        ),
        folder(
            "eos",
            config("eos_token_id", "[0,-2]"),
            Format,
            &["eos_token_id [0,-2]"],
        ),
        folder(
            "python's",
            vec![
                ("model.safetensors", model()),
                ("config.json", b"{\"a\": 1,\n \"b\": NaN}".to_vec()),
            ],
            Format,
            &["NaN or Infinity", "line 2"],
        ),
        folder(
            "python's, too",
            vec![
                ("model.safetensors", model()),
                ("config.json", b"{\"b\": -Infinity}".to_vec()),
            ],
            Format,
            &["NaN or Infinity"],
        ),
        folder(
            "no vocab",
            config("vocab_size", "null"),
            Format,
            &["[7, 4]", "defaults of transformers for vocab_size,"],
        ),
        folder(
            "bos",
            config("bos_token_id", "[-2]"),
            Format,
            &["bos_token_id [-2]"],
        ),
        folder(
            "vocab",
            config("vocab_size", "8"),
            Format,
            &["emb.weight", "[7, 4]", "[8, 4]", "config.json"],
        ),
        folder(
            "layers",
            config("num_hidden_layers", "3"),
            Format,
            &["blocks.2.", "missing", "config.json"],
        ),
        folder(
            "fewer layers",
            config("num_hidden_layers", "1"),
            Format,
            &["blocks.1.", "1 layers", "config.json"],
        ),
        folder(
            "attention",
            config("attention_hidden_size", "null"),
            Format,
            &["[6, 4]", "[4, 4]"],
        ),
        folder(
            "hidden",
            config("intermediate_size", "null"),
            Format,
            &["[16", "config.json"],
        ),
    ]);
}

#[test]
fn shards() {
    let parts = tiny_model();
    let (first, second) = (safetensors_of(&parts[..9]), safetensors_of(&parts[9..]));
    let map = |change: &dyn Fn(usize, &str) -> Option<String>| {
        let lines: Vec<String> = parts
            .iter()
            .enumerate()
            .filter_map(|(i, part)| {
                let shard = change(
                    i,
                    if i < 9 {
                        "a.safetensors"
                    } else {
                        "b.safetensors"
                    },
                )?;
                Some(format!("\"{}\":{shard}", part.name))
            })
            .collect();
        format!("{{\"weight_map\":{{{}}}}}", lines.join(",")).into_bytes()
    };
    let quoted = |shard: &str| Some(format!("\"{shard}\""));
    let with = |index: Vec<u8>| {
        vec![
            ("model.safetensors.index.json", index),
            ("a.safetensors", first.clone()),
            ("b.safetensors", second.clone()),
        ]
    };
    let at = |n: usize, value: &'static str| {
        map(&move |i, shard| {
            if i == n {
                Some(value.to_owned())
            } else {
                quoted(shard)
            }
        })
    };
    let sound = with(map(&|_, shard| quoted(shard)));
    let temporary = tempfile::tempdir().unwrap();
    for (name, bytes) in &sound {
        std::fs::write(temporary.path().join(name), bytes).unwrap();
    }
    assert!(open(temporary.path(), true).is_ok());
    let without_second = sound[..2].to_vec();
    let short = with(map(&|i, shard| if i == 4 { None } else { quoted(shard) }));
    let mut twice = at(0, "\"a.safetensors\"");
    let end = twice.len() - 2;
    twice.splice(end..end, *b",\"emb.weight\":\"b.safetensors\"");
    run(&[
        folder(
            "missing shard",
            without_second,
            Format,
            &["index.json", "b.safetensors", "no such file"],
        ),
        folder(
            "path",
            with(at(3, "\"../a.safetensors\"")),
            Format,
            &["../a.safetensors", "plain"],
        ),
        folder(
            "absolute",
            with(at(3, "\"/etc/passwd\"")),
            Format,
            &["/etc/passwd", "plain"],
        ),
        folder(
            "parent",
            with(at(3, "\"..\"")),
            Format,
            &["\"..\"", "plain"],
        ),
        folder(
            "number",
            with(at(3, "7")),
            Format,
            &["index.json", "integer `7`, expected a string"],
        ),
        folder(
            "not listed",
            short,
            Format,
            &["a.safetensors", "not listed"],
        ),
        folder("twice", with(twice), Format, &["emb.weight", "twice"]),
        folder(
            "no map",
            with(b"{}".to_vec()),
            Format,
            &["index.json", "weight_map"],
        ),
        folder(
            "nothing listed",
            with(b"{\"weight_map\":{}}".to_vec()),
            Format,
            &["no tensors"],
        ),
    ]);
    // Listed in the other shard: which of the two files is named first depends on their order.
    for (name, bytes) in with(at(3, "\"b.safetensors\"")) {
        std::fs::write(temporary.path().join(name), bytes).unwrap();
    }
    let moved = open(temporary.path(), true).unwrap_err().to_string();
    assert!(
        moved.contains(&parts[3].name) && moved.contains("b.safetensors"),
        "{moved}"
    );
}
