//! Adapters merged while a model is loaded, against models whose weights the test merges itself, in f64.
//!
//! The bases are golden models in all forms of files. The test takes their weights as `convert` writes them in f32, adds
//! what an adapter adds by the formulas of RWKV-PEFT's merge scripts, and opens that.

mod common;
#[path = "common/lora.rs"]
mod merged;
#[path = "lora/refused.rs"]
mod refused;
#[path = "common/tensors.rs"]
mod tensors;

use std::path::PathBuf;

use common::{golden, repository};
use merged::{difference, logits, lora, open, Base, Matrix, MATRICES};
use rwkv_edge::{CheckpointSource, ConvertOptions, FloatType, Lora, Quant};
use tensors::{Tensor, Tensors};

/// Files of one network each, of all versions.
fn bases() -> Vec<PathBuf> {
    vec![
        golden("small-safetensors"),
        repository("tests/fixtures/rwkv-cpp/Q5_1.bin"),
        golden("v5-pth").join("model.pth"),
        golden("v6-hf"),
        golden("v6-gguf-f16").join("model-F16.gguf"),
        golden("v7-pth").join("model.pth"),
        golden("v7-hf"),
        golden("v7-gguf-q8_0").join("model-Q8_0.gguf"),
        repository("tests/fixtures/rwkv-cpp7/Q8_0.bin"),
    ]
}

#[test]
fn lora_of_every_kind_of_file() {
    for base in bases() {
        let base = Base::new(base);
        // Of more ranks than are added at once, and not a multiple.
        for (rank, alpha) in [(1, 1.0), (70, 35.0)] {
            let (adapter, merged) = lora(&base, rank, alpha, 1);
            let file = base.file("lora", &adapter);
            base.check(&[Lora::new(file, alpha)], &merged, "LoRA");
        }
    }
}

/// As PEFT saves an adapter: its own names around those of a directory, or of a raw checkpoint.
#[test]
fn a_folder_of_peft_says_alpha() {
    for base in bases() {
        let base = Base::new(base);
        let key = base.name("blocks.1.ffn.key.weight");
        let key = key.trim_end_matches(".weight");
        let (adapter, _) = lora(&base, 4, 8.0, 21);
        let theirs = |raw: &str| {
            let (module, part) = raw.rsplit_once('.').expect("a part");
            let module = base.name(&format!("{module}.weight"));
            let module = module.trim_end_matches(".weight");
            format!("base_model.model.{module}.{part}.weight")
        };
        let tensors: Tensors = adapter
            .iter()
            .map(|(n, t)| (theirs(n), t.clone()))
            .collect();
        let folder = base.folder.path().join("peft");
        std::fs::create_dir_all(&folder).expect("can be made");
        let file = folder.join("adapter_model.safetensors");
        std::fs::write(&file, tensors::safetensors(&tensors)).expect("can be written");
        for (more, alpha_of_all, alpha_of_key) in [
            (String::new(), 8.0, 8.0),
            (r#","use_rslora":true"#.to_owned(), 16.0, 16.0),
            (format!(r#","alpha_pattern":{{"{key}":2}}"#), 8.0, 2.0),
        ] {
            let config = format!(r#"{{"peft_type":"LORA","r":4,"lora_alpha":8{more}}}"#);
            std::fs::write(folder.join("adapter_config.json"), config).expect("can be written");
            let mut merged = Tensors::new();
            for name in MATRICES {
                let [a, b] = ["A", "B"].map(|x| Matrix::of(&adapter[&format!("{name}.lora_{x}")]));
                let alpha = match name {
                    "blocks.1.ffn.key" => alpha_of_key,
                    _ => alpha_of_all,
                };
                let sum = base.matrix(name).plus_product(&b, &a, alpha / 4.0);
                merged.insert(format!("{name}.weight"), sum.tensor());
            }
            base.check(&[Lora::new(&folder, None)], &merged, &more);
            base.check(&[Lora::new(&file, None)], &merged, &more);
        }
    }
}

#[test]
fn tensors_trained_as_a_whole_replace_the_models() {
    for base in bases() {
        let base = Base::new(base);
        let (mut adapter, mut merged) = lora(&base, 4, 8.0, 5);
        let vectors: &[&str] = match base.is_v7 {
            true => &["att.x_k", "att.w2", "att.r_k", "ln1.weight"],
            // Five matrices in one.
            false
                if base
                    .tensors
                    .keys()
                    .any(|name| name.ends_with("time_maa_w2")) =>
            {
                &["att.time_maa_w2", "att.time_decay_w1", "att.time_faaaa"]
            }
            false => &["att.time_decay", "att.time_mix_k", "ln1.weight"],
        };
        for vector in vectors {
            let raw = format!("blocks.1.{vector}");
            // The directory of RWKV-7 has its small matrices as transposes.
            if *vector == "att.w2" {
                let name = "model.layers.1.attn.w_lora.lora.2.weight";
                let theirs = &base.tensors[name].shape;
                let changed = Matrix::random(theirs[1], theirs[0], 0.5, 9);
                adapter.insert(raw, changed.tensor());
                merged.insert(name.into(), changed.transposed().tensor());
                continue;
            }
            let shape = base.tensor(&raw).shape.clone();
            let changed = Matrix::random(1, shape.iter().product(), 0.5, 9);
            adapter.insert(raw.clone(), changed.tensor_of(shape.clone()));
            merged.insert(raw, changed.tensor_of(shape));
        }
        let file = base.file("lora", &adapter);
        base.check(&[Lora::new(file, 8.0)], &merged, "whole tensors");
    }
}

#[test]
fn pissa_takes_away_what_it_began_with() {
    for base in bases() {
        let base = Base::new(base);
        let (adapter, _) = lora(&base, 4, 4.0, 11);
        let (mut init, mut merged) = (Tensors::new(), Tensors::new());
        for (i, name) in MATRICES.iter().enumerate() {
            let matrix = base.matrix(name);
            let a = Matrix::random(4, matrix.cols, 0.2, 30 + 2 * i);
            let b = Matrix::random(matrix.rows, 4, 0.2, 31 + 2 * i);
            // As some versions of the trainer wrote it.
            init.insert(format!("model.{name}.init_lora_A"), a.tensor());
            init.insert(format!("model.{name}.init_lora_B"), b.tensor());
            let trained =
                ["A", "B"].map(|half| Matrix::of(&adapter[&format!("{name}.lora_{half}")]));
            let less = matrix.plus_product(&b, &a, -1.0);
            let sum = less.plus_product(&trained[1], &trained[0], 1.0);
            merged.insert(format!("{name}.weight"), sum.tensor());
        }
        let files = [base.file("init", &init), base.file("lora", &adapter)];
        let loras = files.map(|file| Lora::new(file, None));
        base.check(&loras, &merged, "PiSSA");
    }
}

/// DiSHA of some matrices. Its r does not divide their inputs.
fn disha(base: &Base, seed: usize) -> (Tensors, Tensors) {
    let (mut adapter, mut merged) = (Tensors::new(), Tensors::new());
    for (i, name) in MATRICES.iter().enumerate() {
        let matrix = base.matrix(name);
        let m = Matrix::random(12 + i, matrix.rows, 0.25, seed + i);
        adapter.insert(format!("{name}.disha"), m.tensor());
        merged.insert(format!("{name}.weight"), matrix.plus_disha(&m).tensor());
    }
    (adapter, merged)
}

#[test]
fn disha_repeats_its_rows() {
    for base in bases() {
        let base = Base::new(base);
        let (adapter, merged) = disha(&base, 50);
        let file = base.file("disha", &adapter);
        base.check(&[Lora::new(file, None)], &merged, "DiSHA");
    }
}

/// The blocks of Bone below each other, and their tensor.
fn blocks(matrix: &Matrix, r: usize, seed: usize) -> (Matrix, Tensor) {
    let m = Matrix::random(matrix.cols, r, 0.1, seed);
    let tensor = m.tensor_of(vec![matrix.cols / r, r, r]);
    (m, tensor)
}

#[test]
fn bone_multiplies_blocks() {
    for base in bases() {
        let base = Base::new(base);
        for leaf in ["disha", "bone"] {
            let (mut adapter, mut merged) = (Tensors::new(), Tensors::new());
            for (i, name) in MATRICES[..3].iter().enumerate() {
                let matrix = base.matrix(name);
                let (m, tensor) = blocks(&matrix, 16, 70 + i);
                adapter.insert(format!("{name}.{leaf}"), tensor);
                merged.insert(format!("{name}.weight"), matrix.plus_bone(&m).tensor());
            }
            let file = base.file("bone", &adapter);
            base.check(&[Lora::new(file, None)], &merged, leaf);
        }
    }
}

/// Bone multiplies what was there before it, so another order has other sums.
#[test]
fn several_are_merged_in_their_order() {
    for base in bases() {
        let base = Base::new(base);
        let name = "blocks.1.ffn.value";
        let matrix = base.matrix(name);
        let a = Matrix::random(4, matrix.cols, 0.3, 90);
        let b = Matrix::random(matrix.rows, 4, 0.3, 91);
        let (m, tensor) = blocks(&matrix, 16, 92);
        let pair = [("A", &a), ("B", &b)];
        let pair = pair.map(|(half, matrix)| (format!("{name}.lora_{half}"), matrix.tensor()));
        let lora = Lora::new(base.file("lora", &pair.into()), 2.0);
        let bone = [(format!("{name}.bone"), tensor)];
        let bone = Lora::new(base.file("bone", &bone.into()), None);
        let first = matrix.plus_product(&b, &a, 0.5).plus_bone(&m);
        let second = matrix.plus_bone(&m).plus_product(&b, &a, 0.5);
        for (loras, sum) in [([&lora, &bone], first), ([&bone, &lora], second)] {
            let merged = [(format!("{name}.weight"), sum.tensor())];
            let loras = loras.map(Clone::clone);
            base.check(&loras, &merged.into(), &format!("{} first", loras[0]));
        }
    }
}

/// One sum a number is rounded as the test rounds it, so all that follows is the same to the bit: rows that are
/// quantised, model files, and what `convert` writes.
#[test]
fn quantised_saved_and_converted_are_the_merged_weights() {
    for base in bases() {
        let base = Base::new(base);
        let (adapter, merged) = disha(&base, 100);
        let loras = [Lora::new(base.file("disha", &adapter), None)];
        let by_hand = base.with(&merged);
        let folder = tempfile::tempdir().expect("a folder");
        for quant in [Quant::F32, Quant::F16, Quant::Int8] {
            let expected = logits(&open(&by_hand, quant, &[]));
            let model = open(&base.path, quant, &loras);
            assert!(logits(&model) == expected, "{}", base.what(quant.name()));
            let file = folder.path().join("model");
            model.save(&file, &mut |_| {}).expect("can be written");
            let saved = open(&file, quant, &[]);
            assert!(logits(&saved) == expected, "{}", base.what("saved"));
            assert_eq!(saved.info().adapters, model.info().adapters);
            assert_eq!(saved.info().fingerprint, model.info().fingerprint);
            // What the one was saved with goes on with the other.
            let mut session = model.session();
            session.eval(&[1, 2]).expect("valid tokens");
            let state = session.state().clone();
            let fits = saved.session().restore(&state, &[]);
            fits.unwrap_or_else(|e| panic!("{e}"));
        }
        let expected = logits(&open(&by_hand, Quant::F32, &[]));
        let options = ConvertOptions::new().dtype(FloatType::F32).overwrite(true);
        let source = || {
            let source = CheckpointSource::open(&base.path).expect("a fixture");
            source.with_loras(&loras).unwrap_or_else(|e| panic!("{e}"))
        };
        let theirs = folder.path().join("directory");
        source()
            .to_hugging_face(&theirs, &options, &mut |_| {})
            .expect("can be written");
        assert!(logits(&open(&theirs, Quant::F32, &[])) == expected);
        let raw = folder.path().join("model.pth");
        source()
            .to_raw(&raw, &options, &mut |_| {})
            .expect("can be written");
        assert!(logits(&open(&raw, Quant::F32, &[])) == expected);
    }
}

/// Not even where an adapter adds nothing.
#[test]
fn a_merged_model_is_not_its_base() {
    for base in bases() {
        let base = Base::new(base);
        let matrix = base.matrix(MATRICES[0]);
        let zeros = |rows: usize, cols: usize| Matrix::random(rows, cols, 0.0, 1).tensor();
        let adapter = [
            (format!("{}.lora_A", MATRICES[0]), zeros(1, matrix.cols)),
            (format!("{}.lora_B", MATRICES[0]), zeros(matrix.rows, 1)),
        ];
        let file = base.file("zeros", &adapter.into());
        let merged = |alpha: f64| open(&base.path, Quant::F32, &[Lora::new(&file, alpha)]);
        let alone = open(&base.path, Quant::F32, &[]);
        let models = [alone, merged(1.0), merged(2.0)];
        assert!(models[0].info().adapters.is_empty());
        let told = format!("{}, alpha 2", file.display());
        assert_eq!(models[2].info().adapters, [told]);
        for (i, one) in models.iter().enumerate() {
            for (j, other) in models.iter().enumerate() {
                let mut session = one.session();
                session.eval(&[3]).expect("a valid token");
                let restored = other.session().restore(session.state(), &[]);
                assert_eq!(restored.is_ok(), i == j, "{i} {j}");
                let are_equal = one.info().fingerprint == other.info().fingerprint;
                assert_eq!(are_equal, i == j, "{i} {j}");
            }
        }
    }
}

/// Names as trainers put things around them, as PEFT adds to them, and as directories have them.
#[test]
fn names_of_all_kinds() {
    for base in bases() {
        let base = Base::new(base);
        let (adapter, merged) = lora(&base, 2, 2.0, 120);
        let by_hand = logits(&open(&base.with(&merged), Quant::F32, &[]));
        let spellings: [&dyn Fn(&str) -> String; 5] = [
            &|name| format!("_orig_mod.{name}"),
            &|name| format!("model.{name}"),
            &|name| format!("base_model.model.{name}.weight"),
            &|name| format!("base_model.model.{name}.default.weight"),
            &|name| {
                let (matrix, leaf) = name.split_at(name.find(".lora").expect("one of LoRA"));
                let theirs = base.name(&format!("{matrix}.weight"));
                format!("{}{leaf}", theirs.trim_end_matches(".weight"))
            },
        ];
        for spell in spellings {
            let named = adapter
                .iter()
                .map(|(name, tensor)| (spell(name), tensor.clone()));
            let file = base.file("lora", &named.collect());
            let found = logits(&open(&base.path, Quant::F32, &[Lora::new(file, 2.0)]));
            let difference = difference(&found, &by_hand);
            assert!(
                difference < 1e-5,
                "{}: {difference}",
                spell("blocks.0.att.key.lora_A")
            );
        }
    }
}

/// RWKV-7 trained with its empty state, beside its matrices.
#[test]
fn a_tuned_state_comes_with_its_adapter() {
    let base = Base::new(golden("v7-hf"));
    let (mut adapter, _) = lora(&base, 2, 2.0, 1);
    for layer in 0..3 {
        let tensor = Matrix::random(3, 64 * 64, 0.1, layer).tensor_of(vec![3, 64, 64]);
        adapter.insert(format!("blocks.{layer}.att.time_state"), tensor);
    }
    let file = base.file("lora", &adapter);
    let model = open(&base.path, Quant::Int8, &[Lora::new(file, 2.0)]);
    assert!(model.info().has_tuned_state);
    assert!(model.new_state().as_slice().iter().any(|&x| x != 0.0));
}
