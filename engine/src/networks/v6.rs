//! RWKV-6 "Finch" (6.0): its table, and its arithmetic for a batch of rows.
//!
//! The formulas are those of the paper on RWKV-5 and 6 (arXiv 2404.05892, section 4); the names are
//! in the table of docs/ARCHITECTURE.md. The shares of a token shift depend on the token: two runs
//! of the thread pool compute them. Then come the four large matrices of the time mixing with the
//! first half of the decay; all heads (`eagle.rs`), each with the second half for its channels; the
//! output matrix; and the two of the channel mixing.

#![forbid(unsafe_code)]

use super::batch::Span;
use super::common::{
    mix, norm_bias, norm_weight, Behind, Block, Buffers as CommonBuffers, Embedding, Head, Norm,
    Pass, Shares,
};
use super::config::Sizes;
use super::eagle::{Buffers, Decay, Heads, HEAD_SIZE, MIXES};
use super::gated_mixing::GatedMixing;
use super::head_states::{self, ATT_PREVIOUS, FFN_PREVIOUS, WKV};
use super::state::State;
use super::table::{
    size, tensors, Architecture, Kind, Sensitivity, ShownBy, SizeSpec, TensorSpec, N_ATTENTION,
    N_EMBD, N_HIDDEN, N_LAYER, N_VOCAB, RESIDUAL_STREAM,
};
use crate::math::kernels::fetch::fetch;
use crate::math::kernels::Rows;
use crate::products::low_rank::{multiply_with, LowRank, Then};
use crate::products::{fetch_input_factors, Machine, Product, Scratch};
use crate::quant::matrix::{Matrix, Vector};

mod hugging_face;

pub(crate) static ARCHITECTURE: Architecture = Architecture {
    kind: Kind::V6,
    name: "rwkv-6",
    title: "RWKV-6",
    version: 6,
    sizes: &[
        N_VOCAB,
        N_EMBD,
        N_LAYER,
        N_ATTENTION,
        N_HIDDEN,
        HEAD_SIZE,
        size!(
            rank_mixes <= 1 << 16,
            "time_mix_rank",
            None,
            ShownBy::Matrix("blocks.0.att.time_maa_w1", 1)
        ),
        size!(
            rank_decay <= 1 << 16,
            "time_decay_rank",
            None,
            ShownBy::Matrix("blocks.0.att.time_decay_w1", 1)
        ),
    ],
    norm_out_epsilon: |config| config.settings.layer_norm_epsilon,
    numbers: head_states::NUMBERS,
    embedding: Embedding::TENSORS,
    layer: Layer::TENSORS,
    head: Head::TENSORS,
    state: head_states::STATE,
    tuned_part: Some(WKV.start),
    row: &[RESIDUAL_STREAM],
    hugging_face: hugging_face::HUGGING_FACE,
    is_only_raw: false,
    context_length: 4096,
    check,
    memory: head_states::memory,
};

fn check(sizes: &Sizes) -> Result<(), String> {
    let ranks = sizes.rank_mixes;
    if ranks % MIXES != 0 {
        return Err(format!(
            "rank_mixes {ranks}, expected a multiple of {MIXES}"
        ));
    }
    head_states::check(sizes)
}

/// The second half of what one share depends on.
const fn mix_2(name: &'static str) -> TensorSpec {
    TensorSpec::low_rank(name, |s| s.rank_mixes / MIXES, |s| s.n_embd)
}

tensors! {
    /// The weights of a layer.
    pub(crate) struct Layer {
        /// (n_embd) the norm in front of the time mixing
        att_norm_weight: Vector = norm_weight("ln1.weight"),
        att_norm_bias: Vector = norm_bias("ln1.bias"),
        /// (n_embd) share of the token before in the input that all other shares depend on
        mix_x: Vector = mix("att.time_maa_x"),
        /// (n_embd, rank_mixes) first halves of what the shares depend on, side by side
        mixes_1: Matrix = TensorSpec::low_rank("att.time_maa_w1", |s| s.n_embd, |s| s.rank_mixes),
        /// (rank_mixes / 5, n_embd) second halves, which checkpoints have in one tensor
        decay_mix_2: Matrix = mix_2("att.time_maa_w2_w"),
        key_mix_2: Matrix = mix_2("att.time_maa_w2_k"),
        value_mix_2: Matrix = mix_2("att.time_maa_w2_v"),
        receptance_mix_2: Matrix = mix_2("att.time_maa_w2_r"),
        gate_mix_2: Matrix = mix_2("att.time_maa_w2_g"),
        /// (n_embd) share of the token before in the input of each matrix, without what the token adds to it
        mix_decay: Vector = mix("att.time_maa_w"),
        mix_key: Vector = mix("att.time_maa_k"),
        mix_value: Vector = mix("att.time_maa_v"),
        mix_receptance: Vector = mix("att.time_maa_r"),
        mix_gate: Vector = mix("att.time_maa_g"),
        /// (n_attention, n_embd)
        receptance: Matrix = TensorSpec::matrix("att.receptance.weight", |s| s.n_attention, |s| s.n_embd)
            .behind_norm("ln1", Some("att.time_maa_r")),
        key: Matrix = TensorSpec::matrix("att.key.weight", |s| s.n_attention, |s| s.n_embd)
            .behind_norm("ln1", Some("att.time_maa_k")),
        value: Matrix = TensorSpec::matrix("att.value.weight", |s| s.n_attention, |s| s.n_embd)
            .behind_norm("ln1", Some("att.time_maa_v"))
            .sensitive(Sensitivity::High),
        gate: Matrix = TensorSpec::matrix("att.gate.weight", |s| s.n_attention, |s| s.n_embd)
            .behind_norm("ln1", Some("att.time_maa_g")),
        /// (n_embd, rank_decay) first half of what the decay depends on
        decay_1: Matrix = TensorSpec::low_rank("att.time_decay_w1", |s| s.n_embd, |s| s.rank_decay),
        /// (rank_decay, n_attention) its second half
        decay_2: Matrix = TensorSpec::low_rank("att.time_decay_w2", |s| s.rank_decay, |s| s.n_attention),
        /// (n_attention) what its result is added to: the state is divided by exp(exp(sum)) each step
        decay: Vector = TensorSpec::vector("att.time_decay", |s| s.n_attention)
            .broadcast()
            .noise(-6.0, 0.5),
        /// (n_attention) weight of the present token
        bonus: Vector = TensorSpec::vector("att.time_faaaa", |s| s.n_attention)
            .in_rows_of(|s| s.head_size)
            .noise(-0.5, 0.5),
        /// (n_attention) the norm of each head's output
        head_norm_weight: Vector = TensorSpec::vector("att.ln_x.weight", |s| s.n_attention)
            .noise(0.5, 1.5),
        head_norm_bias: Vector = TensorSpec::vector("att.ln_x.bias", |s| s.n_attention)
            .noise(-0.1, 0.1),
        /// (n_embd, n_attention)
        output: Matrix = TensorSpec::matrix("att.output.weight", |s| s.n_embd, |s| s.n_attention)
            .sensitive(Sensitivity::Output),
        /// (n_embd) the norm in front of the channel mixing
        ffn_norm_weight: Vector = norm_weight("ln2.weight"),
        ffn_norm_bias: Vector = norm_bias("ln2.bias"),
        /// (n_embd)
        ffn_mix_key: Vector = mix("ffn.time_maa_k"),
        ffn_mix_receptance: Vector = mix("ffn.time_maa_r"),
        /// (n_hidden, n_embd)
        ffn_key: Matrix = TensorSpec::matrix("ffn.key.weight", |s| s.n_hidden, |s| s.n_embd)
            .behind_norm("ln2", Some("ffn.time_maa_k"))
            .sensitive(Sensitivity::Large),
        /// (n_embd, n_embd)
        ffn_receptance: Matrix = TensorSpec::matrix("ffn.receptance.weight", |s| s.n_embd, |s| s.n_embd)
            .behind_norm("ln2", Some("ffn.time_maa_r")),
        /// (n_hidden, n_embd): stored row per input, because most inputs are 0
        ffn_value: Matrix = TensorSpec::matrix("ffn.value.weight", |s| s.n_embd, |s| s.n_hidden)
            .row_per_input(),
    }
}

/// The five shares that depend on the token, in the order that checkpoints have them.
const DECAY: usize = 0;
const KEY: usize = 1;
const VALUE: usize = 2;
const RECEPTANCE: usize = 3;
const GATE: usize = 4;

impl Block for Layer {
    type Buffers = Buffers;
    type Firsts<'a> = [&'a Matrix; 1];

    fn fetch_first(&self, pass: &Pass<'_>, state: &State, index: usize) -> [&Matrix; 1] {
        self.att_norm(pass).fetch();
        fetch(&self.mix_x);
        fetch(&self.mix_decay);
        fetch(&self.mix_receptance);
        fetch(&self.mix_key);
        fetch(&self.mix_value);
        fetch(&self.mix_gate);
        fetch(state.part(index, ATT_PREVIOUS));
        self.att_inputs().into_iter().for_each(fetch_input_factors);
        [&self.mixes_1]
    }

    /// `x += output * (norm(heads(r, k, v, w)) * silu(g))`
    fn time_mixing(
        &self,
        index: usize,
        pass: &Pass<'_>,
        common: &mut CommonBuffers,
        own: &mut Buffers,
        spans: &mut [Span<'_>],
    ) {
        let Machine { pool, kernels, .. } = pass.machine;
        let (n_rows, n_embd) = (pass.n_rows, self.mix_key.len());
        let b = own;
        pass.normalise(self.att_norm(pass), common);
        {
            let place = (index, ATT_PREVIOUS);
            let shift = pass.shift(place, &common.normed, &common.starts, spans);
            let inputs = &mut b.low_rank_input[..n_rows * n_embd];
            pool.run_chunks(inputs, n_embd, |row, out| {
                let (present, previous) = shift.row(row, n_embd);
                kernels.lerp(present, previous, &self.mix_x, out);
            });
            self.mixes(pass, &mut common.scratch, b);
            let parts = &b.mix_parts;
            let shifted = |row: usize, which: usize, mix: &Vector, out: &mut [f32]| {
                let (present, previous) = shift.row(row, n_embd);
                let part = &parts[which][row * n_embd..][..n_embd];
                kernels.lerp_by_sum(present, previous, mix, part, out);
            };
            for (input, matrix, which, mix) in [
                (
                    &mut b.input_a,
                    &self.receptance,
                    RECEPTANCE,
                    &self.mix_receptance,
                ),
                (&mut b.input_b, &self.key, KEY, &self.mix_key),
                (&mut b.input_c, &self.value, VALUE, &self.mix_value),
                (&mut b.input_d, &self.gate, GATE, &self.mix_gate),
            ] {
                input.prepare(pool, kernels, matrix, n_rows, |row, out| {
                    shifted(row, which, mix, out);
                });
            }
            let inputs = &mut b.low_rank_input[..n_rows * n_embd];
            pool.run_chunks(inputs, n_embd, |row, out| {
                shifted(row, DECAY, &self.mix_decay, out);
            });
        }
        self.fetch_head_vectors();
        self.products(pass, common, b);
        pass.remember((index, ATT_PREVIOUS), n_embd, common, spans);

        self.heads(pass).run(index, pass, b, spans);

        let ffn = self.ffn(pass);
        let state = &*spans[pass.segments[0].span].state;
        ffn.fetch_vectors(state, (index, FFN_PREVIOUS));
        let memory = (&mut b.input_a, &mut b.key[..]);
        let rows = (&self.output, &b.gated[..]);
        pass.add_product(common, rows, memory, &ffn.inputs());
    }

    fn channel_mixing(
        &self,
        (index, behind): (usize, Behind<'_, Layer>),
        pass: &Pass<'_>,
        common: &mut CommonBuffers,
        own: &mut Buffers,
        spans: &mut [Span<'_>],
    ) {
        let place = ((index, FFN_PREVIOUS), behind);
        let buffers = own.for_channel_mixing();
        self.ffn(pass).run(place, pass, common, buffers, spans);
    }
}

impl Layer {
    fn heads(&self, pass: &Pass<'_>) -> Heads<'_> {
        Heads {
            bonus: &self.bonus,
            norm_weight: &self.head_norm_weight,
            norm_bias: &self.head_norm_bias,
            norm_epsilon: pass.head_epsilon,
            has_gate: true,
            decay: Decay::OfToken {
                base: &self.decay,
                second: &self.decay_2,
            },
            output: &self.output,
        }
    }

    fn ffn(&self, pass: &Pass<'_>) -> GatedMixing<'_> {
        GatedMixing {
            norm: pass.norm(&self.ffn_norm_weight, &self.ffn_norm_bias),
            mix_key: Shares::OfPrevious(&self.ffn_mix_key),
            mix_receptance: Shares::OfPrevious(&self.ffn_mix_receptance),
            key: &self.ffn_key,
            receptance: &self.ffn_receptance,
            value: &self.ffn_value,
        }
    }

    fn att_norm(&self, pass: &Pass<'_>) -> Norm<'_> {
        pass.norm(&self.att_norm_weight, &self.att_norm_bias)
    }

    /// What the token adds to each share: `tanh(xx w1) w2`.
    fn mixes(&self, pass: &Pass<'_>, scratch: &mut [Scratch], b: &mut Buffers) {
        let n_rows = pass.n_rows;
        let (n_embd, ranks) = (self.mix_key.len(), self.mixes_1.n_cols);
        let first = LowRank {
            matrix: &self.mixes_1,
            input: Rows {
                values: &b.low_rank_input,
                stride: n_embd,
                n: n_rows,
            },
            out: &mut b.mix_halves[..n_rows * ranks],
            then: Then::Tanh,
        };
        let second = self.mix_seconds();
        multiply_with(pass.machine, scratch, [], [Some(first)], &second);
        let (halves, rank) = (&b.mix_halves, ranks / MIXES);
        let mut parts = b.mix_parts.iter_mut().enumerate();
        let second = second.map(|matrix| {
            let (which, out) = parts.next()?;
            Some(LowRank {
                matrix,
                input: Rows {
                    values: &halves[which * rank..],
                    stride: ranks,
                    n: n_rows,
                },
                out: &mut out[..n_rows * n_embd],
                then: Then::Same,
            })
        });
        multiply_with(pass.machine, scratch, [], second, &self.att_inputs());
    }

    /// `r = Wr xr`, `k = Wk xk`, `v = Wv xv`, `g = Wg xg`, and the first half of the decay,
    /// `tanh(xw w1)`.
    fn products(&self, pass: &Pass<'_>, common: &mut CommonBuffers, b: &mut Buffers) {
        let n_rows = pass.n_rows;
        let (n_embd, n) = (self.mix_key.len(), n_rows * self.decay.len());
        let products = [
            (&self.receptance, &b.input_a, &mut b.receptance),
            (&self.key, &b.input_b, &mut b.key),
            (&self.value, &b.input_c, &mut b.value),
            (&self.gate, &b.input_d, &mut b.gate),
        ];
        let products = products.map(|(matrix, input, out)| Product {
            matrix,
            input,
            out: &mut out[..n],
        });
        let decay = LowRank {
            matrix: &self.decay_1,
            input: Rows {
                values: &b.low_rank_input,
                stride: n_embd,
                n: n_rows,
            },
            out: &mut b.decay_half[..n_rows * self.decay_1.n_cols],
            then: Then::Tanh,
        };
        let (scratch, next) = (&mut common.scratch, [&self.decay_2]);
        multiply_with(pass.machine, scratch, products, [Some(decay)], &next);
    }
}

/// What a layer reads behind each product. Its vectors are short pieces all over memory. The one
/// thread that reads them would wait for them one by one, and all others with it; so it fetches them
/// before the product that comes first.
impl Layer {
    /// The large matrices of the time mixing.
    fn att_inputs(&self) -> [&Matrix; 4] {
        [&self.receptance, &self.key, &self.value, &self.gate]
    }

    /// The second halves of what the shares depend on, in the order of the shares.
    fn mix_seconds(&self) -> [&Matrix; MIXES] {
        [
            &self.decay_mix_2,
            &self.key_mix_2,
            &self.value_mix_2,
            &self.receptance_mix_2,
            &self.gate_mix_2,
        ]
    }

    /// Those between the large matrices and the output matrix.
    fn fetch_head_vectors(&self) {
        fetch(&self.decay);
        fetch(&self.bonus);
        fetch(&self.head_norm_weight);
        fetch(&self.head_norm_bias);
        fetch_input_factors(&self.output);
    }
}
