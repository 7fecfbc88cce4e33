//! Keyword arguments of functions that take many.

use pyo3::conversion::FromPyObjectOwned;
use pyo3::exceptions::{PyOverflowError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::{Failed, Result};

/// Keyword arguments, of which each is asked for once. None stands for the default, as if it was not given.
pub(crate) struct Keywords<'py> {
    function: &'static str,
    left: Option<Bound<'py, PyDict>>,
}

impl<'py> Keywords<'py> {
    pub(crate) fn of(function: &'static str, given: Option<&Bound<'py, PyDict>>) -> Result<Self> {
        Ok(Keywords {
            function,
            left: given.map(|given| given.copy()).transpose()?,
        })
    }

    pub(crate) fn take<T: FromPyObjectOwned<'py>>(&mut self, name: &str) -> Result<Option<T>> {
        let value = self.take_any(name)?;
        value.map(|value| read(name, &value)).transpose()
    }

    pub(crate) fn take_any(&mut self, name: &str) -> Result<Option<Bound<'py, PyAny>>> {
        let Some(left) = &self.left else {
            return Ok(None);
        };
        let value = left.get_item(name)?;
        if value.is_some() {
            left.del_item(name)?;
        }
        Ok(value.filter(|value| !value.is_none()))
    }

    /// Whether progress is shown: as it was asked for, or where stderr is a terminal.
    pub(crate) fn take_progress(&mut self) -> Result<bool> {
        let asked = self.take("progress")?;
        Ok(asked.unwrap_or_else(|| std::io::IsTerminal::is_terminal(&std::io::stderr())))
    }

    /// Refuses what nobody has asked for.
    pub(crate) fn finish(self) -> Result<()> {
        match self
            .left
            .as_ref()
            .and_then(|left| left.keys().iter().next())
        {
            None => Ok(()),
            Some(name) => Err(unexpected(self.function, &name.to_string())),
        }
    }
}

/// As Python says it of its own functions.
pub(crate) fn unexpected(function: &str, name: &str) -> Failed {
    let text = format!("{function}() got an unexpected keyword argument '{name}'");
    PyTypeError::new_err(text).into()
}

/// A value of an argument: a wrong type is a TypeError, a number out of range an Error, as all values out of range
/// are.
pub(crate) fn read<'py, T: FromPyObjectOwned<'py>>(
    name: &str,
    value: &Bound<'py, PyAny>,
) -> Result<T> {
    value.extract().map_err(|error: T::Error| {
        let error: PyErr = error.into();
        let py = value.py();
        match error.is_instance_of::<PyOverflowError>(py) {
            true => Failed::argument(format!("{name}: {value} is out of range")),
            false if error.is_instance_of::<PyTypeError>(py) => {
                PyTypeError::new_err(format!("{name}: {}", error.value(py))).into()
            }
            false => error.into(),
        }
    })
}
