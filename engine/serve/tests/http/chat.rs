//! Chat completions in one piece.

use rwkv_edge::{ErrorKind, Model, Options};
use rwkv_edge_serve::constrain::Grammar;
use rwkv_edge_serve::{Ending, Prompt, Start};
use serde_json::{json, Value};

use crate::support::{encode, served, start, start_with, until, Fake, Script};

const PATH: &str = "/v1/chat/completions";

fn hi() -> Value {
    json!([{"role": "user", "content": "Hi"}])
}

#[test]
fn an_answer_has_openais_form() {
    let server = start(Script::Say(" Hello there. ", Ending::Stop));
    let answer = server.post(PATH, &json!({"model": "demo", "messages": hi()}));
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let json = answer.json();
    let id = json["id"].as_str().unwrap();
    assert!(id.starts_with("chatcmpl-") && id.len() > 20, "{id}");
    assert_eq!(
        (&json["object"], &json["model"]),
        (&json!("chat.completion"), &json!("demo"))
    );
    assert!(json["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(
        json["choices"],
        json!([{
            "index": 0,
            "message": {"role": "assistant", "content": "Hello there.", "refusal": null},
            "logprobs": null,
            "finish_reason": "stop",
        }])
    );
    let n_prompt = encode("User: Hi\n\nAssistant:").len();
    let n_made = encode(" Hello there. ").len() + 1;
    assert_eq!(
        json["usage"],
        json!({
            "prompt_tokens": n_prompt,
            "completion_tokens": n_made,
            "total_tokens": n_prompt + n_made,
            "prompt_tokens_details": {"cached_tokens": n_prompt / 2},
        })
    );
    let seen = server.fake.last();
    assert_eq!(seen.prompt, Prompt::Text("User: Hi\n\nAssistant:".into()));
    assert_eq!(
        (seen.start, seen.max_new_tokens),
        (Start::Beginning, Some(2048))
    );
    assert_eq!((seen.stops, seen.n_choices), (vec!["\n\n".to_owned()], 1));
    assert_eq!((seen.sampling.temperature, seen.sampling.top_p), (1.0, 1.0));
    assert_eq!(seen.kept.as_deref(), Some(" Hello.\n\n"));
}

#[test]
fn messages_have_several_forms() {
    let server = start(Script::Say(" Yes.", Ending::Length));
    let messages = json!([
        {"role": "developer", "content": "Be kind.\n\nBe brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "you"}], "name": "ann"},
        {"role": "assistant", "content": null, "tool_calls": [], "refusal": null, "reasoning_content": "hm"},
        {"role": "assistant", "content": "Hello.", "annotations": [], "audio": null},
        {"role": "user", "content": "Why?"},
    ]);
    let answer = server.post(PATH, &json!({"messages": messages})).json();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let expected =
        "System: Be kind.\nBe brief.\n\nUser: Hi\nyou\n\nAssistant:\n\nAssistant: Hello.\n\n\
                    User: Why?\n\nAssistant:";
    assert_eq!(server.fake.last().prompt, Prompt::Text(expected.into()));
    for (message, param) in [
        (json!({"role": "tool", "content": "x"}), "messages[0].role"),
        (json!({"content": "x"}), "messages[0].role"),
        (
            json!({"role": "user", "content": null}),
            "messages[0].content",
        ),
        (json!({"role": "user", "content": 3}), "messages[0].content"),
        (
            json!({"role": "user", "content": [{"type": "image_url"}]}),
            "messages[0].content[0]",
        ),
        (
            json!({"role": "user", "content": "x", "tool_calls": [1]}),
            "messages[0].tool_calls",
        ),
        (
            json!({"role": "user", "content": "x", "mood": "glad"}),
            "messages[0].mood",
        ),
        (json!("x"), "messages[0]"),
    ] {
        let (status, text, found, _) = server.refused(PATH, &json!({"messages": [message]}));
        assert_eq!((status, found), (400, json!(param)), "{text}");
    }
    for messages in [json!([]), json!("x"), Value::Null] {
        let (status, text, found, _) = server.refused(PATH, &json!({"messages": messages}));
        assert_eq!((status, found), (400, json!("messages")), "{text}");
    }
}

#[test]
fn several_answers_are_several_choices() {
    let server = start(Script::Say(" One.", Ending::Stop));
    let json = server
        .post(PATH, &json!({"messages": hi(), "n": 3, "seed": -7}))
        .json();
    let choices = json["choices"].as_array().unwrap();
    let indices: Vec<u64> = choices
        .iter()
        .map(|one| one["index"].as_u64().unwrap())
        .collect();
    assert_eq!(indices, [0, 1, 2]);
    assert!(choices
        .iter()
        .all(|one| one["message"]["content"] == "One."));
    let seen = server.fake.last();
    assert_eq!(
        (seen.n_choices, seen.sampling.seed),
        (3, (-7i64).cast_unsigned())
    );
    assert_eq!(
        json["usage"]["completion_tokens"],
        3 * (encode(" One.").len() + 1)
    );
}

#[test]
fn thoughts_come_apart() {
    let server = start(Script::Say(">\nHm, well.\n</think>\n\nYes.", Ending::Stop));
    for (field, value, begins, suffix) in [
        ("think", json!("on"), "<think", ""),
        ("think", json!(true), "<think", ""),
        ("reasoning_effort", json!("low"), "<think", " (think a bit)"),
        (
            "reasoning_effort",
            json!("high"),
            "<think",
            " (think a lot)",
        ),
    ] {
        let json = server
            .post(PATH, &json!({"messages": hi(), field: value}))
            .json();
        let message = &json["choices"][0]["message"];
        assert_eq!(message["content"], "Yes.");
        assert_eq!(message["reasoning_content"], "Hm, well.");
        let seen = server.fake.last();
        let expected = format!("User: Hi{suffix}\n\nAssistant: {begins}");
        assert_eq!(seen.prompt, Prompt::Text(expected));
        assert_eq!(seen.stops, ["\n\nUser:"]);
    }
    for (field, value) in [
        ("think", json!("off")),
        ("think", json!(false)),
        ("reasoning_effort", json!("none")),
    ] {
        let json = server
            .post(PATH, &json!({"messages": hi(), field: value}))
            .json();
        assert_eq!(json["choices"][0]["message"].get("reasoning_content"), None);
    }
    for body in [
        json!({"messages": hi(), "think": "hard"}),
        json!({"messages": hi(), "think": "on", "reasoning_effort": "low"}),
        json!({"messages": hi(), "think": "on", "regex": "a"}),
    ] {
        assert_eq!(server.refused(PATH, &body).0, 400, "{body}");
    }
    let raven = start_with(Script::Die, |config| {
        let fake = Fake::new(Script::Die);
        config.models = vec![served(&fake, "raven", "raven")];
    });
    let (status, text, ..) = raven.refused(PATH, &json!({"messages": hi(), "think": "on"}));
    assert_eq!(status, 400);
    assert!(text.contains("has no thoughts"), "{text}");
}

#[test]
fn grammars_are_compiled_first_and_end_answers_alone() {
    let server = start(Script::Say("aaa ", Ending::Complete));
    let schema = json!({"type": "object"});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": true}});
    for (field, value, expected) in [
        (
            "response_format",
            json!({"type": "json_object"}),
            Grammar::JsonObject,
        ),
        (
            "response_format",
            format,
            Grammar::JsonSchema(schema.clone()),
        ),
        ("regex", json!("a+"), Grammar::Regex("a+".into())),
        (
            "grammar",
            json!("root ::= \"a\"+"),
            Grammar::Gbnf("root ::= \"a\"+".into()),
        ),
    ] {
        let body = json!({"messages": hi(), field: value, "stop": ["b"]});
        let json = server.post(PATH, &body).json();
        assert_eq!(json["choices"][0]["finish_reason"], "stop");
        assert_eq!(json["choices"][0]["message"]["content"], "aaa ");
        assert_eq!(server.fake.grammars.lock().unwrap().last(), Some(&expected));
        let seen = server.fake.last();
        assert!(seen.has_constraint && !seen.begins_with_word);
        assert_eq!(seen.stops, ["b"]);
    }
    let body = json!({"messages": hi(), "grammar": "start: \"a\"+", "grammar_form": "lark"});
    assert_eq!(server.post(PATH, &body).status, 200);
    let lark = Grammar::Lark("start: \"a\"+".into());
    assert_eq!(server.fake.grammars.lock().unwrap().last(), Some(&lark));
    let text = json!({"messages": hi(), "response_format": {"type": "text"}});
    assert_eq!(server.post(PATH, &text).status, 200);
    assert!(!server.fake.last().has_constraint && server.fake.last().begins_with_word);
    let n_jobs = server.fake.seen.lock().unwrap().len();
    for (body, param) in [
        (
            json!({"messages": hi(), "regex": "(", "stream": true}),
            "regex",
        ),
        (
            json!({"messages": hi(), "regex": "a", "grammar": "b"}),
            "grammar",
        ),
        (
            json!({"messages": hi(), "grammar": "b", "grammar_form": "x"}),
            "grammar_form",
        ),
        (
            json!({"messages": hi(), "grammar_form": "lark"}),
            "grammar_form",
        ),
        (
            json!({"messages": hi(), "response_format": {"type": "xml"}}),
            "response_format.type",
        ),
        (
            json!({"messages": hi(), "response_format": {"type": "json_schema"}}),
            "response_format.json_schema",
        ),
    ] {
        let (status, text, found, _) = server.refused(PATH, &body);
        assert_eq!((status, found), (400, json!(param)), "{text}");
    }
    assert_eq!(server.fake.seen.lock().unwrap().len(), n_jobs);
}

#[test]
fn logprobs_have_the_form_of_chat() {
    let server = start(Script::Say(" Hello there.", Ending::Stop));
    let body = json!({"messages": hi(), "logprobs": true, "top_logprobs": 2});
    let json = server.post(PATH, &body).json();
    let content = json["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    // The token that ended the text is none of its.
    assert_eq!(content.len(), encode(" Hello there.").len());
    let text: String = content
        .iter()
        .map(|one| one["token"].as_str().unwrap())
        .collect();
    assert_eq!(text, " Hello there.");
    assert_eq!(content[0]["logprob"], -0.5);
    let bytes = json!(content[0]["token"].as_str().unwrap().as_bytes());
    assert_eq!(content[0]["bytes"], bytes);
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(content[0]["top_logprobs"][1]["logprob"], -1.5);
    let (status, _, param, _) = server.refused(PATH, &json!({"messages": hi(), "top_logprobs": 2}));
    assert_eq!((status, param), (400, json!("top_logprobs")));
}

#[test]
fn a_session_is_sent_new_messages_only() {
    let server = start(Script::Say(" Hello.", Ending::Stop));
    let body = json!({"messages": hi(), "session": "ann's"});
    assert_eq!(server.post(PATH, &body).status, 200);
    let session = Start::Session {
        name: "ann's".into(),
        first: None,
    };
    assert_eq!(server.fake.last().start, session);
    for (body, param) in [
        (json!({"messages": hi(), "session": "a", "n": 2}), "n"),
        (json!({"messages": hi(), "session": ""}), "session"),
        (json!({"messages": hi(), "session": "a\nb"}), "session"),
        (
            json!({"messages": hi(), "session": "a".repeat(257)}),
            "session",
        ),
        (json!({"messages": hi(), "session": 7}), "session"),
    ] {
        let (status, text, found, _) = server.refused(PATH, &body);
        assert_eq!((status, found), (400, json!(param)), "{text}");
    }
}

#[test]
fn what_fails_is_an_error_of_its_kind() {
    let server = start(Script::Die);
    for (script, expected) in [
        (Script::Fail(ErrorKind::Argument, "no such thing"), 400),
        (Script::Fail(ErrorKind::State, "another model's"), 400),
        (Script::Fail(ErrorKind::Memory, "no memory"), 503),
        (Script::Fail(ErrorKind::Backend, "no device"), 500),
        (Script::FailLater(" a"), 500),
        (Script::Die, 500),
    ] {
        server.fake.set(script);
        let answer = server.post(PATH, &json!({"messages": hi()}));
        assert_eq!(answer.refusal().0, expected);
    }
    // What is the machine's own is for the log.
    let path = "/srv/secret/states/7: cannot write: no space left";
    server.fake.set(Script::Fail(ErrorKind::Io, path));
    let (status, text, ..) = server.refused(PATH, &json!({"messages": hi()}));
    assert_eq!(status, 500);
    assert!(!text.contains("secret"), "{text}");
    until("the log says why", || {
        let lines = server.lines.lock().unwrap();
        lines
            .iter()
            .any(|line| line.ends_with(&format!(" failed: {path}")))
    });
    // A panic is one request's; the others go on.
    let (status, text, ..) = server.refused(PATH, &json!({"messages": hi(), "regex": "panic"}));
    assert_eq!(status, 500);
    assert!(!text.contains("foresaw"), "{text}");
    server.fake.set(Script::Say(" Hi.", Ending::Stop));
    assert_eq!(server.post(PATH, &json!({"messages": hi()})).status, 200);
}

#[test]
fn a_session_that_cannot_go_on_is_a_conflict() {
    for (text, expected) in [
        (
            "session \"a\": another request works on it, expected one at a time",
            "session_busy",
        ),
        (
            "session \"a\": its state is no longer there, expected a new session",
            "session_lost",
        ),
        (
            "session \"a\": its file is damaged, expected one to be deleted or replaced",
            "session_lost",
        ),
        (
            "session \"a\": there are as many sessions as may be, 3 of this key and model",
            "session_limit",
        ),
    ] {
        let server = start(Script::Fail(ErrorKind::State, text));
        for stream in [false, true] {
            let body = json!({"messages": hi(), "session": "a", "stream": stream});
            let (status, message, param, code) = server.refused(PATH, &body);
            assert_eq!(
                (status, &*message, param, code),
                (409, text, json!("session"), json!(expected))
            );
        }
    }
}

/// Where the version was trained so, conversations begin with token 0: whole ones, and sessions that are new.
#[test]
fn conversations_of_rwkv_7_begin_with_token_0() {
    let folder = tempfile::tempdir().unwrap();
    let vocabulary = crate::tiny::write_vocabulary(folder.path());
    let golden = "../../tests/fixtures/golden/v7-pth/model.pth";
    let model = Model::open(golden, &Options::new().tokenizer(vocabulary)).unwrap();
    let fake = Fake::of(model, Script::Die);
    let server = start_with(Script::Die, |config| {
        config.models = vec![served(&fake, "g1", "g1"), served(&fake, "raven", "raven")];
    });
    let start = |body: Value| {
        assert_eq!(server.post(PATH, &body).status, 500);
        fake.last().start
    };
    let session = |first| Start::Session {
        name: "s".into(),
        first,
    };
    assert_eq!(
        start(json!({"model": "g1", "messages": hi()})),
        Start::Token(0)
    );
    assert_eq!(
        start(json!({"model": "g1", "messages": hi(), "session": "s"})),
        session(Some(0))
    );
    assert_eq!(
        start(json!({"model": "raven", "messages": hi()})),
        Start::Beginning
    );
    assert_eq!(
        start(json!({"model": "raven", "messages": hi(), "session": "s"})),
        session(None)
    );
    let json = server
        .post("/tokenize", &json!({"model": "g1", "messages": hi()}))
        .json();
    assert_eq!(json["tokens"][0], 0);
}
