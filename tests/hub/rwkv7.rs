//! Repositories of RWKV-7: directories of flash-linear-attention, and raw files.

use std::fs;

use crate::command::{stderr, stdout};
use crate::common::golden;
use crate::stand_in::Files;
use crate::world::{assert_generates, assert_refused, files_of, greedy, names, World, MODEL};

const LIST: &str = "rwkv_vocab_v20230424.txt";

/// The 256 bytes, as tokens 1 to 256.
fn byte_list() -> Vec<u8> {
    let line = |byte: usize| format!("{} b'\\x{byte:02x}' 1\n", byte + 1);
    (0..256).map(line).collect::<String>().into_bytes()
}

fn generate(world: &World, model: &str, name: &str) {
    let (args, _) = greedy(name);
    let mut command = world.command();
    command.args(["generate", "--model", model]).args(args);
    let output = command.output().expect("the binary starts");
    assert_generates(&output, name);
}

#[test]
fn directories_come_with_their_vocabulary() {
    let (world, _) = World::with_model("odd-bin");
    let mut files = files_of(&golden("v7-hf"));
    files.insert(LIST.into(), byte_list());
    files.insert("modeling_rwkv7.py".into(), b"raise SystemExit\n".to_vec());
    let commit = world.hub.commit(MODEL, "main", files);
    generate(&world, MODEL, "v7-hf");
    let expected = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        LIST,
    ];
    let snapshot = world.cache().join("snapshots").join(commit);
    assert_eq!(names(&snapshot), expected);
    let said = stdout(&world.run(&["tokenize", "-m", MODEL, "ab"]));
    assert!(said.contains("98") && said.contains("99"), "{said}");
}

#[test]
fn raw_files_come_with_their_vocabulary() {
    let (world, _) = World::with_model("odd-bin");
    let model = fs::read(golden("v7-pth").join("model.pth")).expect("readable");
    let files = Files::from([
        ("rwkv7-tiny.pth".to_owned(), model),
        (LIST.to_owned(), byte_list()),
        ("README.md".to_owned(), b"# A model\n".to_vec()),
    ]);
    let commit = world.hub.commit("BlinkDL/rwkv7", "main", files);
    let output = world.run(&["pull", "BlinkDL/rwkv7"]);
    assert_refused(&output, &["--model BlinkDL/rwkv7/rwkv7-tiny.pth"]);
    generate(&world, "BlinkDL/rwkv7/rwkv7-tiny.pth", "v7-pth");
    let snapshots = world.hub_cache().join("models--BlinkDL--rwkv7/snapshots");
    assert_eq!(names(&snapshots.join(commit)), ["rwkv7-tiny.pth", LIST]);
}

/// Without the model, World's own list is what is fetched for a World model, and `tokenizer.json` for others.
#[test]
fn the_tokenizer_alone_is_the_one_that_counts() {
    for (n_vocab, wanted) in [(65_536, LIST), (300, "tokenizer.json")] {
        let (world, _) = World::with_model("odd-bin");
        let config = format!("{{\"model_type\": \"rwkv7\", \"vocab_size\": {n_vocab}}}");
        let files = Files::from([
            ("config.json".to_owned(), config.into_bytes()),
            ("model.safetensors".to_owned(), vec![0; 100]),
            ("tokenizer.json".to_owned(), b"{}".to_vec()),
            (LIST.to_owned(), byte_list()),
        ]);
        let commit = world.hub.commit(MODEL, "main", files);
        let output = world.run(&["tokenize", "-m", MODEL, "ab"]);
        assert_eq!(
            output.status.success(),
            wanted == LIST,
            "{}",
            stderr(&output)
        );
        let snapshot = world.cache().join("snapshots").join(commit);
        assert_eq!(names(&snapshot), ["config.json", wanted], "{n_vocab}");
    }
}
