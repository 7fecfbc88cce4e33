//! Options of every command that draws tokens.

use std::hash::{BuildHasher, Hasher};

use rwkv_edge::SamplerOptions;

use crate::numbers::{self, whole};

/// How tokens are chosen.
#[derive(clap::Args, Clone)]
pub(crate) struct SamplingArgs {
    /// Variety; 0: always the likeliest token
    ///
    /// Divides the scores before a token is drawn.
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = numbers::not_negative)]
    temperature: f32,

    /// Draw from the likeliest, P together
    ///
    /// The likeliest tokens whose probabilities together reach P; 1: off.
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = numbers::share)]
    top_p: f32,

    /// Draw only from so many of the likeliest tokens; 0: off
    #[arg(long, value_name = "K", default_value_t = 0, value_parser = whole::<usize>(0..=u64::MAX))]
    top_k: usize,

    /// Lowers tokens that were generated before by so much; 0: off
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = numbers::finite)]
    presence_penalty: f32,

    /// Lowers a token by so much for each time it was generated before; 0: off
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = numbers::finite)]
    frequency_penalty: f32,

    /// Divides the positive and multiplies the negative scores of tokens that were generated before;
    /// 1: off
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = numbers::above_zero)]
    repetition_penalty: f32,

    /// Seed of the draws [default: another each time]
    ///
    /// The same seed gives the same text.
    #[arg(long, value_name = "N", value_parser = whole::<u64>(0..=u64::MAX))]
    seed: Option<u64>,
}

impl SamplingArgs {
    pub(crate) fn options(&self) -> SamplerOptions {
        SamplerOptions::new()
            .temperature(self.temperature)
            .top_p(self.top_p)
            .top_k(self.top_k)
            .presence_penalty(self.presence_penalty)
            .frequency_penalty(self.frequency_penalty)
            .repetition_penalty(self.repetition_penalty)
            .seed(self.seed.unwrap_or_else(random_seed))
    }
}

/// Whether what was generated before, or random numbers, decide what follows.
pub(crate) fn draws_or_penalises(options: &SamplerOptions) -> bool {
    let penalties = [options.presence_penalty, options.frequency_penalty];
    options.temperature > 0.0
        || options.repetition_penalty != 1.0
        || penalties.iter().any(|&penalty| penalty != 0.0)
}

/// Differs from run to run: the standard library seeds its hash maps from the system's randomness.
fn random_seed() -> u64 {
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}
