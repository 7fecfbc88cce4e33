//! Adapters that do not fit, each with the words that its error must have.

use std::path::Path;

use rwkv_edge::{CheckpointSource, ErrorKind, Lora, Quant};

use crate::common::golden;
use crate::merged::{lora, open, try_open, Base};
use crate::tensors::{Tensor, Tensors};

/// What it is, the adapter and its alpha, and the error.
type Case<'a> = (&'a str, Tensors, Option<f64>, ErrorKind, &'a [&'a str]);

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let base = Base::new(golden("small-safetensors"));
    let zeros =
        |shape: &[usize]| Tensor::from_f32(shape.to_vec(), &vec![0.0; shape.iter().product()]);
    let good = || -> Tensors {
        let key = "blocks.0.att.key";
        [
            (format!("{key}.lora_A"), zeros(&[2, 64])),
            (format!("{key}.lora_B"), zeros(&[64, 2])),
        ]
        .into()
    };
    let with = |name: &str, shape: &[usize]| {
        let mut tensors = good();
        tensors.insert(name.into(), zeros(shape));
        tensors
    };
    let without = |name: &str| {
        let mut tensors = good();
        tensors.remove(name);
        tensors
    };
    let one = |name: &str, shape: &[usize]| -> Tensors { [(name.to_owned(), zeros(shape))].into() };
    let mut bad_number = good();
    let tensor = bad_number.get_mut("blocks.0.att.key.lora_A").expect("one");
    tensor.bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let mut bad_type = good();
    let tensor = bad_type.get_mut("blocks.0.att.key.lora_A").expect("one");
    tensor.dtype = "I32".into();
    let (a, b) = ("blocks.0.att.key.lora_A", "blocks.0.att.key.lora_B");
    let some = Some(4.0);
    let cases: &[Case<'_>] = &[
        (
            "no alpha",
            good(),
            None,
            ErrorKind::Argument,
            &["alpha", "lora_alpha", "FILE:ALPHA"],
        ),
        (
            "NaN",
            good(),
            Some(f64::NAN),
            ErrorKind::Argument,
            &["alpha NaN", "finite number above 0"],
        ),
        (
            "zero",
            good(),
            Some(0.0),
            ErrorKind::Argument,
            &["alpha 0", "above 0"],
        ),
        (
            "alpha of DiSHA",
            one("blocks.0.att.key.disha", &[4, 64]),
            some,
            ErrorKind::Argument,
            &["an alpha, expected none"],
        ),
        (
            "no B",
            without(b),
            some,
            ErrorKind::Format,
            &[a, "without its B"],
        ),
        (
            "no A",
            without(a),
            some,
            ErrorKind::Format,
            &[b, "without its A"],
        ),
        (
            "rank 0",
            {
                let mut t = with(a, &[0, 64]);
                t.insert(b.into(), zeros(&[64, 0]));
                t
            },
            some,
            ErrorKind::Format,
            &[a, "[0, 64]", "[rank, 64]", "at least 1"],
        ),
        (
            "inputs",
            with(a, &[2, 63]),
            some,
            ErrorKind::Format,
            &[a, "[2, 63]", "[rank, 64]"],
        ),
        (
            "outputs",
            with(b, &[63, 2]),
            some,
            ErrorKind::Format,
            &[b, "[63, 2]", "[64, 2]"],
        ),
        (
            "ranks",
            with(b, &[64, 3]),
            some,
            ErrorKind::Format,
            &[b, "[64, 3]", "[64, 2]"],
        ),
        (
            "dimensions",
            with(a, &[128]),
            some,
            ErrorKind::Format,
            &[a, "[128]"],
        ),
        (
            "no such layer",
            with("blocks.3.att.key.lora_A", &[2, 64]),
            some,
            ErrorKind::Format,
            &[
                "blocks.3.att.key.lora_A",
                "not of an RWKV-4 model with 3 layers",
            ],
        ),
        (
            "no such matrix",
            with("blocks.0.att.gate.disha", &[2, 64]),
            some,
            ErrorKind::Format,
            &["blocks.0.att.gate.disha", "not of an RWKV-4"],
        ),
        (
            "of a vector",
            with("blocks.0.ln1.lora_A", &[2, 64]),
            some,
            ErrorKind::Unsupported,
            &["blocks.0.ln1.lora_A", "large matrices"],
        ),
        (
            "another tensor",
            with("blocks.0.att.w1", &[2, 64]),
            some,
            ErrorKind::Format,
            &["blocks.0.att.w1", "expected names of its tensors"],
        ),
        (
            "another shape",
            with("blocks.0.ln1.weight", &[63]),
            some,
            ErrorKind::Format,
            &["blocks.0.ln1.weight", "[63]", "[64]"],
        ),
        (
            "a state",
            with("blocks.0.att.time_state", &[1, 64, 64]),
            some,
            ErrorKind::Format,
            &["blocks.0.att.time_state"],
        ),
        (
            "another adapter",
            with("blocks.0.att.key.lora_magnitude_vector", &[64]),
            some,
            ErrorKind::Unsupported,
            &["lora_magnitude_vector", "another kind of adapter"],
        ),
        (
            "r of DiSHA",
            one("blocks.0.att.key.disha", &[65, 64]),
            None,
            ErrorKind::Format,
            &["[65, 64]", "[r, 64]"],
        ),
        (
            "outputs of DiSHA",
            one("blocks.1.ffn.key.disha", &[4, 64]),
            None,
            ErrorKind::Format,
            &["[4, 64]", "[r, 256]"],
        ),
        (
            "blocks",
            one("blocks.0.att.key.bone", &[4, 15, 15]),
            None,
            ErrorKind::Format,
            &["[4, 15, 15]", "r, r]"],
        ),
        (
            "blocks of rows",
            one("head.bone", &[1, 64, 3]),
            None,
            ErrorKind::Format,
            &["[1, 64, 3]"],
        ),
        (
            "old blocks",
            one("blocks.0.att.key.bone", &[64, 16]),
            None,
            ErrorKind::Format,
            &["[64, 16]"],
        ),
        (
            "nothing",
            one("blocks.0.ln1.weight", &[64]),
            None,
            ErrorKind::Format,
            &["no tensor of an adapter"],
        ),
        ("a number", bad_number, some, ErrorKind::Format, &[a, "NaN"]),
        (
            "a type",
            bad_type,
            some,
            ErrorKind::Unsupported,
            &[a, "I32", "F32, F16 or BF16"],
        ),
    ];
    for (what, tensors, alpha, kind, words) in cases {
        let file = base.file("adapter.safetensors", tensors);
        let opened = try_open(&base.path, Quant::F32, &[Lora::new(file, *alpha)]);
        let error = opened.err().unwrap_or_else(|| panic!("{what}: opened"));
        let text = error.to_string();
        assert_eq!(error.kind(), *kind, "{what}: {text}");
        for word in words.iter().chain(&["adapter.safetensors"]) {
            assert!(text.contains(word), "{what}: {text}");
        }
    }
}

#[test]
fn files_that_are_no_adapters_and_models_that_take_none() {
    let base = Base::new(golden("v7-pth").join("model.pth"));
    let (adapter, _) = lora(&base, 2, 2.0, 1);
    let good = base.file("lora", &adapter);
    let mut init = Tensors::new();
    for (name, tensor) in &adapter {
        init.insert(name.replace("lora_", "init_lora_"), tensor.clone());
    }
    let whole_init = base.file("init", &init);
    init.retain(|name, _| !name.starts_with("head"));
    let part_of_init = base.file("part", &init);
    init.insert(
        "blocks.0.ln1.weight".into(),
        base.tensor("blocks.0.ln1.weight").clone(),
    );
    let mixed_init = base.file("mixed", &init);
    let model_file = base.folder.path().join("model");
    open(&base.path, Quant::Int8, &[])
        .save(&model_file, &mut |_| {})
        .expect("can be written");
    let one = |file: &Path, alpha: Option<f64>| Lora::new(file, alpha);
    let gguf = golden("v7-gguf-f16").join("model-F16.gguf");
    let nowhere = base.folder.path().join("nowhere");
    let cases: &[(&Path, &[Lora], ErrorKind, &[&str])] = &[
        (
            &model_file,
            &[one(&good, Some(2.0))],
            ErrorKind::Unsupported,
            &["model file", "quantised already", "checkpoint"],
        ),
        (
            &base.path,
            &[one(&model_file, None)],
            ErrorKind::Unsupported,
            &["a whole model, expected an adapter"],
        ),
        (
            &base.path,
            &[one(&gguf, None)],
            ErrorKind::Unsupported,
            &["a whole model, expected an adapter"],
        ),
        (
            &base.path,
            &[one(&base.path, None)],
            ErrorKind::Format,
            &["no tensor of an adapter"],
        ),
        (
            &base.path,
            &[one(&nowhere, None)],
            ErrorKind::Io,
            &["nowhere"],
        ),
        (
            &base.path,
            &[one(&whole_init, None)],
            ErrorKind::Argument,
            &["init", "behind it"],
        ),
        (
            &base.path,
            &[one(&whole_init, None), one(&whole_init, None)],
            ErrorKind::Argument,
            &["behind it"],
        ),
        (
            &base.path,
            &[one(&whole_init, None), one(&good, Some(2.0))],
            ErrorKind::Argument,
            &["an alpha, expected none"],
        ),
        (
            &base.path,
            &[one(&whole_init, Some(2.0)), one(&good, None)],
            ErrorKind::Argument,
            &["an alpha, expected none"],
        ),
        (
            &base.path,
            &[one(&part_of_init, None), one(&good, None)],
            ErrorKind::Format,
            &["head.lora_A", "no tensors of head.weight"],
        ),
        (
            &base.path,
            &[one(&mixed_init, None), one(&good, None)],
            ErrorKind::Format,
            &["blocks.0.ln1.weight", "alone"],
        ),
    ];
    for (path, loras, kind, words) in cases {
        let error = try_open(path, Quant::F32, loras).expect_err("refused");
        let text = error.to_string();
        assert_eq!(error.kind(), *kind, "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
    let error = CheckpointSource::open(&base.path).expect("a fixture");
    let error = error.with_loras(&[one(&good, None)]).expect_err("no alpha");
    assert_eq!(error.kind(), ErrorKind::Argument);
}

/// Folders of PEFT that are none, or hold what is not plain LoRA.
#[test]
fn other_folders_of_peft_are_refused_by_name() {
    let base = Base::new(golden("small-safetensors"));
    let folder = base.folder.path().join("peft");
    std::fs::create_dir_all(&folder).expect("can be made");
    let refused = |alpha: Option<f64>, words: &[&str]| {
        let error = try_open(&base.path, Quant::F32, &[Lora::new(&folder, alpha)]);
        let text = error.expect_err("must be refused").to_string();
        for word in words {
            assert!(text.contains(word), "{text}");
        }
    };
    refused(
        None,
        &["peft", "adapter_model.safetensors", "adapter_config.json"],
    );
    let (adapter, _) = lora(&base, 2, 2.0, 3);
    let file = folder.join("adapter_model.safetensors");
    std::fs::write(&file, crate::tensors::safetensors(&adapter)).expect("can be written");
    refused(None, &["without adapter_config.json"]);
    refused(Some(2.0), &["without adapter_config.json"]);
    for (config, words) in [
        ("{", &["adapter_config.json"][..]),
        (
            r#"{"peft_type":"LOHA"}"#,
            &["adapter_config.json", "peft_type LORA"],
        ),
        (r#"{"peft_type":"LORA","r":2}"#, &["no lora_alpha"]),
        (
            r#"{"peft_type":"LORA","r":2,"lora_alpha":-1}"#,
            &["lora_alpha -1"],
        ),
        (
            r#"{"peft_type":"LORA","lora_alpha":2,"use_dora":true}"#,
            &["use_dora is set"],
        ),
        (
            r#"{"peft_type":"LORA","lora_alpha":2,"r":3}"#,
            &["blocks.0.att.key.lora_A", "rank 2, expected 3"],
        ),
    ] {
        std::fs::write(folder.join("adapter_config.json"), config).expect("can be written");
        refused(None, words);
    }
    refused(
        Some(2.0),
        &["an alpha, expected none", "adapter_config.json says it"],
    );
    // The file itself, with its alpha, asks nobody.
    open(&base.path, Quant::F32, &[Lora::new(&file, 2.0)]);
}
