//! `/v1/sessions`: what is kept of conversations, so that only new messages are sent.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::Json;
use serde::Deserialize;
use serde_json::{json, Value};

use super::backend::Served;
use super::error::{ApiError, Result};
use super::fields::{Fields, FORK};
use super::json::{read_body, read_object};
use super::prompt::session_name;
use super::request::asker;
use super::App;
use crate::job::Owner;
use crate::worker::SessionInfo;

/// Of which model; there may be only one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    model: Option<String>,
}

type Named = Result<Path<String>, PathRejection>;
type Chosen = Result<Query<Which>, QueryRejection>;

fn name(path: Named) -> Result<String> {
    let Path(name) = path.map_err(|rejection| ApiError::bad(rejection.body_text()))?;
    session_name("name", name)
}

fn model(app: &App, which: Chosen) -> Result<Served> {
    let Query(which) = which.map_err(|rejection| ApiError::bad(rejection.body_text()))?;
    app.model(which.model.as_deref()).cloned()
}

/// A session that is asked for.
struct Asked {
    owner: Owner,
    name: String,
    served: Served,
}

impl Asked {
    fn of(app: &App, path: Named, which: Chosen, request: &Request<Body>) -> Result<Self> {
        Ok(Asked {
            owner: asker(request)?.0,
            name: name(path)?,
            served: model(app, which)?,
        })
    }
}

fn describe(served: &Served, session: &SessionInfo) -> Value {
    json!({
        "object": "session",
        "name": session.name,
        "model": served.name,
        "tokens": session.n_tokens,
        "created": session.created,
        "used": session.used,
    })
}

fn no_session(name: &str) -> ApiError {
    let text = format!("there is no session {name:?}");
    let error = ApiError::new(StatusCode::NOT_FOUND, text);
    error.param("name").code("session_not_found")
}

/// Those of all models, or of the one that is named.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    which: Chosen,
    request: Request<Body>,
) -> Result<Json<Value>> {
    let (owner, _) = asker(&request)?;
    let models = match &which {
        Ok(Query(Which { model: None })) => app.models.clone(),
        _ => vec![model(&app, which)?],
    };
    let listed = app.slowly(move || {
        let mut all = Vec::new();
        for served in &models {
            let sessions = served.backend.sessions(&owner)?;
            all.extend(sessions.iter().map(|session| describe(served, session)));
        }
        Ok(all)
    });
    Ok(Json(json!({"object": "list", "data": listed.await?})))
}

pub(super) async fn one(
    State(app): State<Arc<App>>,
    path: Named,
    which: Chosen,
    request: Request<Body>,
) -> Result<Json<Value>> {
    let Asked {
        owner,
        name,
        served,
    } = Asked::of(&app, path, which, &request)?;
    let found = app.slowly(move || {
        let found = served.backend.session(&owner, &name)?;
        found
            .map(|session| describe(&served, &session))
            .ok_or_else(|| no_session(&name))
    });
    Ok(Json(found.await?))
}

pub(super) async fn fork(
    State(app): State<Arc<App>>,
    path: Named,
    which: Chosen,
    request: Request<Body>,
) -> Result<Json<Value>> {
    let Asked {
        owner,
        name,
        served,
    } = Asked::of(&app, path, which, &request)?;
    let (fields, _share) = read_object(&app, request).await?;
    let mut fields = Fields::new(fields, &FORK)?;
    let Some(to) = fields.text("to")? else {
        return Err(ApiError::field(
            "to",
            &Value::Null,
            "the name of the new session",
        ));
    };
    let to = session_name("to", to)?;
    let forked = app.slowly(move || {
        if served.backend.session(&owner, &name)?.is_none() {
            return Err(no_session(&name));
        }
        if served.backend.session(&owner, &to)?.is_some() {
            let text = format!("there is a session {to:?} already");
            return Err(ApiError::new(StatusCode::CONFLICT, text)
                .param("to")
                .code("session_exists"));
        }
        let session = served.backend.fork_session(&owner, &name, &to)?;
        Ok(describe(&served, &session))
    });
    Ok(Json(forked.await?))
}

pub(super) async fn delete(
    State(app): State<Arc<App>>,
    path: Named,
    which: Chosen,
    request: Request<Body>,
) -> Result<Json<Value>> {
    let Asked {
        owner,
        name,
        served,
    } = Asked::of(&app, path, which, &request)?;
    let deleted = app.slowly(
        move || match served.backend.delete_session(&owner, &name)? {
            true => Ok(json!({"object": "session.deleted", "name": name, "deleted": true})),
            false => Err(no_session(&name)),
        },
    );
    Ok(Json(deleted.await?))
}

pub(super) async fn export(
    State(app): State<Arc<App>>,
    path: Named,
    which: Chosen,
    request: Request<Body>,
) -> Result<Response> {
    let Asked {
        owner,
        name,
        served,
    } = Asked::of(&app, path, which, &request)?;
    let exported = app.slowly(move || {
        let bytes = served.backend.export_session(&owner, &name)?;
        bytes.ok_or_else(|| no_session(&name))
    });
    Ok((
        [(CONTENT_TYPE, "application/octet-stream")],
        exported.await?,
    )
        .into_response())
}

pub(super) async fn import(
    State(app): State<Arc<App>>,
    path: Named,
    which: Chosen,
    request: Request<Body>,
) -> Result<Json<Value>> {
    let Asked {
        owner,
        name,
        served,
    } = Asked::of(&app, path, which, &request)?;
    // A state is large: few are held in memory at once.
    let _permit = app.admission.enter(&owner).await?;
    let body = read_body(&app, request, app.config.state_bytes_max).await?;
    let imported = app.slowly(move || {
        let session = served.backend.import_session(&owner, &name, &body.bytes)?;
        Ok(describe(&served, &session))
    });
    Ok(Json(imported.await?))
}
