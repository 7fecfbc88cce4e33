//! `bench --batch`: many sequences, each of which goes on by one token at a time.

use std::io::{self, Write};
use std::ops::Range;

use anyhow::{bail, Result};
use rwkv_edge::{Model, Output, Span, State, Workspace};
use serde_json::{json, Value};

use super::{median, on_devices, seconds, tokens, Args};
use crate::devices;

/// Sequences at once.
const BATCHES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Steps of a round with many sequences at least.
const MIN_STEPS: usize = 4;

/// Sequences that go on together.
struct Group {
    states: Vec<State>,
    workspace: Workspace,
    chosen: Vec<u32>,
}

impl Group {
    fn new(model: &Model, n: usize) -> Result<Self> {
        // First, since it is the largest.
        let workspace = model.try_workspace(n)?;
        let states = (0..n).map(|_| model.try_new_state());
        Ok(Group {
            states: states.collect::<Result<_, _>>()?,
            workspace,
            chosen: vec![0; n],
        })
    }

    fn step(&mut self, model: &Model, text: &[u32], at: usize) -> Result<()> {
        let mut spans: Vec<_> = self
            .states
            .iter_mut()
            .enumerate()
            .map(|(i, state)| {
                let token = (at + i) % text.len();
                Span::new(state, &text[token..=token], Output::Last)
            })
            .collect();
        Ok(model.forward_tokens(&mut self.workspace, &mut spans, &mut self.chosen)?)
    }
}

fn run_group(
    model: &Model,
    group: &mut Group,
    text: &[u32],
    mut steps: Range<usize>,
) -> Result<()> {
    steps.try_for_each(|at| group.step(model, text, at))
}

/// Tokens a second of so many sequences together that go on by `n_tokens` each, on the CPU.
#[cfg(feature = "serve")]
pub(super) fn speed(model: &Model, n_sequences: usize, n_tokens: usize) -> Result<f64> {
    let text = tokens(model, 64)?;
    let mut group = Group::new(model, n_sequences)?;
    run_group(model, &mut group, &text, 0..1)?;
    let time = seconds(|| run_group(model, &mut group, &text, 1..1 + n_tokens))?;
    Ok((n_sequences * n_tokens) as f64 / time)
}

pub(super) fn measure(args: &Args, model: &Model) -> Result<Value> {
    let text = tokens(model, 64)?;
    let mut rows = Vec::new();
    let batches = match (
        args.sequences.is_empty(),
        devices::is_on_device(&model.info()),
    ) {
        (false, _) => &args.sequences[..],
        (true, true) => &on_devices::BATCHES,
        (true, false) => &BATCHES,
    };
    for &n in batches {
        // Stages that follow each other work on different groups at the same time.
        let n_groups = devices::pipeline_length(&model.info()).min(n);
        let mut groups = (0..n_groups)
            .map(|i| Group::new(model, n * (i + 1) / n_groups - n * i / n_groups))
            .collect::<Result<Vec<_>>>()?;
        let mut run = |steps: Range<usize>| -> Result<()> {
            if let [group] = &mut groups[..] {
                return run_group(model, group, &text, steps);
            }
            std::thread::scope(|scope| {
                let start = |group| {
                    let (steps, text) = (steps.clone(), &text);
                    scope.spawn(move || run_group(model, group, text, steps))
                };
                let running: Vec<_> = groups.iter_mut().map(start).collect();
                running
                    .into_iter()
                    .try_for_each(|group| match group.join() {
                        Ok(outcome) => outcome,
                        Err(_) => bail!("a thread of the benchmark panicked"),
                    })
            })
        };
        run(0..1)?;
        let mut speeds = Vec::new();
        for round in 0..args.rounds {
            let steps = (args.max_new_tokens / n).max(MIN_STEPS);
            let first = 1 + round * steps;
            let time = seconds(|| run(first..first + steps))?;
            speeds.push((steps * n) as f64 / time);
        }
        rows.push(json!({ "sequences": n, "tokens_per_s": median(speeds) }));
    }
    Ok(Value::Array(rows))
}

pub(super) fn print(report: &Value, out: &mut impl Write) -> io::Result<()> {
    for row in report["batch"].as_array().into_iter().flatten() {
        let (n, speed) = (
            &row["sequences"],
            row["tokens_per_s"].as_f64().unwrap_or(f64::NAN),
        );
        writeln!(out, "batch     {n:>3} sequences: {speed:.1} tokens/s")?;
    }
    Ok(())
}
