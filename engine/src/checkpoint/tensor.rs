//! A tensor as it lies in a file: where it is, of what type, and how to read it as f32.
//!
//! Made by the readers of safetensors, torch and rwkv.cpp files, used by whoever turns a checkpoint
//! into a model or another checkpoint. The readers check that every element lies within the file; this module checks the
//! numbers: what it hands out is finite. A large tensor is read a few rows at a time and never held
//! whole.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::additions::Addition;
use super::checksum::Checksum;
use super::dtype::Dtype;
use super::per_head::exponentials;
use crate::error::{Error, Result};
use crate::files::{FileBytes, SourceFile};
use crate::math::reserve;

/// Elements converted at a time: their copy stays in the innermost cache.
const CHUNK: usize = 2048;

/// Bytes of a file walked before they are released, for readers that need each of them once.
const WALK_STEP: u64 = 8 << 20;

/// A tensor in a file. Cheap to clone. Made by [`RawTensor::new`] and [`RawTensor::in_order`] only,
/// which check its place.
#[derive(Clone, Debug)]
pub(crate) struct RawTensor {
    /// As it is called in the file; in a GGUF file, as raw checkpoints call it.
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
    /// Whether its numbers are in the form that networks use, where other checkpoints hold another: rwkv.cpp stores
    /// `time_decay` with -exp() applied already.
    pub(crate) is_in_network_form: bool,
    /// How often its numbers were halved when the file was written: they are doubled as often here.
    pub(crate) n_halved: u32,
    /// Whether the file holds the logarithms of its numbers.
    pub(crate) is_logarithm: bool,
    /// What adapters add to it, one after the other.
    pub(super) additions: Vec<Addition>,
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
    /// A tensor whose first element is `first` elements into the bytes `data` of the file. Elements may
    /// overlap: a stride of 0 makes one number stand for many.
    ///
    /// # Errors
    /// An element outside these bytes, sizes beyond the memory.
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
        if count.is_none() || shape.len() != strides.len() {
            return refuse(format!("shape {shape:?} with strides {strides:?}"));
        }
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
        let is_outside = last.is_none_or(|last| last >= capacity);
        if !is_empty && dtype.size().is_some() && is_outside {
            return refuse(format!(
                "shape {shape:?}, strides {strides:?}, first element {first}: outside its \
                 storage of {capacity} elements"
            ));
        }
        Ok(RawTensor {
            offset: data.start.saturating_add(first.saturating_mul(size)),
            name,
            file,
            dtype,
            shape,
            strides,
            checksum: None,
            is_in_network_form: false,
            n_halved: 0,
            is_logarithm: false,
            additions: Vec::new(),
        })
    }

    /// A tensor whose elements lie side by side in row-major order from byte `offset` on.
    ///
    /// # Errors
    /// An element outside the file, rows that are not whole blocks, sizes beyond the memory.
    pub(crate) fn in_order(
        name: String,
        file: SourceFile,
        dtype: Dtype,
        shape: Vec<usize>,
        offset: u64,
    ) -> Result<Self> {
        let refuse =
            |text: String| Err(Error::format(text).at(format!("{}: tensor {name}", file.name())));
        let mut strides = vec![1; shape.len()];
        let mut count = 1usize;
        for (stride, &dim) in strides.iter_mut().zip(&shape).rev() {
            *stride = count;
            let Some(more) = count.checked_mul(dim.max(1)) else {
                return refuse(format!("shape {shape:?}: too large"));
            };
            count = more;
        }
        if let Dtype::Blocks(format) = dtype {
            let n = format.numbers();
            if shape.last().is_none_or(|row| row % n != 0) {
                return refuse(format!(
                    "shape {shape:?} of {dtype}, expected rows of a multiple of {n}"
                ));
            }
        }
        let tensor = RawTensor {
            name: name.clone(),
            file: file.clone(),
            dtype,
            shape,
            strides,
            offset,
            checksum: None,
            is_in_network_form: false,
            n_halved: 0,
            is_logarithm: false,
            additions: Vec::new(),
        };
        let end = tensor.end();
        if end > file.len() {
            return refuse(format!(
                "{dtype} {:?} at byte {offset} ends at {end}, but the file has {} bytes: truncated",
                tensor.shape,
                file.len()
            ));
        }
        Ok(tensor)
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Where its last byte ends, if its elements lie in order, in bytes from the start of the file.
    pub(crate) fn end(&self) -> u64 {
        self.byte_range(0, self.len() as u64).end
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
        self.read(rows.clone(), out, false)?;
        self.require_finite(rows, out)
    }

    /// As [`RawTensor::read_rows`], and does not keep the pages that it walks over, so that a few
    /// rows of a transposed tensor do not bring in all of it.
    pub(crate) fn read_rows_once(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.read(rows.clone(), out, true)?;
        self.release(rows.clone());
        self.require_finite(rows, out)
    }

    fn read(&self, rows: Range<usize>, out: &mut [f32], once: bool) -> Result<()> {
        self.read_after(self.additions.len(), rows, out, once)
    }

    /// The numbers in the file.
    pub(super) fn read_stored(
        &self,
        rows: Range<usize>,
        out: &mut [f32],
        once: bool,
    ) -> Result<()> {
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
            self.read_run(first, out)?;
        } else {
            self.gather(plane, rows, out, once)?;
        }
        if self.n_halved > 0 {
            let factor = 2f32.powi(self.n_halved.min(127) as i32);
            out.iter_mut().for_each(|x| *x *= factor);
        }
        if self.is_logarithm {
            exponentials(out);
        }
        self.file.watch().check()
    }

    fn require_finite(&self, rows: Range<usize>, values: &[f32]) -> Result<()> {
        match first_non_finite(values) {
            None => Ok(()),
            Some(at) => Err(self.non_finite(rows.start * self.plane()?.cols + at, values[at])),
        }
    }

    /// Reads all `n` elements in order, whatever the shape, and releases their pages.
    ///
    /// # Errors
    /// Another number of elements, and those of [`RawTensor::read_rows`].
    pub(crate) fn read_vector(&self, n: usize) -> Result<Vec<f32>> {
        self.read_vector_of(n, |_| false)
    }

    /// As [`RawTensor::read_vector`], but numbers that are not finite may be what `admits` says.
    pub(crate) fn read_vector_of(
        &self,
        n: usize,
        admits: impl Fn(f32) -> bool,
    ) -> Result<Vec<f32>> {
        if self.len() != n {
            let message = format!("shape {:?}, expected {n} elements", self.shape);
            return Err(Error::format(message).at(self.place()));
        }
        let mut out = reserve(n, "a vector")?;
        out.resize(n, 0.0);
        if n > 0 {
            let rows = self.plane()?.rows;
            self.read(0..rows, &mut out, true)?;
            self.release(0..rows);
        }
        let is_bad = |value: &f32| !value.is_finite() && !admits(*value);
        match out.iter().position(is_bad) {
            None => Ok(out),
            Some(at) => Err(self.non_finite(at, out[at])),
        }
    }

    /// The stored bytes, little-endian, for use in place; `None` unless the elements lie side by
    /// side in order and nothing is added to them. Their values are not looked at.
    pub(crate) fn contiguous_bytes(&self) -> Option<Result<FileBytes>> {
        self.contiguous_elements(0..self.len())
    }

    /// As [`RawTensor::contiguous_bytes`], but of these elements only, counted from the first.
    ///
    /// # Panics
    /// If they are not within the tensor.
    pub(crate) fn contiguous_elements(&self, elements: Range<usize>) -> Option<Result<FileBytes>> {
        assert!(
            elements.start <= elements.end && elements.end <= self.len(),
            "elements within the tensor"
        );
        // Blocks of several numbers have no size of one.
        self.dtype.size()?;
        if !self.is_usable_in_place() {
            return None;
        }
        let range = self.byte_range(elements.start as u64, elements.len() as u64);
        Some(self.check().and_then(|()| self.file.bytes(range)))
    }

    /// Says that these rows are not needed for now; see [`SourceFile::release`]. Rows of a
    /// transposed tensor lie scattered: they are released together with its last row.
    pub(crate) fn release(&self, rows: Range<usize>) {
        let Ok(plane) = self.plane() else {
            return;
        };
        let rows = rows.start.min(plane.rows) as u64..rows.end.min(plane.rows) as u64;
        if plane.col_stride == 1 && plane.row_stride == plane.cols as u64 {
            let cols = plane.row_stride;
            let count = (rows.end - rows.start.min(rows.end)) * cols;
            self.file.release(self.byte_range(rows.start * cols, count));
        } else if rows.end == plane.rows as u64 {
            self.file.release(self.byte_range(0, plane.span()));
        }
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
    /// piece read from the file is as short as possible. `once`: releases what it has walked over.
    fn gather(&self, plane: Plane, rows: Range<usize>, out: &mut [f32], once: bool) -> Result<()> {
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
        let step = inner.1 as usize;
        let mut run = Vec::new();
        if matches!(self.dtype, Dtype::Blocks(_)) {
            run = reserve(span as usize, "rows of blocks")?;
            run.resize(span as usize, 0.0);
        }
        let mut walked = self.byte_range(first, 0).start;
        for line in 0..outer.0 {
            let start = first + line as u64 * outer.1;
            let range = self.byte_range(start, span);
            if run.is_empty() {
                let bytes = self.file.bytes(range.clone())?;
                for i in 0..inner.0 {
                    let element = &bytes[i * step * size..][..size];
                    out[line * outer.2 + i * inner.2] = widen_one(self.dtype, element);
                }
            } else {
                self.read_run(start, &mut run)?;
                for i in 0..inner.0 {
                    out[line * outer.2 + i * inner.2] = run[i * step];
                }
            }
            if once && (range.end - walked >= WALK_STEP || line + 1 == outer.0) {
                self.file.release(walked..range.end);
                walked = range.end;
            }
        }
        Ok(())
    }

    /// Elements that lie side by side, `first` elements after the tensor's own first.
    fn read_run(&self, first: u64, out: &mut [f32]) -> Result<()> {
        let bytes = self.file.bytes(self.byte_range(first, out.len() as u64))?;
        match self.dtype {
            // Below the size of a block.
            Dtype::Blocks(format) => {
                format.widen(&bytes, (first % format.numbers() as u64) as usize, out);
            }
            dtype => widen(dtype, &bytes, out),
        }
        Ok(())
    }

    /// Bytes of the file that hold `count` elements, `first` elements after the tensor's own first:
    /// whole blocks, where there are any.
    fn byte_range(&self, first: u64, count: u64) -> Range<u64> {
        let end = first.saturating_add(count);
        let (per_unit, size) = match self.dtype {
            Dtype::Blocks(format) => (format.numbers() as u64, format.size_bytes() as u64),
            dtype => (1, dtype.size().unwrap_or(1) as u64),
        };
        let at = |units: u64| self.offset.saturating_add(units.saturating_mul(size));
        at(first / per_unit)..at(end.div_ceil(per_unit))
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
