//! Proxies and passwords: a proxy is used or the error, and what is secret in an address is never shown.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;

use crate::command::{stderr, stdout};
use crate::common::golden;
use crate::offline::nobody;
use crate::stand_in::{Fault, Hub};
use crate::world::{assert_refused, World, MODEL};

/// A proxy that speaks SOCKS5 and HTTP's CONNECT, whichever it is asked in.
struct Proxy {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl Proxy {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("is bound").port();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let count = count.clone();
                thread::spawn(move || serve(client, &count));
            }
        });
        Proxy { port, connections }
    }

    fn address(&self, scheme: &str) -> String {
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    fn take_connections(&self) -> usize {
        self.connections.swap(0, Ordering::SeqCst)
    }
}

/// `None` where somebody hangs up.
fn serve(mut client: TcpStream, count: &AtomicUsize) -> Option<()> {
    let mut read = |n: usize| {
        let mut bytes = vec![0; n];
        client.read_exact(&mut bytes).ok()?;
        Some(bytes)
    };
    let mut server;
    match read(1)?[0] {
        5 => {
            let n_methods = read(1)?[0];
            read(n_methods.into())?;
            client.write_all(&[5, 0]).ok()?;
            let mut read = |n: usize| {
                let mut bytes = vec![0; n];
                client.read_exact(&mut bytes).ok()?;
                Some(bytes)
            };
            let host = match read(4)?[3] {
                1 => {
                    let address = read(4)?;
                    address
                        .iter()
                        .map(u8::to_string)
                        .collect::<Vec<_>>()
                        .join(".")
                }
                _ => {
                    let n = read(1)?[0];
                    String::from_utf8(read(n.into())?).ok()?
                }
            };
            let port = read(2)?;
            let port = u16::from_be_bytes([port[0], port[1]]);
            server = TcpStream::connect((host, port)).ok()?;
            client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).ok()?;
        }
        4 => {
            let request = read(7)?;
            let port = u16::from_be_bytes([request[1], request[2]]);
            while read(1)?[0] != 0 {}
            server = TcpStream::connect(("127.0.0.1", port)).ok()?;
            client.write_all(&[0, 90, 0, 0, 0, 0, 0, 0]).ok()?;
        }
        first => {
            let mut request = vec![first];
            while !request.ends_with(b"\r\n\r\n") {
                request.extend(read(1)?);
            }
            let request = String::from_utf8(request).ok()?;
            let target = request.strip_prefix("CONNECT ")?.split(' ').next()?;
            server = TcpStream::connect(target).ok()?;
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
        }
    }
    count.fetch_add(1, Ordering::SeqCst);
    let (mut from_client, mut to_server) = (client.try_clone().ok()?, server.try_clone().ok()?);
    thread::spawn(move || std::io::copy(&mut from_client, &mut to_server));
    std::io::copy(&mut server, &mut client).ok()?;
    client.shutdown(std::net::Shutdown::Both).ok()
}

#[test]
fn a_proxy_is_used() {
    let proxy = Proxy::start();
    for (variable, scheme) in [
        ("ALL_PROXY", "socks5"),
        ("all_proxy", "socks5h"),
        ("http_proxy", "socks4"),
        ("HTTP_PROXY", "socks"),
        ("HTTP_PROXY", "http"),
        // Better than going around it.
        ("HTTPS_PROXY", "http"),
    ] {
        let (world, _) = World::with_model("odd-bin");
        let address = proxy.address(scheme);
        stdout(&world.run_with(&[(variable, &address)], &["pull", MODEL]));
        // The hub, and the storage that it leads to.
        assert!(proxy.take_connections() >= 2, "{variable} {scheme}");
        // Nobody else is asked directly where the environment says so.
        let other = World::with_model("odd-bin").0;
        let variables = [
            (variable, &*address),
            ("NO_PROXY", "localhost, 127.0.0.0/8"),
        ];
        stdout(&other.run_with(&variables, &["pull", MODEL]));
        assert_eq!(proxy.take_connections(), 0, "{variable} {scheme}");
    }
}

#[test]
fn nothing_goes_around_a_proxy() {
    let (world, _) = World::with_model("odd-bin");
    let gone = nobody().replace("http://", "");
    for (variable, value) in [
        ("ALL_PROXY", format!("socks5://{gone}")),
        ("all_proxy", format!("socks5h://u:s3cret@{gone}")),
        ("HTTP_PROXY", format!("socks4a://{gone}")),
        ("http_proxy", format!("http://u:s3cret@{gone}")),
        ("HTTPS_PROXY", gone.clone()),
        ("ALL_PROXY", format!("socks6://u:s3cret@{gone}")),
        ("ALL_PROXY", "http://u:s3cret@".to_owned()),
        ("ALL_PROXY", "u:s3cret@h:99999".to_owned()),
        ("ALL_PROXY", "s3cret s3cret".to_owned()),
    ] {
        let output = world.run_with(&[(variable, &value)], &["pull", MODEL]);
        assert_refused(&output, &[variable]);
        assert!(!stderr(&output).contains("s3cret"), "{}", stderr(&output));
        assert_eq!(world.hub.take_log().len(), 0, "{variable}={value}");
    }
    // An empty one is none.
    stdout(&world.run_with(&[("ALL_PROXY", "")], &["pull", MODEL]));
}

/// Whatever is done with a hub behind a password, and whatever goes wrong.
#[test]
fn passwords_and_tokens_are_never_shown() {
    let model = golden("odd-bin");
    let model = model.to_str().expect("UTF-8");
    for credentials in [
        "user:s3cret",
        "user:s3cret%40x",
        "user:s3/c@s3cret",
        "s3cret",
        ":s3cret",
    ] {
        let (world, _) = World::with_model("odd-bin");
        let behind = |hub: &Hub| hub.endpoint().replace("://", &format!("://{credentials}@"));
        let endpoint = behind(&world.hub);
        let gone = nobody().replace("://", &format!("://{credentials}@"));
        let out = world.home.path().join("out");
        let out = out.to_str().expect("UTF-8");
        let push = [
            "convert",
            "-m",
            model,
            "-o",
            out,
            "--force",
            "--push_to_hub",
            "--model_name",
            "me/new",
        ];
        let commands = [
            &["pull", MODEL, "--json"][..],
            &["info", "-v", "-m", MODEL],
            &["info", "--json", "-m", MODEL],
            &["pull", "RWKV/tyni"],
            &["pull", "RWKV/tiny@v9"],
            &["pull", "no/where"],
            &push,
        ];
        let is_first = credentials == "user:s3cret";
        let tokens = ["", "wrong", "writer", "s3cret"];
        let run = |endpoint: &str, token: &str, args: &[&str]| {
            let variables = [("HF_ENDPOINT", endpoint), ("HF_TOKEN", token)];
            let output = world.run_with(&variables, args);
            let said =
                String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            let is_shown = said.contains("s3c") || said.contains("s3/c");
            assert!(!is_shown, "{endpoint} {token} {args:?}: {said}");
        };
        for token in &tokens[..if is_first { 4 } else { 1 }] {
            commands.iter().for_each(|args| run(&endpoint, token, args));
        }
        let no_scheme = endpoint.replace("http://", "");
        for endpoint in [gone, no_scheme, format!("{endpoint}/?token=s3cret")] {
            run(&endpoint, "", &["pull", "RWKV/other"]);
            run(&endpoint, "", &push);
        }
        // The hub itself gets them, and its storage does not.
        let (world, _) = World::with_model("odd-bin");
        stdout(&world.run_with(&[("HF_ENDPOINT", &behind(&world.hub))], &["pull", MODEL]));
        for request in world.hub.take_log() {
            let header = request.headers.get("authorization");
            let has_it = header.is_some_and(|header| header.starts_with("Basic "));
            assert_eq!(has_it, !request.to_storage, "{}", request.path);
        }
    }
}

/// A server may say back what it was sent.
#[test]
fn what_a_server_repeats_is_not_shown() {
    let repeated =
        "authorization: Bearer hf_s3cret-token; Basic dXNlcjpzM2NyZXQ=; user:s3cret at s3cret";
    for method in ["GET", "HEAD"] {
        let (world, _) = World::with_model("small-safetensors");
        let headers = vec![("X-Error-Message", repeated.to_owned())];
        world.hub.fail(method, "/", 99, Fault::Status(403, headers));
        let endpoint = world.hub.endpoint().replace("://", "://user:s3cret@");
        for (token, args) in [
            ("hf_s3cret-token", &["pull", MODEL][..]),
            ("", &["pull", "--json", MODEL]),
            ("hf_s3cret-token", &["info", "-v", "-m", MODEL]),
        ] {
            let variables = [("HF_ENDPOINT", &*endpoint), ("HF_TOKEN", token)];
            let output = world.run_with(&variables, args);
            let said = stderr(&output);
            assert!(said.contains("authorization: Bearer "), "{said}");
            assert!(said.contains("; *** at ***"), "{said}");
            assert!(
                !said.contains("s3cret") && !said.contains("dXNlcjp"),
                "{said}"
            );
        }
    }
}

#[test]
fn gated_and_broken_answers_show_no_secrets() {
    let (world, _) = World::with_model("small-safetensors");
    let endpoint = world.hub.endpoint().replace("://", "://user:s3cret@");
    world.hub.make_gated(MODEL);
    let output = world.run_with(&[("HF_ENDPOINT", &endpoint)], &["pull", MODEL]);
    assert_refused(
        &output,
        &["gated", "accept its conditions on http://127.0.0.1"],
    );
    assert!(!stderr(&output).contains("s3cret"), "{}", stderr(&output));
    // The storage's address is signed.
    let (world, _) = World::with_model("small-safetensors");
    world
        .hub
        .fail("GET", "/objects/", 9, Fault::Status(403, vec![]));
    let output = world.run(&["pull", MODEL]);
    assert_refused(&output, &["403", "/objects/"]);
    assert!(
        !stderr(&output).contains("signature=secret"),
        "{}",
        stderr(&output)
    );
}
