//! What `convert` does to what is there already, and what it leaves when it does not come to its end, black
//! box.

#[path = "common/command.rs"]
mod command;
mod common;
#[path = "common/conversion.rs"]
mod conversion;
#[path = "common/tensors.rs"]
mod tensors;

use std::fs;
use std::path::Path;
use std::process::Output;

use command::{run, stderr};
use common::{golden, repository};
use conversion::{convert, logits, names, text};
use tensors::read_folder;

#[test]
fn an_earlier_model_is_only_replaced_when_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let target = folder.path().join("target");
    fs::create_dir(&target).expect("can be made");
    fs::write(target.join("README.md"), "mine").expect("can be written");
    convert(
        &golden("deep-sharded"),
        &target,
        &["--max-shard-size", "300KB"],
    );
    let before = names(&target);
    let source = golden("small-safetensors");
    let output = run(["convert", "-m", text(&source), "-o", text(&target)]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("config.json: is there already") && said.contains("--force"),
        "{said}"
    );
    assert_eq!(names(&target), before);
    assert_eq!(read_folder(&target), read_folder(&golden("deep-sharded")));
    // The new model has one file; those of the old one go.
    convert(&source, &target, &["--force"]);
    let expected = [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ];
    assert_eq!(names(&target), expected);
    assert_eq!(read_folder(&target), read_folder(&source));
    let readme = fs::read_to_string(target.join("README.md"));
    assert_eq!(readme.expect("still there"), "mine");
    // And back to several.
    convert(
        &golden("deep-sharded"),
        &target,
        &["--max-shard-size", "300KB", "--force"],
    );
    assert_eq!(names(&target), before);

    let raw = folder.path().join("raw.pth");
    convert(&source, &raw, &["--to", "raw"]);
    let whole = fs::read(&raw).expect("was written");
    let args = [
        "convert",
        "-m",
        text(&source),
        "-o",
        text(&raw),
        "--to",
        "raw",
    ];
    let output = run(args);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--force"), "{}", stderr(&output));
    assert_eq!(fs::read(&raw).expect("still there"), whole);
    run(args.iter().chain(&["--force"]));
    assert_eq!(
        fs::read(&raw).expect("was written"),
        whole,
        "the same again"
    );
}

/// The source is never written over, even when asked for.
#[test]
fn the_source_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    convert(&golden("small-safetensors"), &at("model"), &[]);
    convert(&golden("small-safetensors"), &at("x.pth"), &["--to", "raw"]);
    let (model, file) = (at("model"), at("model/model.safetensors"));
    for (source, target, more) in [
        (&model, &model, &["--force", "--dtype", "bf16"][..]),
        (&file, &model, &["--force", "--max-shard-size", "1KB"]),
        (&at("x.pth"), &at("x.pth"), &["--force", "--to", "raw"]),
    ] {
        let args = ["convert", "-m", text(source), "-o", text(target)];
        let output = run(args.iter().chain(more));
        assert_eq!(output.status.code(), Some(1));
        let said = stderr(&output);
        assert!(said.contains("is the checkpoint itself"), "{said}");
    }
    assert_eq!(
        read_folder(&model),
        read_folder(&golden("small-safetensors"))
    );
    // Beside its source, and in the place of its .bin files, there is room.
    convert(&at("x.pth"), folder.path(), &[]);
    assert_eq!(read_folder(folder.path()), read_folder(&model));
    fs::create_dir(at("bin")).expect("can be made");
    for name in ["config.json", "pytorch_model.bin"] {
        fs::copy(golden("odd-bin").join(name), at("bin").join(name)).expect("can be copied");
    }
    let before = logits(&at("bin"));
    convert(&at("bin"), &at("bin"), &["--force"]);
    assert!(at("bin/model.safetensors").exists() && at("bin/pytorch_model.bin").exists());
    assert_eq!(logits(&at("bin")), before);
}

/// In a folder of links, as shared caches have them, the links are replaced and the files they lead to stay.
#[cfg(unix)]
#[test]
fn links_are_replaced_and_not_followed() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    convert(&golden("deep-sharded"), &at("blobs"), &[]);
    fs::create_dir(at("snapshot")).expect("can be made");
    for name in names(&at("blobs")) {
        let link = at("snapshot").join(&name);
        std::os::unix::fs::symlink(at("blobs").join(name), link).expect("can be made");
    }
    let output = run([
        "convert",
        "-m",
        text(&at("snapshot")),
        "-o",
        text(&at("blobs")),
        "--force",
    ]);
    assert!(
        stderr(&output).contains("is the checkpoint itself"),
        "{}",
        stderr(&output)
    );
    let source = golden("small-safetensors");
    convert(&source, &at("snapshot"), &["--force"]);
    assert_eq!(read_folder(&at("snapshot")), read_folder(&source));
    assert_eq!(
        read_folder(&at("blobs")),
        read_folder(&golden("deep-sharded"))
    );
    assert!(!at("snapshot/model.safetensors").is_symlink());
}

/// Ends a conversion in the middle of a file, by a limit of the size of files: an error like a full disk, whether the
/// signal that comes with it by default is ignored or not. `tests/faults.rs` kills.
#[cfg(unix)]
#[test]
fn an_end_in_the_middle_leaves_no_model() {
    let folder = tempfile::tempdir().expect("a folder");
    // 64 units of 512 bytes: the embedding of 30,720 bytes fits, the first ffn.key of 36,864 does not.
    for (what, prepare) in [("default", ""), ("ignored", "trap '' XFSZ; ")] {
        let target = folder.path().join(what);
        let source = golden("deep-sharded");
        let run_limited = |target: &Path, more: &[&str]| {
            let args = ["convert", "-m", text(&source), "-o", text(target)];
            run_script(&format!("{prepare}ulimit -f 64"), &[&args, more].concat())
        };
        let refuse = |output: Output| {
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{what}: {said}");
            assert!(
                said.contains("cannot write") && said.contains("ulimit -f"),
                "{said}"
            );
        };
        refuse(run_limited(&target, &["--max-shard-size", "1KB"]));
        assert!(!target.exists(), "{:?}", names(&target));
        convert(&source, &target, &["--max-shard-size", "1KB"]);
        let before = names(&target);
        assert_eq!(read_folder(&target), read_folder(&source));
        // An earlier model stays whole.
        refuse(run_limited(&target, &["--force"]));
        assert_eq!(names(&target), before);
        assert_eq!(read_folder(&target), read_folder(&source), "{what}");
        let raw = folder.path().join("raw.pth");
        refuse(run_limited(&raw, &["--to", "raw"]));
        assert!(!raw.exists(), "{what}");
    }
}

/// A conversion that can open too few files leaves nothing, and names what it was told to write.
#[cfg(unix)]
#[test]
fn too_few_descriptors_leave_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let source = golden("deep-sharded");
    fs::create_dir(at("old")).expect("can be made");
    let mut n_refused = 0;
    for n in 4..=12 {
        for target in ["old", "new"] {
            let target = at(target);
            let args = ["convert", "-m", text(&source), "-o", text(&target)];
            let output = run_script(&format!("ulimit -n {n}"), &args);
            if output.status.success() {
                fs::remove_dir_all(&target).expect("was made");
                if target.ends_with("old") {
                    fs::create_dir(&target).expect("can be made");
                }
                continue;
            }
            n_refused += 1;
            let said = stderr(&output);
            assert!(!said.contains(".part"), "{n}: {said}");
            let left = fs::read_dir(&target).into_iter().flatten().flatten();
            let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
            assert!(left.is_empty(), "{n}: {left:?}: {said}");
        }
    }
    assert!(n_refused > 0);
}

/// A name that was mistyped costs nothing: not a model, a tokenizer, or a text.
#[test]
fn nothing_but_an_older_one_of_its_kind_is_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    let texts = folder.path().join("text");
    fs::write(&texts, "Ownership is a set of rules that govern memory.").expect("can be written");
    let checkpoint = fs::read(golden("small-safetensors").join("model.safetensors"));
    let checkpoint = checkpoint.expect("in the repository");
    for args in [
        &["quantize", "-o", text(&file)][..],
        &["-n", "1", "A", "--save-state", text(&file)],
        &["chat", "-n", "1", "--save-state", text(&file)],
        &[
            "perplexity",
            "--by-tensor",
            "--plot",
            text(&file),
            text(&texts),
        ],
        &["bench", "--plot", text(&file)],
        &["bench", "--save", text(&file)],
        &["bench", "--report", text(&file)],
    ] {
        for old in [&checkpoint[..], b"a text", b"{"] {
            fs::write(&file, old).expect("can be written");
            let output = run(args);
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
            assert!(said.contains("exists and is not a"), "{args:?}: {said}");
            assert!(fs::read(&file).expect("there") == old, "{args:?}");
        }
    }
}

/// Whatever writes a file, stdout included.
#[cfg(unix)]
#[test]
fn a_limit_of_the_size_of_files_kills_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let (model, file, demo) = (
        golden("small-safetensors"),
        at("file"),
        repository("cli/demo"),
    );
    let long = "word ".repeat(2000);
    // Nothing but an older one of its kind is replaced.
    let old_model = b"12345678{\"__metadata__\":{\"architecture\":\"rwkv-4\"";
    let old_state = b"RWKVST\0 and so on";
    for (args, old) in [
        (
            &["quantize", "-m", text(&demo), "-o", text(&file)][..],
            Some(&old_model[..]),
        ),
        (
            &[
                "-m",
                text(&model),
                "--tokens",
                "1,2",
                "-n",
                "0",
                "--save-state",
                text(&file),
            ],
            Some(old_state),
        ),
        (
            &["chat", "-n", "1", "--save-state", text(&file)],
            Some(old_state),
        ),
        (&["tokenize", &long], None),
    ] {
        let is_file = old.is_some();
        for old in [None, Some(old.unwrap_or(b"old"))] {
            if let Some(old) = old {
                fs::write(&file, old).expect("can be written");
            }
            let stdout = at("stdout");
            let script = format!("exec >{}; ulimit -f 1", text(&stdout));
            let output = run_script(&script, args);
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
            assert!(!is_file || said.contains("ulimit -f"), "{said}");
            fs::remove_file(&stdout).expect("was made");
            match old {
                Some(old) => {
                    assert!(fs::read(&file).expect("there") == old, "{args:?}");
                    fs::remove_file(&file).expect("there");
                }
                None => assert!(!file.exists()),
            }
            assert_eq!(names(folder.path()), [""; 0], "{args:?}");
        }
    }
}

/// Runs the program from a shell that has done something first.
#[cfg(unix)]
fn run_script(before: &str, args: &[&str]) -> Output {
    let script = format!("ulimit -c 0; {before}; exec \"$0\" \"$@\"");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_rwkv-edge")]);
    command.args(args).output().expect("sh starts")
}
