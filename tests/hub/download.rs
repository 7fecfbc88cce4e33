//! What is downloaded, and where it is put.

use std::fs;

use crate::command::{stderr, stdout};
use crate::common::{golden, repository};
use crate::stand_in::{etag, Files};
use crate::world::{assert_generates, assert_refused, files_of, greedy, names, World, MODEL};

fn generate(world: &World, model: &str, name: &str) -> std::process::Output {
    let (args, _) = greedy(name);
    let mut command = world.command();
    command.args(["generate", "--model", model]).args(args);
    command.output().expect("the binary starts")
}

#[test]
fn a_model_is_downloaded_once_and_laid_out_as_python_does() {
    let (world, commit) = World::with_model("small-safetensors");
    let output = generate(&world, MODEL, "small-safetensors");
    assert_generates(&output, "small-safetensors");
    assert!(
        stderr(&output).contains("downloading RWKV/tiny"),
        "{}",
        stderr(&output)
    );

    let files = files_of(&golden("small-safetensors"));
    let needed = ["config.json", "generation_config.json", "model.safetensors"];
    let mut blobs: Vec<String> = needed
        .iter()
        .map(|name| etag(name, &files[*name]))
        .collect();
    blobs.sort();
    assert_eq!(
        world.blobs(),
        blobs,
        "only what is needed, and nothing incomplete"
    );
    let cache = world.cache();
    assert_eq!(names(&cache), ["blobs", "refs", "snapshots"]);
    let reference = fs::read_to_string(cache.join("refs/main")).expect("written");
    assert_eq!(reference, commit);
    assert_eq!(names(&cache.join("snapshots")), [commit.as_str()]);
    let snapshot = cache.join("snapshots").join(&commit);
    assert_eq!(names(&snapshot), needed);
    for name in needed {
        let link = snapshot.join(name);
        assert_eq!(fs::read(&link).expect("readable"), files[name]);
        #[cfg(unix)]
        {
            let target = format!("../../blobs/{}", etag(name, &files[name]));
            let found = fs::read_link(&link).expect("a link");
            assert_eq!(found.to_str(), Some(target.as_str()));
        }
    }

    // Again: one question, which commit it is now. Of a commit not even that.
    world.hub.take_log();
    let output = generate(&world, MODEL, "small-safetensors");
    assert_generates(&output, "small-safetensors");
    assert_eq!(stderr(&output), "");
    let log = world.hub.take_log();
    let paths: Vec<&str> = log.iter().map(|request| request.path.as_str()).collect();
    assert_eq!(paths, ["/api/models/RWKV/tiny/revision/main"]);
    let pinned = format!("{MODEL}@{commit}");
    assert_generates(
        &generate(&world, &pinned, "small-safetensors"),
        "small-safetensors",
    );
    assert_eq!(world.hub.take_log().len(), 0);
}

#[test]
fn shards_and_torch_files_are_found() {
    for (name, n_weights) in [("deep-sharded", 5), ("odd-bin", 1)] {
        let (world, commit) = World::with_model(name);
        assert_generates(&generate(&world, MODEL, name), name);
        let found = names(&world.cache().join("snapshots").join(commit));
        assert_eq!(found.len(), 2 + n_weights, "{found:?}");
    }
}

#[test]
fn whole_weights_in_another_form_are_not_downloaded_again() {
    let (world, _) = World::with_model("odd-bin");
    assert_generates(&generate(&world, MODEL, "odd-bin"), "odd-bin");
    // The same commit had a better form all along, but another program fetched this one.
    let mut files = files_of(&golden("odd-bin"));
    let other = files_of(&golden("small-safetensors"));
    files.insert(
        "model.safetensors".into(),
        other["model.safetensors"].clone(),
    );
    let commit = world.hub.commit(MODEL, "main", files);
    let snapshots = world.cache().join("snapshots");
    let old = names(&snapshots).remove(0);
    fs::rename(snapshots.join(old), snapshots.join(&commit)).expect("can be renamed");
    world.hub.take_log();
    assert_generates(&generate(&world, MODEL, "odd-bin"), "odd-bin");
    assert_eq!(world.transfers().len(), 0);
}

#[test]
fn a_new_commit_shares_what_did_not_change() {
    let (world, first) = World::with_model("small-safetensors");
    stdout(&world.run(&["pull", MODEL]));
    let mut files = files_of(&golden("small-safetensors"));
    files.insert("generation_config.json".into(), b"{}".to_vec());
    let second = world.hub.commit(MODEL, "main", files);
    world.hub.take_log();
    stdout(&world.run(&["pull", MODEL]));
    assert_eq!(world.transfers().len(), 1, "only the changed file");
    let mut both = [first.clone(), second];
    both.sort();
    assert_eq!(names(&world.cache().join("snapshots")), both);
    // The old one is still there by its name.
    let pinned = format!("{MODEL}@{first}");
    assert_generates(
        &generate(&world, &pinned, "small-safetensors"),
        "small-safetensors",
    );
}

#[test]
fn revisions_are_branches_with_a_cache_entry_of_their_own() {
    let (world, _) = World::with_model("small-safetensors");
    let commit = world
        .hub
        .commit(MODEL, "refs/pr/1", files_of(&golden("odd-bin")));
    let id = format!("{MODEL}@refs/pr/1");
    assert_generates(&generate(&world, &id, "odd-bin"), "odd-bin");
    assert_generates(
        &generate(&world, MODEL, "small-safetensors"),
        "small-safetensors",
    );
    let reference = world.cache().join("refs/refs/pr/1");
    assert_eq!(fs::read_to_string(reference).expect("written"), commit);
}

#[test]
fn one_file_of_several_is_named() {
    let world = World::with_model("odd-bin").0;
    let raw = |name: &str| fs::read(repository("tests/fixtures/checkpoints").join(name));
    let files = [
        ("RWKV-4 A.pth", "raw-f32.pth"),
        ("old/RWKV-4-B.pth", "raw-f16.pth"),
    ];
    let mut files: Files = files
        .map(|(name, fixture)| (name.to_owned(), raw(fixture).expect("readable")))
        .into();
    files.insert("README.md".into(), Vec::new());
    world.hub.commit("BlinkDL/raw", "main", files);
    let output = world.run(&["info", "-m", "BlinkDL/raw"]);
    let words = [
        "RWKV-4 A.pth, old/RWKV-4-B.pth",
        "--model 'BlinkDL/raw/RWKV-4 A.pth'",
    ];
    assert_refused(&output, &words);
    assert_eq!(
        world.transfers().len(),
        0,
        "nothing was downloaded for that"
    );
    for (file, quant) in [("RWKV-4 A.pth", "f32"), ("old/RWKV-4-B.pth", "f16")] {
        let id = format!("BlinkDL/raw/{file}");
        let info = stdout(&world.run(&["info", "--json", "-m", &id]));
        assert!(info.contains(&format!("\"quant\":\"{quant}\"")), "{info}");
        world.hub.take_log();
        let offline = [("HF_HUB_OFFLINE", "1")];
        assert_eq!(
            stdout(&world.run_with(&offline, &["info", "--json", "-m", &id])),
            info
        );
        assert_eq!(world.hub.take_log().len(), 0);
    }
    assert_refused(
        &world.run(&["info", "-m", "BlinkDL/raw/old/RWKV-4-C.pth"]),
        &["no file old/RWKV-4-C.pth", "near names: old/RWKV-4-B.pth"],
    );
}

#[test]
fn a_local_path_wins() {
    let (world, _) = World::with_model("odd-bin");
    let here = world.home.path().join("here");
    fs::create_dir_all(here.join("RWKV")).expect("can be made");
    for (name, bytes) in files_of(&golden("small-safetensors")) {
        let path = here.join("RWKV/tiny").join(name);
        fs::create_dir_all(path.parent().expect("has one")).expect("can be made");
        fs::write(path, bytes).expect("can be written");
    }
    let (args, _) = greedy("small-safetensors");
    let mut command = world.command();
    command
        .current_dir(here)
        .args(["--model", MODEL])
        .args(args);
    assert_generates(&command.output().expect("starts"), "small-safetensors");
    assert_eq!(world.hub.take_log().len(), 0);
    // A path that cannot be a name is only a path.
    for path in ["./RWKV/tiny", "/RWKV/tiny", "models/tiny.pth"] {
        assert_refused(&world.run(&["info", "-m", path]), &[path, "cannot open"]);
    }
    assert_eq!(world.hub.take_log().len(), 0);
}

#[test]
fn the_token_goes_to_the_hub_and_never_to_its_storage() {
    let (world, _) = World::with_model("small-safetensors");
    world.hub.make_private(MODEL, "hf_secret");
    let file = world.home.path().join(".cache/huggingface/token");
    fs::create_dir_all(file.parent().expect("has one")).expect("can be made");
    fs::write(file, "hf_secret\n").expect("can be written");
    stdout(&world.run(&["pull", MODEL]));
    let log = world.hub.take_log();
    assert!(log.iter().any(|request| request.to_storage));
    for request in log {
        let token = request.headers.get("authorization").map(String::as_str);
        let expected = (!request.to_storage).then_some("Bearer hf_secret");
        assert_eq!(token, expected, "{}", request.path);
    }
}

#[test]
fn pull_prints_where_the_model_is() {
    let (world, commit) = World::with_model("small-safetensors");
    let snapshot = world.cache().join("snapshots").join(&commit);
    let path = stdout(&world.run(&["pull", MODEL]));
    assert_eq!(path.trim_end(), snapshot.to_str().expect("UTF-8"));
    let object = stdout(&world.run(&["pull", MODEL, "--json"]));
    let object: serde_json::Value = serde_json::from_str(&object).expect("JSON");
    assert_eq!(object["path"].as_str(), snapshot.to_str());
    assert!(object["quantised"].is_null());
    // Elsewhere, by each of the variables.
    for (variable, below) in [
        ("HF_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    ] {
        let folder = world.home.path().join(variable);
        let value = folder.to_str().expect("UTF-8");
        stdout(&world.run_with(&[(variable, value)], &["pull", MODEL]));
        assert_eq!(
            names(&folder.join(below).join("models--RWKV--tiny/refs")),
            ["main"]
        );
    }
}

#[test]
fn two_programs_download_a_file_once() {
    let (world, _) = World::with_model("small-safetensors");
    let children: Vec<_> = (0..4)
        .map(|_| {
            let mut command = world.command();
            command
                .args(["pull", MODEL])
                .stdout(std::process::Stdio::piped());
            command.spawn().expect("starts")
        })
        .collect();
    for child in children {
        assert!(child.wait_with_output().expect("ends").status.success());
    }
    assert_eq!(world.transfers().len(), 3, "each file once");
}

#[test]
fn a_tokenizer_is_downloaded_without_its_model() {
    let (world, _) = World::with_model("small-safetensors");
    let mut files = files_of(&repository("cli/demo"));
    let commit = world.hub.commit(MODEL, "main", files.clone());
    let demo = stdout(&world.run(&["tokenize", "Ownership is"]));
    world.hub.take_log();
    assert_eq!(
        stdout(&world.run(&["tokenize", "-m", MODEL, "Ownership is"])),
        demo
    );
    let snapshot = world.cache().join("snapshots").join(&commit);
    assert_eq!(names(&snapshot), ["config.json", "tokenizer.json"]);
    world.hub.take_log();
    assert_eq!(
        stdout(&world.run(&["tokenize", "-m", MODEL, "Ownership is"])),
        demo
    );
    assert_eq!(world.transfers().len(), 0);
    // The weights come when they are needed.
    let args = ["generate", "-m", MODEL, "-n", "1", "Ownership is"];
    assert!(stdout(&world.run(&args)).starts_with("Ownership is"));
    assert!(snapshot.join("model.safetensors").is_file());

    // Without one, and of no known vocabulary.
    files.remove("tokenizer.json");
    world.hub.commit(MODEL, "main", files);
    world.hub.take_log();
    assert_refused(
        &world.run(&["tokenize", "-m", MODEL, "Hi"]),
        &["no tokenizer.json", "--tokenizer FILE"],
    );
    let log = world.hub.take_log();
    assert!(log
        .iter()
        .all(|request| !request.path.ends_with("model.safetensors")));
}

/// Of a whole model and of one file of a repository: what writes its conversations comes along.
#[test]
fn chat_templates_are_downloaded() {
    let (world, _) = World::with_model("small-safetensors");
    let mut files = files_of(&repository("cli/demo"));
    let template = b"{% for m in messages %}{{ m.content }}\n\n{% endfor %}";
    let config = serde_json::json!({ "chat_template": "{{ nothing.at.all }}" }).to_string();
    files.insert("chat_template.jinja".into(), template.to_vec());
    files.insert("tokenizer_config.json".into(), config.clone().into_bytes());
    let weights = files["model.safetensors"].clone();
    let tokenizer = files["tokenizer.json"].clone();
    files.insert("old/model.safetensors".into(), weights);
    files.insert("old/tokenizer.json".into(), tokenizer);
    files.insert("old/chat_template.jinja".into(), template.to_vec());
    let commit = world.hub.commit(MODEL, "main", files);
    stdout(&world.run(&["pull", MODEL]));
    let snapshot = world.cache().join("snapshots").join(&commit);
    for name in ["chat_template.jinja", "tokenizer_config.json"] {
        assert!(snapshot.join(name).is_file(), "{name}");
    }
    let lone = format!("{MODEL}/old/model.safetensors");
    for (model, offline) in [(MODEL, ""), (&*lone, ""), (MODEL, "1"), (&lone, "1")] {
        let mut command = world.command();
        command.args(["chat", "--model", model, "--template", "model", "-n", "4"]);
        command
            .args(["--quant", "int8"])
            .env("HF_HUB_OFFLINE", offline);
        let output = talk(command, b"Ownership is\n");
        assert!(!stdout(&output).trim().is_empty(), "{}", stderr(&output));
    }
    // What the cache has lost comes again.
    fs::remove_file(snapshot.join("chat_template.jinja")).expect("was there");
    stdout(&world.run(&["pull", MODEL]));
    assert!(snapshot.join("chat_template.jinja").is_file());
}

/// Runs a command that reads this.
fn talk(mut command: std::process::Command, input: &[u8]) -> std::process::Output {
    use std::io::Write;
    use std::process::Stdio;
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let mut pipe = child.stdin.take().expect("was asked for");
    pipe.write_all(input).expect("is read");
    drop(pipe);
    child.wait_with_output().expect("the binary ends")
}
