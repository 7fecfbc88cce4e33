//! Vectors that checkpoints store in another form than networks use, read in both.

#![forbid(unsafe_code)]

use super::tensor::RawTensor;
use crate::error::{Error, Result};
use crate::math::reserve;
use crate::networks::form::Form;

/// The numbers of a vector, in both forms.
pub(crate) struct Forms {
    /// As BlinkDL's and Hugging Face's checkpoints store it.
    pub(crate) checkpoint: Vec<f32>,
    /// As the network uses it.
    pub(crate) network: Vec<f32>,
}

impl Forms {
    /// Reads the `n` numbers of a tensor, in whichever form its file has it.
    ///
    /// # Errors
    /// Those of [`RawTensor::read_vector`], and numbers that the other form has no number for.
    pub(crate) fn read(tensor: &RawTensor, form: Form, n: usize) -> Result<Self> {
        if tensor.is_in_network_form {
            let stored = tensor.read_vector_of(n, |value| form.is_beyond_f32(value))?;
            if let Some(index) = stored.iter().position(|&value| !form.admits(value)) {
                let value = stored[index];
                let text = format!("{value} at [{index}], expected {}", form.expected());
                return Err(Error::format(text).at(tensor.place()));
            }
            let network = mapped(&stored, |value| form.within_f32(value))?;
            return Ok(Forms {
                checkpoint: mapped(&network, |value| form.to_checkpoint(value))?,
                network,
            });
        }
        let stored = tensor.read_vector(n)?;
        Ok(Forms {
            network: mapped(&stored, |value| form.to_network(value))?,
            checkpoint: stored,
        })
    }
}

fn mapped(values: &[f32], f: impl Fn(f32) -> f32) -> Result<Vec<f32>> {
    let mut out = reserve(values.len(), "a vector")?;
    out.extend(values.iter().map(|&value| f(value)));
    Ok(out)
}
