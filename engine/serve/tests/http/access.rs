//! Who may ask: hosts, origins and keys.

use std::fs;
use std::io::{Read, Write};

use rwkv_edge::ErrorKind;
use rwkv_edge_serve::http::{Config, Server};
use rwkv_edge_serve::Ending;
use serde_json::json;
use tempfile::NamedTempFile;

use crate::support::{served, start, start_with, Answer, Fake, Script};

fn script() -> Script {
    Script::Say(" Hi.", Ending::Stop)
}

#[test]
fn hosts_must_be_this_machine_or_named() {
    let server = start_with(script(), |config| {
        config.allow_hosts = vec!["models.example.org".into(), "other.example.org:81".into()];
    });
    let port = server.address.port();
    let status = |host: &str| server.ask("GET", "/health", &[("Host", host)], b"").status;
    for host in [
        "localhost",
        "LOCALHOST:1",
        "127.0.0.1",
        "[::1]",
        "[::1]:8080",
        "models.example.org",
        "models.example.org:9",
        "Other.example.org:81",
    ] {
        assert_eq!(status(host), 200, "{host}");
    }
    assert_eq!(status(&format!("127.0.0.1:{port}")), 200);
    for host in [
        "evil.example.org",
        "127.0.0.1.example.org",
        "localhost.evil.org",
        "192.168.0.1",
        "other.example.org",
        "127.0.0.2",
    ] {
        let answer = server.ask("GET", "/health", &[("Host", host)], b"");
        let (status, text, _, code) = answer.refusal();
        assert_eq!((status, code), (403, json!("host_not_allowed")), "{text}");
    }
    for host in ["", "a b", "user@localhost", "localhost\", Host: x"] {
        assert_eq!(status(host), 400, "{host:?}");
    }
    // Probes of HTTP/1.0 name none; they may ask for this one path.
    for (path, status) in [
        ("/health", 200),
        ("http://localhost/health", 400),
        ("/v1/models", 400),
    ] {
        let bare = server.raw(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes());
        assert_eq!(Answer::of(&bare).status, status, "{path}");
    }
    let two = server
        .raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\nConnection: close\r\n\r\n");
    assert!(two.starts_with(b"HTTP/1.1 400"));
    let whole = server
        .raw(b"GET http://evil/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert!(whole.starts_with(b"HTTP/1.1 403"));
}

/// Who listens to all addresses is asked by the one that a client connected to.
#[test]
#[cfg(target_os = "linux")]
fn the_address_that_was_asked_is_this_machine() {
    let server = start_with(script(), |config| {
        config.listen = "0.0.0.0:0".parse().unwrap();
        config.no_key = true;
    });
    let port = server.address.port();
    let mut stream = std::net::TcpStream::connect(("127.0.0.2", port)).unwrap();
    let mut ask = |host: &str| {
        let head = format!("GET /health HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut bytes = [0; 1000];
        let n = stream.read(&mut bytes).unwrap();
        Answer::of(&bytes[..n]).status
    };
    assert_eq!((ask("127.0.0.2"), ask("127.0.0.3")), (200, 403));
}

#[test]
fn pages_must_be_our_own_or_named() {
    let server = start_with(script(), |config| {
        config.allow_origins = vec!["https://chat.example.org".into()]
    });
    let own = format!("127.0.0.1:{}", server.address.port());
    let ask = |method: &str, origin: &str, more: &[(&str, &str)]| {
        let headers = [&[("Origin", origin)], more].concat();
        server.ask(method, "/v1/models", &headers, b"")
    };
    let same = ask("GET", &format!("http://{own}"), &[]);
    assert_eq!(
        (same.status, same.header("access-control-allow-origin")),
        (200, None)
    );
    let named = ask("GET", "https://chat.example.org", &[]);
    assert_eq!(named.status, 200);
    assert_eq!(
        named.header("access-control-allow-origin"),
        Some("https://chat.example.org")
    );
    for origin in [
        "https://evil.example.org",
        "http://chat.example.org",
        "null",
        "https://chat.example.org.evil.org",
        "http://localhost",
    ] {
        let (status, text, _, code) = ask("GET", origin, &[]).refusal();
        assert_eq!((status, code), (403, json!("origin_not_allowed")), "{text}");
    }
    // What browsers ask first, without a key.
    let first = ask(
        "OPTIONS",
        "https://chat.example.org",
        &[
            ("Access-Control-Request-Method", "POST"),
            (
                "Access-Control-Request-Headers",
                "authorization,content-type,x-stainless-lang",
            ),
        ],
    );
    assert_eq!(first.status, 200);
    assert_eq!(
        first.header("access-control-allow-headers"),
        Some("authorization,content-type,x-stainless-lang")
    );
    assert!(first
        .header("access-control-allow-methods")
        .unwrap()
        .contains("post"));
    let any = start_with(script(), |config| config.allow_origins = vec!["*".into()]);
    assert_eq!(
        any.ask("GET", "/v1/models", &[("Origin", "https://x.org")], b"")
            .status,
        200
    );
}

#[test]
fn keys_open_everything_but_health_and_the_page() {
    let file = NamedTempFile::new().unwrap();
    fs::write(
        file.path(),
        "# ours\nann ann-has-this-key\nbob bob-has-this-key\n",
    )
    .unwrap();
    let server = start_with(script(), |config| {
        config.api_key_file = Some(file.path().to_owned())
    });
    assert_eq!(server.get("/health").status, 200);
    // Which asks for the key itself.
    assert_eq!(server.get("/").status, 200);
    let paths = [
        "/metrics",
        "/v1/models",
        "/v1/sessions",
        "/nowhere",
        "/v1/chat/completions",
    ];
    for path in paths {
        let answer = server.get(path);
        assert_eq!(answer.header("www-authenticate"), Some("bearer"));
        let (status, text, _, code) = answer.refusal();
        assert_eq!(
            (status, code),
            (401, json!("invalid_api_key")),
            "{path}: {text}"
        );
    }
    let ask = |header: &str| {
        let body = json!({"prompt": "x"}).to_string();
        server.ask(
            "POST",
            "/v1/completions",
            &[("Authorization", header)],
            body.as_bytes(),
        )
    };
    for (header, owner) in [
        ("Bearer ann-has-this-key", "ann"),
        ("bearer bob-has-this-key", "bob"),
    ] {
        assert_eq!(ask(header).status, 200);
        assert_eq!(server.fake.last().owner, owner);
    }
    for header in [
        "Bearer ann-has-this-keY",
        "Bearer ",
        "Bearer",
        "Basic ann-has-this-key",
        "ann-has-this-key",
        "Bearer ann-has-this-key x",
    ] {
        let (status, text, ..) = ask(header).refusal();
        assert_eq!(status, 401, "{header}");
        assert!(!text.contains("has-this"), "{text}");
    }
    let lines = server.lines.lock().unwrap().join("\n");
    assert!(
        lines.contains(" ann POST /v1/completions 200") && !lines.contains("has-this"),
        "{lines}"
    );
}

#[test]
fn nobody_else_is_let_in_by_accident() {
    let fake = Fake::new(script());
    let config = |listen: &str| {
        let mut config = Config::new(vec![served(&fake, "demo", "world")]);
        config.listen = listen.parse().unwrap();
        config
    };
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let Err(error) = Server::bind(config(listen)) else {
            panic!("{listen} was open");
        };
        assert_eq!(error.kind(), ErrorKind::Argument);
    }
    let mut open = config("0.0.0.0:0");
    open.no_key = true;
    assert!(Server::bind(open).is_ok());
    let mut keyed = config("127.0.0.1:0");
    let empty = NamedTempFile::new().unwrap();
    keyed.api_key_file = Some(empty.path().to_owned());
    assert!(Server::bind(keyed).is_err());
    let server = start(script());
    let Err(error) = Server::bind(config(&server.address.to_string())) else {
        panic!("one address for two servers");
    };
    assert_eq!(error.kind(), ErrorKind::Io);
    let mut twice = config("127.0.0.1:0");
    twice.models.push(served(&fake, "demo", "world"));
    assert!(Server::bind(twice).is_err());
    assert!(Server::bind(Config::new(Vec::new())).is_err());
    for (origin, host) in [
        ("chat.example.org", "a"),
        ("https://", "a"),
        ("https://x.org/", "a"),
        ("https://a@b", "a"),
        ("*", "http://a"),
        ("*", ""),
        ("*", "a/b"),
        ("*", "a b"),
    ] {
        let mut config = config("127.0.0.1:0");
        config.allow_origins.push(origin.into());
        assert!(config.check().is_ok() == (origin == "*"), "{origin}");
        config.allow_hosts.push(host.into());
        assert!(config.check().is_err(), "{origin} {host}");
    }
}

/// Browsers ask without a key whether they may, and their pages are to be shown why a key is refused.
#[test]
fn named_pages_may_ask_before_they_have_a_key() {
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), "ann ann-has-this-key\n").unwrap();
    let server = start_with(script(), |config| {
        config.api_key_file = Some(file.path().to_owned());
        config.allow_origins = vec!["https://x.org".into()];
    });
    let origin = ("Origin", "https://x.org");
    let first = [origin, ("Access-Control-Request-Method", "POST")];
    assert_eq!(server.ask("OPTIONS", "/v1/models", &first, b"").status, 200);
    let refused = server.ask("GET", "/v1/models", &[origin], b"");
    assert_eq!(
        (
            refused.status,
            refused.header("access-control-allow-origin")
        ),
        (401, Some("https://x.org"))
    );
}

/// Sessions of one owner are nobody else's.
#[test]
fn owners_do_not_see_each_other() {
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), "ann ann-has-this-key\nbob bob-has-this-key\n").unwrap();
    let server = start_with(script(), |config| {
        config.api_key_file = Some(file.path().to_owned())
    });
    let (ann, bob) = (
        ("Authorization", "Bearer ann-has-this-key"),
        ("Authorization", "Bearer bob-has-this-key"),
    );
    assert_eq!(
        server
            .ask("PUT", "/v1/sessions/a/state", &[ann], b"state")
            .status,
        200
    );
    let n = |who| {
        server.ask("GET", "/v1/sessions", &[who], b"").json()["data"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!((n(ann), n(bob)), (1, 0));
    assert_eq!(
        server
            .ask("GET", "/v1/sessions/a/state", &[bob], b"")
            .status,
        404
    );
    assert_eq!(
        server.ask("DELETE", "/v1/sessions/a", &[bob], b"").status,
        404
    );
    assert_eq!(
        server.ask("GET", "/v1/sessions/a/state", &[ann], b"").body,
        b"state"
    );
}
