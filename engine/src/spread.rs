//! Spreads sequences over pipelines that each have the whole model, and runs these at the same time.
//!
//! A state stays on the pipeline where it first went: moving it costs more than it brings. New ones go to
//! where there are fewest. Sits between `stage.rs`, which runs one pipeline, and `model.rs`.

#![forbid(unsafe_code)]

use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;

use crate::batch::Span;
use crate::error::{Error, Result};
use crate::stage::{Lane, Pipeline, Wanted};
use crate::state::State;
use crate::threads::THREAD_NAME;
use crate::v4::{Machine, Sizes};

/// Chooses a pipeline for every span: (index of the pipeline) for each.
pub(crate) fn assign(pipelines: &[Pipeline], spans: &[Span<'_>]) -> Vec<usize> {
    let home = |state: &State| {
        let stage = state.home()?;
        let is_on = |p: &Pipeline| p.placed().first().is_some_and(|s| Arc::ptr_eq(s, stage));
        pipelines.iter().position(is_on)
    };
    let homes: Vec<Option<usize>> = spans.iter().map(|span| home(span.state)).collect();
    let mut n_new = homes.iter().filter(|home| home.is_none()).count();
    // Every state holds its stage.
    let mut loads: Vec<usize> = pipelines
        .iter()
        .map(|p| p.placed().first().map_or(0, Arc::strong_count))
        .collect();
    // How many of the new ones each gets: one by one to the least loaded.
    let mut shares = vec![0_usize; pipelines.len()];
    while n_new > 0 {
        let least = (0..loads.len()).min_by_key(|&i| loads[i]).unwrap_or(0);
        loads[least] += 1;
        shares[least] += 1;
        n_new -= 1;
    }
    // Neighbours stay together, so that their results lie side by side.
    let mut next = 0;
    let place = |home: Option<usize>| {
        home.unwrap_or_else(|| {
            while shares[next] == 0 && next + 1 < shares.len() {
                next += 1;
            }
            shares[next] = shares[next].saturating_sub(1);
            next
        })
    };
    homes.into_iter().map(place).collect()
}

/// One pipeline's part of a pass.
struct Work<'a, 's> {
    spans: Vec<Span<'a>>,
    /// Rows of its results, and where they belong: pieces of the caller's, in order.
    pieces: Vec<Wanted<'s>>,
}

/// Feeds spans to the pipelines that they are assigned to, all at the same time.
pub(crate) fn forward(
    pipelines: &[Pipeline],
    machine: Machine<'_>,
    lanes: &mut [Lane],
    spans: &mut [Span<'_>],
    wanted: Wanted<'_>,
    sizes: &Sizes,
) -> Result<()> {
    let homes = assign(pipelines, spans);
    let mut works: Vec<Work<'_, '_>> = pipelines
        .iter()
        .map(|_| Work {
            spans: Vec::new(),
            pieces: Vec::new(),
        })
        .collect();
    let mut left = wanted;
    let mut start = 0;
    let mut rest = spans;
    while start < homes.len() {
        // A run of neighbours with one home.
        let home = homes[start];
        let n = homes[start..].iter().take_while(|&&h| h == home).count();
        let (run, others) = rest.split_at_mut(n);
        let n_rows = run.iter().map(Span::n_logit_rows).sum();
        let (piece, others_wanted) = left.split(n_rows, sizes);
        works[home].pieces.push(piece);
        works[home].spans.extend(run.iter_mut().map(|span| Span {
            state: &mut *span.state,
            tokens: span.tokens,
            output: span.output,
        }));
        (left, rest, start) = (others_wanted, others, start + n);
    }
    thread::scope(|scope| {
        let mut jobs: Vec<_> = pipelines.iter().zip(lanes).zip(works).collect();
        jobs.retain(|(_, work)| !work.spans.is_empty());
        // The last one runs on this thread.
        let own = jobs.pop();
        let mut handles = Vec::new();
        for ((pipeline, lane), work) in jobs {
            let run = move || work.run(pipeline, machine, lane, sizes);
            let builder = thread::Builder::new().name(format!("{THREAD_NAME}device"));
            let spawned = builder.spawn_scoped(scope, run);
            let failed =
                |e| Error::memory("the system gives no thread for a device").with_source(e);
            handles.push(spawned.map_err(failed)?);
        }
        let own = own.map_or(Ok(()), |((pipeline, lane), work)| {
            work.run(pipeline, machine, lane, sizes)
        });
        let results = handles.into_iter().map(|handle| match handle.join() {
            Ok(result) => result,
            Err(panic) => resume_unwind(panic),
        });
        results
            .collect::<Vec<_>>()
            .into_iter()
            .chain([own])
            .collect()
    })
}

impl Work<'_, '_> {
    fn run(
        mut self,
        pipeline: &Pipeline,
        machine: Machine<'_>,
        lane: &mut Lane,
        sizes: &Sizes,
    ) -> Result<()> {
        for span in &mut self.spans {
            if !span.tokens.is_empty() {
                span.state.place(pipeline.placed())?;
            }
        }
        if self.pieces.len() == 1 {
            let piece = self.pieces.remove(0);
            return pipeline.forward(machine, lane, &mut self.spans, piece);
        }
        // The results do not lie side by side: they are written to one place and copied.
        let n: usize = self.pieces.iter().map(Wanted::len).sum();
        let mut numbers = Vec::new();
        let mut tokens = Vec::new();
        let wanted = match self.pieces.first() {
            Some(Wanted::Tokens(_)) => {
                tokens.resize(n, 0);
                Wanted::Tokens(&mut tokens)
            }
            Some(Wanted::Hidden(_)) => {
                numbers.resize(n, 0.0);
                Wanted::Hidden(&mut numbers)
            }
            Some(Wanted::Logits(_)) | None => {
                numbers.resize(n, 0.0);
                Wanted::Logits(&mut numbers)
            }
        };
        debug_assert!(wanted.len() % wanted.width(sizes).0.max(1) == 0);
        pipeline.forward(machine, lane, &mut self.spans, wanted)?;
        let mut at = 0;
        for piece in self.pieces {
            let end = at + piece.len();
            match piece {
                Wanted::Tokens(out) => out.copy_from_slice(&tokens[at..end]),
                Wanted::Hidden(out) | Wanted::Logits(out) => {
                    out.copy_from_slice(&numbers[at..end]);
                }
            }
            at = end;
        }
        Ok(())
    }
}
