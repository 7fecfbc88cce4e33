//! One stage's work on one batch: which kernels, in which order, on which rows.
//!
//! One row is one launch where it can be (resident.rs); else there are two ways, for few rows and for many. All of them only
//! put work into the stage's stream.

mod few;
mod head;
mod many;

use crate::device::Device;
use crate::driver::{Kernel, Launch};
use crate::error::Result;
use crate::kernels::SHARED_BESIDE;
use crate::layout::{SlotPlaces, CHUNK_ROWS};
use crate::options::{Quant, StageOptions};
use crate::params::{Batch, Begin, THREADS};
use crate::stage::Work;

/// Shared memory that a block may have without asking.
const SHARED_ALWAYS: u32 = 40 << 10;

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

impl<'a> Pass<'a> {
    fn int8(&self) -> bool {
        self.options.quant == Quant::Int8
    }

    /// What a block may ask for beside the little that kernels always have.
    fn shared_max(&self) -> u32 {
        self.device.shared_max.saturating_sub(SHARED_BESIDE)
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
        if !self.options.has_embedding && !self.shape.single {
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

    /// Whether the launch behind the last layer is behind products of tiles, as single.cuh wants it.
    fn layers_end_with_products(&self) -> bool {
        let is_of_many = self.resident().is_none() && self.few().is_none();
        is_of_many && !self.work.weights.layers.is_empty()
    }

    /// Floats in front of this layer's part of a state, of its att_previous, and of its WKV.
    fn state_places(&self, index: usize) -> (u32, u32, u32) {
        let layer = index as u32 * crate::layout::layer_floats(self.options);
        let d = self.options.n_embd;
        (layer, layer + d, layer + 2 * d)
    }
}

/// Chunks of a span of so many rows.
pub(crate) fn n_chunks(n_rows: u32) -> u32 {
    n_rows.div_ceil(CHUNK_ROWS)
}
