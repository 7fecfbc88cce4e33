//! Which stages there can be.

use super::padded;
use crate::error::{Failure, Result};
use rwkv_edge_plugin::{self as abi, StageOptions};

/// Refuses what no stage can be, and what the plugin has no kernels for.
pub(crate) fn check(options: &StageOptions) -> Result<()> {
    /// Far more than any model has; keeps all products of sizes inside 64 bits.
    const MOST: u32 = 1 << 20;
    const ROWS_MOST: u32 = 1 << 16;
    let o = options;
    let sizes = [o.n_vocab, o.n_embd, o.n_attention, o.n_hidden, o.n_layer];
    if sizes.contains(&0) {
        return Err(Failure::argument(format!(
            "vocabulary, width, attention, hidden units, layers {sizes:?}, expected at least 1 each"
        )));
    }
    if o.first_layer > o.n_layer || o.layer_count > o.n_layer - o.first_layer {
        return Err(Failure::argument(format!(
            "layers {} + {} of {}",
            o.first_layer, o.layer_count, o.n_layer
        )));
    }
    let is_last = o.first_layer + o.layer_count == o.n_layer;
    if (o.has_embedding != 0 && o.first_layer != 0) || (o.has_head != 0 && !is_last) {
        return Err(Failure::argument(
            "an embedding that is not in front of the first layer, or a head not behind the last",
        ));
    }
    if o.layer_count == 0 && o.has_head == 0 {
        return Err(Failure::argument("a stage of no layers and no head"));
    }
    if o.rows_max == 0 {
        return Err(Failure::argument("no rows, expected at least 1"));
    }
    // From here on it could be a stage, but not one of ours.
    if sizes.iter().any(|&n| n > MOST) {
        return Err(Failure::unsupported(format!(
            "vocabulary, width, attention, hidden units, layers {sizes:?}, expected at most {MOST} each"
        )));
    }
    if o.rows_max > ROWS_MOST {
        return Err(Failure::unsupported(format!(
            "{} rows, expected at most {ROWS_MOST}",
            o.rows_max
        )));
    }
    // Kernels count the numbers of an array of rows in 32 bits.
    let widest = padded(o.n_embd.max(o.n_attention).max(o.n_hidden));
    if u64::from(o.rows_max) * u64::from(widest) > u64::from(u32::MAX) {
        return Err(Failure::unsupported(format!(
            "{} rows of {widest} numbers, expected fewer than 2^32 numbers",
            o.rows_max
        )));
    }
    if o.quant != abi::F16 && o.quant != abi::INT8 {
        return Err(Failure::unsupported(
            "the CUDA plugin has f16 and int8 weights, no others",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_no_stage_and_what_is_none_of_ours() {
        let good = StageOptions {
            n_vocab: 11,
            n_embd: 8,
            n_layer: 1,
            n_attention: 8,
            n_hidden: 16,
            layer_count: 1,
            has_head: 1,
            quant: abi::F16,
            rows_max: 4,
            ..StageOptions::default()
        };
        assert!(check(&good).is_ok());
        type Change = fn(&mut StageOptions);
        let cases: [(i32, Change); 10] = [
            (abi::ERROR_ARGUMENT, |o| o.n_hidden = 0),
            (abi::ERROR_ARGUMENT, |o| o.rows_max = 0),
            (abi::ERROR_ARGUMENT, |o| o.layer_count = 2),
            (abi::ERROR_ARGUMENT, |o| o.n_layer = 2),
            (abi::ERROR_UNSUPPORTED, |o| o.n_embd = u32::MAX),
            (abi::ERROR_UNSUPPORTED, |o| o.rows_max = u32::MAX),
            (abi::ERROR_UNSUPPORTED, |o| {
                (o.n_hidden, o.rows_max) = (1 << 20, 1 << 16)
            }),
            (abi::ERROR_UNSUPPORTED, |o| o.quant = abi::F32),
            (abi::ERROR_UNSUPPORTED, |o| o.quant = 9),
            (abi::ERROR_UNSUPPORTED, |o| o.quant = 32),
        ];
        for (index, (status, change)) in cases.into_iter().enumerate() {
            let mut options = good;
            change(&mut options);
            let refused = check(&options).expect_err("a refusal");
            assert_eq!(refused.status, status, "case {index}: {}", refused.text);
        }
    }
}
