//! The safetensors format: a JSON header, then the tensors one after the other.
//!
//! Used for checkpoints and for this project's own model files. The header is read with a bound,
//! and checked by the safetensors crate: the tensors must tile the rest of the file exactly, so
//! that none overlap, none leave the file and nothing is hidden between them.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use ::safetensors::tensor::{Dtype as HeaderDtype, Metadata, TensorInfo};
use serde::Deserialize;
use serde_json::Value;

use super::dtype::Dtype;
use super::json::UniqueMap;
use super::name_file;
use super::tensor::RawTensor;
use crate::error::{Error, Result};
use crate::files::SourceFile;

/// The bound of the format's own reader.
const HEADER_MAX: u64 = 100_000_000;

/// Bytes of the header's length, at the start of the file.
const LENGTH_BYTES: u64 = 8;

/// A safetensors file whose header has been read and checked.
#[derive(Clone, Debug)]
pub(crate) struct SafetensorsFile {
    pub(crate) file: SourceFile,
    /// `__metadata__`
    pub(crate) metadata: BTreeMap<String, String>,
    /// In file order.
    pub(crate) tensors: Vec<TensorEntry>,
}

/// A tensor's line in the header.
#[derive(Clone, Debug)]
pub(crate) struct TensorEntry {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// Bytes from the start of the file.
    pub(crate) begin: u64,
    pub(crate) end: u64,
}

impl SafetensorsFile {
    /// Reads and checks the header.
    pub(crate) fn open(file: SourceFile) -> Result<Self> {
        Self::read(&file).map_err(|e| name_file(e, &file))
    }

    /// Whether the first bytes look like this format: a length, then a JSON object.
    pub(crate) fn recognises(start: &[u8]) -> bool {
        start.get(8) == Some(&b'{')
    }

    fn read(file: &SourceFile) -> Result<Self> {
        if file.len() < LENGTH_BYTES {
            return Err(Error::format(format!(
                "{} bytes, too short for a safetensors file",
                file.len()
            )));
        }
        let length = file.bytes(0..LENGTH_BYTES)?;
        let length = <[u8; 8]>::try_from(&*length).map_err(|_| Error::format("no header"))?;
        let header_bytes = u64::from_le_bytes(length);
        let room = file.len() - LENGTH_BYTES;
        if header_bytes > HEADER_MAX.min(room) {
            return Err(Error::format(format!(
                "safetensors header of {header_bytes} bytes, in a file with {room} after its \
                 length and a limit of {HEADER_MAX}"
            )));
        }
        let data_offset = LENGTH_BYTES + header_bytes;
        let header = file.bytes(LENGTH_BYTES..data_offset)?;
        let header: UniqueMap<Value> = serde_json::from_slice(&header)
            .map_err(|e| Error::format(format!("safetensors header: {e}")))?;
        let (metadata, tensors) = split(header)?;
        check_tiling(&tensors, room - header_bytes)?;
        let tensors = tensors
            .into_iter()
            .map(|(name, info)| TensorEntry {
                name,
                dtype: dtype(info.dtype),
                shape: info.shape,
                begin: data_offset + info.data_offsets.0 as u64,
                end: data_offset + info.data_offsets.1 as u64,
            })
            .collect();
        Ok(SafetensorsFile {
            file: file.clone(),
            metadata,
            tensors,
        })
    }

    /// The tensor of that name.
    pub(crate) fn tensor(&self, name: &str) -> Option<Result<RawTensor>> {
        let entry = self.tensors.iter().find(|entry| entry.name == name)?;
        Some(self.raw_tensor(entry))
    }

    /// All tensors, in file order.
    pub(crate) fn raw_tensors(&self) -> Result<Vec<RawTensor>> {
        self.tensors
            .iter()
            .map(|entry| self.raw_tensor(entry))
            .collect()
    }

    fn raw_tensor(&self, entry: &TensorEntry) -> Result<RawTensor> {
        let mut strides = vec![1; entry.shape.len()];
        let mut stride = 1usize;
        for (slot, &dim) in strides.iter_mut().zip(&entry.shape).rev() {
            *slot = stride;
            stride = stride.saturating_mul(dim.max(1));
        }
        RawTensor::new(
            entry.name.clone(),
            self.file.clone(),
            entry.dtype,
            (entry.shape.clone(), strides),
            0,
            entry.begin..entry.end,
        )
    }
}

type Tensors = Vec<(String, TensorInfo)>;

fn split(header: UniqueMap<Value>) -> Result<(BTreeMap<String, String>, Tensors)> {
    let mut metadata = BTreeMap::new();
    let mut tensors = Vec::with_capacity(header.0.len());
    for (name, entry) in header.0 {
        let refuse = |e| Error::format(format!("safetensors header: {name}: {e}"));
        if name == "__metadata__" {
            metadata = BTreeMap::deserialize(entry).map_err(refuse)?;
        } else {
            let info = TensorInfo::deserialize(entry).map_err(refuse)?;
            tensors.push((name, info));
        }
    }
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    Ok((metadata, tensors))
}

/// The tensors, in order, must fill the data section from its start to the end of the file.
fn check_tiling(tensors: &Tensors, data_bytes: u64) -> Result<()> {
    let checked = Metadata::new(None, tensors.clone())
        .map_err(|e| Error::format(format!("safetensors header: {e}")).with_source(e))?;
    let found = checked.data_len() as u64;
    if found != data_bytes {
        return Err(Error::format(format!(
            "the file holds {data_bytes} bytes of tensors, its header describes {found}: \
             truncated or padded"
        )));
    }
    Ok(())
}

fn dtype(dtype: HeaderDtype) -> Dtype {
    match dtype {
        HeaderDtype::F32 => Dtype::F32,
        HeaderDtype::F16 => Dtype::F16,
        HeaderDtype::BF16 => Dtype::Bf16,
        HeaderDtype::F64 => Dtype::F64,
        HeaderDtype::I8 => Dtype::I8,
        HeaderDtype::U8 => Dtype::U8,
        HeaderDtype::I16 => Dtype::I16,
        HeaderDtype::I32 => Dtype::I32,
        HeaderDtype::I64 => Dtype::I64,
        HeaderDtype::BOOL => Dtype::Bool,
        HeaderDtype::U16 => Dtype::Other("U16"),
        HeaderDtype::U32 => Dtype::Other("U32"),
        HeaderDtype::U64 => Dtype::Other("U64"),
        HeaderDtype::C64 => Dtype::Other("C64"),
        _ => Dtype::Other("of 8 bits or less"),
    }
}
