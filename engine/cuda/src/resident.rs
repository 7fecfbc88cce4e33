//! A token of one sequence as one launch (resident.cuh): whether a stage can, and what the kernel is told.

use crate::driver::{Kernel, Launch};
use crate::error::Result;
use crate::layout::{padded, Layer, Weights};
use crate::options::Quant;
use crate::params::{Matrix, Resident, ResidentLayer, THREADS};
use crate::pass::Pass;

/// Of resident.cuh: what a thread holds of a row, in numbers, and of the hidden units.
const ROW_MAX: u32 = 4 * THREADS;
const HIDDEN_MAX: u32 = 4 * ROW_MAX;
/// Threads that bring weights.
const BRINGERS: u32 = 4 * 32;
/// Weights that a block has on their way at a time: what memory gives a multiprocessor of an H200 in a microsecond.
/// With 24 KiB a token of 1.5B in f16 took 1,195 us there, with 32 KiB 908, with 48 KiB 939.
const IN_FLIGHT_BYTES: u32 = 32 << 10;
/// Outputs of a block of one matrix at most, and of a tile.
const OWN_MAX: u32 = 256;
const TILE: u32 = 16;
/// Partial sums of a tile; what there is to do with a slot, which has so many bytes of a row.
const TILE_BYTES: u32 = TILE * (THREADS / 32 + 4) * 4;
const LOAD_BYTES: u32 = 16;
const SLOT_ROW_BYTES: u32 = 1024;
/// Slots of the ring: as many as there is room for, but not so few that weights stop coming, and not more than
/// the kernel has barriers for.
const SLOT_BYTES: u32 = 16 * (1024 + 64);
const SLOTS_MIN: u32 = 4;
const SLOTS_MAX: u32 = 16;
/// What the kernel declares by itself, and the driver keeps.
const SHARED_BESIDE: u32 = 4 << 10;
const LINE_BYTES: u64 = 128;

/// How the launch is cut.
pub(crate) struct TokenLaunch<'a> {
    kernel: &'a Kernel,
    n_blocks: u32,
    n_slots: u32,
    n_tiles: u32,
    plane_bytes: u32,
    hidden_plane_bytes: u32,
    planes_bytes: u32,
    n_pieces: u32,
}

impl TokenLaunch<'_> {
    /// Whether every multiprocessor takes a block: they wait for each other.
    fn runs_at_once(&self) -> bool {
        let shared = self.shared();
        let at_once = self
            .kernel
            .allow_shared(shared)
            .and_then(|()| self.kernel.blocks_at_once(THREADS + BRINGERS, shared));
        at_once.is_ok_and(|n| n > 0)
    }

    fn shared(&self) -> u32 {
        self.n_slots * SLOT_BYTES
            + self.planes_bytes
            + self.n_tiles * TILE_BYTES
            + self.n_pieces * LOAD_BYTES
    }
}

impl From<&Layer> for ResidentLayer {
    fn from(layer: &Layer) -> Self {
        ResidentLayer {
            att_norm: layer.att_norm,
            att_mix: layer.att_mix,
            decay_log: layer.decay_log,
            bonus: layer.bonus,
            att_in: layer.att_in,
            att_output: layer.att_output,
            ffn_norm: layer.ffn_norm,
            ffn_mix: layer.ffn_mix,
            ffn_in: layer.ffn_in,
            ffn_value: layer.ffn_value,
        }
    }
}

/// Bytes from one layer's vectors, and weights, to the next one's: [`Weights::place`] puts all at equal distances.
fn steps(weights: &Weights) -> (u64, u64) {
    match &weights.layers[..] {
        [first, second, ..] => (
            second.small.0 - first.small.0,
            second.att_in[0].weights - first.att_in[0].weights,
        ),
        _ => (0, 0),
    }
}

impl<'a> Pass<'a> {
    /// How this pass is one launch, if it can be.
    pub(crate) fn resident(&self) -> Option<TokenLaunch<'a>> {
        let o = self.options;
        let kernel = self.work.kernels.token.as_ref()?;
        let widths = [o.n_embd, o.n_attention, o.n_hidden];
        // Every block has some pairs of every vector, and a thread four numbers that follow each other.
        let n_blocks = widths
            .into_iter()
            .fold(self.device.multiprocessors, |n, width| n.min(width / 2))
            .max(1);
        let own = |n_outputs: u32| 2 * (n_outputs / 2).div_ceil(n_blocks);
        let fits = self.shape.single
            && self.shape.n_rows == 1
            && o.layer_count > 0
            && widths.iter().all(|n| n % 4 == 0 && own(*n) <= OWN_MAX)
            && padded(o.n_embd.max(o.n_attention)) <= ROW_MAX
            && padded(o.n_hidden) <= HIDDEN_MAX;
        if !fits {
            return None;
        }
        let tiles = |n_outputs: u32| own(n_outputs).div_ceil(TILE);
        let n_tiles = (3 * tiles(o.n_attention))
            .max(tiles(o.n_hidden) + tiles(o.n_embd))
            .max(8);
        // The parts of each product's activations; the space between them is for the banks.
        let (parts, bytes) = match o.quant {
            Quant::Int8 => (4, 1),
            Quant::F16 => (2, 2),
        };
        let plane = |n: u32| bytes * padded(n) + 64;
        let plane_bytes = plane(o.n_embd.max(o.n_attention));
        let hidden_plane_bytes = plane(o.n_hidden);
        let planes_bytes = parts * (3 * plane_bytes).max(hidden_plane_bytes);
        // Slots that a layer's weights go through, and what is multiplied at a time of the head's.
        let chunks = |n_inputs: u32| (bytes * padded(n_inputs)).div_ceil(SLOT_ROW_BYTES);
        let (attention, embd) = (tiles(o.n_attention), tiles(o.n_embd));
        let of_layer = chunks(o.n_embd) * (3 * attention + tiles(o.n_hidden) + embd)
            + embd * (chunks(o.n_attention) + chunks(o.n_hidden));
        let n_pieces = of_layer.max(chunks(o.n_embd) * n_tiles);
        let mut cut = TokenLaunch {
            kernel,
            n_blocks,
            n_slots: 0,
            n_tiles,
            plane_bytes,
            hidden_plane_bytes,
            planes_bytes,
            n_pieces,
        };
        let left = self
            .device
            .shared_max
            .checked_sub(cut.shared() + SHARED_BESIDE)?;
        cut.n_slots = (left / SLOT_BYTES).min(SLOTS_MAX);
        (cut.n_slots >= SLOTS_MIN && cut.runs_at_once()).then_some(cut)
    }

    /// All layers of one row; `with_head`: and its logits, and the best token.
    pub(crate) fn token(&self, cut: &TokenLaunch<'_>, with_head: bool) -> Result<()> {
        let (o, w, weights) = (self.options, &self.work.workspace, &self.work.weights);
        let Some(first) = weights.layers.first() else {
            return Ok(());
        };
        let (vectors_step, weights_step) = steps(weights);
        let parameters = Resident {
            layer: first.into(),
            vectors_step,
            weights_step,
            norm_out: weights.norm_out,
            head: if with_head {
                weights.head
            } else {
                Matrix::default()
            },
            x: self.slot.x,
            x_flagged: w.x_flagged,
            gated_flagged: w.gated_flagged,
            hidden_flagged: w.hidden_flagged,
            n_launches: w.n_launches,
            best: self.slot.best,
            vectors: first.small.0,
            vector_lines: (first.small.1 / LINE_BYTES) as u32,
            n_layers: o.layer_count,
            n_embd: o.n_embd,
            n_attention: o.n_attention,
            n_hidden: o.n_hidden,
            n_slots: cut.n_slots,
            in_flight_bytes: IN_FLIGHT_BYTES,
            n_tiles: cut.n_tiles,
            plane_bytes: cut.plane_bytes,
            hidden_plane_bytes: cut.hidden_plane_bytes,
            planes_bytes: cut.planes_bytes,
            batch: self.slot.batch,
        };
        let shared = cut.shared();
        // SAFETY: every address is of this stage's memory, whose layers lie at equal distances; the stream runs
        // one kernel after the other.
        unsafe {
            self.work.stream.launch(
                cut.kernel,
                [cut.n_blocks, 1, 1],
                THREADS + BRINGERS,
                shared,
                Launch::Together,
                &parameters,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Pieces;
    use crate::options::StageOptions;

    /// All addresses of a layer: of vectors and factors, and of weights.
    fn addresses(layer: &Layer) -> (Vec<u64>, Vec<u64>) {
        let l = ResidentLayer::from(layer);
        let matrices = [
            l.att_in.as_slice(),
            &[l.att_output],
            &l.ffn_in,
            &[l.ffn_value],
        ]
        .concat();
        let norms = [l.att_norm, l.ffn_norm];
        let mut vectors: Vec<u64> = norms.iter().flat_map(|n| [n.weight, n.bias]).collect();
        vectors.extend(l.att_mix);
        vectors.extend(l.ffn_mix);
        vectors.extend([l.decay_log, l.bonus]);
        vectors.extend(
            matrices
                .iter()
                .flat_map(|m| [m.input_factors, m.output_factors]),
        );
        (vectors, matrices.iter().map(|m| m.weights).collect())
    }

    /// The kernel finds a layer by its distance from the first.
    #[test]
    fn layers_lie_at_equal_distances() {
        for (quant, has_embedding) in [(Quant::F16, false), (Quant::Int8, true)] {
            let options = StageOptions {
                n_vocab: 77,
                n_embd: 260,
                n_attention: 516,
                n_hidden: 1000,
                n_layer: 5,
                layer_count: 4,
                has_embedding,
                quant,
                rows_max: 8,
                ..StageOptions::default()
            };
            // Factors that there are not are at 0 in every layer: bases large enough to tell.
            let (mut small, mut large) = (Pieces::new(1 << 40), Pieces::new(1 << 50));
            let weights = Weights::place(&options, &mut small, &mut large);
            let (vectors_step, weights_step) = steps(&weights);
            assert!(vectors_step > 0 && weights_step > 0);
            let (first_vectors, first_weights) = addresses(&weights.layers[0]);
            for (i, layer) in (0..).zip(&weights.layers) {
                let (vectors, matrices) = addresses(layer);
                for (found, first) in vectors.iter().zip(&first_vectors) {
                    let expected = if *first == 0 {
                        0
                    } else {
                        first + i * vectors_step
                    };
                    assert_eq!(*found, expected, "layer {i}");
                }
                for (found, first) in matrices.iter().zip(&first_weights) {
                    assert_eq!(*found, first + i * weights_step, "layer {i}");
                }
            }
        }
    }
}
