//! Where layers run: names of devices, plans, stages on the CPU and on plugins, and states on devices.

pub(crate) mod data_parallel;
pub(crate) mod device_state;
pub(crate) mod names;
pub(crate) mod not_finite;
pub(crate) mod plan;
pub(crate) mod plugin;
pub(crate) mod stages;
mod upload;
