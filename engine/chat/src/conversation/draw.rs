//! Drawing an answer, token by token.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use rwkv_edge::{Error, ErrorKind, Result, Sampler, StopTexts, TextStream};

use super::Conversation;
use crate::first_word::first_word;
use crate::options::Event;
use crate::said::Ending;
use crate::think::Parted;

/// What the model wrote after a prompt.
pub(super) struct Written {
    pub(super) tokens: Vec<u32>,
    /// Up to the stop text.
    pub(super) text: String,
    pub(super) parts: Parted,
    pub(super) ending: Ending,
}

impl Conversation {
    /// Draws and feeds tokens up to the end of the answer. `None` where `on_text` breaks off.
    pub(super) fn generate(
        &mut self,
        mut parts: Parted,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Option<Written>> {
        let model = self.session.model().clone();
        let mut sampler = self.sampler()?;
        let mut stops = self.stop_texts()?;
        let mut stream = TextStream::new(model.tokenizer()?);
        let mut tokens = Vec::new();
        let mut text = String::new();
        let mut tell = |piece: &str, on_event: &mut dyn FnMut(Event<'_>)| {
            let (thought, answer) = parts.push(piece);
            if !thought.is_empty() {
                on_event(Event::Thought(thought));
            }
            on_text(answer)
        };
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
                true => first_word(&mut sampler, &mut copied(logits)?, &model)?,
                false => sampler.sample(logits),
            };
            if model.ends_text(token) {
                break Ending::EndOfText;
            }
            sampler.accept(token);
            tokens.push(token);
            let piece = stops.push(stream.push(token)?);
            text.push_str(piece);
            if tell(piece, &mut self.options.on_event).is_break() {
                return Ok(None);
            }
            self.session.eval(&[token])?;
            if stops.hit().is_some() {
                break Ending::Stop;
            }
        };
        // What might have become a stop text is text; a character that is not whole is left out.
        let rest = stops.flush();
        text.push_str(rest);
        if tell(rest, &mut self.options.on_event).is_break() {
            return Ok(None);
        }
        let (thought, answer) = parts.finish();
        if !thought.is_empty() {
            (self.options.on_event)(Event::Thought(thought));
        }
        if on_text(answer).is_break() {
            return Ok(None);
        }
        Ok(Some(Written {
            tokens,
            text,
            parts,
            ending,
        }))
    }

    /// Penalties count the tokens of one answer. Every answer has another seed, the first the one
    /// that was given.
    pub(super) fn sampler(&self) -> Result<Sampler> {
        let mut options = self.options.sampling.clone();
        options.seed = options.seed.wrapping_add(self.n_answers);
        Sampler::new(options, self.session.model().n_vocab())
    }

    pub(super) fn stop_texts(&self) -> Result<StopTexts> {
        let own = self.transcript.template.stop_with(self.think());
        let own = Some(own).filter(|own| !own.is_empty());
        let all = own.into_iter().chain(self.options.stop.iter().cloned());
        StopTexts::new(all.collect())
    }
}

fn copied(logits: &[f32]) -> Result<Vec<f32>> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(logits.len()).map_err(|e| {
        let text = format!("not enough memory for a row of logits: {e}");
        Error::new(ErrorKind::Memory, text)
    })?;
    copy.extend_from_slice(logits);
    Ok(copy)
}
