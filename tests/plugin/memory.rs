//! Memory of the device: told before, taken as told, given back.

use rwkv_edge::{Model, ProgressUnit, Quant, SyntheticSize};

use crate::setup::{cases, demo, device, device_info, open_on, options, short};

/// Bytes that a stage may keep for later states.
const SPARE_MAX: u64 = 64 << 20;

#[test]
fn what_is_told_beforehand_is_what_is_taken() {
    for case in cases() {
        for quant in [Quant::F16, Quant::Int8] {
            let model = open_on(&device(), case.path.clone(), quant);
            let mut session = model.session();
            session.eval(&case.tokens[..4]).expect("tokens");
            let stage = model.info().stages.remove(0);
            let (told, taken) = (stage.estimated_bytes, stage.allocated_bytes);
            println!("{} {quant}: told {told}, taken {taken} bytes", case.name);
            assert!(
                taken > 0 && taken <= told + told / 8 + (64 << 20),
                "{taken} of {told}"
            );
        }
    }
}

/// States come and go without a trace.
#[test]
fn states_give_their_memory_back() {
    let case = cases().remove(0);
    let model = open_on(&device(), case.path, Quant::F16);
    let allocated = || model.info().stages[0].allocated_bytes;
    let round = || {
        let mut sessions: Vec<_> = (0..8).map(|_| model.session()).collect();
        for session in &mut sessions {
            session.eval(&[1]).expect("a token");
        }
        let many = allocated();
        drop(sessions);
        many
    };
    // A plugin may keep memory of states for the next ones.
    round();
    let before = allocated();
    for _ in 0..short().unwrap_or(20) {
        round();
    }
    assert_eq!(allocated(), before);
}

/// Many at once leave no more behind than the next ones may want.
#[test]
fn most_memory_of_many_states_goes_back_to_the_device() {
    let case = demo();
    let model = open_on(&device(), case.path, Quant::F16);
    let allocated = || model.info().stages[0].allocated_bytes;
    let before = allocated();
    let mut session = model.session();
    session.eval(&[1]).expect("a token");
    let state_bytes = allocated() - before;
    assert!(state_bytes > 0);
    for _ in 0..2 {
        let n = SPARE_MAX * 3 / 2 / state_bytes;
        let copies: Vec<_> = (0..n).map(|_| session.state().clone()).collect();
        let expected = session.state().as_slice();
        assert!(copies[n as usize / 2].as_slice() == expected);
        assert!(allocated() > before + SPARE_MAX, "copies are on the device");
        drop(copies);
        let left = allocated() - before;
        println!("{n} states of {state_bytes} bytes leave {left} bytes");
        assert!(left <= SPARE_MAX + state_bytes, "{left}");
    }
    session.eval(&[2]).expect("a token");
}

/// A model of a published size, if the device has room.
#[test]
fn a_synthetic_model_fits() {
    if short().is_some() || device_info().free_bytes < 2 << 30 || device().starts_with("cpuplug") {
        crate::skipped::skipped("a device that is faster than plain code");
        return;
    }
    let options = options(&device(), Quant::F16);
    let mut last = None;
    let model = Model::synthetic(SyntheticSize::M169, &options, &mut |progress| {
        last = Some(progress);
    });
    let model = model.expect("fits");
    let last = last.expect("matrices were made");
    assert!(
        last.is_finished() && last.unit == ProgressUnit::Weights,
        "{last:?}"
    );
    let mut session = model.session();
    session
        .eval(&(0..600).collect::<Vec<u32>>())
        .expect("tokens");
    let logits = session.eval(&[5]).expect("a token");
    assert!(logits.iter().all(|x| x.is_finite()));
}
