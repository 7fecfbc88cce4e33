//! What formats of integers have beside these: a scale for each row, `row_scales[r]`, and a factor for each column,
//! `2^(column_exponents[c] / 4)`, which is multiplied into the activations or the outputs that belong to columns.
//!
//! ```text
//! part           model file      device plugin
//! row scales     F16 (r)         row_scales         finite, 0 or above
//! exponents      I8 (c)          column_exponents   -96 ..= 96; left out where all are 0
//! ```

#![forbid(unsafe_code)]

use bytemuck::{cast_slice, pod_read_unaligned, Pod, Zeroable};
use half::f16;

use super::blocks::{Block, Blocks};
use super::exponents::{column_exponents, column_factor, inverse_factors, EXPONENT_MAX};
use super::matrix::Layout;
use super::parts::{Numbers, PartKind};
use super::TakeParts;
use crate::error::{Error, Result};
use crate::files::FileBytes;
use crate::math::{collected, copied, numbers_of, reserve, resized, zeroed};

/// Column exponents are left out where scales would cost more than half a bit a weight: only in
/// matrices narrower than about 50, which no published model has.
const SCALE_BITS_MAX: f64 = 0.5;
/// What they are called in errors.
pub(super) const SCALES: &str = "scales of weights";

/// The scales of a matrix (n_rows, n_cols), as they are stored and as factors.
#[derive(Clone)]
pub(super) struct Scales {
    /// (n_rows)
    rows: Vec<f16>,
    /// (n_cols); all 0 where the matrix has none
    column_exponents: Vec<i8>,
    /// (n_rows) what integers of a row are multiplied by
    pub(super) row_factors: Vec<f32>,
    /// (n_cols) 2^(exponent / 4)
    pub(super) column_factors: Vec<f32>,
}

impl Scales {
    /// Which part the scales of rows are.
    const ROWS: usize = 1;

    /// An integer of 1 means `step` times the row's scale.
    pub(super) fn new(rows: Vec<f16>, column_exponents: Vec<i8>, step: f32) -> Result<Self> {
        let row_factors = rows.iter().map(|scale| scale.to_f32() * step);
        let column_factors = column_exponents.iter().map(|&e| column_factor(e));
        Ok(Scales {
            row_factors: collected(row_factors, SCALES)?,
            column_factors: collected(column_factors, SCALES)?,
            rows,
            column_exponents,
        })
    }

    /// Those that are stored, behind the weights; `None` where one is missing that must be there.
    pub(super) fn from_parts(
        n_cols: usize,
        parts: &[Option<FileBytes>],
        step: f32,
    ) -> Result<Option<Self>> {
        let [Some(rows), exponents] = parts else {
            return Ok(None);
        };
        let exponents = match exponents {
            Some(part) => numbers_of(part, SCALES)?,
            None => zeroed(n_cols, SCALES)?,
        };
        Scales::new(numbers_of(rows, SCALES)?, exponents, step).map(Some)
    }

    /// What a matrix consists of beside its weights.
    pub(super) fn parts(n_rows: usize, n_cols: usize) -> [PartKind; 2] {
        [
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

    /// The factors, beside what is stored.
    pub(super) fn kept_bytes(n_rows: u64, n_cols: u64) -> u64 {
        4 * (n_rows + n_cols)
    }

    /// See [`Format::check_part`](super::Format::check_part).
    pub(super) fn check_part(index: usize, bytes: &[u8]) -> std::result::Result<(), String> {
        if index == Self::ROWS {
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

    pub(super) fn beside(&self) -> Vec<&[u8]> {
        vec![cast_slice(&self.rows), cast_slice(&self.column_exponents)]
    }

    /// What activations are multiplied by before they are rounded, one an input of the matrix.
    pub(super) fn input_factors(&self, layout: Layout) -> &[f32] {
        match layout {
            Layout::RowPerOutput => &self.column_factors,
            Layout::RowPerInput | Layout::LowRank => &self.row_factors,
        }
    }

    /// What integer sums are multiplied by, one an output of the matrix.
    pub(super) fn output_factors(&self, layout: Layout) -> &[f32] {
        match layout {
            Layout::RowPerOutput => &self.row_factors,
            Layout::RowPerInput | Layout::LowRank => &self.column_factors,
        }
    }
}

/// The exponents of a matrix's columns.
pub(super) struct ColumnExponents {
    /// (n_cols)
    exponents: Vec<i8>,
    /// (n_cols) 1 over the columns' factors
    pub(super) inverses: Vec<f32>,
}

impl ColumnExponents {
    /// Chooses them; reads the matrix, several times where it is large.
    ///
    /// # Errors
    /// Those of reading it.
    pub(super) fn new(blocks: &mut Blocks<'_>) -> Result<Self> {
        let (n_rows, n_cols) = (blocks.n_rows, blocks.n_cols);
        let scale_bits = 16.0 / n_cols as f64 + 8.0 / n_rows as f64;
        let exponents = if scale_bits <= SCALE_BITS_MAX {
            column_exponents(blocks)?
        } else {
            zeroed(n_cols, SCALES)?
        };
        Ok(ColumnExponents {
            inverses: inverse_factors(&exponents)?,
            exponents,
        })
    }
}

/// A way to round rows to integers.
pub(super) trait Rounding {
    /// What a stored row consists of.
    type Number: Pod;

    fn columns(&self) -> &ColumnExponents;

    /// How many of them.
    fn row_numbers(&self) -> usize;

    /// What an integer of 1 means beside the scale of its row.
    const STEP: f32;

    /// Rounds rows to `values` (rows, row_numbers) and their scales (rows), whatever these held before. The result must not depend on blocks
    /// or threads.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) where a row's scale leaves the range of f16.
    fn round(
        &self,
        block: &Block<'_>,
        values: &mut [Self::Number],
        row_scales: &mut [f16],
    ) -> Result<()>;
}

/// All rows, in memory of their own.
pub(super) fn convert<R: Rounding>(
    blocks: &mut Blocks<'_>,
    rounding: R,
) -> Result<(Vec<R::Number>, Scales)> {
    let n = rounding.row_numbers();
    let mut values: Vec<R::Number> = reserve(blocks.n_rows.saturating_mul(n), "weights")?;
    let mut row_scales: Vec<f16> = reserve(blocks.n_rows, "weights")?;
    blocks.for_each(|block| {
        let rows = &block.rows;
        values.resize(rows.end * n, R::Number::zeroed());
        row_scales.resize(rows.end, f16::ZERO);
        let (values, scales) = (&mut values[rows.start * n..], &mut row_scales[rows.start..]);
        rounding.round(block, values, scales)
    })?;
    let exponents = copied(&rounding.columns().exponents, SCALES)?;
    Ok((values, Scales::new(row_scales, exponents, R::STEP)?))
}

/// The same, but gives the rows to `take` block by block.
pub(super) fn convert_in_pieces<R: Rounding>(
    blocks: &mut Blocks<'_>,
    rounding: &R,
    take: &mut TakeParts<'_>,
) -> Result<()> {
    let (mut values, mut row_scales) = (Vec::new(), Vec::new());
    blocks.for_each(|block| {
        let n = block.rows.len();
        resized(
            &mut values,
            n * rounding.row_numbers(),
            R::Number::zeroed(),
            "a piece of a matrix",
        )?;
        resized(&mut row_scales, n, f16::ZERO, SCALES)?;
        rounding.round(block, &mut values, &mut row_scales)?;
        let exponents = cast_slice(&rounding.columns().exponents);
        let parts = [cast_slice(&values), cast_slice(&row_scales), exponents];
        take(block.rows.clone(), &parts)
    })
}

/// Refuses scales that are not finite: `largest` is the size of weights that the format has room for.
pub(super) fn check_scales(
    block: &Block<'_>,
    row_scales: &[f16],
    (format, largest): (&str, &str),
) -> Result<()> {
    match row_scales.iter().position(|scale| !scale.is_finite()) {
        None => Ok(()),
        Some(row) => {
            let row = block.rows.start + row;
            let text =
                format!("row {row}: weights too large for {format}, expected less than {largest}");
            Err(Error::unsupported(text).at(block.source.place()))
        }
    }
}
