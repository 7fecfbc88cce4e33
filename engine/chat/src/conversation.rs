//! A conversation with a model: what was said, the state behind it, and the way back.
//!
//! The state is always that behind the text shown, every turn ended by a blank line, however an answer
//! ended: at its stop text, cut at a length, or by Ctrl-C. So what follows does not depend
//! on how it was cut into tokens or where it was interrupted. Nothing here touches a terminal.

use std::collections::VecDeque;
use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rwkv_edge::{
    Model, Progress, ProgressUnit, Reservation, Result, SamplerOptions, Session, State,
};

use self::draw::Written;
pub(crate) use self::known::Known;

use crate::options::{Event, Options};
use crate::said::{Answer, Ending, Transcript, Turn};
use crate::template::{cleaned, Template};
use crate::think::Think;

mod draw;
mod known;
mod prompt;

/// What `undo` undoes: the state before, and the text where more than the last turn changed.
struct Step {
    state: State,
    read: Option<Known>,
    replaced: Option<Transcript>,
}

/// States that are kept to go back to take at most so much memory; the oldest go first.
const UNDO_BYTES_MAX: usize = 64 << 20;

/// A conversation with a model: what was said, the state behind it, and the way back.
///
/// The state is always that behind the text, every turn ended by a blank line, however an answer ended. With a
/// template that came with the model, which alone knows what ends a turn, it is that behind the answer, or behind what
/// the model wrote next where the template writes the same.
pub struct Conversation {
    session: Session,
    transcript: Transcript,
    /// The state behind the system text, where it is known.
    begun: Option<State>,
    /// Which tokens the session has read, where a template that came with the model wrote them.
    read: Option<Known>,
    /// The state behind what of the last prompt stays in such a conversation.
    kept: Option<(Known, State)>,
    /// Memory of a state that is kept behind a prompt.
    kept_memory: Reservation,
    undo_bytes_max: usize,
    _undo: Reservation,
    /// Memory of what was said, and of a message that is being read.
    texts: Reservation,
    steps: VecDeque<Step>,
    options: Options,
    n_answers: u64,
}

impl Conversation {
    /// Begins with a system text, which may be empty; ends reading it early, as if there were none, when
    /// interrupted.
    ///
    /// # Errors
    ///
    /// When the model has no tokenizer, there is no memory for states to go back to, or the options make no
    /// sense, such as thoughts in a template that has none.
    pub fn new(model: &Model, template: Template, system: &str, options: Options) -> Result<Self> {
        template.check_think(options.think)?;
        let session = model.session();
        // With little memory, an eighth of what is left.
        let left = model.memory_left().map_or(u64::MAX, |left| left / 8);
        let undo_bytes_max =
            usize::try_from(left).map_or(UNDO_BYTES_MAX, |n| n.min(UNDO_BYTES_MAX));
        let mut conversation = Conversation {
            session,
            undo_bytes_max,
            _undo: model.reserve_memory(undo_bytes_max as u64)?,
            texts: model.reserve_memory(0)?,
            read: Some(Known::of(&[])),
            kept: None,
            kept_memory: model.reserve_memory(0)?,
            transcript: Transcript::new(template),
            begun: Some(model.new_state()),
            steps: VecDeque::new(),
            options,
            n_answers: 0,
        };
        if !system.trim().is_empty() {
            conversation.start_over(system)?;
            conversation.steps.clear();
        }
        // A wrong option is told before anything is said.
        conversation.sampler()?;
        conversation.stop_texts()?;
        Ok(conversation)
    }

    /// What was said so far.
    pub fn transcript(&self) -> &Transcript {
        &self.transcript
    }

    /// The model, and the state behind what was said.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// How answers are drawn.
    pub fn sampling(&self) -> &SamplerOptions {
        &self.options.sampling
    }

    /// Changes how answers are drawn from here on. With another seed the draws begin anew, as with
    /// [`set_seed`](Self::set_seed).
    ///
    /// # Errors
    ///
    /// Those of [`Sampler::new`](rwkv_edge::Sampler::new); all stays as it was then.
    pub fn set_sampling(&mut self, sampling: SamplerOptions) -> Result<()> {
        let is_new = sampling.seed != self.options.sampling.seed;
        let old = std::mem::replace(&mut self.options.sampling, sampling);
        if let Err(error) = self.sampler() {
            self.options.sampling = old;
            return Err(error);
        }
        if is_new {
            self.n_answers = 0;
        }
        Ok(())
    }

    /// Begins the draws anew: the next answer is drawn as the first one of a conversation with this seed.
    pub fn set_seed(&mut self, seed: u64) {
        self.options.sampling.seed = seed;
        self.n_answers = 0;
    }

    /// Changes how many tokens an answer has at most.
    pub fn set_max_new_tokens(&mut self, n: usize) {
        self.options.max_new_tokens = n;
    }

    /// Whether the model thinks before it answers. It does not where a conversation was loaded whose template has
    /// no thoughts.
    pub fn think(&self) -> Think {
        match self.transcript.template.check_think(self.options.think) {
            Ok(()) => self.options.think,
            Err(_) => Think::Off,
        }
    }

    /// Changes whether the model thinks before it answers.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`](rwkv_edge::ErrorKind::Argument) when the template has no thoughts.
    pub fn set_think(&mut self, think: Think) -> Result<()> {
        self.transcript.template.check_think(think)?;
        self.options.think = think;
        Ok(())
    }

    /// Turns and other changes that can be undone, and the bytes that their states take.
    pub fn undo_steps(&self) -> (usize, usize) {
        let n = self.steps.len();
        (n, n * self.session.state().size_bytes())
    }

    /// Says something and gives the answer, whose text goes to `on_text` as it comes, whole characters
    /// only. `None` when interrupted before there was any of it, and when `on_text` breaks off, since nobody
    /// hears the answer: nothing has changed then.
    ///
    /// A thought in front of the answer goes to [`Options::on_event`] as it comes. The conversation goes on
    /// without it: the state is that of one in which it was never thought.
    ///
    /// # Errors
    ///
    /// Those of [`Session::eval`]. Nothing has changed then, but where a device failed.
    pub fn say(
        &mut self,
        message: &str,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Option<Answer>> {
        self.hold_texts(message)?;
        let (before, read) = (self.session.state().clone(), self.read);
        let answer = match self.answer(message, on_text) {
            Ok(Some(answer)) => answer,
            other => {
                self.session.restore(&before, &[])?;
                return other;
            }
        };
        self.n_answers += 1;
        self.transcript.turns.push(Turn {
            user: cleaned(message),
            answer: answer.text.clone(),
        });
        self.push_step((before, read), None);
        Ok(Some(answer))
    }

    /// Counts what was said, and copies of a text that comes to it, against the model's memory limit.
    fn hold_texts(&mut self, new: &str) -> Result<()> {
        const COPIES: usize = 4;
        let turns = self.transcript.turns.iter();
        let said = turns.map(|turn| turn.user.len() + turn.answer.len());
        let said = self.transcript.system.len() + said.sum::<usize>();
        let bytes = said.saturating_add(new.len().saturating_mul(COPIES));
        self.texts
            .grow_to(bytes as u64, "the text of a conversation")
    }

    fn answer(
        &mut self,
        message: &str,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Option<Answer>> {
        let think = self.think();
        let prompt = self.prompt(message, think)?;
        // Until the turn has ended, that behind the last prompt is kept, too.
        let n_states = 1 + u64::from(self.kept.is_some());
        let size = self.session.state().size_bytes() as u64;
        self.kept_memory
            .grow_to(n_states * size, "the state behind a prompt")?;
        let start = Instant::now();
        let Some(kept) = self.feed(prompt.unread(), prompt.n_kept - prompt.n_read)? else {
            return Ok(None);
        };
        let prefill_time = start.elapsed();
        let start = Instant::now();
        let Some(written) = self.generate(prompt.parts.clone(), on_text)? else {
            return Ok(None);
        };
        let decode_time = start.elapsed();
        let answer = &written.parts.answer;
        if written.ending == Ending::Interrupted && answer.is_empty() {
            return Ok(None);
        }
        self.end_turn(message, &prompt, kept, &written)?;
        let thought = written.parts.thought.trim();
        let has_thought = think != Think::Off || !written.parts.begins_with_answer();
        Ok(Some(Answer {
            text: answer.trim().to_owned(),
            thought: has_thought.then(|| thought.to_owned()),
            ending: written.ending,
            n_prompt_tokens: prompt.unread().len(),
            n_tokens: written.tokens.len(),
            prefill_time,
            decode_time,
        }))
    }

    /// Goes back before the last turn, or the last change of the whole conversation. `None` when there
    /// is no way back; else what was taken back.
    ///
    /// # Errors
    ///
    /// When a device fails.
    pub fn undo(&mut self) -> Result<Option<Undone>> {
        let Some(step) = self.steps.pop_back() else {
            return Ok(None);
        };
        self.session.restore(&step.state, &[])?;
        self.read = step.read;
        match step.replaced {
            None => Ok(self.transcript.turns.pop().map(Undone::Turn)),
            Some(transcript) => {
                self.transcript = transcript;
                self.begun = None;
                Ok(Some(Undone::Replacement))
            }
        }
    }

    /// Begins a new conversation with the same system text. False when interrupted while reading it:
    /// nothing has changed then.
    ///
    /// # Errors
    ///
    /// Those of [`start_over`](Self::start_over).
    pub fn reset(&mut self) -> Result<bool> {
        let Some(begun) = self.begun.clone() else {
            let system = self.transcript.system.clone();
            return self.start_over(&system);
        };
        let before = (self.session.state().clone(), self.read);
        self.session.restore(&begun, &[])?;
        self.read = self.nothing_read();
        let mut old = self.transcript.clone();
        std::mem::swap(&mut old, &mut self.transcript);
        self.transcript.turns.clear();
        self.push_step(before, Some(old));
        Ok(true)
    }

    /// Begins a new conversation with another system text. False when interrupted while reading it:
    /// nothing has changed then.
    ///
    /// # Errors
    ///
    /// Those of [`Session::eval`]. Nothing has changed then, but where a device failed.
    pub fn start_over(&mut self, system: &str) -> Result<bool> {
        self.hold_texts(system)?;
        let before = self.session.state().clone();
        self.session.reset();
        self.begin(before, system)
    }

    /// Begins a new conversation with the same system text and another empty state, from a file. False when
    /// interrupted while reading the text: nothing has changed then.
    pub(crate) fn start_over_with(&mut self, initial: &Path) -> Result<bool> {
        let before = self.session.state().clone();
        self.session.load_state(initial)?;
        let system = self.transcript.system.clone();
        self.begin(before, &system)
    }

    /// Reads the system text of a new conversation behind the empty state; `before` is what there was.
    fn begin(&mut self, before: State, system: &str) -> Result<bool> {
        let read = self.read_system(system);
        if !matches!(read, Ok(true)) {
            self.session.restore(&before, &[])?;
            return read;
        }
        let template = self.transcript.template.clone();
        self.begun = Some(self.session.state().clone());
        let before = (before, self.read);
        self.read = self.nothing_read();
        self.replace(
            before,
            Transcript {
                template,
                system: system.to_owned(),
                turns: Vec::new(),
            },
        );
        Ok(true)
    }

    /// Goes on from a saved conversation. What [`reset`](Self::reset) goes back to is no part of it.
    pub(crate) fn resume(
        &mut self,
        state: &State,
        transcript: Transcript,
        read: Option<Known>,
    ) -> Result<()> {
        let before = (self.session.state().clone(), self.read);
        self.session.restore(state, &[])?;
        self.begun = None;
        self.read = read;
        self.replace(before, transcript);
        Ok(())
    }

    /// Which tokens a template that came with the model has written.
    pub(crate) fn read(&self) -> Option<Known> {
        self.transcript.template.own().and(self.read)
    }

    /// At the beginning of a conversation.
    fn nothing_read(&self) -> Option<Known> {
        let is_empty = self.session.state().n_tokens() == 0;
        is_empty.then(|| Known::of(&[]))
    }

    fn replace(&mut self, before: (State, Option<Known>), transcript: Transcript) {
        let old = std::mem::replace(&mut self.transcript, transcript);
        self.push_step(before, Some(old));
    }

    fn read_system(&mut self, system: &str) -> Result<bool> {
        let text = self.transcript.template.system(system);
        if text.is_empty() {
            return Ok(true);
        }
        let tokens = self.encode_next(&text)?;
        let Options {
            cache, on_event, ..
        } = &mut self.options;
        if let Some(cache) = cache {
            let mut note = |line: fmt::Arguments<'_>| on_event(Event::Note(&line.to_string()));
            if cache.load(&mut self.session, &text, &tokens, &mut note) {
                return Ok(true);
            }
        }
        if self.feed(&tokens, tokens.len())?.is_none() {
            return Ok(false);
        }
        let Options {
            cache, on_event, ..
        } = &mut self.options;
        if let Some(cache) = cache {
            let mut note = |line: fmt::Arguments<'_>| on_event(Event::Note(&line.to_string()));
            cache.save(&self.session, &text, &tokens, &mut note);
        }
        Ok(true)
    }

    /// Feeds tokens piece by piece, and gives the state behind the first `n_kept`. `None` when interrupted between two
    /// of them.
    fn feed(&mut self, tokens: &[u32], n_kept: usize) -> Result<Option<State>> {
        let fed = self.feed_pieces(tokens, n_kept);
        (self.options.on_event)(Event::ReadingEnded);
        fed
    }

    fn feed_pieces(&mut self, tokens: &[u32], n_kept: usize) -> Result<Option<State>> {
        let (mut done, total) = (0, tokens.len() as u64);
        let reading = |done| Event::Reading(Progress::new(ProgressUnit::Tokens, done, total));
        (self.options.on_event)(reading(done));
        let n_rows = self.session.model().prefill_rows();
        let (first, rest) = tokens.split_at(n_kept);
        let mut kept = None;
        for part in [first, rest] {
            for piece in part.chunks(n_rows) {
                if self.options.interrupted.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                self.session.eval(piece)?;
                done += piece.len() as u64;
                (self.options.on_event)(reading(done));
            }
            kept.get_or_insert_with(|| self.session.state().clone());
        }
        Ok(kept)
    }

    fn push_step(&mut self, (state, read): (State, Option<Known>), replaced: Option<Transcript>) {
        let n_max = (self.undo_bytes_max / state.size_bytes()).max(1);
        self.steps.push_back(Step {
            state,
            read,
            replaced,
        });
        while self.steps.len() > n_max {
            self.steps.pop_front();
        }
    }
}

impl fmt::Debug for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conversation")
            .field("transcript", &self.transcript)
            .finish_non_exhaustive()
    }
}

/// What was undone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Undone {
    /// The last turn.
    Turn(Turn),
    /// A reset, another system text, or a conversation that was loaded.
    Replacement,
}

#[cfg(test)]
mod tests;
