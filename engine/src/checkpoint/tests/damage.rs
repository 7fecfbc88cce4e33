//! Small sound files, damaged in every place: reading them may fail, but must not panic, and what
//! is read has passed all checks.

use super::super::open::open_file;
use super::super::Opened;
use super::{fixture, open, read_all};
use crate::files::{Folder, SourceFile};

const FILES: [&str; 4] = [
    "raw-strided-bf16.pth",
    "raw-no-crc.pth",
    "raw-protocol-4.pth",
    "hf-bf16.safetensors",
];

/// Whether a file of these bytes could be read to its end.
fn reads(bytes: Vec<u8>) -> bool {
    let file = SourceFile::from_bytes("damaged", bytes.into());
    match open_file(file, &Folder::Memory(&[]), true) {
        Ok(Opened::Checkpoint(checkpoint)) => read_all(&checkpoint).is_ok(),
        _ => false,
    }
}

#[test]
fn flipped_bytes() {
    for name in FILES {
        let sound = std::fs::read(fixture("checkpoints").join(name)).unwrap();
        assert!(reads(sound.clone()), "{name}");
        let mut read = 0;
        // One flip a byte, of a bit that walks, and every third byte to a value that is often
        // special.
        for at in (0..sound.len()).step_by(super::emulated_step()) {
            let mut bytes = sound.clone();
            bytes[at] ^= 1 << (at * 5 % 8);
            read += usize::from(reads(bytes));
            if at % 3 == 0 {
                let mut bytes = sound.clone();
                bytes[at] = [0x00, 0xff, 0x7f, 0x80][at / 3 % 4];
                read += usize::from(reads(bytes));
            }
        }
        assert!(read < sound.len(), "{name}: {read} damaged files were read");
    }
}

#[test]
fn cut_files() {
    for name in FILES {
        let sound = std::fs::read(fixture("checkpoints").join(name)).unwrap();
        for len in (0..sound.len()).step_by(7) {
            assert!(!reads(sound[..len].to_vec()), "{name}: cut to {len} bytes");
        }
    }
}

/// Numbers are read at any alignment: a header of odd length puts all of them at odd addresses.
#[test]
fn misaligned_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m");
    for name in ["raw.safetensors", "hf-bf16.safetensors"] {
        let sound = std::fs::read(fixture("checkpoints").join(name)).unwrap();
        let header_bytes = u64::from_le_bytes(sound[..8].try_into().unwrap());
        let mut shifted = (header_bytes + 1).to_le_bytes().to_vec();
        shifted.extend_from_slice(&sound[8..8 + header_bytes as usize]);
        shifted.push(b' ');
        shifted.extend_from_slice(&sound[8 + header_bytes as usize..]);
        std::fs::write(&path, shifted).unwrap();
        for mapped in [true, false] {
            let there = read_all(&open(&path, mapped).unwrap()).unwrap();
            let expected = open(&fixture("checkpoints").join(name), mapped).unwrap();
            assert_eq!(there, read_all(&expected).unwrap());
        }
    }
}
