//! Bad input of every kind through the real binary: a clear message, exit code 1, no panic, and nothing
//! written. Damage inside checkpoints is tested closer by in engine/src/checkpoint/tests.

#[path = "common/command.rs"]
mod command;
mod common;
#[path = "common/refuse.rs"]
mod refuse;

use std::fs;
use std::path::Path;

use command::{run, run_with_stdin, stderr, stdout};
use common::{golden, repository};
use refuse::{text, Table};
use serde_json::{json, Value};

/// A safetensors file taken apart.
#[derive(Clone)]
struct Parts {
    header: Value,
    data: Vec<u8>,
}

impl Parts {
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).expect("a fixture");
        let size = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let header = serde_json::from_slice(&bytes[8..8 + size]).expect("valid JSON");
        Parts {
            header,
            data: bytes[8 + size..].to_vec(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        with_header(&self.header.to_string(), &self.data)
    }

    /// Overwrites the first number of a tensor.
    fn set_first(&mut self, tensor: &str, value: f32) {
        let at = self.header[tensor]["data_offsets"][0]
            .as_u64()
            .expect("an offset") as usize;
        self.data[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn rename(&mut self, from: &str, to: &str) {
        let object = self.header.as_object_mut().expect("an object");
        let entry = object.remove(from).expect("is there");
        object.insert(to.into(), entry);
    }
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [
        &(header.len() as u64).to_le_bytes()[..],
        header.as_bytes(),
        data,
    ]
    .concat()
}

fn small() -> Parts {
    Parts::read(&golden("small-safetensors").join("model.safetensors"))
}

const KEY: &str = "rwkv.blocks.0.attention.key.weight";

#[test]
fn damaged_safetensors_files() {
    let mut table = Table::new();
    let good = small();
    let bytes = good.bytes();
    table.refuse_bytes("empty", b"", &["model", "empty"]);
    table.refuse_bytes("only a length", &bytes[..7], &["not a checkpoint"]);
    table.refuse_bytes("cut header", &bytes[..100], &["header"]);
    table.refuse_bytes("cut data", &bytes[..bytes.len() - 1], &["model"]);
    table.refuse_bytes("padded", [&bytes[..], &[0]].concat(), &["model"]);
    let mut huge = bytes.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    table.refuse_bytes(
        "oversized header",
        huge,
        &["header of 18446744073709551615 bytes"],
    );
    table.refuse_bytes("no JSON", with_header("{\"a\":", &good.data), &["header"]);
    table.refuse_bytes("no entry", with_header("{}", &[]), &["no tensors"]);

    let change = |change: &dyn Fn(&mut Value)| {
        let mut bad = good.clone();
        change(&mut bad.header[KEY]);
        bad.bytes()
    };
    let offsets = |v: [u64; 2]| change(&move |entry| entry["data_offsets"] = json!(v));
    table.refuse_bytes("overlap", offsets([0, 4]), &["header"]);
    table.refuse_bytes(
        "beyond the end",
        offsets([1 << 40, (1 << 40) + 4]),
        &["header"],
    );
    table.refuse_bytes("backwards", offsets([8, 4]), &["header"]);
    let shape = |v: Value| change(&move |entry| entry["shape"] = v.clone());
    table.refuse_bytes("shape and size differ", shape(json!([1, 1])), &["header"]);
    table.refuse_bytes(
        "overflowing shape",
        shape(json!([1u64 << 40, 1u64 << 40])),
        &["header"],
    );
    table.refuse_bytes("negative shape", shape(json!([-1, 3])), &["header"]);
    let dtype = |v: &'static str| change(&move |entry| entry["dtype"] = json!(v));
    table.refuse_bytes("unknown dtype", dtype("F13"), &["header", "F13"]);
    table.refuse_bytes(
        "integers",
        dtype("I32"),
        &["blocks.0.attention.key.weight", "I32", "F32"],
    );
    table.finish(15);
}

#[test]
fn wrong_tensors() {
    let mut table = Table::new();
    let good = small();
    let renamed = |from: &str, to: &str| {
        let mut bad = good.clone();
        bad.rename(from, to);
        bad.bytes()
    };
    table.refuse_bytes(
        "missing and extra",
        renamed(KEY, "rwkv.blocks.0.attention.kay.weight"),
        &["att.key.weight", "missing"],
    );
    table.refuse_bytes(
        "of version 5",
        renamed(KEY, "blocks.0.att.ln_x.weight"),
        &["att.key.weight", "missing"],
    );
    table.refuse_bytes(
        "of version 6",
        renamed(KEY, "blocks.0.att.time_maa_x"),
        &["blocks.0.att.key.weight: missing"],
    );
    // It is taken for an RWKV-7, of which hardly anything is there.
    table.refuse_bytes(
        "of version 7",
        renamed(KEY, "blocks.0.att.x_r"),
        &["emb.weight", "missing"],
    );
    table.refuse_bytes(
        "another family",
        renamed(KEY, "model.layers.0.mlp.up_proj.weight"),
        &["missing"],
    );
    let mut bad = good.clone();
    let shape = bad.header["head.weight"]["shape"]
        .as_array_mut()
        .expect("a shape");
    shape.reverse();
    table.refuse_bytes(
        "transposed",
        bad.bytes(),
        &["head.weight", "shape", "expected"],
    );
    let mut bad = good.clone();
    let n = bad.header["rwkv.ln_out.weight"]["shape"][0]
        .as_u64()
        .expect("a length");
    bad.header["rwkv.ln_out.weight"]["shape"] = json!([2, n / 2]);
    table.refuse_bytes(
        "a matrix for a vector",
        bad.bytes(),
        &["ln_out.weight", "expected"],
    );

    for (tensor, value, said) in [
        (KEY, f32::NAN, "NaN"),
        ("head.weight", f32::INFINITY, "inf"),
        ("rwkv.blocks.1.ln2.bias", f32::NEG_INFINITY, "-inf"),
        ("rwkv.blocks.0.attention.time_decay", f32::INFINITY, "inf"),
    ] {
        let mut bad = good.clone();
        bad.set_first(tensor, value);
        table.refuse_bytes(
            &format!("{value} in {tensor}"),
            bad.bytes(),
            &[tensor, said],
        );
    }
    let mut bad = good.clone();
    bad.set_first(KEY, 1e5);
    let path = table.write("case/large", bad.bytes());
    let words = [
        "attention.key.weight",
        "100000",
        "range of f16",
        "--quant f32",
    ];
    table.refuse_model_as("f16", "beyond f16", &path, &words);
    bad.set_first(KEY, 1e30);
    let path = table.write("case/larger", bad.bytes());
    table.refuse_model(
        "beyond int8",
        &path,
        &["attention.key.weight", "too large for int8"],
    );
    table.finish(13);
}

#[test]
fn wrong_folders() {
    let mut table = Table::new();
    let weights = small().bytes();
    let config =
        fs::read_to_string(golden("small-safetensors").join("config.json")).expect("there");
    let config: Value = serde_json::from_str(&config).expect("valid");
    fs::create_dir(table.path("empty")).expect("can be made");
    table.refuse_model(
        "no weights",
        &table.path("empty"),
        &["no weights", "model.safetensors"],
    );
    table.refuse_model(
        "no such path",
        &table.path("nothing"),
        &["nothing", "cannot open"],
    );
    table.refuse_model(
        "a device",
        Path::new("/dev/null"),
        &["/dev/null", "expected a regular file"],
    );

    let folder = |table: &Table, name: &str, config: &str| {
        table.write(&format!("{name}/model.safetensors"), &weights);
        table.write(&format!("{name}/config.json"), config);
        table.path(name)
    };
    let changed = |key: &str, value: Value| {
        let mut config = config.clone();
        config[key] = value;
        config.to_string()
    };
    for (what, config, words) in [
        ("no JSON", "{".to_owned(), &["config.json"][..]),
        (
            "another family",
            changed("model_type", json!("llama")),
            &["config.json", "llama", "rwkv"],
        ),
        (
            "version 5",
            changed("model_type", json!("rwkv5")),
            &["RWKV-4, expected RWKV-5 by config.json"],
        ),
        (
            "layers",
            changed("num_hidden_layers", json!(9)),
            &["blocks.", "missing"],
        ),
        (
            "vocabulary",
            changed("vocab_size", json!(9)),
            &["expected [9, "],
        ),
        (
            "no width",
            changed("hidden_size", Value::Null),
            &["config.json", "[64, 4096]"],
        ),
        (
            "text for a number",
            changed("hidden_size", json!("x")),
            &["config.json", "hidden_size"],
        ),
        (
            "negative",
            changed("num_hidden_layers", json!(-3)),
            &["config.json"],
        ),
        (
            "absurd",
            changed("vocab_size", json!(1u64 << 60)),
            &["config.json", "vocab_size"],
        ),
    ] {
        let path = folder(&table, what, &config);
        table.refuse_model(what, &path, words);
    }
    let index = |table: &Table, name: &str, index: &str| {
        table.write(&format!("{name}/model.safetensors.index.json"), index);
        table.path(name)
    };
    for (what, text, words) in [
        ("index without map", "{}", &["index.json", "weight_map"][..]),
        (
            "missing shard",
            r#"{"weight_map":{"head.weight":"a.safetensors"}}"#,
            &["a.safetensors"],
        ),
        (
            "shard elsewhere",
            r#"{"weight_map":{"head.weight":"../a"}}"#,
            &["plain file name"],
        ),
    ] {
        let path = index(&table, what, text);
        table.refuse_model(what, &path, words);
    }
    table.finish(14);
}

#[test]
fn other_formats() {
    let mut table = Table::new();
    let bin = fs::read(golden("odd-bin").join("pytorch_model.bin")).expect("a fixture");
    table.refuse_bytes("text", "once upon a time\n", &["not a checkpoint"]);
    table.refuse_bytes("GGUF", [&b"GGUF"[..], &[0; 200]].concat(), &["GGUF"]);
    table.refuse_bytes("ggml", [&b"fmgg"[..], &[0; 200]].concat(), &["rwkv.cpp"]);
    table.refuse_bytes(
        "LFS",
        "version https://git-lfs.github.com/spec/v1\n",
        &["Git LFS"],
    );
    table.refuse_bytes("cut zip", &bin[..bin.len() - 30], &["zip"]);
    table.refuse_bytes("half a zip", &bin[..bin.len() / 2], &["zip"]);
    let mut bad = bin.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    table.refuse_bytes("flipped bit in a record", bad, &["damaged", "checksum"]);
    // The name of the allowed function, changed within the uncompressed pickle.
    let mut bad = bin.clone();
    let name = b"_rebuild_tensor_v2";
    let at = bad
        .windows(name.len())
        .position(|w| w == name)
        .expect("is there");
    bad[at..at + 4].copy_from_slice(b"evil");
    table.refuse_bytes("a pickle that calls", bad, &["checksum"]);
    let fixture = repository("tests/fixtures/checkpoints/refused-before-1.6.pth");
    table.refuse_model("torch before 1.6", &fixture, &["torch"]);
    table.finish(9);
}

#[test]
fn model_files() {
    let mut table = Table::new();
    let model = table.path("model.safetensors");
    let (source, model_path) = (text(&golden("odd-bin")), text(&model));
    let output = run(["quantize", "-m", &source, "-o", &model_path]);
    assert!(output.status.success(), "{}", stderr(&output));
    let good = fs::read(&model).expect("just written");
    table.refuse_model_as("f32", "int8 to f32", &model, &["int8", "f32"]);

    let verify = |table: &mut Table, what: &str, bytes: &[u8], words: &[&str]| {
        let path = table.write("bad.safetensors", bytes);
        table.refuse(what, &["info", "--verify", "-m", &text(&path)], words);
    };
    let mut bad = good.clone();
    let last = bad.len() / 2;
    bad[last] ^= 4;
    verify(&mut table, "flipped weight", &bad, &["damaged: checksum"]);
    let replace = |from: &str, to: &str| {
        let at = good
            .windows(from.len())
            .position(|w| w == from.as_bytes())
            .expect("is there");
        let mut bad = good.clone();
        bad[at..at + from.len()].copy_from_slice(to.as_bytes());
        bad
    };
    let version = replace("\"format_version\":\"1\"", "\"format_version\":\"2\"");
    verify(
        &mut table,
        "newer",
        &version,
        &["format version 2", "reads 1"],
    );
    let architecture = replace("rwkv-4", "rwkv-9");
    verify(
        &mut table,
        "another architecture",
        &architecture,
        &[
            "rwkv-9",
            "expected rwkv-7, rwkv-6, rwkv-5.0, rwkv-5 or rwkv-4",
        ],
    );
    let quant = replace("\"quant\":\"int8\"", "\"quant\":\"int4\"");
    verify(
        &mut table,
        "unknown quant",
        &quant,
        &["int4", "expected f32, f16, int8, q6, q5 or q4"],
    );
    let scales = replace("head.weight.scale.row", "head.weight.scale.raw");
    verify(
        &mut table,
        "no scales",
        &scales,
        &["head.weight.scale.row", "missing"],
    );
    let config = replace("n_layer", "n_lawer");
    verify(&mut table, "no layers", &config, &["config", "n_layer"]);
    verify(
        &mut table,
        "cut",
        &good[..good.len() - 64],
        &["bad.safetensors"],
    );
    table.finish(8);
}

#[test]
fn arguments() {
    let mut table = Table::new();
    let odd = text(&golden("odd-bin"));
    let demo_tokenizer = text(&repository("cli/demo/tokenizer.json"));
    let config = text(&golden("odd-bin").join("config.json"));
    let world = text(&table.write("rwkv_vocab.txt", "1 '\\x00' 1\n2 '\\x01' 1\n"));
    let damaged = text(&table.write("vocab.txt", "1 '\\x00' 1\n2 '\\x1' 1\n"));
    let world_small = text(&repository("tests/fixtures/tokenizer/world_small.txt"));
    let state = text(&table.write("state", "not a state"));
    let nothing = text(&table.path("nothing"));
    let out = text(&table.path("no/such/folder/model"));
    for (what, args, words) in [
        (
            "token id",
            &["logits", "-m", &odd, "--tokens", "1,99999"][..],
            &["token 1", "99999"][..],
        ),
        (
            "no tokenizer",
            &["-m", &odd, "hello"],
            &["no tokenizer", "tokenizer.json"],
        ),
        (
            "tokenizer too large",
            &["-m", &odd, "--tokenizer", &demo_tokenizer, "hello"],
            &["4096 tokens", "expected at most"],
        ),
        (
            "no tokenizer file",
            &["-m", &odd, "--tokenizer", &nothing, "hi"],
            &["nothing"],
        ),
        (
            "JSON, no tokenizer",
            &["-m", &odd, "--tokenizer", &config, "hi"],
            &["tokenizer"],
        ),
        (
            "World without all bytes",
            &["-m", &odd, "--tokenizer", &world, "hi"],
            &["rwkv_vocab.txt", "no token for the byte 0x02"],
        ),
        (
            "World, damaged",
            &["tokenize", "--tokenizer", &damaged, "hi"],
            &["vocab.txt", "line 2", "hexadecimal"],
        ),
        (
            "World too large",
            &["-m", &odd, "--tokenizer", &world_small, "hi"],
            &["65402 tokens", "expected at most"],
        ),
        ("empty prompt", &["generate", ""], &["prompt is empty"]),
        (
            "no file",
            &["--file", &nothing],
            &["nothing", "cannot read"],
        ),
        (
            "no text",
            &["perplexity", &nothing],
            &["nothing", "cannot read"],
        ),
        (
            "no state",
            &["--load-state", &state, "a"],
            &["state", "not a saved state"],
        ),
        (
            "state missing",
            &["--load-state", &nothing, "a"],
            &["nothing"],
        ),
        (
            "decode",
            &["tokenize", "--decode", "1,x"],
            &["`x` is not a token id"],
        ),
        (
            "decode unknown",
            &["tokenize", "--decode", "70000"],
            &["70000"],
        ),
        (
            "output folder",
            &["quantize", "-o", &out],
            &["no/such/folder", "cannot create"],
        ),
        (
            "state not writable",
            &["-n", "0", "--no-echo", "--save-state", &out, "a"],
            &["no/such/folder"],
        ),
    ] {
        table.refuse(what, args, words);
    }
    table.check(
        "empty stdin",
        &run_with_stdin(["generate"], b""),
        &["prompt is empty"],
    );
    table.finish(18);
}

#[test]
fn misaligned_weights_are_copied_not_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = small();
    let tokens = ["--tokens", "1,2,3", "--json"];
    let logits = |header: &str| {
        let path = folder.path().join("model");
        fs::write(&path, with_header(header, &good.data)).expect("can be written");
        let output = run(["logits", "-m", &text(&path)].iter().chain(&tokens));
        assert!(output.status.success(), "{}", stderr(&output));
        output.stdout
    };
    let header = good.header.to_string();
    let aligned = format!("{header}{}", " ".repeat(8 - header.len() % 8));
    assert_eq!(logits(&aligned), logits(&format!("{aligned} ")));
}

/// Names in files may hold escapes for terminals: they are shown, on stdout and stderr, and not sent.
#[test]
#[cfg(unix)]
fn escapes_in_names_do_not_reach_the_terminal() {
    const ESCAPES: &str = "\u{1b}]0;x\u{7}\u{9b}31m\u{202e}";
    let is_sent = |text: &str| {
        text.contains(|char: char| (char.is_control() && char != '\n') || char == '\u{202e}')
    };
    let folder = tempfile::tempdir().expect("a folder");
    let tokenizer = folder.path().join(format!("{ESCAPES}.json"));
    fs::copy(repository("cli/demo/tokenizer.json"), &tokenizer).expect("copied");
    let model = folder.path().join(format!("{ESCAPES}.model"));
    let (tokenizer, model) = (text(&tokenizer), text(&model));
    let demo = text(&repository("cli/demo"));
    let quantized = run([
        "quantize",
        "-v",
        "-m",
        &demo,
        "--tokenizer",
        &tokenizer,
        "-o",
        &model,
    ]);
    assert!(quantized.status.success(), "{}", stderr(&quantized));
    let outputs = [
        quantized,
        run(["info", "-v", "-m", &model]),
        run(["info", "--json", "--tensors", "-m", &model]),
        run(["info", "-m", &format!("{model}.missing")]),
        run(["generate", "-m", &demo, "--load-state", &model, "a"]),
        run(["tokenize", "-m", &demo, "--tokenizer", &model, "a"]),
    ];
    for output in outputs {
        for bytes in [&output.stdout, &output.stderr] {
            let text = String::from_utf8_lossy(bytes);
            assert!(!is_sent(&text), "{text:?}");
        }
    }
    let info = run(["info", "--json", "-m", &model]);
    let info: Value = serde_json::from_str(&stdout(&info)).expect("JSON");
    assert_eq!(info["model"], model, "the path itself");
}
