//! JSON schemas: whatever ends is what the schema asks for, as another validator sees it; what is not honoured exactly is
//! refused by name and place.

#[path = "grammar_walk/mod.rs"]
mod grammar_walk;
#[path = "schema_templates/mod.rs"]
mod schema_templates;

use std::time::{Duration, Instant};

use grammar_walk::{demo, world};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use rwkv_edge_serve::constrain::Grammar;
use serde_json::{json, Value};

/// Random answers to each schema; some must end.
fn check(vocabulary: &grammar_walk::Vocabulary, schemas: &[Value], n_walks: usize) {
    let mut rng = ChaCha8Rng::seed_from_u64(17);
    let (mut n_ended, mut n_unreadable) = (0, 0);
    let mut wrong = Vec::new();
    for schema in schemas {
        let validator = jsonschema::options()
            .should_validate_formats(true)
            .build(schema);
        let validator = validator.unwrap_or_else(|e| panic!("{schema}: {e}"));
        let start = match vocabulary
            .compiler
            .compile(&Grammar::JsonSchema(schema.clone()))
        {
            Ok(start) => start,
            Err(error) => {
                wrong.push(format!("{schema}: {error}"));
                continue;
            }
        };
        let mut n_ended_here = 0;
        for _ in 0..n_walks {
            let answer = match vocabulary.walk(&mut start.clone(), &mut rng) {
                Ok(answer) => answer,
                Err(error) => {
                    wrong.push(format!("{schema}: no way out: {error}"));
                    break;
                }
            };
            let Some(answer) = answer else { continue };
            n_ended_here += 1;
            match serde_json::from_str::<Value>(&answer) {
                // Numbers beyond f64, such as 1e999, are JSON, which this reader does not take.
                Err(error) if error.to_string().contains("number out of range") => {
                    n_unreadable += 1
                }
                Err(error) => wrong.push(format!("{schema}: {answer}: {error}")),
                Ok(value) => {
                    if let Err(error) = validator.validate(&value) {
                        wrong.push(format!("{schema}: {answer}: {error}"));
                    }
                    let compact = answer
                        .split('"')
                        .step_by(2)
                        .all(|part| !part.contains(char::is_whitespace));
                    if !answer.contains('\\') && !compact {
                        wrong.push(format!("{schema}: {answer}: blanks"));
                    }
                }
            }
        }
        if n_ended_here == 0 {
            wrong.push(format!("{schema}: no answer of {n_walks} ended"));
        }
        n_ended += n_ended_here;
    }
    println!(
        "{} schemas, {n_ended} answers, {n_unreadable} with numbers beyond f64, {} wrong",
        schemas.len(),
        wrong.len()
    );
    let shown: Vec<&str> = wrong
        .iter()
        .take(20)
        .map(|text| &text[..text.len().min(600)])
        .collect();
    assert!(wrong.is_empty(), "{}", shown.join("\n"));
}

#[test]
fn every_answer_is_valid() {
    let schemas = schema_templates::all();
    assert!(schemas.len() >= 300, "{}", schemas.len());
    check(demo(), &schemas, 6);
}

#[test]
fn every_answer_is_valid_with_the_world_vocabulary() {
    if let Some(world) = world() {
        check(world, &schema_templates::all(), 3);
    }
}

/// Schemas put together at random: what is refused is passed over.
#[test]
fn every_answer_to_a_random_schema_is_valid() {
    let mut rng = ChaCha8Rng::seed_from_u64(23);
    let n_schemas =
        std::env::var("RWKV_EDGE_TEST_SCHEMAS").map_or(150, |n| n.parse().expect("a number"));
    let mut schemas = Vec::new();
    let mut n_refused = 0;
    while schemas.len() < n_schemas {
        let schema = schema_templates::random(&mut rng, 3);
        match demo()
            .compiler
            .compile(&Grammar::JsonSchema(schema.clone()))
        {
            Ok(_) => schemas.push(schema),
            Err(error) => {
                assert_eq!(error.kind(), rwkv_edge::ErrorKind::Argument);
                assert!(
                    error.to_string().starts_with("the schema at #"),
                    "{schema}: {error}"
                );
                n_refused += 1;
            }
        }
    }
    println!("{n_refused} refused");
    check(demo(), &schemas, 4);
}

/// Numbers beside the bounds, written in several ways: what a schema takes is valid.
#[test]
fn numbers_beside_bounds_are_valid_where_they_are_taken() {
    let bounds = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];
    let (mut n_taken, mut n_valid) = (0, 0);
    for schema in schema_templates::all() {
        let has_bound = bounds.iter().any(|bound| schema.get(bound).is_some());
        if !has_bound && schema.get("multipleOf").is_none() {
            continue;
        }
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        let start = demo().compile(&Grammar::JsonSchema(schema.clone()));
        let near = bounds
            .iter()
            .filter_map(|bound| schema.get(bound)?.as_f64());
        let near = near.chain([0.0]).flat_map(|x| {
            [
                x,
                -x,
                x + 1.0,
                x - 1.0,
                x + 0.25,
                x - 0.25,
                x + 0.001,
                x * 10.0,
            ]
        });
        for x in near {
            for text in [
                format!("{x}"),
                format!("{x:.1}"),
                format!("{x:.3}"),
                format!("-{}", x.abs()),
                format!("{x}e0"),
            ] {
                let value: Value = serde_json::from_str(&text).expect("a number");
                let is_taken = demo().matches(&start, &text);
                n_taken += usize::from(is_taken);
                n_valid += usize::from(validator.is_valid(&value));
                assert!(
                    !is_taken || validator.is_valid(&value),
                    "{schema} takes {text}"
                );
            }
        }
    }
    println!("{n_taken} taken of {n_valid} valid ones");
    assert!(n_taken * 2 > n_valid, "few are taken");
}

/// Whether a number is an answer in some spelling.
fn takes_number(start: &rwkv_edge_serve::constrain::Constraint, thousandths: i64) -> bool {
    let sign = if thousandths < 0 { "-" } else { "" };
    let (whole, rest) = (thousandths.abs() / 1000, thousandths.abs() % 1000);
    let digits = format!("{rest:03}");
    (0..=3).any(|n| {
        let is_whole = digits[n..].bytes().all(|digit| digit == b'0');
        let point = if n == 0 { "" } else { "." };
        is_whole && demo().matches(start, &format!("{sign}{whole}{point}{}", &digits[..n]))
    })
}

#[test]
fn all_multiples_between_bounds_are_taken() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut below = |n: u32| i64::from(rand_core::RngCore::next_u32(&mut rng) % n);
    let mut schemas = vec![
        (100, Some((50, false)), Some((250, false))),
        (100, Some((300, false)), Some((300, false))),
        (100, Some((100, true)), Some((400, true))),
        (250, None, Some((-120, true))),
        (250, None, None),
        (150, Some((-1000, false)), None),
        (50, Some((1, false)), None),
    ];
    for _ in 0..120 {
        let steps = [
            1, 7, 10, 50, 70, 150, 100, 250, 290, 300, 500, 1000, 1500, 2000,
        ];
        let step = steps[below(14) as usize];
        let grain = [1, 10, 100, 500, 1000][below(5) as usize];
        let low = (below(6000 / grain as u32) - 3000 / grain) * grain;
        let high = low + below(3) * step + below(1000 / grain as u32 + 1) * grain;
        let low = (below(8) > 0).then_some((low, below(2) == 0));
        let high = (below(8) > 0).then_some((high, below(2) == 0));
        schemas.push((step, low, high));
    }
    let mut n_empty = 0;
    for (step, low, high) in schemas {
        let mut schema = json!({"type": "number", "multipleOf": step as f64 / 1000.0});
        for (bound, plain, exclusive) in [
            (low, "minimum", "exclusiveMinimum"),
            (high, "maximum", "exclusiveMaximum"),
        ] {
            if let Some((bound, is_excluded)) = bound {
                let name = if is_excluded { exclusive } else { plain };
                schema[name] = json!(bound as f64 / 1000.0);
            }
        }
        let is_within = |x: i64| {
            low.is_none_or(|(low, excluded)| x > low || (x == low && !excluded))
                && high.is_none_or(|(high, excluded)| x < high || (x == high && !excluded))
        };
        let multiples: Vec<i64> = (-5000 / step..=5000 / step).map(|k| k * step).collect();
        let n_within = multiples.iter().filter(|x| is_within(**x)).count();
        let compiled = demo()
            .compiler
            .compile(&Grammar::JsonSchema(schema.clone()));
        let start = match compiled {
            Ok(start) => start,
            Err(error) if n_within == 0 => {
                let text = error.to_string();
                assert!(
                    text.contains("no multiple of") && text.contains("#/multipleOf"),
                    "{schema}: {text}"
                );
                n_empty += 1;
                continue;
            }
            Err(error) => panic!("{schema}: {error}"),
        };
        // Those near the bounds, and some others.
        let is_near = |x: &i64| {
            let bounds = low.iter().chain(&high);
            x % (step * 7) == 0
                || bounds
                    .clone()
                    .any(|(bound, _)| (x - bound).abs() <= 2 * step)
        };
        for x in multiples.into_iter().filter(is_near) {
            assert_eq!(
                takes_number(&start, x),
                is_within(x),
                "{schema}: {x} thousandths"
            );
            assert!(
                step == 1 || !takes_number(&start, x + 1),
                "{schema}: {x} + 1 thousandths"
            );
        }
    }
    assert!(n_empty > 3, "{n_empty} empty");
}

#[test]
fn one_of_numbers_is_honoured() {
    let kinds = json!({"oneOf": [
        {"type": "object", "properties": {"kind": {"const": 1}}, "required": ["kind"], "additionalProperties": false},
        {"type": "object", "properties": {"kind": {"enum": [2, 3]}}, "required": ["kind"], "additionalProperties": false}]});
    for (schema, right, wrong) in [
        (
            json!({"oneOf": [{"const": 1, "title": "one"}, {"const": 2}, {"enum": [2.5, "x"]}, {"type": "null"}]}),
            &["1", "2", "2.5", "\"x\"", "null"][..],
            &["3", "true", "12"][..],
        ),
        (
            kinds,
            &["{\"kind\":1}", "{\"kind\":3}"],
            &["{\"kind\":4}", "{}"],
        ),
        (
            json!({"properties": {"a": {"oneOf": [{"$ref": "#/$defs/a"}, {"const": 2}]}}, "$defs": {"a": {"const": 1}},
                "type": "object", "required": ["a"], "additionalProperties": false}),
            &["{\"a\":1}", "{\"a\":2}"],
            &["{\"a\":3}"],
        ),
    ] {
        let start = demo().compile(&Grammar::JsonSchema(schema.clone()));
        for (texts, expected) in [(right, true), (wrong, false)] {
            for text in texts {
                assert_eq!(demo().matches(&start, text), expected, "{schema}: {text}");
            }
        }
    }
    refused(
        json!({"oneOf": [{"const": 1}, {"enum": [1, 2]}]}),
        "alternatives of `oneOf` that do not exclude each other visibly",
    );
}

fn refused(schema: Value, expected: &str) {
    let error = demo().refusal(&Grammar::JsonSchema(schema.clone()));
    assert!(error.contains(expected), "{schema}: {error}");
}

#[test]
fn keywords_that_are_not_honoured_are_named_with_their_place() {
    for keyword in [
        "not",
        "if",
        "then",
        "else",
        "dependentSchemas",
        "dependentRequired",
        "dependencies",
        "contains",
        "minContains",
        "maxContains",
        "propertyNames",
        "unevaluatedProperties",
        "unevaluatedItems",
        "additionalItems",
        "uniqueItems",
        "$anchor",
        "$dynamicRef",
        "$dynamicAnchor",
        "$recursiveRef",
        "$recursiveAnchor",
        "$vocabulary",
        "id",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
        "nullable",
        "discriminator",
        "example",
        "x-guidance",
        "propertyOrder",
        "Type",
        "minimun",
        "",
    ] {
        let schema = json!({"type": "object", "properties": {"a/b": {"items": {keyword: true}}}});
        let place = format!(
            "the schema at #/properties/a~1b/items/{keyword}: `{keyword}` is not supported"
        );
        refused(schema, &place);
    }
}

#[test]
fn values_that_are_not_honoured_are_named_with_their_place() {
    let cases = [
        (json!(1), "the schema at #: expected an object or a boolean"),
        (json!([]), "the schema at #: expected an object or a boolean"),
        (json!(false), "the schema at #: no answer can satisfy it"),
        (json!({"type": "float"}), "the schema at #/type: the type \"float\" is not known"),
        (json!({"type": []}), "the schema at #/type: expected the name of a type"),
        (json!({"type": ["string", 1]}), "the schema at #/type: the type 1 is not known"),
        (json!({"items": [{"type": "string"}]}), "the schema at #/items: a list is not supported; use `prefixItems`"),
        (json!({"minimum": "1"}), "the schema at #/minimum: expected a number"),
        (json!({"exclusiveMinimum": true}), "the schema at #/exclusiveMinimum: expected a number"),
        (json!({"minimum": 1e300}), "the schema at #/minimum: 1e+300: expected whole numbers below 2^53"),
        (json!({"maximum": 9007199254740993u64}), "the schema at #/maximum: 9007199254740993: expected"),
        (json!({"type": "number", "multipleOf": 0.1, "minimum": 0.11, "exclusiveMaximum": 0.2}), "the schema at #/multipleOf: no multiple of 0.1 is within the bounds"),
        (json!({"allOf": [{"multipleOf": 0.1}, {"minimum": 0.05}]}), "the schema at #: bounds with decimals that are combined with a `multipleOf`"),
        (json!({"multipleOf": 0}), "the schema at #/multipleOf: 0, expected more than 0"),
        (json!({"multipleOf": 0.12345678912}), "the schema at #/multipleOf: 0.12345678912 has too many digits"),
        (json!({"minLength": -1}), "the schema at #/minLength: expected a whole number of 0 to 1048576"),
        (json!({"maxLength": 1.5}), "the schema at #/maxLength: expected a whole number"),
        (json!({"maxItems": 2_000_000}), "the schema at #/maxItems: expected a whole number"),
        (json!({"pattern": "(?=a)"}), "the schema at #/pattern: lookahead `(?=` is not supported, before character 3"),
        (json!({"pattern": "(a)\\1"}), "the schema at #/pattern: a backreference"),
        (json!({"pattern": "\\bword\\b"}), "the schema at #/pattern: the boundary `\\b`"),
        (json!({"pattern": 3}), "the schema at #/pattern: expected a string"),
        (json!({"patternProperties": {"(": true}}), "the schema at #/patternProperties/(: a group that is not closed"),
        (json!({"format": "regex"}), "the schema at #/format: the format \"regex\" is not supported, but these: date,"),
        (json!({"format": "unknown"}), "the schema at #/format: the format \"unknown\" is not supported"),
        (json!({"format": "iri"}), "the schema at #/format: the format \"iri\""),
        (json!({"enum": []}), "the schema at #/enum: expected a list of values"),
        (json!({"enum": "a"}), "the schema at #/enum: expected a list of values"),
        (json!({"enum": [1e300]}), "the schema at #/enum: 1e+300: expected whole numbers"),
        (json!({"const": {"a": ["\u{1}"]}}), "the schema at #/const: the control character U+0001"),
        (json!({"properties": {"\u{7f}": true}}), "the control character U+007F is not supported"),
        (json!({"required": "a"}), "the schema at #/required: expected a list"),
        (json!({"required": [1]}), "the schema at #/required: expected a string"),
        (json!({"properties": []}), "the schema at #/properties: expected an object of schemas"),
        (json!({"anyOf": []}), "the schema at #/anyOf: expected a list of schemas"),
        (json!({"allOf": {}}), "the schema at #/allOf: expected a list of schemas"),
        (json!({"oneOf": [1]}), "the schema at #/oneOf/0: expected an object or a boolean"),
        (json!({"$defs": 1}), "the schema at #/$defs: `$defs` is not supported"),
        (json!({"$ref": "#/$defs/none"}), "the schema at #/$ref: \"#/$defs/none\" cannot be resolved: there is nothing at #/$defs"),
        (json!({"$ref": "http://example.com/x"}), "the schema at #/$ref: \"http://example.com/x\" cannot be resolved: only references into"),
        (json!({"$ref": "#anchor"}), "cannot be resolved"),
        (json!({"$ref": 1}), "the schema at #/$ref: expected a string"),
        (json!({"items": {"$id": "x", "items": {"$ref": "#"}}}), "the schema at #/items/items/$ref: a reference below an `$id`"),
        (json!({"$schema": "http://json-schema.org/draft-04/schema#"}), "the schema at #/$schema: the draft"),
        (json!({"$schema": "http://json-schema.org/draft-07/schema#", "prefixItems": [true]}), "the schema at #/prefixItems: `prefixItems` has no meaning"),
        (json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}]}), "the schema at #/$defs/a: no answer can satisfy it: it refers to itself"),
        (json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}), "no answer can satisfy it: it refers to itself"),
        (json!({"type": "object", "minProperties": 1}), "the schema at #/minProperties: `minProperties` is not supported where other properties"),
        (json!({"type": "object", "minProperties": 2, "patternProperties": {"a": true}, "additionalProperties": false}), "the schema at #/minProperties: "),
        (json!({"items": {"properties": {"a": true, "b": true, "c": true}, "additionalProperties": false, "minProperties": 2}}), "the schema at #/items: min/maxProperties only supported"),
        (json!({"properties": {"a": {"maxProperties": 1, "properties": {"b": true}}}}), "the schema at #/properties/a: min/maxProperties only supported"),
        (json!({"properties": {"a": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}}), "the schema at #/properties/a: alternatives of `oneOf` that do not exclude each other visibly"),
        (json!({"oneOf": [{"type": "string", "minLength": 3}, {"type": "string", "maxLength": 2}]}), "alternatives of `oneOf` that do not exclude each other visibly"),
        (json!({"patternProperties": {"^a": true, "b$": true}}), "the schema at #: patternProperty regexes"),
        (json!({"minimum": 3, "maximum": 2, "type": "number"}), "the schema at #: no answer can satisfy it"),
        (json!({"type": "string", "minLength": 3, "maxLength": 2}), "no answer can satisfy it"),
        (json!({"type": "string", "const": 1}), "no answer can satisfy it"),
        (json!({"type": "array", "minItems": 2, "maxItems": 1}), "no answer can satisfy it"),
        (json!({"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2}), "no answer can satisfy it"),
        (json!({"type": "object", "required": ["a"], "additionalProperties": false}), "no answer can satisfy it"),
        (json!({"type": "string", "pattern": "^a", "allOf": [{"pattern": "^b"}]}), "no answer can satisfy it"),
        (json!({"allOf": [{"type": "string"}, {"type": "null"}]}), "no answer can satisfy it"),
        (json!({"type": "number", "exclusiveMinimum": 0, "maximum": 0.1}), "the schema at #: a whole number as exclusive bound, less than 1"),
        (json!({"allOf": [{"type": "number", "exclusiveMinimum": 0}, {"maximum": 0.1}]}), "the schema at #: a whole number as exclusive bound, less than 1"),
        (json!({"allOf": [{"multipleOf": 65_000}, {"multipleOf": 64_999}]}), "common multiples are too large"),
    ];
    for (schema, expected) in cases {
        refused(schema, expected);
    }
}

/// What is in the way of a name's other spelling: a property cannot be written so that its schema is not seen.
#[test]
fn names_have_one_spelling() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}});
    let start = demo().compile(&Grammar::JsonSchema(schema));
    for (text, is_answer) in [
        (r#"{"a":1}"#, true),
        (r#"{"a":1,"b":"x"}"#, true),
        (r#"{"b":"x"}"#, true),
        (r#"{"a":"x"}"#, false),
        (r#"{"\u0061":"x"}"#, false),
        (r#"{"b":1}"#, false),
        (r#"{"b":"\u0061"}"#, false),
        (r#"{"b":"\n\"\\"}"#, true),
        (r#"{ "b":"x"}"#, false),
        (r#"{"b": "x"}"#, false),
        (r#"{"b":"x"} "#, false),
    ] {
        assert_eq!(demo().matches(&start, text), is_answer, "{text}");
    }
}

/// Those that random walks hardly find a way through.
#[test]
fn patterns_are_searched_for() {
    let string = |pattern: &str| json!({"type": "string", "pattern": pattern});
    let cases: [(Value, &[&str], &[&str]); 6] = [
        (
            string("abc"),
            &["\"abc\"", "\"xabcx\"", "\"\\nabc\""],
            &["\"\"", "\"ab\"", "\"a bc\""],
        ),
        (
            string("abc$"),
            &["\"abc\"", "\"xabc\""],
            &["\"abcx\"", "\"abc\\n\""],
        ),
        (
            string("^yes|no$"),
            &["\"yes\"", "\"yes!\"", "\"no\"", "\"oh no\""],
            &["\"oh yes\"", "\"no!\""],
        ),
        (
            string("\\.json$"),
            &["\"a.json\"", "\".json\""],
            &["\"json\"", "\"a.json5\""],
        ),
        (
            json!({"type": "object", "patternProperties": {"x": {"type": "integer"}}, "additionalProperties": false}),
            &["{}", "{\"x\":1}", "{\"axa\":1,\"xx\":2}"],
            &["{\"a\":1}", "{\"x\":null}"],
        ),
        (
            json!({"type": "object", "patternProperties": {"_id$": {"type": "integer"}}, "additionalProperties": {"type": "null"}}),
            &["{\"a_id\":1,\"b\":null}", "{\"_idx\":null}"],
            &["{\"a_id\":null}", "{\"b\":1}"],
        ),
    ];
    for (schema, taken, not_taken) in cases {
        let start = demo().compile(&Grammar::JsonSchema(schema.clone()));
        for text in taken {
            assert!(demo().matches(&start, text), "{schema}: {text}");
        }
        for text in not_taken {
            assert!(!demo().matches(&start, text), "{schema}: {text}");
        }
    }
}

#[test]
fn definitions_that_nothing_refers_to_are_not_read() {
    let schema = json!({"type": "null", "$defs": {"unused": {"not": {}}}});
    assert!(demo().matches(&demo().compile(&Grammar::JsonSchema(schema)), "null"));
}

/// How long masks take with the World vocabulary: for people, in a release build.
#[test]
#[ignore = "a measurement"]
fn time_of_masks() {
    let vocabulary = world().expect("RWKV_EDGE_TEST_DATA");
    let start = Instant::now();
    let fresh = rwkv_edge_serve::constrain::Compiler::of_vocabulary(&vocabulary.tokenizer, &[0]);
    println!(
        "vocabulary of {}: {:?}",
        vocabulary.tokenizer.n_tokens(),
        start.elapsed()
    );
    drop(fresh);
    let person = json!({"type": "object", "additionalProperties": false, "required": ["name", "age", "email", "address", "tags"],
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 80},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "email": {"type": "string", "format": "email"},
            "born": {"type": "string", "format": "date"},
            "role": {"enum": ["admin", "editor", "reader"]},
            "address": {"type": "object", "additionalProperties": false, "required": ["street", "city"], "properties": {
                "street": {"type": "string"}, "city": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}}},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 10},
            "scores": {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1}}}});
    let grammars = [
        ("a medium schema", Grammar::JsonSchema(person)),
        ("a JSON object", Grammar::JsonObject),
        (
            "a regex",
            Grammar::Regex("[A-Z][a-z]{1,20}( [a-z]{1,20}){0,20}\\.".into()),
        ),
    ];
    for (name, grammar) in grammars {
        let start = Instant::now();
        let compiled = vocabulary.compile(&grammar);
        let compile_time = start.elapsed();
        let start = Instant::now();
        let mut clone = compiled.clone();
        let clone_time = start.elapsed();
        // The shortest of several times for each token: other programs take the processor away in between.
        let mut times: Vec<Duration> = Vec::new();
        for _ in 0..5 {
            let mut again = Vec::new();
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            for _ in 0..10 {
                let mut constraint = compiled.clone();
                for _ in 0..200 {
                    if constraint.is_complete() {
                        break;
                    }
                    let mut row = vocabulary.row();
                    let start = Instant::now();
                    constraint.apply(&mut row).expect("a token");
                    let mask_time = start.elapsed();
                    let token = vocabulary.draw(&row, &mut rng);
                    let start = Instant::now();
                    constraint.accept(token).expect("allowed");
                    again.push(mask_time + start.elapsed());
                }
            }
            times = match times.is_empty() {
                true => again,
                false => times
                    .into_iter()
                    .zip(again)
                    .map(|(a, b)| a.min(b))
                    .collect(),
            };
        }
        let first = {
            let mut row = vocabulary.row();
            let start = Instant::now();
            clone.apply(&mut row).expect("a token");
            start.elapsed()
        };
        times.sort_unstable();
        let sum: Duration = times.iter().sum();
        println!(
            "{name}: compile {compile_time:?}, clone {clone_time:?}, first mask {first:?}; {} tokens: mean {:?}, median {:?}, 99 % {:?}, most {:?}",
            times.len(),
            sum / times.len() as u32,
            times[times.len() / 2],
            times[times.len() * 99 / 100],
            times[times.len() - 1],
        );
    }
}
