//! Many rows: products on tiles (products.cuh), and kernels between them, of rows that are each of their own sequence
//! (single.cuh), or of any (rows.cuh).

use super::Pass;
use crate::driver::{Address, Kernel};
use crate::error::Result;
use crate::kernels::{ProductCut, Single, Tiles, SPLIT_ROWS_MAX};
use crate::layout::Layer;
use crate::params::{Finish, Plain, Product, Products, Shift, WkvRows, THREADS, WKV_CHANNELS};

/// Of a block that norms and shifts rows.
const SHIFT_ROWS_MAX: u32 = 8;

/// What products with certain ends need beside their operands.
#[derive(Clone, Copy, Default)]
pub(super) struct Beside {
    /// Of hidden units, as inputs of the next product.
    pub(super) hidden_factors: Address,
    /// Of logits: for each row where its state keeps them, and which one is the largest.
    pub(super) out_logits: Address,
    pub(super) best: Address,
}

/// Threads of blocks that hold a row of so many numbers.
#[derive(Clone, Copy)]
struct SingleThreads {
    embd: u32,
    attention: u32,
}

/// Threads, whole warps, of a block that hold a row of four numbers each, where a block can.
pub(super) fn threads_that_hold(width: u32) -> Option<u32> {
    let threads = (width / 4).next_multiple_of(32);
    (width % 4 == 0 && threads <= THREADS).then_some(threads)
}

impl<'a> Pass<'a> {
    pub(super) fn many_layer(&self, index: usize, layer: &Layer) -> Result<()> {
        self.many_time_mixing(index, layer)?;
        self.many_channel_mixing(index, layer)
    }

    pub(super) fn many_time_mixing(&self, index: usize, layer: &Layer) -> Result<()> {
        let (o, w, slot) = (self.options, &self.work.workspace, &self.slot);
        let (_, att_previous, wkv) = self.state_places(index);
        let kernels = &self.work.kernels;
        let parameters = Shift {
            norm: layer.att_norm,
            mix: layer.att_mix,
            factors: layer.att_in.map(|matrix| matrix.input_factors),
            behind_products: u32::from(index > 0),
            previous: att_previous,
            ..self.shift_of_rows(3)
        };
        let single = self.single();
        self.shift(
            single.map(|(single, threads)| (&single.shift_3, threads.embd)),
            &kernels.shift_rows_3,
            &parameters,
        )?;
        let product = |i: usize| Product {
            matrix: layer.att_in[i],
            inputs: w.inputs[i],
            out: w.att[i],
            gate: 0,
            out_stride: w.a_stride,
            finish: Finish::Store as u32,
        };
        self.products(&[product(0), product(1), product(2)])?;

        let rows = WkvRows {
            key: w.att[0],
            value: w.att[1],
            receptance: w.att[2],
            decay_log: layer.decay_log,
            bonus: layer.bonus,
            factors: layer.att_output.input_factors,
            out: w.inputs_gated,
            split: self.split(self.shape.n_rows),
            gated: w.gated,
            sums: w.sums,
            start: w.start,
            last: w.last,
            n_attention: o.n_attention,
            a_stride: w.a_stride,
            last_stride: w.x_stride,
            n_embd: o.n_embd,
            previous: att_previous,
            wkv,
            batch: slot.batch,
        };
        if self.shape.single {
            let grid = [self.shape.n_rows, 1, 1];
            let (kernel, threads, shared) = match single {
                Some((single, threads)) => (&single.wkv, threads.attention, 0),
                None => (&kernels.wkv_single, THREADS, 4 * o.n_attention),
            };
            // SAFETY: as in `few_layer`, with room for all rows.
            unsafe { self.launch(kernel, grid, threads, shared, &rows)? };
        } else {
            let columns = o.n_attention.div_ceil(WKV_CHANNELS);
            if self.shape.n_chunks_of_several > 0 {
                let grid = [columns, self.shape.n_chunks_of_several, 1];
                // SAFETY: as above; chunks of several are as many as `sums` has room for.
                unsafe { self.launch(&kernels.wkv_sums, grid, WKV_CHANNELS, 0, &rows)? };
            }
            let grid = [columns, self.shape.n_chunks, 1];
            // SAFETY: as above.
            unsafe { self.launch(&kernels.wkv_apply, grid, WKV_CHANNELS, 0, &rows)? };
            self.plain(&Plain {
                x: w.gated,
                factors: layer.att_output.input_factors,
                out: w.inputs_gated,
                split: self.split(self.shape.n_rows),
                n: o.n_attention,
                x_stride: w.a_stride,
                single: 0,
                ..self.no_last()
            })?;
        }
        let output = Product {
            matrix: layer.att_output,
            inputs: w.inputs_gated,
            out: slot.x,
            gate: 0,
            out_stride: w.x_stride,
            finish: Finish::Add as u32,
        };
        self.products(&[output])
    }

    pub(super) fn many_channel_mixing(&self, index: usize, layer: &Layer) -> Result<()> {
        let (o, w, slot) = (self.options, &self.work.workspace, &self.slot);
        let (ffn_previous, ..) = self.state_places(index);
        let [mix_key, mix_receptance] = layer.ffn_mix;
        let [key, receptance] = layer.ffn_in;
        let single = self.single();
        let (hidden_bound, hidden_scales) = match single {
            Some(_) => (w.hidden_bounds + 4 * index as u64, w.inputs_hidden.scales),
            None => (0, 0),
        };
        self.shift(
            single.map(|(single, threads)| (&single.shift_2, threads.embd)),
            &self.work.kernels.shift_rows_2,
            &Shift {
                norm: layer.ffn_norm,
                mix: [mix_key, mix_receptance, 0],
                factors: [key.input_factors, receptance.input_factors, 0],
                behind_products: 1,
                previous: ffn_previous,
                hidden_bound,
                hidden_scales,
                ..self.shift_of_rows(2)
            },
        )?;
        let product = |matrix, inputs, out, out_stride, finish: Finish| Product {
            matrix,
            inputs,
            out,
            gate: w.gate,
            out_stride,
            finish: finish as u32,
        };
        let finish = match single {
            Some(_) => Finish::Hidden,
            None => Finish::SquaredRelu,
        };
        let key = product(key, w.inputs[0], w.hidden, w.h_stride, finish);
        let gate = product(receptance, w.inputs[1], w.gate, w.x_stride, Finish::Sigmoid);
        let beside = Beside {
            hidden_factors: layer.ffn_value.input_factors,
            ..Beside::default()
        };
        self.products_into(&[key, gate], beside)?;
        if single.is_none() {
            self.plain(&Plain {
                x: w.hidden,
                factors: layer.ffn_value.input_factors,
                out: w.inputs_hidden,
                split: self.split(self.shape.n_rows),
                n: o.n_hidden,
                x_stride: w.h_stride,
                single: u32::from(self.shape.single),
                last: w.last,
                last_stride: w.x_stride,
                n_embd: o.n_embd,
                previous: ffn_previous,
                batch: slot.batch,
            })?;
        }
        let inputs = w.inputs_hidden;
        let value = product(
            layer.ffn_value,
            inputs,
            slot.x,
            w.x_stride,
            Finish::AddGated,
        );
        self.products(&[value])
    }

    /// The kernels of rows that are each of their own sequence, where blocks hold a row in registers, and the threads of
    /// their blocks.
    fn single(&self) -> Option<(&'a Single, SingleThreads)> {
        let threads = SingleThreads {
            embd: threads_that_hold(self.options.n_embd)?,
            attention: threads_that_hold(self.options.n_attention)?,
        };
        let single = self.work.kernels.single.as_ref()?;
        self.shape.single.then_some((single, threads))
    }

    /// What the shifts of both halves of a layer share.
    fn shift_of_rows(&self, n_mixes: u32) -> Shift {
        let (w, slot) = (&self.work.workspace, &self.slot);
        Shift {
            x: slot.x,
            out: w.inputs,
            split: self.split(self.shape.n_rows),
            last: w.last,
            n_embd: self.options.n_embd,
            x_stride: w.x_stride,
            n_rows: self.shape.n_rows,
            rows_of_block: self.shift_rows_of_block(),
            single: u32::from(self.shape.single),
            staged: u32::from(self.shift_shared(n_mixes) <= self.shared_max()),
            batch: slot.batch,
            ..Shift::default()
        }
    }

    pub(super) fn shift(
        &self,
        single: Option<(&Kernel, u32)>,
        kernel: &Kernel,
        parameters: &Shift,
    ) -> Result<()> {
        if let Some((single, threads)) = single {
            let grid = [self.shape.n_rows, 1, 1];
            // SAFETY: as in `few_layer`, with room for all rows.
            return unsafe { self.launch(single, grid, threads, 0, parameters) };
        }
        let n_blocks = self.shape.n_rows.div_ceil(parameters.rows_of_block);
        let shared = match parameters.staged {
            0 => 3 * 4 * self.options.n_embd,
            _ => self.shift_shared(if parameters.mix[2] == 0 { 2 } else { 3 }),
        };
        // SAFETY: as in `few_layer`, with room for all rows.
        unsafe { self.launch(kernel, [n_blocks, 1, 1], THREADS, shared, parameters) }
    }

    /// Every block has some rows when there are enough of them for all multiprocessors.
    pub(super) fn shift_rows_of_block(&self) -> u32 {
        let n_rows = self.shape.n_rows;
        n_rows
            .div_ceil(4 * self.device.multiprocessors)
            .clamp(1, SHIFT_ROWS_MAX)
    }

    /// Shared memory of a kernel that norms and shifts rows, with all vectors: three rows, norm, mixes, factors.
    pub(super) fn shift_shared(&self, n_mixes: u32) -> u32 {
        4 * self.options.n_embd * (3 + 2 + 2 * n_mixes)
    }

    pub(super) fn plain(&self, parameters: &Plain) -> Result<()> {
        // The row, and its factors where it has some.
        let vectors = if parameters.factors == 0 { 1 } else { 2 };
        let grid = [self.shape.n_rows, 1, 1];
        let (kernel, shared) = (&self.work.kernels.plain_rows, vectors * 4 * parameters.n);
        // SAFETY: as above.
        unsafe { self.launch(kernel, grid, THREADS, shared, parameters) }
    }

    /// 1 when products of so many rows want low halves, too.
    pub(super) fn split(&self, n_rows: u32) -> u32 {
        match &self.work.kernels.tiles {
            Tiles::Plain(_) => 0,
            Tiles::Tensor(_) => u32::from(n_rows <= SPLIT_ROWS_MAX),
        }
    }

    pub(super) fn no_last(&self) -> Plain {
        Plain {
            batch: self.slot.batch,
            ..Plain::default()
        }
    }

    /// Products of all rows with up to three matrices of as many inputs.
    pub(super) fn products(&self, products: &[Product]) -> Result<()> {
        self.products_into(products, Beside::default())
    }

    pub(super) fn products_into(&self, products: &[Product], beside: Beside) -> Result<()> {
        let n_rows = self.shape.n_rows;
        let stride = products.first().map_or(0, |product| product.matrix.stride);
        let outputs: Vec<u32> = products.iter().map(|p| p.matrix.n_outputs).collect();
        let weight_bytes = if self.int8() { 1 } else { 2 };
        let multiprocessors = self.device.multiprocessors;
        let tiles = &self.work.kernels.tiles;
        let cut = tiles.cut(n_rows, &outputs, stride, weight_bytes, multiprocessors);
        self.launch_products(products, n_rows, beside, cut)
    }

    pub(super) fn launch_products(
        &self,
        products: &[Product],
        n_rows: u32,
        beside: Beside,
        cut: ProductCut<'_>,
    ) -> Result<()> {
        let ProductCut { tile, parts } = cut;
        let w = &self.work.workspace;
        let mut parameters = Products {
            n_rows,
            partials: w.partials,
            counters: w.counters,
            hidden: w.inputs_hidden,
            hidden_factors: beside.hidden_factors,
            split: self.split(n_rows),
            out_logits: beside.out_logits,
            best: beside.best,
            // Kernels of single rows read their states' addresses, which `begin` writes, as soon as they begin.
            early: u32::from(!self.shape.single),
            ..Products::default()
        };
        for (i, product) in products.iter().enumerate() {
            parameters.product[i] = *product;
            parameters.n_tiles[i] = product.matrix.n_outputs.div_ceil(tile.outputs);
        }
        let (across, down) = (n_rows.div_ceil(tile.rows), parameters.n_tiles.iter().sum());
        // SAFETY: inputs have `n_rows` rows, outputs room for as many, to whole tiles of columns; no output
        // is an input or gate of the same launch; `parts` keeps to the room for partial sums.
        unsafe {
            self.launch(
                &tile.kernel,
                [across, down, parts],
                tile.threads,
                tile.shared,
                &parameters,
            )
        }
    }
}
