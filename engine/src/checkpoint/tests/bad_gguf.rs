//! GGUF files whose headers were made bad on purpose, each refused with what is wrong with it.

use super::super::gguf::read;
use super::build_gguf::{float, integer, list, model, text, texts, GgufFile};
use super::Case;
use crate::error::ErrorKind::{self, Format, Unsupported};
use crate::files::SourceFile;

/// A change of a sound model, and what is said of the result.
pub(super) type Bad = (
    &'static str,
    Box<dyn Fn(&mut GgufFile)>,
    ErrorKind,
    &'static [&'static str],
);

pub(super) fn bad(
    name: &'static str,
    change: impl Fn(&mut GgufFile) + 'static,
    kind: ErrorKind,
    words: &'static [&'static str],
) -> Bad {
    (name, Box::new(change), kind, words)
}

pub(super) fn run(cases: Vec<Bad>) {
    let cases: Vec<Case> = cases
        .into_iter()
        .map(|(name, change, kind, words)| {
            let mut file = model(5);
            change(&mut file);
            super::file(name, file.bytes(), kind, words)
        })
        .collect();
    super::run(&cases);
}

fn set(key: &'static str, value: Vec<u8>) -> impl Fn(&mut GgufFile) {
    move |file| file.set(key, value.clone())
}

fn without_key(key: &'static str) -> impl Fn(&mut GgufFile) {
    move |file| file.keys.retain(|(name, _)| name != key)
}

/// A value of that type, of these bytes.
fn value(kind: u32, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes(), bytes].concat()
}

#[test]
fn versions_and_counts() {
    run(vec![
        bad(
            "v1",
            |f| f.version = 1,
            Unsupported,
            &["GGUF", "version 1,", "2 or 3"],
        ),
        bad(
            "v4",
            |f| f.version = 4,
            Unsupported,
            &["GGUF", "version 4,", "2 or 3"],
        ),
        bad("v0", |f| f.version = 0, Unsupported, &["version 0,"]),
        bad(
            "big-endian",
            |f| f.version = 3 << 24,
            Unsupported,
            &["big-endian"],
        ),
        bad(
            "old big-endian",
            |f| f.version = 1 << 24,
            Unsupported,
            &["big-endian"],
        ),
        bad(
            "tensors",
            |f| f.n_tensors = Some(65_537),
            Format,
            &["65537 tensors", "65536"],
        ),
        bad(
            "all tensors",
            |f| f.n_tensors = Some(u64::MAX),
            Format,
            &["18446744073709551615 tensors"],
        ),
        bad(
            "keys",
            |f| f.n_keys = Some(4097),
            Format,
            &["4097 keys", "at most 4096"],
        ),
        bad(
            "all keys",
            |f| f.n_keys = Some(u64::MAX),
            Format,
            &["18446744073709551615 keys"],
        ),
        bad(
            "no keys",
            |f| f.keys.clear(),
            Format,
            &["general.architecture: missing"],
        ),
        bad(
            "no tensors",
            |f| f.tensors.clear(),
            Format,
            &["0 layers", "2 by rwkv7.block_count"],
        ),
        // The first tensor is read as a key.
        bad(
            "a key more",
            |f| f.n_keys = Some(f.keys.len() as u64 + 1),
            Format,
            &["damaged"],
        ),
        bad(
            "a tensor more",
            |f| f.n_tensors = Some(f.tensors.len() as u64 + 1),
            Format,
            &["a name of 0 bytes"],
        ),
    ]);
}

#[test]
fn keys_and_values() {
    let far = u64::MAX.to_le_bytes();
    let beyond = [
        &9u32.to_le_bytes()[..],
        &8u32.to_le_bytes(),
        &4u64.to_le_bytes(),
    ]
    .concat();
    run(vec![
        bad(
            "no key",
            |f| f.keys[3].0.clear(),
            Format,
            &["key 3 of 12", "a key of 0 bytes"],
        ),
        bad(
            "long key",
            |f| f.keys[3].0 = "k".repeat(1025),
            Format,
            &["a key of 1025 bytes", "1 to 1024"],
        ),
        bad(
            "twice",
            |f| f.keys.push(f.keys[5].clone()),
            Format,
            &["layer_norm_epsilon: twice"],
        ),
        bad(
            "type 13",
            set("x", value(13, &[0; 8])),
            Format,
            &["key x", "type 13", "0 to 12"],
        ),
        bad(
            "bool",
            set("x", value(7, &[2])),
            Format,
            &["key x", "2, expected 0 or 1"],
        ),
        bad(
            "long text",
            set("x", value(8, &far)),
            Format,
            &["key x", "cut", "18446744073709551615 bytes"],
        ),
        bad(
            "lists of lists",
            set("x", list(9, 1, &beyond)),
            Unsupported,
            &["key x", "list of lists"],
        ),
        bad(
            "lists of nothing",
            set("x", list(13, 1, &[])),
            Format,
            &["key x", "type 13"],
        ),
        bad(
            "long list",
            set("x", list(4, u64::MAX, &[])),
            Format,
            &["key x", "18446744073709551615 entries"],
        ),
        bad(
            "overflowing list",
            set("x", list(10, 1 << 61, &[])),
            Format,
            &["key x", "entries"],
        ),
        bad(
            "long texts",
            set("x", list(8, u64::MAX / 8, &[])),
            Format,
            &["key x", "entries"],
        ),
        bad(
            "texts beyond",
            set("x", list(8, 2, &[[3u8; 8], far].concat())),
            Format,
            &["key x", "cut"],
        ),
        bad(
            "an architecture of numbers",
            set("general.architecture", integer(7)),
            Format,
            &["general.architecture", "an integer, expected a text"],
        ),
        bad(
            "no name",
            set("general.architecture", text("")),
            Format,
            &["general.architecture", "0 bytes"],
        ),
        bad(
            "no text",
            set(
                "general.architecture",
                value(8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]),
            ),
            Format,
            &["not text"],
        ),
        bad(
            "no architecture",
            without_key("general.architecture"),
            Format,
            &["general.architecture: missing"],
        ),
        bad(
            "alignment 0",
            set("general.alignment", integer(0)),
            Format,
            &["general.alignment: 0", "power of two"],
        ),
        bad(
            "alignment 48",
            set("general.alignment", integer(48)),
            Format,
            &["general.alignment: 48"],
        ),
        bad(
            "alignment",
            set("general.alignment", integer(1 << 17)),
            Format,
            &["131072", "65536"],
        ),
        bad(
            "negative alignment",
            set("general.alignment", value(5, &[0xff; 4])),
            Format,
            &["-1, expected 0 or more"],
        ),
        bad(
            "alignment in words",
            set("general.alignment", text("32")),
            Format,
            &["a text, expected an integer"],
        ),
    ]);
}

#[test]
fn other_architectures() {
    let architecture = |name: &str| set("general.architecture", text(name));
    run(vec![
        bad(
            "llama",
            architecture("llama"),
            Unsupported,
            &["GGUF", "architecture llama, expected rwkv7 or rwkv6"],
        ),
        bad(
            "rwkv6",
            architecture("rwkv6"),
            Format,
            &["key rwkv6.block_count: missing"],
        ),
        bad(
            "QRWKV6",
            architecture("rwkv6qwen2"),
            Unsupported,
            &["rwkv6qwen2 (QRWKV6", "expected rwkv7 or rwkv6"],
        ),
        bad(
            "ARWKV7",
            architecture("arwkv7"),
            Unsupported,
            &["arwkv7 (ARWKV-7", "expected rwkv7 or rwkv6"],
        ),
        bad(
            "split",
            set("split.count", value(2, &[3, 0])),
            Unsupported,
            &["one of 3 GGUF files", "llama-gguf-split --merge"],
        ),
        bad(
            "one shift",
            set("rwkv7.token_shift_count", integer(1)),
            Unsupported,
            &["rwkv7.token_shift_count: 1, expected 2"],
        ),
        // What it is comes before what is wrong behind it.
        bad(
            "another damaged one",
            |f| {
                f.set("general.architecture", text("llama"));
                f.set("x", value(99, &[]));
            },
            Unsupported,
            &["architecture llama"],
        ),
    ]);
}

#[test]
fn a_whole_file_of_another_network_is_refused_by_its_name() {
    let mut file = model(5);
    file.set("general.architecture", text("arwkv7"));
    let error = read(&SourceFile::from_bytes("q.gguf", file.bytes().into())).expect_err("q");
    let text = "q.gguf: a GGUF file: architecture arwkv7 (ARWKV-7: RWKV-7's time mixing in a Qwen \
                model), which does not run here, expected rwkv7 or rwkv6";
    assert_eq!(error.to_string(), text);
}

#[test]
fn sizes_that_the_tensors_do_not_have() {
    let key = |name: &str, words: &'static [&'static str]| {
        let name = format!("rwkv7.{name}");
        let change = move |file: &mut GgufFile| file.set(&name, integer(7));
        bad("a size", change, Format, words)
    };
    let without = |name: &'static str, words: &'static [&'static str]| {
        bad("no size", without_key(name), Format, words)
    };
    run(vec![
        key(
            "block_count",
            &["tensors of 2 layers", "7 by rwkv7.block_count"],
        ),
        key(
            "embedding_length",
            &[
                "tensor token_embd.weight",
                "[5, 32]",
                "7 by rwkv7.embedding_length",
            ],
        ),
        key(
            "feed_forward_length",
            &[
                "tensor blk.0.channel_mix_key.weight",
                "[96, 32]",
                "7 by rwkv7.feed_forward_length",
            ],
        ),
        key(
            "wkv.head_size",
            &[
                "tensor blk.0.time_mix_r_k.weight",
                "32 numbers",
                "a multiple of 7",
            ],
        ),
        key(
            "attention.decay_lora_rank",
            &["blk.0.time_mix_w1.weight", "[4, 32]", "decay_lora_rank"],
        ),
        key(
            "attention.iclr_lora_rank",
            &["blk.0.time_mix_a1.weight", "[6, 32]"],
        ),
        key(
            "attention.value_residual_mix_lora_rank",
            &["blk.1.time_mix_v1.weight", "[3, 32]"],
        ),
        key(
            "attention.gate_lora_rank",
            &["blk.0.time_mix_g1.weight", "[8, 32]"],
        ),
        without("rwkv7.block_count", &["rwkv7.block_count: missing"]),
        without(
            "rwkv7.embedding_length",
            &["rwkv7.embedding_length: missing"],
        ),
        without("rwkv7.wkv.head_size", &["rwkv7.wkv.head_size: missing"]),
        bad(
            "0",
            set("rwkv7.wkv.head_size", integer(0)),
            Format,
            &["head_size: 0, expected 1"],
        ),
        bad(
            "a list",
            set("rwkv7.feed_forward_length", list(4, 1, &[96, 0, 0, 0])),
            Format,
            &["a list, expected an integer"],
        ),
        bad(
            "huge",
            set("rwkv7.block_count", value(10, &[0xff; 8])),
            Format,
            &["tensors of 2 layers", "18446744073709551615"],
        ),
        bad(
            "huge heads",
            set("rwkv7.wkv.head_size", value(10, &[0xff; 8])),
            Format,
            &["multiple of 18446744073709551615"],
        ),
        bad(
            "epsilon",
            set("rwkv7.attention.layer_norm_epsilon", float(1.0)),
            Format,
            &["layer_norm_epsilon 1, expected"],
        ),
        bad(
            "no epsilon",
            set("rwkv7.attention.layer_norm_epsilon", float(f32::NAN)),
            Format,
            &["layer_norm_epsilon NaN"],
        ),
        bad(
            "text for epsilon",
            set("rwkv7.attention.layer_norm_epsilon", text("1e-5")),
            Format,
            &["a text, expected a float"],
        ),
        bad(
            "vocabulary",
            set("tokenizer.ggml.tokens", texts(&[&b"a"[..]; 6])),
            Format,
            &["token_embd.weight", "[5, 32]", "6 by tokenizer.ggml.tokens"],
        ),
        bad(
            "a vocabulary of numbers",
            set("tokenizer.ggml.tokens", list(0, 5, &[0; 5])),
            Format,
            &["tokenizer.ggml.tokens", "each an integer"],
        ),
    ]);
}
