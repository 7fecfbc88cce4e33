//! The library of the hub, against the stand-in: what it tells its caller, and what sort of failure is which.
//! What is downloaded and how, the tests of the command see.

#[path = "stand_in.rs"]
mod stand_in;

use std::path::Path;
use std::sync::{Arc, Mutex};

use rwkv_edge_hub::{content_hash, ErrorKind, Event, Hub, ModelId, Settings, Token};
use stand_in::{sha256, Fault, Files, Hub as StandIn};

const MODEL: &str = "RWKV/tiny";

/// A model as far as the hub can tell.
fn files() -> Files {
    let weights: Vec<u8> = (0..300_000_u32)
        .map(|i| (i.wrapping_mul(i) >> 7) as u8)
        .collect();
    let config = br#"{"model_type": "rwkv", "vocab_size": 77}"#;
    let files = [
        ("config.json", &config[..]),
        ("model.safetensors", &weights),
    ];
    let files = files.map(|(name, bytes)| (name.to_owned(), bytes.to_vec()));
    Files::from(files)
}

fn settings(stand_in: &StandIn, cache: &Path) -> Settings {
    let known = vec![("rwkv", "RWKV-4")];
    Settings::new(cache)
        .endpoint(stand_in.endpoint())
        .model_types(known)
}

fn id(text: &str) -> ModelId {
    ModelId::parse(text).expect("a name")
}

/// Events in short, without how far a work is.
fn recorded(hub: Hub) -> (Hub, Arc<Mutex<Vec<String>>>) {
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let record = told.clone();
    let hub = hub.with_observer(move |event| {
        let mut told = record.lock().expect("nobody panics");
        let line = match event {
            Event::Note(text) => format!("note {text}"),
            Event::Progress {
                work, done, total, ..
            } => {
                assert!(done <= total, "{work:?}: {done} of {total}");
                format!("{work:?}")
            }
            other => format!("{other:?}"),
        };
        if told.last() != Some(&line) {
            told.push(line);
        }
    });
    (hub, told)
}

fn take(told: &Mutex<Vec<String>>) -> Vec<String> {
    std::mem::take(&mut *told.lock().expect("nobody panics"))
}

#[test]
fn a_download_is_told_from_its_begin_to_its_end() {
    let (stand_in, cache) = (StandIn::start(), tempfile::tempdir().expect("a folder"));
    let commit = stand_in.commit(MODEL, "main", files());
    let (hub, told) = recorded(Hub::new(settings(&stand_in, cache.path())));
    let path = hub.fetch(&id(MODEL)).expect("works");
    assert!(path.starts_with(cache.path()) && path.ends_with(&commit));
    let found = take(&told);
    let downloading = "note downloading RWKV/tiny, commit ";
    assert!(found[0].starts_with(downloading), "{found:?}");
    let work = |name: &str| format!("Download({name:?})");
    let (config, weights) = (work("config.json"), work("model.safetensors"));
    assert_eq!(found[1..], [&config, "End", &weights, "End"]);
    let real = std::fs::canonicalize(path.join("model.safetensors")).expect("is there");
    let hash = sha256(&files()["model.safetensors"]);
    assert_eq!(content_hash(&real), Some(&*hash));
    assert_eq!(content_hash(&path.join("model.safetensors")), None);

    // What is there is neither fetched nor told again; without the hub it is told that it is used.
    assert_eq!(hub.fetch(&id(MODEL)).expect("works"), path);
    assert_eq!(take(&told), [""; 0]);
    let down = Fault::Status(503, vec![("Retry-After", "0".into())]);
    stand_in.fail("GET", "/api/", 9, down);
    assert_eq!(hub.fetch(&id(MODEL)).expect("is in the cache"), path);
    let found = take(&told);
    assert!(found.len() == 1 && found[0].ends_with("using RWKV/tiny as it is in the cache"));
}

/// Also of a work that fails the end is told.
#[test]
fn what_fails_is_over() {
    let (stand_in, cache) = (StandIn::start(), tempfile::tempdir().expect("a folder"));
    stand_in.commit(MODEL, "main", files());
    let refuse = || Fault::Status(403, vec![]);
    stand_in.fail("GET", "model.safetensors", 1, refuse());
    stand_in.fail("GET", "/objects/", 1, refuse());
    let (hub, told) = recorded(Hub::new(settings(&stand_in, cache.path())));
    hub.fetch(&id(MODEL)).expect_err("the weights do not come");
    let found = take(&told);
    assert_eq!(
        found[found.len() - 2..],
        ["Download(\"model.safetensors\")", "End"]
    );
}

#[test]
fn tokenizers_come_without_their_models() {
    let (stand_in, cache) = (StandIn::start(), tempfile::tempdir().expect("a folder"));
    let mut all = files();
    all.insert("tokenizer.json".into(), b"{}".to_vec());
    stand_in.commit(MODEL, "main", all);
    stand_in.commit("RWKV/none", "main", files());
    let hub = Hub::new(settings(&stand_in, cache.path()));
    let found = hub.fetch_tokenizer(&id(MODEL)).expect("works");
    let found = found.expect("the hub says so");
    assert_eq!(found.n_vocab, Some(77));
    assert!(found
        .path
        .is_some_and(|path| path.ends_with("tokenizer.json")));
    let found = hub.fetch_tokenizer(&id("RWKV/none")).expect("works");
    assert!(found.is_some_and(|found| found.path.is_none()));
    // It may be inside the file, which nobody has looked at.
    let file = id("RWKV/none/model.safetensors");
    assert!(hub.fetch_tokenizer(&file).expect("works").is_none());
    let is_weights = |path: &str| path.ends_with("model.safetensors");
    assert!(!stand_in
        .take_log()
        .iter()
        .any(|request| is_weights(&request.path)));
}

/// A GGUF file is a whole model: alone it is taken, among others the user says which.
#[test]
fn gguf_files_are_models() {
    let (stand_in, cache) = (StandIn::start(), tempfile::tempdir().expect("a folder"));
    let repository = |names: &[&str]| {
        let named = |name: &&str| ((*name).to_owned(), name.as_bytes().to_vec());
        names.iter().map(named).collect::<Files>()
    };
    let hub = Hub::new(settings(&stand_in, cache.path()));
    stand_in.commit(
        "RWKV/one",
        "main",
        repository(&["README.md", "a-Q8_0.gguf"]),
    );
    let path = hub.fetch(&id("RWKV/one")).expect("works");
    assert!(path.join("a-Q8_0.gguf").is_file() && !path.join("README.md").exists());
    // The tokenizer is inside.
    let tokenizer = hub.fetch_tokenizer(&id("RWKV/one"));
    assert!(tokenizer.expect("works").is_none());
    stand_in.take_log();
    assert_eq!(hub.fetch(&id("RWKV/one")).expect("is there"), path);
    let log = stand_in.take_log();
    assert!(!log.iter().any(|one| one.path.ends_with(".gguf")));

    let all = ["a-F16.gguf", "a-Q8_0.gguf", "config.json", "vocab.txt"];
    stand_in.commit("RWKV/two", "main", repository(&all));
    let error = hub.fetch(&id("RWKV/two")).expect_err("two");
    assert_eq!(error.kind(), ErrorKind::Argument);
    let text = error.to_string();
    for word in ["a-F16.gguf, a-Q8_0.gguf", "--model RWKV/two/a-F16.gguf"] {
        assert!(text.contains(word), "{text}");
    }
    let path = hub.fetch(&id("RWKV/two/a-Q8_0.gguf")).expect("works");
    assert!(path.ends_with("a-Q8_0.gguf") && path.is_file());
    assert!(!path.with_file_name("vocab.txt").exists());
    assert!(!path.with_file_name("a-F16.gguf").exists());

    // Where there are other weights, or it lies deeper, it has to be named.
    for (name, files) in [
        ("RWKV/mixed", ["a.gguf", "a.pth"]),
        ("RWKV/deep", ["README.md", "q8/a.gguf"]),
    ] {
        stand_in.commit(name, "main", repository(&files));
        let text = hub.fetch(&id(name)).expect_err(name).to_string();
        assert!(text.contains("name the one you want"), "{text}");
    }
}

#[test]
fn failures_have_kinds() {
    let (stand_in, cache) = (StandIn::start(), tempfile::tempdir().expect("a folder"));
    stand_in.commit(MODEL, "main", files());
    stand_in.commit("RWKV/gated", "main", files());
    stand_in.make_gated("RWKV/gated");
    let mut other = files();
    other.insert("config.json".into(), br#"{"model_type": "llama"}"#.to_vec());
    stand_in.commit("other/llama", "main", other);
    let plain = settings(&stand_in, cache.path());
    let mut nobody = plain.clone();
    nobody.endpoint = "http://127.0.0.1:1".into();
    let mut offline = plain.clone();
    offline.offline = Some("HF_HUB_OFFLINE");
    let mut certificates = plain.clone();
    certificates.certificates = Some(cache.path().join("none.pem"));
    for (settings, name, kind, words) in [
        (&plain, "RWKV/tinny", ErrorKind::NotFound, "RWKV/tiny"),
        (&plain, "RWKV/tiny@v2", ErrorKind::NotFound, "it has main"),
        (
            &plain,
            "RWKV/tiny/x.pth",
            ErrorKind::NotFound,
            "no file x.pth",
        ),
        (&plain, "RWKV/gated", ErrorKind::Access, "HF_TOKEN"),
        (&plain, "other/llama", ErrorKind::Content, "\"llama\""),
        (&nobody, MODEL, ErrorKind::Network, "cannot be downloaded"),
        (&offline, MODEL, ErrorKind::Network, "HF_HUB_OFFLINE"),
        (&certificates, MODEL, ErrorKind::Io, "none.pem"),
    ] {
        let found = Hub::new(settings.clone()).fetch(&id(name));
        let error = found.expect_err(name);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    let push = |settings: Settings| Hub::new(settings).check_push("me/new");
    let error = push(plain.clone()).expect_err("no token");
    assert_eq!(error.kind(), ErrorKind::Access);
    let mut owner = plain;
    owner.token = Token::new(" secret \n", "an option").expect("a token");
    assert!(push(owner.clone()).is_ok());
    assert!(!format!("{owner:?}").contains("secret"));
    let error = Token::new("two words", "an option").expect_err("no token");
    assert_eq!(error.kind(), ErrorKind::Argument);
    assert!(Token::new("\n", "an option").expect("none").is_none());
}
