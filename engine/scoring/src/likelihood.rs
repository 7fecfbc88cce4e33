//! What logits say of tokens.

/// Negative log likelihoods of predicted tokens, summed up; without a token all that follows from them is NaN.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Likelihood {
    sum: f64,
    sum_of_squares: f64,
    n: usize,
}

impl Likelihood {
    /// Counts one more token, in nats.
    pub fn push(&mut self, nll: f64) {
        self.sum += nll;
        self.sum_of_squares += nll * nll;
        self.n += 1;
    }

    /// Tokens that were predicted.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Mean negative log likelihood, in nats a token.
    pub fn loss(&self) -> f64 {
        self.sum / self.n as f64
    }

    /// exp of the loss.
    pub fn perplexity(&self) -> f64 {
        self.loss().exp()
    }

    /// Standard error of the perplexity, as if tokens did not depend on each other.
    pub fn perplexity_stderr(&self) -> f64 {
        let variance = self.sum_of_squares / self.n as f64 - self.loss() * self.loss();
        self.perplexity() * (variance.max(0.0) / self.n as f64).sqrt()
    }
}

/// `-log(softmax(logits)[target])`, summed in f64.
///
/// # Panics
///
/// When the target is beyond the logits.
pub fn negative_log_likelihood(logits: &[f32], target: u32) -> f64 {
    log_sum_exp(logits) - f64::from(logits[target as usize])
}

/// `log(sum(exp(logits)))`, summed in f64.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    sum.ln() + f64::from(max)
}

/// The `n` likeliest tokens, or as many as there are, the likeliest first; of equals the lower id first.
pub fn likeliest_n(logits: &[f32], n: usize) -> Vec<u32> {
    let mut top: Vec<u32> = Vec::with_capacity(n.min(logits.len()) + 1);
    for candidate in 0..logits.len() as u32 {
        let logit = logits[candidate as usize];
        let is_full = top.len() == n;
        if is_full
            && top
                .last()
                .is_none_or(|&last| logits[last as usize] >= logit)
        {
            continue;
        }
        let at = top.partition_point(|&other| logits[other as usize] >= logit);
        top.insert(at, candidate);
        top.truncate(n);
    }
    top
}

/// The likeliest token; of several, the one with the lowest id.
pub fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = token;
        }
    }
    best as u32
}
