//! Answers as streams of events, byte for byte as the official clients read them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::Value;

use super::answers::{Answers, Piece, Usage};
use super::error::Result;
use super::{ending, App};

/// Makes chunks of pieces.
pub(super) trait Chunks: Send + 'static {
    /// What stands in front of everything.
    fn begin(&mut self) -> Vec<Value>;

    /// A piece of a choice.
    fn piece(&mut self, piece: Piece, answers: &Answers) -> Result<Vec<Value>>;

    /// How much was read and made, where it is asked for.
    fn usage(&mut self, usage: Usage) -> Option<Value>;
}

struct Running<C> {
    app: Arc<App>,
    answers: Option<Answers>,
    chunks: C,
    ready: VecDeque<String>,
}

/// The end of every stream.
const DONE: &str = "[DONE]";

/// Answers by a stream. It ends with an error in it when something fails once it has begun.
pub(super) async fn respond(
    app: &Arc<App>,
    mut answers: Answers,
    mut chunks: impl Chunks,
) -> Result<Response> {
    answers.begin().await?;
    let ready = chunks.begin().iter().map(Value::to_string).collect();
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
        let data = running.ready.pop_front()?;
        Some((Ok::<_, Infallible>(Event::default().data(data)), running))
    });
    // A comment, which clients pass over, so that nobody on the way takes the connection for dead.
    let ping = KeepAlive::new().interval(app.config.ping).text("ping");
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
        match made {
            Ok(Some(values)) => self.ready.extend(values.iter().map(Value::to_string)),
            Ok(None) => {
                let usage = self.chunks.usage(answers.usage);
                self.ready.extend(usage.map(|value| value.to_string()));
                self.ready.push_back(DONE.into());
                self.answers = None;
            }
            Err(error) => {
                answers.log(&error);
                self.ready.push_back(error.to_json().to_string());
                self.answers = None;
            }
        }
        Some(())
    }
}
