//! JSON schemas, rewritten so that llguidance honours every word of them, or refused.
//!
//! A schema's keywords have the meaning of draft 2020-12. What goes through is written anew, without annotations, with
//! references that need no decoding and patterns that have one meaning; nothing that is not named here goes through.
//! Answers are written without blanks, and strings without `\u`: a name would have two spellings otherwise, and the
//! second one would not be held to its property's schema.

mod exclusive;
mod multiples;
mod rewrite;

use serde_json::{json, Map, Value};

use self::multiples::{check_meetings, round_bounds, split_at_zero, tell_multiples};
use self::rewrite::{bound_multiples, check_least_properties, inline_options, put_regexes};
use super::numbers::{check_constant, check_text, exact, Bounds, Multiples};
use super::references::{
    check_depth, finite_definitions, is_finite, place_of, resolve, DEFINITION,
};
use super::{formats, refused, regex};
use rwkv_edge::Result;

const ANNOTATIONS: [&str; 10] = [
    "$comment",
    "$id",
    "$schema",
    "default",
    "deprecated",
    "description",
    "examples",
    "readOnly",
    "title",
    "writeOnly",
];
const TYPES: [&str; 7] = [
    "null", "boolean", "integer", "number", "string", "array", "object",
];
/// Drafts whose keywords mean the same, but for those that are looked at.
const DRAFTS: [&str; 4] = [
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
    "http://json-schema.org/draft-06/schema",
];
const DEPTH_MAX: usize = 64;
/// Lengths of strings, items of arrays, properties of objects.
const COUNT_MAX: u64 = 1 << 20;
/// Each pair of patterns is compared.
const PATTERNS_MAX: usize = 16;

/// What references may mean, all together.
const DEFINITIONS_MAX: usize = 2000;

/// A schema that llguidance honours.
pub(super) struct Schema<'a> {
    source: &'a Value,
    root: Value,
    definitions: Vec<Definition>,
}

/// What references mean.
struct Definition {
    place: String,
    schema: Value,
}

/// Checks and rewrites a schema.
///
/// # Errors
///
/// [`ErrorKind::Argument`](rwkv_edge::ErrorKind::Argument), with the keyword and its place.
pub(super) fn check(source: &Value) -> Result<Schema<'_>> {
    let (schema, _) = Pass::run(source, false)?;
    Ok(schema)
}

impl Schema<'_> {
    /// The schema, with options for llguidance.
    pub(super) fn whole(&self) -> Value {
        self.document(&self.root)
    }

    /// Every schema in it as one of its own, the innermost first, and its place.
    pub(super) fn parts(&self) -> impl Iterator<Item = (String, Value)> + '_ {
        let parts = Pass::run(self.source, true)
            .map(|(_, parts)| parts)
            .unwrap_or_default();
        parts
            .into_iter()
            .map(|(place, part)| (place, self.document(&part)))
    }

    /// An error's text that speaks of definitions, with their places.
    pub(super) fn with_places(&self, text: &str) -> String {
        // From the last on: the name of the first is the beginning of others.
        let definitions = self.definitions.iter().enumerate().rev();
        definitions.fold(text.to_owned(), |text, (index, definition)| {
            text.replace(&format!("{DEFINITION}{index}"), &definition.place)
        })
    }

    fn document(&self, schema: &Value) -> Value {
        let mut document = match schema {
            Value::Object(keywords) => keywords.clone(),
            _ => Map::new(),
        };
        let definitions = self.definitions.iter().enumerate();
        let definitions: Map<String, Value> = definitions
            .map(|(index, definition)| (format!("d{index}"), definition.schema.clone()))
            .collect();
        document.insert("$defs".into(), Value::Object(definitions));
        let mut document = Value::Object(document);
        tell_multiples(&mut document);
        let options = json!({"whitespace_flexible": false, "json_allowed_escapes": "nrbtf\\\""});
        document["x-guidance"] = options;
        document
    }
}

/// One way through a schema.
struct Pass<'a> {
    root: &'a Value,
    /// Places that references mean, in the order in which they were found.
    definitions: Vec<(At, &'a Value)>,
    keeps_parts: bool,
    /// Schemas of the root and of each definition, those inside others before them.
    parts: Vec<Vec<(String, Value)>>,
    multiples: Multiples,
    /// Of schemas that take fractions.
    bounds: Bounds,
    is_combined: bool,
    is_older_draft: bool,
}

/// Where in the document something is.
#[derive(Clone)]
struct At {
    place: String,
    depth: usize,
    /// Inside a part with a name of its own.
    is_below_id: bool,
}

impl At {
    fn of(place: String) -> Self {
        At {
            place,
            depth: 0,
            is_below_id: false,
        }
    }

    fn member(&self, name: &str) -> Self {
        At {
            place: place_of(&self.place, name),
            depth: self.depth + 1,
            is_below_id: self.is_below_id,
        }
    }

    fn error(&self, what: impl std::fmt::Display) -> rwkv_edge::Error {
        refused(format!("the schema at {}: {what}", self.place))
    }
}

impl<'a> Pass<'a> {
    fn run(root: &'a Value, keeps_parts: bool) -> Result<(Schema<'a>, Vec<(String, Value)>)> {
        let draft = root
            .get("$schema")
            .and_then(Value::as_str)
            .unwrap_or(DRAFTS[0]);
        let mut pass = Pass {
            root,
            definitions: Vec::new(),
            keeps_parts,
            parts: vec![Vec::new()],
            multiples: Multiples::default(),
            bounds: Bounds::default(),
            is_combined: false,
            is_older_draft: draft.trim_end_matches('#') != DRAFTS[0],
        };
        let start = At::of("#".into());
        let written = pass.schema(root, start.clone())?;
        let mut schemas = Vec::new();
        while let Some((at, value)) = pass.definitions.get(schemas.len()).cloned() {
            if schemas.len() == DEFINITIONS_MAX {
                return Err(at.error(format_args!(
                    "references to more than {DEFINITIONS_MAX} places"
                )));
            }
            pass.parts.push(Vec::new());
            schemas.push(pass.schema(value, at)?);
        }
        check_depth(&written, &schemas).map_err(|e| start.error(e))?;
        if pass.is_combined {
            pass.multiples
                .check_combined()
                .map_err(|e| start.error(e))?;
            pass.bounds.check().map_err(|e| start.error(e))?;
            check_meetings(&written, &schemas).map_err(|e| start.error(e))?;
            for schema in &schemas {
                check_meetings(schema, &schemas).map_err(|e| start.error(e))?;
            }
        }
        let finite = finite_definitions(&schemas.iter().collect::<Vec<_>>());
        if let Some(index) = finite.iter().position(|&is_finite| !is_finite) {
            let (at, _) = &pass.definitions[index];
            return Err(at.error(
                "no answer can satisfy it: it refers to itself without an end, or is false",
            ));
        }
        if !is_finite(&written, &finite) {
            return Err(start.error("no answer can satisfy it"));
        }
        let mut schema = Schema {
            source: root,
            root: written,
            definitions: Vec::new(),
        };
        let originals = schemas.clone();
        inline_options(&mut schema.root, &originals, false);
        for ((at, _), mut written) in pass.definitions.into_iter().zip(schemas) {
            inline_options(&mut written, &originals, false);
            schema.definitions.push(Definition {
                place: at.place,
                schema: written,
            });
        }
        // What was found last is what the others refer to.
        let mut parts: Vec<_> = pass.parts.into_iter().rev().flatten().collect();
        for (_, part) in &mut parts {
            inline_options(part, &originals, false);
        }
        Ok((schema, parts))
    }

    fn schema(&mut self, value: &'a Value, mut at: At) -> Result<Value> {
        let keywords = match value {
            Value::Bool(_) => return Ok(value.clone()),
            Value::Object(keywords) => keywords,
            _ => return Err(at.error("expected an object or a boolean")),
        };
        if at.depth > DEPTH_MAX {
            return Err(at.error(format_args!("more than {DEPTH_MAX} levels deep")));
        }
        if at.depth > 0 && keywords.contains_key("oneOf") {
            // As a definition, so that what it is in can be put in the place of a reference without it.
            let index = self.definition(at, value);
            return Ok(json!({"$ref": format!("{DEFINITION}{index}")}));
        }
        at.is_below_id |= at.place != "#" && keywords.contains_key("$id");
        // What schemas are combined with comes last, so that it meets a complete one.
        let mut written = Map::new();
        let mut combined = Map::new();
        let mut regexes = Vec::new();
        for (name, value) in keywords {
            let here = at.member(name);
            let name = name.as_str();
            match name {
                "type" => {
                    written.insert(name.into(), types(value, &here)?);
                }
                "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf" => {
                    let Value::Number(number) = value else {
                        return Err(here.error("expected a number"));
                    };
                    match name {
                        "multipleOf" => self.multiples.push(number),
                        _ => exact(number).map(drop),
                    }
                    .map_err(|e| here.error(e))?;
                    written.insert(name.into(), value.clone());
                }
                "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties"
                | "maxProperties" => {
                    let count = value.as_u64().filter(|&count| count <= COUNT_MAX);
                    let count = count.ok_or_else(|| {
                        here.error(format_args!("expected a whole number of 0 to {COUNT_MAX}"))
                    })?;
                    written.insert(name.into(), count.into());
                }
                "pattern" => {
                    let text = string(value, &here)?;
                    regexes.push(regex::search(text).map_err(|e| here.error(e))?);
                }
                "format" => {
                    let format = string(value, &here)?;
                    let regex = formats::regex(format).ok_or_else(|| {
                        let names = formats::names();
                        here.error(format_args!(
                            "the format {format:?} is not supported, but these: {names}"
                        ))
                    })?;
                    regexes.push(regex);
                }
                "items" if value.is_array() => {
                    return Err(here.error(
                        "a list is not supported; use `prefixItems` and a schema in `items`",
                    ))
                }
                "items" | "additionalProperties" => {
                    written.insert(name.into(), self.schema(value, here)?);
                }
                "prefixItems" if self.is_older_draft => {
                    return Err(here
                        .error("`prefixItems` has no meaning in the draft that `$schema` names"))
                }
                "prefixItems" => {
                    written.insert(name.into(), self.list(value, &here)?);
                }
                "uniqueItems" if value == &Value::Bool(false) => {}
                "properties" => {
                    written.insert(name.into(), self.properties(value, &here, false)?);
                }
                "patternProperties" => {
                    self.is_combined = true;
                    written.insert(name.into(), self.properties(value, &here, true)?);
                }
                "required" => {
                    let names = value
                        .as_array()
                        .ok_or_else(|| here.error("expected a list"))?;
                    for name in names {
                        let name = string(name, &here)?;
                        check_text(name).map_err(|e| here.error(e))?;
                    }
                    written.insert(name.into(), value.clone());
                }
                "const" => {
                    check_constant(value).map_err(|e| here.error(e))?;
                    combined.insert(name.into(), value.clone());
                }
                "enum" => {
                    let values = value.as_array().filter(|values| !values.is_empty());
                    let values = values.ok_or_else(|| here.error("expected a list of values"))?;
                    let checked = values.iter().try_for_each(check_constant);
                    checked.map_err(|e| here.error(e))?;
                    combined.insert(name.into(), value.clone());
                }
                "$ref" => {
                    combined.insert(name.into(), self.reference(value, &here)?);
                }
                "allOf" | "anyOf" | "oneOf" => {
                    self.is_combined = true;
                    combined.insert(name.into(), self.list(value, &here)?);
                }
                "$defs" | "definitions" if value.is_object() => {}
                "$schema" => {
                    let draft = string(value, &here)?.trim_end_matches('#');
                    if !DRAFTS.contains(&draft) {
                        let known = DRAFTS.join(", ");
                        return Err(here.error(format_args!(
                            "the draft {draft:?} is not supported, but these: {known}"
                        )));
                    }
                }
                "$id" => {
                    string(value, &here)?;
                }
                _ if ANNOTATIONS.contains(&name) => {}
                _ => return Err(here.error(format_args!("`{name}` is not supported"))),
            }
        }
        round_bounds(&mut written).map_err(|e| at.member("multipleOf").error(e))?;
        if written.get("type") != Some(&json!("integer")) {
            let bounds = Bounds::of(&written);
            bounds.check().map_err(|e| at.error(e))?;
            self.bounds.append(&bounds);
        }
        bound_multiples(&mut written);
        split_at_zero(&mut written, &mut combined).map_err(|e| at.member("multipleOf").error(e))?;
        check_least_properties(&mut written).map_err(|e| at.member("minProperties").error(e))?;
        put_regexes(regexes, &mut written, &mut combined);
        self.is_combined |= combined.contains_key("$ref") && combined.len() + written.len() > 1;
        for name in ["const", "enum", "$ref", "allOf", "anyOf", "oneOf"] {
            if let Some(value) = combined.remove(name) {
                written.insert(name.into(), value);
            }
        }
        let written = Value::Object(written);
        if let Some(parts) = self.parts.last_mut().filter(|_| self.keeps_parts) {
            parts.push((at.place, written.clone()));
        }
        Ok(written)
    }

    fn list(&mut self, value: &'a Value, at: &At) -> Result<Value> {
        let schemas = value.as_array().filter(|schemas| !schemas.is_empty());
        let schemas = schemas.ok_or_else(|| at.error("expected a list of schemas"))?;
        let written = schemas.iter().enumerate();
        let written =
            written.map(|(index, schema)| self.schema(schema, at.member(&index.to_string())));
        Ok(Value::Array(written.collect::<Result<_>>()?))
    }

    fn properties(&mut self, value: &'a Value, at: &At, are_patterns: bool) -> Result<Value> {
        let properties = value.as_object();
        let properties = properties.ok_or_else(|| at.error("expected an object of schemas"))?;
        if are_patterns && properties.len() > PATTERNS_MAX {
            return Err(at.error(format_args!("more than {PATTERNS_MAX} patterns")));
        }
        let mut written = Map::new();
        for (name, schema) in properties {
            let here = at.member(name);
            let name = match are_patterns {
                true => {
                    let regex = regex::search(name).map_err(|e| here.error(e))?;
                    format!("^{regex}$")
                }
                false => {
                    check_text(name).map_err(|e| here.error(e))?;
                    name.clone()
                }
            };
            let schema = self.schema(schema, here.clone())?;
            if written.insert(name, schema).is_some() {
                return Err(here.error("a pattern that means the same as another"));
            }
        }
        Ok(Value::Object(written))
    }

    fn reference(&mut self, value: &'a Value, at: &At) -> Result<Value> {
        let reference = string(value, at)?;
        if at.is_below_id {
            return Err(at.error(
                "a reference below an `$id` that is not the whole schema's is not supported",
            ));
        }
        let (place, found) = resolve(self.root, reference)
            .map_err(|e| at.error(format_args!("{reference:?} cannot be resolved: {e}")))?;
        let index = self.definition(At::of(place), found);
        Ok(Value::String(format!("{DEFINITION}{index}")))
    }

    /// The number of the definition of what is at a place.
    fn definition(&mut self, at: At, value: &'a Value) -> usize {
        let known = self
            .definitions
            .iter()
            .position(|(known, _)| known.place == at.place);
        known.unwrap_or_else(|| {
            self.definitions.push((At { depth: 0, ..at }, value));
            self.definitions.len() - 1
        })
    }
}

fn string<'a>(value: &'a Value, at: &At) -> Result<&'a str> {
    value.as_str().ok_or_else(|| at.error("expected a string"))
}

fn types(value: &Value, at: &At) -> Result<Value> {
    let names = match value {
        Value::Array(names) if !names.is_empty() => names.as_slice(),
        Value::String(_) => std::slice::from_ref(value),
        _ => return Err(at.error("expected the name of a type, or a list of them")),
    };
    for name in names {
        if !name.as_str().is_some_and(|name| TYPES.contains(&name)) {
            let known = TYPES.join(", ");
            return Err(at.error(format_args!(
                "the type {name} is not known, but these: {known}"
            )));
        }
    }
    Ok(value.clone())
}
