//! A conversation with a model: what was said, the state behind it, and the way back.
//!
//! The state is always that behind the text shown, every turn ended by a blank line, however an answer
//! ended: at its stop text, cut at a length, or by Ctrl-C. So what follows does not depend
//! on how it was cut into tokens or where it was interrupted. Nothing here touches a terminal.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use rwkv_edge::{
    Model, Reservation, Sampler, SamplerOptions, Session, State, StopTexts, TextStream,
};
use serde::{Deserialize, Serialize};

use super::prompt_cache::PromptCache;
use super::template::{without_blank_lines, Template, TURN_END};
use crate::progress::Progress;

/// What was said in one turn.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Turn {
    pub(crate) user: String,
    pub(crate) answer: String,
}

/// The text of a conversation.
#[derive(Clone)]
pub(crate) struct Transcript {
    pub(crate) template: Template,
    /// What the conversation began with, as the user gave it.
    pub(crate) system: String,
    pub(crate) turns: Vec<Turn>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ending {
    Stop,
    EndOfText,
    Length,
    Interrupted,
}

pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) ending: Ending,
    pub(crate) n_prompt_tokens: usize,
    pub(crate) n_tokens: usize,
    pub(crate) prefill_time: Duration,
    pub(crate) decode_time: Duration,
}

pub(crate) struct Options {
    pub(crate) sampling: SamplerOptions,
    pub(crate) max_new_tokens: usize,
    /// Texts that end an answer, beside the template's own.
    pub(crate) stop: Vec<String>,
    pub(crate) cache: Option<PromptCache>,
    /// Set from elsewhere to end what is going on.
    pub(crate) interrupted: Arc<AtomicBool>,
}

/// What `undo` undoes: the state before, and the text where more than the last turn changed.
struct Step {
    state: State,
    replaced: Option<Transcript>,
}

/// States that are kept to go back to take at most so much memory; the oldest go first.
const UNDO_BYTES_MAX: usize = 64 << 20;

/// A vocabulary has a few dozen tokens of line breaks and spaces; a model that wants nothing else may
/// have its way.
const PASSED_OVER_MAX: usize = 64;

pub(crate) struct Conversation {
    session: Session,
    transcript: Transcript,
    /// The state behind the system text, where it is known.
    begun: Option<State>,
    undo_bytes_max: usize,
    _undo: Reservation,
    steps: VecDeque<Step>,
    options: Options,
    n_answers: u64,
}

impl Conversation {
    /// Reads the system text; ends early, as if there were none, when interrupted.
    pub(crate) fn new(
        model: &Model,
        template: Template,
        system: &str,
        options: Options,
    ) -> Result<Self> {
        let session = model.session();
        // With little memory, an eighth of what is left.
        let left = model.memory_left().map_or(u64::MAX, |left| left / 8);
        let undo_bytes_max =
            usize::try_from(left).map_or(UNDO_BYTES_MAX, |n| n.min(UNDO_BYTES_MAX));
        let mut conversation = Conversation {
            session,
            undo_bytes_max,
            _undo: model.reserve_memory(undo_bytes_max as u64)?,
            transcript: Transcript {
                template,
                system: String::new(),
                turns: Vec::new(),
            },
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

    pub(crate) fn transcript(&self) -> &Transcript {
        &self.transcript
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    pub(crate) fn sampling(&self) -> &SamplerOptions {
        &self.options.sampling
    }

    /// Changes how answers are drawn from here on, by the names of the command's options.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<()> {
        fn parse<T: std::str::FromStr>(name: &str, value: &str) -> Result<T> {
            let parsed = value.parse().ok();
            parsed.with_context(|| format!("{name} {value}: not such a number"))
        }
        let (old, n_max) = (
            self.options.sampling.clone(),
            &mut self.options.max_new_tokens,
        );
        let sampling = &mut self.options.sampling;
        match name {
            "temperature" => sampling.temperature = parse(name, value)?,
            "top-p" => sampling.top_p = parse(name, value)?,
            "top-k" => sampling.top_k = parse(name, value)?,
            "presence-penalty" => sampling.presence_penalty = parse(name, value)?,
            "frequency-penalty" => sampling.frequency_penalty = parse(name, value)?,
            "repetition-penalty" => sampling.repetition_penalty = parse(name, value)?,
            "seed" => {
                sampling.seed = parse(name, value)?;
                self.n_answers = 0;
            }
            "max-new-tokens" => *n_max = parse(name, value)?,
            _ => bail!(
                "no setting {name}, expected temperature, top-p, top-k, presence-penalty, \
                 frequency-penalty, repetition-penalty, seed or max-new-tokens"
            ),
        }
        if let Err(error) = self.sampler() {
            self.options.sampling = old;
            return Err(error);
        }
        Ok(())
    }

    /// Turns and other changes that can be undone, and the memory that their states take.
    pub(crate) fn undo_steps(&self) -> (usize, usize) {
        let n = self.steps.len();
        (n, n * self.session.state().size_bytes())
    }

    /// Says something and gives the answer, whose text goes to `on_text` as it comes, whole characters
    /// only. `None` when interrupted before there was any of it: nothing has changed then.
    pub(crate) fn say(
        &mut self,
        message: &str,
        on_text: &mut dyn FnMut(&str) -> io::Result<()>,
    ) -> Result<Option<Answer>> {
        let before = self.session.state().clone();
        let answer = match self.answer(&before, message, on_text) {
            Ok(Some(answer)) => answer,
            other => {
                self.session.restore(&before, &[])?;
                return other;
            }
        };
        self.n_answers += 1;
        self.transcript.turns.push(Turn {
            user: without_blank_lines(message),
            answer: answer.text.clone(),
        });
        self.push_step(before, None);
        Ok(Some(answer))
    }

    fn answer(
        &mut self,
        before: &State,
        message: &str,
        on_text: &mut dyn FnMut(&str) -> io::Result<()>,
    ) -> Result<Option<Answer>> {
        let prompt = self.encode(&self.transcript.template.turn(message))?;
        let start = Instant::now();
        if !self.feed(&prompt)? {
            return Ok(None);
        }
        let prefill_time = start.elapsed();
        let start = Instant::now();
        let (tokens, text, ending) = self.generate(on_text)?;
        let decode_time = start.elapsed();
        if ending == Ending::Interrupted && text.is_empty() {
            return Ok(None);
        }
        self.end_turn(before, &prompt, &tokens, &text)?;
        Ok(Some(Answer {
            text: text.trim().to_owned(),
            ending,
            n_prompt_tokens: prompt.len(),
            n_tokens: tokens.len(),
            prefill_time,
            decode_time,
        }))
    }

    /// Draws and feeds tokens up to the end of the answer; gives them, the text before the stop text,
    /// and why there is no more.
    fn generate(
        &mut self,
        on_text: &mut dyn FnMut(&str) -> io::Result<()>,
    ) -> Result<(Vec<u32>, String, Ending)> {
        let model = self.session.model().clone();
        let mut sampler = self.sampler()?;
        let mut stops = self.stop_texts()?;
        let mut stream = TextStream::new(model.tokenizer()?);
        let mut tokens = Vec::new();
        let mut text = String::new();
        let ending = loop {
            if self.options.interrupted.load(Ordering::Relaxed) {
                break Ending::Interrupted;
            }
            if tokens.len() == self.options.max_new_tokens {
                break Ending::Length;
            }
            let Some(logits) = self.session.logits() else {
                break Ending::EndOfText;
            };
            let token = match text.trim().is_empty() {
                true => first_word(&mut sampler, logits, &model)?,
                false => sampler.sample(logits),
            };
            if token == model.end_of_text() {
                break Ending::EndOfText;
            }
            sampler.accept(token);
            tokens.push(token);
            let piece = stops.push(stream.push(token)?);
            text.push_str(piece);
            on_text(piece)?;
            self.session.eval(&[token])?;
            if stops.hit().is_some() {
                break Ending::Stop;
            }
        };
        // What might have become a stop text is text; a character that is not whole is left out.
        let rest = stops.flush();
        text.push_str(rest);
        on_text(rest)?;
        Ok((tokens, text, ending))
    }

    /// Moves the state behind the answer's text and a blank line. Mostly the model has just written
    /// that, or its beginning; else the turn is read again as it is shown.
    fn end_turn(
        &mut self,
        before: &State,
        prompt: &[u32],
        tokens: &[u32],
        text: &str,
    ) -> Result<()> {
        let wanted = format!("{}{TURN_END}", text.trim_end_matches('\n'));
        let model = self.session.model().clone();
        let written = model.tokenizer()?.decode(tokens)?;
        let missing = match wanted.strip_prefix(&written) {
            Some(rest) => self.encode(rest)?,
            None => {
                self.session.restore(before, &[])?;
                self.session.eval(prompt)?;
                self.encode(&wanted)?
            }
        };
        if !missing.is_empty() {
            self.session.eval(&missing)?;
        }
        Ok(())
    }

    /// Goes back before the last turn, or the last change of the whole conversation. `None` when there
    /// is no way back; else whether a turn was taken back.
    pub(crate) fn undo(&mut self) -> Result<Option<Undone>> {
        let Some(step) = self.steps.pop_back() else {
            return Ok(None);
        };
        self.session.restore(&step.state, &[])?;
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
    pub(crate) fn reset(&mut self) -> Result<bool> {
        let Some(begun) = self.begun.clone() else {
            let system = self.transcript.system.clone();
            return self.start_over(&system);
        };
        let before = self.session.state().clone();
        self.session.restore(&begun, &[])?;
        let mut old = self.transcript.clone();
        std::mem::swap(&mut old, &mut self.transcript);
        self.transcript.turns.clear();
        self.push_step(before, Some(old));
        Ok(true)
    }

    /// Begins a new conversation with another system text. False when interrupted while reading it:
    /// nothing has changed then.
    pub(crate) fn start_over(&mut self, system: &str) -> Result<bool> {
        let before = self.session.state().clone();
        self.session.reset();
        let read = self.read_system(system);
        if !matches!(read, Ok(true)) {
            self.session.restore(&before, &[])?;
            return read;
        }
        let template = self.transcript.template.clone();
        self.begun = Some(self.session.state().clone());
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

    /// Goes on from a saved conversation.
    pub(crate) fn resume(&mut self, state: &State, transcript: Transcript) -> Result<()> {
        let before = self.session.state().clone();
        self.session.restore(state, &[])?;
        self.begun = None;
        self.replace(before, transcript);
        Ok(())
    }

    fn replace(&mut self, before: State, transcript: Transcript) {
        let old = std::mem::replace(&mut self.transcript, transcript);
        self.push_step(before, Some(old));
    }

    fn read_system(&mut self, system: &str) -> Result<bool> {
        let text = self.transcript.template.system(system);
        let tokens = self.encode(&text)?;
        if tokens.is_empty() {
            return Ok(true);
        }
        if let Some(cache) = &self.options.cache {
            if cache.load(&mut self.session, &text, &tokens) {
                return Ok(true);
            }
        }
        if !self.feed(&tokens)? {
            return Ok(false);
        }
        if let Some(cache) = &self.options.cache {
            cache.save(&self.session, &text, &tokens);
        }
        Ok(true)
    }

    /// Feeds tokens piece by piece. False when interrupted between two of them.
    fn feed(&mut self, tokens: &[u32]) -> Result<bool> {
        let mut progress = Progress::after_a_second("reading");
        let mut n_done = 0;
        for piece in tokens.chunks(self.session.model().prefill_rows()) {
            if self.options.interrupted.load(Ordering::Relaxed) {
                return Ok(false);
            }
            self.session.eval(piece)?;
            n_done += piece.len();
            progress.show(n_done as u64, tokens.len() as u64);
        }
        Ok(true)
    }

    fn push_step(&mut self, state: State, replaced: Option<Transcript>) {
        let n_max = (self.undo_bytes_max / state.size_bytes()).max(1);
        self.steps.push_back(Step { state, replaced });
        while self.steps.len() > n_max {
            self.steps.pop_front();
        }
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.session.model().tokenizer()?.encode(text)?)
    }

    /// Penalties count the tokens of one answer. Every answer has another seed, the first the one
    /// that was given.
    fn sampler(&self) -> Result<Sampler> {
        let mut options = self.options.sampling.clone();
        options.seed = options.seed.wrapping_add(self.n_answers);
        Ok(Sampler::new(options, self.session.model().n_vocab())?)
    }

    fn stop_texts(&self) -> Result<StopTexts> {
        let own = self.transcript.template.stop().to_owned();
        let all = std::iter::once(own).chain(self.options.stop.iter().cloned());
        Ok(StopTexts::new(all.collect())?)
    }
}

/// Draws the token that an answer begins with, passing over those that would end it before there is a
/// word: small models often see the blank line behind a question as the end of everything.
fn first_word(sampler: &mut Sampler, logits: &[f32], model: &Model) -> Result<u32> {
    let tokenizer = model.tokenizer()?;
    let mut logits = logits.to_vec();
    for _ in 0..PASSED_OVER_MAX {
        let token = sampler.sample(&logits);
        let text = tokenizer.decode(&[token])?;
        let is_line_break = text.contains('\n') && text.trim().is_empty();
        if token != model.end_of_text() && !is_line_break {
            return Ok(token);
        }
        logits[token as usize] = f32::NEG_INFINITY;
    }
    Ok(sampler.sample(&logits))
}

/// What was undone.
pub(crate) enum Undone {
    Turn(Turn),
    /// A reset, another system text, or a conversation that was loaded.
    Replacement,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// States to go back to are bounded, and the latest are the ones that stay.
    #[test]
    fn the_way_back_is_long_but_not_endless() -> Result<()> {
        let model = Model::open("demo", &rwkv_edge::Options::default())?;
        let options = Options {
            sampling: SamplerOptions::default(),
            max_new_tokens: 1,
            stop: Vec::new(),
            cache: None,
            interrupted: Arc::default(),
        };
        let plain: Template = "plain".parse().map_err(anyhow::Error::msg)?;
        let mut conversation = Conversation::new(&model, plain, "", options)?;
        let n_max = UNDO_BYTES_MAX / model.new_state().size_bytes();
        for _ in 0..n_max + 5 {
            assert!(conversation.reset()?);
        }
        let said = conversation.say("Hello", &mut |_| Ok(()))?;
        assert_eq!(said.map(|answer| answer.n_tokens), Some(1));
        assert_eq!(conversation.undo_steps().0, n_max);
        assert!(conversation.undo_steps().1 <= UNDO_BYTES_MAX);
        assert!(matches!(conversation.undo()?, Some(Undone::Turn(_))));
        for _ in 1..n_max {
            assert!(matches!(conversation.undo()?, Some(Undone::Replacement)));
        }
        assert!(conversation.undo()?.is_none());
        Ok(())
    }

    /// Nothing has changed when an interruption comes before the first word.
    #[test]
    fn interrupted_before_the_answer_nothing_was_said() -> Result<()> {
        let model = Model::open("demo", &rwkv_edge::Options::default())?;
        let interrupted = Arc::new(AtomicBool::new(false));
        let options = Options {
            sampling: SamplerOptions::default(),
            max_new_tokens: 9,
            stop: Vec::new(),
            cache: None,
            interrupted: interrupted.clone(),
        };
        let plain: Template = "plain".parse().map_err(anyhow::Error::msg)?;
        let mut conversation = Conversation::new(&model, plain, "A system text.", options)?;
        let before = conversation.session.state().clone();
        interrupted.store(true, Ordering::Relaxed);
        assert!(conversation.say("Hello", &mut |_| Ok(()))?.is_none());
        assert!(!conversation.start_over("Another text.")?);
        assert!(*conversation.session.state() == before);
        assert_eq!(conversation.transcript.system, "A system text.");
        assert_eq!(conversation.undo_steps().0, 0);
        // A reader that has gone: the turn is taken back, too.
        interrupted.store(false, Ordering::Relaxed);
        let closed = |_: &str| Err(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(conversation.say("Hello", &mut { closed }).is_err());
        assert!(*conversation.session.state() == before);
        Ok(())
    }
}
