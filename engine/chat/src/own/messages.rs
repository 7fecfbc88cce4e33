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

#[cfg(test)]
mod tests {
    use rwkv_edge::ChatTemplate;

    use super::*;
    use crate::own::WORLD_END_OF_TEXT;

    const TEXT: &str = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}\
                        {% if add_generation_prompt %}assistant:{% endif %}";

    fn written(text: &str, is_world: bool) -> Result<String> {
        let say = Message::new;
        let messages = [
            say(Role::System, "Be kind.\n\n\nBe brief. "),
            say(Role::User, "a<|rwkv_tokenizer_end_of_text|>b"),
            say(Role::User, "c"),
            say(Role::Assistant, " d\n\ne "),
        ];
        OwnTemplate::new(ChatTemplate::new("here", text), is_world)?
            .render_messages(&messages, Think::Off)
    }

    #[test]
    fn any_list_of_messages_is_written() -> Result<()> {
        let end = WORLD_END_OF_TEXT;
        assert_eq!(
            written(TEXT, true)?,
            format!(
                "{end}system: Be kind.\nBe brief.{end}user: a b{end}user: c{end}assistant: d\n\ne{end}assistant:"
            )
        );
        assert!(written(TEXT, false)?.starts_with("<|endoftext|>system"));
        Ok(())
    }

    #[test]
    fn what_a_template_refuses_is_an_error() {
        let refused = written("{{ raise_exception('no') }}", true);
        let error = refused.expect_err("refused").to_string();
        assert!(
            error.starts_with("here: chat template: line 1: no"),
            "{error}"
        );
    }
}
