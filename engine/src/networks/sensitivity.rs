//! Which matrices deserve more bits than others, where formats of few bits are mixed. docs/QUANTIZATION.md has what rounding each
//! kind does to predictions.

#![forbid(unsafe_code)]

use super::table::{Shape, TensorAt, TensorSpec};
use crate::quant::matrix::Layout;
use crate::quant::Quant;

/// What rounding errors of a matrix do, and how many bits more it has for that.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sensitivity {
    /// As most.
    Usual,
    /// One bit more, of what all tokens pass at the beginning and the end.
    Highest,
    /// One bit more.
    High,
    /// One bit more, and two that of the first layer: what it adds to the residual stream all layers read.
    Output,
    /// With four bits: one more in five layers of eight, spread over all.
    Large,
}

impl TensorSpec {
    /// What rounding errors of a matrix do to predictions, for each number, relative to those of the embedding; `None` of
    /// vectors. Means over the trained models of versions 4 and 7.
    pub(crate) fn damage(&self) -> Option<f64> {
        let Shape::Matrix { layout, .. } = self.shape else {
            return None;
        };
        Some(match (self.sensitivity, layout) {
            (_, Layout::RowPerInput) => 0.15,
            (Sensitivity::Highest, _) => 0.9,
            (Sensitivity::High, _) => 0.5,
            (Sensitivity::Output, _) => 0.45,
            (Sensitivity::Large, _) => 0.4,
            (Sensitivity::Usual, _) => 0.25,
        })
    }
}

impl TensorAt<'_> {
    /// How it is stored in a model that is stored as `quant`: the mix of formats that makes a model of few bits.
    pub(crate) fn quant(&self, quant: Quant) -> Quant {
        let quant = self.layout().quant(quant);
        match (self.spec.sensitivity, self.layer) {
            (Sensitivity::Output, Some(0)) if quant == Quant::Q4 => Quant::Q6,
            (Sensitivity::Output, Some(0)) if quant.is_mixed() => Quant::Int8,
            (Sensitivity::Highest | Sensitivity::High | Sensitivity::Output, _) => {
                quant.with_more_bits()
            }
            (Sensitivity::Large, Some(layer)) if quant == Quant::Q4 && 5 * layer % 8 < 5 => {
                quant.with_more_bits()
            }
            _ => quant,
        }
    }
}
