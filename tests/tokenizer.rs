//! Tokens and text, black box: expected ids and texts come from Python's `tokenizers` (see
//! reference/make_tokenizer_cases.py); streamed text is compared with decoding at once, over random
//! sequences of ids. The demo model's tokenizer is in the repository. The 20B tokenizer is read from
//! the folder named by RWKV_EDGE_TEST_DATA (file 20B_tokenizer.json); without the variable its tests
//! print that they were skipped.

#![cfg(feature = "tokenizer")]
#![allow(clippy::unwrap_used)]

#[path = "common/skipped.rs"]
mod skipped;
#[path = "common/streams.rs"]
mod streams;

use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use rwkv_edge::{ErrorKind, TextStream, Tokenizer};
use serde::Deserialize;
use streams::{check_streams, streamed};

#[derive(Deserialize)]
struct Cases {
    n_tokens: usize,
    encodes: Vec<EncodeCase>,
    decodes: Vec<DecodeCase>,
}

#[derive(Deserialize)]
struct EncodeCase {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

#[derive(Deserialize)]
struct DecodeCase {
    ids: Vec<u32>,
    decoded: String,
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn demo() -> Tokenizer {
    Tokenizer::open(repository().join("cli/demo/tokenizer.json")).unwrap()
}

fn test_data(file: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("RWKV_EDGE_TEST_DATA") else {
        skipped::skipped(&format!("{file} in RWKV_EDGE_TEST_DATA"));
        return None;
    };
    Some(Path::new(&folder).join(file))
}

fn twenty_b() -> Option<Tokenizer> {
    test_data("20B_tokenizer.json").map(|path| Tokenizer::open(path).unwrap())
}

fn cases(file: &str) -> Cases {
    let path = repository().join("tests/fixtures/tokenizer").join(file);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn check_cases(tokenizer: &Tokenizer, cases: &Cases) {
    assert_eq!(tokenizer.n_tokens(), cases.n_tokens);
    assert!(cases.encodes.len() > 300 && cases.decodes.len() > 100);
    let mut failures = Vec::new();
    for EncodeCase { text, ids, decoded } in &cases.encodes {
        let found = tokenizer.encode(text).unwrap();
        if found != *ids {
            failures.push(format!("encode {text:?}: {found:?}, expected {ids:?}"));
        }
        assert_eq!(tokenizer.encode_bytes(text.as_bytes()).unwrap(), found);
        let found = tokenizer.decode(ids).unwrap();
        if found != *decoded {
            failures.push(format!("decode {ids:?}: {found:?}, expected {decoded:?}"));
        }
    }
    for DecodeCase { ids, decoded } in &cases.decodes {
        let found = tokenizer.decode(ids).unwrap();
        if found != *decoded {
            failures.push(format!("decode {ids:?}: {found:?}, expected {decoded:?}"));
        }
    }
    let n_failures = failures.len();
    assert!(
        failures.is_empty(),
        "{n_failures} failures:\n{}",
        failures.join("\n")
    );
}

#[test]
fn demo_tokenizer_agrees_with_python() {
    check_cases(&demo(), &cases("cases_demo.json"));
}

#[test]
fn twenty_b_tokenizer_agrees_with_python() {
    if let Some(tokenizer) = twenty_b() {
        check_cases(&tokenizer, &cases("cases_20b.json"));
    }
}

#[test]
fn demo_streams_equal_decoding_at_once() {
    check_streams(&demo());
}

#[test]
fn twenty_b_streams_equal_decoding_at_once() {
    if let Some(tokenizer) = twenty_b() {
        check_streams(&tokenizer);
    }
}

#[test]
fn a_stream_gives_characters_as_soon_as_they_are_whole() {
    let tokenizer = demo();
    let text = "naïve 龍 👍🏽 ok";
    let ids = tokenizer.encode(text).unwrap();
    let mut stream = TextStream::new(&tokenizer);
    let mut seen = String::new();
    for n in 1..=ids.len() {
        seen.push_str(stream.push(ids[n - 1]).unwrap());
        let so_far = tokenizer.decode(&ids[..n]).unwrap();
        assert_eq!(seen, so_far.trim_end_matches('\u{fffd}'));
    }
    assert_eq!(seen, text);
    assert_eq!(stream.finish().unwrap(), "");
}

#[test]
fn special_tokens_are_names_in_text_and_nothing_in_decoded_text() {
    let tokenizer = demo();
    let ids = tokenizer.encode("a<|endoftext|>b").unwrap();
    assert_eq!(ids.len(), 3);
    assert_eq!(ids[1], 0);
    assert!(tokenizer.is_special(0) && tokenizer.is_special(1));
    assert!(!tokenizer.is_special(2) && !tokenizer.is_special(u32::MAX));
    assert_eq!(tokenizer.decode(&ids).unwrap(), "ab");
    // Ids beyond the tokenizer are padding of the model's vocabulary.
    assert_eq!(tokenizer.decode(&[ids[0], 4096, u32::MAX]).unwrap(), "a");
}

#[test]
fn bytes_that_are_not_utf8_become_replacement_characters() {
    let tokenizer = demo();
    let ids = tokenizer.encode_bytes(b"a\xff\xe4\xbdz").unwrap();
    assert_eq!(ids, tokenizer.encode("a\u{fffd}\u{fffd}z").unwrap());
}

#[test]
fn long_texts_survive_the_round_trip() {
    // Regular expressions with a step limit would cut these differently, or take quadratic time.
    let tokenizer = demo();
    for text in [
        " ".repeat(300_000) + "x",
        "\n \t".repeat(100_000),
        "a".repeat(300_000),
        std::fs::read_to_string(repository().join("cli/demo/validation.txt")).unwrap(),
    ] {
        let ids = tokenizer.encode(&text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert_eq!(streamed(&mut TextStream::new(&tokenizer), &ids), text);
    }
}

#[test]
fn validation_text_has_the_tokens_that_transformers_counted() {
    let demo_folder = repository().join("cli/demo");
    let text = std::fs::read(demo_folder.join("validation.txt")).unwrap();
    let reference = std::fs::read(demo_folder.join("reference.json")).unwrap();
    let reference: serde_json::Value = serde_json::from_slice(&reference).unwrap();
    let n_tokens = demo().encode_bytes(&text).unwrap().len();
    assert_eq!(reference["validation"]["tokens"], n_tokens);
}

#[test]
fn a_tokenizer_must_fit_the_model() {
    let tokenizer = demo();
    tokenizer.check_fits(4096).unwrap();
    tokenizer.check_fits(5000).unwrap();
    let error = tokenizer.check_fits(4095).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tokenizer);
    let text = error.to_string();
    assert!(text.contains("4096") && text.contains("4095"), "{text}");
    // A tokenizer whose only token has an id beyond any model.
    let large = small_json(
        r#"{"type":"WordLevel","vocab":{"a":70000},"unk_token":"a"}"#,
        "null",
    );
    let large = Tokenizer::from_bytes("large.json", large.as_bytes()).unwrap();
    for (n_vocab, name) in [(50_277, "20B"), (65_536, "World")] {
        let text = large.check_fits(n_vocab).unwrap_err().to_string();
        for part in ["large.json", "70001", name, &n_vocab.to_string()] {
            assert!(text.contains(part), "{text}: no {part}");
        }
    }
}

#[test]
fn the_20b_tokenizer_is_not_that_of_a_world_model() {
    let Some(tokenizer) = twenty_b() else {
        return;
    };
    // Padded to a multiple of 128, as some checkpoints are.
    tokenizer.check_fits(50_277).unwrap();
    tokenizer.check_fits(50_304).unwrap();
    let error = tokenizer.check_fits(65_536).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tokenizer);
    let text = error.to_string();
    for part in ["20B_tokenizer.json", "50277", "65536", "rwkv_vocab"] {
        assert!(text.contains(part), "{text}: no {part}");
    }
}

fn small_json(model: &str, decoder: &str) -> String {
    format!(
        r#"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":{{"type":"WhitespaceSplit"}},"post_processor":null,"decoder":{decoder},
        "model":{model}}}"#
    )
}

#[test]
fn other_decoders_stream_what_they_decode() {
    let words = r###"{"type":"WordLevel","vocab":{"a":0,"b":1,"▁c":2,"##d":3,"é":4,"<0xC3>":5,
        "<0xA9>":6,"\ufffd":7},"unk_token":"a"}"###;
    let fallback = r#"{"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Fuse"}]}"#;
    let decoders = [
        "null",
        r###"{"type":"WordPiece","prefix":"##","cleanup":false}"###,
        r#"{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true}"#,
        fallback,
    ];
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for decoder in decoders {
        let json = small_json(words, decoder);
        let tokenizer = Tokenizer::from_bytes("words.json", json.as_bytes()).unwrap();
        // A stray byte makes ByteFallback change characters that were whole before: no stream can
        // follow that, so bytes come in pairs here.
        let pieces: [&[u32]; 7] = [&[0], &[1], &[2], &[3], &[4], &[5, 6], &[7]];
        for _ in 0..2_000 {
            let n_pieces = rng.next_u64() as usize % 20;
            let ids: Vec<u32> = (0..n_pieces)
                .flat_map(|_| pieces[rng.next_u64() as usize % 7])
                .copied()
                .collect();
            let expected = tokenizer.decode(&ids).unwrap();
            let found = streamed(&mut TextStream::new(&tokenizer), &ids);
            assert_eq!(found, expected, "{decoder} {ids:?}");
        }
    }
}

#[test]
fn truncation_and_padding_of_the_file_are_not_applied() {
    let json = small_json(
        r#"{"type":"WordLevel","vocab":{"a":0,"b":1},"unk_token":"a"}"#,
        "null",
    )
    .replace(
        r#""truncation":null,"padding":null"#,
        r#""truncation":{"direction":"Right","max_length":2,"strategy":"LongestFirst","stride":0},
        "padding":{"strategy":{"Fixed":6},"direction":"Right","pad_to_multiple_of":null,"pad_id":1,
        "pad_type_id":0,"pad_token":"b"}"#,
    );
    let tokenizer = Tokenizer::from_bytes("cut.json", json.as_bytes()).unwrap();
    assert_eq!(tokenizer.encode("a a b a").unwrap(), [0, 0, 1, 0]);
}

#[test]
fn what_is_no_tokenizer_is_refused_by_name() {
    let demo = std::fs::read(repository().join("cli/demo/tokenizer.json")).unwrap();
    let words = r#"{"type":"WordLevel","vocab":{},"unk_token":"a"}"#;
    let empty = small_json(words, "null");
    let cases: [(&str, &[u8], ErrorKind); 8] = [
        ("empty", b"", ErrorKind::Tokenizer),
        ("spaces", b"  \n ", ErrorKind::Tokenizer),
        ("text", b"hello world 5", ErrorKind::Tokenizer),
        ("binary", b"\x80\x02}q\x00.", ErrorKind::Tokenizer),
        ("object", b"{}", ErrorKind::Tokenizer),
        ("config", br#"{"model_type": "rwkv"}"#, ErrorKind::Tokenizer),
        ("cut", &demo[..demo.len() / 2], ErrorKind::Tokenizer),
        ("no_tokens", empty.as_bytes(), ErrorKind::Tokenizer),
    ];
    for (name, bytes, kind) in cases {
        let error = Tokenizer::from_bytes(name, bytes).expect_err(name);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().starts_with(name), "{error}");
    }
    let error = Tokenizer::open("/no/such/tokenizer.json").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
}

#[test]
fn a_tokenizer_is_shared_between_threads() {
    let tokenizer = demo();
    let expected = tokenizer.encode("Ownership is a set of rules").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let ids = tokenizer.encode("Ownership is a set of rules").unwrap();
                    assert_eq!(ids, expected);
                }
            });
        }
    });
}
