//! What rounding errors of a matrix do, as far as the layer norm beside it shows that without any text.
//!
//! A layer norm's output has a mean square of `gain^2 + bias^2` in each channel, if each channel of what it normalises
//! varies like the others. The token shift mixes two tokens' outputs, whose variations are taken to be independent:
//! `gain^2 * (mix^2 + (1 - mix)^2) + bias^2`. The mean is the bias in both.

#![forbid(unsafe_code)]

use super::table::TensorAt;
use crate::error::{Error, Result};
use crate::math::collected;
use crate::quant::exponents::Importance;
use crate::quant::matrix::Layout;
use crate::quant::Quant;

/// What arrays are called in errors.
const WHAT: &str = "inputs of weights";

/// The layer norm beside a matrix, by the beginning of its tensors' raw names.
#[derive(Clone, Copy)]
pub(crate) enum NearbyNorm {
    None,
    /// The matrix is multiplied with what that norm gives, mixed by these shares of the present token.
    InFront {
        norm: &'static str,
        mix: Option<&'static str>,
    },
    /// Rows of the matrix are what that norm normalises.
    Behind {
        norm: &'static str,
    },
}

impl TensorAt<'_> {
    /// What its rounding errors will do, if it is rounded to `quant`; `read` reads a vector of the model.
    ///
    /// # Errors
    /// Those of `read`.
    pub(crate) fn importance(
        &self,
        quant: Quant,
        read: &mut dyn FnMut(&TensorAt<'_>) -> Result<Vec<f32>>,
    ) -> Result<Importance> {
        if quant.floats().is_some() || self.layout() != Layout::RowPerOutput {
            return Ok(Importance::default());
        }
        let mut vector = |name: String| match self.sibling(&name) {
            Some(tensor) => read(&tensor),
            None => Err(Error::format(format!(
                "{}: no {name} beside it",
                self.name()
            ))),
        };
        match self.spec.nearby_norm {
            NearbyNorm::None => Ok(Importance::default()),
            NearbyNorm::InFront { norm, mix } => {
                let gains = vector(format!("{norm}.weight"))?;
                let biases = vector(format!("{norm}.bias"))?;
                let mix = mix.map(|mix| vector(mix.to_owned())).transpose()?;
                let share = |column: usize| mix.as_ref().map_or(1.0, |mix| mix[column]);
                let square = |(column, (gain, bias)): (usize, (&f32, &f32))| {
                    let now = share(column);
                    gain * gain * (now * now + (1.0 - now) * (1.0 - now)) + bias * bias
                };
                let columns = gains.iter().zip(&biases).enumerate().map(square);
                Ok(Importance {
                    columns: collected(columns, WHAT)?,
                    means: biases,
                    ..Importance::default()
                })
            }
            NearbyNorm::Behind { norm } => {
                let gains = vector(format!("{norm}.weight"))?;
                Ok(Importance {
                    columns: collected(gains.iter().map(|gain| gain * gain), WHAT)?,
                    is_by_row: true,
                    ..Importance::default()
                })
            }
        }
    }
}
