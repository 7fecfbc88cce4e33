//! A prompt while it is read, piece by piece, and the states that are kept inside it.

use std::sync::Arc;

use rwkv_edge::{Model, Result, State};

use super::prepare::{Begin, OpenSession, Prepared};
use super::queue::Given;
use super::running::{PromptEnd, Running};
use crate::job::{Event, Job};
use crate::logprobs;
use crate::metrics::ModelMetrics;
use crate::store::{Kept, Key, Store, TextHash};

/// A state is kept behind so many tokens of a prompt, counted from the beginning of all that was read.
const KEPT_EVERY: u64 = 64;
/// The states inside one prompt take at most this share of the memory for states.
const SHARE_OF_PROMPT: u64 = 8;

/// A prompt that has not been read to its end.
pub(super) struct Reading {
    pub(super) job: Job,
    pub(super) state: State,
    pub(super) tokens: Vec<u32>,
    /// Tokens that the state has read of these.
    pub(super) n_read: usize,
    keys: Vec<Key>,
    begin_key: Key,
    begin_state: Option<Arc<State>>,
    n_cached: usize,
    n_in_front: usize,
    has_begun: bool,
    text: Option<TextHash>,
    session: Option<OpenSession>,
    given: Arc<Given>,
    inside: Vec<(u64, Key)>,
    n_inside_max: usize,
    /// The last state that was kept, this prompt's beginning included.
    last_kept: Option<Key>,
    /// The state before the last token.
    end: Option<Kept>,
}

impl Reading {
    pub(super) fn new(prepared: Prepared, model: &Model, store: &Store) -> Result<Self> {
        let Prepared { job, begin, given } = prepared;
        let Begin {
            key,
            state,
            tokens,
            keys,
            n_cached,
            n_in_front,
            text,
            session,
        } = begin;
        let begin_state = state;
        let last_kept = begin_state.is_some().then_some(key);
        let state = match &begin_state {
            Some(state) => state.try_clone()?,
            None => model.try_new_state()?,
        };
        let n_inside_max = store.memory_max() / SHARE_OF_PROMPT / state.size_bytes().max(1) as u64;
        Ok(Reading {
            job,
            state,
            tokens,
            n_read: 0,
            keys,
            begin_key: key,
            begin_state,
            n_cached,
            n_in_front,
            has_begun: false,
            text,
            session,
            given,
            inside: Vec::new(),
            n_inside_max: usize::try_from(n_inside_max).unwrap_or(usize::MAX),
            last_kept,
            end: None,
        })
    }

    /// Tells the client that reading begins, once.
    pub(super) fn begin(&mut self, metrics: &ModelMetrics) {
        if !self.has_begun {
            self.has_begun = true;
            let n_cached = self.n_cached;
            metrics.tokens_reused.inc_by(n_cached as u64);
            let n_prompt = n_cached + self.tokens.len();
            let _ = self.job.events.send(Event::Began { n_prompt, n_cached });
        }
    }

    /// How many tokens to read next: at most so many, up to where a state is kept, and the last one alone, since the
    /// state before it is kept and behind it there are logits.
    pub(super) fn n_next(&self, n_max: usize) -> usize {
        let n_left = self.tokens.len() - self.n_read;
        if n_left == 1 {
            return 1;
        }
        let to_kept = KEPT_EVERY - self.state.n_tokens() % KEPT_EVERY;
        let to_kept = usize::try_from(to_kept).unwrap_or(usize::MAX);
        n_max.min(to_kept).min(n_left - 1)
    }

    /// Whether only the last token is left, whose logits an answer begins with.
    pub(super) fn is_at_last(&self) -> bool {
        self.tokens.len() - self.n_read == 1
    }

    /// The state has read so many more tokens.
    ///
    /// # Errors
    ///
    /// When there is no memory for a copy.
    pub(super) fn has_read(&mut self, n: usize, store: &Store) -> Result<()> {
        self.n_read += n;
        if self.is_at_last() {
            self.end = Some(self.kept(store)?);
            return Ok(());
        }
        let is_kept = self.state.n_tokens().is_multiple_of(KEPT_EVERY);
        if is_kept && self.n_inside_max > 0 {
            self.keep_inside(store)?;
        }
        Ok(())
    }

    fn key(&self) -> Key {
        match self.n_read {
            0 => self.begin_key,
            n => self.keys[n - 1],
        }
    }

    /// A copy of the state, which is in the store, too.
    fn kept(&mut self, store: &Store) -> Result<Kept> {
        let state = Arc::new(self.state.try_clone()?);
        let key = self.key();
        let kept = Kept {
            key,
            text: None,
            before: self.last_kept.replace(key),
            state,
        };
        store.keep(&self.job.owner, kept.clone());
        Ok(kept)
    }

    fn keep_inside(&mut self, store: &Store) -> Result<()> {
        if store.has(&self.job.owner, self.key()) {
            self.last_kept = Some(self.key());
            return Ok(());
        }
        self.kept(store)?;
        self.inside.push((self.state.n_tokens(), self.key()));
        if self.inside.len() > self.n_inside_max {
            // Of those that are closest together the oldest goes: what follows is edited more often than what is long past.
            let gap = |i: usize| {
                let before = i.checked_sub(1).map_or(0, |i| self.inside[i].0);
                self.inside[i + 1].0 - before
            };
            let thinned = (0..self.inside.len() - 1).min_by_key(|&i| gap(i));
            let (_, key) = self.inside.remove(thinned.unwrap_or(0));
            store.forget(&self.job.owner, key);
        }
        Ok(())
    }

    /// Tells how likely the tokens of the prompt were of which these are the next rows of logits.
    pub(super) fn tell_logprobs(&mut self, rows: &[&mut [f32]]) {
        let Some(n_top) = self.job.top_logprobs else {
            return;
        };
        let mut told = Vec::with_capacity(rows.len() + 1);
        if self.n_read == 0 && self.n_in_front == 0 {
            told.push(logprobs::unasked(self.tokens[0]));
        }
        let targets = self.tokens.iter().enumerate().skip(self.n_read + 1);
        for (row, (i, &target)) in rows.iter().zip(targets) {
            if i >= self.n_in_front {
                told.push(logprobs::chosen(row, target, n_top));
            }
        }
        let _ = self.job.events.send(Event::Prompt(told));
    }

    /// The whole prompt has been read: the job with its state and its room.
    pub(super) fn end(self) -> (Arc<Running>, State, Arc<Given>) {
        let n = self.tokens.len();
        let (key, before, state) = match self.end {
            Some(end) => (end.key, end.before, Some(end.state)),
            // There was nothing but the last token to read.
            None => (self.begin_key, None, self.begin_state),
        };
        let prompt_end = PromptEnd {
            key,
            before,
            state,
            token: self.tokens[n - 1],
        };
        let running = Running::new(self.job, self.text, prompt_end, self.session);
        (Arc::new(running), self.state, self.given)
    }
}
