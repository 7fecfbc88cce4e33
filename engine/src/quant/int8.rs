//! 8-bit integers: `weight[r, c] ~ values[r, c] * row_scales[r] * 2^(column_exponents[c] / 4)`.
//!
//! ```text
//! part           model file      device plugin
//! weights        I8 (r, c)       values             -127 ..= 127
//! scales                         see `scales.rs`
//! ```
//!
//! Trained RWKV has rows and columns much larger than the rest. The f16 scale of a row takes care of the
//! one, a power of 2^(1/4) a column, which is multiplied into the activations, of the other.
//! docs/QUANTIZATION.md has what else was tried, and the numbers.
//!
//! Products: activations are multiplied by the scales that belong to inputs and rounded to 16 bits, sums are exact integers,
//! and are multiplied by the scales that belong to outputs.
//!
//! When quantising, the matrix is read block by block, several times, so that nothing but the result is held. Everything
//! is summed in one order: the result does not depend on blocks, threads or the CPU.

#![forbid(unsafe_code)]

use std::ops::Range;

use bytemuck::cast_slice;
use half::f16;

use crate::error::Result;
use crate::files::FileBytes;
use crate::math::collected;
use crate::math::kernels::fetch::fetch;
use crate::math::kernels::{ActivationBounds, KernelSet};
use crate::math::threads::ColumnBlock;
use crate::quant::blocks::{Block, Blocks};
use crate::quant::exponents::{largest_product, Importance};
use crate::quant::matrix::{Buffer, Layout};
use crate::quant::parts::{Numbers, PartKind};
use crate::quant::scales::{self, check_scales, ColumnExponents, Scales, SCALES};
use crate::quant::{
    ByInput, Format, Inputs, IntegerSums, Quant, Room, SumsOfIntegers, TakeParts, Weights,
};

/// Rows of one task.
const TASK_ROWS: usize = 16;
/// ColumnExponents that are looked at together.
const LANES: usize = 16;

/// A matrix of 8-bit integers.
#[derive(Clone)]
pub(crate) struct Int8 {
    /// (n_rows, n_cols), -127 ..= 127
    values: Buffer<i8>,
    scales: Scales,
}

impl Int8 {
    #[inline]
    fn rows(&self, n_cols: usize, rows: &Range<usize>) -> &[i8] {
        &self.values.as_slice()[rows.start * n_cols..rows.end * n_cols]
    }
}

impl SumsOfIntegers for Int8 {
    fn output_factors(&self, layout: Layout) -> &[f32] {
        self.scales.output_factors(layout)
    }

    #[inline]
    fn gather(
        &self,
        kernels: KernelSet,
        inputs: Range<usize>,
        rows: &[u32],
        values: &[i16],
        out: &mut [i32],
    ) {
        kernels.gather_i8(self.rows(out.len(), &inputs), rows, values, out);
    }

    fn pack(
        &self,
        kernels: KernelSet,
        n_cols: usize,
        inputs: Range<usize>,
        outputs: Range<usize>,
        panel: &mut [i16],
    ) {
        let (weights, n) = (self.rows(n_cols, &inputs), outputs.len());
        kernels.pack_i8(weights, n_cols, outputs.start, n, panel);
    }
}

impl From<Int8> for Weights {
    fn from(int8: Int8) -> Self {
        Weights::Int8(int8)
    }
}

impl Format for Int8 {
    const QUANT: Quant = Quant::Int8;
    const NAME: &'static str = "int8";

    fn parts(n_rows: usize, n_cols: usize) -> Vec<PartKind> {
        let values = PartKind::values(Numbers::I8, n_rows, n_cols);
        std::iter::once(values)
            .chain(Scales::parts(n_rows, n_cols))
            .collect()
    }

    fn kept_bytes(n_rows: u64, n_cols: u64) -> u64 {
        Scales::kept_bytes(n_rows, n_cols)
    }

    fn check_part(index: usize, bytes: &[u8]) -> std::result::Result<(), String> {
        Scales::check_part(index, bytes)
    }

    fn from_parts(
        (_, n_cols): (usize, usize),
        parts: &[Option<FileBytes>],
    ) -> Result<Option<Self>> {
        let Some((Some(values), beside)) = parts.split_first() else {
            return Ok(None);
        };
        let Some(values) = Buffer::in_file(values.clone()) else {
            return Ok(None);
        };
        let scales = Scales::from_parts(n_cols, beside, Rounding::STEP)?;
        Ok(scales.map(|scales| Int8 { values, scales }))
    }

    #[inline]
    fn values(&self) -> &[u8] {
        cast_slice(self.values.as_slice())
    }

    fn beside(&self) -> Vec<&[u8]> {
        self.scales.beside()
    }

    fn in_file_bytes(&self) -> Option<&FileBytes> {
        self.values.file_bytes()
    }

    fn convert(blocks: &mut Blocks<'_>) -> Result<Self> {
        let rounding = Rounding::new(blocks)?;
        let (values, scales) = scales::convert(blocks, rounding)?;
        let values = Buffer::owned(values);
        Ok(Int8 { values, scales })
    }

    fn convert_in_pieces(blocks: &mut Blocks<'_>, take: &mut TakeParts<'_>) -> Result<()> {
        let rounding = Rounding::new(blocks)?;
        scales::convert_in_pieces(blocks, &rounding, take)
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        let values = self.rows(out.len(), &(row..row + 1));
        let scale = self.scales.row_factors[row];
        for ((out, &q), &factor) in out.iter_mut().zip(values).zip(&self.scales.column_factors) {
            *out = f32::from(q) * scale * factor;
        }
    }

    fn input_factors(&self, layout: Layout) -> Option<&[f32]> {
        Some(self.scales.input_factors(layout))
    }

    fn activation_bounds(&self) -> ActivationBounds {
        ActivationBounds::INT8
    }

    #[inline]
    fn dots(
        &self,
        kernels: KernelSet,
        n_cols: usize,
        inputs: &Inputs<'_>,
        room: Room<'_>,
        out: &mut ColumnBlock<'_, f32>,
    ) {
        let outputs = out.columns();
        let factors = &self.scales.row_factors[outputs.clone()];
        fetch(factors);
        let weights = self.rows(n_cols, &outputs);
        kernels.dots_i8(weights, inputs.integers, n_cols, room.sums);
        inputs.rescale(kernels, room.sums, factors, 0, out);
    }

    fn by_input(&self) -> ByInput<'_> {
        ByInput::Integers(IntegerSums::Int8(self))
    }
}

/// How the rows of a matrix are rounded to integers.
struct Rounding {
    columns: ColumnExponents,
    drifts: Option<Drifts>,
}

impl Rounding {
    /// Reads the matrix, several times where it is large.
    ///
    /// # Errors
    ///
    /// Those of reading it.
    fn new(blocks: &mut Blocks<'_>) -> Result<Self> {
        let columns = ColumnExponents::new(blocks)?;
        let drifts = Drifts::new(&blocks.importance, &columns.inverses)?;
        Ok(Rounding { columns, drifts })
    }

    const STEP: f32 = 1.0;
}

impl scales::Rounding for Rounding {
    type Number = i8;
    const STEP: f32 = Rounding::STEP;

    fn columns(&self) -> &ColumnExponents {
        &self.columns
    }

    fn row_numbers(&self) -> usize {
        self.columns.inverses.len()
    }

    /// With the scales that make a row's largest integer 127.
    fn round(&self, block: &Block<'_>, values: &mut [i8], row_scales: &mut [f16]) -> Result<()> {
        let inverses = &self.columns.inverses;
        let (numbers, n_cols, pool) = (block.numbers, inverses.len(), block.pool);
        pool.run_chunks(row_scales, TASK_ROWS, |task, scales| {
            let rows = numbers[task * TASK_ROWS * n_cols..].chunks_exact(n_cols);
            for (scale, row) in scales.iter_mut().zip(rows) {
                *scale = f16::from_f32(largest_product(row, inverses) / 127.0);
            }
        });
        check_scales(block, row_scales, (Int8::NAME, "8e6"))?;
        let scales = &*row_scales;
        pool.run_chunks(values, TASK_ROWS * n_cols, |task, values| {
            let first = task * TASK_ROWS;
            let rows = numbers[first * n_cols..].chunks_exact(n_cols);
            for ((values, row), scale) in values
                .chunks_exact_mut(n_cols)
                .zip(rows)
                .zip(&scales[first..])
            {
                let scale = scale.to_f32();
                let inverse_scale = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                round_row(row, inverses, inverse_scale, values);
                if let Some(drifts) = &self.drifts {
                    drifts.level(row, inverses, inverse_scale, values);
                }
            }
        });
        Ok(())
    }
}

/// `values[c] = row[c] * factors[c] * inverse_scale`, rounded, ties to even.
fn round_row(row: &[f32], factors: &[f32], inverse_scale: f32, values: &mut [i8]) {
    /// 1.5 * 2^23: adding it rounds to an integer, which the low mantissa bits then hold.
    const ROUND: f32 = 12_582_912.0;
    for ((value, &weight), &factor) in values.iter_mut().zip(row).zip(factors) {
        // An f16 scale may be rounded down, so that the largest weight comes out above 127.
        let scaled = (weight * factor * inverse_scale).clamp(-127.0, 127.0);
        *value = (scaled + ROUND).to_bits() as i8;
    }
}

/// What is known of the inputs of a matrix whose means are not all 0. Rounding errors along the means do not cancel
/// over the tokens: they move an output by the same number always.
struct Drifts {
    /// (n_cols) means, for errors that count steps of a column
    means: Vec<f32>,
    /// (n_cols) variances, likewise
    variances: Vec<f32>,
}

impl Drifts {
    fn new(importance: &Importance, inverses: &[f32]) -> Result<Option<Self>> {
        let Importance { columns, means, .. } = importance;
        let is_known = means.len() == inverses.len() && columns.len() == inverses.len();
        if !is_known || means.iter().all(|&mean| mean == 0.0) {
            return Ok(None);
        }
        let inputs = columns.iter().zip(means).zip(inverses);
        let variance = |((square, mean), inverse): ((&f32, &f32), &f32)| {
            (square - mean * mean).max(0.0) / (inverse * inverse)
        };
        Ok(Some(Drifts {
            variances: collected(inputs.map(variance), SCALES)?,
            means: collected(means.iter().zip(inverses).map(|(m, i)| m / i), SCALES)?,
        }))
    }

    /// Moves weights to their other neighbour where that makes the expected squared error of the output smaller:
    ///
    /// ```text
    /// sum over c of variance[c] * error[c]^2  +  (sum over c of mean[c] * error[c])^2
    /// ```
    ///
    /// About one weight in eighty moves, which were nearly in the middle anyway.
    fn level(&self, row: &[f32], factors: &[f32], inverse_scale: f32, values: &mut [i8]) {
        // Lanes that do not depend on each other, so that the compiler uses vectors.
        let mut lanes = [0.0; LANES];
        let chunks = row.chunks(LANES).zip(factors.chunks(LANES));
        let chunks = chunks.zip(self.means.chunks(LANES).zip(self.variances.chunks(LANES)));
        for (((row, factors), (means, _)), values) in chunks.clone().zip(values.chunks(LANES)) {
            let errors = errors(row, factors, inverse_scale, values);
            let means = padded(means);
            for (lane, (mean, error)) in lanes.iter_mut().zip(means.iter().zip(errors)) {
                *lane += mean * error;
            }
        }
        let mut drift: f32 = lanes.iter().sum();
        for (((row, factors), (means, variances)), values) in chunks.zip(values.chunks_mut(LANES)) {
            let errors = errors(row, factors, inverse_scale, values);
            let (means, variances) = (padded(means), padded(variances));
            // Most have none to move: found out by vectors, too.
            let mut any = 0;
            for lane in 0..LANES {
                let saved = saving(means[lane], variances[lane], errors[lane], drift);
                any |= u32::from(saved > 0.0);
            }
            if any == 0 {
                continue;
            }
            for (lane, value) in values.iter_mut().enumerate() {
                let (mean, error) = (means[lane], errors[lane]);
                let toward = 1.0_f32.copysign(error);
                let moved = f32::from(*value) + toward;
                let saved = saving(mean, variances[lane], error, drift);
                if saved > 0.0 && moved.abs() <= 127.0 {
                    *value = moved as i8;
                    drift -= toward * mean;
                }
            }
        }
    }
}

/// What moving a weight to its other neighbour takes from the expected error.
#[inline(always)]
fn saving(mean: f32, variance: f32, error: f32, drift: f32) -> f32 {
    let cost = variance * (1.0 - 2.0 * error.abs()) + mean * mean;
    2.0 * drift * mean.copysign(mean * error) - cost
}

/// Rounding errors of some columns, in their steps; 0 behind the last.
#[inline(always)]
fn errors(row: &[f32], factors: &[f32], inverse_scale: f32, values: &[i8]) -> [f32; LANES] {
    let (row, factors, values): ([f32; LANES], [f32; LANES], [i8; LANES]) =
        (padded(row), padded(factors), padded(values));
    let mut errors = [0.0; LANES];
    for lane in 0..LANES {
        let scaled = (row[lane] * factors[lane] * inverse_scale).clamp(-127.0, 127.0);
        errors[lane] = scaled - f32::from(values[lane]);
    }
    errors
}

/// Numbers of some columns; 0 behind the last.
#[inline(always)]
fn padded<T: Copy + Default>(numbers: &[T]) -> [T; LANES] {
    numbers.try_into().unwrap_or_else(|_| {
        let mut padded = [T::default(); LANES];
        padded[..numbers.len()].copy_from_slice(numbers);
        padded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: usize = 100;

    /// Of a row whose inputs have these means and variances: the expected squared error, and its part from the means.
    fn error(drifts: &Drifts, row: &[f32], values: &[i8]) -> (f64, f64) {
        let (mut spread, mut drift) = (0.0, 0.0);
        for column in 0..row.len() {
            let error = f64::from(row[column]) - f64::from(values[column]);
            spread += f64::from(drifts.variances[column]) * error * error;
            drift += f64::from(drifts.means[column]) * error;
        }
        (spread + drift * drift, drift * drift)
    }

    #[test]
    fn rounding_errors_do_not_add_up_along_the_means() {
        let number = |row: usize, column: usize| {
            let noise = (row * 7919 + column * 104_729) % 20_011;
            noise as f32 / 20_011.0 * 254.0 - 127.0
        };
        let ones = [1.0; N];
        let importance = Importance {
            columns: (0..N).map(|column| 1.0 + (column % 7) as f32).collect(),
            means: (0..N)
                .map(|column| (column % 5) as f32 / 4.0 - 0.3)
                .collect(),
            ..Importance::default()
        };
        let drifts = Drifts::new(&importance, &ones)
            .expect("memory")
            .expect("means");
        let (mut before, mut after) = ((0.0, 0.0), (0.0, 0.0));
        for r in 0..200 {
            let row: Vec<f32> = (0..N).map(|column| number(r, column)).collect();
            let mut values = vec![0; N];
            round_row(&row, &ones, 1.0, &mut values);
            let plain = error(&drifts, &row, &values);
            drifts.level(&row, &ones, 1.0, &mut values);
            let level = error(&drifts, &row, &values);
            assert!(level.0 <= plain.0 * 1.0001, "{r}: {plain:?} {level:?}");
            let off = row
                .iter()
                .zip(&values)
                .map(|(x, &q)| (x - f32::from(q)).abs());
            assert!(off.fold(0.0, f32::max) <= 1.0);
            before = (before.0 + plain.0, before.1 + plain.1);
            after = (after.0 + level.0, after.1 + level.1);
        }
        assert!(
            after.1 < before.1 / 5.0 && after.0 < before.0,
            "{before:?} {after:?}"
        );
    }

    #[test]
    fn without_means_nothing_moves() {
        let importance = |means: Vec<f32>| Importance {
            columns: vec![1.0; means.len()],
            means,
            ..Importance::default()
        };
        for means in [Vec::new(), vec![0.0; 3]] {
            let drifts = Drifts::new(&importance(means), &[1.0; 3]).expect("memory");
            assert!(drifts.is_none());
        }
        // A row of zeros has a scale of 0.
        let drifts = Drifts::new(&importance(vec![5.0; 3]), &[1.0; 3]).expect("memory");
        let mut values = [0; 3];
        drifts
            .expect("means")
            .level(&[0.0; 3], &[1.0; 3], 0.0, &mut values);
        assert_eq!(values, [0; 3]);
    }
}
