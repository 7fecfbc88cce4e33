//! The RWKV World vocabulary, black box: expected ids and texts come from the reference algorithm in
//! Python (see reference/make_world_cases.py), which was compared with BlinkDL's own. A part of the
//! vocabulary is in the repository. The whole is read from the folder named by RWKV_EDGE_TEST_DATA
//! (file rwkv_vocab_v20230424.txt); without the variable its tests print that they were skipped.
//!
//! All of this holds without the cargo feature `tokenizer`.

#![allow(clippy::unwrap_used)]

#[path = "common/skipped.rs"]
mod skipped;
#[path = "common/streams.rs"]
mod streams;

use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use rwkv_edge::{ErrorKind, Model, Options, Quant, TextStream, TokenStream, Tokenizer};
use serde::Deserialize;
use streams::{check_streams, streamed};

#[derive(Deserialize)]
struct Cases {
    n_tokens: usize,
    encodes: Vec<Encode>,
    binaries: Vec<Binary>,
    decodes: Vec<Decode>,
}

#[derive(Deserialize)]
struct Encode {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

#[derive(Deserialize)]
struct Binary {
    hex: String,
    ids: Vec<u32>,
    decoded: String,
}

#[derive(Deserialize)]
struct Decode {
    ids: Vec<u32>,
    decoded: String,
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn fixture(name: &str) -> PathBuf {
    repository("tests/fixtures/tokenizer").join(name)
}

fn small() -> Tokenizer {
    Tokenizer::open(fixture("world_small.txt")).unwrap()
}

fn whole_file() -> Option<PathBuf> {
    skipped::test_data("rwkv_vocab_v20230424.txt")
}

fn check_cases(tokenizer: &Tokenizer, file: &str) {
    let cases: Cases = serde_json::from_slice(&std::fs::read(fixture(file)).unwrap()).unwrap();
    assert!(tokenizer.is_world());
    assert_eq!(tokenizer.n_tokens(), cases.n_tokens);
    assert!(cases.encodes.len() > 300 && cases.binaries.len() > 30 && cases.decodes.len() > 100);
    let mut failures = Vec::new();
    let mut check = |what: String, found: String, expected: String| {
        if found != expected {
            failures.push(format!("{what}: {found}, expected {expected}"));
        }
    };
    for Encode { text, ids, decoded } in cases.encodes {
        let found = tokenizer.encode(&text).unwrap();
        assert_eq!(tokenizer.encode_bytes(text.as_bytes()).unwrap(), found);
        assert_eq!(decoded, text, "every text survives the round trip");
        check(
            format!("encode {text:?}"),
            format!("{found:?}"),
            format!("{ids:?}"),
        );
        check(
            format!("decode {ids:?}"),
            tokenizer.decode(&ids).unwrap(),
            decoded,
        );
    }
    for Binary { hex, ids, decoded } in cases.binaries {
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        let found = tokenizer.encode_bytes(&bytes).unwrap();
        check(
            format!("encode {hex}"),
            format!("{found:?}"),
            format!("{ids:?}"),
        );
        check(
            format!("decode {ids:?}"),
            tokenizer.decode(&ids).unwrap(),
            decoded,
        );
    }
    for Decode { ids, decoded } in cases.decodes {
        check(
            format!("decode {ids:?}"),
            tokenizer.decode(&ids).unwrap(),
            decoded,
        );
    }
    let n_failures = failures.len();
    assert!(
        failures.is_empty(),
        "{n_failures} failures:\n{}",
        failures.join("\n")
    );
}

#[test]
fn a_part_of_the_vocabulary_agrees_with_python() {
    check_cases(&small(), "cases_world_small.json");
}

#[test]
fn the_whole_vocabulary_agrees_with_python() {
    if let Some(path) = whole_file() {
        check_cases(&Tokenizer::open(&path).unwrap(), "cases_world.json");
    }
}

/// The file of the Python package `rwkv` ends its lines as Windows does.
/// Found by their texts, and by decoding every id as the `rwkv` package does it.
#[test]
fn tokens_of_spaces_and_digits() {
    let whole = whole_file().map(|path| Tokenizer::open(path).unwrap());
    for tokenizer in [Some(small()), whole].into_iter().flatten() {
        let mut found = tokenizer.tokens_of_spaces_and_digits().unwrap();
        found.sort_unstable();
        let is_one = |id: &u32| {
            let text = tokenizer.decode(&[*id]).unwrap();
            !text.is_empty() && " \t0123456789".contains(&text)
        };
        let expected: Vec<u32> = (0..tokenizer.n_tokens() as u32).filter(is_one).collect();
        assert_eq!(found, expected);
        assert!(found.len() >= 12, "{found:?}");
    }
}

#[test]
fn line_ends_do_not_matter() {
    let text = std::fs::read_to_string(fixture("world_small.txt")).unwrap();
    let crlf = text.replace('\n', "\r\n");
    let tokenizer = Tokenizer::from_bytes("crlf", crlf.as_bytes()).unwrap();
    check_cases(&tokenizer, "cases_world_small.json");
}

#[test]
fn streams_equal_decoding_at_once() {
    check_streams(&small());
    if let Some(path) = whole_file() {
        check_streams(&Tokenizer::open(&path).unwrap());
    }
}

#[test]
fn a_stream_gives_characters_as_soon_as_they_are_whole() {
    let tokenizer = small();
    let text = "naïve 龍 👍🏽 ok क्षก";
    let ids = tokenizer.encode(text).unwrap();
    assert!(
        ids.len() > 20,
        "characters are cut into single bytes: {ids:?}"
    );
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
fn token_0_ends_a_text_and_is_no_text() {
    let tokenizer = small();
    assert!(tokenizer.is_special(0) && !tokenizer.is_special(1));
    let [a, b] = [b'a', b'b'].map(|byte| u32::from(byte) + 1);
    assert_eq!(tokenizer.decode(&[a, 0, b, 0]).unwrap(), "ab");
    // A prompt that spells it does not end the text.
    let ids = tokenizer.encode("a<|endoftext|>b").unwrap();
    assert!(!ids.contains(&0), "{ids:?}");
    assert_eq!(tokenizer.decode(&ids).unwrap(), "a<|endoftext|>b");
    // Padding of the model's vocabulary.
    assert_eq!(tokenizer.decode(&[a, 65_535, u32::MAX, b]).unwrap(), "ab");
}

#[test]
fn long_texts_survive_the_round_trip() {
    let tokenizer = small();
    let validation = std::fs::read_to_string(repository("cli/demo/validation.txt")).unwrap();
    for text in [
        " ".repeat(300_000) + "x",
        "\n \t龍".repeat(60_000),
        validation,
    ] {
        let ids = tokenizer.encode(&text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert_eq!(streamed(&mut TextStream::new(&tokenizer), &ids), text);
    }
}

fn check_token_streams(tokenizer: &Tokenizer) {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut below = |n: usize| rng.next_u64() as usize % n;
    let fragments = [
        "the ",
        "\n\n",
        "    ",
        "龍",
        "é",
        "fn main",
        "\u{1f600}",
        "aaa",
        "=",
    ];
    for _ in 0..200 {
        let mut text = Vec::new();
        for _ in 0..below(60) {
            match below(5) {
                0 => text.push(below(256) as u8),
                _ => text.extend_from_slice(fragments[below(fragments.len())].as_bytes()),
            }
        }
        let mut stream = TokenStream::new(tokenizer);
        let (mut ids, mut rest) = (Vec::new(), &text[..]);
        while !rest.is_empty() {
            let (piece, more) = rest.split_at((1 + below(40)).min(rest.len()));
            ids.extend_from_slice(stream.push(piece).unwrap());
            rest = more;
        }
        ids.extend_from_slice(stream.finish().unwrap());
        assert_eq!(ids, tokenizer.encode_bytes(&text).unwrap(), "{text:?}");
    }
}

#[test]
fn a_text_that_comes_in_pieces_has_the_same_tokens() {
    check_token_streams(&small());
    if let Some(path) = whole_file() {
        check_token_streams(&Tokenizer::open(&path).unwrap());
    }
}

#[test]
fn the_vocabulary_must_fit_the_model() {
    let small = small();
    small.check_fits(65_536).unwrap();
    small.check_fits(small.n_tokens()).unwrap();
    let error = small.check_fits(50_277).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tokenizer);
    let text = error.to_string();
    for part in [
        "world_small.txt",
        &small.n_tokens().to_string(),
        "50277",
        "20B",
    ] {
        assert!(text.contains(part), "{text}: no {part}");
    }
    let options = Options::new().tokenizer(fixture("world_small.txt"));
    let model = Model::open(repository("cli/demo"), &options).unwrap();
    let error = model.tokenizer().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tokenizer);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let error = model.save(&path, &mut |_| {}).unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Tokenizer,
        "a misfit is not written into a file"
    );
    assert!(!path.exists());
}

/// A vocabulary for the demo model, which has 4,096 rows.
fn tiny_vocabulary() -> String {
    let bytes = (0..=255u8).map(|byte| format!("{} b'\\x{byte:02x}' 1\n", u32::from(byte) + 1));
    let more = "257 ' the' 4\n258 'Ownership' 9\n300 '\\n\\n' 2\n4095 '龍' 3\n";
    bytes.collect::<String>() + more
}

#[test]
fn it_is_found_in_a_folder_and_travels_in_a_model_file() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(repository("cli/demo").join(name), folder.path().join(name)).unwrap();
    }
    let text = "Ownership of the 龍\n\n";
    let expected = [258, 33, 112, 103, 257, 33, 4095, 300];
    for name in ["rwkv_vocab_v1.txt", "vocab.txt"] {
        let path = folder.path().join(name);
        std::fs::write(&path, tiny_vocabulary()).unwrap();
        let options = Options::new().quant(Quant::Int8);
        let model = Model::open(folder.path(), &options).unwrap();
        assert_eq!(model.info().tokenizer.as_deref(), Some(name));
        assert_eq!(model.tokenizer().unwrap().encode(text).unwrap(), expected);
        let file = folder.path().join("whole.safetensors");
        model.save(&file, &mut |_| {}).unwrap();
        // Nothing beside the file is needed.
        std::fs::remove_file(&path).unwrap();
        let model = Model::open(&file, &Options::default()).unwrap();
        let tokenizer = model.tokenizer().unwrap();
        assert!(tokenizer.is_world());
        assert_eq!(tokenizer.encode(text).unwrap(), expected);
        assert_eq!(tokenizer.decode(&expected).unwrap(), text);
        assert!(model.info().tokenizer.unwrap().starts_with(name));
        let tokenizer = Model::open_tokenizer(&file, &Options::default()).unwrap();
        assert_eq!(tokenizer.n_tokens(), 4096);
        std::fs::remove_file(&file).unwrap();
    }
}

#[test]
fn damaged_vocabularies_are_refused_with_the_line() {
    let good = std::fs::read_to_string(fixture("world_small.txt")).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let with_line = |number: usize, line: &str| {
        let mut lines = lines.clone();
        lines[number - 1] = line;
        lines.join("\n")
    };
    let without = |number: usize| {
        let mut lines = lines.clone();
        lines.remove(number - 1);
        lines.join("\n")
    };
    let cut = &good[..good.len() - 3];
    let cases: [(String, &str); 7] = [
        (with_line(400, "x 'a' 1"), "line 400: id \"x\""),
        (with_line(400, lines[398]), "line 400: id"),
        (with_line(400, "600 'abc' 2"), "line 400: "),
        (with_line(400, ""), "line 400: "),
        (with_line(400, "600 'abc\\' 3"), "line 400: "),
        (without(100), "no token for the byte 0x63"),
        (cut.to_owned(), "line 1019: "),
    ];
    for (file, part) in cases {
        let error = Tokenizer::from_bytes("vocabulary", file.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Tokenizer, "{error}");
        let text = error.to_string();
        assert!(
            text.starts_with("vocabulary: ") && text.contains(part),
            "{text}: no {part}"
        );
    }
}
