//! Chooses the next token from the logits of the last one.
//!
//! Input: one row of n_vocab logits. Output: an id below n_vocab. The steps, in this order:
//!
//! 1. banned tokens are left out for good;
//! 2. penalties, on the logits of tokens that were generated before ([`Sampler::accept`]): the
//!    repetition penalty, then `presence_penalty + count * frequency_penalty` is subtracted;
//! 3. greedy (temperature <= 0): the highest logit, ties to the lowest id. Else:
//! 4. division by the temperature, and softmax;
//! 5. top-k: the k most probable tokens stay;
//! 6. top-p: of these, the fewest most probable ones whose probabilities sum to at least top_p (with
//!    the probabilities of what top-k left summing to 1) stay;
//! 7. min-p: tokens with at least min_p times the highest probability stay;
//! 8. typical-p: the fewest most typical ones whose probabilities sum to at least typical_p stay, of
//!    what is left, whose probabilities sum to 1 again. Typical is what lies near the entropy
//!    H = sum(p * -ln p): tokens rank by |-ln p - H|;
//! 9. mirostat: tokens whose surprise, -log2 p among what is left, is not above a limit stay, or the
//!    most probable one alone;
//! 10. a draw among what stays, by probability.
//!
//! This is the order of Hugging Face transformers, with llama.cpp's mirostat version 2 behind it (there
//! the other cuts are off when it is on). With [`SamplerOptions::temperature_last`] the order is that of
//! ChatRWKV and the `rwkv` package, by which BlinkDL's recommended settings are meant: bans, penalties,
//! greedy, softmax of the logits as they are, top-p, top-k, then min-p, typical-p and mirostat, which
//! are not there, and only then the temperature, as p^(1/T) of what stays, and the draw. At temperature 1
//! without top-k or without top-p both orders are the same; at another one the same top_p keeps other
//! tokens. Wherever tokens are ranked, equal ones rank by id, the lowest first (ChatRWKV's top-p keeps
//! all tokens that are as probable as the last one).
//!
//! Penalties are ChatRWKV's, too: whenever a token is counted all counts are first multiplied by
//! `penalty_decay`. The presence penalty asks only whether a token was ever generated: it stays whole
//! while the count of a token decays, and so does the repetition penalty. The `rwkv` package, but not the
//! official chat demo, never counts spaces and digits, whose presence penalty it does subtract:
//! [`SamplerOptions::uncounted_tokens`] is for that.
//!
//! Mirostat's limit begins at 2 tau. When the token that was drawn is counted the limit goes down by
//! eta * (surprise - tau), with the surprise, -log2, of the probability by which it was drawn: what is
//! drawn comes to tau bits a token on average. A token that is drawn and not counted does not matter.
//! Source: Basu et al., "Mirostat" (ICLR 2021), algorithm 2; typical-p: Meister et al., "Locally Typical
//! Sampling" (TACL 2023).
//!
//! The same seed, options and logits give the same tokens on every platform: `exp` and `log2` are our
//! own, sums are f64 and run in a fixed order, and ChaCha8 gives one 53-bit uniform number a draw.
//!
//! A row of 50,277 logits takes 0.04 ms greedily and 0.2 to 0.4 ms by drawing (`cargo bench --bench
//! kernels -- sampler`), where a token of the 169M model takes more than 5.

#![forbid(unsafe_code)]

mod cuts;
mod options;

use std::num::NonZeroUsize;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

pub use self::options::SamplerOptions;

use self::cuts::Candidate;
use crate::error::{Error, Result};
use crate::math::exp::{self, argmax};

/// Draws tokens, and remembers what the penalties and the random numbers need for that.
///
/// [`Sampler::new`] allocates the buffers that its options need; sampling allocates nothing. After
/// [`reserve`](Self::reserve), other options need no memory either.
///
/// ```
/// use rwkv_edge::{Sampler, SamplerOptions};
///
/// let options = SamplerOptions::new().temperature(0.8).top_p(0.9).seed(7);
/// let mut sampler = Sampler::new(options, 4)?;
/// let token = sampler.sample(&[0.5, -1.0, 3.0, 2.5]);
/// sampler.accept(token);
/// # Ok::<(), rwkv_edge::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplerOptions,
    n_vocab: usize,
    rng: ChaCha8Rng,
    /// (n_vocab) how often each token was generated, decayed; above 0 for good once it was. May be empty
    /// without penalties.
    counts: Vec<f32>,
    /// (n_vocab) logits with penalties, then distances from the best, then weights (probabilities
    /// times a constant); may be empty when the choice is greedy without penalties.
    scores: Vec<f32>,
    /// Tokens that may be drawn; capacity n_vocab where some are cut.
    candidates: Vec<Candidate>,
    /// Mirostat's limit, in bits.
    surprise_max: f64,
    /// The token that was drawn last by mirostat, and how surprising it was, in bits.
    drawn: Option<(u32, f64)>,
}

impl Sampler {
    /// A sampler for rows of `n_vocab` logits.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for an option out of its range.
    pub fn new(options: SamplerOptions, n_vocab: usize) -> Result<Self> {
        if n_vocab == 0 || u32::try_from(n_vocab).is_err() {
            return Err(Error::argument(format!(
                "n_vocab: {n_vocab}, expected 1 to {}",
                u32::MAX
            )));
        }
        options.check(n_vocab)?;
        let mut sampler = Sampler {
            n_vocab,
            rng: ChaCha8Rng::seed_from_u64(options.seed),
            counts: Vec::new(),
            scores: Vec::new(),
            candidates: Vec::new(),
            surprise_max: surprise_at_start(&options),
            drawn: None,
            options: options.clone(),
        };
        sampler.make_room(&options)?;
        Ok(sampler)
    }

    /// Allocates what any options may need, 16 bytes a token of the vocabulary, so that
    /// [`set_options`](Self::set_options) never has to. From here on generated tokens are counted also
    /// while there are no penalties.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory) when there is not enough.
    pub fn reserve(&mut self) -> Result<()> {
        fill(&mut self.counts, self.n_vocab)?;
        fill(&mut self.scores, self.n_vocab)?;
        make_room(&mut self.candidates, self.n_vocab)
    }

    /// Bytes that [`reserve`](Self::reserve) makes of a vocabulary.
    pub(crate) fn reserved_bytes(n_vocab: usize) -> usize {
        n_vocab * (2 * size_of::<f32>() + size_of::<Candidate>())
    }

    /// Goes on with other options: the random numbers start from their seed, mirostat at its beginning, and
    /// what was counted for the penalties stays.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for an option out of its range,
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory) when there is not enough. Draws go on as before then.
    pub fn set_options(&mut self, options: SamplerOptions) -> Result<()> {
        options.check(self.n_vocab)?;
        self.make_room(&options)?;
        self.options = options;
        self.restart();
        Ok(())
    }

    /// Allocates what options need and is not there yet.
    fn make_room(&mut self, options: &SamplerOptions) -> Result<()> {
        if options.has_penalties() {
            fill(&mut self.counts, self.n_vocab)?;
        }
        if !options.is_plain_greedy() {
            fill(&mut self.scores, self.n_vocab)?;
        }
        if options.has_cut() {
            make_room(&mut self.candidates, self.n_vocab)?;
        }
        Ok(())
    }

    /// What the sampler was made with.
    pub fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// Chooses a token. NaN is never chosen (a row of nothing but NaN gives the first token that is not
    /// banned), nor is a probability of 0. An infinite logit is certain; several share the draw.
    ///
    /// It is not counted for the penalties and mirostat: see [`accept`](Self::accept).
    ///
    /// # Panics
    ///
    /// When `logits` is not one row of n_vocab numbers.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        assert_eq!(logits.len(), self.n_vocab, "logits must be one row");
        self.drawn = None;
        if self.options.is_plain_greedy() {
            return argmax(logits);
        }
        self.ban_and_penalise(logits);
        let best = argmax(&self.scores);
        let max = self.scores[best as usize];
        // NaN or -inf only when there is no probability to draw by.
        if max.is_nan() {
            return self.options.first_allowed(self.n_vocab).unwrap_or(best);
        }
        if self.options.temperature <= 0.0 || max == f32::NEG_INFINITY {
            return best;
        }
        let uniform = self.uniform();
        if !self.options.has_cut() {
            self.scores_to_distances(max, self.options.temperature);
            self.distances_to_weights();
            return cuts::draw(self.scores.iter().copied().zip(0..), uniform).unwrap_or(best);
        }
        match self.options.temperature_last {
            true => self.scores_to_distances(max, 1.0),
            false => self.scores_to_distances(max, self.options.temperature),
        }
        self.cut();
        let (kept, weights) = (&self.candidates, &self.scores);
        let each = kept.iter().map(|c| (c.weight(weights), c.token()));
        let token = cuts::draw(each, uniform).unwrap_or(best);
        if self.options.mirostat_tau.is_some() {
            self.drawn = Some((token, cuts::surprise(kept, weights, token)));
        }
        token
    }

    /// Counts a generated token for the penalties, after the decay of all counts, and for mirostat if it
    /// is the one that was drawn last. Call it for what was generated, not for the prompt: a penalty on the
    /// prompt's words would keep an answer from using them. Ids of no token are ignored.
    pub fn accept(&mut self, token: u32) {
        if token as usize >= self.n_vocab {
            return;
        }
        let drawn = self.drawn.take().filter(|drawn| drawn.0 == token);
        if let (Some((_, surprise)), Some(tau)) = (drawn, self.options.mirostat_tau) {
            let too_much = surprise - f64::from(tau);
            self.surprise_max -= f64::from(self.options.mirostat_eta) * too_much;
        }
        let decay = self.options.penalty_decay;
        if decay < 1.0 {
            for count in &mut self.counts {
                // What was ever generated stays above 0, for the presence penalty.
                let decayed = (*count * decay).max(f32::MIN_POSITIVE);
                *count = if *count > 0.0 { decayed } else { 0.0 };
            }
        }
        let is_counted = !self.options.uncounted_tokens.contains(&token);
        if let Some(count) = self.counts.get_mut(token as usize) {
            *count = match is_counted {
                true => *count + 1.0,
                // Generated, but no number that the frequency penalty would see.
                false => count.max(f32::MIN_POSITIVE),
            };
        }
    }

    /// As new: nothing counted, the random numbers from the seed and mirostat at its beginning again.
    pub fn reset(&mut self) {
        self.counts.fill(0.0);
        self.restart();
    }

    fn restart(&mut self) {
        self.rng = ChaCha8Rng::seed_from_u64(self.options.seed);
        self.surprise_max = surprise_at_start(&self.options);
        self.drawn = None;
    }

    /// Fills `scores` from the logits; NaN for banned tokens, which is never chosen.
    fn ban_and_penalise(&mut self, logits: &[f32]) {
        self.scores.copy_from_slice(logits);
        let options = &self.options;
        for (score, &count) in self.scores.iter_mut().zip(&self.counts) {
            if count == 0.0 {
                continue;
            }
            let repetition = options.repetition_penalty;
            let scaled = if *score > 0.0 {
                *score / repetition
            } else {
                *score * repetition
            };
            let frequency = count * options.frequency_penalty;
            *score = scaled - options.presence_penalty - frequency;
        }
        for &token in &options.banned_tokens {
            self.scores[token as usize] = f32::NAN;
        }
    }

    /// One number from 0 to below 1, a multiple of 2^-53.
    fn uniform(&mut self) -> f64 {
        const TWO_TO_53: f64 = 9_007_199_254_740_992.0;
        (self.rng.next_u64() >> 11) as f64 / TWO_TO_53
    }

    /// Turns `scores` into how far each lies below the best, in units of a temperature: 0 or more,
    /// infinite for NaN.
    fn scores_to_distances(&mut self, max: f32, temperature: f32) {
        for score in &mut self.scores {
            // max - max is not 0 when both are infinite.
            let below = if *score == max { 0.0 } else { max - *score };
            let distance = below / temperature;
            *score = if distance.is_nan() {
                f32::INFINITY
            } else {
                distance
            };
        }
    }

    /// Turns distances into weights: the softmax, but for the division by the sum, which the draw does
    /// without.
    fn distances_to_weights(&mut self) {
        for score in &mut self.scores {
            *score = exp::exp(-*score);
        }
    }

    /// Fills `candidates` from the distances with what may be drawn, and turns the distances into weights.
    fn cut(&mut self) {
        self.candidates.clear();
        let all = self.scores.iter().zip(0..);
        self.candidates
            .extend(all.map(|(&distance, token)| Candidate::new(distance, token)));
        self.distances_to_weights();
        let options = &self.options;
        let top_k = options.top_k.map_or(usize::MAX, NonZeroUsize::get);
        let (kept, weights) = (&mut self.candidates, &self.scores);
        if options.temperature_last {
            cuts::to_top_p(kept, weights, options.top_p);
            cuts::to_top_k(kept, top_k);
        } else {
            cuts::to_top_k(kept, top_k);
            cuts::to_top_p(kept, weights, options.top_p);
        }
        cuts::to_min_p(kept, weights, options.min_p);
        cuts::to_typical_p(kept, weights, options.typical_p);
        if options.mirostat_tau.is_some() {
            cuts::to_surprise(kept, weights, self.surprise_max);
        }
        if options.temperature_last {
            cuts::heat(kept, &mut self.scores, options.temperature);
        }
    }
}

/// Mirostat's first limit, in bits; of no meaning where there is none.
fn surprise_at_start(options: &SamplerOptions) -> f64 {
    2.0 * f64::from(options.mirostat_tau.unwrap_or(0.0))
}

/// Numbers for the whole vocabulary; those that are there stay.
fn fill<T: Clone + Default>(numbers: &mut Vec<T>, n: usize) -> Result<()> {
    let more = n.saturating_sub(numbers.len());
    numbers.try_reserve_exact(more).map_err(no_memory)?;
    numbers.resize(n, T::default());
    Ok(())
}

/// An empty list with room for the whole vocabulary.
fn make_room<T>(list: &mut Vec<T>, n: usize) -> Result<()> {
    list.clear();
    list.try_reserve_exact(n).map_err(no_memory)
}

fn no_memory(error: std::collections::TryReserveError) -> Error {
    Error::memory("not enough memory for a sampler").with_source(error)
}
