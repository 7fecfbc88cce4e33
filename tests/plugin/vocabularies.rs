//! Heads of all sizes, behind any number of rows: what is chosen on the device is what is largest.

use std::ptr::null_mut;

use rwkv_edge_plugin as abi;

use crate::calls::{batch, options, table};
use crate::pieces::Numbers;
use crate::setup::{deviation, largest, short, within};

/// One token for each of `n` new states: the logits that they keep, and the tokens that were chosen.
fn chosen(
    table: &abi::Table,
    stage: *mut abi::Stage,
    n: usize,
    n_vocab: usize,
) -> (Vec<f32>, Vec<u32>) {
    let mut states = vec![null_mut(); n];
    let tokens: Vec<u32> = (0..n).map(|i| (i * 5 % n_vocab) as u32).collect();
    let (mut found, mut logits) = (vec![0_u32; n], vec![0.0_f32; n * n_vocab]);
    // SAFETY: structs of the sizes that they say, states of the stage, and room for a token and for logits a row.
    unsafe {
        for state in &mut states {
            assert_eq!((table.state_new)(stage, state), abi::OK);
        }
        let spans: Vec<abi::Span> = states
            .iter()
            .map(|state| abi::Span {
                states: state,
                n_rows: 1,
                rows: abi::ROWS_LAST,
            })
            .collect();
        let batch = abi::Batch {
            n_spans: n as u32,
            spans: spans.as_ptr(),
            n_rows: n as u32,
            write: abi::WRITE_TOKENS,
            tokens: tokens.as_ptr(),
            tokens_out: found.as_mut_ptr(),
            ..batch()
        };
        assert_eq!((table.forward)(&stage, 1, &batch), abi::OK);
        for (state, row) in states.into_iter().zip(logits.chunks_mut(n_vocab)) {
            assert_eq!(
                (table.state_logits)(state, row.as_mut_ptr(), n_vocab),
                abi::OK
            );
            (table.state_free)(state);
        }
    }
    (logits, found)
}

#[test]
fn chosen_tokens_are_the_largest_of_any_vocabulary() {
    let table = table();
    // The vocabularies of the Pile and World models, what is in between, and one that is no multiple of anything.
    let (vocabularies, n_rows): (&[u64], &[usize]) = match short() {
        None => (
            &[61, 320, 4096, 50_277, 65_536],
            &[1, 3, 16, 33, 64, 100, 300],
        ),
        // Few, but every kernel that can find the largest: devices choose it by how many rows and logits there are.
        Some(_) => (&[61, 50_277], &[1, 33, 200]),
    };
    for quant in [c"f16", c"int8"] {
        for &n_vocab in vocabularies {
            let mut options = options();
            options.quant = quant;
            options.set(c"n_vocab", n_vocab);
            options.set(c"n_embd", 64);
            options.set(c"n_attention", 64);
            options.set(c"n_hidden", 128);
            options.rest.rows_max = 512;
            let numbers = Numbers::new(options);
            let stage = numbers.stage(table, u64::MAX);
            let n_vocab = n_vocab as usize;
            let mut of_more_rows: Option<Vec<f32>> = None;
            for &n in n_rows.iter().rev() {
                let (logits, found) = chosen(table, stage, n, n_vocab);
                for (row, &token) in logits.chunks(n_vocab).zip(&found) {
                    assert_eq!(
                        row[token as usize],
                        row[largest(row) as usize],
                        "{n} rows of {n_vocab}"
                    );
                }
                // The first rows are the same however many there are.
                if let Some(more) = &of_more_rows {
                    let what = format!("quant {quant:?}, {n_vocab} logits, {n} rows");
                    within(&what, deviation(&logits, &more[..logits.len()]), 5e-2);
                }
                of_more_rows = Some(logits);
            }
            // SAFETY: its states are freed.
            unsafe { (table.stage_free)(stage) };
        }
    }
}
