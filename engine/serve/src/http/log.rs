//! A line for each request, when all of its answer was given or the client has gone.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, State};
use axum::http::{Method, Request};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use rwkv_edge::printable;
use serde_json::json;

use super::answers::Usage;
use super::backend::seconds_since_1970;
use super::error::Detail;
use super::App;
use crate::job::Owner;

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogFormat {
    /// For people.
    #[default]
    Plain,
    /// A JSON object a line.
    Json,
}

/// What is known of a request so far.
pub(super) struct Record {
    pub(super) start: Instant,
    known: Mutex<Known>,
}

#[derive(Clone, Default)]
struct Known {
    owner: String,
    model: Option<String>,
    usage: Usage,
    first_token: Option<Duration>,
    prompt: Option<String>,
    warning: Option<String>,
    failure: Option<String>,
}

impl Record {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_owner(&self, owner: &Owner) {
        self.known().owner = owner.name().to_owned();
    }

    pub(super) fn set_model(&self, name: &str) {
        self.known().model = Some(name.to_owned());
    }

    pub(super) fn set_usage(&self, usage: Usage) {
        self.known().usage = usage;
    }

    /// Only where prompts are to be logged.
    pub(super) fn set_prompt(&self, text: String) {
        self.known().prompt = Some(text);
    }

    /// What went wrong beside the answer, which is as it should be.
    pub(super) fn set_warning(&self, error: &rwkv_edge::Error) {
        self.known().warning = Some(error.to_string());
    }

    /// Why there is no answer, or no more of it, in words that are not the client's to read.
    pub(super) fn set_failure(&self, detail: &Detail) {
        self.known().failure = Some(detail.0.clone());
    }

    /// Gives the time to the first token, once.
    pub(super) fn set_first_token(&self) -> Option<Duration> {
        let mut known = self.known();
        if known.first_token.is_some() {
            return None;
        }
        known.first_token = Some(self.start.elapsed());
        known.first_token
    }
}

/// Logs when it is dropped.
struct Line {
    app: Arc<App>,
    record: Arc<Record>,
    method: Method,
    path: String,
    /// As the routes have it, for metrics.
    pattern: &'static str,
    status: u16,
    is_whole: bool,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.app.metrics.answered(self.pattern, self.status);
        let Some(log) = &self.app.config.log else {
            return;
        };
        let known = self.record.known().clone();
        let total = self.record.start.elapsed();
        log(&match self.app.config.log_format {
            LogFormat::Plain => self.plain(&known, total),
            LogFormat::Json => self.json(&known, total),
        });
    }
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}

impl Line {
    fn plain(&self, known: &Known, total: Duration) -> String {
        let owner = match known.owner.as_str() {
            "" => "-",
            owner => owner,
        };
        let mut line = format!(
            "{} {owner} {} {} {}",
            utc(seconds_since_1970()),
            self.method,
            printable(&self.path),
            self.status
        );
        if let Some(model) = &known.model {
            let usage = known.usage;
            line += &format!(
                " {} tokens {}+{} cached {}",
                printable(model),
                usage.n_prompt,
                usage.n_made,
                usage.n_cached
            );
        }
        if let Some(first) = known.first_token {
            line += &format!(" first {} ms", milliseconds(first));
        }
        line += &format!(" total {} ms", milliseconds(total));
        if !self.is_whole {
            line += " client gone";
        }
        if let Some(warning) = &known.warning {
            line += &format!(" not kept: {}", printable(warning));
        }
        if let Some(failure) = &known.failure {
            line += &format!(" failed: {}", printable(failure));
        }
        if let Some(prompt) = &known.prompt {
            line += &format!(" prompt {}", serde_json::Value::from(prompt.as_str()));
        }
        line
    }

    fn json(&self, known: &Known, total: Duration) -> String {
        let mut line = json!({
            "time": utc(seconds_since_1970()),
            "owner": known.owner,
            "method": self.method.as_str(),
            "path": self.path,
            "status": self.status,
            "model": known.model,
            "prompt_tokens": known.usage.n_prompt,
            "cached_tokens": known.usage.n_cached,
            "completion_tokens": known.usage.n_made,
            "first_token_ms": known.first_token.map(milliseconds),
            "total_ms": milliseconds(total),
            "client_gone": !self.is_whole,
        });
        if let Some(warning) = &known.warning {
            line["not_kept"] = warning.as_str().into();
        }
        if let Some(failure) = &known.failure {
            line["failed"] = failure.as_str().into();
        }
        if let Some(prompt) = &known.prompt {
            line["prompt"] = prompt.as_str().into();
        }
        line.to_string()
    }
}

/// Gives every request its record, and logs it.
pub(super) async fn log(
    State(app): State<Arc<App>>,
    mut request: Request<Body>,
    next: Next,
) -> Response {
    const PATH_CHARS_MAX: usize = 200;
    let record = Arc::new(Record {
        start: Instant::now(),
        known: Mutex::default(),
    });
    let pattern = request.extensions().get::<MatchedPath>();
    let pattern =
        pattern.and_then(|found| super::PATHS.iter().find(|path| **path == found.as_str()));
    let mut line = Line {
        record: record.clone(),
        method: request.method().clone(),
        path: request.uri().path().chars().take(PATH_CHARS_MAX).collect(),
        pattern: pattern.copied().unwrap_or("other"),
        // What was never answered is as other servers log it.
        status: 499,
        is_whole: false,
        app,
    };
    request.extensions_mut().insert(record);
    let response = next.run(request).await;
    line.status = response.status().as_u16();
    if let Some(detail) = response.extensions().get() {
        line.record.set_failure(detail);
    }
    response.map(|body| Body::new(LoggedBody { body, line }))
}

/// A body with the line that is logged when it is gone.
struct LoggedBody {
    body: Body,
    line: Line,
}

impl HttpBody for LoggedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.line.is_whole = true;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A time in UTC, such as 2026-11-30T21:36:14Z.
pub(super) fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days since 1 March of the year 0, in eras of 400 years; years begin in March, so that the leap day is their last.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::utc;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_796_074_574, "2026-11-30T21:36:14Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), expected);
        }
    }
}
