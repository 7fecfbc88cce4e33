//! rwkv.cpp's files: every type against numbers that Python worked out from the same blocks (see
//! tests/reference/make_rwkv_cpp.py), and files made bad on purpose.

use super::super::open::open_file;
use super::super::{Dtype, Forms, Opened, RawTensor};
use super::{file, fixture, open, read_all, run};
use crate::error::ErrorKind::{Format, Unsupported};
use crate::files::{Folder, SourceFile};
use crate::networks::form::Form;

const TYPES: [&str; 7] = ["FP32", "FP16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"];

fn bin(name: &str) -> Vec<u8> {
    std::fs::read(fixture("rwkv-cpp").join(format!("{name}.bin"))).unwrap()
}

/// Distance in representable numbers.
fn ulps(a: f32, b: f32) -> u32 {
    let order = |x: f32| {
        let bits = x.to_bits() as i32;
        if bits < 0 {
            i32::MIN - bits
        } else {
            bits
        }
    };
    order(a).abs_diff(order(b))
}

#[test]
fn every_type_holds_what_its_blocks_stand_for() {
    for name in TYPES {
        let path = fixture("rwkv-cpp").join(format!("{name}.safetensors"));
        let expected = open(&path, true).unwrap();
        for mapped in [true, false] {
            let path = fixture("rwkv-cpp").join(format!("{name}.bin"));
            let found = open(&path, mapped).unwrap();
            assert_eq!(found.config, expected.config, "{name}");
            let values = read_all(&found).unwrap();
            for ((tensor, values), (_, expected)) in values.iter().zip(read_all(&expected).unwrap())
            {
                if found.tensors[tensor].is_in_network_form {
                    assert!(tensor.ends_with(".att.time_decay"));
                    let n = values.len();
                    let decay = Forms::read(&found.tensors[tensor], Form::MinusExp, n).unwrap();
                    assert_eq!(&decay.network, values, "{name}: {tensor}: as stored");
                    // Two libraries' logarithms, each rounded from f64 to f32.
                    let pairs = decay.checkpoint.iter().zip(&expected);
                    assert!(
                        pairs.clone().all(|(&a, &b)| ulps(a, b) <= 1),
                        "{name}: {tensor}"
                    );
                } else {
                    assert_eq!(values, &expected, "{name}: {tensor}");
                }
            }
            let decays = found
                .tensors
                .values()
                .filter(|tensor| tensor.is_in_network_form);
            assert_eq!(decays.count(), found.config.sizes.n_layer);
        }
    }
}

/// Types of the tensors, and what the transposed reading of the loader makes of them.
#[test]
fn blocks_are_read_across() {
    for name in TYPES {
        let checkpoint = open(&fixture("rwkv-cpp").join(format!("{name}.bin")), true).unwrap();
        for key in ["blocks.0.ffn.value.weight", "blocks.1.att.key.weight"] {
            let tensor = &checkpoint.tensors[key];
            assert_eq!(tensor.dtype.name().replace('F', "FP"), name);
            let [rows, cols] = tensor.shape[..] else {
                panic!("a matrix")
            };
            let mut plain = vec![0.0; rows * cols];
            tensor.read_rows(0..rows, &mut plain).unwrap();
            let mut across = tensor.clone();
            across.shape.reverse();
            across.strides.reverse();
            for step in [1, 7, 33, cols] {
                for start in (0..cols).step_by(step) {
                    let block = start..cols.min(start + step);
                    let mut out = vec![0.0; block.len() * rows];
                    across.read_rows_once(block.clone(), &mut out).unwrap();
                    for (i, &value) in out.iter().enumerate() {
                        let (col, row) = (start + i / rows, i % rows);
                        assert_eq!(value, plain[row * cols + col], "{name}: {key}");
                    }
                }
            }
        }
    }
}

/// What a decay was before the file was made, from what it holds.
#[test]
fn decays_come_back() {
    let original = open(&fixture("rwkv-cpp/original.safetensors"), true).unwrap();
    let found = open(&fixture("rwkv-cpp/FP32.bin"), true).unwrap();
    for layer in 0..original.config.sizes.n_layer {
        let name = format!("blocks.{layer}.att.time_decay");
        let n = original.config.sizes.n_attention;
        let expected = original.tensors[&name].read_vector(n).unwrap();
        let decay = Forms::read(&found.tensors[&name], Form::MinusExp, n).unwrap();
        for (found, expected) in decay.checkpoint.iter().zip(&expected) {
            // Half a unit in the last place of the exponential is this much in its logarithm.
            let bound = 2f32.powi(-23) * (1.0 + expected.abs());
            assert!(
                (found - expected).abs() <= bound,
                "{found}, expected {expected}"
            );
        }
    }
}

#[test]
fn version_100_holds_no_blocks() {
    for name in ["FP32", "FP16"] {
        let mut bytes = bin(name);
        bytes[4] = 100;
        let file = SourceFile::from_bytes("old", bytes.into());
        let opened = open_file(file, &Folder::Memory(&[]), true).unwrap();
        let Opened::Checkpoint(checkpoint) = opened else {
            panic!("a checkpoint")
        };
        let expected = open(&fixture("rwkv-cpp").join(format!("{name}.bin")), true).unwrap();
        assert_eq!(read_all(&checkpoint).unwrap(), read_all(&expected).unwrap());
    }
}

/// A tensor of a file taken apart: where its header is, its name, and where its numbers begin.
fn tensors(bytes: &[u8]) -> Vec<(usize, RawTensor)> {
    let file = SourceFile::from_bytes("f", bytes.to_vec().into());
    let tensors = super::super::rwkv_cpp::read(&file).unwrap();
    let header = |tensor: &RawTensor| {
        let size = 12 + 4 * tensor.shape.len() + tensor.name.len();
        tensor.offset as usize - size
    };
    tensors
        .into_iter()
        .map(|tensor| (header(&tensor), tensor))
        .collect()
}

/// The file with another number at a byte.
fn with_u32(bytes: &[u8], at: usize, number: u32) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
    bytes
}

#[test]
fn bad_headers() {
    let whole = bin("Q5_1");
    let old = |number: u32| {
        let bytes = with_u32(&whole, 4, 100);
        with_u32(&bytes, 20, number)
    };
    let with = |at: usize, number: u32| with_u32(&whole, at, number);
    let of_file = whole[..20].to_vec();
    run(&[
        file("header cut", of_file, Format, &["rwkv.cpp", "cut"]),
        file(
            "version 99",
            with(4, 99),
            Unsupported,
            &["version 99", "100 or 101"],
        ),
        file("version 102", with(4, 102), Unsupported, &["version 102"]),
        file(
            "old Q4_0",
            old(2),
            Unsupported,
            &["Q4_0", "version 100", "FP16"],
        ),
        file("old Q8_0", old(9), Unsupported, &["Q8_0", "version 100"]),
        file("Q4_1_O", with(20, 4), Unsupported, &["Q4_1_O", "given up"]),
        file("Q4_2", with(20, 5), Unsupported, &["Q4_2"]),
        file("Q4_3", with(20, 6), Unsupported, &["Q4_3"]),
        file("type 10", with(20, 10), Unsupported, &["type 10", "Q5_1"]),
        // The header admits it; the first quantised tensor does not.
        file(
            "old blocks",
            old(1),
            Unsupported,
            &["att.key.weight", "Q5_1", "version 100"],
        ),
        file(
            "n_vocab",
            with(8, 41),
            Format,
            &["emb.weight", "[40, 32]", "[41, 32]"],
        ),
        file(
            "n_embed",
            with(12, 64),
            Format,
            &["emb.weight", "[40, 32]", "[40, 64]"],
        ),
        file("n_layer", with(16, 3), Format, &["2 layers", "expected 3"]),
        file("no tensors", whole[..24].to_vec(), Format, &["0 layers"]),
    ]);
}

#[test]
fn bad_tensors() {
    let whole = bin("Q4_0");
    let tensors = tensors(&whole);
    let find = |name: &str| {
        let found = tensors.iter().find(|(_, tensor)| tensor.name == name);
        found.map(|(at, tensor)| (*at, tensor.clone())).unwrap()
    };
    let (matrix, of_matrix) = find("blocks.0.att.key.weight");
    assert!(matches!(of_matrix.dtype, Dtype::Blocks(_)));
    let (decay, _) = find("blocks.0.att.time_decay");
    let (last, _) = tensors.last().cloned().unwrap();
    let without = |from: usize, to: usize| [&whole[..from], &whole[to..]].concat();
    let renamed = |new: [u8; 3]| {
        let mut bytes = whole.clone();
        // Behind two dimensions and "blocks.0.att.".
        let start = matrix + 20 + 13;
        assert_eq!(&bytes[start..start + 3], b"key");
        bytes[start..start + 3].copy_from_slice(&new);
        bytes
    };
    let last_whole = whole[last..].to_vec();
    let mut unknown = [&whole[..], &last_whole].concat();
    unknown[whole.len() + 16 + 5] = b'x'; // of ln_out.weight, behind one dimension
    let of_matrix_end = of_matrix.end() as usize;
    run(&[
        file(
            "numbers cut",
            whole[..whole.len() - 1].to_vec(),
            Format,
            &["tensor ln_out.weight", "truncated"],
        ),
        file(
            "name cut",
            whole[..last + 22].to_vec(),
            Format,
            &["header is cut"],
        ),
        file(
            "dimensions cut",
            whole[..last + 9].to_vec(),
            Format,
            &["header is cut"],
        ),
        file(
            "trailing bytes",
            [&whole[..], &[0; 5]].concat(),
            Format,
            &["header is cut"],
        ),
        file(
            "twice",
            [&whole[..], &last_whole].concat(),
            Format,
            &["the same as"],
        ),
        file(
            "missing",
            without(matrix, of_matrix_end),
            Format,
            &["blocks.0.att.key.weight", "missing"],
        ),
        file(
            "renamed",
            renamed(*b"kex"),
            Format,
            &["att.key.weight: missing"],
        ),
        file(
            "unknown name",
            unknown,
            Format,
            &["ln_oux.weight", "not part of"],
        ),
        file("not text", renamed(*b"k\xffy"), Format, &["not text"]),
        file(
            "no dimensions",
            with_u32(&whole, matrix, 0),
            Format,
            &["0 dimensions"],
        ),
        file(
            "4 dimensions",
            with_u32(&whole, matrix, 4),
            Format,
            &["4 dimensions"],
        ),
        file(
            "long name",
            with_u32(&whole, matrix + 4, 1 << 30),
            Format,
            &["name of 1073741824 bytes"],
        ),
        file(
            "tensor type",
            with_u32(&whole, matrix + 8, 11),
            Unsupported,
            &["att.key.weight", "type 11"],
        ),
        file(
            "old tensor type",
            with_u32(&whole, matrix + 8, 6),
            Unsupported,
            &["att.key.weight", "Q4_3"],
        ),
        file(
            "no rows",
            with_u32(&whole, matrix + 16, 0),
            Format,
            &["att.key.weight", "[0, 32]"],
        ),
        file(
            "half a block",
            with_u32(&whole, matrix + 12, 48),
            Format,
            &["multiple of 32"],
        ),
        file(
            "huge",
            with_u32(
                &with_u32(&whole, matrix + 12, u32::MAX - 31),
                matrix + 16,
                u32::MAX,
            ),
            Format,
            &["att.key.weight"],
        ),
        // Its numbers are read as the header of the next one, or end beyond the file.
        file("wide", with_u32(&whole, matrix + 12, 64), Format, &[]),
        file("decay", with_u32(&whole, decay + 12, 31), Format, &[]),
        file(
            "scale",
            {
                let mut bytes = whole.clone();
                bytes[of_matrix.offset as usize..][..2].copy_from_slice(&[0x00, 0x7c]);
                bytes
            },
            Format,
            &["att.key.weight", "expected finite"],
        ),
    ]);
}

#[test]
fn decays_are_at_most_0() {
    let whole = bin("FP32");
    let tensors = tensors(&whole);
    let tensor = tensors.iter().find(|(_, tensor)| tensor.is_in_network_form);
    let (_, tensor) = tensor.unwrap();
    let bytes = with_u32(&whole, tensor.offset as usize + 4, 0.5f32.to_bits());
    let file = SourceFile::from_bytes("f", bytes.into());
    let tensors = super::super::rwkv_cpp::read(&file).unwrap();
    let tensor = tensors
        .iter()
        .find(|found| found.name == tensor.name)
        .unwrap();
    let error = Forms::read(tensor, Form::MinusExp, 32)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("time_decay: 0.5 at [1]") && error.contains("at most 0"),
        "{error}"
    );
}

/// Damage anywhere is an error or other numbers, never a panic.
#[test]
fn damage() {
    let reads = |bytes: Vec<u8>| {
        let file = SourceFile::from_bytes("damaged", bytes.into());
        match open_file(file, &Folder::Memory(&[]), true) {
            Ok(Opened::Checkpoint(checkpoint)) => read_all(&checkpoint).is_ok(),
            _ => false,
        }
    };
    for name in ["FP16", "Q5_0"] {
        let sound = bin(name);
        assert!(reads(sound.clone()));
        let tensors = tensors(&sound);
        let headers = tensors
            .iter()
            .flat_map(|(at, tensor)| *at..tensor.offset as usize);
        let sampled = (0..sound.len()).step_by(61);
        for at in (0..24).chain(headers).chain(sampled) {
            let mut bytes = sound.clone();
            bytes[at] ^= 1 << (at * 5 % 8);
            reads(bytes);
        }
        for length in (0..sound.len()).step_by(53) {
            assert!(!reads(sound[..length].to_vec()), "{name}: cut to {length}");
        }
    }
}
