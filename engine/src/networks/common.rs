//! What all versions share: the table of embeddings, the head, norms, and products of shifted inputs.
//!
//! Residual stream, norms and token shift are f32 always; only matrices are quantised. Everything works on all rows at
//! once, but for the token shift, which looks one row back.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::batch::{Segment, Span};
use super::config::Sizes;
use super::names;
use super::state::State;
use super::table::{tensors, Sensitivity, TensorSpec};
use crate::error::Result;
use crate::math::aligned::Aligned;
use crate::math::kernels::fetch::fetch;
use crate::math::kernels::KernelSet;
use crate::math::reserve;
use crate::products::{
    fetch_input_factors, multiply, Activations, Machine, Product, Scratch, BUFFERS,
};
use crate::quant::matrix::{Matrix, Vector};

tensors! {
    /// What turns tokens into the residual stream.
    pub(crate) struct Embedding {
        /// (n_vocab, n_embd)
        table: Matrix = TensorSpec::matrix(names::EMBEDDING, |s| s.n_vocab, |s| s.n_embd)
            .in_front_of_norm("ln0")
            .sensitive(Sensitivity::Highest),
        /// (n_embd) ln0, applied to its rows
        norm_weight: Vector = norm_weight("ln0.weight").in_first_layer(),
        norm_bias: Vector = norm_bias("ln0.bias").in_first_layer(),
    }
}

tensors! {
    /// What turns the residual stream into logits.
    pub(crate) struct Head {
        /// (n_embd)
        norm_weight: Vector = norm_weight("ln_out.weight"),
        norm_bias: Vector = norm_bias("ln_out.bias"),
        /// (n_vocab, n_embd)
        matrix: Matrix = TensorSpec::matrix(names::HEAD, |s| s.n_vocab, |s| s.n_embd)
            .behind_norm("ln_out", None)
            .sensitive(Sensitivity::Highest),
    }
}

/// The gains of a layer norm.
pub(crate) const fn norm_weight(name: &'static str) -> TensorSpec {
    TensorSpec::vector(name, |s| s.n_embd).noise(0.5, 1.5)
}

/// The biases of a layer norm.
pub(crate) const fn norm_bias(name: &'static str) -> TensorSpec {
    TensorSpec::vector(name, |s| s.n_embd).noise(-0.1, 0.1)
}

/// The shares of the present token in a token shift.
pub(crate) const fn mix(name: &'static str) -> TensorSpec {
    TensorSpec::vector(name, |s| s.n_embd).broadcast()
}

/// One pass of a batch through the layers of a stage.
pub(crate) struct Pass<'a> {
    pub(crate) machine: Machine<'a>,
    pub(crate) segments: &'a [Segment],
    pub(crate) n_rows: usize,
    /// Of the norms in layers.
    pub(crate) epsilon: f32,
    /// Of the norms of heads, where there are any.
    pub(crate) head_epsilon: f32,
}

/// A layer of some version: both of its halves, for all rows of a pass. `index` is its number in the
/// model.
pub(crate) trait Block: Sized {
    /// Memory that it needs besides the common buffers.
    type Buffers;
    /// The matrices of its first product.
    type Firsts<'a>: AsRef<[&'a Matrix]>
    where
        Self: 'a;

    /// Fetches the vectors that are read before its first product, and gives the matrices of that.
    /// `state` is that of one sequence.
    fn fetch_first(&self, pass: &Pass<'_>, state: &State, index: usize) -> Self::Firsts<'_>;

    /// What attention is to a transformer.
    fn time_mixing(
        &self,
        index: usize,
        pass: &Pass<'_>,
        common: &mut Buffers,
        own: &mut Self::Buffers,
        spans: &mut [Span<'_>],
    );

    /// The feed-forward part. Fetches what is read first of what comes behind.
    fn channel_mixing(
        &self,
        place: (usize, Behind<'_, Self>),
        pass: &Pass<'_>,
        common: &mut Buffers,
        own: &mut Self::Buffers,
        spans: &mut [Span<'_>],
    );
}

/// Feeds the rows of a pass to layers, of which the first is number `first` of the model; `head`
/// follows the last, where it does.
pub(crate) fn forward<L: Block>(
    (layers, first, head): (&[L], usize, Option<&Head>),
    pass: &Pass<'_>,
    (common, own): (&mut Buffers, &mut L::Buffers),
    spans: &mut [Span<'_>],
) {
    for (at, layer) in layers.iter().enumerate() {
        let behind = Behind::of(layers, at, head);
        layer.time_mixing(first + at, pass, common, own, spans);
        layer.channel_mixing((first + at, behind), pass, common, own, spans);
    }
}

/// Memory for forward passes over at most so many rows; all are (rows, ..), row-major.
pub(crate) struct Buffers {
    /// Numbers of a row that passes from stage to stage.
    pub(crate) row_width: usize,
    /// (rows, row width) what passes from stage to stage, the residual stream (n_embd) first in each row
    pub(crate) residual: Aligned<f32>,
    /// (rows, n_embd) normalised input of a block, in memory for (rows, row width)
    pub(crate) normed: Aligned<f32>,
    /// One a thread.
    pub(crate) scratch: Vec<Scratch>,
    /// For each row: the segment whose first row it is.
    pub(crate) starts: Vec<Option<usize>>,
}

impl Buffers {
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub(crate) fn new(sizes: &Sizes, rows_max: usize, n_threads: usize) -> Result<Self> {
        let row_width = sizes.architecture.row_width(sizes);
        let rows = || Aligned::zeroed(rows_max.saturating_mul(row_width), BUFFERS);
        let n_inputs = sizes.n_embd.max(sizes.n_attention);
        let scratch = || Scratch::new(rows_max, n_inputs, sizes.n_embd);
        Ok(Buffers {
            row_width,
            residual: rows()?,
            normed: rows()?,
            scratch: (0..n_threads).map(|_| scratch()).collect::<Result<_>>()?,
            starts: reserve(rows_max, BUFFERS)?,
        })
    }

    /// Bytes that [`new`](Self::new) takes.
    pub(crate) fn bytes_for(sizes: &Sizes, rows_max: usize, n_threads: usize) -> u64 {
        let (rows, row_width) = (rows_max as u64, sizes.architecture.row_width(sizes) as u64);
        let n_inputs = sizes.n_embd.max(sizes.n_attention);
        2 * Aligned::<f32>::bytes_for(rows * row_width)
            + n_threads as u64 * Scratch::bytes_for(rows_max, n_inputs, sizes.n_embd)
            + rows * size_of::<Option<usize>>() as u64
    }

    /// What they take in memory.
    pub(crate) fn size_bytes(&self) -> usize {
        self.residual.size_bytes()
            + self.normed.size_bytes()
            + self.scratch.iter().map(Scratch::size_bytes).sum::<usize>()
            + self.starts.capacity() * size_of::<Option<usize>>()
    }

    pub(crate) fn rows_mut(&mut self, n_rows: usize) -> (&[f32], &mut [f32]) {
        let n = n_rows * self.row_width;
        (&self.residual[..n], &mut self.normed[..n])
    }

    pub(crate) fn swap_rows(&mut self) {
        std::mem::swap(&mut self.residual, &mut self.normed);
    }

    /// Notes where segments begin.
    pub(crate) fn begin(&mut self, pass: &Pass<'_>) {
        self.starts.clear();
        self.starts.resize(pass.n_rows, None);
        for (index, segment) in pass.segments.iter().enumerate() {
            self.starts[segment.first_row] = Some(index);
        }
    }
}

/// A layer norm of n_embd channels.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) epsilon: f32,
}

impl Norm<'_> {
    /// Normalises a row of `x` into `out`.
    fn row(self, kernels: KernelSet, x: &[f32], out: &mut [f32]) {
        kernels.layer_norm(x, self.weight, self.bias, self.epsilon, out);
    }

    /// Normalises the beginning of every row of `x` into that of `out`; a row of each has so many numbers.
    fn apply(
        self,
        machine: Machine<'_>,
        (x, x_stride): (&[f32], usize),
        (out, out_stride): (&mut [f32], usize),
    ) {
        let n = self.weight.len();
        machine.pool.run_chunks(out, out_stride, |row, out| {
            self.row(machine.kernels, &x[row * x_stride..][..n], &mut out[..n]);
        });
    }

    pub(crate) fn fetch(self) {
        fetch(self.weight);
        fetch(self.bias);
    }
}

impl Embedding {
    /// The table's rows of the tokens, normalised by ln0, become the residual stream.
    pub(crate) fn apply(&self, pass: &Pass<'_>, buffers: &mut Buffers, spans: &[Span<'_>]) {
        let n_embd = self.table.n_cols;
        for segment in pass.segments {
            let tokens = &spans[segment.span].tokens[segment.first_token..][..segment.n_rows];
            let rows = buffers.normed[segment.first_row * n_embd..].chunks_exact_mut(n_embd);
            for (&token, row) in tokens.iter().zip(rows) {
                self.table.read_row(token as usize, row);
                if let Some(paging) = pass.machine.paging {
                    paging.embedding_row_was_read(token as usize);
                }
            }
        }
        let norm = Norm {
            weight: &self.norm_weight,
            bias: &self.norm_bias,
            epsilon: pass.epsilon,
        };
        let stride = buffers.row_width;
        let out = &mut buffers.residual[..pass.n_rows * stride];
        norm.apply(pass.machine, (&buffers.normed, n_embd), (out, stride));
    }
}

impl Head {
    fn norm(&self, epsilon: f32) -> Norm<'_> {
        Norm {
            weight: &self.norm_weight,
            bias: &self.norm_bias,
            epsilon,
        }
    }

    /// Fetches the vectors that are read before the matrix.
    pub(crate) fn fetch_vectors(&self) {
        fetch(&self.norm_weight);
        fetch(&self.norm_bias);
        fetch_input_factors(&self.matrix);
    }

    /// Logits of some rows of the last forward pass: `rows[i]` gives `out[i]`, (rows.len(), n_vocab). `epsilon` is that of
    /// ln_out.
    pub(crate) fn logits(
        &self,
        machine: Machine<'_>,
        (buffers, input): (&mut Buffers, &mut Activations),
        epsilon: f32,
        rows: &[usize],
        out: &mut [f32],
    ) {
        let (n_embd, norm) = (self.matrix.n_cols, self.norm(epsilon));
        let Buffers {
            residual,
            row_width,
            scratch,
            ..
        } = buffers;
        let Machine { pool, kernels, .. } = machine;
        input.prepare(pool, kernels, &self.matrix, rows.len(), |i, input| {
            norm.row(kernels, &residual[rows[i] * *row_width..][..n_embd], input);
        });
        let product = Product {
            matrix: &self.matrix,
            input,
            out,
        };
        multiply(machine, scratch, [product], &[]);
    }

    /// The residual stream of some rows of the last forward pass behind the output norm, which is what
    /// the head reads: `rows[i]` gives `out[i]`, (rows.len(), n_embd).
    pub(crate) fn hidden(
        &self,
        machine: Machine<'_>,
        buffers: &Buffers,
        epsilon: f32,
        rows: &[usize],
        out: &mut [f32],
    ) {
        let (n_embd, norm) = (self.matrix.n_cols, self.norm(epsilon));
        for (&row, out) in rows.iter().zip(out.chunks_exact_mut(n_embd)) {
            norm.row(
                machine.kernels,
                &buffers.residual[row * buffers.row_width..][..n_embd],
                out,
            );
        }
    }
}

/// What comes behind a layer.
pub(crate) enum Behind<'a, L> {
    Layer(&'a L),
    Head(&'a Head),
    Nothing,
}

impl<'a, L: Block> Behind<'a, L> {
    /// Behind number `at` of these layers, which `head` follows.
    fn of(layers: &'a [L], at: usize, head: Option<&'a Head>) -> Self {
        match (layers.get(at + 1), head) {
            (Some(next), _) => Behind::Layer(next),
            (None, Some(head)) => Behind::Head(head),
            (None, None) => Behind::Nothing,
        }
    }

    /// Fetches the vectors that are read first there; the layer, if it is one, is number `index`.
    pub(crate) fn fetch(&self, pass: &Pass<'_>, state: &State, index: usize) -> Next<'a, L> {
        match self {
            Behind::Layer(next) => Next::Layer(next.fetch_first(pass, state, index)),
            Behind::Head(head) => {
                head.fetch_vectors();
                Next::Head([&head.matrix])
            }
            Behind::Nothing => Next::Nothing,
        }
    }
}

/// The matrices of the first product behind a layer.
pub(crate) enum Next<'a, L: Block + 'a> {
    Layer(L::Firsts<'a>),
    Head([&'a Matrix; 1]),
    Nothing,
}

impl<'a, L: Block> Next<'a, L> {
    pub(crate) fn matrices(&self) -> &[&'a Matrix] {
        match self {
            Next::Layer(matrices) => matrices.as_ref(),
            Next::Head(matrix) => matrix,
            Next::Nothing => &[],
        }
    }
}

/// Normalised rows and those before them.
pub(crate) struct Shift<'a> {
    place: (usize, usize),
    normed: &'a [f32],
    starts: &'a [Option<usize>],
    segments: &'a [Segment],
    spans: &'a [Span<'a>],
}

impl Shift<'_> {
    /// A row, and the one of the token before; (n_embd) each.
    pub(crate) fn row(&self, row: usize, n_embd: usize) -> (&[f32], &[f32]) {
        let at = |row: usize| &self.normed[row * n_embd..][..n_embd];
        let previous = match self.starts[row] {
            Some(segment) => {
                let state = &self.spans[self.segments[segment].span].state;
                state.part(self.place.0, self.place.1)
            }
            None => at(row - 1),
        };
        (at(row), previous)
    }
}

/// How much of each channel of a token shift comes from which token, (n_embd).
#[derive(Clone, Copy)]
pub(crate) enum Shares<'a> {
    /// `share * present + (1 - share) * previous`, as up to RWKV-5.
    OfPresent(&'a [f32]),
    /// `present + share * (previous - present)`, as from RWKV-6 on.
    OfPrevious(&'a [f32]),
}

impl Shares<'_> {
    fn shift(self, kernels: KernelSet, present: &[f32], previous: &[f32], out: &mut [f32]) {
        match self {
            Shares::OfPresent(mix) => kernels.token_shift(present, previous, mix, out),
            Shares::OfPrevious(mix) => kernels.lerp(present, previous, mix, out),
        }
    }

    pub(crate) fn fetch(self) {
        match self {
            Shares::OfPresent(mix) | Shares::OfPrevious(mix) => fetch(mix),
        }
    }
}

/// A matrix whose input is a token shift.
pub(crate) struct Shifted<'a> {
    pub(crate) mix: Shares<'a>,
    pub(crate) matrix: &'a Matrix,
    pub(crate) input: &'a mut Activations,
    /// (rows, outputs)
    pub(crate) out: &'a mut [f32],
}

impl Pass<'_> {
    /// A norm of a layer.
    pub(crate) fn norm<'a>(&self, weight: &'a [f32], bias: &'a [f32]) -> Norm<'a> {
        Norm {
            weight,
            bias,
            epsilon: self.epsilon,
        }
    }

    /// Normalises the residual stream of a layer, and multiplies shifts of it with matrices. The state's part
    /// `previous` of the layer has the normalised row before the first one of each segment, and gets the last one.
    /// `next` are the matrices of the product behind these.
    pub(crate) fn shifted_products<const N: usize>(
        &self,
        (layer, previous): (usize, usize),
        norm: Norm<'_>,
        buffers: &mut Buffers,
        spans: &mut [Span<'_>],
        shifted: [Shifted<'_>; N],
        next: &[&Matrix],
    ) {
        let Machine { pool, kernels, .. } = self.machine;
        let n_embd = norm.weight.len();
        self.normalise(norm, buffers);
        let shift = self.shift((layer, previous), &buffers.normed, &buffers.starts, spans);
        let products = shifted.map(|shifted| {
            let Shifted {
                mix,
                matrix,
                input,
                out,
            } = shifted;
            input.prepare(pool, kernels, matrix, self.n_rows, |row, out| {
                let (present, previous) = shift.row(row, n_embd);
                mix.shift(kernels, present, previous, out);
            });
            let input = &*input;
            Product { matrix, input, out }
        });
        multiply(self.machine, &mut buffers.scratch, products, next);
        self.remember((layer, previous), n_embd, buffers, spans);
    }

    /// Normalises the residual stream of all rows into `normed`.
    pub(crate) fn normalise(&self, norm: Norm<'_>, buffers: &mut Buffers) {
        let n_embd = norm.weight.len();
        let rows = (&buffers.residual[..], buffers.row_width);
        let normed = &mut buffers.normed[..self.n_rows * n_embd];
        norm.apply(self.machine, rows, (normed, n_embd));
    }

    /// Normalised rows with those of the tokens before, of which the first of each segment is in the state's part
    /// `previous` of the layer.
    pub(crate) fn shift<'a>(
        &'a self,
        place: (usize, usize),
        normed: &'a [f32],
        starts: &'a [Option<usize>],
        spans: &'a [Span<'a>],
    ) -> Shift<'a> {
        Shift {
            place,
            normed,
            starts,
            segments: self.segments,
            spans,
        }
    }

    /// The part of each segment's state that a layer walks through, in the order of the segments.
    pub(crate) fn states<'s, 'a>(
        &'s self,
        layer: usize,
        part: Range<usize>,
        spans: &'s mut [Span<'a>],
    ) -> impl Iterator<Item = &'s mut [f32]> + use<'s, 'a> {
        let mut rest = spans.iter_mut().enumerate();
        // Segments are in the order of their spans, and no two of one batch are of the same.
        self.segments.iter().filter_map(move |segment| {
            let (_, span) = rest.find(|(index, _)| *index == segment.span)?;
            Some(span.state.parts_mut(layer, part.clone()))
        })
    }

    /// Puts the last normalised row of each segment into the state's part `previous` of the layer.
    pub(crate) fn remember(
        &self,
        (layer, previous): (usize, usize),
        n_embd: usize,
        buffers: &Buffers,
        spans: &mut [Span<'_>],
    ) {
        let normed = &buffers.normed;
        for segment in self.segments {
            let last = segment.first_row + segment.n_rows - 1;
            let state = &mut *spans[segment.span].state;
            let row = &normed[last * n_embd..][..n_embd];
            state.part_mut(layer, previous).copy_from_slice(row);
        }
    }

    /// Multiplies rows, (rows, inputs) of the matrix, by it, and adds what comes of them to the
    /// residual stream. `input` and `out`, (rows, n_embd), are memory for that, and `next` the
    /// matrices of the product behind.
    pub(crate) fn add_product(
        &self,
        buffers: &mut Buffers,
        (matrix, rows): (&Matrix, &[f32]),
        (input, out): (&mut Activations, &mut [f32]),
        next: &[&Matrix],
    ) {
        let Machine { pool, kernels, .. } = self.machine;
        let (n_embd, n_inputs) = (matrix.n_outputs(), matrix.n_inputs());
        input.prepare(pool, kernels, matrix, self.n_rows, |row, out| {
            out.copy_from_slice(&rows[row * n_inputs..][..n_inputs]);
        });
        let out = &mut out[..self.n_rows * n_embd];
        let product = Product {
            matrix,
            input,
            out: &mut *out,
        };
        multiply(self.machine, &mut buffers.scratch, [product], next);
        self.add(buffers, n_embd, out);
    }

    /// Adds the rows of `delta`, (rows, n_embd), to the residual stream.
    pub(crate) fn add(&self, buffers: &mut Buffers, n_embd: usize, delta: &[f32]) {
        let kernels = self.machine.kernels;
        self.add_to_residual(buffers, n_embd, |x, row| {
            kernels.add(x, &delta[row * n_embd..][..n_embd]);
        });
    }

    /// Row by row `work(row of the residual stream, its number)`, on all threads.
    pub(crate) fn add_to_residual(
        &self,
        buffers: &mut Buffers,
        n_embd: usize,
        work: impl Fn(&mut [f32], usize) + Sync,
    ) {
        let stride = buffers.row_width;
        let rows = &mut buffers.residual[..self.n_rows * stride];
        let pool = self.machine.pool;
        pool.run_chunks(rows, stride, |row, x| work(&mut x[..n_embd], row));
    }
}
