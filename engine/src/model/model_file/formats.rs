//! Which format each matrix of a model file of few bits has.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use crate::checkpoint::safetensors::{SafetensorsFile, TensorEntry};
use crate::networks::config::Sizes;
use crate::networks::mix::Mix;
use crate::quant::Quant;

/// How each matrix of a model of few bits is stored. Its tensor says it, because what is mixed may be chosen by whoever wrote
/// the file.
pub(super) fn in_file(sizes: &Sizes, quant: Quant, file: &SafetensorsFile) -> Mix {
    let entries = file
        .tensors
        .iter()
        .map(|entry| (entry.name.as_str(), entry));
    let entries: BTreeMap<&str, &TensorEntry> = entries.collect();
    let mut formats = BTreeMap::new();
    let tensors = sizes
        .architecture
        .tensors(sizes, &sizes.architecture.whole(sizes));
    for tensor in tensors.filter(|tensor| tensor.is_matrix() && !tensor.spec.is_low_rank()) {
        let name = tensor.name();
        let Some(entry) = entries.get(name.as_str()) else {
            continue;
        };
        let (n_rows, n_cols) = tensor.stored_shape();
        let is_stored_as = |quant: &Quant| {
            let values = &quant.parts(n_rows, n_cols)[0];
            quant.floats().is_none()
                && entry.dtype == values.numbers.into()
                && entry.shape == values.shape
        };
        if let Some(found) = Quant::ALL.iter().copied().find(is_stored_as) {
            formats.insert(name, found);
        }
    }
    Mix::of_formats(quant, formats)
}
