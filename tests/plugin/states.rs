//! States on devices: the same value as on the CPU, whatever is done with it.

use std::ops::ControlFlow;
use std::panic::{catch_unwind, AssertUnwindSafe};

use rwkv_edge::{
    ErrorKind, GenerateOptions, Output, Quant, Sampler, SamplerOptions, Session, Span,
};

use crate::setup::{cases, deviation, device, open_on, within, DECODE_BOUND};

/// Feeds tokens one by one.
fn feed(session: &mut Session, tokens: &[u32]) -> Vec<f32> {
    for &token in tokens {
        session.eval(&[token]).expect("a valid token");
    }
    session.logits().expect("fed").to_vec()
}

#[test]
fn states_move_between_device_and_cpu() {
    for case in cases() {
        let tokens = case.first(60);
        let (head, rest) = tokens.split_at(tokens.len() / 3);
        let (middle, rest) = rest.split_at(rest.len() / 2);
        let cpu = open_on("cpu", case.path.clone(), Quant::F16);
        let model = open_on(&device(), case.path.clone(), Quant::F16);
        let mut straight = cpu.session();
        for part in [head, middle, rest] {
            feed(&mut straight, part);
        }
        for (first, second) in [(&cpu, &model), (&model, &cpu)] {
            let mut a = first.session();
            feed(&mut a, head);
            let mut b = second.session();
            b.restore(a.state(), a.logits().expect("fed"))
                .expect("the same checkpoint");
            feed(&mut b, middle);
            a.restore(b.state(), &[]).expect("the same checkpoint");
            let found = feed(&mut a, rest);
            let what = format!("{} a state that moved twice", case.name);
            let expected = straight.logits().expect("fed");
            within(&what, deviation(&found, expected), DECODE_BOUND);
            assert_eq!(a.state().n_tokens(), straight.state().n_tokens());
            let numbers = deviation(a.state().as_slice(), straight.state().as_slice());
            within(&format!("{} its numbers", case.name), numbers, DECODE_BOUND);
        }
        // One and the same state, without a session between.
        let mut state = model.new_state();
        let mut logits = vec![0.0; model.n_vocab()];
        for (model, tokens) in [(&model, head), (&cpu, middle), (&model, rest)] {
            let mut workspace = model.workspace(1);
            let span = rwkv_edge::Span::new(&mut state, tokens, rwkv_edge::Output::Last);
            model
                .forward(&mut workspace, &mut [span], &mut logits)
                .expect("valid");
        }
        let what = format!("{} one state on both", case.name);
        within(
            &what,
            deviation(&logits, straight.logits().expect("fed")),
            DECODE_BOUND,
        );
    }
}

#[test]
fn an_empty_state_is_that_of_the_cpu() {
    for case in cases() {
        let model = open_on(&device(), case.path.clone(), Quant::F16);
        let cpu = open_on("cpu", case.path, Quant::F16);
        let mut session = model.session();
        let first = session.eval(&case.tokens[..1]).expect("a token").to_vec();
        session.eval(&case.tokens[1..5]).expect("tokens");
        session.reset();
        assert_eq!(session.state(), &cpu.new_state());
        assert_eq!(session.logits(), None);
        let again = session.eval(&case.tokens[..1]).expect("a token");
        within("after a reset", deviation(again, &first), DECODE_BOUND);
    }
}

#[test]
fn clones_go_their_own_ways() {
    for case in cases() {
        let model = open_on(&device(), case.path.clone(), Quant::F16);
        let mut session = model.session();
        session.eval(&case.tokens[..8]).expect("tokens");
        let kept = session.state().clone();
        let numbers = kept.as_slice().to_vec();
        let first = session.eval(&[7]).expect("a token").to_vec();
        assert_ne!(session.state(), &kept);
        assert_eq!(kept.as_slice(), numbers, "a clone is not touched");
        session.restore(&kept, &[]).expect("its own state");
        assert_eq!(session.state(), &kept);
        let again = session.eval(&[7]).expect("a token");
        within("from a clone", deviation(again, &first), DECODE_BOUND);
        // A clone that outlives everything else.
        let memory: Vec<f32> = kept.memory(0).collect();
        drop((session, model));
        assert_eq!(kept.memory(0).collect::<Vec<f32>>(), memory);
        assert_eq!(kept.as_slice(), numbers);
    }
}

#[test]
fn saved_states_are_those_of_the_cpu() {
    let folder = tempfile::tempdir().expect("a folder");
    for case in cases() {
        let path = folder.path().join(case.name);
        let cpu = open_on("cpu", case.path.clone(), Quant::F16);
        let model = open_on(&device(), case.path, Quant::F16);
        let mut session = model.session();
        session.eval(&case.tokens[..8]).expect("tokens");
        session.save_state(&path).expect("can be written");
        let mut bytes = vec![0; session.saved_state_size()];
        session.save_state_to(&mut bytes).expect("room");
        assert_eq!(std::fs::read(&path).expect("written"), bytes);
        let next = session.eval(&[2]).expect("a token").to_vec();

        let mut other = model.session();
        other.eval(&[1, 2, 3]).expect("tokens");
        other.load_state(&path).expect("the same model");
        assert_eq!(other.state().n_tokens(), 8);
        let found = other.eval(&[2]).expect("a token");
        within(
            "a saved state on the device",
            deviation(found, &next),
            DECODE_BOUND,
        );
        let mut on_cpu = cpu.session();
        on_cpu.load_state(&path).expect("the same checkpoint");
        let what = format!("{} a saved state on the CPU", case.name);
        within(
            &what,
            deviation(on_cpu.eval(&[2]).expect("a token"), &next),
            case.prefill_bound,
        );
        let mut with_all = Session::with_all_memory(&model).expect("memory").0;
        with_all.load_state_from(&bytes).expect("the same model");
        let found = with_all.eval(&[2]).expect("a token");
        within("with all memory", deviation(found, &next), DECODE_BOUND);
    }
}

#[test]
fn what_is_refused_changes_nothing() {
    let case = cases().remove(1);
    let model = open_on(&device(), case.path, Quant::F16);
    let mut session = model.session();
    session.eval(&[1, 2, 3]).expect("valid tokens");
    let (state, logits) = (
        session.state().clone(),
        session.logits().map(<[f32]>::to_vec),
    );
    let n_vocab = model.n_vocab() as u32;
    session
        .eval(&[4, n_vocab])
        .expect_err("an id beyond the vocabulary");
    session.eval(&[]).expect_err("no tokens");
    assert_eq!(session.state(), &state);
    assert_eq!(session.logits().map(<[f32]>::to_vec), logits);
    let mut other = model.session();
    other.restore(&state, &[]).expect("its own");
    let found = other.eval(&[9]).expect("a token");
    let expected = session.eval(&[9]).expect("a token");
    within("after refusals", deviation(found, expected), DECODE_BOUND);
}

#[test]
fn workspaces_of_other_models_are_refused_and_nothing_has_changed() {
    let mut cases = cases();
    let d = device();
    let maps = ["cpu", &d, &format!("{d} *1 -> cpu"), "data-parallel"];
    // Two of other sizes, of the same map and of another.
    let [case, other] = [cases.remove(0), cases.remove(0)];
    for map in maps {
        let model = open_on(map, case.path.clone(), Quant::F16);
        let mut state = model.new_state();
        let mut feed = |workspace: &mut rwkv_edge::Workspace, logits: &mut [f32]| {
            let span = Span::new(&mut state, &case.tokens[..3], Output::Last);
            model.forward(workspace, &mut [span], logits)
        };
        let mut logits = vec![7.0; model.n_vocab()];
        let others = maps.map(|map| open_on(map, other.path.clone(), Quant::F16));
        for other in others {
            let error = feed(&mut other.workspace(4), &mut logits).expect_err("another model's");
            assert_eq!(error.kind(), ErrorKind::Argument, "{map}");
            assert_eq!(
                error.to_string(),
                "the workspace belongs to another model",
                "{map}"
            );
        }
        assert!(logits.iter().all(|&x| x == 7.0));
        feed(&mut model.workspace(4), &mut logits).expect("its own");
        assert_eq!(state.n_tokens(), 3);
        let expected = model.session().eval(&case.tokens[..3]).map(<[f32]>::to_vec);
        let expected = expected.expect("tokens");
        within(
            &format!("{map} after refusals"),
            deviation(&logits, &expected),
            DECODE_BOUND,
        );
    }
}

/// A callback that panics leaves the session behind the tokens that were fed, with the logits that belong to them; and
/// no other state ever gets those logits.
#[test]
fn logits_belong_to_their_state_whatever_a_callback_does() {
    for case in cases() {
        let model = open_on(&device(), case.path.clone(), Quant::F16);
        let mut sampler =
            Sampler::new(SamplerOptions::default(), model.n_vocab()).expect("valid options");
        let mut session = model.session();
        session.eval(&case.tokens[..3]).expect("tokens");
        let logits = session.logits().expect("fed").to_vec();
        let state = session.state().clone();
        let mut saved = vec![0; session.saved_state_size()];
        session.save_state_to(&mut saved).expect("room");
        let options = |max_new_tokens| {
            GenerateOptions::new()
                .max_new_tokens(max_new_tokens)
                .ignore_end_of_text(true)
        };
        session
            .generate(&mut sampler, &options(2), |_| ControlFlow::Continue(()))
            .expect("tokens");
        let behind_two = session.logits().expect("fed").to_vec();
        let mut panics = |session: &mut Session| {
            session.restore(&state, &logits).expect("its own state");
            let mut n_calls = 0;
            let on_text = |_: &str| {
                n_calls += 1;
                // With it comes the third token, which is fed afterwards.
                assert!(n_calls < 3, "the test asked for it");
                ControlFlow::Continue(())
            };
            let generate = || session.generate(&mut sampler, &options(5), on_text);
            catch_unwind(AssertUnwindSafe(generate)).expect_err("the callback's panic");
        };
        panics(&mut session);
        assert_eq!(session.state().n_tokens(), 5);
        let found = session.logits().expect("fed");
        let what = format!("{} behind a panic", case.name);
        within(&what, deviation(found, &behind_two), DECODE_BOUND);

        for way in ["restored", "loaded", "fed from the start"] {
            panics(&mut session);
            match way {
                "restored" => session.restore(&state, &logits).expect("its own state"),
                "loaded" => session.load_state_from(&saved).expect("its own state"),
                _ => {
                    session.reset();
                    session.eval(&case.tokens[..3]).expect("tokens");
                }
            }
            let mut sampler =
                Sampler::new(SamplerOptions::default(), model.n_vocab()).expect("valid options");
            session
                .generate(&mut sampler, &options(0), |_| ControlFlow::Continue(()))
                .expect("no tokens");
            let what = format!("{} {way} behind a panic", case.name);
            let found = session.logits().expect("fed");
            within(&what, deviation(found, &logits), DECODE_BOUND);
        }
    }
}
