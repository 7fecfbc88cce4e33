//! Adapters in torch files, as RWKV-PEFT saves them; tests/lora.rs has all that they can be.

use super::build::{zip, Pickle, Place};
use super::{fixture, open};
use crate::checkpoint::{merge_all, Lora, RawTensor};
use crate::files::Access;

const KEY: &str = "blocks.0.att.key.weight";
/// Of that matrix: outputs, inputs.
const SHAPE: (usize, usize) = (6, 4);

fn numbers(tensor: &RawTensor) -> Vec<f32> {
    let mut numbers = vec![0.0; SHAPE.0 * SHAPE.1];
    tensor.read_rows(0..SHAPE.0, &mut numbers).unwrap();
    numbers
}

/// LoRA of rank 1 in bf16: A of 1, 2, 3, 4 and B of 1 to 6, which is stored as every other number of a longer storage.
#[test]
fn of_torch() {
    let bf16 = |values: &[f32]| -> Vec<u8> {
        let bits = values.iter().map(|value| (value.to_bits() >> 16) as u16);
        bits.flat_map(u16::to_le_bytes).collect()
    };
    let place = Place {
        storage_type: "BFloat16Storage",
        key: "0",
        storage_len: 4,
        first: 0,
        shape: &[1, 4],
        strides: &[4, 1],
    };
    let strided = Place {
        key: "1",
        storage_len: 12,
        first: 1,
        shape: &[6, 1],
        strides: &[2, 1],
        ..place
    };
    let table = Pickle::dict()
        .tensor("_orig_mod.blocks.0.att.key.lora_A", &place)
        .tensor("_orig_mod.blocks.0.att.key.lora_B", &strided)
        .end();
    let spread: Vec<f32> = (0..12)
        .map(|i| if i % 2 == 1 { (i / 2 + 1) as f32 } else { 99.0 })
        .collect();
    let archive = zip(&[
        ("m/data.pkl", &table),
        ("m/byteorder", b"little"),
        ("m/data/0", &bf16(&[1.0, 2.0, 3.0, 4.0])),
        ("m/data/1", &bf16(&spread)),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rwkv-0.pth");
    std::fs::write(&file, archive).unwrap();
    let path = fixture("checkpoints/raw.safetensors");
    for access in [Access::new(true), Access::Read] {
        let mut checkpoint = open(&path, true).unwrap();
        let before = numbers(&checkpoint.tensors[KEY]);
        merge_all(&mut checkpoint, &[Lora::new(&file, 0.5)], access).unwrap();
        let merged = &checkpoint.tensors[KEY];
        assert!(merged.is_merged() && merged.contiguous_bytes().is_none());
        let after = numbers(merged);
        for (i, (before, after)) in before.iter().zip(after).enumerate() {
            let (row, col) = (i / SHAPE.1, i % SHAPE.1);
            let added = 0.5 * ((row + 1) * (col + 1)) as f32;
            assert_eq!(after, before + added, "[{row}, {col}]");
        }
        // The base's file and the adapter's.
        assert_eq!(checkpoint.watches().len(), 2);
        assert_eq!(checkpoint.adapters.len(), 1);
    }
}
