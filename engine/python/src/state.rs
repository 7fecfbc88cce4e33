//! The recurrent state as a value of Python.

use std::path::PathBuf;

use engine::ErrorKind;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyType};

use crate::array;
use crate::error::{Failed, Result};
use crate::model::Model;

/// All that a model remembers of the tokens it has read: of one size, for one token or a million.
///
/// State(model) is the empty state, State(model, data) what `to_bytes` or `save` wrote. Forward passes move a state;
/// `copy` is for going back. It pickles; what comes out of a pickle is checked when a model first gets it, and until
/// then says nothing of itself. A state belongs to the checkpoint that made it, with any quantisation.
#[pyclass(module = "rwkv_edge")]
pub(crate) struct State(Kept);

enum Kept {
    Here {
        state: Box<engine::State>,
        n_layer: usize,
        /// Numbers of a row of logits.
        n_vocab: usize,
    },
    /// Bytes of a pickle, which only its model can read.
    Saved(Vec<u8>),
}

impl State {
    pub(crate) fn new(model: &engine::Model) -> engine::Result<Self> {
        Ok(State(Kept::Here {
            state: Box::new(model.try_new_state()?),
            n_layer: model.info().n_layer,
            n_vocab: model.n_vocab(),
        }))
    }

    /// The state for a pass of this model; out of a pickle it is read, and checked, now.
    pub(crate) fn of_model(&mut self, model: &engine::Model) -> engine::Result<&mut engine::State> {
        if let Kept::Saved(bytes) = &self.0 {
            let mut state = State::new(model)?;
            if let Kept::Here { state, .. } = &mut state.0 {
                state.load_bytes(bytes)?;
            }
            *self = state;
        }
        match &mut self.0 {
            Kept::Here { state, .. } => Ok(state),
            Kept::Saved(_) => Err(unread()),
        }
    }

    fn here(&self) -> engine::Result<&engine::State> {
        match &self.0 {
            Kept::Here { state, .. } => Ok(state),
            Kept::Saved(_) => Err(unread()),
        }
    }

    /// Refuses logits that are neither none nor a row.
    fn check_logits(&self, logits: &[f32]) -> engine::Result<()> {
        match &self.0 {
            Kept::Here { n_vocab, .. } if !logits.is_empty() && logits.len() != *n_vocab => {
                let text = format!("{} logits, expected {n_vocab}", logits.len());
                Err(engine::Error::new(ErrorKind::Argument, text))
            }
            _ => Ok(()),
        }
    }
}

fn unread() -> engine::Error {
    let text = "the state comes out of a pickle, and no model has read it yet";
    engine::Error::new(ErrorKind::State, text)
}

/// The state for as long as a call moves it.
pub(crate) fn borrow<'py>(state: &Bound<'py, State>) -> Result<PyRefMut<'py, State>> {
    state.try_borrow_mut().map_err(|_| {
        Failed::argument("the state is in use: by another thread, or twice in one batch")
    })
}

#[pymethods]
impl State {
    #[new]
    #[pyo3(signature = (model, data=None))]
    fn open(py: Python<'_>, model: &Model, data: Option<&[u8]>) -> Result<Self> {
        model.0.work(py, |model, _| {
            let mut state = State::new(model)?;
            if let (Kept::Here { state, .. }, Some(data)) = (&mut state.0, data) {
                state.load_bytes(data)?;
            }
            Ok(state)
        })
    }

    /// Tokens read since the empty state.
    #[getter]
    fn n_tokens(&self) -> Result<u64> {
        Ok(self.here()?.n_tokens())
    }

    /// Size of the numbers in bytes.
    #[getter]
    fn size_bytes(&self) -> Result<usize> {
        Ok(self.here()?.size_bytes())
    }

    /// Another state of the same content, which moves by itself.
    fn copy(&self) -> Result<Self> {
        Ok(State(match &self.0 {
            Kept::Here {
                state,
                n_layer,
                n_vocab,
            } => Kept::Here {
                state: Box::new(state.try_clone()?),
                n_layer: *n_layer,
                n_vocab: *n_vocab,
            },
            Kept::Saved(bytes) => Kept::Saved(bytes.clone()),
        }))
    }

    fn __copy__(&self) -> Result<Self> {
        self.copy()
    }

    fn __deepcopy__(&self, _memo: &Bound<'_, PyAny>) -> Result<Self> {
        self.copy()
    }

    /// Back to the empty state.
    fn reset(&mut self) -> Result<()> {
        match &mut self.0 {
            Kept::Here { state, .. } => {
                state.reset();
                Ok(())
            }
            Kept::Saved(_) => Err(unread().into()),
        }
    }

    /// Writes the state to a file, whole or not at all, which `load` and the command's --load-state read. `logits`
    /// (n_vocab) are those behind the last token, by which the command goes on without a prompt.
    #[pyo3(signature = (path, logits=None))]
    fn save(&self, py: Python<'_>, path: PathBuf, logits: Option<Vec<f32>>) -> Result<()> {
        let logits = logits.unwrap_or_default();
        let state = self.here()?;
        self.check_logits(&logits)?;
        Ok(py.detach(|| state.save(path, &logits))?)
    }

    /// Becomes the state of a file, and gives the logits that were saved with it: float32 (n_vocab), or None. Where
    /// it fails nothing has changed.
    fn load<'py>(&mut self, py: Python<'py>, path: PathBuf) -> Result<Option<Bound<'py, PyAny>>> {
        let Kept::Here { state, .. } = &mut self.0 else {
            return Err(unread().into());
        };
        let logits = py.detach(|| state.load(path))?;
        match logits.is_empty() {
            true => Ok(None),
            false => array::copied(py, &[logits.len()], &logits).map(Some),
        }
    }

    /// The bytes of a file that `save` writes, without logits.
    fn to_bytes<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyBytes>> {
        match &self.0 {
            Kept::Here { state, .. } => {
                state.check()?;
                Ok(PyBytes::new(py, &state.to_bytes(&[])))
            }
            Kept::Saved(bytes) => Ok(PyBytes::new(py, bytes)),
        }
    }

    /// A copy of the numbers: float32 (n_layer, numbers of a layer). `Model.info["state_parts"]` says what those of
    /// a layer are, one part behind the other.
    fn to_numpy<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>> {
        let Kept::Here { state, n_layer, .. } = &self.0 else {
            return Err(unread().into());
        };
        let numbers = state.numbers()?;
        array::copied(py, &[*n_layer, numbers.len() / n_layer], numbers)
    }

    fn __reduce__<'py>(
        &self,
        py: Python<'py>,
    ) -> Result<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        let class = PyType::new::<State>(py);
        Ok((class.getattr("_unpickled")?, (self.to_bytes(py)?,)))
    }

    /// What `pickle` calls.
    #[staticmethod]
    fn _unpickled(bytes: Vec<u8>) -> Self {
        State(Kept::Saved(bytes))
    }

    fn __repr__(&self) -> String {
        match &self.0 {
            Kept::Here { state, .. } => format!("State(n_tokens={})", state.n_tokens()),
            Kept::Saved(bytes) => format!("State(unread, {} bytes)", bytes.len()),
        }
    }
}
