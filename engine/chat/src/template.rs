//! How a conversation is written down for a model: names, blank lines, where an answer ends.
//!
//! The RWKV families were trained on dialogues in which a blank line ends a turn, so a message must
//! not hold one, and there is no space behind the colon that the answer follows: the answer's first
//! token brings its own.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rwkv_edge::{ChatTemplate, Error, ErrorKind, Model};

use crate::own::OwnTemplate;
use crate::think::Think;

/// The form of a conversation.
///
/// Its text form, which [`FromStr`] reads and [`name`](Self::name) gives, is one of `raven` (Bob/Alice),
/// `world` (User/Assistant) and `g1`, another name of the same form, `qa` (Question/Answer), `instruct`
/// (a task and its response), `plain` (the text alone, which the model goes on with), or any two names
/// such as `Ann/Robot`.
///
/// ```
/// use rwkv_edge_chat::Template;
///
/// let template: Template = "world".parse()?;
/// assert_eq!(template.turn("Why?"), "User: Why?\n\nAssistant:");
/// # Ok::<(), rwkv_edge::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    name: String,
    form: Form,
}

#[derive(Clone, Debug, PartialEq)]
enum Form {
    /// `User: …`, blank line, `Assistant:`
    Dialogue { user: String, assistant: String },
    /// One task after another, as instruction-tuned Raven models know them.
    Instruct,
    /// The text alone: the model goes on with it.
    Plain,
    /// What came with the model.
    Own(Arc<OwnTemplate>),
}

/// Name of the template that came with a model.
pub(crate) const OWN: &str = "model";

/// What older GGUF files say in place of a template: the form of the World models.
const WORLD_IN_GGUF: &str = "rwkv-world";

/// Texts of RWKV-7's training begin behind this token, which ends the one before. Other versions were trained so, too,
/// but are used without it.
const FIRST_TOKEN: u32 = 0;

/// Ends every turn.
pub const TURN_END: &str = "\n\n";

const INSTRUCTION: &str = "Below is an instruction that describes a task. Write a response that \
                           appropriately completes the request.\n\n# Instruction:\n";
const RESPONSE: &str = "\n\n# Response:\n";

impl Template {
    /// That of the model's family, or plain text where there is no telling.
    pub fn of(model: &Model) -> Self {
        let is_world = model
            .tokenizer()
            .is_ok_and(|tokenizer| tokenizer.is_world());
        match model.n_vocab() {
            65_536 => Self::named("world"),
            _ if is_world => Self::named("world"),
            50_277 => Self::named("raven"),
            _ => Self::named("plain"),
        }
    }

    /// A template that came with a model: a program in Jinja, or a word that stands for the form of the World models.
    /// It is given the whole conversation and writes all of it; where that no longer begins with what was read, all
    /// of it is read again. `model` is that which reads it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Format`], with the line, when it is no Jinja.
    pub fn of_files(found: ChatTemplate, model: &Model) -> Result<Self, Error> {
        if found.text.trim() == WORLD_IN_GGUF {
            return Ok(Self::named("world"));
        }
        let is_world = model.tokenizer().is_ok_and(|one| one.is_world());
        Ok(Template {
            name: OWN.into(),
            form: Form::Own(Arc::new(OwnTemplate::new(found, is_world)?)),
        })
    }

    /// The program, where it came with a model.
    pub(crate) fn own(&self) -> Option<&Arc<OwnTemplate>> {
        match &self.form {
            Form::Own(own) => Some(own),
            _ => None,
        }
    }

    /// Whether a model can be asked for such a thought in this form: for any with the form of the World models, and with
    /// a template that came with a model for [`Think::On`] and [`Think::Fake`], if it knows `enable_thinking` as
    /// transformers does.
    pub fn can_think(&self, think: Think) -> bool {
        match (think, self.own()) {
            (Think::Off, _) => true,
            (Think::On | Think::Fake, Some(own)) => own.has_thoughts,
            (_, Some(_)) => false,
            (_, None) => self.is_world(),
        }
    }

    fn named(name: &str) -> Self {
        let dialogue = |user: &str, assistant: &str| Form::Dialogue {
            user: user.into(),
            assistant: assistant.into(),
        };
        let form = match name {
            "raven" => dialogue("Bob", "Alice"),
            "world" | "g1" => dialogue("User", "Assistant"),
            "qa" => dialogue("Question", "Answer"),
            "instruct" => Form::Instruct,
            _ => Form::Plain,
        };
        Template {
            name: name.into(),
            form,
        }
    }

    /// Whether the model is given the text alone.
    pub fn is_plain(&self) -> bool {
        self.form == Form::Plain
    }

    /// Whether it is the form of the World and G1 models, which has system texts of its own and thoughts.
    pub fn is_world(&self) -> bool {
        matches!(self.name.as_str(), "world" | "g1")
    }

    /// What is fed before the first turn; nothing where a template that came with a model writes it with the turns.
    ///
    /// The World models know `System: …` in one paragraph. A text that is a dialogue itself, which is told
    /// by a name that it begins with, is left as it is, and so are the texts of other forms, whose models
    /// know no other system text than the beginning of a conversation.
    pub fn system(&self, text: &str) -> String {
        let is_dialogue = |text: &str| {
            ["System:", "User:", "Assistant:"]
                .iter()
                .any(|name| text.trim_start().starts_with(name))
        };
        if self.own().is_some() {
            return String::new();
        }
        if self.is_world() && !is_dialogue(text) {
            let text = cleaned(text);
            return match text.is_empty() {
                true => text,
                false => format!("System: {text}{TURN_END}"),
            };
        }
        let text = text.replace("\r\n", "\n");
        match text.trim_end() {
            "" => String::new(),
            text => format!("{text}{TURN_END}"),
        }
    }

    /// What is fed for a message, up to where the answer begins; the message alone where a template that came with a
    /// model writes whole conversations.
    pub fn turn(&self, message: &str) -> String {
        let message = cleaned(message);
        match &self.form {
            Form::Dialogue { user, assistant } => {
                format!("{user}: {message}{TURN_END}{assistant}:")
            }
            Form::Instruct => format!("{INSTRUCTION}{message}{RESPONSE}"),
            Form::Plain | Form::Own(_) => message,
        }
    }

    /// What is fed for a message that the model thinks about, up to where its thought, or behind an empty one
    /// its answer, begins. The closing `>` is the model's to write: it was trained on tokens in which the
    /// bracket belongs to what follows. As [`turn`](Self::turn) where the form has no thoughts.
    pub fn turn_with(&self, message: &str, think: Think) -> String {
        if !self.is_world() || think == Think::Off {
            return self.turn(message);
        }
        let message = cleaned(message);
        let turn = self.turn(&format!("{message}{}", think.length()));
        format!("{turn}{}", think.opening())
    }

    /// The token that a conversation with this model begins with, where nothing else does.
    pub(crate) fn first_token(&self, model: &Model) -> Option<u32> {
        let is_world = self.is_world() && model.tokenizer().is_ok_and(|one| one.is_world());
        (is_world && model.info().version == 7).then_some(FIRST_TOKEN)
    }

    pub(crate) fn check_think(&self, think: Think) -> Result<(), Error> {
        let text = match self.own() {
            _ if self.can_think(think) => return Ok(()),
            None => format!("think {think}: template {self} has no thoughts, expected world"),
            Some(own) if own.has_thoughts => format!(
                "think {think}: the model's own template knows thoughts of one length, expected on, fake or off"
            ),
            Some(_) => format!(
                "think {think}: the model's own template has no thoughts to ask for (nothing in it depends on \
                 enable_thinking)"
            ),
        };
        Err(Error::new(ErrorKind::Argument, text))
    }

    /// The text that ends an answer without thoughts; empty where only the end of text does.
    pub fn stop(&self) -> &'static str {
        match &self.form {
            // It may write paragraphs; a new turn must not begin.
            Form::Own(own) if own.is_world => "\n\nUser:",
            Form::Own(_) => "",
            // Responses to tasks may have paragraphs; a new task must not begin.
            Form::Instruct => "\n\n# ",
            _ => TURN_END,
        }
    }

    /// The text that ends an answer, and the thought before it: models that think write paragraphs in both, so
    /// that a blank line ends nothing, but the user's next line does.
    pub fn stop_with(&self, think: Think) -> String {
        match &self.form {
            Form::Dialogue { user, .. } if self.is_world() && think != Think::Off => {
                format!("{TURN_END}{user}:")
            }
            _ => self.stop().to_owned(),
        }
    }

    /// What stands before the user's line where a conversation is shown to people.
    pub fn user_label(&self) -> String {
        match &self.form {
            Form::Dialogue { user, .. } => format!("{user}: "),
            _ => "> ".into(),
        }
    }

    /// What stands before the answer where a conversation is shown to people.
    pub fn answer_label(&self) -> String {
        match &self.form {
            Form::Dialogue { assistant, .. } => format!("{assistant}: "),
            _ => String::new(),
        }
    }

    /// The text form, from which the template can be read again.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for Template {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if ["raven", "world", "g1", "qa", "instruct", "plain"].contains(&text) {
            return Ok(Self::named(text));
        }
        let is_name = |name: &str| !name.trim().is_empty() && !name.contains(['\n', '/']);
        match text.split_once('/') {
            Some((user, assistant)) if is_name(user) && is_name(assistant) => Ok(Template {
                name: text.into(),
                form: Form::Dialogue {
                    user: user.trim().into(),
                    assistant: assistant.trim().into(),
                },
            }),
            _ => Err(Error::new(
                ErrorKind::Argument,
                "expected raven, world, g1, qa, instruct, plain, or two names such as Ann/Robot",
            )),
        }
    }
}

/// For people, with the names of those who talk.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.form {
            Form::Dialogue { user, assistant } if !self.name.contains('/') => {
                write!(f, "{} ({user}/{assistant})", self.name)
            }
            _ => f.write_str(&self.name),
        }
    }
}

/// What stands behind [`Template::turn`] for an answer without the space around it.
pub(crate) fn answered(answer: &str) -> String {
    let answer = answer.trim();
    let space = if answer.is_empty() { "" } else { " " };
    format!("{space}{answer}{TURN_END}")
}

/// A text as those that the models were trained on were cleaned: lines end in `\n`, none is empty, since a
/// blank line ends a turn, and there is no space around it.
pub(crate) fn cleaned(text: &str) -> String {
    let text = text.replace("\r\n", "\n");
    let lines = text.trim().split('\n').filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_written_as_the_families_know_them() {
        let turn = |name: &str, message: &str| {
            let template: Template = name.parse().expect("a template");
            template.turn(message)
        };
        assert_eq!(turn("raven", "Hi"), "Bob: Hi\n\nAlice:");
        assert_eq!(turn("world", "Hi"), "User: Hi\n\nAssistant:");
        assert_eq!(turn("qa", "Why?"), "Question: Why?\n\nAnswer:");
        assert_eq!(turn("plain", "Ownership is"), "Ownership is");
        assert_eq!(turn(" Ann / Robot 2", "Hi"), "Ann: Hi\n\nRobot 2:");
        let instruct = turn("instruct", "Add.");
        assert!(
            instruct.ends_with("# Instruction:\nAdd.\n\n# Response:\n"),
            "{instruct}"
        );
        let message = "  one\r\n\r\n\r\ntwo \n \n\tthree\n\n";
        assert_eq!(
            turn("world", message),
            "User: one\ntwo \n \n\tthree\n\nAssistant:"
        );
        assert_eq!(turn("g1", message), turn("world", message));
    }

    #[test]
    fn system_texts_keep_their_blank_lines_and_end_in_one() {
        let template: Template = "raven".parse().expect("a template");
        let text = "Be kind.\r\n\r\nUser: x\n \n";
        assert_eq!(template.system(text), "Be kind.\n\nUser: x\n\n");
        assert_eq!(template.system(" \n"), "");
    }

    #[test]
    fn world_has_system_texts_of_one_paragraph() {
        for name in ["world", "g1"] {
            let template: Template = name.parse().expect("a template");
            let text = " Be kind.\r\n\r\n\r\nBe brief.\n \n";
            assert_eq!(
                template.system(text),
                "System: Be kind.\nBe brief.\n\n",
                "{name}"
            );
            assert_eq!(template.system(" \n"), "", "{name}");
            let dialogue = "User: Hi\n\nAssistant: Hello.\n";
            assert_eq!(
                template.system(dialogue),
                "User: Hi\n\nAssistant: Hello.\n\n",
                "{name}"
            );
        }
    }

    #[test]
    fn thoughts_are_opened_as_the_models_know_them() {
        let world: Template = "world".parse().expect("a template");
        let turn = |think| world.turn_with(" Why?\n\nHow?", think);
        let begin = "User: Why?\nHow?";
        for (think, expected) in [
            (Think::Off, "\n\nAssistant:"),
            (Think::On, "\n\nAssistant: <think"),
            (Think::Fake, "\n\nAssistant: <think>\n</think"),
            (Think::Short, " (think a bit)\n\nAssistant: <think"),
            (Think::Long, " (think a lot)\n\nAssistant: <think"),
        ] {
            assert_eq!(turn(think), format!("{begin}{expected}"));
            let stop = if think == Think::Off {
                "\n\n"
            } else {
                "\n\nUser:"
            };
            assert_eq!(world.stop_with(think), stop);
            let raven: Template = "raven".parse().expect("a template");
            assert_eq!(raven.turn_with("Hi", think), "Bob: Hi\n\nAlice:");
            assert_eq!(raven.stop_with(think), "\n\n");
        }
    }

    /// Conversations as they are published for these models, to the blank line.
    #[test]
    fn conversations_are_written_as_published() {
        let list = crate::tools::system_text(["weather(city)", "time(zone)"]);
        let output = crate::tools::output_message("{\"rain\": true}\n\n");
        let call = "{\"weather\": \"Oslo\"}\n```";
        // Name, system text, turns with how they are thought about, and all of it in front of the last answer.
        type Said<'a> = &'a [(&'a str, &'a str, Think)];
        let table: [(&str, &str, Said<'_>, &str); 8] = [
            ("world", "", &[(" a\r\n\r\n\r\nb ", "", Think::Off)], "User: a\nb\n\nAssistant:"),
            (
                "world",
                "\nBe kind.\n\n\nBe brief.\r\n",
                &[("Hi\n", "Hello.", Think::Off), ("You?", "", Think::Off)],
                "System: Be kind.\nBe brief.\n\nUser: Hi\n\nAssistant: Hello.\n\nUser: You?\n\nAssistant:",
            ),
            (
                "g1",
                "",
                &[("1+1", "2", Think::Off), ("2+2 \n", "", Think::On)],
                "User: 1+1\n\nAssistant: 2\n\nUser: 2+2\n\nAssistant: <think",
            ),
            ("g1", "", &[("Hi", "", Think::Short)], "User: Hi (think a bit)\n\nAssistant: <think"),
            ("g1", "", &[("Hi\n\n", "", Think::Long)], "User: Hi (think a lot)\n\nAssistant: <think"),
            ("g1", "", &[("Hi", "", Think::Fake)], "User: Hi\n\nAssistant: <think>\n</think"),
            (
                "g1",
                &list,
                &[("Rain in Oslo?", call, Think::Off), (&output, "", Think::Off)],
                "System: Tools:\n- weather(city)\n- time(zone)\nReturn only a JSON function call.\n\n\
                 User: Rain in Oslo?\n\nAssistant: ```json{\"weather\": \"Oslo\"}\n```\n\n\
                 User: Function output:\n{\"rain\": true}\n\nAssistant:",
            ),
            (
                "raven",
                "",
                &[("Hi\n\nyou", "Hello.", Think::Off), ("1", "", Think::Off)],
                "Bob: Hi\nyou\n\nAlice: Hello.\n\nBob: 1\n\nAlice:",
            ),
        ];
        for (name, system, turns, expected) in table {
            let template: Template = name.parse().expect("a template");
            let mut written = template.system(system);
            for &(message, answer, think) in turns {
                written += &template.turn_with(message, think);
                if answer == call {
                    written += crate::tools::CALL_BEGINS;
                    written += answer;
                    written += TURN_END;
                } else if !answer.is_empty() {
                    written += &format!(" {answer}{TURN_END}");
                }
            }
            assert_eq!(written, expected);
        }
    }

    #[test]
    fn unknown_templates_are_refused() {
        for text in ["", "World", "a", "/", "a/", "/b", "a/b/c", "a\n/b", " / "] {
            assert!(text.parse::<Template>().is_err(), "{text:?}");
        }
    }
}
