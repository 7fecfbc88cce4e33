//! RWKV-7 "Goose" (x070): its table, and its arithmetic for a batch of rows.
//!
//! The formulas are those of the RWKV-7 paper (arXiv 2503.14456, section 4); the names are in the table of
//! docs/ARCHITECTURE.md. A layer is five runs of the thread pool: the large matrices of the time mixing with the first
//! halves of the low-rank pairs; all heads (`v7/heads.rs`), each with the second halves for its channels and all that
//! follows up to the output matrix; that matrix; and the two of the channel mixing. The state is f32 always, and a head
//! walks its tokens in order: 16 KiB that stay in the innermost cache, however long the prompt is.

#![forbid(unsafe_code)]

use super::batch::Span;
use super::common::{norm_bias, norm_weight, Behind, Block, Buffers as CommonBuffers, Norm, Pass};
use super::config::Sizes;
use super::head_states::{ATT_PREVIOUS, FFN_PREVIOUS};
use super::state::State;
use super::table::{tensors, Sensitivity, TensorSpec};
use crate::math::kernels::fetch::fetch;
use crate::math::kernels::Rows;
use crate::products::low_rank::{multiply_with, LowRank, Then};
use crate::products::{fetch_input_factors, multiply, Machine, Product};
use crate::quant::matrix::{Matrix, Vector};

mod buffers;
mod heads;
mod hugging_face;
mod table;

pub(crate) use buffers::Buffers;
use buffers::{DECAY, GATE, ICLR, PAIRS, VALUE};
pub(crate) use table::ARCHITECTURE;

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
            .behind_norm("ln1", Some("att.x_v"))
            .sensitive(Sensitivity::High),
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
        output: Matrix = TensorSpec::matrix("att.output.weight", |s| s.n_embd, |s| s.n_attention)
            .sensitive(Sensitivity::Output),
        /// (n_embd) the norm in front of the channel mixing
        ffn_norm_weight: Vector = norm_weight("ln2.weight"),
        ffn_norm_bias: Vector = norm_bias("ln2.bias"),
        /// (n_embd)
        ffn_mix_key: Vector = mix("ffn.x_k"),
        /// (n_hidden, n_embd)
        ffn_key: Matrix = TensorSpec::matrix("ffn.key.weight", |s| s.n_hidden, |s| s.n_embd)
            .behind_norm("ln2", Some("ffn.x_k"))
            .sensitive(Sensitivity::Large),
        /// (n_hidden, n_embd): stored row per input, because most inputs are 0
        ffn_value: Matrix = TensorSpec::matrix("ffn.value.weight", |s| s.n_embd, |s| s.n_hidden)
            .row_per_input(),
    }
}

impl Block for Layer {
    type Buffers = Buffers;
    type Firsts<'a> = [&'a Matrix; 3];

    fn fetch_first(&self, pass: &Pass<'_>, state: &State, index: usize) -> [&Matrix; 3] {
        self.att_norm(pass).fetch();
        fetch(&self.mix_receptance);
        fetch(&self.mix_key);
        self.pair_mixes().into_iter().for_each(|mix| fetch(mix));
        fetch(state.part(index, ATT_PREVIOUS));
        let firsts = [&self.receptance, &self.key, &self.value];
        firsts.into_iter().for_each(fetch_input_factors);
        firsts
    }

    fn time_mixing(
        &self,
        index: usize,
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
        self.heads(index, pass, common, b, spans);

        self.fetch_ffn_vectors(pass, spans[pass.segments[0].span].state, index);
        let memory = (&mut b.input_a, &mut b.key[..]);
        let rows = (&self.output, &b.gated[..]);
        pass.add_product(common, rows, memory, &[&self.ffn_key]);
    }

    /// `x += value * relu(key * xk)^2`
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
            out: b.hidden.keys_mut(n_rows, n_hidden),
        };
        let scratch = &mut common.scratch;
        multiply(pass.machine, scratch, [product], &[&self.ffn_value]);
        pass.remember((index, FFN_PREVIOUS), n_embd, common, spans);

        b.hidden.square(pass, &self.ffn_value);
        let state = &*spans[pass.segments[0].span].state;
        let next = behind.fetch(pass, state, index + 1);
        let (scratch, out) = (&mut common.scratch, &mut b.value);
        b.hidden
            .multiply(pass, scratch, &self.ffn_value, out, next.matrices());
        let delta = &b.value;
        pass.add(common, n_embd, delta);
    }
}

impl Layer {
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
        pass.norm(&self.att_norm_weight, &self.att_norm_bias)
    }

    fn ffn_norm(&self, pass: &Pass<'_>) -> Norm<'_> {
        pass.norm(&self.ffn_norm_weight, &self.ffn_norm_bias)
    }
}

/// What a layer reads behind each product. Its vectors are short pieces all over memory. The one thread that
/// reads them would wait for them one by one, and all others with it; so it fetches them before the product that
/// comes first.
impl Layer {
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
