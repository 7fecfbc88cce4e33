//! Answers as they come, byte for byte as the official clients read them.

use std::io::{Read, Write};
use std::time::Duration;

use rwkv_edge::ErrorKind;
use rwkv_edge_serve::Ending;
use serde_json::{json, Value};

use crate::support::{encode, start, start_with, until, Script};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn chat(more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Hi"}], "stream": true});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[test]
fn a_chat_comes_in_chunks() {
    let server = start(Script::Say(" Hello there. ", Ending::Stop));
    let answer = server.post(
        CHAT,
        &chat(json!({"stream_options": {"include_usage": true}})),
    );
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    assert_eq!(answer.header("cache-control"), Some("no-cache"));
    assert_eq!(answer.header("x-accel-buffering"), Some("no"));
    let chunks = answer.events();
    let (first, last) = (&chunks[0], &chunks[chunks.len() - 1]);
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(
            (&chunk["id"], &chunk["created"]),
            (&first["id"], &first["created"])
        );
        assert_eq!(chunk["model"], "demo");
    }
    let delta = |delta: Value, reason: Value| json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason}]);
    assert_eq!(
        first["choices"],
        delta(json!({"role": "assistant", "content": ""}), Value::Null)
    );
    assert_eq!(first["usage"], Value::Null);
    let text: String = chunks[1..chunks.len() - 2]
        .iter()
        .map(|chunk| {
            assert_eq!(chunk["choices"][0]["finish_reason"], Value::Null);
            chunk["choices"][0]["delta"]["content"].as_str().unwrap()
        })
        .collect();
    assert_eq!(text, "Hello there.");
    assert_eq!(
        chunks[chunks.len() - 2]["choices"],
        delta(json!({}), json!("stop"))
    );
    assert_eq!(last["choices"], json!([]));
    let (read, made) = (
        encode("User: Hi\n\nAssistant:").len(),
        encode(" Hello there. ").len() + 1,
    );
    assert_eq!(last["usage"]["prompt_tokens"], read);
    assert_eq!(last["usage"]["completion_tokens"], made);
    assert_eq!(last["usage"]["total_tokens"], read + made);
    assert_eq!(
        last["usage"]["prompt_tokens_details"]["cached_tokens"],
        read / 2
    );
}

#[test]
fn usage_is_only_told_where_it_is_asked_for() {
    let server = start(Script::Say(" Hi.", Ending::Length));
    for more in [
        json!({}),
        json!({"stream_options": {"include_usage": false}}),
        json!({"stream_options": null}),
    ] {
        let chunks = server.post(CHAT, &chat(more)).events();
        assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
        let last = &chunks[chunks.len() - 1]["choices"][0];
        assert_eq!(last["finish_reason"], "length");
    }
}

#[test]
fn choices_and_thoughts_and_logprobs_come_apart() {
    let server = start(Script::Say(">Well.</think>\n\nYes, no.", Ending::Stop));
    let more = json!({"n": 2, "think": "on", "logprobs": true, "top_logprobs": 1});
    let chunks = server.post(CHAT, &chat(more)).events();
    for index in 0..2 {
        let own: Vec<&Value> = chunks
            .iter()
            .map(|c| &c["choices"][0])
            .filter(|c| c["index"] == index)
            .collect();
        assert_eq!(own[0]["delta"], json!({"role": "assistant", "content": ""}));
        let joined = |name: &str| -> String {
            own.iter()
                .filter_map(|one| one["delta"][name].as_str())
                .collect()
        };
        assert_eq!(joined("content"), "Yes, no.");
        assert_eq!(joined("reasoning_content"), "Well.");
        let tokens = own
            .iter()
            .filter_map(|one| one["logprobs"]["content"].as_array())
            .flatten();
        let text: String = tokens.map(|one| one["token"].as_str().unwrap()).collect();
        assert_eq!(text, ">Well.</think>\n\nYes, no.");
        assert_eq!(
            own.iter()
                .filter(|one| one["finish_reason"] == "stop")
                .count(),
            1
        );
    }
}

#[test]
fn completions_come_in_chunks() {
    let server = start(Script::Say(" a b c", Ending::Stop));
    let body = json!({
        "prompt": ["Xyz", "W"], "stream": true, "echo": true, "logprobs": 1,
        "stream_options": {"include_usage": true},
    });
    let chunks = server.post(COMPLETIONS, &body).events();
    for (index, expected) in ["Xyz a b c", "W a b c"].into_iter().enumerate() {
        let own = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"].get(0))
            .filter(|one| one["index"] == index);
        let own: Vec<&Value> = own.collect();
        let text: String = own
            .iter()
            .map(|one| one["text"].as_str().unwrap())
            .collect();
        assert_eq!(text, expected);
        let all = |name: &str| -> Vec<Value> {
            own.iter()
                .flat_map(|one| one["logprobs"][name].as_array().unwrap().clone())
                .collect()
        };
        let tokens = all("tokens");
        let joined: String = tokens.iter().map(|one| one.as_str().unwrap()).collect();
        assert_eq!(joined, expected);
        let mut at = 0;
        for (token, offset) in tokens.iter().zip(all("text_offset")) {
            assert_eq!(offset, at);
            at += token.as_str().unwrap().chars().count();
        }
        assert_eq!(own[own.len() - 1]["finish_reason"], "stop");
    }
    let last = &chunks[chunks.len() - 1];
    assert_eq!(
        (&last["choices"], &last["object"]),
        (&json!([]), &json!("text_completion"))
    );
    assert!(last["usage"]["total_tokens"].as_u64().unwrap() > 0);
}

#[test]
fn what_fails_first_has_a_status_and_later_an_event() {
    let server = start(Script::Fail(ErrorKind::Argument, "no such thing"));
    let (status, text, ..) = server.refused(CHAT, &chat(json!({})));
    assert_eq!((status, &*text), (400, "no such thing"));
    server.fake.set(Script::FailLater(" a"));
    let answer = server.post(CHAT, &chat(json!({})));
    assert_eq!(answer.status, 200);
    let text = answer.text();
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    let error: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("whose log says more"), "{message}");
    assert_eq!(error["error"]["type"], "server_error");
    assert!(!text.contains("[DONE]"));
    until("the log says why", || {
        let lines = server.lines.lock().unwrap();
        lines
            .iter()
            .any(|line| line.contains(" 200 ") && line.ends_with(" failed: the device is gone"))
    });
}

/// Whoever takes an answer more slowly than it is made does not fill the memory.
#[test]
fn an_answer_that_piles_up_is_ended() {
    let server = start_with(Script::Flood((1 << 16) + 10), |config| {
        config.ping = Duration::from_secs(60);
    });
    for stream in [true, false] {
        let (_, text, ..) = server
            .post(CHAT, &chat(json!({"stream": stream})))
            .refusal();
        assert!(text.contains("taken too slowly"), "{text}");
        until("the job was given up", || {
            let held = server.fake.held.lock().unwrap();
            held.iter().all(|job| job.events.is_closed())
        });
    }
    // What is less than that waits for its client.
    server.fake.set(Script::Flood(60_000));
    let mut stream = server.connect();
    let text = chat(json!({})).to_string();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        text.len()
    );
    stream.write_all((head + &text).as_bytes()).unwrap();
    let mut bytes = [0; 1 << 16];
    stream.read_exact(&mut bytes).unwrap();
    assert!(!server.fake.held.lock().unwrap()[2].events.is_closed());
}

/// What a client has sent behind its request does not hide that it has gone.
#[test]
fn a_client_that_sent_more_and_goes_ends_its_job() {
    let server = start(Script::Silence);
    let get = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for (is_later, more) in [
        (false, get.to_owned()),
        (false, "\r\n".into()),
        (false, get.repeat(500)),
        (true, get.to_owned()),
        (true, get.repeat(500)),
    ] {
        let n_before = server.fake.held.lock().unwrap().len();
        let body = json!({"prompt": "a", "max_tokens": 1_000_000_000}).to_string();
        let request = format!(
            "POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = server.connect();
        if is_later {
            stream.write_all(request.as_bytes()).unwrap();
        } else {
            stream.write_all((request + &more).as_bytes()).unwrap();
        }
        until("the job came", || {
            server.fake.held.lock().unwrap().len() > n_before
        });
        if is_later {
            stream.write_all(more.as_bytes()).unwrap();
        }
        std::thread::sleep(Duration::from_millis(700));
        let is_over = || {
            server.fake.held.lock().unwrap()[n_before]
                .events
                .is_closed()
        };
        assert!(!is_over(), "a client that waits is answered");
        drop(stream);
        until(
            &format!("the job was given up: {is_later}, {}", more.len()),
            is_over,
        );
    }
    // Requests that wait behind one another are answered.
    let last = get.replace("Host", "Connection: close\r\nHost");
    let all = String::from_utf8(server.raw((get.repeat(2) + &last).as_bytes())).unwrap();
    assert_eq!(all.matches("HTTP/1.1 200").count(), 3, "{all}");
}

#[test]
fn silence_is_broken_by_comments() {
    let server = start_with(Script::Slowly(" a", Duration::from_millis(400)), |config| {
        config.ping = Duration::from_millis(50);
    });
    let answer = server.post(CHAT, &chat(json!({})));
    let text = answer.text();
    assert!(
        text.matches("\n: ping\n\n").count() + usize::from(text.starts_with(": ping\n\n")) >= 3,
        "{text}"
    );
    assert_eq!(answer.events().len(), 3);
}

/// A client that goes frees its place, whether its answer is a stream or not, and whether it has begun or not.
#[test]
fn a_client_that_goes_ends_its_job() {
    let server = start(Script::Silence);
    for body in [
        chat(json!({})),
        chat(json!({"stream": false})),
        json!({"prompt": ["a", "b"]}),
    ] {
        let path = if body.get("prompt").is_some() {
            COMPLETIONS
        } else {
            CHAT
        };
        let n_before = server.fake.held.lock().unwrap().len();
        let text = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
            text.len()
        );
        let mut stream = server.connect();
        stream.write_all((head + &text).as_bytes()).unwrap();
        until("the job came", || {
            server.fake.held.lock().unwrap().len() > n_before
        });
        if body["stream"] == true {
            let mut bytes = [0; 16];
            stream.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes[..12], b"HTTP/1.1 200");
        }
        let is_over = || {
            server
                .fake
                .held
                .lock()
                .unwrap()
                .iter()
                .all(|job| job.events.is_closed())
        };
        assert!(!is_over());
        drop(stream);
        until("the job was given up", is_over);
    }
    until("it was logged", || {
        let lines = server.lines.lock().unwrap();
        lines
            .iter()
            .filter(|line| line.contains("client gone"))
            .count()
            == 3
    });
}
