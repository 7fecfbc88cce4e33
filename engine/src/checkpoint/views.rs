//! Tensors that are other views of the numbers of one in a file.

#![forbid(unsafe_code)]

use super::tensor::RawTensor;
use crate::error::{Error, Result};

impl RawTensor {
    /// With its dimensions the other way round.
    pub(crate) fn transposed(mut self) -> Self {
        self.shape.reverse();
        self.strides.reverse();
        self
    }

    /// The `n` parts of a tensor that holds so many one behind the other, along its first dimension.
    ///
    /// # Errors
    /// Another first dimension, and a type of which parts have no place of their own.
    pub(super) fn split(&self, n: usize) -> Result<Vec<Self>> {
        let (Some(size), Some((&found, shape)), Some((&stride, strides))) = (
            self.dtype.size(),
            self.shape.split_first(),
            self.strides.split_first(),
        ) else {
            let text = format!(
                "dtype {} of shape {:?}, expected F32, F16 or BF16",
                self.dtype, self.shape
            );
            return Err(Error::unsupported(text).at(self.place()));
        };
        if found != n {
            let text = format!("shape {:?}, expected {n} vectors", self.shape);
            return Err(Error::format(text).at(self.place()));
        }
        // Within the file: all of the tensor is.
        let part = |index: usize| RawTensor {
            shape: shape.to_vec(),
            strides: strides.to_vec(),
            offset: self.offset + (index * stride * size) as u64,
            ..self.clone()
        };
        Ok((0..n).map(part).collect())
    }
}
