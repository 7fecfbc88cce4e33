//! The kernels for one quantisation, as a device has them.

use crate::device::Device;
use crate::driver::Kernel;
use crate::error::Result;
use crate::layout::{padded, PARTIALS_BYTES, PARTIAL_TILES};

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
    /// Can find the largest output of each row.
    pub(crate) finds_best: bool,
    /// Nanoseconds that a stage takes at least, of tiles for few rows.
    pub(crate) stage_time: u32,
    /// Of those for more, against the others.
    pub(crate) speed: u32,
}

/// How products of many rows are cut.
pub(crate) enum Tiles {
    /// Without tensor cores.
    Plain(Tile),
    Tensor(Box<TensorTiles>),
}

pub(crate) struct TensorTiles {
    /// Up to 16 rows; activations are of two halves.
    pub(crate) few: Tile,
    /// Some rows, in the order of how many; activations are one half, as for more rows.
    pub(crate) some: [Tile; 3],
    /// For the head of up to 64 rows: the wide one, on devices that have the shared memory for it, reads the rows less often.
    pub(crate) head: Vec<Tile>,
    /// More rows, with the last tile of `some`; the larger tiles do more with what they read, where there are enough of
    /// them.
    pub(crate) many: [Tile; 2],
    /// Blocks that share a tile's inputs read each other's shared memory.
    pub(crate) clusters: bool,
}

pub(crate) struct Kernels {
    pub(crate) begin: Kernel,
    /// A whole token in one launch, where the device can.
    pub(crate) token: Option<Kernel>,
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
    /// With tensor cores.
    pub(crate) single: Option<Single>,
    pub(crate) repack: Kernel,
}

/// What is between the products of rows that are each of their own sequence, and not too wide.
pub(crate) struct Single {
    pub(crate) shift_3: Kernel,
    pub(crate) shift_2: Kernel,
    pub(crate) wkv: Kernel,
    /// Of any rows.
    pub(crate) norm_out: Kernel,
    /// For a layer, when its weights are there.
    pub(crate) hidden_bound: Kernel,
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
    stage_time: u32,
    speed: u32,
}

#[rustfmt::skip]
const SHAPES: [Shape; 7] = [
    Shape { name: "products_few", rows: 16, outputs: 32, inputs: 256, warp: (16, 32), parts: 8, stages: 3, split: true, stage_time: 1500, speed: 1 },
    Shape { name: "products_16", rows: 16, outputs: 32, inputs: 256, warp: (16, 32), parts: 8, stages: 3, split: false, stage_time: 1100, speed: 1 },
    Shape { name: "products_32", rows: 32, outputs: 32, inputs: 128, warp: (32, 32), parts: 8, stages: 4, split: false, stage_time: 600, speed: 1 },
    Shape { name: "products_64", rows: 64, outputs: 64, inputs: 64, warp: (32, 32), parts: 2, stages: 4, split: false, stage_time: 500, speed: 13 },
    Shape { name: "products_head", rows: 64, outputs: 128, inputs: 64, warp: (32, 32), parts: 1, stages: 4, split: false, stage_time: 1, speed: 10 },
    Shape { name: "products_square", rows: 128, outputs: 128, inputs: 32, warp: (64, 32), parts: 1, stages: 4, split: false, stage_time: 1, speed: 14 },
    Shape { name: "products_wide", rows: 128, outputs: 256, inputs: 32, warp: (64, 64), parts: 1, stages: 4, split: false, stage_time: 1, speed: 17 },
];

/// 224 KiB of shared memory in f16, 128 in int8: what only devices for servers have.
#[rustfmt::skip]
const VOCABULARY: Shape = Shape { name: "products_vocabulary", rows: 64, outputs: 384, inputs: 64, warp: (32, 48), parts: 1, stages: 4, split: false, stage_time: 1, speed: 10 };
/// Bytes of shared memory that kernels have beside what they are launched with, and more.
pub(crate) const SHARED_BESIDE: u32 = 1024;

impl Shape {
    /// Bytes of shared memory of a block.
    fn shared(&self, int8: bool) -> u32 {
        let halves = if self.split { 2 } else { 1 };
        let weight_bytes = if int8 { 1 } else { 2 };
        let stage =
            self.rows * self.inputs * 2 * halves + self.outputs * self.inputs * weight_bytes;
        // The parts' sums are added up in the same memory.
        let sums = match self.parts {
            1 => 0,
            parts => parts * self.rows * self.outputs * 4,
        };
        (stage * self.stages).max(sums)
    }

    fn tile(&self, device: &Device, int8: bool) -> Result<Tile> {
        let warps = (self.rows / self.warp.0) * (self.outputs / self.warp.1);
        let mut tile = Tile {
            kernel: device.kernel(self.name, int8)?,
            rows: self.rows,
            outputs: self.outputs,
            inputs: self.inputs,
            threads: warps * self.parts * 32,
            shared: self.shared(int8),
            at_once: 1,
            finds_best: self.parts == 1,
            stage_time: self.stage_time,
            speed: self.speed,
        };
        tile.kernel.allow_shared(tile.shared)?;
        tile.at_once = tile
            .kernel
            .blocks_at_once(tile.threads, tile.shared)?
            .max(1);
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
            let [few, a, b, c, head, square, wide] = SHAPES.map(|shape| shape.tile(device, int8));
            let mut head = vec![head?];
            if VOCABULARY.shared(int8) + SHARED_BESIDE <= device.shared_max {
                head.push(VOCABULARY.tile(device, int8)?);
            }
            Tiles::Tensor(Box::new(TensorTiles {
                few: few?,
                some: [a?, b?, c?],
                head,
                many: [square?, wide?],
                clusters: device.overlaps,
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
                finds_best: false,
                stage_time: 1,
                speed: 1,
            })
        };
        Ok(Kernels {
            begin: kernel("begin_rows")?,
            token: device.together.then(|| kernel("token")).transpose()?,
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
            single: match device.tensor_cores {
                true => Some(Single {
                    shift_3: kernel("shift_single_3")?,
                    shift_2: kernel("shift_single_2")?,
                    wkv: kernel("wkv_single_fours")?,
                    hidden_bound: kernel("hidden_bound_of")?,
                    norm_out: kernel("norm_out_fours")?,
                }),
                false => None,
            },
            repack: kernel("repack")?,
        })
    }
}

/// Rows up to which activations are of two halves: few enough that the second one costs little.
pub(crate) const SPLIT_ROWS_MAX: u32 = 16;
/// Rows up to which products are cut by what they read, and not by what they compute.
const SOME_ROWS_MAX: u32 = 1024;
/// Rows up to which the head has a tile of its own.
const HEAD_ROWS_MAX: u32 = 64;

/// How one launch of products is cut.
pub(crate) struct ProductCut<'a> {
    pub(crate) tile: &'a Tile,
    /// Blocks that share one tile's inputs.
    pub(crate) parts: u32,
}

/// Bytes that one multiprocessor, and all of them, read from the second cache in a nanosecond, measured on an
/// H100; only their ratio to what a stage takes matters.
const BYTES_A_NANOSECOND: u64 = 60;
const BYTES_A_NANOSECOND_ALL: u64 = 3300;
/// Nanoseconds that the parts of one tile take to be added up, for the first and for each; through the second cache, and
/// in a cluster.
const PARTS_NANOSECONDS: (u64, u64) = (1500, 300);
const CLUSTER_NANOSECONDS: (u64, u64) = (700, 60);

impl<'a> ProductCut<'a> {
    /// The tiles of which whole waves on all multiprocessors take least.
    fn of_whole_waves(
        tiles: impl Iterator<Item = &'a Tile>,
        n_rows: u32,
        outputs: &[u32],
        multiprocessors: u32,
    ) -> Option<Self> {
        let cost = |tile: &&Tile| {
            let n_tiles = tile.count(n_rows, outputs);
            let n_waves = n_tiles.div_ceil(tile.at_once * multiprocessors);
            n_waves * tile.at_once * tile.rows * tile.outputs / tile.speed
        };
        let tile = tiles.min_by_key(cost)?;
        Some(ProductCut { tile, parts: 1 })
    }
}

impl Tile {
    /// How many there are of so many rows and outputs.
    fn count(&self, n_rows: u32, outputs: &[u32]) -> u32 {
        let down: u32 = outputs.iter().map(|n| n.div_ceil(self.outputs)).sum();
        n_rows.div_ceil(self.rows) * down
    }
}

impl Tiles {
    /// The cut for the head of `n_vocab` outputs.
    pub(crate) fn cut_of_head(
        &self,
        n_rows: u32,
        n_vocab: u32,
        multiprocessors: u32,
    ) -> ProductCut<'_> {
        match self {
            Tiles::Plain(tile) => ProductCut { tile, parts: 1 },
            Tiles::Tensor(tiles) if n_rows <= SPLIT_ROWS_MAX => ProductCut {
                tile: &tiles.few,
                parts: 1,
            },
            Tiles::Tensor(tiles) if n_rows <= HEAD_ROWS_MAX => {
                // Weights behind the last output are read, too.
                let has_room =
                    |tile: &&Tile| n_vocab.div_ceil(tile.outputs) * tile.outputs <= padded(n_vocab);
                let tiles = tiles.head.iter().filter(has_room);
                ProductCut::of_whole_waves(tiles, n_rows, &[n_vocab], multiprocessors)
                    .unwrap_or_else(|| self.cut_of_many(n_rows, &[n_vocab], multiprocessors))
            }
            Tiles::Tensor(_) => self.cut_of_many(n_rows, &[n_vocab], multiprocessors),
        }
    }

    /// The cut by arithmetic.
    fn cut_of_many(&self, n_rows: u32, outputs: &[u32], multiprocessors: u32) -> ProductCut<'_> {
        let tiles = match self {
            Tiles::Plain(tile) => return ProductCut { tile, parts: 1 },
            Tiles::Tensor(tiles) => tiles,
        };
        let [_, _, small] = &tiles.some;
        let candidates = std::iter::once(small).chain(&tiles.many);
        let cut = ProductCut::of_whole_waves(candidates, n_rows, outputs, multiprocessors);
        cut.unwrap_or(ProductCut {
            tile: &tiles.many[0],
            parts: 1,
        })
    }

    /// The cut that takes least, for products of `n_rows` rows with matrices of so many outputs and `stride`
    /// inputs.
    pub(crate) fn cut(
        &self,
        n_rows: u32,
        outputs: &[u32],
        stride: u32,
        weight_bytes: u32,
        multiprocessors: u32,
    ) -> ProductCut<'_> {
        let tiles = match self {
            Tiles::Plain(tile) => return ProductCut { tile, parts: 1 },
            Tiles::Tensor(tiles) => tiles,
        };
        if n_rows > SOME_ROWS_MAX {
            return self.cut_of_many(n_rows, outputs, multiprocessors);
        }
        let n_tiles = |tile: &Tile| tile.count(n_rows, outputs);
        // Bytes: what every multiprocessor, and all together, read from the second cache.
        let of_rows = match n_rows {
            ..=SPLIT_ROWS_MAX => std::slice::from_ref(&tiles.few),
            _ => &tiles.some,
        };
        let halves = if n_rows <= SPLIT_ROWS_MAX { 2 } else { 1 };
        let candidates = of_rows
            .iter()
            .flat_map(|tile| [1, 2, 4, 8].map(|parts| ProductCut { tile, parts }));
        let fits = |cut: &ProductCut<'_>| {
            let tile_bytes = u64::from(4 * cut.tile.rows * cut.tile.outputs);
            let n = u64::from(n_tiles(cut.tile));
            cut.parts == 1
                || (cut.parts * 2 <= stride / cut.tile.inputs
                    && n <= u64::from(PARTIAL_TILES)
                    && n * u64::from(cut.parts) * tile_bytes <= PARTIALS_BYTES)
        };
        let (first, each) = match tiles.clusters {
            true => CLUSTER_NANOSECONDS,
            false => PARTS_NANOSECONDS,
        };
        let cost = |cut: &ProductCut<'_>| {
            let (tile, parts) = (cut.tile, u64::from(cut.parts));
            let n_blocks = u64::from(n_tiles(tile)) * parts;
            let stage_bytes =
                u64::from((tile.rows * 2 * halves + tile.outputs * weight_bytes) * tile.inputs);
            let n_stages = u64::from((stride / tile.inputs).div_ceil(cut.parts));
            let (of_one, at_once) = (u64::from(multiprocessors), u64::from(tile.at_once));
            let beside = n_blocks.div_ceil(of_one).min(at_once);
            let stage = u64::from(tile.stage_time).max(beside * stage_bytes / BYTES_A_NANOSECOND);
            let one = n_blocks.div_ceil(of_one * at_once) * n_stages * stage;
            let all = n_blocks * n_stages * stage_bytes / BYTES_A_NANOSECOND_ALL;
            let adding = match parts {
                1 => 0,
                _ => first + parts * each,
            };
            one.max(all) + adding
        };
        let cut = candidates.filter(fits).min_by_key(cost);
        cut.unwrap_or(ProductCut {
            tile: &of_rows[of_rows.len() - 1],
            parts: 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 99 KiB is what a block has on the smallest devices with tensor cores, 8.6, 8.9 and 12.0.
    #[test]
    fn tiles_fit_small_devices() {
        for shape in &SHAPES {
            let bytes = shape.shared(false).max(shape.shared(true));
            assert!(bytes + SHARED_BESIDE <= 99 << 10, "{}: {bytes}", shape.name);
        }
    }
}
