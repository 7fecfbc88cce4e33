//! Arithmetic on slices of numbers: kernels for every instruction set, the threads that share the work, and `exp` with
//! the same bits everywhere. Knows nothing of models, quantisations or files.

pub(crate) mod aligned;
pub(crate) mod exp;
pub(crate) mod kernels;
pub(crate) mod threads;
