//! States on devices: the same value as on the CPU, whatever is done with it.

use rwkv_edge::{Quant, Session};

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
            let span = rwkv_edge::Span {
                state: &mut state,
                tokens,
                output: rwkv_edge::Output::Last,
            };
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
