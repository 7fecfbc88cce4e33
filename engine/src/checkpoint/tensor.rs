//! A tensor as it lies in a file: where it is, of what type, and how to read it as f32.
//!
//! Made by the readers of safetensors and torch files, used by whoever turns a checkpoint into a
//! model. The readers check that every element lies within the file; this module checks the
//! numbers: what it hands out is finite. A large tensor is read a few rows at a time and never held
//! whole.

#![forbid(unsafe_code)]

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::file::{FileBytes, SourceFile};

/// Elements converted at a time: their copy stays in the innermost cache.
const CHUNK: usize = 2048;

/// Bytes of a record checked at a time, so that checking a large one needs no memory of its size.
const CHECK_STEP: u64 = 1 << 20;

/// Element types. Weights are F32, F16 or BF16; the others occur beside them, and in model files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dtype {
    F32,
    F16,
    Bf16,
    F64,
    I8,
    U8,
    I16,
    I32,
    I64,
    Bool,
    /// A type of the safetensors format with no use here, by its name there.
    Other(&'static str),
}

impl Dtype {
    /// Bytes of one element; `None` for types that are only ever refused.
    pub(crate) fn size(self) -> Option<usize> {
        match self {
            Dtype::I8 | Dtype::U8 | Dtype::Bool => Some(1),
            Dtype::F16 | Dtype::Bf16 | Dtype::I16 => Some(2),
            Dtype::F32 | Dtype::I32 => Some(4),
            Dtype::F64 | Dtype::I64 => Some(8),
            Dtype::Other(_) => None,
        }
    }

    /// The name in safetensors headers.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::F64 => "F64",
            Dtype::I8 => "I8",
            Dtype::U8 => "U8",
            Dtype::I16 => "I16",
            Dtype::I32 => "I32",
            Dtype::I64 => "I64",
            Dtype::Bool => "BOOL",
            Dtype::Other(name) => name,
        }
    }

    /// Whether weights of this type can be read.
    pub(crate) fn is_weight(self) -> bool {
        matches!(self, Dtype::F32 | Dtype::F16 | Dtype::Bf16)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The CRC-32 a zip directory gives for one of its records. Several tensors may share a record; it
/// is checked when the first of them is read, and then never again.
#[derive(Debug)]
pub(crate) struct Checksum {
    pub(crate) record: String,
    pub(crate) range: Range<u64>,
    pub(crate) crc32: u32,
    pub(crate) found: OnceLock<u32>,
}

impl Checksum {
    fn check(&self, file: &SourceFile, place: impl Fn() -> String) -> Result<()> {
        let found = match self.found.get() {
            Some(found) => *found,
            None => {
                let found = crc32(file, self.range.clone())?;
                *self.found.get_or_init(|| found)
            }
        };
        if found == self.crc32 {
            return Ok(());
        }
        Err(Error::format(format!(
            "record {}: damaged: checksum {found:08x}, expected {:08x}",
            self.record, self.crc32
        ))
        .at(place()))
    }
}

/// CRC-32 of a range, however large, leaving no pages behind.
pub(crate) fn crc32(file: &SourceFile, range: Range<u64>) -> Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    let mut start = range.start;
    while start < range.end {
        let end = range.end.min(start.saturating_add(CHECK_STEP));
        hasher.update(&file.bytes(start..end)?);
        file.release(start..end);
        start = end;
    }
    Ok(hasher.finalize())
}

/// A tensor in a file. Cheap to clone. Made by [`RawTensor::new`] only, which checks its place.
#[derive(Clone, Debug)]
pub(crate) struct RawTensor {
    /// As it is called in the file.
    pub(crate) name: String,
    pub(crate) file: SourceFile,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// In elements, as many as dimensions.
    pub(crate) strides: Vec<usize>,
    /// Of the first element, in bytes from the start of the file.
    pub(crate) offset: u64,
    /// Of the record that holds it, where the format has one.
    pub(crate) checksum: Option<Arc<Checksum>>,
}

/// A tensor as rows and columns, with the distances between them in elements.
#[derive(Clone, Copy)]
struct Plane {
    rows: usize,
    cols: usize,
    row_stride: u64,
    col_stride: u64,
}

impl RawTensor {
    /// A tensor whose first element is `first` elements into the bytes `data` of the file.
    ///
    /// # Errors
    /// An element outside these bytes, more elements than the bytes hold, sizes beyond the memory.
    pub(crate) fn new(
        name: String,
        file: SourceFile,
        dtype: Dtype,
        (shape, mut strides): (Vec<usize>, Vec<usize>),
        first: u64,
        data: Range<u64>,
    ) -> Result<Self> {
        let place = || format!("{}: tensor {name}", file.name());
        let refuse = |message: String| Err(Error::format(message).at(place()));
        let count = shape
            .iter()
            .try_fold(1usize, |n, &dim| n.checked_mul(dim.max(1)));
        let (Some(count), true) = (count, shape.len() == strides.len()) else {
            return refuse(format!("shape {shape:?} with strides {strides:?}"));
        };
        let is_empty = shape.contains(&0);
        if is_empty {
            strides.fill(1);
        }
        let size = dtype.size().unwrap_or(1) as u64;
        let capacity = data.end.saturating_sub(data.start) / size;
        let last = shape
            .iter()
            .zip(&strides)
            .try_fold(first, |last, (&dim, &stride)| {
                let steps = (dim as u64).saturating_sub(1);
                last.checked_add(steps.checked_mul(stride as u64)?)
            });
        if !is_empty && dtype.size().is_some() {
            if last.is_none_or(|last| last >= capacity) {
                return refuse(format!(
                    "shape {shape:?}, strides {strides:?}, first element {first}: outside its \
                     storage of {capacity} elements"
                ));
            }
            if count as u64 > capacity {
                return refuse(format!(
                    "shape {shape:?}, strides {strides:?}: its elements overlap, in a storage of \
                     {capacity} elements"
                ));
            }
        }
        Ok(RawTensor {
            offset: data.start.saturating_add(first.saturating_mul(size)),
            name,
            file,
            dtype,
            shape,
            strides,
            checksum: None,
        })
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// `FILE: tensor NAME`, for error texts.
    pub(crate) fn place(&self) -> String {
        format!("{}: tensor {}", self.file.name(), self.name)
    }

    /// Reads rows of a matrix, or of a vector taken as one row, into `out`.
    ///
    /// # Errors
    /// NaN, infinity, a type that is no weight's, a damaged record, a failed read.
    ///
    /// # Panics
    /// If the rows are not within the tensor or `out` has not exactly their size.
    pub(crate) fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let plane = self.plane()?;
        assert!(
            rows.start <= rows.end && rows.end <= plane.rows,
            "rows within the tensor"
        );
        assert_eq!(
            out.len(),
            rows.len() * plane.cols,
            "room for exactly these rows"
        );
        self.require_weight()?;
        self.check()?;
        if out.is_empty() {
            return Ok(());
        }
        let first = rows.start as u64 * plane.row_stride;
        if plane.col_stride == 1 && plane.row_stride == plane.cols as u64 {
            let bytes = self.elements(first, out.len() as u64)?;
            widen(self.dtype, &bytes, out);
        } else {
            self.gather(plane, rows.clone(), out)?;
        }
        match first_non_finite(out) {
            None => Ok(()),
            Some(at) => Err(self.non_finite(rows.start * plane.cols + at, out[at])),
        }
    }

    /// Reads all `n` elements in order, whatever the shape.
    ///
    /// # Errors
    /// Another number of elements, and those of [`RawTensor::read_rows`].
    pub(crate) fn read_vector(&self, n: usize) -> Result<Vec<f32>> {
        if self.len() != n {
            let message = format!("shape {:?}, expected {n} elements", self.shape);
            return Err(Error::format(message).at(self.place()));
        }
        let mut out = vec![0.0; n];
        if n > 0 {
            let rows = self.plane()?.rows;
            self.read_rows(0..rows, &mut out)?;
        }
        Ok(out)
    }

    /// The stored bytes, little-endian, for use in place; `None` unless the elements lie side by
    /// side in order. Their values are not looked at.
    pub(crate) fn contiguous_bytes(&self) -> Option<Result<FileBytes>> {
        let size = self.dtype.size()? as u64;
        if !self.is_contiguous() {
            return None;
        }
        let end = self.offset + self.len() as u64 * size;
        Some(
            self.check()
                .and_then(|()| self.file.bytes(self.offset..end)),
        )
    }

    /// Says that these rows are not needed for now; see [`SourceFile::release`]. Rows of a
    /// transposed tensor lie scattered: they are released together with its last row.
    pub(crate) fn release(&self, rows: Range<usize>) {
        let (Ok(plane), Some(size)) = (self.plane(), self.dtype.size()) else {
            return;
        };
        let size = size as u64;
        let rows = rows.start.min(plane.rows) as u64..rows.end.min(plane.rows) as u64;
        if plane.col_stride == 1 && plane.row_stride == plane.cols as u64 {
            let row_bytes = plane.row_stride * size;
            let start = self.offset + rows.start * row_bytes;
            self.file.release(start..self.offset + rows.end * row_bytes);
        } else if rows.end == plane.rows as u64 {
            let end = self.offset + plane.span() * size;
            self.file.release(self.offset..end);
        }
    }

    /// Whether the elements lie side by side in row-major order.
    pub(crate) fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape
            .iter()
            .zip(&self.strides)
            .rev()
            .all(|(&dim, &stride)| {
                let fits = dim == 1 || stride == expected;
                expected *= dim.max(1);
                fits
            })
    }

    /// Checks the record that holds the tensor, if this was not done before.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.checksum {
            Some(checksum) => checksum.check(&self.file, || self.place()),
            None => Ok(()),
        }
    }

    /// As a matrix: two dimensions as they are; with more, those of size 1 do not count.
    fn plane(&self) -> Result<Plane> {
        let dims: Vec<(usize, u64)> = self
            .shape
            .iter()
            .zip(&self.strides)
            .map(|(&dim, &stride)| (dim, stride as u64))
            .filter(|&(dim, _)| dim != 1 || self.shape.len() == 2)
            .collect();
        let (row, col) = match dims[..] {
            [] => ((1, 1), (1, 1)),
            [col] => ((1, col.0 as u64), col),
            [row, col] => (row, col),
            _ if self.is_contiguous() => ((1, self.len() as u64), (self.len(), 1)),
            _ => {
                let message = format!("shape {:?}, expected a matrix or a vector", self.shape);
                return Err(Error::format(message).at(self.place()));
            }
        };
        // Distances over a single row or column are never walked; torch writes anything there.
        let col_stride = if col.0 == 1 { 1 } else { col.1 };
        let row_stride = if row.0 == 1 { col.0 as u64 } else { row.1 };
        Ok(Plane {
            rows: row.0,
            cols: col.0,
            row_stride,
            col_stride,
        })
    }

    /// Rows whose elements do not lie side by side. Walks the larger distance outside, so that each
    /// piece read from the file is as short as possible.
    fn gather(&self, plane: Plane, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let first = rows.start as u64 * plane.row_stride;
        let by_columns = plane.col_stride > plane.row_stride;
        let (outer, inner) = if by_columns {
            (
                (plane.cols, plane.col_stride, 1),
                (rows.len(), plane.row_stride, plane.cols),
            )
        } else {
            (
                (rows.len(), plane.row_stride, plane.cols),
                (plane.cols, plane.col_stride, 1),
            )
        };
        let span = (inner.0 as u64 - 1) * inner.1 + 1;
        let size = self.dtype.size().unwrap_or(1);
        // Within `usize`: the bytes below hold `span` elements.
        let step = inner.1 as usize * size;
        for line in 0..outer.0 {
            let bytes = self.elements(first + line as u64 * outer.1, span)?;
            for i in 0..inner.0 {
                let element = &bytes[i * step..i * step + size];
                out[line * outer.2 + i * inner.2] = widen_one(self.dtype, element);
            }
        }
        Ok(())
    }

    /// The bytes of `count` elements in file order, `first` elements after the tensor's own first.
    fn elements(&self, first: u64, count: u64) -> Result<FileBytes> {
        let size = self.dtype.size().unwrap_or(1) as u64;
        let start = self.offset + first * size;
        self.file.bytes(start..start + count * size)
    }

    fn require_weight(&self) -> Result<()> {
        if self.dtype.is_weight() {
            return Ok(());
        }
        let message = format!("dtype {}, expected F32, F16 or BF16", self.dtype);
        Err(Error::unsupported(message).at(self.place()))
    }

    fn non_finite(&self, at: usize, value: f32) -> Error {
        let mut index = Vec::with_capacity(self.shape.len());
        let mut rest = at;
        for &dim in self.shape.iter().rev() {
            index.push(rest % dim.max(1));
            rest /= dim.max(1);
        }
        index.reverse();
        Error::format(format!("{value} at {index:?}, expected finite numbers")).at(self.place())
    }
}

impl Plane {
    /// Elements from the first to the last, both included.
    fn span(&self) -> u64 {
        let last_row = (self.rows as u64).saturating_sub(1) * self.row_stride;
        last_row + (self.cols as u64).saturating_sub(1) * self.col_stride + 1
    }
}

/// Little-endian numbers of any alignment to f32. `bytes` holds as many as `out`.
fn widen(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::F16 => {
            let mut chunk = [f16::ZERO; CHUNK];
            for (out, bytes) in out.chunks_mut(CHUNK).zip(bytes.chunks(2 * CHUNK)) {
                let chunk = &mut chunk[..out.len()];
                for (value, bytes) in chunk.iter_mut().zip(bytes.chunks_exact(2)) {
                    *value = f16::from_le_bytes([bytes[0], bytes[1]]);
                }
                chunk.convert_to_f32_slice(out);
            }
        }
        Dtype::Bf16 => {
            for (value, bytes) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *value = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
            }
        }
        _ => {
            for (value, bytes) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
    }
}

/// One number of `widen`'s, without its buffer.
fn widen_one(dtype: Dtype, bytes: &[u8]) -> f32 {
    match (dtype, bytes) {
        (Dtype::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
        (Dtype::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
        (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        _ => f32::NAN,
    }
}

/// Where the first NaN or infinity is. Whole chunks are tested first, without a branch an element.
fn first_non_finite(values: &[f32]) -> Option<usize> {
    values.chunks(CHUNK).enumerate().find_map(|(i, chunk)| {
        let bad = chunk.iter().fold(false, |bad, v| bad | !v.is_finite());
        let at = bad.then(|| chunk.iter().position(|v| !v.is_finite()))??;
        Some(i * CHUNK + at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dtype: Dtype, shape: &[usize], strides: &[usize], bytes: Vec<u8>) -> RawTensor {
        let len = bytes.len() as u64;
        // One byte before the numbers, so that no address is aligned.
        let bytes = [&[0][..], &bytes].concat();
        let file = SourceFile::from_bytes("file", bytes.into());
        let place = (shape.to_vec(), strides.to_vec());
        RawTensor::new("t".into(), file, dtype, place, 0, 1..len + 1).expect("tensor")
    }

    /// Every 16-bit pattern: finite ones are exact, the others are refused where they stand.
    #[test]
    fn halves() {
        let patterns: Vec<u16> = (0..=u16::MAX).collect();
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let value = |bits: u16| match dtype {
                Dtype::F16 => f16::from_bits(bits).to_f32(),
                _ => bf16::from_bits(bits).to_f32(),
            };
            let bytes: Vec<u8> = patterns
                .iter()
                .flat_map(|bits| bits.to_le_bytes())
                .collect();
            let first_bad = patterns.iter().position(|&bits| !value(bits).is_finite());
            let error = tensor(dtype, &[65536], &[1], bytes).read_vector(65536);
            let error = error.expect_err("not finite").to_string();
            let place = format!("inf at [{}]", first_bad.expect("infinity"));
            assert!(
                error.contains("tensor t") && error.contains(&place),
                "{error}"
            );

            let mut finite = patterns.clone();
            finite.retain(|&bits| value(bits).is_finite());
            let bytes: Vec<u8> = finite.iter().flat_map(|bits| bits.to_le_bytes()).collect();
            let n = finite.len();
            let found = tensor(dtype, &[n], &[1], bytes.clone())
                .read_vector(n)
                .expect("finite");
            let strided = tensor(dtype, &[n, 1], &[1, 9], bytes)
                .read_vector(n)
                .expect("finite");
            for (i, &bits) in finite.iter().enumerate() {
                assert_eq!(found[i].to_bits(), value(bits).to_bits());
                assert_eq!(strided[i].to_bits(), value(bits).to_bits());
            }
        }
    }

    /// Rows of views over the numbers 0, 1, 2, ... are what the strides say.
    #[test]
    fn rows_of_views() {
        let bytes: Vec<u8> = (0..64).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let cases: [(&[usize], &[usize]); 6] = [
            (&[8, 8], &[8, 1]),
            (&[8, 8], &[1, 8]),
            (&[3, 5], &[16, 2]),
            (&[5, 3], &[2, 16]),
            (&[1, 4], &[99, 3]),
            (&[4, 1], &[3, 99]),
        ];
        for (shape, strides) in cases {
            let tensor = tensor(Dtype::F32, shape, strides, bytes.clone());
            let [rows, cols] = shape[..] else { continue };
            for start in 0..rows {
                let mut out = vec![0.0; (rows - start) * cols];
                tensor.read_rows(start..rows, &mut out).expect("rows");
                for (i, &value) in out.iter().enumerate() {
                    let expected = (start + i / cols) * strides[0] + i % cols * strides[1];
                    assert_eq!(value, expected as f32, "{shape:?} {strides:?}");
                }
                tensor.release(start..rows);
            }
        }
    }
}
