//! Answers as streams of events, byte for byte as the official clients read them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{json, Value};

use super::answers::{Answers, Piece, Usage};
use super::error::{ApiError, Result};
use super::{ending, App};

/// Whose clients read a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Events without names, and a last one that is no JSON.
    OpenAi,
    /// Events with names, which are also their `type`.
    Anthropic,
}

/// Makes chunks of pieces.
pub(super) trait Chunks: Send + 'static {
    const DIALECT: Dialect = Dialect::OpenAi;

    /// What stands in front of everything, with what is known of the prompt by then.
    fn begin(&mut self, usage: Usage) -> Vec<Value>;

    /// A piece of a choice.
    fn piece(&mut self, piece: Piece, answers: &Answers) -> Result<Vec<Value>>;

    /// What stands behind everything, with how much was read and made.
    fn end(&mut self, usage: Usage) -> Vec<Value>;
}

impl Dialect {
    fn event(self, value: &Value) -> Event {
        let event = Event::default().data(value.to_string());
        match (self, value["type"].as_str()) {
            (Dialect::Anthropic, Some(name)) => event.event(name),
            _ => event,
        }
    }

    fn error(self, error: &ApiError) -> Value {
        match self {
            Dialect::OpenAi => error.to_json(),
            Dialect::Anthropic => error.to_anthropic(),
        }
    }

    /// What is sent while there is nothing else, so that nobody on the way takes the connection for dead: to clients of
    /// OpenAI a comment, which they pass over.
    fn ping(self) -> KeepAlive {
        match self {
            Dialect::OpenAi => KeepAlive::new().text("ping"),
            Dialect::Anthropic => KeepAlive::new().event(self.event(&json!({"type": "ping"}))),
        }
    }
}

struct Running<C> {
    app: Arc<App>,
    answers: Option<Answers>,
    chunks: C,
    ready: VecDeque<Event>,
}

/// The end of every stream for clients of OpenAI, unless it is an error.
const DONE: &str = "[DONE]";

/// Answers by a stream. It ends with an error in it when something fails once it has begun.
pub(super) async fn respond<C: Chunks>(
    app: &Arc<App>,
    mut answers: Answers,
    mut chunks: C,
) -> Result<Response> {
    answers.begin().await?;
    let first = chunks.begin(answers.usage);
    let ready = first.iter().map(|value| C::DIALECT.event(value)).collect();
    let running = Running {
        app: app.clone(),
        answers: Some(answers),
        chunks,
        ready,
    };
    let events = stream::unfold(running, |mut running| async {
        while running.ready.is_empty() {
            running.go_on().await?;
        }
        let event = running.ready.pop_front()?;
        Some((Ok::<_, Infallible>(event), running))
    });
    let ping = C::DIALECT.ping().interval(app.config.ping);
    let mut response = Sse::new(events).keep_alive(ping).into_response();
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that gather answers are not to gather this one.
    const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
    headers.insert(BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

impl<C: Chunks> Running<C> {
    /// Makes more ready; `None` when there is no more.
    async fn go_on(&mut self) -> Option<()> {
        let answers = self.answers.as_mut()?;
        let next = tokio::select! {
            biased;
            next = answers.next() => next,
            () = self.app.is_cut() => Err(ending::error()),
        };
        let made = match next {
            Ok(Some(piece)) => self.chunks.piece(piece, answers).map(Some),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        let (last, is_error) = match made {
            Ok(Some(values)) => {
                let events = values.iter().map(|value| C::DIALECT.event(value));
                self.ready.extend(events);
                return Some(());
            }
            Ok(None) => (self.chunks.end(answers.usage), false),
            Err(error) => {
                answers.log(&error);
                (vec![C::DIALECT.error(&error)], true)
            }
        };
        let events = last.iter().map(|value| C::DIALECT.event(value));
        self.ready.extend(events);
        if C::DIALECT == Dialect::OpenAi && !is_error {
            self.ready.push_back(Event::default().data(DONE));
        }
        self.answers = None;
        Some(())
    }
}
