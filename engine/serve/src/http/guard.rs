//! Who may ask at all: by the host that the request names, by the page that it comes from, and by its key.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN, WWW_AUTHENTICATE};
use axum::http::uri::Authority;
use axum::http::{HeaderName, HeaderValue, Request, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::connections::Connection;
use super::error::{ApiError, Result};
use super::log::Record;
use super::App;
use crate::job::Owner;

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// A page on any machine may let a browser ask here under the page's own name. So the host that a request names must be
/// this machine, the address it came to, or one that was named; and a page that asks must be of the same host.
pub(super) async fn check_place(
    State(app): State<Arc<App>>,
    request: Request<Body>,
    next: Next,
) -> Response {
    match check(&app, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn check(app: &App, request: &Request<Body>) -> Result<()> {
    let forbidden = |code, text: String| Err(ApiError::new(StatusCode::FORBIDDEN, text).code(code));
    let mut hosts = request.headers().get_all(HOST).iter().peekable();
    // Probes may name none; pages cannot keep a browser from naming one.
    let is_unnamed = hosts.peek().is_none() && request.uri().authority().is_none();
    if is_unnamed && request.uri().path() == "/health" {
        return Ok(());
    }
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(ApiError::bad("expected one header Host"));
    };
    let host = host
        .to_str()
        .ok()
        .and_then(|text| text.parse::<Authority>().ok());
    let Some(host) = host.filter(|host| !host.as_str().contains('@')) else {
        return Err(ApiError::bad("the header Host names no host"));
    };
    let connection = request.extensions().get::<Connection>();
    // An address in the first line stands before the header.
    for named in [Some(&host), request.uri().authority()]
        .into_iter()
        .flatten()
    {
        if !is_own_host(app, named, connection) {
            let text = format!("host {named} is not this server's, nor one that is allowed");
            return forbidden("host_not_allowed", text);
        }
    }
    let mut origins = request.headers().get_all(ORIGIN).iter();
    let Some(origin) = origins.next() else {
        return Ok(());
    };
    let origin = origin.to_str().unwrap_or("?");
    let is_own = ["http://", "https://"].iter().any(|scheme| {
        let named = origin.strip_prefix(scheme);
        named.is_some_and(|named| named.eq_ignore_ascii_case(host.as_str()))
    });
    let allowed = &app.config.allow_origins;
    let is_allowed = allowed.iter().any(|one| one == "*" || one == origin);
    match (is_own || is_allowed) && origins.next().is_none() {
        true => Ok(()),
        false => {
            let text = format!("pages of {origin} are not among those that may ask");
            forbidden("origin_not_allowed", text)
        }
    }
}

fn is_own_host(app: &App, named: &Authority, connection: Option<&Connection>) -> bool {
    let host = named.host();
    if ["localhost", "127.0.0.1", "[::1]"]
        .iter()
        .any(|own| own.eq_ignore_ascii_case(host))
    {
        return true;
    }
    let is_allowed =
        |one: &String| one.eq_ignore_ascii_case(host) || one.eq_ignore_ascii_case(named.as_str());
    if app.config.allow_hosts.iter().any(is_allowed) {
        return true;
    }
    let address = host.trim_start_matches('[').trim_end_matches(']').parse();
    connection.is_some_and(|one| address == Ok(one.local.ip().to_canonical()))
}

/// Where there are keys, only whoever has one may ask for anything but `/health` and the page, which asks for the key.
pub(super) async fn check_key(
    State(app): State<Arc<App>>,
    mut request: Request<Body>,
    next: Next,
) -> Response {
    let owner = match &app.keys {
        None => Owner::new(""),
        Some(_) if ["/", "/health"].contains(&request.uri().path()) => Owner::new(""),
        Some(keys) => {
            let header = request.headers().get(AUTHORIZATION);
            let text = header.and_then(|value| value.to_str().ok());
            let given = text.and_then(|text| text.split_once(' '));
            let bearer = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
            // As clients of Anthropic give it.
            let other = request.headers().get(API_KEY);
            let key = bearer.map(|(_, key)| key);
            let key = key.or_else(|| other.and_then(|value| value.to_str().ok()));
            match key.and_then(|key| keys.owner(key.trim())) {
                Some(owner) => owner,
                None => return unauthorized(header.or(other).is_some()),
            }
        }
    };
    if let Some(record) = request.extensions().get::<Arc<Record>>() {
        record.set_owner(&owner);
    }
    request.extensions_mut().insert(owner);
    next.run(request).await
}

fn unauthorized(is_given: bool) -> Response {
    let text = match is_given {
        true => "the key is not known here",
        false => "expected a header Authorization: Bearer KEY",
    };
    let error = ApiError::new(StatusCode::UNAUTHORIZED, text).code("invalid_api_key");
    let mut response = error.into_response();
    let headers = response.headers_mut();
    headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}
