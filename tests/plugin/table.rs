//! The table itself, called as a host with bugs would: every bad argument is an error with a text.

use std::ffi::{c_char, CStr};
use std::ptr::{null, null_mut};

use rwkv_edge::Quant;
use rwkv_edge_plugin as abi;

use crate::pieces::Numbers;
use crate::setup::{device, device_info, plugin};

pub const V: u32 = 11;
pub const D: u32 = 8;
pub const A: u32 = 8;
pub const H: u32 = 16;

/// The plugin's table. Its library stays loaded.
pub fn table() -> &'static abi::Table {
    device();
    // SAFETY: the engine has loaded this plugin before, and checked its table.
    unsafe {
        let library = libloading::Library::new(plugin().path).expect("loads");
        let entry = library
            .get::<abi::Entry>(abi::SYMBOL.as_bytes())
            .expect("a plugin");
        let table = entry(abi::VERSION);
        assert!(
            entry(abi::VERSION + 1).is_null(),
            "a version that there is not yet"
        );
        std::mem::forget(library);
        table.as_ref().expect("a table")
    }
}

fn last_error(table: &abi::Table) -> String {
    let mut text = [1 as c_char; 512];
    // SAFETY: the buffer has that many characters.
    let length = unsafe { (table.last_error)(text.as_mut_ptr(), text.len()) };
    assert!(length > 0, "an error has a text");
    // SAFETY: NUL-terminated by the header's promise.
    let text = unsafe { CStr::from_ptr(text.as_ptr()) };
    text.to_str().expect("UTF-8").to_owned()
}

/// Refused as what no correct host asks for.
#[track_caller]
pub fn refused(table: &abi::Table, status: abi::Status, what: &str) {
    refused_as(table, status, abi::ERROR_ARGUMENT, what);
}

#[track_caller]
fn refused_as(table: &abi::Table, status: abi::Status, expected: abi::Status, what: &str) {
    assert_eq!(
        status, expected,
        "{what}: see the statuses in docs/PLUGINS.md"
    );
    println!("{what}: {}", last_error(table));
}

pub fn options() -> abi::StageOptions {
    let index = device()
        .split(':')
        .nth(1)
        .map_or(0, |i| i.parse().expect("a number"));
    abi::StageOptions {
        struct_size: size_of::<abi::StageOptions>() as u32,
        device: index,
        n_vocab: V,
        n_embd: D,
        n_layer: 1,
        n_attention: A,
        n_hidden: H,
        first_layer: 0,
        layer_count: 1,
        has_embedding: 1,
        has_head: 1,
        quant: abi::F16,
        rows_max: 4,
        norm_epsilon: 1e-5,
        norm_out_epsilon: 1e-5,
        reserved: 0,
    }
}

/// Shape of a tensor of the stage above: (rows, columns, is a matrix).
pub fn shape(tensor: u32) -> (u64, u64, bool) {
    shape_of(&options(), tensor)
}

pub fn shape_of(o: &abi::StageOptions, tensor: u32) -> (u64, u64, bool) {
    let [v, d, a, h] = [o.n_vocab, o.n_embd, o.n_attention, o.n_hidden].map(u64::from);
    match tensor {
        abi::EMBEDDING | abi::HEAD => (v, d, true),
        abi::ATT_KEY | abi::ATT_VALUE | abi::ATT_RECEPTANCE => (a, d, true),
        abi::ATT_OUTPUT => (d, a, true),
        abi::FFN_KEY | abi::FFN_VALUE => (h, d, true),
        abi::FFN_RECEPTANCE => (d, d, true),
        abi::ATT_DECAY_LOG | abi::ATT_BONUS => (1, a, false),
        _ => (1, d, false),
    }
}

/// Numbers for any tensor: positive ones for vectors, and for matrices f16 of either sign, 1 to 2 in size, so
/// that no two tokens have the same logits.
pub struct Room {
    vector: Vec<f32>,
    matrix: Vec<u16>,
}

impl Room {
    const LEN: usize = 4096;

    pub fn new() -> Self {
        let scrambled = |i: u32| (i.wrapping_mul(0x9e37_79b9) >> 16) as u16;
        let matrix = (0..Self::LEN as u32).map(|i| 0x3c00 | scrambled(i) & 0x83ff);
        Room {
            vector: vec![0.5; Self::LEN],
            matrix: matrix.collect(),
        }
    }
}

/// In f16 or f32.
pub fn tensor(number: u32, room: &Room) -> abi::Tensor {
    let (n_rows, n_cols, is_matrix) = shape(number);
    abi::Tensor {
        struct_size: size_of::<abi::Tensor>() as u32,
        tensor: number,
        layer: 0,
        dtype: if is_matrix { abi::F16 } else { abi::F32 },
        n_rows,
        n_cols,
        first_row: 0,
        row_count: n_rows,
        values: match is_matrix {
            true => room.matrix.as_ptr().cast(),
            false => room.vector.as_ptr().cast(),
        },
        row_scales: null(),
        column_exponents: null(),
    }
}

pub fn new_stage(table: &abi::Table) -> *mut abi::Stage {
    let mut stage = null_mut();
    // SAFETY: valid options and a pointer to a pointer.
    let status = unsafe { (table.stage_new)(&options(), &mut stage) };
    assert_eq!(status, abi::OK);
    stage
}

/// A stage that is the whole model, with all its tensors.
fn finished_stage(table: &abi::Table) -> *mut abi::Stage {
    let room = Room::new();
    let stage = new_stage(table);
    // SAFETY: the stage was just made, and there is room for more numbers than any tensor has.
    unsafe {
        for number in 0..abi::TENSORS {
            assert_eq!((table.stage_tensor)(stage, &tensor(number, &room)), abi::OK);
        }
        assert_eq!((table.stage_finish)(stage), abi::OK);
    }
    stage
}

#[test]
fn bad_options_are_refused() {
    let table = table();
    type Change = fn(&mut abi::StageOptions);
    let (argument, unsupported) = (abi::ERROR_ARGUMENT, abi::ERROR_UNSUPPORTED);
    let mut changes: Vec<(&str, abi::Status, Change)> = vec![
        ("struct_size 0", argument, |o| o.struct_size = 0),
        ("device 1000", abi::ERROR_DEVICE, |o| o.device = 1000),
        ("n_embd 0", argument, |o| o.n_embd = 0),
        ("n_vocab 0", argument, |o| o.n_vocab = 0),
        ("n_attention 0", argument, |o| o.n_attention = 0),
        ("n_hidden 0", argument, |o| o.n_hidden = 0),
        ("n_layer 0", argument, |o| {
            (o.n_layer, o.layer_count) = (0, 0)
        }),
        ("layers beyond the end", argument, |o| o.layer_count = 2),
        ("first_layer beyond the end", argument, |o| {
            o.first_layer = u32::MAX
        }),
        ("embedding in the middle", argument, |o| {
            (o.n_layer, o.first_layer) = (2, 1);
        }),
        ("head in the middle", argument, |o| o.n_layer = 2),
        ("nothing at all", argument, |o| {
            (o.layer_count, o.n_layer, o.has_head) = (0, 1, 0)
        }),
        ("rows_max 0", argument, |o| o.rows_max = 0),
        ("quant 9", unsupported, |o| o.quant = 9),
        ("quant 32", unsupported, |o| o.quant = 32),
        ("a matrix of 2^64 numbers", unsupported, |o| {
            o.n_embd = u32::MAX
        }),
    ];
    let quants: [(Quant, &str, Change); 3] = [
        (Quant::F32, "f32", |o| o.quant = abi::F32),
        (Quant::F16, "f16", |o| o.quant = abi::F16),
        (Quant::Int8, "int8", |o| o.quant = abi::INT8),
    ];
    let has = device_info().quants;
    let missing = quants
        .into_iter()
        .filter(|(quant, ..)| !has.contains(quant));
    changes.extend(missing.map(|(_, what, change)| (what, unsupported, change)));
    for (what, expected, change) in changes {
        let mut options = options();
        change(&mut options);
        let mut memory = abi::Memory {
            struct_size: size_of::<abi::Memory>() as u32,
            ..abi::Memory::default()
        };
        let mut stage = null_mut();
        // SAFETY: structs of the sizes that they say, or smaller than what they say is never read.
        unsafe {
            let status = (table.stage_estimate)(&options, &mut memory);
            refused_as(table, status, expected, what);
            let status = (table.stage_new)(&options, &mut stage);
            refused_as(table, status, expected, what);
        }
        assert!(
            stage.is_null(),
            "{what}: an output is written only on success"
        );
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
            (table.stage_new)(&options(), null_mut()),
            "NULL stage",
        );
        refused(
            table,
            (table.stage_new)(null(), &mut null_mut()),
            "NULL options",
        );
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
    let stage = new_stage(table);
    let add = |change: fn(&mut abi::Tensor)| {
        let mut tensor = tensor(abi::ATT_KEY, &room);
        change(&mut tensor);
        // SAFETY: there is room for more numbers than any of these tensors has.
        unsafe { (table.stage_tensor)(stage, &tensor) }
    };
    refused(table, add(|t| t.n_rows += 1), "a row too many");
    refused(table, add(|t| t.n_cols = 0), "no columns");
    refused(table, add(|t| t.dtype = abi::F32), "another dtype");
    refused(table, add(|t| t.dtype = abi::INT8), "another dtype");
    refused(table, add(|t| t.layer = 1), "a layer that it has not");
    refused(table, add(|t| t.tensor = abi::TENSORS), "an unknown tensor");
    refused(table, add(|t| t.values = null()), "no values");
    refused(table, add(|t| t.struct_size = 4), "struct_size 4");
    // SAFETY: as above, and NULL is what is tested.
    unsafe {
        refused(
            table,
            (table.stage_tensor)(null_mut(), &tensor(0, &room)),
            "NULL stage",
        );
        refused(table, (table.stage_tensor)(stage, null()), "NULL tensor");
        refused(
            table,
            (table.stage_finish)(stage),
            "all tensors are missing",
        );
        for number in 1..abi::TENSORS {
            assert_eq!((table.stage_tensor)(stage, &tensor(number, &room)), abi::OK);
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
        assert_eq!((table.stage_tensor)(stage, &tensor(0, &room)), abi::OK);
        assert_eq!((table.stage_finish)(stage), abi::OK);
        refused(
            table,
            (table.stage_tensor)(stage, &tensor(3, &room)),
            "after finish",
        );
        (table.stage_free)(stage);
    }
}

pub fn batch() -> abi::Batch {
    abi::Batch {
        struct_size: size_of::<abi::Batch>() as u32,
        n_spans: 0,
        spans: null(),
        n_rows: 0,
        write: abi::WRITE_NOTHING,
        tokens: null(),
        residual: null(),
        numbers: null_mut(),
        tokens_out: null_mut(),
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
    for quant in [abi::F16, abi::INT8] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut numbers = Numbers::new(abi::StageOptions { quant, ..options() });
            numbers.values[abi::NORM_IN_BIAS as usize][4..8].copy_from_slice(&bad.to_le_bytes());
            for at_once in [1, 3] {
                let logits = numbers.logits(table, u64::from(H), at_once);
                assert!(
                    logits.iter().all(|logit| !logit.is_finite()),
                    "quant {quant}, {bad}, {at_once} at once: {logits:?}"
                );
            }
        }
    }
}
