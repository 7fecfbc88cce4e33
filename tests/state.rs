//! The state as a value: cloned, saved, loaded, and refused where it does not belong.

mod common;

use std::fs;

use common::{golden, open, Random};
use rwkv_edge::{ErrorKind, Quant, Session};

const TOKENS: [u32; 12] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8];

#[test]
fn a_clone_goes_its_own_way() {
    let model = open(golden("small-safetensors"), Quant::Int8, 2);
    let mut session = model.session();
    session.eval(&TOKENS).expect("valid tokens");
    let (state, logits) = (
        session.state().clone(),
        session.logits().expect("fed").to_vec(),
    );
    let first = session.eval(&[7, 7]).expect("valid tokens").to_vec();
    session.restore(&state, &logits).expect("its own state");
    assert_eq!(session.logits(), Some(&logits[..]));
    assert_eq!(session.eval(&[7, 7]).expect("valid tokens"), first);
    session.reset();
    assert_eq!(session.state(), &model.new_state());
    assert_eq!(session.logits(), None);
}

#[test]
fn a_saved_state_goes_on_in_another_quantisation_and_session() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state");
    let int8 = open(golden("small-safetensors"), Quant::Int8, 2);
    let mut session = int8.session();
    session.eval(&TOKENS).expect("valid tokens");
    session.save_state(&path).expect("can be written");
    let next = session.eval(&[2]).expect("a valid token").to_vec();

    let mut other = open(golden("small-safetensors"), Quant::Int8, 1).session();
    other.load_state(&path).expect("the same model");
    assert_eq!(other.state().n_tokens(), TOKENS.len() as u64);
    assert!(other.logits().is_some());
    assert_eq!(other.eval(&[2]).expect("a valid token"), next);
    for quant in [Quant::F32, Quant::F16] {
        let mut other = open(golden("small-safetensors"), quant, 1).session();
        other.load_state(&path).expect("the same checkpoint");
    }
    for name in ["odd-bin", "deep-sharded"] {
        let mut other = open(golden(name), Quant::Int8, 1).session();
        let error = other.load_state(&path).expect_err("another model");
        assert_eq!(error.kind(), ErrorKind::State);
        assert!(error.to_string().contains("another model"), "{error}");
    }
}

#[test]
fn damaged_states_are_refused_and_change_nothing() {
    let model = open(golden("odd-bin"), Quant::Int8, 1);
    let mut session = model.session();
    session.eval(&TOKENS).expect("valid tokens");
    let good = session.state().to_bytes(session.logits().expect("fed"));
    let mut state = model.new_state();
    let empty = state.clone();
    let mut random = Random(3);
    let mut refuse = |bytes: &[u8], what: &str| {
        let error = state.load_bytes(bytes).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::State, "{what}");
        assert_eq!(state, empty, "{what}");
    };
    for size in 0..good.len() {
        refuse(&good[..size], "cut");
    }
    refuse(&[&good[..], &[0]].concat(), "padded");
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (random.next() % 8);
        refuse(&bad, "a flipped bit");
    }
    let logits = state.load_bytes(&good).expect("as saved");
    assert_eq!(&state, session.state());
    assert_eq!(Some(&logits[..]), session.logits());
    let without = session.state().to_bytes(&[]);
    assert!(state.load_bytes(&without).expect("as saved").is_empty());
    let error = session
        .load_state(std::path::Path::new("no/such/file"))
        .expect_err("no file");
    assert_eq!(error.kind(), ErrorKind::Io);
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("empty"), b"").expect("can be written");
    session
        .load_state(folder.path().join("empty"))
        .expect_err("an empty file");
    let error = session.load_state(folder.path()).expect_err("a folder");
    assert_eq!(error.kind(), ErrorKind::Io);
    // A file that is much too large is not read whole, however well it begins.
    let padded = [&good[..], &vec![0; 1 << 20]].concat();
    fs::write(folder.path().join("padded"), padded).expect("can be written");
    let error = session
        .load_state(folder.path().join("padded"))
        .expect_err("padded");
    assert!(error.to_string().ends_with(&format!(
        "padded: more than the expected {} bytes",
        good.len()
    )));
    assert_eq!(
        session.state().to_bytes(session.logits().expect("fed")),
        good,
        "nothing has changed"
    );
}

#[test]
fn a_state_in_memory_is_that_of_a_file_and_of_one_size() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state");
    let model = open(golden("small-safetensors"), Quant::Int8, 1);
    let (mut session, _) = Session::with_all_memory(&model).expect("no limit");
    let size = session.saved_state_size();
    let mut empty = vec![1; size];
    session.save_state_to(&mut empty).expect("room");
    session.eval(&TOKENS).expect("valid tokens");
    assert_eq!(session.saved_state_size(), size);
    let mut bytes = vec![1; size];
    session.save_state_to(&mut bytes).expect("room");
    session.save_state(&path).expect("can be written");
    assert_eq!(fs::read(&path).expect("just written"), bytes);
    let error = session.save_state_to(&mut bytes[1..]).expect_err("no room");
    assert_eq!(error.kind(), ErrorKind::Argument);

    let mut other = model.session();
    other.load_state_from(&bytes).expect("as saved");
    assert_eq!(other.logits(), session.logits());
    assert_eq!(other.state(), session.state());
    // Before the first token there are no logits, whatever stands in their place.
    other.load_state_from(&empty).expect("as saved");
    assert_eq!(other.logits(), None);
    assert_eq!(other.state(), &model.new_state());
}
