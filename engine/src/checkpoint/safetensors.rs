//! The safetensors format: a JSON header, then the tensors one after the other.
//!
//! Used for checkpoints and for this project's own model files. The header is read with a bound,
//! and checked by the safetensors crate: the tensors must tile the rest of the file exactly, so
//! that none overlap, none leave the file and nothing is hidden between them.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;

use ::safetensors::tensor::{Dtype as HeaderDtype, Metadata, TensorInfo};
use ::safetensors::SafeTensorError;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::dtype::Dtype;
use super::json::{self, Entries, NotRead, StringOrNot, ENTRIES_MAX};
use super::name_file;
use super::tensor::RawTensor;
use crate::error::{Error, Result};
use crate::files::SourceFile;
use crate::math::reserve;

/// A line has some hundred bytes, and the largest models some thousand tensors. The format's own reader takes
/// 100 MB, which reading would multiply.
const HEADER_MAX: u64 = 16 << 20;

/// Of a tensor; models have at most 3.
const DIMENSIONS_MAX: usize = 64;

/// Bytes of a name.
const NAME_BYTES_MAX: usize = 1024;

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
        let Header { metadata, tensors } = json::from_slice(&header).map_err(|e| match e {
            NotRead::Memory(e) => e,
            NotRead::Json(e) => Error::format(format!("safetensors header: {e}")),
        })?;
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
        let mut tensors = reserve(self.tensors.len(), "the tensors of a file")?;
        for entry in &self.tensors {
            tensors.push(self.raw_tensor(entry)?);
        }
        Ok(tensors)
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

/// What a header says, read as what it must be.
struct Header {
    metadata: BTreeMap<String, String>,
    /// In the order of their bytes.
    tensors: Tensors,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut metadata = None;
        let mut tensors = Entries::default();
        while let Some(name) = map.next_key::<String>()? {
            if name.len() > NAME_BYTES_MAX {
                let n = name.len();
                let text = format!("a name of {n} bytes, expected at most {NAME_BYTES_MAX}");
                return Err(A::Error::custom(text));
            }
            if name != "__metadata__" {
                let info = map.next_value::<Line>();
                tensors.add(name, info.map(|line| line.0))?;
                continue;
            }
            let found = map.next_value::<Option<Strings>>();
            let found = found.map_err(|e| A::Error::custom(format_args!("{name}: {e}")))?;
            if metadata.replace(found.unwrap_or_default().0).is_some() {
                return Err(A::Error::custom(format_args!("key {name:?} occurs twice")));
            }
        }
        let mut tensors = tensors.list;
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        Ok(Header {
            metadata: metadata.unwrap_or_default(),
            tensors,
        })
    }
}

/// A tensor's line; the number of its dimensions is bounded before they are kept.
struct Line(TensorInfo);

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fields {
            dtype: HeaderDtype,
            shape: Shape,
            data_offsets: (usize, usize),
        }
        let fields = Fields::deserialize(deserializer)?;
        Ok(Line(TensorInfo {
            dtype: fields.dtype,
            shape: fields.shape.0,
            data_offsets: fields.data_offsets,
        }))
    }
}

struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShapeVisitor;
        impl<'de> Visitor<'de> for ShapeVisitor {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of sizes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(size) = list.next_element()? {
                    if shape.len() == DIMENSIONS_MAX {
                        return Err(A::Error::custom("a tensor of too many dimensions"));
                    }
                    shape.push(size);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

/// Metadata. The format has texts only; numbers and the like, which some programs write all the same, are left
/// out.
#[derive(Default)]
struct Strings(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StringsVisitor;
        impl<'de> Visitor<'de> for StringsVisitor {
            type Value = Strings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strings, A::Error> {
                let mut strings = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if let StringOrNot(Some(text)) = map.next_value()? {
                        strings.insert(key, text);
                    }
                    if strings.len() > ENTRIES_MAX {
                        return Err(A::Error::custom(format_args!(
                            "more than {ENTRIES_MAX} entries"
                        )));
                    }
                }
                Ok(Strings(strings))
            }
        }
        deserializer.deserialize_map(StringsVisitor)
    }
}

/// Whether a tensor has as many bytes as its shape and type need.
fn fits(info: &TensorInfo) -> bool {
    let (begin, end) = info.data_offsets;
    let mut sizes = info.shape.iter();
    let bits = sizes.try_fold(info.dtype.bitsize(), |bits, &size| bits.checked_mul(size));
    bits.is_some_and(|bits| bits % 8 == 0 && end.checked_sub(begin) == Some(bits / 8))
}

/// The tensors, in order, must fill the data section from its start to the end of the file.
fn check_tiling(tensors: &Tensors, data_bytes: u64) -> Result<()> {
    let checked = Metadata::new(None, tensors.clone()).map_err(|e| {
        // The library names no tensor where shape and bytes do not fit.
        let tensor = match (&e, tensors.iter().find(|(_, info)| !fits(info))) {
            (
                SafeTensorError::TensorInvalidInfo | SafeTensorError::ValidationOverflow,
                Some((name, _)),
            ) => format!("tensor {name}: "),
            _ => String::new(),
        };
        Error::format(format!("safetensors header: {tensor}{e}")).with_source(e)
    })?;
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
