//! One answer while it is drawn, token by token.

use std::sync::Arc;

use rwkv_edge::{Model, Result, Sampler, State, StopTexts, TextStream};
use rwkv_edge_chat::first_word;

use super::queue::Room;
use super::running::{Ended, Running};
use crate::constrain::Constraint;
use crate::job::{Chosen, Ending, Event};
use crate::logprobs;
use crate::store::{Kept, Key, Pending};

/// An answer, and the state that it is drawn behind.
pub(super) struct Sequence<'m> {
    pub(super) running: Arc<Running>,
    pub(super) state: State,
    /// The token that is read next: the one that was drawn last.
    pub(super) next: u32,
    choice: usize,
    room: Option<Room>,
    /// Of the state.
    key: Key,
    model: &'m Model,
    sampler: Sampler,
    constraint: Option<Constraint>,
    text: Option<TextStream<'m>>,
    stops: StopTexts,
    /// The text of all tokens that were drawn.
    drawn: String,
    n_drawn: usize,
    /// Whether a token without a text was drawn, such as one that ends texts and was told to be like others.
    has_silent: bool,
    /// Bytes of `drawn` that the state has read; `None` when it has read what these do not tell, such as a part of a
    /// character.
    n_read: Option<usize>,
    /// What that is when the next token has been read, too.
    n_read_next: Option<usize>,
    /// Where the answer may turn out to end: before the beginning of a stop text, or before blanks.
    mark: Option<Mark>,
    /// Bytes of the answer that the client has got.
    n_given: usize,
}

/// A state inside an answer.
struct Mark {
    state: State,
    key: Key,
    n_read: usize,
    /// What was drawn behind it.
    next: Option<u32>,
}

impl<'m> Sequence<'m> {
    /// An answer behind a state that has read the whole prompt.
    pub(super) fn new(
        running: &Arc<Running>,
        choice: usize,
        model: &'m Model,
        state: State,
        room: Room,
    ) -> Result<Self> {
        let job = &running.job;
        let mut sampling = job.sampling.clone();
        sampling.seed = sampling.seed.wrapping_add(choice as u64);
        let text = model.has_tokenizer().then(|| model.tokenizer());
        Ok(Sequence {
            running: running.clone(),
            state,
            next: 0,
            choice,
            room: Some(room),
            key: running.prompt_end.key.then(running.prompt_end.token),
            model,
            sampler: Sampler::new(sampling, model.n_vocab())?,
            constraint: job.constraint.clone(),
            text: text.transpose()?.map(TextStream::new),
            stops: StopTexts::new(job.stops.clone())?,
            drawn: String::new(),
            n_drawn: 0,
            has_silent: false,
            n_read: Some(0),
            n_read_next: Some(0),
            mark: None,
            n_given: 0,
        })
    }

    /// The state has read the next token.
    pub(super) fn has_read(&mut self) {
        self.key = self.key.then(self.next);
        self.n_read = self.n_read_next;
    }

    /// Draws a token by a row of logits, which it changes, and tells of it; what has ended, if it has.
    ///
    /// # Errors
    ///
    /// Those of the constraint, the tokenizer and memory.
    pub(super) fn draw(&mut self, logits: &mut [f32]) -> Result<Option<Ended>> {
        let running = self.running.clone();
        let job = &running.job;
        if job.max_new_tokens == Some(self.n_drawn) {
            return self.end(Ending::Length).map(Some);
        }
        let row = job.top_logprobs.map(|n_top| (n_top, logits.to_vec()));
        for &(token, bias) in &job.bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.apply(logits)?;
        }
        let token = match job.begins_with_word && self.drawn.trim().is_empty() {
            true => first_word(&mut self.sampler, logits, self.model)?,
            false => self.sampler.sample(logits),
        };
        let chosen = match row {
            Some((n_top, row)) => logprobs::chosen(&row, token, n_top),
            None => logprobs::unasked(token),
        };
        self.n_drawn += 1;
        if self.model.ends_text(token) && !job.ignore_end_of_text {
            self.tell(chosen, String::new());
            return self.end(Ending::Stop).map(Some);
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(token)?;
        }
        self.sampler.accept(token);
        self.next = token;
        let given = self.push(token)?;
        let is_held = self.n_given < self.drawn.len();
        if !is_held && !self.drawn.ends_with(char::is_whitespace) {
            self.mark = None;
        } else if let (None, Some(n_read)) = (&self.mark, self.n_read) {
            self.mark = Some(Mark {
                state: self.state.try_clone()?,
                key: self.key,
                n_read,
                next: self.drawn_next(),
            });
        }
        self.tell(chosen, given);
        if let Some(hit) = self.stops.hit() {
            let index = job.stops.iter().position(|stop| stop == hit);
            let ending = index.map_or(Ending::Stop, Ending::StopText);
            return self.end(ending).map(Some);
        }
        if self
            .constraint
            .as_ref()
            .is_some_and(Constraint::is_complete)
        {
            return self.end(Ending::Complete).map(Some);
        }
        if job.max_new_tokens == Some(self.n_drawn) {
            return self.end(Ending::Length).map(Some);
        }
        Ok(None)
    }

    /// The text of a drawn token; what of it is certain to be part of the answer.
    fn push(&mut self, token: u32) -> Result<String> {
        let Some(text) = &mut self.text else {
            return Ok(String::new());
        };
        let piece = text.push(token)?;
        self.drawn.push_str(piece);
        let given = self.stops.push(piece).to_owned();
        self.n_given += given.len();
        // A text does not tell of tokens that have none.
        self.has_silent |= self.model.tokenizer()?.token_bytes(token).is_none();
        let is_told = text.is_whole() && !self.has_silent;
        self.n_read_next = is_told.then_some(self.drawn.len());
        Ok(given)
    }

    /// The token that the state has not read, if that has a text.
    fn drawn_next(&self) -> Option<u32> {
        (self.n_read_next > self.n_read).then_some(self.next)
    }

    fn tell(&self, chosen: Chosen, text: String) {
        let choice = self.choice;
        self.running.tell(Event::Token {
            choice,
            chosen,
            text,
        });
    }

    /// What is kept, and what the client lacks.
    fn end(&mut self, ending: Ending) -> Result<Ended> {
        let mut rest = String::new();
        if let Some(text) = &mut self.text {
            if self.stops.hit().is_none() {
                let piece = text.finish()?;
                self.drawn.push_str(piece);
                rest.push_str(self.stops.push(piece));
            }
            if self.stops.hit().is_none() {
                rest.push_str(self.stops.flush());
            }
        }
        let answer = &self.drawn[..self.n_given + rest.len()];
        let job = &self.running.job;
        let remains = job.remains.as_ref().and_then(|remains| remains(answer));
        let remains = remains.as_deref().unwrap_or(answer);
        // The state that has read the most of what remains, and nothing else.
        let is_begin = |n_read: usize| {
            n_read <= remains.len()
                && remains.as_bytes()[..n_read] == self.drawn.as_bytes()[..n_read]
        };
        let kept = match (self.n_read, &self.mark) {
            (Some(n_read), _) if is_begin(n_read) => {
                Some((&self.state, self.key, n_read, self.drawn_next()))
            }
            (_, Some(mark)) if is_begin(mark.n_read) => {
                Some((&mark.state, mark.key, mark.n_read, mark.next))
            }
            _ => None,
        };
        let mut pending = Pending::default();
        if self.running.is_session() {
            // What remains of an answer that is not as it was drawn is read behind the prompt.
            let n_read = kept.map_or(0, |(_, _, n_read, _)| n_read);
            if kept.is_none() {
                pending.tokens.push(self.running.prompt_end.token);
            }
            if self.text.is_some() {
                let text = &remains[n_read..];
                let tokens = self.model.tokenizer()?.encode(text)?;
                pending.text = Some((tokens, text.to_owned()));
            }
        }
        let kept = kept.map(|(state, key, n_read, next)| -> Result<Kept> {
            // Nothing of an answer: the prompt itself is found by its tokens.
            let text = self.running.text.clone().filter(|_| n_read > 0);
            let text = text.map(|mut text| {
                text.push(&remains.as_bytes()[..n_read]);
                text.key(next)
            });
            let state = Arc::new(state.try_clone()?);
            Ok(Kept {
                key,
                text,
                before: Some(self.running.prompt_end.key),
                state,
            })
        });
        Ok(Ended {
            choice: self.choice,
            text: rest,
            ending,
            n_tokens: self.n_drawn,
            kept: kept.transpose()?,
            pending,
            room: self.room.take(),
        })
    }
}
