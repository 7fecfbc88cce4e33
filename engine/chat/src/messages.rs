//! Lists of messages, as programs hold conversations: written down for a model in one text, and its reply taken apart.

use rwkv_edge::{Model, Result};

use crate::own::WORLD_END_OF_TEXT;
use crate::template::{answered, cleaned, Template, TURN_END};
use crate::think::{Parted, Think};

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// Whoever says how answers are to be.
    System,
    /// Whoever asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// As programs write it: `system`, `user` or `assistant`.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// What somebody says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What; it is cleaned as the models' training texts were.
    pub text: String,
}

impl Message {
    /// A message of somebody.
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        Message {
            role,
            text: text.into(),
        }
    }
}

impl Template {
    /// What is fed for a list of messages, up to where the thought or the answer to them begins: parts of text, between
    /// which token 0 stands, which has no text. There is more than one part only with a template that came with a model.
    ///
    /// ```
    /// use rwkv_edge_chat::{Message, Role, Template, Think};
    ///
    /// let template: Template = "world".parse()?;
    /// let say = Message::new;
    /// let messages = [say(Role::User, "Hi"), say(Role::Assistant, "Hello."), say(Role::User, "Why?")];
    /// assert_eq!(
    ///     template.messages(&messages, Think::Off)?,
    ///     ["User: Hi\n\nAssistant: Hello.\n\nUser: Why?\n\nAssistant:"]
    /// );
    /// # Ok::<(), rwkv_edge::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`](rwkv_edge::ErrorKind::Argument) when thoughts are asked for in a form that has none,
    /// [`ErrorKind::Format`](rwkv_edge::ErrorKind::Format) when a
    /// template that came with a model fails on the messages.
    pub fn messages(&self, messages: &[Message], think: Think) -> Result<Vec<String>> {
        self.check_think(think)?;
        if let Some(own) = self.own() {
            let text = own.render_messages(messages, think)?;
            if !own.is_world {
                return Ok(vec![text]);
            }
            let parts = text.split(WORLD_END_OF_TEXT);
            return Ok(parts.map(str::to_owned).collect());
        }
        let mut text = String::new();
        for (i, message) in messages.iter().enumerate() {
            let is_last = i + 1 == messages.len();
            text += &match message.role {
                Role::System => self.system(&message.text),
                Role::Assistant => self.label(&self.answer_label()) + &self.answer(&message.text),
                Role::User if !self.is_dialogue() => self.turn(&message.text),
                Role::User => {
                    let length = if is_last { think.length() } else { "" };
                    let label = self.user_label();
                    format!("{label}{}{length}{TURN_END}", cleaned(&message.text))
                }
            };
        }
        if self.is_dialogue() {
            text += &self.label(&self.answer_label());
            text += think.opening();
        }
        Ok(vec![text])
    }

    /// Token ids of what is fed for a list of messages, and what takes the reply to them apart. `is_begin` says that the
    /// state has read nothing and is no tuned one: then the token that the model's texts begin with stands in front.
    ///
    /// # Errors
    ///
    /// Those of [`messages`](Self::messages) and of the model's tokenizer.
    pub fn prompt(
        &self,
        model: &Model,
        messages: &[Message],
        think: Think,
        is_begin: bool,
    ) -> Result<(Vec<u32>, Reply)> {
        let parts = self.messages(messages, think)?;
        let reply = Reply::behind(self, think, parts.last().map_or("", String::as_str));
        let tokenizer = model.tokenizer()?;
        let mut tokens: Vec<u32> = Vec::new();
        // A template that came with a model writes what a text begins with.
        if is_begin && parts.len() == 1 {
            tokens.extend(self.first_token(model));
        }
        for (i, part) in parts.iter().enumerate() {
            tokens.extend((i > 0).then_some(0));
            tokens.extend(tokenizer.encode(part)?);
        }
        Ok((tokens, reply))
    }

    /// An answer as it stands behind what was asked where the conversation goes on, the end of its turn included.
    pub fn answer(&self, text: &str) -> String {
        let text = text.replace("\r\n", "\n");
        let text = text.trim_end();
        if !self.is_dialogue() {
            return format!("{text}{TURN_END}");
        }
        answered(text)
    }

    /// Whether those who talk have names in it.
    fn is_dialogue(&self) -> bool {
        !self.answer_label().is_empty()
    }

    /// A name without the space behind its colon, which belongs to what is said.
    fn label(&self, shown: &str) -> String {
        shown.trim_end().to_owned()
    }
}

/// What a model writes as it comes: taken apart into the thought and the answer, without the space around both.
#[derive(Clone)]
pub struct Reply {
    parts: Parted,
    thought: Trimmed,
    answer: Trimmed,
}

impl Reply {
    /// Behind a prompt of [`Template::messages`], of which `prompt` is the last part.
    pub fn behind(template: &Template, think: Think, prompt: &str) -> Self {
        Reply {
            parts: match template.own() {
                Some(_) => Parted::behind_text(prompt),
                None => Parted::behind(think),
            },
            thought: Trimmed::new(true),
            // Elsewhere a text just goes on, with its space.
            answer: Trimmed::new(template.is_dialogue() || template.own().is_some()),
        }
    }

    /// Takes more of what was written, and gives what is certain to be more of the thought and of the answer.
    pub fn push(&mut self, piece: &str) -> (String, String) {
        let (thought, answer) = self.parts.push(piece);
        (self.thought.push(thought), self.answer.push(answer))
    }

    /// What the thought and the answer lacked at the end.
    pub fn finish(&mut self) -> (String, String) {
        let (thought, answer) = self.parts.finish();
        (self.thought.push(thought), self.answer.push(answer))
    }
}

/// A text that comes piece by piece without the space around it.
#[derive(Clone)]
struct Trimmed {
    /// Whether space in front of it is left out.
    trims_begin: bool,
    /// Space that is only part of the text if more comes.
    held: String,
}

impl Trimmed {
    fn new(trims_begin: bool) -> Self {
        Trimmed {
            trims_begin,
            held: String::new(),
        }
    }

    fn push(&mut self, piece: &str) -> String {
        let piece = match self.trims_begin {
            true => piece.trim_start(),
            false => piece,
        };
        let text = piece.trim_end();
        if text.is_empty() {
            self.held += piece;
            return String::new();
        }
        self.trims_begin = false;
        let all = std::mem::take(&mut self.held) + text;
        self.held = piece[text.len()..].to_owned();
        all
    }
}

#[cfg(test)]
mod tests {
    use rwkv_edge::ErrorKind;

    use super::*;

    fn messages(list: &[(Role, &str)]) -> Vec<Message> {
        let one = |&(role, text): &(Role, &str)| Message::new(role, text);
        list.iter().map(one).collect()
    }

    fn written(template: &str, list: &[(Role, &str)], think: Think) -> String {
        let template: Template = template.parse().expect("a template");
        let parts = template.messages(&messages(list), think);
        parts.expect("a text").concat()
    }

    #[test]
    fn messages_are_written_as_the_families_know_them() {
        use Role::{Assistant, System, User};
        let all = [
            (System, "Be kind.\n\nBe brief."),
            (User, " Hi\r\n\r\nyou "),
            (Assistant, " Hello.\n"),
            (User, "Why?"),
        ];
        assert_eq!(
            written("world", &all, Think::Off),
            "System: Be kind.\nBe brief.\n\nUser: Hi\nyou\n\nAssistant: Hello.\n\nUser: Why?\n\nAssistant:"
        );
        assert_eq!(
            written("g1", &all[1..], Think::Short),
            "User: Hi\nyou\n\nAssistant: Hello.\n\nUser: Why? (think a bit)\n\nAssistant: <think"
        );
        assert_eq!(
            written("raven", &all, Think::Off),
            "Be kind.\n\nBe brief.\n\nBob: Hi\nyou\n\nAlice: Hello.\n\nBob: Why?\n\nAlice:"
        );
        assert_eq!(
            written("world", &[(User, "a"), (User, "b")], Think::Off),
            "User: a\n\nUser: b\n\nAssistant:"
        );
        assert_eq!(
            written("plain", &[(User, "Ownership is")], Think::Off),
            "Ownership is"
        );
        assert_eq!(
            written(
                "plain",
                &[(User, "One"), (Assistant, " two "), (User, "three")],
                Think::Off
            ),
            "One two\n\nthree"
        );
        let instruct = written(
            "instruct",
            &[(User, "Add."), (Assistant, "3"), (User, "So?")],
            Think::Off,
        );
        assert!(instruct.contains("# Response:\n3\n\nBelow"), "{instruct}");
        assert!(instruct.ends_with("So?\n\n# Response:\n"), "{instruct}");
    }

    #[test]
    fn an_answer_stands_in_the_next_prompt_as_it_was_kept() {
        let template: Template = "world".parse().expect("a template");
        let first = written("world", &[(Role::User, "Hi")], Think::Off);
        let next = [
            (Role::User, "Hi"),
            (Role::Assistant, "Hello."),
            (Role::User, "So?"),
        ];
        let next = written("world", &next, Think::Off);
        let begun = first + &template.answer(" Hello.");
        assert_eq!(next.strip_prefix(&begun), Some("User: So?\n\nAssistant:"));
    }

    #[test]
    fn thoughts_are_refused_where_a_template_has_none() {
        let raven: Template = "raven".parse().expect("a template");
        let error = raven.messages(&messages(&[(Role::User, "Hi")]), Think::On);
        assert_eq!(error.expect_err("no thoughts").kind(), ErrorKind::Argument);
    }

    #[test]
    fn replies_come_apart_without_the_space_around_them() {
        let world: Template = "world".parse().expect("a template");
        let mut reply = Reply::behind(&world, Think::On, "");
        let (mut thought, mut answer) = (String::new(), String::new());
        for piece in [
            ">", "\nWell", " then", "\n</th", "ink>\n\n", " Yes", ",  ", "no", " \n",
        ] {
            let (more, text) = reply.push(piece);
            thought += &more;
            answer += &text;
        }
        thought += &reply.finish().0;
        assert_eq!((&*thought, &*answer), ("Well then", "Yes,  no"));
        let plain: Template = "plain".parse().expect("a template");
        let mut reply = Reply::behind(&plain, Think::Off, "");
        assert_eq!(reply.push(" a ").1 + &reply.push("b ").1, " a b");
    }
}
