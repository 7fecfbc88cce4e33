//! What requests for answers have in common.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use rwkv_edge::SamplerOptions;
use serde_json::{json, Value};

use super::backend::{seconds_since_1970, Served};
use super::error::{ApiError, Result};
use super::fields::{Fields, Lists};
use super::json::{read_object, BodyShare};
use super::log::Record;
use super::prompt::session_name;
use super::App;
use crate::constrain::{Constraint, Grammar};
use crate::job::{Owner, Prompt};

/// Texts that end an answer at most.
const STOPS_MAX: usize = 64;
/// Likeliest tokens that are told with one at most.
pub(super) const TOP_LOGPROBS_MAX: usize = 20;

/// Who asks, and the fields of what is asked.
pub(super) struct Envelope {
    pub(super) owner: Owner,
    pub(super) record: Arc<Record>,
    pub(super) served: Served,
    pub(super) fields: Fields,
    /// Of the memory for bodies: what was read of this one is there until its jobs begin.
    pub(super) share: BodyShare,
}

impl Envelope {
    /// Reads a request whose body is an object with these fields.
    pub(super) async fn read(app: &App, request: Request<Body>, lists: &Lists) -> Result<Self> {
        let (owner, record) = asker(&request)?;
        let (fields, share) = read_object(app, request).await?;
        let mut fields = Fields::new(fields, lists)?;
        let served = app.model(fields.text("model")?.as_deref())?.clone();
        record.set_model(&served.name);
        Ok(Envelope {
            owner,
            record,
            served,
            fields,
            share,
        })
    }
}

/// Who asks, as the layers around the handlers found out.
pub(super) fn asker(request: &Request<Body>) -> Result<(Owner, Arc<Record>)> {
    let extensions = request.extensions();
    match (extensions.get::<Owner>(), extensions.get::<Arc<Record>>()) {
        (Some(owner), Some(record)) => Ok((owner.clone(), record.clone())),
        _ => Err(ApiError::internal("nobody knows who asks")),
    }
}

/// How answers are to be.
pub(super) struct Asked {
    pub(super) sampling: SamplerOptions,
    pub(super) bias: Vec<(u32, f32)>,
    pub(super) n: usize,
    pub(super) stops: Vec<String>,
    pub(super) ignore_eos: bool,
    pub(super) session: Option<String>,
    pub(super) grammar: Option<Grammar>,
    /// Whether the answer comes as a stream, and whether that ends with how much was read and made.
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

impl Asked {
    pub(super) fn read(app: &App, fields: &mut Fields, served: &Served) -> Result<Self> {
        let n_max = app.config.n_sequences.min(app.config.choices_max).max(1);
        let n = fields.whole("n", 1, n_max)?.unwrap_or(1);
        let session = fields.text("session")?;
        let session = session
            .map(|name| session_name("session", name))
            .transpose()?;
        if n > 1 && session.is_some() {
            return Err(ApiError::field(
                "n",
                &n.into(),
                "1, since a session has one answer",
            ));
        }
        let stream = fields.flag("stream")?.unwrap_or(false);
        Ok(Asked {
            sampling: sampling(fields)?,
            bias: bias(fields, served.model().n_vocab())?,
            n,
            stops: stops(fields)?,
            ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
            session,
            grammar: grammar(fields)?,
            include_usage: include_usage(fields, stream)?,
            stream,
        })
    }

    /// Compiles the grammar, if there is one.
    pub(super) async fn constraint(
        &self,
        app: &App,
        served: &Served,
    ) -> Result<Option<Constraint>> {
        let Some(grammar) = self.grammar.clone() else {
            return Ok(None);
        };
        let backend = served.backend.clone();
        let compiled = app.slowly(move || Ok(backend.compile(&grammar)?));
        let param = match &self.grammar {
            Some(Grammar::Regex(_)) => "regex",
            Some(Grammar::Lark(_) | Grammar::Gbnf(_)) => "grammar",
            _ => "response_format",
        };
        compiled.await.map(Some).map_err(|error| error.param(param))
    }
}

/// Tokens of an answer at most: as many as are asked for, within the server's limit.
pub(super) fn max_tokens(
    app: &App,
    field: &str,
    asked: Option<usize>,
    default: usize,
) -> Result<usize> {
    match (asked, app.config.max_tokens) {
        (Some(n), Some(limit)) if n > limit => Err(ApiError::field(
            field,
            &n.into(),
            format!("at most {limit} on this server"),
        )),
        (None, Some(limit)) => Ok(default.min(limit)),
        (asked, _) => Ok(asked.unwrap_or(default)),
    }
}

fn sampling(fields: &mut Fields) -> Result<SamplerOptions> {
    let mut options = SamplerOptions::new();
    options.temperature = fields.number("temperature", 0.0, 2.0)?.unwrap_or(1.0);
    options.temperature_last = fields.flag("temperature_last")?.unwrap_or(false);
    options.top_p = fields.number("top_p", 0.0, 1.0)?.unwrap_or(1.0);
    options.min_p = fields.number("min_p", 0.0, 1.0)?.unwrap_or(0.0);
    options.typical_p = fields.number("typical_p", 0.0, 1.0)?.unwrap_or(1.0);
    options.presence_penalty = fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0);
    options.frequency_penalty = fields
        .number("frequency_penalty", -2.0, 2.0)?
        .unwrap_or(0.0);
    options.penalty_decay = fields.number("penalty_decay", 0.0, 1.0)?.unwrap_or(1.0);
    options.repetition_penalty = fields
        .number("repetition_penalty", 0.01, 10.0)?
        .unwrap_or(1.0);
    if let Some(value) = fields.take("top_k") {
        // Other servers turn it off by -1, too.
        let k = value.as_u64().and_then(|k| usize::try_from(k).ok());
        let k = k.or((value.as_i64() == Some(-1)).then_some(0));
        let expected = "a whole number, at least 0, or -1 for all";
        options = options.top_k(k.ok_or_else(|| ApiError::field("top_k", &value, expected))?);
    }
    options.seed = match fields.take("seed") {
        None => random(),
        Some(value) => {
            let seed = value.as_u64().or(value.as_i64().map(i64::cast_unsigned));
            seed.ok_or_else(|| ApiError::field("seed", &value, "a whole number of 64 bits"))?
        }
    };
    Ok(options)
}

/// Token ids, which JSON writes as strings, with what is added to their logits.
fn bias(fields: &mut Fields, n_vocab: usize) -> Result<Vec<(u32, f32)>> {
    let entries = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(other) => {
            return Err(ApiError::field(
                "logit_bias",
                &other,
                "an object of token ids and numbers",
            ));
        }
    };
    let entry = |(id, value): (String, Value)| {
        let token = id
            .parse::<u32>()
            .ok()
            .filter(|&token| (token as usize) < n_vocab);
        let token = token.ok_or_else(|| {
            let expected = format!("token ids below {n_vocab}");
            ApiError::field("logit_bias", &id.as_str().into(), expected)
        })?;
        let bias = value
            .as_f64()
            .filter(|bias| (-100.0..=100.0).contains(bias));
        let expected = "a number from -100 to 100";
        let name = format!("logit_bias.{id}");
        let bias = bias.ok_or_else(|| ApiError::field(&name, &value, expected))?;
        Ok((token, bias as f32))
    };
    entries.into_iter().map(entry).collect()
}

fn stops(fields: &mut Fields) -> Result<Vec<String>> {
    let list = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![Value::String(text)],
        Some(Value::Array(list)) if list.len() <= STOPS_MAX => list,
        Some(other) => {
            let expected = format!("a string, or a list of at most {STOPS_MAX}");
            return Err(ApiError::field("stop", &other, expected));
        }
    };
    let stop = |value: Value| match value {
        Value::String(text) if !text.is_empty() => Ok(text),
        other => Err(ApiError::field(
            "stop",
            &other,
            "strings of at least one character",
        )),
    };
    list.into_iter().map(stop).collect()
}

fn include_usage(fields: &mut Fields, stream: bool) -> Result<bool> {
    let Some(value) = fields.take("stream_options") else {
        return Ok(false);
    };
    const LISTS: Lists = Lists {
        honoured: &["include_usage"],
        without_effect: &["include_obfuscation"],
        only_default: &[],
    };
    match value {
        Value::Object(_) if !stream => Err(ApiError::field(
            "stream_options",
            &value,
            "null where stream is not true",
        )),
        Value::Object(options) => {
            let mut options = Fields::within("stream_options", options, &LISTS)?;
            Ok(options.flag("include_usage")?.unwrap_or(false))
        }
        other => Err(ApiError::field("stream_options", &other, "an object")),
    }
}

/// What the answer must be; at most one thing.
fn grammar(fields: &mut Fields) -> Result<Option<Grammar>> {
    let mut found = Vec::new();
    if let Some(value) = fields.take("response_format") {
        found.extend(response_format(value)?.map(|grammar| ("response_format", grammar)));
    }
    if let Some(text) = fields.text("regex")? {
        found.push(("regex", Grammar::Regex(text)));
    }
    let form = fields.text("grammar_form")?;
    if let Some(text) = fields.text("grammar")? {
        found.push(match form.as_deref() {
            None | Some("gbnf") => ("grammar", Grammar::Gbnf(text)),
            Some("lark") => ("grammar", Grammar::Lark(text)),
            Some(other) => {
                let error = ApiError::field("grammar_form", &other.into(), "gbnf or lark");
                return Err(error);
            }
        });
    } else if let Some(form) = form {
        return Err(ApiError::field(
            "grammar_form",
            &form.into(),
            "a field grammar beside it",
        ));
    }
    match found.len() {
        0 | 1 => Ok(found.pop().map(|(_, grammar)| grammar)),
        _ => {
            let names: Vec<&str> = found.iter().map(|(name, _)| *name).collect();
            let text = format!("{}: expected one of them", names.join(" and "));
            Err(ApiError::bad(text).param(names[1]))
        }
    }
}

fn response_format(value: Value) -> Result<Option<Grammar>> {
    const PLACE: &str = "response_format";
    const LISTS: Lists = Lists {
        honoured: &["json_schema", "type"],
        without_effect: &[],
        only_default: &[],
    };
    let is_known = |one: &Value| {
        ["text", "json_object", "json_schema"]
            .iter()
            .any(|it| one == it)
    };
    let Value::Object(format) = value else {
        return Err(ApiError::field(PLACE, &value, "an object with a type"));
    };
    let mut format = Fields::within(PLACE, format, &LISTS)?;
    let kind = format.take("type").unwrap_or_default();
    let schema = format.take("json_schema");
    if !is_known(&kind) {
        let expected = "text, json_object or json_schema";
        return Err(ApiError::field(&format.place("type"), &kind, expected));
    }
    if kind == "json_schema" {
        return json_schema(&format.place("json_schema"), schema.unwrap_or_default()).map(Some);
    }
    match schema {
        Some(schema) => {
            let expected = "null where the type is not json_schema";
            Err(ApiError::field(
                &format.place("json_schema"),
                &schema,
                expected,
            ))
        }
        None => Ok((kind == "json_object").then_some(Grammar::JsonObject)),
    }
}

fn json_schema(place: &str, value: Value) -> Result<Grammar> {
    const LISTS: Lists = Lists {
        honoured: &["schema"],
        without_effect: &["description", "name", "strict"],
        only_default: &[],
    };
    let Value::Object(fields) = value else {
        return Err(ApiError::field(place, &value, "an object with a schema"));
    };
    let mut fields = Fields::within(place, fields, &LISTS)?;
    match fields.take("schema").unwrap_or_default() {
        schema @ (Value::Object(_) | Value::Bool(_)) => Ok(Grammar::JsonSchema(schema)),
        other => Err(ApiError::field(
            &fields.place("schema"),
            &other,
            "a JSON schema",
        )),
    }
}

/// What stands at the head of every answer, and of every chunk of one.
pub(super) struct Head {
    id: String,
    created: u64,
    model: String,
}

impl Head {
    pub(super) fn new(id: String, model: &str) -> Self {
        Head {
            id,
            created: seconds_since_1970(),
            model: model.to_owned(),
        }
    }

    pub(super) fn json(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": null,
            "choices": choices,
        })
    }
}

/// An id that no other answer has.
pub(super) fn new_id(prefix: &str) -> String {
    format!("{prefix}{:016x}{:016x}", random(), random())
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Only where prompts are to be logged.
pub(super) fn log_prompt(app: &App, record: &Record, served: &Served, prompt: &Prompt) {
    if !app.config.log_prompts {
        return;
    }
    record.set_prompt(match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Tokens(tokens) => text_of(served, tokens).unwrap_or_default(),
    });
}

/// The text of token ids.
pub(super) fn text_of(served: &Served, tokens: &[u32]) -> Result<String> {
    Ok(served.model().tokenizer()?.decode(tokens)?)
}
