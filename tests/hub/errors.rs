//! What is said when a model cannot be had, and that it helps.

use crate::command::stdout;
use crate::common::golden;
use crate::stand_in::Files;
use crate::world::{assert_refused, files_of, World, MODEL};

#[test]
fn a_name_that_does_not_exist_brings_near_ones() {
    let (world, _) = World::with_model("odd-bin");
    for name in [
        "RWKV/rwkv-4-169m-pile",
        "RWKV/rwkv-4-430m-pile",
        "RWKV/rwkv-raven-1b5",
    ] {
        world.hub.commit(name, "main", Files::new());
    }
    let writer = [("HF_TOKEN", "reader")];
    let near = [
        "near names: RWKV/rwkv-4-169m-pile",
        "no such file or folder here",
    ];
    for id in [
        "RWKV/rwkv-4-169m",
        "RWKV/RWKV-4-169M-pile",
        "RWKV/rwkv4-169m-pile",
    ] {
        let words = [&near[..], &["(401)", "HF_TOKEN", id]].concat();
        assert_refused(&world.run(&["--model", id, "Hi"]), &words);
        let words = [&near[..], &["(404)", "the token in HF_TOKEN"]].concat();
        assert_refused(&world.run_with(&writer, &["pull", id]), &words);
    }
    // The right name, the wrong owner.
    let output = world.run(&["pull", "BlinkDL/rwkv-raven-1b5"]);
    assert_refused(&output, &["near names: RWKV/rwkv-raven-1b5"]);
    let output = world.run(&["pull", "no/where"]);
    assert_refused(
        &output,
        &["no/where: no such file or folder here, and no such model"],
    );
}

#[test]
fn a_revision_that_does_not_exist_brings_those_that_do() {
    let (world, _) = World::with_model("odd-bin");
    world.hub.commit(MODEL, "v1", files_of(&golden("odd-bin")));
    let output = world.run(&["pull", "RWKV/tiny@v2"]);
    assert_refused(&output, &["no branch, tag or commit v2; it has main, v1"]);
}

#[test]
fn tokens_and_gates_are_explained() {
    let (world, _) = World::with_model("odd-bin");
    let output = world.run_with(&[("HF_TOKEN", "wrong")], &["pull", MODEL]);
    assert_refused(
        &output,
        &["does not accept the token in HF_TOKEN", "/settings/tokens"],
    );
    world.hub.make_gated(MODEL);
    let gate = format!("accept its conditions on {}/{MODEL}", world.hub.endpoint());
    assert_refused(&world.run(&["pull", MODEL]), &["gated", &gate, "HF_TOKEN"]);
    let output = world.run_with(&[("HF_TOKEN", "reader")], &["pull", MODEL]);
    assert_refused(
        &output,
        &["gated", "the token in HF_TOKEN is of that account"],
    );
    world.hub.make_private(MODEL, "hf_secret");
    assert_refused(&world.run(&["pull", MODEL]), &["(401)", "HF_TOKEN"]);
}

#[test]
fn other_models_are_refused_before_their_weights_come() {
    let (world, _) = World::with_model("odd-bin");
    let mut files = files_of(&golden("small-safetensors"));
    files.insert("config.json".into(), br#"{"model_type": "llama"}"#.to_vec());
    world.hub.commit("other/llama", "main", files);
    world.hub.take_log();
    let output = world.run(&["pull", "other/llama"]);
    assert_refused(&output, &["model_type \"llama\", expected \"rwkv"]);
    assert!(!world
        .hub
        .take_log()
        .iter()
        .any(|request| request.to_storage));
    let only_text = Files::from([("README.md".to_owned(), b"# Soon\n".to_vec())]);
    world.hub.commit("other/empty", "main", only_text);
    assert_refused(
        &world.run(&["pull", "other/empty"]),
        &["no weights: looked for"],
    );
}

#[test]
fn an_index_cannot_name_what_is_elsewhere() {
    for (shard, words) in [
        ("../../../../etc/passwd", "expected a plain file name"),
        (
            "gone.safetensors",
            "names gone.safetensors, which is not there",
        ),
    ] {
        let (world, _) = World::with_model("deep-sharded");
        let mut files = files_of(&golden("deep-sharded"));
        let index = files
            .get_mut("model.safetensors.index.json")
            .expect("is there");
        let text = String::from_utf8(index.clone()).expect("UTF-8");
        *index = text
            .replace("model-00002-of-00004.safetensors", shard)
            .into_bytes();
        world.hub.commit(MODEL, "main", files);
        assert_refused(&world.run(&["pull", MODEL]), &[words]);
    }
}

#[test]
fn bad_settings_are_named() {
    let (world, _) = World::with_model("odd-bin");
    for (variable, value) in [
        ("HF_ENDPOINT", "huggingface.co"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "0"),
        ("HF_TOKEN", "tw\u{f6}"),
        ("SSL_CERT_FILE", "/nowhere.pem"),
    ] {
        let output = world.run_with(&[(variable, value)], &["pull", MODEL]);
        let named = if variable == "SSL_CERT_FILE" {
            value
        } else {
            variable
        };
        assert_refused(&output, &[named]);
    }
    assert_refused(
        &world.run(&["pull", "nothing"]),
        &["no such file or folder"],
    );
    let local = golden("odd-bin");
    let output = world.run(&["pull", local.to_str().expect("UTF-8")]);
    assert_refused(&output, &["is here already"]);
    stdout(&world.run(&["pull", MODEL]));
}
