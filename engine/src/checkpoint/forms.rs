//! Vectors that checkpoints store in another form than networks use, read in both.

#![forbid(unsafe_code)]

use super::tensor::RawTensor;
use crate::error::{Error, Result};
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
        let stored = tensor.read_vector(n)?;
        if tensor.is_in_network_form {
            if let Some(index) = stored.iter().position(|&value| !form.admits(value)) {
                let value = stored[index];
                let text = format!("{value} at [{index}], expected {}", form.expected());
                return Err(Error::format(text).at(tensor.place()));
            }
            return Ok(Forms {
                checkpoint: stored.iter().map(|&x| form.to_checkpoint(x)).collect(),
                network: stored,
            });
        }
        let network: Vec<f32> = stored.iter().map(|&x| form.to_network(x)).collect();
        if let Some(index) = network.iter().position(|value| !value.is_finite()) {
            let text = format!("exp() of number {index} is not a number");
            return Err(Error::format(text).at(tensor.place()));
        }
        Ok(Forms {
            checkpoint: stored,
            network,
        })
    }
}
