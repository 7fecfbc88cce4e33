//! What the networks are: their tensors, their states, and their arithmetic for a batch of rows.

pub(crate) mod batch;
pub(crate) mod decay;
pub(crate) mod state;
pub(crate) mod v4;
