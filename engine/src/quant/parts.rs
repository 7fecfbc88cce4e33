//! What a stored matrix consists of: the arrays that a model file has a tensor for, and a device plugin a part.
//!
//! The first part are the weights themselves, which are large and used where they lie. What belongs to them, such as
//! scales, is small: it is read whole, checked, and kept in memory.

#![forbid(unsafe_code)]

use std::ffi::CStr;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::files::FileBytes;
use crate::quant::convert::pieces;
use crate::quant::Quant;

/// Types of numbers in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Numbers {
    F32,
    F16,
    I8,
    U8,
}

impl Numbers {
    /// The name in safetensors headers.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Numbers::F32 => "F32",
            Numbers::F16 => "F16",
            Numbers::I8 => "I8",
            Numbers::U8 => "U8",
        }
    }

    /// Where the first of these that is NaN or infinite is among them, as they lie in a file.
    pub(crate) fn first_not_finite(self, bytes: &[u8]) -> Option<usize> {
        /// Looks for one first in pieces, without branches within one, so that the compiler uses vectors.
        fn find<const N: usize>(
            bytes: &[u8],
            is_special: impl Fn([u8; N]) -> bool,
        ) -> Option<usize> {
            const PIECE: usize = 1024;
            let special = |number: &[u8]| {
                let mut copy = [0; N];
                copy.copy_from_slice(number);
                is_special(copy)
            };
            let mut pieces = bytes.chunks(PIECE * N);
            let piece = pieces.position(|piece| {
                let numbers = piece.chunks_exact(N);
                numbers.fold(false, |found, number| found | special(number))
            })?;
            let mut inside = bytes[piece * PIECE * N..].chunks_exact(N);
            inside.position(special).map(|at| piece * PIECE + at)
        }
        match self {
            Numbers::F32 => find(bytes, |four| !f32::from_le_bytes(four).is_finite()),
            Numbers::F16 => find(bytes, |two| u16::from_le_bytes(two) & 0x7c00 == 0x7c00),
            Numbers::I8 | Numbers::U8 => None,
        }
    }

    /// Of one.
    fn size_bytes(self) -> u64 {
        match self {
            Numbers::F32 => 4,
            Numbers::F16 => 2,
            Numbers::I8 | Numbers::U8 => 1,
        }
    }
}

/// One of the arrays that a matrix consists of.
#[derive(Clone, Debug)]
pub(crate) struct PartKind {
    /// What follows the matrix's name in model files; nothing in the first part.
    pub(crate) suffix: &'static str,
    /// What device plugins call it.
    pub(crate) device_name: &'static CStr,
    pub(crate) numbers: Numbers,
    pub(crate) shape: Vec<usize>,
    /// Whether the first dimension is that of the matrix's rows. What is not by rows belongs to all of them.
    pub(crate) is_by_rows: bool,
    /// Whether it is left out where all its bytes are 0.
    pub(crate) is_optional: bool,
}

impl PartKind {
    /// The weights, (n_rows, n_cols) numbers.
    pub(crate) fn values(numbers: Numbers, n_rows: usize, n_cols: usize) -> Self {
        PartKind {
            suffix: "",
            device_name: c"values",
            numbers,
            shape: vec![n_rows, n_cols],
            is_by_rows: true,
            is_optional: false,
        }
    }

    /// Of what belongs to one row.
    fn row_size_bytes(&self) -> u64 {
        let of_row = self.shape.iter().skip(1);
        of_row.fold(self.numbers.size_bytes(), |size, &n| {
            size.saturating_mul(n as u64)
        })
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        let n = self.shape.first().copied().unwrap_or(1);
        (n as u64).saturating_mul(self.row_size_bytes())
    }

    fn is_left_out(&self, bytes: &[u8]) -> bool {
        self.is_optional && bytes.iter().all(|&byte| byte == 0)
    }
}

/// A part that is not as it has to be.
#[derive(Debug)]
pub(crate) struct BadPart {
    /// The part's; see [`PartKind::suffix`].
    pub(crate) suffix: &'static str,
    pub(crate) error: Error,
}

/// How large a matrix is as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MatrixSize {
    pub(crate) n_rows: usize,
    pub(crate) n_cols: usize,
    pub(crate) quant: Quant,
    row_size_bytes: u64,
    /// Of what belongs to all rows.
    rest_size_bytes: u64,
}

impl MatrixSize {
    /// Of a matrix that has these parts.
    pub(super) fn new<'a>(
        quant: Quant,
        (n_rows, n_cols): (usize, usize),
        parts: impl Iterator<Item = &'a PartKind>,
    ) -> Self {
        let (mut row_size_bytes, mut rest_size_bytes) = (0, 0);
        for part in parts {
            match part.is_by_rows {
                true => row_size_bytes += part.row_size_bytes(),
                false => rest_size_bytes += part.size_bytes(),
            }
        }
        MatrixSize {
            n_rows,
            n_cols,
            quant,
            row_size_bytes,
            rest_size_bytes,
        }
    }

    /// Bytes of one stored row with what belongs to it.
    pub(crate) fn row_size_bytes(&self) -> u64 {
        self.row_size_bytes
    }

    /// Bytes of all parts.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.n_rows as u64 * self.row_size_bytes + self.rest_size_bytes
    }
}

/// Parts of a matrix, or of some of its rows, without those that are left out.
pub(super) fn present<'a>(
    kinds: impl IntoIterator<Item = PartKind>,
    parts: impl IntoIterator<Item = &'a [u8]>,
) -> Vec<(PartKind, &'a [u8])> {
    let all = kinds.into_iter().zip(parts);
    all.filter(|(kind, bytes)| !kind.is_left_out(bytes))
        .collect()
}

/// Consecutive rows of a matrix as stored, on their way to a device.
pub(crate) struct MatrixRows<'a> {
    size: MatrixSize,
    range: Range<usize>,
    parts: Vec<(PartKind, &'a [u8])>,
}

impl<'a> MatrixRows<'a> {
    /// Of all parts of the rows, also those that may be left out.
    ///
    /// # Panics
    /// When there are no rows, more than the matrix has, or parts of other sizes.
    pub(super) fn new(
        quant: Quant,
        (n_rows, n_cols): (usize, usize),
        range: Range<usize>,
        parts: impl IntoIterator<Item = &'a [u8]>,
    ) -> Self {
        assert!(range.start < range.end && range.end <= n_rows);
        let parts = present(quant.parts(n_rows, n_cols), parts);
        for (kind, bytes) in &parts {
            let expected = match kind.is_by_rows {
                true => kind.row_size_bytes().saturating_mul(range.len() as u64),
                false => kind.size_bytes(),
            };
            assert_eq!(bytes.len() as u64, expected, "{quant}{}", kind.suffix);
        }
        let kinds = parts.iter().map(|(kind, _)| kind);
        MatrixRows {
            size: MatrixSize::new(quant, (n_rows, n_cols), kinds),
            range,
            parts,
        }
    }

    /// Of the whole matrix.
    pub(crate) fn size(&self) -> MatrixSize {
        self.size
    }

    /// Which rows of the matrix these are: at least one.
    pub(crate) fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// What belongs to these rows, the weights first, and, the same for all pieces, what belongs to the whole matrix. Each
    /// is as long as its kind says.
    pub(crate) fn parts(&self) -> &[(PartKind, &'a [u8])] {
        &self.parts
    }
}

/// A stored matrix of which one piece of rows at a time is read.
pub(crate) struct Stored<'a> {
    quant: Quant,
    shape: (usize, usize),
    kinds: Vec<PartKind>,
    /// All parts but the first.
    beside: &'a [Option<FileBytes>],
}

impl<'a> Stored<'a> {
    /// A matrix (n_rows, n_cols) with these parts beside the first; `None` for what is left out.
    pub(crate) fn new(
        quant: Quant,
        (n_rows, n_cols): (usize, usize),
        beside: &'a [Option<FileBytes>],
    ) -> std::result::Result<Self, BadPart> {
        let kinds = quant.parts(n_rows, n_cols);
        check_sizes(&kinds[1..], beside)?;
        quant.check_beside(beside)?;
        Ok(Stored {
            quant,
            shape: (n_rows, n_cols),
            kinds,
            beside,
        })
    }

    /// Gives the matrix to `take` in pieces; `read` has the first part of some rows.
    pub(crate) fn for_each_piece(
        &self,
        mut read: impl FnMut(Range<usize>) -> Result<FileBytes>,
        take: &mut dyn FnMut(MatrixRows<'_>) -> Result<()>,
    ) -> Result<()> {
        let of_row = |kind: &PartKind| kind.row_size_bytes() as usize;
        for rows in pieces(self.shape.0, of_row(&self.kinds[0])) {
            let values = read(rows.clone())?;
            let beside = self.kinds[1..].iter().zip(self.beside);
            let beside = beside.map(|(kind, part)| match part {
                None => &[],
                Some(part) if kind.is_by_rows => {
                    &part[rows.start * of_row(kind)..rows.end * of_row(kind)]
                }
                Some(part) => &part[..],
            });
            let parts = std::iter::once(&values[..]).chain(beside);
            take(MatrixRows::new(self.quant, self.shape, rows.clone(), parts))?;
        }
        Ok(())
    }
}

/// Refuses parts that are missing or of another size than they have to be.
pub(super) fn check_sizes(
    kinds: &[PartKind],
    parts: &[Option<FileBytes>],
) -> std::result::Result<(), BadPart> {
    for (index, kind) in kinds.iter().enumerate() {
        let text = match parts.get(index).and_then(Option::as_ref) {
            None if kind.is_optional => continue,
            None => "missing".to_owned(),
            Some(part) if part.len() as u64 == kind.size_bytes() => continue,
            Some(part) => format!("{} bytes, expected {}", part.len(), kind.size_bytes()),
        };
        return Err(BadPart {
            suffix: kind.suffix,
            error: Error::format(text),
        });
    }
    Ok(())
}
