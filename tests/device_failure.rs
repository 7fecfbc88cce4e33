//! Devices that fail in the middle: the call is an error, and from then on either nothing has changed or the state
//! says that it is none any more. What a device does wrong is told to the plugin of plain CPU code by environment
//! variables, which all tests of this process share: they take turns.

mod common;

use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{golden, ids, json};
use rwkv_edge::{
    Error, ErrorKind, GenerateOptions, Model, Options, Output, Quant, Sampler, SamplerOptions,
    Session, Span, State,
};

const MODEL: &str = "deep-sharded";
/// The last has two calls of the plugin in every pass, with a layer of the CPU in between.
const MAPS: [&str; 3] = [
    "cpuplug",
    "cpuplug *1 -> cpu",
    "cpuplug *1 -> cpu *1 -> cpuplug:1",
];

/// One test's turn, in which nothing fails yet.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let program = std::env::current_exe().expect("a file");
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let plugin = program.with_file_name(format!("{prefix}cpuplug{suffix}"));
    std::env::set_var("RWKV_EDGE_PLUGIN_PATH", plugin);
    for variable in ["CPUPLUG_FAIL_FORWARD", "CPUPLUG_FAIL_STATES"] {
        std::env::remove_var(variable);
    }
    turn
}

/// Runs `work` while the device fails; `n` calls of `forward` go well.
fn while_forward_fails<T>(n: u64, work: impl FnOnce() -> T) -> T {
    std::env::set_var("CPUPLUG_FAIL_FORWARD", n.to_string());
    let result = work();
    std::env::remove_var("CPUPLUG_FAIL_FORWARD");
    result
}

/// Runs `work` while states can be neither read nor written nor copied.
fn while_states_fail<T>(work: impl FnOnce() -> T) -> T {
    std::env::set_var("CPUPLUG_FAIL_STATES", "1");
    let result = work();
    std::env::remove_var("CPUPLUG_FAIL_STATES");
    result
}

fn open_on(map: &str) -> Model {
    let options = Options::new()
        .quant(Quant::F16)
        .threads(2)
        .device_map(map.parse().expect("a map"));
    Model::open(golden(MODEL), &options).unwrap_or_else(|e| panic!("{map}: {e}"))
}

fn tokens(n: usize) -> Vec<u32> {
    let tokens = ids(&json(golden(MODEL).join("expected.json"))["input_ids"]);
    tokens.into_iter().cycle().take(n).collect()
}

#[track_caller]
fn is_lost<T>(result: Result<T, Error>) {
    let Err(error) = result else {
        panic!("expected an error");
    };
    assert_eq!(error.kind(), ErrorKind::Backend, "{error}");
    assert!(error.to_string().contains("the device is lost"), "{error}");
}

#[track_caller]
fn is_undefined<T>(result: Result<T, Error>) {
    let Err(error) = result else {
        panic!("expected an error");
    };
    assert_eq!(error.kind(), ErrorKind::Backend, "{error}");
    let text = "the state is undefined since a pass over it failed in its middle: reset it";
    assert!(error.to_string().contains(text), "{error}");
}

fn greedy(model: &Model) -> Sampler {
    Sampler::new(SamplerOptions::default(), model.n_vocab()).expect("valid options")
}

fn generate(session: &mut Session, n: usize) -> Result<Vec<u32>, Error> {
    let mut sampler = greedy(session.model());
    let options = GenerateOptions::new()
        .max_new_tokens(n)
        .ignore_end_of_text(true);
    let on_text = |_: &str| ControlFlow::Continue(());
    let generated = session.generate(&mut sampler, &options, on_text)?;
    Ok(generated.tokens)
}

/// Everything but what gives the session another state is refused, and writes nothing.
fn check_undefined(session: &mut Session) {
    is_undefined(session.eval(&[4]).map(<[f32]>::to_vec));
    is_undefined(session.eval_all(&[4, 5]));
    is_undefined(generate(session, 1));
    is_undefined(session.state().check());
    is_undefined(session.state().numbers());
    is_undefined(session.state().try_clone());
    is_undefined(session.state().clone().check());
    assert_eq!(session.logits(), None);
    let all_nan = |state: &State| state.as_slice().iter().all(|x| x.is_nan());
    assert!(all_nan(session.state()) && all_nan(&session.state().clone()));
    assert!(session.state().memory(0).all(|x| x.is_nan()));
    let folder = tempfile::tempdir().expect("a folder");
    is_undefined(session.save_state(folder.path().join("state")));
    assert_eq!(folder.path().read_dir().expect("a folder").count(), 0);
    let mut bytes = vec![7; session.saved_state_size()];
    is_undefined(session.save_state_to(&mut bytes));
    assert!(bytes.iter().all(|&byte| byte == 7));

    let model = session.model().clone();
    let mut other = model.session();
    let logits = other.eval(&[1, 2]).expect("tokens").to_vec();
    let numbers = other.state().as_slice().to_vec();
    is_undefined(other.restore(session.state(), &[]));
    assert_eq!(other.state().as_slice(), numbers);
    assert_eq!(other.logits(), Some(&logits[..]));
    // A pass over several states is refused before any of them has moved.
    let mut undefined = session.state().clone();
    let mut state = other.state().clone();
    let spans = &mut [&mut state, &mut undefined].map(|state| Span::new(state, &[3], Output::None));
    is_undefined(model.forward(&mut model.workspace(2), spans, &mut []));
    assert_eq!(state.as_slice(), numbers);
}

#[test]
fn a_state_is_undefined_behind_a_device_that_failed_until_it_gets_another() {
    let _turn = turn();
    for map in MAPS {
        let model = open_on(map);
        let n_calls = map.matches("cpuplug").count() as u64;
        let mut session = model.session();
        session.eval(&[1, 2, 3]).expect("tokens");
        let logits = session.logits().expect("fed").to_vec();
        let state = session.state().clone();
        let mut saved = vec![0; session.saved_state_size()];
        session.save_state_to(&mut saved).expect("room");
        let expected = session.eval(&[4]).expect("a token").to_vec();
        let mut fresh = model.session();
        let from_start = fresh.eval(&[4]).expect("a token").to_vec();

        let fail = |session: &mut Session| {
            for n in 0..n_calls {
                session.restore(&state, &logits).expect("its own state");
                is_lost(while_forward_fails(n, || {
                    session.eval(&[4]).map(<[f32]>::to_vec)
                }));
                check_undefined(session);
            }
        };
        fail(&mut session);
        session.restore(&state, &logits).expect("its own state");
        assert_eq!(session.state().as_slice(), state.as_slice(), "{map}");
        assert_eq!(session.logits(), Some(&logits[..]));
        assert_eq!(session.eval(&[4]).expect("a token"), expected, "{map}");

        fail(&mut session);
        session.load_state_from(&saved).expect("its own state");
        assert_eq!(session.logits(), Some(&logits[..]));
        assert_eq!(session.eval(&[4]).expect("a token"), expected, "{map}");

        fail(&mut session);
        session.reset();
        assert_eq!(session.logits(), None);
        assert_eq!(session.eval(&[4]).expect("a token"), from_start, "{map}");
    }
}

#[test]
fn a_prompt_that_fails_behind_its_first_piece_leaves_no_half_fed_state() {
    let _turn = turn();
    let model = open_on("cpuplug *1 -> cpu");
    let prompt = tokens(model.prefill_rows() + 1);
    let mut session = model.session();
    is_lost(while_forward_fails(1, || {
        session.eval(&prompt).map(<[f32]>::to_vec)
    }));
    check_undefined(&mut session);
    let (mut lasting, _) = Session::with_all_memory(&model).expect("memory");
    is_lost(while_forward_fails(1, || {
        lasting.eval(&prompt).map(<[f32]>::to_vec)
    }));
    check_undefined(&mut lasting);
    let mut state = model.new_state();
    let mut workspace = model.workspace(2);
    let mut logits = vec![0.0; 5 * model.n_vocab()];
    let mut feed = |state: &mut State| {
        let span = Span::new(state, &prompt[..5], Output::All);
        model.forward(&mut workspace, &mut [span], &mut logits)
    };
    is_lost(while_forward_fails(2, || feed(&mut state)));
    is_undefined(state.check());
    is_undefined(feed(&mut state));
    state.reset();
    feed(&mut state).expect("the device is back");
}

/// One of two devices fails. The caller cannot know whose states have moved, so none of them may pass for one.
#[test]
fn of_several_devices_with_the_whole_model_one_fails() {
    let _turn = turn();
    let model = open_on("data-parallel");
    let mut workspace = model.workspace(4);
    let mut states = [model.new_state(), model.new_state()];
    let mut feed = |states: &mut [State; 2]| {
        let mut spans = states
            .each_mut()
            .map(|state| Span::new(state, &[1, 2], Output::None));
        model.forward(&mut workspace, &mut spans, &mut [])
    };
    feed(&mut states).expect("tokens");
    is_lost(while_forward_fails(1, || feed(&mut states)));
    for state in &states {
        is_undefined(state.check());
    }
    states.iter_mut().for_each(State::reset);
    feed(&mut states).expect("the devices are back");
}

/// What a device refuses before the pass begins leaves everything as it was.
#[test]
fn a_state_that_cannot_be_written_to_the_device_is_as_it_was() {
    let _turn = turn();
    for map in MAPS {
        let model = open_on(map);
        let mut session = model.session();
        let expected = session.eval(&[1, 2]).expect("tokens").to_vec();
        session.reset();
        is_lost(while_states_fail(|| {
            session.eval(&[1, 2]).map(<[f32]>::to_vec)
        }));
        session.state().check().expect("nothing has changed");
        assert_eq!(session.state(), &model.new_state());
        let found = session.eval(&[1, 2]).expect("the device is back");
        assert_eq!(found, expected, "{map}");
    }
}

#[test]
fn a_state_that_the_device_does_not_give_is_no_copy() {
    let _turn = turn();
    for map in MAPS {
        let model = open_on(map);
        let mut session = model.session();
        session.eval(&[1, 2]).expect("tokens");
        let state = session.state().clone();
        let mut bytes = vec![7; session.saved_state_size()];
        session.eval(&[3]).expect("a token");
        let mut copy = model.new_state();
        while_states_fail(|| {
            is_lost(state.numbers());
            is_lost(state.try_clone());
            is_undefined(state.clone().check());
            copy.clone_from(&state);
            is_undefined(copy.check());
            is_lost(session.save_state_to(&mut bytes));
            assert!(bytes.iter().all(|&byte| byte == 7));
            is_lost(session.restore(&state, &[]));
        });
        check_undefined(&mut session);
        // The state itself is still there.
        session.restore(&state, &[]).expect("the device is back");
        assert_eq!(session.state(), &state, "{map}");
    }
}

#[test]
fn a_text_that_a_device_breaks_off_has_no_logits() {
    let _turn = turn();
    for map in MAPS {
        let model = open_on(map);
        let n_calls = map.matches("cpuplug").count() as u64;
        let mut session = model.session();
        session.eval(&[1, 2]).expect("tokens");
        let logits = session.logits().expect("fed").to_vec();
        let state = session.state().clone();
        let expected = generate(&mut session, 4).expect("tokens");
        let next = session.logits().expect("fed").to_vec();

        session.restore(&state, &logits).expect("its own state");
        is_lost(while_forward_fails(2 * n_calls, || {
            generate(&mut session, 4)
        }));
        check_undefined(&mut session);
        session.restore(&state, &logits).expect("its own state");
        assert_eq!(generate(&mut session, 4).expect("tokens"), expected);
        assert_eq!(session.logits(), Some(&next[..]), "{map}");
        if map.ends_with("cpu") {
            continue;
        }
        // The tokens were fed, but the logits stay on the device. Old ones must not stand in for them.
        session.restore(&state, &logits).expect("its own state");
        session.eval(&expected[..1]).expect("a token");
        is_lost(while_states_fail(|| generate(&mut session, 3)));
        assert_eq!(session.logits(), None);
        session.state().check().expect("all tokens were fed");
        let found = session.eval(&[5]).expect("the device is back").to_vec();
        session.restore(&state, &logits).expect("its own state");
        generate(&mut session, 4).expect("tokens");
        assert_eq!(session.eval(&[5]).expect("a token"), found, "{map}");
    }
}
