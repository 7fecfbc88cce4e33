//! Weights on their way to a device: through a bounded piece of pinned memory, and rearranged there.

use half::f16;

use crate::driver::{Address, Context, Event, Kernel, Launch, Memory, Pinned, Stream};
use crate::error::{Failure, Result};
use crate::kernels::Kernels;
use crate::layout::{Place, Weights, Workspace};
use crate::params::{HiddenBound, Matrix, Repack, THREADS};
use crate::tensor::{Source, SourceWeights};

/// Bytes on the way at once; two such pieces take turns, of every device that gets a copy of the model.
const PINNED_BYTES: usize = 2 << 20;
/// Blocks that look through a matrix's rows.
const BOUND_BLOCKS: u32 = 64;
/// Threads of a block that rearranges.
const REPACK_THREADS: u32 = 256;

/// One piece on the way.
struct Piece {
    pinned: Pinned,
    staging: Memory,
    free: Event,
}

pub(crate) struct Uploader {
    pieces: [Piece; 2],
    next: usize,
}

impl Uploader {
    pub(crate) fn new(context: &std::sync::Arc<Context>, stream: &Stream) -> Result<Self> {
        let piece = || {
            Ok(Piece {
                pinned: Pinned::new(context, PINNED_BYTES)?,
                staging: Memory::zeroed(stream, PINNED_BYTES as u64)?,
                free: Event::new(context, false)?,
            })
        };
        Ok(Uploader {
            pieces: [piece()?, piece()?],
            next: 0,
        })
    }

    /// Copies rows to their place, and waits for them.
    pub(crate) fn put(
        &mut self,
        stream: &Stream,
        repack: &Kernel,
        place: &Place,
        source: &Source<'_>,
    ) -> Result<()> {
        let (matrix, transpose, bytes) = match (*place, &source.weights) {
            (Place::Vector { at, .. }, SourceWeights::F32(values)) => {
                return stream.upload_slice(at, values);
            }
            (
                Place::Matrix {
                    matrix, transpose, ..
                },
                SourceWeights::F16(bytes),
            ) => (matrix, transpose, *bytes),
            (
                Place::Matrix {
                    matrix, transpose, ..
                },
                SourceWeights::Int8 {
                    bytes,
                    row_scales,
                    column_exponents,
                },
            ) => {
                put_row_scales(stream, &matrix, transpose, source.first_row, row_scales)?;
                // They come with every piece, and are the same.
                if source.first_row == 0 {
                    let n_cols = source.n_cols as usize;
                    put_column_exponents(stream, &matrix, transpose, n_cols, *column_exponents)?;
                }
                (matrix, transpose, *bytes)
            }
            _ => return Err(Failure::argument("a vector for a matrix, or the other way")),
        };
        self.put_rows(stream, repack, &matrix, transpose, source, bytes)?;
        stream.wait()
    }

    fn put_rows(
        &mut self,
        stream: &Stream,
        repack: &Kernel,
        matrix: &Matrix,
        transpose: bool,
        source: &Source<'_>,
        bytes: &[u8],
    ) -> Result<()> {
        let row_bytes = bytes.len() / source.row_count.max(1) as usize;
        let rows_at_once = PINNED_BYTES / row_bytes.max(1);
        if rows_at_once == 0 {
            return Err(Failure::unsupported(format!("rows of {row_bytes} bytes")));
        }
        for (index, bytes) in bytes.chunks(rows_at_once * row_bytes).enumerate() {
            let piece = &mut self.pieces[self.next];
            self.next = 1 - self.next;
            // What was in it two pieces ago is on the device.
            piece.free.wait()?;
            piece.pinned.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
            stream.upload(piece.staging.address(), &piece.pinned, 0..bytes.len())?;
            let n_rows = (bytes.len() / row_bytes) as u32;
            let n_cols = source.n_cols as u32;
            let parameters = Repack {
                from: piece.staging.address(),
                to: matrix.weights,
                n_rows,
                n_cols,
                first_row: source.first_row as u32 + (index * rows_at_once) as u32,
                stride: matrix.stride,
                transpose: u32::from(transpose),
            };
            let n_blocks = (u64::from(n_rows) * u64::from(n_cols)).div_ceil(REPACK_THREADS.into());
            // SAFETY: the staging piece holds the rows, which are within the matrix, whose memory has room for
            // all of them, and both are written by this stream alone.
            unsafe {
                stream.launch(
                    repack,
                    [n_blocks as u32, 1, 1],
                    REPACK_THREADS,
                    0,
                    Launch::Alone,
                    &parameters,
                )?
            };
            piece.free.mark(stream)?;
        }
        Ok(())
    }
}

/// Where the factors of stored rows are, and those of stored columns.
fn factors_of(matrix: &Matrix, transpose: bool) -> (Address, Address) {
    match transpose {
        true => (matrix.input_factors, matrix.output_factors),
        false => (matrix.output_factors, matrix.input_factors),
    }
}

/// Factors of the stored rows from `first_row` on.
fn put_row_scales(
    stream: &Stream,
    matrix: &Matrix,
    transpose: bool,
    first_row: u64,
    scales: &[u8],
) -> Result<()> {
    let factors: Vec<f32> = scales
        .chunks_exact(2)
        .map(|bytes| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32())
        .collect();
    let (of_rows, _) = factors_of(matrix, transpose);
    stream.upload_slice(of_rows + 4 * first_row, &factors)
}

/// Factors of all stored columns.
fn put_column_exponents(
    stream: &Stream,
    matrix: &Matrix,
    transpose: bool,
    n_cols: usize,
    exponents: Option<&[u8]>,
) -> Result<()> {
    let factors: Vec<f32> = match exponents {
        Some(exponents) => exponents.iter().map(|&e| column_factor(e as i8)).collect(),
        None => vec![1.0; n_cols],
    };
    let (_, of_columns) = factors_of(matrix, transpose);
    stream.upload_slice(of_columns, &factors)
}

/// 2^(exponent / 4), as the table defines it.
fn column_factor(exponent: i8) -> f32 {
    const QUARTERS: [f32; 4] = [1.0, 1.189_207_1, std::f32::consts::SQRT_2, 1.681_792_8];
    let whole = i32::from(exponent).div_euclid(4);
    let power_of_two = f32::from_bits(((whole + 127) as u32) << 23);
    QUARTERS[usize::from(exponent.rem_euclid(4) as u8)] * power_of_two
}

/// Works out [`Workspace::hidden_bounds`] where kernels need them, once all weights are there.
pub(crate) fn bound_hidden_units(
    stream: &Stream,
    kernels: &Kernels,
    weights: &Weights,
    workspace: &Workspace,
) -> Result<()> {
    let Some(single) = &kernels.single else {
        return Ok(());
    };
    for (index, layer) in (0_u64..).zip(&weights.layers) {
        let parameters = HiddenBound {
            key: layer.ffn_in[0],
            hidden_factors: layer.ffn_value.input_factors,
            bound: workspace.hidden_bounds + 4 * index,
        };
        let (kernel, grid) = (&single.hidden_bound, [BOUND_BLOCKS, 1, 1]);
        // SAFETY: all weights and factors are in the stage's memory, and a number for every layer that was 0.
        unsafe { stream.launch(kernel, grid, THREADS, 0, Launch::Alone, &parameters)? };
    }
    Ok(())
}
