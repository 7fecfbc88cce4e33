//! GGUF files made bad on purpose, each refused with what is wrong with it.

use super::super::gguf::read;
use super::super::open::open_file;
use super::super::Opened;
use super::build_gguf::{float, integer, list, model, text, texts, vocabulary, GgufFile, Tensor};
use super::{read_all, Case};
use crate::error::ErrorKind::{self, Format, Unsupported};
use crate::files::{Folder, SourceFile};

/// A change of a sound model, and what is said of the result.
type Bad = (
    &'static str,
    Box<dyn Fn(&mut GgufFile)>,
    ErrorKind,
    &'static [&'static str],
);

fn bad(
    name: &'static str,
    change: impl Fn(&mut GgufFile) + 'static,
    kind: ErrorKind,
    words: &'static [&'static str],
) -> Bad {
    (name, Box::new(change), kind, words)
}

fn run(cases: Vec<Bad>) {
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
            &["GGUF", "architecture llama, expected rwkv7"],
        ),
        bad(
            "rwkv6",
            architecture("rwkv6"),
            Unsupported,
            &["rwkv6 (RWKV-6)", "expected rwkv7"],
        ),
        bad(
            "QRWKV6",
            architecture("rwkv6qwen2"),
            Unsupported,
            &["rwkv6qwen2 (QRWKV6", "expected rwkv7"],
        ),
        bad(
            "ARWKV7",
            architecture("arwkv7"),
            Unsupported,
            &["arwkv7 (ARWKV-7", "expected rwkv7"],
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
fn a_whole_file_of_rwkv_6_is_refused_by_its_name() {
    let mut file = model(5);
    file.set("general.architecture", text("rwkv6"));
    let error = read(&SourceFile::from_bytes("v6.gguf", file.bytes().into())).expect_err("v6");
    let text = "v6.gguf: a GGUF file: architecture rwkv6 (RWKV-6), which does not run here yet, expected rwkv7";
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

/// What is wrong with one tensor.
fn of(
    tensor: &'static str,
    change: impl Fn(&mut Tensor) + 'static,
) -> impl Fn(&mut GgufFile) + 'static {
    move |file| change(file.tensor(tensor))
}

#[test]
fn names_and_shapes() {
    const KEY: &str = "blk.1.time_mix_key.weight";
    const FUSED: &str = "blk.1.time_mix_lerp_fused.weight";
    let renamed = |from: &'static str, to: &'static str| of(from, move |t| t.name = to.into());
    run(vec![
        bad("no name", renamed(KEY, ""), Format, &["a name of 0 bytes"]),
        bad(
            "long name",
            of(KEY, |t| t.name = "n".repeat(257)),
            Format,
            &["a name of 257 bytes", "256"],
        ),
        bad(
            "twice",
            renamed(KEY, "blk.1.time_mix_value.weight"),
            Format,
            &["time_mix_value.weight", "twice"],
        ),
        bad(
            "another",
            renamed(KEY, "blk.1.time_mix_kex.weight"),
            Format,
            &["time_mix_kex.weight", "not part of"],
        ),
        bad(
            "outside",
            renamed(KEY, "rope_freqs.weight"),
            Format,
            &["rope_freqs.weight", "not part of"],
        ),
        bad(
            "layer 01",
            renamed(KEY, "blk.01.time_mix_key.weight"),
            Format,
            &["not part of"],
        ),
        bad(
            "another layer",
            renamed(KEY, "blk.2.time_mix_key.weight"),
            Format,
            &["tensors of 3 layers", "2 by"],
        ),
        bad(
            "a far layer",
            renamed(KEY, "blk.18446744073709551615.time_mix_key.weight"),
            Format,
            &["tensors of 18446744073709551615 layers"],
        ),
        bad(
            "missing",
            |f| f.tensors.retain(|t| t.name != KEY),
            Format,
            &["time_mix_key.weight: missing"],
        ),
        bad(
            "no head",
            |f| f.tensors.retain(|t| t.name != "output.weight"),
            Format,
            &["output.weight: missing"],
        ),
        bad(
            "no dimensions",
            of(KEY, |t| t.shape.clear()),
            Format,
            &["time_mix_key", "0 dimensions"],
        ),
        bad(
            "5 dimensions",
            of(KEY, |t| t.shape = vec![1; 5]),
            Format,
            &["time_mix_key", "5 dimensions"],
        ),
        bad(
            "0 rows",
            of(KEY, |t| t.shape[0] = 0),
            Format,
            &["time_mix_key", "a dimension of 0"],
        ),
        bad(
            "many rows",
            of(KEY, |t| t.shape[0] = 1 << 62),
            Format,
            &["time_mix_key"],
        ),
        bad(
            "all rows",
            of(KEY, |t| t.shape[0] = u64::MAX),
            Format,
            &["time_mix_key"],
        ),
        bad(
            "overflow",
            of(KEY, |t| t.shape = vec![1 << 40; 4]),
            Format,
            &["time_mix_key", "too large"],
        ),
        bad(
            "transposed",
            of("blk.0.channel_mix_value.weight", |t| t.shape.reverse()),
            Format,
            &["ffn.value.weight", "[96, 32]", "[32, 96]"],
        ),
        bad(
            "5 mixes",
            of(FUSED, |t| t.shape[0] = 5),
            Format,
            &["lerp_fused"],
        ),
        bad(
            "12 mixes",
            of(FUSED, |t| t.shape = vec![12, 16]),
            Format,
            &["lerp_fused", "[12, 16]", "[6, 1, 1, 32]"],
        ),
        bad(
            "mixes in two",
            of(FUSED, |t| t.shape = vec![6, 2, 16]),
            Format,
            &["lerp_fused", "[6, 2, 16]"],
        ),
        bad(
            "heads",
            of("blk.1.time_mix_r_k.weight", |t| t.shape = vec![2, 16]),
            Format,
            &["r_k", "[2, 16]", "one row"],
        ),
        bad(
            "a vector",
            of("blk.1.time_mix_w1.weight", |t| t.shape = vec![128]),
            Format,
            &["time_mix_w1", "[128]"],
        ),
        bad(
            "no matrix",
            of("blk.1.time_mix_w2.weight", |t| t.shape = vec![128]),
            Format,
            &["time_mix_w2", "expected a matrix"],
        ),
        bad(
            "half a block",
            of("blk.0.channel_mix_value.weight", |t| t.shape = vec![64, 48]),
            Format,
            &["multiple of 32"],
        ),
        bad(
            "Q3_K",
            of(KEY, |t| t.kind = 11),
            Unsupported,
            &["time_mix_key", "type Q3_K", "Q8_0 file"],
        ),
        bad(
            "Q2_K",
            of(KEY, |t| t.kind = 10),
            Unsupported,
            &["type Q2_K"],
        ),
        bad(
            "IQ4_XS",
            of(KEY, |t| t.kind = 23),
            Unsupported,
            &["type IQ4_XS"],
        ),
        bad("I32", of(KEY, |t| t.kind = 26), Unsupported, &["type I32"]),
        bad(
            "type 99",
            of(KEY, |t| t.kind = 99),
            Unsupported,
            &["type 99"],
        ),
        bad(
            "K blocks",
            of(KEY, |t| t.kind = 12),
            Format,
            &["[32, 32] of Q4_K", "multiple of 256"],
        ),
        bad(
            "scale",
            of("blk.0.channel_mix_value.weight", |t| t.numbers[1] = 0x7c),
            Format,
            &["blocks.0.ffn.value.weight", "expected finite"],
        ),
    ]);
}

#[test]
fn places() {
    const KEY: &str = "blk.1.time_mix_key.weight";
    let shifted = |by: i64| {
        move |file: &mut GgufFile| {
            let mut at = 0;
            for tensor in &mut file.tensors {
                tensor.offset = Some(at);
                if tensor.name == KEY {
                    tensor.offset = at.checked_add_signed(by);
                }
                at = (at + tensor.numbers.len() as u64).next_multiple_of(32);
            }
        }
    };
    let at = |offset: u64| of(KEY, move |t| t.offset = Some(offset));
    run(vec![
        bad(
            "off by one",
            shifted(1),
            Format,
            &["time_mix_key", "a multiple of 32"],
        ),
        bad(
            "overlap",
            shifted(-32),
            Format,
            &[
                "time_mix_key",
                "overlaps with tensor blk.1.time_mix_receptance.weight",
            ],
        ),
        bad(
            "gap",
            shifted(32),
            Format,
            &[
                "time_mix_key",
                "leaves a gap behind tensor blk.1.time_mix_receptance",
            ],
        ),
        bad("at the start", at(0), Format, &["overlaps with"]),
        bad(
            "far",
            at(u64::MAX - 31),
            Format,
            &["time_mix_key", "at 18446744073709551584", "truncated"],
        ),
        bad(
            "beyond",
            at(1 << 40),
            Format,
            &["time_mix_key", "truncated"],
        ),
        bad(
            "first gap",
            |f| f.tensors[0].offset = Some(1 << 12),
            Format,
            &["leaves a gap behind the header"],
        ),
        // Two tensors of the whole file would be read twice.
        bad(
            "the last again",
            |f| {
                let end = f.tensors.len() - 1;
                let offset = f.tensors[end - 1].numbers.len() as u64;
                f.tensors[end].offset = Some(offset.next_multiple_of(32));
            },
            Format,
            &["overlaps"],
        ),
        bad(
            "wide",
            of(KEY, |t| t.shape[0] = 64),
            Format,
            &["overlaps with tensor blk.1.time_mix_key"],
        ),
        bad(
            "narrow",
            of(KEY, |t| t.shape[0] = 16),
            Format,
            &["leaves a gap behind tensor blk.1.time_mix_key"],
        ),
        bad(
            "numbers cut",
            |f| assert!(f.tensors.last_mut().unwrap().numbers.pop().is_some()),
            Format,
            &["output.weight", "truncated"],
        ),
    ]);
}

/// A header may be as long as it likes only up to a bound.
#[test]
fn long_headers() {
    let mut file = model(5);
    file.set("x", text(&"x".repeat(16 << 20)));
    let bytes = file.bytes();
    let error = read(&SourceFile::from_bytes("f", bytes.into())).expect_err("long");
    let text = error.to_string();
    assert!(
        text.contains("key x") && text.contains("at most 16777216"),
        "{text}"
    );
}

fn reads(bytes: Vec<u8>) -> bool {
    let file = SourceFile::from_bytes("damaged", bytes.into());
    match open_file(file, &Folder::Memory(&[]), true) {
        Ok(Opened::Checkpoint(checkpoint)) => read_all(&checkpoint).is_ok(),
        _ => false,
    }
}

/// Everything is there only in the whole file; where it is cut, an error says so.
#[test]
fn cut_at_every_byte() {
    let mut file = model(300);
    vocabulary(&mut file, &["ab"]);
    for (sound, step) in [(model(3).bytes(), 1), (file.bytes(), 17)] {
        assert!(reads(sound.clone()));
        for length in (0..sound.len()).step_by(step) {
            let file = SourceFile::from_bytes("cut", sound[..length].to_vec().into());
            let error = match open_file(file, &Folder::Memory(&[]), true) {
                Ok(_) => panic!("read without its last {} bytes", sound.len() - length),
                Err(error) => error,
            };
            assert_eq!(error.kind(), Format, "{error}");
            assert!(error.to_string().starts_with("cut: "), "{error}");
        }
    }
}

/// Damage anywhere is an error or other numbers, never a panic.
#[test]
fn damage() {
    let mut file = model(300);
    vocabulary(&mut file, &["ab"]);
    for (sound, step) in [(model(3).bytes(), 2), (file.bytes(), 13)] {
        let header = sound.len().min(14_000);
        let mut read = 0;
        let numbers = (header..sound.len()).step_by(997);
        for at in (0..header).step_by(step).chain(numbers) {
            let mut bytes = sound.clone();
            bytes[at] ^= 1 << (at * 5 % 8);
            read += usize::from(reads(bytes));
            let mut bytes = sound.clone();
            bytes[at] = [0x00, 0xff, 0x7f, 0x80][at % 4];
            read += usize::from(reads(bytes));
        }
        assert!(read < 2 * header / step, "{read} damaged files were read");
    }
}
