//! Bases of adapters, and their weights merged by the formulas in f64.
#![allow(dead_code)] // Every test binary uses its own part of this.

use std::fs;
use std::path::{Path, PathBuf};

use rwkv_edge::{CheckpointSource, ConvertOptions, FloatType, Lora, Model, Options, Quant};

use crate::tensors::{hugging_face_name, read_folder, safetensors, Tensor, Tensors};

const TOKENS: [u32; 12] = [1, 7, 33, 250, 4, 99, 180, 2, 2, 61, 140, 17];

/// Matrices of another shape each, and of both ways in which they are stored.
pub const MATRICES: [&str; 4] = [
    "blocks.0.att.key",
    "blocks.1.ffn.key",
    "blocks.1.ffn.value",
    "head",
];

/// A row-major matrix of f64.
#[derive(Clone)]
pub struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub numbers: Vec<f64>,
}

impl Matrix {
    /// Numbers that look random, are of both signs, and f32 holds them.
    pub fn random(rows: usize, cols: usize, size: f64, seed: usize) -> Self {
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

    pub fn of(tensor: &Tensor) -> Self {
        let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
        let numbers = tensor.floats().into_iter().map(f64::from).collect();
        Matrix {
            rows,
            cols,
            numbers,
        }
    }

    pub fn at(&self, row: usize, col: usize) -> f64 {
        self.numbers[row * self.cols + col]
    }

    /// A matrix of the same shape whose numbers are these sums.
    pub fn plus(&self, added: impl Fn(usize, usize) -> f64) -> Self {
        let at = |i: usize| (i / self.cols, i % self.cols);
        let sum = |(i, &number): (usize, &f64)| number + added(at(i).0, at(i).1);
        Matrix {
            numbers: self.numbers.iter().enumerate().map(sum).collect(),
            ..*self
        }
    }

    pub fn plus_product(&self, b: &Matrix, a: &Matrix, scale: f64) -> Self {
        self.plus(|row, col| {
            scale
                * (0..a.rows)
                    .map(|k| b.at(row, k) * a.at(k, col))
                    .sum::<f64>()
        })
    }

    pub fn plus_disha(&self, m: &Matrix) -> Self {
        self.plus(|row, col| m.at(col % m.rows, row))
    }

    /// `m`: the blocks below each other.
    pub fn plus_bone(&self, m: &Matrix) -> Self {
        let r = m.cols;
        self.plus(|row, col| {
            let start = col / r * r;
            let terms = (0..r).map(|k| self.at(row, start + k) * m.at(start + k, col - start));
            terms.sum::<f64>() + m.at(start + row % r, col - start)
        })
    }

    pub fn transposed(&self) -> Self {
        let at = |i: usize| self.at(i % self.rows, i / self.rows);
        Matrix {
            rows: self.cols,
            cols: self.rows,
            numbers: (0..self.numbers.len()).map(at).collect(),
        }
    }

    pub fn tensor(&self) -> Tensor {
        self.tensor_of(vec![self.rows, self.cols])
    }

    pub fn tensor_of(&self, shape: Vec<usize>) -> Tensor {
        let numbers: Vec<f32> = self.numbers.iter().map(|&x| x as f32).collect();
        Tensor::from_f32(shape, &numbers)
    }
}

/// A base in f32, as a Hugging Face directory.
pub struct Base {
    pub path: PathBuf,
    pub folder: tempfile::TempDir,
    pub tensors: Tensors,
    pub is_v7: bool,
}

impl Base {
    pub fn new(path: PathBuf) -> Self {
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

    pub fn name(&self, raw: &str) -> String {
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

    pub fn tensor(&self, raw: &str) -> &Tensor {
        &self.tensors[&self.name(raw)]
    }

    pub fn matrix(&self, raw: &str) -> Matrix {
        Matrix::of(self.tensor(&format!("{raw}.weight")))
    }

    pub fn file(&self, name: &str, tensors: &Tensors) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, safetensors(tensors)).expect("can be written");
        path
    }

    /// The base with other tensors, by their raw names or its own.
    pub fn with(&self, changed: &Tensors) -> PathBuf {
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

    pub fn what(&self, more: &str) -> String {
        format!("{}, {more}", self.path.display())
    }

    /// Whether the base with adapters has the logits of the base with changed tensors, and others than alone.
    pub fn check(&self, loras: &[Lora], changed: &Tensors, what: &str) {
        let by_hand = logits(&open(&self.with(changed), Quant::F32, &[]));
        let found = logits(&open(&self.path, Quant::F32, loras));
        let alone = logits(&open(&self.path, Quant::F32, &[]));
        let what = self.what(what);
        let [by_hand, alone] = [by_hand, alone].map(|other| difference(&found, &other));
        // The merged weights are rounded once more here; 3.3e-5 on a CPU whose kernels fuse nothing.
        assert!(by_hand < 1e-4, "{what}: {by_hand} of the deviation");
        assert!(alone > 1e-2, "{what}: nothing changed");
    }
}

pub fn open(path: &Path, quant: Quant, loras: &[Lora]) -> Model {
    try_open(path, quant, loras).unwrap_or_else(|e| panic!("{e}"))
}

pub fn try_open(path: &Path, quant: Quant, loras: &[Lora]) -> rwkv_edge::Result<Model> {
    let mut options = Options::new().quant(quant).threads(2);
    options.loras = loras.to_vec();
    Model::open(path, &options)
}

/// Of all tokens.
pub fn logits(model: &Model) -> Vec<f32> {
    let tokens = TOKENS.map(|token| token % model.n_vocab() as u32);
    model.session().eval_all(&tokens).expect("valid tokens")
}

/// The largest difference, in standard deviations.
pub fn difference(found: &[f32], expected: &[f32]) -> f64 {
    let n = expected.len() as f64;
    let mean = expected.iter().copied().map(f64::from).sum::<f64>() / n;
    let squares = expected.iter().map(|&x| (f64::from(x) - mean).powi(2));
    let deviation = (squares.sum::<f64>() / n).sqrt();
    let pairs = found.iter().zip(expected);
    let largest = pairs.map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
    largest.fold(0.0, f64::max) / deviation
}

/// LoRA's tensors for some matrices, and the matrices merged.
pub fn lora(base: &Base, rank: usize, alpha: f64, seed: usize) -> (Tensors, Tensors) {
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
