//! A model's own template: a program in Jinja that came with its files, run as transformers runs it.
//!
//! It is somebody else's program. It can reach nothing but what it is given, in so many steps and so much memory
//! as `FUEL` pays for, and what it writes is bounded.

use std::io::{self, Write};
use std::str;

use minijinja::syntax::SyntaxConfig;
use minijinja::{context, Environment, Value};
use rwkv_edge::{ChatTemplate, Error, ErrorKind, Model, Result, Tokens};

use crate::said::Transcript;
use crate::template::cleaned;
use crate::think::Think;

mod messages;

/// Steps of one run, and 64 bytes of memory for each; templates take some dozens a message.
const FUEL: u64 = 1 << 20;
const OUTPUT_BYTES_MAX: usize = 16 << 20;

/// What the World models' templates write for token 0. Their vocabulary has no text for it.
pub(crate) const WORLD_END_OF_TEXT: &str = "<|rwkv_tokenizer_end_of_text|>";
/// The name of token 0 in the 20B tokenizer.
const END_OF_TEXT_20B: &str = "<|endoftext|>";

/// A template that came with a model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OwnTemplate {
    found: ChatTemplate,
    /// Whether texts are cut into tokens of the World vocabulary.
    pub(crate) is_world: bool,
    /// Whether what it writes depends on [`THINKING`].
    pub(crate) has_thoughts: bool,
}

/// What templates of models that think look at, as callers of transformers set it: true for a thought, false for none.
/// Nothing is set where nothing is asked for.
const THINKING: &str = "enable_thinking";

/// What stands at the end of a conversation.
pub(crate) struct Asked<'a> {
    /// The user's last message.
    pub(crate) message: &'a str,
    /// Whether the answer begins with a thought.
    pub(crate) think: Think,
    /// Whether what an answer begins with is written, too.
    pub(crate) asks: bool,
}

/// A text in which nothing stands for a token. A blank comes in its place, so that no two parts
/// around it make another of it.
fn without_token(text: &str) -> String {
    text.replace(WORLD_END_OF_TEXT, " ")
}

impl OwnTemplate {
    /// # Errors
    ///
    /// [`ErrorKind::Format`] with the line of what is no Jinja.
    pub(crate) fn new(found: ChatTemplate, is_world: bool) -> Result<Self> {
        let mut own = OwnTemplate {
            found,
            is_world,
            has_thoughts: false,
        };
        let environment = environment();
        let compiled = environment.template_from_named_str("", &own.found.text);
        let compiled = compiled.map_err(|e| own.error(&e))?;
        let has_thoughts = compiled.undeclared_variables(false).contains(THINKING);
        own.has_thoughts = has_thoughts;
        Ok(own)
    }

    /// The conversation as it is written, with one more turn if there is one, and what is asked. It always ends in the
    /// user's message, as templates expect it: many raise an error of an answer at the end.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Format`], with the line, when the template fails, raises an error, or takes too long.
    pub(crate) fn render(
        &self,
        said: &Transcript,
        turn: Option<(&str, &str)>,
        asked: &Asked<'_>,
    ) -> Result<String> {
        // Nothing that is said stands for a token.
        let content = |text: &str| cleaned(&without_token(text));
        let user = |text: &str| context! { role => "user", content => content(text) };
        let assistant =
            |text: &str| context! { role => "assistant", content => without_token(text) };
        let mut messages = Vec::new();
        if !said.system.trim().is_empty() {
            messages.push(context! { role => "system", content => content(&said.system) });
        }
        let turns = said.turns.iter().map(|turn| (&*turn.user, &*turn.answer));
        for (message, answer) in turns.chain(turn) {
            messages.extend([user(message), assistant(answer)]);
        }
        messages.push(user(asked.message));
        self.write(messages, asked.think, asked.asks)
    }

    /// Messages as they are written, and what an answer begins with if it is asked for.
    fn write(&self, messages: Vec<Value>, think: Think, asks: bool) -> Result<String> {
        let named = match self.is_world {
            true => WORLD_END_OF_TEXT,
            false => END_OF_TEXT_20B,
        };
        let token = |found: &Option<String>| match found {
            // What those files say of World's tokens is not so.
            Some(token) if !self.is_world => token.clone(),
            _ => named.to_owned(),
        };
        let context = context! {
            messages => messages,
            add_generation_prompt => asks,
            bos_token => token(&self.found.bos_token),
            eos_token => token(&self.found.eos_token),
            // As transformers gives them where there are none.
            tools => Value::from(()),
            documents => Value::from(()),
        };
        self.run(match think {
            Think::Off => context,
            think => context! { enable_thinking => think != Think::Fake, ..context },
        })
    }

    /// Tokens of what [`render`](Self::render) has written.
    pub(crate) fn encode(&self, model: &Model, text: &str) -> Result<Tokens> {
        let encode = |text: &str| model.tokenize(text.as_bytes(), usize::MAX);
        if !self.is_world {
            return encode(text);
        }
        let mut tokens = Vec::new();
        for (i, text) in text.split(WORLD_END_OF_TEXT).enumerate() {
            tokens.extend((i > 0).then_some(0));
            tokens.extend_from_slice(&encode(text)?);
        }
        Ok(tokens.into())
    }

    fn run(&self, context: Value) -> Result<String> {
        let environment = environment();
        let template = environment.template_from_named_str("", &self.found.text);
        let mut output = Output::default();
        let ran = template.and_then(|one| one.render_captured_to(context, &mut output).map(drop));
        if output.is_full {
            let text = format!("it writes more than {OUTPUT_BYTES_MAX} bytes");
            return Err(self.refuse(&text));
        }
        ran.map_err(|e| self.error(&e))?;
        String::from_utf8(output.bytes).map_err(|_| self.refuse("it writes what is no text"))
    }

    fn error(&self, error: &minijinja::Error) -> Error {
        let line = error
            .line()
            .map_or(String::new(), |n| format!("line {n}: "));
        let what = match error.kind() {
            minijinja::ErrorKind::OutOfFuel => "it takes too many steps, or too much memory".into(),
            kind => error.detail().map_or(kind.to_string(), str::to_owned),
        };
        self.refuse(&format!("{line}{what}"))
    }

    fn refuse(&self, what: &str) -> Error {
        let text = format!("{}: chat template: {what}", self.found.place);
        Error::new(ErrorKind::Format, text)
    }
}

fn environment<'source>() -> Environment<'source> {
    let mut environment = Environment::new();
    // As transformers sets them.
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    if let Ok(syntax) = syntax {
        environment.set_syntax(syntax);
    }
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |text: String| -> Result<Value, _> {
        let kind = minijinja::ErrorKind::InvalidOperation;
        Err(minijinja::Error::new(kind, text))
    });
    environment
}

/// What a template writes, up to a size.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    is_full: bool,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > OUTPUT_BYTES_MAX - self.bytes.len() {
            self.is_full = true;
            return Err(io::Error::other("too large"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::said::Turn;
    use crate::Template;

    fn own(text: &str) -> Result<OwnTemplate> {
        OwnTemplate::new(ChatTemplate::new("here", text), true)
    }

    fn said(turns: &[(&str, &str)]) -> Transcript {
        let plain: Template = "plain".parse().expect("a template");
        let mut said = Transcript::new(plain);
        said.system = "Be kind.".into();
        said.turns = turns
            .iter()
            .map(|(user, answer)| Turn {
                user: (*user).into(),
                answer: (*answer).into(),
            })
            .collect();
        said
    }

    fn asked(message: &str) -> Asked<'_> {
        Asked {
            message,
            think: Think::Off,
            asks: true,
        }
    }

    fn failure(text: &str) -> String {
        let found = own(text).and_then(|own| own.render(&said(&[]), None, &asked("Hi")));
        let error = found.expect_err(text);
        assert_eq!(error.kind(), ErrorKind::Format);
        error.to_string()
    }

    const WORLD: &str = "{{ bos_token }}\n\
        {%- for message in messages %}\n    \
            {% if message['role'] == 'user' %}\n\
                {{ 'User: ' + message['content'].strip() + '\\n\\n' -}}\n    \
            {% elif message.role == 'system' %}\n\
                System: {{ message.content|trim }}{{ '\\n\\n' -}}\n    \
            {% else %}\n\
                Assistant: {{ message.content ~ '\\n\\n' -}}\n    \
            {% endif %}\n\
        {% endfor %}\n\
        {% if add_generation_prompt %}Assistant:{% endif %}";

    #[test]
    fn conversations_are_written_as_transformers_would() -> Result<()> {
        let own = own(WORLD)?;
        let said = said(&[("Hi", "Hello.\n\nYou?")]);
        let begun = "<|rwkv_tokenizer_end_of_text|>System: Be kind.\n\nUser: Hi\n\n\
                     Assistant: Hello.\n\nYou?\n\n";
        let message = "One\r\n\r\ntwo<|rwkv_tokenizer_end_of_text|>\n";
        assert_eq!(
            own.render(&said, None, &asked(message))?,
            format!("{begun}User: One\ntwo\n\nAssistant:")
        );
        let silent = Asked {
            asks: false,
            ..asked("C")
        };
        assert_eq!(
            own.render(&said, Some(("A", "B")), &silent)?,
            format!("{begun}User: A\n\nAssistant: B\n\nUser: C\n\n")
        );
        Ok(())
    }

    #[test]
    fn thoughts_are_asked_for_as_callers_of_transformers_do() -> Result<()> {
        let text = "{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %};\
                    {{ tools is none and documents is none }}";
        let thinker = own(text)?;
        assert!(thinker.has_thoughts && !own(WORLD)?.has_thoughts);
        for (think, expected) in [
            (Think::Off, ";True"),
            (Think::On, "True;True"),
            (Think::Fake, "False;True"),
        ] {
            let asked = Asked {
                think,
                ..asked("Hi")
            };
            assert_eq!(thinker.render(&said(&[]), None, &asked)?, expected);
        }
        Ok(())
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let part = |text: &str, expected: &str| {
            let found = failure(text);
            assert!(found.starts_with("here: chat template: "), "{found}");
            assert!(found.contains(expected), "{found}: no {expected}");
        };
        part("a\n{% if %}", "line 2: ");
        part("a\n\n{{ nothing.at.all }}", "line 3: ");
        part("\n{{ raise_exception('only\\' me') }}", "line 2: only' me");
        part("{% include 'other' %}", "line 1: ");
    }

    #[test]
    fn what_never_ends_or_grows_is_stopped() {
        let loops = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}";
        let calls = "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}";
        let doubled = "{% set n = namespace(x='ab') %}{% for i in range(99) %}\
                       {% set n.x = n.x ~ n.x %}{% endfor %}";
        for text in [loops, calls, doubled] {
            let found = failure(text);
            assert!(
                found.contains("too many steps") || found.contains("recursion"),
                "{found}"
            );
        }
        let large = failure("{% for i in range(40) %}{{ 'x' * 500000 }}{% endfor %}");
        assert!(large.contains("more than 16777216 bytes"), "{large}");
    }
}
