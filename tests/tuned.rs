//! Tuned initial states: the empty state of a model that was merged with one or was given one, wherever it comes back.
//!
//! The golden files are of the `rwkv` package, which copies the file's [head][value][key] into its own states.

mod common;
#[path = "common/tensors.rs"]
mod tensors;

use std::fs;
use std::path::{Path, PathBuf};

use common::{floats, golden, ids, json, open, repository};
use rwkv_edge::{
    CheckpointSource, ConvertOptions, ErrorKind, Model, Options, Output, Quant, Session, Span,
};
use tensors::{read_file, safetensors, Tensor, Tensors};

const LAYERS: usize = 3;
const SHAPE: [usize; 3] = [2, 64, 64];

fn time_state() -> PathBuf {
    repository("tests/fixtures/tuned/time_state.pth")
}

fn base() -> Model {
    open(golden("v7-pth").join("model.pth"), Quant::F32, 2)
}

fn name(layer: usize) -> String {
    format!("blocks.{layer}.att.time_state")
}

/// What the golden file holds, taken from its archive by hand.
fn time_states() -> Tensors {
    let bytes = fs::read(time_state()).expect("a fixture");
    let tensor = |layer: usize| {
        let record = format!("time_state/data/{layer}");
        let mut places = bytes.windows(record.len());
        let at = places.position(|window| window == record.as_bytes());
        let at = at.expect("a record");
        // The last field of a local header is the length of what follows the name.
        let extra = usize::from(bytes[at - 2]) + 256 * usize::from(bytes[at - 1]);
        let start = at + record.len() + extra;
        let size = 2 * SHAPE.iter().product::<usize>();
        Tensor {
            dtype: "BF16".into(),
            shape: SHAPE.to_vec(),
            bytes: bytes[start..start + size].to_vec(),
        }
    };
    (0..LAYERS)
        .map(|layer| (name(layer), tensor(layer)))
        .collect()
}

/// The numbers of a tensor of bf16.
fn numbers(tensor: &Tensor) -> Vec<f32> {
    let bits = tensor.bytes.chunks_exact(2);
    bits.map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
        .collect()
}

/// The tensors of the golden model under their raw names, in f32.
fn raw_model() -> Tensors {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model");
    base().save(&path, &mut |_| {}).expect("can be written");
    let mut tensors = read_file(&path);
    tensors.retain(|name, _| !name.starts_with("padding."));
    for (name, tensor) in &mut tensors {
        if name.ends_with("ffn.value.weight") {
            let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
            let numbers = tensor.floats();
            let turned = (0..rows * cols).map(|i| numbers[i % rows * cols + i / rows]);
            *tensor = Tensor::from_f32(vec![cols, rows], &turned.collect::<Vec<_>>());
        }
        if name.ends_with("att.r_k") {
            tensor.shape = vec![SHAPE[0], SHAPE[1]];
        }
    }
    tensors
}

/// A checkpoint that was merged with its tuned state.
fn merged() -> Tensors {
    let mut tensors = raw_model();
    tensors.extend(time_states());
    tensors
}

fn write(folder: &Path, name: &str, tensors: &Tensors) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, safetensors(tensors)).expect("can be written");
    path
}

fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best }) as u32
}

/// Whether a session is where the golden file's state begins.
fn check(session: &mut Session, what: &str) {
    let expected = json(repository("tests/fixtures/tuned/expected_time_state.json"));
    let tolerance = 1e-4 * expected["logits_std"].as_f64().expect("a number");
    assert_eq!(session.state().n_tokens(), 0, "{what}");
    assert!(session.logits().is_none(), "{what}");
    let begun = session.state().clone();
    let tokens = ids(&expected["input_ids"]);
    let logits = session.eval_all(&tokens).expect("valid tokens");
    let n_vocab = session.model().n_vocab();
    let rows: Vec<_> = logits.chunks_exact(n_vocab).collect();
    let argmaxes: Vec<_> = rows.iter().map(|row| argmax(row)).collect();
    assert_eq!(argmaxes, ids(&expected["logits_argmax"]), "{what}");
    let last = floats(&expected["logits_last"]);
    for (&found, expected) in rows[tokens.len() - 1].iter().zip(last) {
        let difference = (f64::from(found) - expected).abs();
        assert!(
            difference <= tolerance,
            "{what}: {difference} > {tolerance}"
        );
    }
    session.restore(&begun, &[]).expect("its own state");
    let tokens = ids(&expected["greedy_ids"]);
    let n_prompt = expected["greedy_prompt_len"].as_u64().expect("a length") as usize;
    session.eval(&tokens[..n_prompt]).expect("valid tokens");
    for &token in &tokens[n_prompt..] {
        let found = argmax(session.logits().expect("tokens were fed"));
        assert_eq!(found, token, "{what}");
        session.eval(&[token]).expect("a valid token");
    }
    session.restore(&begun, &[]).expect("its own state");
}

/// Whether all that begins empty with this model begins tuned, and comes back to that.
fn check_model(model: &Model, what: &str) {
    assert!(model.info().has_tuned_state, "{what}");
    let mut session = model.session();
    check(&mut session, what);
    session.eval(&[5, 6, 7]).expect("valid tokens");
    let mut state = session.state().clone();
    session.reset();
    check(&mut session, &format!("{what}, reset"));
    state.reset();
    assert_eq!(state, model.new_state(), "{what}");
    assert!(state.as_slice() == model.new_state().as_slice());
    let (mut with_all, _) = Session::with_all_memory(model).expect("memory");
    check(&mut with_all, &format!("{what}, with all memory"));
}

#[test]
fn a_checkpoint_merged_with_its_state_begins_with_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = write(folder.path(), "merged.safetensors", &merged());
    let model = open(path.clone(), Quant::F32, 2);
    check_model(&model, "merged");
    // Numbers as the engine keeps them, (head, key, value), behind shifts that are zero.
    let state = model.new_state();
    let width = SHAPE[0] * SHAPE[1];
    for (layer, numbers_of_layer) in state.as_slice().chunks_exact(width * (2 + 64)).enumerate() {
        let (shifts, wkv) = numbers_of_layer.split_at(2 * width);
        assert!(shifts.iter().all(|&x| x == 0.0));
        let expected = numbers(&time_states()[&name(layer)]);
        for (i, &found) in wkv.iter().enumerate() {
            let (head, key, value) = (i / 4096, i / 64 % 64, i % 64);
            assert_eq!(found, expected[head * 4096 + value * 64 + key]);
        }
    }
    // Many sequences at once.
    let mut states = [model.new_state(), base().new_state(), model.new_state()];
    let tokens = [[3, 1, 4], [3, 1, 4], [3, 1, 4]];
    let mut spans: Vec<_> = states
        .iter_mut()
        .zip(&tokens)
        .map(|(state, tokens)| Span::new(state, tokens, Output::Last))
        .collect();
    let mut logits = vec![0.0; 3 * model.n_vocab()];
    let mut workspace = model.workspace(16);
    model
        .forward(&mut workspace, &mut spans, &mut logits)
        .expect("states of one checkpoint");
    let rows: Vec<_> = logits.chunks_exact(model.n_vocab()).collect();
    assert!(rows[0] == rows[2] && rows[0] != rows[1]);
    assert_eq!(rows[1], base().session().eval(&[3, 1, 4]).expect("tokens"));
    // Any quantisation has it.
    let int8 = open(path, Quant::Int8, 1);
    assert!(int8.new_state().as_slice() == state.as_slice());
}

#[test]
fn a_model_is_given_a_state_from_its_own_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = base();
    assert!(!base.info().has_tuned_state);
    let wrapped = |prefix: &str| -> Tensors {
        let states = time_states().into_iter();
        states
            .map(|(name, tensor)| (format!("{prefix}{name}"), tensor))
            .collect()
    };
    let in_f32: Tensors = time_states()
        .into_iter()
        .map(|(name, tensor)| (name, Tensor::from_f32(SHAPE.to_vec(), &numbers(&tensor))))
        .collect();
    for (what, path) in [
        ("torch", time_state()),
        ("safetensors", write(folder.path(), "a", &time_states())),
        ("f32", write(folder.path(), "b", &in_f32)),
        ("module.", write(folder.path(), "c", &wrapped("module."))),
    ] {
        assert!(Model::is_initial_state(&path));
        let tuned = base.with_initial_state(&path).expect("of this model");
        check_model(&tuned, what);
        // The file's hash is that of the numbers.
        assert!(tuned.new_state().initial_hash().is_some());

        let mut session = base.session();
        session.eval(&[1, 2, 3]).expect("valid tokens");
        session.load_state(&path).expect("of this model");
        check(&mut session, what);
        session.eval(&[1, 2, 3]).expect("valid tokens");
        session.reset();
        check(&mut session, what);
        let mut session = base.session();
        let bytes = fs::read(&path).expect("readable");
        session.load_state_from(&bytes).expect("of this model");
        check(&mut session, what);
        session.eval(&[1, 2, 3]).expect("valid tokens");
        session.reset();
        check(&mut session, what);
    }
    // Nothing of that has come to others.
    assert!(base.new_state().as_slice().iter().all(|&x| x == 0.0));
    assert_eq!(base.new_state().initial_hash(), None);
    let model = golden("v7-pth").join("model.pth");
    assert!(
        Model::is_initial_state(&model),
        "told apart by what is in it"
    );
}

#[test]
fn saved_states_pass_between_a_tuned_model_and_its_base() {
    let base = base();
    let tuned = base
        .with_initial_state(time_state())
        .expect("of this model");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state");
    let mut session = tuned.session();
    session.eval(&[1, 2, 3]).expect("valid tokens");
    session.save_state(&path).expect("can be written");
    assert!(!Model::is_initial_state(&path));
    let next = session.eval(&[4]).expect("a valid token").to_vec();
    let mut other = base.session();
    other.load_state(&path).expect("a state is a state");
    assert_eq!(other.eval(&[4]).expect("a valid token"), next);
    // It says nothing of what it began with.
    other.reset();
    assert!(other.state().as_slice() == base.new_state().as_slice());
    let mut again = tuned.session();
    again.load_state(&path).expect("its own state");
    again.reset();
    check(&mut again, "reset after loading");
    // A copy does: it is the same value.
    other
        .restore(again.state(), &[])
        .expect("of this checkpoint");
    other.eval(&[1]).expect("a valid token");
    other.reset();
    check(&mut other, "reset after restoring");
}

#[test]
fn model_files_and_conversions_keep_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let path = write(folder.path(), "merged.safetensors", &merged());
    let model = open(path.clone(), Quant::F32, 2);
    for (name, model) in [
        ("of merged", &model),
        (
            "of given",
            &base().with_initial_state(time_state()).expect("fits"),
        ),
    ] {
        model.save(at(name), &mut |_| {}).expect("can be written");
        let reopened = Model::open(at(name), &Options::default()).expect("written here");
        check_model(&reopened, name);
        reopened.verify(&mut |_| {}).expect("whole");
        let stored = read_file(&at(name));
        for (name, tensor) in time_states() {
            assert_eq!(stored[&name].shape, SHAPE);
            assert_eq!(stored[&name].floats(), numbers(&tensor));
        }
        assert_eq!(reopened.info().fingerprint, base().info().fingerprint);
    }
    // As they were, to the byte, in raw form.
    let source = CheckpointSource::open(&path).expect("a checkpoint");
    let options = ConvertOptions::new();
    let raw = source.to_raw(at("raw.pth"), &options, &mut |_| {});
    raw.expect("can be written");
    check_model(&open(at("raw.pth"), Quant::F32, 2), "raw");
    let bytes = fs::read(at("raw.pth")).expect("readable");
    for tensor in time_states().values() {
        let mut places = bytes.windows(tensor.bytes.len());
        assert!(places.any(|window| window == tensor.bytes));
    }
    let written = source.to_hugging_face(at("folder"), &options, &mut |_| {});
    written.expect("can be written");
    check_model(&open(at("folder"), Quant::F32, 2), "folder");

    // Damaged model files.
    let good = read_file(&at("of merged"));
    let bytes = fs::read(at("of merged")).expect("readable");
    let place = |name: &str| {
        let wanted = &good[name].bytes;
        let mut places = bytes.windows(wanted.len());
        places.position(|window| window == wanted).expect("there")
    };
    let mut nan = bytes.clone();
    let first = place(&name(1));
    nan[first..first + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let text = String::from_utf8_lossy(&bytes[..16 << 10]).into_owned();
    let at_name = text.find(&name(2)).expect("in the header");
    let mut missing = bytes.clone();
    missing[at_name..at_name + 6].copy_from_slice(b"blobby");
    for (bad, words) in [(nan, "NaN"), (missing, "missing")] {
        fs::write(at("bad"), bad).expect("can be written");
        let error = Model::open(at("bad"), &Options::default()).expect_err(words);
        assert_eq!(error.kind(), ErrorKind::Format, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.to_string().contains("att.time_state"), "{error}");
    }
}

/// A change of the tuned state, and what the error must say of it.
type Case = (&'static str, fn(&mut Tensors), &'static [&'static str]);

const CASES: [Case; 7] = [
    (
        "a layer without",
        |all| drop(all.remove(&name(1))),
        &["blocks.1.att.time_state", "missing", "3 layers"],
    ),
    (
        "a layer too many",
        |all| drop(all.insert(name(3), all[&name(0)].clone())),
        &["blocks.3.att.time_state", "beyond", "3"],
    ),
    (
        "another shape",
        |all| all.get_mut(&name(2)).expect("there").shape = vec![1, 128, 64],
        &["blocks.2.att.time_state", "[1, 128, 64]", "[2, 64, 64]"],
    ),
    (
        "a flat shape",
        |all| all.get_mut(&name(0)).expect("there").shape = vec![128, 64],
        &["blocks.0.att.time_state", "[128, 64]", "[2, 64, 64]"],
    ),
    (
        "another type",
        |all| {
            let tensor = all.get_mut(&name(0)).expect("there");
            tensor.dtype = "I16".into();
        },
        &["blocks.0.att.time_state", "I16"],
    ),
    (
        "not a number",
        |all| all.get_mut(&name(1)).expect("there").bytes[131..133].copy_from_slice(&[0x7f; 2]),
        &["blocks.1.att.time_state", "at [0, 1, "],
    ),
    (
        "infinite",
        |all| all.get_mut(&name(1)).expect("there").bytes[2..4].copy_from_slice(&[0x80, 0xff]),
        &["blocks.1.att.time_state", "-inf at [0, 0, 1]"],
    ),
];

#[test]
fn bad_states_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = base();
    let model = raw_model();
    for (what, change, words) in CASES {
        let mut states = time_states();
        change(&mut states);
        let path = write(folder.path(), "state", &states);
        let mut merged = model.clone();
        merged.extend(states);
        let merged = write(folder.path(), "merged", &merged);

        let mut session = base.session();
        let before = session.eval(&[1, 2]).expect("valid tokens").to_vec();
        let bytes = fs::read(&path).expect("readable");
        for error in [
            base.with_initial_state(&path).expect_err(what),
            session.load_state(&path).expect_err(what),
            session.load_state_from(&bytes).expect_err(what),
            Model::open(&merged, &Options::default()).expect_err(what),
        ] {
            let text = error.to_string();
            assert!(
                words.iter().all(|word| text.contains(word)),
                "{what}: {text}"
            );
            let kinds = [ErrorKind::State, ErrorKind::Format, ErrorKind::Unsupported];
            assert!(kinds.contains(&error.kind()), "{what}: {text}");
        }
        // Nothing has changed.
        assert_eq!(session.logits(), Some(&before[..]), "{what}");
        assert_eq!(session.state().n_tokens(), 2);
    }
}

#[test]
fn what_is_no_state_and_what_cannot_have_one_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = base();
    let file = folder.path().join("model");
    base.save(&file, &mut |_| {}).expect("can be written");
    let empty = write(folder.path(), "empty", &Tensors::new());
    let text = folder.path().join("text");
    fs::write(&text, "no state at all").expect("can be written");
    for (path, words) in [
        (
            golden("v7-pth").join("model.pth"),
            "blocks.N.att.time_state alone",
        ),
        (file, "a model file"),
        (empty, "no tensors"),
        (text, "not a tuned initial state"),
    ] {
        let error = base.with_initial_state(&path).expect_err(words);
        assert_eq!(error.kind(), ErrorKind::State, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        let error = base.session().load_state(&path).expect_err(words);
        assert_eq!(error.kind(), ErrorKind::State, "{error}");
    }
    let none = base.with_initial_state(folder.path().join("none"));
    assert!(none.expect_err("not there").to_string().contains("none"));
    // RWKV-4 has no such states, alone or merged.
    let v4 = open(golden("small-safetensors"), Quant::F32, 1);
    let error = v4.session().load_state(time_state()).expect_err("RWKV-4");
    assert_eq!(error.kind(), ErrorKind::State, "{error}");
    assert!(error.to_string().contains("RWKV-4"), "{error}");
    // Alone it is no model, and the error says how to use it.
    let error = Model::open(time_state(), &Options::default()).expect_err("no model");
    assert!(error.to_string().contains("--load-state"), "{error}");
}
