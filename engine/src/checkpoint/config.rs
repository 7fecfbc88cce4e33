//! The configuration of a Hugging Face directory, from its `config.json`.
//!
//! Fields that are missing or `null` take the values that transformers gives them, and so do tokens that are -1 or `[]`;
//! which fields there are is in the architecture's table. Sizes are bounded here, so that products of two of them never
//! overflow; that the tensors agree with them is checked by `names.rs`.

#![forbid(unsafe_code)]

use serde_json::{Map, Value};

use super::json;
use crate::error::{Error, Result};
use crate::files::SourceFile;
use crate::networks::config::{Config, OtherEnds, Settings, Sizes};
use crate::networks::known;
use crate::networks::table::Architecture;

/// A `config.json` has some twenty lines. All of them are kept, in many times the memory of their text.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// What a `config.json` says, and all that stands in it.
pub(super) fn from_file(file: &SourceFile) -> Result<(Config, Map<String, Value>)> {
    let fields: Map<String, Value> = json::parse(file, FILE_BYTES_MAX)?;
    let config = from_fields(&fields).map_err(|e| e.at(file.name()))?;
    Ok((config, fields))
}

fn from_fields(fields: &Map<String, Value>) -> Result<Config> {
    let mut sizes = Sizes::unknown(architecture(fields)?);
    for size in sizes.architecture.sizes {
        let stored = count(fields, size.field, size.max)?;
        let n = stored.unwrap_or_else(|| (size.default)(&sizes));
        (size.set)(&mut sizes, n);
    }
    let context = match count(fields, "context_length", u64::from(u32::MAX))? {
        Some(length) => Some(length),
        None => count(fields, "max_position_embeddings", u64::from(u32::MAX))?,
    };
    let trained = Settings::default();
    let (end_of_text, other_ends_of_text) = ends_of_text(fields)?;
    let config = Config {
        sizes,
        settings: Settings {
            head_norm_epsilon: Settings::default().head_norm_epsilon,
            layer_norm_epsilon: epsilon(fields)?.unwrap_or(trained.layer_norm_epsilon),
            end_of_text,
            other_ends_of_text,
            bos: token(fields, "bos_token_id")?,
            context_length: context.unwrap_or(trained.context_length),
            tie_word_embeddings: flag(fields, "tie_word_embeddings")?,
        },
    };
    config.check()?;
    Ok(config)
}

/// The architecture whose directory this is: its name says more than the first tensor that is missing.
fn architecture(fields: &Map<String, Value>) -> Result<&'static Architecture> {
    refuse_others(fields)?;
    let all = known::architectures;
    let expected = |name: fn(&Architecture) -> &str| {
        let names: Vec<_> = all()
            .map(|one| format!("\"{}\" ({})", name(one), one.title))
            .collect();
        names.join(" or ")
    };
    if let Some(found) = present(fields, "model_type") {
        let one = all().find(|one| found == one.hugging_face.model_type);
        return one.ok_or_else(|| {
            let expected = expected(|one| one.hugging_face.model_type);
            Error::unsupported(format!("model_type {found}, expected {expected}"))
        });
    }
    let Some(found) = present(fields, "architectures").and_then(|list| list.get(0)) else {
        let types: Vec<_> = all()
            .map(|one| format!("\"{}\"", one.hugging_face.model_type))
            .collect();
        return Err(Error::format(format!(
            "no model_type, expected {}",
            types.join(" or ")
        )));
    };
    let one = all().find(|one| found == one.hugging_face.class);
    one.ok_or_else(|| {
        let expected = expected(|one| one.hugging_face.class);
        Error::unsupported(format!("architecture {found}, expected {expected}"))
    })
}

/// Says what a network is that is known and cannot run here.
fn refuse_others(fields: &Map<String, Value>) -> Result<()> {
    let refuse = |what: String, title: &str| {
        let text = format!("{what}: {title}, expected {}", known::titles());
        Err(Error::unsupported(text))
    };
    let class = present(fields, "architectures").and_then(|list| list.get(0));
    let types = [("model_type", present(fields, "model_type")), ("architecture", class)];
    for (field, value) in types {
        let title = value.and_then(Value::as_str).and_then(known::other_type);
        if let (Some(value), Some(title)) = (value, title) {
            return refuse(format!("{field} {value}"), title);
        }
    }
    for (field, title) in known::CHANGING_FIELDS {
        if present(fields, field).is_some_and(|value| *value != Value::Bool(false)) {
            return refuse(format!("{field} is set"), title);
        }
    }
    Ok(())
}

/// A field that is there and not `null`.
fn present<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.get(name).filter(|value| !value.is_null())
}

fn count(fields: &Map<String, Value>, name: &str, max: u64) -> Result<Option<usize>> {
    let Some(value) = present(fields, name) else {
        return Ok(None);
    };
    match value.as_u64().filter(|size| (1..=max).contains(size)) {
        // `max` is within 32 bits for every field.
        Some(size) => Ok(usize::try_from(size).ok()),
        None => Err(Error::format(format!(
            "{name} {value}, expected 1 to {max}"
        ))),
    }
}

/// A token's id: a number or the first of a list. Minus one and an empty list say that there is none.
fn token(fields: &Map<String, Value>, name: &str) -> Result<u32> {
    let Some(value) = present(fields, name) else {
        return Ok(0);
    };
    let first = match value {
        Value::Array(list) => list.first(),
        value => Some(value),
    };
    let Some(first) = first.filter(|id| !is_no_token(id)) else {
        return Ok(0);
    };
    let id = first.as_u64().and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| Error::format(format!("{name} {value}, expected a token id")))
}

/// What programs write where a model has no such token.
fn is_no_token(value: &Value) -> bool {
    value.as_i64() == Some(-1)
}

/// The token that ends a text, and others that do so, too: a number or a list of some.
fn ends_of_text(fields: &Map<String, Value>) -> Result<(u32, OtherEnds)> {
    const FIELD: &str = "eos_token_id";
    let Some(Value::Array(list)) = fields.get(FIELD) else {
        return Ok((token(fields, FIELD)?, OtherEnds::default()));
    };
    let refuse = || {
        let text = serde_json::to_string(list).unwrap_or_default();
        let max = OtherEnds::MAX + 1;
        let text = format!("{FIELD} {text}, expected a token id or a list of at most {max}");
        Error::format(text)
    };
    let mut ids = Vec::new();
    let listed = list.iter().filter(|id| !is_no_token(id));
    for value in listed.take(OtherEnds::MAX + 2) {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(refuse)?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    let Some((&first, others)) = ids.split_first() else {
        return Ok((0, OtherEnds::default()));
    };
    let others = OtherEnds::try_from(others.to_vec()).map_err(|_| refuse())?;
    Ok((first, others))
}

fn epsilon(fields: &Map<String, Value>) -> Result<Option<f32>> {
    let Some(value) = present(fields, "layer_norm_epsilon") else {
        return Ok(None);
    };
    let number = value.as_f64().map(|number| Some(number as f32));
    number.ok_or_else(|| Error::format(format!("layer_norm_epsilon {value}, expected a number")))
}

fn flag(fields: &Map<String, Value>, name: &str) -> Result<bool> {
    match present(fields, name) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(value) => Err(Error::format(format!(
            "{name} {value}, expected true or false"
        ))),
    }
}
