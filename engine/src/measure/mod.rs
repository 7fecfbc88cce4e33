//! What is needed to measure speed: models with made-up weights, and what this machine can do at most.

pub(crate) mod synthetic;
pub(crate) mod yardstick;
