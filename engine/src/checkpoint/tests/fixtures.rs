//! Every form in which a checkpoint comes gives the same tensors.

use std::collections::BTreeMap;

use super::super::Dtype;
use super::{fixture, open, read_all};
use crate::files::Access;
use crate::networks::config::Config;
use crate::networks::tests::sizes;

#[derive(serde::Deserialize)]
struct Expected {
    shape: Vec<usize>,
    values: Vec<f32>,
}

fn expected() -> BTreeMap<String, Expected> {
    let text = std::fs::read_to_string(fixture("checkpoints/expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn tiny_config() -> Config {
    Config::of_sizes(sizes([7, 4, 2, 6, 5]))
}

#[test]
fn every_form_holds_the_same_model() {
    let expected = expected();
    let forms = [
        ("raw-f32.pth", Dtype::F32),
        ("raw-f16.pth", Dtype::F16),
        ("raw-bf16.pth", Dtype::Bf16),
        ("raw-strided.pth", Dtype::F32),
        ("raw-strided-bf16.pth", Dtype::Bf16),
        ("raw-protocol-4.pth", Dtype::F32),
        ("raw-metadata.pth", Dtype::F32),
        ("raw-no-crc.pth", Dtype::F32),
        ("raw-nested.pth", Dtype::F32),
        ("raw.safetensors", Dtype::F32),
        ("hf-bf16.safetensors", Dtype::Bf16),
        ("hf-sharded-bin", Dtype::F32),
    ];
    for (form, dtype) in forms {
        for mapped in [true, false] {
            let checkpoint = open(&fixture("checkpoints").join(form), mapped).unwrap();
            assert_eq!(checkpoint.config, tiny_config(), "{form}");
            let found = read_all(&checkpoint).unwrap();
            assert_eq!(found.len(), expected.len(), "{form}");
            for (name, values) in found {
                let tensor = &checkpoint.tensors[&name];
                assert_eq!(tensor.dtype, dtype, "{form}: {name}");
                assert_eq!(values, expected[&name].values, "{form}: {name}");
                let vector = tensor.read_vector(values.len()).unwrap();
                assert_eq!(vector, values, "{form}: {name} as a vector");
                let squeezed = |shape: &[usize]| -> Vec<usize> {
                    shape.iter().copied().filter(|&dim| dim != 1).collect()
                };
                assert_eq!(squeezed(&tensor.shape), squeezed(&expected[&name].shape));
            }
        }
    }
}

/// Strided tensors have no bytes to use in place; those that do have exactly their elements.
#[test]
fn bytes_in_place() {
    let checkpoint = open(&fixture("checkpoints/raw-strided.pth"), true).unwrap();
    let transposed = &checkpoint.tensors["blocks.0.att.key.weight"];
    assert!(!transposed.is_contiguous() && transposed.contiguous_bytes().is_none());
    let plain = &checkpoint.tensors["blocks.0.att.value.weight"];
    let bytes = plain.contiguous_bytes().unwrap().unwrap();
    let values: Vec<f32> = bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    assert_eq!(values, expected()["blocks.0.att.value.weight"].values);
}

#[test]
fn a_tied_head_is_the_embedding() {
    let checkpoint = open(&fixture("checkpoints/hf-tied"), true).unwrap();
    assert!(checkpoint.config.settings.tie_word_embeddings);
    assert_eq!(checkpoint.config.settings.end_of_text, 2);
    let head = checkpoint.tensors["head.weight"].read_vector(28).unwrap();
    assert_eq!(head, expected()["emb.weight"].values);
}

#[test]
fn golden_models_open() {
    let models = [
        ("deep-sharded", [160, 48, 8, 48, 192]),
        ("odd-bin", [99, 40, 2, 40, 37]),
        ("small-safetensors", [320, 64, 3, 64, 256]),
    ];
    for (name, golden) in models {
        let checkpoint = open(&fixture("golden").join(name), true).unwrap();
        let config = Config::of_sizes(sizes(golden));
        assert_eq!(checkpoint.config, config, "{name}");
        let n_layer = config.sizes.n_layer;
        assert_eq!(checkpoint.tensors.len(), 18 * n_layer + 6, "{name}");
        let read = read_all(&checkpoint).unwrap();
        assert!(
            read.iter()
                .all(|(_, values)| values.iter().any(|v| *v != 0.0)),
            "{name}"
        );
        assert!(checkpoint.tokenizer.is_none());
        assert!(checkpoint.tokenizer_search.contains("tokenizer.json"));
    }
}

#[test]
fn the_built_in_kind_of_folder_opens() {
    use crate::files::Folder;
    static FILES: [(&str, &[u8]); 2] = [
        (
            "model.safetensors",
            include_bytes!("../../../../tests/fixtures/checkpoints/raw.safetensors"),
        ),
        ("tokenizer.json", b"{}"),
    ];
    let opened = super::super::open_folder(Folder::Memory(&FILES), true).unwrap();
    let super::Opened::Checkpoint(checkpoint) = opened else {
        panic!("a model file");
    };
    assert_eq!(checkpoint.config, tiny_config());
    assert_eq!(&*checkpoint.tokenizer.unwrap().bytes, b"{}");
}

#[test]
fn model_files_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.bin");
    let header = br#"{"__metadata__":{"format":"rwkv-edge"},"x":{"dtype":"I8","shape":[2],"data_offsets":[0,2]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.extend([5, 255]);
    std::fs::write(&path, bytes).unwrap();
    let super::Opened::ModelFile(file) = super::open_path(&path, Access::new(true)).unwrap() else {
        panic!("no model file");
    };
    assert_eq!(file.tensors[0].dtype, Dtype::I8);
    let tensor = file.tensor("x").unwrap().unwrap();
    assert_eq!(&*tensor.contiguous_bytes().unwrap().unwrap(), [5, 255]);
    assert!(tensor
        .read_vector(2)
        .unwrap_err()
        .to_string()
        .contains("dtype I8"));
}

#[test]
fn tokenizers_beside_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("some.safetensors");
    std::fs::copy(fixture("checkpoints/raw.safetensors"), &model).unwrap();
    let found = || open(&model, true).unwrap();
    let add = |name: &str| std::fs::write(folder.path().join(name), name).unwrap();
    let name = |found: super::Checkpoint| found.tokenizer.map(|tokenizer| tokenizer.name);
    assert_eq!(name(found()), None);
    add("vocab.txt");
    assert_eq!(name(found()).as_deref(), Some("vocab.txt"));
    add("rwkv_vocab_b.txt");
    assert_eq!(name(found()).as_deref(), Some("rwkv_vocab_b.txt"));
    add("rwkv_vocab_a.txt");
    assert!(found().tokenizer_search.contains("several"));
    assert_eq!(name(found()), None);
    add("tokenizer.json");
    let tokenizer = found().tokenizer.unwrap();
    assert_eq!(
        (&*tokenizer.name, &*tokenizer.bytes),
        ("tokenizer.json", &b"tokenizer.json"[..])
    );
    // The folder itself opens too: it holds one model.
    assert_eq!(open(folder.path(), true).unwrap().config, tiny_config());
}
