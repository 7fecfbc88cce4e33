//! `pull --quant`: a copy is made once, found again, and never used for what the source is not any
//! more.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::command::{stderr, stdout};
use crate::common::{golden, repository};
use crate::world::{assert_refused, files_of, names, World, MODEL};

/// Where the model that a command opened lies, and its logits.
fn opened(world: &World, model: &str, quant: &str) -> (String, String) {
    let info = stdout(&world.run(&["info", "--json", "-m", model, "--quant", quant]));
    let info: Value = serde_json::from_str(&info).expect("JSON");
    let place = info["model"].as_str().expect("a place").to_owned();
    (place, logits(world, model, quant))
}

fn logits(world: &World, model: &str, quant: &str) -> String {
    stdout(&world.run(&[
        "logits", "--json", "--tokens", "1,2,3", "-m", model, "--quant", quant,
    ]))
}

fn copies(world: &World) -> PathBuf {
    world.home.path().join(".cache/rwkv-edge/quantised")
}

fn path_of(output: &Output) -> String {
    stdout(output).trim_end().to_owned()
}

/// A folder with a golden model that a test may change.
fn local_copy(world: &World, name: &str, folder: &str) -> PathBuf {
    let path = world.home.path().join(folder);
    fs::create_dir_all(&path).expect("can be made");
    for (name, bytes) in files_of(&golden(name)) {
        fs::write(path.join(name), bytes).expect("can be written");
    }
    path
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn a_model_of_the_hub_is_quantised_once() {
    let (world, _) = World::with_model("small-safetensors");
    let before = world.run(&[
        "logits", "--tokens", "1,2,3", "--json", "-m", MODEL, "--quant", "int8",
    ]);
    let expected = stdout(&before);
    let hint = "rwkv-edge pull RWKV/tiny --quant int8";
    assert!(stderr(&before).contains(hint), "{}", stderr(&before));
    let copy = path_of(&world.run(&["pull", MODEL, "--quant", "int8"]));
    assert_eq!(names(&copies(&world)).len(), 1);
    assert!(
        copy.starts_with(text(&copies(&world))) && copy.contains("RWKV--tiny"),
        "{copy}"
    );
    assert_eq!(
        opened(&world, MODEL, "int8"),
        (copy.clone(), expected.clone())
    );
    let output = world.run_with(
        &[("HF_HUB_OFFLINE", "1")],
        &["info", "-m", MODEL, "--quant", "int8"],
    );
    assert!(stdout(&output).contains(&copy));
    assert_eq!(stderr(&output), "");
    // The path in the cache is the same model.
    let snapshot = path_of(&world.run(&["pull", MODEL]));
    assert_eq!(opened(&world, &snapshot, "int8"), (copy.clone(), expected));
    // Other quantisations and none are another matter.
    for args in [&["--quant", "f16"][..], &[]] {
        let args = [&["info", "-m", MODEL], args].concat();
        assert!(!stdout(&world.run(&args)).contains("quantised"));
    }
    let made = fs::metadata(&copy)
        .and_then(|it| it.modified())
        .expect("is there");
    let again = world.run(&["pull", MODEL, "--quant", "int8", "--json"]);
    assert!(
        stderr(&again).contains("has an int8 copy already"),
        "{}",
        stderr(&again)
    );
    let object: Value = serde_json::from_str(&stdout(&again)).expect("JSON");
    assert_eq!(object["quantised"].as_str(), Some(copy.as_str()));
    assert_eq!(object["path"].as_str(), Some(snapshot.as_str()));
    let now = fs::metadata(&copy)
        .and_then(|it| it.modified())
        .expect("is there");
    assert_eq!(made, now, "it was not made again");
}

#[test]
fn a_new_commit_is_another_model() {
    let (world, _) = World::with_model("small-safetensors");
    let copy = path_of(&world.run(&["pull", MODEL, "--quant", "int8"]));
    let other = World::with_model("small-safetensors").0;
    let mut files = files_of(&golden("small-safetensors"));
    let weights = files.get_mut("model.safetensors").expect("is there");
    flip_a_weight(weights);
    world.hub.commit(MODEL, "main", files.clone());
    other.hub.commit(MODEL, "main", files);
    let (place, found) = opened(&world, MODEL, "int8");
    assert_ne!(place, copy);
    assert_eq!(
        found,
        logits(&other, MODEL, "int8"),
        "as one who never had the old commit"
    );
}

#[test]
fn local_checkpoints_are_quantised_once_too() {
    let (world, _) = World::with_model("odd-bin");
    let folder = local_copy(&world, "deep-sharded", "my model");
    let raw = world.home.path().join("raw.pth");
    fs::copy(repository("tests/fixtures/checkpoints/raw-f32.pth"), &raw).expect("can be copied");
    let demo = repository("cli/demo");
    for source in [&folder, &raw, &demo] {
        let expected = logits(&world, text(source), "int8");
        let copy = path_of(&world.run(&["pull", text(source), "--quant", "int8"]));
        assert_eq!(
            opened(&world, text(source), "int8"),
            (copy.clone(), expected.clone())
        );
        // By another spelling of the same path.
        let name = source
            .file_name()
            .expect("has one")
            .to_str()
            .expect("UTF-8");
        let mut command = world.command();
        command.current_dir(source.parent().expect("has one"));
        let relative = format!("./{name}");
        command.args(["info", "-m", &relative, "--quant", "int8"]);
        assert!(stdout(&command.output().expect("starts")).contains(&copy));
        let refused = world.run(&["pull", &copy, "--quant", "int8"]);
        assert_refused(&refused, &["is an int8 model file already"]);
    }
    // The tokenizer is in the copy.
    let plain = stdout(&world.run(&["--quant", "int8", "-n", "20", "Ownership is"]));
    let args = [
        "-m",
        text(&demo),
        "--quant",
        "int8",
        "-n",
        "20",
        "Ownership is",
    ];
    assert_eq!(stdout(&world.run(&args)), plain);
    assert_eq!(world.hub.take_log().len(), 0);
    assert_eq!(names(&copies(&world)).len(), 3);
}

#[test]
fn a_changed_source_is_never_answered_from_its_old_copy() {
    let (world, _) = World::with_model("odd-bin");
    let folder = local_copy(&world, "small-safetensors", "model");
    let weights = folder.join("model.safetensors");
    let original = fs::read(&weights).expect("readable");
    let times = fs::metadata(&weights)
        .and_then(|it| it.modified())
        .expect("has a time");
    let mut changed = original.clone();
    flip_a_weight(&mut changed);
    let copy = path_of(&world.run(&["pull", text(&folder), "--quant", "int8"]));
    let before = opened(&world, text(&folder), "int8");
    assert_eq!(before.0, copy);

    // In place, of the same size, and with its time set back.
    fs::write(&weights, &changed).expect("can be written");
    let file = fs::File::options()
        .write(true)
        .open(&weights)
        .expect("is there");
    file.set_modified(times).expect("can be set");
    drop(file);
    let after = opened(&world, text(&folder), "int8");
    assert_ne!(after.0, copy);
    assert_ne!(after.1, before.1);
    assert_eq!(
        names(&copies(&world)).len(),
        1,
        "nobody has asked for another copy"
    );

    // The next copy takes the place of the old one.
    let second = path_of(&world.run(&["pull", text(&folder), "--quant", "int8"]));
    assert_ne!(second, copy);
    let found = opened(&world, text(&folder), "int8");
    assert_eq!(found, (second.clone(), after.1));
    assert_eq!(names(&copies(&world)).len(), 1);

    // A tokenizer that was not there before is part of the model.
    let tokenizer = folder.join("tokenizer.json");
    fs::copy(repository("cli/demo/tokenizer.json"), &tokenizer).expect("can be copied");
    assert_eq!(opened(&world, text(&folder), "int8").0, text(&folder));
    fs::remove_file(tokenizer).expect("can be removed");
    // What is no part of the model changes nothing.
    fs::write(folder.join("notes.md"), "mine").expect("can be written");
    assert_eq!(opened(&world, text(&folder), "int8").0, second);
}

#[test]
fn a_blob_that_was_written_to_is_not_answered_from_the_old_copy() {
    let (world, commit) = World::with_model("small-safetensors");
    let copy = path_of(&world.run(&["pull", MODEL, "--quant", "int8"]));
    let link = world
        .cache()
        .join("snapshots")
        .join(commit)
        .join("model.safetensors");
    let mut bytes = fs::read(&link).expect("readable");
    flip_a_weight(&mut bytes);
    fs::write(&link, bytes).expect("can be written");
    // Whatever the steps of the file system's clock are.
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    let file = fs::File::options()
        .write(true)
        .open(&link)
        .expect("is there");
    file.set_modified(later).expect("can be set");
    drop(file);
    assert_ne!(opened(&world, MODEL, "int8").0, copy);
}

/// Boards without a clock of their own download in the future and in the past.
#[test]
fn a_copy_needs_no_clock() {
    let (world, commit) = World::with_model("small-safetensors");
    let copy = path_of(&world.run(&["pull", MODEL, "--quant", "int8"]));
    let expected = opened(&world, MODEL, "int8").1;
    let link = world
        .cache()
        .join("snapshots")
        .join(commit)
        .join("model.safetensors");
    let set_time = |path: &Path, time| {
        let file = fs::File::options()
            .write(true)
            .open(path)
            .expect("is there");
        file.set_modified(time).expect("can be set");
    };
    let now = SystemTime::now();
    let day = Duration::from_secs(86_400);
    let mut copy = PathBuf::from(copy);
    for (of_blob, of_copy) in [
        (now + 2 * day, now),
        (now - 2 * day, now),
        (now, now - 2 * day),
        (now, now + day),
    ] {
        set_time(&link, of_blob);
        set_time(&copy, of_copy);
        // Pulled again or not.
        let again = world.run(&["pull", MODEL, "--quant", "int8"]);
        assert!(
            stderr(&again).contains("has an int8 copy already"),
            "{}",
            stderr(&again)
        );
        copy = path_of(&again).into();
        assert_eq!(
            opened(&world, MODEL, "int8"),
            (text(&copy).to_owned(), expected.clone())
        );
        set_time(&link, of_blob + Duration::from_secs(1));
        let output = world.run(&["info", "-m", MODEL, "--quant", "int8"]);
        assert!(stdout(&output).contains("quantised"), "{}", stderr(&output));
        assert_eq!(stderr(&output), "");
        copy = copies(&world).join(&names(&copies(&world))[0]);
    }
    assert_eq!(names(&copies(&world)).len(), 1);

    // Written to, and its time set back: also when that time is long past.
    let time = fs::metadata(&link)
        .and_then(|it| it.modified())
        .expect("has a time");
    let mut bytes = fs::read(&link).expect("readable");
    flip_a_weight(&mut bytes);
    fs::write(&link, bytes).expect("can be written");
    for time in [time, now - 9 * day] {
        set_time(&link, time);
        let (place, logits) = opened(&world, MODEL, "int8");
        assert!(!place.contains("quantised"), "{place}");
        assert_ne!(logits, expected);
    }
}

#[test]
fn a_damaged_copy_is_passed_over() {
    let (world, _) = World::with_model("odd-bin");
    let folder = local_copy(&world, "small-safetensors", "model");
    let copy = path_of(&world.run(&["pull", text(&folder), "--quant", "int8"]));
    let expected = opened(&world, text(&folder), "int8").1;
    let bytes = fs::read(&copy).expect("readable");
    for damaged in [&bytes[..bytes.len() / 2], b""] {
        fs::write(&copy, damaged).expect("can be written");
        let args = [
            "logits",
            "--json",
            "--tokens",
            "1,2,3",
            "-m",
            text(&folder),
            "--quant",
            "int8",
        ];
        let output = world.run(&args);
        assert_eq!(stdout(&output), expected);
        assert!(
            stderr(&output).contains("quantising again"),
            "{}",
            stderr(&output)
        );
    }
    assert_eq!(
        path_of(&world.run(&["pull", text(&folder), "--quant", "int8"])),
        copy
    );
    assert_eq!(opened(&world, text(&folder), "int8"), (copy, expected));
}

#[test]
fn the_cache_can_be_elsewhere() {
    let (world, _) = World::with_model("odd-bin");
    let folder = local_copy(&world, "odd-bin", "model");
    for (variable, below) in [("RWKV_EDGE_CACHE", ""), ("XDG_CACHE_HOME", "rwkv-edge")] {
        let place = world.home.path().join(variable);
        let variables = [(variable, text(&place))];
        stdout(&world.run_with(&variables, &["pull", text(&folder), "--quant", "f16"]));
        assert_eq!(names(&place.join(below).join("quantised")).len(), 1);
        let output = world.run_with(&variables, &["info", "-m", text(&folder), "--quant", "f16"]);
        assert!(stdout(&output).contains(text(&place)));
    }
    // Small local models are no matter for a word.
    let output = world.run(&["info", "-m", text(&folder), "--quant", "int8"]);
    stdout(&output);
    assert_eq!(stderr(&output), "");
}

/// Makes a float of the last tensor another one that is as good.
fn flip_a_weight(safetensors: &mut [u8]) {
    let n = safetensors.len();
    safetensors[n - 1] ^= 0x80;
}
