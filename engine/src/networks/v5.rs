//! RWKV-5 "Eagle": its table, and its arithmetic for a batch of rows.
//!
//! The formulas are those of the paper on RWKV-5 and 6 (arXiv 2404.05892, section 3), which are of 5.2; the names are
//! in the table of docs/ARCHITECTURE.md. A layer is four runs of the thread pool: the four large
//! matrices of the time mixing; all heads (`eagle.rs`); the output matrix; and the two of the
//! channel mixing.
//!
//! Of the versions before, 5.1 has one decay and one bonus for all channels of a head, and is the same network with equal
//! numbers (`checkpoint/per_head.rs`). 5.0 is like 5.1 and has no gate: the same layer without it.

#![forbid(unsafe_code)]

use super::batch::Span;
use super::common::{
    mix, norm_bias, norm_weight, Behind, Block, Buffers as CommonBuffers, Embedding, Head, Norm,
    Pass, Shares, Shifted,
};
use super::config::Sizes;
use super::eagle::{Buffers, Decay, Heads, HEAD_SIZE};
use super::form::Form;
use super::gated_mixing::GatedMixing;
use super::head_states::{self, ATT_PREVIOUS, FFN_PREVIOUS, WKV};
use super::state::State;
use super::table::{
    tensors, Architecture, Kind, Sensitivity, TensorSpec, N_ATTENTION, N_EMBD, N_HIDDEN, N_LAYER,
    N_VOCAB, RESIDUAL_STREAM,
};
use crate::math::kernels::fetch::fetch;
use crate::products::fetch_input_factors;
use crate::quant::matrix::{Matrix, Vector};

mod hugging_face;

pub(crate) static ARCHITECTURE: Architecture = EAGLE;

const EAGLE: Architecture = Architecture {
    kind: Kind::V5,
    name: "rwkv-5",
    title: "RWKV-5",
    version: 5,
    sizes: &[N_VOCAB, N_EMBD, N_LAYER, N_ATTENTION, N_HIDDEN, HEAD_SIZE],
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
    check: head_states::check,
    memory: head_states::memory,
};

/// RWKV-5.0.
pub(crate) static WITHOUT_GATE: Architecture = Architecture {
    name: "rwkv-5.0",
    title: "RWKV-5.0",
    layer: &LAYER_WITHOUT_GATE,
    is_only_raw: true,
    ..EAGLE
};

const N_TENSORS_OF_GATE: usize = 2;

/// The table of a layer but for its gate.
const LAYER_WITHOUT_GATE: [TensorSpec; Layer::TENSORS.len() - N_TENSORS_OF_GATE] = {
    let mut specs = [Layer::TENSORS[0]; Layer::TENSORS.len() - N_TENSORS_OF_GATE];
    let (mut from, mut to) = (0, 0);
    while from < Layer::TENSORS.len() {
        if !Layer::TENSORS[from].is_of_gate {
            specs[to] = Layer::TENSORS[from];
            to += 1;
        }
        from += 1;
    }
    assert!(to == specs.len());
    specs
};

tensors! {
    /// The weights of a layer.
    pub(crate) struct Layer {
        /// (n_embd) the norm in front of the time mixing
        att_norm_weight: Vector = norm_weight("ln1.weight"),
        att_norm_bias: Vector = norm_bias("ln1.bias"),
        /// (n_embd) share of the present token in the input of each matrix
        mix_key: Vector = mix("att.time_mix_k"),
        mix_value: Vector = mix("att.time_mix_v"),
        mix_receptance: Vector = mix("att.time_mix_r"),
        mix_gate: Option<Vector> = mix("att.time_mix_g").of_gate(),
        /// (n_attention, n_embd)
        receptance: Matrix = TensorSpec::matrix("att.receptance.weight", |s| s.n_attention, |s| s.n_embd)
            .behind_norm("ln1", Some("att.time_mix_r")),
        key: Matrix = TensorSpec::matrix("att.key.weight", |s| s.n_attention, |s| s.n_embd)
            .behind_norm("ln1", Some("att.time_mix_k")),
        value: Matrix = TensorSpec::matrix("att.value.weight", |s| s.n_attention, |s| s.n_embd)
            .behind_norm("ln1", Some("att.time_mix_v"))
            .sensitive(Sensitivity::High),
        gate: Option<Matrix> = TensorSpec::matrix("att.gate.weight", |s| s.n_attention, |s| s.n_embd)
            .behind_norm("ln1", Some("att.time_mix_g"))
            .of_gate(),
        /// (n_attention) what the state is multiplied with each step
        decay: Vector = TensorSpec::vector("att.decay", |s| s.n_attention)
            .stored_as("att.time_decay", Form::ExpOfMinusExp)
            .in_rows_of(|s| s.head_size)
            .noise(0.5, 0.999),
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
        ffn_mix_key: Vector = mix("ffn.time_mix_k"),
        ffn_mix_receptance: Vector = mix("ffn.time_mix_r"),
        /// (n_hidden, n_embd)
        ffn_key: Matrix = TensorSpec::matrix("ffn.key.weight", |s| s.n_hidden, |s| s.n_embd)
            .behind_norm("ln2", Some("ffn.time_mix_k"))
            .sensitive(Sensitivity::Large),
        /// (n_embd, n_embd)
        ffn_receptance: Matrix = TensorSpec::matrix("ffn.receptance.weight", |s| s.n_embd, |s| s.n_embd)
            .behind_norm("ln2", Some("ffn.time_mix_r")),
        /// (n_hidden, n_embd): stored row per input, because most inputs are 0
        ffn_value: Matrix = TensorSpec::matrix("ffn.value.weight", |s| s.n_embd, |s| s.n_hidden)
            .row_per_input(),
    }
}

impl Block for Layer {
    type Buffers = Buffers;
    type Firsts<'a> = Firsts<'a>;

    fn fetch_first(&self, pass: &Pass<'_>, state: &State, index: usize) -> Firsts<'_> {
        self.att_norm(pass).fetch();
        fetch(&self.mix_receptance);
        fetch(&self.mix_key);
        fetch(&self.mix_value);
        let gate = self.gate();
        if let Some((mix, _)) = gate {
            fetch(mix);
        }
        fetch(state.part(index, ATT_PREVIOUS));
        let ungated = [&self.receptance, &self.key, &self.value];
        let firsts = match gate {
            Some((_, gate)) => {
                let [receptance, key, value] = ungated;
                Firsts::Gated([receptance, key, value, gate])
            }
            None => Firsts::Ungated(ungated),
        };
        let matrices = firsts.as_ref().iter();
        matrices.for_each(|matrix| fetch_input_factors(matrix));
        firsts
    }

    /// `x += output * (norm(heads(r, k, v)) * silu(g))`, without the last factor where there is no gate
    fn time_mixing(
        &self,
        index: usize,
        pass: &Pass<'_>,
        common: &mut CommonBuffers,
        own: &mut Buffers,
        spans: &mut [Span<'_>],
    ) {
        let (n, b) = (pass.n_rows * self.decay.len(), own);
        let receptance = Shifted {
            mix: Shares::OfPresent(&self.mix_receptance),
            matrix: &self.receptance,
            input: &mut b.input_a,
            out: &mut b.receptance[..n],
        };
        let key = Shifted {
            mix: Shares::OfPresent(&self.mix_key),
            matrix: &self.key,
            input: &mut b.input_b,
            out: &mut b.key[..n],
        };
        let value = Shifted {
            mix: Shares::OfPresent(&self.mix_value),
            matrix: &self.value,
            input: &mut b.input_c,
            out: &mut b.value[..n],
        };
        self.fetch_head_vectors();
        let (place, norm) = ((index, ATT_PREVIOUS), self.att_norm(pass));
        let next = [&self.output];
        match self.gate() {
            Some((mix, gate)) => {
                let gate = Shifted {
                    mix: Shares::OfPresent(mix),
                    matrix: gate,
                    input: &mut b.input_d,
                    out: &mut b.gate[..n],
                };
                let shifted = [receptance, key, value, gate];
                pass.shifted_products(place, norm, common, spans, shifted, &next);
            }
            None => {
                let shifted = [receptance, key, value];
                pass.shifted_products(place, norm, common, spans, shifted, &next);
            }
        }

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

/// The matrices of a layer's first product.
pub(crate) enum Firsts<'a> {
    Gated([&'a Matrix; 4]),
    Ungated([&'a Matrix; 3]),
}

impl<'a> AsRef<[&'a Matrix]> for Firsts<'a> {
    fn as_ref(&self) -> &[&'a Matrix] {
        match self {
            Firsts::Gated(matrices) => matrices,
            Firsts::Ungated(matrices) => matrices,
        }
    }
}

impl Layer {
    /// The gate's shares of the present token, and its matrix.
    fn gate(&self) -> Option<(&Vector, &Matrix)> {
        self.mix_gate.as_ref().zip(self.gate.as_ref())
    }

    fn heads(&self, pass: &Pass<'_>) -> Heads<'_> {
        Heads {
            bonus: &self.bonus,
            norm_weight: &self.head_norm_weight,
            norm_bias: &self.head_norm_bias,
            norm_epsilon: pass.head_epsilon,
            has_gate: self.gate().is_some(),
            decay: Decay::Constant(&self.decay),
            output: &self.output,
        }
    }

    fn ffn(&self, pass: &Pass<'_>) -> GatedMixing<'_> {
        GatedMixing {
            norm: pass.norm(&self.ffn_norm_weight, &self.ffn_norm_bias),
            mix_key: Shares::OfPresent(&self.ffn_mix_key),
            mix_receptance: Shares::OfPresent(&self.ffn_mix_receptance),
            key: &self.ffn_key,
            receptance: &self.ffn_receptance,
            value: &self.ffn_value,
        }
    }

    fn att_norm(&self, pass: &Pass<'_>) -> Norm<'_> {
        pass.norm(&self.att_norm_weight, &self.att_norm_bias)
    }
}

/// What a layer reads behind each product. Its vectors are short pieces all over memory. The one
/// thread that reads them would wait for them one by one, and all others with it; so it fetches them
/// before the product that comes first.
impl Layer {
    /// Those between it and the output matrix.
    fn fetch_head_vectors(&self) {
        fetch(&self.decay);
        fetch(&self.bonus);
        fetch(&self.head_norm_weight);
        fetch(&self.head_norm_bias);
        fetch_input_factors(&self.output);
    }
}
