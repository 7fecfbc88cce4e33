//! A list of messages as a model's own template writes it.

use minijinja::context;
use rwkv_edge::Result;

use super::{without_token, OwnTemplate};
use crate::messages::{Message, Role};
use crate::template::cleaned;
use crate::think::Think;

impl OwnTemplate {
    /// All messages as they are written, up to where the answer to them begins.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Format`](rwkv_edge::ErrorKind::Format), with the line, when the template fails, raises an error, or
    /// takes too long.
    pub(crate) fn render_messages(&self, messages: &[Message], think: Think) -> Result<String> {
        let written = messages.iter().map(|message| {
            // Nothing that is said stands for a token.
            let text = without_token(&message.text);
            let content = match message.role {
                Role::Assistant => text.trim().to_owned(),
                _ => cleaned(&text),
            };
            context! { role => message.role.name(), content => content }
        });
        self.write(written.collect(), think, true)
    }
}
