//! Devices from the command line, with the plugin of plain CPU code: every command, and one clear line for
//! everything that can be missing.

#[path = "common/command.rs"]
mod command;
#[cfg(target_os = "linux")]
#[path = "devices/loading.rs"]
mod loading;
#[path = "devices/spread.rs"]
mod spread;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use command::{stderr, stdout};
use serde_json::Value;

/// The plugin that cargo built for the tests.
fn plugin() -> PathBuf {
    library("cpuplug")
}

fn library(name: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_rwkv-edge"));
    let folder = program.parent().expect("in a folder").join("deps");
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    folder.join(format!("{prefix}{name}{suffix}"))
}

/// The program in a folder of its own: other plugins lie beside it where cargo built it.
fn alone() -> Command {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("devices");
        std::fs::create_dir_all(&folder).expect("can be made");
        let program = folder.join("rwkv-edge");
        let _ = std::fs::remove_file(&program);
        let built = env!("CARGO_BIN_EXE_rwkv-edge");
        // Not a copy: a program that is open for writing cannot be run.
        std::fs::hard_link(built, &program).expect("on one file system");
        program
    });
    let mut command = Command::new(program);
    command.envs(
        command::command()
            .get_envs()
            .filter_map(|(k, v)| Some((k, v?))),
    );
    for (name, _) in command::command().get_envs().filter(|(_, v)| v.is_none()) {
        command.env_remove(name);
    }
    // The built-in model is of a version that the plugin does not run.
    command.env("RWKV_EDGE_MODEL", rwkv_4());
    command.stdin(std::process::Stdio::null());
    command
}

fn rwkv_4() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/demo4")
}

/// What `info --devices` prints, which is about no model.
fn listed(mut command: Command, more: &[&str]) -> String {
    command.env_remove("RWKV_EDGE_MODEL");
    command.args(["info", "--devices"]).args(more);
    stdout(&command.output().expect("the binary starts"))
}

/// On the CPU, with the program where cargo built it.
fn on_cpu(args: &[&str]) -> Output {
    let mut command = command::command();
    command.env("RWKV_EDGE_MODEL", rwkv_4()).args(args);
    command.output().expect("the binary starts")
}

fn with_plugin() -> Command {
    let mut command = alone();
    command.env("RWKV_EDGE_PLUGIN_PATH", plugin());
    command
}

fn run(args: &[&str]) -> Output {
    with_plugin()
        .args(args)
        .output()
        .expect("the binary starts")
}

/// Exit code 1 and one line.
#[track_caller]
fn refused(output: &Output, parts: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
}

const PROMPT: &str = "Ownership is";

#[test]
fn text_is_the_same_on_a_device() {
    let on_cpu = stdout(&on_cpu(&["-n", "40", PROMPT]));
    for args in [
        &["--device", "cpuplug"][..],
        &["--device", "cpuplug:1"],
        &["--device", "auto"],
        &["--device-map", "cpuplug *4 -> cpu"],
        &["--device-map", "cpu *2 -> cpuplug:0 *3 -> cpuplug:1"],
        &["--device-map", "data-parallel"],
        &[
            "--device",
            "auto",
            "--max-device-memory",
            "cpuplug:0=12M,cpuplug:1=12M",
        ],
    ] {
        let output = run(&[args, &["-n", "40", PROMPT]].concat());
        assert_eq!(stdout(&output), on_cpu, "{args:?}");
        assert_eq!(stderr(&output), "", "{args:?}");
    }
}

#[test]
fn states_move_between_devices_by_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("state").display().to_string();
    let expected = stdout(&on_cpu(&["-n", "20", "--no-echo", PROMPT]));
    for (first, second) in [("cpuplug", "cpu"), ("cpu", "cpuplug")] {
        let start = run(&[
            "--device",
            first,
            "-n",
            "10",
            "--no-echo",
            "--save-state",
            &file,
            PROMPT,
        ]);
        let rest = run(&["--device", second, "-n", "10", "--load-state", &file]);
        let text = stdout(&start) + &stdout(&rest);
        assert_eq!(text, expected, "from {first} to {second}");
    }
}

#[test]
fn other_commands_take_devices_too() {
    let json =
        |args: &[&str]| -> Value { serde_json::from_str(&stdout(&run(args))).expect("JSON") };
    let numbers = |value: &Value| -> Vec<f64> {
        let rows = value["logits"].as_array().expect("rows").iter();
        let numbers = rows.flat_map(|row| row.as_array().expect("a row"));
        numbers.map(|x| x.as_f64().expect("a number")).collect()
    };
    let logits = |device: &str| {
        numbers(&json(&[
            "logits", "--tokens", "1,2,3", "--all", "--json", "--device", device,
        ]))
    };
    for (a, b) in logits("cpu").iter().zip(logits("cpuplug")) {
        assert!((a - b).abs() < 1e-3, "{a} {b}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("text");
    std::fs::write(&file, "The state between two tokens has a fixed size.\n").expect("written");
    let file = file.display().to_string();
    let perplexity = |device: &str| {
        let result = json(&["perplexity", &file, "--json", "--device", device]);
        result["perplexity"].as_f64().expect("a number")
    };
    let (a, b) = (perplexity("cpu"), perplexity("cpuplug"));
    assert!((a / b - 1.0).abs() < 1e-4, "{a} {b}");
    let embed = |device: &str| -> Vec<f64> {
        let text = stdout(&run(&["embed", "--file", &file, "--device", device]));
        serde_json::from_str(text.lines().next().expect("a line")).expect("an array")
    };
    for (a, b) in embed("cpu").iter().zip(embed("cpuplug")) {
        assert!((a - b).abs() < 1e-3, "{a} {b}");
    }
    let info = json(&[
        "info",
        "--json",
        "--tensors",
        "--device-map",
        "cpuplug *8 -> cpu int8",
    ]);
    assert_eq!(info["device"], "cpuplug:0 + cpu");
    assert_eq!(info["stages"][0]["n_layer"], 8);
    assert_eq!(info["stages"][1]["has_head"], true);
    assert_eq!(info["tensors"][0]["device"], "cpuplug:0");
    // What is compared with has the quant of --against, whatever the map says of the model's stages.
    let against = |devices: &[&str]| {
        let compared = ["perplexity", &file, "--json", "--against", "f32"];
        let result = json(&[&compared, devices].concat());
        assert_eq!(result["against"], "f32", "{devices:?}");
        assert_eq!(result["quant"], "int8", "{devices:?}");
        result["kl_mean"].as_f64().expect("a number")
    };
    let on_device = ["--against", "f32", "--device", "cpuplug"];
    stdout(&run(&[&["perplexity", &file][..], &on_device].concat()));
    let expected = against(&["--quant", "int8"]);
    for devices in [
        &["--device-map", "cpu int8"][..],
        &["--device-map", "cpuplug int8 *4 -> cpu int8"],
        &["--device", "cpuplug", "--quant", "int8"],
    ] {
        let found = against(devices);
        assert!(
            (found / expected - 1.0).abs() < 0.1,
            "{devices:?}: {found}, {expected}"
        );
    }
}

#[test]
fn bench_measures_devices() {
    let args = [
        "bench",
        "--json",
        "--device",
        "cpuplug",
        "-r",
        "1",
        "-n",
        "2",
        "-p",
        "8",
        "--batch",
        "--sequences",
        "1,3",
    ];
    let report: Value = serde_json::from_str(&stdout(&run(&args))).expect("JSON");
    assert_eq!(report["device"], "cpuplug:0");
    for key in [
        "decode_tokens_per_s",
        "prefill_tokens_per_s",
        "read_bytes_per_s",
        "decode_bytes_per_token",
        "decode_share_of_limit",
        "prefill_share_of_limit",
        "first_token_ms",
        "peak_rss_bytes",
        "private_bytes",
        "device_estimated_bytes",
        "device_allocated_bytes",
    ] {
        assert!(report[key].as_f64() > Some(0.0), "{key}: {report}");
    }
    assert_eq!(report["batch"][1]["sequences"], 3);
}

#[test]
fn the_reference_of_a_comparison_needs_no_device() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("text");
    std::fs::write(&file, "The state between two tokens has a fixed size.\n").expect("written");
    let mut command = with_plugin();
    // A device without f32.
    command
        .env("CPUPLUG_QUANTS", "f16,int8")
        .arg("perplexity")
        .arg(&file);
    let output = command
        .args(["--against", "f32", "--device", "cpuplug"])
        .output();
    let output = output.expect("the binary starts");
    stdout(&output);
    assert!(
        stderr(&output).contains("runs on the CPU"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn devices_are_listed() {
    let text = listed(with_plugin(), &[]);
    assert!(
        text.contains("plugin        cpuplug") && text.contains("cpuplug:1 "),
        "{text}"
    );
    let list: Value = serde_json::from_str(&listed(with_plugin(), &["--json"])).expect("JSON");
    let devices = &list["plugins"][0]["devices"];
    assert_eq!(devices[1]["device"], "cpuplug:1");
    assert!(devices[0]["free_bytes"].as_u64() > Some(0));
    assert_eq!(
        devices[0]["quants"],
        serde_json::json!(["f32", "f16", "int8"])
    );
    let mut command = with_plugin();
    command.env("CPUPLUG_NO_DRIVER", "1");
    let text = listed(command, &[]);
    assert!(text.contains("no driver"), "{text}");
    let none = listed(alone(), &[]);
    assert!(none.contains("no plugin is installed"), "{none}");
}

#[test]
fn what_is_missing_is_told_in_one_line() {
    let one = |variable: (&str, &str), args: &[&str]| {
        let mut command = with_plugin();
        command
            .env(variable.0, variable.1)
            .args(args)
            .args(["-n", "1", "hi"]);
        command.output().expect("the binary starts")
    };
    let device = ["--device", "cpuplug"];
    let path = "RWKV_EDGE_PLUGIN_PATH";
    refused(
        &one(("X", ""), &["--device", "cuda"]),
        &["no plugin for the device cuda", path],
    );
    refused(
        &one(("X", ""), &["--device", "cpuplug:9"]),
        &["no such device", "cpuplug:1"],
    );
    refused(
        &one(("CPUPLUG_NO_DRIVER", "1"), &device),
        &["cpuplug: no driver"],
    );
    refused(
        &one(("CPUPLUG_DEVICES", "0"), &device),
        &["no such device: there is none"],
    );
    refused(
        &one(("CPUPLUG_DEVICES", "1"), &["--device", "cpuplug:1"]),
        &["there is only cpuplug:0"],
    );
    let little = ("CPUPLUG_FREE_BYTES", "1000000");
    refused(
        &one(little, &device),
        &["needs 43 MB", "1000000 bytes free of 1000000 bytes"],
    );
    refused(
        &one(
            ("CPUPLUG_QUANTS", "f16,int8"),
            &["--device", "cpuplug", "-q", "f32"],
        ),
        &["f32", "--quant"],
    );
    refused(
        &one((path, "/no/such/file.so"), &device),
        &["/no/such/file.so", "No such file"],
    );
    let folder = tempfile::tempdir().expect("a folder");
    let text = folder.path().join("librwkv_edge_cuda.so");
    std::fs::write(&text, "not a library").expect("written");
    let place = folder.path().display().to_string();
    refused(
        &one((path, &place), &["--device", "cuda"]),
        &["librwkv_edge_cuda.so", "cannot be loaded"],
    );
    // A copy that was interrupted: to map more than a file has is SIGBUS.
    let whole = std::fs::read(plugin()).expect("a file");
    let short = folder.path().join("short.so");
    for length in [10, 100, 5000, 100_000] {
        std::fs::write(&short, &whole[..length]).expect("written");
        refused(
            &one((path, &short.display().to_string()), &device),
            &["short.so", "cannot be loaded"],
        );
    }
    // Limits of devices that are not there would limit nothing.
    for limit in ["cpuplug:7=1M", "nosuch=1M"] {
        for device in ["cpuplug", "auto"] {
            refused(
                &one(
                    ("X", ""),
                    &["--device", device, "--max-device-memory", limit],
                ),
                &["limits of memory", limit.split_once('=').expect("=").0],
            );
        }
    }
    refused(
        &one(
            ("X", ""),
            &[
                "--device-map",
                "data-parallel",
                "--max-device-memory",
                "cpuplug=0,cpuplug:1=0",
            ],
        ),
        &["data-parallel", "no device is left"],
    );
    // A library, but no plugin.
    let other = Path::new(env!("CARGO_BIN_EXE_rwkv-edge"));
    refused(
        &one((path, &other.display().to_string()), &device),
        &["cannot be loaded"],
    );

    // With auto the CPU does it, and the line says why.
    for (variable, reason) in [
        (("CPUPLUG_NO_DRIVER", "1"), "no driver"),
        (("CPUPLUG_DEVICES", "0"), "no devices"),
        (little, "not one layer fits"),
        ((path, ""), "no plugin is installed"),
    ] {
        let output = one(variable, &["--device", "auto"]);
        stdout(&output);
        let text = stderr(&output);
        assert!(
            text.starts_with("auto: the model runs on the CPU: "),
            "{text}"
        );
        assert!(text.contains(reason) && text.lines().count() == 1, "{text}");
    }
}

/// Of another version of the table, for other architectures, or with other states: one line says what there is, and what
/// was expected.
#[test]
fn plugins_of_other_versions_are_told() {
    let with = |variable: (&str, &str)| {
        let mut command = with_plugin();
        command.env(variable.0, variable.1);
        command
    };
    let generate = |variable: (&str, &str), args: &[&str]| {
        let mut command = with(variable);
        command.args(args).args(["-n", "1", "hi"]);
        command.output().expect("the binary starts")
    };
    let device = ["--device", "cpuplug"];

    let old = library("oldplug").display().to_string();
    let old_is_named = ("RWKV_EDGE_PLUGIN_PATH", old.as_str());
    let told = format!("plugin {old}: is a plugin of table version 1, expected 2: update it");
    refused(&generate(old_is_named, &["--device", "oldplug"]), &[&told]);
    let text = listed(with(old_is_named), &[]);
    assert!(text.contains(&told), "{text}");

    let others = ("CPUPLUG_ARCHITECTURES", "rwkv-0,rwkv-99");
    let told = ": cannot run rwkv-4, has rwkv-0 and rwkv-99";
    refused(&generate(others, &device), &[&format!("cpuplug:0{told}")]);
    refused(
        &generate(others, &["--device-map", "cpu *2 -> cpuplug:1"]),
        &[&format!("cpuplug:1{told}")],
    );
    refused(
        &generate(others, &["--device-map", "data-parallel"]),
        &["data-parallel: ", &format!("cpuplug{told}")],
    );
    let none = ("CPUPLUG_ARCHITECTURES", "");
    refused(&generate(none, &device), &["cannot run rwkv-4, has none"]);
    // With auto the CPU does it.
    let output = generate(others, &["--device", "auto"]);
    stdout(&output);
    let text = stderr(&output);
    let expected = format!("auto: the model runs on the CPU: cpuplug{told}\n");
    assert_eq!(text, expected);

    // The same of the built-in model, whose version this plugin does not have.
    let built_in = |device: &str| {
        let mut command = with_plugin();
        command
            .env_remove("RWKV_EDGE_MODEL")
            .args(["--device", device, "-n", "1", "hi"]);
        command.output().expect("the binary starts")
    };
    let told = ": cannot run rwkv-7, has rwkv-4";
    refused(&built_in("cpuplug"), &[&format!("cpuplug:0{told}")]);
    let output = built_in("auto");
    stdout(&output);
    let expected = format!("auto: the model runs on the CPU: cpuplug{told}\n");
    assert_eq!(stderr(&output), expected);

    // What only later programs know is none of this one's, and in nobody's way.
    let later = ("CPUPLUG_QUANTS", "int4,f16");
    let list: Value = serde_json::from_str(&listed(with(later), &["--json"])).expect("JSON");
    let quants = &list["plugins"][0]["devices"][0]["quants"];
    assert_eq!(quants, &serde_json::json!(["f16"]));
    stdout(&generate(later, &["--device", "cpuplug", "-q", "f16"]));

    let info: Value = serde_json::from_str(&stdout(&run(&["info", "--json"]))).expect("JSON");
    let size = |name: &str| info[name].as_u64().expect("a number");
    let expected = 5 * size("n_layer") * size("n_embd");
    let more = ("CPUPLUG_STATE_MORE", "7");
    let told = format!("are {} numbers there, expected {expected}", expected + 7);
    refused(&generate(more, &device), &["cpuplug:0: states of ", &told]);
    refused(
        &generate(more, &["--device", "auto"]),
        &["cpuplug:0: states of ", " numbers there, expected "],
    );
}

/// In folders only the names of files count, so a table must have the same; a file that the variable names may be
/// called anything.
#[test]
fn a_plugin_in_a_file_of_another_name_is_told_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("librwkv_edge_foo.so");
    std::fs::copy(plugin(), &file).expect("can be copied");
    let (file, folder) = (
        file.display().to_string(),
        folder.path().display().to_string(),
    );
    let with = |path: &str| {
        let mut command = alone();
        command.env("RWKV_EDGE_PLUGIN_PATH", path);
        command
    };
    let generate = |path: &str, device: &str| {
        let mut command = with(path);
        command.args(["--device", device, "-n", "1", "hi"]);
        command.output().expect("the binary starts")
    };
    let both = "was loaded, but its table calls its devices cpuplug, expected foo";
    for path in [&file, &folder] {
        refused(&generate(path, "foo"), &[&file, both]);
    }
    stdout(&generate(&file, "cpuplug"));
    let plugin = plugin().display().to_string();
    refused(
        &generate(&format!("{file}:{plugin}"), "cuda"),
        &[
            &format!("no plugin for the device cuda: {file} is one for cpuplug; "),
            "looked for librwkv_edge_cuda.so in ",
        ],
    );
    refused(
        &generate(&folder, "cpuplug"),
        &[
            "no plugin for the device cpuplug: looked for librwkv_edge_cpuplug.so in ",
            &folder,
        ],
    );
    let found = |path: &str| -> Value {
        let list: Value = serde_json::from_str(&listed(with(path), &["--json"])).expect("JSON");
        list["plugins"].clone()
    };
    assert_eq!(found(&file)[0]["name"], "cpuplug");
    let misnamed = &found(&folder)[0];
    assert_eq!(misnamed["name"], Value::Null);
    let error = misnamed["error"].as_str().expect("an error");
    assert!(error.contains(both), "{error}");
    // The folder has nothing new to say of a file that is named as well.
    let twice = found(&format!("{file}:{folder}"));
    assert_eq!(twice.as_array().map(Vec::len), Some(1), "{twice}");
}

#[test]
fn maps_that_are_wrong_are_wrong_usage() {
    for (args, part) in [
        (["--device", "cuda -> cpu"], "expected cpu"),
        (["--device-map", "cuda f17"], "f17"),
        (
            ["--device-map", "cuda f16 *3+"],
            "`cuda f16 *3+`: *N+ would",
        ),
        (["--device", "auto:0"], "or auto"),
        (["--max-device-memory", "cuda"], "DEVICE=SIZE"),
        (["--max-device-memory", ""], "DEVICE=SIZE"),
        (["--max-device-memory", "cuda=1X"], "unit X"),
        (["--max-device-memory", "cuda=-1"], "is no number"),
        (["--max-device-memory", "cpu=1G"], "--max-memory"),
        (["--max-device-memory", "cuda=1G,cuda:0=2G"], "already"),
    ] {
        let output = run(&[&args[..], &["hi"]].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(
            stderr(&output).contains(part),
            "{args:?}: {}",
            stderr(&output)
        );
    }
    let output = run(&["--device", "cpu", "--device-map", "cpu", "hi"]);
    assert_eq!(output.status.code(), Some(2));
    refused(
        &run(&["--device-map", "cpuplug *3", "hi"]),
        &["have a place"],
    );
    let saved = run(&[
        "quantize",
        "--device",
        "cpuplug",
        "--quant",
        "int8",
        "-o",
        "/dev/null/x",
    ]);
    assert_ne!(saved.status.code(), Some(0));
}
