//! Peak memory of a conversion: a few blocks of numbers, whatever the sizes of files and tensors.
//!
//! Every conversion has a process of its own, this test again with the case in its environment, since an
//! allocator keeps what an earlier one has freed. The peak is that of the whole process.

mod common;
#[path = "common/large.rs"]
mod large;
#[path = "common/skipped.rs"]
mod skipped;

/// Names a conversion: form, type, reading, source and target.
const CASE: &str = "RWKV_EDGE_TEST_CONVERSION";

#[cfg(target_os = "linux")]
#[test]
fn converting_needs_a_few_blocks() {
    use large::{skipped_under_emulation, write_checkpoint, MIB};

    if skipped_under_emulation() {
        return;
    }
    if let Ok(case) = std::env::var(CASE) {
        let parts: Vec<&str> = case.split(' ').collect();
        convert(parts.try_into().expect("five words"));
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let checkpoint_bytes = write_checkpoint(&at("source"));
    let mut failures = Vec::new();
    for (form, dtype, source, target) in [
        ("raw", "keep", "source", "raw-f32.pth"),
        ("raw", "bf16", "source", "raw-bf16.pth"),
        ("hf", "keep", "raw-f32.pth", "hf-f32"),
        ("hf", "f16", "raw-f32.pth", "hf-f16"),
        ("hf", "f32", "raw-bf16.pth", "hf-f32"),
        ("parts", "keep", "hf-f32", "parts"),
        ("across", "keep", "raw-f32.pth", "across"),
        ("across", "f16", "raw-f32.pth", "across"),
        ("across", "f32", "raw-bf16.pth", "across"),
    ] {
        for reading in ["mapped", "read"] {
            let [source, target] = [source, target].map(at);
            let source = match form {
                "across" => transpose_embedding(&source),
                _ => source,
            };
            let case = [form, dtype, reading, text(&source), text(&target)].join(" ");
            let peak = peak_of_process(&case);
            println!("{case}: {} of {} MiB", peak / MIB, checkpoint_bytes / MIB);
            // The program itself has some 6 MiB, the f32 of a block and its mapped pages 4 MiB each,
            // the buffer of a file 1 MiB. A block of a transposed tensor has 16 MiB, and its pages are
            // released every 8 MiB.
            let bound = if form == "across" { 42 } else { 24 };
            if peak > bound * MIB {
                failures.push(format!("{case}: {peak}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[cfg(target_os = "linux")]
fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// Runs this test for one case; its peak resident size in bytes.
#[cfg(target_os = "linux")]
fn peak_of_process(case: &str) -> u64 {
    let mut command = std::process::Command::new(std::env::current_exe().expect("is running"));
    command.args(["--exact", "converting_needs_a_few_blocks", "--nocapture"]);
    let output = command.env(CASE, case).output().expect("starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{case}: {said}");
    let peak = said.lines().find_map(|line| line.strip_prefix("peak "));
    peak.and_then(|peak| peak.parse().ok()).expect("a number")
}

#[cfg(target_os = "linux")]
fn convert([form, dtype, reading, source, target]: [&str; 5]) {
    use rwkv_edge::{CheckpointSource, ConvertOptions, FloatType};

    let mut options = ConvertOptions::new()
        .dtype(match dtype {
            "f32" => Some(FloatType::F32),
            "f16" => Some(FloatType::F16),
            "bf16" => Some(FloatType::Bf16),
            _ => None,
        })
        .overwrite(true);
    if form == "parts" {
        options = options.shard_bytes_max(10_000_000);
    }
    let source = match reading {
        "read" => CheckpointSource::open_without_mmap(source),
        _ => CheckpointSource::open(source),
    };
    let source = source.expect("a valid checkpoint");
    let converted = match form {
        "raw" => source.to_raw(target, &options, &mut |_| {}),
        _ => source.to_hugging_face(target, &options, &mut |_| {}),
    };
    converted.expect("room on the disk");
    println!("peak {}", large::status("VmHWM:"));
}

/// A torch file of ours that says its embedding, the largest tensor, is stored transposed.
#[cfg(target_os = "linux")]
fn transpose_embedding(path: &std::path::Path) -> std::path::PathBuf {
    let mut bytes = std::fs::read(path).expect("was written");
    let (rows, cols) = (large::SIZES.0 as u32, large::SIZES.1 as u32);
    let number = |n: u32| [&b"J"[..], &n.to_le_bytes()].concat();
    let shape = [b"(", &number(rows)[..], &number(cols), b"t"].concat();
    let strides = [b"(", &number(cols)[..], b"K\x01t"].concat();
    let across = [b"(K\x01", &number(rows)[..], b"t"].concat();
    let find = |bytes: &[u8], what: &[u8]| {
        let found = bytes.windows(what.len()).position(|w| w == what);
        found.expect("is in the file")
    };
    let at = find(&bytes, &[shape.clone(), strides.clone()].concat()) + shape.len();
    bytes[at..at + strides.len()].copy_from_slice(&across);
    // Without the table's checksum, in its own header and in the directory, none are checked.
    bytes[14..18].fill(0);
    let tail = bytes.len() - 8192;
    let entry = find(&bytes[tail..], b"archive/data.pkl") + tail - 46;
    bytes[entry + 16..entry + 20].fill(0);
    let path = path.with_extension("across.pth");
    std::fs::write(&path, bytes).expect("room on the disk");
    path
}
