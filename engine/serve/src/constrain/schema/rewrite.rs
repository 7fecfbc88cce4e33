//! Keywords as other keywords, where that is what llguidance honours.

use serde_json::{json, Map, Value};

use super::super::references::definition_of;
use super::exclusive::open_options;

/// References to references.
const CHAIN_MAX: usize = 32;

/// Multiples are told from other numbers as f64 by most who check them, which needs numbers that are not too large.
pub(super) fn bound_multiples(written: &mut Map<String, Value>) {
    let Some(multiple) = written.get("multipleOf").and_then(Value::as_f64) else {
        return;
    };
    let largest: i64 = match multiple.fract() == 0.0 {
        true => (1 << 53) - 1,
        false => 1_000_000_000_000,
    };
    let bounds = ["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"];
    let mut bounds = bounds
        .iter()
        .filter_map(|keyword| written.get(*keyword)?.as_f64());
    if bounds.any(|bound| bound.abs() >= largest as f64) {
        return;
    }
    for (keyword, exclusive, bound) in [
        ("minimum", "exclusiveMinimum", -largest),
        ("maximum", "exclusiveMaximum", largest),
    ] {
        if !written.contains_key(keyword) && !written.contains_key(exclusive) {
            written.insert(keyword.into(), bound.into());
        }
    }
}

/// A name may come twice where names are free, and counts once then: only objects with the properties that they have
/// can be held to a least number of them.
pub(super) fn check_least_properties(written: &mut Map<String, Value>) -> Result<(), String> {
    let Some(least) = written.get("minProperties").and_then(Value::as_u64) else {
        return Ok(());
    };
    let required = written.get("required").and_then(Value::as_array);
    let mut names: Vec<&str> = required
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    names.sort_unstable();
    names.dedup();
    if names.len() as u64 >= least {
        written.remove("minProperties");
        return Ok(());
    }
    let is_closed = written.get("additionalProperties") == Some(&Value::Bool(false))
        && !written.contains_key("patternProperties");
    match is_closed {
        true => Ok(()),
        false => Err("`minProperties` is not supported where other properties are allowed: they might come twice".into()),
    }
}

/// One pattern is written as such, another beside it.
pub(super) fn put_regexes(
    regexes: Vec<String>,
    written: &mut Map<String, Value>,
    combined: &mut Map<String, Value>,
) {
    for regex in regexes {
        let pattern = Value::String(format!("^(?:{regex})$"));
        if !written.contains_key("pattern") {
            written.insert("pattern".into(), pattern);
            continue;
        }
        let mut another = Map::new();
        if let Some(types) = written.get("type") {
            another.insert("type".into(), types.clone());
        }
        another.insert("pattern".into(), pattern);
        let all = combined.entry("allOf").or_insert_with(|| json!([]));
        if let Value::Array(all) = all {
            all.push(Value::Object(another));
        }
    }
}

/// Alternatives of `oneOf` must exclude each other visibly: of a reference that is seen only where it leads.
pub(super) fn inline_options(value: &mut Value, definitions: &[Value], is_map_of_schemas: bool) {
    match value {
        Value::Array(items) => {
            for item in items {
                inline_options(item, definitions, false);
            }
        }
        Value::Object(members) => {
            for (name, member) in members.iter_mut() {
                match name.as_str() {
                    _ if is_map_of_schemas => inline_options(member, definitions, false),
                    "const" | "enum" => {}
                    "properties" | "patternProperties" => inline_options(member, definitions, true),
                    "oneOf" => {
                        for option in member.as_array_mut().into_iter().flatten() {
                            // What it leads to has been through here as a definition.
                            if !follow(option, definitions) {
                                inline_options(option, definitions, false);
                            }
                        }
                    }
                    _ => inline_options(member, definitions, false),
                }
            }
            if !is_map_of_schemas {
                open_options(members, definitions);
            }
        }
        _ => {}
    }
}

/// Puts in place of a schema that is a reference and nothing else what that means; says whether it was one.
fn follow(schema: &mut Value, definitions: &[Value]) -> bool {
    let mut was_reference = false;
    for _ in 0..CHAIN_MAX {
        let reference = schema.as_object().filter(|keywords| keywords.len() == 1);
        let reference = reference.and_then(|keywords| keywords.get("$ref"));
        let definition = reference.and_then(definition_of);
        match definition.and_then(|index| definitions.get(index)) {
            Some(meant) => *schema = meant.clone(),
            None => break,
        }
        was_reference = true;
    }
    was_reference
}
