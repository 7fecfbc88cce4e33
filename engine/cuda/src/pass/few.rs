//! Few rows, each of its own sequence: four launches a layer, which do all between the products on the side (decode.cuh).

use super::{Pass, SHARED_ALWAYS};
use crate::driver::Kernel;
use crate::error::Result;
use crate::kernels::Few;
use crate::layout::Layer;
use crate::params::{Ahead, ChannelIn, ChannelOut, Head, Matrix, TimeIn, TimeOut, THREADS, WARPS};

/// Bytes of the next launch's weights that a launch of decode brings into the second cache.
const AHEAD_BYTES: u64 = 8 << 20;
/// Bytes of a line that is fetched.
const LINE_BYTES: u64 = 128;

/// Blocks of a kernel whose blocks take outputs by groups, for each matrix.
fn blocks<const N: usize>(matrices: &[Matrix; N], outputs_of_warp: u32, at_once: u32) -> [u32; N] {
    let groups = |m: &Matrix| m.n_outputs.div_ceil(WARPS * outputs_of_warp);
    let total: u32 = matrices.iter().map(groups).sum();
    // All blocks run at once, and all have as many groups, or one less.
    let each = total.div_ceil(at_once.max(1)).max(1);
    std::array::from_fn(|i| groups(&matrices[i]).div_ceil(each))
}

impl<'a> Pass<'a> {
    /// The few-row kernels for this pass, if it is one for them.
    pub(crate) fn few(&self) -> Option<&'a Few> {
        let few = self.work.kernels.few.iter();
        let few = few
            .filter(|_| self.shape.single)
            .find(|few| few.rows >= self.shape.n_rows)?;
        let widest = self.options.n_embd.max(self.options.n_attention);
        let hidden = 4 * few.rows * self.work.workspace.slots_stride;
        let shared = self.few_shared(few, widest).max(hidden);
        (shared <= self.shared_max()).then_some(few)
    }

    /// Shared memory of a few-row kernel whose matrix has so many inputs.
    pub(super) fn few_shared(&self, few: &Few, n_inputs: u32) -> u32 {
        let step = if self.int8() { 512 } else { 256 };
        let slots = n_inputs.next_multiple_of(128).next_multiple_of(step);
        4 * (few.rows * slots + (2 * few.rows + 4) * self.options.n_embd)
    }

    /// The start of `matrices`, which lie behind each other.
    pub(super) fn ahead(&self, matrices: &[Matrix]) -> Ahead {
        let of_weight = if self.int8() { 1 } else { 2 };
        let bytes = |m: &Matrix| u64::from(m.n_outputs) * u64::from(m.stride) * of_weight;
        let bytes = AHEAD_BYTES.min(matrices.iter().map(bytes).sum());
        Ahead {
            weights: matrices.first().map_or(0, |first| first.weights),
            weight_lines: (bytes / LINE_BYTES) as u32,
            ..Ahead::default()
        }
    }

    /// What the first launch of layer `index` reads, and all but the weights of what the layer's other
    /// launches read.
    pub(super) fn ahead_to_layer(&self, index: usize) -> Ahead {
        let weights = &self.work.weights;
        let Some(layer) = weights.layers.get(index) else {
            return match self.options.has_head {
                false => Ahead::default(),
                true => self.ahead(&[weights.head]),
            };
        };
        let (start, bytes) = layer.small;
        let (place, ..) = self.state_places(index);
        let state_bytes = 4 * crate::layout::layer_floats(self.options);
        Ahead {
            vectors: start,
            vector_lines: (bytes / LINE_BYTES) as u32,
            state: place,
            state_lines: state_bytes.div_ceil(LINE_BYTES as u32),
            ..self.ahead(&layer.att_in)
        }
    }

    pub(super) fn few_layer(&self, few: &Few, index: usize, layer: &Layer) -> Result<()> {
        let (o, w, slot) = (self.options, &self.work.workspace, &self.slot);
        let n_rows = self.shape.n_rows;
        let (ffn_previous, att_previous, wkv) = self.state_places(index);
        let shared = self.few_shared(few, o.n_embd);
        let parameters = TimeIn {
            x: slot.x,
            norm: layer.att_norm,
            mix: layer.att_mix,
            matrix: layer.att_in,
            n_blocks: self.blocks(&few.time_in, &layer.att_in, 1, shared)?,
            out: w.att,
            normed: w.normed,
            n_embd: o.n_embd,
            x_stride: w.x_stride,
            a_stride: w.a_stride,
            n_rows,
            previous: att_previous,
            batch: slot.batch,
            ahead: self.ahead(&[layer.att_output]),
        };
        let grid = [parameters.n_blocks.iter().sum(), 1, 1];
        // SAFETY: every address is of this stage's memory with room for `few.rows` rows; the stream runs one
        // kernel after the other, and none reads in one launch what the same launch writes.
        unsafe { self.launch(&few.time_in, grid, THREADS, shared, &parameters)? };

        let shared = self.few_shared(few, o.n_attention);
        let n_blocks = self.blocks(&few.time_out, &[layer.att_output], 1, shared)?;
        let parameters = TimeOut {
            key: w.att[0],
            value: w.att[1],
            receptance: w.att[2],
            decay_log: layer.decay_log,
            bonus: layer.bonus,
            matrix: layer.att_output,
            normed: w.normed,
            x: slot.x,
            n_attention: o.n_attention,
            n_embd: o.n_embd,
            x_stride: w.x_stride,
            a_stride: w.a_stride,
            n_rows,
            previous: att_previous,
            wkv,
            batch: slot.batch,
            ahead: self.ahead(&layer.ffn_in),
        };
        // SAFETY: as above.
        unsafe {
            self.launch(
                &few.time_out,
                [n_blocks[0], 1, 1],
                THREADS,
                shared,
                &parameters,
            )?
        };

        let shared = self.few_shared(few, o.n_embd);
        let parameters = ChannelIn {
            x: slot.x,
            norm: layer.ffn_norm,
            mix: layer.ffn_mix,
            matrix: layer.ffn_in,
            n_blocks: self.blocks(&few.channel_in, &layer.ffn_in, 1, shared)?,
            hidden_factors: layer.ffn_value.input_factors,
            hidden: w.hidden_slots,
            gate: w.gate,
            normed: w.normed,
            key: w.att[0],
            value: w.att[1],
            decay_log: layer.decay_log,
            n_attention: o.n_attention,
            n_embd: o.n_embd,
            x_stride: w.x_stride,
            a_stride: w.a_stride,
            hidden_stride: w.slots_stride,
            n_rows,
            previous: ffn_previous,
            wkv,
            batch: slot.batch,
            ahead: self.ahead(&[layer.ffn_value]),
        };
        let grid = [parameters.n_blocks.iter().sum(), 1, 1];
        // SAFETY: as above.
        unsafe { self.launch(&few.channel_in, grid, THREADS, shared, &parameters)? };

        let shared = 4 * few.rows * w.slots_stride;
        let n_blocks = self.blocks(&few.channel_out, &[layer.ffn_value], 1, shared)?;
        let parameters = ChannelOut {
            hidden: w.hidden_slots,
            matrix: layer.ffn_value,
            gate: w.gate,
            normed: w.normed,
            x: slot.x,
            x_stride: w.x_stride,
            hidden_stride: w.slots_stride,
            n_rows,
            previous: ffn_previous,
            batch: slot.batch,
            ahead: self.ahead_to_layer(index + 1),
        };
        // SAFETY: as above.
        unsafe {
            self.launch(
                &few.channel_out,
                [n_blocks[0], 1, 1],
                THREADS,
                shared,
                &parameters,
            )
        }
    }

    pub(super) fn blocks<const N: usize>(
        &self,
        kernel: &Kernel,
        matrices: &[Matrix; N],
        outputs: u32,
        shared: u32,
    ) -> Result<[u32; N]> {
        if shared > SHARED_ALWAYS {
            kernel.allow_shared(shared)?;
        }
        let at_once = kernel.blocks_at_once(THREADS, shared)? * self.device.multiprocessors;
        Ok(blocks(matrices, outputs, at_once))
    }

    pub(super) fn few_logits(&self, few: &Few) -> Result<()> {
        let weights = &self.work.weights;
        let shared = self.few_shared(few, self.options.n_embd);
        let n_blocks = self.blocks(&few.head, &[weights.head], 2, shared)?;
        let parameters = Head {
            x: self.slot.x,
            norm: weights.norm_out,
            matrix: weights.head,
            best: self.slot.best,
            n_embd: self.options.n_embd,
            x_stride: self.work.workspace.x_stride,
            n_rows: self.shape.n_outputs,
            batch: self.slot.batch,
            // Of the next token.
            ahead: self.ahead_to_layer(0),
        };
        // SAFETY: as in `few_layer`.
        unsafe { self.launch(&few.head, [n_blocks[0], 1, 1], THREADS, shared, &parameters) }
    }
}
