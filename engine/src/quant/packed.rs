//! 4, 5 and 6 bits: `weight[r, c] ~ integer[r, c] * row_scales[r] / 512 * 2^(column_exponents[c] / 4)`, where the integer is the
//! code that the weight's bits mean times the scale of its block, 1 to 16.
//!
//! ```text
//! part           model file             device plugin
//! weights        U8 (r, bytes a row)    values             see `math/kernels/packed.rs`; every byte is valid
//! scales                                                    see `scales.rs`
//! ```
//!
//! A block of 32 weights with its scale takes 4.125, 5.125 or 6.125 bits a weight. Sums are exact integers, as with int8.
//!
//! When quantising, the scale of each block is searched for: of some sizes of its largest weight, with the best factor for
//! what each rounds to, the one with the least expected error of the outputs; then the integer that is nearest to it, or
//! one beside that, whichever errs less. Where a text shows what a matrix is multiplied with, weights are rounded so that
//! their errors make up for each other, too (`feedback.rs`). docs/QUANTIZATION.md has what else was tried, and the numbers.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::blocks::Blocks;
use super::matrix::{Buffer, Layout};
use super::parts::{Numbers, PartKind};
use super::scales::{self, Scales};
use super::{
    ByInput, Format, Inputs, IntegerSums, Quant, Room, SumsOfIntegers, TakeParts, Weights,
};
use crate::error::Result;
use crate::files::FileBytes;
use crate::math::kernels::fetch::fetch;
use crate::math::kernels::packed::{packed_row_bytes, UNIT};
use crate::math::kernels::{ActivationBounds, KernelSet, PackedRows};
use crate::math::threads::ColumnBlock;

mod calibrated;
mod codes;
mod rounding;

use rounding::Rounding;

/// A weight of 1 in the scale of its row: then row scales are about as large as the largest weights, and in the range of f16
/// where these are.
const STEP: f32 = 1.0 / 512.0;
/// The largest scale of a block.
const SCALE_MAX: u8 = 16;
/// From so many rows of activations on, weights are widened to 16 bits once for all rows: in AVX2 that takes 0.05 ns a weight,
/// then 0.014 a row, where each row takes 0.025 from the bits.
const WIDENED_FROM: usize = 5;

/// A matrix of numbers of `BITS` bits.
#[derive(Clone)]
pub(crate) struct Packed<const BITS: u32> {
    /// (n_rows, [`packed_row_bytes`])
    values: Buffer<u8>,
    scales: Scales,
}

impl<const BITS: u32> Packed<BITS> {
    const QUANT: Quant = match BITS {
        4 => Quant::Q4,
        5 => Quant::Q5,
        _ => Quant::Q6,
    };
    const NAME: &'static str = match BITS {
        4 => "q4",
        5 => "q5",
        _ => "q6",
    };

    #[inline]
    fn rows(&self, n_cols: usize, rows: &Range<usize>) -> PackedRows<'_> {
        let row_bytes = packed_row_bytes(BITS, n_cols);
        PackedRows {
            bytes: &self.values.as_slice()[rows.start * row_bytes..rows.end * row_bytes],
            cols: n_cols,
            bits: BITS,
        }
    }
}

impl<const BITS: u32> SumsOfIntegers for Packed<BITS> {
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
        kernels.gather_packed(self.rows(out.len(), &inputs), rows, values, out);
    }

    fn pack(
        &self,
        kernels: KernelSet,
        n_cols: usize,
        inputs: Range<usize>,
        outputs: Range<usize>,
        panel: &mut [i16],
    ) {
        kernels.pack_packed(
            self.rows(n_cols, &inputs),
            outputs.start,
            outputs.len(),
            panel,
        );
    }
}

macro_rules! into_weights {
    ($($bits:literal => $variant:ident),*) => {
        $(
            impl From<Packed<$bits>> for Weights {
                fn from(packed: Packed<$bits>) -> Self {
                    Weights::$variant(packed)
                }
            }

            impl<'a> From<&'a Packed<$bits>> for IntegerSums<'a> {
                fn from(packed: &'a Packed<$bits>) -> Self {
                    IntegerSums::$variant(packed)
                }
            }
        )*
    };
}
into_weights!(4 => Q4, 5 => Q5, 6 => Q6);

impl<const BITS: u32> Format for Packed<BITS>
where
    Weights: From<Packed<BITS>>,
    for<'a> IntegerSums<'a>: From<&'a Packed<BITS>>,
{
    const QUANT: Quant = Self::QUANT;
    const NAME: &'static str = Self::NAME;

    fn parts(n_rows: usize, n_cols: usize) -> Vec<PartKind> {
        let values = PartKind::values(Numbers::U8, n_rows, packed_row_bytes(BITS, n_cols));
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
        let scales = Scales::from_parts(n_cols, beside, STEP)?;
        Ok(scales.map(|scales| Packed { values, scales }))
    }

    #[inline]
    fn values(&self) -> &[u8] {
        self.values.as_slice()
    }

    fn beside(&self) -> Vec<&[u8]> {
        self.scales.beside()
    }

    fn in_file_bytes(&self) -> Option<&FileBytes> {
        self.values.file_bytes()
    }

    fn convert(blocks: &mut Blocks<'_>) -> Result<Self> {
        let rounding = Rounding::<BITS>::new(blocks)?;
        let (values, scales) = scales::convert(blocks, rounding)?;
        let values = Buffer::owned(values);
        Ok(Packed { values, scales })
    }

    fn convert_in_pieces(blocks: &mut Blocks<'_>, take: &mut TakeParts<'_>) -> Result<()> {
        let rounding = Rounding::<BITS>::new(blocks)?;
        scales::convert_in_pieces(blocks, &rounding, take)
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        let n_cols = out.len();
        let rows = self.rows(n_cols, &(row..row + 1));
        let (scale, factors) = (self.scales.row_factors[row], &self.scales.column_factors);
        let units = out.chunks_mut(UNIT).zip(factors.chunks(UNIT));
        for (unit, (out, factors)) in units.enumerate() {
            let integers = rows.row(0).unit(unit);
            for ((out, integer), &factor) in out.iter_mut().zip(integers).zip(factors) {
                *out = f32::from(integer) * scale * factor;
            }
        }
    }

    fn input_factors(&self, layout: Layout) -> Option<&[f32]> {
        Some(self.scales.input_factors(layout))
    }

    fn activation_bounds(&self) -> ActivationBounds {
        ActivationBounds::PACKED
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
        let x = inputs.integers;
        let n_widened = room.widened.len() / n_cols;
        if x.n < WIDENED_FROM || n_widened == 0 {
            let weights = self.rows(n_cols, &outputs);
            kernels.dots_packed(weights, x, room.sums);
            return inputs.rescale(kernels, room.sums, factors, 0, out);
        }
        for first in outputs.clone().step_by(n_widened) {
            let rows = first..(first + n_widened).min(outputs.end);
            let widened = &mut room.widened[..rows.len() * n_cols];
            let sums = &mut room.sums[..rows.len() * x.n];
            kernels.widen_packed(self.rows(n_cols, &rows), widened);
            kernels.dots_i16(widened, x, n_cols, sums);
            let first = rows.start - outputs.start;
            let factors = &factors[first..][..rows.len()];
            inputs.rescale(kernels, sums, factors, first, out);
        }
    }

    fn by_input(&self) -> ByInput<'_> {
        ByInput::Integers(self.into())
    }
}
