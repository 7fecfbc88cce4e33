//! RWKV-4: the network's arithmetic for a batch of rows.
//!
//! Input: token ids of several spans, each with its state. Output: logits of the rows asked for. The
//! formulas are those of the RWKV paper (arXiv 2305.13048, section 3) in the numerically safe form of
//! its appendix; the names are in the table of docs/ARCHITECTURE.md. Residual stream, norms, token
//! shift and WKV are f32 always; only matrices are quantised. No file names, no instruction sets.
//!
//! A batch is cut into rows by `model.rs`: one row a token. Everything works on all rows at once, but
//! for the token shift, which looks one row back, and WKV, which walks a span in order.

#![forbid(unsafe_code)]

use crate::math::aligned::Aligned;
use crate::math::kernels::WkvChannels;
use crate::math::threads::{ColumnBlock, Columns};
use crate::networks::batch::{Segment, Span};
use crate::products::{fetch_input_factors, multiply, Activations, Product, Scratch, Transposed};

mod ahead;
mod weights;

pub(crate) use crate::products::Machine;
pub(crate) use weights::{
    ChannelMixing, Embedding, Head, Network, Norm, Part, Sizes, Tensor, TimeMixing, ARCHITECTURE,
    DECAY_LOG, NORM_OUT_EPSILON,
};

/// Channels of one WKV task: four cache lines of each array.
const WKV_CHANNELS: usize = 64;

/// Buffers of a forward pass over at most `rows_max` rows; all are (rows, ..), row-major.
pub(crate) struct Buffers {
    /// (rows, n_embd) residual stream
    residual: Aligned<f32>,
    /// (rows, n_embd) normalised input of a block
    normed: Aligned<f32>,
    /// inputs of the matrices
    input_a: Activations,
    input_b: Activations,
    input_c: Activations,
    /// (rows, n_hidden) input of channel mixing's value matrix
    input_hidden: Activations,
    transposed: Transposed,
    /// (rows, n_attention) or (rows, n_embd) outputs of the matrices
    key: Aligned<f32>,
    value: Aligned<f32>,
    receptance: Aligned<f32>,
    /// (rows, n_attention) gated WKV
    gated: Aligned<f32>,
    /// (rows, n_hidden)
    hidden: Aligned<f32>,
    /// One a thread.
    scratch: Vec<Scratch>,
    /// For each row: the segment whose first row it is.
    starts: Vec<Option<usize>>,
}

impl Buffers {
    pub(crate) fn new(sizes: &Sizes, rows_max: usize, n_threads: usize, no_sparsity: bool) -> Self {
        let (n_embd, n_hidden) = (sizes.n_embd, sizes.n_hidden);
        let widest = n_embd.max(sizes.n_attention);
        let floats = |width: usize| Aligned::new(0.0, rows_max * width);
        let scratch = || Scratch::new(rows_max, n_embd);
        Buffers {
            residual: floats(n_embd),
            normed: floats(n_embd),
            input_a: Activations::new(widest, rows_max),
            input_b: Activations::new(n_embd, rows_max),
            input_c: Activations::new(n_embd, rows_max),
            input_hidden: Activations::new(n_hidden, rows_max),
            transposed: Transposed::new(n_hidden, n_embd, rows_max, no_sparsity),
            key: floats(widest),
            value: floats(widest),
            receptance: floats(widest),
            gated: floats(sizes.n_attention),
            hidden: floats(n_hidden),
            scratch: (0..n_threads).map(|_| scratch()).collect(),
            starts: Vec::with_capacity(rows_max),
        }
    }
}

impl Buffers {
    /// (n_rows, n_embd) residual stream, which passes from stage to stage, and other memory of its size.
    pub(crate) fn residual_mut(&mut self, n_rows: usize, n_embd: usize) -> (&[f32], &mut [f32]) {
        let n = n_rows * n_embd;
        (&self.residual[..n], &mut self.normed[..n])
    }

    /// What was written into the other memory becomes the residual stream.
    pub(crate) fn swap_residual(&mut self) {
        std::mem::swap(&mut self.residual, &mut self.normed);
    }

    /// What they take in memory.
    pub(crate) fn size_bytes(&self) -> usize {
        let rows = [
            &self.residual,
            &self.normed,
            &self.key,
            &self.value,
            &self.receptance,
            &self.gated,
            &self.hidden,
        ];
        let inputs = [
            &self.input_a,
            &self.input_b,
            &self.input_c,
            &self.input_hidden,
        ];
        rows.iter().map(|rows| rows.size_bytes()).sum::<usize>()
            + inputs.map(Activations::size_bytes).iter().sum::<usize>()
            + self.scratch.iter().map(Scratch::size_bytes).sum::<usize>()
            + self.transposed.size_bytes()
    }

    /// Rows of `ffn.value` that were not read, of those that there were.
    pub(crate) fn sparsity(&self) -> (u64, u64) {
        self.transposed.sparsity()
    }
}

impl Norm {
    /// Normalises every row of `x` into `out`.
    fn apply(&self, machine: Machine<'_>, x: &[f32], out: &mut [f32]) {
        let n = self.weight.len();
        machine.pool.run_chunks(out, n, |row, out| {
            let x = &x[row * n..(row + 1) * n];
            machine
                .kernels
                .layer_norm(x, &self.weight, &self.bias, self.epsilon, out);
        });
    }
}

impl Network {
    /// Feeds the rows that `segments` describe and moves the states of their spans. Rows are numbered
    /// through the segments in order; their number is at most the buffers'. A part without the
    /// embedding finds its input in the residual stream of the buffers, where the output is, too.
    pub(crate) fn forward(
        &self,
        machine: Machine<'_>,
        buffers: &mut Buffers,
        segments: &[Segment],
        spans: &mut [Span<'_>],
    ) {
        let n_rows = segments.iter().map(|segment| segment.n_rows).sum();
        buffers.starts.clear();
        buffers.starts.resize(n_rows, None);
        for (index, segment) in segments.iter().enumerate() {
            buffers.starts[segment.first_row] = Some(index);
        }
        if let Some(embedding) = &self.embedding {
            embedding.apply(machine, buffers, segments, spans);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let part = LayerPass {
                network: self,
                machine,
                index: self.first_layer + index,
                n_rows,
                segments,
            };
            part.time_mixing(&layer.time_mixing, buffers, spans);
            part.channel_mixing(&layer.channel_mixing, buffers, spans);
        }
    }
}

impl Embedding {
    /// The table's rows of the tokens, normalised by ln0, become the residual stream.
    fn apply(
        &self,
        machine: Machine<'_>,
        buffers: &mut Buffers,
        segments: &[Segment],
        spans: &[Span<'_>],
    ) {
        let n_embd = self.table.n_cols;
        for segment in segments {
            let tokens = &spans[segment.span].tokens[segment.first_token..][..segment.n_rows];
            let rows = buffers.normed[segment.first_row * n_embd..].chunks_exact_mut(n_embd);
            for (&token, row) in tokens.iter().zip(rows) {
                self.table.read_row(token as usize, row);
                if let Some(paging) = machine.paging {
                    paging.embedding_row_was_read(token as usize);
                }
            }
        }
        let n = buffers.starts.len() * n_embd;
        self.norm
            .apply(machine, &buffers.normed[..n], &mut buffers.residual[..n]);
    }
}

impl Head {
    /// Logits of some rows of the last forward pass: `rows[i]` gives `out[i]`, (rows.len(), n_vocab).
    pub(crate) fn logits(
        &self,
        machine: Machine<'_>,
        buffers: &mut Buffers,
        rows: &[usize],
        out: &mut [f32],
    ) {
        let (n_embd, norm) = (self.matrix.n_cols, &self.norm);
        let Buffers {
            residual,
            input_a,
            scratch,
            ..
        } = buffers;
        input_a.prepare(
            machine.pool,
            machine.kernels,
            &self.matrix,
            rows.len(),
            |i, input| {
                let x = &residual[rows[i] * n_embd..][..n_embd];
                machine
                    .kernels
                    .layer_norm(x, &norm.weight, &norm.bias, norm.epsilon, input);
            },
        );
        let product = Product {
            matrix: &self.matrix,
            input: input_a,
            out,
        };
        multiply(machine, scratch, [product], &[]);
    }

    /// The residual stream of some rows of the last forward pass behind the output norm, which is what
    /// the head reads: `rows[i]` gives `out[i]`, (rows.len(), n_embd).
    pub(crate) fn hidden(
        &self,
        machine: Machine<'_>,
        buffers: &mut Buffers,
        rows: &[usize],
        out: &mut [f32],
    ) {
        let (n_embd, norm) = (self.matrix.n_cols, &self.norm);
        for (&row, out) in rows.iter().zip(out.chunks_exact_mut(n_embd)) {
            let x = &buffers.residual[row * n_embd..][..n_embd];
            machine
                .kernels
                .layer_norm(x, &norm.weight, &norm.bias, norm.epsilon, out);
        }
    }
}

/// One layer's work on one batch.
struct LayerPass<'a> {
    network: &'a Network,
    machine: Machine<'a>,
    index: usize,
    n_rows: usize,
    segments: &'a [Segment],
}

impl LayerPass<'_> {
    /// Where this layer is among those of its network.
    fn place(&self) -> usize {
        self.index - self.network.first_layer
    }

    /// `x += output * (sigmoid(r) * wkv(k, v))`
    fn time_mixing(&self, part: &TimeMixing, buffers: &mut Buffers, spans: &mut [Span<'_>]) {
        let Machine { pool, kernels, .. } = self.machine;
        let n_rows = self.n_rows;
        let (n_embd, n_attention) = (part.mix_key.len(), part.decay_log.len());
        let b = buffers;
        let normed = &mut b.normed[..n_rows * n_embd];
        part.norm
            .apply(self.machine, &b.residual[..n_rows * n_embd], normed);
        let normed = &*normed;

        let key_out = &mut b.key[..n_rows * n_attention];
        let value_out = &mut b.value[..n_rows * n_attention];
        let receptance_out = &mut b.receptance[..n_rows * n_attention];
        {
            let spans = &*spans;
            let shift = |row: usize, mix: &[f32], out: &mut [f32]| {
                let previous = match b.starts[row] {
                    Some(s) => spans[self.segments[s].span].state.att_previous(self.index),
                    None => &normed[(row - 1) * n_embd..row * n_embd],
                };
                kernels.token_shift(&normed[row * n_embd..][..n_embd], previous, mix, out);
            };
            let (mix_k, mix_v, mix_r) = (&part.mix_key, &part.mix_value, &part.mix_receptance);
            b.input_a
                .prepare(pool, kernels, &part.key, n_rows, |row, out| {
                    shift(row, mix_k, out)
                });
            b.input_b
                .prepare(pool, kernels, &part.value, n_rows, |row, out| {
                    shift(row, mix_v, out)
                });
            let receptance = &part.receptance;
            b.input_c
                .prepare(pool, kernels, receptance, n_rows, |row, out| {
                    shift(row, mix_r, out)
                });
        }
        let products = [
            Product {
                matrix: &part.key,
                input: &b.input_a,
                out: key_out,
            },
            Product {
                matrix: &part.value,
                input: &b.input_b,
                out: value_out,
            },
            Product {
                matrix: &part.receptance,
                input: &b.input_c,
                out: receptance_out,
            },
        ];
        part.fetch_vectors_of_wkv(spans[self.segments[0].span].state, self.index);
        multiply(self.machine, &mut b.scratch, products, &[&part.output]);

        let inputs = (&b.key[..], &b.value[..], &b.receptance[..]);
        for segment in self.segments {
            let layer = spans[segment.span].state.layer_mut(self.index);
            let last = segment.first_row + segment.n_rows - 1;
            layer
                .att_previous
                .copy_from_slice(&normed[last * n_embd..][..n_embd]);
            self.wkv(part, segment, inputs, layer.wkv, &mut b.gated);
        }

        let gated = &b.gated;
        b.input_a
            .prepare(pool, kernels, &part.output, n_rows, |row, out| {
                out.copy_from_slice(&gated[row * n_attention..][..n_attention]);
            });
        let out = &mut b.key[..n_rows * n_embd];
        let product = Product {
            matrix: &part.output,
            input: &b.input_a,
            out,
        };
        let mixing = &self.network.layers[self.place()].channel_mixing;
        mixing.fetch_vectors(spans[self.segments[0].span].state, self.index);
        let next = mixing.inputs();
        multiply(self.machine, &mut b.scratch, [product], &next);
        let delta = &b.key;
        pool.run_chunks(&mut b.residual[..n_rows * n_embd], n_embd, |row, x| {
            kernels.add(x, &delta[row * n_embd..][..n_embd]);
        });
    }

    /// WKV over the rows of a segment in order, channels spread over the threads.
    fn wkv(
        &self,
        part: &TimeMixing,
        segment: &Segment,
        (key, value, receptance): (&[f32], &[f32], &[f32]),
        state: &mut [f32],
        gated: &mut [f32],
    ) {
        let kernels = self.machine.kernels;
        let n = part.decay_log.len();
        let rows = segment.first_row * n..(segment.first_row + segment.n_rows) * n;
        let (key, value) = (&key[rows.clone()], &value[rows.clone()]);
        let receptance = &receptance[rows.clone()];
        let step =
            |row: usize, columns: std::ops::Range<usize>, s: [&mut [f32]; 3], out: &mut _| {
                let at = row * n + columns.start..row * n + columns.end;
                let channels = WkvChannels {
                    decay_log: &part.decay_log[columns.clone()],
                    bonus: &part.bonus[columns],
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
        self.machine
            .pool
            .run_paired_blocks(&mut out, &mut state, WKV_CHANNELS, work);
    }

    /// `x += sigmoid(receptance * xr) * (value * relu(key * xk)^2)`
    fn channel_mixing(&self, part: &ChannelMixing, buffers: &mut Buffers, spans: &mut [Span<'_>]) {
        let Machine { pool, kernels, .. } = self.machine;
        let n_rows = self.n_rows;
        let (n_embd, n_hidden) = (part.mix_key.len(), part.key.n_outputs());
        let b = buffers;
        let normed = &mut b.normed[..n_rows * n_embd];
        part.norm
            .apply(self.machine, &b.residual[..n_rows * n_embd], normed);
        let normed = &*normed;

        let hidden_out = &mut b.hidden[..n_rows * n_hidden];
        let receptance_out = &mut b.receptance[..n_rows * n_embd];
        {
            let spans = &*spans;
            let shift = |row: usize, mix: &[f32], out: &mut [f32]| {
                let previous = match b.starts[row] {
                    Some(s) => spans[self.segments[s].span].state.ffn_previous(self.index),
                    None => &normed[(row - 1) * n_embd..row * n_embd],
                };
                kernels.token_shift(&normed[row * n_embd..][..n_embd], previous, mix, out);
            };
            let (mix_k, mix_r) = (&part.mix_key, &part.mix_receptance);
            b.input_a
                .prepare(pool, kernels, &part.key, n_rows, |row, out| {
                    shift(row, mix_k, out)
                });
            let receptance = &part.receptance;
            b.input_b
                .prepare(pool, kernels, receptance, n_rows, |row, out| {
                    shift(row, mix_r, out)
                });
        }
        let products = [
            Product {
                matrix: &part.key,
                input: &b.input_a,
                out: hidden_out,
            },
            Product {
                matrix: &part.receptance,
                input: &b.input_b,
                out: receptance_out,
            },
        ];
        fetch_input_factors(&part.value);
        multiply(self.machine, &mut b.scratch, products, &[&part.value]);
        for segment in self.segments {
            let layer = spans[segment.span].state.layer_mut(self.index);
            let last = segment.first_row + segment.n_rows - 1;
            layer
                .ffn_previous
                .copy_from_slice(&normed[last * n_embd..][..n_embd]);
        }

        let hidden = &b.hidden;
        b.input_hidden
            .prepare(pool, kernels, &part.value, n_rows, |row, out| {
                out.copy_from_slice(&hidden[row * n_hidden..][..n_hidden]);
                kernels.squared_relu(out);
            });
        let out = &mut b.value[..n_rows * n_embd];
        let product = Product {
            matrix: &part.value,
            input: &b.input_hidden,
            out,
        };
        let head = self.network.head.as_ref().map(|head| &head.matrix);
        let next = match self.network.layers.get(self.place() + 1) {
            Some(layer) => {
                let mixing = &layer.time_mixing;
                mixing.fetch_vectors(spans[self.segments[0].span].state, self.index + 1);
                &mixing.inputs()[..]
            }
            None => {
                self.network.fetch_vectors_of_head();
                head.as_slice()
            }
        };
        b.transposed
            .multiply(self.machine, &mut b.scratch, product, next);
        let (gate, delta) = (&b.receptance, &b.value);
        pool.run_chunks(&mut b.residual[..n_rows * n_embd], n_embd, |row, x| {
            let at = row * n_embd..(row + 1) * n_embd;
            kernels.add_gated(x, &gate[at.clone()], &delta[at]);
        });
    }
}
