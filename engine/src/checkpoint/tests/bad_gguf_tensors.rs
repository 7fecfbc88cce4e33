//! GGUF files whose tensors were made bad on purpose, and files that are cut or damaged anywhere.

use super::super::gguf::read;
use super::super::open::open_file;
use super::super::Opened;
use super::bad_gguf::{bad, run};
use super::build_gguf::{model, text, vocabulary, GgufFile, Tensor};
use super::read_all;
use crate::error::ErrorKind::{Format, Unsupported};
use crate::files::{Folder, SourceFile};

/// What is wrong with one tensor.
fn of(
    tensor: &'static str,
    change: impl Fn(&mut Tensor) + 'static,
) -> impl Fn(&mut GgufFile) + 'static {
    move |file| change(file.tensor(tensor))
}

#[test]
fn names_and_shapes() {
    // A machine of 32 bits has no such dimension.
    const TOO_LARGE: &[&str] = match usize::BITS {
        32 => &["time_mix_key", "a dimension of"],
        _ => &["time_mix_key", "too large"],
    };
    const KEY: &str = "blk.1.time_mix_key.weight";
    const FUSED: &str = "blk.1.time_mix_lerp_fused.weight";
    let renamed = |from: &'static str, to: &'static str| of(from, move |t| t.name = to.into());
    run(vec![
        bad("no name", renamed(KEY, ""), Format, &["a name of 0 bytes"]),
        bad(
            "long name",
            of(KEY, |t| t.name = "n".repeat(257)),
            Format,
            &["a name of 257 bytes", "256"],
        ),
        bad(
            "twice",
            renamed(KEY, "blk.1.time_mix_value.weight"),
            Format,
            &["time_mix_value.weight", "twice"],
        ),
        bad(
            "another",
            renamed(KEY, "blk.1.time_mix_kex.weight"),
            Format,
            &["time_mix_kex.weight", "not part of"],
        ),
        bad(
            "outside",
            renamed(KEY, "rope_freqs.weight"),
            Format,
            &["rope_freqs.weight", "not part of"],
        ),
        bad(
            "layer 01",
            renamed(KEY, "blk.01.time_mix_key.weight"),
            Format,
            &["not part of"],
        ),
        bad(
            "another layer",
            renamed(KEY, "blk.2.time_mix_key.weight"),
            Format,
            &["tensors of 3 layers", "2 by"],
        ),
        bad(
            "a far layer",
            renamed(KEY, "blk.18446744073709551615.time_mix_key.weight"),
            Format,
            &["tensors of 18446744073709551615 layers"],
        ),
        bad(
            "missing",
            |f| f.tensors.retain(|t| t.name != KEY),
            Format,
            &["time_mix_key.weight: missing"],
        ),
        bad(
            "no head",
            |f| f.tensors.retain(|t| t.name != "output.weight"),
            Format,
            &["output.weight: missing"],
        ),
        bad(
            "no dimensions",
            of(KEY, |t| t.shape.clear()),
            Format,
            &["time_mix_key", "0 dimensions"],
        ),
        bad(
            "5 dimensions",
            of(KEY, |t| t.shape = vec![1; 5]),
            Format,
            &["time_mix_key", "5 dimensions"],
        ),
        bad(
            "0 rows",
            of(KEY, |t| t.shape[0] = 0),
            Format,
            &["time_mix_key", "a dimension of 0"],
        ),
        bad(
            "many rows",
            of(KEY, |t| t.shape[0] = 1 << 62),
            Format,
            &["time_mix_key"],
        ),
        bad(
            "all rows",
            of(KEY, |t| t.shape[0] = u64::MAX),
            Format,
            &["time_mix_key"],
        ),
        bad(
            "overflow",
            of(KEY, |t| t.shape = vec![1 << 40; 4]),
            Format,
            TOO_LARGE,
        ),
        bad(
            "transposed",
            of("blk.0.channel_mix_value.weight", |t| t.shape.reverse()),
            Format,
            &["ffn.value.weight", "[96, 32]", "[32, 96]"],
        ),
        bad(
            "5 mixes",
            of(FUSED, |t| t.shape[0] = 5),
            Format,
            &["lerp_fused"],
        ),
        bad(
            "12 mixes",
            of(FUSED, |t| t.shape = vec![12, 16]),
            Format,
            &["lerp_fused", "[12, 16]", "[6, 1, 1, 32]"],
        ),
        bad(
            "mixes in two",
            of(FUSED, |t| t.shape = vec![6, 2, 16]),
            Format,
            &["lerp_fused", "[6, 2, 16]"],
        ),
        bad(
            "heads",
            of("blk.1.time_mix_r_k.weight", |t| t.shape = vec![2, 16]),
            Format,
            &["r_k", "[2, 16]", "one row"],
        ),
        bad(
            "a vector",
            of("blk.1.time_mix_w1.weight", |t| t.shape = vec![128]),
            Format,
            &["time_mix_w1", "[128]"],
        ),
        bad(
            "no matrix",
            of("blk.1.time_mix_w2.weight", |t| t.shape = vec![128]),
            Format,
            &["time_mix_w2", "expected a matrix"],
        ),
        bad(
            "half a block",
            of("blk.0.channel_mix_value.weight", |t| t.shape = vec![64, 48]),
            Format,
            &["multiple of 32"],
        ),
        bad(
            "Q3_K",
            of(KEY, |t| t.kind = 11),
            Unsupported,
            &["time_mix_key", "type Q3_K", "Q8_0 file"],
        ),
        bad(
            "Q2_K",
            of(KEY, |t| t.kind = 10),
            Unsupported,
            &["type Q2_K"],
        ),
        bad(
            "IQ4_XS",
            of(KEY, |t| t.kind = 23),
            Unsupported,
            &["type IQ4_XS"],
        ),
        bad("I32", of(KEY, |t| t.kind = 26), Unsupported, &["type I32"]),
        bad(
            "type 99",
            of(KEY, |t| t.kind = 99),
            Unsupported,
            &["type 99"],
        ),
        bad(
            "K blocks",
            of(KEY, |t| t.kind = 12),
            Format,
            &["[32, 32] of Q4_K", "multiple of 256"],
        ),
        bad(
            "scale",
            of("blk.0.channel_mix_value.weight", |t| t.numbers[1] = 0x7c),
            Format,
            &["blocks.0.ffn.value.weight", "expected finite"],
        ),
    ]);
}

#[test]
fn places() {
    const KEY: &str = "blk.1.time_mix_key.weight";
    let shifted = |by: i64| {
        move |file: &mut GgufFile| {
            let mut at = 0;
            for tensor in &mut file.tensors {
                tensor.offset = Some(at);
                if tensor.name == KEY {
                    tensor.offset = at.checked_add_signed(by);
                }
                at = (at + tensor.numbers.len() as u64).next_multiple_of(32);
            }
        }
    };
    let at = |offset: u64| of(KEY, move |t| t.offset = Some(offset));
    run(vec![
        bad(
            "off by one",
            shifted(1),
            Format,
            &["time_mix_key", "a multiple of 32"],
        ),
        bad(
            "overlap",
            shifted(-32),
            Format,
            &[
                "time_mix_key",
                "overlaps with tensor blk.1.time_mix_receptance.weight",
            ],
        ),
        bad(
            "gap",
            shifted(32),
            Format,
            &[
                "time_mix_key",
                "leaves a gap behind tensor blk.1.time_mix_receptance",
            ],
        ),
        bad("at the start", at(0), Format, &["overlaps with"]),
        bad(
            "far",
            at(u64::MAX - 31),
            Format,
            &["time_mix_key", "at 18446744073709551584", "truncated"],
        ),
        bad(
            "beyond",
            at(1 << 40),
            Format,
            &["time_mix_key", "truncated"],
        ),
        bad(
            "first gap",
            |f| f.tensors[0].offset = Some(1 << 12),
            Format,
            &["leaves a gap behind the header"],
        ),
        // Two tensors of the whole file would be read twice.
        bad(
            "the last again",
            |f| {
                let end = f.tensors.len() - 1;
                let offset = f.tensors[end - 1].numbers.len() as u64;
                f.tensors[end].offset = Some(offset.next_multiple_of(32));
            },
            Format,
            &["overlaps"],
        ),
        bad(
            "wide",
            of(KEY, |t| t.shape[0] = 64),
            Format,
            &["overlaps with tensor blk.1.time_mix_key"],
        ),
        bad(
            "narrow",
            of(KEY, |t| t.shape[0] = 16),
            Format,
            &["leaves a gap behind tensor blk.1.time_mix_key"],
        ),
        bad(
            "numbers cut",
            |f| assert!(f.tensors.last_mut().unwrap().numbers.pop().is_some()),
            Format,
            &["output.weight", "truncated"],
        ),
    ]);
}

/// A header may be as long as it likes only up to a bound.
#[test]
fn long_headers() {
    let mut file = model(5);
    file.set("x", text(&"x".repeat(16 << 20)));
    let bytes = file.bytes();
    let error = read(&SourceFile::from_bytes("f", bytes.into())).expect_err("long");
    let text = error.to_string();
    assert!(
        text.contains("key x") && text.contains("at most 16777216"),
        "{text}"
    );
}

fn reads(bytes: Vec<u8>) -> bool {
    let file = SourceFile::from_bytes("damaged", bytes.into());
    match open_file(file, &Folder::Memory(&[]), true) {
        Ok(Opened::Checkpoint(checkpoint)) => read_all(&checkpoint).is_ok(),
        _ => false,
    }
}

/// Everything is there only in the whole file; where it is cut, an error says so.
#[test]
fn cut_at_every_byte() {
    let mut file = model(300);
    vocabulary(&mut file, &["ab"]);
    for (sound, step) in [(model(3).bytes(), 1), (file.bytes(), 17)] {
        assert!(reads(sound.clone()));
        for length in (0..sound.len()).step_by(step) {
            let file = SourceFile::from_bytes("cut", sound[..length].to_vec().into());
            let error = match open_file(file, &Folder::Memory(&[]), true) {
                Ok(_) => panic!("read without its last {} bytes", sound.len() - length),
                Err(error) => error,
            };
            assert_eq!(error.kind(), Format, "{error}");
            assert!(error.to_string().starts_with("cut: "), "{error}");
        }
    }
}

/// Damage anywhere is an error or other numbers, never a panic.
#[test]
fn damage() {
    let mut file = model(300);
    vocabulary(&mut file, &["ab"]);
    for (sound, step) in [(model(3).bytes(), 2), (file.bytes(), 13)] {
        let step = step * super::emulated_step();
        let header = sound.len().min(14_000);
        let mut read = 0;
        let numbers = (header..sound.len()).step_by(997 * super::emulated_step());
        for at in (0..header).step_by(step).chain(numbers) {
            let mut bytes = sound.clone();
            bytes[at] ^= 1 << (at * 5 % 8);
            read += usize::from(reads(bytes));
            let mut bytes = sound.clone();
            bytes[at] = [0x00, 0xff, 0x7f, 0x80][at % 4];
            read += usize::from(reads(bytes));
        }
        assert!(read < 2 * header / step, "{read} damaged files were read");
    }
}
