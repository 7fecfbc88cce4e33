//! The kernels for one quantisation, as a device has them.

use crate::device::Device;
use crate::driver::Kernel;
use crate::error::Result;

/// The kernels of decode, for up to so many rows.
pub(crate) struct Few {
    pub(crate) rows: u32,
    pub(crate) time_in: Kernel,
    pub(crate) time_out: Kernel,
    pub(crate) channel_in: Kernel,
    pub(crate) channel_out: Kernel,
    pub(crate) head: Kernel,
}

/// A kernel for products of many rows, and its tiles.
pub(crate) struct Tile {
    pub(crate) kernel: Kernel,
    pub(crate) rows: u32,
    pub(crate) outputs: u32,
    /// Inputs of a stage.
    pub(crate) inputs: u32,
    pub(crate) threads: u32,
    pub(crate) shared: u32,
    /// Blocks that a multiprocessor runs at once.
    pub(crate) at_once: u32,
}

/// How products of many rows are cut.
pub(crate) enum Tiles {
    /// Without tensor cores.
    Plain(Tile),
    Tensor(Box<TensorTiles>),
}

pub(crate) struct TensorTiles {
    /// Few rows, in the order of how many; activations are of two halves.
    pub(crate) split: [Tile; 3],
    /// More rows; the larger tiles do more with what they read, where there are enough of them.
    pub(crate) many: [Tile; 3],
}

pub(crate) struct Kernels {
    pub(crate) begin: Kernel,
    pub(crate) few: Vec<Few>,
    /// Of the time mixing's three inputs, and of the channel mixing's two.
    pub(crate) shift_rows_3: Kernel,
    pub(crate) shift_rows_2: Kernel,
    pub(crate) plain_rows: Kernel,
    pub(crate) wkv_single: Kernel,
    pub(crate) wkv_sums: Kernel,
    pub(crate) wkv_apply: Kernel,
    pub(crate) norm_out_rows: Kernel,
    pub(crate) logits_out: Kernel,
    pub(crate) tokens_out: Kernel,
    pub(crate) tiles: Tiles,
    pub(crate) repack: Kernel,
}

/// Of products.cuh: rows, outputs and inputs of a stage, rows and outputs of a warp, parts, stages, split.
struct Shape {
    name: &'static str,
    rows: u32,
    outputs: u32,
    inputs: u32,
    warp: (u32, u32),
    parts: u32,
    stages: u32,
    split: bool,
}

#[rustfmt::skip]
const SHAPES: [Shape; 6] = [
    Shape { name: "products_16", rows: 16, outputs: 64, inputs: 128, warp: (16, 32), parts: 4, stages: 3, split: true },
    Shape { name: "products_32", rows: 32, outputs: 128, inputs: 64, warp: (32, 32), parts: 2, stages: 3, split: true },
    Shape { name: "products_64", rows: 64, outputs: 128, inputs: 64, warp: (32, 32), parts: 1, stages: 3, split: true },
    Shape { name: "products_middle", rows: 64, outputs: 64, inputs: 64, warp: (32, 32), parts: 1, stages: 4, split: false },
    Shape { name: "products_square", rows: 128, outputs: 128, inputs: 32, warp: (64, 32), parts: 1, stages: 4, split: false },
    Shape { name: "products_wide", rows: 128, outputs: 256, inputs: 32, warp: (64, 64), parts: 1, stages: 4, split: false },
];

impl Shape {
    fn tile(&self, device: &Device, int8: bool) -> Result<Tile> {
        let halves = if self.split { 2 } else { 1 };
        let weight_bytes = if int8 { 1 } else { 2 };
        let stage =
            self.rows * self.inputs * 2 * halves + self.outputs * self.inputs * weight_bytes;
        let warps = (self.rows / self.warp.0) * (self.outputs / self.warp.1);
        // The parts' sums are added up in the same memory.
        let sums = match self.parts {
            1 => 0,
            parts => parts * self.rows * self.outputs * 4,
        };
        let mut tile = Tile {
            kernel: device.kernel(self.name, int8)?,
            rows: self.rows,
            outputs: self.outputs,
            inputs: self.inputs,
            threads: warps * self.parts * 32,
            shared: (stage * self.stages).max(sums),
            at_once: 1,
        };
        tile.kernel.allow_shared(tile.shared)?;
        tile.at_once = tile.kernel.blocks_at_once(tile.threads, tile.shared)?;
        Ok(tile)
    }
}

impl Kernels {
    pub(crate) fn new(device: &Device, int8: bool) -> Result<Self> {
        let kernel = |name: &str| device.kernel(name, int8);
        let of_rows = |rows: u32| {
            let kernel = |name: &str| kernel(&format!("{name}_{rows}"));
            Ok(Few {
                rows,
                time_in: kernel("time_in")?,
                time_out: kernel("time_out")?,
                channel_in: kernel("channel_in")?,
                channel_out: kernel("channel_out")?,
                head: kernel("head")?,
            })
        };
        let tiles = if device.tensor_cores {
            let [a, b, c, middle, square, wide] = SHAPES.map(|shape| shape.tile(device, int8));
            Tiles::Tensor(Box::new(TensorTiles {
                split: [a?, b?, c?],
                many: [middle?, square?, wide?],
            }))
        } else {
            Tiles::Plain(Tile {
                kernel: kernel("products_plain")?,
                rows: 64,
                outputs: 64,
                inputs: 16,
                threads: 256,
                shared: 0,
                at_once: 1,
            })
        };
        Ok(Kernels {
            begin: kernel("begin_rows")?,
            few: [1, 2, 4].into_iter().map(of_rows).collect::<Result<_>>()?,
            shift_rows_3: kernel("shift_rows_3")?,
            shift_rows_2: kernel("shift_rows_2")?,
            plain_rows: kernel("plain_rows")?,
            wkv_single: kernel("wkv_single")?,
            wkv_sums: kernel("wkv_sums")?,
            wkv_apply: kernel("wkv_apply")?,
            norm_out_rows: kernel("norm_out_rows")?,
            logits_out: kernel("logits_out")?,
            tokens_out: kernel("tokens_out")?,
            tiles,
            repack: kernel("repack")?,
        })
    }
}
