//! Products of rows with rows, and of rows with a panel: tiles of sums that stay in registers.
//!
//! ```text
//! one row    decode: weights are read strictly in order, which is what prefetchers of memory like
//! tile       O rows of weights x T rows of activations: O + T loads, O * T multiply-adds a step
//! panel      16 columns of weights x T rows of activations: 2 loads, T broadcasts, 2 * T multiply-adds
//! ```
//!
//! At most 12 registers of sums, so that with weights and activations 16 hold all. In tiles, a group of
//! rows of weights that fits into the first-level cache meets all activations before the next.
//!
//! Several rows of weights at once would spare decode loads of activations, and was half as fast: from
//! memory, 2, 4 or 8 rows side by side reach 12 GB/s where one row reaches 27 (Zen 4, two threads).

use std::arch::x86_64::*;

use super::super::{Rows, PANEL_WIDTH};
use super::weight::Weight;

/// Weights that stay in the first-level cache, of 32 KiB or more, beside a few rows of activations.
const GROUP_BYTES: usize = 12 << 10;

/// # Safety
/// The CPU has the features; lengths are as `check_dots` demands.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn dots<W: Weight>(
    weights: &[W],
    x: Rows<'_, W::X>,
    cols: usize,
    out: &mut [W::Sum],
) {
    let n_out = weights.len() / cols;
    let pass = Pass {
        weights: weights.as_ptr(),
        cols,
        x: x.values.as_ptr(),
        x_stride: x.stride,
        out: out.as_mut_ptr(),
        n_out,
    };
    if x.n == 1 {
        // SAFETY: there is a row of `x`, and `n_out` rows of weights.
        return unsafe { pass.one_row() };
    }
    let group = (GROUP_BYTES / (cols * size_of::<W>())).clamp(2, n_out.max(2));
    // Chains that a dot product does not need hold more rows.
    let tile = if W::CHAINS == 1 { 6 } else { 3 };
    let mut o = 0;
    while o < n_out {
        let end = (o + group).min(n_out);
        let mut t = 0;
        while t < x.n {
            let n = (x.n - t).min(tile);
            // SAFETY: these are rows of `x` and of weights.
            unsafe {
                match n {
                    6 => pass.run::<2, 6>(o, end, t),
                    5 => pass.run::<2, 5>(o, end, t),
                    4 => pass.run::<2, 4>(o, end, t),
                    3 => pass.run::<2, 3>(o, end, t),
                    2 => pass.run::<2, 2>(o, end, t),
                    _ => pass.run::<2, 1>(o, end, t),
                }
            }
            t += n;
        }
        o = end;
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
        let double = self.cols / (2 * W::STEP) * (2 * W::STEP);
        // SAFETY: columns stay below `cols`, rows below `n_out`; a prefetch may name any address.
        unsafe {
            for o in 0..self.n_out {
                let row = self.weights.add(o * self.cols);
                let mut sums = [W::zero(); 2];
                let mut c = 0;
                while c < double {
                    if W::PREFETCH > 0 {
                        let ahead = row.add(c).cast::<i8>().wrapping_add(W::PREFETCH);
                        _mm_prefetch::<_MM_HINT_T0>(ahead);
                    }
                    for (i, sum) in sums.iter_mut().enumerate() {
                        let at = c + i * W::STEP;
                        *sum = W::multiply_add(W::load(row.add(at)), W::load_x(self.x.add(at)), *sum);
                    }
                    c += 2 * W::STEP;
                }
                let mut sums = [[sums; 1]; 1];
                self.add_tail(row, 0, c, &mut sums);
                *self.out.add(o) = W::total(W::add(sums[0][0][0], sums[0][0][1]));
            }
        }
    }

    /// Rows of weights `o .. end` times rows of activations `t .. t + T`.
    ///
    /// # Safety
    /// The CPU has the features; these rows exist.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn run<const O: usize, const T: usize>(&self, mut o: usize, end: usize, t: usize) {
        // SAFETY: every tile's rows are below `end`; the rest is the caller's promise.
        unsafe {
            while o + O <= end {
                self.tile::<O, T>(o, t);
                o += O;
            }
            while o < end {
                self.tile::<1, T>(o, t);
                o += 1;
            }
        }
    }

    /// # Safety
    /// As [`run`](Self::run); rows of weights `o .. o + O` exist.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
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
            self.add_tail(weights, t, full, &mut sums);
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

    /// The last columns, from `c` on, which do not fill all registers of a step: register by register, the
    /// last one padded with zeros.
    ///
    /// # Safety
    /// As [`tile`](Self::tile); `weights` points at the first of `O` rows, and `c <= cols`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn add_tail<const O: usize, const T: usize>(
        &self,
        weights: *const W,
        t: usize,
        mut c: usize,
        sums: &mut [[[W::Register; 2]; T]; O],
    ) {
        let mut chain = 0;
        while c < self.cols {
            let n = (self.cols - c).min(W::STEP);
            // SAFETY: `n` columns follow in every row, and the buffers hold `STEP <= 16` numbers.
            unsafe {
                for t_in_tile in 0..T {
                    let mut x = [W::X::default(); 16];
                    let from = self.x.add((t + t_in_tile) * self.x_stride + c);
                    std::ptr::copy_nonoverlapping(from, x.as_mut_ptr(), n);
                    let x = W::load_x(x.as_ptr());
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let mut row = [W::default(); 16];
                        let from = weights.add(i * self.cols + c);
                        std::ptr::copy_nonoverlapping(from, row.as_mut_ptr(), n);
                        let sum = &mut sums[t_in_tile][chain];
                        *sum = W::multiply_add(W::load(row.as_ptr()), x, *sum);
                    }
                }
            }
            c += n;
            chain = (chain + 1) % W::CHAINS;
        }
    }
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
