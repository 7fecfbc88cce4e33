//! Bodies of requests: read within a size and a time, and strict JSON, in which no key stands twice.

use std::fmt;

use axum::body::Body;
use axum::http::header::CONTENT_LENGTH;
use axum::http::{Request, StatusCode};
use futures_util::StreamExt;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::Deserialize;
use serde_json::{Map, Number, Value};
use tokio::sync::OwnedSemaphorePermit;

use super::error::{ApiError, Result};
use super::limits::RETRY_AFTER_SECONDS;
use super::App;

/// A part of the memory for all bodies, which is free again when this is dropped; of an empty body there is none.
pub(super) type BodyShare = Option<OwnedSemaphorePermit>;

/// A body, and its share of the memory for all of them.
pub(super) struct ReadBody {
    pub(super) bytes: Vec<u8>,
    share: BodyShare,
}

/// The whole body.
pub(super) async fn read_body(
    app: &App,
    request: Request<Body>,
    bytes_max: usize,
) -> Result<ReadBody> {
    let length = request.headers().get(CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > bytes_max as u64) {
        return Err(too_large(bytes_max));
    }
    let reading = gather(app, request.into_body(), bytes_max);
    match tokio::time::timeout(app.config.body_timeout, reading).await {
        Ok(read) => read,
        Err(_) => {
            let seconds = app.config.body_timeout.as_secs_f64();
            let text = format!("the body did not come within {seconds} s");
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, text))
        }
    }
}

fn too_large(bytes_max: usize) -> ApiError {
    let text = format!("the body is larger than {bytes_max} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, text)
}

async fn gather(app: &App, body: Body, bytes_max: usize) -> Result<ReadBody> {
    let mut pieces = body.into_data_stream();
    let mut bytes = Vec::new();
    let mut share: BodyShare = None;
    while let Some(piece) = pieces.next().await {
        let damaged = |_| ApiError::bad("the body ended early, or was damaged on its way");
        let piece = piece.map_err(damaged)?;
        if piece.len() > bytes_max - bytes.len() {
            return Err(too_large(bytes_max));
        }
        let n = u32::try_from(piece.len()).unwrap_or(u32::MAX);
        let more = app
            .body_memory
            .clone()
            .try_acquire_many_owned(n)
            .map_err(|_| {
                let text = "the memory for bodies is taken: ask again later";
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text)
                    .retry_after(RETRY_AFTER_SECONDS)
            })?;
        match &mut share {
            Some(share) => share.merge(more),
            none => *none = Some(more),
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(ReadBody { bytes, share })
}

/// A body that is a JSON object. Its share of the memory is to be kept as long as what was read of it.
pub(super) async fn read_object(
    app: &App,
    request: Request<Body>,
) -> Result<(Map<String, Value>, BodyShare)> {
    let body = read_body(app, request, app.config.body_bytes_max).await?;
    Ok((object(&body.bytes)?, body.share))
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        ApiError::bad(format!(
            "the body is not UTF-8: byte {}",
            error.valid_up_to()
        ))
    })?;
    match serde_json::from_str(text) {
        Ok(Strict(Value::Object(fields))) => Ok(fields),
        Ok(_) => Err(ApiError::bad("the body is JSON, expected an object")),
        Err(error) => Err(ApiError::bad(format!("the body is not JSON: {error}"))),
    }
}

/// A value in which no key stands twice in an object: which of both is meant nobody knows.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> std::result::Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if fields.contains_key(&key) {
                return Err(A::Error::custom(format!("key {key:?} stands twice")));
            }
            let Strict(value) = map.next_value()?;
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}
