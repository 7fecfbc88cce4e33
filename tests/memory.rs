//! Peak memory while loading: the result and little more, whatever the checkpoint holds.
//!
//! One test alone in its process: it reads the process's own peak resident size from the kernel.

mod common;

#[cfg(target_os = "linux")]
#[test]
fn loading_needs_the_result_and_one_block() {
    use std::fs::{self, File};
    use std::io::{BufWriter, Write};

    use common::Random;
    use rwkv_edge::{Model, Options, Quant, Session};
    use serde_json::json;

    /// Bytes in the line of /proc/self/status that starts with `key`.
    fn status(key: &str) -> u64 {
        let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
        let line = status
            .lines()
            .find(|line| line.starts_with(key))
            .expect("Linux has it");
        let kib = line.split_whitespace().nth(1).expect("a number");
        1024 * kib.parse::<u64>().expect("a number")
    }

    /// A raw checkpoint in f32 of 1 layer: 2 x 49 MB of embedding and head, and 24 MB of layers.
    fn write_checkpoint(path: &std::path::Path) -> u64 {
        let (d, h, v) = (512, 4096, 24_000);
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
        let mut header = serde_json::Map::new();
        let mut end = 0;
        for (name, shape) in &tensors {
            let begin = end;
            end += 4 * shape.iter().product::<usize>();
            let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]});
            header.insert(name.clone(), entry);
        }
        let header = serde_json::Value::from(header).to_string();
        let mut file = BufWriter::new(File::create(path).expect("can be made"));
        file.write_all(&(header.len() as u64).to_le_bytes())
            .expect("room on the disk");
        file.write_all(header.as_bytes()).expect("room on the disk");
        let mut random = Random(1);
        for _ in 0..end / 4 {
            file.write_all(&(random.float() / 16.0).to_le_bytes())
                .expect("room on the disk");
        }
        file.flush().expect("room on the disk");
        end as u64
    }

    const MIB: u64 = 1 << 20;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    let checkpoint_bytes = write_checkpoint(&path);
    for (quant, no_mmap) in [
        (Quant::Int8, false),
        (Quant::F16, false),
        (Quant::Int8, true),
        (Quant::F16, true),
    ] {
        // Lets the peak start again from what is resident now.
        fs::write("/proc/self/clear_refs", "5").expect("allowed for one's own process");
        let before = status("VmRSS:");
        let options = Options {
            quant: Some(quant),
            threads: 2,
            no_mmap,
            ..Options::default()
        };
        let model = Model::open(&path, &options).expect("a valid checkpoint");
        let peak = status("VmHWM:") - before;
        let result = model.info().weight_bytes;
        println!(
            "{quant}{}: checkpoint {} MiB, result {} MiB, peak {} MiB",
            if no_mmap { ", read" } else { ", mapped" },
            checkpoint_bytes / MIB,
            result / MIB,
            peak / MIB
        );
        // A block of rows in f32 is 16 MiB; the pages of the mapped file that it came from as much
        // again. The largest tensor is 49 MiB.
        assert!(
            peak <= result + 40 * MIB,
            "{quant}, no_mmap {no_mmap}: {peak} for {result}"
        );
    }
    // A model file is used in place: opening it takes hardly any memory at all.
    let options = Options {
        quant: Some(Quant::Int8),
        ..Options::default()
    };
    let saved = folder.path().join("int8.safetensors");
    let model = Model::open(&path, &options).expect("a valid checkpoint");
    model
        .save(&saved, &mut |_, _| {})
        .expect("room on the disk");
    drop(model);
    fs::write("/proc/self/clear_refs", "5").expect("allowed for one's own process");
    let before = status("VmRSS:");
    let model = Model::open(&saved, &Options::default()).expect("just written");
    let peak = status("VmHWM:") - before;
    println!(
        "model file: {} MiB mapped, peak {} KiB",
        model.info().mapped_bytes / MIB,
        peak / 1024
    );
    assert!(peak <= 2 * MIB, "{peak}");

    // States hold their numbers and little more: scratch memory belongs to whoever runs them.
    const STATES: u64 = 1000;
    let state_bytes = model.info().state_bytes as u64;
    let before = status("VmRSS:");
    let states: Vec<_> = (0..STATES).map(|_| model.new_state()).collect();
    let grown = status("VmRSS:") - before;
    println!("{STATES} states of {state_bytes} bytes: {grown} bytes");
    assert!(grown <= STATES * (state_bytes + 1024) + MIB, "{grown}");
    drop(states);
    // A session owns its scratch memory: 128 rows of it from the first prompt on.
    let decode = model.workspace(1).size_bytes() as u64;
    let prefill = model.workspace(Session::PREFILL_ROWS).size_bytes() as u64;
    let info = model.info();
    let row = 4 * (16 * info.n_embd + 3 * info.n_hidden) as u64;
    assert!(
        decode < MIB && prefill < 128 * row + 2 * MIB,
        "{decode}, {prefill}"
    );
}
