//! Networks of RWKV's family that do not run here are told as what they are, by what gives them away.

use super::build::{safetensors_of, Part};
use super::{open, run, Case};
use crate::error::ErrorKind::Unsupported;

fn model_of(names: &[&str]) -> Vec<u8> {
    let part = |name: &&str| Part {
        name: (*name).to_owned(),
        dtype: "F32",
        shape: vec![2],
        bytes: vec![0; 8],
    };
    safetensors_of(&names.iter().map(part).collect::<Vec<_>>())
}

/// What is said of a file with these tensors.
fn refusal(names: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    std::fs::write(&path, model_of(names)).unwrap();
    let error = open(&path, true).expect_err("refused");
    assert_eq!(error.kind(), Unsupported, "{error}");
    let place = format!("{}: ", path.display());
    let text = error.to_string();
    text.strip_prefix(&place)
        .expect("the file first")
        .to_owned()
}

const V6: [&str; 4] = [
    "emb.weight",
    "blocks.0.ln1.weight",
    "blocks.0.att.time_maa_x",
    "blocks.0.att.receptance.weight",
];
const V7: [&str; 5] = [
    "emb.weight",
    "blocks.0.ln1.weight",
    "blocks.0.att.x_r",
    "blocks.0.att.r_k",
    "blocks.0.ffn.x_k",
];
const FLA: [&str; 3] = [
    "model.embeddings.weight",
    "model.layers.0.attn.x_r",
    "model.layers.0.attn.r_k",
];
const QWEN: [&str; 2] = [
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
];

#[test]
fn tensors_give_networks_away() {
    let more = |base: &[&'static str], names: &[&'static str]| [base, names].concat();
    let deep_embed = "blocks.0.ffn.s_emb.weight";
    let qwen_6 = "QRWKV6, a Qwen2 with RWKV-6 for its attention";
    let qwen_7 = "ARWKV7, a Qwen2 with RWKV-7 for its attention";
    let hybrid = "a hybrid of RWKV and attention";
    let experts = "RWKV with a mixture of experts";
    let variant = "a variant of RWKV-6 with another norm, x060b or x060c";
    let old = "a variant of RWKV-4 with extra attention, such as RWKV-4a";
    for (names, at, title) in [
        (more(&V7, &[deep_embed]), deep_embed, "RWKV-7a (DeepEmbed)"),
        (
            more(&V7, &["blocks.1.ffn.s1"]),
            "blocks.1.ffn.s1",
            "RWKV-7a (DeepEmbed)",
        ),
        (
            more(&FLA, &["model.layers.1.ffn.s_emb.weight"]),
            "model.layers.1.ffn.s_emb.weight",
            "RWKV-7a (DeepEmbed)",
        ),
        (
            more(&V7, &[deep_embed, "blocks.0.qkv.qq.weight"]),
            "blocks.0.qkv.qq.weight",
            "RWKV-7b (DeepEmbed and DEA attention)",
        ),
        (
            more(&V7, &["blocks.0.qkv.k_emb.weight"]),
            "blocks.0.qkv.k_emb.weight",
            "RWKV-7b (DeepEmbed and DEA attention)",
        ),
        (
            more(&V7, &["blocks.0.ffn.enn.weight"]),
            "blocks.0.ffn.enn.weight",
            "RWKV-8 (DeepEmbed)",
        ),
        (
            more(&V7, &["blocks.0.rosa.x_q"]),
            "blocks.0.rosa.x_q",
            "RWKV-8 (ROSA)",
        ),
        (
            more(&V7, &["blocks.0.att.rosa_qkv.emb"]),
            "blocks.0.att.rosa_qkv.emb",
            "RWKV-8 (ROSA)",
        ),
        (
            more(&V7, &["moba.0.attn.key.weight"]),
            "moba.0.attn.key.weight",
            "RWKV-X (sparse attention beside RWKV-7)",
        ),
        (
            more(&V7, &["blocks.1.moba.key.weight"]),
            "blocks.1.moba.key.weight",
            "RWKV-X (sparse attention beside RWKV-7)",
        ),
        (
            more(&V7, &["blocks.0.ffn.experts.3.key.weight"]),
            "blocks.0.ffn.experts.3.key.weight",
            experts,
        ),
        (
            more(&FLA, &["model.layers.0.mlp.gate.weight"]),
            "model.layers.0.mlp.gate.weight",
            experts,
        ),
        (
            more(&QWEN, &["model.layers.0.self_attn.time_mixer.x_r"]),
            "model.layers.0.self_attn.time_mixer.x_r",
            qwen_7,
        ),
        (
            more(&QWEN, &["model.layers.0.self_attn.r_k"]),
            "model.layers.0.self_attn.r_k",
            qwen_7,
        ),
        (
            more(&V7, &["blocks.0.att.key.bias"]),
            "blocks.0.att.key.bias",
            qwen_7,
        ),
        (
            more(
                &QWEN,
                &[
                    "model.layers.0.self_attn.time_maa_x",
                    "model.layers.0.self_attn.q_proj.weight",
                ],
            ),
            "model.layers.0.self_attn.time_maa_x",
            qwen_6,
        ),
        (
            more(&V6, &["blocks.0.att.value.bias", "blocks.0.att.time_faaaa"]),
            "blocks.0.att.value.bias",
            qwen_6,
        ),
        (
            more(&V6, &["blocks.0.att.time_maa_w1"]),
            "blocks.0.att.time_maa_w1",
            qwen_6,
        ),
        (
            more(&FLA, &["model.layers.1.attn.q_proj.weight"]),
            "model.layers.1.attn.q_proj.weight",
            hybrid,
        ),
        (
            more(&V7, &["model.layers.1.self_attn.q_proj.weight"]),
            "model.layers.1.self_attn.q_proj.weight",
            hybrid,
        ),
        (
            more(&V6, &["blocks.0.att.time_maa_rkvw_w1"]),
            "blocks.0.att.time_maa_rkvw_w1",
            variant,
        ),
        (
            vec![
                "model.embeddings.weight",
                "model.layers.0.attn.x_proj.0.weight",
            ],
            "model.layers.0.attn.x_proj.0.weight",
            "RWKV-6 as flash-linear-attention has it",
        ),
        (
            vec!["token_embd.weight", "blk.0.time_mix_first.weight"],
            "blk.0.time_mix_first.weight",
            "RWKV-6 by names that only GGUF files have",
        ),
        (
            vec![
                "emb.weight",
                "blocks.0.att.time_mix_w1",
                "blocks.0.att.time_decay_w1",
            ],
            "blocks.0.att.time_mix_w1",
            "RWKV-6 by the names of web-rwkv's converter",
        ),
        (
            vec!["emb.weight", "blocks.1.att.qq.weight"],
            "blocks.1.att.qq.weight",
            old,
        ),
    ] {
        let expected =
            format!("tensor {at}: shows {title}, expected RWKV-4, RWKV-5, RWKV-6 or RWKV-7");
        assert_eq!(refusal(&names), expected, "{names:?}");
    }
}

/// Names that transformers have as well show nothing alone.
#[test]
fn transformers_are_no_rwkv() {
    let expected = "no name of an RWKV model, expected RWKV-4, RWKV-5, RWKV-6 or RWKV-7";
    for name in [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.attn.q_proj.weight",
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.mlp.experts.0.up_proj.weight",
    ] {
        assert_eq!(refusal(&[name]), format!("tensor {name}: {expected}"));
    }
}

#[test]
fn configurations_give_networks_away() {
    let folder = |name: &'static str, config: &str, words: &'static [&'static str]| Case {
        name,
        files: vec![
            ("model.safetensors", model_of(&V7)),
            ("config.json", config.as_bytes().to_vec()),
        ],
        file: None,
        kind: Unsupported,
        words,
    };
    run(&[
        folder(
            "qwen 6",
            r#"{"model_type":"rwkv6qwen2"}"#,
            &["rwkv6qwen2", "QRWKV6"],
        ),
        folder(
            "qwen 7",
            r#"{"model_type":"rwkv7","architectures":["RwkvHybridForCausalLM"]}"#,
            &["RwkvHybridForCausalLM", "ARWKV7"],
        ),
        folder(
            "experts",
            r#"{"model_type":"rwkv7moe"}"#,
            &["rwkv7moe", "(RWKV-7 with a mixture of experts)"],
        ),
        folder(
            "hybrid",
            r#"{"model_type":"rwkv7","attn":{"layers":[3]}}"#,
            &["config.json: attn", "a hybrid of RWKV-7", "expected null"],
        ),
        folder(
            "deep embed",
            r#"{"model_type":"rwkv7","use_deep_embed":true}"#,
            &["use_deep_embed true: RWKV-7a", "expected false"],
        ),
    ]);
    // What says that there is none of it is no reason to refuse anything.
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"model_type":"rwkv7","attn":null,"use_deep_embed":false}"#;
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), model_of(&V7)).unwrap();
    let error = open(folder.path(), true)
        .expect_err("no whole model")
        .to_string();
    assert!(error.contains("model.safetensors: tensor"), "{error}");
}
