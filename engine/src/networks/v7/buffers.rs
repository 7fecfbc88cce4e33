//! Memory for passes of RWKV-7.

#![forbid(unsafe_code)]

use crate::error::Result;
use crate::math::aligned::Aligned;
use crate::math::threads::BorrowList;
use crate::networks::config::Sizes;
use crate::networks::hidden::HiddenUnits;
use crate::products::{Activations, BUFFERS};

/// Rows whose second halves a head computes at once: 4 KiB each.
pub(super) const HEAD_ROWS: usize = 16;

/// Low-rank pairs: of decay, in-context learning rate, value and gate.
pub(super) const PAIRS: usize = 4;
pub(super) const DECAY: usize = 0;
pub(super) const ICLR: usize = 1;
pub(super) const VALUE: usize = 2;
pub(super) const GATE: usize = 3;

/// What the layers need besides the common buffers; all are (rows, ..), row-major.
pub(crate) struct Buffers {
    /// Inputs of the matrices.
    pub(super) input_a: Activations,
    pub(super) input_b: Activations,
    pub(super) input_c: Activations,
    /// (rows, PAIRS, n_embd) inputs of the first halves
    pub(super) low_rank_inputs: Aligned<f32>,
    /// (rows, rank) what the first halves give
    pub(super) halves: [Aligned<f32>; PAIRS],
    /// (rows, n_attention) or (rows, n_embd) outputs of the matrices
    pub(super) receptance: Aligned<f32>,
    pub(super) key: Aligned<f32>,
    pub(super) value: Aligned<f32>,
    /// (rows, n_attention) what the heads give
    pub(super) gated: Aligned<f32>,
    pub(super) hidden: HiddenUnits,
    /// States of the spans of a batch.
    pub(super) states: BorrowList<f32>,
    /// One a thread.
    pub(super) heads: Vec<HeadScratch>,
}

/// Memory of one thread for a head.
pub(super) struct HeadScratch {
    /// (PAIRS, HEAD_ROWS, head_size) what the second halves give
    pub(super) halves: Aligned<f32>,
    /// Of the kernel of one token.
    pub(super) work: Aligned<f32>,
}

/// Vectors that the kernel of one token keeps.
pub(super) const WORK: usize = 5;

/// Widths of the buffers of floats that belong to no pair.
fn widths(sizes: &Sizes) -> [usize; 5] {
    let widest = sizes.n_embd.max(sizes.n_attention);
    [
        PAIRS * sizes.n_embd,
        widest,
        widest,
        widest,
        sizes.n_attention,
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
        let n_embd = sizes.n_embd;
        let floats = |width: usize| Aligned::zeroed(rows_max.saturating_mul(width), BUFFERS);
        let [low_rank_inputs, receptance, key, value, gated] = widths(sizes);
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
            hidden: HiddenUnits::new(sizes, rows_max, no_sparsity)?,
            states: BorrowList::new(rows_max, BUFFERS)?,
            heads: (0..n_threads).map(scratch).collect::<Result<_>>()?,
        })
    }

    /// Bytes that [`new`](Self::new) takes.
    pub(crate) fn bytes_for(sizes: &Sizes, (rows_max, n_threads): (usize, usize)) -> u64 {
        let n_embd = sizes.n_embd;
        let widths = widths(sizes).into_iter().chain(ranks(sizes));
        let floats = widths.map(|width| Aligned::<f32>::bytes_for(rows_max as u64 * width as u64));
        let head = [PAIRS * HEAD_ROWS * sizes.head_size, WORK * sizes.head_size];
        let head = head.map(|n| Aligned::<f32>::bytes_for(n as u64));
        Activations::bytes_for(n_embd.max(sizes.n_attention), rows_max)
            + 2 * Activations::bytes_for(n_embd, rows_max)
            + HiddenUnits::bytes_for(sizes, rows_max)
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
        ];
        let inputs = [&self.input_a, &self.input_b, &self.input_c];
        let heads = self.heads.iter();
        let heads = heads.map(|head| head.halves.size_bytes() + head.work.size_bytes());
        floats.map(Aligned::size_bytes).iter().sum::<usize>()
            + self.halves.iter().map(Aligned::size_bytes).sum::<usize>()
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
}
