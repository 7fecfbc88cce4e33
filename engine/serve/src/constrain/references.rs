//! Which part of a schema a `$ref` means, and whether what refers to itself can come to an end.

use serde_json::Value;

/// What is wrong.
type Result<T> = std::result::Result<T, String>;

/// Lists and objects inside each other, through references.
const WALK_DEPTH_MAX: usize = 1000;

/// The place of a member or item, as a JSON pointer.
pub(super) fn place_of(parent: &str, name: &str) -> String {
    format!("{parent}/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// The part of a document that a reference means, and its place.
pub(super) fn resolve<'a>(root: &'a Value, reference: &str) -> Result<(String, &'a Value)> {
    let pointer = match reference.strip_prefix('#') {
        Some(pointer) if pointer.is_empty() || pointer.starts_with('/') => pointer,
        _ => {
            return Err(
                "only references into this schema are supported, such as #/$defs/name".into(),
            )
        }
    };
    let pointer =
        percent_decoded(pointer).ok_or("% that is not followed by two hexadecimal digits")?;
    let mut found = root;
    let mut place = String::from("#");
    for escaped in pointer.split('/').skip(1) {
        // A part with a name of its own is a document of its own for references.
        if place != "#" && found.get("$id").is_some_and(Value::is_string) {
            return Err(format!(
                "it leads through {place}, which has an `$id` of its own"
            ));
        }
        let name = escaped.replace("~1", "/").replace("~0", "~");
        let next = match found {
            Value::Object(members) => members.get(&name),
            Value::Array(items) => name.parse().ok().and_then(|index: usize| items.get(index)),
            _ => None,
        };
        place = place_of(&place, &name);
        found = next.ok_or_else(|| format!("there is nothing at {place}"))?;
    }
    Ok((place, found))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// How references to definitions are written for llguidance, which neither decodes them nor unescapes.
pub(super) const DEFINITION: &str = "#/$defs/d";

/// The number of a definition that is meant.
pub(super) fn definition_of(reference: &Value) -> Option<usize> {
    reference.as_str()?.strip_prefix(DEFINITION)?.parse().ok()
}

/// Of definitions those that have an answer of finite size: the least fixed point.
pub(super) fn finite_definitions(definitions: &[&Value]) -> Vec<bool> {
    let mut finite = vec![false; definitions.len()];
    loop {
        let mut is_changed = false;
        for (index, definition) in definitions.iter().enumerate() {
            if !finite[index] && is_finite(definition, &finite) {
                finite[index] = true;
                is_changed = true;
            }
        }
        if !is_changed {
            return finite;
        }
    }
}

/// Whether a schema has an answer of finite size, where those of these definitions have one.
pub(super) fn is_finite(schema: &Value, finite: &[bool]) -> bool {
    let Value::Object(keywords) = schema else {
        return schema == &Value::Bool(true);
    };
    let list = |name: &str| keywords.get(name).and_then(Value::as_array);
    let all_of = list("allOf").is_none_or(|all| all.iter().all(|one| is_finite(one, finite)));
    let some_of =
        |name| list(name).is_none_or(|some| some.iter().any(|one| is_finite(one, finite)));
    let reference = keywords.get("$ref");
    let of_reference = reference.is_none_or(|reference| {
        definition_of(reference).and_then(|index| finite.get(index)) == Some(&true)
    });
    if !all_of || !some_of("anyOf") || !some_of("oneOf") || !of_reference {
        return false;
    }
    if keywords.contains_key("const") || keywords.contains_key("enum") {
        return true;
    }
    let has_finite = |name: &str| match name {
        "object" => {
            let names = list("required")
                .into_iter()
                .flatten()
                .filter_map(Value::as_str);
            let mut schemas = names.filter_map(|name| {
                let own = keywords.get("properties").and_then(|map| map.get(name));
                // One that a pattern may mean is left to llguidance.
                let is_additional = !keywords.contains_key("patternProperties");
                own.or_else(|| {
                    keywords
                        .get("additionalProperties")
                        .filter(|_| is_additional)
                })
            });
            schemas.all(|schema| is_finite(schema, finite))
        }
        "array" => {
            let least = keywords
                .get("minItems")
                .and_then(Value::as_u64)
                .unwrap_or(0);
            let first = list("prefixItems").map_or(&[][..], Vec::as_slice);
            let n_first = usize::try_from(least).map_or(first.len(), |n| n.min(first.len()));
            let is_rest_needed = least > first.len() as u64;
            let rest = keywords.get("items").filter(|_| is_rest_needed);
            let needed = first[..n_first].iter().chain(rest);
            needed.into_iter().all(|schema| is_finite(schema, finite))
        }
        _ => true,
    };
    match keywords.get("type") {
        Some(Value::String(name)) => has_finite(name),
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).any(has_finite),
        _ => true,
    }
}

/// llguidance walks into what references mean at once: how deep that gets must be bounded, or its stack overflows.
pub(super) fn check_depth(root: &Value, definitions: &[Value]) -> Result<()> {
    let mut seen = vec![false; definitions.len()];
    let mut left = vec![(root, 0)];
    // A path that is not the one that llguidance takes may be shorter: all parts of a definition count from its start.
    while let Some((value, depth)) = left.pop() {
        if depth > WALK_DEPTH_MAX {
            return Err(format!(
                "references lead more than {WALK_DEPTH_MAX} levels deep"
            ));
        }
        match value {
            Value::Array(items) => left.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(members) => {
                left.extend(members.values().map(|member| (member, depth + 1)))
            }
            Value::String(_) => {
                let index = definition_of(value);
                let index = index.filter(|&index| seen.get(index) == Some(&false));
                if let Some(index) = index {
                    seen[index] = true;
                    left.push((&definitions[index], depth + 1));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_are_decoded_and_unescaped() {
        let root = json!({"$defs": {"a/b": 1, "c~d": 2, "e f": 3, "list": [4, 5]}, "x": {"$id": "y", "z": 6}});
        let cases = [
            ("#/$defs/a~1b", Ok(1)),
            ("#/$defs/c~0d", Ok(2)),
            ("#/$defs/e%20f", Ok(3)),
            ("#/%24defs/list/1", Ok(5)),
            ("#/$defs/none", Err("there is nothing at #/$defs/none")),
            ("#/$defs/list/2", Err("there is nothing at #/$defs/list/2")),
            (
                "#/x/z",
                Err("it leads through #/x, which has an `$id` of its own"),
            ),
            ("#name", Err("only references into this schema")),
            (
                "http://example.com/a#/b",
                Err("only references into this schema"),
            ),
            ("other.json", Err("only references into this schema")),
            ("#/%zz", Err("% that is not followed")),
        ];
        for (reference, expected) in cases {
            match (resolve(&root, reference), expected) {
                (Ok((_, found)), Ok(value)) => assert_eq!(found, &json!(value), "{reference}"),
                (Err(error), Err(part)) => assert!(error.contains(part), "{reference}: {error}"),
                (found, _) => panic!("{reference}: {found:?}"),
            }
        }
        assert_eq!(
            resolve(&root, "#").map(|(place, _)| place),
            Ok("#".to_owned())
        );
    }

    #[test]
    fn what_never_ends_is_found() {
        let list = json!({"type": "object", "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/d0"}]}},
            "required": ["next"]});
        let endless = json!({"type": "object", "properties": {"next": {"$ref": "#/$defs/d1"}}, "required": ["next"]});
        let alias = json!({"$ref": "#/$defs/d2"});
        let array = json!({"type": "array", "items": {"$ref": "#/$defs/d3"}, "minItems": 1});
        let tree = json!({"type": "array", "items": {"$ref": "#/$defs/d4"}});
        let definitions = [&list, &endless, &alias, &array, &tree];
        assert_eq!(
            finite_definitions(&definitions),
            [true, false, false, false, true]
        );
    }
}
