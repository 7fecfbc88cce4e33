//! Fields: honoured, without effect, accepted as long as they ask for nothing, and unknown.

use rwkv_edge_serve::Ending;
use serde_json::{json, Map, Value};

use crate::support::{model, start, Running, Script};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn with(path: &str, name: &str, value: &Value) -> Value {
    let mut body = Map::new();
    match path {
        CHAT => body.insert(
            "messages".into(),
            json!([{"role": "user", "content": "Hi"}]),
        ),
        COMPLETIONS => body.insert("prompt".into(), json!("Hi")),
        _ => body.insert("input".into(), json!("Hi")),
    };
    body.insert(name.into(), value.clone());
    Value::Object(body)
}

fn server() -> Running {
    start(Script::Say(" Hello.", Ending::Stop))
}

#[test]
fn how_tokens_are_drawn_reaches_the_model() {
    let server = server();
    let body = json!({
        "prompt": "Hi", "temperature": 0.7, "top_p": 0.8, "top_k": 40, "min_p": 0.05, "typical_p": 0.9,
        "presence_penalty": 0.1, "frequency_penalty": -0.2, "repetition_penalty": 1.1, "penalty_decay": 0.99,
        "temperature_last": true, "seed": 42, "logit_bias": {"5": -100, "6": 1.5}, "stop": ["a", "b"],
        "ignore_eos": true, "max_tokens": 9, "n": 2,
    });
    assert_eq!(server.post(COMPLETIONS, &body).status, 200);
    let seen = server.fake.last();
    let expected = rwkv_edge::SamplerOptions::new()
        .temperature(0.7)
        .top_p(0.8)
        .top_k(40)
        .min_p(0.05)
        .typical_p(0.9)
        .presence_penalty(0.1)
        .frequency_penalty(-0.2)
        .repetition_penalty(1.1)
        .penalty_decay(0.99)
        .temperature_last(true)
        .seed(42);
    assert_eq!(seen.sampling, expected);
    let mut bias = seen.bias.clone();
    bias.sort_by_key(|one| one.0);
    assert_eq!(bias, [(5, -100.0), (6, 1.5)]);
    assert_eq!(
        (seen.stops, seen.ignore_end_of_text),
        (vec!["a".to_owned(), "b".into()], true)
    );
    assert_eq!((seen.max_new_tokens, seen.n_choices), (Some(9), 2));
    assert!(!seen.begins_with_word);
    let body = json!({"prompt": "Hi", "stop": "\n", "top_k": -1});
    assert_eq!(server.post(COMPLETIONS, &body).status, 200);
    let first = server.fake.last();
    assert_eq!(
        (first.stops, first.sampling.top_k),
        (vec!["\n".to_owned()], None)
    );
    assert_eq!(server.post(COMPLETIONS, &body).status, 200);
    assert_ne!(server.fake.last().sampling.seed, first.sampling.seed);
}

#[test]
fn ranges_are_checked_and_said() {
    let server = server();
    let n_vocab = model().n_vocab();
    for (name, values, expected) in [
        (
            "temperature",
            vec![json!(-0.1), json!(2.1), json!("1"), json!(true)],
            "a number from 0 to 2",
        ),
        ("top_p", vec![json!(1.1), json!(-1)], "a number from 0 to 1"),
        ("min_p", vec![json!(2)], "a number from 0 to 1"),
        (
            "top_k",
            vec![json!(-2), json!(1.5)],
            "a whole number, at least 0, or -1 for all",
        ),
        (
            "presence_penalty",
            vec![json!(2.5)],
            "a number from -2 to 2",
        ),
        (
            "repetition_penalty",
            vec![json!(0), json!(11)],
            "a number from 0.01 to 10",
        ),
        (
            "n",
            vec![json!(0), json!(17), json!(1.5)],
            "a whole number from 1 to 16",
        ),
        (
            "seed",
            vec![json!(1.5), json!("x")],
            "a whole number of 64 bits",
        ),
        (
            "stop",
            vec![json!([""]), json!([1])],
            "strings of at least one character",
        ),
        ("stream", vec![json!("yes"), json!(1)], "true or false"),
        (
            "logit_bias",
            vec![json!([1])],
            "an object of token ids and numbers",
        ),
        ("model", vec![json!(1)], "a string"),
    ] {
        for value in values {
            for path in [CHAT, COMPLETIONS] {
                let (status, text, param, _) = server.refused(path, &with(path, name, &value));
                assert_eq!((status, &param), (400, &json!(name)), "{text}");
                assert!(text.ends_with(expected) && text.starts_with(name), "{text}");
            }
        }
    }
    let bias = |id: &str, value: Value| with(CHAT, "logit_bias", &json!({id: value}));
    for body in [
        bias("x", json!(1)),
        bias(&n_vocab.to_string(), json!(1)),
        bias("1", json!(101)),
        bias("-1", json!(1)),
    ] {
        assert_eq!(server.refused(CHAT, &body).0, 400, "{body}");
    }
    for (path, name, value) in [
        (CHAT, "max_tokens", json!(0)),
        (CHAT, "max_completion_tokens", json!(-1)),
        (CHAT, "top_logprobs", json!(21)),
        (CHAT, "logprobs", json!(3)),
        (COMPLETIONS, "logprobs", json!(21)),
        (COMPLETIONS, "logprobs", json!(true)),
        (COMPLETIONS, "max_tokens", json!(-1)),
        (COMPLETIONS, "echo", json!("x")),
        (CHAT, "stream_options", json!({"include_usage": true})),
    ] {
        let (status, text, param, _) = server.refused(path, &with(path, name, &value));
        assert_eq!((status, param), (400, json!(name)), "{text}");
    }
    let mut both = with(CHAT, "max_tokens", &json!(5));
    both["max_completion_tokens"] = json!(6);
    assert_eq!(server.refused(CHAT, &both).0, 400);
    both["max_completion_tokens"] = json!(5);
    assert_eq!(server.post(CHAT, &both).status, 200);
}

#[test]
fn bookkeeping_and_defaults_of_other_servers_are_accepted() {
    let server = server();
    let anywhere = [
        ("user", json!("ann")),
        ("metadata", json!({"a": "b"})),
        ("store", json!(true)),
        ("service_tier", json!("auto")),
        ("parallel_tool_calls", json!(true)),
        ("safety_identifier", json!("x")),
        ("prompt_cache_key", json!("x")),
    ];
    let drawing = [
        ("best_of", json!(1)),
        ("min_tokens", json!(0)),
        ("length_penalty", json!(1.0)),
        ("use_beam_search", json!(false)),
        ("logit_bias", json!({})),
        ("stop", json!([])),
        ("response_format", json!({"type": "text"})),
    ];
    for (name, value) in &anywhere {
        for path in [CHAT, COMPLETIONS, "/v1/embeddings"] {
            assert_eq!(
                server.post(path, &with(path, name, value)).status,
                200,
                "{path} {name}"
            );
            assert_eq!(
                server.post(path, &with(path, name, &Value::Null)).status,
                200,
                "{path} {name}"
            );
        }
    }
    for (name, value) in &drawing {
        for path in [CHAT, COMPLETIONS] {
            assert_eq!(
                server.post(path, &with(path, name, value)).status,
                200,
                "{path} {name}"
            );
        }
    }
    for (path, name, value, other) in [
        (CHAT, "tools", json!([]), json!([{"type": "function"}])),
        (CHAT, "tool_choice", json!("auto"), json!("required")),
        (CHAT, "modalities", json!(["text"]), json!(["audio"])),
        (CHAT, "functions", json!([]), json!([{}])),
        (CHAT, "audio", Value::Null, json!({})),
        (CHAT, "echo", json!(false), json!(true)),
        (COMPLETIONS, "tools", json!([]), json!([{}])),
        (COMPLETIONS, "audio", Value::Null, json!({})),
        (COMPLETIONS, "tool_choice", json!("none"), json!("required")),
        (COMPLETIONS, "suffix", json!(""), json!("end")),
        (COMPLETIONS, "best_of", json!(1), json!(2)),
    ] {
        assert_eq!(
            server.post(path, &with(path, name, &value)).status,
            200,
            "{name}"
        );
        assert_eq!(
            server.post(path, &with(path, name, &Value::Null)).status,
            200,
            "{name}"
        );
        let (status, text, param, code) = server.refused(path, &with(path, name, &other));
        assert_eq!(
            (status, param, code),
            (400, json!(name), json!("unsupported_parameter")),
            "{text}"
        );
    }
}

#[test]
fn every_other_field_is_refused_by_its_name() {
    let server = server();
    for path in [CHAT, COMPLETIONS, "/v1/embeddings"] {
        for (name, value) in [
            ("temprature", json!(1)),
            ("guided_json", json!({})),
            ("x\u{1b}[2J", Value::Null),
        ] {
            let (status, text, param, code) = server.refused(path, &with(path, name, &value));
            assert_eq!((status, code), (400, json!("unknown_parameter")), "{text}");
            assert!(
                param.as_str().unwrap().starts_with(&name[..1]) && !text.contains('\u{1b}'),
                "{text}"
            );
        }
    }
    for (path, name) in [
        (CHAT, "prompt"),
        (COMPLETIONS, "messages"),
        (COMPLETIONS, "think"),
        (COMPLETIONS, "top_logprobs"),
    ] {
        let (status, _, param, _) = server.refused(path, &with(path, name, &json!(1)));
        assert_eq!((status, param), (400, json!(name)));
    }
    let body = json!({"prompt": "a", "stream": true, "stream_options": {"x": 1}});
    assert_eq!(server.refused(COMPLETIONS, &body).2, "stream_options.x");
}

#[test]
fn fields_of_objects_are_known_or_refused() {
    let server = server();
    let schema = |more: Value| {
        let mut one = json!({"schema": {"type": "object"}});
        one.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        json!({"type": "json_schema", "json_schema": one})
    };
    for format in [
        json!({"type": "text"}),
        json!({"type": "json_object"}),
        json!({"type": "json_object", "json_schema": null}),
        schema(json!({})),
        schema(json!({"name": "x", "description": "y", "strict": true})),
    ] {
        let body = with(COMPLETIONS, "response_format", &format);
        assert_eq!(server.post(COMPLETIONS, &body).status, 200, "{format}");
    }
    for (format, expected) in [
        (json!("json_object"), "response_format"),
        (json!({}), "response_format.type"),
        (json!({"type": "json"}), "response_format.type"),
        (
            json!({"type": "json_object", "schema": {"type": "object"}}),
            "response_format.schema",
        ),
        (
            json!({"type": "json_object", "json_schema": {"schema": {}}}),
            "response_format.json_schema",
        ),
        (
            json!({"type": "json_schema"}),
            "response_format.json_schema",
        ),
        (
            json!({"type": "json_schema", "json_schema": {}}),
            "response_format.json_schema.schema",
        ),
        (
            json!({"type": "json_schema", "json_schema": {"schema": 1}}),
            "response_format.json_schema.schema",
        ),
        (
            schema(json!({"scheme": {}})),
            "response_format.json_schema.scheme",
        ),
        (
            json!({"type": "text", "pattern": "a+"}),
            "response_format.pattern",
        ),
    ] {
        for path in [CHAT, COMPLETIONS] {
            let body = with(path, "response_format", &format);
            let (status, text, param, _) = server.refused(path, &body);
            assert_eq!((status, param), (400, json!(expected)), "{text}");
            assert!(text.contains(expected), "{text}");
        }
    }
    let part = |part: Value| json!({"messages": [{"role": "user", "content": [part]}]});
    assert_eq!(
        server
            .post(CHAT, &part(json!({"type": "text", "text": "a"})))
            .status,
        200
    );
    for (one, expected) in [
        (
            json!({"type": "text", "text": "a", "cache_control": {}}),
            "messages[0].content[0].cache_control",
        ),
        (json!({"type": "text"}), "messages[0].content[0].text"),
        (
            json!({"type": "image_url", "image_url": {"url": "x"}}),
            "messages[0].content[0]",
        ),
        (json!("a"), "messages[0].content[0]"),
    ] {
        let (status, text, param, _) = server.refused(CHAT, &part(one));
        assert_eq!((status, param), (400, json!(expected)), "{text}");
    }
    let mut body = with(COMPLETIONS, "stream", &json!(true));
    body["stream_options"] = json!({"include_usage": "yes"});
    let (status, _, param, _) = server.refused(COMPLETIONS, &body);
    assert_eq!(
        (status, param),
        (400, json!("stream_options.include_usage"))
    );
}
