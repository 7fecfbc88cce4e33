//! Chooses the next token from the logits of the last one.
//!
//! Input: one row of n_vocab logits. Output: an id below n_vocab. The steps, in this order:
//!
//! 1. penalties, on the logits of tokens that were generated before ([`Sampler::accept`]);
//! 2. greedy (temperature <= 0): the highest logit, ties to the lowest id. Else:
//! 3. division by the temperature, and softmax;
//! 4. top-k: the k most probable tokens stay;
//! 5. top-p: of these, the fewest most probable ones whose probabilities sum to at least top_p (with
//!    the probabilities of what top-k left summing to 1) stay;
//! 6. a draw among what stays, by probability.
//!
//! This is the order of Hugging Face transformers. ChatRWKV applies the temperature last (p^(1/T) to
//! what top-p and then top-k left), so at a temperature other than 1 the same top_p keeps other tokens
//! there. Wherever tokens are ranked, equal ones rank by id, the lowest first.
//!
//! The same seed, options and logits give the same tokens on every platform: `exp` is our own, sums
//! are f64 and run in a fixed order, and ChaCha8 gives one 53-bit uniform number a draw.
//!
//! A row of 50,277 logits takes 0.04 ms greedily and 0.2 to 0.4 ms by drawing (`cargo bench --bench
//! kernels -- sampler`), where a token of the 169M model takes more than 5.

#![forbid(unsafe_code)]

use std::num::NonZeroUsize;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use crate::error::{Error, Result};
use crate::math::exp::{self, argmax};

/// How to choose tokens. The default is greedy, without penalties.
///
/// ```
/// use rwkv_edge::SamplerOptions;
///
/// let options = SamplerOptions::new().temperature(0.8).top_p(0.9).top_k(40);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[must_use = "options do nothing until a sampler is made of them"]
pub struct SamplerOptions {
    /// Logits are divided by it: below 1 makes likely tokens likelier. 0 or less: greedy.
    pub temperature: f32,
    /// Only the most probable tokens that together reach this probability may be drawn; at least one
    /// stays. 1: off.
    pub top_p: f32,
    /// Only so many of the most probable tokens may be drawn. `None`: off.
    pub top_k: Option<NonZeroUsize>,
    /// Subtracted from the logit of every token generated before. 0: off.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit once for each time it was generated before. 0: off.
    pub frequency_penalty: f32,
    /// As in the CTRL paper and transformers: the logit of every token generated before is divided by
    /// it when positive, else multiplied by it; before the other two penalties. Above 1 discourages
    /// repetition. 1: off.
    pub repetition_penalty: f32,
    /// Of the random numbers.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        SamplerOptions {
            temperature: 0.0,
            top_p: 1.0,
            top_k: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl SamplerOptions {
    /// Greedy, without penalties: the [`Default`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`temperature`](field@Self::temperature).
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// Sets [`top_p`](field@Self::top_p).
    pub fn top_p(mut self, top_p: f32) -> Self {
        self.top_p = top_p;
        self
    }

    /// Sets [`top_k`](field@Self::top_k); 0 is `None`.
    pub fn top_k(mut self, top_k: usize) -> Self {
        self.top_k = NonZeroUsize::new(top_k);
        self
    }

    /// Sets [`presence_penalty`](field@Self::presence_penalty).
    pub fn presence_penalty(mut self, presence_penalty: f32) -> Self {
        self.presence_penalty = presence_penalty;
        self
    }

    /// Sets [`frequency_penalty`](field@Self::frequency_penalty).
    pub fn frequency_penalty(mut self, frequency_penalty: f32) -> Self {
        self.frequency_penalty = frequency_penalty;
        self
    }

    /// Sets [`repetition_penalty`](field@Self::repetition_penalty).
    pub fn repetition_penalty(mut self, repetition_penalty: f32) -> Self {
        self.repetition_penalty = repetition_penalty;
        self
    }

    /// Sets [`seed`](field@Self::seed).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    fn has_penalties(&self) -> bool {
        self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
            || self.repetition_penalty != 1.0
    }

    /// The highest logit, as it is.
    pub(crate) fn is_plain_greedy(&self) -> bool {
        self.temperature <= 0.0 && !self.has_penalties()
    }

    /// Whether only some tokens may be drawn.
    fn has_cut(&self) -> bool {
        self.temperature > 0.0 && (self.top_p < 1.0 || self.top_k.is_some())
    }

    fn check(&self) -> Result<()> {
        let check = |name: &str, value: f32, ok: bool, expected: &str| {
            if ok {
                return Ok(());
            }
            Err(Error::argument(format!(
                "{name}: {value}, expected {expected}"
            )))
        };
        let finite = |name: &str, value: f32| check(name, value, value.is_finite(), "a number");
        finite("temperature", self.temperature)?;
        let top_p = self.top_p;
        let in_range = (0.0..=1.0).contains(&top_p);
        check("top_p", top_p, in_range, "a number from 0 to 1")?;
        finite("presence_penalty", self.presence_penalty)?;
        finite("frequency_penalty", self.frequency_penalty)?;
        let repetition = self.repetition_penalty;
        let in_range = repetition.is_finite() && repetition > 0.0;
        check(
            "repetition_penalty",
            repetition,
            in_range,
            "a number above 0",
        )
    }
}

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
    /// (n_vocab) how often each token was generated; may be empty without penalties.
    counts: Vec<u32>,
    /// (n_vocab) logits with penalties, then distances from the best, then weights (probabilities
    /// times a constant); may be empty when the choice is greedy without penalties.
    scores: Vec<f32>,
    /// Tokens that may be drawn; capacity n_vocab where there is a top-k or top-p.
    candidates: Vec<Candidate>,
}

/// A token with its rank: distance from the best score in the high half, id in the low half. Distances
/// are not negative, and bits of such floats are in the order of the floats, so comparing candidates
/// compares distances, then ids, as one integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate(u64);

impl Candidate {
    fn new(distance: f32, token: u32) -> Self {
        Candidate(u64::from(distance.to_bits()) << 32 | u64::from(token))
    }

    fn token(self) -> u32 {
        self.0 as u32
    }

    fn weight(self, weights: &[f32]) -> f32 {
        weights[self.token() as usize]
    }
}

impl Sampler {
    /// A sampler for rows of `n_vocab` logits.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for an option out of its range.
    pub fn new(options: SamplerOptions, n_vocab: usize) -> Result<Self> {
        options.check()?;
        if n_vocab == 0 || u32::try_from(n_vocab).is_err() {
            return Err(Error::argument(format!(
                "n_vocab: {n_vocab}, expected 1 to {}",
                u32::MAX
            )));
        }
        let mut sampler = Sampler {
            n_vocab,
            rng: ChaCha8Rng::seed_from_u64(options.seed),
            counts: Vec::new(),
            scores: Vec::new(),
            candidates: Vec::new(),
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
        n_vocab * (size_of::<u32>() + size_of::<f32>() + size_of::<Candidate>())
    }

    /// Goes on with other options: the random numbers start from their seed, and what was counted for the
    /// penalties stays.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for an option out of its range,
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory) when there is not enough. Draws go on as before then.
    pub fn set_options(&mut self, options: SamplerOptions) -> Result<()> {
        options.check()?;
        self.make_room(&options)?;
        self.rng = ChaCha8Rng::seed_from_u64(options.seed);
        self.options = options;
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

    /// Chooses a token. NaN is never chosen (a row of nothing but NaN gives token 0), nor is a
    /// probability of 0. An infinite logit is certain; several share the draw.
    ///
    /// It is not counted for the penalties: see [`accept`](Self::accept).
    ///
    /// # Panics
    ///
    /// When `logits` is not one row of n_vocab numbers.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        assert_eq!(logits.len(), self.n_vocab, "logits must be one row");
        if self.options.is_plain_greedy() {
            return argmax(logits);
        }
        self.penalise(logits);
        let best = argmax(&self.scores);
        let max = self.scores[best as usize];
        // max is NaN or -inf only when there is no probability to draw by.
        if self.options.temperature <= 0.0 || max.is_nan() || max == f32::NEG_INFINITY {
            return best;
        }
        let uniform = self.uniform();
        let has_cut = self.options.has_cut();
        self.scores_to_distances(max);
        if has_cut {
            self.cut_to_top_k();
        }
        // The softmax, but for the division by the sum, which the draw does without.
        for score in &mut self.scores {
            *score = exp::exp(-*score);
        }
        let weights = &self.scores;
        if !has_cut {
            return draw(weights.iter().copied().zip(0..), uniform).unwrap_or(best);
        }
        cut_to_top_p(&mut self.candidates, weights, self.options.top_p);
        let kept = self.candidates.iter();
        draw(kept.map(|c| (c.weight(weights), c.token())), uniform).unwrap_or(best)
    }

    /// Counts a generated token for the penalties. Call it for what was generated, not for the prompt:
    /// a penalty on the prompt's words would keep an answer from using them. Ids of no token are
    /// ignored.
    pub fn accept(&mut self, token: u32) {
        if let Some(count) = self.counts.get_mut(token as usize) {
            *count = count.saturating_add(1);
        }
    }

    /// As new: nothing counted, the random numbers from the seed again.
    pub fn reset(&mut self) {
        self.counts.fill(0);
        self.rng = ChaCha8Rng::seed_from_u64(self.options.seed);
    }

    /// Fills `scores` from the logits.
    fn penalise(&mut self, logits: &[f32]) {
        self.scores.copy_from_slice(logits);
        let options = &self.options;
        for (score, &count) in self.scores.iter_mut().zip(&self.counts) {
            if count == 0 {
                continue;
            }
            let repetition = options.repetition_penalty;
            let scaled = if *score > 0.0 {
                *score / repetition
            } else {
                *score * repetition
            };
            let frequency = count as f32 * options.frequency_penalty;
            *score = scaled - options.presence_penalty - frequency;
        }
    }

    /// One number from 0 to below 1, a multiple of 2^-53.
    fn uniform(&mut self) -> f64 {
        const TWO_TO_53: f64 = 9_007_199_254_740_992.0;
        (self.rng.next_u64() >> 11) as f64 / TWO_TO_53
    }

    /// Turns `scores` into how far each lies below the best, in units of the temperature: 0 or more,
    /// infinite for NaN.
    fn scores_to_distances(&mut self, max: f32) {
        for score in &mut self.scores {
            // max - max is not 0 when both are infinite.
            let below = if *score == max { 0.0 } else { max - *score };
            let distance = below / self.options.temperature;
            *score = if distance.is_nan() {
                f32::INFINITY
            } else {
                distance
            };
        }
    }

    /// Fills `candidates` from the distances: the top_k best, best first, or all by id.
    fn cut_to_top_k(&mut self) {
        self.candidates.clear();
        let all = self.scores.iter().zip(0..);
        self.candidates
            .extend(all.map(|(&distance, token)| Candidate::new(distance, token)));
        let top_k = self.options.top_k.map_or(usize::MAX, NonZeroUsize::get);
        if top_k < self.candidates.len() {
            self.candidates.select_nth_unstable(top_k - 1);
            self.candidates.truncate(top_k);
            // Sums must not depend on the order in which the selection leaves them.
            self.candidates.sort_unstable();
        }
    }
}

/// Keeps the fewest best candidates that have at least `top_p` of all candidates' weight.
fn cut_to_top_p(candidates: &mut Vec<Candidate>, weights: &[f32], top_p: f32) {
    if top_p >= 1.0 {
        return;
    }
    let top_p = f64::from(top_p);
    let weight = |c: &Candidate| f64::from(c.weight(weights));
    let total: f64 = candidates.iter().map(weight).sum();
    // Sorting is the dear part. If a token other than the best weighs less than the rest's share
    // divided by the number of other tokens, then it and all below it weigh less than that share: it
    // cannot be needed. In real text this leaves some hundred tokens of 50,277. The best weighs 1.
    let n_other = candidates.len().saturating_sub(1).max(1);
    let needed = ((1.0 - top_p) * total / n_other as f64).min(1.0);
    candidates.retain(|c| weight(c) >= needed);
    candidates.sort_unstable();
    let mut sum = 0.0;
    let reached = candidates.iter().position(|c| {
        sum += weight(c);
        sum >= top_p * total
    });
    if let Some(last) = reached {
        candidates.truncate(last + 1);
    }
}

/// The token at `uniform` (0 to below 1) of the way through the weights in their order, or None when
/// all are 0.
fn draw(weights: impl Iterator<Item = (f32, u32)> + Clone, uniform: f64) -> Option<u32> {
    let total: f64 = weights.clone().map(|(weight, _)| f64::from(weight)).sum();
    let target = uniform * total;
    let mut sum = 0.0;
    let mut last = None;
    for (weight, token) in weights {
        if weight > 0.0 {
            sum += f64::from(weight);
            last = Some(token);
            if sum > target {
                break;
            }
        }
    }
    last
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
