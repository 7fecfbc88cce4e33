//! A batch through a chain of stages, in one call.
//!
//! This module holds `unsafe` code: the call into the plugin is.

use std::ptr::{null, null_mut};
use std::sync::{Arc, PoisonError};

use rwkv_edge_plugin as abi;

use super::table::{struct_size, Stage, State};
use crate::error::Result;
use crate::networks::batch;

/// What goes into the first stage of a chain.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    /// One a row, where the stage has the embedding.
    Tokens(&'a [u32]),
    /// (rows, row_width)
    Rows(&'a [f32]),
}

/// What the last stage of a chain writes, and where to.
pub(crate) enum Output<'a> {
    Nothing,
    /// (rows, row_width)
    Rows(&'a mut [f32]),
    /// (rows asked for, n_embd)
    Hidden(&'a mut [f32]),
    /// (rows asked for, n_vocab)
    Logits(&'a mut [f32]),
    /// (rows asked for)
    Tokens(&'a mut [u32]),
}

/// One sequence's part of a batch.
pub(crate) struct SpanInput<'a> {
    /// One a stage of the chain.
    pub(crate) states: &'a mut [State],
    pub(crate) n_rows: usize,
    pub(crate) rows: batch::Output,
}

/// Memory for the pointers of one call, kept so that no call allocates.
#[derive(Default)]
pub(crate) struct BatchScratch {
    spans: Vec<abi::Span>,
    states: Vec<*mut abi::State>,
    stages: Vec<*mut abi::Stage>,
}

// SAFETY: between calls the pointers are never read: `forward` begins by clearing them.
unsafe impl Send for BatchScratch {}
// SAFETY: as above.
unsafe impl Sync for BatchScratch {}

/// Feeds a batch to consecutive stages of one plugin.
///
/// # Errors
/// What the plugin says; the states are undefined then.
///
/// # Panics
/// When lengths do not agree with the rows, a state is of another stage than the chain's, or stages are
/// not of one plugin: bugs of the caller.
pub(crate) fn forward<'a>(
    stages: &[Arc<Stage>],
    scratch: &mut BatchScratch,
    spans: impl Iterator<Item = SpanInput<'a>>,
    input: Input<'_>,
    output: Output<'_>,
) -> Result<()> {
    let (first, last) = (&stages[0], &stages[stages.len() - 1]);
    let plugin = first.plugin;
    scratch.stages.clear();
    scratch.states.clear();
    scratch.spans.clear();
    for stage in stages {
        assert!(std::ptr::eq(stage.plugin, plugin), "stages of one plugin");
        scratch.stages.push(stage.raw);
    }
    let (mut n_rows, mut n_asked) = (0, 0);
    for span in spans {
        assert!(span.n_rows > 0 && span.states.len() == stages.len());
        for (state, stage) in span.states.iter_mut().zip(stages) {
            assert!(Arc::ptr_eq(&state.stage, stage), "a state of this stage");
            let raw = state.raw.get_mut().unwrap_or_else(PoisonError::into_inner);
            scratch.states.push(raw.0);
        }
        let (rows, asked) = match span.rows {
            batch::Output::None => (abi::ROWS_NONE, 0),
            batch::Output::Last => (abi::ROWS_LAST, 1),
            batch::Output::All => (abi::ROWS_ALL, span.n_rows),
        };
        n_rows += span.n_rows;
        n_asked += asked;
        scratch.spans.push(abi::Span {
            states: null(),
            n_rows: span.n_rows as u32,
            rows,
        });
    }
    // Only now does the memory of `states` not move any more.
    let of_spans = scratch.states.chunks_exact(stages.len());
    for (span, states) in scratch.spans.iter_mut().zip(of_spans) {
        span.states = states.as_ptr();
    }
    let mut batch = abi::Batch {
        struct_size: struct_size::<abi::Batch>(),
        n_spans: scratch.spans.len() as u32,
        spans: scratch.spans.as_ptr(),
        n_rows: n_rows as u32,
        write: abi::WRITE_NOTHING,
        tokens: null(),
        rows_in: null(),
        numbers: null_mut(),
        tokens_out: null_mut(),
    };
    let options = &first.options;
    assert!(n_rows > 0 && n_rows <= options.rows_max);
    match input {
        Input::Tokens(tokens) => {
            assert!(tokens.len() == n_rows && options.has_embedding);
            batch.tokens = tokens.as_ptr();
        }
        Input::Rows(rows) => {
            assert!(rows.len() == n_rows * options.row_width && !options.has_embedding);
            batch.rows_in = rows.as_ptr();
        }
    }
    let (write, numbers, expected) = match output {
        Output::Nothing => (abi::WRITE_NOTHING, None, 0),
        Output::Rows(out) => (abi::WRITE_ROWS, Some(out), n_rows * last.options.row_width),
        Output::Hidden(out) => (abi::WRITE_HIDDEN, Some(out), n_asked * last.n_embd),
        Output::Logits(out) => (abi::WRITE_LOGITS, Some(out), n_asked * last.n_vocab),
        Output::Tokens(out) => {
            assert!(out.len() == n_asked);
            batch.tokens_out = out.as_mut_ptr();
            (abi::WRITE_TOKENS, None, 0)
        }
    };
    batch.write = write;
    let mut numbers = numbers;
    if let Some(out) = &mut numbers {
        assert!(out.len() == expected);
        batch.numbers = out.as_mut_ptr();
    }
    let needs_head = [abi::WRITE_HIDDEN, abi::WRITE_LOGITS, abi::WRITE_TOKENS].contains(&write);
    assert!(!needs_head || last.options.has_head);
    // SAFETY: stages and states are valid, of one plugin and one another; nobody else uses the states,
    // which the spans borrow; every buffer has the length that rows and sizes give, as was asserted.
    let status = unsafe {
        (plugin.table().forward)(scratch.stages.as_ptr(), scratch.stages.len() as u32, &batch)
    };
    plugin.check(status, last.place())?;
    match numbers {
        Some(out) => last.check_finite(out),
        None => Ok(()),
    }
}
