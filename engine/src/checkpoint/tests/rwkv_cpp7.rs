//! rwkv.cpp's files of RWKV-7: what its converter puts together or transposes is as in the raw checkpoint again (see
//! tests/reference/make_rwkv_cpp7.py).

use std::collections::BTreeMap;

use super::super::open::open_file;
use super::super::{Checkpoint, Opened};
use super::{file, fixture, open, read_all, run};
use crate::error::ErrorKind::Format;
use crate::files::{Folder, SourceFile};

const FILES: [&str; 5] = ["FP32", "FP16", "Q8_0", "Q5_1", "Q4_0"];

/// CRC-32 of the numbers of every tensor that counts, as f32, by file.
fn expected() -> BTreeMap<String, BTreeMap<String, u32>> {
    #[derive(serde::Deserialize)]
    struct File {
        crc32: BTreeMap<String, u32>,
    }
    #[derive(serde::Deserialize)]
    struct Expected {
        files: BTreeMap<String, File>,
    }
    let text = std::fs::read_to_string(fixture("rwkv-cpp7/expected.json")).unwrap();
    let expected: Expected = serde_json::from_str(&text).unwrap();
    let files = expected.files.into_iter();
    files.map(|(name, file)| (name, file.crc32)).collect()
}

/// Zeros have no sign there.
fn crc32(values: &[f32]) -> u32 {
    let values: Vec<f32> = values.iter().map(|x| x + 0.0).collect();
    crc32fast::hash(bytemuck::cast_slice(&values))
}

fn bin(name: &str) -> Vec<u8> {
    std::fs::read(fixture("rwkv-cpp7").join(format!("{name}.bin"))).unwrap()
}

fn open_bytes(bytes: Vec<u8>) -> crate::error::Result<Checkpoint> {
    let file = SourceFile::from_bytes("m", bytes.into());
    match open_file(file, &Folder::Memory(&[]), true)? {
        Opened::Checkpoint(checkpoint) => Ok(*checkpoint),
        Opened::ModelFile(_) => panic!("a model file"),
    }
}

#[test]
fn every_file_holds_what_its_numbers_stand_for() {
    let original = open(&fixture("rwkv-cpp7/original.safetensors"), true).unwrap();
    let sizes = original.config.sizes;
    assert_eq!(
        (sizes.head_size, sizes.rank_gate, sizes.rank_value),
        (16, 10, 3)
    );
    let all = expected();
    for name in FILES {
        let path = fixture("rwkv-cpp7").join(format!("{name}.bin"));
        for mapped in [true, false] {
            let found = open(&path, mapped).unwrap();
            assert_eq!(found.config, original.config, "{name}");
            let values = read_all(&found).unwrap();
            assert_eq!(values.len(), all[name].len(), "{name}");
            for (tensor, values) in values {
                let expected = all[name].get(&tensor);
                assert_eq!(Some(&crc32(&values)), expected, "{name}: {tensor}");
            }
        }
    }
    // And that is the checkpoint, where nothing was rounded.
    let values = read_all(&original).unwrap();
    for (tensor, values) in values {
        assert_eq!(crc32(&values), all["FP32"][&tensor], "{tensor}");
    }
}

/// A tensor of such a file, to be changed.
struct Record {
    name: String,
    dtype: u32,
    /// As ggml has it: the length of a row first.
    dims: Vec<u32>,
    data: Vec<u8>,
}

/// The records of an FP32 or FP16 file.
fn records(bytes: &[u8]) -> Vec<Record> {
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let mut records = Vec::new();
    let mut at = 24;
    while at < bytes.len() {
        let [n_dims, name_len, dtype] = [0, 4, 8].map(|more| number(at + more));
        let dims: Vec<u32> = (0..n_dims as usize)
            .map(|i| number(at + 12 + 4 * i))
            .collect();
        at += 12 + 4 * dims.len();
        let name = &bytes[at..at + name_len as usize];
        at += name.len();
        let n: u32 = dims.iter().product();
        let data = &bytes[at..at + (n * [4, 2][dtype as usize]) as usize];
        at += data.len();
        records.push(Record {
            name: String::from_utf8(name.to_vec()).unwrap(),
            dtype,
            dims,
            data: data.to_vec(),
        });
    }
    records
}

fn file_of(header: &[u8], records: &[Record]) -> Vec<u8> {
    let mut bytes = header[..24].to_vec();
    for record in records {
        let numbers = [
            record.dims.len() as u32,
            record.name.len() as u32,
            record.dtype,
        ];
        let numbers = numbers.iter().chain(&record.dims);
        bytes.extend(numbers.flat_map(|n| n.to_le_bytes()));
        bytes.extend(record.name.as_bytes());
        bytes.extend(&record.data);
    }
    bytes
}

/// The file after a change to all tensors whose names end so.
fn changed(end: &str, change: impl Fn(&mut Record)) -> Vec<u8> {
    let whole = bin("FP32");
    let mut records = records(&whole);
    let mut found = records
        .iter_mut()
        .filter(|record| record.name.ends_with(end));
    change(found.next().expect("there"));
    found.for_each(change);
    file_of(&whole, &records)
}

fn with_dims(end: &str, dims: &[u32]) -> Vec<u8> {
    changed(end, |record| record.dims = dims.to_vec())
}

/// Dimensions of 1 say nothing.
#[test]
fn forms_of_the_same_meaning() {
    assert_eq!(file_of(&bin("FP32"), &records(&bin("FP32"))), bin("FP32"));
    let expected = read_all(&open_bytes(bin("FP32")).unwrap()).unwrap();
    for (end, dims) in [
        ("att.x_rwkvag", &[32, 1, 6][..]),
        ("att.x_rwkvag", &[32, 6]),
        ("att.x_rwkvag", &[32, 6, 1]),
        ("att.x_rwkvag", &[192]),
        ("att.x_rwkvag", &[192, 1, 1]),
        ("att.r_k", &[16, 2]),
        ("att.r_k", &[1, 16, 2]),
        ("att.r_k", &[16, 2, 1]),
        ("att.r_k", &[16, 1, 2]),
        ("att.k_k", &[32]),
        ("att.k_a", &[1, 32]),
        ("ffn.x_k", &[32]),
        ("att.w0", &[32]),
    ] {
        let found = open_bytes(with_dims(end, dims)).unwrap_or_else(|e| panic!("{end}: {e}"));
        assert_eq!(found.config.sizes.head_size, 16, "{end} {dims:?}");
        assert!(read_all(&found).unwrap() == expected, "{end} {dims:?}");
    }
    // Six in f16, too, which no converter writes today.
    let halves = changed("att.x_rwkvag", |record| {
        let numbers = record.data.chunks_exact(4);
        let numbers = numbers.map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        record.data = numbers
            .flat_map(|x| half::f16::from_f32(x).to_le_bytes())
            .collect();
        record.dtype = 1;
    });
    let found = read_all(&open_bytes(halves).unwrap()).unwrap();
    type Named = (String, Vec<f32>);
    let same = |(a, b): (&Named, &Named)| {
        let mut pairs = a.1.iter().zip(&b.1);
        a.0 == b.0 && pairs.all(|(a, b)| (a - b).abs() < 1e-3)
    };
    assert!(found.iter().zip(&expected).all(same));
}

#[test]
fn bad_tensors() {
    let renamed = |end: &str, new: &str| changed(end, |one| one.name = one.name.replace(end, new));
    let mut with_nan = records(&bin("FP32"));
    let shifts = with_nan
        .iter_mut()
        .find(|one| one.name == "blocks.1.att.x_rwkvag");
    // The third of the six, and its second number.
    let at = (2 * 32 + 1) * 4;
    shifts.unwrap().data[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    run(&[
        file(
            "five shifts",
            changed("att.x_rwkvag", |one| {
                one.dims = vec![32, 1, 5];
                one.data.truncate(5 * 32 * 4);
            }),
            Format,
            &[
                "blocks.0.att.x_rwkvag",
                "[5, 1, 32]",
                "[6, 32] by the file's header",
            ],
        ),
        file(
            "transposed shifts",
            with_dims("att.x_rwkvag", &[6, 32]),
            Format,
            &["[32, 6]"],
        ),
        file(
            "shifts in pieces",
            with_dims("att.x_rwkvag", &[8, 4, 6]),
            Format,
            &["[6, 4, 8]"],
        ),
        file(
            "no shifts",
            renamed("att.x_rwkvag", "att.x_y"),
            Format,
            &["blocks.0.att.x_a", "missing"],
        ),
        file(
            "shifts twice",
            renamed("ffn.x_k", "att.x_k"),
            Format,
            &["blocks.0.att.x_k", "the same as"],
        ),
        file(
            "not finite",
            file_of(&bin("FP32"), &with_nan),
            Format,
            &["blocks.1.att.x_k: NaN at [1]"],
        ),
        file(
            "w1",
            with_dims("att.w1", &[16, 12]),
            Format,
            &["att.w1", "[16, 12]", "[32, 12]"],
        ),
        file(
            "g2",
            with_dims("att.g2", &[5, 64]),
            Format,
            &["att.g2", "[5, 64]", "[10, 32]"],
        ),
        file(
            "heads",
            with_dims("att.r_k", &[32]),
            Format,
            &["att.r_k", "[32]", "a matrix"],
        ),
        file(
            "cubes",
            with_dims("att.r_k", &[4, 4, 2]),
            Format,
            &["att.r_k", "[2, 4, 4]"],
        ),
        file(
            "no values",
            {
                let mut all = records(&bin("FP32"));
                all.retain(|one| one.name != "blocks.1.att.v1");
                file_of(&bin("FP32"), &all)
            },
            Format,
            &["blocks.1.att.v1: missing"],
        ),
    ]);
}

/// Damage anywhere is an error or other numbers, never a panic.
#[test]
fn damage() {
    let reads = |bytes: Vec<u8>| open_bytes(bytes).is_ok_and(|found| read_all(&found).is_ok());
    for name in ["FP16", "Q5_1"] {
        let sound = bin(name);
        assert!(reads(sound.clone()));
        for at in (0..24).chain((24..sound.len()).step_by(37)) {
            let mut bytes = sound.clone();
            bytes[at] ^= 1 << (at * 5 % 8);
            reads(bytes);
        }
        for length in (0..sound.len()).step_by(53) {
            assert!(!reads(sound[..length].to_vec()), "{name}: cut to {length}");
        }
    }
}
