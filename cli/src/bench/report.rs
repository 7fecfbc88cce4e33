//! `bench --report`: what anyone with a board can send; and `bench --compare`, two of these side by side.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{bail, Context, Result};
use rwkv_edge::{printable, Model, OutputFile};
use serde_json::{json, Value};

use super::machine::{Energy, System};
use super::{decode, open, Args};
use crate::paths;

/// Key and value by which a report is known.
const KIND: &str = "rwkv_edge_report";
const VERSION: u64 = 1;

/// A report that is being made. Its file is begun before the long work, which then is not done in vain.
pub(super) struct Report {
    file: OutputFile,
    before: Value,
    energy: Energy,
}

impl Report {
    pub(super) fn begin(path: &Path) -> Result<Self> {
        paths::check_replaced(path, paths::Written::Report)?;
        let system = System::here();
        Ok(Report {
            file: OutputFile::create(path)?,
            before: system.now(),
            energy: Energy::start(system),
        })
    }

    /// Writes it, with what `bench` has measured.
    pub(super) fn write(mut self, args: &Args, model: &Model, measured: &Value) -> Result<()> {
        let info = model.info();
        let system = System::here();
        let (after, watts) = (system.now(), self.energy.watts());
        let report = json!({
            KIND: VERSION,
            "program": env!("CARGO_PKG_VERSION"),
            "machine": system.facts(),
            "before": self.before,
            "after": after,
            "mean_watts": watts,
            // Without the path, which may name somebody.
            "model": { "architecture": info.architecture, "n_params": info.n_params },
            "decode_by_threads": by_threads(args)?,
            "bench": measured,
        });
        let mut text = serde_json::to_string_pretty(&report)?;
        text.push('\n');
        self.file.write(text.as_bytes())?;
        self.file.commit()?;
        Ok(())
    }
}

/// Decode speed with 1, 2, 4 ... threads, and all that there are.
fn by_threads(args: &Args) -> Result<Vec<Value>> {
    let most = std::thread::available_parallelism().map_or(1, usize::from);
    let powers = std::iter::successors(Some(1), |n| Some(2 * n));
    let mut counts: Vec<usize> = powers.take_while(|&n| n < most).collect();
    counts.push(most);
    let measure = |n: usize| {
        let tokens_per_s = decode(args, &open(args, n)?, 0)?;
        Ok(json!({ "threads": n, "tokens_per_s": tokens_per_s }))
    };
    counts.into_iter().map(measure).collect()
}

/// Whether a file begins as a report does. Objects are sorted, or as they were filled, by what crates beside this one ask
/// of serde_json.
pub(crate) fn begins_report(start: &[u8]) -> bool {
    let first = start.strip_prefix(b"{\n  \"").unwrap_or_default();
    first.starts_with(KIND.as_bytes()) || first.starts_with(b"after\"")
}

fn read(path: &Path) -> Result<Value> {
    let text =
        fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
    let report: Value = serde_json::from_str(&text)
        .with_context(|| format!("{}: not a report of `bench --report`", path.display()))?;
    match report[KIND].as_u64() {
        Some(VERSION) => Ok(report),
        Some(other) => bail!(
            "{}: a report of version {other}, this program reads {VERSION}",
            path.display()
        ),
        None => bail!("{}: not a report of `bench --report`", path.display()),
    }
}

/// Prints two reports side by side.
pub(super) fn compare(paths: &[std::path::PathBuf]) -> Result<()> {
    let [a, b] = paths else {
        bail!("{} reports, expected two", paths.len());
    };
    let text = side_by_side(&read(a)?, &read(b)?);
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

/// How a number is shown.
struct Figure {
    label: &'static str,
    pointer: &'static str,
    scale: f64,
    unit: &'static str,
}

const FIGURES: &[Figure] = &[
    Figure {
        label: "memory",
        pointer: "/machine/memory_bytes",
        scale: 1e9,
        unit: "GB",
    },
    Figure {
        label: "parameters",
        pointer: "/model/n_params",
        scale: 1e6,
        unit: "M",
    },
    Figure {
        label: "threads",
        pointer: "/bench/threads",
        scale: 1.0,
        unit: "",
    },
    Figure {
        label: "reading",
        pointer: "/bench/read_bytes_per_s",
        scale: 1e9,
        unit: "GB/s",
    },
    Figure {
        label: "f32 multiply-adds",
        pointer: "/bench/f32_macs_per_s",
        scale: 1e9,
        unit: "G/s",
    },
    Figure {
        label: "integer multiply-adds",
        pointer: "/bench/int8_macs_per_s",
        scale: 1e9,
        unit: "G/s",
    },
    Figure {
        label: "decode",
        pointer: "/bench/decode_tokens_per_s",
        scale: 1.0,
        unit: "tokens/s",
    },
    Figure {
        label: "of the byte limit",
        pointer: "/bench/decode_share_of_limit",
        scale: 0.01,
        unit: "%",
    },
    Figure {
        label: "prefill",
        pointer: "/bench/prefill_tokens_per_s",
        scale: 1.0,
        unit: "tokens/s",
    },
    Figure {
        label: "first token",
        pointer: "/bench/first_token_ms",
        scale: 1.0,
        unit: "ms",
    },
    Figure {
        label: "resident",
        pointer: "/bench/peak_rss_bytes",
        scale: 1e6,
        unit: "MB",
    },
    Figure {
        label: "power",
        pointer: "/mean_watts",
        scale: 1.0,
        unit: "W",
    },
];

fn side_by_side(a: &Value, b: &Value) -> String {
    let mut text = String::new();
    let mut line = |label: &str, a: &str, b: &str, ratio: &str| {
        text += format!("{label:<22} {a:<32} {b:<32} {ratio}").trim_end();
        text.push('\n');
    };
    let words = |report: &Value, pointer: &str| match report.pointer(pointer) {
        Some(Value::String(text)) => printable(text).chars().take(32).collect(),
        _ => "-".to_owned(),
    };
    for (label, pointer) in [
        ("board", "/machine/board"),
        ("CPU", "/machine/cpu"),
        ("kernel", "/machine/kernel"),
        ("kernels", "/bench/kernels"),
        ("architecture", "/model/architecture"),
        ("format", "/bench/quant"),
    ] {
        line(label, &words(a, pointer), &words(b, pointer), "");
    }
    let number = |report: &Value, pointer: &str| report.pointer(pointer).and_then(Value::as_f64);
    let shown = |number: Option<f64>, unit: &str| match number {
        None => "-".to_owned(),
        Some(number) if unit.is_empty() => format!("{number}"),
        Some(number) => format!("{number:.1} {unit}"),
    };
    let ratio = |a: Option<f64>, b: Option<f64>| match (a, b) {
        (Some(a), Some(b)) if a > 0.0 => format!("{:.2} x", b / a),
        _ => String::new(),
    };
    for figure in FIGURES {
        let [a, b] = [a, b].map(|report| number(report, figure.pointer).map(|n| n / figure.scale));
        line(
            figure.label,
            &shown(a, figure.unit),
            &shown(b, figure.unit),
            &ratio(a, b),
        );
    }
    let empty = Vec::new();
    let counts = |report: &Value| -> Vec<(u64, f64)> {
        let list = report["decode_by_threads"].as_array().unwrap_or(&empty);
        let pair = |one: &Value| Some((one["threads"].as_u64()?, one["tokens_per_s"].as_f64()?));
        list.iter().filter_map(pair).collect()
    };
    let (a, b) = (counts(a), counts(b));
    let mut threads: Vec<u64> = a.iter().chain(&b).map(|(n, _)| *n).collect();
    threads.sort_unstable();
    threads.dedup();
    for n in threads {
        let of = |list: &[(u64, f64)]| list.iter().find(|one| one.0 == n).map(|one| one.1);
        let (a, b) = (of(&a), of(&b));
        let label = match n {
            1 => "decode, 1 thread".to_owned(),
            n => format!("decode, {n} threads"),
        };
        line(
            &label,
            &shown(a, "tokens/s"),
            &shown(b, "tokens/s"),
            &ratio(a, b),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_report_lacks_is_left_open() {
        let a = json!({
            "machine": { "cpu": "A" }, "bench": { "decode_tokens_per_s": 10.0, "threads": 2 },
            "decode_by_threads": [{ "threads": 1, "tokens_per_s": 6.0 }, { "threads": 2, "tokens_per_s": 10.0 }],
        });
        let b = json!({
            "machine": { "cpu": "B\u{1b}[2J" }, "bench": { "decode_tokens_per_s": 25.0 }, "mean_watts": 4.0,
            "decode_by_threads": [{ "threads": 1, "tokens_per_s": 9.0 }, { "threads": 4, "tokens_per_s": 25.0 }],
        });
        let text = side_by_side(&a, &b);
        let line = |label: &str| {
            let line = text
                .lines()
                .find(|line| line.starts_with(label))
                .expect(label);
            line.split("  ")
                .map(str::trim)
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            line("decode  ")[1..],
            ["10.0 tokens/s", "25.0 tokens/s", "2.50 x"]
        );
        assert_eq!(line("power")[1..], ["-", "4.0 W"]);
        assert_eq!(
            line("decode, 1")[1..],
            ["6.0 tokens/s", "9.0 tokens/s", "1.50 x"]
        );
        assert_eq!(line("decode, 4")[1..], ["-", "25.0 tokens/s"]);
        assert!(!text.contains('\u{1b}'));
    }
}
