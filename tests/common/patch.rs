//! Model files with some numbers of one tensor replaced, as a damaged disk or a bad training run leaves them.
#![allow(dead_code)]

use serde_json::Value;

/// A model file's bytes, and where its tensors are.
pub struct Image {
    pub bytes: Vec<u8>,
    header: Value,
    data: usize,
}

impl Image {
    pub fn new(bytes: Vec<u8>) -> Self {
        let size = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let header = serde_json::from_slice(&bytes[8..8 + size]).expect("valid JSON");
        let data = 8 + size;
        Image {
            bytes,
            header,
            data,
        }
    }

    /// Names and shapes of the tensors of two dimensions, which are the matrices.
    pub fn matrices(&self) -> Vec<(String, [usize; 2])> {
        let tensors = self.header.as_object().expect("an object").iter();
        let shape = |entry: &Value| -> Option<[usize; 2]> {
            let shape = entry["shape"].as_array()?.iter();
            let shape: Option<Vec<_>> = shape.map(|n| Some(n.as_u64()? as usize)).collect();
            shape?.try_into().ok()
        };
        tensors
            .filter_map(|(name, entry)| Some((name.clone(), shape(entry)?)))
            .collect()
    }

    /// Writes a number to each of these places of a matrix of floats; gives what was there.
    pub fn set(&mut self, name: &str, places: &[[usize; 2]], value: f32) -> Vec<Vec<u8>> {
        let all = places
            .iter()
            .map(|place| (*place, self.encoded(name, value)));
        let all: Vec<_> = all.collect();
        self.put(name, &all)
    }

    /// The same with the bytes of each number.
    pub fn put(&mut self, name: &str, numbers: &[([usize; 2], Vec<u8>)]) -> Vec<Vec<u8>> {
        let entry = &self.header[name];
        let begin = self.data + entry["data_offsets"][0].as_u64().expect("a number") as usize;
        let n_cols = entry["shape"][1].as_u64().expect("a matrix") as usize;
        let mut before = Vec::new();
        for ([row, column], number) in numbers {
            let at = begin + (row * n_cols + column) * number.len();
            let place = &mut self.bytes[at..at + number.len()];
            before.push(place.to_vec());
            place.copy_from_slice(number);
        }
        before
    }

    fn encoded(&self, name: &str, value: f32) -> Vec<u8> {
        match self.header[name]["dtype"].as_str() {
            Some("F32") => value.to_le_bytes().to_vec(),
            Some("F16") => half::f16::from_f32(value).to_le_bytes().to_vec(),
            other => panic!("{name}: {other:?}"),
        }
    }
}
