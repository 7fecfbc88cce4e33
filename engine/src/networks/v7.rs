//! RWKV-7 "Goose" (x070): its table, and its arithmetic for a batch of rows.
//!
//! The formulas are those of the RWKV-7 paper (arXiv 2503.14456, section 4); the names are in the table of
//! docs/ARCHITECTURE.md. A layer is five runs of the thread pool: the large matrices of the time mixing with the first
//! halves of the low-rank pairs; all heads, each with the second halves for its channels and all that follows up to the
//! output matrix; that matrix; and the two of the channel mixing. The state is f32 always, and a head walks its tokens in order: 16 KiB that
//! stay in the innermost cache, however long the prompt is.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::batch::Span;
use super::common::{norm_bias, norm_weight, Behind, Buffers as CommonBuffers, Head, Norm, Pass};
use super::config::Sizes;
use super::state::State;
use super::table::{tensors, TensorSpec};
use crate::error::Result;
use crate::math::aligned::Aligned;
use crate::math::kernels::fetch::fetch;
use crate::math::kernels::{Rows, Wkv7Head, Wkv7Token, Wkv7ValueMix};
use crate::math::threads::{BorrowList, ColumnBlock, Columns, Pieces};
use crate::products::low_rank::{columns_of, multiply_with, LowRank, Then};
use crate::products::{
    ahead_of, fetch_input_factors, multiply, Activations, Machine, Product, Transposed, BUFFERS,
};
use crate::quant::matrix::{Matrix, Vector};

mod hugging_face;
mod table;

pub(crate) use table::ARCHITECTURE;
use table::{ATT_PREVIOUS, FFN_PREVIOUS, WKV};

/// The shares of the token before in a token shift.
const fn mix(name: &'static str) -> TensorSpec {
    TensorSpec::vector(name, |s| s.n_embd).broadcast()
}

/// A number a channel of the time mixing.
const fn channels(name: &'static str) -> TensorSpec {
    TensorSpec::vector(name, |s| s.n_attention)
}

tensors! {
    /// The weights of a layer.
    pub(crate) struct Layer {
        /// (n_embd) the norm in front of the time mixing
        att_norm_weight: Vector = norm_weight("ln1.weight"),
        att_norm_bias: Vector = norm_bias("ln1.bias"),
        /// (n_embd) share of the token before in the input of each matrix
        mix_receptance: Vector = mix("att.x_r"),
        mix_decay: Vector = mix("att.x_w"),
        mix_key: Vector = mix("att.x_k"),
        mix_value: Vector = mix("att.x_v"),
        mix_iclr: Vector = mix("att.x_a"),
        mix_gate: Vector = mix("att.x_g"),
        /// (n_attention, n_embd)
        receptance: Matrix = TensorSpec::matrix("att.receptance.weight", |s| s.n_attention, |s| s.n_embd)
            .behind_norm("ln1", Some("att.x_r")),
        key: Matrix = TensorSpec::matrix("att.key.weight", |s| s.n_attention, |s| s.n_embd)
            .behind_norm("ln1", Some("att.x_k")),
        value: Matrix = TensorSpec::matrix("att.value.weight", |s| s.n_attention, |s| s.n_embd)
            .behind_norm("ln1", Some("att.x_v")),
        /// (n_embd, rank) first halves of low-rank pairs
        decay_1: Matrix = TensorSpec::low_rank("att.w1", |s| s.n_embd, |s| s.rank_decay),
        iclr_1: Matrix = TensorSpec::low_rank("att.a1", |s| s.n_embd, |s| s.rank_iclr),
        value_1: Option<Matrix> = TensorSpec::low_rank("att.v1", |s| s.n_embd, |s| s.rank_value)
            .behind_first_layer(),
        gate_1: Matrix = TensorSpec::low_rank("att.g1", |s| s.n_embd, |s| s.rank_gate),
        /// (rank, n_attention) second halves
        decay_2: Matrix = TensorSpec::low_rank("att.w2", |s| s.rank_decay, |s| s.n_attention),
        iclr_2: Matrix = TensorSpec::low_rank("att.a2", |s| s.rank_iclr, |s| s.n_attention),
        value_2: Option<Matrix> = TensorSpec::low_rank("att.v2", |s| s.rank_value, |s| s.n_attention)
            .behind_first_layer(),
        gate_2: Matrix = TensorSpec::low_rank("att.g2", |s| s.rank_gate, |s| s.n_attention),
        /// (n_attention) what the pairs' results are added to; the gate has none
        decay_0: Vector = channels("att.w0").broadcast().noise(-6.0, 1.0),
        iclr_0: Vector = channels("att.a0").broadcast().noise(-1.0, 1.0),
        value_0: Option<Vector> = channels("att.v0").broadcast().behind_first_layer().noise(-1.0, 1.0),
        /// (n_attention) scales of the key, as the one that is replaced and as the one that is added
        key_scale: Vector = channels("att.k_k").broadcast().noise(0.5, 1.0),
        key_iclr: Vector = channels("att.k_a").broadcast().noise(0.5, 1.0),
        /// (n_attention) weight of the present token
        bonus: Vector = channels("att.r_k").in_rows_of(|s| s.head_size).noise(-0.1, 0.1),
        /// (n_attention) the norm of each head's output
        head_norm_weight: Vector = channels("att.ln_x.weight").noise(0.5, 1.5),
        head_norm_bias: Vector = channels("att.ln_x.bias").noise(-0.1, 0.1),
        /// (n_embd, n_attention)
        output: Matrix = TensorSpec::matrix("att.output.weight", |s| s.n_embd, |s| s.n_attention),
        /// (n_embd) the norm in front of the channel mixing
        ffn_norm_weight: Vector = norm_weight("ln2.weight"),
        ffn_norm_bias: Vector = norm_bias("ln2.bias"),
        /// (n_embd)
        ffn_mix_key: Vector = mix("ffn.x_k"),
        /// (n_hidden, n_embd)
        ffn_key: Matrix = TensorSpec::matrix("ffn.key.weight", |s| s.n_hidden, |s| s.n_embd)
            .behind_norm("ln2", Some("ffn.x_k")),
        /// (n_hidden, n_embd): stored row per input, because most inputs are 0
        ffn_value: Matrix = TensorSpec::matrix("ffn.value.weight", |s| s.n_embd, |s| s.n_hidden)
            .row_per_input(),
    }
}

/// Rows whose second halves a head computes at once: 4 KiB each.
const HEAD_ROWS: usize = 16;

/// Low-rank pairs: of decay, in-context learning rate, value and gate.
const PAIRS: usize = 4;
const DECAY: usize = 0;
const ICLR: usize = 1;
const VALUE: usize = 2;
const GATE: usize = 3;

/// What the layers need besides the common buffers; all are (rows, ..), row-major.
pub(crate) struct Buffers {
    /// Inputs of the matrices.
    input_a: Activations,
    input_b: Activations,
    input_c: Activations,
    /// (rows, n_hidden) input of channel mixing's value matrix
    input_hidden: Activations,
    transposed: Transposed,
    /// (rows, PAIRS, n_embd) inputs of the first halves
    low_rank_inputs: Aligned<f32>,
    /// (rows, rank) what the first halves give
    halves: [Aligned<f32>; PAIRS],
    /// (rows, n_attention) or (rows, n_embd) outputs of the matrices
    receptance: Aligned<f32>,
    key: Aligned<f32>,
    value: Aligned<f32>,
    /// (rows, n_attention) what the heads give
    gated: Aligned<f32>,
    /// (rows, n_hidden)
    hidden: Aligned<f32>,
    /// States of the spans of a batch.
    states: BorrowList<f32>,
    /// One a thread.
    heads: Vec<HeadScratch>,
}

/// Memory of one thread for a head.
struct HeadScratch {
    /// (PAIRS, HEAD_ROWS, head_size) what the second halves give
    halves: Aligned<f32>,
    /// Of the kernel of one token.
    work: Aligned<f32>,
}

/// Vectors that the kernel of one token keeps.
const WORK: usize = 5;

/// Widths of the buffers of floats that belong to no pair.
fn widths(sizes: &Sizes) -> [usize; 6] {
    let widest = sizes.n_embd.max(sizes.n_attention);
    [
        PAIRS * sizes.n_embd,
        widest,
        widest,
        widest,
        sizes.n_attention,
        sizes.n_hidden,
    ]
}

fn ranks(sizes: &Sizes) -> [usize; PAIRS] {
    [
        sizes.rank_decay,
        sizes.rank_iclr,
        sizes.rank_value,
        sizes.rank_gate,
    ]
}

impl Buffers {
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub(crate) fn new(
        sizes: &Sizes,
        (rows_max, n_threads): (usize, usize),
        no_sparsity: bool,
    ) -> Result<Self> {
        let (n_embd, n_hidden) = (sizes.n_embd, sizes.n_hidden);
        let floats = |width: usize| Aligned::zeroed(rows_max.saturating_mul(width), BUFFERS);
        let [low_rank_inputs, receptance, key, value, gated, hidden] = widths(sizes);
        let [decay, iclr, value_rank, gate] = ranks(sizes);
        let scratch = |_| {
            Ok(HeadScratch {
                halves: Aligned::zeroed(PAIRS * HEAD_ROWS * sizes.head_size, BUFFERS)?,
                work: Aligned::zeroed(WORK * sizes.head_size, BUFFERS)?,
            })
        };
        Ok(Buffers {
            input_a: Activations::new(n_embd.max(sizes.n_attention), rows_max)?,
            input_b: Activations::new(n_embd, rows_max)?,
            input_c: Activations::new(n_embd, rows_max)?,
            input_hidden: Activations::new(n_hidden, rows_max)?,
            transposed: Transposed::new(n_hidden, n_embd, rows_max, no_sparsity)?,
            low_rank_inputs: floats(low_rank_inputs)?,
            halves: [
                floats(decay)?,
                floats(iclr)?,
                floats(value_rank)?,
                floats(gate)?,
            ],
            receptance: floats(receptance)?,
            key: floats(key)?,
            value: floats(value)?,
            gated: floats(gated)?,
            hidden: floats(hidden)?,
            states: BorrowList::new(rows_max, BUFFERS)?,
            heads: (0..n_threads).map(scratch).collect::<Result<_>>()?,
        })
    }

    /// Bytes that [`new`](Self::new) takes.
    pub(crate) fn bytes_for(sizes: &Sizes, (rows_max, n_threads): (usize, usize)) -> u64 {
        let (n_embd, n_hidden) = (sizes.n_embd, sizes.n_hidden);
        let widths = widths(sizes).into_iter().chain(ranks(sizes));
        let floats = widths.map(|width| Aligned::<f32>::bytes_for(rows_max as u64 * width as u64));
        let head = [PAIRS * HEAD_ROWS * sizes.head_size, WORK * sizes.head_size];
        let head = head.map(|n| Aligned::<f32>::bytes_for(n as u64));
        Activations::bytes_for(n_embd.max(sizes.n_attention), rows_max)
            + 2 * Activations::bytes_for(n_embd, rows_max)
            + Activations::bytes_for(n_hidden, rows_max)
            + Transposed::bytes_for(n_hidden, n_embd, rows_max)
            + floats.sum::<u64>()
            + BorrowList::<f32>::bytes_for(rows_max)
            + n_threads as u64 * head.iter().sum::<u64>()
    }

    /// What they take in memory.
    pub(crate) fn size_bytes(&self) -> usize {
        let floats = [
            &self.low_rank_inputs,
            &self.receptance,
            &self.key,
            &self.value,
            &self.gated,
            &self.hidden,
        ];
        let inputs = [
            &self.input_a,
            &self.input_b,
            &self.input_c,
            &self.input_hidden,
        ];
        let heads = self.heads.iter();
        let heads = heads.map(|head| head.halves.size_bytes() + head.work.size_bytes());
        floats.map(Aligned::size_bytes).iter().sum::<usize>()
            + self.halves.iter().map(Aligned::size_bytes).sum::<usize>()
            + inputs.map(Activations::size_bytes).iter().sum::<usize>()
            + self.transposed.size_bytes()
            + self.states.size_bytes()
            + heads.sum::<usize>()
    }

    /// An input that is wide enough for the head, between passes.
    pub(crate) fn input_mut(&mut self) -> &mut Activations {
        &mut self.input_a
    }

    /// Rows of `ffn.value` that were not read, of those that there were.
    pub(crate) fn sparsity(&self) -> (u64, u64) {
        self.transposed.sparsity()
    }
}

/// Layers of a network, and what belongs to all of them.
pub(super) struct Part<'a> {
    pub(super) layers: &'a [Layer],
    /// Number in the model of the first of them.
    pub(super) first: usize,
    pub(super) head: Option<&'a Head>,
    /// Of the norms of heads.
    pub(super) head_epsilon: f32,
}

impl Part<'_> {
    /// Feeds a batch to the layers.
    pub(super) fn forward(
        &self,
        pass: &Pass<'_>,
        (common, own): (&mut CommonBuffers, &mut Buffers),
        spans: &mut [Span<'_>],
    ) {
        for (at, layer) in self.layers.iter().enumerate() {
            let behind = Behind::of(self.layers, at, self.head);
            let index = self.first + at;
            layer.time_mixing((index, self.head_epsilon), pass, common, own, spans);
            layer.channel_mixing((index, behind), pass, common, own, spans);
        }
    }
}

impl Layer {
    /// Time mixing: what attention is to a transformer.
    fn time_mixing(
        &self,
        (index, head_epsilon): (usize, f32),
        pass: &Pass<'_>,
        common: &mut CommonBuffers,
        own: &mut Buffers,
        spans: &mut [Span<'_>],
    ) {
        let Machine { pool, kernels, .. } = pass.machine;
        let n_rows = pass.n_rows;
        let (n_embd, n_attention) = (self.mix_key.len(), self.key_scale.len());
        let b = own;
        pass.normalise(self.att_norm(pass), common);
        {
            let place = (index, ATT_PREVIOUS);
            let shift = pass.shift(place, &common.normed, &common.starts, spans);
            let lerp = |row: usize, mix: &Vector, out: &mut [f32]| {
                let (present, previous) = shift.row(row, n_embd);
                kernels.lerp(present, previous, mix, out);
            };
            for (input, matrix, mix) in [
                (&mut b.input_a, &self.receptance, &self.mix_receptance),
                (&mut b.input_b, &self.key, &self.mix_key),
                (&mut b.input_c, &self.value, &self.mix_value),
            ] {
                input.prepare(pool, kernels, matrix, n_rows, |row, out| {
                    lerp(row, mix, out);
                });
            }
            let inputs = &mut b.low_rank_inputs[..n_rows * PAIRS * n_embd];
            pool.run_chunks(inputs, PAIRS * n_embd, |row, out| {
                for (out, mix) in out.chunks_exact_mut(n_embd).zip(self.pair_mixes()) {
                    lerp(row, mix, out);
                }
            });
        }
        self.fetch_head_vectors();
        self.products(pass, common, b);
        pass.remember((index, ATT_PREVIOUS), n_embd, common, spans);
        if index == 0 {
            // All layers mix their values with those of the first.
            let (value, width) = (&b.value, common.row_width);
            let rows = &mut common.residual[..n_rows * width];
            pool.run_chunks(rows, width, |row, out| {
                let value = &value[row * n_attention..][..n_attention];
                out[n_embd..][..n_attention].copy_from_slice(value);
            });
        }
        self.heads((index, head_epsilon), pass, common, b, spans);

        let (gated, input) = (&b.gated, &mut b.input_a);
        input.prepare(pool, kernels, &self.output, n_rows, |row, out| {
            out.copy_from_slice(&gated[row * n_attention..][..n_attention]);
        });
        let product = Product {
            matrix: &self.output,
            input,
            out: &mut b.key[..n_rows * n_embd],
        };
        self.fetch_ffn_vectors(pass, spans[pass.segments[0].span].state, index);
        let scratch = &mut common.scratch;
        multiply(pass.machine, scratch, [product], &[&self.ffn_key]);
        let delta = &b.key;
        pass.add(common, n_embd, delta);
    }

    /// `r = Wr xr`, `k = Wk xk`, `v = Wv xv`, and the first halves `tanh(xw w1)`, `xa a1`, `xv v1`, `sigmoid(xg g1)`.
    fn products(&self, pass: &Pass<'_>, common: &mut CommonBuffers, b: &mut Buffers) {
        let n_rows = pass.n_rows;
        let (n_embd, n_attention) = (self.mix_key.len(), self.key_scale.len());
        let n = n_rows * n_attention;
        let products = [
            (&self.receptance, &b.input_a, &mut b.receptance),
            (&self.key, &b.input_b, &mut b.key),
            (&self.value, &b.input_c, &mut b.value),
        ];
        let products = products.map(|(matrix, input, out)| Product {
            matrix,
            input,
            out: &mut out[..n],
        });
        let inputs = &b.low_rank_inputs;
        let [decay, iclr, value, gate] = &mut b.halves;
        let small = [
            (GATE, Some(&self.gate_1), gate, Then::Sigmoid),
            (DECAY, Some(&self.decay_1), decay, Then::Tanh),
            (ICLR, Some(&self.iclr_1), iclr, Then::Same),
            (VALUE, self.value_1.as_ref(), value, Then::Same),
        ];
        let small = small.map(|(pair, matrix, out, then)| {
            let matrix = matrix?;
            Some(LowRank {
                input: Rows {
                    values: &inputs[pair * n_embd..],
                    stride: PAIRS * n_embd,
                    n: n_rows,
                },
                out: &mut out[..n_rows * matrix.n_cols],
                matrix,
                then,
            })
        });
        let next = [&self.decay_2, &self.iclr_2, &self.gate_2];
        multiply_with(pass.machine, &mut common.scratch, products, small, &next);
    }

    /// All that a head does between the matrices, heads spread over the threads.
    fn heads(
        &self,
        (index, head_epsilon): (usize, f32),
        pass: &Pass<'_>,
        common: &CommonBuffers,
        b: &mut Buffers,
        spans: &mut [Span<'_>],
    ) {
        let Machine { pool, .. } = pass.machine;
        let (n_rows, n_attention) = (pass.n_rows, self.key_scale.len());
        let head_size = b.heads.first().map_or(1, |head| head.work.len() / WORK);
        let mut rest = spans.iter_mut().enumerate();
        // Segments are in the order of their spans, and no two of one batch are of the same.
        let states = pass.segments.iter().filter_map(|segment| {
            let (_, span) = rest.find(|(index, _)| *index == segment.span)?;
            Some(span.state.parts_mut(index, WKV))
        });
        let mut states = b.states.borrow(states);
        let mut gated = Columns::new(&mut b.gated[..n_rows * n_attention], n_attention);
        let reads = HeadInputs {
            layer: self,
            pass,
            residual: (&common.residual, common.row_width, self.mix_key.len()),
            receptance: &b.receptance,
            key: &b.key,
            value: &b.value,
            halves: &b.halves,
            head_epsilon,
        };
        let next = [&self.output];
        let ahead = ahead_of(&next, pool.n_threads());
        pool.run_with_pieces(
            &mut gated,
            head_size,
            &mut states,
            &mut b.heads,
            &ahead,
            |out, states, scratch| reads.head(out, states, scratch),
        );
    }

    /// Channel mixing: the feed-forward part. `x += value * relu(key * xk)^2`
    fn channel_mixing(
        &self,
        (index, behind): (usize, Behind<'_, Layer>),
        pass: &Pass<'_>,
        common: &mut CommonBuffers,
        own: &mut Buffers,
        spans: &mut [Span<'_>],
    ) {
        let Machine { pool, kernels, .. } = pass.machine;
        let n_rows = pass.n_rows;
        let (n_embd, n_hidden) = (self.ffn_mix_key.len(), self.ffn_key.n_outputs());
        let b = own;
        pass.normalise(self.ffn_norm(pass), common);
        {
            let place = (index, FFN_PREVIOUS);
            let shift = pass.shift(place, &common.normed, &common.starts, spans);
            let (input, mix) = (&mut b.input_a, &self.ffn_mix_key);
            input.prepare(pool, kernels, &self.ffn_key, n_rows, |row, out| {
                let (present, previous) = shift.row(row, n_embd);
                kernels.lerp(present, previous, mix, out);
            });
        }
        fetch_input_factors(&self.ffn_value);
        let product = Product {
            matrix: &self.ffn_key,
            input: &b.input_a,
            out: &mut b.hidden[..n_rows * n_hidden],
        };
        let scratch = &mut common.scratch;
        multiply(pass.machine, scratch, [product], &[&self.ffn_value]);
        pass.remember((index, FFN_PREVIOUS), n_embd, common, spans);

        let (hidden, input) = (&b.hidden, &mut b.input_hidden);
        input.prepare(pool, kernels, &self.ffn_value, n_rows, |row, out| {
            out.copy_from_slice(&hidden[row * n_hidden..][..n_hidden]);
            kernels.squared_relu(out);
        });
        let product = Product {
            matrix: &self.ffn_value,
            input,
            out: &mut b.value[..n_rows * n_embd],
        };
        let (inputs_behind, head);
        let next: &[&Matrix] = match behind {
            Behind::Layer(layer) => {
                let state = &*spans[pass.segments[0].span].state;
                layer.fetch_att_vectors(pass, state, index + 1);
                inputs_behind = layer.att_inputs();
                &inputs_behind
            }
            Behind::Head(behind) => {
                behind.fetch_vectors();
                head = [&behind.matrix];
                &head
            }
            Behind::Nothing => &[],
        };
        let scratch = &mut common.scratch;
        b.transposed.multiply(pass.machine, scratch, product, next);
        let delta = &b.value;
        pass.add(common, n_embd, delta);
    }

    /// Mixes of the inputs of the low-rank pairs, in their order.
    fn pair_mixes(&self) -> [&Vector; PAIRS] {
        [
            &self.mix_decay,
            &self.mix_iclr,
            &self.mix_value,
            &self.mix_gate,
        ]
    }

    fn att_norm(&self, pass: &Pass<'_>) -> Norm<'_> {
        Norm {
            weight: &self.att_norm_weight,
            bias: &self.att_norm_bias,
            epsilon: pass.epsilon,
        }
    }

    fn ffn_norm(&self, pass: &Pass<'_>) -> Norm<'_> {
        Norm {
            weight: &self.ffn_norm_weight,
            bias: &self.ffn_norm_bias,
            epsilon: pass.epsilon,
        }
    }
}

/// What the heads of a layer read.
struct HeadInputs<'a> {
    layer: &'a Layer,
    pass: &'a Pass<'a>,
    /// Rows with the residual stream and behind it the first layer's values; numbers of a row, and of its first part.
    residual: (&'a [f32], usize, usize),
    receptance: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    halves: &'a [Aligned<f32>; PAIRS],
    head_epsilon: f32,
}

impl HeadInputs<'_> {
    /// All rows of one head: the channels that `out` has. `states` are those of the segments for this head.
    fn head(
        &self,
        mut out: ColumnBlock<'_, f32>,
        mut states: Pieces<'_, f32>,
        scratch: &mut HeadScratch,
    ) {
        let (layer, channels) = (self.layer, out.columns());
        let head_size = channels.len();
        let n_attention = layer.key_scale.len();
        let constants = Wkv7Head {
            decay_bias: &layer.decay_0[channels.clone()],
            iclr_bias: &layer.iclr_0[channels.clone()],
            key_scale: &layer.key_scale[channels.clone()],
            key_iclr: &layer.key_iclr[channels.clone()],
            bonus: &layer.bonus[channels.clone()],
            norm_weight: &layer.head_norm_weight[channels.clone()],
            norm_bias: &layer.head_norm_bias[channels.clone()],
            norm_epsilon: self.head_epsilon,
        };
        let (residual, width, n_embd) = self.residual;
        let mut segments = self.pass.segments.iter().enumerate().peekable();
        for first in (0..self.pass.n_rows).step_by(HEAD_ROWS) {
            let rows = first..(first + HEAD_ROWS).min(self.pass.n_rows);
            self.second_halves(rows.clone(), &channels, &mut scratch.halves);
            for row in rows {
                while segments
                    .next_if(|(_, segment)| segment.first_row + segment.n_rows <= row)
                    .is_some()
                {}
                let segment = segments.peek().map_or(0, |(index, _)| *index);
                let half = |pair: usize| {
                    let at = (pair * HEAD_ROWS + row - first) * head_size;
                    &scratch.halves[at..][..head_size]
                };
                let at = row * n_attention + channels.start..row * n_attention + channels.end;
                let value_mix = layer.value_0.as_ref().map(|bias| Wkv7ValueMix {
                    first: &residual[row * width + n_embd..][channels.clone()],
                    part: half(VALUE),
                    bias: &bias[channels.clone()],
                });
                let token = Wkv7Token {
                    receptance: &self.receptance[at.clone()],
                    key: &self.key[at.clone()],
                    value: &self.value[at],
                    decay: half(DECAY),
                    iclr: half(ICLR),
                    gate: half(GATE),
                    value_mix,
                };
                self.pass.machine.kernels.wkv7_step(
                    constants,
                    token,
                    states.get_mut(segment),
                    &mut scratch.work,
                    out.row_mut(row),
                );
            }
        }
    }

    /// `w2`, `a2`, `v2` and `g2` for some rows and the channels of a head.
    fn second_halves(&self, rows: Range<usize>, channels: &Range<usize>, out: &mut [f32]) {
        let layer = self.layer;
        let matrices = [
            Some(&layer.decay_2),
            Some(&layer.iclr_2),
            layer.value_2.as_ref(),
            Some(&layer.gate_2),
        ];
        let out = out.chunks_exact_mut(HEAD_ROWS * channels.len());
        for ((matrix, half), out) in matrices.into_iter().zip(self.halves).zip(out) {
            let Some(matrix) = matrix else { continue };
            let rank = matrix.n_rows;
            let input = Rows {
                values: &half[rows.start * rank..],
                stride: rank,
                n: rows.len(),
            };
            let out = &mut out[..rows.len() * channels.len()];
            let kernels = self.pass.machine.kernels;
            columns_of(kernels, matrix, channels.clone(), input, out);
        }
    }
}

/// What a layer reads behind each product. Its vectors are short pieces all over memory. The one thread that
/// reads them would wait for them one by one, and all others with it; so it fetches them before the product that
/// comes first.
impl Layer {
    /// The matrices of the time mixing's first product.
    fn att_inputs(&self) -> [&Matrix; 3] {
        [&self.receptance, &self.key, &self.value]
    }

    /// The vectors before it; `index` is that of the layer.
    fn fetch_att_vectors(&self, pass: &Pass<'_>, state: &State, index: usize) {
        self.att_norm(pass).fetch();
        fetch(&self.mix_receptance);
        fetch(&self.mix_key);
        self.pair_mixes().into_iter().for_each(|mix| fetch(mix));
        fetch(state.part(index, ATT_PREVIOUS));
        self.att_inputs().into_iter().for_each(fetch_input_factors);
    }

    /// Those between it and the output matrix.
    fn fetch_head_vectors(&self) {
        fetch(&self.decay_0);
        fetch(&self.iclr_0);
        fetch(&self.key_scale);
        fetch(&self.key_iclr);
        fetch(&self.bonus);
        fetch(&self.head_norm_weight);
        fetch(&self.head_norm_bias);
        fetch_input_factors(&self.output);
    }

    /// The vectors before the channel mixing's first product.
    fn fetch_ffn_vectors(&self, pass: &Pass<'_>, state: &State, index: usize) {
        self.ffn_norm(pass).fetch();
        fetch(&self.ffn_mix_key);
        fetch(state.part(index, FFN_PREVIOUS));
        fetch_input_factors(&self.ffn_key);
    }
}
