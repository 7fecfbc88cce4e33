//! Where everything of a stage lies in device memory: one piece for the weights, one for what forward passes
//! need. Counted before anything is allocated, so that a stage's size is known first.

use std::collections::BTreeMap;

use rwkv_edge_plugin::NO_LAYER;

use crate::driver::Address;
use crate::options::{Quant, StageOptions};
use crate::params::{Batch, Inputs, Matrix, Norm};
use crate::tensor::TensorId;

/// Rows and columns of matrices are filled up with zeros to a multiple of this.
const PADDING: u32 = 256;
/// Rows of logits that are computed at once.
pub(crate) const LOGITS_ROWS: u32 = 256;
/// Rows of the few-row kernels at most.
pub(crate) const FEW_ROWS: u32 = 4;
/// Copies of numbers that go from block to block.
const FLAGGED_COPIES: u64 = 4;
/// Tokens of a chunk of WKV.
pub(crate) const CHUNK_ROWS: u32 = 32;
/// Sums of tiles that several blocks compute together.
pub(crate) const PARTIALS_BYTES: u64 = 16 << 20;
/// Such tiles at most.
pub(crate) const PARTIAL_TILES: u32 = 1024;
/// The few-row kernels want activations in steps of so many inputs.
const SLOT_STEP: u32 = 512;

pub(crate) fn padded(n: u32) -> u32 {
    n.next_multiple_of(PADDING)
}

/// Hands out pieces of memory from `base` on.
pub(crate) struct Pieces {
    base: Address,
    used: u64,
}

impl Pieces {
    pub(crate) fn new(base: Address) -> Self {
        Pieces { base, used: 0 }
    }

    pub(crate) fn take(&mut self, bytes: u64) -> Address {
        let at = self.base + self.used;
        self.used += bytes.next_multiple_of(256);
        at
    }

    fn floats(&mut self, n: u64) -> Address {
        self.take(4 * n)
    }

    fn next(&self) -> Address {
        self.base + self.used
    }

    pub(crate) fn used(&self) -> u64 {
        self.used
    }
}

/// Where a tensor goes.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    Vector {
        at: Address,
        n: u32,
    },
    Matrix {
        matrix: Matrix,
        n_rows: u32,
        n_cols: u32,
        /// Stored one row an input.
        transpose: bool,
    },
}

/// Of one layer.
#[derive(Clone, Copy, Default)]
pub(crate) struct Layer {
    /// Where its vectors and factors are, and their bytes.
    pub(crate) small: (Address, u64),
    pub(crate) att_norm: Norm,
    /// Key, value, receptance.
    pub(crate) att_mix: [Address; 3],
    pub(crate) decay_log: Address,
    pub(crate) bonus: Address,
    /// Key, value, receptance.
    pub(crate) att_in: [Matrix; 3],
    pub(crate) att_output: Matrix,
    pub(crate) ffn_norm: Norm,
    /// Key, receptance.
    pub(crate) ffn_mix: [Address; 2],
    pub(crate) ffn_in: [Matrix; 2],
    pub(crate) ffn_value: Matrix,
}

/// A stage's weights.
pub(crate) struct Weights {
    pub(crate) embedding: Matrix,
    pub(crate) norm_in: Norm,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm_out: Norm,
    pub(crate) head: Matrix,
    pub(crate) places: BTreeMap<TensorId, Place>,
}

struct Placer<'a> {
    options: &'a StageOptions,
    /// Vectors and factors.
    small: &'a mut Pieces,
    weights: &'a mut Pieces,
    places: BTreeMap<TensorId, Place>,
}

impl Placer<'_> {
    fn vector(&mut self, name: &'static str, layer: u32, n: u32) -> Address {
        let at = self.small.floats(u64::from(padded(n)));
        let id = TensorId { name, layer };
        self.places.insert(id, Place::Vector { at, n });
        at
    }

    fn norm(&mut self, [weight, bias]: [&'static str; 2], layer: u32, epsilon: f32) -> Norm {
        let n = self.options.n_embd;
        Norm {
            weight: self.vector(weight, layer, n),
            bias: self.vector(bias, layer, n),
            epsilon,
        }
    }

    /// `transpose`: it is stored one row an input.
    fn matrix(
        &mut self,
        (name, layer): (&'static str, u32),
        n_outputs: u32,
        n_inputs: u32,
        transpose: bool,
    ) -> Matrix {
        let (rows, stride) = (padded(n_outputs), padded(n_inputs));
        let int8 = self.options.quant == Quant::Int8;
        let n_weights = u64::from(rows) * u64::from(stride);
        let matrix = Matrix {
            weights: self
                .weights
                .take(if int8 { n_weights } else { 2 * n_weights }),
            input_factors: if int8 {
                self.small.floats(u64::from(stride))
            } else {
                0
            },
            output_factors: if int8 {
                self.small.floats(u64::from(rows))
            } else {
                0
            },
            n_outputs,
            stride,
        };
        let (n_rows, n_cols) = match transpose {
            true => (n_inputs, n_outputs),
            false => (n_outputs, n_inputs),
        };
        let place = Place::Matrix {
            matrix,
            n_rows,
            n_cols,
            transpose,
        };
        self.places.insert(TensorId { name, layer }, place);
        matrix
    }

    fn layer(&mut self, layer: u32) -> Layer {
        let StageOptions {
            n_embd: d,
            n_attention: a,
            n_hidden: h,
            norm_epsilon: epsilon,
            ..
        } = *self.options;
        let start = self.small.next();
        let placed = Layer {
            small: (start, 0),
            att_norm: self.norm(["ln1.weight", "ln1.bias"], layer, epsilon),
            att_mix: ["att.time_mix_k", "att.time_mix_v", "att.time_mix_r"]
                .map(|name| self.vector(name, layer, d)),
            decay_log: self.vector("att.decay_log", layer, a),
            bonus: self.vector("att.time_first", layer, a),
            att_in: [
                "att.key.weight",
                "att.value.weight",
                "att.receptance.weight",
            ]
            .map(|name| self.matrix((name, layer), a, d, false)),
            att_output: self.matrix(("att.output.weight", layer), d, a, false),
            ffn_norm: self.norm(["ln2.weight", "ln2.bias"], layer, epsilon),
            ffn_mix: ["ffn.time_mix_k", "ffn.time_mix_r"].map(|name| self.vector(name, layer, d)),
            ffn_in: [("ffn.key.weight", h), ("ffn.receptance.weight", d)]
                .map(|(name, n_outputs)| self.matrix((name, layer), n_outputs, d, false)),
            ffn_value: self.matrix(("ffn.value.weight", layer), d, h, true),
        };
        Layer {
            small: (start, self.small.next() - start),
            ..placed
        }
    }
}

impl Weights {
    pub(crate) fn place(options: &StageOptions, small: &mut Pieces, weights: &mut Pieces) -> Self {
        let (d, v) = (options.n_embd, options.n_vocab);
        let mut placer = Placer {
            options,
            small,
            weights,
            places: BTreeMap::new(),
        };
        let p = &mut placer;
        let (mut embedding, mut norm_in) = Default::default();
        if options.has_embedding {
            embedding = p.matrix(("emb.weight", NO_LAYER), v, d, false);
            norm_in = p.norm(["ln0.weight", "ln0.bias"], 0, options.norm_epsilon);
        }
        let range = options.first_layer..options.first_layer + options.layer_count;
        let layers = range.map(|layer| p.layer(layer)).collect();
        let (mut norm_out, mut head) = Default::default();
        if options.has_head {
            let epsilon = options.norm_out_epsilon;
            norm_out = p.norm(["ln_out.weight", "ln_out.bias"], NO_LAYER, epsilon);
            head = p.matrix(("head.weight", NO_LAYER), v, d, false);
        }
        Weights {
            embedding,
            norm_in,
            layers,
            norm_out,
            head,
            places: placer.places,
        }
    }
}

/// What the forward passes of a stage share; passes follow each other in one stream. Strides in numbers.
#[derive(Clone, Copy, Default)]
pub(crate) struct Workspace {
    pub(crate) x_stride: u32,
    pub(crate) a_stride: u32,
    pub(crate) h_stride: u32,
    pub(crate) slots_stride: u32,
    pub(crate) vocab_stride: u32,
    /// (few rows, x_stride)
    pub(crate) normed: Address,
    /// (few rows, slots_stride)
    pub(crate) hidden_slots: Address,
    /// Numbers with flags, of one row: residual stream, gated WKV, hidden units.
    pub(crate) x_flagged: Address,
    pub(crate) gated_flagged: Address,
    pub(crate) hidden_flagged: Address,
    /// Of the kernel that uses those.
    pub(crate) n_launches: Address,
    /// (spans, x_stride)
    pub(crate) last: Address,
    /// (rows, a_stride): key, value, receptance
    pub(crate) att: [Address; 3],
    /// (rows, a_stride)
    pub(crate) gated: Address,
    /// (rows, x_stride)
    pub(crate) gate: Address,
    /// (rows, h_stride)
    pub(crate) hidden: Address,
    /// Three of (rows, x_stride), one of (rows, a_stride), one of (rows, h_stride).
    pub(crate) inputs: [Inputs; 3],
    pub(crate) inputs_gated: Inputs,
    pub(crate) inputs_hidden: Inputs,
    /// (chunks of spans of several, 3, a_stride)
    pub(crate) sums: Address,
    /// (spans, 3, a_stride)
    pub(crate) start: Address,
    pub(crate) partials: Address,
    pub(crate) counters: Address,
    /// (layers): see hidden_bound of single.cuh
    pub(crate) hidden_bounds: Address,
    /// (logits rows, vocab_stride)
    pub(crate) logits: Address,
    /// (logits rows, x_stride)
    pub(crate) inputs_head: Inputs,
}

impl Workspace {
    pub(crate) fn place(options: &StageOptions, pieces: &mut Pieces) -> Self {
        let rows = u64::from(options.rows_max.max(FEW_ROWS));
        let x_stride = padded(options.n_embd);
        let a_stride = padded(options.n_attention);
        let h_stride = padded(options.n_hidden);
        let vocab_stride = padded(options.n_vocab);
        let slots_stride = options.n_hidden.next_multiple_of(SLOT_STEP);
        let (x, a, h) = (
            u64::from(x_stride),
            u64::from(a_stride),
            u64::from(h_stride),
        );
        let mut w = Workspace {
            x_stride,
            a_stride,
            h_stride,
            slots_stride,
            vocab_stride,
            ..Default::default()
        };
        w.partials = pieces.take(PARTIALS_BYTES);
        w.counters = pieces.take(4 * u64::from(PARTIAL_TILES));
        if options.layer_count > 0 {
            let few = u64::from(FEW_ROWS);
            w.normed = pieces.floats(few * x);
            w.hidden_slots = pieces.floats(few * u64::from(slots_stride));
            w.x_flagged = pieces.take(FLAGGED_COPIES * 4 * x);
            w.gated_flagged = pieces.take(FLAGGED_COPIES * 4 * a);
            w.hidden_flagged = pieces.take(FLAGGED_COPIES * 4 * h);
            w.n_launches = pieces.take(4);
            w.last = pieces.floats(rows * x);
            w.att = [(); 3].map(|()| pieces.floats(rows * a));
            w.gated = pieces.floats(rows * a);
            w.gate = pieces.floats(rows * x);
            w.hidden = pieces.floats(rows * h);
            w.hidden_bounds = pieces.floats(u64::from(options.layer_count));
            w.inputs = [(); 3].map(|()| inputs(pieces, rows, x_stride));
            w.inputs_gated = inputs(pieces, rows, a_stride);
            w.inputs_hidden = inputs(pieces, rows, h_stride);
            let chunks = u64::from(chunks_of_several_max(options.rows_max));
            w.sums = pieces.floats(chunks * 3 * a);
            // Of every span, up to one a row. Hidden units are not there while WKV runs.
            w.start = match h >= 3 * a {
                true => w.hidden,
                false => pieces.floats(rows * 3 * a),
            };
        }
        if options.has_head {
            let rows = rows.min(u64::from(LOGITS_ROWS));
            // Hidden rows are put there, too.
            w.logits = pieces.floats(rows * u64::from(vocab_stride.max(x_stride)));
            w.inputs_head = inputs(pieces, rows, x_stride);
        }
        w
    }
}

fn inputs(pieces: &mut Pieces, rows: u64, stride: u32) -> Inputs {
    // Two halves, or one f32, a number.
    let n = rows * u64::from(stride);
    Inputs {
        high: pieces.take(4 * n),
        low: 0,
        scales: pieces.floats(rows),
        stride,
    }
    .with_low(n)
}

impl Inputs {
    /// The low halves lie behind the `n` high ones.
    fn with_low(self, n: u64) -> Self {
        Inputs {
            low: self.high + 2 * n,
            ..self
        }
    }
}

/// Chunks of those spans that have more than one: they come first.
fn chunks_of_several_max(rows_max: u32) -> u32 {
    2 * rows_max.div_ceil(CHUNK_ROWS) + 1
}

/// All chunks of a batch at most.
fn chunks_max(rows_max: u32) -> u32 {
    rows_max + rows_max.div_ceil(CHUNK_ROWS)
}

/// What a pass in flight has to itself, on the device: the residual stream, the batch, the best tokens.
#[derive(Clone, Copy, Default)]
pub(crate) struct SlotPlaces {
    /// (rows, x_stride)
    pub(crate) x: Address,
    pub(crate) batch: Batch,
    /// (rows) u64
    pub(crate) best: Address,
}

impl SlotPlaces {
    pub(crate) fn place(options: &StageOptions, pieces: &mut Pieces) -> Self {
        let rows = u64::from(options.rows_max.max(FEW_ROWS));
        let x = pieces.floats(rows * u64::from(padded(options.n_embd)));
        let best = pieces.take(8 * rows);
        let at = pieces.take(BatchLayout::new(options.rows_max).size as u64);
        SlotPlaces {
            x,
            batch: BatchLayout::new(options.rows_max).at(at),
            best,
        }
    }
}

/// The arrays of a batch in one piece of memory, the same on host and device: where each starts.
#[derive(Clone, Copy)]
pub(crate) struct BatchLayout {
    pub(crate) tokens: usize,
    pub(crate) row_span: usize,
    pub(crate) span_first: usize,
    pub(crate) span_rows: usize,
    pub(crate) chunk_span: usize,
    pub(crate) chunk_first: usize,
    pub(crate) chunk_rows: usize,
    pub(crate) chunk_index: usize,
    pub(crate) out_rows: usize,
    pub(crate) span_state: usize,
    pub(crate) out_logits: usize,
    pub(crate) size: usize,
}

impl BatchLayout {
    pub(crate) fn new(rows_max: u32) -> Self {
        let rows = rows_max.max(FEW_ROWS) as usize;
        let chunks = chunks_max(rows as u32) as usize;
        let mut size = 0;
        let mut take = |bytes: usize| {
            let at = size;
            size += bytes.next_multiple_of(16);
            at
        };
        BatchLayout {
            tokens: take(4 * rows),
            row_span: take(4 * rows),
            span_first: take(4 * rows),
            span_rows: take(4 * rows),
            chunk_span: take(4 * chunks),
            chunk_first: take(4 * chunks),
            chunk_rows: take(4 * chunks),
            chunk_index: take(4 * chunks),
            out_rows: take(4 * rows),
            span_state: take(8 * rows),
            out_logits: take(8 * rows),
            size,
        }
    }

    pub(crate) fn at(&self, base: Address) -> Batch {
        let at = |offset: usize| base + offset as u64;
        Batch {
            tokens: at(self.tokens),
            row_span: at(self.row_span),
            span_first: at(self.span_first),
            span_rows: at(self.span_rows),
            span_state: at(self.span_state),
            chunk_span: at(self.chunk_span),
            chunk_first: at(self.chunk_first),
            chunk_rows: at(self.chunk_rows),
            chunk_index: at(self.chunk_index),
            out_rows: at(self.out_rows),
            out_logits: at(self.out_logits),
        }
    }
}

/// Floats of one layer's part of a state.
pub(crate) fn layer_floats(options: &StageOptions) -> u32 {
    2 * options.n_embd + 3 * options.n_attention
}

/// Floats of a state of this stage, without the logits behind it.
pub(crate) fn state_floats(options: &StageOptions) -> u64 {
    u64::from(options.layer_count) * u64::from(layer_floats(options))
}

/// Bytes of a state on the device: its numbers, and a row of logits where there is a head.
pub(crate) fn state_bytes(options: &StageOptions) -> u64 {
    let logits = match options.has_head {
        false => 0,
        true => u64::from(options.n_vocab),
    };
    4 * (state_floats(options).next_multiple_of(64) + logits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::NAMES;

    #[test]
    fn every_tensor_has_a_place() {
        let options = StageOptions {
            n_vocab: 11,
            n_embd: 8,
            n_layer: 1,
            n_attention: 8,
            n_hidden: 16,
            layer_count: 1,
            has_embedding: true,
            has_head: true,
            rows_max: 4,
            ..StageOptions::default()
        };
        let places = |options: &StageOptions| {
            let weights = Weights::place(options, &mut Pieces::new(0), &mut Pieces::new(0));
            weights.places.into_keys().collect::<Vec<_>>()
        };
        let mut expected = NAMES;
        expected.sort_unstable();
        let whole = places(&options);
        assert!(whole.iter().map(|id| id.name).eq(expected));
        let outside = whole.iter().filter(|id| id.layer == NO_LAYER);
        assert_eq!(outside.count(), 4);
        // A stage without layers, but for the head.
        let head = StageOptions {
            first_layer: 1,
            layer_count: 0,
            has_embedding: false,
            ..options
        };
        assert!(places(&head).iter().all(|id| id.layer == NO_LAYER));
        assert_eq!(places(&head).len(), 3);
    }

    #[test]
    fn every_span_has_room_for_wkv_before_the_batch() {
        for (n_hidden, rows_max) in [(64, 1), (1024, 256), (8192, 2048)] {
            let options = StageOptions {
                n_vocab: 100,
                n_embd: 256,
                n_layer: 2,
                n_attention: 256,
                n_hidden,
                layer_count: 2,
                rows_max,
                ..StageOptions::default()
            };
            let mut pieces = Pieces::new(0);
            let w = Workspace::place(&options, &mut pieces);
            let needed = u64::from(rows_max.max(FEW_ROWS)) * 3 * u64::from(w.a_stride) * 4;
            let next = [w.inputs[0].high, w.sums, pieces.used()];
            let behind = next.into_iter().filter(|&at| at > w.start).min();
            assert!(
                behind.is_some_and(|end| w.start + needed <= end),
                "{n_hidden} {rows_max}"
            );
        }
    }
}
