//! All that a head of RWKV-7 does between the matrices, for all rows of a batch in one task.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::buffers::{Buffers, HeadScratch, DECAY, GATE, HEAD_ROWS, ICLR, PAIRS, VALUE, WORK};
use super::Layer;
use crate::math::aligned::Aligned;
use crate::math::kernels::{Rows, Wkv7Head, Wkv7Token, Wkv7ValueMix};
use crate::math::threads::{ColumnBlock, Columns, Pieces};
use crate::networks::batch::{SegmentOfRow, Span};
use crate::networks::common::{Buffers as CommonBuffers, Pass};
use crate::networks::head_states::WKV;
use crate::products::low_rank::columns_of;
use crate::products::{ahead_of, Machine};

impl Layer {
    /// All that a head does between the matrices, heads spread over the threads.
    pub(super) fn heads(
        &self,
        index: usize,
        pass: &Pass<'_>,
        common: &CommonBuffers,
        b: &mut Buffers,
        spans: &mut [Span<'_>],
    ) {
        let Machine { pool, .. } = pass.machine;
        let (n_rows, n_attention) = (pass.n_rows, self.key_scale.len());
        let head_size = b.heads.first().map_or(1, |head| head.work.len() / WORK);
        let mut states = b.states.borrow(pass.states(index, WKV, spans));
        let mut gated = Columns::new(&mut b.gated[..n_rows * n_attention], n_attention);
        let reads = HeadInputs {
            layer: self,
            pass,
            residual: (&common.residual, common.row_width, self.mix_key.len()),
            receptance: &b.receptance,
            key: &b.key,
            value: &b.value,
            halves: &b.halves,
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
            norm_epsilon: self.pass.head_epsilon,
        };
        let (residual, width, n_embd) = self.residual;
        let mut segments = SegmentOfRow::new(self.pass.segments);
        for first in (0..self.pass.n_rows).step_by(HEAD_ROWS) {
            let rows = first..(first + HEAD_ROWS).min(self.pass.n_rows);
            self.second_halves(rows.clone(), &channels, &mut scratch.halves);
            for row in rows {
                let segment = segments.of(row);
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
