//! What RWKV-5 "Eagle" and RWKV-6 "Finch" share: memory for passes, and all that a head does
//! between the matrices. A head keeps a state (key, value) that decays by a factor for each key,
//! which is constant in RWKV-5 and a matter of the token in RWKV-6.

#![forbid(unsafe_code)]

use super::batch::{SegmentOfRow, Span};
use super::common::Pass;
use super::config::Sizes;
use super::gated_mixing::GatedBuffers;
use super::head_states::WKV;
use super::hidden::HiddenUnits;
use super::table::{size, ShownBy, SizeSpec};
use crate::error::Result;
use crate::math::aligned::Aligned;
use crate::math::kernels::{Rows, Wkv6Head, Wkv6Token};
use crate::math::threads::{BorrowList, ColumnBlock, Columns, Pieces};
use crate::products::low_rank::columns_of;
use crate::products::{ahead_of, Activations, BUFFERS};
use crate::quant::matrix::{Matrix, Vector};

pub(super) mod hugging_face;

/// Channels of a head.
pub(super) const HEAD_SIZE: SizeSpec = size!(
    head_size <= 1 << 12,
    "head_size",
    None,
    ShownBy::Matrix("blocks.0.att.time_faaaa", 1)
);

/// Inputs of a token shift whose shares depend on the token: of the decay, and of the four large
/// matrices. RWKV-6 has them.
pub(super) const MIXES: usize = 5;

/// Rows whose decays a head computes at once: 4 KiB.
const HEAD_ROWS: usize = 16;

/// What the layers need besides the common buffers; all are (rows, ..), row-major.
pub(crate) struct Buffers {
    /// Inputs of the matrices.
    pub(super) input_a: Activations,
    pub(super) input_b: Activations,
    pub(super) input_c: Activations,
    pub(super) input_d: Activations,
    /// (rows, n_attention) or (rows, n_embd) outputs of the matrices
    pub(super) receptance: Aligned<f32>,
    pub(super) key: Aligned<f32>,
    pub(super) value: Aligned<f32>,
    pub(super) gate: Aligned<f32>,
    /// (rows, n_attention) what the heads give
    pub(super) gated: Aligned<f32>,
    /// (rows, n_embd) input of the low-rank matrices; nothing in RWKV-5, as the three below
    pub(super) low_rank_input: Aligned<f32>,
    /// (rows, rank_mixes) first halves of the shares
    pub(super) mix_halves: Aligned<f32>,
    /// (rows, n_embd) each: what they add to the shares
    pub(super) mix_parts: [Aligned<f32>; MIXES],
    /// (rows, rank_decay) first half of the decay
    pub(super) decay_half: Aligned<f32>,
    pub(super) hidden: HiddenUnits,
    /// States of the spans of a batch.
    states: BorrowList<f32>,
    /// One a thread.
    heads: Vec<HeadScratch>,
    head_size: usize,
}

/// Memory of one thread for a head.
struct HeadScratch {
    /// (HEAD_ROWS, head_size) the low-rank part of the decay
    parts: Aligned<f32>,
    /// (head_size) what the state is multiplied with
    decay: Aligned<f32>,
}

/// Widths of the buffers of floats.
fn widths(sizes: &Sizes) -> [usize; 9] {
    let widest = sizes.n_embd.max(sizes.n_attention);
    let mixed = match sizes.rank_mixes {
        0 => 0,
        _ => sizes.n_embd,
    };
    [
        widest,
        widest,
        widest,
        sizes.n_attention,
        sizes.n_attention,
        mixed,
        sizes.rank_mixes,
        MIXES * mixed,
        sizes.rank_decay,
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
        let n_embd = sizes.n_embd;
        let floats = |width: usize| Aligned::zeroed(rows_max.saturating_mul(width), BUFFERS);
        let [receptance, key, value, gate, gated, low_rank_input, mix_halves, mix_parts, decay_half] =
            widths(sizes);
        let part = || floats(mix_parts / MIXES);
        let scratch = |_| {
            Ok(HeadScratch {
                parts: Aligned::zeroed(HEAD_ROWS * sizes.head_size, BUFFERS)?,
                decay: Aligned::zeroed(sizes.head_size, BUFFERS)?,
            })
        };
        Ok(Buffers {
            input_a: Activations::new(n_embd.max(sizes.n_attention), rows_max)?,
            input_b: Activations::new(n_embd, rows_max)?,
            input_c: Activations::new(n_embd, rows_max)?,
            input_d: Activations::new(n_embd, rows_max)?,
            receptance: floats(receptance)?,
            key: floats(key)?,
            value: floats(value)?,
            gate: floats(gate)?,
            gated: floats(gated)?,
            low_rank_input: floats(low_rank_input)?,
            mix_halves: floats(mix_halves)?,
            mix_parts: [part()?, part()?, part()?, part()?, part()?],
            decay_half: floats(decay_half)?,
            hidden: HiddenUnits::new(sizes, rows_max, no_sparsity)?,
            states: BorrowList::new(rows_max, BUFFERS)?,
            heads: (0..n_threads).map(scratch).collect::<Result<_>>()?,
            head_size: sizes.head_size,
        })
    }

    /// Bytes that [`new`](Self::new) takes.
    pub(crate) fn bytes_for(sizes: &Sizes, (rows_max, n_threads): (usize, usize)) -> u64 {
        let n_embd = sizes.n_embd;
        let [first @ .., mix_parts, decay_half] = widths(sizes);
        let floats = first.into_iter().chain([mix_parts / MIXES; MIXES]);
        let floats = floats.chain([decay_half]);
        let floats = floats.map(|width| Aligned::<f32>::bytes_for(rows_max as u64 * width as u64));
        let head = [HEAD_ROWS * sizes.head_size, sizes.head_size];
        let head = head.map(|n| Aligned::<f32>::bytes_for(n as u64));
        Activations::bytes_for(n_embd.max(sizes.n_attention), rows_max)
            + 3 * Activations::bytes_for(n_embd, rows_max)
            + HiddenUnits::bytes_for(sizes, rows_max)
            + floats.sum::<u64>()
            + BorrowList::<f32>::bytes_for(rows_max)
            + n_threads as u64 * head.iter().sum::<u64>()
    }

    /// What they take in memory.
    pub(crate) fn size_bytes(&self) -> usize {
        let floats = [
            &self.receptance,
            &self.key,
            &self.value,
            &self.gate,
            &self.gated,
            &self.low_rank_input,
            &self.mix_halves,
            &self.decay_half,
        ];
        let inputs = [&self.input_a, &self.input_b, &self.input_c, &self.input_d];
        let heads = self.heads.iter();
        let heads = heads.map(|head| head.parts.size_bytes() + head.decay.size_bytes());
        floats.map(Aligned::size_bytes).iter().sum::<usize>()
            + self
                .mix_parts
                .iter()
                .map(Aligned::size_bytes)
                .sum::<usize>()
            + inputs.map(Activations::size_bytes).iter().sum::<usize>()
            + self.hidden.size_bytes()
            + self.states.size_bytes()
            + heads.sum::<usize>()
    }

    /// An input that is wide enough for the head, between passes.
    pub(crate) fn input_mut(&mut self) -> &mut Activations {
        &mut self.input_a
    }

    /// Rows of `ffn.value` that were not read, of those that there were.
    pub(crate) fn sparsity(&self) -> (u64, u64) {
        self.hidden.sparsity()
    }

    /// Those of the channel mixing.
    pub(super) fn for_channel_mixing(&mut self) -> GatedBuffers<'_> {
        GatedBuffers {
            input_a: &mut self.input_a,
            input_b: &mut self.input_b,
            receptance: &mut self.receptance,
            value: &mut self.value,
            hidden: &mut self.hidden,
        }
    }
}

/// What the heads of a layer are made of.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a> {
    /// (n_attention) weight of the present token
    pub(super) bonus: &'a Vector,
    /// (n_attention) the norm of each head's output
    pub(super) norm_weight: &'a Vector,
    pub(super) norm_bias: &'a Vector,
    pub(super) norm_epsilon: f32,
    pub(super) decay: Decay<'a>,
    /// Whether their outputs are multiplied with a gate's: in all but RWKV-5.0.
    pub(super) has_gate: bool,
    /// (n_embd, n_attention) what comes behind
    pub(super) output: &'a Matrix,
}

/// What the state is multiplied with each step.
#[derive(Clone, Copy)]
pub(super) enum Decay<'a> {
    /// (n_attention) of RWKV-5
    Constant(&'a Vector),
    /// `exp(-exp(base + half * second))` of RWKV-6, where `half` is a matter of the token:
    /// (n_attention) and (rank_decay, n_attention)
    OfToken {
        base: &'a Vector,
        second: &'a Matrix,
    },
}

impl Heads<'_> {
    /// All that the heads of layer `index` do between the matrices, heads spread over the threads.
    pub(super) fn run(
        self,
        index: usize,
        pass: &Pass<'_>,
        b: &mut Buffers,
        spans: &mut [Span<'_>],
    ) {
        let pool = pass.machine.pool;
        let (n_rows, n_attention) = (pass.n_rows, self.bonus.len());
        let mut states = b.states.borrow(pass.states(index, WKV, spans));
        let mut gated = Columns::new(&mut b.gated[..n_rows * n_attention], n_attention);
        let reads = HeadInputs {
            heads: self,
            pass,
            receptance: &b.receptance,
            key: &b.key,
            value: &b.value,
            gate: self.has_gate.then_some(&b.gate[..]),
            decay_half: &b.decay_half,
        };
        let next = [self.output];
        let ahead = ahead_of(&next, pool.n_threads());
        pool.run_with_pieces(
            &mut gated,
            b.head_size,
            &mut states,
            &mut b.heads,
            &ahead,
            |out, states, scratch| reads.head(out, states, scratch),
        );
    }
}

/// What the heads of a layer read.
struct HeadInputs<'a> {
    heads: Heads<'a>,
    pass: &'a Pass<'a>,
    receptance: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    gate: Option<&'a [f32]>,
    decay_half: &'a [f32],
}

impl HeadInputs<'_> {
    /// All rows of one head: the channels that `out` has. `states` are those of the segments for
    /// this head.
    fn head(
        &self,
        mut out: ColumnBlock<'_, f32>,
        mut states: Pieces<'_, f32>,
        scratch: &mut HeadScratch,
    ) {
        let (heads, channels) = (self.heads, out.columns());
        let (head_size, n_attention) = (channels.len(), heads.bonus.len());
        let kernels = self.pass.machine.kernels;
        let constants = Wkv6Head {
            bonus: &heads.bonus[channels.clone()],
            norm_weight: &heads.norm_weight[channels.clone()],
            norm_bias: &heads.norm_bias[channels.clone()],
            norm_epsilon: heads.norm_epsilon,
        };
        let HeadScratch { parts, decay } = scratch;
        let mut segments = SegmentOfRow::new(self.pass.segments);
        for first in (0..self.pass.n_rows).step_by(HEAD_ROWS) {
            let rows = first..(first + HEAD_ROWS).min(self.pass.n_rows);
            if let Decay::OfToken { second, .. } = heads.decay {
                let rank = second.n_rows;
                let input = Rows {
                    values: &self.decay_half[first * rank..],
                    stride: rank,
                    n: rows.len(),
                };
                let out = &mut parts[..rows.len() * head_size];
                columns_of(kernels, second, channels.clone(), input, out);
            }
            for row in rows {
                let decay = match heads.decay {
                    Decay::Constant(decay) => &decay[channels.clone()],
                    Decay::OfToken { base, .. } => {
                        let part = &parts[(row - first) * head_size..][..head_size];
                        kernels.decay_of(&base[channels.clone()], part, decay);
                        &decay[..]
                    }
                };
                let at = row * n_attention + channels.start..row * n_attention + channels.end;
                let token = Wkv6Token {
                    receptance: &self.receptance[at.clone()],
                    key: &self.key[at.clone()],
                    value: &self.value[at.clone()],
                    decay,
                    gate: self.gate.map(|gate| &gate[at]),
                };
                let state = states.get_mut(segments.of(row));
                kernels.wkv6_step(constants, token, state, out.row_mut(row));
            }
        }
    }
}
