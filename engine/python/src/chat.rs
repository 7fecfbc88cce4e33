//! Answers in conversations, which programs hold as lists of messages.

use std::sync::Arc;

use pyo3::exceptions::{PyKeyError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use rwkv_edge_chat::{Message, Role, Template, Think};

use crate::error::{Failed, Result};
use crate::generate::{self, Stream};
use crate::lanes::Prompt;
use crate::passes::Shared;
use crate::sampling::Wish;

/// As of the command `rwkv-edge chat`.
const MAX_NEW_TOKENS: usize = 512;
/// Stands for the template that came with the model, as in `--template model`.
const OWN_TEMPLATE: &str = "model";

/// How conversations are written down for the model.
struct Form {
    template: Template,
    think: Think,
}

impl Form {
    /// `template` as the command's `--template`, `think` as its `--think`.
    fn of(
        py: Python<'_>,
        shared: &Shared,
        think: Option<&str>,
        template: Option<&str>,
    ) -> Result<Self> {
        let named = |name: &str, value: &str, error: engine::Error| {
            Failed::new(error.kind(), format!("{name}: {value:?}, {error}"))
        };
        let think = match think {
            None => Think::Off,
            Some(text) => text.parse().map_err(|e| named("think", text, e))?,
        };
        let template = match template {
            None => shared.work(py, |model, _| {
                model.tokenizer()?;
                Ok(Template::of(model))
            })?,
            Some(OWN_TEMPLATE) => shared.work(py, |model, _| own_template(shared, model))?,
            Some(text) => text.parse().map_err(|e| named("template", text, e))?,
        };
        Ok(Form { template, think })
    }

    /// The wish of a call, whose answers end where a turn does, too.
    fn wish(
        &self,
        py: Python<'_>,
        shared: &Shared,
        function: &str,
        options: Option<&Bound<'_, PyDict>>,
    ) -> Result<Wish> {
        let mut wish = Wish::of(py, shared, function, options, MAX_NEW_TOKENS)?;
        let own = self.template.stop_with(self.think);
        wish.ending
            .stop
            .extend(Some(own).filter(|text| !text.is_empty()));
        Ok(wish)
    }

    fn prompt(
        &self,
        model: &engine::Model,
        messages: &[Message],
        is_begin: bool,
        bos: bool,
    ) -> engine::Result<Prompt> {
        let (mut tokens, reply) = self
            .template
            .prompt(model, messages, self.think, is_begin)?;
        if bos && tokens.first() != Some(&0) {
            tokens.insert(0, 0);
        }
        Ok(Prompt {
            tokens,
            reply: Some(reply),
        })
    }
}

/// The template in the files that the model was opened from.
fn own_template(shared: &Shared, model: &engine::Model) -> engine::Result<Template> {
    match engine::Model::chat_template(&shared.path)? {
        Some(found) => Template::of_files(found, model),
        None => Err(engine::Error::new(
            engine::ErrorKind::Argument,
            format!(
                "{}: no chat template: looked for chat_template.jinja and tokenizer_config.json in its directory, and \
                 within a GGUF or model file",
                shared.path.display()
            ),
        )),
    }
}

/// `Model.chat`.
pub(crate) fn chat<'py>(
    py: Python<'py>,
    shared: &Shared,
    messages: &Bound<'py, PyAny>,
    think: Option<&str>,
    template: Option<&str>,
    options: Option<&Bound<'py, PyDict>>,
) -> Result<Bound<'py, PyAny>> {
    let (conversations, is_one) = conversations(messages)?;
    let form = Form::of(py, shared, think, template)?;
    let wish = form.wish(py, shared, "chat", options)?;
    let bos = wish.bos;
    wish.check_numbers(conversations.len())?;
    generate::whole(py, shared, &wish, is_one, |model, is_begin| {
        let prompts = conversations
            .iter()
            .enumerate()
            .map(|(number, messages)| form.prompt(model, messages, is_begin(number), bos));
        prompts.collect()
    })
}

/// `Model.chat_stream`.
pub(crate) fn stream(
    py: Python<'_>,
    shared: &Arc<Shared>,
    messages: &Bound<'_, PyAny>,
    think: Option<&str>,
    template: Option<&str>,
    options: Option<&Bound<'_, PyDict>>,
) -> Result<Stream> {
    let (mut conversations, is_one) = conversations(messages)?;
    let messages = conversations.pop().filter(|_| is_one);
    let messages =
        messages.ok_or_else(|| Failed::argument("a list of conversations, expected one"))?;
    let form = Form::of(py, shared, think, template)?;
    let wish = form.wish(py, shared, "chat_stream", options)?;
    let bos = wish.bos;
    generate::piecewise(py, shared, wish, |model, is_begin| {
        form.prompt(model, &messages, is_begin, bos)
    })
}

/// What was given as the messages of one conversation, or as a list of such lists; and whether it is one.
fn conversations(given: &Bound<'_, PyAny>) -> Result<(Vec<Vec<Message>>, bool)> {
    let mut items = Vec::new();
    for item in list(given, "messages")? {
        items.push(item?);
    }
    if items.first().map(is_message).transpose()? == Some(true) {
        return Ok((vec![messages(items.into_iter().map(Ok), "messages")?], true));
    }
    if items.is_empty() {
        return Err(Failed::argument("messages: none, expected at least one"));
    }
    let all = items.iter().enumerate().map(|(i, one)| {
        let place = format!("messages[{i}]");
        messages(list(one, &place)?, &place)
    });
    Ok((all.collect::<Result<_>>()?, false))
}

/// Whether it is a dict, or like one. Not by asking for a Mapping, which imports a module: a Ctrl-C meanwhile would be
/// a panic.
fn is_message(given: &Bound<'_, PyAny>) -> PyResult<bool> {
    given.hasattr("keys")
}

/// What a dict has by this name, if it is not None.
fn field<'py>(given: &Bound<'py, PyAny>, name: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
    match given.get_item(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_none())),
        Err(error) if error.is_instance_of::<PyKeyError>(given.py()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The items of a list, which is no text.
fn list<'py>(
    given: &Bound<'py, PyAny>,
    place: &str,
) -> Result<impl Iterator<Item = PyResult<Bound<'py, PyAny>>>> {
    if given.is_instance_of::<PyString>() || is_message(given)? {
        return Err(wrong_type(
            place,
            "a list of messages, each a dict with role and content",
        ));
    }
    Ok(given.try_iter()?)
}

fn wrong_type(place: &str, expected: &str) -> Failed {
    PyTypeError::new_err(format!("{place}: expected {expected}")).into()
}

fn messages<'py>(
    given: impl Iterator<Item = PyResult<Bound<'py, PyAny>>>,
    place: &str,
) -> Result<Vec<Message>> {
    let mut messages = Vec::new();
    for (i, one) in given.enumerate() {
        messages.push(message(&one?, &format!("{place}[{i}]"))?);
    }
    match messages.is_empty() {
        true => Err(Failed::argument(format!(
            "{place}: none, expected at least one"
        ))),
        false => Ok(messages),
    }
}

/// A dict with `role` and `content`. What else clients keep in it is no part of what the model reads.
fn message(given: &Bound<'_, PyAny>, place: &str) -> Result<Message> {
    if !is_message(given)? {
        return Err(wrong_type(place, "a dict with role and content"));
    }
    let role: Option<String> = field(given, "role")?
        .map(|role| role.extract())
        .transpose()?;
    let role = match role.as_deref() {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        found => {
            let found = found.unwrap_or("none");
            let text =
                format!("{place}: role {found:?}, expected system, developer, user or assistant");
            return Err(Failed::argument(text));
        }
    };
    let text = match field(given, "content")? {
        Some(content) => content_text(&content, &format!("{place}: content"))?,
        None if role == Role::Assistant => String::new(),
        None => {
            return Err(Failed::argument(format!(
                "{place}: no content, expected a text"
            )))
        }
    };
    Ok(Message::new(role, text))
}

/// A text, or parts of one as OpenAI's clients write them, a line or more each.
fn content_text(content: &Bound<'_, PyAny>, place: &str) -> Result<String> {
    if let Ok(text) = content.cast::<PyString>() {
        return Ok(text.to_cow()?.into_owned());
    }
    let expected = "a str, or a list of parts {\"type\": \"text\", \"text\": ...}";
    if is_message(content)? || !content.hasattr("__iter__")? {
        return Err(wrong_type(place, expected));
    }
    let mut texts: Vec<String> = Vec::new();
    for part in content.try_iter()? {
        let part = part?;
        let (kind, text) = match is_message(&part)? {
            true => (field(&part, "type")?, field(&part, "text")?),
            false => (None, None),
        };
        let kind: Option<String> = kind.map(|kind| kind.extract()).transpose()?;
        match (kind.as_deref(), text) {
            (Some("text"), Some(text)) => texts.push(text.extract()?),
            _ => return Err(wrong_type(place, expected)),
        }
    }
    Ok(texts.join("\n"))
}
