//! Weights on their way to a device: through a bounded piece of pinned memory, and rearranged there.

use half::f16;

use crate::driver::{Address, Context, Event, Kernel, Launch, Memory, Pinned, Stream};
use crate::error::{Failure, Result};
use crate::layout::Place;
use crate::params::{Matrix, Repack};

/// Bytes on the way at once; two such pieces take turns.
const PIECE_BYTES: usize = 8 << 20;
/// Threads of a block that rearranges.
const REPACK_THREADS: u32 = 256;

/// A tensor in the host's memory.
pub(crate) enum Source<'a> {
    Vector(&'a [f32]),
    Matrix(SourceMatrix<'a>),
}

/// Of f16, or of int8 with its scales.
pub(crate) struct SourceMatrix<'a> {
    pub(crate) n_rows: u64,
    pub(crate) n_cols: u64,
    pub(crate) bytes: &'a [u8],
    /// (n_rows) f16, and (n_cols) where there are some; int8 only
    pub(crate) scales: Option<(&'a [u16], Option<&'a [i8]>)>,
}

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
                pinned: Pinned::new(context, PIECE_BYTES)?,
                staging: Memory::zeroed(stream, PIECE_BYTES as u64)?,
                free: Event::new(context, false)?,
            })
        };
        Ok(Uploader {
            pieces: [piece()?, piece()?],
            next: 0,
        })
    }

    /// Copies one tensor to its place, and waits for it.
    pub(crate) fn put(
        &mut self,
        stream: &Stream,
        repack: &Kernel,
        place: &Place,
        source: &Source<'_>,
    ) -> Result<()> {
        match (place, source) {
            (Place::Vector { at, .. }, Source::Vector(values)) => stream.upload_slice(*at, values),
            (
                Place::Matrix {
                    matrix, transpose, ..
                },
                Source::Matrix(source),
            ) => {
                if let Some(scales) = source.scales {
                    put_factors(stream, matrix, *transpose, source, scales)?;
                }
                self.put_rows(stream, repack, matrix, *transpose, source)?;
                stream.wait()
            }
            _ => Err(Failure::argument("a vector for a matrix, or the other way")),
        }
    }

    fn put_rows(
        &mut self,
        stream: &Stream,
        repack: &Kernel,
        matrix: &Matrix,
        transpose: bool,
        source: &SourceMatrix<'_>,
    ) -> Result<()> {
        let row_bytes = source.bytes.len() / source.n_rows.max(1) as usize;
        let rows_at_once = PIECE_BYTES / row_bytes.max(1);
        if rows_at_once == 0 {
            return Err(Failure::unsupported(format!("rows of {row_bytes} bytes")));
        }
        for (index, bytes) in source.bytes.chunks(rows_at_once * row_bytes).enumerate() {
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
                first_row: (index * rows_at_once) as u32,
                stride: matrix.stride,
                transpose: u32::from(transpose),
            };
            let n_blocks = (u64::from(n_rows) * u64::from(n_cols)).div_ceil(REPACK_THREADS.into());
            // SAFETY: the staging piece holds the rows, the matrix's memory has room for all of them, and
            // both are written by this stream alone.
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

/// Factors of inputs and outputs, from scales of stored rows and columns.
fn put_factors(
    stream: &Stream,
    matrix: &Matrix,
    transpose: bool,
    source: &SourceMatrix<'_>,
    (rows, columns): (&[u16], Option<&[i8]>),
) -> Result<()> {
    let of_rows: Vec<f32> = rows
        .iter()
        .map(|&bits| f16::from_bits(bits).to_f32())
        .collect();
    let of_columns: Vec<f32> = match columns {
        Some(exponents) => exponents.iter().map(|&e| column_factor(e)).collect(),
        None => vec![1.0; source.n_cols as usize],
    };
    let (inputs, outputs) = match transpose {
        true => (&of_rows, &of_columns),
        false => (&of_columns, &of_rows),
    };
    let put = |at: Address, factors: &[f32]| stream.upload_slice(at, factors);
    put(matrix.input_factors, inputs)?;
    put(matrix.output_factors, outputs)
}

/// 2^(exponent / 4), as the table defines it.
fn column_factor(exponent: i8) -> f32 {
    const QUARTERS: [f32; 4] = [1.0, 1.189_207_1, std::f32::consts::SQRT_2, 1.681_792_8];
    let whole = i32::from(exponent).div_euclid(4);
    let power_of_two = f32::from_bits(((whole + 127) as u32) << 23);
    QUARTERS[usize::from(exponent.rem_euclid(4) as u8)] * power_of_two
}
