//! One stage's work on one batch: which kernels, in which order, on which rows.
//!
//! Two ways. Few rows, each of its own sequence: four launches a layer, which do all between the products
//! on the side (decode.cuh). Many rows: products on tiles, and kernels between them (rows.cuh). Both only
//! put work into the stage's stream.

use crate::device::Device;
use crate::driver::{Address, Kernel, Launch};
use crate::error::Result;
use crate::kernels::{Cut, Few, Single, Tiles, HEAD_ROWS_MAX, SPLIT_ROWS_MAX};
use crate::layout::{Layer, SlotPlaces, CHUNK_ROWS, LOGITS_ROWS};
use crate::params::{
    Ahead, Batch, Begin, ChannelIn, ChannelOut, Finish, Head, Inputs, LogitsOut, Matrix, NormOut,
    Plain, Product, Products, Shift, TimeIn, TimeOut, Tokens, WkvRows, THREADS, WARPS,
    WKV_CHANNELS,
};
use crate::stage::Work;
use rwkv_edge_plugin::{StageOptions, INT8};

/// Bytes of the next launch's weights that a launch of decode brings into the second cache.
const AHEAD_BYTES: u64 = 8 << 20;
/// Shared memory that a block may have without asking.
const SHARED_ALWAYS: u32 = 40 << 10;
/// Blocks that look through a row of logits.
const LOGITS_PARTS: u32 = 8;
/// Of a block that norms and shifts rows.
const SHIFT_ROWS_MAX: u32 = 8;
/// Bytes of a line that is fetched.
const LINE_BYTES: u64 = 128;

/// What a pass does, in numbers.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) n_rows: u32,
    /// Every span has one row.
    pub(crate) single: bool,
    pub(crate) n_chunks: u32,
    /// Chunks of spans that have more than one; they come first.
    pub(crate) n_chunks_of_several: u32,
    pub(crate) n_outputs: u32,
}

/// A pass of one stage.
pub(crate) struct Pass<'a> {
    pub(crate) options: &'a StageOptions,
    pub(crate) device: &'a Device,
    pub(crate) work: &'a Work,
    pub(crate) slot: SlotPlaces,
    pub(crate) shape: Shape,
}

/// Blocks of a kernel whose blocks take outputs by groups, for each matrix.
fn blocks<const N: usize>(matrices: &[Matrix; N], outputs_of_warp: u32, at_once: u32) -> [u32; N] {
    let groups = |m: &Matrix| m.n_outputs.div_ceil(WARPS * outputs_of_warp);
    let total: u32 = matrices.iter().map(groups).sum();
    // All blocks run at once, and all have as many groups, or one less.
    let each = total.div_ceil(at_once.max(1)).max(1);
    std::array::from_fn(|i| groups(&matrices[i]).div_ceil(each))
}

/// What products with certain ends need beside their operands.
#[derive(Clone, Copy, Default)]
struct Beside {
    /// Of hidden units, as inputs of the next product.
    hidden_factors: Address,
    /// Of logits: for each row where its state keeps them.
    out_logits: Address,
}

/// Whether the threads of a block hold a row, so many times four numbers each.
fn held(width: u32, fours: u32) -> bool {
    width % 4 == 0 && width <= 4 * THREADS * fours
}

impl<'a> Pass<'a> {
    fn int8(&self) -> bool {
        self.options.quant == INT8
    }

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

    /// What a block may ask for beside the little that kernels always have.
    fn shared_max(&self) -> u32 {
        self.device.shared_max.saturating_sub(1024)
    }

    /// Shared memory of a few-row kernel whose matrix has so many inputs.
    fn few_shared(&self, few: &Few, n_inputs: u32) -> u32 {
        let step = if self.int8() { 512 } else { 256 };
        let slots = n_inputs.next_multiple_of(128).next_multiple_of(step);
        4 * (few.rows * slots + (2 * few.rows + 4) * self.options.n_embd)
    }

    /// The start of `matrices`, which lie behind each other.
    fn ahead(&self, matrices: &[Matrix]) -> Ahead {
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
    fn ahead_to_layer(&self, index: usize) -> Ahead {
        let weights = &self.work.weights;
        let Some(layer) = weights.layers.get(index) else {
            return match self.options.has_head {
                0 => Ahead::default(),
                _ => self.ahead(&[weights.head]),
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

    /// # Safety
    ///
    /// As [`Stream::launch`](crate::driver::Stream::launch).
    unsafe fn launch<P>(
        &self,
        kernel: &Kernel,
        grid: [u32; 3],
        threads: u32,
        shared: u32,
        p: &P,
    ) -> Result<()> {
        if shared > SHARED_ALWAYS {
            kernel.allow_shared(shared)?;
        }
        // Only products have parts, and their parts are a cluster.
        let mode = match (self.device.overlaps, grid[2]) {
            (true, 1) => Launch::Overlapping,
            (true, parts) => Launch::OverlappingClusters(parts),
            (false, _) => Launch::Alone,
        };
        // SAFETY: the caller's promise.
        unsafe {
            self.work
                .stream
                .launch(kernel, grid, threads, shared, mode, p)
        }
    }

    /// Embedding, where this stage has it; `from` is where the batch lies, in host or device memory.
    pub(crate) fn begin(&self, from: Batch, outputs: bool) -> Result<()> {
        if self.options.has_embedding == 0 && !self.shape.single {
            return Ok(());
        }
        let parameters = Begin {
            from,
            batch: self.slot.batch,
            embedding: self.work.weights.embedding,
            norm: self.work.weights.norm_in,
            x: self.slot.x,
            n_embd: self.options.n_embd,
            x_stride: self.work.workspace.x_stride,
            single: u32::from(self.shape.single),
            outputs: u32::from(outputs),
        };
        let (kernel, shared) = (&self.work.kernels.begin, 12 * self.options.n_embd);
        // SAFETY: tokens are less than the vocabulary; a row a block, all inside the slot's memory.
        unsafe {
            self.launch(
                kernel,
                [self.shape.n_rows, 1, 1],
                THREADS,
                shared,
                &parameters,
            )
        }
    }

    /// All layers.
    pub(crate) fn layers(&self) -> Result<()> {
        if let Some(cut) = self.resident() {
            return self.token(&cut, false);
        }
        for (index, layer) in self.work.weights.layers.iter().enumerate() {
            match self.few() {
                Some(few) => self.few_layer(few, index, layer)?,
                None => self.many_layer(index, layer)?,
            }
        }
        Ok(())
    }

    /// Floats in front of this layer's part of a state, of its att_previous, and of its WKV.
    fn state_places(&self, index: usize) -> (u32, u32, u32) {
        let layer = index as u32 * crate::layout::layer_floats(self.options);
        let d = self.options.n_embd;
        (layer, layer + d, layer + 2 * d)
    }

    fn few_layer(&self, few: &Few, index: usize, layer: &Layer) -> Result<()> {
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

    fn blocks<const N: usize>(
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

    fn many_layer(&self, index: usize, layer: &Layer) -> Result<()> {
        self.many_time_mixing(index, layer)?;
        self.many_channel_mixing(index, layer)
    }

    fn many_time_mixing(&self, index: usize, layer: &Layer) -> Result<()> {
        let (o, w, slot) = (self.options, &self.work.workspace, &self.slot);
        let (_, att_previous, wkv) = self.state_places(index);
        let kernels = &self.work.kernels;
        let parameters = Shift {
            x: slot.x,
            norm: layer.att_norm,
            mix: layer.att_mix,
            factors: layer.att_in.map(|matrix| matrix.input_factors),
            out: w.inputs,
            split: self.split(self.shape.n_rows),
            last: w.last,
            n_embd: o.n_embd,
            x_stride: w.x_stride,
            n_rows: self.shape.n_rows,
            rows_of_block: self.shift_rows_of_block(),
            single: u32::from(self.shape.single),
            staged: u32::from(self.shift_shared(3) <= self.shared_max()),
            previous: att_previous,
            hidden_bound: 0,
            hidden_scales: 0,
            batch: slot.batch,
        };
        let single = self.single();
        self.shift(
            single.map(|single| &single.shift_3),
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
            let (kernel, shared) = match single {
                Some(single) => (&single.wkv, 0),
                None => (&kernels.wkv_single, 4 * o.n_attention),
            };
            // SAFETY: as in `few_layer`, with room for all rows.
            unsafe { self.launch(kernel, grid, THREADS, shared, &rows)? };
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

    fn many_channel_mixing(&self, index: usize, layer: &Layer) -> Result<()> {
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
            single.map(|single| &single.shift_2),
            &self.work.kernels.shift_rows_2,
            &Shift {
                x: slot.x,
                norm: layer.ffn_norm,
                mix: [mix_key, mix_receptance, 0],
                factors: [key.input_factors, receptance.input_factors, 0],
                out: w.inputs,
                split: self.split(self.shape.n_rows),
                last: w.last,
                n_embd: o.n_embd,
                x_stride: w.x_stride,
                n_rows: self.shape.n_rows,
                rows_of_block: self.shift_rows_of_block(),
                single: u32::from(self.shape.single),
                staged: u32::from(self.shift_shared(2) <= self.shared_max()),
                previous: ffn_previous,
                hidden_bound,
                hidden_scales,
                batch: slot.batch,
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

    /// The kernels of rows that are each of their own sequence, where a block holds a row in registers.
    fn single(&self) -> Option<&'a Single> {
        let o = self.options;
        let fits =
            self.shape.single && held(o.n_embd, 1) && held(o.n_attention, 1) && held(o.n_hidden, 4);
        self.work.kernels.single.as_ref().filter(|_| fits)
    }

    fn shift(&self, single: Option<&Kernel>, kernel: &Kernel, parameters: &Shift) -> Result<()> {
        if let Some(single) = single {
            let grid = [self.shape.n_rows, 1, 1];
            // SAFETY: as in `few_layer`, with room for all rows.
            return unsafe { self.launch(single, grid, THREADS, 0, parameters) };
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
    fn shift_rows_of_block(&self) -> u32 {
        let n_rows = self.shape.n_rows;
        n_rows
            .div_ceil(4 * self.device.multiprocessors)
            .clamp(1, SHIFT_ROWS_MAX)
    }

    /// Shared memory of a kernel that norms and shifts rows, with all vectors: three rows, norm, mixes, factors.
    fn shift_shared(&self, n_mixes: u32) -> u32 {
        4 * self.options.n_embd * (3 + 2 + 2 * n_mixes)
    }

    fn plain(&self, parameters: &Plain) -> Result<()> {
        // The row, and its factors where it has some.
        let vectors = if parameters.factors == 0 { 1 } else { 2 };
        let grid = [self.shape.n_rows, 1, 1];
        let (kernel, shared) = (&self.work.kernels.plain_rows, vectors * 4 * parameters.n);
        // SAFETY: as above.
        unsafe { self.launch(kernel, grid, THREADS, shared, parameters) }
    }

    /// 1 when products of so many rows want low halves, too.
    fn split(&self, n_rows: u32) -> u32 {
        match &self.work.kernels.tiles {
            Tiles::Plain(_) => 0,
            Tiles::Tensor(_) => u32::from(n_rows <= SPLIT_ROWS_MAX),
        }
    }

    fn no_last(&self) -> Plain {
        Plain {
            batch: self.slot.batch,
            ..Plain::default()
        }
    }

    /// Products of all rows with up to three matrices of as many inputs.
    fn products(&self, products: &[Product]) -> Result<()> {
        self.products_into(products, Beside::default())
    }

    fn products_into(&self, products: &[Product], beside: Beside) -> Result<()> {
        let n_rows = self.shape.n_rows;
        let stride = products.first().map_or(0, |product| product.matrix.stride);
        let outputs: Vec<u32> = products.iter().map(|p| p.matrix.n_outputs).collect();
        let weight_bytes = if self.int8() { 1 } else { 2 };
        let multiprocessors = self.device.multiprocessors;
        let tiles = &self.work.kernels.tiles;
        let cut = tiles.cut(n_rows, &outputs, stride, weight_bytes, multiprocessors);
        self.launch_products(products, n_rows, beside, cut)
    }

    /// How the product of `n_rows` rows with the head is cut.
    fn head_cut(&self, n_rows: u32) -> Cut<'a> {
        let head = &self.work.weights.head;
        let tile = match &self.work.kernels.tiles {
            Tiles::Plain(tile) => tile,
            Tiles::Tensor(tiles) if n_rows <= SPLIT_ROWS_MAX => &tiles.few,
            Tiles::Tensor(tiles) if n_rows <= HEAD_ROWS_MAX => &tiles.head,
            tiles => {
                let (n, m) = (head.n_outputs, self.device.multiprocessors);
                return tiles.cut_of_many(n_rows, &[n], m);
            }
        };
        Cut { tile, parts: 1 }
    }

    fn launch_products(
        &self,
        products: &[Product],
        n_rows: u32,
        beside: Beside,
        cut: Cut<'_>,
    ) -> Result<()> {
        let Cut { tile, parts } = cut;
        let w = &self.work.workspace;
        let mut parameters = Products {
            n_rows,
            partials: w.partials,
            counters: w.counters,
            hidden: w.inputs_hidden,
            hidden_factors: beside.hidden_factors,
            split: self.split(n_rows),
            out_logits: beside.out_logits,
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

    fn logits_in_pieces(
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
            let out_logits = match kept {
                true => slot.batch.out_logits + 8 * u64::from(first),
                false => 0,
            };
            let beside = Beside {
                out_logits,
                ..Beside::default()
            };
            self.launch_products(&[product], n, beside, self.head_cut(n))?;
            let parameters = LogitsOut {
                logits: w.logits,
                kept: u32::from(kept),
                best: slot.best,
                n_vocab: o.n_vocab,
                stride: w.vocab_stride,
                first,
                batch: slot.batch,
            };
            let kernel = &self.work.kernels.logits_out;
            // SAFETY: the workspace holds `n` rows of logits; out_logits are addresses of states' memory.
            unsafe { self.launch(kernel, [LOGITS_PARTS, n, 1], THREADS, 0, &parameters)? };
            piece(first, n)?;
            first += n;
        }
        Ok(())
    }

    fn few_logits(&self, few: &Few) -> Result<()> {
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
            batch: self.slot.batch,
        };
        let kernels = &self.work.kernels;
        let (kernel, shared) = match &kernels.single {
            Some(single) if held(self.options.n_embd, 1) => (&single.norm_out, 0),
            _ => (&kernels.norm_out_rows, 12 * self.options.n_embd),
        };
        // SAFETY: `n` rows at most LOGITS_ROWS, for which `out` and `hidden` have room.
        unsafe { self.launch(kernel, [n, 1, 1], THREADS, shared, &parameters) }
    }

    /// The best tokens go to host memory at `tokens`.
    pub(crate) fn tokens(&self, tokens: Address) -> Result<()> {
        let best = self.slot.best;
        let (grid, parameters) = ([self.shape.n_outputs, 1, 1], Tokens { best, tokens });
        // SAFETY: one number a block, both arrays have room for all rows.
        unsafe { self.launch(&self.work.kernels.tokens_out, grid, 1, 0, &parameters) }
    }
}

/// Chunks of a span of so many rows.
pub(crate) fn n_chunks(n_rows: u32) -> u32 {
    n_rows.div_ceil(CHUNK_ROWS)
}
