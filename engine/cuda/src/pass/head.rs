//! Behind the last layer: the last norm, logits, the best tokens.

use super::many::{threads_that_hold, Beside};
use super::Pass;
use crate::driver::Address;
use crate::error::Result;
use crate::kernels::Tiles;
use crate::layout::LOGITS_ROWS;
use crate::params::{Finish, Inputs, LogitsOut, NormOut, Product, Tokens, THREADS};

/// Blocks that look through a row of logits.
const LOGITS_PARTS: u32 = 8;

impl<'a> Pass<'a> {
    /// Logits of the output rows: into the states' memory by `out_logits`, the best tokens into `best`.
    pub(crate) fn logits(&self) -> Result<()> {
        // Products without tensor cores know of no such memory.
        let kept = matches!(self.work.kernels.tiles, Tiles::Tensor(_));
        self.logits_in_pieces(kept, |_, _| Ok(()))
    }

    /// The same, and after every piece of rows, `piece(first, n)` may read them from the workspace, where they are unless
    /// this is a pass of few rows.
    pub(crate) fn logits_to_read(&self, piece: impl FnMut(u32, u32) -> Result<()>) -> Result<()> {
        self.logits_in_pieces(false, piece)
    }

    pub(super) fn logits_in_pieces(
        &self,
        kept: bool,
        mut piece: impl FnMut(u32, u32) -> Result<()>,
    ) -> Result<()> {
        if let Some(few) = self
            .few()
            .filter(|_| self.shape.n_outputs <= self.shape.n_rows)
        {
            return self.few_logits(few);
        }
        let (o, w, slot) = (self.options, &self.work.workspace, &self.slot);
        let rows_at_once = LOGITS_ROWS.min(o.rows_max.max(crate::layout::FEW_ROWS));
        let mut first = 0;
        while first < self.shape.n_outputs {
            let n = rows_at_once.min(self.shape.n_outputs - first);
            self.norm_out(first, n, w.inputs_head, 0)?;
            let product = Product {
                matrix: self.work.weights.head,
                inputs: w.inputs_head,
                out: w.logits,
                gate: 0,
                out_stride: w.vocab_stride,
                finish: Finish::Store as u32,
            };
            let (tiles, n_vocab) = (&self.work.kernels.tiles, o.n_vocab);
            let cut = tiles.cut_of_head(n, n_vocab, self.device.multiprocessors);
            let complete = kept && cut.tile.finds_best;
            let of_first = |array: Address, wanted: bool| match wanted {
                true => array + 8 * u64::from(first),
                false => 0,
            };
            let beside = Beside {
                out_logits: of_first(slot.batch.out_logits, kept),
                best: of_first(slot.best, complete),
                ..Beside::default()
            };
            self.launch_products(&[product], n, beside, cut)?;
            if !complete {
                self.logits_out(first, n, kept)?;
            }
            piece(first, n)?;
            first += n;
        }
        Ok(())
    }

    /// Of `n` output rows of logits in the workspace the best tokens; `kept`: those that a state keeps are there already.
    fn logits_out(&self, first: u32, n: u32, kept: bool) -> Result<()> {
        let parameters = LogitsOut {
            logits: self.work.workspace.logits,
            kept: u32::from(kept),
            best: self.slot.best,
            n_vocab: self.options.n_vocab,
            stride: self.work.workspace.vocab_stride,
            first,
            batch: self.slot.batch,
        };
        let kernel = &self.work.kernels.logits_out;
        // SAFETY: the workspace holds `n` rows of logits; out_logits are addresses of states' memory.
        unsafe { self.launch(kernel, [LOGITS_PARTS, n, 1], THREADS, 0, &parameters) }
    }

    /// Output rows behind the last norm: inputs of the head, or (n, n_embd) numbers at `hidden`.
    pub(crate) fn norm_out(&self, first: u32, n: u32, out: Inputs, hidden: Address) -> Result<()> {
        let weights = &self.work.weights;
        let parameters = NormOut {
            x: self.slot.x,
            norm: weights.norm_out,
            factors: weights.head.input_factors,
            out,
            split: self.split(n),
            hidden,
            n_embd: self.options.n_embd,
            x_stride: self.work.workspace.x_stride,
            first,
            // Further pieces of rows are behind those before.
            behind_products: u32::from(first == 0 && self.layers_end_with_products()),
            batch: self.slot.batch,
        };
        let kernels = &self.work.kernels;
        let threads = threads_that_hold(self.options.n_embd);
        let (kernel, threads, shared) = match (&kernels.single, threads) {
            (Some(single), Some(threads)) => (&single.norm_out, threads, 0),
            _ => (&kernels.norm_out_rows, THREADS, 12 * self.options.n_embd),
        };
        // SAFETY: `n` rows at most LOGITS_ROWS, for which `out` and `hidden` have room.
        unsafe { self.launch(kernel, [n, 1, 1], threads, shared, &parameters) }
    }

    /// The best tokens go to host memory at `tokens`.
    pub(crate) fn tokens(&self, tokens: Address) -> Result<()> {
        let best = self.slot.best;
        let (grid, parameters) = ([self.shape.n_outputs, 1, 1], Tokens { best, tokens });
        // SAFETY: one number a block, both arrays have room for all rows.
        unsafe { self.launch(&self.work.kernels.tokens_out, grid, 1, 0, &parameters) }
    }
}
