//! How the numbers of a tensor lie in its file, and tensors that are other views of them.

#![forbid(unsafe_code)]

use super::additions::Addition;
use super::dtype::Dtype;
use super::tensor::RawTensor;
use crate::error::{Error, Result};

impl RawTensor {
    /// Whether the numbers lie side by side in row-major order, and are meant as they are.
    pub(crate) fn is_usable_in_place(&self) -> bool {
        self.is_contiguous() && self.n_halved == 0 && !self.is_logarithm && !self.is_merged()
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

    /// With its dimensions the other way round.
    pub(crate) fn transposed(mut self) -> Self {
        self.shape.reverse();
        self.strides.reverse();
        let additions = self.additions.into_iter();
        self.additions = additions.map(Addition::transposed).collect();
        self
    }

    pub(super) fn renamed(mut self, name: String) -> Self {
        self.name = name;
        self
    }

    /// A tensor whose numbers lie in order, in rows of `width`, which divides them.
    pub(super) fn in_rows_of(mut self, width: usize) -> Self {
        self.shape = vec![self.len() / width.max(1), width];
        self.strides = vec![width, 1];
        self
    }

    /// The `n` parts of a tensor that holds so many one behind the other, along its first dimension.
    ///
    /// # Errors
    /// Another first dimension, and blocks of numbers that are in two parts.
    pub(super) fn split(&self, n: usize) -> Result<Vec<Self>> {
        let refuse = |text: String| Err(Error::format(text).at(self.place()));
        let first = self.shape.split_first().zip(self.strides.split_first());
        let Some(((_, shape), (&stride, strides))) = first.filter(|((found, _), _)| **found == n)
        else {
            return refuse(format!("shape {:?}, expected {n} vectors", self.shape));
        };
        // Numbers of a unit that has a place of its own, and its bytes.
        let (numbers, size) = match self.dtype {
            Dtype::Blocks(format) => (format.numbers(), format.size_bytes()),
            dtype => (1, dtype.size().unwrap_or(1)),
        };
        if numbers > 1 && !(self.is_contiguous() && stride % numbers == 0) {
            let text = format!(
                "shape {:?} of {}, expected vectors of a multiple of {numbers}",
                self.shape, self.dtype
            );
            return refuse(text);
        }
        // Within the file: all of the tensor is.
        let part = |index: usize| RawTensor {
            shape: shape.to_vec(),
            strides: strides.to_vec(),
            // In 64 bits: files may be larger than what a `usize` of 32 counts.
            offset: self.offset + index as u64 * stride as u64 / numbers as u64 * size as u64,
            ..self.clone()
        };
        Ok((0..n).map(part).collect())
    }
}
