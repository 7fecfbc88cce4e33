//! `GET /v1/models` and `/v1/models/{id}`.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::Json;
use serde_json::{json, Value};

use super::backend::Served;
use super::error::{ApiError, Result};
use super::App;

pub(super) async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    let models: Vec<Value> = app.models.iter().map(describe).collect();
    Json(json!({"object": "list", "data": models}))
}

pub(super) async fn one(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>> {
    let Path(id) = id.map_err(|rejection| ApiError::bad(rejection.body_text()))?;
    Ok(Json(describe(app.model(Some(&id))?)))
}

fn describe(served: &Served) -> Value {
    json!({
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "rwkv-edge",
        "state_bytes": served.model().info().state_bytes,
    })
}
