//! The cache and the uploads beside those of Python's `huggingface_hub` itself, where a Python that
//! has it is named by `RWKV_EDGE_TEST_PYTHON`.

use std::process::Command;

use crate::command::{stderr, stdout};
use crate::common::golden;
use crate::stand_in::{sha256, Fault};
use crate::world::{assert_generates, files_of, greedy, World, MODEL};

/// Runs a script in a world, if there is a Python for it.
fn python(world: &World, variables: &[(&str, &str)], script: &str) -> Option<String> {
    let Some(interpreter) = std::env::var_os("RWKV_EDGE_TEST_PYTHON") else {
        crate::skipped::skipped("a Python with huggingface_hub in RWKV_EDGE_TEST_PYTHON");
        return None;
    };
    let mut command = Command::new(interpreter);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().to_lowercase().starts_with("hf_") {
            command.env_remove(name);
        }
    }
    command
        .env("HOME", world.home.path())
        .env_remove("XDG_CACHE_HOME")
        .env("HF_ENDPOINT", world.hub.endpoint())
        .env("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        .env("HF_HUB_DISABLE_TELEMETRY", "1")
        .env("HF_HUB_DISABLE_XET", "1")
        .envs(variables.iter().copied());
    let output = command
        .arg("-c")
        .arg(script)
        .output()
        .expect("Python starts");
    let text = stdout(&output);
    Some(text.trim_end().to_owned())
}

#[test]
fn python_finds_what_was_downloaded_here() {
    let (world, commit) = World::with_model("deep-sharded");
    let path = stdout(&world.run(&["pull", MODEL]));
    world.hub.take_log();
    let offline = "from huggingface_hub import snapshot_download, hf_hub_download\n\
        print(snapshot_download('RWKV/tiny', local_files_only=True))\n\
        print(hf_hub_download('RWKV/tiny', 'model-00003-of-00004.safetensors', local_files_only=True))";
    let Some(found) = python(&world, &[], offline) else {
        return;
    };
    let shard = format!("{}/model-00003-of-00004.safetensors", path.trim_end());
    assert_eq!(found, format!("{}\n{shard}", path.trim_end()));
    assert_eq!(world.hub.take_log().len(), 0);
    // With a network it sees that the file is the one the hub has.
    let online = "from huggingface_hub import hf_hub_download\n\
        print(hf_hub_download('RWKV/tiny', 'model-00003-of-00004.safetensors'))\n\
        print(hf_hub_download('RWKV/tiny', 'config.json'))";
    let found = python(&world, &[], online).expect("there is a Python");
    assert_eq!(found, format!("{shard}\n{}/config.json", path.trim_end()));
    assert_eq!(
        world.transfers().len(),
        0,
        "of commit {commit} all is there"
    );
    let scan = "from huggingface_hub import scan_cache_dir\n\
        info = scan_cache_dir()\n\
        print(info.warnings, [(r.repo_id, r.nb_files, sorted(r.refs)) for r in info.repos])";
    let found = python(&world, &[], scan).expect("there is a Python");
    assert_eq!(found, "[] [('RWKV/tiny', 7, ['main'])]");
}

#[test]
fn what_python_downloaded_is_found_here() {
    for name in ["small-safetensors", "odd-bin", "deep-sharded"] {
        let (world, commit) = World::with_model(name);
        let script = "from huggingface_hub import snapshot_download\n\
            print(snapshot_download('RWKV/tiny'))";
        let Some(path) = python(&world, &[], script) else {
            return;
        };
        assert!(path.ends_with(&commit));
        world.hub.take_log();
        let (args, _) = greedy(name);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let args = [&["generate", "-m", MODEL], &args[..]].concat();
        let output = world.run_with(&[("HF_HUB_OFFLINE", "1")], &args);
        assert_generates(&output, name);
        assert_eq!(
            (stderr(&output).as_str(), world.hub.take_log().len()),
            ("", 0)
        );
        assert_generates(&world.run(&args), name);
        assert_eq!(world.transfers().len(), 0);
    }
}

#[test]
fn each_goes_on_with_what_the_other_has_begun() {
    let (world, _) = World::with_model("small-safetensors");
    world
        .hub
        .fail("GET", "/objects/", 1, Fault::Windows(123_456));
    world
        .hub
        .fail("GET", "/objects/", 1, Fault::Status(404, vec![]));
    assert!(!world.run(&["pull", MODEL]).status.success());
    world.hub.take_log();
    let script = "from huggingface_hub import snapshot_download\n\
        print(snapshot_download('RWKV/tiny', allow_patterns=['*.safetensors']))";
    if python(&world, &[], script).is_none() {
        return;
    }
    let log = world.transfers();
    assert_eq!(log.len(), 1);
    assert_eq!(log[0].headers["range"], "bytes=123456-");
    let weights = &files_of(&golden("small-safetensors"))["model.safetensors"];
    let blob = world.cache().join("blobs").join(sha256(weights));
    assert!(std::fs::read(blob).expect("complete") == *weights);
    assert_eq!(world.blobs().len(), 3, "{:?}", world.blobs());
}
