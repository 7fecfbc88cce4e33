//! A batch through a chain of stages: checks, the batch's arrays, and the way from device to device.
//!
//! A call takes a slot on every stage, puts its work into the stages' streams one after the other, and waits
//! for the last. A stage waits for the one before it on the device, not on the host, and while it works,
//! other calls may put theirs into the stages before: several callers keep several devices busy.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use rwkv_edge_plugin as abi;

use crate::error::{Failure, Result};
use crate::layout::{padded, BatchLayout, CHUNK_ROWS, FEW_ROWS};
use crate::options::StageOptions;
use crate::pass::{n_chunks, Pass, Shape};
use crate::stage::{Slot, Stage, State, Work, PINNED_LOGITS_BYTES};

/// Recorded passes that a stage keeps at most.
const GRAPHS_MAX: usize = 256;

/// A span of the batch.
pub(crate) struct Span<'a> {
    /// One a stage.
    pub(crate) states: Vec<&'a State>,
    pub(crate) n_rows: u32,
    /// `ROWS_*`
    pub(crate) rows: u32,
}

/// What goes into the first stage.
pub(crate) enum Input<'a> {
    Tokens(&'a [u32]),
    /// (n_rows, n_embd)
    Rows(&'a [f32]),
}

/// What is wanted of the last.
pub(crate) enum Output<'a> {
    Nothing,
    /// (n_rows, n_embd)
    Rows(&'a mut [f32]),
    /// (rows asked for, n_embd)
    Hidden(&'a mut [f32]),
    /// (rows asked for, n_vocab)
    Logits(&'a mut [f32]),
    Tokens(&'a mut [u32]),
}

impl Output<'_> {
    fn is_of_rows(&self) -> bool {
        matches!(
            self,
            Output::Hidden(_) | Output::Logits(_) | Output::Tokens(_)
        )
    }
}

/// Rows that something is written for.
pub(crate) fn n_outputs(spans: &[Span<'_>]) -> usize {
    let of_span = |span: &Span<'_>| match span.rows {
        abi::ROWS_NONE => 0,
        abi::ROWS_LAST => 1,
        _ => span.n_rows as usize,
    };
    spans.iter().map(of_span).sum()
}

pub(crate) fn forward(
    stages: &[&Arc<Stage>],
    spans: &[Span<'_>],
    input: &Input<'_>,
    output: &mut Output<'_>,
) -> Result<()> {
    check_chain(stages, spans, input, output)?;
    let shape = shape(spans, output);
    let mut slots: Vec<Slot> = Vec::with_capacity(stages.len());
    let outcome = run(stages, spans, input, output, shape, &mut slots);
    if outcome.is_err() {
        // What was put into the streams must not outlive the call.
        for (stage, slot) in stages.iter().zip(&slots) {
            let work = stage.work();
            let _ = work.stream.wait();
            // The next pass takes largest logits up from 0.
            let rows = u64::from(stage.options.rows_max.max(FEW_ROWS));
            let _ = work.stream.clear(slot.places.best, 8 * rows);
        }
    }
    for (stage, slot) in stages.iter().zip(slots) {
        stage.give_slot(slot);
    }
    outcome
}

fn run(
    stages: &[&Arc<Stage>],
    spans: &[Span<'_>],
    input: &Input<'_>,
    output: &mut Output<'_>,
    shape: Shape,
    slots: &mut Vec<Slot>,
) -> Result<()> {
    for (index, stage) in stages.iter().enumerate() {
        // Slots are taken in the order of the chain, so that two calls cannot wait for each other.
        slots.push(stage.take_slot()?);
        let is_last = index + 1 == stages.len();
        let (before, slot) = slots.split_at_mut(index);
        let slot = &mut slot[0];
        let mut work = stage.work();
        write_batch(
            stage,
            index,
            slot,
            spans,
            input,
            is_last && output.is_of_rows(),
            shape,
        );
        match (before.last(), input) {
            (Some(previous), _) => {
                take_over(stages[index - 1], previous, stage, &work, slot, shape)?
            }
            (None, Input::Rows(rows)) => {
                let n = stage.options.n_embd;
                work.stream.upload_rows(slot.places.x, padded(n), rows, n)?;
            }
            (None, Input::Tokens(_)) => {}
        }
        let mut nothing = Output::Nothing;
        let wanted = if is_last { &mut *output } else { &mut nothing };
        one_stage(stage, &mut work, slot, shape, wanted)?;
        if shape.single && matches!(wanted, Output::Logits(_)) {
            start_logits(stage, &work, slot, spans)?;
        }
        slot.done.mark(&work.stream)?;
    }
    match slots.last() {
        None => Ok(()),
        Some(slot) => {
            slot.done.wait()?;
            read_results(slot, spans, shape, output)
        }
    }
}

/// Everything that could be wrong, before anything is changed.
fn check_chain(
    stages: &[&Arc<Stage>],
    spans: &[Span<'_>],
    input: &Input<'_>,
    output: &Output<'_>,
) -> Result<()> {
    let (Some(first), Some(last)) = (stages.first(), stages.last()) else {
        return Err(Failure::argument("no stages"));
    };
    for pair in stages.windows(2) {
        let (a, b) = (&pair[0].options, &pair[1].options);
        let facts = |o: &StageOptions| (o.n_embd, o.n_attention, o.n_hidden, o.n_layer, o.n_vocab);
        if a.has_head {
            return Err(Failure::argument(
                "a stage with the head in front of another",
            ));
        }
        if facts(a) != facts(b) || a.first_layer + a.layer_count != b.first_layer {
            return Err(Failure::argument(
                "the stages are not consecutive ones of one model",
            ));
        }
    }
    let n_rows: u64 = spans.iter().map(|span| u64::from(span.n_rows)).sum();
    let rows_max = stages.iter().map(|s| s.options.rows_max).min().unwrap_or(0);
    if n_rows == 0 || n_rows > u64::from(rows_max) || spans.iter().any(|s| s.n_rows == 0) {
        return Err(Failure::argument(format!(
            "{n_rows} rows, expected 1 to {rows_max}"
        )));
    }
    let mut seen = BTreeSet::new();
    for span in spans {
        for (stage, state) in stages.iter().zip(&span.states) {
            if !Arc::ptr_eq(stage, &state.stage) {
                return Err(Failure::argument("a state of another stage"));
            }
            if !seen.insert(state.address()) {
                return Err(Failure::argument("two spans with the same state"));
            }
        }
        if span.rows > abi::ROWS_ALL {
            return Err(Failure::argument(format!("rows {}", span.rows)));
        }
    }
    match input {
        Input::Tokens(tokens) => {
            let n_vocab = first.options.n_vocab;
            if !first.options.has_embedding {
                return Err(Failure::argument(
                    "tokens for a stage without the embedding",
                ));
            }
            if let Some(token) = tokens.iter().find(|&&token| token >= n_vocab) {
                return Err(Failure::argument(format!("token {token} of {n_vocab}")));
            }
        }
        Input::Rows(_) if first.options.has_embedding => {
            return Err(Failure::argument("rows for a stage with the embedding"));
        }
        Input::Rows(_) => {}
    }
    if output.is_of_rows() && !last.options.has_head {
        return Err(Failure::argument("outputs of a stage without the head"));
    }
    Ok(())
}

fn shape(spans: &[Span<'_>], output: &Output<'_>) -> Shape {
    let several = |span: &&Span<'_>| span.n_rows > CHUNK_ROWS;
    let chunks = |span: &Span<'_>| n_chunks(span.n_rows);
    Shape {
        n_rows: spans.iter().map(|span| span.n_rows).sum(),
        single: spans.iter().all(|span| span.n_rows == 1),
        n_chunks: spans.iter().map(chunks).sum(),
        n_chunks_of_several: spans.iter().filter(several).map(chunks).sum(),
        n_outputs: match output.is_of_rows() {
            true => n_outputs(spans) as u32,
            false => 0,
        },
    }
}

/// An array of the batch in pinned memory, filled from its start.
struct Array<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Array<'_> {
    fn push<const N: usize>(&mut self, bytes: [u8; N]) {
        self.bytes[self.at..self.at + N].copy_from_slice(&bytes);
        self.at += N;
    }
}

/// Writes the batch as this stage sees it.
fn write_batch(
    stage: &Stage,
    index: usize,
    slot: &mut Slot,
    spans: &[Span<'_>],
    input: &Input<'_>,
    outputs: bool,
    shape: Shape,
) {
    let layout = BatchLayout::new(stage.options.rows_max);
    let bytes = slot.batch.bytes_mut();
    let mut fill = |at: usize, values: &mut dyn Iterator<Item = u32>| {
        let mut array = Array { bytes, at };
        values.for_each(|value| array.push(value.to_le_bytes()));
    };
    if let Input::Tokens(tokens) = input {
        fill(layout.tokens, &mut tokens.iter().copied());
    }
    let numbered = || {
        spans
            .iter()
            .enumerate()
            .map(|(i, span)| (i as u32, span.n_rows))
    };
    if !shape.single {
        let rows = |(i, n): (u32, u32)| (0..n).map(move |_| i);
        fill(layout.row_span, &mut numbered().flat_map(rows));
        let firsts = firsts(spans);
        fill(layout.span_first, &mut firsts.iter().copied());
        fill(layout.span_rows, &mut spans.iter().map(|span| span.n_rows));
        // Chunks of spans that have several come first.
        let several = numbered().filter(|&(_, n)| n > CHUNK_ROWS);
        let others = numbered().filter(|&(_, n)| n <= CHUNK_ROWS);
        let chunks: Vec<(u32, u32, u32, u32)> = several
            .chain(others)
            .flat_map(|(span, n)| {
                let first = firsts[span as usize];
                (0..n_chunks(n)).map(move |chunk| {
                    let start = chunk * CHUNK_ROWS;
                    (span, first + start, CHUNK_ROWS.min(n - start), chunk)
                })
            })
            .collect();
        fill(layout.chunk_span, &mut chunks.iter().map(|chunk| chunk.0));
        fill(layout.chunk_first, &mut chunks.iter().map(|chunk| chunk.1));
        fill(layout.chunk_rows, &mut chunks.iter().map(|chunk| chunk.2));
        fill(layout.chunk_index, &mut chunks.iter().map(|chunk| chunk.3));
    }
    let mut logits = Vec::new();
    if outputs {
        let mut out_rows = Vec::new();
        for (span, first) in spans.iter().zip(firsts(spans)) {
            let end = first + span.n_rows;
            let from = match span.rows {
                abi::ROWS_NONE => end,
                abi::ROWS_LAST => end - 1,
                _ => first,
            };
            out_rows.extend(from..end);
            let keep = span.states[index].logits_address();
            logits.extend((from..end).map(|row| if row + 1 == end { keep } else { 0 }));
        }
        fill(layout.out_rows, &mut out_rows.into_iter());
    }
    let mut fill = |at: usize, values: &mut dyn Iterator<Item = u64>| {
        let mut array = Array { bytes, at };
        values.for_each(|value| array.push(value.to_le_bytes()));
    };
    let states = &mut spans.iter().map(|span| span.states[index].address());
    fill(layout.span_state, states);
    fill(layout.out_logits, &mut logits.into_iter());
}

/// First row of each span.
fn firsts(spans: &[Span<'_>]) -> Vec<u32> {
    let mut next = 0;
    let of_span = |span: &Span<'_>| {
        next += span.n_rows;
        next - span.n_rows
    };
    spans.iter().map(of_span).collect()
}

/// The rows come from the stage before.
fn take_over(
    from: &Stage,
    from_slot: &Slot,
    to: &Stage,
    work: &Work,
    slot: &Slot,
    shape: Shape,
) -> Result<()> {
    static REACHED: Mutex<BTreeSet<(u32, u32)>> = Mutex::new(BTreeSet::new());
    let (context, other) = (&to.device.context, &from.device.context);
    work.stream.wait_for(&from_slot.done)?;
    let bytes = 4 * u64::from(shape.n_rows) * u64::from(padded(to.options.n_embd));
    let (x, from_x) = (slot.places.x, from_slot.places.x);
    if context.ordinal() == other.ordinal() {
        return work.stream.copy(x, from_x, bytes);
    }
    let pair = (context.ordinal(), other.ordinal());
    let mut reached = REACHED.lock().unwrap_or_else(PoisonError::into_inner);
    if reached.insert(pair) {
        // Where devices cannot reach each other, the driver's copies go through host memory: not an error.
        let _ = context.reach(other);
        let _ = other.reach(context);
    }
    drop(reached);
    work.stream.copy_from(x, other, from_x, bytes)
}

/// Puts one stage's work into its stream.
fn one_stage(
    stage: &Stage,
    work: &mut Work,
    slot: &mut Slot,
    shape: Shape,
    output: &mut Output<'_>,
) -> Result<()> {
    let (n_rows, n_outputs) = (shape.n_rows, shape.n_outputs);
    let wants_tokens = matches!(output, Output::Tokens(_) | Output::Logits(_));
    let to_every_row = wants_tokens && n_outputs == n_rows;
    let as_graph = shape.single && (to_every_row || !output.is_of_rows());
    let layout = BatchLayout::new(stage.options.rows_max);
    let from = layout.at(slot.batch.device());
    if as_graph {
        let key = (slot.index, n_rows, to_every_row);
        if !work.graphs.contains_key(&key) {
            if work.graphs.len() >= GRAPHS_MAX {
                work.stream.wait()?;
                work.graphs.clear();
            }
            let pass = pass(stage, work, slot, shape);
            let graph = work.stream.record(|| {
                pass.begin(from, to_every_row)?;
                match pass.resident() {
                    Some(cut) => pass.token(&cut, to_every_row)?,
                    None => {
                        pass.layers()?;
                        if to_every_row {
                            pass.logits()?;
                        }
                    }
                }
                if to_every_row {
                    pass.tokens(slot.tokens.device())?;
                }
                Ok(())
            })?;
            work.graphs.insert(key, graph);
        }
        if let Some(graph) = work.graphs.get(&key) {
            work.stream.replay(graph)?;
        }
        if let (Output::Rows(rows), n) = (&mut *output, stage.options.n_embd) {
            work.stream
                .download_rows(rows, n, slot.places.x, padded(n))?;
        }
        return Ok(());
    }
    let to = slot.places.batch.tokens;
    work.stream.upload(to, &slot.batch, 0..layout.size)?;
    let pass = pass(stage, work, slot, shape);
    pass.begin(slot.places.batch, false)?;
    pass.layers()?;
    let n = stage.options.n_embd;
    match output {
        Output::Nothing => Ok(()),
        Output::Rows(rows) => work.stream.download_rows(rows, n, slot.places.x, padded(n)),
        Output::Hidden(rows) => hidden(&pass, rows),
        Output::Tokens(_) => {
            pass.logits()?;
            pass.tokens(slot.tokens.device())
        }
        Output::Logits(rows) => {
            let n_vocab = stage.options.n_vocab;
            let w = &work.workspace;
            pass.logits_to_read(|first, n| {
                if shape.single {
                    return Ok(());
                }
                let width = n_vocab as usize;
                let rows = &mut rows[first as usize * width..][..n as usize * width];
                work.stream
                    .download_rows(rows, n_vocab, w.logits, w.vocab_stride)
            })?;
            pass.tokens(slot.tokens.device())
        }
    }
}

fn pass<'a>(stage: &'a Stage, work: &'a Work, slot: &Slot, shape: Shape) -> Pass<'a> {
    Pass {
        options: &stage.options,
        device: &stage.device,
        work,
        slot: slot.places,
        shape,
    }
}

/// Hidden rows, by pieces of what the memory for logits holds.
fn hidden(pass: &Pass<'_>, rows: &mut [f32]) -> Result<()> {
    let n_embd = pass.options.n_embd;
    let w = &pass.work.workspace;
    let rows_at_once = crate::layout::LOGITS_ROWS.min(pass.options.rows_max);
    for (index, rows) in rows
        .chunks_mut((rows_at_once * n_embd) as usize)
        .enumerate()
    {
        let n = (rows.len() / n_embd as usize) as u32;
        let first = index as u32 * rows_at_once;
        pass.norm_out(first, n, w.inputs_head, w.logits)?;
        pass.work
            .stream
            .download_rows(rows, n_embd, w.logits, n_embd)?;
    }
    Ok(())
}

/// States that logits of a pass of single rows are kept behind, in the order of output rows.
fn asked<'a>(spans: &'a [Span<'a>]) -> impl Iterator<Item = &'a State> {
    let wanted = spans.iter().filter(|span| span.rows != abi::ROWS_NONE);
    wanted.filter_map(|span| span.states.last().copied())
}

/// Logits of single rows lie behind the states; as many rows as there is pinned memory for start on their way
/// to the host.
fn start_logits(stage: &Stage, work: &Work, slot: &mut Slot, spans: &[Span<'_>]) -> Result<()> {
    let row_bytes = 4 * stage.options.n_vocab as usize;
    let Some(pinned) = &mut slot.logits else {
        return Ok(());
    };
    for (i, state) in asked(spans)
        .take(PINNED_LOGITS_BYTES / row_bytes)
        .enumerate()
    {
        let from = state.logits_address();
        work.stream
            .download(pinned, i * row_bytes, from, row_bytes)?;
    }
    Ok(())
}

/// What the device left in pinned memory or behind the states, once it is done.
fn read_results(
    slot: &Slot,
    spans: &[Span<'_>],
    shape: Shape,
    output: &mut Output<'_>,
) -> Result<()> {
    match output {
        Output::Tokens(tokens) => {
            let found = slot.tokens.bytes().chunks_exact(4);
            for (token, bytes) in tokens.iter_mut().zip(found) {
                let mut four = [0; 4];
                four.copy_from_slice(bytes);
                *token = u32::from_le_bytes(four);
            }
            Ok(())
        }
        Output::Logits(logits) if shape.single && shape.n_outputs > 0 => {
            let width = logits.len() / shape.n_outputs as usize;
            let pinned = slot
                .logits
                .as_ref()
                .map_or(&[][..], |pinned| pinned.bytes());
            let pinned = pinned.chunks_exact(4 * width).map(Some);
            let sources = pinned.chain(std::iter::repeat(None));
            for ((row, state), source) in logits
                .chunks_exact_mut(width)
                .zip(asked(spans))
                .zip(sources)
            {
                let Some(bytes) = source else {
                    state.logits(row)?;
                    continue;
                };
                for (number, bytes) in row.iter_mut().zip(bytes.chunks_exact(4)) {
                    let mut four = [0; 4];
                    four.copy_from_slice(bytes);
                    *number = f32::from_le_bytes(four);
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}
