//! 8-bit integers: `weight[r, c] ~ values[r, c] * row_scales[r] * 2^(column_exponents[c] / 4)`.
//!
//! ```text
//! part           model file      device plugin
//! weights        I8 (r, c)       values             -127 ..= 127
//! row scales     F16 (r)         row_scales         finite, 0 or above
//! exponents      I8 (c)          column_exponents   -96 ..= 96; left out where all are 0
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

use bytemuck::{cast_slice, pod_read_unaligned};
use half::f16;

use crate::error::{Error, Result};
use crate::files::FileBytes;
use crate::math::kernels::fetch::fetch;
use crate::math::kernels::KernelSet;
use crate::math::threads::ColumnBlock;
use crate::math::{collected, numbers_of, reserve, resized, zeroed};
use crate::quant::blocks::{Block, Blocks};
use crate::quant::exponents::{
    column_exponents, column_factor, inverse_factors, largest_product, Importance, EXPONENT_MAX,
};
use crate::quant::matrix::{Buffer, Layout};
use crate::quant::parts::{Numbers, PartKind};
use crate::quant::{ByInput, Format, Inputs, Quant, Room, TakeParts, Weights};

/// Column exponents are left out where scales would cost more than half a bit a weight: only in
/// matrices narrower than about 50, which no published model has.
const SCALE_BITS_MAX: f64 = 0.5;
/// What they are called in errors.
const SCALES: &str = "scales of weights";
/// Rows of one task.
const TASK_ROWS: usize = 16;
/// Columns that are looked at together.
const LANES: usize = 16;

/// A matrix of 8-bit integers.
#[derive(Clone)]
pub(crate) struct Int8 {
    /// (n_rows, n_cols), -127 ..= 127
    values: Buffer<i8>,
    /// (n_rows)
    row_scales: Vec<f16>,
    /// (n_cols); all 0 where the matrix has none
    column_exponents: Vec<i8>,
    /// (n_rows) the scales as f32
    row_factors: Vec<f32>,
    /// (n_cols) 2^(exponent / 4)
    column_factors: Vec<f32>,
}

impl Int8 {
    /// Which part they are.
    const ROW_SCALES: usize = 1;

    fn new(values: Buffer<i8>, row_scales: Vec<f16>, column_exponents: Vec<i8>) -> Result<Self> {
        let row_factors = row_scales.iter().map(|scale| scale.to_f32());
        let column_factors = column_exponents.iter().map(|&e| column_factor(e));
        Ok(Int8 {
            values,
            row_factors: collected(row_factors, SCALES)?,
            column_factors: collected(column_factors, SCALES)?,
            row_scales,
            column_exponents,
        })
    }

    /// What integer sums are multiplied by, one a matrix output.
    pub(crate) fn output_factors(&self, layout: Layout) -> &[f32] {
        match layout {
            Layout::RowPerOutput => &self.row_factors,
            Layout::RowPerInput | Layout::LowRank => &self.column_factors,
        }
    }

    /// `out[o] = sum over i of values[i] * weight[first + rows[i], o]` in integers, `first` being the first of the stored
    /// rows `inputs`.
    #[inline]
    pub(crate) fn gather(
        &self,
        kernels: KernelSet,
        inputs: Range<usize>,
        rows: &[u32],
        values: &[i16],
        out: &mut [i32],
    ) {
        kernels.gather_i8(self.rows(out.len(), &inputs), rows, values, out);
    }

    /// Widens outputs `outputs`, at most 16, of the stored rows `inputs` of `n_cols` to a panel.
    pub(crate) fn pack(
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

    #[inline]
    fn rows(&self, n_cols: usize, rows: &Range<usize>) -> &[i8] {
        &self.values.as_slice()[rows.start * n_cols..rows.end * n_cols]
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
        vec![
            PartKind::values(Numbers::I8, n_rows, n_cols),
            PartKind {
                suffix: ".scale.row",
                device_name: c"row_scales",
                numbers: Numbers::F16,
                shape: vec![n_rows],
                is_by_rows: true,
                is_optional: false,
            },
            PartKind {
                suffix: ".scale.column",
                device_name: c"column_exponents",
                numbers: Numbers::I8,
                shape: vec![n_cols],
                is_by_rows: false,
                is_optional: true,
            },
        ]
    }

    /// The factors.
    fn kept_bytes(n_rows: u64, n_cols: u64) -> u64 {
        4 * (n_rows + n_cols)
    }

    fn check_part(index: usize, bytes: &[u8]) -> std::result::Result<(), String> {
        if index == Self::ROW_SCALES {
            let mut scales = bytes
                .chunks_exact(2)
                .map(pod_read_unaligned::<f16>)
                .enumerate();
            let is_bad = |scale: f16| !scale.is_finite() || scale.is_sign_negative();
            return match scales.find(|&(_, scale)| is_bad(scale)) {
                None => Ok(()),
                Some((row, scale)) => {
                    Err(format!("scale {scale} of row {row}, expected 0 or above"))
                }
            };
        }
        let limit = EXPONENT_MAX;
        let exponents: &[i8] = cast_slice(bytes);
        match exponents.iter().position(|e| !(-limit..=limit).contains(e)) {
            None => Ok(()),
            Some(column) => Err(format!(
                "exponent {} of column {column}, expected up to +-{limit}",
                exponents[column]
            )),
        }
    }

    fn from_parts(
        (_, n_cols): (usize, usize),
        parts: &[Option<FileBytes>],
    ) -> Result<Option<Self>> {
        let [Some(values), Some(row_scales), exponents] = parts else {
            return Ok(None);
        };
        let Some(values) = Buffer::in_file(values.clone()) else {
            return Ok(None);
        };
        let exponents = match exponents {
            Some(part) => numbers_of(part, SCALES)?,
            None => zeroed(n_cols, SCALES)?,
        };
        Int8::new(values, numbers_of(row_scales, SCALES)?, exponents).map(Some)
    }

    #[inline]
    fn values(&self) -> &[u8] {
        cast_slice(self.values.as_slice())
    }

    fn beside(&self) -> Vec<&[u8]> {
        vec![
            cast_slice(&self.row_scales),
            cast_slice(&self.column_exponents),
        ]
    }

    fn in_file_bytes(&self) -> Option<&FileBytes> {
        self.values.file_bytes()
    }

    fn convert(blocks: &mut Blocks<'_>) -> Result<Self> {
        let (n_rows, n_cols) = (blocks.n_rows, blocks.n_cols);
        let rounding = Rounding::new(blocks)?;
        let mut values: Vec<i8> = reserve(n_rows * n_cols, "weights")?;
        let mut row_scales: Vec<f16> = reserve(n_rows, "weights")?;
        blocks.for_each(|block| {
            let rows = &block.rows;
            values.resize(rows.end * n_cols, 0);
            row_scales.resize(rows.end, f16::ZERO);
            rounding.round(
                block,
                &mut values[rows.start * n_cols..],
                &mut row_scales[rows.start..],
            )
        })?;
        Int8::new(Buffer::owned(values), row_scales, rounding.column_exponents)
    }

    fn convert_in_pieces(blocks: &mut Blocks<'_>, take: &mut TakeParts<'_>) -> Result<()> {
        let rounding = Rounding::new(blocks)?;
        let (mut values, mut row_scales) = (Vec::new(), Vec::new());
        blocks.for_each(|block| {
            resized(&mut values, block.numbers.len(), 0, "a piece of a matrix")?;
            resized(&mut row_scales, block.rows.len(), f16::ZERO, SCALES)?;
            rounding.round(block, &mut values, &mut row_scales)?;
            let exponents = cast_slice(&rounding.column_exponents);
            let parts = [cast_slice(&values), cast_slice(&row_scales), exponents];
            take(block.rows.clone(), &parts)
        })
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        let values = self.rows(out.len(), &(row..row + 1));
        let scale = self.row_factors[row];
        for ((out, &q), &factor) in out.iter_mut().zip(values).zip(&self.column_factors) {
            *out = f32::from(q) * scale * factor;
        }
    }

    fn input_factors(&self, layout: Layout) -> Option<&[f32]> {
        Some(match layout {
            Layout::RowPerOutput => &self.column_factors,
            Layout::RowPerInput | Layout::LowRank => &self.row_factors,
        })
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
        let factors = &self.row_factors[outputs.clone()];
        fetch(factors);
        let weights = self.rows(n_cols, &outputs);
        kernels.dots_i8(weights, inputs.integers, n_cols, room.sums);
        for (row, sums) in room.sums.chunks_exact(outputs.len()).enumerate() {
            kernels.rescale_sums(sums, inputs.scales[row], factors, out.row_mut(row));
        }
    }

    fn by_input(&self) -> ByInput<'_> {
        ByInput::Integers(self)
    }
}

/// How the rows of a matrix are rounded to integers.
struct Rounding {
    /// (n_cols)
    column_exponents: Vec<i8>,
    /// (n_cols) 1 over the columns' factors
    inverses: Vec<f32>,
    drifts: Option<Drifts>,
}

impl Rounding {
    /// Reads the matrix, several times where it is large.
    ///
    /// # Errors
    ///
    /// Those of reading it.
    fn new(blocks: &mut Blocks<'_>) -> Result<Self> {
        let (n_rows, n_cols) = (blocks.n_rows, blocks.n_cols);
        let scale_bits = 16.0 / n_cols as f64 + 8.0 / n_rows as f64;
        let column_exponents = if scale_bits <= SCALE_BITS_MAX {
            column_exponents(blocks)?
        } else {
            zeroed(n_cols, SCALES)?
        };
        let inverses = inverse_factors(&column_exponents)?;
        Ok(Rounding {
            drifts: Drifts::new(&blocks.importance, &inverses)?,
            inverses,
            column_exponents,
        })
    }

    /// Rounds rows to `values` (rows, n_cols), with the scales (rows) that make a row's largest one 127.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) where a row's scale leaves the range of f16.
    fn round(&self, block: &Block<'_>, values: &mut [i8], row_scales: &mut [f16]) -> Result<()> {
        let (numbers, n_cols, pool) = (block.numbers, self.inverses.len(), block.pool);
        pool.run_chunks(row_scales, TASK_ROWS, |task, scales| {
            let rows = numbers[task * TASK_ROWS * n_cols..].chunks_exact(n_cols);
            for (scale, row) in scales.iter_mut().zip(rows) {
                *scale = f16::from_f32(largest_product(row, &self.inverses) / 127.0);
            }
        });
        let infinite = row_scales.iter().position(|scale| !scale.is_finite());
        if let Some(row) = infinite {
            let row = block.rows.start + row;
            let text = format!("row {row}: weights too large for int8, expected less than 8e6");
            return Err(Error::unsupported(text).at(block.source.place()));
        }
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
                round_row(row, &self.inverses, inverse_scale, values);
                if let Some(drifts) = &self.drifts {
                    drifts.level(row, &self.inverses, inverse_scale, values);
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
            is_by_row: false,
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
            is_by_row: false,
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
