//! Which stages there can be. What the host says of one in names becomes numbers here, once.

use std::ffi::CStr;

use rwkv_edge_plugin as abi;

use crate::error::{Failure, Result};
use crate::layout::padded;
use crate::names::{all, Named};

/// The one architecture that there are kernels for.
pub(crate) const ARCHITECTURE: &CStr = c"rwkv-4";
/// What matrices may be stored as.
pub(crate) const QUANTS: [(&CStr, Quant); 2] = [(c"f16", Quant::F16), (c"int8", Quant::Int8)];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Quant {
    #[default]
    F16,
    Int8,
}

impl Quant {
    /// `None` for one that there are no kernels for.
    pub(crate) fn of(name: &str) -> Option<Self> {
        let mut known = QUANTS.into_iter();
        let found = known.find(|(known, _)| known.to_bytes() == name.as_bytes());
        found.map(|(_, quant)| quant)
    }
}

/// A stage that can be.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StageOptions {
    pub(crate) device: u32,
    pub(crate) quant: Quant,
    pub(crate) n_vocab: u32,
    pub(crate) n_embd: u32,
    pub(crate) n_layer: u32,
    pub(crate) n_attention: u32,
    pub(crate) n_hidden: u32,
    pub(crate) first_layer: u32,
    pub(crate) layer_count: u32,
    pub(crate) has_embedding: bool,
    pub(crate) has_head: bool,
    pub(crate) rows_max: u32,
    pub(crate) norm_epsilon: f32,
    pub(crate) norm_out_epsilon: f32,
}

/// What the host says of a stage in names.
pub(crate) struct Names {
    pub(crate) architecture: String,
    pub(crate) quant: String,
    pub(crate) sizes: Named<u64>,
    pub(crate) numbers: Named<f64>,
}

impl StageOptions {
    /// Refuses what no stage can be, and what the plugin has no kernels for.
    pub(crate) fn new(o: &abi::StageOptions, names: &Names) -> Result<Self> {
        /// Far more than any model has; keeps all products of sizes inside 64 bits.
        const MOST: u64 = 1 << 20;
        const ROWS_MOST: u32 = 1 << 16;
        if names.architecture.as_bytes() != ARCHITECTURE.to_bytes() {
            return Err(Failure::unsupported(format!(
                "architecture {}: the CUDA plugin has {ARCHITECTURE:?}, no other",
                names.architecture
            )));
        }
        let quant = Quant::of(&names.quant).ok_or_else(|| {
            Failure::unsupported(format!(
                "weights of {}: the CUDA plugin has f16 and int8, no others",
                names.quant
            ))
        })?;
        let known = ["n_vocab", "n_embd", "n_layer", "n_attention", "n_hidden"];
        let sizes = all("size", known, &names.sizes)?;
        let numbers = all(
            "number",
            ["norm_epsilon", "norm_out_epsilon"],
            &names.numbers,
        )?;

        let [_, n_embd, n_layer, ..] = sizes;
        if sizes.contains(&0) {
            return Err(Failure::argument(format!(
                "sizes {known:?} {sizes:?}, expected at least 1 each"
            )));
        }
        if u64::from(o.row_width) != n_embd {
            return Err(Failure::argument(format!(
                "rows of {} numbers between stages, expected {n_embd}",
                o.row_width
            )));
        }
        if numbers.iter().any(|number| !number.is_finite()) {
            return Err(Failure::argument(format!(
                "epsilons {numbers:?}, expected finite ones"
            )));
        }
        let end = u64::from(o.first_layer) + u64::from(o.layer_count);
        if end > n_layer {
            return Err(Failure::argument(format!(
                "layers {} + {} of {n_layer}",
                o.first_layer, o.layer_count
            )));
        }
        if o.has_embedding > 1 || o.has_head > 1 {
            return Err(Failure::argument(
                "has_embedding and has_head, expected 0 or 1",
            ));
        }
        let (has_embedding, has_head) = (o.has_embedding == 1, o.has_head == 1);
        if (has_embedding && o.first_layer != 0) || (has_head && end != n_layer) {
            return Err(Failure::argument(
                "an embedding that is not in front of the first layer, or a head not behind the last",
            ));
        }
        if o.layer_count == 0 && !has_head {
            return Err(Failure::argument("a stage of no layers and no head"));
        }
        if o.rows_max == 0 {
            return Err(Failure::argument("no rows, expected at least 1"));
        }
        // From here on it could be a stage, but not one of ours.
        if sizes.iter().any(|&n| n > MOST) {
            return Err(Failure::unsupported(format!(
                "sizes {known:?} {sizes:?}, expected at most {MOST} each"
            )));
        }
        if o.rows_max > ROWS_MOST {
            return Err(Failure::unsupported(format!(
                "{} rows, expected at most {ROWS_MOST}",
                o.rows_max
            )));
        }
        let [n_vocab, n_embd, n_layer, n_attention, n_hidden] = sizes.map(|size| size as u32);
        // Kernels count the numbers of an array of rows in 32 bits.
        let widest = padded(n_embd.max(n_attention).max(n_hidden));
        if u64::from(o.rows_max) * u64::from(widest) > u64::from(u32::MAX) {
            return Err(Failure::unsupported(format!(
                "{} rows of {widest} numbers, expected fewer than 2^32 numbers",
                o.rows_max
            )));
        }
        let [norm_epsilon, norm_out_epsilon] = numbers.map(|number: f64| number as f32);
        Ok(StageOptions {
            device: o.device,
            quant,
            n_vocab,
            n_embd,
            n_layer,
            n_attention,
            n_hidden,
            first_layer: o.first_layer,
            layer_count: o.layer_count,
            has_embedding,
            has_head,
            rows_max: o.rows_max,
            norm_epsilon,
            norm_out_epsilon,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::null;

    fn good() -> (abi::StageOptions, Names) {
        let options = abi::StageOptions {
            struct_size: size_of::<abi::StageOptions>() as u32,
            device: 0,
            architecture: null(),
            quant: null(),
            sizes: null(),
            numbers: null(),
            n_sizes: 0,
            n_numbers: 0,
            first_layer: 0,
            layer_count: 1,
            has_embedding: 0,
            has_head: 1,
            rows_max: 4,
            row_width: 8,
        };
        let sizes = [
            ("n_vocab", 11),
            ("n_embd", 8),
            ("n_layer", 1),
            ("n_attention", 8),
            ("n_hidden", 16),
        ];
        let numbers = [("norm_epsilon", 1e-5), ("norm_out_epsilon", 1e-6)];
        let names = Names {
            architecture: "rwkv-4".into(),
            quant: "int8".into(),
            sizes: sizes.map(|(name, size)| (name.into(), size)).into(),
            numbers: numbers.map(|(name, number)| (name.into(), number)).into(),
        };
        (options, names)
    }

    #[test]
    fn what_can_be_no_stage_and_what_is_none_of_ours() {
        let (options, names) = good();
        let stage = StageOptions::new(&options, &names).expect("a stage");
        assert_eq!((stage.n_vocab, stage.n_hidden), (11, 16));
        assert_eq!((stage.norm_epsilon, stage.norm_out_epsilon), (1e-5, 1e-6));
        assert_eq!((stage.quant, stage.has_head), (Quant::Int8, true));

        type Change = fn(&mut abi::StageOptions, &mut Names);
        let cases: [(i32, Change); 19] = [
            (abi::ERROR_ARGUMENT, |_, n| n.sizes[4].1 = 0),
            (abi::ERROR_ARGUMENT, |o, _| o.rows_max = 0),
            (abi::ERROR_ARGUMENT, |o, _| o.layer_count = 2),
            (abi::ERROR_ARGUMENT, |_, n| n.sizes[2].1 = 2),
            (abi::ERROR_ARGUMENT, |o, _| o.row_width = 16),
            (abi::ERROR_ARGUMENT, |o, _| o.has_embedding = 2),
            (abi::ERROR_ARGUMENT, |_, n| n.numbers[0].1 = f64::NAN),
            (abi::ERROR_ARGUMENT, |_, n| n.numbers.truncate(1)),
            (abi::ERROR_ARGUMENT, |_, n| n.sizes.truncate(4)),
            (abi::ERROR_UNSUPPORTED, |_, n| {
                n.sizes.push(("n_heads".into(), 2))
            }),
            (abi::ERROR_UNSUPPORTED, |o, n| {
                (n.sizes[1].1, o.row_width) = (u32::MAX.into(), u32::MAX)
            }),
            (abi::ERROR_UNSUPPORTED, |_, n| n.sizes[0].1 = u64::MAX),
            (abi::ERROR_UNSUPPORTED, |o, _| o.rows_max = u32::MAX),
            (abi::ERROR_UNSUPPORTED, |o, n| {
                (n.sizes[4].1, o.rows_max) = (1 << 20, 1 << 16)
            }),
            (abi::ERROR_UNSUPPORTED, |_, n| n.quant = "f32".into()),
            (abi::ERROR_UNSUPPORTED, |_, n| n.quant = "int9".into()),
            (abi::ERROR_UNSUPPORTED, |_, n| n.quant = String::new()),
            (abi::ERROR_UNSUPPORTED, |_, n| {
                n.architecture = "rwkv-7".into()
            }),
            (abi::ERROR_UNSUPPORTED, |_, n| {
                n.architecture = "rwkv".into()
            }),
        ];
        for (index, (status, change)) in cases.into_iter().enumerate() {
            let (mut options, mut names) = good();
            change(&mut options, &mut names);
            let refused = StageOptions::new(&options, &names).expect_err("a refusal");
            assert_eq!(refused.status, status, "case {index}: {}", refused.text);
        }
    }
}
