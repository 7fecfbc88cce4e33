//! The structs of the header, field by field.

#![forbid(unsafe_code)]

use std::ffi::{c_char, c_void};

use engine::Quant;

use crate::fence::{wrong, Result};

pub(crate) const QUANT_KEEP: u32 = 0;
pub(crate) const QUANT_F32: u32 = 1;
pub(crate) const QUANT_F16: u32 = 2;
pub(crate) const QUANT_INT8: u32 = 3;

pub(crate) const FLAG_NO_MMAP: u32 = 1;

/// `rwkv_edge_options`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub(crate) struct_size: u32,
    pub(crate) quant: u32,
    pub(crate) threads: u32,
    pub(crate) flags: u32,
    pub(crate) max_memory: u64,
    pub(crate) tokenizer: *const c_char,
    pub(crate) device_map: *const c_char,
}

/// `rwkv_edge_model_info`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ModelInfo {
    pub(crate) struct_size: u32,
    pub(crate) version: u32,
    pub(crate) n_vocab: u32,
    pub(crate) n_embd: u32,
    pub(crate) n_layer: u32,
    pub(crate) quant: u32,
    pub(crate) n_params: u64,
    pub(crate) weight_bytes: u64,
    pub(crate) state_bytes: u64,
}

/// `rwkv_edge_sampling`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    pub(crate) struct_size: u32,
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    pub(crate) top_k: u32,
    pub(crate) presence_penalty: f32,
    pub(crate) frequency_penalty: f32,
    pub(crate) seed: u64,
}

/// `rwkv_edge_on_text`. Not `"C"`, with which Rust relies on nothing ever unwinding out of it: a C++ exception would be
/// undefined behaviour. So it comes as far as the first place that catches panics, where Rust ends the program.
pub type OnText = unsafe extern "C-unwind" fn(*const c_char, usize, *mut c_void) -> bool;

/// What matrices are to become; `None` is as stored.
pub(crate) fn quant_of_code(code: u32) -> Result<Option<Quant>> {
    Ok(match code {
        QUANT_KEEP => None,
        QUANT_F32 => Some(Quant::F32),
        QUANT_F16 => Some(Quant::F16),
        QUANT_INT8 => Some(Quant::Int8),
        _ => {
            return Err(wrong(format_args!(
                "quant is {code}, expected 0 to {QUANT_INT8}"
            )))
        }
    })
}

/// The code of a quantisation; one that the header does not know yet has none, which a test sees.
pub(crate) fn code_of_quant(quant: Quant) -> u32 {
    match quant {
        Quant::F32 => QUANT_F32,
        Quant::F16 => QUANT_F16,
        Quant::Int8 => QUANT_INT8,
        _ => QUANT_KEEP,
    }
}
