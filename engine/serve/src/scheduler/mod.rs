//! Batches of all that is to be done, step after step, on one thread.
//!
//! Each step reads one token of every answer that is drawn, and what of the prompts there is time for, so that a long
//! prompt does not stop the others. A job whose client has gone is in no further step. Choices of a job begin behind its
//! prompt as there is room for them.

mod prepare;
mod queue;
mod reading;
mod running;
mod sequence;
mod turns;

use std::collections::VecDeque;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rwkv_edge::{Error, ErrorKind, Model, Output, Result, Span, State, Workspace};

use crate::job::Event;
use crate::metrics::ModelMetrics;
use crate::store::Store;
use crate::worker::Work;

pub(crate) use prepare::{Prepared, Preparer};
use queue::Room;
pub(crate) use queue::{Given, Next, Queue};
use reading::Reading;
use running::{Ended, Running};
use sequence::Sequence;
pub(crate) use turns::OpenSessions;
pub use turns::Turn;

/// Rows of prompts in a step for each answer that is drawn beside them, and at least: so many that a step takes about
/// twice as long as without them.
const PROMPT_ROWS_EACH: usize = 2;
const PROMPT_ROWS_MIN: usize = 16;

/// What the thread is given.
pub(crate) enum Command {
    /// A job that can begin.
    Begin(Box<Prepared>),
    /// A job was given more room.
    More,
    /// Something else.
    Work(Box<dyn Work>),
}

/// A prompt that was read, behind which not all choices have begun.
struct Branching {
    running: Arc<Running>,
    given: Arc<Given>,
    /// The last choice takes it.
    state: Option<State>,
    /// The logits behind it, which the last choice takes, too.
    row: Vec<f32>,
    /// The next choice.
    choice: usize,
}

/// The thread's own.
pub(crate) struct Scheduler<'m> {
    model: &'m Model,
    store: Arc<Store>,
    metrics: ModelMetrics,
    /// Models of one server take turns: a step uses all threads.
    turn: Arc<Turn>,
    workspace: Workspace,
    n_threads: usize,
    rows_max: usize,
    reading: VecDeque<Reading>,
    branching: Vec<Branching>,
    drawing: Vec<Sequence<'m>>,
    work: VecDeque<Box<dyn Work>>,
    logits: Vec<f32>,
}

impl<'m> Scheduler<'m> {
    /// # Errors
    ///
    /// When there is no memory for so many rows.
    pub(crate) fn new(
        model: &'m Model,
        store: Arc<Store>,
        metrics: ModelMetrics,
        turn: Arc<Turn>,
        n_sequences: usize,
    ) -> Result<Self> {
        let rows_max = model.prefill_rows() + n_sequences;
        Ok(Scheduler {
            workspace: model.try_workspace(rows_max)?,
            n_threads: model.info().threads.max(1),
            model,
            store,
            metrics,
            turn,
            rows_max,
            reading: VecDeque::new(),
            branching: Vec::new(),
            drawing: Vec::new(),
            work: VecDeque::new(),
            logits: Vec::new(),
        })
    }

    /// Works until nobody can give commands any more; what runs then is cancelled.
    pub(crate) fn run(&mut self, commands: &Receiver<Command>) {
        loop {
            if self.is_idle() {
                self.count();
                match commands.recv() {
                    Ok(command) => self.take(command),
                    Err(_) => return self.end(),
                }
            }
            loop {
                match commands.try_recv() {
                    Ok(command) => self.take(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return self.end(),
                }
            }
            self.drop_cancelled();
            self.branch();
            self.count();
            let turn = self.turn.clone();
            let _turn = turn.take();
            self.work_step();
            if catch_unwind(AssertUnwindSafe(|| self.step())).is_err() {
                self.fail(self.reading.len(), &panicked());
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.reading.is_empty() && self.drawing.is_empty() && self.work.is_empty()
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Work(work) => self.work.push_back(work),
            // It is looked for in each step.
            Command::More => {}
            Command::Begin(prepared) => {
                let events = prepared.job.events.clone();
                match Reading::new(*prepared, self.model, &self.store) {
                    Ok(reading) => self.reading.push_back(reading),
                    Err(error) => drop(events.send(Event::Failed(error))),
                }
            }
        }
    }

    fn drop_cancelled(&mut self) {
        self.reading.retain(|one| !one.job.events.is_closed());
        self.branching.retain(|one| !one.running.is_cancelled());
        self.drawing.retain(|one| !one.running.is_cancelled());
    }

    fn count(&self) {
        let n = self.reading.len() + self.drawing.len();
        self.metrics.sequences_running.set(n as i64);
    }

    fn work_step(&mut self) {
        if let Some(mut work) = self.work.pop_front() {
            let step = catch_unwind(AssertUnwindSafe(|| work.step(self.model)));
            if let Ok(false) = step {
                self.work.push_back(work);
            }
        }
    }

    /// How many rows of prompts a step may have.
    fn prompt_rows(&self) -> usize {
        match self.drawing.len() {
            0 => self.rows_max,
            n => (n * PROMPT_ROWS_EACH)
                .max(PROMPT_ROWS_MIN)
                .min(self.rows_max.saturating_sub(n))
                .max(1),
        }
    }

    /// Of the prompts in their turn, how many tokens each reads.
    fn shares(&mut self) -> Vec<usize> {
        let mut n_left = self.prompt_rows();
        let mut shares = Vec::new();
        for reading in &mut self.reading {
            if n_left == 0 {
                break;
            }
            reading.begin(&self.metrics);
            let n = reading.n_next(n_left);
            n_left -= n;
            shares.push(n);
        }
        shares
    }

    fn step(&mut self) {
        let shares = self.shares();
        if shares.is_empty() && self.drawing.is_empty() {
            return;
        }
        let n_vocab = self.model.n_vocab();
        let (n_drawing, n_prompt) = (self.drawing.len(), shares.iter().sum::<usize>());
        let mut spans: Vec<Span<'_>> = Vec::with_capacity(n_drawing + shares.len());
        for one in &mut self.drawing {
            let tokens = std::slice::from_ref(&one.next);
            spans.push(Span::new(&mut one.state, tokens, Output::Last));
        }
        for (one, &n) in self.reading.iter_mut().zip(&shares) {
            let output = match (one.job.prompt_logprobs, one.tokens.len() - one.n_read) {
                (true, _) => Output::All,
                (false, 1) => Output::Last,
                (false, _) => Output::None,
            };
            let tokens = &one.tokens[one.n_read..one.n_read + n];
            spans.push(Span::new(&mut one.state, tokens, output));
        }
        let n_rows: usize = spans.iter().map(Span::n_logit_rows).sum();
        self.logits.resize(n_rows * n_vocab, 0.0);
        let forward = || {
            self.model
                .forward(&mut self.workspace, &mut spans, &mut self.logits)
        };
        self.metrics.tokens_read.inc_by(n_prompt as u64);
        let passed = catch_unwind(AssertUnwindSafe(forward)).unwrap_or_else(|_| Err(panicked()));
        self.metrics
            .rows_per_step
            .observe((n_drawing + n_prompt) as f64);
        if let Err(error) = passed {
            self.fail(shares.len(), &error);
            return;
        }
        let mut logits = std::mem::take(&mut self.logits);
        let (of_drawing, of_reading) = logits.split_at_mut(n_drawing * n_vocab);
        self.draw(of_drawing);
        self.has_read(&shares, of_reading);
        self.logits = logits;
    }

    /// Everything in a step that failed has states that are none.
    fn fail(&mut self, n_reading: usize, error: &Error) {
        for one in self.drawing.drain(..) {
            one.running.fail(again(error));
        }
        for one in self.reading.drain(..n_reading) {
            let _ = one.job.events.send(Event::Failed(again(error)));
        }
    }

    /// Nobody can give commands any more.
    fn end(&mut self) {
        for one in self.branching.drain(..) {
            one.running.fail(ending());
        }
        self.fail(self.reading.len(), &ending());
    }

    /// Draws a token for each answer, on several threads where there are several answers.
    fn draw(&mut self, logits: &mut [f32]) {
        let n_vocab = self.model.n_vocab();
        for one in &mut self.drawing {
            one.has_read();
        }
        let n_threads = self.n_threads;
        let n_each = self.drawing.len().div_ceil(n_threads).max(1);
        let mut outcomes: Vec<Result<Option<Ended>>> = Vec::new();
        if self.drawing.len() < 2 || n_threads == 1 {
            outcomes.extend(draw_all(&mut self.drawing, logits, n_vocab));
        } else {
            std::thread::scope(|scope| {
                let groups = self.drawing.chunks_mut(n_each);
                let rows = logits.chunks_mut(n_each * n_vocab);
                let mut groups = groups.zip(rows);
                let here = groups.next();
                let others: Vec<_> = groups
                    .map(|(group, rows)| scope.spawn(move || draw_all(group, rows, n_vocab)))
                    .collect();
                if let Some((group, rows)) = here {
                    outcomes.extend(draw_all(group, rows, n_vocab));
                }
                for other in others {
                    // Panics are caught inside.
                    outcomes.extend(other.join().unwrap_or_default());
                }
            });
        }
        let mut outcomes = outcomes.into_iter();
        let store = &self.store;
        self.metrics.tokens_made.inc_by(self.drawing.len() as u64);
        self.drawing.retain(|one| {
            let outcome = outcomes.next().unwrap_or_else(|| Err(panicked()));
            goes_on(&one.running, outcome, store)
        });
    }

    /// Prompts have been read further, some to their end.
    fn has_read(&mut self, shares: &[usize], logits: &mut [f32]) {
        let n_vocab = self.model.n_vocab();
        let mut rows = logits.chunks_mut(n_vocab);
        for &n in shares {
            let Some(mut reading) = self.reading.pop_front() else {
                return;
            };
            let is_last = reading.is_at_last();
            if reading.job.prompt_logprobs {
                let n_here = if is_last { n - 1 } else { n };
                let of_prompt: Vec<&mut [f32]> = rows.by_ref().take(n_here).collect();
                reading.tell_logprobs(&of_prompt);
            }
            if is_last {
                if let Some(row) = rows.next() {
                    self.begin_drawing(reading, row);
                }
                continue;
            }
            match reading.has_read(n, &self.store) {
                Ok(()) => self.reading.push_back(reading),
                Err(error) => drop(reading.job.events.send(Event::Failed(error))),
            }
        }
    }

    /// A prompt was read to its end: its choices begin.
    fn begin_drawing(&mut self, reading: Reading, row: &[f32]) {
        let (running, state, given) = reading.end();
        let mut one = Branching {
            running,
            given,
            state: Some(state),
            row: row.to_vec(),
            choice: 0,
        };
        if !self.begin_choices(&mut one) {
            self.branching.push(one);
        }
    }

    /// Begins choices that there is room for now.
    fn branch(&mut self) {
        let mut branching = std::mem::take(&mut self.branching);
        branching.retain_mut(|one| !self.begin_choices(one));
        self.branching = branching;
    }

    /// Draws first tokens of as many choices as there is room for; whether no more are to begin.
    fn begin_choices(&mut self, one: &mut Branching) -> bool {
        while one.choice < one.running.n_choices() {
            let Some(room) = one.given.take() else {
                return false;
            };
            self.metrics.tokens_made.inc();
            match one.begin(self.model, room) {
                Ok((sequence, outcome)) => {
                    if goes_on(&one.running, Ok(outcome), &self.store) {
                        self.drawing.push(sequence);
                    }
                }
                Err(error) => {
                    one.running.fail(error);
                    return true;
                }
            }
        }
        true
    }
}

impl Branching {
    /// The next choice with its first token, and what it ended by if that was all.
    fn begin<'m>(&mut self, model: &'m Model, room: Room) -> Result<(Sequence<'m>, Option<Ended>)> {
        let is_last = self.choice + 1 == self.running.n_choices();
        let (state, mut row) = match is_last {
            true => (self.state.take(), std::mem::take(&mut self.row)),
            false => {
                let state = self.state.as_ref().map(State::try_clone);
                (state.transpose()?, self.row.clone())
            }
        };
        // Nothing takes it but the last choice, behind which there is none.
        let state = state.ok_or_else(panicked)?;
        let mut sequence = Sequence::new(&self.running, self.choice, model, state, room)?;
        let outcome = draw_one(&mut sequence, &mut row)?;
        self.choice += 1;
        Ok((sequence, outcome))
    }
}

/// Draws a token for an answer.
fn draw_one(one: &mut Sequence<'_>, row: &mut [f32]) -> Result<Option<Ended>> {
    catch_unwind(AssertUnwindSafe(|| one.draw(row))).unwrap_or_else(|_| Err(panicked()))
}

/// Draws a token for each of some answers.
fn draw_all(
    group: &mut [Sequence<'_>],
    logits: &mut [f32],
    n_vocab: usize,
) -> Vec<Result<Option<Ended>>> {
    let rows = logits.chunks_mut(n_vocab);
    let pairs = group.iter_mut().zip(rows);
    pairs.map(|(one, row)| draw_one(one, row)).collect()
}

/// Whether an answer goes on; tells what became of it if it does not.
fn goes_on(running: &Arc<Running>, outcome: Result<Option<Ended>>, store: &Store) -> bool {
    match outcome {
        Ok(None) => true,
        Ok(Some(ended)) => {
            running.end(ended, store);
            false
        }
        Err(error) => {
            running.fail(error);
            false
        }
    }
}

/// What a job is told that a panic has ended.
pub(crate) fn panicked() -> Error {
    let text = "a panic, which is a bug in rwkv-edge";
    Error::new(ErrorKind::Backend, text)
}

/// What a lock guards, whether or not somebody panicked who held it.
fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a job is told that nobody works on any more.
pub(crate) fn ending() -> Error {
    Error::new(ErrorKind::Backend, "the server is ending")
}

/// The same error for somebody else.
fn again(error: &Error) -> Error {
    Error::new(error.kind(), error.to_string())
}
