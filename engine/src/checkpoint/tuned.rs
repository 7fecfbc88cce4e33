//! Tuned initial states in files: one `blocks.N.att.time_state` a layer, (head, value, key), beside a model's tensors or
//! alone, as the programs of "state tuning" save them.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::open::{read_weights, FileContent};
use super::safetensors::SafetensorsFile;
use super::tensor::RawTensor;
use super::torch;
use crate::error::{Error, ErrorKind, Result};
use crate::files::SourceFile;
use crate::networks::known;
use crate::networks::names::{split_layer, Cleaner};
use crate::networks::state::{time_state_name, Initial, StateLayout, TIME_STATE};

/// The tensors of all layers of a model, in order, of the right shapes. What is in them was not looked at.
#[derive(Debug)]
pub(crate) struct TunedState {
    layers: Vec<RawTensor>,
}

/// The layer of a tensor of that name, without what training puts around it, in any spelling of checkpoints.
pub(super) fn time_state_layer(name: &str) -> Option<usize> {
    let spellings = known::architectures().map(|one| one.hugging_face.raw(name));
    let mut layers = spellings.filter_map(|raw| match split_layer(&raw)? {
        (layer, TIME_STATE) => Some(layer),
        _ => None,
    });
    layers.next()
}

impl TunedState {
    /// The tensors that were found at `place`, once they are exactly those that a model of this layout has. `refuse`
    /// makes the error for those that are not.
    pub(super) fn new(
        place: &str,
        mut found: BTreeMap<usize, RawTensor>,
        layout: &StateLayout,
        refuse: fn(String) -> Error,
    ) -> Result<Self> {
        let (title, n_layer) = (layout.sizes.architecture.title, layout.sizes.n_layer);
        let Some(shape) = layout.tuned_shape() else {
            let text = format!("a tuned initial state, which an {title} model cannot have");
            return Err(refuse(text).at(place));
        };
        let mut layers = Vec::new();
        for layer in 0..n_layer {
            let Some(tensor) = found.remove(&layer) else {
                let name = time_state_name(layer);
                let text = format!("missing, expected one for each of {n_layer} layers");
                return Err(refuse(text).at(format!("{place}: tensor {name}")));
            };
            if tensor.shape != shape {
                let text = format!(
                    "shape {:?}, expected {shape:?} (heads, values, keys) by the model",
                    tensor.shape
                );
                return Err(refuse(text).at(tensor.place()));
            }
            if !tensor.dtype.is_weight() {
                let text = format!("dtype {}, expected F32, F16 or BF16", tensor.dtype);
                return Err(Error::unsupported(text).at(tensor.place()));
            }
            if !tensor.is_contiguous() {
                let text = "a view whose numbers do not lie in order, expected one saved after contiguous()";
                return Err(Error::unsupported(text).at(tensor.place()));
            }
            layers.push(tensor);
        }
        match found.into_values().next() {
            None => Ok(TunedState { layers }),
            Some(tensor) => {
                let text = format!("of a layer beyond the {n_layer} that the model has");
                Err(refuse(text).at(tensor.place()))
            }
        }
    }

    /// The tensor of each layer.
    pub(crate) fn layers(&self) -> &[RawTensor] {
        &self.layers
    }

    /// Reads the numbers.
    ///
    /// # Errors
    /// Those of reading, and numbers that are not finite.
    pub(crate) fn read(&self, layout: StateLayout) -> Result<Initial> {
        Initial::new(layout, |layer| {
            let tensor = &self.layers[layer];
            tensor.read_vector(tensor.len())
        })
    }
}

/// Whether a file that begins so may hold tensors, such as a tuned state alone; no saved state does.
pub(crate) fn may_hold_tensors(start: &[u8]) -> bool {
    torch::recognises(start) || SafetensorsFile::recognises(start)
}

/// Reads the tuned state that a file holds alone, for a model whose states have this layout.
///
/// # Errors
/// [`ErrorKind::State`](crate::ErrorKind::State) when the file holds something else, or the state of another model;
/// those of reading a checkpoint.
pub(crate) fn read_lone(file: SourceFile, layout: StateLayout) -> Result<Initial> {
    let place = file.name().to_owned();
    let watch = file.watch().clone();
    let refuse = |text: &str| Error::new(ErrorKind::State, text).at(&place);
    let FileContent::Tensors(tensors) = read_weights(file)? else {
        return Err(refuse(
            "a model file, expected a saved state or a tuned one",
        ));
    };
    let cleaner = Cleaner::new(tensors.iter().map(|tensor| tensor.name.as_str()));
    let names: Vec<_> = tensors
        .iter()
        .map(|tensor| cleaner.name(&tensor.name).into_owned())
        .collect();
    let mut found = BTreeMap::new();
    for (tensor, name) in tensors.into_iter().zip(names) {
        let Some(layer) = time_state_layer(&name) else {
            let text = format!(
                "not part of a tuned initial state, expected blocks.N.{TIME_STATE} alone; a model that was merged with \
                 its state is opened as a model"
            );
            return Err(Error::new(ErrorKind::State, text).at(tensor.place()));
        };
        if let Some(other) = found.insert(layer, tensor) {
            return Err(refuse("two tensors of one layer").at(other.place()));
        }
    }
    if found.is_empty() {
        return Err(refuse("no tensors, expected a tuned initial state"));
    }
    let tuned = TunedState::new(&place, found, &layout, Error::state)?;
    watch.judge(tuned.read(layout))
}
