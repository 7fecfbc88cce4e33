//! Schemas of all keywords that are honoured: templates times values.

use rand_chacha::ChaCha8Rng;
use rand_core::RngCore;
use serde_json::{json, Map, Value};

/// All of them.
pub fn all() -> Vec<Value> {
    [
        numbers(),
        strings(),
        arrays(),
        objects(),
        constants(),
        combinations(),
        references(),
    ]
    .concat()
}

const NUMBERS: [f64; 12] = [
    -1000.0, -99.5, -7.0, -1.0, -0.25, 0.0, 0.1, 1.0, 3.75, 10.0, 99.0, 1234.5,
];

fn number(x: f64) -> Value {
    match x.fract() == 0.0 {
        true => json!(x as i64),
        false => json!(x),
    }
}

fn numbers() -> Vec<Value> {
    let mut schemas = vec![json!({"type": "number"}), json!({"type": "integer"})];
    for kind in ["integer", "number"] {
        for bound in ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"] {
            for x in NUMBERS.into_iter().step_by(2) {
                schemas.push(json!({"type": kind, bound: number(x)}));
            }
        }
        for (i, &low) in NUMBERS.iter().enumerate() {
            for &high in NUMBERS[i + 1..].iter().step_by(3) {
                // At least one whole number is between them.
                if kind == "integer" && low.floor() + 1.0 >= high.ceil() {
                    continue;
                }
                // Refused.
                if kind == "number" && low == 0.0 && high == 0.1 {
                    continue;
                }
                let (from, to) = [
                    ("minimum", "maximum"),
                    ("exclusiveMinimum", "maximum"),
                    ("minimum", "exclusiveMaximum"),
                    ("exclusiveMinimum", "exclusiveMaximum"),
                ][i % 4];
                schemas.push(json!({"type": kind, from: number(low), to: number(high)}));
            }
        }
        for multiple in [
            json!(1),
            json!(2),
            json!(3),
            json!(7),
            json!(0.5),
            json!(0.25),
            json!(0.01),
            json!(10),
        ] {
            schemas.push(json!({"type": kind, "multipleOf": multiple}));
            schemas.push(json!({"type": kind, "multipleOf": multiple, "minimum": -30, "exclusiveMaximum": 500}));
        }
    }
    schemas.push(json!({"type": "number", "minimum": 1, "exclusiveMinimum": 2, "maximum": 5, "exclusiveMaximum": 5}));
    schemas.push(json!({"type": "number", "minimum": 0.001, "maximum": 0.002}));
    schemas.push(
        json!({"type": "integer", "minimum": 9007199254740000i64, "maximum": 9007199254740991i64}),
    );
    schemas.push(json!({"minimum": 3}));
    schemas.push(
        json!({"type": "integer", "allOf": [{"multipleOf": 4}, {"multipleOf": 6}, {"minimum": 1}]}),
    );
    schemas
}

fn strings() -> Vec<Value> {
    let mut schemas = vec![
        json!({"type": "string"}),
        json!({"minLength": 2, "type": ["string", "null"]}),
    ];
    for (least, most) in [(0, 0), (0, 1), (1, 1), (2, 5), (3, 40), (10, 12)] {
        schemas.push(json!({"type": "string", "minLength": least, "maxLength": most}));
        schemas.push(json!({"type": "string", "maxLength": most}));
    }
    let patterns = [
        "^a$",
        "^[a-z]+$",
        "^[A-Z][a-z]{1,8}$",
        "^abc",
        "^(yes|no)$",
        "^\\d{3}-\\d{4}$",
        "^\\w+$",
        "^\\S{1,5}$",
        "^[^a-z]{2}$",
        "^.{1,3}$",
        "^[\\s\\S]{2}$",
        "^\\p{Lu}\\p{Ll}{0,4}$",
        "^(ab|cd){2,3}x?$",
        "^\"\\\\$",
        "^[\"\\\\]{1,3}$",
        "^\\n\\t?$",
        "^a/b$",
        "^[\\u00e9\\u4e00-\\u9fff]{1,2}$",
        "^(?:a(?:b(?:c)?)?)?$",
        "^$",
        "^\\D\\W\\S$",
        "^x{0}y{2}$",
        "a|b|^c$",
        "^[+-]?[0-9]+(?:\\.[0-9]+)?$",
        "^(?<year>[0-9]{4})$",
        "^\\u{1f600}+$",
        "^[-a]+$",
        "^\\x41[\\]]*$",
    ];
    for pattern in patterns {
        schemas.push(json!({"type": "string", "pattern": pattern}));
    }
    for pattern in ["^[a-z]+$", "a", "^\\w", "[0-9]$"] {
        schemas.push(json!({"type": "string", "pattern": pattern, "minLength": 2, "maxLength": 6}));
        schemas.push(json!({"pattern": pattern, "type": ["string", "integer"]}));
    }
    for format in [
        "date",
        "time",
        "date-time",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "uuid",
        "uri",
    ] {
        schemas.push(json!({"type": "string", "format": format}));
        schemas.push(json!({"type": ["null", "string"], "format": format}));
    }
    schemas.push(json!({"type": "string", "format": "date", "pattern": "^20[0-9]{2}-02-29$"}));
    schemas.push(json!({"type": "string", "format": "date", "pattern": "-02-29$"}));
    schemas.push(json!({"type": "string", "format": "ipv4", "maxLength": 8}));
    schemas.push(json!({"type": "string", "format": "email", "minLength": 6}));
    schemas
}

fn items() -> [Value; 7] {
    [
        json!({"type": "integer"}),
        json!({"type": "string", "maxLength": 4}),
        json!({"enum": ["a", "b", 1, null]}),
        json!({"type": "array", "items": {"type": "boolean"}, "maxItems": 2}),
        json!({"type": "object", "properties": {"x": {"type": "null"}}, "additionalProperties": false}),
        json!({"anyOf": [{"type": "null"}, {"type": "boolean"}]}),
        json!(true),
    ]
}

fn arrays() -> Vec<Value> {
    let mut schemas = vec![
        json!({"type": "array"}),
        json!({"type": "array", "items": false}),
    ];
    for item in items() {
        schemas.push(json!({"type": "array", "items": item}));
        for (least, most) in [(0, 0), (0, 1), (1, 1), (1, 3), (2, 4)] {
            schemas
                .push(json!({"type": "array", "items": item, "minItems": least, "maxItems": most}));
        }
        schemas.push(json!({"type": "array", "items": item, "minItems": 2, "uniqueItems": false}));
        schemas.push(
            json!({"type": "array", "prefixItems": [item, {"type": "null"}], "items": false}),
        );
        schemas.push(json!({"type": "array", "prefixItems": [{"const": 1}, item], "items": {"type": "boolean"}, "minItems": 1}));
        schemas.push(json!({"type": "array", "prefixItems": [item, item], "items": item, "minItems": 3, "maxItems": 4}));
    }
    schemas.push(json!({"type": "array", "prefixItems": [{"type": "null"}], "maxItems": 3}));
    schemas.push(
        json!({"type": "array", "prefixItems": [true, false, true], "items": {"type": "null"}}),
    );
    schemas.push(json!({"minItems": 1, "items": {"type": "null"}}));
    schemas
}

fn objects() -> Vec<Value> {
    let mut schemas = vec![
        json!({"type": "object"}),
        json!({"type": "object", "additionalProperties": false}),
        json!(true),
        json!({}),
    ];
    let properties = json!({"a": {"type": "integer", "maximum": 99}, "b c": {"type": "string", "maxLength": 3}, "é\"/": {"type": "null"}});
    let names = ["a", "b c", "é\"/"];
    for choice in 0..8 {
        let required: Vec<&str> = names
            .iter()
            .enumerate()
            .filter(|(i, _)| choice >> i & 1 == 1)
            .map(|(_, name)| *name)
            .collect();
        for additional in [json!(false), json!({"type": "boolean"}), json!(true)] {
            schemas.push(json!({"type": "object", "properties": properties, "required": required, "additionalProperties": additional}));
        }
        schemas.push(json!({"type": "object", "properties": properties, "required": required}));
    }
    for (least, most) in [(Some(1), None), (None, Some(1)), (Some(1), Some(1))] {
        let mut schema = Map::new();
        schema.insert("type".into(), json!("object"));
        schema.insert("properties".into(), properties.clone());
        schema.insert("additionalProperties".into(), json!(false));
        schema.extend(least.map(|n: i32| ("minProperties".into(), json!(n))));
        schema.extend(most.map(|n: i32| ("maxProperties".into(), json!(n))));
        schemas.push(Value::Object(schema.clone()));
        if most.is_none() {
            schema.insert("required".into(), json!(["a"]));
            schemas.push(Value::Object(schema));
        }
    }
    schemas.extend([
        json!({"type": "object", "required": ["x", "y"], "minProperties": 2}),
        json!({"type": "object", "required": ["x", "y"], "maxProperties": 2, "additionalProperties": {"type": "null"}}),
        json!({"type": "object", "maxProperties": 2, "additionalProperties": {"type": "null"}}),
        json!({"type": "object", "maxProperties": 0}),
        json!({"type": "object", "properties": properties, "required": ["a"], "maxProperties": 2, "additionalProperties": false}),
        json!({"type": "object", "properties": properties, "required": ["a"], "minProperties": 2, "additionalProperties": false}),
        json!({"type": "object", "required": ["x"], "additionalProperties": {"type": "integer"}}),
        json!({"type": "object", "properties": {"x": false}, "additionalProperties": {"type": "integer"}}),
        json!({"required": ["x"], "properties": {"x": {"const": 1}}}),
    ]);
    for pattern in ["^a", "^[a-c]{1,3}$", "^\\d+$", "^$"] {
        schemas.push(json!({"type": "object", "patternProperties": {pattern: {"type": "integer"}}, "additionalProperties": false}));
        schemas.push(json!({"type": "object", "patternProperties": {pattern: {"type": "boolean"}}, "additionalProperties": {"type": "null"}}));
        schemas.push(json!({"type": "object", "properties": {"a": {"type": ["integer", "boolean"]}, "x_id": {"type": ["integer", "null"]}},
            "patternProperties": {pattern: {"type": "integer"}}, "required": ["x_id"], "additionalProperties": {"type": "boolean"}}));
    }
    schemas.push(json!({"type": "object", "patternProperties": {"^a": {"type": "integer"}, "^b": {"type": "null"}}, "required": ["abc", "bcd"]}));
    schemas.push(json!({"type": "object", "patternProperties": {"^a": false}, "additionalProperties": {"type": "null"}}));
    schemas
}

fn constants() -> Vec<Value> {
    let values = [
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(-7),
        json!(3.25),
        json!(1e15),
        json!(0.001),
        json!(-0.5),
        json!(2.0),
        json!(""),
        json!("word"),
        json!("a \"b\" \\ / \n\t é 龍 😀"),
        json!([]),
        json!([1, "a", [null]]),
        json!({}),
        json!({"a": 1, "b": {"c": ["d"]}}),
        json!({"é\"": true}),
        json!("\u{2028}"),
        json!("\u{e000}"),
    ];
    let mut schemas: Vec<Value> = values.iter().map(|value| json!({"const": value})).collect();
    schemas.push(json!({"enum": values}));
    for window in values.windows(3).step_by(2) {
        schemas.push(json!({"enum": window}));
    }
    for kind in [
        "null", "boolean", "integer", "number", "string", "array", "object",
    ] {
        schemas.push(json!({"type": kind, "enum": values}));
        if kind != "null" {
            schemas.push(json!({"type": [kind, "null"], "enum": values}));
        }
    }
    schemas.push(json!({"type": "string", "enum": ["a", "bb", "ccc"], "minLength": 2}));
    schemas.push(json!({"type": "integer", "enum": [1, 5, 9], "minimum": 2}));
    schemas.push(json!({"type": "string", "enum": ["a1", "b2"], "pattern": "^b"}));
    schemas.push(json!({"enum": [1, 2, 3], "const": 2}));
    schemas
}

fn combinations() -> Vec<Value> {
    let mut schemas = vec![
        json!({"type": ["integer", "string"], "minimum": 5, "maxLength": 2}),
        json!({"type": ["array", "object", "null", "boolean"], "maxItems": 1, "additionalProperties": false}),
        json!({"type": "object", "properties": {"a": {"type": "string"}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}),
        json!({"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}}, {"properties": {"a": {"minimum": 3}, "b": {"type": "null"}}, "required": ["a", "b"]}]}),
        json!({"allOf": [{"type": "array", "items": {"type": "integer"}}, {"minItems": 1, "maxItems": 3}, {"prefixItems": [{"const": 7}]}]}),
        json!({"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": false}, {"properties": {"b": true}}]}),
        json!({"allOf": [{"type": "object", "patternProperties": {"^a": {"type": "integer"}}}, {"patternProperties": {"^b": {"type": "null"}}, "additionalProperties": {"type": ["integer", "null"]}}]}),
        json!({"additionalProperties": {"type": "null"}, "anyOf": [{"type": "object"}, {"type": "integer"}], "patternProperties": {"^a": {"type": "boolean"}}}),
        json!({"type": "string", "allOf": [{"minLength": 3}, {"maxLength": 5}, {"pattern": "^[a-z]*$"}, {"pattern": "x"}]}),
        json!({"oneOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]}),
        json!({"oneOf": [{"const": "a"}, {"const": "b"}]}),
        json!({"oneOf": [{"type": "object", "properties": {"kind": {"const": "a"}, "x": {"type": "integer"}}, "required": ["kind"]},
            {"type": "object", "properties": {"kind": {"const": "b"}, "y": {"type": "null"}}, "required": ["kind"], "additionalProperties": false}]}),
        json!({"oneOf": [{"const": true}, {"const": false}, {"type": "array", "items": {"oneOf": [{"type": "null"}, {"type": "integer"}]}}]}),
        json!({"type": "object", "properties": {"a": {"oneOf": [{"type": "null"}, {"type": "string", "maxLength": 2}]}}, "required": ["a"], "additionalProperties": false}),
        json!({"oneOf": [{"type": "integer"}]}),
        json!({"type": "integer", "oneOf": [{"type": "string"}, {"minimum": 10}]}),
        json!({"anyOf": [{"minimum": 5}, {"type": "string"}], "type": ["integer", "string"]}),
        json!({"anyOf": [{"type": "string", "minLength": 9}, {"type": "string", "maxLength": 1}, false]}),
        json!({"anyOf": [{"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"], "additionalProperties": false}, {"type": "array", "maxItems": 0}]}),
        json!({"allOf": [true, {"type": "null"}]}),
        json!({"title": "t", "description": "d", "default": 1, "examples": [1], "$comment": "c", "deprecated": true, "readOnly": true,
            "writeOnly": false, "$id": "http://example.com/x", "$schema": "https://json-schema.org/draft/2020-12/schema", "type": "null"}),
        json!({"$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "definitions": {"a": {"type": "null"}},
            "properties": {"a": {"$ref": "#/definitions/a"}}, "required": ["a"], "additionalProperties": false}),
    ];
    let options = [
        json!({"type": "integer", "minimum": 0}),
        json!({"type": "string", "pattern": "^[a-z]{1,3}$"}),
        json!({"type": "null"}),
        json!({"type": "array", "items": {"type": "null"}, "maxItems": 2}),
        json!({"type": "object", "required": ["k"], "additionalProperties": {"type": "null"}}),
        json!({"enum": [1, "x", {"k": null}]}),
    ];
    for (i, a) in options.iter().enumerate() {
        for b in &options[i + 1..] {
            schemas.push(json!({"anyOf": [a, b]}));
            schemas.push(
                json!({"type": "array", "items": {"anyOf": [b, a]}, "minItems": 1, "maxItems": 2}),
            );
            schemas.push(
                json!({"allOf": [{"anyOf": [a, b]}, {"anyOf": [b, a, {"type": "boolean"}]}]}),
            );
        }
    }
    for a in &options[..5] {
        for b in options[..5].iter().filter(|b| *b != a) {
            schemas.push(json!({"oneOf": [a, b]}));
        }
    }
    schemas
}

fn references() -> Vec<Value> {
    let tree = json!({"type": "object", "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
        "required": ["value"], "additionalProperties": false});
    vec![
        json!({"$ref": "#/$defs/tree", "$defs": {"tree": tree}}),
        json!({"type": "array", "items": {"$ref": "#/$defs/tree"}, "minItems": 1, "maxItems": 2, "$defs": {"tree": tree}}),
        json!({"type": "object", "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}, "required": ["next"], "additionalProperties": false}),
        json!({"$defs": {"a/b~c d": {"type": "null"}}, "$ref": "#/$defs/a~1b~0c%20d"}),
        json!({"$defs": {"short": {"type": "string", "maxLength": 5}}, "$ref": "#/$defs/short", "minLength": 3}),
        json!({"properties": {"a": {"type": "integer"}, "b": {"$ref": "#/properties/a"}}, "type": "object", "required": ["b"], "additionalProperties": false}),
        json!({"$defs": {"x": {"type": "object", "properties": {"kind": {"const": "x"}}, "required": ["kind"]},
            "y": {"type": "object", "properties": {"kind": {"const": "y"}, "of": {"oneOf": [{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/y"}]}}, "required": ["kind"]}},
            "oneOf": [{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/y"}]}),
        json!({"$defs": {"id": {"type": "integer", "minimum": 1}}, "allOf": [{"type": "object", "properties": {"id": {"$ref": "#/$defs/id"}}, "required": ["id"]},
            {"properties": {"id": {"maximum": 9}}}]}),
        json!({"$defs": {"value": {"oneOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/value"}}]}}, "$ref": "#/$defs/value"}),
        json!({"$defs": {"a": true, "b": {"$ref": "#/$defs/a"}}, "type": "array", "items": {"$ref": "#/$defs/b"}, "maxItems": 1}),
        json!({"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": {"$ref": "#/prefixItems/1"}, "minItems": 3}),
    ]
}

/// A schema of random keywords, `depth` levels of schemas in it at most.
pub fn random(rng: &mut ChaCha8Rng, depth: usize) -> Value {
    let mut schema = Map::new();
    let mut below = |n: u32| rng.next_u32() % n;
    let kinds = [
        "integer", "number", "string", "array", "object", "null", "boolean",
    ];
    let kind = kinds[below(if depth == 0 { 4 } else { 7 }) as usize];
    match below(6) {
        0 => {}
        1 => drop(schema.insert(
            "type".into(),
            json!([
                kind,
                kinds[(below(6) as usize + kinds.iter().position(|k| *k == kind).unwrap_or(0) + 1)
                    % 7]
            ]),
        )),
        _ => drop(schema.insert("type".into(), json!(kind))),
    }
    let numbers = [-20.0, -3.5, -1.0, 0.0, 0.5, 2.0, 7.25, 30.0];
    let mut put = |name: &str, value: Value| drop(schema.insert(name.into(), value));
    if below(2) == 0 {
        put(
            ["minimum", "exclusiveMinimum"][below(2) as usize],
            number(numbers[below(5) as usize]),
        );
    }
    if below(2) == 0 {
        put(
            ["maximum", "exclusiveMaximum"][below(2) as usize],
            number(numbers[3 + below(5) as usize]),
        );
    }
    if below(6) == 0 {
        put("multipleOf", json!([0.5, 2.0, 3.0, 0.1][below(4) as usize]));
    }
    if below(3) == 0 {
        put("minLength", json!(below(3)));
    }
    if below(2) == 0 {
        put("maxLength", json!(2 + below(6)));
    }
    if below(4) == 0 {
        put(
            "pattern",
            json!(["^[a-z]*$", "[0-9]", "^[^b]", "a|b"][below(4) as usize]),
        );
    }
    if below(3) == 0 {
        put("minItems", json!(below(2)));
    }
    if below(2) == 0 {
        put("maxItems", json!(1 + below(3)));
    }
    let names = ["a", "b", "c", "ab"];
    if below(3) == 0 {
        let required: Vec<&str> = names.into_iter().filter(|_| below(3) == 0).collect();
        put("required", json!(required));
    }
    if below(5) == 0 {
        put("maxProperties", json!(1 + below(3)));
    }
    if below(8) == 0 {
        let values = [
            json!(1),
            json!("a"),
            json!(null),
            json!([1]),
            json!({"a": 1}),
            json!(0.5),
            json!(""),
            json!({"a": "a", "b": null}),
        ];
        let chosen: Vec<Value> = values.into_iter().filter(|_| below(2) == 0).collect();
        if !chosen.is_empty() {
            put("enum", json!(chosen));
        }
    }
    if depth == 0 {
        return Value::Object(schema);
    }
    let choices: Vec<u32> = (0..9).map(|_| rng.next_u32() % 5).collect();
    let mut put = |name: &str, value: Value| drop(schema.insert(name.into(), value));
    let list = |rng: &mut ChaCha8Rng| {
        let n = 1 + rng.next_u32() % 3;
        Value::Array((0..n).map(|_| random(rng, depth - 1)).collect())
    };
    if choices[0] < 2 {
        put("items", random(rng, depth - 1));
    }
    if choices[1] == 0 {
        put("prefixItems", list(rng));
    }
    if choices[2] < 3 {
        let properties: Map<String, Value> = names
            .iter()
            .take(1 + choices[8] as usize)
            .map(|name| (name.to_string(), random(rng, depth - 1)))
            .collect();
        put("properties", Value::Object(properties));
    }
    if choices[3] < 2 {
        let additional = [json!(false), random(rng, depth - 1)];
        put(
            "additionalProperties",
            additional[choices[8] as usize % 2].clone(),
        );
    }
    if choices[4] == 0 {
        put("patternProperties", json!({"^a": random(rng, depth - 1)}));
    }
    if choices[5] == 0 {
        put("anyOf", list(rng));
    }
    if choices[6] == 0 {
        put("allOf", list(rng));
    }
    if choices[7] == 0 {
        put("oneOf", list(rng));
    }
    Value::Object(schema)
}
