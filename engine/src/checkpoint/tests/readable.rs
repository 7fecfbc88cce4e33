//! What other programs read and this once did not: marks of editors, metadata that is no text, lists of
//! tokens, decays beyond f32. And what no program should have to: headers as long as a file.

use std::path::Path;

use super::build::*;
use super::{file, open, run};
use crate::error::ErrorKind::Format;
use crate::{
    CheckpointSource, ConvertOptions, Ending, GenerateOptions, Model, Options, Quant, Sampler,
    SamplerOptions,
};

const CONFIG: &str = r#"{"model_type":"rwkv","vocab_size":7,"hidden_size":4,"num_hidden_layers":2,
    "attention_hidden_size":6,"intermediate_size":5,"eos_token_id":EOS}"#;

fn write(folder: &Path, config: &[u8], weights: &[u8]) {
    std::fs::write(folder.join("config.json"), config).unwrap();
    std::fs::write(folder.join("model.safetensors"), weights).unwrap();
}

/// Programs that know no such token write -1 or an empty list, and some write lists of one.
#[test]
fn tokens_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let weights = safetensors_of(&tiny_model());
    for (eos, end, bos) in [
        ("[]", 0, 0),
        ("-1", 0, 0),
        ("[-1]", 0, 0),
        ("[3,-1]", 3, 0),
        ("4,\"bos_token_id\":[2]", 4, 2),
        ("4,\"bos_token_id\":[]", 4, 0),
        ("4,\"bos_token_id\":-1", 4, 0),
    ] {
        let config = CONFIG.replace("EOS", eos);
        write(folder.path(), config.as_bytes(), &weights);
        let found = open(folder.path(), true).unwrap_or_else(|e| panic!("{eos}: {e}"));
        let settings = &found.config.settings;
        assert_eq!((settings.end_of_text, settings.bos), (end, bos), "{eos}");
        assert!(settings.other_ends_of_text.as_slice().is_empty(), "{eos}");
    }
}

#[test]
fn json_with_a_mark_of_its_encoding() {
    let folder = tempfile::tempdir().unwrap();
    let config = CONFIG.replace("EOS", "3");
    let weights = safetensors_of(&tiny_model());
    write(
        folder.path(),
        format!("\u{feff}{config}").as_bytes(),
        &weights,
    );
    let checkpoint = open(folder.path(), true).unwrap();
    assert_eq!(checkpoint.config.settings.end_of_text, 3);
    assert_eq!(checkpoint.config_fields["hidden_size"], 4);
    let wide: Vec<u8> = format!("\u{feff}{config}")
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    write(folder.path(), &wide, &weights);
    let error = open(folder.path(), true).unwrap_err().to_string();
    assert!(
        error.contains("config.json") && error.contains("UTF-16"),
        "{error}"
    );
    // An index, too.
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    std::fs::rename(
        folder.path().join("model.safetensors"),
        folder.path().join("a"),
    )
    .unwrap();
    let lines: Vec<_> = tiny_model()
        .iter()
        .map(|part| format!("{:?}:\"a\"", part.name))
        .collect();
    let index = format!(
        "\u{feff}{{\"metadata\":null,\"weight_map\":{{{}}}}}",
        lines.join(",")
    );
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    assert!(open(folder.path(), true).is_ok());
}

#[test]
fn metadata_of_any_kind() {
    let plain = safetensors_of(&tiny_model());
    let length = u64::from_le_bytes(plain[..8].try_into().unwrap()) as usize;
    let (header, data) = plain[8..].split_at(length);
    let lines = std::str::from_utf8(&header[1..]).unwrap();
    for metadata in [
        "null",
        "{}",
        r#"{"format":"pt","step":7,"loss":-1.5e3,"big":18446744073709551615,"none":null,"yes":true}"#,
        r#"{"nested":{"a":[1,{"b":null}],"c":"d"},"list":[[],"x"]}"#,
    ] {
        let header = format!("{{\"__metadata__\":{metadata},{lines}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m");
        std::fs::write(&path, safetensors(&header, data)).unwrap();
        open(&path, true).unwrap_or_else(|e| panic!("{metadata}: {e}"));
    }
}

#[test]
fn long_headers_and_tables() {
    let tensor = |name: &str, fields: &str| format!("{name:?}:{{{fields}}}");
    let empty = r#""dtype":"F32","shape":[0],"data_offsets":[0,0]"#;
    let many: Vec<_> = (0..70_000).map(|i| tensor(&i.to_string(), empty)).collect();
    let many = safetensors(&format!("{{{}}}", many.join(",")), &[]);
    let long = safetensors(&format!("{{{}}}", " ".repeat(17 << 20)), &[]);
    let sizes = vec!["1"; 1000].join(",");
    let deep = tensor(
        "a",
        &format!(r#""dtype":"F32","shape":[{sizes}],"data_offsets":[0,4]"#),
    );
    let deep = safetensors(&format!("{{{deep}}}"), &[0; 4]);
    let name = safetensors(&format!("{{{}}}", tensor(&"x".repeat(2000), empty)), &[]);
    // Any JSON in place of a tensor's line is not kept.
    let maps = format!(
        "{{\"a\":{{\"a\":[{}{{}}]}}}}",
        "{\"a\":{}},".repeat(100_000)
    );
    run(&[
        file("many", many, Format, &["more than 65536 entries"]),
        file(
            "long",
            long,
            Format,
            &["header of 17825794 bytes", "16777216"],
        ),
        file("deep", deep, Format, &["too many dimensions"]),
        file("name", name, Format, &["a name of 2000 bytes"]),
        file(
            "maps",
            safetensors(&maps, &[]),
            Format,
            &["a: missing field `dtype`"],
        ),
    ]);
}

/// A list of tokens ends texts at each, in the folder, in the model file that is made of it, and converted.
#[test]
fn several_ends_of_text() {
    let folder = tempfile::tempdir().unwrap();
    let weights = safetensors_of(&tiny_model());
    let config = |eos: &str| CONFIG.replace("EOS", eos).into_bytes();
    let generated = |model: &Model| {
        let mut session = model.session();
        session.eval(&[1]).unwrap();
        let options = SamplerOptions::new().temperature(1.0).seed(5);
        let mut sampler = Sampler::new(options, model.n_vocab()).unwrap();
        let options = GenerateOptions::new().max_new_tokens(60);
        let nothing = |_: &str| std::ops::ControlFlow::Continue(());
        session.generate(&mut sampler, &options, nothing).unwrap()
    };
    write(folder.path(), &config("4294967295"), &weights);
    let endless = Model::open(folder.path(), &Options::new()).unwrap();
    let all = generated(&endless).tokens;
    assert_eq!(all.len(), 60);
    for end in 0..7 {
        let Some(at) = all.iter().position(|&token| token == end) else {
            continue;
        };
        write(
            folder.path(),
            &config(&format!("[4294967295,{end},{end}]")),
            &weights,
        );
        let model = Model::open(folder.path(), &Options::new()).unwrap();
        assert!(model.ends_text(end) && model.ends_text(u32::MAX) && !model.ends_text(7));
        assert_eq!(model.info().ends_of_text, [u32::MAX, end]);
        let file = folder.path().join("saved.model");
        model.save(&file, &mut |_| {}).unwrap();
        let converted = tempfile::tempdir().unwrap();
        let source = CheckpointSource::open(folder.path()).unwrap();
        let target = converted.path().join("m");
        source
            .to_hugging_face(&target, &ConvertOptions::new(), &mut |_| {})
            .unwrap();
        for model in [
            model,
            Model::open(&file, &Options::new()).unwrap(),
            Model::open(&target, &Options::new()).unwrap(),
        ] {
            let found = generated(&model);
            assert_eq!(
                (&found.tokens[..], found.ending),
                (&all[..at], Ending::EndOfText)
            );
        }
    }
}

/// exp() of a decay beyond f32 forgets all at once, in the stored form and in that of rwkv.cpp.
#[test]
fn decays_beyond_f32() {
    let with = |decay: f32| {
        changed("blocks.1.att.time_decay", |part| {
            for bytes in part.bytes.chunks_exact_mut(4) {
                bytes.copy_from_slice(&decay.to_le_bytes());
            }
        })
    };
    let folder = tempfile::tempdir().unwrap();
    let logits = |path: &Path, quant| {
        let model = Model::open(path, &Options::new().quant(quant)).unwrap();
        let mut session = model.session();
        let logits = session.eval(&[1, 2, 3, 1]).unwrap().to_vec();
        assert!(logits.iter().all(|x| x.is_finite()), "{logits:?}");
        assert!(session
            .state()
            .numbers()
            .unwrap()
            .iter()
            .all(|x| x.is_finite()));
        (logits, model)
    };
    // exp(80) is within f32 and forgets all at once as well.
    let path = folder.path().join("m");
    std::fs::write(&path, with(80.0)).unwrap();
    let expected = logits(&path, Quant::F32).0;
    for decay in [89.0, 100.0, 1000.0, f32::MAX] {
        std::fs::write(&path, with(decay)).unwrap();
        let (found, model) = logits(&path, Quant::F32);
        assert_eq!(found, expected, "{decay}");
        let saved = folder.path().join("saved");
        model.save(&saved, &mut |_| {}).unwrap();
        assert_eq!(logits(&saved, Quant::F32).0, expected, "{decay}");
    }
}

/// Escapes for terminals in all that a file has text in: no error sends one on.
#[test]
fn escapes_of_files_are_shown_and_not_sent() {
    const BAD: &str = "\u{1b}[2J\u{9b}31m\u{202e}\u{7f}\r\n";
    let quoted = serde_json::Value::from(format!("x{BAD}")).to_string();
    let config = |field: &str| {
        CONFIG
            .replace("EOS", &format!("0,{field:?}:{quoted}"))
            .into_bytes()
    };
    let model = safetensors_of(&tiny_model());
    let own = |key: &str| {
        let mut fields = [
            ("format", "\"rwkv-edge\"".to_owned()),
            ("format_version", "\"1\"".into()),
            ("architecture", "\"rwkv-4\"".into()),
            ("quant", "\"int8\"".into()),
            ("fingerprint", "\"00\"".into()),
            ("config", "\"{}\"".into()),
        ];
        fields.iter_mut().find(|(name, _)| *name == key).unwrap().1 = quoted.clone();
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| format!("{name:?}:{value}"))
            .collect();
        safetensors(
            &format!("{{\"__metadata__\":{{{}}}}}", fields.join(",")),
            &[],
        )
    };
    let header = |line: &str| safetensors(&format!("{{{quoted}:{line}}}"), &[0; 8]);
    let index = |line: String| format!("{{\"weight_map\":{{{line}}}}}").into_bytes();
    let name = format!("x{BAD}");
    let cpp = |bytes: &mut Vec<u8>, numbers: &[u32]| {
        bytes.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
    };
    let mut ggml = b"fmgg".to_vec();
    cpp(&mut ggml, &[101, 7, 4, 1, 0, 1, name.len() as u32, 77, 4]);
    ggml.extend(name.as_bytes());
    let st = "model.safetensors";
    let ix = "model.safetensors.index.json";
    let cases: Vec<Vec<(&str, Vec<u8>)>> = vec![
        vec![(
            st,
            header(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#),
        )],
        vec![(
            st,
            header(r#"{"dtype":"F31","shape":[2],"data_offsets":[0,8]}"#),
        )],
        vec![(
            st,
            safetensors(&format!("{{\"a\":{{\"dtype\":{quoted}}}}}"), &[]),
        )],
        vec![(st, safetensors(&format!("{{{quoted}:1,{quoted}:1}}"), &[]))],
        vec![(st, own("format_version"))],
        vec![(st, own("architecture"))],
        vec![(st, own("quant"))],
        vec![(st, own("fingerprint"))],
        vec![(st, own("config"))],
        vec![(st, model.clone()), ("config.json", config("model_type"))],
        vec![(st, model.clone()), ("config.json", config("vocab_size"))],
        vec![(st, model.clone()), ("config.json", config("bos_token_id"))],
        vec![
            (st, model.clone()),
            ("config.json", config("layer_norm_epsilon")),
        ],
        vec![
            (st, model.clone()),
            ("config.json", config("tie_word_embeddings")),
        ],
        vec![(ix, index(format!("\"a\":{quoted}")))],
        vec![(ix, index(format!("{quoted}:1")))],
        vec![(ix, index(format!("{quoted}:\"b\"")))],
        vec![("m.pth", torch(Pickle::dict().tensor(&name, &PLACE).end()))],
        vec![("m.pth", torch(Pickle::dict().text(&name).int(1).end()))],
        vec![(
            "m.pth",
            torch(
                Pickle::dict()
                    .tensor(
                        "a",
                        &Place {
                            key: &name,
                            ..PLACE
                        },
                    )
                    .end(),
            ),
        )],
        vec![("m.pth", torch(b"\x80\x02cos\nx\x1b[2J\n.".to_vec()))],
        vec![(
            "m.pth",
            zip(&[("m/data.pkl", b"}."), ("m/byteorder", b"\x1b[2J")]),
        )],
        vec![(
            "m.pth",
            zip_with(&[(&name, b"x")], |records| records[0].method = 8),
        )],
        vec![("m.bin", ggml)],
        vec![(
            "adapter_config.json",
            format!("{{\"peft_type\":{quoted},\"base_model_name_or_path\":{quoted}}}").into_bytes(),
        )],
        vec![("a\u{1b}[2J-00001-of-00002.bin", vec![])],
        vec![("a\u{1b}[2J.pth", b"x".to_vec())],
        vec![("a\u{1b}.pth", vec![]), ("b.pth", vec![])],
    ];
    for files in cases {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("folder\u{1b}]0;x\u{7}");
        std::fs::create_dir(&folder).unwrap();
        for (name, bytes) in &files {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
        let lone = files.len() == 1 && files[0].0 != ix && files[0].0 != "adapter_config.json";
        let paths = [Some(folder.clone()), lone.then(|| folder.join(files[0].0))];
        for path in paths.into_iter().flatten() {
            let error = match Model::open(&path, &Options::new()) {
                Ok(_) => panic!("{files:?} opens"),
                Err(error) => error,
            };
            let text = error.to_string();
            let is_bad = |char: char| char.is_control() || char == '\u{202e}';
            assert!(!text.contains(is_bad), "{text:?}");
            assert!(text.contains("\\u{1b}"), "{text:?}");
            assert_eq!(text.matches("folder\\u{1b}").count(), 1, "{text}");
        }
    }
}
