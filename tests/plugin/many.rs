//! Many sequences at once, on one device and on several.

use rwkv_edge::{Model, Output, Quant, Span, State};

use crate::common::Random;
use crate::setup::{
    cases, deviation, device, devices, open_on, plugin_name, short, within, DECODE_BOUND,
};

/// Texts of different lengths, all different.
fn texts(n: usize, n_vocab: usize) -> Vec<Vec<u32>> {
    let mut random = Random(11);
    let text = |i: usize| {
        let length = 1 + (7 * i) % 13;
        (0..length)
            .map(|_| random.next() as u32 % n_vocab as u32)
            .collect()
    };
    (0..n).map(text).collect()
}

/// Feeds a text to each state and then `steps` tokens one by one, and gives the last rows of logits.
fn together(model: &Model, states: &mut [State], texts: &[Vec<u32>], steps: usize) -> Vec<f32> {
    let n_vocab = model.n_vocab();
    let mut workspace = model.workspace(512);
    let mut logits = vec![0.0; states.len() * n_vocab];
    for step in 0..=steps {
        let one = [(step * 31 % n_vocab) as u32];
        let mut spans: Vec<_> = states
            .iter_mut()
            .zip(texts)
            .map(|(state, text)| {
                Span::new(state, if step == 0 { text } else { &one }, Output::Last)
            })
            .collect();
        model
            .forward(&mut workspace, &mut spans, &mut logits)
            .expect("valid spans");
    }
    logits
}

/// Which of `n` sequences are run alone, too: a short run takes some.
fn alone(n: usize) -> impl Iterator<Item = usize> + Clone {
    (0..n).step_by(if short().is_some() { n / 4 } else { 1 })
}

/// The rows of logits of some sequences.
fn rows(logits: &[f32], of: impl Iterator<Item = usize>, n_vocab: usize) -> Vec<f32> {
    of.flat_map(|i| &logits[i * n_vocab..][..n_vocab])
        .copied()
        .collect()
}

#[test]
fn many_sequences_at_once_are_what_they_are_alone() {
    let (n, n_cases) = match short() {
        Some(_) => (40, 2),
        None => (64, usize::MAX),
    };
    for case in cases().into_iter().take(n_cases) {
        for quant in [Quant::F16, Quant::Int8] {
            let model = open_on(&device(), case.path.clone(), quant);
            let texts = texts(n, model.n_vocab());
            let mut states = vec![model.new_state(); n];
            let found = together(&model, &mut states, &texts, 3);
            let found = rows(&found, alone(n), model.n_vocab());
            let mut expected = Vec::new();
            for i in alone(n) {
                let mut state = [model.new_state()];
                expected.extend(together(&model, &mut state, &texts[i..=i], 3));
                assert_eq!(states[i].n_tokens(), state[0].n_tokens());
            }
            let bound = if quant == Quant::F16 {
                case.prefill_bound
            } else {
                0.06
            };
            let what = format!("{} {quant} {n} sequences at once", case.name);
            within(&what, deviation(&found, &expected), bound);
        }
    }
}

/// What is asked for may differ from span to span, and be nothing.
#[test]
fn spans_get_what_they_ask_for() {
    let case = cases().remove(0);
    let model = open_on(&device(), case.path, Quant::F16);
    let n_vocab = model.n_vocab();
    let lengths = [1, 17, 0, 5, 1, 40];
    use Output::{All, Last, None};
    let outputs = [Last, All, None, None, All, Last];
    let mut random = Random(9);
    let texts: Vec<Vec<u32>> = lengths
        .iter()
        .map(|&n| {
            (0..n)
                .map(|_| random.next() as u32 % n_vocab as u32)
                .collect()
        })
        .collect();
    let mut alone = Vec::new();
    for (tokens, output) in texts.iter().zip(outputs) {
        let mut session = model.session();
        let all = session.eval_all(tokens).expect("valid tokens");
        match output {
            None => {}
            Last => alone.extend_from_slice(session.logits().expect("fed")),
            All => alone.extend(all),
            other => panic!("{other:?} is not among the outputs"),
        }
    }
    for rows_max in [1, 3, 8, 64] {
        let mut states = vec![model.new_state(); texts.len()];
        let mut spans: Vec<_> = states
            .iter_mut()
            .zip(&texts)
            .zip(outputs)
            .map(|((state, tokens), output)| Span::new(state, tokens, output))
            .collect();
        let mut logits = vec![0.0; alone.len()];
        let mut workspace = model.workspace(rows_max);
        model
            .forward(&mut workspace, &mut spans, &mut logits)
            .expect("valid spans");
        let what = format!("{} spans, batches of {rows_max}", case.name);
        within(&what, deviation(&logits, &alone), case.prefill_bound);
    }
}

/// Many texts of one token in front of a long one: what is kept of each must not run into the others, in the
/// stage without the head, either.
#[test]
fn short_texts_and_a_long_one_share_a_batch() {
    let case = cases().remove(0);
    let n_layer = open_on("cpu", case.path.clone(), Quant::F16).info().n_layer;
    let map = format!("{} *{} -> {}", device(), n_layer / 2, device());
    let model = open_on(&map, case.path, Quant::F16);
    let mut texts: Vec<Vec<u32>> = (0..60).map(|i| vec![i]).collect();
    texts.push((0..100).map(|i| i * 7 % 61).collect());
    let mut states = vec![model.new_state(); texts.len()];
    let found = together(&model, &mut states, &texts, 2);
    let compared = alone(60).chain([60]);
    let found = rows(&found, compared.clone(), model.n_vocab());
    let mut expected = Vec::new();
    for i in compared {
        let mut state = [model.new_state()];
        expected.extend(together(&model, &mut state, &texts[i..=i], 2));
    }
    let what = format!("{} {map}, 60 short texts and a long one", case.name);
    within(&what, deviation(&found, &expected), case.prefill_bound);
}

#[test]
fn threads_share_a_model() {
    let case = cases().remove(0);
    let model = open_on(&device(), case.path, Quant::F16);
    let expected = model
        .session()
        .eval_all(&case.tokens)
        .expect("valid tokens");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..3 {
                    let found = model
                        .session()
                        .eval_all(&case.tokens)
                        .expect("valid tokens");
                    assert!(deviation(&found, &expected) <= DECODE_BOUND);
                }
            });
        }
    });
}

/// The whole model on every device, sequences spread over them.
#[test]
fn sequences_spread_over_devices_are_what_they_are_on_one() {
    if devices().len() < 2 {
        crate::skipped::skipped(&format!("a second device of {}", plugin_name()));
        return;
    }
    for case in cases() {
        let one = open_on(&device(), case.path.clone(), Quant::F16);
        let all = open_on("data-parallel", case.path.clone(), Quant::F16);
        assert_eq!(all.info().stages.len(), devices().len());
        let texts = texts(13, one.n_vocab());
        let expected = together(&one, &mut vec![one.new_state(); 13], &texts, 2);
        let mut states = vec![all.new_state(); 13];
        let found = together(&all, &mut states, &texts, 2);
        let what = format!("{} data-parallel", case.name);
        within(&what, deviation(&found, &expected), case.prefill_bound);
        // In another order, so that what belongs together lies apart.
        states.reverse();
        let mut interleaved = Vec::new();
        while let Some(state) = states.pop() {
            interleaved.push(state);
            if !states.is_empty() {
                interleaved.push(states.remove(0));
            }
        }
        let mut home: Vec<State> = interleaved.clone();
        let one_more: Vec<Vec<u32>> = (0..13).map(|i| vec![i]).collect();
        let found = together(&all, &mut interleaved, &one_more, 0);
        let expected = together(&one, &mut home, &one_more, 0);
        let what = format!("{} data-parallel, interleaved", case.name);
        within(&what, deviation(&found, &expected), case.prefill_bound);
    }
}
