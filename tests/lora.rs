//! Adapters merged while a model is loaded, against models whose weights the test merges itself, in f64.
//!
//! The bases are golden models in all forms of files. The test takes their weights as `convert` writes them in f32, adds
//! what an adapter adds by the formulas of RWKV-PEFT's merge scripts, and opens that.

mod common;
#[path = "common/tensors.rs"]
mod tensors;

use std::fs;
use std::path::{Path, PathBuf};

use common::{golden, repository};
use rwkv_edge::{
    CheckpointSource, ConvertOptions, ErrorKind, FloatType, Lora, Model, Options, Quant,
};
use tensors::{hugging_face_name, read_folder, safetensors, Tensor, Tensors};

const TOKENS: [u32; 12] = [1, 7, 33, 250, 4, 99, 180, 2, 2, 61, 140, 17];

/// Files of one network each, of RWKV-4 and RWKV-7.
fn bases() -> Vec<PathBuf> {
    vec![
        golden("small-safetensors"),
        repository("tests/fixtures/rwkv-cpp/Q5_1.bin"),
        golden("v7-pth").join("model.pth"),
        golden("v7-hf"),
        golden("v7-gguf-q8_0").join("model-Q8_0.gguf"),
        repository("tests/fixtures/rwkv-cpp7/Q8_0.bin"),
    ]
}

/// Matrices of another shape each, and of both ways in which they are stored.
const MATRICES: [&str; 4] = [
    "blocks.0.att.key",
    "blocks.1.ffn.key",
    "blocks.1.ffn.value",
    "head",
];

/// A row-major matrix of f64.
#[derive(Clone)]
struct Matrix {
    rows: usize,
    cols: usize,
    numbers: Vec<f64>,
}

impl Matrix {
    /// Numbers that look random, are of both signs, and f32 holds them.
    fn random(rows: usize, cols: usize, size: f64, seed: usize) -> Self {
        let number = |i: usize| {
            let hash = (i + 1)
                .wrapping_mul(2_654_435_761)
                .wrapping_add(seed.wrapping_mul(40_503))
                >> 4;
            f64::from((size * ((hash % 4001) as f64 / 2000.0 - 1.0)) as f32)
        };
        Matrix {
            rows,
            cols,
            numbers: (0..rows * cols).map(number).collect(),
        }
    }

    fn of(tensor: &Tensor) -> Self {
        let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
        let numbers = tensor.floats().into_iter().map(f64::from).collect();
        Matrix {
            rows,
            cols,
            numbers,
        }
    }

    fn at(&self, row: usize, col: usize) -> f64 {
        self.numbers[row * self.cols + col]
    }

    /// A matrix of the same shape whose numbers are these sums.
    fn plus(&self, added: impl Fn(usize, usize) -> f64) -> Self {
        let at = |i: usize| (i / self.cols, i % self.cols);
        let sum = |(i, &number): (usize, &f64)| number + added(at(i).0, at(i).1);
        Matrix {
            numbers: self.numbers.iter().enumerate().map(sum).collect(),
            ..*self
        }
    }

    fn plus_product(&self, b: &Matrix, a: &Matrix, scale: f64) -> Self {
        self.plus(|row, col| {
            scale
                * (0..a.rows)
                    .map(|k| b.at(row, k) * a.at(k, col))
                    .sum::<f64>()
        })
    }

    fn plus_disha(&self, m: &Matrix) -> Self {
        self.plus(|row, col| m.at(col % m.rows, row))
    }

    /// `m`: the blocks below each other.
    fn plus_bone(&self, m: &Matrix) -> Self {
        let r = m.cols;
        self.plus(|row, col| {
            let start = col / r * r;
            let terms = (0..r).map(|k| self.at(row, start + k) * m.at(start + k, col - start));
            terms.sum::<f64>() + m.at(start + row % r, col - start)
        })
    }

    fn transposed(&self) -> Self {
        let at = |i: usize| self.at(i % self.rows, i / self.rows);
        Matrix {
            rows: self.cols,
            cols: self.rows,
            numbers: (0..self.numbers.len()).map(at).collect(),
        }
    }

    fn tensor(&self) -> Tensor {
        self.tensor_of(vec![self.rows, self.cols])
    }

    fn tensor_of(&self, shape: Vec<usize>) -> Tensor {
        let numbers: Vec<f32> = self.numbers.iter().map(|&x| x as f32).collect();
        Tensor::from_f32(shape, &numbers)
    }
}

/// A base in f32, as a Hugging Face directory.
struct Base {
    path: PathBuf,
    folder: tempfile::TempDir,
    tensors: Tensors,
    is_v7: bool,
}

impl Base {
    fn new(path: PathBuf) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let source = CheckpointSource::open(&path).unwrap_or_else(|e| panic!("{e}"));
        let options = ConvertOptions::new().dtype(FloatType::F32);
        let written = source.to_hugging_face(folder.path(), &options, &mut |_| {});
        written.unwrap_or_else(|e| panic!("{e}"));
        let tensors = read_folder(folder.path());
        let is_v7 = tensors.contains_key("lm_head.weight");
        Base {
            path,
            folder,
            tensors,
            is_v7,
        }
    }

    fn name(&self, raw: &str) -> String {
        if !self.is_v7 {
            return hugging_face_name(raw);
        }
        let mut name = raw.replace("blocks.", "model.layers.");
        for (ours, theirs) in [
            (".att.key", ".attn.k_proj"),
            (".att.output", ".attn.o_proj"),
            (".att.", ".attn."),
            ("head.", "lm_head."),
            (".ln1.", ".attn_norm."),
        ] {
            name = name.replace(ours, theirs);
        }
        name
    }

    fn tensor(&self, raw: &str) -> &Tensor {
        &self.tensors[&self.name(raw)]
    }

    fn matrix(&self, raw: &str) -> Matrix {
        Matrix::of(self.tensor(&format!("{raw}.weight")))
    }

    fn file(&self, name: &str, tensors: &Tensors) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, safetensors(tensors)).expect("can be written");
        path
    }

    /// The base with other tensors, by their raw names or its own.
    fn with(&self, changed: &Tensors) -> PathBuf {
        let folder = self.folder.path().join("by hand");
        fs::create_dir_all(&folder).expect("can be made");
        fs::copy(
            self.folder.path().join("config.json"),
            folder.join("config.json"),
        )
        .expect("one");
        let mut tensors = self.tensors.clone();
        for (raw, tensor) in changed {
            let is_theirs = tensors.contains_key(raw);
            let name = if is_theirs {
                raw.clone()
            } else {
                self.name(raw)
            };
            let there = tensors.insert(name, tensor.clone());
            assert!(there.is_some(), "{raw}");
        }
        fs::write(folder.join("model.safetensors"), safetensors(&tensors)).expect("can be written");
        folder
    }

    fn what(&self, more: &str) -> String {
        format!("{}, {more}", self.path.display())
    }

    /// Whether the base with adapters has the logits of the base with changed tensors, and others than alone.
    fn check(&self, loras: &[Lora], changed: &Tensors, what: &str) {
        let by_hand = logits(&open(&self.with(changed), Quant::F32, &[]));
        let found = logits(&open(&self.path, Quant::F32, loras));
        let alone = logits(&open(&self.path, Quant::F32, &[]));
        let what = self.what(what);
        let difference = difference(&found, &by_hand);
        assert!(difference < 1e-5, "{what}: {difference} of the deviation");
        assert!(
            crate::difference(&found, &alone) > 1e-2,
            "{what}: nothing changed"
        );
    }
}

fn open(path: &Path, quant: Quant, loras: &[Lora]) -> Model {
    try_open(path, quant, loras).unwrap_or_else(|e| panic!("{e}"))
}

fn try_open(path: &Path, quant: Quant, loras: &[Lora]) -> rwkv_edge::Result<Model> {
    let mut options = Options::new().quant(quant).threads(2);
    options.loras = loras.to_vec();
    Model::open(path, &options)
}

/// Of all tokens.
fn logits(model: &Model) -> Vec<f32> {
    let tokens = TOKENS.map(|token| token % model.n_vocab() as u32);
    model.session().eval_all(&tokens).expect("valid tokens")
}

/// The largest difference, in standard deviations.
fn difference(found: &[f32], expected: &[f32]) -> f64 {
    let n = expected.len() as f64;
    let mean = expected.iter().copied().map(f64::from).sum::<f64>() / n;
    let squares = expected.iter().map(|&x| (f64::from(x) - mean).powi(2));
    let deviation = (squares.sum::<f64>() / n).sqrt();
    let pairs = found.iter().zip(expected);
    let largest = pairs.map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
    largest.fold(0.0, f64::max) / deviation
}

/// LoRA's tensors for some matrices, and the matrices merged.
fn lora(base: &Base, rank: usize, alpha: f64, seed: usize) -> (Tensors, Tensors) {
    let (mut adapter, mut merged) = (Tensors::new(), Tensors::new());
    for (i, name) in MATRICES.iter().enumerate() {
        let matrix = base.matrix(name);
        let a = Matrix::random(rank, matrix.cols, 0.2, seed + 2 * i);
        let b = Matrix::random(matrix.rows, rank, 0.2, seed + 2 * i + 1);
        adapter.insert(format!("{name}.lora_A"), a.tensor());
        adapter.insert(format!("{name}.lora_B"), b.tensor());
        let sum = matrix.plus_product(&b, &a, alpha / rank as f64);
        merged.insert(format!("{name}.weight"), sum.tensor());
    }
    (adapter, merged)
}

#[test]
fn lora_of_every_kind_of_file() {
    for base in bases() {
        let base = Base::new(base);
        // Of more ranks than are added at once, and not a multiple.
        for (rank, alpha) in [(1, 1.0), (20, 40.0)] {
            let (adapter, merged) = lora(&base, rank, alpha, 1);
            let file = base.file("lora", &adapter);
            base.check(&[Lora::new(file, alpha)], &merged, "LoRA");
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
            assert_eq!(
                model.info().mapped_bytes,
                open(&base.path, quant, &loras).info().mapped_bytes
            );
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

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let base = Base::new(golden("small-safetensors"));
    let zeros =
        |shape: &[usize]| Tensor::from_f32(shape.to_vec(), &vec![0.0; shape.iter().product()]);
    let good = || -> Tensors {
        let key = "blocks.0.att.key";
        [
            (format!("{key}.lora_A"), zeros(&[2, 64])),
            (format!("{key}.lora_B"), zeros(&[64, 2])),
        ]
        .into()
    };
    let with = |name: &str, shape: &[usize]| {
        let mut tensors = good();
        tensors.insert(name.into(), zeros(shape));
        tensors
    };
    let without = |name: &str| {
        let mut tensors = good();
        tensors.remove(name);
        tensors
    };
    let one = |name: &str, shape: &[usize]| -> Tensors { [(name.to_owned(), zeros(shape))].into() };
    let mut bad_number = good();
    let tensor = bad_number.get_mut("blocks.0.att.key.lora_A").expect("one");
    tensor.bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let mut bad_type = good();
    let tensor = bad_type.get_mut("blocks.0.att.key.lora_A").expect("one");
    tensor.dtype = "I32".into();
    let (a, b) = ("blocks.0.att.key.lora_A", "blocks.0.att.key.lora_B");
    let some = Some(4.0);
    let cases: &[(&str, Tensors, Option<f64>, ErrorKind, &[&str])] = &[
        (
            "no alpha",
            good(),
            None,
            ErrorKind::Argument,
            &["alpha", "lora_alpha", "FILE:ALPHA"],
        ),
        (
            "NaN",
            good(),
            Some(f64::NAN),
            ErrorKind::Argument,
            &["alpha NaN", "finite number above 0"],
        ),
        (
            "zero",
            good(),
            Some(0.0),
            ErrorKind::Argument,
            &["alpha 0", "above 0"],
        ),
        (
            "alpha of DiSHA",
            one("blocks.0.att.key.disha", &[4, 64]),
            some,
            ErrorKind::Argument,
            &["an alpha, expected none"],
        ),
        (
            "no B",
            without(b),
            some,
            ErrorKind::Format,
            &[a, "without its B"],
        ),
        (
            "no A",
            without(a),
            some,
            ErrorKind::Format,
            &[b, "without its A"],
        ),
        (
            "rank 0",
            {
                let mut t = with(a, &[0, 64]);
                t.insert(b.into(), zeros(&[64, 0]));
                t
            },
            some,
            ErrorKind::Format,
            &[a, "[0, 64]", "[rank, 64]", "at least 1"],
        ),
        (
            "inputs",
            with(a, &[2, 63]),
            some,
            ErrorKind::Format,
            &[a, "[2, 63]", "[rank, 64]"],
        ),
        (
            "outputs",
            with(b, &[63, 2]),
            some,
            ErrorKind::Format,
            &[b, "[63, 2]", "[64, 2]"],
        ),
        (
            "ranks",
            with(b, &[64, 3]),
            some,
            ErrorKind::Format,
            &[b, "[64, 3]", "[64, 2]"],
        ),
        (
            "dimensions",
            with(a, &[128]),
            some,
            ErrorKind::Format,
            &[a, "[128]"],
        ),
        (
            "no such layer",
            with("blocks.3.att.key.lora_A", &[2, 64]),
            some,
            ErrorKind::Format,
            &[
                "blocks.3.att.key.lora_A",
                "not of an RWKV-4 model with 3 layers",
            ],
        ),
        (
            "no such matrix",
            with("blocks.0.att.gate.disha", &[2, 64]),
            some,
            ErrorKind::Format,
            &["blocks.0.att.gate.disha", "not of an RWKV-4"],
        ),
        (
            "of a vector",
            with("blocks.0.ln1.lora_A", &[2, 64]),
            some,
            ErrorKind::Unsupported,
            &["blocks.0.ln1.lora_A", "large matrices"],
        ),
        (
            "another tensor",
            with("blocks.0.att.w1", &[2, 64]),
            some,
            ErrorKind::Format,
            &["blocks.0.att.w1", "expected names of its tensors"],
        ),
        (
            "another shape",
            with("blocks.0.ln1.weight", &[63]),
            some,
            ErrorKind::Format,
            &["blocks.0.ln1.weight", "[63]", "[64]"],
        ),
        (
            "a state",
            with("blocks.0.att.time_state", &[1, 64, 64]),
            some,
            ErrorKind::Format,
            &["blocks.0.att.time_state"],
        ),
        (
            "another adapter",
            with("blocks.0.att.key.lora_magnitude_vector", &[64]),
            some,
            ErrorKind::Unsupported,
            &["lora_magnitude_vector", "another kind of adapter"],
        ),
        (
            "r of DiSHA",
            one("blocks.0.att.key.disha", &[65, 64]),
            None,
            ErrorKind::Format,
            &["[65, 64]", "[r, 64]"],
        ),
        (
            "outputs of DiSHA",
            one("blocks.1.ffn.key.disha", &[4, 64]),
            None,
            ErrorKind::Format,
            &["[4, 64]", "[r, 256]"],
        ),
        (
            "blocks",
            one("blocks.0.att.key.bone", &[4, 15, 15]),
            None,
            ErrorKind::Format,
            &["[4, 15, 15]", "r, r]"],
        ),
        (
            "blocks of rows",
            one("head.bone", &[1, 64, 3]),
            None,
            ErrorKind::Format,
            &["[1, 64, 3]"],
        ),
        (
            "old blocks",
            one("blocks.0.att.key.bone", &[64, 16]),
            None,
            ErrorKind::Format,
            &["[64, 16]"],
        ),
        (
            "nothing",
            one("blocks.0.ln1.weight", &[64]),
            None,
            ErrorKind::Format,
            &["no tensor of an adapter"],
        ),
        ("a number", bad_number, some, ErrorKind::Format, &[a, "NaN"]),
        (
            "a type",
            bad_type,
            some,
            ErrorKind::Unsupported,
            &[a, "I32", "F32, F16 or BF16"],
        ),
    ];
    for (what, tensors, alpha, kind, words) in cases {
        let file = base.file("adapter.safetensors", tensors);
        let opened = try_open(&base.path, Quant::F32, &[Lora::new(file, *alpha)]);
        let error = opened.err().unwrap_or_else(|| panic!("{what}: opened"));
        let text = error.to_string();
        assert_eq!(error.kind(), *kind, "{what}: {text}");
        for word in words.iter().chain(&["adapter.safetensors"]) {
            assert!(text.contains(word), "{what}: {text}");
        }
    }
}

#[test]
fn files_that_are_no_adapters_and_models_that_take_none() {
    let base = Base::new(golden("v7-pth").join("model.pth"));
    let (adapter, _) = lora(&base, 2, 2.0, 1);
    let good = base.file("lora", &adapter);
    let mut init = Tensors::new();
    for (name, tensor) in &adapter {
        init.insert(name.replace("lora_", "init_lora_"), tensor.clone());
    }
    let whole_init = base.file("init", &init);
    init.retain(|name, _| !name.starts_with("head"));
    let part_of_init = base.file("part", &init);
    init.insert(
        "blocks.0.ln1.weight".into(),
        base.tensor("blocks.0.ln1.weight").clone(),
    );
    let mixed_init = base.file("mixed", &init);
    let model_file = base.folder.path().join("model");
    open(&base.path, Quant::Int8, &[])
        .save(&model_file, &mut |_| {})
        .expect("can be written");
    let lora = |file: &Path, alpha: Option<f64>| Lora::new(file, alpha);
    let gguf = golden("v7-gguf-f16").join("model-F16.gguf");
    let nowhere = base.folder.path().join("nowhere");
    let cases: &[(&Path, &[Lora], ErrorKind, &[&str])] = &[
        (
            &model_file,
            &[lora(&good, Some(2.0))],
            ErrorKind::Unsupported,
            &["model file", "quantised already", "checkpoint"],
        ),
        (
            &base.path,
            &[lora(&model_file, None)],
            ErrorKind::Unsupported,
            &["a whole model, expected an adapter"],
        ),
        (
            &base.path,
            &[lora(&gguf, None)],
            ErrorKind::Unsupported,
            &["a whole model, expected an adapter"],
        ),
        (
            &base.path,
            &[lora(&base.path, None)],
            ErrorKind::Format,
            &["no tensor of an adapter"],
        ),
        (
            &base.path,
            &[lora(&nowhere, None)],
            ErrorKind::Io,
            &["nowhere"],
        ),
        (
            &base.path,
            &[lora(&whole_init, None)],
            ErrorKind::Argument,
            &["init", "behind it"],
        ),
        (
            &base.path,
            &[lora(&whole_init, None), lora(&whole_init, None)],
            ErrorKind::Argument,
            &["behind it"],
        ),
        (
            &base.path,
            &[lora(&whole_init, None), lora(&good, Some(2.0))],
            ErrorKind::Argument,
            &["an alpha, expected none"],
        ),
        (
            &base.path,
            &[lora(&whole_init, Some(2.0)), lora(&good, None)],
            ErrorKind::Argument,
            &["an alpha, expected none"],
        ),
        (
            &base.path,
            &[lora(&part_of_init, None), lora(&good, None)],
            ErrorKind::Format,
            &["head.lora_A", "no tensors of head.weight"],
        ),
        (
            &base.path,
            &[lora(&mixed_init, None), lora(&good, None)],
            ErrorKind::Format,
            &["blocks.0.ln1.weight", "alone"],
        ),
    ];
    for (path, loras, kind, words) in cases {
        let error = try_open(path, Quant::F32, loras).err().expect("refused");
        let text = error.to_string();
        assert_eq!(error.kind(), *kind, "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
    let error = CheckpointSource::open(&base.path).expect("a fixture");
    let error = error
        .with_loras(&[lora(&good, None)])
        .expect_err("no alpha");
    assert_eq!(error.kind(), ErrorKind::Argument);
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
