//! Weights that are NaN or infinite where nobody looked at them before, because they are used as they lie in the file:
//! whatever path numbers take, the results are an error that names the weight, and no state is left that could be saved.

mod common;
#[path = "common/patch.rs"]
mod patch;

use std::ops::ControlFlow;
use std::path::Path;

use common::{golden, open};
use patch::Image;
use rwkv_edge::{
    Error, ErrorKind, GenerateOptions, Model, Options, Output, Quant, Sampler, SamplerOptions,
    Session, Span, State,
};

const BAD: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
/// Enough of them for the products of few rows, of many, and of the gemm crate.
const LENGTHS: [usize; 4] = [1, 5, 12, 70];
/// Every token that is fed.
const TOKEN: u32 = 7;

fn image(quant: Quant, folder: &Path) -> Image {
    let path = folder.join("good.safetensors");
    let model = open(golden("small-safetensors"), quant, 1);
    model.save(&path, &mut |_| {}).expect("can be written");
    Image::new(std::fs::read(path).expect("just written"))
}

fn open_image(image: &Image, folder: &Path) -> Model {
    let path = folder.join("model.safetensors");
    // Not over the old one, which may still be mapped.
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, &image.bytes).expect("can be written");
    let model = Model::open(&path, &Options::new().threads(2)).expect("floats are not looked at");
    let info = model.info();
    assert!(info.mapped_bytes > info.weight_bytes / 2, "used in place");
    model
}

#[track_caller]
fn is_refused<T>(result: Result<T, Error>, words: &str) {
    let Err(error) = result else {
        panic!("expected an error: {words}");
    };
    assert_eq!(error.kind(), ErrorKind::Format, "{error}");
    let text = error.to_string();
    assert!(text.contains("not finite numbers"), "{text}");
    assert!(text.contains(words), "{text}, expected {words}");
}

#[track_caller]
fn is_undefined<T>(result: Result<T, Error>) {
    let error = result.err().expect("an undefined state");
    assert!(error.to_string().contains("undefined"), "{error}");
}

/// Nothing of the session can be used but what gives it another state.
fn check_session(session: &mut Session, folder: &Path) {
    assert_eq!(session.logits(), None);
    is_undefined(session.eval(&[TOKEN]).map(<[f32]>::to_vec));
    is_undefined(session.state().numbers());
    let state = folder.join("state");
    is_undefined(session.save_state(&state));
    assert!(!state.exists());
    is_undefined(session.save_state_to(&mut vec![0; session.saved_state_size()]));
    session.reset();
    session.state().check().expect("the empty state is one");
}

/// Every way to feed tokens; `head` says whether it is at fault, which ways without logits do not meet.
fn all_paths_refuse(model: &Model, folder: &Path, (words, is_head): (&str, bool)) {
    let (n_vocab, n_embd) = (model.n_vocab(), model.info().n_embd);
    for n in LENGTHS {
        let tokens = vec![TOKEN; n];
        let (mut logits, mut hidden) = (vec![0.0; n * n_vocab], vec![0.0; n * n_embd]);
        let mut session = model.session();
        is_refused(session.eval(&tokens).map(<[f32]>::to_vec), words);
        check_session(&mut session, folder);
        is_refused(session.eval_all(&tokens), words);
        check_session(&mut session, folder);

        let mut workspace = model.workspace(n);
        let mut feed = |pass: &mut dyn FnMut(&mut State, &mut _) -> Result<(), Error>| {
            let mut state = model.new_state();
            let result = pass(&mut state, &mut workspace);
            assert_eq!(state.check().is_err(), result.is_err());
            result
        };
        is_refused(
            feed(&mut |state, workspace| {
                let span = Span::new(state, &tokens, Output::All);
                model.forward(workspace, &mut [span], &mut logits)
            }),
            words,
        );
        is_refused(
            feed(&mut |state, workspace| {
                let span = Span::new(state, &tokens, Output::Last);
                model.forward_tokens(workspace, &mut [span], &mut [0])
            }),
            words,
        );
        let without_logits = feed(&mut |state, workspace| {
            let span = Span::new(state, &tokens, Output::None);
            model.forward(workspace, &mut [span], &mut [])
        });
        let without_head = feed(&mut |state, workspace| {
            let span = Span::new(state, &tokens, Output::All);
            model.forward_hidden(workspace, &mut [span], &mut hidden)
        });
        match is_head {
            true => {
                without_logits.expect("the head is not used");
                without_head.expect("the head is not used");
            }
            false => {
                is_refused(without_logits, words);
                is_refused(without_head, words);
            }
        }
        // Many sequences at once: none of them can be told from the others.
        let mut states = vec![model.new_state(); n];
        let spans = states.iter_mut();
        let spans = spans.map(|state| Span::new(state, &[TOKEN], Output::Last));
        let mut spans: Vec<_> = spans.collect();
        is_refused(
            model.forward(&mut workspace, &mut spans, &mut logits),
            words,
        );
        assert!(states.iter().all(|state| state.check().is_err()));
    }
}

#[test]
fn a_bad_weight_of_any_matrix_is_told_on_every_path() {
    let folder = tempfile::tempdir().expect("a folder");
    // Three places take an emulated CPU two minutes.
    let is_emulated = std::env::var_os("RWKV_EDGE_EMULATED").is_some();
    let n_places = if is_emulated { 1 } else { 3 };
    for quant in [Quant::F32, Quant::F16] {
        let mut image = image(quant, folder.path());
        let matrices = image.matrices();
        assert_eq!(matrices.len(), 3 * 7 + 2);
        for (index, (name, [n_rows, n_cols])) in matrices.into_iter().enumerate() {
            let rows = [n_rows / 2, 0, n_rows - 1];
            for (at, row) in rows.into_iter().take(n_places).enumerate() {
                let bad = BAD[(at + index) % 3];
                let column = (17 * (at + index)) % n_cols;
                let places = match &*name {
                    "emb.weight" => vec![[TOKEN as usize, column]],
                    // A row of a hidden unit that is 0 is not read, nor does it count.
                    name if name.ends_with("ffn.value.weight") => {
                        (0..n_rows).map(|row| [row, column]).collect()
                    }
                    _ => vec![[row, column]],
                };
                let words = format!("tensor {name}: {bad} at [{}, {column}]", places[0][0]);
                let before = image.set(&name, &places, bad);
                let model = open_image(&image, folder.path());
                all_paths_refuse(&model, folder.path(), (&words, name == "head.weight"));
                let numbers: Vec<_> = places.into_iter().zip(before).collect();
                image.put(&name, &numbers);
            }
        }
        let good = open_image(&image, folder.path());
        good.verify(&mut |_| {}).expect("all is as it was");
    }
}

/// Tokens that do not meet a bad row of the embedding are as good as ever, before it and in other sequences.
#[test]
fn a_bad_row_of_the_embedding_ends_the_text_that_meets_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut image = image(Quant::F16, folder.path());
    let good = open_image(&image, folder.path());
    let expected = good.session().eval(&[1, 2]).expect("tokens").to_vec();
    drop(good);
    image.set("emb.weight", &[[TOKEN as usize, 3]], f32::NAN);
    let model = open_image(&image, folder.path());
    let mut session = model.session();
    assert_eq!(session.eval(&[1, 2]).expect("tokens"), expected);
    let state = session.state().clone();
    for tokens in [&[3, TOKEN][..], &[TOKEN], &[TOKEN, 3]] {
        session.restore(&state, &expected).expect("its own state");
        let words = "tensor emb.weight: NaN at [7, 3]";
        is_refused(session.eval(tokens).map(<[f32]>::to_vec), words);
        check_session(&mut session, folder.path());
    }
    session.restore(&state, &expected).expect("its own state");
    assert_eq!(session.logits(), Some(&expected[..]));
}

#[test]
fn generating_ends_with_the_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut image = image(Quant::F16, folder.path());
    let generate = |model: &Model, callback: &mut dyn FnMut()| {
        let mut session = model.session();
        session.eval(&[1]).expect("a good token");
        let mut sampler =
            Sampler::new(SamplerOptions::default(), model.n_vocab()).expect("valid options");
        let options = GenerateOptions::new()
            .max_new_tokens(9)
            .ignore_end_of_text(true);
        let generated = session.generate(&mut sampler, &options, |_| {
            callback();
            ControlFlow::Continue(())
        });
        (generated, session)
    };
    let good = open_image(&image, folder.path());
    let tokens = generate(&good, &mut || {}).0.expect("good").tokens;
    drop(good);
    let third = tokens[2];
    let place = [third as usize, 0];
    image.set("emb.weight", &[place], f32::NEG_INFINITY);
    let model = open_image(&image, folder.path());
    let mut n = 0;
    let (generated, mut session) = generate(&model, &mut || n += 1);
    is_refused(
        generated,
        &format!("tensor emb.weight: -inf at [{third}, 0]"),
    );
    assert!(
        (1..=3).contains(&n),
        "{n}: the third token is the first bad one"
    );
    check_session(&mut session, folder.path());
}

/// A limit of memory drops pages behind whoever reads them, also when the weights are looked through.
#[test]
fn weights_that_do_not_stay_in_memory_are_told_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut image = image(Quant::F32, folder.path());
    image.set("blocks.2.ffn.key.weight", &[[200, 63]], f32::NAN);
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, &image.bytes).expect("can be written");
    let options = Options::new().threads(1);
    let error = Model::open(&path, &options.clone().memory_max(1)).expect_err("too little");
    let text = error.to_string();
    let needed = text.split("needs ").nth(1).expect("how much would do");
    let needed: u64 = needed
        .chars()
        .take_while(char::is_ascii_digit)
        .collect::<String>()
        .parse()
        .expect("a number");
    let model = Model::open(&path, &options.memory_max(needed)).expect("just enough");
    let words = "tensor blocks.2.ffn.key.weight: NaN at [200, 63]";
    is_refused(model.session().eval(&[1]).map(<[f32]>::to_vec), words);
}

/// Numbers that become infinite although no weight is, and states that say that they are.
#[test]
fn overflow_is_told_as_what_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut image = image(Quant::F32, folder.path());
    let places: Vec<_> = (0..64).map(|column| [5, column]).collect();
    image.set("blocks.1.att.output.weight", &places, f32::MAX);
    let model = open_image(&image, folder.path());
    is_refused(
        model.session().eval(&[1, 2, 3]).map(<[f32]>::to_vec),
        "no matrix has any that is not",
    );
}

#[test]
fn states_that_are_not_finite_are_neither_loaded_nor_saved() {
    let model = open(golden("small-safetensors"), Quant::Int8, 1);
    let mut session = model.session();
    session.eval(&[1, 2, 3]).expect("tokens");
    let mut good = vec![0; session.saved_state_size()];
    session.save_state_to(&mut good).expect("room");
    let header = good.len() - 4 * (session.state().as_slice().len() + model.n_vocab());
    let n_numbers = (good.len() - header) / 4;
    for at in [0, n_numbers / 2, n_numbers - 1] {
        for value in BAD {
            let mut bad = good.clone();
            bad[header + 4 * at..][..4].copy_from_slice(&value.to_le_bytes());
            let mut hash = xxhash_rust::xxh3::Xxh3::new();
            hash.update(&bad[..16]);
            hash.update(&bad[24..]);
            bad[16..24].copy_from_slice(&hash.digest().to_le_bytes());
            let before = session.state().clone();
            let error = session.load_state_from(&bad).expect_err("not finite");
            assert_eq!(error.kind(), ErrorKind::State);
            let text = format!("number {at} is {value}, expected finite numbers");
            assert!(error.to_string().contains(&text), "{error}");
            assert_eq!(session.state(), &before);
            // Logits of the caller's own.
            let mut logits = vec![0.0; model.n_vocab()];
            logits[at % model.n_vocab()] = value;
            let error = session.restore(&before, &logits).expect_err("not finite");
            assert_eq!(error.kind(), ErrorKind::Argument);
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("state");
            let error = before.save(&path, &logits).expect_err("not finite");
            assert_eq!(error.kind(), ErrorKind::State, "{error}");
            assert!(!path.exists());
        }
    }
    session
        .load_state_from(&good)
        .expect("the good one still is");
}

#[cfg(feature = "plugins")]
mod devices {
    use super::*;

    fn on(map: &str) -> Options {
        let program = std::env::current_exe().expect("a file");
        let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
        let plugin = program.with_file_name(format!("{prefix}cpuplug{suffix}"));
        std::env::set_var("RWKV_EDGE_PLUGIN_PATH", plugin);
        Options::new()
            .threads(1)
            .device_map(map.parse().expect("a map"))
    }

    /// What goes to a device passes by here, and never again.
    #[test]
    fn bad_weights_are_told_on_their_way_to_a_device() {
        let folder = tempfile::tempdir().expect("a folder");
        for quant in [Quant::F32, Quant::F16] {
            let mut image = image(quant, folder.path());
            image.set("blocks.1.att.key.weight", &[[3, 4]], f32::NAN);
            let path = folder.path().join("model.safetensors");
            std::fs::write(&path, &image.bytes).expect("can be written");
            for map in ["cpuplug", "data-parallel"] {
                let error = Model::open(&path, &on(map)).expect_err("not finite");
                assert_eq!(error.kind(), ErrorKind::Format);
                let text = error.to_string();
                assert!(text.contains("blocks.1.att.key.weight"), "{text}");
                assert!(text.contains("not a finite number at [3, 4]"), "{text}");
            }
        }
    }

    #[test]
    fn what_a_device_gives_is_looked_at() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut image = image(Quant::F32, folder.path());
        let places: Vec<_> = (0..64).map(|column| [5, column]).collect();
        image.set("blocks.0.att.output.weight", &places, f32::MAX);
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, &image.bytes).expect("can be written");
        for map in [
            "cpuplug",
            "cpuplug *1 -> cpu",
            "cpu *1 -> cpuplug",
            "data-parallel",
        ] {
            let model = Model::open(&path, &on(map)).expect("finite weights");
            for tokens in [&[1][..], &[1, 2, 3]] {
                let mut session = model.session();
                is_refused(session.eval(tokens).map(<[f32]>::to_vec), "results");
                check_session(&mut session, folder.path());
                let mut states = vec![model.new_state(); 3];
                let spans = states.iter_mut();
                let spans = spans.map(|state| Span::new(state, tokens, Output::Last));
                let mut hidden = vec![0.0; 3 * model.info().n_embd];
                let mut workspace = model.workspace(9);
                let mut spans: Vec<_> = spans.collect();
                is_refused(
                    model.forward_hidden(&mut workspace, &mut spans, &mut hidden),
                    "results",
                );
                assert!(states.iter().all(|state| state.check().is_err()));
            }
        }
    }
}
