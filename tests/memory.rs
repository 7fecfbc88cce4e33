//! Peak memory while loading: the result and little more, whatever the checkpoint holds.
//!
//! One test alone in its process: it reads the process's own peak resident size from the kernel.

mod common;
#[path = "common/large.rs"]
mod large;
#[path = "common/skipped.rs"]
mod skipped;

#[cfg(target_os = "linux")]
#[test]
fn loading_needs_the_result_and_one_block() {
    use large::{peak_of, skipped_under_emulation, status, write_checkpoint, MIB};
    use rwkv_edge::{Model, Options, Quant, Session};

    if skipped_under_emulation() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    let checkpoint_bytes = write_checkpoint(&path);
    for (quant, no_mmap) in [
        (Quant::Int8, false),
        (Quant::F16, false),
        (Quant::Int8, true),
        (Quant::F16, true),
    ] {
        let options = Options::new().quant(quant).threads(2).no_mmap(no_mmap);
        let (model, peak) = peak_of(|| Model::open(&path, &options).expect("a valid checkpoint"));
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
    let options = Options::new().quant(Quant::Int8);
    let saved = folder.path().join("int8.safetensors");
    let model = Model::open(&path, &options).expect("a valid checkpoint");
    model.save(&saved, &mut |_| {}).expect("room on the disk");
    drop(model);
    let (model, peak) = peak_of(|| Model::open(&saved, &Options::default()).expect("just written"));
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
