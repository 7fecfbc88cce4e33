//! ggml's numbers of types of tensors.

#![forbid(unsafe_code)]

use super::super::blocks::BlockFormat;
use super::super::dtype::Dtype;
use crate::error::{Error, Result};

/// ggml's names of the types by their numbers; of those that it has given up, too.
const NAMES: [&str; 41] = [
    "F32",
    "F16",
    "Q4_0",
    "Q4_1",
    "Q4_2",
    "Q4_3",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q8_1",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "Q8_K",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ3_XXS",
    "IQ1_S",
    "IQ4_NL",
    "IQ3_S",
    "IQ2_S",
    "IQ4_XS",
    "I8",
    "I16",
    "I32",
    "I64",
    "F64",
    "IQ1_M",
    "BF16",
    "Q4_0_4_4",
    "Q4_0_4_8",
    "Q4_0_8_8",
    "TQ1_0",
    "TQ2_0",
    "IQ4_NL_4_4",
    "IQ4_NL_4_8",
    "IQ4_NL_8_8",
    "MXFP4",
    "NVFP4",
];

/// The type of that number.
///
/// # Errors
/// Types that are not read here, by their names.
pub(super) fn dtype(number: u32) -> Result<Dtype> {
    let format = match number {
        0 => return Ok(Dtype::F32),
        1 => return Ok(Dtype::F16),
        30 => return Ok(Dtype::Bf16),
        2 => BlockFormat::Q4_0,
        3 => BlockFormat::Q4_1,
        6 => BlockFormat::Q5_0,
        7 => BlockFormat::Q5_1,
        8 => BlockFormat::Q8_0,
        12 => BlockFormat::Q4K,
        13 => BlockFormat::Q5K,
        14 => BlockFormat::Q6K,
        20 => BlockFormat::Iq4Nl,
        _ => {
            let found = match NAMES.get(number as usize) {
                Some(name) => format!("type {name}"),
                None => format!("type {number}, which has no name here"),
            };
            return Err(Error::unsupported(format!(
                "{found}, expected F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q4_K, IQ4_NL, Q5_1, Q5_0, Q4_1 or Q4_0: use a \
                 file of the same model whose tensors all have one of these, such as its F16 or Q8_0 file"
            )));
        }
    };
    Ok(Dtype::Blocks(format))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn types_have_their_names() {
        let mut read = 0;
        for (number, name) in (0..).zip(NAMES) {
            match dtype(number) {
                Ok(dtype) => {
                    assert_eq!(dtype.name(), name);
                    read += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unsupported);
                    let start = format!("type {name}, expected");
                    assert!(error.to_string().starts_with(&start), "{error}");
                }
            }
        }
        assert_eq!(read, 12);
        for number in [41, u32::MAX] {
            let error = dtype(number).expect_err("no type").to_string();
            assert!(error.starts_with(&format!("type {number}, ")), "{error}");
        }
    }
}
