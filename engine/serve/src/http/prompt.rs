//! Messages of a conversation, and what a model is given to read of them.

use rwkv_edge_chat::{Message, Reply, Role, Think};
use serde_json::{Map, Value};

use super::backend::Served;
use super::error::{ApiError, Result};
use super::fields::{Fields, Lists};
use crate::job::{Prompt, Start};

/// Fields of a message that clients send back as they got them, and that are no part of what is read.
const WITHOUT_EFFECT: [&str; 3] = ["name", "reasoning", "reasoning_content"];
/// The same, as long as there is nothing in them.
const ONLY_EMPTY: [&str; 5] = [
    "annotations",
    "audio",
    "function_call",
    "refusal",
    "tool_calls",
];

/// The field `messages`.
pub(super) fn messages(value: Value) -> Result<Vec<Message>> {
    let Value::Array(list) = value else {
        return Err(ApiError::field("messages", &value, "a list of messages"));
    };
    if list.is_empty() {
        return Err(ApiError::bad("messages: none, expected at least one").param("messages"));
    }
    let messages = list.into_iter().enumerate();
    messages
        .map(|(i, one)| message(&format!("messages[{i}]"), one))
        .collect()
}

fn message(place: &str, value: Value) -> Result<Message> {
    let Value::Object(mut fields) = value else {
        return Err(ApiError::field(
            place,
            &value,
            "an object with role and content",
        ));
    };
    let role = match fields.remove("role") {
        Some(Value::String(role)) => role,
        other => {
            let name = format!("{place}.role");
            let expected = "system, developer, user or assistant";
            return Err(ApiError::field(&name, &other.unwrap_or_default(), expected));
        }
    };
    let role = match role.as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        _ => {
            let expected = "system, developer, user or assistant";
            return Err(ApiError::field(
                &format!("{place}.role"),
                &role.into(),
                expected,
            ));
        }
    };
    let content = fields.remove("content").unwrap_or_default();
    check_rest(place, &fields)?;
    let text = content_text(&format!("{place}.content"), content, role)?;
    Ok(Message::new(role, text))
}

fn check_rest(place: &str, fields: &Map<String, Value>) -> Result<()> {
    for (name, value) in fields {
        let is_empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        let name = name.as_str();
        if WITHOUT_EFFECT.contains(&name) || (is_empty && ONLY_EMPTY.contains(&name)) {
            continue;
        }
        let place = format!("{place}.{name}");
        if ONLY_EMPTY.contains(&name) {
            let expected = "null, since there is nothing of the kind here";
            return Err(ApiError::field(&place, value, expected).code("unsupported_parameter"));
        }
        let text = format!("unknown field {place}: nothing here knows what it means");
        return Err(ApiError::bad(text).param(&place).code("unknown_parameter"));
    }
    Ok(())
}

/// A text, or several parts of one, a line or more each.
fn content_text(place: &str, content: Value, role: Role) -> Result<String> {
    match content {
        Value::String(text) => Ok(text),
        Value::Null if role == Role::Assistant => Ok(String::new()),
        Value::Array(parts) => {
            let texts = parts
                .into_iter()
                .enumerate()
                .map(|(i, part)| content_part(&format!("{place}[{i}]"), part));
            Ok(texts.collect::<Result<Vec<_>>>()?.join("\n"))
        }
        other => Err(ApiError::field(
            place,
            &other,
            "a string or a list of text parts",
        )),
    }
}

fn content_part(place: &str, part: Value) -> Result<String> {
    const LISTS: Lists = Lists {
        honoured: &["text", "type"],
        without_effect: &[],
        only_default: &[("annotations", &["[]"])],
    };
    let expected = "a part with type \"text\" and a text; there are no others here";
    match part {
        Value::Object(fields) if fields.get("type").is_some_and(|kind| kind == "text") => {
            let mut fields = Fields::within(place, fields, &LISTS)?;
            let text = fields.text("text")?;
            text.ok_or_else(|| ApiError::field(&fields.place("text"), &Value::Null, "a string"))
        }
        other => Err(ApiError::field(place, &other, expected)),
    }
}

/// Where a conversation is read behind, what is read of it, and what takes the answer apart.
pub(super) fn of_messages(
    served: &Served,
    messages: &[Message],
    think: Think,
    session: Option<String>,
) -> Result<((Start, Prompt), Reply)> {
    let mut parts = served.template.messages(messages, think)?;
    let end = parts.last().map_or("", String::as_str);
    let reply = Reply::behind(&served.template, think, end);
    let mut first = served.first_token;
    // A template that came with a model writes what a text begins with; between parts stands token 0.
    if parts.len() > 1 && parts[0].is_empty() {
        first = Some(0);
        parts.remove(0);
    }
    let prompt = match parts.len() {
        1 => Prompt::Text(parts.remove(0)),
        _ => {
            let tokenizer = served.model().tokenizer()?;
            let mut tokens = Vec::new();
            for (i, part) in parts.iter().enumerate() {
                tokens.extend((i > 0).then_some(0));
                tokens.extend(tokenizer.encode(part)?);
            }
            Prompt::Tokens(tokens)
        }
    };
    Ok(((start(first, session), prompt), reply))
}

/// Where a text is read behind.
pub(super) fn start(first: Option<u32>, session: Option<String>) -> Start {
    match (session, first) {
        (Some(name), first) => Start::Session { name, first },
        (None, Some(token)) => Start::Token(token),
        (None, None) => Start::Beginning,
    }
}

/// A name of a session. It is only ever compared, and is no path, but people read it.
pub(super) fn session_name(field: &str, name: String) -> Result<String> {
    const BYTES_MAX: usize = 256;
    let is_right =
        !name.is_empty() && name.len() <= BYTES_MAX && !name.chars().any(char::is_control);
    match is_right {
        true => Ok(name),
        false => {
            let expected = format!("a name of 1 to {BYTES_MAX} bytes without control characters");
            Err(ApiError::field(field, &name.into(), expected))
        }
    }
}

/// One or many texts or lists of token ids: a string, a list of strings, a list of ids, a list of lists of ids.
pub(super) fn inputs(
    field: &str,
    value: Value,
    served: &Served,
    n_max: usize,
) -> Result<Vec<Prompt>> {
    let expected = "a string, a list of strings, a list of token ids, or a list of such lists";
    let list = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(list) if !list.is_empty() => list,
        other => return Err(ApiError::field(field, &other, expected)),
    };
    if list[0].is_number() {
        return Ok(vec![Prompt::Tokens(tokens(field, &list, served)?)]);
    }
    if list.len() > n_max {
        let text = format!("{field}: {} of them, expected at most {n_max}", list.len());
        return Err(ApiError::bad(text).param(field));
    }
    let inputs = list.into_iter().enumerate().map(|(i, one)| match one {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(ids) => Ok(Prompt::Tokens(tokens(
            &format!("{field}[{i}]"),
            &ids,
            served,
        )?)),
        other => Err(ApiError::field(&format!("{field}[{i}]"), &other, expected)),
    });
    inputs.collect()
}

/// A list of token ids.
pub(super) fn tokens(field: &str, list: &[Value], served: &Served) -> Result<Vec<u32>> {
    let n_vocab = served.model().n_vocab();
    let ids = list.iter().enumerate().map(|(i, value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.filter(|&id| (id as usize) < n_vocab).ok_or_else(|| {
            let expected = format!("a token id below {n_vocab}");
            ApiError::field(&format!("{field}[{i}]"), value, expected)
        })
    });
    ids.collect()
}
