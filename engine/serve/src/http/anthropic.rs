//! `POST /v1/messages` and `/v1/messages/count_tokens`, as clients of Anthropic speak them.
//!
//! A request becomes one of the kind that `chat.rs` answers; errors, answers and streams have a form of their own.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::Json;
use rwkv_edge_chat::{Message, Role, Think};
use serde_json::{json, Map, Value};

use super::answers::{Answers, Asker, Piece, Usage};
use super::chat::{begin, Turn};
use super::error::{ApiError, ForAnthropic, Result};
use super::fields::{Fields, Lists, CHAT, COUNT_TOKENS, MESSAGES};
use super::request::{max_tokens, new_id, Asked, Envelope};
use super::sse::{self, Chunks, Dialect};
use super::{tokens, App};
use crate::job::Ending;

const PATH: &str = "/v1/messages";
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// Errors here are in the form that these clients read, whoever found them.
pub(super) async fn own_errors(request: Request<Body>, next: Next) -> Response {
    let path = request.uri().path();
    let is_own = path.strip_prefix(PATH);
    let is_own = is_own.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let response = next.run(request).await;
    if !is_own {
        return response;
    }
    let error = response.extensions().get::<ForAnthropic>().cloned();
    let mut response = match error {
        None => response,
        Some(ForAnthropic(error)) => {
            let (mut parts, _) = response.into_parts();
            parts.headers.remove(axum::http::header::CONTENT_LENGTH);
            let body = Body::from(error.to_string());
            Response::from_parts(parts, body)
        }
    };
    if let Ok(id) = HeaderValue::from_str(&new_id("req_")) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

pub(super) async fn count_tokens(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Json<Value>> {
    let mut envelope = Envelope::read(&app, request, &COUNT_TOKENS).await?;
    let think = thinking(&mut envelope.fields)?;
    let messages = conversation(&mut envelope.fields)?;
    let tokens = tokens::of_conversation(&app, envelope.served, messages, think).await?;
    Ok(Json(json!({"input_tokens": tokens.len()})))
}

pub(super) async fn answer(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response> {
    let mut envelope = Envelope::read(&app, request, &MESSAGES).await?;
    let fields = &mut envelope.fields;
    let served = envelope.served;
    let think = thinking(fields)?;
    let messages = conversation(fields)?;
    let limit = fields.whole("max_tokens", 1, usize::MAX)?;
    let limit = limit.ok_or_else(|| {
        let text = "max_tokens: none, expected how many tokens an answer may have";
        ApiError::bad(text).param("max_tokens")
    })?;
    let max_new_tokens = max_tokens(&app, "max_tokens", Some(limit), limit)?;
    let given = stop_sequences(fields)?;
    let asked = Asked::read(&app, &mut sampling(fields)?, &served)?;
    let turn = Turn {
        messages,
        think,
        max_new_tokens,
        stops: given.clone(),
        top_logprobs: None,
    };
    let asker = Asker {
        owner: envelope.owner,
        record: envelope.record,
        share: envelope.share,
    };
    let answers = begin(&app, asker, served, &asked, turn).await?;
    let said = Said {
        id: new_id("msg_"),
        model: answers.served.name.clone(),
        stops: given,
    };
    match asked.stream {
        true => sse::respond(&app, answers, Blocks::of(said)).await,
        false => whole(answers, &said).await,
    }
}

/// `{"type": "enabled", "budget_tokens": N}` and its kin; how long a thought may be is not honoured apart from
/// `max_tokens`.
fn thinking(fields: &mut Fields) -> Result<Think> {
    const EXPECTED: &str = "an object with type enabled, adaptive or disabled";
    const LISTS: Lists = Lists {
        honoured: &["type"],
        without_effect: &["budget_tokens", "display"],
        only_default: &[],
    };
    let given = match fields.take("thinking") {
        None => return Ok(Think::Off),
        Some(Value::Object(given)) => given,
        Some(other) => return Err(ApiError::field("thinking", &other, EXPECTED)),
    };
    let mut given = Fields::within("thinking", given, &LISTS)?;
    match given.text("type")?.as_deref() {
        Some("enabled" | "adaptive") => Ok(Think::On),
        Some("disabled") => Ok(Think::Off),
        other => Err(ApiError::field("thinking.type", &other.into(), EXPECTED)),
    }
}

/// The fields that mean the same to both kinds of clients.
fn sampling(fields: &mut Fields) -> Result<Fields> {
    let names = ["session", "stream", "temperature", "top_k", "top_p"];
    let given = names.map(|name| (name.to_owned(), fields.take(name).unwrap_or_default()));
    Fields::new(Map::from_iter(given), &CHAT)
}

fn stop_sequences(fields: &mut Fields) -> Result<Vec<String>> {
    const EXPECTED: &str = "a list of at most 64 strings of at least one character";
    let list = match fields.take("stop_sequences") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= 64 => list,
        Some(other) => return Err(ApiError::field("stop_sequences", &other, EXPECTED)),
    };
    let text = |one: Value| match one {
        Value::String(text) if !text.is_empty() => Ok(text),
        other => Err(ApiError::field("stop_sequences", &other, EXPECTED)),
    };
    list.into_iter().map(text).collect()
}

/// `system` and `messages`.
fn conversation(fields: &mut Fields) -> Result<Vec<Message>> {
    let mut messages = Vec::new();
    if let Some(system) = fields.take("system") {
        messages.push(Message::new(
            Role::System,
            text_of("system", system, false)?,
        ));
    }
    let list = match fields.take("messages").unwrap_or_default() {
        Value::Array(list) if !list.is_empty() => list,
        other => {
            let expected = "a list of at least one message";
            return Err(ApiError::field("messages", &other, expected));
        }
    };
    for (i, one) in list.into_iter().enumerate() {
        messages.push(message(&format!("messages[{i}]"), one)?);
    }
    match messages.last().map(|message| message.role) {
        Some(Role::User) => Ok(messages),
        _ => {
            let text = "messages: the last one is the assistant's, expected a user's: answers are not begun by clients here";
            Err(ApiError::bad(text).param("messages"))
        }
    }
}

fn message(place: &str, value: Value) -> Result<Message> {
    const LISTS: Lists = Lists {
        honoured: &["content", "role"],
        without_effect: &[],
        only_default: &[],
    };
    let Value::Object(fields) = value else {
        let expected = "an object with role and content";
        return Err(ApiError::field(place, &value, expected));
    };
    let mut fields = Fields::within(place, fields, &LISTS)?;
    let role = match fields.text("role")?.as_deref() {
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        other => {
            let (name, found) = (fields.place("role"), other.into());
            return Err(ApiError::field(&name, &found, "user or assistant"));
        }
    };
    let content = fields.take("content").unwrap_or_default();
    let text = text_of(&fields.place("content"), content, role == Role::Assistant)?;
    Ok(Message::new(role, text))
}

/// A text, or blocks of text, a line or more each. Thoughts of earlier answers are left out, as the models were trained.
fn text_of(place: &str, content: Value, may_think: bool) -> Result<String> {
    const LISTS: Lists = Lists {
        honoured: &["text", "type"],
        without_effect: &["cache_control"],
        only_default: &[("citations", &["[]"])],
    };
    let blocks = match content {
        Value::String(text) => return Ok(text),
        Value::Array(blocks) => blocks,
        other => {
            let expected = "a string or a list of blocks of text";
            return Err(ApiError::field(place, &other, expected));
        }
    };
    let mut texts = Vec::new();
    for (i, block) in blocks.into_iter().enumerate() {
        let place = format!("{place}[{i}]");
        let is_thought =
            ["thinking", "redacted_thinking"].contains(&block["type"].as_str().unwrap_or(""));
        match block {
            Value::Object(_) if is_thought && may_think => {}
            Value::Object(fields) if fields.get("type").is_some_and(|kind| kind == "text") => {
                let mut fields = Fields::within(&place, fields, &LISTS)?;
                let text = fields.text("text")?;
                let expected = "a string";
                texts.push(text.ok_or_else(|| {
                    ApiError::field(&fields.place("text"), &Value::Null, expected)
                })?);
            }
            other => {
                let expected = "a block of type text; there are no others here";
                return Err(ApiError::field(&place, &other, expected));
            }
        }
    }
    Ok(texts.join("\n"))
}

/// What every form of an answer says.
struct Said {
    id: String,
    model: String,
    /// Those that the client gave, which come first among all.
    stops: Vec<String>,
}

impl Said {
    fn message(&self, content: Value, reason: Value, stop: Value, usage: Usage) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop,
            "usage": usage_json(usage),
        })
    }

    /// `stop_reason` and `stop_sequence`.
    fn reason(&self, ending: Option<Ending>) -> (Value, Value) {
        match ending {
            None => (Value::Null, Value::Null),
            Some(Ending::Length) => ("max_tokens".into(), Value::Null),
            Some(Ending::Stop | Ending::Complete) => ("end_turn".into(), Value::Null),
            Some(Ending::StopText(index)) => match self.stops.get(index) {
                Some(stop) => ("stop_sequence".into(), stop.as_str().into()),
                None => ("end_turn".into(), Value::Null),
            },
        }
    }
}

/// Tokens that were known are not among `input_tokens`.
fn usage_json(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.n_prompt.saturating_sub(usage.n_cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.n_cached,
        "output_tokens": usage.n_made,
    })
}

/// The answer in one piece.
async fn whole(mut answers: Answers, said: &Said) -> Result<Response> {
    let (mut thought, mut text, mut ending) = (String::new(), String::new(), None);
    while let Some(piece) = answers.next().await? {
        thought += &piece.thought;
        text += &piece.text;
        ending = piece.ending;
    }
    let mut content = Vec::new();
    if !thought.is_empty() {
        content.push(json!({"type": "thinking", "thinking": thought, "signature": ""}));
    }
    content.push(json!({"type": "text", "text": text}));
    let (reason, stop) = said.reason(ending);
    let message = said.message(content.into(), reason, stop, answers.usage);
    Ok(Json(message).into_response())
}

/// The answer as it comes: blocks, one behind the other.
struct Blocks {
    said: Said,
    /// The type of the block that is open, and its index.
    open: Option<&'static str>,
    index: usize,
    ending: Option<Ending>,
}

impl Blocks {
    fn of(said: Said) -> Self {
        Blocks {
            said,
            open: None,
            index: 0,
            ending: None,
        }
    }

    /// Ends the block that is open, if it is of another type, and begins one of this.
    fn turn_to(&mut self, kind: &'static str, events: &mut Vec<Value>) {
        if self.open == Some(kind) {
            return;
        }
        self.close(events);
        let block = match kind {
            "thinking" => json!({"type": kind, "thinking": "", "signature": ""}),
            _ => json!({"type": kind, "text": ""}),
        };
        events.push(
            json!({"type": "content_block_start", "index": self.index, "content_block": block}),
        );
        self.open = Some(kind);
    }

    fn close(&mut self, events: &mut Vec<Value>) {
        if self.open.take().is_some() {
            events.push(json!({"type": "content_block_stop", "index": self.index}));
            self.index += 1;
        }
    }
}

impl Chunks for Blocks {
    const DIALECT: Dialect = Dialect::Anthropic;

    fn begin(&mut self, usage: Usage) -> Vec<Value> {
        let message = self
            .said
            .message(json!([]), Value::Null, Value::Null, usage);
        vec![
            json!({"type": "message_start", "message": message}),
            json!({"type": "ping"}),
        ]
    }

    fn piece(&mut self, piece: Piece, _: &Answers) -> Result<Vec<Value>> {
        let mut events = Vec::new();
        for (kind, field, text) in [
            ("thinking", "thinking", piece.thought),
            ("text", "text", piece.text),
        ] {
            if !text.is_empty() {
                self.turn_to(kind, &mut events);
                let delta = json!({"type": format!("{kind}_delta"), field: text});
                events.push(
                    json!({"type": "content_block_delta", "index": self.index, "delta": delta}),
                );
            }
        }
        self.ending = piece.ending.or(self.ending);
        Ok(events)
    }

    fn end(&mut self, usage: Usage) -> Vec<Value> {
        let mut events = Vec::new();
        // An answer of nothing is a block of nothing.
        if self.index == 0 && self.open.is_none() {
            self.turn_to("text", &mut events);
        }
        self.close(&mut events);
        let (reason, stop) = self.said.reason(self.ending);
        events.push(json!({
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": stop},
            "usage": usage_json(usage),
        }));
        events.push(json!({"type": "message_stop"}));
        events
    }
}
