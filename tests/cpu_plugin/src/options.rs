//! What stage is asked for, and whether there can be one.

use rwkv_edge_plugin as abi;

use crate::names::{all, Quant};
use crate::{architectures, check_device, check_size, named, quants, text, unsupported, wrong};
use crate::{Failed, Result};

/// More than any model has; keeps all sums of bytes inside 64 bits.
const SIZE_MAX: u64 = 1 << 17;

/// A stage that can be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) device: u32,
    pub(crate) quant: Quant,
    pub(crate) n_vocab: u32,
    pub(crate) n_embd: u32,
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

impl Options {
    /// # Safety
    /// The texts and arrays of the options are NULL or as long as they say.
    pub(crate) unsafe fn read(o: &abi::StageOptions) -> Result<Self> {
        check_size::<abi::StageOptions>(o.struct_size, "options")?;
        check_device(o.device)?;
        // SAFETY: the caller's promise is the same.
        let (architecture, quant, sizes, numbers) = unsafe {
            (
                text(o.architecture, "architecture")?,
                text(o.quant, "quant")?,
                named(o.sizes, o.n_sizes, "sizes", |size| (size.name, size.value))?,
                named(o.numbers, o.n_numbers, "numbers", |number| {
                    (number.name, number.value)
                })?,
            )
        };
        if !architectures().has(&architecture) {
            return unsupported(format!("architecture {architecture}: not known here"));
        }
        if !quants().has(&quant) {
            return unsupported(format!("matrices of {quant}: not known here"));
        }
        let names = ["n_vocab", "n_embd", "n_layer", "n_attention", "n_hidden"];
        let sizes = all("size", names, &sizes)?;
        let names = ["norm_epsilon", "norm_out_epsilon"];
        let numbers = all("number", names, &numbers)?;

        let [_, n_embd, n_layer, ..] = sizes;
        let end = u64::from(o.first_layer) + u64::from(o.layer_count);
        if sizes.contains(&0) || o.rows_max == 0 {
            return wrong(format!("sizes {sizes:?}, {} rows: one is 0", o.rows_max));
        }
        if u64::from(o.row_width) != n_embd {
            return wrong(format!("row_width {}, expected {n_embd}", o.row_width));
        }
        if numbers.iter().any(|number| !number.is_finite()) {
            return wrong(format!("numbers {numbers:?}: not finite"));
        }
        if end > n_layer {
            return wrong("layers beyond the model's");
        }
        if o.has_embedding > 1 || o.has_head > 1 {
            return wrong("has_embedding and has_head are 0 or 1");
        }
        if o.has_embedding == 1 && o.first_layer != 0 {
            return wrong("the embedding is in front of layer 0");
        }
        if o.has_head == 1 && end != n_layer {
            return wrong("the head is behind the last layer");
        }
        if o.layer_count == 0 && o.has_head == 0 {
            return wrong("a stage with neither layers nor the head");
        }
        // From here on it could be a stage, but not one of ours.
        let rows_max = u64::from(o.rows_max);
        if sizes.iter().chain([&rows_max]).any(|&size| size > SIZE_MAX) {
            let text =
                format!("sizes {sizes:?}, {rows_max} rows, expected at most {SIZE_MAX} each");
            return Err(Failed(abi::ERROR_UNSUPPORTED, text));
        }
        let [n_vocab, n_embd, _, n_attention, n_hidden] = sizes.map(|size| size as u32);
        let [norm_epsilon, norm_out_epsilon] = numbers.map(|number: f64| number as f32);
        Ok(Options {
            device: o.device,
            quant: Quant::of(&quant)?,
            n_vocab,
            n_embd,
            n_attention,
            n_hidden,
            first_layer: o.first_layer,
            layer_count: o.layer_count,
            has_embedding: o.has_embedding == 1,
            has_head: o.has_head == 1,
            rows_max: o.rows_max,
            norm_epsilon,
            norm_out_epsilon,
        })
    }
}
