//! Wrong values, paths that lead nowhere, and addresses: named as what they are, before anything else is done.

#[path = "common/command.rs"]
mod command;
mod common;

use std::fs;
use std::path::Path;

use command::{command, run, stderr, stdout};
use common::repository;

/// Exit code 2, nothing on stdout, and the option and its value named.
fn assert_wrong_usage(args: &[&str], words: &[&str]) {
    let output = run(args);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
    assert!(output.stdout.is_empty(), "{args:?}");
    for word in words {
        assert!(said.contains(word), "{args:?}: not said: {word}\n{said}");
    }
    assert!(!said.contains("use '--"), "{args:?}: {said}");
}

fn assert_failed(args: &[&str], words: &[&str]) {
    let output = run(args);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    assert!(output.stdout.is_empty(), "{args:?}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for word in words {
        assert!(said.contains(word), "{args:?}: not said: {word}\n{said}");
    }
    for word in ["No such file", "downloading", "huggingface.co: "] {
        assert!(!said.contains(word), "{args:?}: {said}");
    }
}

#[test]
fn numbers_out_of_range_are_wrong_values_of_their_options() {
    let negative = [
        "-1",
        "-5",
        "-2.5",
        "-99999999999999999999",
        "x",
        "",
        "1e3",
        "0x10",
    ];
    let floats = ["nan", "inf", "-inf", "1e99", "x", ""];
    let commands: [(&[&str], &[&str], &[&str]); 6] = [
        (
            &["generate", "a"],
            &[
                "--seed",
                "-n",
                "--max-new-tokens",
                "--top-k",
                "--threads",
                "--max-memory",
            ],
            &[
                "--temperature",
                "--top-p",
                "--presence-penalty",
                "--frequency-penalty",
                "--repetition-penalty",
                "--min-p",
                "--typical-p",
                "--mirostat-tau",
                "--mirostat-eta",
                "--penalty-decay",
            ],
        ),
        (
            &["chat"],
            &["--seed", "-n", "--top-k", "-t"],
            &["--temperature", "--top-p"],
        ),
        (
            &["perplexity", "file"],
            &["--window", "--limit", "--threads"],
            &[],
        ),
        (&["eval", "lambada", "file"], &["--limit", "--threads"], &[]),
        (
            &["bench"],
            &[
                "--rounds",
                "-n",
                "-p",
                "--chunk",
                "--threads",
                "--max-memory",
            ],
            &[],
        ),
        (&["pull", "a/b"], &["--threads"], &[]),
    ];
    for (command, whole, real) in commands {
        let values = whole.iter().map(|option| (option, &negative[..]));
        let values = values.chain(real.iter().map(|option| (option, &floats[..])));
        for (option, values) in values {
            for value in values
                .iter()
                .filter(|value| **value != "1e3" || *option != "--max-memory")
            {
                let named = option.trim_start_matches('-');
                let words = match named.len() {
                    1 => vec![*value],
                    _ => vec![*option, *value],
                };
                assert_wrong_usage(&[command, &[*option, *value]].concat(), &words);
            }
        }
    }
    // As most people write them: without a command.
    for (args, words) in [
        (
            &["--seed", "-1", "hi"][..],
            &["'-1' for '--seed <N>'", "at least 0"][..],
        ),
        (&["-n", "-5", "hi"], &["'-5' for '--max-new-tokens <N>'"]),
        (
            &["--top-p", "1.1", "hi"],
            &["'1.1' for '--top-p <P>'", "from 0 to 1"],
        ),
        (&["--top-p", "-0.1", "hi"], &["'-0.1' for '--top-p <P>'"]),
        (&["--repetition-penalty", "0", "hi"], &["'0'", "above 0"]),
        (&["--stop", "", "hi"], &["--stop", "at least one character"]),
        (
            &["chat", "--stop", ""],
            &["--stop", "at least one character"],
        ),
        (
            &["--threads", "1025", "hi"],
            &["'1025' for '--threads <N>'", "to 1024"],
        ),
        (
            &["--max-memory", "-5M", "hi"],
            &["'-5M' for '--max-memory <SIZE>'"],
        ),
        (&["--tokens", "-1"], &["'-1' for '--tokens <IDS>'"]),
        (&["logits", "--tokens", "1,-2"], &["`-2` is not a token id"]),
        (&["logits", "--tokens", "1,,2"], &["'1,,2'", "place 2"]),
        (&["logits", "--tokens", "1,"], &["'1,'", "place 2"]),
        (&["logits", "--tokens", ""], &["--tokens", "at least one"]),
        (&["--tokens", " "], &["--tokens", "at least one"]),
        (
            &["--temperature", "-1", "hi"],
            &["'-1' for '--temperature <T>'", "at least 0"],
        ),
        (&["--max-memory", "1.5", "hi"], &["'1.5'", "--max-memory"]),
        (&["--max-memory", "1e3", "hi"], &["'1e3'", "--max-memory"]),
        (&["--max-memory", "1 ", "hi"], &["'1 '", "--max-memory"]),
        (&["bench", "--rounds", "0"], &["'0' for '--rounds <N>'"]),
        (
            &["bench", "-p", "99999999999999"],
            &["'99999999999999' for '--prompt-tokens <N>'"],
        ),
        (
            &["bench", "-n", "18446744073709551615"],
            &["'18446744073709551615' for '--max-new-tokens <N>'"],
        ),
        (
            &["bench", "--chunk", "18446744073709551615"],
            &["for '--chunk <N>'", "from 1 to"],
        ),
        (
            &["bench", "--batch", "--sequences", "1000000000"],
            &["'1000000000' for '--sequences <LIST>'"],
        ),
        (
            &[
                "quantize",
                "-m",
                "a",
                "-o",
                "b",
                "--calibrate",
                "c",
                "--calibrate-tokens",
                "-1",
            ],
            &["'-1' for '--calibrate-tokens <N>'"],
        ),
        (&["bench", "--synthetic", "-1"], &["'-1' for '--synthetic"]),
        (
            &["convert", "-m", "a", "-o", "b", "--size", "-1"],
            &["'-1' for '--size"],
        ),
        (
            &["bench", "--batch", "--sequences", "4,0"],
            &["'0' for '--sequences <LIST>'"],
        ),
        (&["perplexity", "--window", "1", "file"], &["--window"]),
        (
            &["convert", "-m", "a", "-o", "b", "--max-shard-size", "-1"],
            &["'-1' for '--max-shard-size <SIZE>'"],
        ),
    ] {
        assert_wrong_usage(args, words);
    }
    let output = command()
        .env("RWKV_EDGE_THREADS", "-1")
        .args(["-n", "1", "hi"])
        .output()
        .expect("starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("RWKV_EDGE_THREADS=-1: expected a whole number from 0 to 1024")
    );
}

#[test]
fn the_ends_of_the_ranges_are_taken() {
    for args in [
        &["--seed", "18446744073709551615"][..],
        &["--temperature", "0", "--seed", "0"],
        &["--temperature", "1", "--top-p", "0", "--top-k", "99999"],
        &["--presence-penalty", "-2.5", "--threads", "0"],
    ] {
        stdout(&run([args, &["-n", "1", "--quant", "int8", "hi"]].concat()));
    }
    stdout(&run(["-n", "0", "hi"]));
}

/// The file of a chart is begun before the long work.
#[test]
fn charts_that_cannot_be_written_are_refused_first() {
    for path in ["/no/where/chart.svg", "/dev/null"] {
        let output = run(["bench", "--plot", path]);
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty(), "{output:?}");
        let words = format!("{path}: cannot create");
        assert!(stderr(&output).contains(&words), "{}", stderr(&output));
    }
}

#[test]
fn manual_pages_come_into_a_new_folder() {
    let home = tempfile::tempdir().expect("a folder");
    let pages = home.path().join(".local/share/man/man1");
    let output = run(["man".as_ref(), "--output-dir".as_ref(), pages.as_os_str()]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(pages.join("rwkv-edge.1").is_file());
    // Where a file is in the way it is named.
    let file = home.path().join("file");
    fs::write(&file, "").expect("can be written");
    let below = file.join("man1");
    let below = below.to_str().expect("UTF-8");
    let output = run(["man", "--output-dir", below]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&format!("{below}: cannot create")));
}

#[test]
fn addresses_are_answered_with_the_name_to_use() {
    let file = "RWKV/rwkv-4-169m-pile/x.pth";
    for (address, name) in [
        (
            "https://huggingface.co/RWKV/rwkv-4-169m-pile",
            "RWKV/rwkv-4-169m-pile",
        ),
        (
            "https://huggingface.co/RWKV/rwkv-4-169m-pile/tree/main",
            "RWKV/rwkv-4-169m-pile",
        ),
        (
            "https://huggingface.co/RWKV/rwkv-4-169m-pile/resolve/main/x.pth?download=true",
            file,
        ),
        ("https://hf.co/RWKV/rwkv-4-169m-pile/blob/main/x.pth", file),
        ("git@hf.co:RWKV/rwkv-4-169m-pile", "RWKV/rwkv-4-169m-pile"),
        (
            "https:/huggingface.co/RWKV/rwkv-4-169m-pile",
            "RWKV/rwkv-4-169m-pile",
        ),
        (
            "https://huggingface.co//RWKV//rwkv-4-169m-pile",
            "RWKV/rwkv-4-169m-pile",
        ),
        ("hf://RWKV/rwkv-4-169m-pile", "RWKV/rwkv-4-169m-pile"),
        (
            "huggingface.co/RWKV/rwkv-4-169m-pile",
            "RWKV/rwkv-4-169m-pile",
        ),
        (
            "http://127.0.0.1:9/RWKV/rwkv-4-169m-pile/resolve/v1/x.pth",
            "RWKV/rwkv-4-169m-pile/x.pth@v1",
        ),
    ] {
        for args in [
            &["info", "-m", address][..],
            &["pull", address],
            &["-m", address, "hi"],
            &["tokenize", "-m", address, "hi"],
            &["convert", "-m", address, "-o", "/nowhere"],
            &[
                "convert",
                "-m",
                "x.pth",
                "--repo-id",
                address,
                "-o",
                "/nowhere",
            ],
        ] {
            assert_failed(args, &["an address", &format!("named {name}")]);
        }
    }
    let secret = "https://user:s3cret@example.com/x.pth?token=s3cret";
    let output = run(["info", "-m", secret]);
    let said = stderr(&output);
    assert!(
        said.contains("expected a path, or a name on the hub") && !said.contains("s3cret"),
        "{said}"
    );
    assert_failed(
        &["info", "-m", "file:///models/x.pth"],
        &["named /models/x.pth"],
    );
}

#[cfg(unix)]
#[test]
fn links_to_nothing_are_named() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let link = |name: &str| {
        symlink("/no/where", at(name)).expect("can be linked");
        at(name)
    };
    fs::create_dir(at("m")).expect("can be made");
    // Of a name that could be one of the hub's.
    link("m/x");
    let output = command()
        .current_dir(folder.path())
        .args(["info", "-m", "m/x"])
        .env("HF_HUB_OFFLINE", "0")
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .output()
        .expect("starts");
    let words = ["a link to nothing", "/no/where does not exist"];
    let said = stderr(&output);
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    assert!(!said.contains("127.0.0.1"), "{said}");

    let nothing = link("x.pth");
    for args in [
        &["info", "-m", &nothing][..],
        &["pull", &nothing],
        &["convert", "-m", &nothing, "-o", "/nowhere"],
        &["--file", &nothing],
        &["--tokenizer", &nothing, "hi"],
        &["--load-state", &nothing, "hi"],
        &["--save-state", &nothing, "hi"],
        &["quantize", "-o", &nothing],
        &["chat", "--system-file", &nothing],
        &["perplexity", &nothing],
        &["perplexity", "--against-model", &nothing, &nothing],
        &["embed", "--file", &nothing],
        &["bench", "--plot", &nothing],
    ] {
        assert_failed(args, &[&nothing, words[0], words[1]]);
    }
    // A link to itself is not one to nothing.
    symlink(at("loop.pth"), at("loop.pth")).expect("can be linked");
    assert_failed(
        &["info", "-m", &at("loop.pth")],
        &["cannot follow this link"],
    );
    // Files that go with a model: without them it would be another one.
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let model = at(&format!("model of {name}"));
        fs::create_dir(&model).expect("can be made");
        let demo = repository("cli/demo");
        for file in ["config.json", "tokenizer.json", "model.safetensors"] {
            match file == name {
                true => drop(link(&format!("model of {name}/{file}"))),
                false => symlink(
                    fs::canonicalize(demo.join(file)).expect("is there"),
                    Path::new(&model).join(file),
                )
                .expect("can be linked"),
            }
        }
        let args = ["-n", "1", "-m", &model, "hi"];
        assert_failed(&args, &[&format!("{model}/{name}"), words[0]]);
        if name == "tokenizer.json" {
            let file = format!("{model}/model.safetensors");
            assert_failed(&["-m", &file, "hi"], &["tokenizer.json", words[0]]);
            stdout(&run(["-n", "1", "-m", &file, "--tokens", "1"]));
        }
    }
}

/// A word is a prompt, unless it is nearly a command.
#[test]
fn a_mistyped_command_is_no_prompt() {
    for (args, name) in [
        (&["quantise"][..], "quantize"),
        (&["chta"], "chat"),
        (&["conver", "x"], "convert"),
        (&["quantise", "-m", "x", "-o", "y"], "quantize"),
        (&["perplexty", "--limit", "3", "x.txt"], "perplexity"),
        (&["tokenise", "--quant", "int8"], "tokenize"),
    ] {
        let said = [
            format!("no command `{}`", args[0]),
            format!("did you mean `{name}`?"),
            format!("rwkv-edge generate {}", args[0]),
        ];
        assert_wrong_usage(args, &said.each_ref().map(String::as_str));
    }
    // What is no slip, and what is said to be a prompt.
    for args in [
        &["that"][..],
        &["Quantise"],
        &["quantise it"],
        &["generate", "quantise"],
        &["--", "once"],
    ] {
        let output = run([&["-n", "1"][..], args].concat());
        let output = match args[0] {
            "generate" => run([args, &["-n", "1"]].concat()),
            _ => output,
        };
        assert!(
            stdout(&output).starts_with(args.last().expect("a prompt")),
            "{args:?}"
        );
    }
    // Another mistake is told as it is.
    let output = run(["once", "upon"]);
    assert!(stderr(&output).contains("unexpected argument 'upon'"));
}

#[test]
fn quantize_says_its_own_default() {
    for (help, default) in [("-h", "[default: int8]"), ("--help", "[default: int8]")] {
        let text = stdout(&run(["quantize", help]));
        assert!(
            text.contains(default) && !text.contains("as stored]"),
            "{text}"
        );
        let other = stdout(&run(["generate", help]));
        assert!(other.contains("[default: as stored]"), "{other}");
    }
}
