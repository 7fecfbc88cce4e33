//! What the writers write, read again by the readers of `checkpoint`: the zip format at its limits,
//! raw files of every source, numbers that do not fit.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::zip::{Sink, ZipWriter};
use super::{CheckpointSource, ConvertOptions, FloatType};
use crate::checkpoint::torch_records;
use crate::error::{ErrorKind, Result};
use crate::files::{Access, SourceFile};
use crate::progress::ProgressUnit;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}

/// A file that does not store zeros.
struct Sparse(File);

impl Sink for Sparse {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.iter().all(|&byte| byte == 0) {
            self.0.seek(SeekFrom::Current(bytes.len() as i64)).unwrap();
        } else {
            self.0.write_all(bytes).unwrap();
        }
        Ok(())
    }

    fn overwrite(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.0.seek(SeekFrom::Start(offset)).unwrap();
        self.0.write_all(bytes).unwrap();
        self.0.seek(SeekFrom::End(0)).unwrap();
        Ok(())
    }
}

/// A record of more than 4 GiB, and records and the directory behind it.
#[test]
#[cfg(target_pointer_width = "64")]
fn archives_beyond_4_gib() {
    const GIB: u64 = 1 << 30;
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut zip = ZipWriter::new(Sparse(file.reopen().unwrap()));
    let zeros = vec![0; 1 << 24];
    zip.record("a/before", 3, |put| put(b"abc")).unwrap();
    zip.record("a/large", 4 * GIB + 5, |put| {
        for _ in 0..4 * GIB / zeros.len() as u64 {
            put(&zeros)?;
        }
        put(b"12345")
    })
    .unwrap();
    zip.record("a/behind", 4, |put| put(b"wxyz")).unwrap();
    zip.finish().unwrap();

    for access in [Access::new(true), Access::Read] {
        let source = SourceFile::open_with(file.path(), access).unwrap();
        let records = torch_records(&source).unwrap();
        assert_eq!(records.len(), 3);
        let range = |name: &str| records[name].clone();
        assert_eq!(&*source.bytes(range("a/before")).unwrap(), b"abc");
        let large = range("a/large");
        assert_eq!(large.end - large.start, 4 * GIB + 5);
        assert_eq!(
            &*source.bytes(large.end - 6..large.end).unwrap(),
            b"\x0012345"
        );
        let behind = range("a/behind");
        assert!(behind.start > 4 * GIB);
        assert_eq!(&*source.bytes(behind).unwrap(), b"wxyz");
        for (name, range) in &records {
            assert_eq!(range.start % 64, 0, "{name}");
        }
    }
}

/// More records than 16 bits count.
#[test]
fn archives_of_many_records() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut zip = ZipWriter::new(Sparse(file.reopen().unwrap()));
    let count = u64::from(u16::MAX) + 1;
    for i in 0..count {
        zip.record(&i.to_string(), 1, |put| put(b"x")).unwrap();
    }
    zip.finish().unwrap();
    let source = SourceFile::open_with(file.path(), Access::new(true)).unwrap();
    assert_eq!(torch_records(&source).unwrap().len() as u64, count);
}

#[test]
fn a_record_has_the_announced_size() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut zip = ZipWriter::new(Sparse(file.reopen().unwrap()));
    let error = zip.record("r", 4, |put| put(b"abc")).unwrap_err();
    assert!(error.to_string().contains("3 bytes written, 4 announced"));
}

#[derive(serde::Deserialize)]
struct Expected {
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// Every form of checkpoint becomes the same raw file but for its type, with the shapes that torch
/// knows, and every tensor is the whole of its own storage.
#[test]
fn raw_files_of_every_source() {
    let text = std::fs::read_to_string(fixture("checkpoints/expected.json")).unwrap();
    let expected: std::collections::BTreeMap<String, Expected> =
        serde_json::from_str(&text).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let options = ConvertOptions::new().overwrite(true);
    let path = folder.path().join("raw.pth");
    for (form, dtype) in [
        ("raw-f32.pth", FloatType::F32),
        ("raw-f16.pth", FloatType::F16),
        ("raw-bf16.pth", FloatType::Bf16),
        ("raw-strided.pth", FloatType::F32),
        ("raw-strided-bf16.pth", FloatType::Bf16),
        ("raw.safetensors", FloatType::F32),
        ("hf-bf16.safetensors", FloatType::Bf16),
        ("hf-sharded-bin", FloatType::F32),
    ] {
        for no_mmap in [false, true] {
            let source = fixture("checkpoints").join(form);
            let source = match no_mmap {
                false => CheckpointSource::open(source).unwrap(),
                true => CheckpointSource::open_without_mmap(source).unwrap(),
            };
            let mut last = None;
            let converted = source
                .to_raw(&path, &options, &mut |progress| last = Some(progress))
                .unwrap();
            assert_eq!(converted.dtype, dtype, "{form}");
            let last = last.unwrap();
            assert!(last.is_finished() && last.unit == ProgressUnit::Bytes);
            assert_eq!(last.total, converted.size_bytes);
            let raw = CheckpointSource::open(&path).unwrap();
            assert_eq!(raw.0.tensors.len(), expected.len());
            let mut storages = std::collections::BTreeSet::new();
            for (name, expected) in &expected {
                let tensor = &raw.0.tensors[name];
                assert_eq!(tensor.shape, expected.shape, "{form}: {name}");
                assert!(tensor.is_contiguous());
                assert_eq!(tensor.dtype.name(), dtype.safetensors_name());
                let values = tensor.read_vector(tensor.len()).unwrap();
                assert_eq!(values, expected.values, "{form}: {name}");
                let range = tensor.checksum.as_ref().unwrap().range.clone();
                assert_eq!((range.start, range.end), (tensor.offset, tensor.end()));
                assert!(storages.insert(range.start) && range.start % 64 == 0);
            }
        }
    }
}

/// A number that the new type does not hold is named, and nothing is left of the attempt.
#[test]
fn numbers_beyond_the_new_type() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("large.bin");
    let mut bytes = std::fs::read(fixture("rwkv-cpp/FP32.bin")).unwrap();
    // The embedding's number [1, 3].
    let file = SourceFile::open_with(&fixture("rwkv-cpp/FP32.bin"), Access::Read).unwrap();
    let opened = CheckpointSource::open_without_mmap(file.name()).unwrap();
    let at = opened.0.tensors["emb.weight"].offset as usize + 4 * (32 + 3);
    for (value, dtype, place, other) in [
        (65_520.0, FloatType::F16, "[1, 3]", "--dtype bf16 or f32"),
        (f32::MAX, FloatType::Bf16, "[1, 3]", "--dtype f32"),
        (f32::NAN, FloatType::F32, "NaN at [1, 3]", "finite"),
        (f32::INFINITY, FloatType::F16, "inf at [1, 3]", "finite"),
    ] {
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        std::fs::write(&source, &bytes).unwrap();
        let opened = CheckpointSource::open(&source).unwrap();
        let options = ConvertOptions::new().dtype(dtype);
        let (raw, hugging_face) = (folder.path().join("raw.pth"), folder.path().join("a/b"));
        let errors = [
            opened.to_raw(&raw, &options, &mut |_| {}),
            opened.to_hugging_face(&hugging_face, &options, &mut |_| {}),
        ];
        for error in errors.map(Result::unwrap_err) {
            let text = error.to_string();
            assert!(
                text.contains("emb.weight") && text.contains(place) && text.contains(other),
                "{text}"
            );
        }
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "only the source: {left:?}");
    }
    // The largest number that rounds to one of f16.
    bytes[at..at + 4].copy_from_slice(&65_519.0f32.to_le_bytes());
    std::fs::write(&source, &bytes).unwrap();
    let opened = CheckpointSource::open(&source).unwrap();
    let options = ConvertOptions::new().dtype(FloatType::F16);
    opened
        .to_raw(folder.path().join("raw.pth"), &options, &mut |_| {})
        .unwrap();
}

#[test]
fn model_files_are_no_source() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let model = crate::Model::open(
        fixture("golden/small-safetensors"),
        &crate::Options::default(),
    );
    model.unwrap().save(&path, &mut |_| {}).unwrap();
    let error = CheckpointSource::open(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("quantize"), "{error}");
}

/// Of two conversions into one folder at the same time the folder has the model of the one that ends last, and no file
/// of the other; without leave to overwrite it is refused, although there was nothing when it began.
#[test]
fn conversions_that_overlap() {
    let around = tempfile::tempdir().unwrap();
    let names = |folder: &Path| {
        let files = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let source = |name: &str| CheckpointSource::open(fixture("golden").join(name)).unwrap();
    let one = (source("small-safetensors"), u64::MAX);
    let several = (source("deep-sharded"), 300_000);
    for (i, (first, last)) in [(&one, &several), (&several, &one)].into_iter().enumerate() {
        let alone = |(source, shard_bytes_max): &(CheckpointSource, u64)| {
            let folder = tempfile::tempdir().unwrap();
            let options = ConvertOptions::new().shard_bytes_max(*shard_bytes_max);
            let done = source.to_hugging_face(folder.path(), &options, &mut |_| {});
            done.unwrap();
            names(folder.path())
        };
        for overwrite in [false, true] {
            let folder = around.path().join(format!("{i}-{overwrite}"));
            let options = |shard_bytes_max| {
                let options = ConvertOptions::new().shard_bytes_max(shard_bytes_max);
                options.overwrite(overwrite)
            };
            let mut has_begun = false;
            let done = last.0.to_hugging_face(&folder, &options(last.1), &mut |_| {
                if !std::mem::replace(&mut has_begun, true) {
                    let options = options(first.1);
                    let done = first.0.to_hugging_face(&folder, &options, &mut |_| {});
                    done.unwrap();
                }
            });
            assert!(has_begun);
            match overwrite {
                true => {
                    done.unwrap();
                    assert_eq!(names(&folder), alone(last));
                }
                false => {
                    let text = done.unwrap_err().to_string();
                    assert!(text.contains("is there already"), "{text}");
                    assert_eq!(names(&folder), alone(first));
                }
            }
        }
    }
}
