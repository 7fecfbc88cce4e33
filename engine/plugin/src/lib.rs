//! The table by which rwkv-edge runs layers of a model on another device: `include/rwkv_edge_plugin.h` in
//! Rust. That header says what every function must do; docs/PLUGINS.md is the guide.
//!
//! Only declarations; both sides of the table use them, so that they cannot disagree.

#![no_std]
#![forbid(unsafe_code)]
#![allow(missing_docs)] // The header has the documentation.

use core::ffi::{c_char, c_void};

pub const VERSION: u32 = 2;
/// Name of the one exported symbol.
pub const SYMBOL: &str = "rwkv_edge_plugin_v2";

pub type Status = i32;
pub const OK: Status = 0;
pub const ERROR_ARGUMENT: Status = 1;
pub const ERROR_UNSUPPORTED: Status = 2;
pub const ERROR_MEMORY: Status = 3;
pub const ERROR_DEVICE: Status = 4;
pub const ERROR_PANIC: Status = 99;

/// Opaque to the host.
#[repr(C)]
pub struct Stage {
    _private: [u8; 0],
}

/// Opaque to the host.
#[repr(C)]
pub struct State {
    _private: [u8; 0],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Device {
    pub struct_size: u32,
    pub reserved: u32,
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub quants: *const *const c_char,
    pub name: [c_char; 96],
    pub detail: [c_char; 96],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Size {
    pub name: *const c_char,
    pub value: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Number {
    pub name: *const c_char,
    pub value: f64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct StageOptions {
    pub struct_size: u32,
    pub device: u32,
    pub architecture: *const c_char,
    pub quant: *const c_char,
    pub sizes: *const Size,
    pub numbers: *const Number,
    pub n_sizes: u32,
    pub n_numbers: u32,
    pub first_layer: u32,
    pub layer_count: u32,
    pub has_embedding: u32,
    pub has_head: u32,
    pub rows_max: u32,
    pub row_width: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    pub struct_size: u32,
    pub reserved: u32,
    pub weight_bytes: u64,
    pub workspace_bytes: u64,
    pub state_bytes: u64,
    pub allocated_bytes: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Part {
    pub name: *const c_char,
    pub data: *const c_void,
    pub bytes: u64,
}

pub const NO_LAYER: u32 = u32::MAX;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tensor {
    pub struct_size: u32,
    pub layer: u32,
    pub name: *const c_char,
    pub quant: *const c_char,
    pub n_rows: u64,
    pub n_cols: u64,
    pub first_row: u64,
    pub row_count: u64,
    pub parts: *const Part,
    pub n_parts: u32,
    pub reserved: u32,
}

pub const WRITE_NOTHING: u32 = 0;
pub const WRITE_ROWS: u32 = 1;
pub const WRITE_HIDDEN: u32 = 2;
pub const WRITE_LOGITS: u32 = 3;
pub const WRITE_TOKENS: u32 = 4;

pub const ROWS_NONE: u32 = 0;
pub const ROWS_LAST: u32 = 1;
pub const ROWS_ALL: u32 = 2;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Span {
    pub states: *const *mut State,
    pub n_rows: u32,
    pub rows: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Batch {
    pub struct_size: u32,
    pub n_spans: u32,
    pub spans: *const Span,
    pub n_rows: u32,
    pub write: u32,
    pub tokens: *const u32,
    pub rows_in: *const f32,
    pub numbers: *mut f32,
    pub tokens_out: *mut u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    pub struct_size: u32,
    pub reserved: u32,
    pub read_bytes_per_s: f64,
    pub macs_per_s: f64,
    pub step_seconds: f64,
}

#[repr(C)]
pub struct Table {
    pub version: u32,
    pub struct_size: u32,
    pub name: *const c_char,
    pub build: *const c_char,
    pub architectures: *const *const c_char,
    pub device_count: unsafe extern "C" fn(count: *mut u32) -> Status,
    pub device_info: unsafe extern "C" fn(device: u32, info: *mut Device) -> Status,
    pub device_limits: unsafe extern "C" fn(device: u32, limits: *mut Limits) -> Status,
    pub stage_estimate:
        unsafe extern "C" fn(options: *const StageOptions, memory: *mut Memory) -> Status,
    pub state_count: unsafe extern "C" fn(options: *const StageOptions, count: *mut u64) -> Status,
    pub stage_new:
        unsafe extern "C" fn(options: *const StageOptions, stage: *mut *mut Stage) -> Status,
    pub stage_tensor: unsafe extern "C" fn(stage: *mut Stage, tensor: *const Tensor) -> Status,
    pub stage_finish: unsafe extern "C" fn(stage: *mut Stage) -> Status,
    pub stage_memory: unsafe extern "C" fn(stage: *const Stage, memory: *mut Memory) -> Status,
    pub stage_free: unsafe extern "C" fn(stage: *mut Stage),
    pub state_new: unsafe extern "C" fn(stage: *mut Stage, state: *mut *mut State) -> Status,
    pub state_write:
        unsafe extern "C" fn(state: *mut State, numbers: *const f32, count: usize) -> Status,
    pub state_read:
        unsafe extern "C" fn(state: *const State, numbers: *mut f32, count: usize) -> Status,
    pub state_copy: unsafe extern "C" fn(to: *mut State, from: *const State) -> Status,
    pub state_free: unsafe extern "C" fn(state: *mut State),
    pub state_logits:
        unsafe extern "C" fn(state: *const State, logits: *mut f32, count: usize) -> Status,
    pub forward: unsafe extern "C" fn(
        stages: *const *mut Stage,
        n_stages: u32,
        batch: *const Batch,
    ) -> Status,
    pub last_error: unsafe extern "C" fn(text: *mut c_char, capacity: usize) -> usize,
    pub reserved: [*mut c_void; 8],
}

/// The type of the one exported symbol.
pub type Entry = unsafe extern "C" fn(host_version: u32) -> *const Table;
