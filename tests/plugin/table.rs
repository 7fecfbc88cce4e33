//! The table itself, called as a host with bugs would: every bad argument is an error with a text.

use std::ptr::{null, null_mut};

use rwkv_edge::Quant;
use rwkv_edge_plugin as abi;

use crate::calls::{
    batch, finished_stage, options, options_refused, refused, table, Options, Room, Tensor, A, D,
    H, TENSORS, V,
};
use crate::pieces::Numbers;
use crate::setup::device_info;

#[test]
fn bad_options_are_refused() {
    let table = table();
    type Change = fn(&mut Options);
    let (argument, unsupported) = (abi::ERROR_ARGUMENT, abi::ERROR_UNSUPPORTED);
    let mut changes: Vec<(&str, abi::Status, Change)> = vec![
        ("struct_size 0", argument, |o| o.rest.struct_size = 0),
        ("device 1000", abi::ERROR_DEVICE, |o| o.rest.device = 1000),
        ("n_embd 0", argument, |o| o.set(c"n_embd", 0)),
        ("n_vocab 0", argument, |o| o.set(c"n_vocab", 0)),
        ("n_attention 0", argument, |o| o.set(c"n_attention", 0)),
        ("n_hidden 0", argument, |o| o.set(c"n_hidden", 0)),
        ("n_layer 0", argument, |o| {
            o.set(c"n_layer", 0);
            o.rest.layer_count = 0;
        }),
        ("layers beyond the end", argument, |o| {
            o.rest.layer_count = 2
        }),
        ("first_layer beyond the end", argument, |o| {
            o.rest.first_layer = u32::MAX
        }),
        ("embedding in the middle", argument, |o| {
            o.set(c"n_layer", 2);
            o.rest.first_layer = 1;
        }),
        ("head in the middle", argument, |o| o.set(c"n_layer", 2)),
        ("nothing at all", argument, |o| {
            (o.rest.layer_count, o.rest.has_head) = (0, 0)
        }),
        ("rows_max 0", argument, |o| o.rest.rows_max = 0),
        ("two embeddings", argument, |o| o.rest.has_embedding = 2),
        ("two heads", argument, |o| o.rest.has_head = 2),
        ("row_width 0", argument, |o| o.rest.row_width = 0),
        ("rows wider than the model", argument, |o| {
            o.rest.row_width = D + 1
        }),
        ("a matrix of 2^64 numbers", unsupported, |o| {
            o.set(c"n_embd", u32::MAX.into())
        }),
        ("a vocabulary of 2^64", unsupported, |o| {
            o.set(c"n_vocab", u64::MAX)
        }),
        ("2^33 hidden units", unsupported, |o| {
            o.set(c"n_hidden", 1 << 33)
        }),
        ("2^32 layers more", unsupported, |o| {
            o.set(c"n_layer", (1 << 32) + 1);
            o.rest.has_head = 0;
        }),
    ];
    let quants: [(Quant, &str, Change); 3] = [
        (Quant::F32, "f32", |o| o.quant = c"f32"),
        (Quant::F16, "f16", |o| o.quant = c"f16"),
        (Quant::Int8, "int8", |o| o.quant = c"int8"),
    ];
    let has = device_info().quants;
    let missing = quants
        .into_iter()
        .filter(|(quant, ..)| !has.contains(quant));
    changes.extend(missing.map(|(_, what, change)| (what, unsupported, change)));
    for (what, expected, change) in changes {
        let mut options = options();
        change(&mut options);
        options_refused(table, &options, |_| {}, expected, what);
    }
    // SAFETY: NULL is what is tested.
    unsafe {
        refused(table, (table.device_count)(null_mut()), "NULL count");
        refused(table, (table.device_info)(0, null_mut()), "NULL info");
        refused(table, (table.device_limits)(0, null_mut()), "NULL limits");
        refused(
            table,
            (table.stage_estimate)(null(), null_mut()),
            "NULL options",
        );
        refused(
            table,
            options().changed(|_| {}, |o| (table.stage_new)(o, null_mut())),
            "NULL stage",
        );
        refused(
            table,
            (table.stage_new)(null(), &mut null_mut()),
            "NULL options",
        );
        refused(table, (table.state_count)(null(), &mut 0), "NULL options");
        refused(table, (table.stage_finish)(null_mut()), "NULL stage");
        refused(
            table,
            (table.stage_memory)(null(), null_mut()),
            "NULL stage",
        );
        refused(
            table,
            (table.state_new)(null_mut(), null_mut()),
            "NULL stage",
        );
        refused(table, (table.forward)(null(), 0, null()), "NULL batch");
        (table.stage_free)(null_mut());
        (table.state_free)(null_mut());
    }
}

#[test]
fn bad_tensors_are_refused() {
    let table = table();
    let room = Room::new();
    let stage = options().new_stage(table);
    let add = |change: fn(&mut Tensor)| {
        let mut tensor = room.tensor(c"att.key.weight");
        change(&mut tensor);
        tensor.send(table, stage)
    };
    refused(table, add(|t| t.rest.n_rows += 1), "a row too many");
    refused(table, add(|t| t.rest.n_cols = 0), "no columns");
    refused(table, add(|t| t.rest.n_cols = u64::MAX), "many columns");
    refused(table, add(|t| t.rest.struct_size = 4), "struct_size 4");
    // SAFETY: NULL is what is tested, and stages that do not have all they need.
    unsafe {
        let emb = room.tensor(TENSORS[0]);
        refused(table, emb.send(table, null_mut()), "NULL stage");
        refused(table, (table.stage_tensor)(stage, null()), "NULL tensor");
        refused(
            table,
            (table.stage_finish)(stage),
            "all tensors are missing",
        );
        for name in &TENSORS[1..] {
            assert_eq!(room.tensor(name).send(table, stage), abi::OK);
        }
        refused(table, (table.stage_finish)(stage), "one tensor is missing");
        let mut state = null_mut();
        refused(
            table,
            (table.state_new)(stage, &mut state),
            "a state before finish",
        );
        let batch = batch();
        let mut stages = [stage];
        refused(
            table,
            (table.forward)(stages.as_mut_ptr(), 1, &batch),
            "forward before finish",
        );
        assert_eq!(emb.send(table, stage), abi::OK);
        assert_eq!((table.stage_finish)(stage), abi::OK);
        refused(
            table,
            room.tensor(c"ln1.weight").send(table, stage),
            "after finish",
        );
        (table.stage_free)(stage);
    }
}

#[test]
fn bad_batches_are_refused() {
    let table = table();
    let stage = finished_stage(table);
    // SAFETY: valid stages, states and buffers, but for what is tested, which is refused before it is used.
    unsafe {
        let mut state = null_mut();
        assert_eq!((table.state_new)(stage, &mut state), abi::OK);
        let n_numbers = (2 * D + 3 * A) as usize;
        let mut numbers = vec![0.0_f32; n_numbers];
        assert_eq!(
            (table.state_read)(state, numbers.as_mut_ptr(), n_numbers),
            abi::OK
        );
        assert!(numbers[..n_numbers - A as usize].iter().all(|&x| x == 0.0));
        assert!(numbers[n_numbers - A as usize..]
            .iter()
            .all(|&x| x == -1e30));
        refused(
            table,
            (table.state_read)(state, numbers.as_mut_ptr(), 1),
            "count 1",
        );
        refused(
            table,
            (table.state_write)(state, numbers.as_ptr(), 1),
            "count 1",
        );
        refused(
            table,
            (table.state_write)(state, null(), n_numbers),
            "NULL numbers",
        );
        refused(
            table,
            (table.state_read)(null(), numbers.as_mut_ptr(), n_numbers),
            "NULL state",
        );
        refused(table, (table.state_copy)(state, null()), "NULL from");
        let mut logits = vec![0.0_f32; V as usize];
        refused(
            table,
            (table.state_logits)(state, logits.as_mut_ptr(), 3),
            "count 3",
        );

        let tokens = [1_u32, 2, V];
        let states = [state];
        let span = |n_rows, rows| abi::Span {
            states: states.as_ptr(),
            n_rows,
            rows,
        };
        let good = [span(2, abi::ROWS_LAST)];
        let mut stages = [stage];
        let stages = stages.as_mut_ptr();
        let mut batch = batch();
        (batch.n_spans, batch.spans, batch.n_rows) = (1, good.as_ptr(), 2);
        (batch.write, batch.tokens) = (abi::WRITE_LOGITS, tokens.as_ptr());
        batch.numbers = logits.as_mut_ptr();
        let run = |change: &dyn Fn(&mut abi::Batch)| {
            let mut changed = batch;
            change(&mut changed);
            (table.forward)(stages, 1, &changed)
        };
        assert_eq!(run(&|_| {}), abi::OK);
        let mut again = vec![0.0_f32; V as usize];
        assert_eq!(
            (table.state_logits)(state, again.as_mut_ptr(), V as usize),
            abi::OK
        );
        assert_eq!(again, logits);
        refused(table, run(&|b| b.struct_size = 8), "struct_size 8");
        refused(table, run(&|b| b.n_rows = 3), "rows that no span has");
        refused(table, run(&|b| b.n_rows = 0), "no rows");
        refused(table, run(&|b| b.tokens = null()), "NULL tokens");
        refused(table, run(&|b| b.spans = null()), "NULL spans");
        refused(table, run(&|b| b.write = 7), "an unknown write");
        refused(table, run(&|b| b.numbers = null_mut()), "NULL numbers");
        refused(table, (table.forward)(stages, 0, &batch), "no stages");
        let unknown = [span(3, abi::ROWS_LAST)];
        let run_spans = |spans: &[abi::Span], n_rows| {
            run(&|b| (b.n_spans, b.spans, b.n_rows) = (spans.len() as u32, spans.as_ptr(), n_rows))
        };
        refused(
            table,
            run_spans(&unknown, 3),
            "a token beyond the vocabulary",
        );
        refused(
            table,
            run_spans(&[span(5, 1)], 5),
            "more rows than rows_max",
        );
        refused(table, run_spans(&[span(0, 0)], 0), "a span without rows");
        refused(
            table,
            run_spans(&[span(2, 9)], 2),
            "an unknown choice of rows",
        );
        refused(
            table,
            run_spans(&[span(1, 0), span(1, 0)], 2),
            "a state twice",
        );
        let nothing = abi::Span {
            states: null(),
            ..span(2, 1)
        };
        refused(table, run_spans(&[nothing], 2), "NULL states");
        // It still works, as if nothing had been tried.
        assert_eq!((table.state_free)(state), ());
        let mut state = null_mut();
        assert_eq!((table.state_new)(stage, &mut state), abi::OK);
        let states = [state];
        let spans = [abi::Span {
            states: states.as_ptr(),
            ..span(2, abi::ROWS_LAST)
        }];
        assert_eq!(run_spans(&spans, 2), abi::OK);
        assert_eq!(again, logits);
        (table.state_free)(state);
        (table.stage_free)(stage);
    }
}

/// The host takes tokens alone as long as it can, and asks for the logits in the end: also of a copy.
#[test]
fn a_copy_of_a_state_has_its_logits() {
    let table = table();
    let stage = finished_stage(table);
    let new_state = || {
        let mut state = null_mut();
        // SAFETY: the stage is finished, and the other pointer is to a pointer.
        let status = unsafe { (table.state_new)(stage, &mut state) };
        assert_eq!(status, abi::OK);
        state
    };
    let feed = |state: *mut abi::State, token: u32, write: u32| {
        let (states, tokens) = ([state], [token]);
        let spans = [abi::Span {
            states: states.as_ptr(),
            n_rows: 1,
            rows: abi::ROWS_LAST,
        }];
        let (mut logits, mut chosen) = ([0.0_f32; V as usize], [0_u32]);
        let batch = abi::Batch {
            n_spans: 1,
            spans: spans.as_ptr(),
            n_rows: 1,
            write,
            tokens: tokens.as_ptr(),
            numbers: logits.as_mut_ptr(),
            tokens_out: chosen.as_mut_ptr(),
            ..batch()
        };
        // SAFETY: a stage and a state of it, and buffers for one row.
        let status = unsafe { (table.forward)([stage].as_ptr(), 1, &batch) };
        assert_eq!(status, abi::OK);
    };
    let logits_of = |state: *mut abi::State, what: &str| {
        let mut logits = [0.0_f32; V as usize];
        // SAFETY: a state of a stage with the head, and room for a row of logits.
        let status = unsafe { (table.state_logits)(state, logits.as_mut_ptr(), logits.len()) };
        assert_eq!(status, abi::OK, "{what}");
        logits
    };
    for write in [abi::WRITE_LOGITS, abi::WRITE_TOKENS] {
        let (from, used, fresh) = (new_state(), new_state(), new_state());
        feed(from, 1, write);
        feed(used, 5, write);
        let expected = logits_of(from, "of the state that is copied");
        assert_ne!(logits_of(used, "of another state"), expected);
        for (what, to) in [
            ("a copy over a state with logits", used),
            ("a copy over a new state", fresh),
        ] {
            // SAFETY: two states of one stage.
            let status = unsafe { (table.state_copy)(to, from) };
            assert_eq!(status, abi::OK, "{what}");
            assert_eq!(logits_of(to, what), expected, "{what}");
        }
        feed(from, 7, write);
        assert_ne!(logits_of(from, "of the state that was copied"), expected);
        for copy in [used, fresh] {
            assert_eq!(
                logits_of(copy, "of a copy"),
                expected,
                "it goes its own way"
            );
        }
        for state in [from, used, fresh] {
            // SAFETY: a state that is not used any more.
            unsafe { (table.state_free)(state) };
        }
    }
    // SAFETY: its states are freed.
    unsafe { (table.stage_free)(stage) };
}

/// Integers know no infinities, but what is made of them must.
#[test]
fn what_is_not_finite_is_seen() {
    let table = table();
    for quant in [c"f16", c"int8"] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut numbers = Numbers::new(Options { quant, ..options() });
            numbers.set(c"ln0.bias", 1, bad);
            for at_once in [1, 3] {
                let logits = numbers.logits(table, u64::from(H), at_once);
                assert!(
                    logits.iter().all(|logit| !logit.is_finite()),
                    "quant {quant:?}, {bad}, {at_once} at once: {logits:?}"
                );
            }
        }
    }
}
