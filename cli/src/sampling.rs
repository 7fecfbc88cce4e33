//! Options of every command that draws tokens.

use std::hash::{BuildHasher, Hasher};

use rwkv_edge::SamplerOptions;

/// How tokens are chosen.
#[derive(clap::Args, Clone)]
pub(crate) struct SamplingArgs {
    /// 0 takes the likeliest token each time; higher is more varied
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    temperature: f32,

    /// Draw only from the likeliest tokens that together have this probability; 1: off
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,

    /// Draw only from so many of the likeliest tokens; 0: off
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,

    /// Lowers tokens that were generated before by so much; 0: off
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    presence_penalty: f32,

    /// Lowers a token by so much for each time it was generated before; 0: off
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    frequency_penalty: f32,

    /// Divides the positive and multiplies the negative scores of tokens that were generated before;
    /// 1: off
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f32,

    /// Seed of the random numbers: the same seed gives the same text [default: another each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl SamplingArgs {
    pub(crate) fn options(&self) -> SamplerOptions {
        SamplerOptions {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed.unwrap_or_else(random_seed),
        }
    }
}

/// Differs from run to run: the standard library seeds its hash maps from the system's randomness.
fn random_seed() -> u64 {
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}
