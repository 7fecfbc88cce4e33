//! A list of messages as a model's own template writes it.

use minijinja::{context, Value};
use rwkv_edge::Result;

use super::{without_token, OwnTemplate, END_OF_TEXT_20B, WORLD_END_OF_TEXT};
use crate::messages::{Message, Role};
use crate::template::cleaned;

impl OwnTemplate {
    /// All messages as they are written, up to where the answer to them begins.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Format`](rwkv_edge::ErrorKind::Format), with the line, when the template fails, raises an error, or
    /// takes too long.
    pub(crate) fn render_messages(&self, messages: &[Message]) -> Result<String> {
        let written = messages.iter().map(|message| {
            // Nothing that is said stands for a token.
            let text = without_token(&message.text);
            let content = match message.role {
                Role::Assistant => text.trim().to_owned(),
                _ => cleaned(&text),
            };
            context! { role => message.role.name(), content => content }
        });
        let named = match self.is_world {
            true => WORLD_END_OF_TEXT,
            false => END_OF_TEXT_20B,
        };
        let token = |found: &Option<String>| match found {
            Some(token) if !self.is_world => token.clone(),
            _ => named.to_owned(),
        };
        self.run(context! {
            messages => written.collect::<Vec<Value>>(),
            add_generation_prompt => true,
            bos_token => token(&self.found.bos_token),
            eos_token => token(&self.found.eos_token),
        })
    }
}
