//! The CUDA driver, as far as it is needed here: owned handles, and errors with the driver's own text.
//!
//! All calls into the driver are in this folder. `libcuda.so.1` is opened when the first device is asked
//! for; nothing else of CUDA is needed at run time. Every call makes its context the current one of the
//! calling thread first, so that any thread may use any handle.
//!
//! `library.rs` opens the driver, `context.rs` a device. `memory.rs` is the memory of both sides, `stream.rs` the
//! queues of work; what goes into those is in `copy.rs`, `kernel.rs` and `graph.rs`.

mod context;
mod copy;
mod graph;
mod kernel;
mod library;
mod memory;
mod stream;

pub(crate) use context::Context;
pub(crate) use graph::Graph;
pub(crate) use kernel::{Kernel, Launch, Module};
pub(crate) use library::{device_count, driver_version};
pub(crate) use memory::{Memory, Pinned};
pub(crate) use stream::{Event, Stream};

/// An address in a device's memory; 0 is none.
pub(crate) type Address = u64;
