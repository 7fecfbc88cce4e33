//! Spreads sequences over pipelines that each have the whole model, and runs these at the same time.
//!
//! A state stays on the pipeline where it first went: moving it costs more than it brings. New ones go to
//! where there are fewest. Each further pipeline has a thread, which is there before the first pass and sleeps between
//! them. Sits between `stages.rs`, which runs one pipeline, and `model/mod.rs`.

#![forbid(unsafe_code)]

use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};

use crate::devices::device_state;
use crate::devices::stages::{Lane, Pipeline, Stages, Wanted};
use crate::error::Result;
use crate::math::resized;
use crate::math::threads::Pool;
use crate::networks::batch::Span;
use crate::networks::config::Sizes;
use crate::networks::state::State;
use crate::networks::Machine;

/// Chooses a pipeline for every span: (index of the pipeline) for each.
pub(crate) fn assign(pipelines: &[Pipeline], spans: &[Span<'_>]) -> Vec<usize> {
    let home = |state: &State| {
        let stage = device_state::home(state)?;
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
    stages: &Stages,
    machine: Machine<'_>,
    lanes: &mut [Lane],
    spans: &mut [Span<'_>],
    wanted: Wanted<'_>,
    sizes: &Sizes,
) -> Result<()> {
    let pipelines = &stages.pipelines;
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
        works[home].spans.extend(
            run.iter_mut()
                .map(|span| Span::new(&mut *span.state, span.tokens, span.output)),
        );
        (left, rest, start) = (others_wanted, others, start + n);
    }
    let mut jobs: Vec<_> = pipelines.iter().zip(lanes).zip(works).collect();
    jobs.retain(|(_, work)| !work.spans.is_empty());
    run_all(&stages.threads, jobs, |((pipeline, lane), work)| {
        work.run(pipeline, machine, lane, sizes)
    })
}

/// Does all jobs at the same time, and gives the first error among them.
///
/// # Panics
/// When a job panics, after all others have ended.
fn run_all<J: Send>(
    threads: &Pool,
    jobs: Vec<J>,
    run: impl Fn(J) -> Result<()> + Sync,
) -> Result<()> {
    // Each has its job until a thread takes it, and its outcome from then on.
    let slots: Vec<_> = jobs
        .into_iter()
        .map(|job| Mutex::new((Some(job), None)))
        .collect();
    threads.run(slots.len(), &|index, _| {
        let mut slot = slots[index].lock().unwrap_or_else(PoisonError::into_inner);
        let (job, outcome) = &mut *slot;
        if let Some(job) = job.take() {
            // The others' jobs end before a panic goes on, and a second one ends here.
            *outcome = Some(catch_unwind(AssertUnwindSafe(|| run(job))));
        }
    });
    let slots = slots.into_iter().map(Mutex::into_inner);
    let outcomes = slots.filter_map(|slot| slot.unwrap_or_else(PoisonError::into_inner).1);
    let results = outcomes.map(|outcome| outcome.unwrap_or_else(|panic| resume_unwind(panic)));
    // All of them, before the first error ends the row.
    results.collect::<Vec<_>>().into_iter().collect()
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
                device_state::place(span.state, pipeline.placed())?;
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
                resized(&mut tokens, n, 0, "tokens")?;
                Wanted::Tokens(&mut tokens)
            }
            Some(Wanted::Hidden(_)) => {
                resized(&mut numbers, n, 0.0, "hidden values")?;
                Wanted::Hidden(&mut numbers)
            }
            Some(Wanted::Logits(_)) | None => {
                resized(&mut numbers, n, 0.0, "rows of logits")?;
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::thread::{current, ThreadId};

    use super::*;
    use crate::error::Error;

    #[test]
    fn all_passes_run_on_the_threads_that_there_were_at_first() {
        let threads = Pool::new(3);
        let seen: Mutex<HashSet<ThreadId>> = Mutex::default();
        for pass in 0..500 {
            let n_jobs = pass % 4;
            let mut results = vec![0; n_jobs];
            let jobs: Vec<_> = results.iter_mut().enumerate().collect();
            run_all(&threads, jobs, |(index, result)| {
                seen.lock().expect("no panic").insert(current().id());
                *result += index + 1;
                Ok(())
            })
            .expect("no job fails");
            assert_eq!(results, [1, 2, 3][..n_jobs]);
        }
        assert!(seen.into_inner().expect("no panic").len() <= 3);
    }

    #[test]
    fn the_first_error_is_told_when_all_jobs_have_ended() {
        let threads = Pool::new(3);
        let ended = Mutex::new(0);
        let error = run_all(&threads, vec![0, 1, 2], |index| {
            *ended.lock().expect("no panic") += 1;
            match index {
                0 => Ok(()),
                index => Err(Error::backend(format!("job {index}"))),
            }
        });
        let error = error.expect_err("two fail");
        assert!(error.to_string().contains("job 1"), "{error}");
        assert_eq!(ended.into_inner().expect("no panic"), 3);
    }

    /// Wherever they happen, in one job or in all, and never in a later pass.
    #[test]
    fn panics_of_jobs_reach_their_caller_and_nobody_else() {
        let threads = Pool::new(3);
        let pass = |bad: &[usize]| {
            let run = |index| {
                assert!(!bad.contains(&index), "job {index}");
                Err(Error::backend("an error beside it"))
            };
            catch_unwind(AssertUnwindSafe(|| run_all(&threads, vec![0, 1, 2], run)))
        };
        for bad in [&[0][..], &[1], &[2], &[0, 1], &[1, 2], &[0, 1, 2]] {
            for _ in 0..20 {
                let panic = pass(bad).expect_err("a panic");
                let text = panic.downcast_ref::<String>().expect("a text");
                assert_eq!(*text, format!("job {}", bad[0]), "{bad:?}");
                let result = pass(&[]).expect("no panic");
                result.expect_err("only an error");
            }
        }
    }
}
