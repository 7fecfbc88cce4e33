//! What is fed for a turn: the prompt in front of its answer, and behind it what the conversation goes on with.
//!
//! The state behind what of a prompt stays in the conversation is kept while the answer is made, so that nothing of the
//! prompt is read twice: not where the answer was cut, not where thoughts are taken out, and not where the model's own
//! template writes the whole conversation anew for each turn.

use std::sync::Arc;

use rwkv_edge::{Result, State, Tokens};

use super::known::{n_common, Known};
use super::{Conversation, Written};
use crate::own::{Asked, OwnTemplate};
use crate::template::{answered, Template, TURN_END};
use crate::think::{Parted, Think};

/// Stands for what nobody has said yet, where a template is asked how it goes on.
const PLACEHOLDERS: [&str; 2] = ["A", "B"];

/// What is fed in front of an answer.
pub(super) struct Prompt {
    pub(super) tokens: Tokens,
    /// Of `tokens`, those that the state has read already.
    pub(super) n_read: usize,
    /// Of `tokens`, those that the conversation goes on with whatever is answered; at least `n_read`.
    pub(super) n_kept: usize,
    /// What stands behind these in the conversation, in place of the others.
    rest: Vec<u32>,
    /// Where the text that follows belongs.
    pub(super) parts: Parted,
}

impl Prompt {
    /// Tokens that are still to be read.
    pub(super) fn unread(&self) -> &[u32] {
        &self.tokens[self.n_read..]
    }
}

impl Conversation {
    /// The prompt for a message; the state is behind the first tokens of it.
    pub(super) fn prompt(&mut self, message: &str, think: Think) -> Result<Prompt> {
        let template = self.transcript.template.clone();
        match template.own() {
            Some(own) => self.prompt_of_own(own, message, think),
            None => self.prompt_of_form(&template, message, think),
        }
    }

    fn prompt_of_form(
        &mut self,
        template: &Template,
        message: &str,
        think: Think,
    ) -> Result<Prompt> {
        let tokens = self.encode_next(&template.turn_with(message, think))?;
        let parts = Parted::behind(think);
        let (n_kept, rest) = match think {
            Think::Off => (tokens.len(), Vec::new()),
            _ => {
                let kept = self.encode_next(&template.turn(message))?;
                let n_kept = n_common(&tokens, &kept);
                (n_kept, kept[n_kept..].to_vec())
            }
        };
        Ok(Prompt {
            tokens,
            n_read: 0,
            n_kept,
            rest,
            parts,
        })
    }

    /// A model's own template writes all of the conversation. Of the states behind what was read, that which has read
    /// most of it is gone on from.
    fn prompt_of_own(
        &mut self,
        own: &Arc<OwnTemplate>,
        message: &str,
        think: Think,
    ) -> Result<Prompt> {
        let said = &self.transcript;
        let asked = |asks| Asked {
            message,
            think,
            asks,
        };
        let text = own.render(said, None, &asked(true))?;
        // What it writes for an answer to come, which may open a thought.
        let without = own.render(said, None, &asked(false)).unwrap_or_default();
        let parts = Parted::behind_text(text.strip_prefix(&without).unwrap_or(&text));
        let next = Asked {
            message: PLACEHOLDERS[0],
            ..asked(true)
        };
        let next = own.render(said, Some((message, PLACEHOLDERS[0])), &next);
        let tokens = own.encode(self.session.model(), &text)?;
        let n_kept = match next {
            Ok(next) => n_common(&tokens, &own.encode(self.session.model(), &next)?),
            // What is wrong with it, the next turn will tell.
            Err(_) => tokens.len(),
        };
        let n_read = self.go_back_to(&tokens)?;
        Ok(Prompt {
            n_read,
            n_kept: n_kept.max(n_read),
            tokens,
            rest: Vec::new(),
            parts,
        })
    }

    /// Moves the state behind as many of these tokens as any that is known has read, but not behind all of them; gives
    /// their number.
    fn go_back_to(&mut self, tokens: &[u32]) -> Result<usize> {
        let fits = |known: &Known| known.n < tokens.len() && known.begins(tokens);
        let initial = self.session.state().initial_hash();
        let present = self.read.filter(fits).map(|known| known.n);
        let kept = self.kept.as_ref();
        let kept = kept.filter(|(known, state)| fits(known) && state.initial_hash() == initial);
        match (present, kept) {
            (Some(n), None) => Ok(n),
            (Some(n), Some((known, _))) if n >= known.n => Ok(n),
            (_, Some((known, state))) => {
                self.session.restore(state, &[])?;
                Ok(known.n)
            }
            (None, None) => {
                self.session.reset();
                Ok(0)
            }
        }
    }

    /// Moves the state from behind what the model wrote to where the conversation goes on: behind the answer as the
    /// template writes it, as if it had never thought, since the models were trained on conversations without the
    /// thoughts of earlier turns. `kept` is the state behind the first [`Prompt::n_kept`] tokens.
    pub(super) fn end_turn(
        &mut self,
        message: &str,
        prompt: &Prompt,
        kept: State,
        written: &Written,
    ) -> Result<()> {
        if let Some(own) = self.transcript.template.own().cloned() {
            return self.end_turn_of_own(&own, message, prompt, kept, written);
        }
        self.read = None;
        let model = self.session.model().clone();
        let (wanted, decoded) = if written.parts.begins_with_answer() {
            let wanted = format!("{}{TURN_END}", written.text.trim_end_matches('\n'));
            (wanted, Some(model.tokenizer()?.decode(&written.tokens)?))
        } else {
            (answered(&written.parts.answer), None)
        };
        // Mostly the model has just written that, or its beginning.
        let missing = match decoded.and_then(|decoded| wanted.strip_prefix(&decoded)) {
            Some(missing) => missing,
            None => {
                self.session.restore(&kept, &[])?;
                self.eval(&prompt.rest)?;
                &wanted
            }
        };
        let missing = self.encode(missing)?;
        self.eval(&missing)
    }

    fn end_turn_of_own(
        &mut self,
        own: &OwnTemplate,
        message: &str,
        prompt: &Prompt,
        kept: State,
        written: &Written,
    ) -> Result<()> {
        let first = &prompt.tokens[..prompt.n_kept];
        let has_read = [&prompt.tokens[..], &written.tokens].concat();
        let answer = written.parts.answer.trim();
        let next = self.goes_on_with(own, message, answer)?;
        let has_read = match next {
            // Mostly the model has just written that, or its beginning.
            Some(next) if next.answered.starts_with(&has_read) => {
                self.eval(&next.answered[has_read.len()..])?;
                next.answered
            }
            // Or that and the name of who is next, before which answers stop.
            Some(next) if next.all.starts_with(&has_read) => has_read,
            Some(next) if next.answered.starts_with(first) => {
                self.session.restore(&kept, &[])?;
                self.eval(&next.answered[first.len()..])?;
                next.answered
            }
            // It writes earlier turns otherwise, or not at all.
            _ => has_read,
        };
        self.read = Some(Known::of(&has_read));
        self.kept = Some((Known::of(first), kept));
        Ok(())
    }

    /// How a template goes on with an answer; `None` where it fails, which the next turn will tell, or where the answer
    /// is nowhere in what it writes.
    fn goes_on_with(
        &self,
        own: &OwnTemplate,
        message: &str,
        answer: &str,
    ) -> Result<Option<GoesOn>> {
        let think = self.think();
        let render = |placeholder| {
            let asked = Asked {
                message: placeholder,
                think,
                asks: true,
            };
            own.render(&self.transcript, Some((message, answer)), &asked)
        };
        let (Ok(one), Ok(other)) = (render(PLACEHOLDERS[0]), render(PLACEHOLDERS[1])) else {
            return Ok(None);
        };
        let common = one.char_indices().zip(other.chars());
        let differs = common
            .into_iter()
            .find(|((_, one), other)| one != other)
            .map_or(one.len().min(other.len()), |((at, _), _)| at);
        let all = &one[..differs];
        let Some(at) = all.rfind(answer) else {
            return Ok(None);
        };
        Ok(Some(GoesOn {
            answered: own
                .encode(self.session.model(), &all[..at + answer.len()])?
                .to_vec(),
            all: own.encode(self.session.model(), all)?.to_vec(),
        }))
    }

    fn eval(&mut self, tokens: &[u32]) -> Result<()> {
        if !tokens.is_empty() {
            self.session.eval(tokens)?;
        }
        Ok(())
    }

    /// Tokens of a text that is fed next: at the beginning of a conversation behind the token that texts begin with.
    /// A tuned state is itself what comes in front of a text.
    pub(super) fn encode_next(&self, text: &str) -> Result<Tokens> {
        let tokens = self.encode(text)?;
        let (model, state) = (self.session.model(), self.session.state());
        let is_begin = state.n_tokens() == 0 && state.initial_hash().is_none();
        match self
            .transcript
            .template
            .first_token(model)
            .filter(|_| is_begin)
        {
            Some(first) => tokens.behind(first),
            None => Ok(tokens),
        }
    }

    fn encode(&self, text: &str) -> Result<Tokens> {
        self.session.model().tokenize(text.as_bytes(), usize::MAX)
    }
}

/// The tokens of a conversation up to the end of an answer, and up to where the next message begins.
struct GoesOn {
    answered: Vec<u32>,
    all: Vec<u32>,
}
