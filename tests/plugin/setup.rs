//! Which device is tested, models on it and beside it, and how far results are apart.

use std::path::PathBuf;
use std::sync::Once;

use rwkv_edge::{
    found_plugins, Device, DeviceInfo, FoundPlugin, Model, Options, Output, Quant, Span,
};

use crate::common::{golden, ids, json, repository, GOLDEN_4};

/// A model, with tokens to feed it.
pub struct Case {
    pub name: &'static str,
    pub path: PathBuf,
    pub tokens: Vec<u32>,
    /// How far prefill may be from the CPU's, in standard deviations of the logits: its operands may be
    /// f16, which models made to have outliers feel more.
    pub prefill_bound: f64,
}

/// How far decode may be from the CPU's with the same weights.
pub const DECODE_BOUND: f64 = 2e-3;

pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = GOLDEN_4
        .iter()
        .map(|name| Case {
            name,
            path: golden(name),
            tokens: ids(&json(golden(name).join("expected.json"))["input_ids"]),
            prefill_bound: 5e-2,
        })
        .collect();
    cases.push(demo());
    cases
}

impl Case {
    /// Of what is done token by token: the first `n`, or fewer where the run is to be short.
    pub fn first(&self, n: usize) -> &[u32] {
        let n = short().map_or(n, |short| short.min(n));
        &self.tokens[..self.tokens.len().min(n)]
    }
}

/// A trained model of the version that plugins run.
pub fn demo() -> Case {
    let path = repository("tests/fixtures/demo4");
    let model = open_on("cpu", path.clone(), Quant::F16);
    let text = std::fs::read_to_string(repository("cli/demo/validation.txt")).expect("a file");
    let start: String = text.chars().take(600).collect();
    let tokens = model
        .tokenizer()
        .expect("has one")
        .encode(&start)
        .expect("text");
    Case {
        name: "demo",
        path,
        tokens,
        prefill_bound: 5e-3,
    }
}

/// Tokens of a short run, which some tests need three of.
pub fn short() -> Option<usize> {
    let number = |text: String| text.parse().map_or(3, |n: usize| n.max(3));
    let emulated = || std::env::var_os("RWKV_EDGE_EMULATED").map(|_| 12);
    let short = std::env::var("RWKV_EDGE_TEST_SHORT").ok();
    short.map(number).or_else(emulated)
}

/// The device under test.
pub fn device() -> String {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if std::env::var_os("RWKV_EDGE_TEST_DEVICE").is_none() {
            std::env::set_var("RWKV_EDGE_PLUGIN_PATH", cpu_plugin());
        }
    });
    std::env::var("RWKV_EDGE_TEST_DEVICE").unwrap_or_else(|_| "cpuplug:0".into())
}

/// The plugin that cargo built beside this program.
pub fn cpu_plugin() -> PathBuf {
    let program = std::env::current_exe().expect("a file");
    let folder = program.parent().expect("in a folder");
    let name = format!(
        "{}cpuplug{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    );
    folder.join(name)
}

pub fn plugin_name() -> String {
    let device = device();
    device.split(':').next().expect("a name").to_owned()
}

pub fn plugin() -> FoundPlugin {
    let name = plugin_name();
    let found = found_plugins()
        .into_iter()
        .find(|p| p.name.as_deref() == Some(&name));
    found.unwrap_or_else(|| panic!("no plugin for {name}: see the top of tests/plugin.rs"))
}

pub fn devices() -> Vec<DeviceInfo> {
    plugin().devices.expect("there are devices")
}

pub fn device_info() -> DeviceInfo {
    let device = device().parse::<Device>().expect("a device").to_string();
    let mut devices = devices().into_iter();
    devices
        .find(|info| info.device == device)
        .expect("there is one")
}

/// f16 and, where the device has it, f32.
pub fn float_quants() -> Vec<Quant> {
    let has = device_info().quants;
    let quants = [Quant::F16, Quant::F32].into_iter();
    quants.filter(|quant| has.contains(quant)).collect()
}

pub fn options(map: &str, quant: Quant) -> Options {
    device();
    Options::new()
        .quant(quant)
        .threads(2)
        .device_map(map.parse().unwrap_or_else(|e| panic!("{e}")))
}

pub fn open_on(map: &str, path: PathBuf, quant: Quant) -> Model {
    Model::open(&path, &options(map, quant)).unwrap_or_else(|e| panic!("{map}: {e}"))
}

/// Rows of logits of all tokens, fed in pieces of so many at most.
pub fn in_pieces(model: &Model, tokens: &[u32], length: usize) -> Vec<f32> {
    let mut state = model.new_state();
    let mut logits = vec![0.0; tokens.len() * model.n_vocab()];
    let mut workspace = model.workspace(length);
    let pieces = tokens
        .chunks(length)
        .zip(logits.chunks_mut(length * model.n_vocab()));
    for (tokens, logits) in pieces {
        let span = Span::new(&mut state, tokens, Output::All);
        model
            .forward(&mut workspace, &mut [span], logits)
            .expect("valid tokens");
    }
    logits
}

pub fn standard_deviation(values: &[f32]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    (values
        .iter()
        .map(|&v| (f64::from(v) - mean).powi(2))
        .sum::<f64>()
        / n)
        .sqrt()
}

/// Largest difference in standard deviations of `expected`.
pub fn deviation(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let differences = found
        .iter()
        .zip(expected)
        .map(|(a, b)| f64::from((a - b).abs()));
    let worst = differences.fold(
        0.0,
        |worst: f64, d| if d > worst || d.is_nan() { d } else { worst },
    );
    worst / standard_deviation(expected).max(1e-12)
}

/// Relative L2 distance.
pub fn distance(found: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let difference: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (difference / expected.iter().map(|&b| square(b)).sum::<f64>()).sqrt()
}

pub fn largest(row: &[f32]) -> u32 {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best }) as u32
}

/// Prints what was measured, and fails where it is beyond the bound.
#[track_caller]
pub fn within(what: &str, found: f64, bound: f64) {
    println!("{:60} {found:.2e} of {bound:.0e}", what);
    assert!(
        found <= bound,
        "{what}: {found:.2e}, expected at most {bound:.0e}"
    );
}
