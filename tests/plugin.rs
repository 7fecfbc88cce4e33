//! The suite of the plugin table: what every plugin must do, run against one of them.
//!
//! Without settings it runs against the plugin of plain CPU code in tests/cpu_plugin. For another one:
//!
//! ```text
//! RWKV_EDGE_TEST_DEVICE=cuda:0   the device
//! RWKV_EDGE_PLUGIN_PATH=FILE     its plugin, where it is not found otherwise
//! RWKV_EDGE_TEST_ROOT=FOLDER     a copy of the repository's tests/fixtures and cli/demo, where this
//!                                program was carried to another machine
//! RWKV_EDGE_TEST_SHORT=N         N tokens where there could be more, for tools that make everything slow
//! ```
//!
//! Deviations are printed (`--nocapture`), in standard deviations of the CPU's logits.

mod common;
#[path = "common/skipped.rs"]
mod skipped;

#[path = "plugin/calls.rs"]
mod calls;
#[path = "plugin/close.rs"]
mod close;
#[path = "plugin/many.rs"]
mod many;
#[path = "plugin/memory.rs"]
mod memory;
#[path = "plugin/names.rs"]
mod names;
#[path = "plugin/pieces.rs"]
mod pieces;
#[path = "plugin/setup.rs"]
mod setup;
#[path = "plugin/split.rs"]
mod split;
#[path = "plugin/states.rs"]
mod states;
#[path = "plugin/table.rs"]
mod table;
#[path = "plugin/vocabularies.rs"]
mod vocabularies;
