//! Writes parts as a torch file, as `torch.save` writes a dictionary of tensors: a zip archive with a
//! pickled table and a record for each tensor.
//!
//! The table is a pickle of protocol 2 that refers to nothing but `OrderedDict`, torch's storages and
//! the function that makes a tensor of one, so that `torch.load(weights_only=True)` reads it.

#![forbid(unsafe_code)]

use super::target::{FloatType, TargetTensor};
use super::zip::{Sink, ZipWriter};
use crate::error::Result;

/// The folder within the archive; torch takes any.
const FOLDER: &str = "archive";
/// Of torch's archives.
const FORMAT_VERSION: &[u8] = b"3\n";

/// Writes an archive of these parts; calls `advance(n)` for every `n` bytes of numbers.
pub(super) fn write<S: Sink>(
    sink: S,
    parts: &[TargetTensor<'_>],
    advance: &mut dyn FnMut(u64),
) -> Result<S> {
    let mut zip = ZipWriter::new(sink);
    small_record(&mut zip, "data.pkl", &table(parts))?;
    small_record(&mut zip, "byteorder", b"little")?;
    for (key, part) in parts.iter().enumerate() {
        let name = format!("{FOLDER}/data/{key}");
        zip.record(&name, part.size_bytes(), |put| {
            part.write(&mut |bytes| {
                put(bytes)?;
                advance(bytes.len() as u64);
                Ok(())
            })
        })?;
    }
    small_record(&mut zip, "version", FORMAT_VERSION)?;
    zip.finish()
}

fn small_record<S: Sink>(zip: &mut ZipWriter<S>, name: &str, bytes: &[u8]) -> Result<()> {
    let name = format!("{FOLDER}/{name}");
    zip.record(&name, bytes.len() as u64, |put| put(bytes))
}

/// The pickled `OrderedDict` of all parts; part i is the whole of storage i.
fn table(parts: &[TargetTensor<'_>]) -> Vec<u8> {
    let mut pickle = Pickle::default();
    pickle.raw(b"\x80\x02"); // protocol
    pickle.ordered_dict();
    pickle.raw(b"("); // the entries follow
    for (key, part) in parts.iter().enumerate() {
        pickle.text(&part.name);
        pickle.tensor(key, part);
    }
    pickle.raw(b"u."); // fill the dictionary; stop
    pickle.0
}

/// Instructions of a pickle.
#[derive(Default)]
struct Pickle(Vec<u8>);

impl Pickle {
    fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn global(&mut self, module: &str, name: &str) {
        self.raw(format!("c{module}\n{name}\n").as_bytes());
    }

    fn text(&mut self, text: &str) {
        self.raw(b"X");
        self.raw(&(text.len() as u32).to_le_bytes());
        self.raw(text.as_bytes());
    }

    fn integer(&mut self, number: u64) {
        match (u8::try_from(number), i32::try_from(number)) {
            (Ok(number), _) => self.raw(&[b'K', number]),
            (_, Ok(number)) => {
                self.raw(b"J");
                self.raw(&number.to_le_bytes());
            }
            // A signed number of eight bytes; no file has as many as would reach its sign.
            _ => {
                self.raw(&[0x8a, 8]);
                self.raw(&number.to_le_bytes());
            }
        }
    }

    fn tuple(&mut self, numbers: &[u64]) {
        self.raw(b"(");
        numbers.iter().for_each(|&number| self.integer(number));
        self.raw(b"t");
    }

    fn ordered_dict(&mut self) {
        self.global("collections", "OrderedDict");
        self.raw(b")R"); // called without arguments
    }

    fn tensor(&mut self, key: usize, part: &TargetTensor<'_>) {
        let storage = match part.dtype {
            FloatType::F32 => "FloatStorage",
            FloatType::F16 => "HalfStorage",
            FloatType::Bf16 => "BFloat16Storage",
        };
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.raw(b"((");
        self.text("storage");
        self.global("torch", storage);
        self.text(&key.to_string());
        self.text("cpu");
        self.integer(part.len());
        self.raw(b"tQ"); // the storage that these five name
        self.integer(0); // its first element
        let shape: Vec<u64> = part.shape.iter().map(|&n| n as u64).collect();
        let stride = |i: usize| shape[i + 1..].iter().product();
        let strides: Vec<u64> = (0..shape.len()).map(stride).collect();
        self.tuple(&shape);
        self.tuple(&strides);
        self.raw(b"\x89"); // no gradient
        self.ordered_dict(); // no hooks
        self.raw(b"tR");
    }
}
