//! Uploads to the hub by the library, against the stand-in.

#[path = "../common/skipped.rs"]
mod skipped;
#[path = "stand_in.rs"]
mod stand_in;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rwkv_edge_hub::{Settings, Token};
use stand_in::{sha256, Fault, Files, Hub};

fn settings(hub: &Hub, token: &str) -> Settings {
    let mut settings = Settings::new("/nowhere");
    settings.endpoint = hub.endpoint();
    settings.token = Token::new(token, "HF_TOKEN").expect("a token");
    settings.read_timeout = Duration::from_secs(10);
    settings
}

fn push(settings: Settings, folder: &Path, name: &str, summary: &str) -> Result<String, String> {
    let pushed = rwkv_edge_hub::Hub::new(settings).push(folder, name, summary);
    pushed.map_err(|error| error.to_string())
}

fn push_as(hub: &Hub, token: &str, folder: &Path, name: &str) -> Result<String, String> {
    push(settings(hub, token), folder, name, "Upload model")
}

/// A folder as `convert` makes it, and then some.
fn model() -> (tempfile::TempDir, Files) {
    let folder = tempfile::tempdir().expect("a folder");
    let weights: Vec<u8> = (0..250_001u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let mut files = Files::new();
    for (name, bytes) in [
        ("config.json", &b"{\"model_type\": \"rwkv\"}\n"[..]),
        ("model.safetensors", &weights),
        ("notes/\u{dc}ber uns.md", b"# Notes"),
        ("empty.bin", b""),
    ] {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("has one")).expect("can be made");
        fs::write(path, bytes).expect("can be written");
        files.insert(name.to_owned(), bytes.to_vec());
    }
    for hidden in [".git", "ignored.pyc"] {
        fs::write(folder.path().join(hidden), "not for others").expect("can be written");
    }
    (folder, files)
}

fn commits(hub: &Hub) -> usize {
    let log = hub.take_log();
    log.iter()
        .filter(|request| request.path.contains("/commit/"))
        .count()
}

#[test]
fn a_folder_becomes_a_commit() {
    let (hub, (folder, mut files)) = (Hub::start(), model());
    let address = push_as(&hub, "writer", folder.path(), "me/new").expect("works");
    assert!(
        address.starts_with(&format!("{}/me/new/commit/", hub.endpoint())),
        "{address}"
    );
    assert_eq!(hub.files("me/new"), files);
    assert!(hub.is_verified(&sha256(&files["model.safetensors"])));
    for request in hub.take_log() {
        let has_token = request.headers.contains_key("authorization");
        assert_eq!(has_token, !request.to_storage, "{}", request.path);
    }

    // Nothing to say: no commit.
    let address = push_as(&hub, "writer", folder.path(), "me/new").expect("works");
    assert_eq!(address, format!("{}/me/new", hub.endpoint()));
    assert_eq!(commits(&hub), 0);
    // Only what is new is sent.
    fs::write(folder.path().join("config.json"), "{}").expect("can be written");
    files.insert("config.json".into(), b"{}".to_vec());
    push_as(&hub, "writer", folder.path(), "me/new").expect("works");
    let log = hub.take_log();
    let commit = log
        .iter()
        .find(|request| request.path.contains("/commit/"))
        .expect("was made");
    assert_eq!(commit.body.iter().filter(|byte| **byte == b'\n').count(), 2);
    assert!(!log.iter().any(|request| request.to_storage));
    assert_eq!(hub.files("me/new"), files);
}

#[test]
fn a_name_alone_is_the_token_owners() {
    let (hub, (folder, files)) = (Hub::start(), model());
    push_as(&hub, "writer", folder.path(), "tiny").expect("works");
    assert_eq!(hub.files("me/tiny"), files);
}

#[test]
fn large_files_go_in_parts_and_storage_may_fail_for_a_while() {
    let (hub, (folder, files)) = (Hub::start(), model());
    hub.set_part_bytes(100_000);
    hub.fail(
        "PUT",
        "/2",
        1,
        Fault::Status(500, vec![("Retry-After", "0".into())]),
    );
    hub.fail("PUT", "/3", 1, Fault::Drop);
    push_as(&hub, "writer", folder.path(), "me/new").expect("works");
    assert_eq!(hub.files("me/new"), files);
    let log = hub.take_log();
    let sizes: Vec<usize> = log
        .iter()
        .filter(|request| request.method == "PUT")
        .map(|request| request.body.len())
        .collect();
    assert_eq!(sizes, [100_000, 100_000, 100_000, 50_001, 50_001]);
}

#[test]
fn a_commit_that_fails_changes_nothing_and_is_cheap_to_repeat() {
    let (hub, (folder, files)) = (Hub::start(), model());
    hub.fail("POST", "/commit/", 1, Fault::Status(503, vec![]));
    let error = push_as(&hub, "writer", folder.path(), "me/new").expect_err("fails");
    assert!(
        error.contains("503") && error.contains("push again"),
        "{error}"
    );
    assert_eq!(commits(&hub), 1, "a commit is not sent twice");
    push_as(&hub, "writer", folder.path(), "me/new").expect("works");
    assert_eq!(hub.files("me/new"), files);
    let log = hub.take_log();
    assert!(
        !log.iter().any(|request| request.method == "PUT"),
        "uploaded before"
    );
}

#[test]
fn what_is_garbled_on_the_way_is_never_committed() {
    let (hub, (folder, _)) = (Hub::start(), model());
    let weights = folder.path().join("model.safetensors");
    let oid = sha256(&fs::read(weights).expect("readable"));
    hub.fail("POST", "/verify/", 5, Fault::Status(422, vec![]));
    let error = push_as(&hub, "writer", folder.path(), "me/new").expect_err("fails");
    assert!(error.contains("422"), "{error}");
    assert!(!hub.is_verified(&oid));
    assert_eq!(commits(&hub), 0);
}

#[test]
fn who_may_not_push_is_told_why() {
    let (hub, (folder, _)) = (Hub::start(), model());
    for (token, words) in [
        ("", &["HF_TOKEN", "may write"][..]),
        ("wrong", &["does not accept the token in HF_TOKEN"]),
        ("reader", &["may only read", "may not write there"]),
    ] {
        let error = push_as(&hub, token, folder.path(), "me/new").expect_err("refused");
        for word in words {
            assert!(error.contains(word), "not said: {word}: {error}");
        }
    }
    let error = push_as(&hub, "writer", folder.path(), "me/a/b").expect_err("no name");
    assert!(error.contains("me/a/b: not a name"), "{error}");
    let empty = tempfile::tempdir().expect("a folder");
    let error = push_as(&hub, "writer", empty.path(), "me/new").expect_err("nothing there");
    assert!(error.contains("no files"), "{error}");
    let mut offline = settings(&hub, "writer");
    offline.offline = Some("HF_HUB_OFFLINE");
    let error = push(offline, folder.path(), "me/new", "x").expect_err("offline");
    assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
}

/// Python's own upload of the same folder, where `RWKV_EDGE_TEST_PYTHON` names one that has
/// huggingface_hub.
#[test]
fn python_uploads_the_same() {
    let Some(interpreter) = std::env::var_os("RWKV_EDGE_TEST_PYTHON") else {
        skipped::skipped("a Python with huggingface_hub in RWKV_EDGE_TEST_PYTHON");
        return;
    };
    for part_bytes in [None, Some(100_000)] {
        let (hub, (folder, files)) = (Hub::start(), model());
        if let Some(part_bytes) = part_bytes {
            hub.set_part_bytes(part_bytes);
        }
        fs::remove_file(folder.path().join(".git")).expect("is there");
        let script = "import sys\nfrom huggingface_hub import HfApi\napi = HfApi(token='writer')\n\
            api.create_repo('me/python', exist_ok=True)\n\
            api.upload_folder(repo_id='me/python', folder_path=sys.argv[1])";
        let mut command = Command::new(&interpreter);
        command.arg("-c").arg(script).arg(folder.path());
        command
            .env("HF_ENDPOINT", hub.endpoint())
            .env("HF_HUB_DISABLE_XET", "1");
        let output = command.output().expect("Python starts");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let of_python = shape(&hub);
        assert_eq!(hub.files("me/python"), files);
        // The storage has the objects by now.
        let hub = Hub::start();
        if let Some(part_bytes) = part_bytes {
            hub.set_part_bytes(part_bytes);
        }
        push_as(&hub, "writer", folder.path(), "me/python").expect("works");
        assert_eq!(hub.files("me/python"), files);
        assert_eq!(shape(&hub), of_python);
    }
}

/// What was asked and said, as far as two clients should agree.
fn shape(hub: &Hub) -> Vec<String> {
    let mut shape = Vec::new();
    for request in hub.take_log() {
        let body = String::from_utf8_lossy(&request.body);
        let body = match request.headers.get("content-type").map(String::as_str) {
            Some("application/x-ndjson") => {
                // Files in any order, behind a header of their own text.
                let mut lines: Vec<String> = body.lines().skip(1).map(canonical).collect();
                lines.sort();
                lines.join("\n")
            }
            Some(kind) if kind.contains("json") => canonical(&body),
            _ => request.body.len().to_string(),
        };
        // Python sends a note on YAML in READMEs, and asks for the repository's files beforehand.
        let path = request.path.split('?').next().unwrap_or_default();
        if matches!(request.method.as_str(), "POST" | "PUT") && !path.contains("validate-yaml") {
            shape.push(format!("{} {path} {body}", request.method));
        }
    }
    shape.sort();
    shape
}

/// JSON with sorted keys, and lists of files in the order of their paths.
fn canonical(text: &str) -> String {
    let mut value: serde_json::Value = serde_json::from_str(text).expect("JSON");
    if let Some(files) = value
        .get_mut("files")
        .and_then(|files| files.as_array_mut())
    {
        files.sort_by_key(|file| file["path"].to_string());
    }
    value.to_string()
}
