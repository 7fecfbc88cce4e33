//! Products of rows with rows, and of rows with a panel: tiles of sums that stay in registers.
//!
//! ```text
//! one row    decode: weights are read strictly in order, which is what prefetchers of memory like
//! tile       O rows of weights x T rows of activations: O + T loads, O * T multiply-adds a step
//! panel      16 columns of weights x T rows of activations: 2 loads, T broadcasts, 2 * T multiply-adds
//! ```
//!
//! At most 12 registers of sums, so that with weights and activations 16 hold all. A tile's activations
//! stay in the first-level cache while all weights of a block pass by from the second.
//!
//! Several rows of weights at once would spare decode loads of activations, and was half as fast: from
//! memory, 2, 4 or 8 rows side by side reach 12 GB/s where one row reaches 27 (Zen 4, two threads).

use std::arch::x86_64::*;

use super::super::{Rows, PANEL_WIDTH};
use super::weight::Weight;

/// Bytes that a prefetch brings.
const CACHE_LINE: usize = 64;
/// How far ahead of itself decode fetches weights into the second-level cache, in bytes. On one core of a Zen 4,
/// int8 weights then come with 21 to 23 GB/s instead of 15 to 19, where plain reading does 21 to 24.6; 512
/// bytes or 2 KiB are worse, 4 to 12 KiB much the same, the first-level cache as target worse.
const DECODE_FETCH: usize = 6 << 10;
/// # Safety
/// The CPU has the features; lengths are as `check_dots` demands.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn dots<W: Weight>(
    weights: &[W],
    x: Rows<'_, W::X>,
    cols: usize,
    out: &mut [W::Sum],
) {
    let pass = Pass {
        weights: weights.as_ptr(),
        cols,
        x: x.values.as_ptr(),
        x_stride: x.stride,
        out: out.as_mut_ptr(),
        n_out: weights.len() / cols,
    };
    if x.n == 1 {
        // SAFETY: there is a row of `x`, and `n_out` rows of weights.
        return unsafe { pass.one_row() };
    }
    // Chains that a dot product does not need hold more rows. 16 rows go as 6, 5, 5.
    let n_tiles = x.n.div_ceil(6 / W::CHAINS);
    for i in 0..n_tiles {
        let (t, end) = (x.n * i / n_tiles, x.n * (i + 1) / n_tiles);
        // SAFETY: these are rows of `x`.
        unsafe {
            match end - t {
                6 => pass.run::<6>(t, i, n_tiles),
                5 => pass.run::<5>(t, i, n_tiles),
                4 => pass.run::<4>(t, i, n_tiles),
                3 => pass.run::<3>(t, i, n_tiles),
                2 => pass.run::<2>(t, i, n_tiles),
                _ => pass.run::<1>(t, i, n_tiles),
            }
        }
    }
}

/// Rows of weights, rows of activations, and where their products go.
struct Pass<W: Weight> {
    /// (n_out, cols)
    weights: *const W,
    cols: usize,
    /// (.., x_stride)
    x: *const W::X,
    x_stride: usize,
    /// (.., n_out)
    out: *mut W::Sum,
    n_out: usize,
}

impl<W: Weight> Pass<W> {
    /// All rows of weights times the only row of activations.
    ///
    /// # Safety
    /// The CPU has the features; the pointers are of the sizes named above.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn one_row(&self) {
        // SAFETY: rows stay below `n_out`.
        unsafe {
            for o in 0..self.n_out {
                *self.out.add(o) = self.dot(self.weights.add(o * self.cols));
            }
        }
    }

    /// # Safety
    /// The CPU has the features; `row` is one of the rows of weights.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn dot(&self, row: *const W) -> W::Sum {
        let (x, n) = (self.x, self.cols);
        let step = W::DOT_REGISTERS * W::STEP;
        let full = n / step * step;
        // SAFETY: columns stay below `cols`; a prefetch may name any address.
        unsafe {
            let mut sums = [W::zero(); 4];
            let mut c = 0;
            while c < full {
                if c * size_of::<W>() % CACHE_LINE == 0 {
                    let ahead = row.add(c).cast::<i8>().wrapping_add(DECODE_FETCH);
                    _mm_prefetch::<_MM_HINT_T1>(ahead);
                }
                for (i, sum) in sums.iter_mut().enumerate().take(W::DOT_REGISTERS) {
                    let at = c + i * W::STEP;
                    *sum = W::multiply_add(W::load(row.add(at)), W::load_x(x.add(at)), *sum);
                }
                c += step;
            }
            let mut register = 0;
            while c < n {
                let left = (n - c).min(W::STEP);
                let (row, x) = (load_part(row.add(c), left), load_part(x.add(c), left));
                let (row, x) = (W::load(row.as_ptr()), W::load_x(x.as_ptr()));
                sums[register] = W::multiply_add(row, x, sums[register]);
                c += left;
                register += 1;
            }
            let sum = W::add(sums[0], sums[1]);
            W::total(match W::DOT_REGISTERS {
                2 => sum,
                _ => W::add(sum, W::add(sums[2], sums[3])),
            })
        }
    }

    /// All rows of weights times rows of activations `t .. t + T`, which are tile `index` of `n_tiles`.
    ///
    /// The weights that lie behind these are the next to be wanted, most of the time. Each tile fetches its
    /// share of them, a little with every pair of rows: all at once would hold up everything else.
    ///
    /// # Safety
    /// The CPU has the features; these rows exist.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn run<const T: usize>(&self, t: usize, index: usize, n_tiles: usize) {
        let row_bytes = self.cols * size_of::<W>();
        let behind = self.weights.cast::<i8>();
        let behind = behind.wrapping_add(self.n_out * row_bytes * (n_tiles + index) / n_tiles);
        let mut o = 0;
        // SAFETY: every tile's rows are below `n_out`; a prefetch may name any address; the rest is the
        // caller's promise.
        unsafe {
            while o + 2 <= self.n_out {
                let fetch = o * row_bytes / n_tiles..(o + 2) * row_bytes / n_tiles;
                for at in fetch.step_by(CACHE_LINE) {
                    _mm_prefetch::<_MM_HINT_T1>(behind.wrapping_add(at));
                }
                self.tile::<2, T>(o, t);
                o += 2;
            }
            if o < self.n_out {
                self.tile::<1, T>(o, t);
            }
        }
    }

    /// # Safety
    /// As [`run`](Self::run); rows of weights `o .. o + O` exist.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    #[allow(clippy::needless_range_loop)] // rows and columns of a tile, by their numbers
    unsafe fn tile<const O: usize, const T: usize>(&self, o: usize, t: usize) {
        let step = W::CHAINS * W::STEP;
        let full = self.cols / step * step;
        // SAFETY: columns stay below `cols` and rows below `o + O` and `t + T`.
        unsafe {
            let weights = self.weights.add(o * self.cols);
            let x = self.x.add(t * self.x_stride);
            let mut sums = [[[W::zero(); 2]; T]; O];
            let mut c = 0;
            while c < full {
                for chain in 0..W::CHAINS {
                    let at = c + chain * W::STEP;
                    let mut rows = [W::zero(); O];
                    for (i, row) in rows.iter_mut().enumerate() {
                        *row = W::load(weights.add(i * self.cols + at));
                    }
                    for t in 0..T {
                        let x = W::load_x(x.add(t * self.x_stride + at));
                        for i in 0..O {
                            sums[i][t][chain] = W::multiply_add(rows[i], x, sums[i][t][chain]);
                        }
                    }
                }
                c += step;
            }
            let mut chain = 0;
            while c < self.cols {
                let left = (self.cols - c).min(W::STEP);
                for t in 0..T {
                    let x = load_part(x.add(t * self.x_stride + c), left);
                    let x = W::load_x(x.as_ptr());
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let row = load_part(weights.add(i * self.cols + c), left);
                        let row = W::load(row.as_ptr());
                        sums[t][chain] = W::multiply_add(row, x, sums[t][chain]);
                    }
                }
                c += left;
                chain = (chain + 1) % W::CHAINS;
            }
            for t_in_tile in 0..T {
                for i in 0..O {
                    let mut sum = sums[i][t_in_tile][0];
                    if W::CHAINS == 2 {
                        sum = W::add(sum, sums[i][t_in_tile][1]);
                    }
                    let out = self.out.add((t + t_in_tile) * self.n_out + o + i);
                    *out = W::total(sum);
                }
            }
        }
    }
}

/// The last columns of a row, padded with zeros to a register.
///
/// # Safety
/// `n <= 16` numbers are readable at `p`.
#[inline(always)]
unsafe fn load_part<T: Copy + Default>(p: *const T, n: usize) -> [T; 16] {
    let mut numbers = [T::default(); 16];
    // SAFETY: the caller's promise; they are numbers of another place than a new array.
    unsafe { std::ptr::copy_nonoverlapping(p, numbers.as_mut_ptr(), n) };
    numbers
}

/// # Safety
/// The CPU has the features; lengths are as `KernelSet` demands.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply_panel<W: Weight>(
    panel: &[W::Wide],
    x: Rows<'_, W::X>,
    out: &mut [W::Sum],
) {
    let steps = panel.len() / (PANEL_WIDTH * W::PAIR);
    let mut t = 0;
    while t < x.n {
        let n = (x.n - t).min(6);
        let rows = x.values[t * x.stride..].as_ptr();
        let out = out[t * PANEL_WIDTH..].as_mut_ptr();
        // SAFETY: there are `n` rows of `x` from row `t` on, and as many of `out`; each row of `x` has
        // `steps * PAIR` numbers.
        unsafe {
            let panel = panel.as_ptr();
            match n {
                6 => panel_tile::<W, 6>(panel, steps, rows, x.stride, out),
                5 => panel_tile::<W, 5>(panel, steps, rows, x.stride, out),
                4 => panel_tile::<W, 4>(panel, steps, rows, x.stride, out),
                3 => panel_tile::<W, 3>(panel, steps, rows, x.stride, out),
                2 => panel_tile::<W, 2>(panel, steps, rows, x.stride, out),
                _ => panel_tile::<W, 1>(panel, steps, rows, x.stride, out),
            }
        }
        t += n;
    }
}

/// # Safety
/// The CPU has the features; `panel` is (steps, 16, PAIR), `T` rows of `x` have `steps * PAIR` numbers,
/// `out` is (T, 16).
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn panel_tile<W: Weight, const T: usize>(
    panel: *const W::Wide,
    steps: usize,
    x: *const W::X,
    x_stride: usize,
    out: *mut W::Sum,
) {
    // A register of a panel is 32 bytes: half a row of it.
    let half = PANEL_WIDTH * W::PAIR / 2;
    // SAFETY: reads end with the last step of the panel and of each row of `x`.
    unsafe {
        let mut sums = [[W::zero(); 2]; T];
        for step in 0..steps {
            let low = W::load_wide(panel.add(2 * step * half));
            let high = W::load_wide(panel.add((2 * step + 1) * half));
            for (t, sums) in sums.iter_mut().enumerate() {
                let x = W::broadcast(x.add(t * x_stride + step * W::PAIR));
                sums[0] = W::multiply_add(low, x, sums[0]);
                sums[1] = W::multiply_add(high, x, sums[1]);
            }
        }
        for (t, sums) in sums.iter().enumerate() {
            W::add_to(out.add(t * PANEL_WIDTH), sums[0]);
            W::add_to(out.add(t * PANEL_WIDTH + PANEL_WIDTH / 2), sums[1]);
        }
    }
}
