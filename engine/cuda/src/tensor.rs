//! Tensors as they come from the host: which one, and its numbers, as many as its sizes say.

use std::fmt;

use rwkv_edge_plugin as abi;

use crate::error::{Failure, Result};
use crate::names::{chosen, Named};
use crate::options::Quant;

/// Which tensor: its name, and its layer, or [`abi::NO_LAYER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TensorId {
    pub(crate) name: &'static str,
    pub(crate) layer: u32,
}

/// All tensors of RWKV-4.
pub(crate) const NAMES: [&str; 24] = [
    "emb.weight",
    "ln0.weight",
    "ln0.bias",
    "ln1.weight",
    "ln1.bias",
    "att.time_mix_k",
    "att.time_mix_v",
    "att.time_mix_r",
    "att.decay_log",
    "att.time_first",
    "att.key.weight",
    "att.value.weight",
    "att.receptance.weight",
    "att.output.weight",
    "ln2.weight",
    "ln2.bias",
    "ffn.time_mix_k",
    "ffn.time_mix_r",
    "ffn.key.weight",
    "ffn.receptance.weight",
    "ffn.value.weight",
    "ln_out.weight",
    "ln_out.bias",
    "head.weight",
];

impl TensorId {
    pub(crate) fn new(name: &str, layer: u32) -> Result<Self> {
        let known = NAMES.into_iter().find(|known| *known == name);
        let unknown =
            || Failure::unsupported(format!("tensor {name}: rwkv-4 has none of that name"));
        Ok(TensorId {
            name: known.ok_or_else(unknown)?,
            layer,
        })
    }
}

impl fmt::Display for TensorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            abi::NO_LAYER => f.write_str(self.name),
            layer => write!(f, "blocks.{layer}.{}", self.name),
        }
    }
}

/// Consecutive rows of a tensor in the host's memory.
pub(crate) struct Source<'a> {
    /// Of the whole tensor.
    pub(crate) n_rows: u64,
    pub(crate) n_cols: u64,
    /// Which of its rows these are; within the tensor.
    pub(crate) first_row: u64,
    pub(crate) row_count: u64,
    pub(crate) weights: SourceWeights<'a>,
}

/// Numbers of these rows, little-endian and in any alignment.
pub(crate) enum SourceWeights<'a> {
    /// Of a vector.
    F32(&'a [u8]),
    F16(&'a [u8]),
    Int8 {
        bytes: &'a [u8],
        /// (row_count) f16
        row_scales: &'a [u8],
        /// (n_cols), or none where all are 0
        column_exponents: Option<&'a [u8]>,
    },
}

impl<'a> Source<'a> {
    /// Rows of a tensor whose values are of `quant`, for a stage of `expected`.
    pub(crate) fn new(
        id: TensorId,
        tensor: &abi::Tensor,
        (quant, expected): (&str, Quant),
        parts: &Named<&'a [u8]>,
    ) -> Result<Self> {
        let (n_cols, row_count) = (tensor.n_cols, tensor.row_count);
        let most = u64::from(u32::MAX);
        let n = tensor.n_rows.checked_mul(n_cols);
        // No slice may have more bytes than this.
        let n = n.filter(|&n| n <= isize::MAX as u64 / 4);
        n.filter(|_| tensor.n_rows <= most && n_cols <= most)
            .ok_or_else(|| Failure::argument(format!("tensor {id}: too large")))?;
        let rows_left = tensor.n_rows.checked_sub(tensor.first_row);
        if row_count == 0 || rows_left.is_none_or(|left| row_count > left) {
            return Err(Failure::argument(format!(
                "tensor {id}: {row_count} rows from {} on, of {}",
                tensor.first_row, tensor.n_rows
            )));
        }
        let sized = |part: &str, bytes: Option<&'a [u8]>, expected: u64| {
            let found = bytes.map(|bytes| bytes.len() as u64);
            match bytes {
                Some(bytes) if found == Some(expected) => Ok(bytes),
                _ => Err(Failure::argument(format!(
                    "tensor {id}: {} bytes of {part}, expected {expected}",
                    found.map_or("no".into(), |n| n.to_string())
                ))),
            }
        };
        // Of the piece: within those of the tensor.
        let n = row_count * n_cols;
        let weights = match (quant, Quant::of(quant)) {
            ("f32", _) => {
                let [values] = chosen("part", ["values"], parts)?;
                SourceWeights::F32(sized("values", values, 4 * n)?)
            }
            (_, None) => {
                let text = format!("tensor {id}: values of {quant} are not known");
                return Err(Failure::unsupported(text));
            }
            (_, Some(found)) if found != expected => {
                return Err(Failure::argument(format!(
                    "tensor {id}: {found:?}, expected {expected:?} as the stage"
                )))
            }
            (_, Some(Quant::F16)) => {
                let [values] = chosen("part", ["values"], parts)?;
                SourceWeights::F16(sized("values", values, 2 * n)?)
            }
            (_, Some(Quant::Int8)) => {
                let names = ["values", "row_scales", "column_exponents"];
                let [values, row_scales, exponents] = chosen("part", names, parts)?;
                let column_exponents = exponents.map(|_| sized(names[2], exponents, n_cols));
                SourceWeights::Int8 {
                    bytes: sized(names[0], values, n)?,
                    row_scales: sized(names[1], row_scales, 2 * row_count)?,
                    column_exponents: column_exponents.transpose()?,
                }
            }
        };
        Ok(Source {
            n_rows: tensor.n_rows,
            n_cols,
            first_row: tensor.first_row,
            row_count,
            weights,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::null;

    /// Of 4 rows of 3 columns.
    fn piece(first_row: u64, row_count: u64) -> abi::Tensor {
        abi::Tensor {
            struct_size: size_of::<abi::Tensor>() as u32,
            layer: 0,
            name: null(),
            quant: null(),
            n_rows: 4,
            n_cols: 3,
            first_row,
            row_count,
            parts: null(),
            n_parts: 0,
            reserved: 0,
        }
    }

    fn parts(given: &[(&str, usize)]) -> Named<&'static [u8]> {
        let part = |&(name, n): &(&str, usize)| (name.to_owned(), &[1; 64][..n]);
        given.iter().map(part).collect()
    }

    fn key() -> TensorId {
        TensorId::new("att.key.weight", 3).expect("a tensor")
    }

    #[test]
    fn a_piece_is_as_large_as_its_rows() {
        for (first_row, row_count) in [(0, 4), (0, 1), (3, 1), (1, 2)] {
            let n = row_count as usize;
            for exponents in [&[][..], &[("column_exponents", 3)]] {
                let given = [&[("row_scales", 2 * n), ("values", 3 * n)][..], exponents].concat();
                let tensor = piece(first_row, row_count);
                let quants = ("int8", Quant::Int8);
                let source = Source::new(key(), &tensor, quants, &parts(&given));
                let source = source.unwrap_or_else(|e| panic!("{first_row} {n}: {}", e.text));
                let SourceWeights::Int8 {
                    bytes,
                    row_scales,
                    column_exponents,
                } = source.weights
                else {
                    panic!("int8 weights");
                };
                assert_eq!((bytes.len(), row_scales.len()), (3 * n, 2 * n));
                assert_eq!(column_exponents.is_some(), !exponents.is_empty());
            }
        }
    }

    #[test]
    fn pieces_outside_the_tensor_are_refused() {
        let outside = [(0, 0), (0, 5), (4, 1), (3, 2), (u64::MAX, 2), (1, u64::MAX)];
        for (first_row, row_count) in outside {
            let n = row_count.min(5) as usize;
            let parts = parts(&[("values", 6 * n)]);
            let tensor = piece(first_row, row_count);
            let source = Source::new(key(), &tensor, ("f16", Quant::F16), &parts);
            assert!(source.is_err(), "{first_row} {row_count}");
        }
    }

    #[test]
    fn parts_that_are_not_those_of_the_rows() {
        let (argument, unsupported) = (abi::ERROR_ARGUMENT, abi::ERROR_UNSUPPORTED);
        type Given<'a> = &'a [(&'a str, usize)];
        let cases: [(&str, Given<'_>, i32); 13] = [
            ("f16", &[], argument),
            ("f16", &[("values", 23)], argument),
            ("f16", &[("values", 25)], argument),
            ("f16", &[("values", 24), ("values", 24)], argument),
            ("f16", &[("values", 24), ("moons", 24)], unsupported),
            ("f16", &[("values", 24), ("row_scales", 8)], unsupported),
            ("int8", &[("values", 12)], argument),
            ("int8", &[("values", 12), ("row_scales", 6)], argument),
            ("int8", &[("values", 24), ("row_scales", 8)], argument),
            (
                "int8",
                &[("values", 12), ("row_scales", 8), ("column_exponents", 4)],
                argument,
            ),
            ("f32", &[("values", 24)], argument),
            ("int9", &[("values", 24)], unsupported),
            ("F16", &[("values", 24)], unsupported),
        ];
        let refusal = |quants: (&str, Quant), given: Given<'_>| {
            let source = Source::new(key(), &piece(0, 4), quants, &parts(given));
            source
                .err()
                .unwrap_or_else(|| panic!("{quants:?} {given:?}: not refused"))
        };
        for (quant, given, status) in cases {
            let refused = refusal((quant, Quant::of(quant).unwrap_or_default()), given);
            assert_eq!(
                refused.status, status,
                "{quant} {given:?}: {}",
                refused.text
            );
        }
        let whole = &[("values", 12), ("row_scales", 8)];
        assert_eq!(refusal(("int8", Quant::F16), whole).status, argument);
    }

    #[test]
    fn names() {
        assert_eq!(key().to_string(), "blocks.3.att.key.weight");
        let outside = TensorId::new("emb.weight", abi::NO_LAYER).expect("a tensor");
        assert_eq!(outside.to_string(), "emb.weight");
        let refused = TensorId::new("att.moon", 0).expect_err("no such tensor");
        assert_eq!(refused.status, abi::ERROR_UNSUPPORTED);
        assert!(refused.text.contains("att.moon"), "{}", refused.text);
    }
}
