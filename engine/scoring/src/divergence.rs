//! How far the predictions of a model are from those of a reference: KL divergence and the likeliest
//! token. docs/EVALUATION.md states the conventions.

use crate::likelihood::log_sum_exp;

/// Over many tokens. Keeps four bytes a token, for the percentile.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Divergence {
    /// In nats.
    kl: Vec<f32>,
    kl_sum: f64,
    n_agreeing: usize,
}

/// A summary of [`Divergence`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Summary {
    /// Mean over the tokens, in nats.
    pub kl_mean: f64,
    /// 99th percentile over the tokens, in nats.
    pub kl_p99: f64,
    /// The largest of one token, in nats.
    pub kl_max: f64,
    /// Share of the tokens for which both have the same likeliest token.
    pub top1_agreement: f64,
}

impl Divergence {
    /// Counts one more token: its divergence in nats, and whether both have the same likeliest token.
    pub fn push(&mut self, kl: f64, agrees: bool) {
        self.kl.push(kl as f32);
        self.kl_sum += kl;
        self.n_agreeing += usize::from(agrees);
    }

    /// Of all tokens so far; NaN where there is none.
    pub fn summary(&self) -> Summary {
        let mut sorted = self.kl.clone();
        sorted.sort_unstable_by(f32::total_cmp);
        let n = self.kl.len() as f64;
        Summary {
            kl_mean: self.kl_sum / n,
            kl_p99: percentile(&sorted, 0.99),
            kl_max: sorted.last().copied().map_or(f64::NAN, f64::from),
            top1_agreement: self.n_agreeing as f64 / n,
        }
    }
}

/// Of sorted numbers, linear between neighbours, as numpy does it.
fn percentile(sorted: &[f32], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let at = share * last as f64;
    let below = at.floor() as usize;
    let (low, high) = (sorted[below], sorted[(below + 1).min(last)]);
    f64::from(low) + (at - below as f64) * f64::from(high - low)
}

/// KL(reference || model) in nats: what is lost, a token, by taking the model's probabilities for the
/// reference's.
pub fn kl_divergence(reference: &[f32], logits: &[f32]) -> f64 {
    let (reference_log, model_log) = (log_sum_exp(reference), log_sum_exp(logits));
    let terms = reference.iter().zip(logits).map(|(&r, &m)| {
        let log_p = f64::from(r) - reference_log;
        let log_q = f64::from(m) - model_log;
        log_p.exp() * (log_p - log_q)
    });
    // Rounding may leave something just below 0.
    terms.sum::<f64>().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kl_is_that_of_the_definition() {
        // p = 1/2, 1/4, 1/4 and q = 1/4, 1/2, 1/4: sum p log(p / q) = log(2) / 4
        let p = [2.0_f32.ln(), 0.0, 0.0];
        let q = [10.0, 10.0 + 2.0_f32.ln(), 10.0];
        let kl = kl_divergence(&p, &q);
        assert!((kl - 2.0_f64.ln() / 4.0).abs() < 1e-6, "{kl}");
        assert!(kl_divergence(&p, &p) == 0.0);
    }

    #[test]
    fn percentiles_are_those_of_numpy() {
        // numpy.percentile([0, 1, .. 10], 99) and of others
        let sorted: Vec<f32> = (0..=10).map(|x| x as f32).collect();
        assert!((percentile(&sorted, 0.99) - 9.9).abs() < 1e-12);
        assert_eq!(percentile(&[3.0], 0.99), 3.0);
        assert_eq!(percentile(&[1.0, 2.0], 0.5), 1.5);
        let mut divergence = Divergence::default();
        for kl in [4.0, 1.0, 3.0, 2.0] {
            divergence.push(kl, kl > 1.0);
        }
        let summary = divergence.summary();
        assert_eq!((summary.kl_mean, summary.kl_max), (2.5, 4.0));
        assert_eq!(summary.top1_agreement, 0.75);
    }
}
