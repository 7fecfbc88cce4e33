//! rwkv.cpp's model files: a header of six numbers, then the tensors one after the other, each with
//! its own small header, to the end of the file.
//!
//! Input: a file of version 100 or 101, with weights in f32, f16 or ggml's blocks. Output: its
//! tensors as raw checkpoints have them, each within the file. What rwkv.cpp's converter does to some of
//! them is undone without touching a number: `time_decay` of RWKV-4 and 5 is stored with functions applied already,
//! and the tensor says so; the low-rank matrices of RWKV-6 and 7 are stored transposed, and are read across; the six
//! vectors of RWKV-7's token shift are one tensor, `x_rwkvag`, and become six. Blocks of version 100 had other layouts, which
//! changed more than once under that number; rwkv.cpp itself has refused them since it introduced 101, and so
//! does this.

#![forbid(unsafe_code)]

use super::blocks::BlockFormat;
use super::dtype::Dtype;
use super::names;
use super::per_head::is_time_first;
use super::tensor::RawTensor;
use crate::error::{Error, Result};
use crate::files::{FileBytes, SourceFile};
use crate::math::push;
use crate::networks::form::Form;
use crate::networks::known;
use crate::networks::names::EMBEDDING;
use crate::networks::table::{Architecture, Kind};

/// `ggmf`, as a little-endian number.
const MAGIC: &[u8] = b"fmgg";
const VERSION_MIN: u32 = 100;
/// Since this version quantised tensors have the layouts that ggml has today.
const VERSION_BLOCKS: u32 = 101;

/// Names have some forty bytes.
const NAME_BYTES_MAX: u32 = 256;
const DIMENSIONS_MAX: u32 = 3;
/// The largest models have some thousand.
const TENSORS_MAX: usize = 1 << 16;

/// What the one tensor is called that holds the shares of RWKV-7's token shift,
const SHIFTS: &str = "att.x_rwkvag";
/// and what it holds, a row each.
const SHIFTS_IN_ORDER: [&str; 6] = ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g"];

/// Whether the first bytes are those of such a file.
pub(super) fn recognises(start: &[u8]) -> bool {
    start.starts_with(MAGIC)
}

/// The tensors of a file, in its order.
pub(super) fn read(file: &SourceFile) -> Result<Vec<RawTensor>> {
    read_file(file).map_err(|e| super::name_file(e, file))
}

fn read_file(file: &SourceFile) -> Result<Vec<RawTensor>> {
    let mut reader = Reader { file, at: 4 };
    let header = Header::read(&mut reader).map_err(|e| e.at("an rwkv.cpp file"))?;
    let mut tensors = Vec::new();
    while reader.at < file.len() {
        if tensors.len() == TENSORS_MAX {
            return Err(Error::format(format!("more than {TENSORS_MAX} tensors")));
        }
        let place = format!("tensor {} at byte {}", tensors.len(), reader.at);
        let (name, dtype, shape) =
            read_tensor_header(&mut reader, header.version).map_err(|e| e.at(place))?;
        let tensor = RawTensor::in_order(name, file.clone(), dtype, shape, reader.at)?;
        reader.at = tensor.end();
        let mut push = |tensor| push(&mut tensors, tensor, "the tensors of a file");
        match tensor.name.strip_suffix(SHIFTS) {
            Some(layer) => shifts(&tensor, layer, header.n_embd as usize)
                .and_then(|shifts| shifts.into_iter().try_for_each(push))?,
            None => push(tensor)?,
        }
    }
    header.check(&tensors)?;
    let names = tensors.iter().map(|tensor| tensor.name.as_str());
    Ok(match known::shown(names) {
        Some(Ok(architecture)) => {
            let tensors = tensors.into_iter();
            tensors.map(|one| as_in_raw(one, architecture)).collect()
        }
        // What it is instead will be told.
        _ => tensors,
    })
}

/// The six vectors of the token shift that a tensor holds, each where it lies; `layer` is what its name begins with.
fn shifts(tensor: &RawTensor, layer: &str, n_embd: usize) -> Result<Vec<RawTensor>> {
    let expected = [SHIFTS_IN_ORDER.len(), n_embd];
    let n = expected[0].checked_mul(n_embd);
    let long: Vec<usize> = tensor.shape.iter().copied().filter(|&n| n != 1).collect();
    if n != Some(tensor.len()) || (long != expected && long != [tensor.len()]) {
        let found = &tensor.shape;
        let text = format!("shape {found:?}, expected {expected:?} by the file's header");
        return Err(Error::format(text).at(tensor.place()));
    }
    let rows = tensor.clone().in_rows_of(n_embd);
    let shifts = rows.split(expected[0])?.into_iter().zip(SHIFTS_IN_ORDER);
    let shifts = shifts.map(|(shift, name)| shift.renamed(format!("{layer}att.{name}")));
    Ok(shifts.collect())
}

/// The tensor as raw checkpoints have it.
fn as_in_raw(mut tensor: RawTensor, architecture: &Architecture) -> RawTensor {
    let rank = tensor.shape.len();
    if !architecture
        .hugging_face
        .held_in_one(&tensor.name)
        .is_empty()
        && rank == 3
    {
        // Matrices one behind the other, each stored transposed.
        tensor.shape.swap(1, 2);
        tensor.strides.swap(1, 2);
        return tensor;
    }
    let Some((spec, _)) = architecture.find(&tensor.name) else {
        return tensor;
    };
    // Its converter writes what `time_first` of RWKV-5.0 and 5.1 is the logarithm of.
    let is_bonus = architecture.kind == Kind::V5 && is_time_first(&tensor.name);
    tensor.is_in_network_form = spec.form != Form::Same || is_bonus;
    if spec.is_low_rank() {
        return tensor.transposed();
    }
    // Vectors of heads are [heads, channels, 1], or one row of all channels.
    if rank == 3 && spec.is_vector() && tensor.is_contiguous() {
        let one = tensor.shape.iter().rposition(|&n| n == 1);
        match (spec.row, one) {
            (Some(_), Some(one)) => {
                tensor.shape.remove(one);
                tensor.strides.remove(one);
            }
            (None, _) => {
                let n = tensor.len();
                return tensor.in_rows_of(n);
            }
            (Some(_), None) => {}
        }
    }
    tensor
}

/// Takes the file apart from front to back.
struct Reader<'a> {
    file: &'a SourceFile,
    /// Bytes from the start of the file.
    at: u64,
}

impl Reader<'_> {
    fn bytes(&mut self, n: u64) -> Result<FileBytes> {
        let end = self.at.saturating_add(n);
        if end > self.file.len() {
            return Err(Error::format(format!(
                "its header is cut: the file ends at byte {}",
                self.file.len()
            )));
        }
        let bytes = self.file.bytes(self.at..end)?;
        self.at = end;
        Ok(bytes)
    }

    fn numbers<const N: usize>(&mut self) -> Result<[u32; N]> {
        let bytes = self.bytes(4 * N as u64)?;
        let mut numbers = [0; N];
        for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(4)) {
            *number = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Ok(numbers)
    }
}

/// What the file says of the model.
struct Header {
    version: u32,
    n_vocab: u32,
    n_embd: u32,
    n_layer: u32,
}

impl Header {
    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let [version, n_vocab, n_embd, n_layer, data_type] = reader.numbers()?;
        if !(VERSION_MIN..=VERSION_BLOCKS).contains(&version) {
            return Err(Error::unsupported(format!(
                "version {version}, expected {VERSION_MIN} or {VERSION_BLOCKS}"
            )));
        }
        // Of most of the tensors; each says its own. Here it tells of a format that is not read
        // before any tensor does.
        dtype(data_type, version)?;
        Ok(Header {
            version,
            n_vocab,
            n_embd,
            n_layer,
        })
    }

    /// The tensors themselves are checked later, like those of every other format.
    fn check(&self, tensors: &[RawTensor]) -> Result<()> {
        let embedding = tensors.iter().find(|tensor| tensor.name == EMBEDDING);
        if let Some(tensor) = embedding {
            let expected = [self.n_vocab as usize, self.n_embd as usize];
            if tensor.shape != expected {
                let found = &tensor.shape;
                let text = format!("shape {found:?}, expected {expected:?} by the file's header");
                return Err(Error::format(text).at(tensor.place()));
            }
        }
        let found = names::count_layers(tensors.iter().map(|tensor| &tensor.name[..]));
        if found != self.n_layer as usize {
            return Err(Error::format(format!(
                "tensors of {found} layers, expected {} by the file's header",
                self.n_layer
            )));
        }
        Ok(())
    }
}

/// Name, type and shape of the tensor whose numbers follow.
fn read_tensor_header(
    reader: &mut Reader<'_>,
    version: u32,
) -> Result<(String, Dtype, Vec<usize>)> {
    let [n_dims, name_bytes, data_type] = reader.numbers()?;
    if !(1..=DIMENSIONS_MAX).contains(&n_dims) || !(1..=NAME_BYTES_MAX).contains(&name_bytes) {
        return Err(Error::format(format!(
            "{n_dims} dimensions and a name of {name_bytes} bytes, expected 1 to {DIMENSIONS_MAX} \
             and 1 to {NAME_BYTES_MAX}: damaged"
        )));
    }
    let mut shape = Vec::new();
    for _ in 0..n_dims {
        let [n] = reader.numbers()?;
        shape.push(n as usize);
    }
    // ggml names the length of a row first.
    shape.reverse();
    let name = reader.bytes(u64::from(name_bytes))?;
    let name = std::str::from_utf8(&name)
        .map_err(|_| Error::format("its name is not text: damaged"))?
        .to_owned();
    let dtype = dtype(data_type, version).map_err(|e| e.at(&name))?;
    if shape.contains(&0) {
        let text = format!("{name}: shape {shape:?}, expected no dimension of 0");
        return Err(Error::format(text));
    }
    Ok((name, dtype, shape))
}

/// rwkv.cpp's number of a type.
fn dtype(data_type: u32, version: u32) -> Result<Dtype> {
    let format = match data_type {
        0 => return Ok(Dtype::F32),
        1 => return Ok(Dtype::F16),
        2 => BlockFormat::Q4_0,
        3 => BlockFormat::Q4_1,
        7 => BlockFormat::Q5_0,
        8 => BlockFormat::Q5_1,
        9 => BlockFormat::Q8_0,
        4..=6 => {
            let name = ["Q4_1_O", "Q4_2", "Q4_3"][data_type as usize - 4];
            return Err(Error::unsupported(format!(
                "type {name}, which rwkv.cpp has given up: {REQUANTIZE}"
            )));
        }
        _ => {
            return Err(Error::unsupported(format!(
                "type {data_type}, expected FP32, FP16, Q4_0, Q4_1, Q5_0, Q5_1 or Q8_0"
            )))
        }
    };
    if version < VERSION_BLOCKS {
        let name = format.name();
        return Err(Error::unsupported(format!(
            "type {name} in a file of version {version}, whose blocks had other layouts: {REQUANTIZE}"
        )));
    }
    Ok(Dtype::Blocks(format))
}

const REQUANTIZE: &str = "use the FP16 or FP32 file that it was made from";
