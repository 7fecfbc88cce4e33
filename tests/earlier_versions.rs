//! Files that earlier versions of the program wrote still open, and give what those versions gave:
//! `tests/fixtures/v0.1` says how they were made. Conversations are tested in `tests/chat/files.rs`.

mod common;

use std::path::PathBuf;

use common::{golden, ids, json, open, repository};
use rwkv_edge::{Model, Options, Quant, Session};
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    repository("tests/fixtures/v0.1").join(name)
}

fn model() -> Model {
    Model::open(fixture("model.safetensors"), &Options::default()).expect("as version 0.1 wrote it")
}

/// The largest logit, the first of equals.
fn best(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

fn goes_on(session: &mut Session, expected: &Value) {
    let mut fed = expected["next_token"].as_u64().expect("an id") as u32;
    for next in ids(&expected["behind_state"]) {
        fed = best(session.eval(&[fed]).expect("a valid token"));
        assert_eq!(fed, next);
    }
}

#[test]
fn model_files_of_version_0_1_give_the_same_bits() {
    let (model, expected) = (model(), json(fixture("expected.json")));
    model.verify(&mut |_| {}).expect("not damaged");
    let info = model.info();
    assert_eq!((info.architecture, info.quant), ("rwkv-4", Quant::Int8));
    let fingerprint = format!("{:016x}", info.fingerprint);
    assert_eq!(Some(fingerprint.as_str()), expected["fingerprint"].as_str());
    let mut session = model.session();
    let logits = session
        .eval(&ids(&expected["prompt"]))
        .expect("valid tokens");
    // int8 gives the same bits on every instruction set.
    let all = expected["logits"].as_array().expect("an array");
    let all: Vec<f32> = all
        .iter()
        .map(|x| x.as_f64().expect("a number") as f32)
        .collect();
    assert_eq!(logits, all);
}

#[test]
fn states_of_version_0_1_go_on() {
    let expected = json(fixture("expected.json"));
    // With the model file of that version, and with the checkpoint that it was made from.
    let checkpoint = open(golden("small-safetensors"), Quant::Int8, 1);
    for model in [model(), checkpoint] {
        let mut session = model.session();
        session
            .load_state(fixture("small.state"))
            .expect("of this model");
        let n_tokens = expected["state_tokens"].as_u64();
        assert_eq!(Some(session.state().n_tokens()), n_tokens);
        assert!(session.logits().is_some(), "they were saved with it");
        goes_on(&mut session, &expected);
        let bytes = std::fs::read(fixture("small.state")).expect("a fixture");
        session.load_state_from(&bytes).expect("of this model");
        goes_on(&mut session, &expected);
    }
}

/// The model file of that version says less of its checkpoint than today's: what it says is enough.
#[test]
fn states_of_today_go_to_model_files_of_version_0_1_and_back() {
    let checkpoint = open(golden("small-safetensors"), Quant::Int8, 1);
    for (from, to) in [(model(), checkpoint.clone()), (checkpoint, model())] {
        let mut session = from.session();
        session.eval(&[1, 2, 3]).expect("valid tokens");
        let bytes = session.state().to_bytes(&[]);
        let mut other = to.session();
        other.load_state_from(&bytes).expect("of one checkpoint");
        assert_eq!(other.state(), session.state());
    }
}

#[test]
fn damaged_states_of_version_0_1_are_refused() {
    let (model, good) = (
        model(),
        std::fs::read(fixture("small.state")).expect("a fixture"),
    );
    let mut session = model.session();
    session.eval(&[1, 2, 3]).expect("valid tokens");
    let before = session.state().clone();
    let mut refuse = |bytes: &[u8], words: &str| {
        let error = session.load_state_from(bytes).expect_err(words);
        assert_eq!(error.kind(), rwkv_edge::ErrorKind::State);
        assert!(
            error.to_string().contains(words),
            "{error}, expected {words}"
        );
        assert_eq!(session.state(), &before, "{words}");
    };
    for size in [0, 7, 47, 48, 63, 64, 1000, good.len() - 1] {
        refuse(
            &good[..size],
            if size < 48 {
                "not a saved state"
            } else {
                "cut"
            },
        );
    }
    refuse(&[&good[..], &[0]].concat(), "padded");
    for (at, words) in [
        (6, "not a saved state"),
        (7, "version"),
        (8, "another model"),
        (16, "checksum"),
        (24, "layers"),
        (28, "width"),
        (32, "width"),
        (36, "logits"),
        (40, "checksum"),
        (48, "checksum"),
        (good.len() - 1, "checksum"),
    ] {
        let mut bad = good.clone();
        bad[at] ^= 4;
        refuse(&bad, words);
    }
    session
        .load_state_from(&good)
        .expect("the good one still is");
}
