//! Floats of 32 and of 16 bits: `weight[r, c] = values[r, c]`.
//!
//! One part, (n_rows, n_cols), as checkpoints have it too: where a checkpoint's numbers are of the type, they are used in
//! place. Activations stay f32, and so do sums.

#![forbid(unsafe_code)]

use std::ops::Range;

use bytemuck::{cast_slice, Pod};
use half::f16;

use crate::error::{Error, Result};
use crate::files::FileBytes;
use crate::math::kernels::{KernelSet, Rows};
use crate::math::threads::ColumnBlock;
use crate::math::{reserve, resized};
use crate::quant::blocks::{Block, Blocks, TASK_ROWS};
use crate::quant::matrix::Buffer;
use crate::quant::parts::{Numbers, PartKind};
use crate::quant::{
    ByInput, FloatSums, Format, Inputs, Quant, Room, SumsOfFloats, TakeParts, Weights,
};

/// What differs between the two.
pub(super) trait Float: Pod + Send + Sync {
    const QUANT: Quant;
    const NAME: &'static str;
    const NUMBERS: Numbers;

    fn weights(values: Buffer<Self>) -> Weights;
    fn sums(values: &Buffer<Self>) -> FloatSums<'_>;
    fn is_finite(self) -> bool;
    fn widen(values: &[Self], out: &mut [f32]);

    /// The numbers of a block, in `room` where they have to be rounded.
    fn of_block<'a>(block: &'a Block<'_>, room: &'a mut Vec<Self>) -> Result<&'a [Self]>;

    /// Adds the numbers of a block to those before it.
    fn append_block(block: &Block<'_>, out: &mut Vec<Self>) -> Result<()>;

    // The kernels of this type.
    fn dots(kernels: KernelSet, w: &[Self], x: Rows<'_, f32>, n_cols: usize, out: &mut [f32]);
    fn gather(kernels: KernelSet, w: &[Self], rows: &[u32], values: &[f32], out: &mut [f32]);
    fn pack(
        kernels: KernelSet,
        w: &[Self],
        n_cols: usize,
        outputs: Range<usize>,
        panel: &mut [f32],
    );
}

impl Float for f32 {
    const QUANT: Quant = Quant::F32;
    const NAME: &'static str = "f32";
    const NUMBERS: Numbers = Numbers::F32;

    fn weights(values: Buffer<f32>) -> Weights {
        Weights::F32(values)
    }

    fn sums(values: &Buffer<f32>) -> FloatSums<'_> {
        FloatSums::F32(values)
    }

    fn is_finite(self) -> bool {
        self.is_finite()
    }

    fn widen(values: &[f32], out: &mut [f32]) {
        out.copy_from_slice(values);
    }

    fn of_block<'a>(block: &'a Block<'_>, _room: &'a mut Vec<f32>) -> Result<&'a [f32]> {
        Ok(block.numbers)
    }

    fn append_block(block: &Block<'_>, out: &mut Vec<f32>) -> Result<()> {
        out.extend_from_slice(block.numbers);
        Ok(())
    }

    #[inline]
    fn dots(kernels: KernelSet, w: &[f32], x: Rows<'_, f32>, n_cols: usize, out: &mut [f32]) {
        kernels.dots_f32(w, x, n_cols, out);
    }

    #[inline]
    fn gather(kernels: KernelSet, w: &[f32], rows: &[u32], values: &[f32], out: &mut [f32]) {
        kernels.gather_f32(w, rows, values, out);
    }

    #[inline]
    fn pack(
        kernels: KernelSet,
        w: &[f32],
        n_cols: usize,
        outputs: Range<usize>,
        panel: &mut [f32],
    ) {
        kernels.pack_f32(w, n_cols, outputs.start, outputs.len(), panel);
    }
}

impl Float for f16 {
    const QUANT: Quant = Quant::F16;
    const NAME: &'static str = "f16";
    const NUMBERS: Numbers = Numbers::F16;

    fn weights(values: Buffer<f16>) -> Weights {
        Weights::F16(values)
    }

    fn sums(values: &Buffer<f16>) -> FloatSums<'_> {
        FloatSums::F16(values)
    }

    fn is_finite(self) -> bool {
        f16::is_finite(self)
    }

    fn widen(values: &[f16], out: &mut [f32]) {
        for (out, value) in out.iter_mut().zip(values) {
            *out = value.to_f32();
        }
    }

    fn of_block<'a>(block: &'a Block<'_>, room: &'a mut Vec<f16>) -> Result<&'a [f16]> {
        resized(room, block.numbers.len(), f16::ZERO, "a piece of a matrix")?;
        round(block, room)?;
        Ok(room)
    }

    fn append_block(block: &Block<'_>, out: &mut Vec<f16>) -> Result<()> {
        let start = out.len();
        out.resize(start + block.numbers.len(), f16::ZERO);
        round(block, &mut out[start..])
    }

    #[inline]
    fn dots(kernels: KernelSet, w: &[f16], x: Rows<'_, f32>, n_cols: usize, out: &mut [f32]) {
        kernels.dots_f16(w, x, n_cols, out);
    }

    #[inline]
    fn gather(kernels: KernelSet, w: &[f16], rows: &[u32], values: &[f32], out: &mut [f32]) {
        kernels.gather_f16(w, rows, values, out);
    }

    #[inline]
    fn pack(
        kernels: KernelSet,
        w: &[f16],
        n_cols: usize,
        outputs: Range<usize>,
        panel: &mut [f32],
    ) {
        kernels.pack_f16(w, n_cols, outputs.start, outputs.len(), panel);
    }
}

/// Rounds a block to `out`, which has its length.
fn round(block: &Block<'_>, out: &mut [f16]) -> Result<()> {
    let (numbers, n_cols) = (block.numbers, block.numbers.len() / block.rows.len());
    block.pool.run_chunks(out, TASK_ROWS * n_cols, |task, out| {
        let numbers = &numbers[task * TASK_ROWS * n_cols..][..out.len()];
        out.iter_mut()
            .zip(numbers)
            .for_each(|(out, &number)| *out = f16::from_f32(number));
    });
    match out.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => {
            let (row, column) = (block.rows.start + at / n_cols, at % n_cols);
            let text = format!(
                "{} at [{row}, {column}], which is beyond the range of f16: use --quant f32",
                numbers[at]
            );
            Err(Error::unsupported(text).at(block.source.place()))
        }
    }
}

impl<T: Float> From<Buffer<T>> for Weights {
    fn from(values: Buffer<T>) -> Self {
        T::weights(values)
    }
}

impl<T: Float> Format for Buffer<T> {
    const QUANT: Quant = T::QUANT;
    const NAME: &'static str = T::NAME;
    const FLOATS: Option<Numbers> = Some(T::NUMBERS);

    fn parts(n_rows: usize, n_cols: usize) -> Vec<PartKind> {
        vec![PartKind::values(T::NUMBERS, n_rows, n_cols)]
    }

    fn from_parts(_: (usize, usize), parts: &[Option<FileBytes>]) -> Result<Option<Self>> {
        let values = parts.iter().flatten().next();
        Ok(values.cloned().and_then(Buffer::in_file))
    }

    #[inline]
    fn values(&self) -> &[u8] {
        cast_slice(self.as_slice())
    }

    fn in_file_bytes(&self) -> Option<&FileBytes> {
        self.file_bytes()
    }

    fn convert(blocks: &mut Blocks<'_>) -> Result<Self> {
        let mut out = reserve(blocks.n_rows * blocks.n_cols, "weights")?;
        blocks.for_each(|block| T::append_block(block, &mut out))?;
        Ok(Buffer::owned(out))
    }

    fn convert_in_pieces(blocks: &mut Blocks<'_>, take: &mut TakeParts<'_>) -> Result<()> {
        let mut room = Vec::new();
        blocks.for_each(|block| {
            let values = T::of_block(block, &mut room)?;
            take(block.rows.clone(), &[cast_slice(values)])
        })
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        T::widen(&self.as_slice()[row * out.len()..][..out.len()], out);
    }

    fn first_not_finite(&self, weights: Range<usize>) -> Option<(usize, f32)> {
        let weights = &self.as_slice()[weights];
        let at = weights.iter().position(|w| !T::is_finite(*w))?;
        let mut value = [0.0];
        T::widen(&weights[at..at + 1], &mut value);
        Some((at, value[0]))
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
        let weights = stored_rows(self, n_cols, &outputs);
        T::dots(kernels, weights, inputs.floats, n_cols, room.product);
        for (row, product) in room.product.chunks_exact(outputs.len()).enumerate() {
            out.row_mut(row).copy_from_slice(product);
        }
    }

    fn by_input(&self) -> ByInput<'_> {
        ByInput::Floats(T::sums(self))
    }
}

impl<T: Float> SumsOfFloats for Buffer<T> {
    #[inline]
    fn gather(
        &self,
        kernels: KernelSet,
        inputs: Range<usize>,
        rows: &[u32],
        values: &[f32],
        out: &mut [f32],
    ) {
        T::gather(
            kernels,
            stored_rows(self, out.len(), &inputs),
            rows,
            values,
            out,
        );
    }

    fn pack(
        &self,
        kernels: KernelSet,
        n_cols: usize,
        inputs: Range<usize>,
        outputs: Range<usize>,
        panel: &mut [f32],
    ) {
        T::pack(
            kernels,
            stored_rows(self, n_cols, &inputs),
            n_cols,
            outputs,
            panel,
        );
    }
}

#[inline]
fn stored_rows<'a, T: Pod>(values: &'a Buffer<T>, n_cols: usize, rows: &Range<usize>) -> &'a [T] {
    &values.as_slice()[rows.start * n_cols..rows.end * n_cols]
}
