//! Files that must be refused, each with a message that says what is wrong with which file.

use super::build::*;
use super::{file, read_fixture, run};
use crate::error::ErrorKind::{Format, Unsupported};

#[test]
fn files_of_other_formats() {
    let legacy = read_fixture("refused-before-1.6.pth");
    run(&[
        file("empty", vec![], Format, &["empty"]),
        file("one byte", vec![1], Format, &["not a checkpoint"]),
        file("noise", vec![0x5a; 4096], Format, &["not a checkpoint"]),
        file(
            "gguf",
            b"GGUF\x03\0\0\0aaaaaaaa".to_vec(),
            Format,
            &["GGUF", "its header is cut"],
        ),
        file(
            "ggml",
            b"tjgg\x65\0\0\0aaaaaaaa".to_vec(),
            Unsupported,
            &["ggml file of another program"],
        ),
        file(
            "lfs",
            b"version https://git-lfs.github.com/spec/v1\n".to_vec(),
            Format,
            &["LFS"],
        ),
        file(
            "old torch",
            legacy,
            Unsupported,
            &["before 1.6", "torch.save"],
        ),
        file("pickle", b"\x80\x04}.".to_vec(), Unsupported, &["pickle"]),
    ]);
}

#[test]
fn damaged_archives() {
    let whole = read_fixture("raw-f32.pth");
    let cut = whole[..whole.len() - 10].to_vec();
    let half = whole[..whole.len() / 2].to_vec();
    let padded = [&whole[..], &[0; 7]].concat();
    let prefixed = [&whole[..64], &whole[..]].concat();
    let mut flipped = whole.clone();
    // Before the second storage's header are 16 bytes of sizes, and before those the first's
    // numbers.
    let name = b"raw-f32/data/1";
    let at = whole.windows(name.len()).position(|w| w == name).unwrap();
    flipped[at - 60] ^= 4;
    let table = Pickle::dict().tensor("emb.weight", &PLACE).end();
    let with = |change: fn(&mut Vec<ZipRecord>)| {
        zip_with(&[("m/data.pkl", &table), ("m/data/0", &[0; 16])], change)
    };
    let mut many = with(|_| {});
    let end = many.len() - 22 - 20 - 56;
    many[end + 24..end + 40].fill(0x7f);
    let big = zip(&[
        ("m/data.pkl", &table),
        ("m/byteorder", b"big"),
        ("m/data/0", &[0; 16]),
    ]);
    run(&[
        file("cut", cut, Format, &["truncated or padded"]),
        file("half", half, Format, &["truncated or padded"]),
        file("padded", padded, Format, &["truncated or padded"]),
        file("prefixed", prefixed, Format, &["zip directory is damaged"]),
        file(
            "bit flipped",
            flipped,
            Format,
            &["tensor", "record data/0", "checksum"],
        ),
        file(
            "deflated",
            with(|r| r[1].method = 8),
            Unsupported,
            &["record m/data/0", "compressed"],
        ),
        file(
            "overlap",
            with(|r| r[1].offset = r[0].offset + 1),
            Format,
            &["record m/data/0"],
        ),
        file(
            "same record",
            with(|r| {
                r[1] = ZipRecord {
                    name: "m/x".into(),
                    ..r[0].clone()
                }
            }),
            Format,
            &["m/x"],
        ),
        file(
            "beyond",
            with(|r| r[1].size = 1 << 40),
            Format,
            &["m/data/0", "1099511627776"],
        ),
        file(
            "far",
            with(|r| r[1].offset = u64::MAX - 4),
            Format,
            &["m/data/0", "directory"],
        ),
        file(
            "twice",
            with(|r| r[1] = r[0].clone()),
            Format,
            &["m/data.pkl", "twice"],
        ),
        file("count", many, Format, &["zip directory", "records"]),
        file(
            "no table",
            zip(&[("a/b", b"c")]),
            Unsupported,
            &["data.pkl"],
        ),
        file("empty zip", zip(&[]), Format, &["not a checkpoint"]),
        file(
            "two tables",
            zip(&[("a/data.pkl", b"c"), ("b/data.pkl", b"c")]),
            Format,
            &["several"],
        ),
        file("big endian", big, Unsupported, &["big", "little"]),
        file(
            "checksum of the table",
            with(|r| r[0].crc32 ^= 1),
            Format,
            &["data.pkl", "checksum"],
        ),
    ]);
}

#[test]
fn safetensors_headers() {
    let one = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let header = |text: &str| safetensors(text, &[0; 8]);
    let sound = header(one);
    let with_length = |length: u64| [&length.to_le_bytes()[..], &sound[8..]].concat();
    let a = |rest: &str| header(&format!(r#"{{"a":{{{rest}}}}}"#));
    run(&[
        file(
            "oversized",
            with_length(u64::MAX),
            Format,
            &["header of 18446744073709551615 bytes"],
        ),
        file(
            "too long",
            with_length(1000),
            Format,
            &["header of 1000 bytes"],
        ),
        file("short", with_length(20), Format, &["safetensors header"]),
        file(
            "truncated",
            sound[..sound.len() - 1].to_vec(),
            Format,
            &["7 bytes of tensors", "8"],
        ),
        file(
            "padded",
            [&sound[..], &[0]].concat(),
            Format,
            &["9 bytes of tensors", "8"],
        ),
        file(
            "no json",
            header("{nonsense"),
            Format,
            &["safetensors header"],
        ),
        file(
            "duplicate",
            header(&format!("{},{}", &one[..one.len() - 1], &one[1..])),
            Format,
            &["\"a\"", "twice"],
        ),
        file(
            "hole",
            a(r#""dtype":"F32","shape":[1],"data_offsets":[4,8]"#),
            Format,
            &["a"],
        ),
        file(
            "backwards",
            a(r#""dtype":"F32","shape":[2],"data_offsets":[8,0]"#),
            Format,
            &["a"],
        ),
        file(
            "mark",
            safetensors("\u{feff}{}", &[]),
            Format,
            &["byte-order mark before its header"],
        ),
        file(
            "shape",
            a(r#""dtype":"F32","shape":[3],"data_offsets":[0,8]"#),
            Format,
            &["header", "tensor a:"],
        ),
        file(
            "product",
            a(r#""dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,8]"#),
            Format,
            &["header", " a:"],
        ),
        file(
            "dtype",
            a(r#""dtype":"F31","shape":[2],"data_offsets":[0,8]"#),
            Format,
            &["F31"],
        ),
        file(
            "negative",
            a(r#""dtype":"F32","shape":[-2],"data_offsets":[0,8]"#),
            Format,
            &["a"],
        ),
        file(
            "overlap",
            header(concat!(
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"#,
                r#""b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#
            )),
            Format,
            &["b"],
        ),
        file(
            "metadata",
            header(r#"{"__metadata__":[1]}"#),
            Format,
            &["__metadata__"],
        ),
        file(
            "zero times many",
            a(concat!(
                r#""dtype":"F32","shape":[0,9223372036854775807,9],"#,
                r#""data_offsets":[0,0]"#
            )),
            Format,
            &["m"],
        ),
    ]);
}

#[test]
fn models_that_are_not_rwkv_4() {
    let reshaped = |name, shape: &[usize]| {
        let shape = shape.to_vec();
        changed(name, move |part| part.shape = shape)
    };
    let without = |name: &str| {
        let mut parts = tiny_model();
        parts.retain(|part| part.name != name);
        safetensors_of(&parts)
    };
    let as_i32 = changed("blocks.1.ln1.bias", |part| part.dtype = "I32");
    let number = |name, value: f32| {
        changed(name, move |part| {
            part.bytes[12..16].copy_from_slice(&value.to_le_bytes())
        })
    };
    let llama = safetensors_of(&[Part {
        name: "model.norm.weight".into(),
        ..tiny_model().remove(0)
    }]);
    run(&[
        file(
            "v5",
            with_extra("blocks.0.att.ln_x.weight"),
            Format,
            &["tensor blocks.0.att.time_first: shape [6], expected a matrix"],
        ),
        file(
            "v5 hf",
            with_extra("rwkv.blocks.1.attention.gate.weight"),
            Format,
            &["tensor blocks.0.att.time_first: shape [6], expected a matrix"],
        ),
        file(
            "v6",
            with_extra("blocks.0.att.time_maa_x"),
            Format,
            &["tensor blocks.0.att.time_faaaa: missing"],
        ),
        file(
            "v7",
            with_extra("blocks.0.att.x_r"),
            Format,
            &["blocks.0.att.r_k: missing"],
        ),
        file(
            "4a",
            with_extra("blocks.1.att.qq.weight"),
            Unsupported,
            &["4a", "qq"],
        ),
        file(
            "4b",
            with_extra("blocks.1.ffn.aa.weight"),
            Unsupported,
            &["4b", "aa"],
        ),
        file("llama", llama, Unsupported, &["model.norm.weight"]),
        file(
            "extra",
            with_extra("blocks.0.foo"),
            Format,
            &["blocks.0.foo", "not part"],
        ),
        file(
            "far block",
            with_extra("blocks.99999.ln1.bias"),
            Format,
            &["blocks.99999", "not part"],
        ),
        file(
            "odd block",
            with_extra("blocks.01.ln1.bias"),
            Format,
            &["blocks.01", "not part"],
        ),
        file(
            "one block more",
            with_extra("blocks.2.att.time_first"),
            Format,
            &["blocks.2.", "missing"],
        ),
        file(
            "spelled twice",
            with_extra("rwkv.blocks.0.attention.time_mix_key"),
            Format,
            &["time_mix_k", "the same"],
        ),
        file(
            "missing",
            without("blocks.1.ln2.bias"),
            Format,
            &["blocks.1.ln2.bias", "missing", "[4]"],
        ),
        file(
            "no head",
            without("head.weight"),
            Format,
            &["head.weight", "missing", "[7, 4]"],
        ),
        file(
            "no embedding",
            without("emb.weight"),
            Format,
            &["emb.weight", "missing"],
        ),
        file(
            "shape",
            reshaped("blocks.1.att.key.weight", &[4, 6]),
            Format,
            &["blocks.1.att.key.weight", "[4, 6]", "[6, 4]"],
        ),
        file(
            "flat",
            reshaped("blocks.1.ffn.value.weight", &[20]),
            Format,
            &["[20]", "[4, 5]"],
        ),
        file(
            "square vector",
            reshaped("blocks.1.ln1.bias", &[2, 2]),
            Format,
            &["[2, 2]", "[4]"],
        ),
        file(
            "dtype",
            as_i32,
            Unsupported,
            &["blocks.1.ln1.bias", "I32", "BF16"],
        ),
        file(
            "nan",
            number("blocks.0.ffn.key.weight", f32::NAN),
            Format,
            &["blocks.0.ffn.key.weight", "NaN at [0, 3]"],
        ),
        file(
            "inf",
            number("blocks.1.att.time_decay", f32::NEG_INFINITY),
            Format,
            &["blocks.1.att.time_decay", "-inf at [3]"],
        ),
    ]);
}
