//! Tuned initial states: what the empty state of a model is where training has made it ("state tuning").
//!
//! Checkpoints hold one tensor a layer, (head, value, key) whatever the architecture; states of this crate are
//! (head, key, value). This is the one place that knows both.

#![forbid(unsafe_code)]

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::{State, StateLayout};
use crate::error::{Error, Result};
use crate::math::{reserve, resized};

/// Behind the layer, in the name of such a tensor.
pub(crate) const TIME_STATE: &str = "att.time_state";

/// The name of the tensor of a layer in raw checkpoints and in model files.
pub(crate) fn time_state_name(layer: usize) -> String {
    format!("blocks.{layer}.{TIME_STATE}")
}

/// An empty state that was tuned, shared by all states that begin with it. It fits one layout.
#[derive(Clone)]
pub(crate) struct Initial(Arc<Numbers>);

struct Numbers {
    /// As those of a state.
    numbers: Vec<f32>,
    hash: u64,
}

impl Initial {
    /// Takes the numbers of each layer as checkpoints have them; parts that are not tuned stay as they are in the
    /// architecture's own empty state.
    ///
    /// # Errors
    /// Those of `layer`, [`ErrorKind::Memory`](crate::ErrorKind::Memory), and
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for an architecture whose states cannot be tuned.
    pub(crate) fn new(
        layout: StateLayout,
        mut layer: impl FnMut(usize) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        let architecture = layout.sizes.architecture;
        let (Some(part), Some([_, side, _])) = (architecture.tuned_part, layout.tuned_shape())
        else {
            let text = format!("{} has no tuned initial states", architecture.title);
            return Err(Error::unsupported(text));
        };
        let mut state = State::new(layout, None)?;
        for index in 0..layout.sizes.n_layer {
            let from = layer(index)?;
            let to = state.part_mut(index, part);
            if from.len() != to.len() {
                return Err(Error::format(format!(
                    "{}: {} numbers, expected {}",
                    time_state_name(index),
                    from.len(),
                    to.len()
                )));
            }
            swap_sides(&from, side, to);
        }
        let numbers = state.data;
        let hash = xxh3_64(bytemuck::cast_slice(&numbers));
        Ok(Initial(Arc::new(Numbers { numbers, hash })))
    }

    /// The numbers of a state that has read nothing.
    pub(crate) fn numbers(&self) -> &[f32] {
        &self.0.numbers
    }

    /// Of the numbers.
    pub(crate) fn hash(&self) -> u64 {
        self.0.hash
    }

    /// What checkpoints hold, layer after layer.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub(crate) fn time_states(&self, layout: &StateLayout) -> Result<Vec<Vec<f32>>> {
        let part = layout.sizes.architecture.tuned_part;
        let (Some(part), Some([_, side, _])) = (part, layout.tuned_shape()) else {
            return Ok(Vec::new());
        };
        let mut all = reserve(layout.sizes.n_layer, "a tuned state")?;
        for layer in self.0.numbers.chunks_exact(layout.layer_len()) {
            let from = &layer[layout.parts(part..part + 1)];
            let mut to = Vec::new();
            resized(&mut to, from.len(), 0.0, "a tuned state")?;
            swap_sides(from, side, &mut to);
            all.push(to);
        }
        Ok(all)
    }
}

/// Transposes each of the square matrices that `from` is made of.
fn swap_sides(from: &[f32], side: usize, to: &mut [f32]) {
    let square = (side * side).max(1);
    for (from, to) in from.chunks_exact(square).zip(to.chunks_exact_mut(square)) {
        for (row, numbers) in from.chunks_exact(side).enumerate() {
            for (column, &number) in numbers.iter().enumerate() {
                to[column * side + row] = number;
            }
        }
    }
}
