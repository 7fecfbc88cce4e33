//! What lies where a file of a model should: web pages, pointers, shards without their index.

use super::build::*;
use super::{file, open, run, Case};
use crate::error::ErrorKind::{Format, Unsupported};

const PAGE: &[u8] =
    b"\n<!DOCTYPE html>\n<html class=\"\"><head><title>m.pth</title></head><body></body></html>";
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n";

fn folder(
    name: &'static str,
    files: Vec<(&'static str, Vec<u8>)>,
    words: &'static [&'static str],
) -> Case {
    Case {
        name,
        files,
        file: None,
        kind: Format,
        words,
    }
}

#[test]
fn pages_and_pointers() {
    let model = || ("model.safetensors", safetensors_of(&tiny_model()));
    let page: &[&str] = &["web page", "/resolve/", "/blob/"];
    let upper = PAGE.to_ascii_uppercase();
    let marked = [b"\xef\xbb\xbf", PAGE].concat();
    let index = "model.safetensors.index.json";
    run(&[
        file("page", PAGE.to_vec(), Format, page),
        file("upper case", upper, Format, page),
        file("with a mark", marked, Format, page),
        file(
            "xml",
            b"<?xml version=\"1.0\"?><Error/>".to_vec(),
            Format,
            page,
        ),
        folder("weights", vec![("model.safetensors", PAGE.to_vec())], page),
        folder("bin", vec![("pytorch_model.bin", PAGE.to_vec())], page),
        folder(
            "config",
            vec![model(), ("config.json", PAGE.to_vec())],
            page,
        ),
        folder("index", vec![(index, PAGE.to_vec())], page),
        folder(
            "pointer",
            vec![("pytorch_model.bin", POINTER.to_vec())],
            &["LFS"],
        ),
        folder(
            "config's pointer",
            vec![model(), ("config.json", POINTER.to_vec())],
            &["LFS"],
        ),
        folder("index's pointer", vec![(index, POINTER.to_vec())], &["LFS"]),
        file(
            "no answer",
            b"Entry not found".to_vec(),
            Format,
            &["web server"],
        ),
        file(
            "tar",
            [&[b'x'; 257][..], b"ustar"].concat(),
            Unsupported,
            &["tar archive"],
        ),
        file(
            "gzip",
            b"\x1f\x8b\x08\0\0\0\0\0\0\0".to_vec(),
            Unsupported,
            &["unpack"],
        ),
        file(
            "old torch in text",
            b"L119547037146038801333356L\n.".to_vec(),
            Unsupported,
            &["before 1.6"],
        ),
    ]);
}

#[test]
fn shards_without_an_index() {
    let parts = tiny_model();
    let (first, second) = (safetensors_of(&parts[..9]), safetensors_of(&parts[9..]));
    const ONE: &str = "model-00001-of-00002.safetensors";
    const TWO: &str = "model-00002-of-00002.safetensors";
    let both = vec![(ONE, first.clone()), (TWO, second)];
    let bin = vec![("pytorch_model-00001-of-00002.bin", first.clone())];
    run(&[
        folder(
            "both",
            both,
            &["model.safetensors.index.json is missing", TWO],
        ),
        folder(
            "one",
            vec![(ONE, first.clone())],
            &["index.json is missing", "shard 2 of 2"],
        ),
        folder(
            "of torch",
            bin,
            &["pytorch_model.bin.index.json is missing"],
        ),
        Case {
            file: Some(ONE),
            ..folder("named", vec![(ONE, first)], &["shard 1 of 2", "folder"])
        },
    ]);
    // One of one is whole.
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("model-00001-of-00001.safetensors");
    std::fs::write(&whole, safetensors_of(&parts)).unwrap();
    assert!(open(folder.path(), true).is_ok() && open(&whole, true).is_ok());
}
