//! Numbers as numpy arrays, written where numpy reads them.

use bytemuck::Pod;
use engine::ErrorKind;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyByteArray, PyTuple, PyType};

use crate::error::{Failed, Result};

/// `numpy.ndarray`, from the first array on: a program that wants none need not have numpy.
static NDARRAY: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// Numbers that numpy has a name for.
pub(crate) trait Number: Pod + Send {
    const DTYPE: &'static str;
}

impl Number for f32 {
    const DTYPE: &'static str = "<f4";
}

impl Number for f64 {
    const DTYPE: &'static str = "<f8";
}

/// An array of this shape that `fill` has written: zeros before that, row after row.
///
/// The numbers lie in a bytearray, which belongs to the array, so that nothing is copied and an array that does not
/// fit into memory is a MemoryError.
pub(crate) fn array<'py, T: Number>(
    py: Python<'py>,
    shape: &[usize],
    fill: impl FnOnce(&mut [T]) -> Result<()>,
) -> Result<Bound<'py, PyAny>> {
    // First of all: without numpy nothing has happened yet.
    let ndarray = NDARRAY.import(py, "numpy", "ndarray")?;
    let n_bytes = shape
        .iter()
        .try_fold(size_of::<T>(), |n, &side| n.checked_mul(side))
        .filter(|&n| isize::try_from(n).is_ok())
        .ok_or_else(|| Failed::new(ErrorKind::Memory, "not enough memory for an array"))?;
    let bytes = PyByteArray::new_with(py, n_bytes, |bytes| {
        let numbers = match bytes.is_empty() {
            true => &mut [],
            false => bytemuck::try_cast_slice_mut(bytes)
                .map_err(|e| Failed::new(ErrorKind::Memory, format!("memory of Python: {e}")))?,
        };
        Ok(fill(numbers)?)
    })?;
    let shape = PyTuple::new(py, shape)?;
    Ok(ndarray.call1((shape, T::DTYPE, bytes))?)
}

/// An array of numbers that are there already.
pub(crate) fn copied<'py, T: Number>(
    py: Python<'py>,
    shape: &[usize],
    numbers: &[T],
) -> Result<Bound<'py, PyAny>> {
    array(py, shape, |out| {
        out.copy_from_slice(numbers);
        Ok(())
    })
}
