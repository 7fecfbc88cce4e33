//! What is written when the system fails or the process is killed: at every call of the system that changes a file, one
//! run for each. Needs the registers of x86-64.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

#[path = "common/command.rs"]
mod command;
mod common;
#[path = "common/conversion.rs"]
mod conversion;
#[path = "common/inject.rs"]
mod inject;
#[path = "common/skipped.rs"]
mod skipped;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use command::{command, stderr, stdout};
use common::golden;
use conversion::{convert, names, text};
use inject::{run, run_with, Fault, Outcome, Step, LOOKS};
use nix::errno::Errno;
use skipped::skipped;

/// Two models that are told apart by their output, even with the configuration of the other one, and what replaces the
/// first by the second.
struct Conversion {
    around: tempfile::TempDir,
    shards: &'static str,
    old: String,
    new: String,
    /// Files of the new one.
    names: Vec<String>,
}

impl Conversion {
    fn new(old_shards: &str, new_shards: &'static str) -> Self {
        let around = tempfile::tempdir().expect("a folder");
        let at = |name: &str| around.path().join(name);
        fs::create_dir(at("source")).expect("can be made");
        let config = fs::read_to_string(golden("odd-bin").join("config.json")).expect("there");
        let other = config.replace("1e-05", "0.1");
        assert_ne!(config, other, "an epsilon that no weights tell");
        fs::write(at("source/config.json"), other).expect("can be written");
        let weights = "pytorch_model.bin";
        fs::copy(golden("odd-bin").join(weights), at("source").join(weights)).expect("there");
        convert(&at("source"), &at("old"), &["--max-shard-size", old_shards]);
        fs::write(at("old/README.md"), "mine").expect("can be written");
        let old = logits(&at("old")).expect("a model");
        copy(&at("old"), &at("new"));
        let more = ["--max-shard-size", new_shards, "--force"];
        convert(&golden("small-safetensors"), &at("new"), &more);
        let new = logits(&at("new")).expect("a model");
        assert_ne!(old, new);
        let names = names(&at("new"));
        Conversion {
            shards: new_shards,
            old,
            new,
            names,
            around,
        }
    }

    /// The old model in a folder of its own.
    fn folder(&self) -> PathBuf {
        let path = self.around.path().join("target");
        if path.exists() {
            fs::remove_dir_all(&path).expect("ours");
        }
        copy(&self.around.path().join("old"), &path);
        path
    }

    fn command(&self, target: &Path) -> Command {
        let mut command = command();
        let source = golden("small-safetensors");
        command.args(["convert", "--force", "-m", text(&source)]);
        command.args(["-o", text(target), "--max-shard-size", self.shards]);
        command
    }

    /// All steps of a run from the first that touches the folder on.
    fn steps(&self) -> Vec<Step> {
        let outcome = run(&mut self.command(&self.folder()), |_| None);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        assert!(outcome.steps.len() > 30, "{:?}", outcome.steps);
        outcome.steps
    }

    /// Whether the folder has the new model; panics if it has neither.
    fn is_new(&self, folder: &Path, what: &dyn std::fmt::Debug) -> bool {
        let readme = fs::read_to_string(folder.join("README.md")).expect("not ours to touch");
        assert_eq!(readme, "mine");
        match logits(folder) {
            Ok(logits) if logits == self.old => false,
            Ok(logits) if logits == self.new => true,
            other => panic!("{what:?}: neither model: {other:?}, {:?}", names(folder)),
        }
    }

    /// The next run comes to its end and leaves nothing but the model.
    fn check_next(&self, folder: &Path, what: &dyn std::fmt::Debug) {
        stdout(&self.command(folder).output().expect("starts"));
        assert_eq!(names(folder), self.names, "{what:?}");
        assert!(self.is_new(folder, what));
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("can be made");
    for name in names(from) {
        fs::copy(from.join(&name), to.join(&name)).expect("can be copied");
    }
}

fn logits(model: &Path) -> Result<String, String> {
    let args = ["logits", "-m", text(model), "--tokens", "1,2,3"];
    let output = command().args(args).output().expect("starts");
    match output.status.success() {
        true => Ok(stdout(&output)),
        false => Err(stderr(&output)),
    }
}

fn at(wanted: Step, fault: Fault) -> impl Fn(Step) -> Option<Fault> {
    move |step| (step == wanted).then_some(fault)
}

fn every(name: &'static str, error: Errno) -> impl Fn(Step) -> Option<Fault> {
    move |step| (step.0 == name).then_some(Fault::Error(error))
}

#[test]
fn a_conversion_that_is_killed_leaves_the_old_model_or_the_new_one() {
    if !inject::is_allowed() {
        return skipped("programs cannot be traced here");
    }
    for (old, new) in [("60KB", "200KB"), ("60KB", "1GB"), ("1GB", "200KB")] {
        let conversion = Conversion::new(old, new);
        let mut n_new = 0;
        for (i, step) in conversion.steps().into_iter().enumerate() {
            // These change no names; a few of them show the rest.
            if ["write", "flock", "getdents64"].contains(&step.0) && i % 8 > 0 {
                continue;
            }
            let folder = conversion.folder();
            let outcome = run(&mut conversion.command(&folder), at(step, Fault::Kill));
            assert_eq!(outcome.code, None, "{step:?}: {}", outcome.stderr);
            n_new += usize::from(conversion.is_new(&folder, &step));
            conversion.check_next(&folder, &step);
        }
        assert!(n_new > 5, "{n_new} steps behind the one that counts");
    }
}

#[test]
fn a_conversion_that_fails_leaves_the_old_model_and_says_so() {
    if !inject::is_allowed() {
        return skipped("programs cannot be traced here");
    }
    let conversion = Conversion::new("60KB", "200KB");
    let steps = conversion.steps();
    let mut n_unsynced = 0;
    for (i, &step) in steps.iter().enumerate() {
        // As above.
        if step.0 == "write" && i % 8 > 0 {
            continue;
        }
        let error = if i % 2 == 0 {
            Errno::EIO
        } else {
            Errno::ENOSPC
        };
        let folder = conversion.folder();
        let fault = at(step, Fault::Error(error));
        let Outcome { code, stderr, .. } = run(&mut conversion.command(&folder), fault);
        match (code, conversion.is_new(&folder, &step)) {
            (Some(0), true) => n_unsynced += usize::from(stderr.contains("power failure")),
            (Some(1), false) => assert_eq!(stderr.lines().count(), 1, "{step:?}: {stderr}"),
            // Moved half way: the text says what is there.
            (Some(1), true) => assert!(
                stderr.contains("the new model is there"),
                "{step:?}: {stderr}"
            ),
            other => panic!("{step:?}: {other:?}: {stderr}"),
        }
        if code == Some(0) {
            assert_eq!(names(&folder), conversion.names, "{step:?}");
        }
        conversion.check_next(&folder, &step);
    }
    assert!(n_unsynced > 0, "syncing the folder at the very end");
}

/// Locks that fail once, or always, as on some network file systems; interrupted calls of every kind.
#[test]
fn locks_that_fail_and_interruptions_do_no_harm() {
    if !inject::is_allowed() {
        return skipped("programs cannot be traced here");
    }
    let conversion = Conversion::new("60KB", "200KB");
    let check = |what: &dyn std::fmt::Debug, pick: &dyn Fn(Step) -> Option<Fault>| {
        let folder = conversion.folder();
        let outcome = run(&mut conversion.command(&folder), pick);
        assert_eq!(outcome.code, Some(0), "{what:?}: {}", outcome.stderr);
        assert_eq!(names(&folder), conversion.names, "{what:?}");
        assert!(conversion.is_new(&folder, what));
    };
    check(&"no locks", &every("flock", Errno::ENOLCK));
    for step in conversion.steps() {
        if step.0 == "flock" {
            check(&step, &at(step, Fault::Error(Errno::ENOLCK)));
        }
        check(&step, &at(step, Fault::Error(Errno::EINTR)));
    }
}

/// Whenever a model is replaced while another process opens it, that one gets all of the old one or all of the new one.
#[test]
fn a_model_that_is_replaced_while_it_is_opened() {
    if !inject::is_allowed() {
        return skipped("programs cannot be traced here");
    }
    let conversion = Conversion::new("60KB", "200KB");
    let open = |folder: &Path, replace_at: Option<Step>| {
        let mut command = command();
        command.args(["logits", "-m", text(folder), "--tokens", "1,2,3"]);
        run_with(LOOKS, &mut command, |step| {
            if Some(step) == replace_at {
                stdout(&conversion.command(folder).output().expect("starts"));
            }
            None
        })
    };
    let (mut n_old, mut n_new) = (0, 0);
    for step in open(&conversion.folder(), None).steps {
        let found = open(&conversion.folder(), Some(step));
        assert_eq!(found.code, Some(0), "{step:?}: {}", found.stderr);
        n_old += usize::from(found.stdout == conversion.old);
        n_new += usize::from(found.stdout == conversion.new);
        assert!(
            found.stdout == conversion.old || found.stdout == conversion.new,
            "{step:?}: neither model: {}",
            found.stdout
        );
    }
    assert!(n_old > 0 && n_new > 0, "{n_old}, {n_new}");
}

/// A folder that cannot be listed is not one without a tokenizer.
#[test]
fn a_listing_that_fails_loses_no_tokenizer() {
    if !inject::is_allowed() {
        return skipped("programs cannot be traced here");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (demo, file) = (common::repository("cli/demo"), folder.path().join("model"));
    let quantize = || {
        let mut command = command();
        command.args(["quantize", "-m", text(&demo), "-o", text(&file)]);
        command
    };
    let steps = run(&mut quantize(), |_| None).steps;
    let listings = steps.into_iter().filter(|step| step.0 == "getdents64");
    let mut n_refused = 0;
    for step in listings {
        fs::remove_file(&file).expect("was written");
        let outcome = run(&mut quantize(), at(step, Fault::Error(Errno::EIO)));
        if outcome.code == Some(1) {
            assert!(outcome.stderr.contains("cannot list"), "{}", outcome.stderr);
            assert_eq!(names(folder.path()), [""; 0], "{step:?}");
            n_refused += 1;
            stdout(&quantize().output().expect("starts"));
        }
        let info = stdout(&command::run(["info", "-m", text(&file)]));
        assert!(info.contains("tokenizer.json"), "{step:?}: {info}");
    }
    assert!(n_refused > 0, "the folder of the model is listed");
}

/// One file over an older one: `quantize`, and a state.
#[test]
fn one_file_is_the_old_one_or_the_new_one() {
    if !inject::is_allowed() {
        return skipped("programs cannot be traced here");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (model, file) = (golden("small-safetensors"), folder.path().join("file"));
    let (model, path) = (text(&model), text(&file));
    // Nothing but an older one of its kind is replaced.
    for (args, old) in [
        (
            &["quantize", "-m", model, "-o", path][..],
            &b"12345678{\"__metadata__\":{\"architecture\":\"rwkv-4\""[..],
        ),
        (
            &[
                "-m",
                model,
                "--tokens",
                "1,2",
                "-n",
                "0",
                "--save-state",
                path,
            ],
            b"RWKVST\0 and so on",
        ),
    ] {
        let run_with = |pick: &dyn Fn(Step) -> Option<Fault>| run(command().args(args), pick);
        fs::write(&file, old).expect("can be written");
        let whole = run_with(&|_| None);
        assert_eq!(whole.code, Some(0), "{}", whole.stderr);
        let new = fs::read(&file).expect("was written");
        for step in whole.steps {
            for fault in [
                Fault::Kill,
                Fault::Error(Errno::EIO),
                Fault::Error(Errno::EINTR),
            ] {
                fs::write(&file, old).expect("can be written");
                let outcome = run_with(&at(step, fault));
                let found = fs::read(&file).expect("there");
                assert!(found == old || found == new, "{step:?}, {fault:?}");
                if let Fault::Error(Errno::EINTR) = fault {
                    assert_eq!(outcome.code, Some(0), "{step:?}");
                }
                if outcome.code == Some(0) {
                    assert!(found == new, "{step:?}, {fault:?}");
                }
                stdout(&command::run(args));
                assert_eq!(names(folder.path()), ["file"], "{step:?}, {fault:?}");
            }
        }
    }
}

/// A conversation saved over an older one of the same length: state and text are of the old one or of the new one.
#[test]
fn a_saved_conversation_keeps_its_text() {
    if !inject::is_allowed() {
        return skipped("programs cannot be traced here");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("talk");
    let path = text(&file);
    let chat = |more: &[&str], lines: &str| {
        let input = folder.path().join("lines");
        fs::write(&input, lines).expect("can be written");
        let mut command = command();
        command
            .args(["chat", "--threads", "1", "-n", "1"])
            .args(more)
            .stdin(fs::File::open(input).expect("just written"));
        command
    };
    let save = |line: &str| chat(&["--save-state", path], line);
    let all_files = || {
        let names = names(folder.path()).into_iter();
        let read = |name: String| (fs::read(folder.path().join(&name)).expect("there"), name);
        names.map(read).collect::<Vec<_>>()
    };
    stdout(&save("One\n").output().expect("starts"));
    let settled = all_files();
    let steps = run(&mut save("Two\n"), |_| None).steps;
    let check = |before: &[(Vec<u8>, String)], old: &str, new: &str, step, fault| {
        for (_, name) in all_files() {
            fs::remove_file(folder.path().join(name)).expect("ours");
        }
        for (bytes, name) in before {
            fs::write(folder.path().join(name), bytes).expect("can be written");
        }
        let old_state = fs::read(&file).expect("there");
        let outcome = run(&mut save(&format!("{new}\n")), at(step, fault));
        let shown = chat(&["--load-state", path], "/show\n")
            .output()
            .expect("starts");
        let said = stderr(&shown);
        assert!(
            !said.contains("without its text"),
            "{step:?}, {fault:?}: {said}, {outcome:?}"
        );
        assert!(said.contains("1 turns"), "{step:?}, {fault:?}: {said}");
        let is_new = fs::read(&file).expect("there") != old_state;
        assert_eq!(said.contains(old), !is_new, "{step:?}, {fault:?}: {said}");
        if outcome.code == Some(0) {
            assert!(said.contains(new), "{step:?}, {fault:?}: {said}");
        }
        stdout(&save("One\n").output().expect("starts"));
        assert_eq!(
            names(folder.path()),
            ["lines", "talk", "talk.json"],
            "{step:?}"
        );
    };
    let faults = [
        Fault::Kill,
        Fault::Error(Errno::EIO),
        Fault::Error(Errno::EINTR),
    ];
    for &step in &steps {
        for fault in faults {
            check(&settled, "One", "Two", step, fault);
        }
    }
    // Killed before its last step, a save leaves the only text of the state that is there where it waits for its name.
    let is_rename = |step: &&Step| step.0.starts_with("rename");
    let last = *steps.iter().rfind(is_rename).expect("both get names");
    run(&mut save("Two\n"), at(last, Fault::Kill));
    let waiting = all_files();
    assert!(names(folder.path()).contains(&".talk.json.rwkv-edge-new".to_owned()));
    for step in run(&mut save("Three\n"), |_| None).steps {
        for fault in faults {
            check(&waiting, "Two", "Three", step, fault);
        }
    }
}
