//! How tokens are chosen, as users say it, and which of it makes sense.

#![forbid(unsafe_code)]

use std::num::NonZeroUsize;

use crate::error::{Error, Result};

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
    /// Tokens are cut by the probabilities at temperature 1, top-p before top-k, and the temperature
    /// is applied to what is left. False: first the temperature, and top-k before top-p.
    pub temperature_last: bool,
    /// Only the most probable tokens that together reach this probability may be drawn; at least one
    /// stays. 1: off.
    pub top_p: f32,
    /// Only so many of the most probable tokens may be drawn. `None`: off.
    pub top_k: Option<NonZeroUsize>,
    /// Only tokens may be drawn that are at least so probable, as a share of the most probable one's
    /// probability. 0: off.
    pub min_p: f32,
    /// Only the most typical tokens that together reach this probability may be drawn: those whose
    /// surprise lies nearest to the expected one, the entropy. At least one stays. 1: off.
    pub typical_p: f32,
    /// Mirostat (version 2): how surprising tokens are to be on average, in bits. `None`: off.
    pub mirostat_tau: Option<f32>,
    /// Mirostat: how fast its limit follows, as a share of what a token was too surprising. 0: never.
    pub mirostat_eta: f32,
    /// Subtracted from the logit of every token generated before, however long ago. 0: off.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit once for each time it was generated before. 0: off.
    pub frequency_penalty: f32,
    /// All counts of the frequency penalty are multiplied by it whenever a token is counted, so that
    /// old ones matter less. The other penalties do not decay. 1: off.
    pub penalty_decay: f32,
    /// As in the CTRL paper and transformers: the logit of every token generated before is divided by
    /// it when positive, else multiplied by it; before the other two penalties. Above 1 discourages
    /// repetition. 1: off.
    pub repetition_penalty: f32,
    /// Ids of tokens that are never chosen.
    pub banned_tokens: Vec<u32>,
    /// Ids of tokens that the frequency penalty does not count, however often they are generated; the other
    /// two penalties see them. The `rwkv` package does so with
    /// [`tokens_of_spaces_and_digits`](crate::Tokenizer::tokens_of_spaces_and_digits).
    pub uncounted_tokens: Vec<u32>,
    /// Of the random numbers.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        SamplerOptions {
            temperature: 0.0,
            temperature_last: false,
            top_p: 1.0,
            top_k: None,
            min_p: 0.0,
            typical_p: 1.0,
            mirostat_tau: None,
            mirostat_eta: 0.1,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_decay: 1.0,
            repetition_penalty: 1.0,
            banned_tokens: Vec::new(),
            uncounted_tokens: Vec::new(),
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

    /// Sets [`temperature_last`](field@Self::temperature_last).
    pub fn temperature_last(mut self, temperature_last: bool) -> Self {
        self.temperature_last = temperature_last;
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

    /// Sets [`min_p`](field@Self::min_p).
    pub fn min_p(mut self, min_p: f32) -> Self {
        self.min_p = min_p;
        self
    }

    /// Sets [`typical_p`](field@Self::typical_p).
    pub fn typical_p(mut self, typical_p: f32) -> Self {
        self.typical_p = typical_p;
        self
    }

    /// Sets [`mirostat_tau`](field@Self::mirostat_tau); 0 is `None`.
    pub fn mirostat_tau(mut self, mirostat_tau: f32) -> Self {
        self.mirostat_tau = (mirostat_tau != 0.0).then_some(mirostat_tau);
        self
    }

    /// Sets [`mirostat_eta`](field@Self::mirostat_eta).
    pub fn mirostat_eta(mut self, mirostat_eta: f32) -> Self {
        self.mirostat_eta = mirostat_eta;
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

    /// Sets [`penalty_decay`](field@Self::penalty_decay).
    pub fn penalty_decay(mut self, penalty_decay: f32) -> Self {
        self.penalty_decay = penalty_decay;
        self
    }

    /// Sets [`repetition_penalty`](field@Self::repetition_penalty).
    pub fn repetition_penalty(mut self, repetition_penalty: f32) -> Self {
        self.repetition_penalty = repetition_penalty;
        self
    }

    /// Sets [`banned_tokens`](field@Self::banned_tokens).
    pub fn banned_tokens(mut self, banned_tokens: impl Into<Vec<u32>>) -> Self {
        self.banned_tokens = banned_tokens.into();
        self
    }

    /// Sets [`uncounted_tokens`](field@Self::uncounted_tokens).
    pub fn uncounted_tokens(mut self, uncounted_tokens: impl Into<Vec<u32>>) -> Self {
        self.uncounted_tokens = uncounted_tokens.into();
        self
    }

    /// Sets [`seed`](field@Self::seed).
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    pub(super) fn has_penalties(&self) -> bool {
        self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
            || self.repetition_penalty != 1.0
    }

    /// The highest logit, as it is.
    pub(crate) fn is_plain_greedy(&self) -> bool {
        self.temperature <= 0.0 && !self.has_penalties() && self.banned_tokens.is_empty()
    }

    /// Whether probabilities decide which tokens may be drawn.
    pub(super) fn has_cut(&self) -> bool {
        let has_limit = self.top_p < 1.0 || self.min_p > 0.0 || self.typical_p < 1.0;
        let has_cut = has_limit || self.top_k.is_some() || self.mirostat_tau.is_some();
        self.temperature > 0.0 && has_cut
    }

    /// Whether a vocabulary of `n_vocab` tokens can be sampled so.
    pub(super) fn check(&self, n_vocab: usize) -> Result<()> {
        let finite = |name: &str, value: f32| check(name, value, true, "a number");
        let share = |name: &str, value: f32| {
            let is_share = (0.0..=1.0).contains(&value);
            check(name, value, is_share, "a number from 0 to 1")
        };
        let above_zero =
            |name: &str, value: f32| check(name, value, value > 0.0, "a number above 0");
        finite("temperature", self.temperature)?;
        share("top_p", self.top_p)?;
        share("min_p", self.min_p)?;
        share("typical_p", self.typical_p)?;
        if let Some(tau) = self.mirostat_tau {
            above_zero("mirostat_tau", tau)?;
        }
        let eta = self.mirostat_eta;
        check("mirostat_eta", eta, eta >= 0.0, "a number, at least 0")?;
        finite("presence_penalty", self.presence_penalty)?;
        finite("frequency_penalty", self.frequency_penalty)?;
        share("penalty_decay", self.penalty_decay)?;
        above_zero("repetition_penalty", self.repetition_penalty)?;
        check_tokens("uncounted_tokens", &self.uncounted_tokens, n_vocab)?;
        check_tokens("banned_tokens", &self.banned_tokens, n_vocab)?;
        self.check_banned(n_vocab)
    }

    fn check_banned(&self, n_vocab: usize) -> Result<()> {
        // An id may stand there twice, so the length alone does not tell. A shorter list bans no whole
        // vocabulary, and is not searched.
        if self.banned_tokens.len() >= n_vocab && self.first_allowed(n_vocab).is_none() {
            return Err(Error::argument(format!(
                "banned_tokens: all {n_vocab}, expected at least one token that is not"
            )));
        }
        Ok(())
    }

    /// The lowest id that is not banned.
    pub(super) fn first_allowed(&self, n_vocab: usize) -> Option<u32> {
        let n_vocab = u32::try_from(n_vocab).unwrap_or(u32::MAX);
        (0..n_vocab).find(|id| !self.banned_tokens.contains(id))
    }
}

fn check_tokens(name: &str, ids: &[u32], n_vocab: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= n_vocab) {
        None => Ok(()),
        Some(id) => Err(Error::argument(format!(
            "{name}: {id}, expected ids below {n_vocab}"
        ))),
    }
}

/// No option may be infinite or NaN.
fn check(name: &str, value: f32, is_right: bool, expected: &str) -> Result<()> {
    if value.is_finite() && is_right {
        return Ok(());
    }
    Err(Error::argument(format!(
        "{name}: {value}, expected {expected}"
    )))
}
