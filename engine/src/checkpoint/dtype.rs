//! Element types of tensors in files.

#![forbid(unsafe_code)]

use std::fmt;

use super::blocks::BlockFormat;
use crate::quant::parts::Numbers;

/// Element types. Weights are F32, F16, BF16 or quantised in blocks; the others occur beside them,
/// and in model files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dtype {
    F32,
    F16,
    Bf16,
    F64,
    I8,
    U8,
    I16,
    I32,
    I64,
    Bool,
    /// Quantised, as rwkv.cpp writes it.
    Blocks(BlockFormat),
    /// A type of the safetensors format with no use here, by its name there.
    Other(&'static str),
}

impl Dtype {
    /// Bytes of one element; `None` for blocks, and for types that are only ever refused.
    pub(crate) fn size(self) -> Option<usize> {
        match self {
            Dtype::I8 | Dtype::U8 | Dtype::Bool => Some(1),
            Dtype::F16 | Dtype::Bf16 | Dtype::I16 => Some(2),
            Dtype::F32 | Dtype::I32 => Some(4),
            Dtype::F64 | Dtype::I64 => Some(8),
            Dtype::Blocks(_) | Dtype::Other(_) => None,
        }
    }

    /// The name in safetensors headers, or ggml's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::F64 => "F64",
            Dtype::I8 => "I8",
            Dtype::U8 => "U8",
            Dtype::I16 => "I16",
            Dtype::I32 => "I32",
            Dtype::I64 => "I64",
            Dtype::Bool => "BOOL",
            Dtype::Blocks(format) => format.name(),
            Dtype::Other(name) => name,
        }
    }

    /// Whether weights of this type can be read.
    pub(crate) fn is_weight(self) -> bool {
        matches!(
            self,
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::Blocks(_)
        )
    }
}

impl From<Numbers> for Dtype {
    fn from(numbers: Numbers) -> Self {
        match numbers {
            Numbers::F32 => Dtype::F32,
            Numbers::F16 => Dtype::F16,
            Numbers::I8 => Dtype::I8,
            Numbers::U8 => Dtype::U8,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
