//! Everything but answers: models, embeddings, tokens, sessions, health.

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use rwkv_edge_scoring::{Embedder, Pooling};
use rwkv_edge_serve::Ending;
use serde_json::{json, Value};

use crate::support::{encode, model, served, start, start_with, Fake, Script};

fn script() -> Script {
    Script::Say(" Hi.", Ending::Stop)
}

#[test]
fn models_are_listed_and_others_are_not_found() {
    let server = start_with(script(), |config| {
        let fake = Fake::new(script());
        config.models = vec![
            served(&fake, "one", "world"),
            served(&fake, "owner/two", "plain"),
        ];
    });
    let list = server.get("/v1/models").json();
    assert_eq!(list["object"], "list");
    let names: Vec<&Value> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["id"])
        .collect();
    assert_eq!(names, ["one", "owner/two"]);
    let one = server.get("/v1/models/owner/two").json();
    assert_eq!(
        (&one["object"], &one["id"], &one["owned_by"]),
        (&json!("model"), &json!("owner/two"), &json!("rwkv-edge"))
    );
    assert!(one["created"].is_u64());
    let missing = |answer: crate::support::Answer| {
        let (status, text, param, code) = answer.refusal();
        assert_eq!(
            (status, param, code),
            (404, json!("model"), json!("model_not_found")),
            "{text}"
        );
    };
    missing(server.get("/v1/models/three"));
    missing(server.post("/v1/completions", &json!({"model": "gpt-4", "prompt": "a"})));
    missing(server.post("/v1/embeddings", &json!({"model": "gpt-4", "input": "a"})));
    missing(server.get("/v1/sessions?model=three"));
    let (status, text, param, _) = server.refused("/v1/completions", &json!({"prompt": "a"}));
    assert_eq!((status, param), (400, json!("model")));
    assert!(text.contains("one, owner/two"), "{text}");
}

#[test]
fn other_paths_and_methods_are_errors_of_the_same_form() {
    let server = start(script());
    assert_eq!(server.get("/health").json(), json!({"status": "ok"}));
    assert_eq!(server.get("/index.html").refusal().0, 404);
    assert_eq!(server.get("/v1/nothing").refusal().0, 404);
    assert_eq!(server.get("/v1/completions").refusal().0, 405);
    assert_eq!(server.post("/health", &json!({})).refusal().0, 405);
    assert_eq!(
        server.get("/health").header("x-content-type-options"),
        Some("nosniff")
    );
}

fn expected(texts: &[&str], pooling: Pooling) -> Vec<Vec<f32>> {
    let mut embedder = Embedder::new(model(), pooling).unwrap();
    let mut vectors = Vec::new();
    texts.iter().for_each(|text| embedder.push(encode(text)));
    while !embedder.is_empty() {
        embedder.run_batch().unwrap();
        vectors.extend(std::iter::from_fn(|| embedder.pop()));
    }
    vectors
}

fn floats(list: &Value) -> Vec<f32> {
    let list = list.as_array().unwrap().iter();
    list.map(|x| x.as_f64().unwrap() as f32).collect()
}

#[test]
fn texts_become_vectors() {
    let server = start(script());
    let texts = [
        "A trait is shared behaviour.",
        "Traits are behaviour that types share.",
    ];
    let json = server
        .post("/v1/embeddings", &json!({"model": "demo", "input": texts}))
        .json();
    let n: usize = texts.iter().map(|text| encode(text).len()).sum();
    assert_eq!(
        json["usage"],
        json!({"prompt_tokens": n, "total_tokens": n})
    );
    assert_eq!(
        (&json["object"], &json["model"]),
        (&json!("list"), &json!("demo"))
    );
    let vectors = expected(&texts, Pooling::HiddenMean);
    for (i, vector) in vectors.iter().enumerate() {
        let one = &json["data"][i];
        assert_eq!(
            (&one["object"], &one["index"]),
            (&json!("embedding"), &json!(i))
        );
        assert_eq!(floats(&one["embedding"]), *vector);
        assert!(one["embedding"][0].to_string().len() < 14);
    }
    let body = json!({"input": [encode(texts[0])], "encoding_format": "base64", "dimensions": vectors[0].len()});
    let json = server.post("/v1/embeddings", &body).json();
    let bytes = STANDARD
        .decode(json["data"][0]["embedding"].as_str().unwrap())
        .unwrap();
    let numbers: Vec<f32> = bytes
        .chunks(4)
        .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
        .collect();
    assert_eq!(numbers, vectors[0]);
    let body = json!({"input": texts[1], "pooling": "state:0"});
    let json = server.post("/v1/embeddings", &body).json();
    let state = expected(&texts[1..], Pooling::State(0));
    assert_eq!(floats(&json["data"][0]["embedding"]), state[0]);
    for (name, value) in [
        ("encoding_format", json!("hex")),
        ("dimensions", json!(3)),
        ("pooling", json!("max")),
        ("pooling", json!("state:99")),
        ("input", json!([])),
        ("input", Value::Null),
        ("input", json!(vec!["a"; 2049])),
    ] {
        let mut body = json!({"input": "a"});
        body[name] = value;
        let (status, text, param, _) = server.refused("/v1/embeddings", &body);
        assert_eq!((status, param), (400, json!(name)), "{text}");
    }
}

#[test]
fn texts_become_tokens_and_back() {
    let server = start(script());
    let text = "Ownership is a set of rules";
    for field in ["content", "prompt"] {
        let json = server.post("/tokenize", &json!({field: text})).json();
        assert_eq!(
            json,
            json!({"tokens": encode(text), "count": encode(text).len()})
        );
    }
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let json = server
        .post("/tokenize", &json!({"messages": messages}))
        .json();
    assert_eq!(json["tokens"], json!(encode("User: Hi\n\nAssistant:")));
    for (think, end) in [
        (json!("on"), "<think"),
        (json!("fake"), "<think>\n</think"),
        (json!(false), ""),
    ] {
        let body = json!({"messages": messages, "think": think});
        let json = server.post("/tokenize", &body).json();
        let text = format!(
            "User: Hi\n\nAssistant:{}{end}",
            if end.is_empty() { "" } else { " " }
        );
        assert_eq!(json["tokens"], json!(encode(&text)), "{think}");
    }
    let json = server
        .post(
            "/detokenize",
            &json!({"tokens": encode(text), "model": "demo"}),
        )
        .json();
    assert_eq!(json, json!({"content": text, "prompt": text}));
    for (path, body) in [
        ("/tokenize", json!({})),
        ("/tokenize", json!({"content": "a", "prompt": "b"})),
        ("/tokenize", json!({"content": "a", "messages": []})),
        ("/tokenize", json!({"content": 1})),
        ("/tokenize", json!({"content": "a", "think": "on"})),
        ("/tokenize", json!({"messages": messages, "think": "hard"})),
        ("/tokenize", json!({"text": "a"})),
        ("/detokenize", json!({})),
        ("/detokenize", json!({"tokens": "a"})),
        ("/detokenize", json!({"tokens": [-1]})),
        ("/detokenize", json!({"tokens": [model().n_vocab()]})),
    ] {
        assert_eq!(server.refused(path, &body).0, 400, "{path} {body}");
    }
}

#[test]
fn sessions_are_listed_forked_moved_and_forgotten() {
    let server = start(script());
    let bytes: Vec<u8> = (0..=255).collect();
    let made = server
        .ask("PUT", "/v1/sessions/first%20one/state", &[], &bytes)
        .json();
    let expected = json!({
        "object": "session", "name": "first one", "model": "demo", "tokens": 256, "created": 1, "used": 2,
    });
    assert_eq!(made, expected);
    assert_eq!(server.get("/v1/sessions/first%20one").json(), expected);
    assert_eq!(
        server.get("/v1/sessions").json(),
        json!({"object": "list", "data": [expected]})
    );
    let fork = |from: &str, body: Value| server.post(&format!("/v1/sessions/{from}/fork"), &body);
    assert_eq!(
        fork("first%20one", json!({"to": "second"})).json()["name"],
        "second"
    );
    let (status, _, _, code) = fork("first%20one", json!({"to": "second"})).refusal();
    assert_eq!((status, code), (409, json!("session_exists")));
    let (status, _, _, code) = fork("none", json!({"to": "third"})).refusal();
    assert_eq!((status, code), (404, json!("session_not_found")));
    for body in [
        json!({}),
        json!({"to": ""}),
        json!({"to": "x", "from": "y"}),
        json!({"to": 1}),
    ] {
        assert_eq!(fork("first%20one", body).refusal().0, 400);
    }
    let state = server.get("/v1/sessions/second/state?model=demo");
    assert_eq!(
        (state.status, state.header("content-type")),
        (200, Some("application/octet-stream"))
    );
    assert_eq!(state.body, bytes);
    let delete = |name: &str| server.ask("DELETE", &format!("/v1/sessions/{name}"), &[], b"");
    let gone = json!({"object": "session.deleted", "name": "second", "deleted": true});
    assert_eq!(delete("second").json(), gone);
    assert_eq!(delete("second").refusal().0, 404);
    assert_eq!(server.get("/v1/sessions/second").refusal().0, 404);
    assert_eq!(server.get("/v1/sessions/second/state").refusal().0, 404);
    assert_eq!(
        server
            .ask("PUT", "/v1/sessions/x/state", &[], b"")
            .refusal()
            .0,
        400
    );
    assert_eq!(server.get("/v1/sessions?limit=3").refusal().0, 400);
}
