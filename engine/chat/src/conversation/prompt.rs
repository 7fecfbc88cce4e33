//! What is fed for a turn: before its answer, and behind it where that is read again.

use rwkv_edge::{Result, State, Tokens};

use super::Conversation;
use crate::own::{OwnTemplate, WORLD_END_OF_TEXT};
use crate::template::TURN_END;
use crate::think::Think;

/// Texts of RWKV-7's training begin behind this token, which ends the one before. Other versions were trained so, too,
/// but are used without it.
const FIRST_TOKEN: u32 = 0;

impl Conversation {
    /// Tokens of a message up to where the thought or the answer begins.
    pub(super) fn prompt(&mut self, message: &str, think: Think) -> Result<Tokens> {
        let template = &self.transcript.template;
        match template.own().cloned() {
            Some(own) => self.encode_own(&own, Some(message), None),
            None => self.encode_next(&template.turn_with(message, think)),
        }
    }

    /// Tokens that the model's own template adds for a turn; or of the whole conversation, and the state is the empty
    /// one, where that is not what was read with more behind it.
    fn encode_own(
        &mut self,
        own: &OwnTemplate,
        message: Option<&str>,
        answer: Option<&str>,
    ) -> Result<Tokens> {
        let all = own.render(&self.transcript, message, answer)?;
        let read = match self.transcript.turns.is_empty() {
            true => String::new(),
            false => own.render(&self.transcript, None, None)?,
        };
        let rest = all.strip_prefix(&read).unwrap_or_else(|| {
            self.session.reset();
            all.as_str()
        });
        if !own.is_world {
            return self.encode(rest);
        }
        let mut tokens = Vec::new();
        for (i, text) in rest.split(WORLD_END_OF_TEXT).enumerate() {
            tokens.extend((i > 0).then_some(FIRST_TOKEN));
            tokens.extend_from_slice(&self.encode(text)?);
        }
        Ok(tokens.into())
    }

    /// Moves the state from before the turn behind it as the template writes it: as if the model had not thought, since
    /// the models were trained on conversations without the thoughts of earlier turns.
    pub(super) fn read_again(&mut self, before: &State, message: &str, answer: &str) -> Result<()> {
        self.session.restore(before, &[])?;
        if let Some(own) = self.transcript.template.own().cloned() {
            let tokens = self.encode_own(&own, Some(message), Some(answer))?;
            self.session.eval(&tokens)?;
            return Ok(());
        }
        let prompt = self.encode_next(&self.transcript.template.turn(message))?;
        self.session.eval(&prompt)?;
        let space = if answer.is_empty() { "" } else { " " };
        let answer = self.encode(&format!("{space}{answer}{TURN_END}"))?;
        self.session.eval(&answer)?;
        Ok(())
    }

    /// Tokens of a text that is fed next: at the beginning of a conversation behind the token that texts begin with.
    /// A tuned state is itself what comes in front of a text.
    pub(super) fn encode_next(&self, text: &str) -> Result<Tokens> {
        let tokens = self.encode(text)?;
        let (model, state) = (self.session.model(), self.session.state());
        let is_begin = state.n_tokens() == 0 && state.initial_hash().is_none();
        let is_world = self.transcript.template.is_world() && model.tokenizer()?.is_world();
        match is_begin && is_world && model.info().version == 7 {
            true => tokens.behind(FIRST_TOKEN),
            false => Ok(tokens),
        }
    }
}
