//! What several integration tests need: fixtures, reference results, and a random number or two.
#![allow(dead_code)] // Every test binary uses its own part of this.

use std::path::PathBuf;

use rwkv_edge::{Model, Options, Quant};
use serde_json::Value;

/// Path of a file in the repository, or where a test that was carried to another machine finds it.
pub fn repository(path: &str) -> PathBuf {
    match std::env::var_os("RWKV_EDGE_TEST_ROOT") {
        Some(root) => PathBuf::from(root).join(path),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("..")
            .join(path),
    }
}

/// Small models with what references compute: of RWKV-4,
pub const GOLDEN_4: [&str; 3] = ["small-safetensors", "odd-bin", "deep-sharded"];

/// of checkpoints that can be converted,
pub const CHECKPOINTS: [&str; 9] = [
    "small-safetensors",
    "odd-bin",
    "deep-sharded",
    "v5-pth",
    "v5-hf",
    "v6-pth",
    "v6-hf",
    "v7-pth",
    "v7-hf",
];

/// and all of them.
pub const GOLDEN: [&str; 12] = [
    "small-safetensors",
    "odd-bin",
    "deep-sharded",
    "v5-pth",
    "v5-hf",
    "v6-pth",
    "v6-hf",
    "v6-gguf-f16",
    "v7-pth",
    "v7-hf",
    "v7-gguf-f16",
    "v7-gguf-q8_0",
];

/// Those that tests of networks go over: an emulated CPU takes minutes for all of them, and gets one
/// or two of each version.
pub fn goldens() -> impl Iterator<Item = &'static str> + Clone {
    let few = ["small-safetensors", "v5-pth", "v6-gguf-f16", "v7-pth"];
    let is_emulated = std::env::var_os("RWKV_EDGE_EMULATED").is_some();
    GOLDEN
        .into_iter()
        .filter(move |name| !is_emulated || few.contains(name))
}

pub fn golden(name: &str) -> PathBuf {
    repository("tests/fixtures/golden").join(name)
}

pub fn json(path: PathBuf) -> Value {
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).expect("fixtures are valid JSON")
}

pub fn floats(value: &Value) -> Vec<f64> {
    let values = value.as_array().expect("an array").iter();
    values
        .map(|value| value.as_f64().expect("a number"))
        .collect()
}

/// Numbers of lists in lists.
pub fn all_floats(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().flat_map(all_floats).collect(),
        value => vec![value.as_f64().expect("a number")],
    }
}

pub fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().expect("an array").iter();
    ids.map(|id| id.as_u64().expect("an id") as u32).collect()
}

pub fn open(path: PathBuf, quant: Quant, threads: usize) -> Model {
    let options = Options::new().quant(quant).threads(threads);
    Model::open(&path, &options).unwrap_or_else(|e| panic!("{e}"))
}

/// Numbers that look random and are the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    /// From -1 to 1.
    pub fn float(&mut self) -> f32 {
        (self.next() % 20_001) as f32 / 10_000.0 - 1.0
    }
}

/// Relative L2 distance.
pub fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    // Of nothing but zeros, as in the empty state of RWKV-7, any difference is large.
    let size = b.iter().map(|&b| square(b)).sum::<f64>().max(1e-30);
    (difference / size).sqrt()
}
