//! Feeds sequences to one or several models side by side and shows what they predicted.
//!
//! Sits between what judges models and the engine. Sequences start at the empty state; short ones go through the network together, long ones in pieces, so that batches are
//! full either way. Memory does not depend on the length of the sequences: at most two batches of logits
//! are held, those of the first model and of the one that is compared with it.

use std::ops::Range;
use std::panic::resume_unwind;
use std::thread;

use rwkv_edge::{Error, ErrorKind, Model, Output, Reservation, Result, Span, State, Workspace};

use crate::{is_on_device, not_enough_memory, rows_that_fit};

/// Rows of a batch. More make it no faster.
const ROWS_MAX: usize = 128;
/// Logits of a batch at most: 16 MiB. 83 rows of a vocabulary of 50,277.
const LOGITS_MAX: usize = 4 << 20;
/// The same for models on devices, which need more rows to be busy: 64 MiB of logits.
const DEVICE_ROWS_MAX: usize = 512;
const DEVICE_LOGITS_MAX: usize = 16 << 20;

/// Tokens from the empty state on; those from `first_target` on are predicted, each from all before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence<'a> {
    tokens: &'a [u32],
    first_target: usize,
}

impl<'a> Sequence<'a> {
    /// `first_target` is from 1 to less than the number of tokens, since nothing predicts the first one;
    /// `None` for any other.
    pub fn new(tokens: &'a [u32], first_target: usize) -> Option<Self> {
        (1..tokens.len())
            .contains(&first_target)
            .then_some(Sequence {
                tokens,
                first_target,
            })
    }

    /// All tokens.
    pub fn tokens(&self) -> &'a [u32] {
        self.tokens
    }

    /// Number of the first token that is predicted.
    pub fn first_target(&self) -> usize {
        self.first_target
    }

    /// Tokens that are fed: nothing follows the last one.
    pub fn n_fed(&self) -> usize {
        self.tokens.len() - 1
    }
}

/// A token that was predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Target {
    /// Number of its sequence.
    pub sequence: usize,
    /// The token that follows in the sequence.
    pub token: u32,
}

/// What one model predicted for some tokens.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Predictions<'a> {
    /// Number of the model.
    pub model: usize,
    /// The tokens that were predicted; those of one sequence in order, also from one batch to the next.
    pub targets: &'a [Target],
    n_vocab: usize,
    n_threads: usize,
    /// (targets, n_vocab)
    logits: &'a [f32],
    /// (targets, n_vocab) of the first model
    first: &'a [f32],
}

impl std::fmt::Debug for Predictions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Predictions")
            .field("model", &self.model)
            .field("targets", &self.targets)
            .finish_non_exhaustive()
    }
}

impl Predictions<'_> {
    /// Calls `judge(target, logits, logits of the first model)` for every target, on several threads,
    /// and gives the results in the targets' order.
    pub fn judge<T: Send>(&self, judge: impl Fn(Target, &[f32], &[f32]) -> T + Sync) -> Vec<T> {
        let rows_of = |index: usize| index * self.n_vocab..(index + 1) * self.n_vocab;
        let judge_one = |index: usize| {
            let rows = rows_of(index);
            judge(
                self.targets[index],
                &self.logits[rows.clone()],
                &self.first[rows],
            )
        };
        let n = self.targets.len();
        let step = n.div_ceil(self.n_threads).max(1);
        if step >= n {
            return (0..n).map(judge_one).collect();
        }
        let parts = (0..n)
            .step_by(step)
            .map(|start| start..(start + step).min(n));
        thread::scope(|scope| {
            let judge_part = |part: Range<usize>| part.map(judge_one).collect::<Vec<T>>();
            let work = |part: Range<usize>| {
                let spawned = {
                    let part = part.clone();
                    thread::Builder::new().spawn_scoped(scope, move || judge_part(part))
                };
                (part, spawned)
            };
            // Collected before the first is waited for, so that all run at once.
            let workers: Vec<_> = parts.map(work).collect();
            let results = workers
                .into_iter()
                .flat_map(|(part, spawned)| match spawned {
                    Ok(worker) => match worker.join() {
                        Ok(results) => results,
                        Err(panic) => resume_unwind(panic),
                    },
                    // The system has no thread to spare.
                    Err(_) => judge_part(part),
                });
            results.collect()
        })
    }
}

/// The models that are fed, one or more, with the same vocabulary.
pub trait Models {
    /// How many there are.
    fn n_models(&self) -> usize;

    /// A model; asked for again for every batch, so that it may be made when it is needed.
    ///
    /// # Errors
    ///
    /// When the model cannot be made.
    fn get(&self, index: usize) -> Result<Model>;

    /// Whether the first model's memory for forward passes fits all of them.
    fn share_workspace(&self) -> bool;
}

impl Models for [Model] {
    fn n_models(&self) -> usize {
        self.len()
    }

    fn get(&self, index: usize) -> Result<Model> {
        Ok(self[index].clone())
    }

    fn share_workspace(&self) -> bool {
        false
    }
}

/// A sequence under way, with a state for each model.
struct Lane<'a> {
    number: usize,
    sequence: Sequence<'a>,
    n_fed: usize,
    states: Vec<State>,
    /// Tokens that the present batch takes of it, and whether they are followed by targets.
    n_taken: usize,
    output: Output,
}

impl Lane<'_> {
    /// Plans the lane's part of a batch with room for so many rows, so many of them with logits.
    fn plan(&mut self, rows_left: usize, logit_rows_left: usize) {
        let n_context = (self.sequence.first_target - 1).saturating_sub(self.n_fed);
        let n_left = self.sequence.n_fed() - self.n_fed;
        (self.n_taken, self.output) = match n_context {
            0 => (n_left.min(rows_left).min(logit_rows_left), Output::All),
            _ => (n_context.min(rows_left), Output::None),
        };
    }

    fn n_logit_rows(&self) -> usize {
        match self.output {
            Output::All => self.n_taken,
            _ => 0,
        }
    }
}

/// How [`feed`] went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fed {
    /// Tokens that were fed, to all models together.
    pub n_tokens: u64,
    /// Rows of logits at a time: fewer within a memory limit.
    pub logit_rows_max: usize,
}

/// Feeds `sequences` to all `models` and calls `visit` with what each of them predicted, model after
/// model for every batch. Calls `progress` with the number of tokens fed so far, to all models together.
///
/// # Errors
///
/// [`ErrorKind::Argument`] where there is no model, one has another vocabulary than the first, or a token is
/// beyond it; [`ErrorKind::Memory`] where there is no memory for a batch; and those of devices.
pub fn feed<'a>(
    models: &(impl Models + ?Sized),
    sequences: impl Iterator<Item = Sequence<'a>>,
    mut visit: impl FnMut(Predictions<'_>),
    mut progress: impl FnMut(u64),
) -> Result<Fed> {
    if models.n_models() == 0 {
        return Err(Error::new(ErrorKind::Argument, "no model to feed"));
    }
    let first = models.get(0)?;
    let (n_vocab, n_threads) = (first.n_vocab(), first.info().threads);
    let (rows_max, logits_max) = match is_on_device(&first.info()) {
        true => (DEVICE_ROWS_MAX, DEVICE_LOGITS_MAX),
        false => (ROWS_MAX, LOGITS_MAX),
    };
    let n_buffers = models.n_models().min(2);
    let row_bytes = n_buffers * n_vocab * size_of::<f32>();
    let logit_rows_max = (logits_max / n_vocab).clamp(1, rows_max);
    let logit_rows_max = rows_that_fit(&first, row_bytes, logit_rows_max);
    let _buffers = first.reserve_memory((logit_rows_max * row_bytes) as u64)?;
    let mut workspaces = vec![first.try_workspace(rows_max)?];
    if !models.share_workspace() {
        for index in 1..models.n_models() {
            workspaces.push(models.get(index)?.try_workspace(rows_max)?);
        }
    }
    let mut buffers = Vec::with_capacity(n_buffers);
    for _ in 0..n_buffers {
        let (mut buffer, n) = (Vec::new(), logit_rows_max * n_vocab);
        buffer
            .try_reserve_exact(n)
            .map_err(|_| not_enough_memory("rows of logits"))?;
        buffer.resize(n, 0.0);
        buffers.push(buffer);
    }
    let mut lanes = Lanes::new(models, sequences, rows_max)?;
    let mut targets = Vec::with_capacity(logit_rows_max);
    let mut n_fed = 0;
    while lanes.plan(logit_rows_max, &mut targets) {
        // The last token of a sequence is a target and not fed, so no model refuses it.
        if let Some(target) = targets.iter().find(|of| of.token as usize >= n_vocab) {
            let (token, number) = (target.token, target.sequence);
            return Err(Error::new(
                ErrorKind::Argument,
                format!(
                    "sequence {number}: id {token}, expected less than {n_vocab} (the vocabulary)"
                ),
            ));
        }
        for index in 0..models.n_models() {
            let model = models.get(index)?;
            let workspace = match models.share_workspace() {
                true => &mut workspaces[0],
                false => &mut workspaces[index],
            };
            let (first, other) = buffers.split_at_mut(1);
            let n_logits = targets.len() * n_vocab;
            let logits = match index {
                0 => &mut first[0][..n_logits],
                _ => &mut other[0][..n_logits],
            };
            n_fed += lanes.forward(index, &model, workspace, logits)?;
            let logits = match index {
                0 => &first[0][..n_logits],
                _ => &other[0][..n_logits],
            };
            visit(Predictions {
                model: index,
                targets: &targets,
                n_vocab,
                n_threads,
                logits,
                first: &first[0][..n_logits],
            });
            progress(n_fed);
        }
        lanes.advance();
    }
    Ok(Fed {
        n_tokens: n_fed,
        logit_rows_max,
    })
}

/// The sequences under way, and those to come.
struct Lanes<'a, I> {
    sequences: std::iter::Enumerate<I>,
    active: Vec<Lane<'a>>,
    /// Empty states of all models, one after the other.
    empty: Vec<State>,
    first: Model,
    /// Memory of the states of all lanes so far.
    states_held: Vec<Reservation>,
    /// States of lanes that ended.
    spare: Vec<Vec<State>>,
    /// Rows of a batch.
    rows_max: usize,
}

impl<'a, I: Iterator<Item = Sequence<'a>>> Lanes<'a, I> {
    fn new(models: &(impl Models + ?Sized), sequences: I, rows_max: usize) -> Result<Self> {
        let empty = (0..models.n_models())
            .map(|index| models.get(index)?.try_new_state())
            .collect::<Result<_>>()?;
        Ok(Lanes {
            sequences: sequences.enumerate(),
            active: Vec::new(),
            empty,
            first: models.get(0)?,
            states_held: Vec::new(),
            spare: Vec::new(),
            rows_max,
        })
    }

    /// Plans the next batch and lists its targets; false when all is done.
    fn plan(&mut self, logit_rows_max: usize, targets: &mut Vec<Target>) -> bool {
        targets.clear();
        let (mut rows_left, mut logit_rows_left) = (self.rows_max, logit_rows_max);
        let mut index = 0;
        while rows_left > 0 {
            // A new sequence joins only where it can predict something at once, if it has no context.
            if index == self.active.len() && (logit_rows_left == 0 || !self.begin()) {
                break;
            }
            let lane = &mut self.active[index];
            lane.plan(rows_left, logit_rows_left);
            rows_left -= lane.n_taken;
            logit_rows_left -= lane.n_logit_rows();
            if lane.output == Output::All {
                let begin = lane.n_fed + 1;
                let tokens = &lane.sequence.tokens[begin..begin + lane.n_taken];
                let sequence = lane.number;
                targets.extend(tokens.iter().map(|&token| Target { sequence, token }));
            }
            index += 1;
        }
        self.active[index..]
            .iter_mut()
            .for_each(|lane| lane.n_taken = 0);
        rows_left < self.rows_max
    }

    /// Takes up the next sequence, if there is one and memory for its states.
    fn begin(&mut self) -> bool {
        if self.spare.is_empty() {
            let bytes = self.empty.iter().map(State::size_bytes).sum::<usize>();
            match self.first.reserve_memory(bytes as u64) {
                Ok(held) => self.states_held.push(held),
                // One at a time must do.
                Err(_) if self.active.is_empty() => {}
                Err(_) => return false,
            }
        }
        let Some((number, sequence)) = self.sequences.next() else {
            return false;
        };
        let mut states = self.spare.pop().unwrap_or_else(|| self.empty.clone());
        states.iter_mut().for_each(State::reset);
        self.active.push(Lane {
            number,
            sequence,
            n_fed: 0,
            states,
            n_taken: 0,
            output: Output::None,
        });
        true
    }

    /// Feeds the planned batch to a model; gives the number of tokens.
    fn forward(
        &mut self,
        index: usize,
        model: &Model,
        workspace: &mut Workspace,
        logits: &mut [f32],
    ) -> Result<u64> {
        let taking = self.active.iter_mut().filter(|lane| lane.n_taken > 0);
        let mut spans: Vec<_> = taking
            .map(|lane| {
                Span::new(
                    &mut lane.states[index],
                    &lane.sequence.tokens[lane.n_fed..lane.n_fed + lane.n_taken],
                    lane.output,
                )
            })
            .collect();
        model.forward(workspace, &mut spans, logits)?;
        Ok(spans.iter().map(|span| span.tokens.len() as u64).sum())
    }

    /// Goes on behind the batch, once all models have had it.
    fn advance(&mut self) {
        for lane in &mut self.active {
            lane.n_fed += lane.n_taken;
        }
        let ended = |lane: &Lane<'_>| lane.n_fed == lane.sequence.n_fed();
        let (ended, active): (Vec<_>, Vec<_>) = self.active.drain(..).partition(ended);
        self.active = active;
        self.spare.extend(ended.into_iter().map(|lane| lane.states));
    }
}
