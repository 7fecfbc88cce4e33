//! Connections that break and answers that lie: what is wrong never becomes a model.

use std::fs;

use crate::command::{stderr, stdout};
use crate::common::golden;
use crate::stand_in::{sha256, Fault};
use crate::world::{assert_refused, files_of, names, World, MODEL};

const WEIGHTS: &str = "/objects/";

fn weights() -> Vec<u8> {
    files_of(&golden("small-safetensors"))["model.safetensors"].clone()
}

/// Where the weights are until they are complete.
fn incomplete(world: &World) -> std::path::PathBuf {
    let name = format!("{}.incomplete", sha256(&weights()));
    world.cache().join("blobs").join(name)
}

/// No weights under a name that a model is opened by, and no commit to use without a network.
fn assert_no_model(world: &World) {
    assert!(
        !world.blobs().contains(&sha256(&weights())),
        "{:?}",
        world.blobs()
    );
    for snapshot in names(&world.cache().join("snapshots")) {
        let found = names(&world.cache().join("snapshots").join(snapshot));
        assert!(
            !found.iter().any(|name| name.contains("model.safetensors")),
            "{found:?}"
        );
    }
    assert!(!world.cache().join("refs/main").exists());
    let offline = world.run_with(&[("HF_HUB_OFFLINE", "1")], &["info", "-m", MODEL]);
    assert_refused(&offline, &["HF_HUB_OFFLINE"]);
}

fn assert_model(world: &World) {
    let path = world.cache().join("blobs").join(sha256(&weights()));
    assert!(fs::read(path).expect("complete") == weights());
    assert!(!world.blobs().iter().any(|name| name.contains("incomplete")));
    stdout(&world.run_with(&[("HF_HUB_OFFLINE", "1")], &["info", "-m", MODEL]));
}

#[test]
fn an_interrupted_download_goes_on_in_the_same_run() {
    let (world, _) = World::with_model("small-safetensors");
    world.hub.fail("GET", WEIGHTS, 1, Fault::Windows(100_000));
    world.hub.fail("GET", WEIGHTS, 1, Fault::Drop);
    world.hub.fail("GET", WEIGHTS, 1, Fault::Windows(50_000));
    let output = world.run(&["pull", MODEL]);
    stdout(&output);
    assert!(stderr(&output).contains("going on"), "{}", stderr(&output));
    let log = world.transfers();
    let ranges: Vec<_> = log
        .iter()
        .filter(|request| request.to_storage)
        .map(|request| request.headers.get("range").map_or("", String::as_str))
        .collect();
    let (first, second) = ("bytes=100000-", "bytes=150000-");
    assert_eq!(ranges, ["", first, first, second]);
    assert_model(&world);
}

#[test]
fn a_server_that_falls_silent_is_given_up_and_asked_again() {
    let (world, _) = World::with_model("small-safetensors");
    world.hub.fail("GET", WEIGHTS, 1, Fault::Stall(100_000));
    let output = world.run_with(&[("HF_HUB_DOWNLOAD_TIMEOUT", "1")], &["pull", MODEL]);
    stdout(&output);
    let log = world.transfers();
    let last = log.last().expect("there were some");
    assert_eq!(last.headers["range"], "bytes=100000-");
    assert_model(&world);
}

#[test]
fn a_killed_download_goes_on_where_it_was() {
    let (world, _) = World::with_model("small-safetensors");
    world.hub.fail("GET", WEIGHTS, 1, Fault::Stall(150_000));
    let mut child = world
        .command()
        .args(["pull", MODEL])
        .spawn()
        .expect("starts");
    let size = || fs::metadata(incomplete(&world)).map_or(0, |partial| partial.len());
    while size() < 150_000 {
        assert!(
            child.try_wait().expect("a child").is_none(),
            "it must wait for more"
        );
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().expect("can be killed");
    child.wait().expect("ends");
    assert_no_model(&world);
    world.hub.take_log();
    stdout(&world.run(&["pull", MODEL]));
    assert_eq!(world.transfers()[0].headers["range"], "bytes=150000-");
    assert_model(&world);
}

#[test]
fn an_interrupted_download_goes_on_in_another_run() {
    let (world, _) = World::with_model("small-safetensors");
    world.hub.fail("GET", WEIGHTS, 1, Fault::Windows(200_000));
    world
        .hub
        .fail("GET", WEIGHTS, 1, Fault::Status(404, vec![]));
    assert_refused(&world.run(&["pull", MODEL]), &["404"]);
    assert_eq!(
        fs::metadata(incomplete(&world)).expect("kept").len(),
        200_000
    );
    assert_no_model(&world);
    world.hub.take_log();
    stdout(&world.run(&["pull", MODEL]));
    let log = world.transfers();
    assert_eq!(log.len(), 1, "small files are there");
    assert_eq!(log[0].headers["range"], "bytes=200000-");
    assert_model(&world);
}

#[test]
fn a_partial_file_of_another_program_is_gone_on_with_if_it_is_right() {
    let right = weights();
    let damaged: Vec<u8> = right[..1000].iter().map(|byte| byte ^ 1).collect();
    let too_long = [&right[..], b"x"].concat();
    let whole_but_damaged = vec![0; right.len()];
    for (partial, n_transfers) in [
        (&right[..1000], 1),
        (&damaged, 2),
        (&too_long, 1),
        (&right, 0),
        (&whole_but_damaged, 1),
        (&[], 1),
    ] {
        let (world, _) = World::with_model("small-safetensors");
        fs::create_dir_all(world.cache().join("blobs")).expect("can be made");
        fs::write(incomplete(&world), partial).expect("can be written");
        stdout(&world.run(&["pull", MODEL]));
        let log = world.transfers();
        let found = log.iter().filter(|request| request.to_storage).count();
        assert_eq!(found, n_transfers, "{} bytes were there", partial.len());
        assert_model(&world);
    }
}

#[test]
fn a_server_without_ranges_starts_over() {
    let (world, _) = World::with_model("small-safetensors");
    world.hub.fail("GET", WEIGHTS, 1, Fault::Windows(100_000));
    world.hub.fail("GET", WEIGHTS, 9, Fault::IgnoreRange);
    stdout(&world.run(&["pull", MODEL]));
    assert_model(&world);
}

#[test]
fn wrong_sizes_are_refused() {
    for (method, path, fault, words) in [
        (
            "HEAD",
            "model.safetensors",
            Fault::SizeOff(1),
            &["expected"][..],
        ),
        (
            "HEAD",
            "model.safetensors",
            Fault::SizeOff(-1),
            &["expected"],
        ),
        (
            "GET",
            WEIGHTS,
            Fault::Shorter(3),
            &["the hub sends", "bytes, expected"],
        ),
        ("GET", WEIGHTS, Fault::ShorterUnannounced(3), &["416"]),
        (
            "GET",
            "resolve-cache",
            Fault::Shorter(1),
            &["config.json", "bytes, expected"],
        ),
    ] {
        let (world, _) = World::with_model("small-safetensors");
        world.hub.fail(method, path, 99, fault.clone());
        let output = world.run(&["pull", MODEL]);
        assert_refused(&output, words);
        assert_no_model(&world);
        // The hub is itself again.
        let fresh = World::with_model("small-safetensors").0;
        let endpoint = fresh.hub.endpoint();
        stdout(&world.run_with(&[("HF_ENDPOINT", &endpoint)], &["pull", MODEL]));
        assert_model(&world);
    }
}

#[test]
fn wrong_checksums_are_refused() {
    for (path, words) in [
        (WEIGHTS, ["model.safetensors: SHA-256", "damaged"]),
        ("resolve-cache", ["config.json: git's SHA-1", "damaged"]),
    ] {
        let (world, _) = World::with_model("small-safetensors");
        world.hub.fail("GET", path, 1, Fault::Garble);
        assert_refused(&world.run(&["pull", MODEL]), &words);
        assert!(
            !world.blobs().iter().any(|name| name.contains("incomplete")),
            "nothing was kept"
        );
        assert_no_model(&world);
        stdout(&world.run(&["pull", MODEL]));
        assert_model(&world);
    }
}

#[test]
fn a_cut_and_then_garbled_download_is_refused() {
    let (world, _) = World::with_model("small-safetensors");
    world.hub.fail("GET", WEIGHTS, 1, Fault::Windows(100_000));
    world.hub.fail("GET", WEIGHTS, 1, Fault::Garble);
    assert_refused(&world.run(&["pull", MODEL]), &["SHA-256"]);
    assert_no_model(&world);
}

#[test]
fn a_busy_hub_is_asked_again() {
    let soon = || vec![("Retry-After", "0".to_owned())];
    let (world, _) = World::with_model("small-safetensors");
    for (method, path, status) in [
        ("GET", "/api/models/", 503),
        ("HEAD", "model.safetensors", 429),
        ("GET", "/resolve/", 502),
        ("GET", WEIGHTS, 503),
    ] {
        world
            .hub
            .fail(method, path, 2, Fault::Status(status, soon()));
    }
    let output = world.run(&["pull", MODEL]);
    stdout(&output);
    assert_model(&world);
    // But not for ever, and not when it wants to be left alone for an hour.
    let (world, _) = World::with_model("small-safetensors");
    world
        .hub
        .fail("GET", "/api/models/", 5, Fault::Status(503, soon()));
    assert_refused(&world.run(&["pull", MODEL]), &["503 Service Unavailable"]);
    let hour = vec![("Retry-After", "3600".to_owned())];
    world
        .hub
        .fail("GET", "/api/models/", 1, Fault::Status(429, hour));
    assert_refused(
        &world.run(&["pull", MODEL]),
        &["429 Too Many Requests", "HF_TOKEN"],
    );
}

#[test]
fn a_download_that_fails_leaves_the_old_commit_in_use() {
    let (world, _) = World::with_model("small-safetensors");
    stdout(&world.run(&["pull", MODEL]));
    world
        .hub
        .commit(MODEL, "main", files_of(&golden("odd-bin")));
    world.hub.fail("GET", WEIGHTS, 1, Fault::Garble);
    assert_refused(&world.run(&["info", "-m", MODEL]), &["SHA-256"]);
    world
        .hub
        .fail("GET", WEIGHTS, 1, Fault::Status(404, vec![]));
    let output = world.run(&["info", "--json", "-m", MODEL]);
    assert!(stdout(&output).contains("\"n_vocab\":320"), "the old model");
    assert!(
        stderr(&output).contains("using RWKV/tiny as it is in the cache"),
        "{}",
        stderr(&output)
    );
    let offline = world.run_with(&[("HF_HUB_OFFLINE", "1")], &["info", "--json", "-m", MODEL]);
    assert!(stdout(&offline).contains("\"n_vocab\":320"));
    assert!(stdout(&world.run(&["info", "--json", "-m", MODEL])).contains("\"n_vocab\":99"));
}

/// Somebody takes the connection and says nothing.
#[test]
fn silence_is_announced_and_ends() {
    let world = World::with_model("small-safetensors").0;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", silent.local_addr().expect("is bound"));
    let variables = [("HF_ENDPOINT", &*address), ("HF_HUB_DOWNLOAD_TIMEOUT", "3")];
    let output = world.run_with(&variables, &["pull", MODEL]);
    assert_refused(&output, &["no answer in time", "HF_HUB_DOWNLOAD_TIMEOUT"]);
    let said = stderr(&output);
    assert_eq!(said.matches("trying again").count(), 2, "{said}");
}
