//! `POST /v1/embeddings`.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use rwkv_edge::Model;
use rwkv_edge_scoring::{Embedder, Pooling};
use serde_json::{json, Value};
use tokio::sync::oneshot;

use super::answers::Usage;
use super::error::{ApiError, Result};
use super::fields::{Fields, EMBEDDINGS};
use super::request::Envelope;
use super::{prompt, App};
use crate::job::Prompt;
use crate::metrics::ModelMetrics;
use crate::worker::Work;

/// Texts of one request at most, as OpenAI has it.
const INPUTS_MAX: usize = 2048;

pub(super) async fn embed(State(app): State<Arc<App>>, request: Request<Body>) -> Result<Response> {
    let mut envelope = Envelope::read(&app, request, &EMBEDDINGS).await?;
    let fields = &mut envelope.fields;
    let served = envelope.served;
    let value = fields.take("input").unwrap_or_default();
    let inputs = prompt::inputs("input", value, &served, INPUTS_MAX)?;
    let is_base64 = is_base64(fields)?;
    let pooling = pooling(fields, served.model())?;
    let dimensions = fields.whole("dimensions", 1, usize::MAX)?;
    if let Some(n) = dimensions.filter(|&n| n != served.model().info().n_embd) {
        let expected = format!("{}, or null", served.model().info().n_embd);
        return Err(ApiError::field("dimensions", &n.into(), expected));
    }
    let _permit = app.admission.enter(&envelope.owner).await?;
    let its = served.clone();
    let texts = app.slowly(move || {
        let tokenizer = its.model().tokenizer()?;
        let texts = inputs.into_iter().map(|input| match input {
            Prompt::Text(text) => Ok(tokenizer.encode(&text)?),
            Prompt::Tokens(tokens) => Ok(tokens),
        });
        texts.collect::<Result<VecDeque<_>>>()
    });
    let texts = texts.await?;
    let n_prompt = texts.iter().map(Vec::len).sum();
    envelope.record.set_usage(Usage {
        n_prompt,
        ..Usage::default()
    });
    let (sender, vectors) = oneshot::channel();
    served.backend.work(Box::new(Embedding {
        texts,
        pooling,
        embedder: None,
        vectors: Vec::new(),
        metrics: app.metrics.model(&served.name),
        answer: Some(sender),
    }));
    let gone = |_| ApiError::internal("the model does not answer any more");
    let vectors = vectors.await.map_err(gone)??;
    // Millions of digits may take a while, too.
    let written = app.slowly(move || Ok(written(&vectors, is_base64, &served.name, n_prompt)));
    Ok(([(CONTENT_TYPE, "application/json")], written.await?).into_response())
}

fn written(vectors: &[Vec<f32>], is_base64: bool, model: &str, n_prompt: usize) -> String {
    let data = vectors.iter().enumerate().map(|(index, vector)| {
        let embedding = match is_base64 {
            true => Value::from(base64(vector)),
            false => vector.iter().copied().map(short).collect(),
        };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    });
    let response = json!({
        "object": "list",
        "data": data.collect::<Vec<Value>>(),
        "model": model,
        "usage": {"prompt_tokens": n_prompt, "total_tokens": n_prompt},
    });
    response.to_string()
}

fn is_base64(fields: &mut Fields) -> Result<bool> {
    match fields.text("encoding_format")?.as_deref() {
        None | Some("float") => Ok(false),
        Some("base64") => Ok(true),
        Some(other) => Err(ApiError::field(
            "encoding_format",
            &other.into(),
            "float or base64",
        )),
    }
}

fn pooling(fields: &mut Fields, model: &Model) -> Result<Pooling> {
    let Some(text) = fields.text("pooling")? else {
        return Ok(Pooling::HiddenMean);
    };
    let n_layer = model.info().n_layer;
    match text.parse() {
        Ok(Pooling::State(layer)) if layer >= n_layer => {
            let expected = format!("state:0 to state:{}", n_layer - 1);
            Err(ApiError::field("pooling", &text.into(), expected))
        }
        Ok(pooling) => Ok(pooling),
        Err(_) => {
            let expected = "hidden-mean, hidden-last or state:LAYER";
            Err(ApiError::field("pooling", &text.into(), expected))
        }
    }
}

/// A number by as few digits as tell it from every other f32.
fn short(x: f32) -> Value {
    x.to_string().parse().map_or(Value::Null, |x: f64| x.into())
}

/// Numbers as numpy reads them: f32, the lowest byte first.
fn base64(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}

/// Texts that become vectors, a batch a step.
struct Embedding {
    texts: VecDeque<Vec<u32>>,
    pooling: Pooling,
    embedder: Option<Embedder>,
    vectors: Vec<Vec<f32>>,
    metrics: ModelMetrics,
    answer: Option<oneshot::Sender<rwkv_edge::Result<Vec<Vec<f32>>>>>,
}

impl Embedding {
    /// Whether all texts have their vectors.
    fn batch(&mut self, model: &Model) -> rwkv_edge::Result<bool> {
        let embedder = match &mut self.embedder {
            Some(embedder) => embedder,
            none => none.insert(Embedder::new(model, self.pooling)?),
        };
        while !embedder.has_batch() {
            let Some(text) = self.texts.pop_front() else {
                break;
            };
            self.metrics.tokens_read.inc_by(text.len() as u64);
            embedder.push(text);
        }
        embedder.run_batch()?;
        self.vectors.extend(std::iter::from_fn(|| embedder.pop()));
        Ok(embedder.is_empty() && self.texts.is_empty())
    }
}

impl Work for Embedding {
    fn step(&mut self, model: &Model) -> bool {
        // Nobody waits where the client has gone.
        if self.answer.as_ref().is_none_or(oneshot::Sender::is_closed) {
            return true;
        }
        let answer = match self.batch(model) {
            Ok(false) => return false,
            Ok(true) => Ok(std::mem::take(&mut self.vectors)),
            Err(error) => Err(error),
        };
        if let Some(sender) = self.answer.take() {
            let _ = sender.send(answer);
        }
        true
    }
}
