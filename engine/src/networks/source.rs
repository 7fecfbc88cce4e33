//! Where a network takes its weights from.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::table::TensorAt;
use super::Tensor;
use crate::error::{Error, Result};
use crate::quant::exponents::Importance;
use crate::quant::matrix::{Matrix, Vector};
use crate::quant::parts::MatrixRows;
use crate::quant::Quant;

/// A checkpoint, a model file, another network, or numbers that are made up.
pub(crate) trait WeightSource {
    /// What the matrices are to be that are asked for from here on.
    fn set_quant(&mut self, quant: Quant) -> Result<()>;

    /// A vector, all of whose numbers are finite.
    fn vector(&mut self, tensor: &TensorAt<'_>) -> Result<Vector>;

    /// A matrix, stored as its layout says.
    fn matrix(&mut self, tensor: &TensorAt<'_>) -> Result<Matrix>;
}

/// A source whose matrices need not be held whole.
pub(crate) trait RowsSource: WeightSource {
    /// Gives the matrix that [`WeightSource::matrix`] gives to `take`, from its first row to its last, in pieces
    /// that are small enough to be held beside each other.
    fn matrix_rows(&mut self, tensor: &TensorAt<'_>, take: &mut TakeRows<'_>) -> Result<()>;
}

/// A source that can be told what rounding errors of its matrices do.
pub(crate) trait CalibratedSource: WeightSource {
    /// By the names of matrices; of others it is what the layer norms beside them say.
    fn set_importances(&mut self, importances: BTreeMap<String, Importance>);
}

/// Who takes pieces of a matrix.
pub(crate) type TakeRows<'a> = dyn FnMut(MatrixRows<'_>) -> Result<()> + 'a;

/// A field of a network's weights.
pub(crate) trait Weight: Sized {
    /// `tensor` is its line in the table.
    fn take(source: &mut dyn WeightSource, tensor: Option<TensorAt<'_>>) -> Result<Self>;

    /// `None` of one that the layer lacks.
    fn as_tensor(&self) -> Option<Tensor<'_>>;
}

impl Weight for Vector {
    fn take(source: &mut dyn WeightSource, tensor: Option<TensorAt<'_>>) -> Result<Self> {
        source.vector(&tensor.ok_or_else(no_line)?)
    }

    fn as_tensor(&self) -> Option<Tensor<'_>> {
        Some(Tensor::Vector(self))
    }
}

impl Weight for Matrix {
    fn take(source: &mut dyn WeightSource, tensor: Option<TensorAt<'_>>) -> Result<Self> {
        source.matrix(&tensor.ok_or_else(no_line)?)
    }

    fn as_tensor(&self) -> Option<Tensor<'_>> {
        Some(Tensor::Matrix(self))
    }
}

/// A weight that not every layer has.
impl<W: Weight> Weight for Option<W> {
    fn take(source: &mut dyn WeightSource, tensor: Option<TensorAt<'_>>) -> Result<Self> {
        match tensor.is_none_or(|tensor| tensor.is_there()) {
            true => W::take(source, tensor).map(Some),
            false => Ok(None),
        }
    }

    fn as_tensor(&self) -> Option<Tensor<'_>> {
        self.as_ref().and_then(W::as_tensor)
    }
}

fn no_line() -> Error {
    Error::format("a weight without a line in its table")
}
