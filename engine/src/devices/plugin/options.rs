//! Which stage is meant: all that a plugin is told of it, by names, and the same in the table's form.

#![forbid(unsafe_code)]

use std::ffi::CString;
use std::ops::Range;

use rwkv_edge_plugin as abi;

use crate::error::{Error, Result};
use crate::quant::Quant;

/// A range of a model's layers that is to be on a device.
#[derive(Clone, Debug)]
pub(crate) struct StageOptions {
    pub(crate) device: u32,
    pub(crate) architecture: &'static str,
    /// Of the stage's matrices.
    pub(crate) quant: Quant,
    /// Of the whole model. Every architecture has `n_vocab` and `n_embd`.
    pub(crate) sizes: Vec<(&'static str, u64)>,
    /// What is no size, such as the epsilons of norms.
    pub(crate) numbers: Vec<(&'static str, f64)>,
    pub(crate) layers: Range<usize>,
    pub(crate) has_embedding: bool,
    pub(crate) has_head: bool,
    /// Of a batch.
    pub(crate) rows_max: usize,
    /// Numbers of a row that passes from stage to stage.
    pub(crate) row_width: usize,
    /// Numbers of a state of these layers, as the host keeps it.
    pub(crate) state_len: usize,
}

impl StageOptions {
    /// One of the model's sizes.
    pub(super) fn size(&self, name: &str) -> Result<usize> {
        let found = self.sizes.iter().find(|(known, _)| *known == name);
        let value = found.and_then(|&(_, value)| usize::try_from(value).ok());
        value.ok_or_else(|| Error::argument(format!("a model without the size {name}")))
    }

    /// Calls `call` with the same in the table's form, which is valid until it returns.
    pub(super) fn in_table_form<T>(&self, call: impl FnOnce(&abi::StageOptions) -> T) -> Result<T> {
        let [architecture, quant] = [self.architecture, self.quant.name()].map(c_text);
        let (architecture, quant) = (architecture?, quant?);
        let (named_sizes, named_numbers) = (c_names(&self.sizes)?, c_names(&self.numbers)?);
        let size = |(name, value): &(CString, u64)| abi::Size {
            name: name.as_ptr(),
            value: *value,
        };
        let number = |(name, value): &(CString, f64)| abi::Number {
            name: name.as_ptr(),
            value: *value,
        };
        let sizes: Vec<_> = named_sizes.iter().map(size).collect();
        let numbers: Vec<_> = named_numbers.iter().map(number).collect();
        // Readers of checkpoints keep all sizes below 2^32.
        let count = |n: usize| n as u32;
        Ok(call(&abi::StageOptions {
            struct_size: size_of::<abi::StageOptions>() as u32,
            device: self.device,
            architecture: architecture.as_ptr(),
            quant: quant.as_ptr(),
            sizes: sizes.as_ptr(),
            numbers: numbers.as_ptr(),
            n_sizes: count(sizes.len()),
            n_numbers: count(numbers.len()),
            first_layer: count(self.layers.start),
            layer_count: count(self.layers.len()),
            has_embedding: u32::from(self.has_embedding),
            has_head: u32::from(self.has_head),
            rows_max: count(self.rows_max),
            row_width: count(self.row_width),
        }))
    }
}

/// Values with names as the table wants them.
fn c_names<T: Copy>(named: &[(&str, T)]) -> Result<Vec<(CString, T)>> {
    let named = named.iter();
    named
        .map(|&(name, value)| Ok((c_text(name)?, value)))
        .collect()
}

/// A name as the table wants it.
pub(super) fn c_text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::argument(format!("a NUL in the name {text:?}")))
}
