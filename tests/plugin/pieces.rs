//! Tensors that come in pieces of rows.

use std::ptr::{null, null_mut};

use half::f16;
use rwkv_edge_plugin as abi;

use crate::common::Random;
use crate::setup::{deviation, standard_deviation, within};
use crate::table::{batch, new_stage, options, refused, shape_of, table, tensor, Room, A, H, V};

/// Some rows of a tensor.
fn rows(whole: &abi::Tensor, first_row: u64, row_count: u64) -> abi::Tensor {
    let row_bytes = whole.n_cols as usize
        * match whole.dtype {
            abi::F32 => 4,
            abi::F16 => 2,
            _ => 1,
        };
    let scales = match whole.row_scales.is_null() {
        true => null(),
        false => whole.row_scales.wrapping_add(first_row as usize),
    };
    let values = whole.values.cast::<u8>();
    abi::Tensor {
        first_row,
        row_count,
        values: values.wrapping_add(first_row as usize * row_bytes).cast(),
        row_scales: scales,
        ..*whole
    }
}

#[test]
fn bad_pieces_are_refused() {
    let table = table();
    let room = Room::new();
    let stage = new_stage(table);
    let key = tensor(abi::ATT_KEY, &room);
    let n = u64::from(A);
    // SAFETY: there is room for more numbers than any of these pieces has.
    unsafe {
        let add = |first_row, row_count| {
            let piece = abi::Tensor {
                first_row,
                row_count,
                ..key
            };
            (table.stage_tensor)(stage, &piece)
        };
        refused(table, add(0, 0), "no rows");
        refused(table, add(0, n + 1), "more rows than there are");
        refused(table, add(0, u64::MAX), "far more rows than there are");
        refused(table, add(n, 1), "rows behind the last");
        refused(table, add(u64::MAX, 2), "rows that wrap around");
        refused(table, add(1, n - 1), "not from the first row on");
        assert_eq!(add(0, 3), abi::OK);
        refused(table, add(0, 3), "the same rows again");
        refused(table, add(2, 2), "rows of which one has come");
        refused(table, add(4, 1), "a row left out");
        refused(table, add(3, n), "more rows than are left");
        let vector = tensor(abi::ATT_BONUS, &room);
        let vector = abi::Tensor {
            row_count: 2,
            ..vector
        };
        let status = (table.stage_tensor)(stage, &vector);
        refused(table, status, "a vector of two rows");
        for number in (0..abi::TENSORS).filter(|&number| number != abi::ATT_KEY) {
            assert_eq!((table.stage_tensor)(stage, &tensor(number, &room)), abi::OK);
        }
        refused(table, (table.stage_finish)(stage), "rows are missing");
        // None of that has done any harm.
        assert_eq!(add(3, n - 3), abi::OK);
        refused(table, add(n, 0), "no rows behind the last");
        refused(table, add(0, n), "a whole tensor again");
        assert_eq!((table.stage_finish)(stage), abi::OK);
        (table.stage_free)(stage);
    }
}

/// Numbers of all tensors of a stage that is a whole model, with scales that only int8 uses.
pub struct Numbers {
    pub options: abi::StageOptions,
    /// Of each tensor.
    pub values: Vec<Vec<u8>>,
    row_scales: Vec<u16>,
    column_exponents: Vec<i8>,
}

impl Numbers {
    pub fn new(options: abi::StageOptions) -> Self {
        let quant = options.quant;
        let rows_max = options.n_vocab.max(options.n_hidden).max(options.n_embd);
        let mut random = Random(7);
        let mut values = |number: u32| {
            let (n_rows, n_cols, is_matrix) = shape_of(&options, number);
            let mut bytes = Vec::new();
            for _ in 0..n_rows * n_cols {
                let x = random.float();
                match (is_matrix, quant) {
                    (true, abi::INT8) => bytes.push((127.0 * x) as i8 as u8),
                    (true, _) => bytes.extend(f16::from_f32(x).to_le_bytes()),
                    // A decay's logarithm is at most 0.
                    (false, _) => bytes.extend((-x.abs()).to_le_bytes()),
                }
            }
            bytes
        };
        Numbers {
            options,
            values: (0..abi::TENSORS).map(&mut values).collect(),
            row_scales: (0..rows_max)
                .map(|row| f16::from_f32(0.01 + 0.001 * (row % 32) as f32).to_bits())
                .collect(),
            column_exponents: (0..rows_max).map(|column| (column % 7) as i8 - 3).collect(),
        }
    }

    pub fn tensor(&self, number: u32) -> abi::Tensor {
        let (n_rows, n_cols, is_matrix) = shape_of(&self.options, number);
        let is_int8 = is_matrix && self.options.quant == abi::INT8;
        let (row_scales, column_exponents) = match is_int8 {
            true => (self.row_scales.as_ptr(), self.column_exponents.as_ptr()),
            false => (null(), null()),
        };
        abi::Tensor {
            struct_size: size_of::<abi::Tensor>() as u32,
            tensor: number,
            layer: 0,
            dtype: if is_matrix {
                self.options.quant
            } else {
                abi::F32
            },
            n_rows,
            n_cols,
            first_row: 0,
            row_count: n_rows,
            values: self.values[number as usize].as_ptr().cast(),
            row_scales,
            column_exponents,
        }
    }

    /// The stage, whose matrices come in pieces of so many rows.
    pub fn stage(&self, table: &abi::Table, rows_at_once: u64) -> *mut abi::Stage {
        let mut stage = null_mut();
        let rows_max = (0..abi::TENSORS)
            .map(|number| self.tensor(number).n_rows)
            .max();
        // SAFETY: structs of the sizes that they say, tensors with as many numbers.
        unsafe {
            assert_eq!((table.stage_new)(&self.options, &mut stage), abi::OK);
            // The first rows of all tensors, then the next ones: they need not come tensor by tensor.
            for first_row in (0..rows_max.unwrap_or(0)).step_by(rows_at_once as usize) {
                for number in 0..abi::TENSORS {
                    let whole = self.tensor(number);
                    if first_row < whole.n_rows {
                        let count = rows_at_once.min(whole.n_rows - first_row);
                        let piece = rows(&whole, first_row, count);
                        assert_eq!((table.stage_tensor)(stage, &piece), abi::OK);
                    }
                }
            }
            assert_eq!((table.stage_finish)(stage), abi::OK);
        }
        stage
    }

    /// Logits of three tokens, fed so many at once, with a stage whose matrices came in pieces of so many rows.
    pub fn logits(&self, table: &abi::Table, rows_at_once: u64, at_once: usize) -> Vec<f32> {
        let (stage, mut state) = (self.stage(table, rows_at_once), null_mut());
        let mut logits = vec![0.0_f32; 3 * V as usize];
        // SAFETY: structs of the sizes that they say, and room for the logits.
        unsafe {
            assert_eq!((table.state_new)(stage, &mut state), abi::OK);
            let states = [state];
            let rows = logits.chunks_mut(at_once * V as usize);
            for (tokens, logits) in [1_u32, 2, V - 1].chunks(at_once).zip(rows) {
                let span = abi::Span {
                    states: states.as_ptr(),
                    n_rows: tokens.len() as u32,
                    rows: abi::ROWS_ALL,
                };
                let batch = abi::Batch {
                    n_spans: 1,
                    spans: &span,
                    n_rows: tokens.len() as u32,
                    write: abi::WRITE_LOGITS,
                    tokens: tokens.as_ptr(),
                    numbers: logits.as_mut_ptr(),
                    ..batch()
                };
                assert_eq!((table.forward)(&stage, 1, &batch), abi::OK);
            }
            (table.state_free)(state);
            (table.stage_free)(stage);
        }
        logits
    }
}

/// Also of those that are stored one row an input.
#[test]
fn tensors_in_pieces_are_what_they_are_whole() {
    let table = table();
    for quant in [abi::F16, abi::INT8] {
        let numbers = Numbers::new(abi::StageOptions { quant, ..options() });
        let whole = numbers.logits(table, u64::from(H), 3);
        assert!(standard_deviation(&whole) > 1e-3);
        for rows_at_once in [1, 3, 5] {
            let found = numbers.logits(table, rows_at_once, 3);
            let what = format!("quant {quant}, {rows_at_once} rows at once");
            // A plugin may sum in another order every time, but one wrong row is far more than that.
            within(&what, deviation(&found, &whole), 1e-4);
        }
    }
}
