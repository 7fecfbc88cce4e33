//! HTTP, as clients of OpenAI speak it, and a few paths of our own for sessions and tokens.
//!
//! A request comes in through `connections.rs`, is logged (`log.rs`), let in or not (`guard.rs`), read (`json.rs`,
//! `fields.rs`), and answered by a handler: small functions in a file for each path. Models run elsewhere: a handler
//! gives a [`Job`](crate::Job) to a [`Backend`] and reads its events (`answers.rs`), in one piece or as they come
//! (`sse.rs`). Nothing here waits on a thread of the runtime but for sockets.

mod answers;
mod anthropic;
mod backend;
mod chat;
mod completions;
mod config;
mod connections;
mod embeddings;
mod ending;
mod error;
mod fields;
mod guard;
mod json;
mod keys;
mod limits;
mod log;
mod logprobs;
mod models;
mod page;
mod prompt;
mod request;
mod server;
mod sessions;
mod sse;
mod tokens;

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{from_fn_with_state, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;
use tokio::sync::{watch, Semaphore};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

pub use backend::{Backend, Served, WorkerBackend};
pub use config::{Config, Log};
pub use log::LogFormat;
pub use server::{Server, Stopper};

use self::error::{ApiError, Result};
use self::keys::Keys;
use self::limits::Admission;
use crate::metrics::Metrics;

/// What all handlers share.
struct App {
    config: Config,
    models: Vec<Served>,
    keys: Option<Keys>,
    admission: Admission,
    metrics: Arc<Metrics>,
    /// Bytes of bodies that may be read at once, a permit each.
    body_memory: Arc<Semaphore>,
    /// Work that is not the model's but takes a while: as much at once as there are processors to spare.
    slow_work: Arc<Semaphore>,
    is_ending: AtomicBool,
    /// Turns true when what has not been answered is answered no more.
    cut: watch::Sender<bool>,
}

impl App {
    /// Does what takes a while where waiting is no harm. A panic in it is its caller's.
    async fn slowly<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let permit = self.slow_work.clone().acquire_owned().await;
        let permit = permit.map_err(|_| ending::error())?;
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        match done.await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(ending::error()),
            },
        }
    }

    fn model(&self, name: Option<&str>) -> Result<&Served> {
        let Some(name) = name else {
            return match self.models.as_slice() {
                [only] => Ok(only),
                all => {
                    let names: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
                    let text = format!("model: none, expected one of {}", names.join(", "));
                    Err(ApiError::bad(text).param("model"))
                }
            };
        };
        let found = self.models.iter().find(|one| one.name == name);
        found.ok_or_else(|| {
            let text = format!("there is no model {name:?} here; GET /v1/models lists them");
            let error = ApiError::new(StatusCode::NOT_FOUND, text);
            error.param("model").code("model_not_found")
        })
    }
}

/// All paths, by which requests are counted.
const PATHS: [&str; 16] = [
    "/",
    "/health",
    "/metrics",
    "/tokenize",
    "/detokenize",
    "/v1/models",
    "/v1/models/{*id}",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/sessions",
    "/v1/sessions/{name}",
    "/v1/sessions/{name}/fork",
    "/v1/sessions/{name}/state",
];

fn router(app: &Arc<App>) -> Router {
    let router = Router::new()
        .route("/", get(page::page))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/chat/completions", post(chat::answer))
        .route("/v1/completions", post(completions::answer))
        .route("/v1/embeddings", post(embeddings::embed))
        .route("/v1/messages", post(anthropic::answer))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/v1/sessions", get(sessions::list))
        .route(
            "/v1/sessions/{name}",
            get(sessions::one).delete(sessions::delete),
        )
        .route("/v1/sessions/{name}/fork", post(sessions::fork))
        .route(
            "/v1/sessions/{name}/state",
            get(sessions::export).put(sessions::import),
        )
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        // Bodies are read within limits of our own, with errors as the others are.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(app.clone(), guard::check_key));
    let router = match app.config.allow_origins.is_empty() {
        true => router,
        false => router.layer(cors(&app.config.allow_origins)),
    };
    router
        .layer(from_fn_with_state(app.clone(), guard::check_place))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(app.clone(), ending::cut_off))
        .layer(axum::middleware::from_fn(anthropic::own_errors))
        .layer(axum::middleware::from_fn(without_sniffing))
        .layer(from_fn_with_state(app.clone(), log::log))
        .with_state(app.clone())
}

fn cors(origins: &[String]) -> CorsLayer {
    let allowed = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(
            origins
                .iter()
                .filter_map(|one| HeaderValue::from_str(one).ok()),
        ),
    };
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        // Clients bring headers of their own, and `*` does not stand for Authorization.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([RETRY_AFTER])
}

/// What is said here is what its header says.
async fn without_sniffing(request: axum::extract::Request, next: Next) -> Response {
    const NO_SNIFF: HeaderName = HeaderName::from_static("x-content-type-options");
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(NO_SNIFF, HeaderValue::from_static("nosniff"));
    response
}

fn panicked(_: Box<dyn Any + Send>) -> Response {
    ApiError::internal("something here has failed; other requests are not concerned")
        .into_response()
}

async fn no_such_path(method: Method, uri: Uri) -> ApiError {
    let text = format!("there is no {method} {}", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, text).code("not_found")
}

async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    let text = format!("{} cannot be asked by {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, text).code("method_not_allowed")
}

async fn health(State(app): State<Arc<App>>) -> Response {
    match app.is_ending.load(Ordering::Relaxed) {
        false => Json(json!({"status": "ok"})).into_response(),
        true => (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(json!({"status": "ending"})),
        )
            .into_response(),
    }
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, TEXT)], app.metrics.text()).into_response()
}
