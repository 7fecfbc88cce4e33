//! RWKV-5.0 and 5.1, whose decays and bonuses are one number a head, and of which 5.0 has no gate: what they compute, and
//! in which files.

mod common;
#[path = "common/eagle.rs"]
mod eagle;
#[path = "common/tensors.rs"]
mod tensors;

use std::fs;
use std::path::{Path, PathBuf};

use common::{open, Random};
use eagle::{Eagle, V5_0, VOCABULARY};
use rwkv_edge::{CheckpointSource, ConvertOptions, ErrorKind, Model, Options, Quant};
use tensors::{read_file, safetensors, Tensor, Tensors};

/// 5.1 under the name of its bonus that 5.0 has, too.
const V5_1: Eagle = Eagle {
    has_gate: true,
    ..V5_0
};

fn tokens() -> Vec<u32> {
    let mut random = Random(7);
    let mut next = || (random.next() % VOCABULARY as u64) as u32;
    (0..40).map(|_| next()).collect()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("can be written");
        path
    }

    fn checkpoint(&self, name: &str, tensors: &Tensors) -> PathBuf {
        self.file(&format!("{name}.safetensors"), &safetensors(tensors))
    }
}

/// Logits behind each of the tokens, and the state in the end.
fn run(model: &Model) -> (Vec<f32>, Vec<f32>) {
    let mut session = model.session();
    let logits = session.eval_all(&tokens()).expect("valid tokens");
    (logits, session.state().as_slice().to_vec())
}

fn run_file(path: &Path, quant: Quant) -> (Vec<f32>, Vec<f32>) {
    run(&open(path.to_owned(), quant, 2))
}

fn deviation(numbers: &[f64]) -> f64 {
    let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
    let variance = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
    (variance / numbers.len() as f64).sqrt()
}

/// The largest difference, in standard deviations.
fn largest(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let pairs = found.iter().zip(expected);
    let largest = pairs
        .map(|(&a, b)| (f64::from(a) - b).abs())
        .fold(0.0, f64::max);
    largest / deviation(expected)
}

/// Of the difference as a vector, relative.
fn distance(found: &[f32], expected: &[f64]) -> f64 {
    let pairs = found.iter().zip(expected);
    let difference: f64 = pairs.map(|(&a, b)| (f64::from(a) - b).powi(2)).sum();
    (difference / expected.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

#[test]
fn logits_and_states_are_those_of_the_formulas() {
    let folder = Folder::new();
    for model in eagle::all() {
        let tensors = model.tensors();
        let path = folder.checkpoint("model", &tensors);
        let (logits, state) = model.run(&tensors, &tokens());
        let found = run_file(&path, Quant::F32);
        let errors = [largest(&found.0, &logits), largest(&found.1, &state)];
        assert!(errors.iter().all(|&e| e < 1e-4), "{model:?}: {errors:?}");
        let int8 = distance(&run_file(&path, Quant::Int8).0, &logits);
        assert!(int8 < 0.075, "{model:?}: {int8}");

        let info = open(path, Quant::F32, 1);
        let info = info.info();
        let expected = if model.has_gate { "rwkv-5" } else { "rwkv-5.0" };
        assert_eq!((info.architecture, info.version), (expected, 5));
        assert_eq!(info.head_size, model.head_size);
    }
}

/// What is tested is seen: a bonus taken for what it is not is far off, and so is a gate that is left out.
#[test]
fn another_reading_is_far_off() {
    let tensors = V5_1.tensors();
    let (logits, _) = V5_1.run(&tensors, &tokens());
    let ungated = Eagle {
        has_gate: false,
        ..V5_1
    };
    assert!(deviation_of(&ungated.run(&tensors, &tokens()).0, &logits) > 0.1);
    let renamed = tensors.into_iter().map(|(name, tensor)| {
        let name = name.replace("time_first", "time_faaaa");
        (name, tensor)
    });
    let renamed: Tensors = renamed.collect();
    let raw = Eagle {
        bonus: "time_faaaa",
        ..V5_1
    };
    assert!(deviation_of(&raw.run(&renamed, &tokens()).0, &logits) > 0.1);
}

fn deviation_of(found: &[f64], expected: &[f64]) -> f64 {
    let found: Vec<f32> = found.iter().map(|&x| x as f32).collect();
    distance(&found, expected)
}

#[test]
fn any_cut_of_a_prompt_gives_the_same_bits() {
    let folder = Folder::new();
    for model in [V5_0, V5_1] {
        let path = folder.checkpoint("model", &model.tensors());
        for quant in [Quant::F32, Quant::F16, Quant::Int8] {
            let opened = open(path.clone(), quant, 2);
            let whole = run(&opened);
            for n in [1, 2, 7, 39] {
                let mut session = opened.session();
                let mut logits = Vec::new();
                for piece in tokens().chunks(n) {
                    logits.extend(session.eval_all(piece).expect("valid tokens"));
                }
                let is_same = logits == whole.0 && session.state().as_slice() == whole.1;
                assert!(is_same, "{model:?} {quant} {n}");
            }
        }
    }
}

/// 5.1 is 5.2 with equal numbers for all channels of a head, in every bit, and known as the same checkpoint.
#[test]
fn version_5_1_is_5_2_with_equal_numbers() {
    let folder = Folder::new();
    for model in eagle::all().into_iter().filter(|model| model.has_gate) {
        let own = folder.checkpoint("own", &model.tensors());
        let other = folder.checkpoint("other", &model.as_5_2());
        for quant in [Quant::F32, Quant::Int8] {
            assert!(
                run_file(&own, quant) == run_file(&other, quant),
                "{model:?} {quant}"
            );
        }
        let [own, other] = [own, other].map(|path| open(path, Quant::F32, 1).info());
        assert_eq!(own.fingerprint, other.fingerprint);
        assert_eq!(own.n_params, other.n_params);
    }
}

#[test]
fn model_files_states_and_little_memory() {
    let folder = Folder::new();
    for model in [V5_0, V5_1] {
        // Wide enough that little memory has room for less than all.
        let model = Eagle { heads: 8, ..model };
        let path = folder.checkpoint("model", &model.tensors());
        let opened = open(path, Quant::F32, 2);
        let expected = run(&opened);
        let saved = folder.path("saved.safetensors");
        opened.save(&saved, &mut |_| {}).expect("can be written");
        let options = Options::new().threads(1);
        let reopened = Model::open(&saved, &options).expect("just written");
        assert!(run(&reopened) == expected);
        assert_eq!(reopened.info().fingerprint, opened.info().fingerprint);

        let mut session = opened.session();
        session.eval(&tokens()[..20]).expect("valid tokens");
        let state = folder.path("state");
        session.save_state(&state).expect("can be written");
        let mut session = reopened.session();
        session.load_state(&state).expect("of this checkpoint");
        session.eval(&tokens()[20..]).expect("valid tokens");
        assert!(session.state().as_slice() == expected.1);

        let paged = (1..64).find_map(|step| {
            let options = Options::new().threads(1).memory_max(step << 20);
            Model::open(&saved, &options).ok()
        });
        let paged = paged.expect("64 MiB are enough");
        assert!(paged.info().paged_bytes > 0 && run(&paged) == expected);
    }
    // Of the two networks one has no use for the state of the other.
    let ungated = open(folder.checkpoint("ungated", &V5_0.tensors()), Quant::F32, 1);
    let error = ungated.session().load_state(folder.path("state"));
    assert!(error.is_err(), "a state of another model");
}

/// (head, value, key) in checkpoints, (head, key, value) in states, as in 5.2.
#[test]
fn tuned_states() {
    let folder = Folder::new();
    for model in [V5_0, V5_1] {
        let mut tensors = model.tensors();
        let (d, n) = (model.width(), model.head_size);
        let mut random = Random(3);
        let tuned: Vec<f32> = (0..d * n).map(|_| random.float()).collect();
        for layer in 0..eagle::LAYERS {
            let state = Tensor::from_f32(vec![model.heads, n, n], &tuned);
            tensors.insert(format!("blocks.{layer}.att.time_state"), state);
        }
        let opened = open(folder.checkpoint("model", &tensors), Quant::F32, 1);
        assert!(opened.info().has_tuned_state);
        let state = opened.new_state();
        for layer in state.as_slice().chunks_exact(2 * d + d * n) {
            let wkv = &layer[2 * d..];
            let is_transposed = (0..d * n).all(|at| {
                let (head, key, value) = (at / (n * n), at / n % n, at % n);
                wkv[at] == tuned[head * n * n + value * n + key]
            });
            assert!(is_transposed, "{model:?}");
        }
    }
}

/// The numbers are written as they are: with names and shapes of 5.2 in a directory, and as they came in raw form.
#[test]
fn conversions() {
    let folder = Folder::new();
    let convert = ConvertOptions::new().overwrite(true);
    for dtype in ["F32", "BF16", "F16"] {
        for model in eagle::all() {
            let tensors = model.tensors();
            let tensors: Tensors = tensors
                .iter()
                .map(|(name, tensor)| (name.clone(), tensor.as_type(dtype)))
                .collect();
            let path = folder.checkpoint("model", &tensors);
            let expected = run_file(&path, Quant::F32);
            let source = CheckpointSource::open(&path).expect("a checkpoint");

            let raw = folder.path("raw.pth");
            let written = source.to_raw(&raw, &convert, &mut |_| {});
            let written = written.expect("can be written");
            assert!(run_file(&raw, Quant::F32) == expected, "{model:?} {dtype}");
            let n: usize = tensors
                .values()
                .map(|t| t.shape.iter().product::<usize>())
                .sum();
            assert_eq!(written.n_params, n as u64, "one number a head");
            assert_eq!(written.dtype.name(), dtype.to_lowercase());
            let bytes = fs::read(&raw).expect("just written");
            let has = |text: &str| {
                bytes
                    .windows(text.len())
                    .any(|part| part == text.as_bytes())
            };
            for bonus in ["time_first", "time_faaaa"] {
                assert_eq!(has(&format!("att.{bonus}")), bonus == model.bonus);
            }

            let target = folder.path(&format!("{}-{dtype}", model.has_gate));
            let written = source.to_hugging_face(&target, &convert, &mut |_| {});
            if model.has_gate {
                written.expect("can be written");
                assert!(
                    run_file(&target, Quant::F32) == expected,
                    "{model:?} {dtype}"
                );
                let theirs = read_file(&target.join("model.safetensors"));
                let bonus = &theirs["rwkv.blocks.1.attention.time_faaaa"];
                assert_eq!(bonus.shape, [model.heads, model.head_size]);

                // Directories may also have what raw checkpoints of these versions have.
                let theirs = theirs.into_iter().map(|(name, tensor)| {
                    let own = name.replace("rwkv.", "").replace("attention", "att");
                    let own = own.replace("time_faaaa", model.bonus);
                    match ["time_decay", "time_faaaa"]
                        .iter()
                        .any(|end| name.ends_with(end))
                    {
                        true => (
                            name.replace("time_faaaa", model.bonus),
                            tensors[&own].clone(),
                        ),
                        false => (name, tensor),
                    }
                });
                let bytes = safetensors(&theirs.collect());
                fs::write(target.join("model.safetensors"), bytes).expect("can be written");
                assert!(
                    run_file(&target, Quant::F32) == expected,
                    "{model:?} {dtype}"
                );
            } else {
                let error = written.expect_err("no such form");
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                let text = error.to_string();
                assert!(
                    text.contains("RWKV-5.0") && text.contains("--to raw"),
                    "{text}"
                );
                assert!(!target.exists());
            }
        }
    }
}

/// What the published code takes from the width, whatever `config.json` says, is told where the model has another.
#[test]
fn sizes_that_other_readers_refuse() {
    let folder = Folder::new();
    let notes = |path: &Path| {
        let source = CheckpointSource::open(path).expect("a checkpoint");
        let convert = ConvertOptions::new().overwrite(true);
        let written = source.to_hugging_face(folder.path("written"), &convert, &mut |_| {});
        written.expect("can be written").notes
    };
    let mut tensors = V5_1.tensors();
    let found = notes(&folder.checkpoint("own", &tensors));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("hidden units: 160, "), "{found:?}");
    assert!(found[0].contains("RWKV-5 models takes 448 "), "{found:?}");
    for layer in 0..eagle::LAYERS {
        for (name, shape) in [("key", vec![448, 128]), ("value", vec![128, 448])] {
            let zeros = Tensor::from_f32(shape, &vec![0.0; 448 * 128]);
            tensors.insert(format!("blocks.{layer}.ffn.{name}.weight"), zeros);
        }
    }
    let found = notes(&folder.checkpoint("as published", &tensors));
    assert!(found.is_empty(), "{found:?}");

    let found = notes(&common::golden("v6-pth"));
    let sizes: Vec<_> = found
        .iter()
        .filter_map(|note| note.split(", where").next())
        .collect();
    let expected = [
        "hidden units: 160",
        "the rank of each token shift: 8",
        "the rank of the decay: 16",
    ];
    assert_eq!(sizes, expected);
}

/// web-rwkv calls the bonus of 5.2 `time_first`, and leaves it as it is.
#[test]
fn files_of_web_rwkv() {
    let folder = Folder::new();
    let other = V5_1.as_5_2();
    let renamed = other.iter().map(|(name, tensor)| {
        let name = name.replace("time_faaaa", "time_first");
        (name, tensor.as_type("F16"))
    });
    let mut theirs: Tensors = renamed.collect();
    let ours: Tensors = other
        .iter()
        .map(|(name, tensor)| (name.clone(), tensor.as_type("F16")))
        .collect();
    let expected = run_file(&folder.checkpoint("ours", &ours), Quant::F32);
    let path = folder.file("theirs.st", &safetensors(&theirs));
    assert!(run_file(&path, Quant::F32) == expected);
    let raw = folder.path("raw.pth");
    let source = CheckpointSource::open(&path).expect("a checkpoint");
    let written = source.to_raw(&raw, &ConvertOptions::new(), &mut |_| {});
    written.expect("can be written");
    assert!(run_file(&raw, Quant::F32) == expected);

    // All channels in one row.
    for (name, tensor) in &mut theirs {
        if name.ends_with("time_first") {
            tensor.shape = vec![V5_1.width()];
        }
    }
    let path = folder.file("flat.st", &safetensors(&theirs));
    assert!(run_file(&path, Quant::F32) == expected);

    // It transposes tuned states, which nothing shows.
    for layer in 0..eagle::LAYERS {
        let shape = vec![V5_1.heads, V5_1.head_size, V5_1.head_size];
        let zeros = vec![0.0; shape.iter().product()];
        let name = format!("blocks.{layer}.att.time_state");
        theirs.insert(name, Tensor::from_f32(shape, &zeros).as_type("F16"));
    }
    let path = folder.file("tuned.st", &safetensors(&theirs));
    let error = Model::open(path, &Options::new()).expect_err("maybe transposed");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("time_state"), "{error}");
}

/// rwkv.cpp's converter writes exponentials of decays and of `time_first`.
#[test]
fn files_of_rwkv_cpp() {
    let folder = Folder::new();
    for model in eagle::all() {
        // Of heads of another size than 64 rwkv.cpp's own epsilon counts.
        if model.head_size != 64 {
            continue;
        }
        let tensors = model.tensors();
        let path = folder.file("model.bin", &eagle::rwkv_cpp(&tensors));
        let (logits, state) = model.run(&tensors, &tokens());
        let found = run_file(&path, Quant::F32);
        let errors = [largest(&found.0, &logits), largest(&found.1, &state)];
        assert!(errors.iter().all(|&e| e < 1e-4), "{model:?}: {errors:?}");

        // Its numbers go on as they are where that is what checkpoints hold.
        let raw = folder.path(&format!("{}{}.pth", model.bonus, model.has_gate));
        let source = CheckpointSource::open(&path).expect("a checkpoint");
        let options = ConvertOptions::new().overwrite(true);
        let written = source.to_raw(&raw, &options, &mut |_| {});
        written.expect("can be written");
        let again = run_file(&raw, Quant::F32);
        let error = largest(&again.0, &logits);
        assert!(error < 1e-4, "{model:?}: {error}");
    }
}

/// Tensors of heads that were trained as a whole come into the model as its own do.
#[test]
fn adapters() {
    let folder = Folder::new();
    for model in eagle::all() {
        let base = model.tensors();
        let mut adapter = Tensors::new();
        let mut merged = base.clone();
        for layer in 0..eagle::LAYERS {
            for name in ["time_decay", model.bonus] {
                let name = format!("blocks.{layer}.att.{name}");
                let old = &base[&name];
                let changed: Vec<f32> = old.floats().iter().map(|x| x - 0.4).collect();
                let changed = Tensor::from_f32(old.shape.clone(), &changed);
                adapter.insert(name.clone(), changed.clone());
                merged.insert(name, changed);
            }
            let matrix = format!("blocks.{layer}.att.key");
            let zeros = |shape: [usize; 2]| {
                let n = shape[0] * shape[1];
                Tensor::from_f32(shape.to_vec(), &vec![0.0; n])
            };
            let d = model.width();
            adapter.insert(format!("{matrix}.lora_A"), zeros([4, d]));
            adapter.insert(format!("{matrix}.lora_B"), zeros([d, 4]));
        }
        let base = folder.checkpoint("base", &base);
        let expected = run_file(&folder.checkpoint("merged", &merged), Quant::F32);
        let adapter = folder.checkpoint("adapter", &adapter);
        let options = Options::new().quant(Quant::F32).lora(adapter, 8.0);
        let found = Model::open(&base, &options).unwrap_or_else(|e| panic!("{e}"));
        assert!(run(&found) == expected, "{model:?}");
    }
}

/// What belongs to no version is refused by the shape that it has in its file.
#[test]
fn refused() {
    let folder = Folder::new();
    let check = |change: &dyn Fn(&mut Tensors), words: &[&str]| {
        let mut tensors = V5_1.tensors();
        change(&mut tensors);
        let path = folder.checkpoint("bad", &tensors);
        let error = Model::open(path, &Options::new()).expect_err("bad");
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    };
    let four = || Tensor::from_f32(vec![4], &[0.1; 4]);
    check(
        &|tensors| drop(tensors.insert("blocks.1.att.time_decay".into(), four())),
        &["blocks.1.att.time_decay", "[4]", "[2, 64]"],
    );
    check(
        &|tensors| drop(tensors.insert("blocks.1.att.time_first".into(), four())),
        &["blocks.1.att.time_first", "[4]", "[2, 64]"],
    );
    check(
        &|tensors| drop(tensors.insert("blocks.0.att.time_faaaa".into(), four())),
        &["blocks.0.att.time_f", "the same as"],
    );
    check(
        &|tensors| drop(tensors.remove("blocks.1.att.gate.weight")),
        &["blocks.1.att.gate.weight", "missing"],
    );
    check(
        &|tensors| drop(tensors.remove("blocks.1.att.time_first")),
        &["blocks.1.att.time_f", "missing"],
    );
    let huge = Tensor::from_f32(vec![2], &[0.1, 100.0]);
    check(
        &|tensors| drop(tensors.insert("blocks.1.att.time_first".into(), huge.clone())),
        &["blocks.1.att.time_first", "inf", "finite"],
    );
}
