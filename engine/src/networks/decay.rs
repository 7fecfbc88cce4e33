//! The decay of a layer's time mixing, in its two forms.
//!
//! BlinkDL's and Hugging Face's checkpoints store `time_decay`; the network, and rwkv.cpp's files,
//! have `-exp(time_decay)`, the logarithm of the decay a step. Each form is made from the other in
//! f64 and rounded once: the decay is applied once a token, for ever.

#![forbid(unsafe_code)]

use crate::checkpoint::RawTensor;
use crate::error::{Error, Result};

/// A number whose exp() is 0 in f32, for a decay that was rounded to none at all. Smaller ones do
/// as well, but would round to infinity in f16.
const NO_DECAY: f32 = -104.0;

/// The decay of one layer, both forms of (n_attention).
pub(crate) struct Decay {
    /// As BlinkDL's and Hugging Face's checkpoints store it.
    pub(crate) time_decay: Vec<f32>,
    /// `-exp(time_decay)`, at most 0.
    pub(crate) decay_log: Vec<f32>,
}

impl Decay {
    /// Reads the `n` numbers of a tensor of either form.
    ///
    /// # Errors
    /// Those of [`RawTensor::read_vector`], and numbers that the other form has no number for.
    pub(crate) fn read(tensor: &RawTensor, n: usize) -> Result<Self> {
        let stored = tensor.read_vector(n)?;
        if tensor.is_decay_log {
            if let Some(index) = stored.iter().position(|&value| value > 0.0) {
                let value = stored[index];
                let text =
                    format!("{value} at [{index}], expected -exp(time_decay), which is at most 0");
                return Err(Error::format(text).at(tensor.place()));
            }
            let time_decay = stored.iter().map(|&value| time_decay(value)).collect();
            return Ok(Decay {
                time_decay,
                decay_log: stored,
            });
        }
        let decay_log: Vec<f32> = stored.iter().map(|&value| decay_log(value)).collect();
        if let Some(index) = decay_log.iter().position(|value| !value.is_finite()) {
            let text = format!("exp() of number {index} is not a number");
            return Err(Error::format(text).at(tensor.place()));
        }
        Ok(Decay {
            time_decay: stored,
            decay_log,
        })
    }
}

fn decay_log(time_decay: f32) -> f32 {
    -(f64::from(time_decay).exp() as f32)
}

fn time_decay(decay_log: f32) -> f32 {
    if decay_log == 0.0 {
        return NO_DECAY;
    }
    f64::from(-decay_log).ln() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There and back is as good as f32 can say it, over all that checkpoints hold.
    #[test]
    fn there_and_back() {
        for step in -104_000..=88_000 {
            let there = decay_log(step as f32 / 1000.0);
            let back = decay_log(time_decay(there));
            // The rounding of a number near 100 to f32, times exp()'s derivative.
            let bound = f64::from(there.abs()) * (2f64.powi(-17) + 2f64.powi(-23)) + 1e-45;
            let difference = (f64::from(back) - f64::from(there)).abs();
            assert!(difference <= bound, "{step}: {there} {back}");
        }
        assert_eq!(decay_log(NO_DECAY), 0.0);
        assert_eq!(time_decay(-0.0), NO_DECAY);
        assert_eq!(time_decay(-1.0), 0.0);
    }
}
