//! Limits of owners, the end of the server, and what is logged and counted.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use rwkv_edge_serve::http::LogFormat;
use rwkv_edge_serve::Ending;
use serde_json::{json, Value};

use crate::support::{start, start_with, until, Answer, Running, Script};

const PATH: &str = "/v1/completions";

fn send(server: &Running, body: &Value) -> TcpStream {
    let text = body.to_string();
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        text.len()
    );
    let mut stream = server.connect();
    stream.write_all((head + &text).as_bytes()).unwrap();
    stream
}

#[test]
fn who_asks_too_much_is_told_when_to_ask_again() {
    let server = start_with(Script::Silence, |config| {
        config.running_max = 2;
        config.waiting_max = 1;
    });
    let body = json!({"prompt": "x"});
    let n_held = || server.fake.held.lock().unwrap().len();
    let running: Vec<TcpStream> = (0..2).map(|_| send(&server, &body)).collect();
    until("two are worked on", || n_held() == 2);
    // One of the next waits, and the one behind it is refused.
    let mut waiting = Vec::new();
    let answer = loop {
        assert!(waiting.len() < 5, "nobody is refused");
        let mut stream = send(&server, &body);
        stream
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        let mut bytes = [0; 2000];
        match stream.read(&mut bytes) {
            Ok(n) => break Answer::of(&bytes[..n]),
            Err(_) => waiting.push(stream),
        }
    };
    assert_eq!(answer.header("retry-after"), Some("2"));
    let (status, _, _, code) = answer.refusal();
    assert_eq!((status, code), (429, json!("rate_limit_exceeded")));
    assert_eq!(n_held(), 2);
    // Other paths are free.
    assert_eq!(server.get("/v1/models").status, 200);
    // The place of one that goes is that of the one that waits.
    drop(running);
    until("the third is worked on", || n_held() == 3);
    drop(waiting);
}

#[test]
fn answers_that_have_begun_may_end() {
    let mut server = start(Script::Slowly(
        " a b c d e f g h",
        Duration::from_millis(60),
    ));
    let mut stream = send(&server, &json!({"prompt": "x", "stream": true}));
    let mut idle = server.connect();
    idle.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut begin = [0; 200];
    stream.read_exact(&mut begin).unwrap();
    server.stopper.stop();
    let address = server.address;
    until("no connection is taken", || {
        TcpStream::connect(address).is_err()
    });
    let mut all = begin.to_vec();
    stream.read_to_end(&mut all).unwrap();
    let text: String = Answer::of(&all)
        .events()
        .iter()
        .map(|one| one["choices"][0]["text"].as_str().unwrap())
        .collect();
    assert_eq!(text, " a b c d e f g h");
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).unwrap();
    assert!(rest.starts_with(b"HTTP/1.1 200"));
    server.wait();
}

#[test]
fn what_does_not_end_in_time_is_cut_off() {
    let mut server = start_with(Script::Silence, |config| {
        config.drain = Duration::from_millis(300)
    });
    let mut stream = send(&server, &json!({"prompt": "x", "stream": true}));
    until("it began", || server.fake.held.lock().unwrap().len() == 1);
    let begin = Instant::now();
    server.stopper.stop();
    server.wait();
    assert!((300..5000).contains(&begin.elapsed().as_millis()));
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    // The last event says so, as errors do, and the body ends as bodies do.
    assert!(all.ends_with(b"0\r\n\r\n"));
    let text = Answer::of(&all).text();
    let last = text.trim_end().rsplit("data: ").next().unwrap();
    let error: Value = serde_json::from_str(last).unwrap();
    assert_eq!(error["error"]["code"], "server_ending");
    assert_eq!(error["error"]["type"], "server_error");
    assert!(!text.contains("[DONE]"));
    assert!(server.fake.held.lock().unwrap()[0].events.is_closed());
    let lines = server.lines.lock().unwrap().join("\n");
    assert!(
        lines.contains("1 connections did not end in time"),
        "{lines}"
    );
}

#[test]
fn whoever_ends_it_twice_does_not_want_to_wait() {
    let mut server = start_with(Script::Silence, |config| {
        config.drain = Duration::from_secs(60)
    });
    let mut whole = send(&server, &json!({"prompt": "x"}));
    let mut stream = send(&server, &json!({"prompt": "x", "stream": true}));
    until("both began", || server.fake.held.lock().unwrap().len() == 2);
    let begin = Instant::now();
    server.stopper.stop();
    thread::sleep(Duration::from_millis(100));
    server.stopper.stop();
    server.wait();
    assert!(begin.elapsed() < Duration::from_secs(10));
    let mut all = Vec::new();
    whole.read_to_end(&mut all).unwrap();
    let (status, message, _, code) = Answer::of(&all).refusal();
    assert_eq!((status, code), (503, json!("server_ending")), "{message}");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let text = Answer::of(&all).text();
    assert!(text.contains("\"server_ending\"") && !text.contains("[DONE]"));
    until("both are logged", || {
        let lines = server.lines.lock().unwrap().join("\n");
        lines.contains("/v1/completions 503 ") && lines.contains("/v1/completions 200 ")
    });
}

#[test]
fn a_line_is_logged_for_each_request() {
    let server = start(Script::Say(" my secret answer", Ending::Length));
    server.post(PATH, &json!({"prompt": "my secret question"}));
    server.get("/nowhere?key=secret");
    until("both are logged", || {
        server.lines.lock().unwrap().len() == 2
    });
    let lines = server.lines.lock().unwrap().clone();
    assert!(
        lines[0].contains("Z - POST /v1/completions 200 demo tokens "),
        "{lines:?}"
    );
    assert!(
        lines[0].contains(" first ") && lines[0].contains(" total "),
        "{lines:?}"
    );
    assert!(lines[1].contains("GET /nowhere 404 total"), "{lines:?}");
    assert!(!lines.join("").contains("secret"), "{lines:?}");
}

#[test]
fn lines_may_be_json_with_prompts() {
    let server = start_with(Script::Say(" b", Ending::Length), |config| {
        config.log_format = LogFormat::Json;
        config.log_prompts = true;
    });
    server.post(PATH, &json!({"prompt": "a\nb", "model": "demo"}));
    until("it is logged", || server.lines.lock().unwrap().len() == 1);
    let line = server.lines.lock().unwrap()[0].clone();
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&line["path"], &line["method"]),
        (&json!(PATH), &json!("POST"))
    );
    assert_eq!(
        (&line["status"], &line["model"]),
        (&json!(200), &json!("demo"))
    );
    assert_eq!(
        (&line["prompt"], &line["client_gone"]),
        (&json!("a\nb"), &json!(false))
    );
    assert!(
        line["prompt_tokens"].as_u64().unwrap() > 0
            && line["completion_tokens"].as_u64().unwrap() > 0
    );
    assert!(line["first_token_ms"].is_number() && line["total_ms"].is_number());
}

#[test]
fn requests_are_counted() {
    let server = start(Script::Say(" b c", Ending::Length));
    server.post(PATH, &json!({"prompt": "a"}));
    server.get("/v1/models/nothing/of/the/kind");
    server.get("/wp-login.php");
    let counted = || server.get("/metrics").text();
    until("all are counted", || {
        counted().contains("requests_total{path=\"other\",status=\"404\"} 1")
    });
    // Those before may still be closing.
    until("one connection is open", || {
        counted().contains("rwkv_edge_connections 1\n")
    });
    let text = counted();
    for line in [
        "rwkv_edge_requests_total{path=\"/v1/completions\",status=\"200\"} 1",
        "rwkv_edge_requests_total{path=\"/v1/models/{*id}\",status=\"404\"} 1",
        "rwkv_edge_first_token_seconds_count{model=\"demo\"} 1",
        "rwkv_edge_between_tokens_seconds_count{model=\"demo\"} 1",
        "rwkv_edge_sequences_running{model=\"demo\"} 0",
    ] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }
}
