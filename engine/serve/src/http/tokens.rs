//! `POST /tokenize` and `POST /detokenize`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::Json;
use rwkv_edge_chat::{Message, Think};
use serde_json::{json, Value};

use super::backend::Served;
use super::chat::think;
use super::error::{ApiError, Result};
use super::fields::{DETOKENIZE, TOKENIZE};
use super::request::{text_of, Envelope};
use super::{prompt, App};
use crate::job::{Prompt, Start};

/// The tokens of a text, or of a conversation as a model reads it.
pub(super) async fn tokenize(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Json<Value>> {
    let mut envelope = Envelope::read(&app, request, &TOKENIZE).await?;
    let fields = &mut envelope.fields;
    let served = envelope.served;
    let messages = fields.take("messages");
    let think = think(fields)?;
    if think != Think::Off && messages.is_none() {
        let text = format!("think {think}: expected messages that are thought about");
        return Err(ApiError::bad(text).param("think"));
    }
    let texts = [fields.text("content")?, fields.text("prompt")?];
    let mut texts = texts.into_iter().flatten();
    let (text, other) = (texts.next(), texts.next());
    let tokens = match (text, messages) {
        (Some(text), None) if other.is_none() => {
            app.slowly(move || Ok(served.model().tokenizer()?.encode(&text)?))
                .await?
        }
        (None, Some(messages)) => {
            let messages = prompt::messages(messages)?;
            of_conversation(&app, served, messages, think).await?
        }
        _ => {
            let text = "expected one of the fields content, prompt and messages";
            return Err(ApiError::bad(text).param("content"));
        }
    };
    Ok(Json(json!({"count": tokens.len(), "tokens": tokens})))
}

/// The tokens of a conversation as a model reads it.
pub(super) async fn of_conversation(
    app: &App,
    served: Served,
    messages: Vec<Message>,
    think: Think,
) -> Result<Vec<u32>> {
    app.slowly(move || {
        let asked = prompt::of_messages(&served, &messages, think, None)?;
        let (start, prompt) = asked.0;
        let mut tokens = match start {
            Start::Token(first) => vec![first],
            _ => Vec::new(),
        };
        tokens.extend(match prompt {
            Prompt::Text(text) => served.model().tokenizer()?.encode(&text)?,
            Prompt::Tokens(tokens) => tokens,
        });
        Ok(tokens)
    })
    .await
}

/// The text of tokens, by the names that two other servers have for it.
pub(super) async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Json<Value>> {
    let mut envelope = Envelope::read(&app, request, &DETOKENIZE).await?;
    let served = envelope.served;
    let tokens = match envelope.fields.take("tokens").unwrap_or_default() {
        Value::Array(list) => prompt::tokens("tokens", &list, &served)?,
        other => return Err(ApiError::field("tokens", &other, "a list of token ids")),
    };
    let text = app.slowly(move || text_of(&served, &tokens)).await?;
    Ok(Json(json!({"content": text, "prompt": text})))
}
