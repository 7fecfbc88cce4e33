//! A checkpoint large enough to see in the process's memory, and that memory.
#![allow(dead_code)]

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::json;

use crate::common::Random;

pub const MIB: u64 = 1 << 20;

/// Whether an emulator runs this process, whose memory would be counted with its own. Says so.
pub fn skipped_under_emulation() -> bool {
    let emulated = std::env::var_os("RWKV_EDGE_EMULATED").is_some();
    if emulated {
        crate::skipped::skipped("memory of the program alone, which an emulator does not tell");
    }
    emulated
}

/// Bytes in the line of /proc/self/status that starts with `key`.
pub fn status(key: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status
        .lines()
        .find(|line| line.starts_with(key))
        .expect("Linux has it");
    let kib = line.split_whitespace().nth(1).expect("a number");
    1024 * kib.parse::<u64>().expect("a number")
}

/// What some work gives, and by how many bytes the process was larger at most than before.
pub fn peak_of<T>(work: impl FnOnce() -> T) -> (T, u64) {
    // Lets the peak start again from what is resident now.
    fs::write("/proc/self/clear_refs", "5").expect("allowed for one's own process");
    let before = status("VmRSS:");
    let result = work();
    (result, status("VmHWM:") - before)
}

/// Vocabulary, width and hidden units of [`write_checkpoint`].
pub const SIZES: (usize, usize, usize) = (24_000, 512, 4096);

/// A raw checkpoint in f32 of 1 layer: 2 x 49 MB of embedding and head, and 24 MB of layers.
pub fn write_checkpoint(path: &Path) -> u64 {
    let (header, size) = header(SIZES, "F32");
    let mut file = BufWriter::new(File::create(path).expect("can be made"));
    file.write_all(&header).expect("room on the disk");
    let mut random = Random(1);
    for _ in 0..size / 4 {
        file.write_all(&(random.float() / 16.0).to_le_bytes())
            .expect("room on the disk");
    }
    file.flush().expect("room on the disk");
    size as u64
}

/// The same of any sizes and dtype, whose numbers are all 0: a hole in the file, which takes no room on the disk.
pub fn write_zeros(path: &Path, sizes: (usize, usize, usize), dtype: &str) -> u64 {
    let (header, size) = header(sizes, dtype);
    let mut file = File::create(path).expect("can be made");
    file.write_all(&header).expect("room on the disk");
    file.set_len((header.len() + size) as u64)
        .expect("room on the disk");
    size as u64
}

/// A file up to its numbers, and the bytes of these.
fn header((v, d, h): (usize, usize, usize), dtype: &str) -> (Vec<u8>, usize) {
    let width = if dtype == "F32" { 4 } else { 2 };
    let mut tensors = vec![("emb.weight".to_owned(), vec![v, d])];
    let mut add = |name: &str, shape: Vec<usize>| tensors.push((name.to_owned(), shape));
    for norm in ["blocks.0.ln0", "blocks.0.ln1", "blocks.0.ln2", "ln_out"] {
        add(&format!("{norm}.weight"), vec![d]);
        add(&format!("{norm}.bias"), vec![d]);
    }
    for vector in ["att.time_mix_k", "att.time_mix_v", "att.time_mix_r"] {
        add(&format!("blocks.0.{vector}"), vec![1, 1, d]);
    }
    for vector in ["ffn.time_mix_k", "ffn.time_mix_r"] {
        add(&format!("blocks.0.{vector}"), vec![1, 1, d]);
    }
    add("blocks.0.att.time_decay", vec![d]);
    add("blocks.0.att.time_first", vec![d]);
    for matrix in [
        "att.key",
        "att.value",
        "att.receptance",
        "att.output",
        "ffn.receptance",
    ] {
        add(&format!("blocks.0.{matrix}.weight"), vec![d, d]);
    }
    add("blocks.0.ffn.key.weight", vec![h, d]);
    add("blocks.0.ffn.value.weight", vec![d, h]);
    add("head.weight", vec![v, d]);
    let mut entries = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in &tensors {
        let begin = end;
        end += width * shape.iter().product::<usize>();
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]});
        entries.insert(name.clone(), entry);
    }
    let mut json = serde_json::Value::from(entries).to_string();
    // As the format's own writer does, so that numbers are aligned.
    json.push_str(&" ".repeat(json.len().next_multiple_of(8) - json.len()));
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json.into_bytes());
    (header, end)
}
