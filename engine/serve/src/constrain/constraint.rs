//! Which tokens may come next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use llguidance::Matcher;
use rwkv_edge::Result;

use super::compile::first_line;
use super::refused;
use super::vocabulary::Vocabulary;

/// Time for masks: so much at first, which fills what is known of the lexer, and so much more with every token. Single
/// steps are bounded by what the grammar was compiled with.
const TIME_AT_FIRST: Duration = Duration::from_secs(2);
const TIME_A_TOKEN: Duration = Duration::from_millis(20);

/// Which tokens may come next.
///
/// A clone goes on from the same place and is independent of this one: each of several answers to one request has its
/// own.
pub struct Constraint {
    matcher: Matcher,
    vocabulary: Arc<Vocabulary>,
    /// A token that ends a text was drawn.
    is_ended: bool,
    /// What is left of the time.
    time_left: Duration,
}

impl Clone for Constraint {
    fn clone(&self) -> Self {
        Constraint {
            // The other kind of clone shares what is known of the lexer, behind a lock.
            matcher: self.matcher.deep_clone(),
            vocabulary: Arc::clone(&self.vocabulary),
            is_ended: self.is_ended,
            time_left: self.time_left,
        }
    }
}

impl Constraint {
    pub(super) fn new(matcher: Matcher, vocabulary: Arc<Vocabulary>) -> Self {
        Constraint {
            matcher,
            vocabulary,
            is_ended: false,
            time_left: TIME_AT_FIRST,
        }
    }

    /// Forbids, by negative infinity, every token that may not come next; `logits` is one row. Tokens that end a text
    /// may come where the grammar may end, and nothing else where it is complete.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`](rwkv_edge::ErrorKind::Argument) when no token may come (of those whose logit is not
    /// negative infinity already), or the grammar takes too long. The constraint is of no more use then.
    pub fn apply(&mut self, logits: &mut [f32]) -> Result<()> {
        if self.is_complete() {
            let ends = &self.vocabulary.ends_of_text;
            for (token, logit) in (0u32..).zip(logits.iter_mut()) {
                if !ends.contains(&token) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        } else {
            let mask = self.timed(Matcher::compute_mask)?.map_err(|error| {
                let why = first_line(&error);
                refused(format!(
                    "no token can follow what the grammar demands: {why}"
                ))
            })?;
            let (known, beyond) = logits.split_at_mut(mask.len().min(logits.len()));
            beyond.fill(f32::NEG_INFINITY);
            // A bit for each token: many words forbid or allow all of theirs.
            for (&word, logits) in mask.as_slice().iter().zip(known.chunks_mut(32)) {
                match word {
                    0 => logits.fill(f32::NEG_INFINITY),
                    u32::MAX => {}
                    _ => {
                        for (bit, logit) in logits.iter_mut().enumerate() {
                            if word >> bit & 1 == 0 {
                                *logit = f32::NEG_INFINITY;
                            }
                        }
                    }
                }
            }
        }
        match logits.iter().any(|&logit| logit > f32::NEG_INFINITY) {
            true => Ok(()),
            false => Err(refused(
                "no token is left that the grammar allows and that may be drawn",
            )),
        }
    }

    /// A token was drawn.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`](rwkv_edge::ErrorKind::Argument) when it may not come next. The constraint is of no more
    /// use then.
    pub fn accept(&mut self, token: u32) -> Result<()> {
        let not_allowed = || refused(format!("token {token}: not allowed here by the grammar"));
        if self.vocabulary.ends_of_text.contains(&token) {
            if !self.may_end() {
                return Err(not_allowed());
            }
            self.is_ended = true;
            return Ok(());
        }
        if self.is_complete() || self.vocabulary.trie.tok_trie().token(token).is_empty() {
            return Err(not_allowed());
        }
        self.time_left += TIME_A_TOKEN;
        self.timed(|matcher| matcher.consume_token(token))?
            .map_err(|error| {
                let why = first_line(&error);
                refused(format!(
                    "token {token}: not allowed here by the grammar: {why}"
                ))
            })
    }

    /// Does something with the grammar, if there is time left for it.
    fn timed<T>(&mut self, step: impl FnOnce(&mut Matcher) -> T) -> Result<T> {
        if self.time_left.is_zero() {
            return Err(refused("the grammar takes too long"));
        }
        let start = Instant::now();
        let done = step(&mut self.matcher);
        self.time_left = self.time_left.saturating_sub(start.elapsed());
        Ok(done)
    }

    /// Whether the answer is complete, and nothing may follow.
    pub fn is_complete(&self) -> bool {
        self.is_ended || (self.matcher.is_stopped() && self.matcher.stop_reason().is_ok())
    }

    fn may_end(&mut self) -> bool {
        self.is_complete() || self.matcher.is_accepting().unwrap_or(false)
    }
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint")
            .field("is_complete", &self.is_complete())
            .finish_non_exhaustive()
    }
}
