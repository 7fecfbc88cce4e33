//! RWKV-4: its table, and its arithmetic for a batch of rows.
//!
//! The formulas are those of the RWKV paper (arXiv 2305.13048, section 3) in the numerically safe form of
//! its appendix; the names are in the table of docs/ARCHITECTURE.md. The state and WKV are f32 always. WKV is what walks a
//! span in order; everything else works on all rows at once.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::batch::{Segment, Span};
use super::common::{
    mix, norm_bias, norm_weight, Behind, Block, Buffers as CommonBuffers, Embedding, Head, Norm,
    Pass, Shares, Shifted,
};
use super::config::Sizes;
use super::form::Form;
use super::gated_mixing::{GatedBuffers, GatedMixing};
use super::hidden::HiddenUnits;
use super::state::{State, StateLayout};
use super::table::{
    tensors, Architecture, Kind, Sensitivity, SizeSpec, StatePart, TensorSpec, N_ATTENTION, N_EMBD,
    N_HIDDEN, N_LAYER, N_VOCAB, RESIDUAL_STREAM,
};
use crate::error::Result;
use crate::math::aligned::Aligned;
use crate::math::kernels::fetch::fetch;
use crate::math::kernels::WkvChannels;
use crate::math::threads::{ColumnBlock, Columns};
use crate::products::{fetch_input_factors, Activations, Machine, BUFFERS};
use crate::quant::matrix::{Matrix, Vector};

mod hugging_face;

/// Of ln_out; that of the other norms is in the configuration. transformers does the same.
const NORM_OUT_EPSILON: f32 = 1e-5;

/// Start of the WKV running maximum. Not 0: exp(u + k - 0) underflows for keys below about -104, and
/// 0 / 0 would follow.
const EMPTY_EXPONENT: f32 = -1e30;

pub(crate) static ARCHITECTURE: Architecture = TABLE;

/// As if more than the residual stream passed from stage to stage.
#[cfg(test)]
pub(crate) static WITH_WIDE_ROWS: Architecture = Architecture {
    row: &[
        TABLE.row[0],
        super::table::RowPart {
            name: "something else",
            len: |s| s.n_embd + 3,
        },
    ],
    ..TABLE
};

const TABLE: Architecture = Architecture {
    kind: Kind::V4,
    name: "rwkv-4",
    title: "RWKV-4",
    version: 4,
    sizes: &[
        SizeSpec {
            default: Some(|_| 50_277),
            ..N_VOCAB
        },
        SizeSpec {
            default: Some(|_| 4096),
            ..N_EMBD
        },
        SizeSpec {
            default: Some(|_| 32),
            ..N_LAYER
        },
        SizeSpec {
            default: Some(|s| s.n_embd),
            ..N_ATTENTION
        },
        SizeSpec {
            default: Some(|s| 4 * s.n_embd),
            ..N_HIDDEN
        },
    ],
    norm_out_epsilon: |_| NORM_OUT_EPSILON,
    numbers: &[
        ("norm_epsilon", |config| config.settings.layer_norm_epsilon),
        ("norm_out_epsilon", |_| NORM_OUT_EPSILON),
    ],
    embedding: Embedding::TENSORS,
    layer: Layer::TENSORS,
    head: Head::TENSORS,
    state: &[
        StatePart {
            name: "ffn_previous",
            len: |s| s.n_embd,
            empty: 0.0,
        },
        StatePart {
            name: "att_previous",
            len: |s| s.n_embd,
            empty: 0.0,
        },
        StatePart {
            name: "numerator",
            len: |s| s.n_attention,
            empty: 0.0,
        },
        StatePart {
            name: "denominator",
            len: |s| s.n_attention,
            empty: 0.0,
        },
        StatePart {
            name: "exponent_max",
            len: |s| s.n_attention,
            empty: EMPTY_EXPONENT,
        },
    ],
    tuned_part: None,
    row: &[RESIDUAL_STREAM],
    hugging_face: hugging_face::HUGGING_FACE,
    is_only_raw: false,
    context_length: 1024,
    check: |_| Ok(()),
    memory,
};

/// Parts of the state, as the table lists them.
const FFN_PREVIOUS: usize = 0;
const ATT_PREVIOUS: usize = 1;
const WKV: Range<usize> = 2..5;

tensors! {
    /// The weights of a layer.
    pub(crate) struct Layer {
        /// (n_embd) the norm in front of the time mixing
        att_norm_weight: Vector = norm_weight("ln1.weight"),
        att_norm_bias: Vector = norm_bias("ln1.bias"),
        /// (n_embd) share of the present token in the input of each matrix
        att_mix_key: Vector = mix("att.time_mix_k"),
        att_mix_value: Vector = mix("att.time_mix_v"),
        att_mix_receptance: Vector = mix("att.time_mix_r"),
        /// (n_attention) log of the decay a step
        decay_log: Vector = TensorSpec::vector("att.decay_log", |s| s.n_attention)
            .stored_as("att.time_decay", Form::MinusExp)
            .noise(-3.0, -0.001),
        /// (n_attention) extra log-weight of the present token
        bonus: Vector = TensorSpec::vector("att.time_first", |s| s.n_attention)
            .noise(-1.0, 0.5),
        /// (n_attention, n_embd)
        att_key: Matrix = TensorSpec::matrix("att.key.weight", |s| s.n_attention, |s| s.n_embd)
            .behind_norm("ln1", Some("att.time_mix_k")),
        att_value: Matrix = TensorSpec::matrix("att.value.weight", |s| s.n_attention, |s| s.n_embd)
            .behind_norm("ln1", Some("att.time_mix_v"))
            .sensitive(Sensitivity::High),
        att_receptance: Matrix = TensorSpec::matrix("att.receptance.weight", |s| s.n_attention, |s| s.n_embd)
            .behind_norm("ln1", Some("att.time_mix_r")),
        /// (n_embd, n_attention)
        att_output: Matrix = TensorSpec::matrix("att.output.weight", |s| s.n_embd, |s| s.n_attention)
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

/// Channels of one WKV task: four cache lines of each array.
const WKV_CHANNELS: usize = 64;

/// What the layers need besides the common buffers; all are (rows, ..), row-major.
pub(crate) struct Buffers {
    /// Inputs of the matrices.
    input_a: Activations,
    input_b: Activations,
    input_c: Activations,
    /// (rows, n_attention) or (rows, n_embd) outputs of the matrices
    key: Aligned<f32>,
    value: Aligned<f32>,
    receptance: Aligned<f32>,
    /// (rows, n_attention) gated WKV
    gated: Aligned<f32>,
    hidden: HiddenUnits,
}

/// Widths of the buffers of floats.
fn widths(sizes: &Sizes) -> [usize; 4] {
    let widest = sizes.n_embd.max(sizes.n_attention);
    [widest, widest, widest, sizes.n_attention]
}

impl Buffers {
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub(crate) fn new(sizes: &Sizes, rows_max: usize, no_sparsity: bool) -> Result<Self> {
        let n_embd = sizes.n_embd;
        let floats = |width: usize| Aligned::zeroed(rows_max.saturating_mul(width), BUFFERS);
        let [key, value, receptance, gated] = widths(sizes);
        Ok(Buffers {
            input_a: Activations::new(n_embd.max(sizes.n_attention), rows_max)?,
            input_b: Activations::new(n_embd, rows_max)?,
            input_c: Activations::new(n_embd, rows_max)?,
            key: floats(key)?,
            value: floats(value)?,
            receptance: floats(receptance)?,
            gated: floats(gated)?,
            hidden: HiddenUnits::new(sizes, rows_max, no_sparsity)?,
        })
    }

    /// Bytes that [`new`](Self::new) takes.
    pub(crate) fn bytes_for(sizes: &Sizes, rows_max: usize) -> u64 {
        let n_embd = sizes.n_embd;
        let floats = widths(sizes).map(|width| rows_max as u64 * width as u64);
        Activations::bytes_for(n_embd.max(sizes.n_attention), rows_max)
            + 2 * Activations::bytes_for(n_embd, rows_max)
            + HiddenUnits::bytes_for(sizes, rows_max)
            + floats.map(Aligned::<f32>::bytes_for).iter().sum::<u64>()
    }

    /// What they take in memory.
    pub(crate) fn size_bytes(&self) -> usize {
        let floats = [&self.key, &self.value, &self.receptance, &self.gated];
        let inputs = [&self.input_a, &self.input_b, &self.input_c];
        floats.map(Aligned::size_bytes).iter().sum::<usize>()
            + inputs.map(Activations::size_bytes).iter().sum::<usize>()
            + self.hidden.size_bytes()
    }

    /// An input that is wide enough for the head, between passes.
    pub(crate) fn input_mut(&mut self) -> &mut Activations {
        &mut self.input_a
    }

    /// Rows of `ffn.value` that were not read, of those that there were.
    pub(crate) fn sparsity(&self) -> (u64, u64) {
        self.hidden.sparsity()
    }
}

/// The mean of all values so far, weighted as WKV weighs them (n_attention); 0 before the first token.
fn memory(layout: &StateLayout, layer: &[f32]) -> Vec<f32> {
    let part = |part: usize| &layer[layout.parts(part..part + 1)];
    let pairs = part(WKV.start).iter().zip(part(WKV.start + 1));
    pairs
        // NaN is not hidden: it stands for numbers that could not be read.
        .map(|(&sum, &weight)| if weight == 0.0 { 0.0 } else { sum / weight })
        .collect()
}

impl Block for Layer {
    type Buffers = Buffers;
    type Firsts<'a> = [&'a Matrix; 3];

    fn fetch_first(&self, pass: &Pass<'_>, state: &State, index: usize) -> [&Matrix; 3] {
        self.att_norm(pass).fetch();
        fetch(&self.att_mix_key);
        fetch(&self.att_mix_value);
        fetch(&self.att_mix_receptance);
        fetch(state.part(index, ATT_PREVIOUS));
        let firsts = [&self.att_key, &self.att_value, &self.att_receptance];
        firsts.into_iter().for_each(fetch_input_factors);
        firsts
    }

    /// `x += output * (sigmoid(r) * wkv(k, v))`
    fn time_mixing(
        &self,
        index: usize,
        pass: &Pass<'_>,
        common: &mut CommonBuffers,
        own: &mut Buffers,
        spans: &mut [Span<'_>],
    ) {
        let (n_rows, n_attention) = (pass.n_rows, self.decay_log.len());
        let b = own;
        let shifted = [
            Shifted {
                mix: Shares::OfPresent(&self.att_mix_key),
                matrix: &self.att_key,
                input: &mut b.input_a,
                out: &mut b.key[..n_rows * n_attention],
            },
            Shifted {
                mix: Shares::OfPresent(&self.att_mix_value),
                matrix: &self.att_value,
                input: &mut b.input_b,
                out: &mut b.value[..n_rows * n_attention],
            },
            Shifted {
                mix: Shares::OfPresent(&self.att_mix_receptance),
                matrix: &self.att_receptance,
                input: &mut b.input_c,
                out: &mut b.receptance[..n_rows * n_attention],
            },
        ];
        self.fetch_wkv_vectors(spans[pass.segments[0].span].state, index);
        let (place, norm) = ((index, ATT_PREVIOUS), self.att_norm(pass));
        pass.shifted_products(place, norm, common, spans, shifted, &[&self.att_output]);

        let inputs = (&b.key[..], &b.value[..], &b.receptance[..]);
        for segment in pass.segments {
            let state = spans[segment.span].state.parts_mut(index, WKV);
            self.wkv(pass.machine, segment, inputs, state, &mut b.gated);
        }

        let ffn = self.ffn(pass);
        let state = &*spans[pass.segments[0].span].state;
        ffn.fetch_vectors(state, (index, FFN_PREVIOUS));
        let memory = (&mut b.input_a, &mut b.key[..]);
        let rows = (&self.att_output, &b.gated[..]);
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
        let buffers = GatedBuffers {
            input_a: &mut own.input_a,
            input_b: &mut own.input_b,
            receptance: &mut own.receptance,
            value: &mut own.value,
            hidden: &mut own.hidden,
        };
        let place = ((index, FFN_PREVIOUS), behind);
        self.ffn(pass).run(place, pass, common, buffers, spans);
    }
}

impl Layer {
    /// WKV over the rows of a segment in order, channels spread over the threads.
    fn wkv(
        &self,
        machine: Machine<'_>,
        segment: &Segment,
        (key, value, receptance): (&[f32], &[f32], &[f32]),
        state: &mut [f32],
        gated: &mut [f32],
    ) {
        let kernels = machine.kernels;
        let n = self.decay_log.len();
        let rows = segment.first_row * n..(segment.first_row + segment.n_rows) * n;
        let (key, value) = (&key[rows.clone()], &value[rows.clone()]);
        let receptance = &receptance[rows.clone()];
        let step = |row: usize, columns: Range<usize>, s: [&mut [f32]; 3], out: &mut _| {
            let at = row * n + columns.start..row * n + columns.end;
            let channels = WkvChannels {
                decay_log: &self.decay_log[columns.clone()],
                bonus: &self.bonus[columns],
            };
            let (key, value) = (&key[at.clone()], &value[at.clone()]);
            let [numerator, denominator, exponent_max] = s;
            kernels.wkv_step(
                channels,
                key,
                value,
                &receptance[at],
                numerator,
                denominator,
                exponent_max,
                out,
            );
        };
        if segment.n_rows == 1 {
            // One token is a few microseconds: less than spreading it costs.
            let (numerator, rest) = state.split_at_mut(n);
            let (denominator, exponent_max) = rest.split_at_mut(n);
            return step(
                0,
                0..n,
                [numerator, denominator, exponent_max],
                &mut gated[rows],
            );
        }
        let mut out = Columns::new(&mut gated[rows], n);
        let mut state = Columns::new(state, n);
        let work = |mut out: ColumnBlock<'_, f32>, mut state: ColumnBlock<'_, f32>| {
            let columns = out.columns();
            for row in 0..segment.n_rows {
                step(
                    row,
                    columns.clone(),
                    state.three_rows_mut(),
                    out.row_mut(row),
                );
            }
        };
        machine
            .pool
            .run_paired_blocks(&mut out, &mut state, WKV_CHANNELS, work);
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

/// What a layer reads behind each product. Its vectors are short pieces all over memory. The one thread that
/// reads them would wait for them one by one, and all others with it; so it fetches them before the product that
/// comes first.
impl Layer {
    /// Those between it and the output matrix.
    fn fetch_wkv_vectors(&self, state: &State, index: usize) {
        fetch(&self.decay_log);
        fetch(&self.bonus);
        fetch(state.parts(index, WKV));
        fetch_input_factors(&self.att_output);
    }
}
