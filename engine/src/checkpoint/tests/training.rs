//! What training saves: the weights beside an optimizer and counters, under other names, as adapters.

use super::super::zip as archive;
use super::build::*;
use super::{file, fixture, open, read_all, run, Case};
use crate::error::ErrorKind::{Format, Unsupported};
use crate::files::{Access, SourceFile};

/// A file torch wrote, with another pickle of the same tensors: `change` gets what builds their dictionary.
fn repickled(change: impl FnOnce(Pickle) -> Vec<u8>) -> Vec<u8> {
    let path = fixture("checkpoints/raw-f32.pth");
    let file = SourceFile::open_with(&path, Access::Read).unwrap();
    let mut records = Vec::new();
    for (name, record) in archive::records(&file).unwrap() {
        records.push((name, file.bytes(record.data).unwrap().to_vec()));
    }
    records.push(("raw-f32/data/900".into(), vec![0; 16]));
    let table = &mut records
        .iter_mut()
        .find(|(name, _)| name.ends_with("data.pkl"))
        .unwrap()
        .1;
    let inner = table.strip_prefix(b"\x80\x02").unwrap();
    let inner = inner.strip_suffix(b".").unwrap();
    *table = change(Pickle(inner.to_vec()));
    let records: Vec<_> = records
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
        .collect();
    zip(&records)
}

const OPTIMIZER: Place<'static> = Place {
    key: "900",
    ..PLACE
};

/// All that training scripts are known to keep beside weights.
fn with_others(pickle: Pickle) -> Pickle {
    let pickle = pickle
        .text("epoch")
        .int(3)
        .text("loss")
        .raw(b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n")
        .text("f8")
        .raw(b"\x89\x88\x87R(K\x03")
        .text("<")
        .raw(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tbC\x08\0\0\0\0\0\0\xf0?tR")
        .text("args")
        .raw(b"cargparse\nNamespace\n)\x81}(")
        .text("lr")
        .raw(b"G\x3f\x50\x62\x4d\xd2\xf1\xa9\xfcub")
        .text("losses")
        .raw(b"](G\x3f\xf0\0\0\0\0\0\0K\x01NI7\nF1.5\nL12345678901234567890L\ne")
        .text("best")
        .raw(b"N")
        .text("seen")
        .raw(b"\x8f(K\x01K\x02\x90")
        .text("kind")
        .raw(b"(i__main__\nKind\n")
        .text("rng")
        .raw(b"\x8a\x11\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01")
        .text("device")
        .raw(b"ctorch\ndevice\n")
        .text("cpu")
        .raw(b"\x85R")
        .text("counts")
        .raw(b"ccollections\ndefaultdict\nc__builtin__\nint\n\x85R(K\x01K\x02u")
        .text("optimizer")
        .raw(b"}(")
        .text("state")
        .raw(b"}K\0}(");
    let pickle = pickle.tensor("exp_avg", &OPTIMIZER);
    pickle
        .raw(b"us")
        .text("param_groups")
        .raw(b"]}(")
        .text("params")
        .raw(b"](K\0K\x01euau")
}

fn assert_opens(what: &str, bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.pth");
    std::fs::write(&path, bytes).unwrap();
    let expected = open(&fixture("checkpoints/raw-f32.pth"), true).unwrap();
    let expected = read_all(&expected).unwrap();
    for mapped in [true, false] {
        let checkpoint = open(&path, mapped).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(read_all(&checkpoint).unwrap() == expected, "{what}");
    }
}

#[test]
fn weights_are_found_among_what_training_saves() {
    for key in [
        "state_dict",
        "model_state_dict",
        "model",
        "module",
        "network",
        "what they called it",
    ] {
        let bytes = repickled(|weights| {
            let outer = Pickle::dict().text(key).raw(&weights.0);
            with_others(outer).end()
        });
        assert_opens(key, &bytes);
        let bytes = repickled(|weights| {
            let outer = with_others(Pickle::dict())
                .text("more")
                .raw(b"}(")
                .text(key);
            outer.raw(&weights.0).raw(b"u").end()
        });
        assert_opens("two levels", &bytes);
    }
    // Beside each other in one dictionary, and the same dictionary twice.
    let bytes = repickled(|weights| {
        with_others(Pickle(b"\x80\x02".to_vec()).raw(&weights.0).raw(b"(")).end()
    });
    assert_opens("beside", &bytes);
    let bytes = repickled(|weights| {
        let outer = Pickle::dict().text("model").raw(&weights.0);
        outer
            .raw(b"r\xff\xff\0\0")
            .text("again")
            .raw(b"j\xff\xff\0\0")
            .end()
    });
    assert_opens("twice", &bytes);
}

/// Names of types and functions as values, in the spelling of Python 3 and in that which protocol 2 writes.
#[test]
fn names_of_types_are_values() {
    for name in [
        "int", "long", "str", "unicode", "range", "xrange", "type", "bool", "bytes", "float", "len",
    ] {
        for module in ["__builtin__", "builtins"] {
            let class = format!("c{module}\n{name}\n");
            let bytes = repickled(|weights| {
                let outer = Pickle::dict().text("state_dict").raw(&weights.0);
                let counts = outer
                    .text("class")
                    .raw(class.as_bytes())
                    .text("counts")
                    .raw(b"ccollections\ndefaultdict\n")
                    .raw(class.as_bytes())
                    .raw(b"\x85R")
                    .text("made")
                    .raw(class.as_bytes())
                    .raw(b"K\0K\x05K\x01\x87R");
                let partial = counts.text("lr").raw(b"cfunctools\npartial\n");
                let state = [class.as_bytes(), b"\x85R(", class.as_bytes(), b")}Ntb"].concat();
                partial.raw(&state).end()
            });
            assert_opens(name, &bytes);
        }
    }
}

#[test]
fn what_is_in_doubt_is_named() {
    let two = repickled(|weights| {
        let outer = Pickle::dict().text("model").raw(&weights.0).text("ema");
        let outer = outer.raw(b"}(").tensor("emb.weight", &OPTIMIZER).raw(b"u");
        with_others(outer).end()
    });
    let none = Pickle::dict()
        .text("epoch")
        .int(3)
        .text("args")
        .raw(b"N")
        .end();
    let only_optimizer = Pickle::dict()
        .text("optimizer")
        .raw(b"}(")
        .tensor("a", &PLACE);
    let below = Pickle::dict().text("state_dict").raw(b"}(");
    let below = below.text("emb.weight").int(1).raw(b"u");
    let no_tensor = Pickle::dict()
        .text("emb.weight")
        .int(1)
        .tensor("blocks.0.ln1.bias", &PLACE);
    run(&[
        file(
            "two",
            two,
            Unsupported,
            &["\"model\"", "\"ema\"", "save that dictionary alone"],
        ),
        file(
            "none",
            torch(none),
            Unsupported,
            &["\"epoch\", \"args\"", "no tensor"],
        ),
        file(
            "numbers below a key",
            torch(below.end()),
            Unsupported,
            &["\"emb.weight\"", "a number"],
        ),
        file(
            "a long name",
            torch(Pickle::dict().tensor(&"x".repeat(300), &PLACE).end()),
            Format,
            &["a key of more than 256 bytes"],
        ),
        file(
            "only an optimizer",
            torch(only_optimizer.raw(b"u").end()),
            Unsupported,
            &["\"optimizer\"", "no tensor"],
        ),
        file(
            "a number",
            torch(no_tensor.end()),
            Unsupported,
            &["\"emb.weight\"", "a number"],
        ),
    ]);
}

/// Texts in quotes, numbers in digits, no instruction of protocol 2.
#[test]
fn older_protocols_of_pickle() {
    let line = |name: &str, key: &str| {
        format!(
            "{name}ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\nFloatStorage\n{key}\
             S'cpu'\nI4\ntQI0\n(I2\nI2\nt(L2L\nI1\ntI00\nccollections\nOrderedDict\n(tRtp7\nRs"
        )
    };
    let lines = line("S'a'\np1\n", "V0\n") + &line("U\u{1}b", "T\u{1}\0\0\x000");
    for start in ["(dp0\n", "}", "(d0(dp0\n"] {
        let bytes = torch(format!("{start}{lines}.").into_bytes());
        let file = SourceFile::from_bytes("m", bytes.into());
        let tensors = super::super::torch::read(&file).unwrap();
        let names: Vec<_> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(tensors.iter().all(|tensor| tensor.shape == [2, 2]));
    }
}

/// One number for many, overlapping rows, a row in all columns: what torch reads is read.
#[test]
fn expanded_tensors() {
    let numbers: Vec<u8> = (1..=4).flat_map(|i| (i as f32).to_le_bytes()).collect();
    type Case<'a> = (&'a [i64], &'a [i64], i64, &'a [f32]);
    let cases: [Case<'_>; 7] = [
        (&[3, 2], &[0, 0], 1, &[2.0; 6]),
        (&[3, 2], &[0, 1], 0, &[1.0, 2.0, 1.0, 2.0, 1.0, 2.0]),
        (&[2, 3], &[1, 0], 2, &[3.0, 3.0, 3.0, 4.0, 4.0, 4.0]),
        (&[3, 2], &[1, 1], 0, &[1.0, 2.0, 2.0, 3.0, 3.0, 4.0]),
        (&[5], &[0], 3, &[4.0; 5]),
        (&[1, 1, 5], &[0, 0, 0], 3, &[4.0; 5]),
        (&[2, 2], &[1, 2], 0, &[1.0, 3.0, 2.0, 4.0]),
    ];
    for (shape, strides, first, expected) in cases {
        let place = Place {
            shape,
            strides,
            first,
            ..PLACE
        };
        let table = Pickle::dict().tensor("t", &place).end();
        let bytes = zip(&[("m/data.pkl", &table), ("m/data/0", &numbers)]);
        let file = SourceFile::from_bytes("m", bytes.into());
        let tensor = super::super::torch::read(&file).unwrap().remove(0);
        let n = expected.len();
        assert_eq!(
            tensor.read_vector(n).unwrap(),
            expected,
            "{shape:?} {strides:?}"
        );
        if let [rows, cols] = tensor.shape[..] {
            for start in 0..rows {
                let mut out = vec![0.0; (rows - start) * cols];
                tensor.read_rows(start..rows, &mut out).unwrap();
                assert_eq!(out, expected[start * cols..], "{shape:?} {strides:?}");
            }
        }
    }
}

#[test]
fn prefixes_of_all_names() {
    let expected = read_all(&open(&fixture("checkpoints/raw.safetensors"), true).unwrap()).unwrap();
    for prefix in [
        "module.",
        "_orig_mod.",
        "model.",
        "_forward_module.",
        "module._orig_mod.",
        "model.rwkv.",
    ] {
        let mut parts = tiny_model();
        for part in &mut parts {
            part.name = format!("{prefix}{}", part.name);
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m");
        std::fs::write(&path, safetensors_of(&parts)).unwrap();
        let found = open(&path, true).unwrap_or_else(|e| panic!("{prefix}: {e}"));
        assert_eq!(read_all(&found).unwrap(), expected, "{prefix}");
    }
    // Newer versions behind a prefix are known, too, and what one name has alone is not taken off.
    let mut parts = tiny_model();
    for part in &mut parts {
        part.name = format!("module.{}", part.name);
    }
    parts[3].name = "module.blocks.0.att.time_maa_x".into();
    let v6 = safetensors_of(&parts);
    let alone = with_extra("module.emb.weight");
    run(&[
        file(
            "v6",
            v6,
            Format,
            &["tensor blocks.0.att.time_faaaa: missing"],
        ),
        file(
            "one name",
            alone,
            Format,
            &["module.emb.weight", "not part"],
        ),
    ]);
}

/// Beside a model whose names all begin alike lie the counters of averages, losses, other models.
#[test]
fn names_beside_a_prefix() {
    let expected = read_all(&open(&fixture("checkpoints/raw.safetensors"), true).unwrap()).unwrap();
    let with = |prefix: &str, extra: &[(&str, Vec<usize>)]| {
        let mut parts = tiny_model();
        for part in &mut parts {
            part.name = format!("{prefix}{}", part.name);
        }
        parts.extend(extra.iter().map(|(name, shape)| Part {
            name: (*name).to_owned(),
            dtype: "F32",
            shape: shape.clone(),
            bytes: vec![0; 4 * shape.iter().product::<usize>()],
        }));
        safetensors_of(&parts)
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    for counter in [vec![], vec![1]] {
        for prefix in ["module.", "model."] {
            let bytes = with(prefix, &[("n_averaged", counter.clone())]);
            std::fs::write(&path, bytes).unwrap();
            let found = open(&path, true).unwrap();
            assert_eq!(read_all(&found).unwrap(), expected, "{prefix}");
        }
    }
    let loss = with("module.", &[("criterion.weight", vec![3])]);
    let head = ("model.loss_scale", vec![3]);
    let inside = with("model.", &[("n_averaged", vec![]), head]);
    let teacher = ["emb.weight", "blocks.0.ln1.weight"].map(|name| format!("teacher.{name}"));
    let two = with(
        "model.",
        &[(&teacher[0], vec![7, 4]), (&teacher[1], vec![4])],
    );
    run(&[
        file(
            "loss",
            loss,
            Unsupported,
            &["tensor criterion.weight", "\"module.\""],
        ),
        file(
            "inside",
            inside,
            Format,
            &["tensor model.loss_scale", "not part"],
        ),
        file("two", two, Unsupported, &["\"model.\"", "\"teacher.\""]),
    ]);
}

#[test]
fn adapters_are_named() {
    let lora = |names: &[&str], beside: bool| {
        let mut parts = match beside {
            true => tiny_model(),
            false => vec![],
        };
        parts.extend(names.iter().map(|name| Part {
            name: (*name).to_owned(),
            dtype: "F32",
            shape: vec![2],
            bytes: vec![0; 8],
        }));
        safetensors_of(&parts)
    };
    let plain = ["blocks.0.att.key.lora_A", "blocks.0.att.key.lora_B"];
    let peft = ["base_model.model.rwkv.blocks.0.attention.key.lora_A.weight"];
    let lokr = ["lycoris_blocks_0_att_key.lokr_w1"];
    let states = ["blocks.0.att.time_state", "blocks.1.att.time_state"];
    let wrapped = ["blocks.0.att.key.base_layer.weight"];
    let pth = torch(Pickle::dict().tensor(plain[0], &PLACE).end());
    let folder = |name, files| Case {
        name,
        files,
        file: None,
        kind: Unsupported,
        words: &["adapter", "merge", "BlinkDL/rwkv-4-world"],
    };
    let config = br#"{"peft_type":"LORA","base_model_name_or_path":"BlinkDL/rwkv-4-world","r":8}"#;
    let merge: &[&str] = &["LoRA", "merge", "without its model"];
    run(&[
        file("alone", lora(&plain, false), Unsupported, merge),
        file("alone in a pickle", pth, Unsupported, merge),
        file("of peft", lora(&peft, false), Unsupported, merge),
        file("lokr", lora(&lokr, false), Unsupported, merge),
        file(
            "states",
            lora(&states, false),
            Unsupported,
            &["initial states", "without their model"],
        ),
        file(
            "beside",
            lora(&plain, true),
            Unsupported,
            &["LoRA", "merge", "beside its model"],
        ),
        file(
            "wrapped",
            lora(&wrapped, true),
            Unsupported,
            &["LoRA", "merge"],
        ),
        folder(
            "a folder",
            vec![
                ("adapter_config.json", config.to_vec()),
                ("adapter_model.safetensors", lora(&peft, false)),
            ],
        ),
        folder(
            "a folder of torch's",
            vec![
                (
                    "adapter_config.json",
                    [b"\xef\xbb\xbf", &config[..]].concat(),
                ),
                ("adapter_model.bin", b"x".to_vec()),
            ],
        ),
    ]);
}

/// A pickle of megabytes takes a moment, whatever is in it: long texts are not used again and again.
#[test]
fn long_texts_are_not_used_again() {
    let long = "x".repeat(1 << 20);
    let again = |n: usize, piece: &[u8]| piece.repeat(n);
    // A storage by a long name, a name of Python, a key.
    let storage = Pickle(b"\x80\x02(".to_vec())
        .text("storage")
        .raw(b"ctorch\nFloatStorage\n")
        .text(&long)
        .text("cpu")
        .raw(b"K\x01tq\0")
        .raw(&again(100_000, b"h\0Q0"));
    let global = Pickle(b"\x80\x04".to_vec())
        .text(&long)
        .raw(b"q\0")
        .raw(&again(100_000, b"h\0h\0\x930"));
    let keys = Pickle(b"\x80\x02".to_vec())
        .text(&long)
        .raw(b"q\0}(")
        .raw(&again(100_000, b"h\0}"))
        .raw(b"u.");
    let names = Pickle(b"\x80\x02".to_vec()).raw(
        (0..5000)
            .map(|i| format!("ca\nb{i}\n"))
            .collect::<String>()
            .as_bytes(),
    );
    let many = [&b"\x80\x02"[..], &vec![b'N'; 1 << 20], b"."].concat();
    let memo = b"\x80\x02Nr\xff\xff\xff\x7f.".to_vec();
    let start = std::time::Instant::now();
    run(&[
        file("storage", torch(storage.0), Format, &["no storage"]),
        file("name", torch(global.0), Format, &["a name that is no text"]),
        file("key", torch(keys.0), Unsupported, &["no tensor"]),
        file("names", torch(names.0), Format, &["more than 4096 names"]),
        file("values", torch(many), Format, &["more than 524288 values"]),
        file("memo", torch(memo), Format, &["more than 524288 values"]),
    ]);
    // By the square of the length the first alone took minutes.
    assert!(start.elapsed().as_secs() < 60);
}
