//! What rounding each matrix of a model does to its predictions, measured on a text: which matrices deserve more bits.
//!
//! One matrix after the other is rounded, with the rest as floats, and what that does to the predictions of a few
//! hundred tokens is their mean KL divergence. Only the layers from that matrix on are run again. The second moments of
//! what a matrix is multiplied with say less: on the trained models they tell the layers of a kind apart no better
//! than taking all of them to be alike (docs/QUANTIZATION.md).

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::calibration::feed;
use super::mixed_quant::Parts;
use crate::error::{Error, Result};
use crate::math::exp::{exp, log2};
use crate::math::{all_finite, collected, zeroed};
use crate::networks::config::{Config, Sizes};
use crate::networks::source::WeightSource;
use crate::networks::state::{Initial, State, StateLayout};
use crate::networks::table::{StageRange, TensorAt};
use crate::networks::{Buffers, Machine, Network};
use crate::quant::Quant;

/// Tokens of the text that are looked at, from its beginning. Four times as many lead to mixes whose KL divergence is 0.5 to 2 %
/// less, or as much more, on four parts of a text.
const TOKENS_MAX: usize = 256;

/// What rounding each matrix alone leads to, by the names of matrices.
pub(crate) struct Damages(BTreeMap<String, (Quant, f64)>);

impl Damages {
    /// Measures those of all matrices that are not floats. `floats` has the weights as they are, `rounded` has them as they are
    /// tried; `advance` is told of each matrix, and `initial` is the model's empty state, where that was tuned.
    ///
    /// # Errors
    /// Those of the sources; [`ErrorKind::Format`](crate::ErrorKind::Format) where the text leads to numbers that are not
    /// finite; [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub(crate) fn measure(
        (machine, tokens): (Machine<'_>, &[u32]),
        (floats, rounded): (&mut dyn WeightSource, &mut dyn WeightSource),
        config: &Config,
        initial: Option<Initial>,
        advance: &mut dyn FnMut(u64),
    ) -> Result<Self> {
        let sizes = &config.sizes;
        let whole = sizes.architecture.whole(sizes);
        let exact = Network::build(floats, config, &whole)?;
        for matrix in exact.matrices() {
            matrix.check_finite(0..matrix.n_rows, false)?;
        }
        let tokens = &tokens[..tokens.len().min(TOKENS_MAX)];
        let mut run = Run::new(sizes, (machine, tokens), initial)?;
        let mut damages = BTreeMap::new();
        // What the layers in front of the present one make of the text, and what the model predicts.
        let mut given = Vec::new();
        let expected = run.logits(&exact, &given)?;
        for stage in stages(sizes) {
            let behind = StageRange {
                layers: stage.layers.start..sizes.n_layer,
                has_head: true,
                ..stage
            };
            for tensor in sizes.architecture.tensors(sizes, &stage) {
                if tensor.spec.damage().is_none() {
                    continue;
                }
                let matrix = rounded.matrix(&tensor)?;
                let mut parts = Parts::default();
                parts.insert(&exact);
                parts.insert_matrix(&matrix);
                let network = Network::build(&mut parts, config, &behind)?;
                let found = run.logits(&network, &given)?;
                let damage = run.divergence(&expected, &found)?;
                damages.insert(tensor.name(), (matrix.quant(), damage));
                advance(tensor.len() as u64);
            }
            let mut parts = Parts::default();
            parts.insert(&exact);
            given = run.rows(&Network::build(&mut parts, config, &stage)?, &given)?;
        }
        Ok(Damages(damages))
    }

    /// The format in which a matrix was tried, and the mean KL divergence, in nats, of the predictions from those of the model of
    /// floats. `None` of what stays floats.
    pub(crate) fn of(&self, tensor: &TensorAt<'_>) -> Option<(Quant, f64)> {
        self.0.get(&tensor.name()).copied()
    }
}

/// The embedding, each layer, and the head.
fn stages(sizes: &Sizes) -> impl Iterator<Item = StageRange> {
    let n_layer = sizes.n_layer;
    let part = |layers, has_embedding, has_head| StageRange {
        layers,
        has_embedding,
        has_head,
    };
    let layers = (0..n_layer).map(move |layer| part(layer..layer + 1, false, false));
    let embedding = std::iter::once(part(0..0, true, false));
    let head = std::iter::once(part(n_layer..n_layer, false, true));
    embedding.chain(layers).chain(head)
}

/// Runs parts of a model over a text, in one piece.
struct Run<'a> {
    machine: Machine<'a>,
    tokens: &'a [u32],
    n_vocab: usize,
    state: State,
    buffers: Buffers,
}

impl<'a> Run<'a> {
    fn new(
        sizes: &Sizes,
        (machine, tokens): (Machine<'a>, &'a [u32]),
        initial: Option<Initial>,
    ) -> Result<Self> {
        let n_threads = machine.pool.n_threads();
        Ok(Run {
            machine,
            tokens,
            n_vocab: sizes.n_vocab,
            state: State::new(StateLayout::of_sizes(sizes), initial)?,
            buffers: Buffers::new(sizes, tokens.len(), n_threads, false)?,
        })
    }

    /// Feeds rows to a part of the model, from the empty state on; one with the embedding needs none.
    fn pass(&mut self, network: &Network, given: &[f32]) {
        self.state.reset();
        let memory = (&mut self.buffers, &mut self.state);
        feed(network, self.machine, memory, self.tokens, given);
    }

    /// What a part gives to the next one: (tokens, row width).
    fn rows(&mut self, network: &Network, given: &[f32]) -> Result<Vec<f32>> {
        self.pass(network, given);
        let rows = self.buffers.rows_mut(self.tokens.len()).0;
        collected(rows.iter().copied(), "rows of a text")
    }

    /// What the last part predicts: (tokens, n_vocab).
    fn logits(&mut self, network: &Network, given: &[f32]) -> Result<Vec<f32>> {
        self.pass(network, given);
        let rows: Vec<usize> = (0..self.tokens.len()).collect();
        let mut logits = zeroed(rows.len().saturating_mul(self.n_vocab), "logits of a text")?;
        network.logits(self.machine, &mut self.buffers, &rows, &mut logits);
        if !all_finite(&logits) {
            let text = "the text to calibrate with leads to numbers that are not finite";
            return Err(Error::format(text));
        }
        Ok(logits)
    }

    /// The mean over the rows of the KL divergence of predictions from those that are expected.
    fn divergence(&self, expected: &[f32], found: &[f32]) -> Result<f64> {
        let mut divergences: Vec<f64> = zeroed(self.tokens.len(), "divergences")?;
        let n = self.n_vocab;
        self.machine
            .pool
            .run_chunks(&mut divergences, 1, |row, out| {
                out[0] = kl_divergence(&expected[row * n..][..n], &found[row * n..][..n]);
            });
        Ok(divergences.iter().sum::<f64>() / divergences.len() as f64)
    }
}

/// The KL divergence, in nats, of the probabilities that the logits `found` stand for from those of `expected`. Sums are
/// those of one order, and `exp` has the same bits on every machine.
fn kl_divergence(expected: &[f32], found: &[f32]) -> f64 {
    let largest = |logits: &[f32]| logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (largest_expected, largest_found) = (largest(expected), largest(found));
    let (mut sum_expected, mut sum_found, mut differences) = (0.0, 0.0, 0.0);
    for (&expected, &found) in expected.iter().zip(found) {
        let (expected, found) = (expected - largest_expected, found - largest_found);
        let weight = f64::from(exp(expected));
        sum_expected += weight;
        sum_found += f64::from(exp(found));
        differences += weight * (f64::from(expected) - f64::from(found));
    }
    let logarithm = (log2(sum_found) - log2(sum_expected)) * std::f64::consts::LN_2;
    (differences / sum_expected + logarithm).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergences_are_those_of_the_formula() {
        let expected: Vec<f32> = (0..500)
            .map(|i| (i * 37 % 101) as f32 * 0.13 - 4.0)
            .collect();
        let found: Vec<f32> = (0..500)
            .map(|i| expected[i] + (i * 53 % 89) as f32 * 0.01)
            .collect();
        let probabilities = |logits: &[f32]| {
            let weights: Vec<f64> = logits.iter().map(|&x| f64::from(x).exp()).collect();
            let sum: f64 = weights.iter().sum();
            weights.into_iter().map(move |weight| weight / sum)
        };
        let wanted: f64 = probabilities(&expected)
            .zip(probabilities(&found))
            .map(|(p, q)| p * (p / q).ln())
            .sum();
        let divergence = kl_divergence(&expected, &found);
        assert!(
            (divergence - wanted).abs() < 1e-6 * wanted,
            "{divergence} {wanted}"
        );
        assert_eq!(kl_divergence(&expected, &expected), 0.0);
        // Logits may differ by any number that is the same for all.
        let shifted: Vec<f32> = found.iter().map(|x| x + 64.0).collect();
        assert!((kl_divergence(&expected, &shifted) - wanted).abs() < 1e-4 * wanted);
    }
}
