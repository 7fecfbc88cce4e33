//! How much memory a model and its sessions take, told before it is taken, and the limit that is kept.

pub(crate) mod budget;
pub(crate) mod estimate;
pub(crate) mod fit;
