//! The structs of the header, field by field.

#![forbid(unsafe_code)]

use std::ffi::{c_char, c_void};
use std::mem::offset_of;

use engine::{Quant, SamplerOptions};

use crate::fence::{wrong, Result};

pub(crate) const QUANT_KEEP: u32 = 0;
pub(crate) const QUANT_F32: u32 = 1;
pub(crate) const QUANT_F16: u32 = 2;
pub(crate) const QUANT_INT8: u32 = 3;
pub(crate) const QUANT_Q4: u32 = 4;
pub(crate) const QUANT_Q5: u32 = 5;
pub(crate) const QUANT_Q6: u32 = 6;

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
    pub(crate) min_p: f32,
    pub(crate) typical_p: f32,
    pub(crate) mirostat_tau: f32,
    pub(crate) mirostat_eta: f32,
    pub(crate) penalty_decay: f32,
    pub(crate) repetition_penalty: f32,
    pub(crate) temperature_last: u32,
    pub(crate) reserved: u32,
    pub(crate) n_banned_tokens: u32,
    pub(crate) n_uncounted_tokens: u32,
    pub(crate) banned_tokens: *const u32,
    pub(crate) uncounted_tokens: *const u32,
}

impl Sampling {
    /// The struct of callers that know no field behind the seed.
    pub(crate) const SIZE_WITH_SEED: usize = offset_of!(Sampling, min_p);

    /// All but the lists of tokens. In C 0 is off for every field behind the seed, whatever it is for the engine.
    pub(crate) fn options(&self) -> Result<SamplerOptions> {
        if self.temperature_last > 1 || self.reserved != 0 {
            return Err(wrong(format_args!(
                "temperature_last is {}, expected 0 or 1, and reserved {}, expected 0",
                self.temperature_last, self.reserved
            )));
        }
        let or = |value: f32, instead: f32| if value == 0.0 { instead } else { value };
        let off = SamplerOptions::new();
        Ok(SamplerOptions::new()
            .temperature(self.temperature)
            .temperature_last(self.temperature_last == 1)
            .top_p(self.top_p)
            .top_k(self.top_k as usize)
            .min_p(self.min_p)
            .typical_p(or(self.typical_p, off.typical_p))
            .mirostat_tau(self.mirostat_tau)
            .mirostat_eta(or(self.mirostat_eta, off.mirostat_eta))
            .presence_penalty(self.presence_penalty)
            .frequency_penalty(self.frequency_penalty)
            .penalty_decay(or(self.penalty_decay, off.penalty_decay))
            .repetition_penalty(or(self.repetition_penalty, off.repetition_penalty))
            .seed(self.seed))
    }
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
        QUANT_Q4 => Some(Quant::Q4),
        QUANT_Q5 => Some(Quant::Q5),
        QUANT_Q6 => Some(Quant::Q6),
        _ => {
            return Err(wrong(format_args!(
                "quant is {code}, expected 0 to {QUANT_Q6}"
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
        Quant::Q4 => QUANT_Q4,
        Quant::Q5 => QUANT_Q5,
        Quant::Q6 => QUANT_Q6,
        _ => QUANT_KEEP,
    }
}
