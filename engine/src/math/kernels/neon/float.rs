//! Products with f32 and f16 weights.
//!
//! ```text
//! one row    decode: weights are read strictly in order
//! tile       2 rows of weights x up to 3 rows of activations, 4 registers of sums each
//! gather     8 rows of weights, each times a number of its own, onto 16 columns of sums
//! panel      16 columns of weights x up to 6 rows of activations
//! ```
//!
//! The sixteen partial sums of a dot product, whose order `scalar.rs` fixes, are two chains of two registers.
//! No tile needs more than the 32 registers there are.

use std::arch::aarch64::*;
use std::arch::asm;

use half::f16;

use super::super::{elementwise, Rows, PANEL_WIDTH};
use super::{load_part, tiles};

/// Columns of one chain.
const STEP: usize = 8;
/// Rows of one pass of a gather.
const GROUP: usize = 8;

/// Eight f32, and the sums of one chain.
type Eight = [float32x4_t; 2];

/// A float weight.
pub(super) trait Float: Copy + Default {
    /// # Safety
    /// Eight values are readable at `p`.
    unsafe fn load8(p: *const Self) -> Eight;
    fn widen(self) -> f32;
}

impl Float for f32 {
    #[inline(always)]
    unsafe fn load8(p: *const f32) -> Eight {
        // SAFETY: the caller's promise.
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4))] }
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Float for f16 {
    #[inline(always)]
    unsafe fn load8(p: *const f16) -> Eight {
        let (low, high): (float32x4_t, float32x4_t);
        // SAFETY: the caller's promise; f16 is 16 bits. The instructions touch nothing but registers; their
        // intrinsics came with Rust 1.94. Not `preserves_flags`: a signalling NaN leaves a mark.
        unsafe {
            let halves = vld1q_u16(p.cast());
            asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) low, in(vreg) halves,
                options(pure, nomem, nostack));
            asm!("fcvtl2 {0:v}.4s, {1:v}.8h", out(vreg) high, in(vreg) halves,
                options(pure, nomem, nostack));
        }
        [low, high]
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        elementwise::f16_to_f32(self)
    }
}

/// # Safety
/// None on this architecture; unsafe on Rust 1.85.
#[inline(always)]
unsafe fn zero() -> float32x4_t {
    // SAFETY: NEON belongs to the architecture.
    unsafe { vdupq_n_f32(0.0) }
}

/// `sums += weights * x`, fused.
///
/// # Safety
/// None on this architecture; unsafe on Rust 1.85.
#[inline(always)]
unsafe fn multiply_add(sums: &mut Eight, weights: Eight, x: Eight) {
    // SAFETY: NEON belongs to the architecture.
    unsafe {
        sums[0] = vfmaq_f32(sums[0], weights[0], x[0]);
        sums[1] = vfmaq_f32(sums[1], weights[1], x[1]);
    }
}

/// The sum of two chains; the order is that of `scalar.rs`.
///
/// # Safety
/// None on this architecture; unsafe on Rust 1.85.
#[inline(always)]
unsafe fn total(chains: [Eight; 2]) -> f32 {
    // SAFETY: NEON belongs to the architecture.
    unsafe {
        let low = vaddq_f32(chains[0][0], chains[1][0]);
        let high = vaddq_f32(chains[0][1], chains[1][1]);
        let sum = vaddq_f32(low, high);
        let sum = vadd_f32(vget_low_f32(sum), vget_high_f32(sum));
        vget_lane_f32::<0>(sum) + vget_lane_f32::<1>(sum)
    }
}

/// # Safety
/// Lengths are as `check_dots` demands.
pub(super) unsafe fn dots<W: Float>(weights: &[W], x: Rows<'_, f32>, cols: usize, out: &mut [f32]) {
    let pass = Pass {
        weights: weights.as_ptr(),
        cols,
        x: x.values.as_ptr(),
        x_stride: x.stride,
        out: out.as_mut_ptr(),
        n_out: weights.len() / cols,
    };
    // SAFETY: these are rows of `x`, and `n_out` rows of weights.
    unsafe {
        if x.n == 1 {
            return (0..pass.n_out).for_each(|o| pass.tile::<1, 1>(o, 0));
        }
        for (t, n) in tiles(x.n, 3) {
            match n {
                3 => pass.run::<3>(t),
                2 => pass.run::<2>(t),
                _ => pass.run::<1>(t),
            }
        }
    }
}

/// Rows of weights, rows of activations, and where their products go.
struct Pass<W> {
    /// (n_out, cols)
    weights: *const W,
    cols: usize,
    /// (.., x_stride)
    x: *const f32,
    x_stride: usize,
    /// (.., n_out)
    out: *mut f32,
    n_out: usize,
}

impl<W: Float> Pass<W> {
    /// All rows of weights times rows of activations `t .. t + T`.
    ///
    /// # Safety
    /// The pointers are of the sizes named above, and these rows exist.
    #[inline(always)]
    unsafe fn run<const T: usize>(&self, t: usize) {
        let mut o = 0;
        // SAFETY: rows of weights stay below `n_out`; the rest is the caller's promise.
        unsafe {
            while o + 2 <= self.n_out {
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
    #[inline(always)]
    unsafe fn tile<const O: usize, const T: usize>(&self, o: usize, t: usize) {
        let full = self.cols / (2 * STEP) * (2 * STEP);
        // SAFETY: columns stay below `cols` and rows below `o + O` and `t + T`.
        unsafe {
            let weights = self.weights.add(o * self.cols);
            let x = self.x.add(t * self.x_stride);
            let mut sums = [[[[zero(); 2]; 2]; T]; O];
            let mut c = 0;
            while c < full {
                for chain in 0..2 {
                    let at = c + chain * STEP;
                    let mut rows = [[zero(); 2]; O];
                    for (i, row) in rows.iter_mut().enumerate() {
                        *row = W::load8(weights.add(i * self.cols + at));
                    }
                    for t in 0..T {
                        let x = f32::load8(x.add(t * self.x_stride + at));
                        for (sums, &row) in sums.iter_mut().zip(&rows) {
                            multiply_add(&mut sums[t][chain], row, x);
                        }
                    }
                }
                c += 2 * STEP;
            }
            // Not a loop over `c` with a chain that changes: indices that are not known to the compiler would
            // keep the sums in memory.
            for chain in 0..2 {
                let at = full + chain * STEP;
                if at >= self.cols {
                    break;
                }
                let left = (self.cols - at).min(STEP);
                for t in 0..T {
                    let x = load_part(x.add(t * self.x_stride + at), left);
                    let x = f32::load8(x.as_ptr());
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let row = load_part(weights.add(i * self.cols + at), left);
                        multiply_add(&mut sums[t][chain], W::load8(row.as_ptr()), x);
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                for (j, &chains) in sums.iter().enumerate() {
                    *self.out.add((t + j) * self.n_out + o + i) = total(chains);
                }
            }
        }
    }
}

/// # Safety
/// Lengths and rows are as `check_gather` demands.
pub(super) unsafe fn gather<W: Float>(
    weights: &[W],
    rows: &[u32],
    values: &[f32],
    out: &mut [f32],
) {
    out.fill(0.0);
    let width = out.len();
    let start = |row: u32| weights[row as usize * width..][..width].as_ptr();
    let full = rows.len() / GROUP * GROUP;
    for (rows, values) in rows[..full]
        .chunks_exact(GROUP)
        .zip(values.chunks_exact(GROUP))
    {
        let rows: [_; GROUP] = std::array::from_fn(|i| start(rows[i]));
        let values: [_; GROUP] = std::array::from_fn(|i| values[i]);
        // SAFETY: each pointer is at the beginning of a row of `width` weights.
        unsafe { add_rows(rows, values, out) };
    }
    for (&row, &value) in rows[full..].iter().zip(&values[full..]) {
        // SAFETY: as above.
        unsafe { add_rows([start(row)], [value], out) };
    }
}

/// `out[c] += sum over i of values[i] * rows[i][c]`, i in order.
///
/// # Safety
/// Every row has `out.len()` weights.
#[inline(always)]
unsafe fn add_rows<W: Float, const N: usize>(
    rows: [*const W; N],
    values: [f32; N],
    out: &mut [f32],
) {
    let n = out.len();
    let mut c = 0;
    // SAFETY: offsets stay below `n`, the length of `out` and of every row.
    unsafe {
        let mut factors = [zero(); N];
        for (factor, &value) in factors.iter_mut().zip(&values) {
            *factor = vdupq_n_f32(value);
        }
        while c + 2 * STEP <= n {
            let target = out.as_mut_ptr().add(c);
            let mut sums = [f32::load8(target), f32::load8(target.add(STEP))];
            for (row, &factor) in rows.iter().zip(&factors) {
                let row = row.add(c);
                multiply_add(&mut sums[0], W::load8(row), [factor; 2]);
                multiply_add(&mut sums[1], W::load8(row.add(STEP)), [factor; 2]);
            }
            for (i, sums) in sums.iter().enumerate() {
                vst1q_f32(target.add(i * STEP), sums[0]);
                vst1q_f32(target.add(i * STEP + 4), sums[1]);
            }
            c += 2 * STEP;
        }
        for (c, out) in out.iter_mut().enumerate().skip(c) {
            for (row, &value) in rows.iter().zip(&values) {
                *out = (*row.add(c)).widen().mul_add(value, *out);
            }
        }
    }
}

/// # Safety
/// `first + n <= stride`, `n <= 16`, `weights` is (rows, stride) and `panel` is (rows, 16).
pub(super) unsafe fn pack<W: Float>(
    weights: &[W],
    stride: usize,
    first: usize,
    n: usize,
    panel: &mut [f32],
) {
    let rows = weights.chunks_exact(stride);
    for (row, panel) in rows.zip(panel.chunks_exact_mut(PANEL_WIDTH)) {
        let row = &row[first..first + n];
        if n == PANEL_WIDTH {
            // SAFETY: the row has 16 columns, and so has the panel's.
            unsafe {
                for half in 0..2 {
                    let wide = W::load8(row.as_ptr().add(half * STEP));
                    let panel = panel.as_mut_ptr().add(half * STEP);
                    vst1q_f32(panel, wide[0]);
                    vst1q_f32(panel.add(4), wide[1]);
                }
            }
        } else {
            panel.fill(0.0);
            for (panel, &w) in panel.iter_mut().zip(row) {
                *panel = w.widen();
            }
        }
    }
}

/// # Safety
/// `panel` is (steps, 16), each row of `x` has `steps` numbers, `out` is (x.n, 16).
pub(super) unsafe fn multiply_panel(panel: &[f32], x: Rows<'_, f32>, out: &mut [f32]) {
    for (t, n) in tiles(x.n, 6) {
        let rows = x.values[t * x.stride..].as_ptr();
        let out = out[t * PANEL_WIDTH..].as_mut_ptr();
        // SAFETY: there are `n` rows of `x` from row `t` on, and as many of `out`.
        unsafe {
            match n {
                6 => panel_tile::<6>(panel, rows, x.stride, out),
                5 => panel_tile::<5>(panel, rows, x.stride, out),
                4 => panel_tile::<4>(panel, rows, x.stride, out),
                3 => panel_tile::<3>(panel, rows, x.stride, out),
                2 => panel_tile::<2>(panel, rows, x.stride, out),
                _ => panel_tile::<1>(panel, rows, x.stride, out),
            }
        }
    }
}

/// # Safety
/// As [`multiply_panel`], for `T` rows of `x` and of `out`.
#[inline(always)]
unsafe fn panel_tile<const T: usize>(panel: &[f32], x: *const f32, x_stride: usize, out: *mut f32) {
    // SAFETY: reads end with the last step of the panel and of each row of `x`.
    unsafe {
        let mut sums = [[[zero(); 2]; 2]; T];
        for (step, panel) in panel.chunks_exact(PANEL_WIDTH).enumerate() {
            let low = f32::load8(panel.as_ptr());
            let high = f32::load8(panel.as_ptr().add(STEP));
            for (t, sums) in sums.iter_mut().enumerate() {
                let x = vdupq_n_f32(*x.add(t * x_stride + step));
                multiply_add(&mut sums[0], low, [x; 2]);
                multiply_add(&mut sums[1], high, [x; 2]);
            }
        }
        for (t, sums) in sums.iter().enumerate() {
            for (i, sums) in sums.iter().enumerate() {
                let out = out.add(t * PANEL_WIDTH + i * STEP);
                vst1q_f32(out, vaddq_f32(vld1q_f32(out), sums[0]));
                vst1q_f32(out.add(4), vaddq_f32(vld1q_f32(out.add(4)), sums[1]));
            }
        }
    }
}
