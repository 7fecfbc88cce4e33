//! NVIDIA GPUs for rwkv-edge: the plugin behind `--device cuda`.
//!
//! A shared library with one symbol, the table of `rwkv_edge_plugin.h`. It needs the NVIDIA driver, and
//! nothing else of CUDA: its kernels are PTX (`kernels/`), which the driver compiles for the device at hand.
//!
//! ```text
//! table    what the host calls: checks what comes from outside, and turns it into safe types
//! forward  a batch through a chain of stages, from device to device
//! pass     one stage's work on one batch: which kernels, in which order
//! resident a token of one sequence as a single launch
//! stage    weights, memory of passes, states        upload   weights on their way to a device
//! spare    which memory of states is kept
//! options  which stages there can be                tensor   a tensor as it comes   names  values by names
//! layout   where everything lies on a device        params   what kernels take
//! kernels  the compiled kernels for a quantisation  device   a device with its module
//! limits   what a device can do, measured           driver   the driver's functions, owned handles
//! ```

#![deny(unsafe_code)]

mod device;
#[allow(unsafe_code)]
mod driver;
mod error;
mod forward;
mod kernels;
mod layout;
#[allow(unsafe_code)]
mod limits;
mod names;
mod options;
mod params;
#[allow(unsafe_code)]
mod pass;
#[allow(unsafe_code)]
mod resident;
mod spare;
mod stage;
#[allow(unsafe_code)]
mod table;
mod tensor;
#[allow(unsafe_code)]
mod upload;
