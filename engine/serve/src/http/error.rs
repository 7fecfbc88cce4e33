//! The one error of all handlers, in the form that OpenAI's clients read.

use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::Json;
use rwkv_edge::{printable, Error, ErrorKind};
use serde_json::{json, Value};

use crate::session_errors;

/// Why a request is not answered.
#[derive(Debug)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    retry_after_seconds: Option<u64>,
    /// What only the log says.
    detail: Option<Detail>,
}

/// Why something failed here: it may name files of this machine.
#[derive(Clone, Debug)]
pub(super) struct Detail(pub(super) String);

pub(super) type Result<T, E = ApiError> = std::result::Result<T, E>;

/// What is quoted of a request may be as long as the request.
const MESSAGE_BYTES_MAX: usize = 2048;

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl AsRef<str>) -> Self {
        let mut message = printable(message.as_ref()).into_owned();
        if message.len() > MESSAGE_BYTES_MAX {
            let end = (0..=MESSAGE_BYTES_MAX)
                .rev()
                .find(|&at| message.is_char_boundary(at));
            message.truncate(end.unwrap_or(0));
            message += "...";
        }
        ApiError {
            status,
            message,
            param: None,
            code: None,
            retry_after_seconds: None,
            detail: None,
        }
    }

    /// A request that cannot be understood, or asks for what there is not.
    pub(super) fn bad(message: impl AsRef<str>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A field of a request that is not as it should be: what was found, and what is expected.
    pub(super) fn field(name: &str, found: &Value, expected: impl AsRef<str>) -> Self {
        const SHOWN: usize = 80;
        let mut shown = match found {
            Value::Array(list) if list.len() > 8 => format!("a list of {}", list.len()),
            Value::Object(fields) if fields.len() > 4 => "an object".to_owned(),
            other => other.to_string(),
        };
        if shown.chars().count() > SHOWN {
            shown = shown.chars().take(SHOWN).collect::<String>() + "...";
        }
        Self::bad(format!("{name}: {shown}, expected {}", expected.as_ref())).param(name)
    }

    pub(super) fn param(mut self, name: &str) -> Self {
        self.param = Some(printable(name).into_owned());
        self
    }

    pub(super) fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    pub(super) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    pub(super) fn internal(message: &str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    pub(super) fn detail(&self) -> Option<&Detail> {
        self.detail.as_ref()
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// As it is written, in a body or in a stream that has begun.
    pub(super) fn to_json(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind(),
            "param": self.param,
            "code": self.code,
        }})
    }
}

/// An error as Anthropic's clients read it, beside the answer that has it in the form of OpenAI's.
#[derive(Clone)]
pub(super) struct ForAnthropic(pub(super) Value);

impl ApiError {
    /// As Anthropic's clients read it.
    pub(super) fn to_anthropic(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            status if status.is_server_error() => "api_error",
            _ => "invalid_request_error",
        };
        json!({"type": "error", "error": {"type": kind, "message": self.message}})
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        if let Some(code) = session_errors::code(&error) {
            let error = Self::new(StatusCode::CONFLICT, text);
            return error.param("session").code(code);
        }
        match error.kind() {
            ErrorKind::Argument | ErrorKind::State => Self::bad(text),
            ErrorKind::Memory => Self::new(StatusCode::SERVICE_UNAVAILABLE, text),
            _ => {
                let mut error =
                    Self::internal("something failed in the server, whose log says more");
                error.detail = Some(Detail(text));
                error
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.to_json())).into_response();
        let other = ForAnthropic(self.to_anthropic());
        response.extensions_mut().insert(other);
        if let Some(seconds) = self.retry_after_seconds {
            let headers = response.headers_mut();
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(detail) = self.detail {
            response.extensions_mut().insert(detail);
        }
        response
    }
}
