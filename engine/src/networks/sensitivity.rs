//! Which matrices deserve more bits than others, where formats of few bits are mixed. docs/QUANTIZATION.md has what rounding each
//! kind does to predictions.

#![forbid(unsafe_code)]

use super::config::Sizes;
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
    /// One bit more, and two that of the first layer, or int8 where it has five bits or six: what it adds to the residual stream
    /// all layers read.
    Output,
    /// With four bits: one more in up to five layers of eight, spread over all; in fewer where the mean would be more than
    /// [`Q4_BITS_MAX`], as with a large vocabulary.
    Large,
}

/// Bits a weight of a model of four bits, as the mean over the matrices that are not floats, where so many suffice.
const Q4_BITS_MAX: f64 = 4.75;

impl TensorSpec {
    /// Rounding errors of the matrix matter more than those of most.
    pub(crate) const fn sensitive(mut self, sensitivity: Sensitivity) -> Self {
        self.sensitivity = sensitivity;
        self
    }

    /// What rounding errors of a matrix do to predictions, for each number, relative to those of the embedding; `None` of
    /// what stays floats. Means over the trained models of versions 4 and 7.
    pub(crate) fn damage(&self) -> Option<f64> {
        let Shape::Matrix { layout, .. } = self.shape else {
            return None;
        };
        Some(match (self.sensitivity, layout) {
            (_, Layout::LowRank) => return None,
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
            (Sensitivity::Large, Some(layer)) if quant == Quant::Q4 => {
                let (n, n_layers) = (layers_with_more_bits(self.sizes), self.sizes.n_layer);
                match (layer + 1) * n / n_layers > layer * n / n_layers {
                    true => quant.with_more_bits(),
                    false => quant,
                }
            }
            _ => quant,
        }
    }
}

/// Of how many layers the matrix that is `Large` has five bits, in a model of four.
fn layers_with_more_bits(sizes: &Sizes) -> usize {
    let architecture = sizes.architecture;
    let n_layers = sizes.n_layer;
    let outside = architecture.embedding.iter().chain(architecture.head);
    let outside = outside.map(|spec| (spec.at(None, sizes), 1));
    let layers = [(0, 1), (1, n_layers.saturating_sub(1))];
    let in_layers = layers.into_iter().flat_map(|(layer, times)| {
        let specs = architecture.layer.iter();
        specs.map(move |spec| (spec.at(Some(layer), sizes), times))
    });
    let (mut n_numbers, mut n_bytes, mut cost) = (0.0, 0.0, 0.0);
    for (tensor, times) in outside.chain(in_layers) {
        if tensor.spec.damage().is_none() || !tensor.is_there() {
            continue;
        }
        let bytes = |quant: Quant| quant.stored_bytes(tensor.stored_shape()) as f64;
        let stored = match tensor.spec.sensitivity {
            Sensitivity::Large => {
                cost = bytes(Quant::Q5) - bytes(Quant::Q4);
                Quant::Q4
            }
            _ => tensor.quant(Quant::Q4),
        };
        n_numbers += tensor.len() as f64 * times as f64;
        n_bytes += bytes(stored) * times as f64;
    }
    let room = Q4_BITS_MAX * n_numbers / 8.0 - n_bytes;
    // A float that is no number, or below 0, becomes 0.
    ((room / cost) as usize).min((5 * n_layers).div_ceil(8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::networks::tests::sizes;

    #[test]
    fn a_large_vocabulary_leaves_fewer_layers_more_bits() {
        let of = |n_vocab, n_embd, n_layer| {
            layers_with_more_bits(&sizes([n_vocab, n_embd, n_layer, n_embd, 4 * n_embd]))
        };
        assert_eq!(of(4096, 256, 8), 5);
        assert_eq!(of(50_277, 2048, 24), 15);
        let fewer = of(50_277, 768, 12);
        assert!(fewer < 8, "{fewer}");
        assert_eq!(of(200_000, 256, 8), 0);
    }
}
