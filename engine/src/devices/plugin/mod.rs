//! Plugins: other devices that run stages of a model, each behind one shared library.
//!
//! The table between the two sides is `engine/plugin` (a C header, and the same in Rust); docs/PLUGINS.md
//! is the guide for who writes one. `search.rs` finds the files, `loadable.rs` sees what the loader would
//! die of, `library.rs` opens one and checks its table, `options.rs` is what a plugin is told of a stage,
//! `table.rs` calls through the table, `forward.rs` the one call of every token. Above this module
//! nothing is unsafe: a stage or a state that can be named is valid, and is given back when nobody holds it
//! any more.

mod forward;
mod library;
#[cfg(all(
    feature = "plugins",
    not(target_feature = "crt-static"),
    any(target_os = "linux", target_os = "android")
))]
mod loadable;
mod options;
mod search;
mod table;

pub(crate) use forward::{forward, BatchScratch, Input, Output, SpanInput};
pub(crate) use library::Plugin;
pub(crate) use options::StageOptions;
pub(crate) use search::{all, named};
pub(crate) use table::{Memory, Stage, StageBuilder, State, TensorName};

pub use table::{DeviceInfo, DeviceLimits};
