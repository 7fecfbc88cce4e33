//! What becomes of requests that are not answered when the server ends: all of them are told.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use super::App;

/// What they are told, in place of an answer or as the last event of one.
pub(super) fn error() -> ApiError {
    let text = "the server ends, before this was answered";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text).code("server_ending")
}

impl App {
    /// Nothing is answered any more but by this error.
    pub(super) fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Waits until that is so.
    pub(super) async fn is_cut(&self) {
        // The sender is here.
        let _ = self.cut.subscribe().wait_for(|is_cut| *is_cut).await;
    }
}

/// Requests whose answers have not begun.
pub(super) async fn cut_off(
    State(app): State<Arc<App>>,
    request: Request<Body>,
    next: Next,
) -> Response {
    tokio::select! {
        biased;
        response = next.run(request) => response,
        () = app.is_cut() => error().into_response(),
    }
}
