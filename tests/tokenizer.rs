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
use rwkv_edge::{ErrorKind, TextStream, TokenStream, Tokenizer};
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

fn twenty_b() -> Option<Tokenizer> {
    skipped::test_data("20B_tokenizer.json").map(|path| Tokenizer::open(path).unwrap())
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

/// The crate's own reader and all of a text at once, beside which pieces have to stand.
fn check_pieces(path: &Path) {
    let whole = tokenizers::Tokenizer::from_file(path).unwrap();
    let tokenizer = Tokenizer::open(path).unwrap();
    let fragments = [
        " ",
        "  ",
        "\n",
        "\t",
        " the",
        " of",
        "word",
        "Ownership",
        "'s",
        "'ll",
        "'",
        "1",
        "2024",
        ".",
        ", ",
        "!?",
        "<|endoftext|>",
        "<|",
        "é",
        "e\u{301}",
        "你好",
        "，",
        "か\u{3099}",
        "👍🏽",
        "\u{3000}",
        "    ",
        "_x",
    ];
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let mut below = |n: usize| rng.next_u64() as usize % n;
    let mut texts: Vec<String> = (0..8)
        .map(|_| {
            (0..9_000)
                .map(|_| fragments[below(fragments.len())])
                .collect()
        })
        .collect();
    texts.extend([
        "a".repeat(20_000),
        " ".repeat(20_000),
        "你".repeat(9_000),
        "1a".repeat(9_000),
    ]);
    for text in texts {
        let expected = whole.encode_fast(text.as_str(), false).unwrap();
        let expected = expected.get_ids();
        assert!(tokenizer.encode(&text).unwrap() == expected);
        let mut stream = TokenStream::new(&tokenizer);
        let (mut ids, mut rest) = (Vec::new(), text.as_bytes());
        while !rest.is_empty() {
            let (piece, more) = rest.split_at((1 + below(9_000)).min(rest.len()));
            ids.extend_from_slice(stream.push(piece).unwrap());
            rest = more;
        }
        ids.extend_from_slice(stream.finish().unwrap());
        assert!(ids == expected);
        assert!(stream.finish().unwrap().is_empty());
    }
}

#[test]
fn pieces_have_the_tokens_of_the_whole() {
    check_pieces(&repository().join("cli/demo/tokenizer.json"));
    if let Some(path) = skipped::test_data("20B_tokenizer.json") {
        check_pieces(&path);
    }
}

/// Whether a file is refused. If so, in one line, and nothing was left to the fence around the crate.
fn is_refused(bytes: &[u8]) -> bool {
    match Tokenizer::from_bytes("damaged", bytes) {
        Ok(tokenizer) => {
            // Without a token for a character there may be an error.
            for result in [
                tokenizer.encode("Ownership is 4.").map(|_| ()),
                tokenizer.decode(&[0, 1, 2, 300]).map(|_| ()),
            ] {
                let error = result.map_or_else(|error| error.to_string(), |()| String::new());
                assert!(!error.contains("inside the"), "{error}");
            }
            false
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.starts_with("damaged: "), "{text}");
            assert!(!text.contains("inside the"), "{text}");
            assert!(
                text.len() < 600 && !text.contains(char::is_control),
                "{text}"
            );
            true
        }
    }
}

#[test]
fn damaged_files_are_errors() {
    let demo = std::fs::read(repository().join("cli/demo/tokenizer.json")).unwrap();
    for percent in 0..100 {
        assert!(
            is_refused(&demo[..demo.len() * percent / 100]),
            "{percent} %"
        );
    }
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut n_refused = 0;
    let head = demo.len() / 20;
    for round in 0..200 {
        let mut bytes = demo.clone();
        for _ in 0..1 + round % 4 {
            // Most of a file is its vocabulary, on which nothing else depends.
            let among = if round % 2 == 0 { head } else { bytes.len() };
            let at = rng.next_u64() as usize % among;
            match rng.next_u64() % 3 {
                0 => bytes[at] = rng.next_u64() as u8,
                1 => drop(bytes.drain(at..(at + 9).min(among))),
                _ => bytes[at] = b"{}[]\",:0\\"[rng.next_u64() as usize % 9],
            }
        }
        n_refused += usize::from(is_refused(&bytes));
    }
    assert!(n_refused > 50, "{n_refused}");
}

/// Parts that make the crate panic or ask for memory, as a fuzzer has them, or a file of another program.
#[test]
fn parts_of_other_tokenizers_are_refused() {
    let model = r#"{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]]}"#;
    let with = |part: &str, json: &str| match part {
        "model" => format!(r#"{{"version":"1.0","model":{json}}}"#),
        _ => format!(r#"{{"version":"1.0","model":{model},"{part}":{json}}}"#),
    };
    for (part, json) in [
        ("decoder", r#"{"#),
        (
            "decoder",
            r#"{"type":"Strip","content":"a","start":9,"stop":9}"#,
        ),
        (
            "decoder",
            r#"{"type":"CTC","pad_token":"","word_delimiter_token":"","cleanup":true}"#,
        ),
        (
            "normalizer",
            r#"{"type":"Precompiled","precompiled_charsmap":"/////w=="}"#,
        ),
        (
            "normalizer",
            r#"{"type":"Replace","pattern":{"Regex":"(a*)*"},"content":""}"#,
        ),
        ("pre_tokenizer", r#"{"type":"FixedLength","length":0}"#),
        (
            "pre_tokenizer",
            r#"{"type":"Split","pattern":{"String":""},"behavior":"Isolated"}"#,
        ),
        (
            "pre_tokenizer",
            r#"{"type":"Split","pattern":{"Regex":"("},"behavior":"Isolated"}"#,
        ),
        (
            "pre_tokenizer",
            r#"{"type":"Sequence","pretokenizers":[{"type":"BertPreTokenizer"}]}"#,
        ),
        (
            "model",
            r#"{"type":"Unigram","unk_id":7,"vocab":[["a",-1.0]]}"#,
        ),
        (
            "model",
            r#"{"type":"WordPiece","vocab":{"a":0},"unk_token":"b"}"#,
        ),
        (
            "model",
            r#"{"type":"BPE","vocab":{"a":4294967295},"merges":[]}"#,
        ),
        (
            "model",
            r#"{"type":"BPE","vocab":{"a":0},"merges":[["a","a"]]}"#,
        ),
        ("model", r#"{"type":"BPE","vocab":{},"merges":[]}"#),
        (
            "model",
            r#"{"type":"BPE","continuing_subword_prefix":"éé","vocab":{"h":0,"é":1},"merges":[["h","é"]]}"#,
        ),
    ] {
        assert!(is_refused(with(part, json).as_bytes()), "{part} {json}");
    }
    // What is not used is not looked at.
    for (part, json) in [
        (
            "padding",
            r#"{"strategy":{"Fixed":1000000000},"pad_to_multiple_of":0}"#,
        ),
        ("truncation", r#"{"max_length":0,"stride":5}"#),
        (
            "post_processor",
            r#"{"type":"TemplateProcessing","single":[],"special_tokens":{}}"#,
        ),
    ] {
        assert!(!is_refused(with(part, json).as_bytes()), "{part}");
    }
}

/// What is often given in place of a tokenizer.
#[test]
fn other_files_are_named() {
    for (bytes, part) in [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a Git LFS pointer",
        ),
        ("\n<!DOCTYPE html>\n<html>", "a web page"),
        ("\u{feff}<!DOCTYPE html>\n<html>", "a web page"),
        ("", "an empty file"),
        ("Entry not found", "the answer of a web server"),
        (
            r#"{"hello": 0, "world": 1}"#,
            "it has no `model`; the World vocabulary is",
        ),
    ] {
        let error = Tokenizer::from_bytes("m/tokenizer.json", bytes.as_bytes()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("m/tokenizer.json: ") && text.contains(part),
            "{text}"
        );
    }
    let error = Tokenizer::from_bytes("utf16", b"\xff\xfe{\0").unwrap_err();
    assert!(error.to_string().contains("UTF-16"), "{error}");
    // The mark in front of UTF-8 is no part of a file.
    let demo = std::fs::read(repository().join("cli/demo/tokenizer.json")).unwrap();
    let marked = [b"\xef\xbb\xbf", &demo[..]].concat();
    Tokenizer::from_bytes("marked", &marked).expect("the demo");
    let odd = r#"{"normalizer": {"type": "\u001b"}, "model": {"vocab": {}}}"#;
    let error = Tokenizer::from_bytes("odd", odd.as_bytes()).unwrap_err();
    assert!(error.to_string().contains(r#""\u{1b}""#), "{error}");
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
