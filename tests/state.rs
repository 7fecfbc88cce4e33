//! The state as a value: cloned, saved, loaded, and refused where it does not belong.

mod common;
#[path = "common/tensors.rs"]
mod tensors;

use std::fs;
use std::path::Path;

use common::{golden, open, Random};
use rwkv_edge::{ErrorKind, Model, Options, Quant, Session};
use tensors::{read_folder, safetensors, Tensors};

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

fn write(folder: &Path, tensors: &Tensors) -> Model {
    let config = golden("small-safetensors").join("config.json");
    fs::create_dir_all(folder).expect("can be made");
    fs::copy(config, folder.join("config.json")).expect("can be copied");
    fs::write(folder.join("model.safetensors"), safetensors(tensors)).expect("can be written");
    Model::open(folder, &Options::new().threads(1)).expect("a checkpoint")
}

fn saved(model: &Model) -> Vec<u8> {
    let mut session = model.session();
    session.eval(&TOKENS).expect("valid tokens");
    session.state().to_bytes(session.logits().expect("fed"))
}

/// Rows all over the matrices tell checkpoints apart, not only the first of each.
#[test]
fn states_of_weights_that_differ_anywhere_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = read_folder(&golden("small-safetensors"));
    let model = write(folder.path(), &good);
    let state = saved(&model);
    let mut n_matrices = 0;
    for (name, tensor) in &good {
        let &[n_rows, n_cols] = &tensor.shape[..] else {
            continue;
        };
        n_matrices += 1;
        // One number of one row: matrices as small as these are looked at as a whole.
        for at in [0, n_cols - 1, n_rows / 2 * n_cols + 1, n_rows * n_cols - 1] {
            let mut bad = good.clone();
            let number = &mut bad.get_mut(name).expect("there").bytes[4 * at..4 * at + 4];
            let value = f32::from_le_bytes(number.try_into().expect("4 bytes"));
            number.copy_from_slice(&(value + 0.25).to_le_bytes());
            let other = write(&folder.path().join("other"), &bad);
            let error = other.new_state().load_bytes(&state).expect_err(name);
            assert_eq!(error.kind(), ErrorKind::State);
            assert!(error.to_string().contains("another model"), "{error}");
            let error = other.session().restore(model.session().state(), &[]);
            error.expect_err("of another model");
            fs::remove_dir_all(folder.path().join("other")).expect("was made");
        }
    }
    assert_eq!(n_matrices, 3 * 7 + 2);
    let same = write(&folder.path().join("same"), &good);
    same.new_state()
        .load_bytes(&state)
        .expect("the same weights");
}

/// A model file of a quantised checkpoint takes its states, and gives states that it takes.
#[test]
fn states_go_from_checkpoints_to_their_model_files_and_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoint = open(golden("small-safetensors"), Quant::F32, 1);
    for quant in [Quant::F32, Quant::F16, Quant::Int8] {
        let path = folder.path().join("model.safetensors");
        let made = open(golden("small-safetensors"), quant, 1);
        made.save(&path, &mut |_| {}).expect("can be written");
        let file = Model::open(&path, &Options::new().threads(1)).expect("just written");
        for (from, to) in [(&checkpoint, &file), (&file, &checkpoint), (&file, &made)] {
            let mut session = to.session();
            session
                .load_state_from(&saved(from))
                .expect("one checkpoint");
            let mut other = from.session();
            other.eval(&TOKENS).expect("valid tokens");
            session.restore(other.state(), &[]).expect("one checkpoint");
        }
        fs::remove_file(&path).expect("was written");
    }
}

/// Saved bytes with other bytes in some places, and the checksum of what they are then.
fn changed(good: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut bad = good.to_vec();
    bad[at..at + bytes.len()].copy_from_slice(bytes);
    with_checksum(bad)
}

fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    hash.update(&bytes[..16]);
    hash.update(&bytes[24..]);
    bytes[16..24].copy_from_slice(&hash.digest().to_le_bytes());
    bytes
}

/// Version 2 had a header of 64 bytes, without the second fingerprint.
#[test]
fn states_of_version_2_are_read() {
    let model = open(golden("small-safetensors"), Quant::Int8, 1);
    let good = saved(&model);
    let mut bytes = [&good[..64], &good[72..]].concat();
    bytes[7] = 2;
    let mut state = model.new_state();
    let logits = state.load_bytes(&with_checksum(bytes)).expect("version 2");
    assert_eq!(state.to_bytes(&logits), good);
}

/// As many tokens as nobody can have fed would make the count wrap.
#[test]
fn a_count_of_tokens_that_cannot_be_is_refused() {
    let model = open(golden("small-safetensors"), Quant::Int8, 1);
    let good = saved(&model);
    let mut session = model.session();
    for n in [u64::MAX, u64::MAX - 3, u64::MAX / 2 + 1] {
        let bad = changed(&good, 48, &n.to_le_bytes());
        let error = session.load_state_from(&bad).expect_err("too many");
        assert_eq!(error.kind(), ErrorKind::State);
        assert!(error.to_string().contains(&n.to_string()), "{error}");
    }
    let most = changed(&good, 48, &(u64::MAX / 2).to_le_bytes());
    session
        .load_state_from(&most)
        .expect("as many as there may be");
    session.eval(&TOKENS).expect("the count goes on");
    assert_eq!(
        session.state().n_tokens(),
        u64::MAX / 2 + TOKENS.len() as u64
    );
}
