//! Tensors that come in pieces of rows.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::ptr::null_mut;

use half::f16;
use rwkv_edge_plugin as abi;

use crate::calls::{batch, options, refused, shape_of, table, Options, Room, Tensor, A, H, V};
use crate::calls::{Part, TENSORS};
use crate::common::Random;
use crate::setup::{deviation, standard_deviation, within};

#[test]
fn bad_pieces_are_refused() {
    let table = table();
    let room = Room::new();
    let stage = options().new_stage(table);
    let key = room.tensor(c"att.key.weight");
    let n = u64::from(A);
    let add = |first_row: u64, row_count: u64| {
        // Bytes that there are, of the first rows, for rows that there are not.
        let mut piece = key.rows(0, row_count.min(2 * n));
        (piece.rest.first_row, piece.rest.row_count) = (first_row, row_count);
        piece.send(table, stage)
    };
    // SAFETY: the stage was just made.
    unsafe {
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
        let vector = room.tensor(c"att.time_first").rows(0, 2);
        refused(table, vector.send(table, stage), "a vector of two rows");
        for name in TENSORS.into_iter().filter(|&name| name != key.name) {
            assert_eq!(room.tensor(name).send(table, stage), abi::OK);
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

/// Numbers of all tensors of a stage that is a whole model, with scales that only int8 uses. No number lies where its type
/// would like to.
pub struct Numbers {
    options: Options,
    values: BTreeMap<&'static CStr, Vec<u8>>,
    row_scales: Vec<u8>,
    column_exponents: Vec<u8>,
}

/// Bytes in front of the numbers of a part.
const PAST: usize = 1;

impl Numbers {
    pub fn new(options: Options) -> Self {
        let sizes = [c"n_vocab", c"n_hidden", c"n_embd"].map(|name| options.size(name));
        let rows_max = sizes.into_iter().max().unwrap_or(0);
        let mut random = Random(7);
        let mut values = |name: &'static CStr| {
            let (n_rows, n_cols, is_matrix) = shape_of(&options, name);
            let mut bytes = vec![0; PAST];
            for _ in 0..n_rows * n_cols {
                let x = random.float();
                match (is_matrix, options.quant == c"int8") {
                    (true, true) => bytes.push((127.0 * x) as i8 as u8),
                    (true, false) => bytes.extend(f16::from_f32(x).to_le_bytes()),
                    // A decay's logarithm is at most 0.
                    (false, _) => bytes.extend((-x.abs()).to_le_bytes()),
                }
            }
            (name, bytes)
        };
        let values = TENSORS.map(&mut values).into();
        let scale = |row: u64| f16::from_f32(0.01 + 0.001 * (row % 32) as f32).to_le_bytes();
        let exponent = |column: u64| (column % 7) as u8;
        Numbers {
            options,
            values,
            row_scales: [0; PAST]
                .into_iter()
                .chain((0..rows_max).flat_map(scale))
                .collect(),
            column_exponents: (0..rows_max + PAST as u64)
                .map(|column| exponent(column).wrapping_sub(3))
                .collect(),
        }
    }

    /// Changes a number of a vector.
    pub fn set(&mut self, name: &CStr, at: usize, to: f32) {
        let bytes = self.values.get_mut(name).expect("a tensor");
        bytes[PAST + 4 * at..][..4].copy_from_slice(&to.to_le_bytes());
    }

    pub fn tensor(&self, name: &'static CStr) -> Tensor {
        let (n_rows, n_cols, is_matrix) = shape_of(&self.options, name);
        let part = |part: &'static CStr, bytes: &[u8], n: u64| -> Part {
            let bytes = &bytes[PAST..][..n as usize];
            (part, bytes.as_ptr(), n)
        };
        let values = &self.values[name];
        let mut parts = vec![part(c"values", values, (values.len() - PAST) as u64)];
        if is_matrix && self.options.quant == c"int8" {
            parts.push(part(c"row_scales", &self.row_scales, 2 * n_rows));
            parts.push(part(c"column_exponents", &self.column_exponents, n_cols));
        }
        Tensor::new(&self.options, name, parts)
    }

    /// The stage, whose matrices come in pieces of so many rows.
    pub fn stage(&self, table: &abi::Table, rows_at_once: u64) -> *mut abi::Stage {
        let stage = self.options.new_stage(table);
        let all = TENSORS.map(|name| self.tensor(name));
        let rows_max = all.iter().map(|tensor| tensor.rest.n_rows).max();
        // The first rows of all tensors, then the next ones: they need not come tensor by tensor.
        for first_row in (0..rows_max.unwrap_or(0)).step_by(rows_at_once as usize) {
            for whole in all.iter().filter(|whole| first_row < whole.rest.n_rows) {
                let count = rows_at_once.min(whole.rest.n_rows - first_row);
                assert_eq!(whole.rows(first_row, count).send(table, stage), abi::OK);
            }
        }
        // SAFETY: the stage has all its tensors.
        assert_eq!(unsafe { (table.stage_finish)(stage) }, abi::OK);
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
    for quant in [c"f16", c"int8"] {
        let numbers = Numbers::new(Options { quant, ..options() });
        let whole = numbers.logits(table, u64::from(H), 3);
        assert!(standard_deviation(&whole) > 1e-3);
        for rows_at_once in [1, 3, 5] {
            let found = numbers.logits(table, rows_at_once, 3);
            let what = format!("quant {quant:?}, {rows_at_once} rows at once");
            // A plugin may sum in another order every time, but one wrong row is far more than that.
            within(&what, deviation(&found, &whole), 1e-4);
        }
    }
}
