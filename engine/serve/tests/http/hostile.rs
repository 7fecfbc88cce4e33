//! Clients that are slow, broken, or mean harm.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use rwkv_edge_serve::{Ending, Event};
use serde_json::json;

use crate::support::{start, start_with, until, Answer, Running, Script};

fn script() -> Script {
    Script::Say(" Hi.", Ending::Stop)
}

fn post(server: &Running, body: &[u8]) -> (u16, String) {
    let answer = server.ask(
        "POST",
        "/v1/completions",
        &[("Content-Type", "application/json")],
        body,
    );
    let (status, text, ..) = answer.refusal();
    (status, text)
}

#[test]
fn bad_json_is_named() {
    let server = start(script());
    for (body, expected) in [
        (&b""[..], "EOF"),
        (b"{", "EOF"),
        (b"[]", "expected an object"),
        (b"\"x\"", "expected an object"),
        (b"{\"prompt\": \"a\"} x", "trailing"),
        (
            b"{\"prompt\": \"a\", \"prompt\": \"b\"}",
            "key \"prompt\" stands twice",
        ),
        (
            b"{\"prompt\": \"a\", \"metadata\": {\"k\": 1, \"k\": 2}}",
            "key \"k\" stands twice",
        ),
        (b"{\"prompt\": \"\xff\"}", "not UTF-8: byte 12"),
        (b"{\"prompt\": \"\\ud800\"}", "not JSON"),
        (b"{\"prompt\": 1e999}", "out of range"),
        (b"{\"prompt\": NaN}", "not JSON"),
    ] {
        let (status, text) = post(&server, body);
        assert_eq!(status, 400);
        assert!(text.contains(expected), "{text}: no {expected}");
    }
    for deep in ["[".repeat(100_000), "{\"a\":".repeat(100_000)] {
        let (status, text) = post(&server, format!("{{\"prompt\": {deep}").as_bytes());
        assert_eq!(status, 400);
        assert!(text.contains("recursion limit"), "{text}");
    }
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn what_is_quoted_is_short_and_harmless() {
    let server = start(script());
    let long = "x".repeat(100_000);
    let (status, text) = post(
        &server,
        json!({"prompt": "a", "temperature": long})
            .to_string()
            .as_bytes(),
    );
    assert_eq!(status, 400);
    assert!(text.len() < 300, "{}", text.len());
    let name = "\u{1b}[2J".repeat(3000);
    let (status, text) = post(
        &server,
        json!({"prompt": "a", name: 1}).to_string().as_bytes(),
    );
    assert_eq!(status, 400);
    assert!(
        text.len() < 3000 && !text.contains('\u{1b}'),
        "{}",
        text.len()
    );
}

#[test]
fn large_bodies_are_refused() {
    let server = start_with(script(), |config| {
        config.body_bytes_max = 1000;
        config.state_bytes_max = 5000;
    });
    // Its length alone is enough.
    let said = server.raw(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n",
    );
    assert_eq!(Answer::of(&said).refusal().0, 413);
    // And without one, what comes.
    let mut chunked =
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            .to_vec();
    for _ in 0..30 {
        chunked.extend(b"64\r\n");
        chunked.extend([b' '; 100]);
        chunked.extend(b"\r\n");
    }
    chunked.extend(b"0\r\n\r\n");
    assert_eq!(Answer::of(&server.raw(&chunked)).refusal().0, 413);
    let fits = json!({"prompt": "a".repeat(900)}).to_string();
    assert_eq!(
        server
            .ask("POST", "/v1/completions", &[], fits.as_bytes())
            .status,
        200
    );
    assert_eq!(
        server
            .ask("PUT", "/v1/sessions/s/state", &[], &[1; 5000])
            .status,
        200
    );
    assert_eq!(
        server
            .ask("PUT", "/v1/sessions/s/state", &[], &[1; 5001])
            .status,
        413
    );
}

#[test]
fn heads_are_bounded_in_size_and_time() {
    let server = start_with(script(), |config| {
        config.head_timeout = Duration::from_millis(300);
        config.body_timeout = Duration::from_millis(300);
    });
    let long = format!(
        "GET /health HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
        "y".repeat(1 << 20)
    );
    let answer = server.raw(long.as_bytes());
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"),
        "{:?}",
        answer.get(..20)
    );
    let many = format!(
        "GET /health HTTP/1.1\r\nHost: localhost\r\n{}\r\n",
        "X: y\r\n".repeat(2000)
    );
    let answer = server.raw(many.as_bytes());
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"),
        "{:?}",
        answer.get(..20)
    );
    assert!(!server
        .raw(b"\x16\x03\x01 no HTTP at all\r\n\r\n")
        .starts_with(b"HTTP/1.1 200"));
    // Half a head, an idle connection, one that has been answered, and half a body.
    let begin = Instant::now();
    for bytes in [
        &b"GET /health HTTP/1.1\r\nHost: loc"[..],
        b"",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ] {
        let _ = server.raw(bytes);
    }
    let half = server
        .raw(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{");
    assert_eq!(Answer::of(&half).refusal().0, 408);
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn bodies_that_are_read_at_once_are_bounded() {
    let server = start_with(script(), |config| config.bodies_bytes_max = 1000);
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n";
    let mut slow = server.connect();
    slow.write_all((head.to_owned() + &" ".repeat(600)).as_bytes())
        .unwrap();
    let body = json!({"prompt": "a".repeat(600)}).to_string();
    let ask = || server.ask("POST", "/v1/completions", &[], body.as_bytes());
    until("no more is read", || ask().status == 503);
    assert_eq!(ask().header("retry-after"), Some("2"));
    drop(slow);
    until("there is room again", || ask().status == 200);
}

/// What was read of a body is there until its prompt is the model's.
#[test]
fn bodies_that_wait_for_the_model_are_bounded() {
    let server = start_with(Script::Wait, |config| config.bodies_bytes_max = 1000);
    let body = json!({"prompt": "a".repeat(600)}).to_string();
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut waiting = server.connect();
    waiting.write_all(request.as_bytes()).unwrap();
    until("it waits", || server.fake.held.lock().unwrap().len() == 1);
    server.fake.set(script());
    let ask = || {
        let answer = server.ask("POST", "/v1/completions", &[], body.as_bytes());
        answer.status
    };
    assert_eq!(ask(), 503);
    let began = Event::Began {
        n_prompt: 1,
        n_cached: 0,
    };
    let events = server.fake.held.lock().unwrap()[0].events.clone();
    events.send(began).unwrap();
    until("there is room again", || ask() == 200);
}

#[test]
fn a_cut_body_is_no_request() {
    let server = start(script());
    let mut stream = server.connect();
    stream.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{\"prompt\"").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    assert!(!all.starts_with(b"HTTP/1.1 200"));
    assert!(server.fake.seen.lock().unwrap().is_empty());
}

#[test]
fn so_many_connections_at_once() {
    let server = start_with(script(), |config| {
        config.connections_max = 3;
        config.head_timeout = Duration::from_millis(700);
    });
    let idle: Vec<_> = (0..3).map(|_| server.connect()).collect();
    until("they are open", || {
        server.connect();
        true
    });
    // One more is answered once another has gone.
    let begin = Instant::now();
    assert_eq!(server.get("/health").status, 200);
    assert!(
        begin.elapsed() > Duration::from_millis(200),
        "{:?}",
        begin.elapsed()
    );
    drop(idle);
}

/// A client that takes nothing of its answer is not waited for without end.
#[test]
fn a_client_that_does_not_read_is_given_up() {
    let server = start_with(script(), |config| {
        config.write_timeout = Duration::from_millis(300)
    });
    let state = vec![7; 64 << 20];
    assert_eq!(
        server
            .ask("PUT", "/v1/sessions/s/state", &[], &state)
            .status,
        200
    );
    let mut stream = server.connect();
    stream
        .write_all(b"GET /v1/sessions/s/state HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let is_open = |n: usize| {
        let line = format!("rwkv_edge_connections {n}\n");
        server.get("/metrics").text().contains(&line)
    };
    until("it is open beside the one that asks", || is_open(2));
    until("it was given up", || is_open(1));
}

#[test]
fn names_are_no_paths() {
    let server = start(script());
    for path in [
        "/v1/sessions/..%2F..%2Fetc%2Fpasswd/state",
        "/v1/sessions/%00/state",
        "/v1/models/../../etc",
    ] {
        let status = server.get(path).refusal().0;
        assert!(status == 404 || status == 400, "{path}: {status}");
    }
    assert_eq!(server.get("/v1/sessions/%ff/state").refusal().0, 400);
    let name = "..%2F%2e%2e";
    assert_eq!(
        server
            .ask("PUT", &format!("/v1/sessions/{name}/state"), &[], b"x")
            .json()["name"],
        "../.."
    );
}
