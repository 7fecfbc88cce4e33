//! What users of command lines are used to: help that fits the screen, manual pages and completion
//! scripts, environment variables, quiet and verbose, JSON everywhere, exit codes, odd bytes and pipes.

#[path = "common/command.rs"]
mod command;
mod common;
#[path = "common/skipped.rs"]
mod skipped;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use command::{command, run, run_with_stdin, stderr, stdout};
use common::{golden, repository};
use serde_json::Value;

fn text(path: PathBuf) -> String {
    path.to_str().expect("test paths are UTF-8").to_owned()
}

/// Runs with environment variables.
fn run_with(variables: &[(&str, &str)], args: &[&str]) -> Output {
    let mut command = command();
    command.envs(variables.iter().copied()).args(args);
    command.output().expect("the binary starts")
}

/// Every command, and those below it, as `--help` lists them: `["eval", "lambada"]`.
fn commands() -> Vec<Vec<String>> {
    fn collect(above: &[String], all: &mut Vec<Vec<String>>) {
        let mut args = above.to_vec();
        args.push("--help".into());
        let help = stdout(&run(&args));
        let Some((_, list)) = help.split_once("\nCommands:\n") else {
            return;
        };
        for line in list.lines().take_while(|line| !line.is_empty()) {
            let name = line.split_whitespace().next().expect("a name");
            // Explanations go on in lines that are indented further.
            if name == "help" || line.starts_with("    ") {
                continue;
            }
            let command = [above, &[name.to_owned()]].concat();
            all.push(command.clone());
            collect(&command, all);
        }
    }
    let mut all = Vec::new();
    collect(&[], &mut all);
    all
}

#[test]
fn help_fits_the_screen_and_has_examples() {
    let mut all = commands();
    assert_eq!(all[0], ["generate"], "what is most wanted comes first");
    let has = |name: &[&str]| all.iter().any(|command| command == name);
    assert!(
        has(&["perplexity"]) && has(&["eval", "lambada"]) && has(&["man"]),
        "{all:?}"
    );
    all.push(Vec::new());
    for args in all {
        let help = |flag: &str| {
            let mut command = command();
            let output = command.env("COLUMNS", "80").args(&args).arg(flag).output();
            stdout(&output.expect("the binary starts"))
        };
        let (short, long) = (help("-h"), help("--help"));
        let n_lines = short.lines().count();
        assert!(n_lines <= 36, "{args:?}: {n_lines} lines");
        // Examples are to be copied, and not wrapped.
        let (long_options, _) = long.split_once("\nExamples:").unwrap_or((&long, ""));
        for line in short.lines().chain(long_options.lines()) {
            assert!(line.chars().count() <= 80, "{args:?}: {line}");
        }
        assert!(long.len() >= short.len());
        let hidden = ["-v, --verbose", "--quiet"];
        assert!(
            hidden.iter().all(|option| long.contains(option)),
            "{args:?}"
        );
    }
    for name in [
        "generate",
        "quantize",
        "info",
        "tokenize",
        "logits",
        "chat",
        "embed",
        "perplexity",
        "bench",
        "man",
    ] {
        let help = stdout(&run([name, "--help"]));
        let (_, examples) = help.split_once("\nExamples:\n").expect(name);
        assert!(examples.contains(&format!("rwkv-edge {name}")), "{name}");
    }
    let help = stdout(&run(["--help"]));
    for words in [
        "RWKV_EDGE_MODEL",
        "RWKV_EDGE_THREADS",
        "NO_COLOR",
        "2 wrong usage",
    ] {
        assert!(help.contains(words), "{words}");
    }
    let convention = stdout(&run(["perplexity", "--help"]));
    for words in [
        "every token after the first",
        "empty state",
        "KL(reference || model)",
    ] {
        assert!(convention.contains(words), "{words}");
    }
}

#[test]
fn manual_pages_come_from_the_same_definitions() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = run(["man", "--output-dir", &text(folder.path().to_owned())]);
    assert_eq!(stdout(&output), "");
    let all = commands();
    assert!(stderr(&output).contains(&format!("{} manual pages", all.len() + 1)));
    for command in &all {
        let name = ["rwkv-edge".to_owned()]
            .into_iter()
            .chain(command.iter().cloned());
        let name = name.collect::<Vec<_>>().join("-");
        let page = fs::read_to_string(folder.path().join(format!("{name}.1"))).expect(&name);
        let printed = stdout(&run(["man".to_owned()].iter().chain(command)));
        assert_eq!(printed, page, "{name}");
        let title = format!(".TH {name} 1");
        assert!(page.lines().any(|line| line.starts_with(&title)), "{page}");
        assert!(
            !page.contains("\\fR\n\n"),
            "{name}: an option without a text"
        );
        // Every option of the help text, spelt as roff wants it.
        let help = stdout(&run(command.iter().map(String::as_str).chain(["--help"])));
        let options = help.lines().filter_map(|line| {
            let line = line.trim_start();
            let (_, long) = line.starts_with('-').then(|| line.split_once("--"))??;
            Some(
                long.split([' ', '=', '['])
                    .next()
                    .expect("a name")
                    .to_owned(),
            )
        });
        for option in options {
            let option = option.replace('-', "\\-");
            assert!(
                page.contains(&format!("\\-\\-{option}")),
                "{name}: {option}"
            );
        }
    }
    let page = stdout(&run(["man", "perplexity"]));
    for section in [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "OPTIONS",
        "EXAMPLES",
        "ENVIRONMENT",
    ] {
        assert!(page.contains(&format!("\n.SH {section}")), "{section}");
    }
    assert!(page.contains("rwkv\\-edge perplexity"));
    let output = run(["man", "no-such-command"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no-such-command"));
}

#[test]
fn completion_scripts_know_every_command_and_option() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&run(["completions", shell]));
        for word in [
            "perplexity",
            "lambada",
            "by-tensor",
            "load-state",
            "verbose",
        ] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    if Command::new("bash").arg("--version").output().is_err() {
        skipped::skipped("bash");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("rwkv-edge.bash");
    fs::write(&script, stdout(&run(["completions", "bash"]))).expect("can be written");
    let complete = |words: &[&str]| {
        let last = words.len() - 1;
        let program = format!(
            "source {}; set -- $(complete -p rwkv-edge); while [ \"$1\" != -F ]; do shift; done; \
             COMP_WORDS=({}); COMP_CWORD={last}; $2 rwkv-edge {} {}; echo \"${{COMPREPLY[@]}}\"",
            script.display(),
            words.join(" "),
            words[last],
            words[last - 1]
        );
        let output = Command::new("bash").args(["-c", &program]).output();
        stdout(&output.expect("bash starts"))
    };
    assert_eq!(complete(&["rwkv-edge", "perp"]).trim(), "perplexity");
    assert!(complete(&["rwkv-edge", "perplexity", "--by"]).contains("--by-tensor"));
    assert!(complete(&["rwkv-edge", "--quant", "''"]).contains("int8"));
    assert_eq!(complete(&["rwkv-edge", "eval", "lam"]).trim(), "lambada");
    assert!(complete(&["rwkv-edge", "eval", "lambada", "--li"]).contains("--limit"));
}

#[test]
fn environment_variables_stand_for_options() {
    let odd = text(golden("odd-bin"));
    let info = |variables: &[(&str, &str)], args: &[&str]| -> Value {
        let output = run_with(variables, &[&["info", "--json"], args].concat());
        serde_json::from_str(&stdout(&output)).expect("valid JSON")
    };
    let model = ("RWKV_EDGE_MODEL", odd.as_str());
    let threads = ("RWKV_EDGE_THREADS", "3");
    let found = info(&[model, threads], &[]);
    assert_eq!(
        (&found["n_vocab"], &found["threads"]),
        (&99.into(), &3.into())
    );
    // The command line comes first.
    let demo = text(repository("cli/demo"));
    let found = info(&[model, threads], &["-m", &demo, "-t", "2"]);
    assert_eq!(
        (&found["n_vocab"], &found["threads"]),
        (&4096.into(), &2.into())
    );
    // Without a command, too.
    let output = run_with(&[model], &["--tokens", "1,2", "-n", "3"]);
    assert_eq!(stdout(&output).trim().split(',').count(), 3);
    // Empty ones count as unset.
    let empty = [("RWKV_EDGE_MODEL", ""), ("RWKV_EDGE_THREADS", "")];
    let found = info(&empty, &[]);
    assert_eq!(found["n_vocab"], 4096);
    let help = stdout(&run_with(&empty, &["info", "--help"]));
    assert_eq!(help, stdout(&run(["info", "--help"])));
    assert!(help.contains("[env: RWKV_EDGE_MODEL]"), "{help}");
    for bad in ["many", "-1", "1.5"] {
        let output = run_with(&[("RWKV_EDGE_THREADS", bad)], &["A"]);
        assert_eq!(output.status.code(), Some(2));
        let said = stderr(&output);
        assert!(said.contains(&format!("RWKV_EDGE_THREADS={bad}")), "{said}");
    }
    let output = run_with(&[("RWKV_EDGE_MODEL", "no/such/model")], &["A"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no/such/model"));
}

#[test]
fn quiet_and_verbose() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = text(folder.path().join("model"));
    let quantize = |args: &[&str]| {
        let first = ["quantize", "-q", "int8", "-o", &file];
        let output = run(first.iter().chain(args));
        assert_eq!(stdout(&output), "");
        stderr(&output)
    };
    assert!(quantize(&[]).contains("8.07 bits a weight"));
    assert_eq!(quantize(&["--quiet"]), "");
    let expected = stdout(&run(["-n", "5", "A"]));
    for args in [
        &["--verbose", "-n", "5", "A"][..],
        &["generate", "-v", "-n", "5", "A"],
        &["-v", "generate", "-n", "5", "A"],
    ] {
        let output = run(args);
        assert_eq!(stdout(&output), expected, "{args:?}");
        let said = stderr(&output);
        for words in ["opened in", "kernels", "threads", "s in all"] {
            assert!(said.contains(words), "{args:?}: {said}");
        }
    }
    let output = run(["--quiet", "generate", "-n", "5", "A"]);
    assert_eq!(
        (stdout(&output), stderr(&output)),
        (expected, String::new())
    );
    // An error is said even then.
    let output = run(["--quiet", "-m", "no/such/model", "A"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output).lines().count(), 1);
    assert_eq!(run(["--quiet", "--verbose", "A"]).status.code(), Some(2));
}

#[test]
fn colours_are_only_for_those_who_want_them() {
    let escapes = |output: &Output| {
        let all = [&output.stdout[..], &output.stderr].concat();
        all.contains(&0x1b)
    };
    let plain = run(["--help"]);
    assert!(!escapes(&plain), "no terminal, no colours");
    for args in [&["--help"][..], &["--no-such-option"]] {
        let forced = run_with(&[("CLICOLOR_FORCE", "1")], args);
        assert!(escapes(&forced), "{args:?}");
        let not = run_with(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], args);
        assert!(!escapes(&not), "{args:?}");
    }
}

#[test]
fn results_are_there_as_json() {
    let folder = tempfile::tempdir().expect("a folder");
    let validation = text(repository("cli/demo/validation.txt"));
    let passages = text(repository("tests/fixtures/evaluation/passages.jsonl"));
    let model = text(folder.path().join("model"));
    for args in [
        &["--json", "-n", "2", "A"][..],
        &["generate", "--json", "-n", "2", "A"],
        &["info", "--json", "--tensors"],
        &["tokenize", "--json", "A"],
        &["logits", "--json", "--tokens", "1"],
        &["perplexity", "--json", "--limit", "20", &validation],
        &["eval", "lambada", "--json", "--limit", "2", &passages],
        &["quantize", "--json", "-o", &model],
    ] {
        let output = run(args);
        let printed = stdout(&output);
        let value: Value =
            serde_json::from_str(&printed).unwrap_or_else(|e| panic!("{args:?}: {e}"));
        assert!(value.is_object() && printed.ends_with('\n'), "{args:?}");
        assert_eq!(printed.lines().count(), 1, "{args:?}");
        assert_eq!(stderr(&output), "", "{args:?}");
    }
}

#[test]
fn options_of_generate_before_another_command_are_an_error() {
    for args in [
        &["--quant", "int8", "info"][..],
        &["-n", "5", "perplexity", "file"],
        &["some text", "info"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).contains("before the command"), "{args:?}");
        assert!(output.stdout.is_empty());
    }
    // A prompt that is the word of a command.
    let output = run(["generate", "-n", "0", "info"]);
    assert_eq!(stdout(&output), "info");
    let output = run(["-n", "0", "--", "info"]);
    assert_eq!(stdout(&output), "info");
}

#[test]
fn stdin_is_read_only_where_nothing_else_is_given() {
    let folder = tempfile::tempdir().expect("a folder");
    let prompt = text(folder.path().join("prompt"));
    fs::write(&prompt, "A trait").expect("can be written");
    // A pipe that is never written to and stays open: whoever reads it waits for ever.
    for args in [
        &["-n", "0", "A trait"][..],
        &["-n", "0", "--file", &prompt],
        &["-n", "0", "--tokens", "1,2"],
        &["tokenize", "A trait"],
        &["tokenize", "--file", &prompt],
        &["info", "--json"],
        &["logits", "--tokens", "1"],
    ] {
        let mut child = command()
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("starts");
        let pipe = child.stdin.take();
        assert!(child.wait().expect("ends").success(), "{args:?}");
        drop(pipe);
    }
    assert_eq!(
        stdout(&run_with_stdin(["-n", "0"], b"from stdin\n")),
        "from stdin\n"
    );
    let ids = stdout(&run(["tokenize", "from stdin\n"]));
    assert_eq!(stdout(&run_with_stdin(["tokenize"], b"from stdin\n")), ids);
    for nothing in [run(["-n", "3"]), run(["-n", "3", ""])] {
        assert_eq!(nothing.status.code(), Some(1));
        assert!(
            stderr(&nothing).contains("the prompt is empty"),
            "{}",
            stderr(&nothing)
        );
    }
    for args in [&["A", "--file", &prompt][..], &["A", "--tokens", "1"]] {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}: two prompts");
    }
}

#[cfg(unix)]
#[test]
fn arguments_and_paths_are_any_bytes() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let folder = tempfile::tempdir().expect("a folder");
    let odd = |bytes: &[u8]| folder.path().join(OsStr::from_bytes(bytes));
    let prompt = OsStr::from_bytes(b"a\xffb \xe6\xbc\xa2");
    let output = run([OsStr::new("-n"), OsStr::new("0"), prompt]);
    assert_eq!(
        (output.status.code(), &output.stdout[..]),
        (Some(0), prompt.as_bytes())
    );
    let (file, model, state) = (odd(b"t\xff.txt"), odd(b"m\xff"), odd(b"s\xff"));
    fs::write(&file, "A trait is a type.").expect("can be written");
    let run = |args: &[&dyn AsRef<OsStr>]| stdout(&run(args.iter().map(|arg| arg.as_ref())));
    run(&[&"quantize", &"-q", &"int8", &"-o", &model]);
    let first = run(&[
        &"-m",
        &model,
        &"-n",
        &"3",
        &"--file",
        &file,
        &"--save-state",
        &state,
    ]);
    assert!(first.starts_with("A trait is a type."));
    run(&[&"-m", &model, &"-n", &"3", &"--load-state", &state]);
    assert!(run(&[&"perplexity", &"-m", &model, &file]).starts_with("perplexity"));
}

#[test]
fn errors_name_the_fix_and_say_things_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let int8 = text(folder.path().join("int8"));
    stdout(&run(["quantize", "-q", "int8", "-o", &int8]));
    let odd = text(golden("odd-bin"));
    for (args, words) in [
        (
            &["-m", &odd, "some text"][..],
            &["--tokenizer", "tokenizer.json"][..],
        ),
        (
            &["-m", &int8, "-q", "f16", "A"],
            &["int8", "f16", "ask for no other quant"],
        ),
        (
            &["-m", "./no/such/model", "A"],
            &["no/such/model", "No such file"],
        ),
        (
            &["tokenize", "--file", "no/such/file"],
            &["no/such/file", "No such file"],
        ),
    ] {
        let output = run(args);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        for word in words {
            assert!(said.contains(word), "{args:?}: no {word} in {said}");
        }
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.matches("No such file").count() <= 1, "{said}");
    }
    let output = run(["--quant", "int9", "A"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("int8"));
    let output = run(["perplexty", "file"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn closed_and_full_outputs() {
    let validation = text(repository("cli/demo/validation.txt"));
    let passages = text(repository("tests/fixtures/evaluation/passages.jsonl"));
    let all = [
        &["--help"][..],
        &["-h"],
        &["--version"],
        &["help", "info"],
        &["chat", "--help"],
        &["perplexity", "--limit", "20", &validation],
        &["eval", "lambada", "--limit", "2", &passages],
        &["man"],
        &["completions", "bash"],
        &["logits", "--tokens", "1", "--json"],
        &["tokenize", "A"],
    ];
    for args in all {
        let mut child = command()
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("ends");
        let (code, said) = (output.status.code(), stderr(&output));
        assert_eq!((code, said), (Some(0), String::new()), "{args:?}");
    }
    if !Path::new("/dev/full").exists() {
        skipped::skipped("/dev/full");
        return;
    }
    let full = || {
        fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .expect("opens")
    };
    for args in &all {
        let output = command()
            .args(*args)
            .stdout(full())
            .output()
            .expect("starts");
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(stderr(&output).contains("No space left"), "{args:?}");
        assert_eq!(stderr(&output).lines().count(), 1);
    }
    // A stderr that cannot be written is no reason to fail.
    let output = command()
        .args(["-v", "--stats", "-n", "2", "A"])
        .stderr(full())
        .output()
        .expect("starts");
    assert!(output.status.success() && output.stdout.starts_with(b"A"));
    let status = command()
        .args(["-m", "no/such/model", "A"])
        .stderr(full())
        .status();
    assert_eq!(status.expect("starts").code(), Some(1));
    // Nor is a stdin that was closed before anything was read.
    let mut child = command()
        .args(["-n", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut pipe = child.stdin.take().expect("was asked for");
    pipe.write_all(b"A").expect("is read");
    drop(pipe);
    assert_eq!(stdout(&child.wait_with_output().expect("ends")), "A");
}
