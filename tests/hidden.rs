//! What a forward pass leaves behind the output norm, and what a state remembers.

#![allow(clippy::unwrap_used)]

mod common;

use common::{golden, goldens, ids, json, open, Random};
use rwkv_edge::{ErrorKind, Model, Output, Quant, Span, State};

fn hidden(
    model: &Model,
    state: &mut State,
    tokens: &[u32],
    rows_max: usize,
    all: bool,
) -> Vec<f32> {
    let output = if all { Output::All } else { Output::Last };
    let n_rows = if all { tokens.len() } else { 1 };
    let mut out = vec![0.0; n_rows * model.info().n_embd];
    let span = Span::new(state, tokens, output);
    let mut workspace = model.workspace(rows_max);
    model
        .forward_hidden(&mut workspace, &mut [span], &mut out)
        .unwrap();
    out
}

/// The head's rows, read from the checkpoint: the only golden one that is a single safetensors file.
fn head_of_small() -> Vec<f32> {
    let bytes = std::fs::read(golden("small-safetensors").join("model.safetensors")).unwrap();
    let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + size]).unwrap();
    let offsets = &header["head.weight"]["data_offsets"];
    let [start, end] = [0, 1].map(|i| 8 + size + offsets[i].as_u64().unwrap() as usize);
    let floats = bytes[start..end].chunks_exact(4);
    floats
        .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
        .collect()
}

#[test]
fn hidden_rows_are_what_the_head_reads() {
    let model = open(golden("small-safetensors"), Quant::F32, 2);
    let expected = json(golden("small-safetensors").join("expected.json"));
    let tokens = ids(&expected["input_ids"]);
    let rows = hidden(&model, &mut model.new_state(), &tokens, 64, true);
    let logits = model.session().eval_all(&tokens).unwrap();
    let (n_embd, n_vocab) = (model.info().n_embd, model.n_vocab());
    let head = head_of_small();
    assert_eq!(
        (rows.len(), head.len()),
        (tokens.len() * n_embd, n_vocab * n_embd)
    );
    for (row, logits) in rows.chunks(n_embd).zip(logits.chunks(n_vocab)) {
        for (weights, &logit) in head.chunks(n_embd).zip(logits) {
            let dot: f64 = weights
                .iter()
                .zip(row)
                .map(|(&w, &x)| f64::from(w) * f64::from(x))
                .sum();
            assert!(
                (dot - f64::from(logit)).abs() < 1e-4,
                "{dot}, expected {logit}"
            );
        }
    }
}

/// Exactly for int8, whose sums are integers; the states end up the same too.
#[test]
fn cutting_tokens_into_batches_and_spans_changes_nothing() {
    let mut random = Random(11);
    for name in goldens() {
        let model = open(golden(name), Quant::Int8, 2);
        let n_embd = model.info().n_embd;
        let n_vocab = model.n_vocab() as u64;
        let tokens: Vec<u32> = (0..40).map(|_| (random.next() % n_vocab) as u32).collect();
        let mut whole_state = model.new_state();
        let whole = hidden(&model, &mut whole_state, &tokens, 64, true);
        for rows_max in [1, 3, 7] {
            let mut state = model.new_state();
            let rows = hidden(&model, &mut state, &tokens, rows_max, true);
            assert!(rows == whole && state == whole_state, "{name} {rows_max}");
            let mut state = model.new_state();
            let last = hidden(&model, &mut state, &tokens, rows_max, false);
            assert_eq!(last, whole[39 * n_embd..], "{name} {rows_max}");
        }
        // Several sequences at once, of different lengths, one of them none.
        let lengths = [13, 0, 1, 26];
        let mut states = vec![model.new_state(); 4];
        let mut spans: Vec<Span<'_>> = states
            .iter_mut()
            .zip(lengths)
            .map(|(state, n)| Span::new(state, &tokens[..n], Output::All))
            .collect();
        let mut together = vec![0.0; 40 * n_embd];
        let mut workspace = model.workspace(16);
        model
            .forward_hidden(&mut workspace, &mut spans, &mut together)
            .unwrap();
        let mut rows = together.chunks(n_embd);
        for n in lengths {
            let own: Vec<f32> = rows.by_ref().take(n).flatten().copied().collect();
            assert_eq!(own, whole[..n * n_embd], "{name} {n}");
        }
    }
}

#[test]
fn wrong_arguments_change_nothing() {
    let model = open(golden("small-safetensors"), Quant::Int8, 1);
    let mut state = model.new_state();
    let mut workspace = model.workspace(4);
    let mut out = vec![0.0; 2 * model.info().n_embd];
    for (tokens, part) in [(&[1u32, 2, 3][..], "hidden values"), (&[1, 9999], "9999")] {
        let span = Span::new(&mut state, tokens, Output::All);
        let error = model
            .forward_hidden(&mut workspace, &mut [span], &mut out)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Argument);
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(state, model.new_state());
}

#[test]
fn a_state_remembers_the_weighted_mean_of_values() {
    let model = open(golden("odd-bin"), Quant::F32, 1);
    let info = model.info();
    let mut session = model.session();
    for layer in 0..info.n_layer {
        let empty: Vec<f32> = session.state().memory(layer).collect();
        assert_eq!(empty, vec![0.0; info.n_attention], "before the first token");
    }
    session.eval(&[5, 17, 3]).unwrap();
    let layer_len = 2 * info.n_embd + 3 * info.n_attention;
    for (layer, numbers) in session.state().as_slice().chunks(layer_len).enumerate() {
        let wkv = &numbers[2 * info.n_embd..];
        let (numerator, denominator) = (&wkv[..info.n_attention], &wkv[info.n_attention..]);
        let memory: Vec<f32> = session.state().memory(layer).collect();
        let expected = numerator.iter().zip(denominator).map(|(n, d)| n / d);
        assert!(memory.iter().copied().eq(expected) && memory.iter().any(|x| x.abs() > 1e-3));
    }
}
