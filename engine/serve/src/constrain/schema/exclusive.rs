//! Schemas that exclude each other: of those at most one holds, so that one of them is any of them.
//!
//! llguidance sees that itself for types and for texts, but not for numbers.

use serde_json::{Map, Value};

use super::super::references::definition_of;

/// References to references, and required properties within each other.
const DEPTH_MAX: usize = 32;
/// Schemas and values that are compared for one `oneOf`: what takes longer is not seen.
const STEPS_MAX: usize = 200_000;

/// Writes `oneOf` as `anyOf` where all alternatives exclude each other.
pub(super) fn open_options(keywords: &mut Map<String, Value>, definitions: &[Value]) {
    if keywords.contains_key("anyOf") {
        return;
    }
    let Some(Value::Array(options)) = keywords.get("oneOf") else {
        return;
    };
    let mut pairs = options
        .iter()
        .enumerate()
        .flat_map(|(i, a)| options[..i].iter().map(move |b| (a, b)));
    let mut search = Search {
        definitions,
        n_left: STEPS_MAX,
    };
    if pairs.all(|(a, b)| search.excludes(a, b, 0)) {
        if let Some(options) = keywords.remove("oneOf") {
            keywords.insert("anyOf".into(), options);
        }
    }
}

struct Search<'a> {
    definitions: &'a [Value],
    n_left: usize,
}

impl<'a> Search<'a> {
    /// Whether no value satisfies both; `false` where that is not seen.
    fn excludes(&mut self, a: &Value, b: &Value, depth: usize) -> bool {
        if depth > DEPTH_MAX || !self.spend(1) {
            return false;
        }
        if a == &Value::Bool(false) || b == &Value::Bool(false) {
            return true;
        }
        let (Value::Object(one), Value::Object(other)) = (a, b) else {
            return false;
        };
        if let Some(a) = self.meant(one) {
            if self.excludes(a, b, depth + 1) {
                return true;
            }
        }
        if let Some(b) = self.meant(other) {
            if self.excludes(a, b, depth + 1) {
                return true;
            }
        }
        match (values(one), values(other)) {
            (Some(one), Some(other)) => {
                return self.spend(one.len() * other.len())
                    && !one.iter().any(|a| other.iter().any(|b| is_same(a, b)));
            }
            (Some(values), None) if types(other).is_some() => {
                return !values.iter().any(|value| is_of(value, other));
            }
            (None, Some(values)) if types(one).is_some() => {
                return !values.iter().any(|value| is_of(value, one));
            }
            _ => {}
        }
        let (Some(of_one), Some(of_other)) = (types(one), types(other)) else {
            return false;
        };
        let is_shared = |a: &Value| of_other.iter().any(|b| shares_values(a, b));
        if !of_one.iter().any(is_shared) {
            return true;
        }
        let is_object = |types: &[Value]| types == ["object"];
        is_object(of_one) && is_object(of_other) && {
            let mut names = required(one).chain(required(other));
            names.any(|name| match (property(one, name), property(other, name)) {
                (Some(a), Some(b)) => self.excludes(a, b, depth + 1),
                _ => false,
            })
        }
    }

    fn spend(&mut self, n_steps: usize) -> bool {
        let left = self.n_left.checked_sub(n_steps);
        self.n_left = left.unwrap_or(0);
        left.is_some()
    }

    fn meant(&self, keywords: &Map<String, Value>) -> Option<&'a Value> {
        self.definitions.get(definition_of(keywords.get("$ref")?)?)
    }
}

/// All values that satisfy a schema are among these.
fn values(keywords: &Map<String, Value>) -> Option<&[Value]> {
    match (keywords.get("const"), keywords.get("enum")) {
        (Some(value), _) => Some(std::slice::from_ref(value)),
        (None, Some(Value::Array(values))) => Some(values),
        _ => None,
    }
}

fn types(keywords: &Map<String, Value>) -> Option<&[Value]> {
    match keywords.get("type")? {
        Value::Array(names) => Some(names),
        name => Some(std::slice::from_ref(name)),
    }
}

fn shares_values(a: &Value, b: &Value) -> bool {
    let is_number = |name: &Value| name == "integer" || name == "number";
    a == b || (is_number(a) && is_number(b))
}

/// Whether a value may be of the types of a schema.
fn is_of(value: &Value, keywords: &Map<String, Value>) -> bool {
    let name = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.as_f64().is_some_and(|x| x.fract() == 0.0) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let mut types = types(keywords).into_iter().flatten();
    types.any(|one| one == name || (name == "integer" && one == "number"))
}

fn required(keywords: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let names = keywords.get("required").and_then(Value::as_array);
    names.into_iter().flatten().filter_map(Value::as_str)
}

fn property<'a>(keywords: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    keywords.get("properties")?.get(name)
}

/// Numbers are the same by what they are worth: 1 is 1.0.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(name, a)| b.get(name).is_some_and(|b| is_same(a, b)))
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_would_take_too_long_is_not_seen() {
        let list = json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/d0"}, "b": {"$ref": "#/$defs/d0"},
            "c": {"$ref": "#/$defs/d0"}}, "required": ["a", "b", "c"]});
        let definitions = [list.clone()];
        let mut search = Search {
            definitions: &definitions,
            n_left: STEPS_MAX,
        };
        let begin = std::time::Instant::now();
        assert!(!search.excludes(&list, &list, 0));
        assert!(begin.elapsed().as_secs() < 5);
    }

    #[test]
    fn schemas_that_exclude_each_other() {
        let definitions = [json!({"const": 1}), json!({"$ref": "#/$defs/d0"})];
        let kind = |kind: Value, required: bool| {
            let required = if required { json!(["kind"]) } else { json!([]) };
            json!({"type": "object", "properties": {"kind": kind}, "required": required})
        };
        for (a, b, expected) in [
            (json!({"const": 1}), json!({"const": 2}), true),
            (json!({"const": 1}), json!({"const": 1.0}), false),
            (json!({"enum": [1, 2]}), json!({"enum": [3, "1"]}), true),
            (
                json!({"enum": [1, [2, {"a": 3}]]}),
                json!({"enum": [[2.0, {"a": 3.0}]]}),
                false,
            ),
            (json!({"const": 1}), json!({"type": "string"}), true),
            (
                json!({"const": 1}),
                json!({"type": ["number", "null"]}),
                false,
            ),
            (json!({"const": 1.5}), json!({"type": "integer"}), true),
            (json!({"const": 1}), json!({"minimum": 5}), false),
            (json!({"type": "integer"}), json!({"type": "number"}), false),
            (
                json!({"type": "integer"}),
                json!({"type": ["null", "array"]}),
                true,
            ),
            (json!({"$ref": "#/$defs/d1"}), json!({"const": 2}), true),
            (json!({"$ref": "#/$defs/d1"}), json!({"const": 1}), false),
            (
                kind(json!({"const": 1}), true),
                kind(json!({"const": 2}), false),
                true,
            ),
            (
                kind(json!({"const": 1}), false),
                kind(json!({"const": 2}), false),
                false,
            ),
            (json!(false), json!({}), true),
            (json!(true), json!({"const": 1}), false),
        ] {
            let mut search = Search {
                definitions: &definitions,
                n_left: 100,
            };
            assert_eq!(search.excludes(&a, &b, 0), expected, "{a} {b}");
            assert_eq!(search.excludes(&b, &a, 0), expected, "{b} {a}");
        }
    }
}
