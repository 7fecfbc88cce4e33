//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use axum::Json;
use rwkv_edge_chat::{Message, Think};
use serde_json::{json, Value};

use super::answers::{finish_reason, Answers, Asker, Piece, Questions, Usage};
use super::backend::Served;
use super::error::{ApiError, Result};
use super::fields::{Fields, CHAT};
use super::request::{log_prompt, max_tokens, new_id, Asked, Envelope, Head, TOP_LOGPROBS_MAX};
use super::sse::{self, Chunks};
use super::{logprobs, prompt, App};
use crate::job::Chosen;

const MAX_TOKENS_DEFAULT: usize = 2048;

pub(super) async fn answer(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response> {
    let mut envelope = Envelope::read(&app, request, &CHAT).await?;
    let fields = &mut envelope.fields;
    let served = envelope.served;
    let asked = Asked::read(&app, fields, &served)?;
    let messages = prompt::messages(fields.take("messages").unwrap_or_default())?;
    let think = think(fields)?;
    if think != Think::Off && asked.grammar.is_some() {
        let text = format!("think {think}: expected off where the answer must be of a grammar");
        return Err(ApiError::bad(text).param("think"));
    }
    let top_logprobs = top_logprobs(fields)?;
    let turn = Turn {
        messages,
        think,
        max_new_tokens: limit(&app, fields)?,
        stops: asked.stops.clone(),
        top_logprobs,
    };
    let asker = Asker {
        owner: envelope.owner,
        record: envelope.record,
        share: envelope.share,
    };
    let answers = begin(&app, asker, served, &asked, turn).await?;
    let head = Head::new(new_id("chatcmpl-"), &answers.served.name);
    let has_logprobs = top_logprobs.is_some();
    if asked.stream {
        let chunks = Deltas {
            head,
            n: answers.n_choices(),
            has_logprobs,
            include_usage: asked.include_usage,
        };
        return sse::respond(&app, answers, chunks).await;
    }
    whole(answers, &head, has_logprobs).await
}

/// A conversation that is to be answered.
pub(super) struct Turn {
    pub(super) messages: Vec<Message>,
    pub(super) think: Think,
    pub(super) max_new_tokens: usize,
    /// Those of the client, which come first among all.
    pub(super) stops: Vec<String>,
    pub(super) top_logprobs: Option<usize>,
}

/// Begins to answer a conversation.
pub(super) async fn begin(
    app: &Arc<App>,
    asker: Asker,
    served: Served,
    asked: &Asked,
    turn: Turn,
) -> Result<Answers> {
    let Turn {
        messages,
        think,
        mut stops,
        ..
    } = turn;
    // What the answer must be says where it ends.
    if asked.grammar.is_none() {
        stops.extend(Some(served.template.stop_with(think)).filter(|stop| !stop.is_empty()));
    }
    let constraint = asked.constraint(app, &served).await?;
    let (its, session) = (served.clone(), asked.session.clone());
    let (prompt, reply) = app
        .slowly(move || prompt::of_messages(&its, &messages, think, session))
        .await?;
    log_prompt(app, &asker.record, &served, &prompt.1);
    let questions = Questions {
        prompts: vec![prompt],
        max_new_tokens: turn.max_new_tokens,
        stops,
        top_logprobs: turn.top_logprobs,
        prompt_logprobs: false,
        constraint,
        reply: Some((served.template.clone(), reply)),
        // Every character of it is asked for.
        is_exact: asked.grammar.is_some(),
    };
    Answers::start(app, asker, served, asked, questions).await
}

/// Whether to think, in our own words or OpenAI's.
pub(super) fn think(fields: &mut Fields) -> Result<Think> {
    let think = fields.take("think");
    let effort = fields.take("reasoning_effort");
    if let (Some(_), Some(effort)) = (&think, &effort) {
        return Err(ApiError::field(
            "reasoning_effort",
            effort,
            "null beside the field think",
        ));
    }
    match think {
        None => {}
        Some(Value::Bool(true)) => return Ok(Think::On),
        Some(Value::Bool(false)) => return Ok(Think::Off),
        Some(value) => {
            let think = value.as_str().and_then(|text| text.parse().ok());
            let expected = "off, on, fake, short or long, or true or false";
            return think.ok_or_else(|| ApiError::field("think", &value, expected));
        }
    }
    let Some(effort) = effort else {
        return Ok(Think::Off);
    };
    match effort.as_str() {
        Some("none" | "minimal") => Ok(Think::Off),
        Some("low") => Ok(Think::Short),
        Some("medium") => Ok(Think::On),
        Some("high") => Ok(Think::Long),
        _ => {
            let expected = "none, minimal, low, medium or high";
            Err(ApiError::field("reasoning_effort", &effort, expected))
        }
    }
}

fn top_logprobs(fields: &mut Fields) -> Result<Option<usize>> {
    let has_logprobs = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.whole("top_logprobs", 0, TOP_LOGPROBS_MAX)?;
    match (has_logprobs, top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(top)) => {
            let expected = "logprobs true beside it";
            Err(ApiError::field("top_logprobs", &top.into(), expected))
        }
    }
}

fn limit(app: &App, fields: &mut Fields) -> Result<usize> {
    const NEW: &str = "max_completion_tokens";
    let old = fields.whole("max_tokens", 1, usize::MAX)?;
    let new = fields.whole(NEW, 1, usize::MAX)?;
    if let (Some(old), Some(new)) = (old, new) {
        if old != new {
            let expected = format!("{old}, as max_tokens says");
            return Err(ApiError::field(NEW, &new.into(), expected));
        }
    }
    let field = if new.is_some() { NEW } else { "max_tokens" };
    max_tokens(app, field, new.or(old), MAX_TOKENS_DEFAULT)
}

#[derive(Default)]
struct Said {
    thought: String,
    text: String,
    chosen: Vec<Chosen>,
    finish_reason: Option<&'static str>,
}

/// All answers in one piece.
async fn whole(mut answers: Answers, head: &Head, has_logprobs: bool) -> Result<Response> {
    let mut messages: Vec<Said> = Vec::new();
    messages.resize_with(answers.n_choices(), Said::default);
    while let Some(piece) = answers.next().await? {
        let message = &mut messages[piece.index];
        message.thought += &piece.thought;
        message.text += &piece.text;
        message.chosen.extend(piece.chosen);
        message.finish_reason = finish_reason(piece.ending);
    }
    let tokenizer = answers.served.model().tokenizer()?;
    let choices = messages
        .iter()
        .enumerate()
        .map(|(index, message)| -> Result<Value> {
            let logprobs = has_logprobs.then(|| logprobs::of_chat(tokenizer, &message.chosen));
            let mut said = json!({"role": "assistant", "content": message.text, "refusal": null});
            if !message.thought.is_empty() {
                said["reasoning_content"] = message.thought.as_str().into();
            }
            Ok(json!({
                "index": index,
                "message": said,
                "logprobs": logprobs.transpose()?,
                "finish_reason": message.finish_reason,
            }))
        });
    let mut response = head.json("chat.completion", choices.collect::<Result<_>>()?);
    response["usage"] = answers.usage.to_json();
    Ok(Json(response).into_response())
}

/// Answers as they come.
struct Deltas {
    head: Head,
    n: usize,
    has_logprobs: bool,
    include_usage: bool,
}

impl Deltas {
    fn chunk(&self, choices: Vec<Value>) -> Value {
        let mut chunk = self.head.json("chat.completion.chunk", choices);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn choice(&self, index: usize, delta: Value, logprobs: Value, ending: Option<&str>) -> Value {
        self.chunk(vec![json!({
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": ending,
        })])
    }
}

impl Chunks for Deltas {
    fn begin(&mut self, _: Usage) -> Vec<Value> {
        let role = json!({"role": "assistant", "content": ""});
        let first = |index| self.choice(index, role.clone(), Value::Null, None);
        (0..self.n).map(first).collect()
    }

    fn piece(&mut self, piece: Piece, answers: &Answers) -> Result<Vec<Value>> {
        let mut chunks = Vec::new();
        if !piece.thought.is_empty() {
            let delta = json!({"reasoning_content": piece.thought});
            chunks.push(self.choice(piece.index, delta, Value::Null, None));
        }
        if !piece.text.is_empty() || !piece.chosen.is_empty() {
            let logprobs = match self.has_logprobs {
                true => logprobs::of_chat(answers.served.model().tokenizer()?, &piece.chosen)?,
                false => Value::Null,
            };
            let delta = json!({"content": piece.text});
            chunks.push(self.choice(piece.index, delta, logprobs, None));
        }
        if let Some(reason) = finish_reason(piece.ending) {
            chunks.push(self.choice(piece.index, json!({}), Value::Null, Some(reason)));
        }
        Ok(chunks)
    }

    fn end(&mut self, usage: Usage) -> Vec<Value> {
        let mut chunk = self.chunk(Vec::new());
        chunk["usage"] = usage.to_json();
        Vec::from_iter(self.include_usage.then_some(chunk))
    }
}
