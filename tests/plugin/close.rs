//! How close a device is to the CPU with the same weights.

use rwkv_edge::{Output, Quant, Span};

use crate::setup::{
    cases, demo, deviation, device, distance, float_quants, in_pieces, largest, open_on, short,
    standard_deviation, within, DECODE_BOUND,
};

#[test]
fn decode_is_that_of_the_cpu() {
    for case in cases() {
        let tokens = case.first(64);
        for quant in float_quants() {
            let expected = in_pieces(&open_on("cpu", case.path.clone(), quant), tokens, 1);
            let found = in_pieces(&open_on(&device(), case.path.clone(), quant), tokens, 1);
            let what = format!("{} {quant} decode", case.name);
            within(&what, deviation(&found, &expected), DECODE_BOUND);
        }
    }
}

#[test]
fn prefill_is_that_of_the_cpu() {
    for case in cases() {
        for quant in float_quants() {
            let cpu = open_on("cpu", case.path.clone(), quant);
            let model = open_on(&device(), case.path.clone(), quant);
            let expected = in_pieces(&cpu, &case.tokens, case.tokens.len());
            let found = in_pieces(&model, &case.tokens, case.tokens.len());
            let what = format!("{} {quant} prefill of {}", case.name, case.tokens.len());
            within(&what, deviation(&found, &expected), case.prefill_bound);
        }
    }
}

#[test]
fn prefill_in_pieces_is_decode() {
    for case in cases() {
        let tokens = case.first(96);
        let model = open_on(&device(), case.path.clone(), Quant::F16);
        let expected = in_pieces(&model, tokens, 1);
        for length in [2, 7, 16, 33, 64, 96] {
            let found = in_pieces(&model, tokens, length);
            let what = format!("{} f16 pieces of {length} against decode", case.name);
            within(&what, deviation(&found, &expected), case.prefill_bound);
        }
    }
}

/// Whatever int8 costs on the CPU it may cost on a device, which may use exacter activations.
#[test]
fn int8_is_as_exact_as_on_the_cpu() {
    for case in cases() {
        let tokens = case.first(64);
        let exact = in_pieces(&open_on("cpu", case.path.clone(), Quant::F32), tokens, 64);
        let cpu = in_pieces(&open_on("cpu", case.path.clone(), Quant::Int8), tokens, 64);
        let model = open_on(&device(), case.path.clone(), Quant::Int8);
        let bound = distance(&cpu, &exact);
        for length in [1, 64] {
            let found = in_pieces(&model, tokens, length);
            let what = format!("{} int8 pieces of {length} against f32 (L2)", case.name);
            within(&what, distance(&found, &exact), 1.1 * bound);
            let what = format!("{} int8 pieces of {length} against the CPU (L2)", case.name);
            within(&what, distance(&found, &cpu), bound);
        }
    }
}

/// Both write the same text, or differ first where two tokens were nearly as likely.
#[test]
fn greedy_text_is_that_of_the_cpu() {
    let case = demo();
    let n = short().unwrap_or(200);
    for quant in [Quant::F16, Quant::Int8] {
        let cpu = open_on("cpu", case.path.clone(), quant);
        let model = open_on(&device(), case.path.clone(), quant);
        let prompt = model
            .tokenizer()
            .expect("has one")
            .encode("Ownership is")
            .expect("text");
        let (mut expected, mut found) = (cpu.session(), model.session());
        expected.eval(&prompt).expect("tokens");
        found.eval(&prompt).expect("tokens");
        for i in 0..n {
            let (a, b) = (
                expected.logits().expect("fed"),
                found.logits().expect("fed"),
            );
            let (token, other) = (largest(a), largest(b));
            if token != other {
                let gap = f64::from(a[token as usize] - a[other as usize]) / standard_deviation(a);
                println!(
                    "{quant}: token {i} differs where the gap is {gap:.2e} standard deviations"
                );
                let bound = match quant {
                    Quant::Int8 => 0.06,
                    _ => 2.0 * case.prefill_bound,
                };
                assert!(gap <= bound, "{quant}: token {i}: a gap of {gap}");
                break;
            }
            expected.eval(&[token]).expect("a token");
            found.eval(&[token]).expect("a token");
            if i + 1 == n {
                println!("{quant}: the first {n} tokens are the same");
            }
        }
    }
}

#[test]
fn hidden_rows_are_those_of_the_cpu() {
    for case in cases() {
        let tokens = case.first(40);
        let rows = |map: &str| {
            let model = open_on(map, case.path.clone(), Quant::F16);
            let mut state = model.new_state();
            let mut rows = vec![0.0; tokens.len() * model.info().n_embd];
            let span = Span::new(&mut state, tokens, Output::All);
            let mut workspace = model.workspace(64);
            model
                .forward_hidden(&mut workspace, &mut [span], &mut rows)
                .expect("valid tokens");
            rows
        };
        let what = format!("{} f16 hidden rows", case.name);
        within(
            &what,
            deviation(&rows(&device()), &rows("cpu")),
            case.prefill_bound,
        );
    }
}

#[test]
fn chosen_tokens_are_those_with_the_largest_logits() {
    for case in cases() {
        let tokens = case.first(40);
        for map in ["cpu", &device()] {
            let model = open_on(map, case.path.clone(), Quant::F16);
            let n_vocab = model.n_vocab();
            for length in [1, 40] {
                let logits = in_pieces(&model, tokens, length);
                let expected: Vec<u32> = logits.chunks_exact(n_vocab).map(largest).collect();
                let mut found = vec![0; tokens.len()];
                let mut state = model.new_state();
                let mut workspace = model.workspace(length);
                for (tokens, found) in tokens.chunks(length).zip(found.chunks_mut(length)) {
                    let span = Span::new(&mut state, tokens, Output::All);
                    let result = model.forward_tokens(&mut workspace, &mut [span], found);
                    result.expect("valid tokens");
                }
                let rows = logits
                    .chunks_exact(n_vocab)
                    .zip(found.iter().zip(&expected));
                for (row, (&found, &expected)) in rows {
                    // Where two are nearly as large, another pass may see the other one.
                    let gap = f64::from(row[expected as usize] - row[found as usize]);
                    let gap = gap / standard_deviation(row);
                    assert!(
                        gap <= DECODE_BOUND,
                        "{} on {map}: a gap of {gap}",
                        case.name
                    );
                }
            }
        }
    }
}

/// `generate` leaves the logits on the device, and has them in the end.
#[test]
fn generated_texts_end_with_their_logits() {
    use rwkv_edge::{GenerateOptions, Sampler, SamplerOptions};
    let case = demo();
    let model = open_on(&device(), case.path, Quant::F16);
    let prompt = &case.tokens[..8];
    let options = GenerateOptions::new().max_new_tokens(16);
    let mut sampler = Sampler::new(SamplerOptions::default(), model.n_vocab()).expect("valid");
    let mut session = model.session();
    session.eval(prompt).expect("tokens");
    let generated = session
        .generate(&mut sampler, &options, |_| {
            std::ops::ControlFlow::Continue(())
        })
        .expect("tokens");
    let mut by_hand = model.session();
    by_hand.eval(prompt).expect("tokens");
    for &token in &generated.tokens {
        assert_eq!(largest(by_hand.logits().expect("fed")), token);
        by_hand.eval(&[token]).expect("a token");
    }
    assert_eq!(generated.tokens.len(), 16);
    let (found, expected) = (session.logits(), by_hand.logits());
    let difference = deviation(found.expect("fed"), expected.expect("fed"));
    within("logits behind a text", difference, DECODE_BOUND);
    let (found, expected) = (session.state().as_slice(), by_hand.state().as_slice());
    within(
        "state behind a text",
        deviation(found, expected),
        DECODE_BOUND,
    );
}
