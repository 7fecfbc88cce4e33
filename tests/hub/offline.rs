//! Without a network: the cache is enough, and what is not in it is named.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use crate::command::{stderr, stdout};
use crate::common::{golden, repository};
use crate::stand_in::{etag, Fault, Files, Hub};
use crate::world::{assert_generates, assert_refused, files_of, greedy, World, MODEL};

const OFFLINE: [(&str, &str); 1] = [("HF_HUB_OFFLINE", "1")];
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A cache as Python's `huggingface_hub` 0.36 leaves it.
fn lay_out(cache: &Path, repository: &str, files: &Files) {
    let folder = cache.join(format!("models--{}", repository.replace('/', "--")));
    let snapshot = folder.join("snapshots").join(COMMIT);
    for path in [&snapshot, &folder.join("blobs"), &folder.join("refs")] {
        fs::create_dir_all(path).expect("can be made");
    }
    fs::write(folder.join("refs/main"), COMMIT).expect("can be written");
    // Files that were asked for and do not exist.
    let missing = folder.join(".no_exist").join(COMMIT);
    fs::create_dir_all(&missing).expect("can be made");
    fs::write(missing.join("adapter_config.json"), "").expect("can be written");
    fs::write(cache.join("version.txt"), "1").expect("can be written");
    for (name, bytes) in files {
        let etag = etag(name, bytes);
        fs::write(folder.join("blobs").join(&etag), bytes).expect("can be written");
        let link = snapshot.join(name);
        #[cfg(unix)]
        std::os::unix::fs::symlink(format!("../../blobs/{etag}"), link).expect("can be linked");
        #[cfg(not(unix))]
        fs::write(link, bytes).expect("can be written");
    }
}

/// A port at which nobody is.
pub fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    format!("http://{}", listener.local_addr().expect("is bound"))
}

#[test]
fn a_cache_made_by_python_is_used() {
    for name in ["small-safetensors", "odd-bin", "deep-sharded"] {
        let (world, _) = World::with_model(name);
        lay_out(&world.hub_cache(), MODEL, &files_of(&golden(name)));
        let (args, _) = greedy(name);
        let run = |variables: &[(&str, &str)], id: &str| {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            world.run_with(variables, &[&["generate", "-m", id], &args[..]].concat())
        };
        let pinned = format!("{MODEL}@{COMMIT}");
        for variable in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
            for id in [MODEL, &pinned] {
                let output = run(&[(variable, "1")], id);
                assert_generates(&output, name);
                assert_eq!(stderr(&output), "");
            }
        }
        assert_generates(&run(&[("HF_ENDPOINT", &nobody())], &pinned), name);
        assert_eq!(world.hub.take_log().len(), 0, "no network at all");
        let path = stdout(&world.run_with(&OFFLINE, &["pull", MODEL]));
        assert!(path.trim_end().ends_with(COMMIT), "{path}");
    }
}

#[test]
fn a_hub_that_is_not_there_is_a_line_when_the_cache_has_the_model() {
    let (world, _) = World::with_model("odd-bin");
    lay_out(&world.hub_cache(), MODEL, &files_of(&golden("odd-bin")));
    let output = world.run_with(&[("HF_ENDPOINT", &nobody())], &["info", "-m", MODEL]);
    assert!(stdout(&output).contains("rwkv-4"));
    let said = stderr(&output);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains("using RWKV/tiny as it is in the cache"),
        "{said}"
    );
    // Nor when somebody else answers, such as a hotel.
    world.hub.fail("GET", "/api/models/", 1, Fault::Garble);
    let output = world.run(&["info", "-m", MODEL]);
    assert!(stdout(&output).contains("rwkv-4"));
    assert!(
        stderr(&output).contains("something else answers"),
        "{}",
        stderr(&output)
    );
    // Nor does it matter that the hub has lost it.
    world.hub.make_private(MODEL, "hf_secret");
    let output = world.run(&["info", "-m", MODEL]);
    assert!(stdout(&output).contains("rwkv-4") && stderr(&output).contains("401"));
}

#[test]
fn what_is_not_all_there_is_refused() {
    let (world, _) = World::with_model("odd-bin");
    assert_refused(
        &world.run_with(&OFFLINE, &["info", "-m", MODEL]),
        &[
            "RWKV/tiny: no such file or folder here",
            "HF_HUB_OFFLINE is set",
            "looked for RWKV/tiny, of which",
            "has nothing",
        ],
    );
    let output = world.run_with(&[("HF_ENDPOINT", &nobody())], &["info", "-m", MODEL]);
    assert_refused(
        &output,
        &[
            "the hub cannot be reached: http://127.0.0.1",
            "looked for RWKV/tiny, of which",
        ],
    );
    assert_eq!(stderr(&output).lines().count(), 1);
    let mut files = files_of(&golden("deep-sharded"));
    files.remove("model-00003-of-00004.safetensors");
    lay_out(&world.hub_cache(), MODEL, &files);
    let output = world.run_with(&OFFLINE, &["info", "-m", MODEL]);
    assert_refused(&output, &["does not have all of main"]);
    let output = world.run_with(&[("HF_ENDPOINT", &nobody())], &["info", "-m", MODEL]);
    assert_refused(
        &output,
        &[
            "cannot be downloaded: the hub cannot be reached",
            "does not have all of main",
        ],
    );
    // A commit that no revision leads to.
    lay_out(
        &world.hub_cache(),
        "RWKV/pinned",
        &files_of(&golden("odd-bin")),
    );
    let refs = world.hub_cache().join("models--RWKV--pinned/refs/main");
    fs::remove_file(refs).expect("can be removed");
    let output = world.run_with(&OFFLINE, &["info", "-m", "RWKV/pinned"]);
    assert_refused(
        &output,
        &["which @0123456789abcdef0123456789abcdef01234567 names"],
    );
    // A link to nothing, as is left when somebody has cleaned up.
    let blobs = world.cache().join("blobs");
    lay_out(
        &world.hub_cache(),
        "RWKV/other",
        &files_of(&golden("odd-bin")),
    );
    let blobs = blobs.to_str().expect("UTF-8").replace("tiny", "other");
    fs::remove_dir_all(blobs).expect("can be removed");
    let output = world.run_with(&OFFLINE, &["info", "-m", "RWKV/other"]);
    assert_refused(&output, &["does not have all of main"]);
}

/// Whatever was cleaned up by hand, or never came.
#[cfg(unix)]
#[test]
fn what_a_cache_lacks_is_named() {
    let offline = |model: &str, id: &str, spoil: &dyn Fn(&Path)| {
        let (world, _) = World::with_model("odd-bin");
        lay_out(&world.hub_cache(), MODEL, &files_of(&golden(model)));
        let output = world.run_with(&OFFLINE, &["info", "-m", id]);
        stdout(&output);
        spoil(&world.cache());
        world.run_with(&OFFLINE, &["info", "-m", id])
    };
    let snapshot = |cache: &Path| cache.join("snapshots").join(COMMIT);
    let lose_blob = |name: &'static str| {
        move |cache: &Path| {
            let blob = fs::canonicalize(snapshot(cache).join(name)).expect("is there");
            fs::remove_file(blob).expect("can be removed");
        }
    };
    let shard = "model-00003-of-00004.safetensors";
    for (model, name) in [
        ("small-safetensors", "model.safetensors"),
        ("small-safetensors", "config.json"),
        ("deep-sharded", shard),
        ("deep-sharded", "model.safetensors.index.json"),
    ] {
        let output = offline(model, MODEL, &lose_blob(name));
        assert_refused(
            &output,
            &["does not have all of main", &format!("lacks {name}")],
        );
    }
    let id = format!("{MODEL}/model.safetensors");
    let output = offline("small-safetensors", &id, &lose_blob("model.safetensors"));
    assert_refused(&output, &["lacks model.safetensors"]);
    let output = offline("deep-sharded", MODEL, &|cache| {
        fs::remove_file(snapshot(cache).join(shard)).expect("can be removed");
    });
    assert_refused(&output, &[&format!("lacks {shard}")]);
    for refs in ["", "no commit/at all"] {
        let output = offline("small-safetensors", MODEL, &|cache| {
            fs::write(cache.join("refs/main"), refs).expect("can be written");
        });
        assert_refused(&output, &["does not have all of main", COMMIT]);
    }
    // The path of a snapshot is a path like any other.
    let (world, _) = World::with_model("odd-bin");
    lay_out(
        &world.hub_cache(),
        MODEL,
        &files_of(&golden("small-safetensors")),
    );
    lose_blob("config.json")(&world.cache());
    let path = snapshot(&world.cache());
    let output = world.run(&["info", "-m", path.to_str().expect("UTF-8")]);
    assert_refused(&output, &["config.json: a link to nothing"]);
}

#[test]
fn what_is_missing_in_a_cache_is_added_when_there_is_a_network() {
    let (world, commit) = World::with_model("deep-sharded");
    stdout(&world.run(&["pull", MODEL]));
    let snapshot = world.cache().join("snapshots").join(commit);
    let link = snapshot.join("model-00003-of-00004.safetensors");
    let blob = fs::canonicalize(&link).expect("a link");
    fs::remove_file(blob).expect("can be removed");
    world.hub.take_log();
    stdout(&world.run(&["info", "-m", MODEL]));
    assert_eq!(world.transfers().len(), 1);
}

#[test]
fn the_20b_vocabulary_is_fetched_when_text_needs_it() {
    let (world, _) = World::with_model("odd-bin");
    let model = world.home.path().join("model.safetensors");
    fs::write(&model, model_of_50277_tokens()).expect("can be written");
    let model = model.to_str().expect("UTF-8");
    // Ids need none.
    let args = [
        "generate",
        "-m",
        model,
        "--tokens",
        "1,2",
        "-n",
        "3",
        "--ignore-eos",
    ];
    let ids = stdout(&world.run(&args));
    assert_eq!(ids.matches(',').count(), 2);
    assert_eq!(world.hub.take_log().len(), 0);
    let words = [
        "tokenizer.json of EleutherAI/gpt-neox-20b",
        "--tokenizer FILE",
        "HF_HUB_OFFLINE",
    ];
    for args in [
        &["generate", "-m", model, "Hi"][..],
        &["tokenize", "-m", model, "Hi"],
    ] {
        assert_refused(&world.run_with(&OFFLINE, args), &words);
    }
    // Any vocabulary that fits will do here.
    let tokenizer = fs::read(repository("cli/demo/tokenizer.json")).expect("readable");
    let files = Files::from([
        ("tokenizer.json".to_owned(), tokenizer),
        ("x.bin".into(), vec![1]),
    ]);
    world.hub.commit("EleutherAI/gpt-neox-20b", "main", files);
    let output = world.run(&["tokenize", "-m", model, "Ownership is"]);
    let demo = stdout(&world.run(&["tokenize", "Ownership is"]));
    assert_eq!(stdout(&output), demo);
    let said = stderr(&output);
    assert!(
        said.contains("downloading tokenizer.json of EleutherAI/gpt-neox-20b"),
        "{said}"
    );
    assert_eq!(
        world.transfers().len(),
        1,
        "nothing else of that repository"
    );
    let output = world.run(&["generate", "-m", model, "-n", "1", "Ownership is"]);
    assert!(stdout(&output).starts_with("Ownership is"));
    // The demo's is much smaller than the one it stands for.
    assert_eq!(
        stderr(&output),
        "the tokenizer has 4096 tokens, and the model rows for 50277: it may be another model's\n"
    );
    assert_eq!(
        world.hub.take_log().len(),
        0,
        "a vocabulary does not change"
    );
    stdout(&world.run_with(&OFFLINE, &["perplexity", "-m", model, &demo_text()]));
}

#[test]
fn pull_brings_the_20b_vocabulary_along() {
    let world = World {
        hub: Hub::start(),
        home: tempfile::tempdir().expect("a folder"),
    };
    let files = Files::from([
        ("old.pth".to_owned(), vec![]),
        ("a.safetensors".into(), model_of_50277_tokens()),
    ]);
    world.hub.commit("BlinkDL/raw", "main", files);
    let tokenizer = fs::read(repository("cli/demo/tokenizer.json")).expect("readable");
    let files = Files::from([("tokenizer.json".to_owned(), tokenizer)]);
    let id = "BlinkDL/raw/a.safetensors";
    // Without one the model itself is downloaded all the same.
    let output = world.run(&["pull", id]);
    assert!(stdout(&output).trim_end().ends_with("a.safetensors"));
    assert!(
        stderr(&output).contains("EleutherAI/gpt-neox-20b"),
        "{}",
        stderr(&output)
    );
    world.hub.commit("EleutherAI/gpt-neox-20b", "main", files);
    stdout(&world.run(&["pull", id, "--quant", "int8"]));
    for quant in ["f16", "int8"] {
        let args = [
            "generate",
            "-m",
            id,
            "-n",
            "1",
            "--quant",
            quant,
            "Ownership is",
        ];
        let output = world.run_with(&OFFLINE, &args);
        assert!(
            stdout(&output).starts_with("Ownership is"),
            "{}",
            stderr(&output)
        );
    }
}

fn demo_text() -> String {
    let path = repository("tests/fixtures/golden/odd-bin/config.json");
    path.to_str().expect("UTF-8").to_owned()
}

/// A model of one layer of width 8 with the vocabulary of RWKV-4's Pile models, all weights 0.
fn model_of_50277_tokens() -> Vec<u8> {
    let (width, hidden) = (8, 32);
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("emb.weight".into(), vec![50_277, width]),
        ("head.weight".into(), vec![50_277, width]),
    ];
    for name in ["ln_out", "blocks.0.ln0", "blocks.0.ln1", "blocks.0.ln2"] {
        tensors.push((format!("{name}.weight"), vec![width]));
        tensors.push((format!("{name}.bias"), vec![width]));
    }
    for name in ["att.time_decay", "att.time_first"] {
        tensors.push((format!("blocks.0.{name}"), vec![width]));
    }
    for name in [
        "att.time_mix_k",
        "att.time_mix_v",
        "att.time_mix_r",
        "ffn.time_mix_k",
        "ffn.time_mix_r",
    ] {
        tensors.push((format!("blocks.0.{name}"), vec![1, 1, width]));
    }
    for name in [
        "att.key",
        "att.value",
        "att.receptance",
        "att.output",
        "ffn.receptance",
    ] {
        tensors.push((format!("blocks.0.{name}.weight"), vec![width, width]));
    }
    tensors.push(("blocks.0.ffn.key.weight".into(), vec![hidden, width]));
    tensors.push(("blocks.0.ffn.value.weight".into(), vec![width, hidden]));
    let mut header = serde_json::Map::new();
    let mut begin = 0;
    for (name, shape) in tensors {
        let end = begin + 4 * shape.iter().product::<usize>();
        let entry =
            serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, end] });
        header.insert(name, entry);
        begin = end;
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.into_bytes());
    bytes.resize(bytes.len() + begin, 0);
    bytes
}
