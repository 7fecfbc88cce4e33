//! What every quantisation has to keep, whatever its parts are. Products with it are tested in `products/tests.rs`.

use std::collections::BTreeMap;
use std::ops::Range;

use super::blocks::{Blocks, RowSource};
use super::convert::{convert_rows, convert_rows_in_pieces, UPLOAD_BYTES};
use super::matrix::{Layout, Matrix};
use super::parts::{MatrixRows, MatrixSize, Numbers, PartKind, Stored};
use super::{Quant, Weights};
use crate::error::Result;
use crate::files::FileBytes;
use crate::math::threads::Pool;

/// Numbers that look random, with rows and columns of several sizes, and some of zeros.
struct Noise {
    n_cols: usize,
}

impl RowSource for Noise {
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        for (row, out) in rows.zip(out.chunks_exact_mut(self.n_cols)) {
            for (column, out) in out.iter_mut().enumerate() {
                let size = (row % 5 * (column % 7)) as f32;
                // Beyond 32 bits with the largest matrix.
                let noise = (row as u64 * 7919 + column as u64 * 104_729) % 20_011;
                *out = size * (noise as f32 / 3000.0 - 3.0);
            }
        }
        Ok(())
    }

    fn place(&self) -> String {
        "noise".into()
    }
}

fn matrix(quant: Quant, (n_rows, n_cols): (usize, usize), pool: &Pool) -> Matrix {
    let source = Noise { n_cols };
    let mut blocks = Blocks::new(&source, n_rows, n_cols, pool);
    of_weights(
        convert_rows(&mut blocks, quant).expect("finite"),
        (n_rows, n_cols),
    )
}

fn of_weights(weights: Weights, (n_rows, n_cols): (usize, usize)) -> Matrix {
    Matrix {
        name: "w".into(),
        n_rows,
        n_cols,
        layout: Layout::RowPerOutput,
        weights,
    }
}

fn rows(matrix: &Matrix) -> Vec<f32> {
    let mut all = vec![f32::NAN; matrix.n_rows * matrix.n_cols];
    for (row, out) in all.chunks_exact_mut(matrix.n_cols).enumerate() {
        matrix.read_row(row, out);
    }
    all
}

/// All parts of a matrix as a file has them, `None` for those that are left out.
fn stored(matrix: &Matrix) -> Vec<Option<FileBytes>> {
    let there: BTreeMap<_, _> = matrix
        .parts()
        .into_iter()
        .map(|(kind, bytes)| (kind.suffix, FileBytes::from(bytes.to_vec())))
        .collect();
    let kinds = matrix.quant().parts(matrix.n_rows, matrix.n_cols);
    kinds
        .iter()
        .map(|kind| there.get(kind.suffix).cloned())
        .collect()
}

const SHAPES: [(usize, usize); 5] = [(1, 1), (3, 7), (64, 32), (70, 131), (130, 66)];

#[test]
fn sizes_are_those_of_the_parts() {
    let pool = Pool::new(1);
    for &quant in Quant::ALL {
        assert_eq!(Quant::from_name(quant.name()), Some(quant));
        for shape in SHAPES {
            let matrix = matrix(quant, shape, &pool);
            assert_eq!(matrix.quant(), quant);
            let (parts, size) = (matrix.parts(), matrix.size());
            let mut of_parts = 0;
            for (kind, bytes) in &parts {
                assert_eq!(bytes.len() as u64, kind.size_bytes(), "{quant} {shape:?}");
                of_parts += bytes.len() as u64;
            }
            assert_eq!((parts[0].0.suffix, parts[0].1), ("", matrix.bytes()));
            assert_eq!(size.size_bytes(), of_parts, "{quant} {shape:?}");
            let values = matrix.bytes().len() as u64;
            assert_eq!(shape.0 as u64 * quant.row_values_bytes(shape.1), values);
            let memory = |in_place| quant.memory_bytes(shape, in_place);
            assert_eq!(memory(false) - memory(true), values, "{quant} {shape:?}");
            assert!(memory(false) >= of_parts, "{quant} {shape:?}");
            if quant.floats().is_some() {
                assert_eq!(memory(true), 0, "floats are nothing but themselves");
            }
        }
    }
}

#[test]
fn weights_of_parts_are_the_weights() {
    let pool = Pool::new(1);
    for &quant in Quant::ALL {
        for shape in SHAPES {
            let what = format!("{quant} {shape:?}");
            let made = matrix(quant, shape, &pool);
            let parts = stored(&made);
            let again = Weights::from_parts(quant, shape, &parts).expect("good parts");
            let again = of_weights(again.expect("vectors are aligned"), shape);
            assert!(
                again.in_file_bytes().is_some() && made.in_file_bytes().is_none(),
                "{what}"
            );
            assert_eq!(rows(&again), rows(&made), "{what}");
            assert_eq!(again.size(), made.size(), "{what}");
            let bytes = |matrix: &Matrix| -> Vec<Vec<u8>> {
                let parts = matrix.parts().into_iter();
                parts.map(|(_, bytes)| bytes.to_vec()).collect()
            };
            assert_eq!(bytes(&again), bytes(&made), "{what}");
            again.check_finite(0..shape.0, false).expect("they are");

            for (index, kind) in quant.parts(shape.0, shape.1).iter().enumerate() {
                let refused = |part: Option<FileBytes>| {
                    let mut parts = parts.clone();
                    parts[index] = part;
                    let found = Weights::from_parts(quant, shape, &parts);
                    found.err().map(|bad| (bad.suffix, bad.error.to_string()))
                };
                let short = vec![0; kind.size_bytes() as usize - 1];
                let (suffix, text) = refused(Some(short.into())).expect("too short");
                assert!(text.contains(&kind.size_bytes().to_string()), "{text}");
                assert_eq!(suffix, kind.suffix, "{what}");
                let missing = refused(None).map(|(suffix, _)| suffix);
                let expected = (!kind.is_optional).then_some(kind.suffix);
                assert_eq!(missing, expected, "{what}");
            }
        }
    }
}

/// Pieces put together.
#[derive(Default)]
struct Joined {
    size: Option<MatrixSize>,
    n_rows: usize,
    n_pieces: usize,
    parts: Vec<Vec<u8>>,
}

impl Joined {
    fn add(&mut self, rows: &MatrixRows<'_>) {
        assert!(self.size.is_none_or(|size| size == rows.size()));
        assert_eq!(rows.range().start, self.n_rows);
        self.size = Some(rows.size());
        self.n_rows = rows.range().end;
        self.n_pieces += 1;
        self.parts.resize(rows.parts().len(), Vec::new());
        for ((kind, bytes), all) in rows.parts().iter().zip(&mut self.parts) {
            if !kind.is_by_rows {
                all.clear();
            }
            all.extend_from_slice(bytes);
        }
        assert!(rows.parts()[0].1.len() <= UPLOAD_BYTES);
    }
}

#[test]
fn pieces_are_the_whole() {
    // Of 17 MiB or more, so that there are several of each. Emulated CPUs take minutes for the search of packed scales, and how
    // rows are cut is no matter of the CPU.
    let is_packed = |quant: Quant| quant.parts(1, 64)[0].numbers == Numbers::U8;
    let is_emulated = cfg!(not(target_arch = "x86_64"));
    let pool = Pool::new(2);
    let all = Quant::ALL.iter().copied();
    for quant in all.filter(|&quant| !(is_emulated && is_packed(quant))) {
        let shape = (if is_packed(quant) { 34 } else { 17 }, 1 << 20);
        let whole = matrix(quant, shape, &pool);
        let source = Noise { n_cols: shape.1 };
        let mut blocks = Blocks::new(&source, shape.0, shape.1, &pool);
        let mut converted = Joined::default();
        convert_rows_in_pieces(&mut blocks, quant, &mut |rows| {
            converted.add(&rows);
            Ok(())
        })
        .expect("finite");

        let parts = stored(&whole);
        let values = parts[0].clone().expect("is there");
        let row_bytes = quant.row_values_bytes(shape.1) as usize;
        let mut from_file = Joined::default();
        let read = |rows: Range<usize>| {
            let values = values.slice(rows.start * row_bytes..rows.end * row_bytes);
            Ok(values.expect("rows of the matrix"))
        };
        Stored::new(quant, shape, &parts[1..])
            .expect("good parts")
            .for_each_piece(read, &mut |rows| {
                from_file.add(&rows);
                Ok(())
            })
            .expect("nothing fails");

        for joined in [converted, from_file] {
            assert!(joined.n_pieces > 1 && joined.n_rows == shape.0, "{quant}");
            assert_eq!(joined.size, Some(whole.size()), "{quant}");
            let expected: Vec<&[u8]> = whole.parts().into_iter().map(|(_, b)| b).collect();
            assert!(joined.parts == expected, "{quant}");
        }
    }
}

#[test]
fn names_of_parts_are_not_those_of_others() {
    for &quant in Quant::ALL {
        let kinds = quant.parts(2, 64);
        let different = |of: &dyn Fn(&PartKind) -> String| {
            let names: std::collections::BTreeSet<_> = kinds.iter().map(of).collect();
            assert_eq!(names.len(), kinds.len(), "{quant}");
        };
        different(&|kind| kind.suffix.to_owned());
        different(&|kind| kind.device_name.to_string_lossy().into_owned());
        let first = (kinds[0].suffix, kinds[0].is_by_rows, kinds[0].is_optional);
        assert_eq!(first, ("", true, false), "{quant}");
    }
}
