//! How weights are stored: the quantisations, and matrices as the kernels read them.

pub(crate) mod blocks;
pub(crate) mod int8;
pub(crate) mod matrix;
