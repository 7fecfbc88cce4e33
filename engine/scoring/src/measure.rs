//! How well models predict a text, and how far each of them is from the first.

use rwkv_edge::Result;

use crate::divergence::{kl_divergence, Divergence};
use crate::feed::{feed, Fed, Models, Sequence};
use crate::likelihood::{likeliest, negative_log_likelihood, Likelihood};

/// How a text becomes sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Tokens of a window, and from one to the next.
    windows: Option<(usize, usize)>,
}

impl Windows {
    /// The whole text is one sequence.
    pub const WHOLE: Windows = Windows { windows: None };

    /// Windows of so many tokens, one every `stride` tokens; of each only those tokens count that no window
    /// before it had. `None` for windows of fewer than 2 tokens, and for strides of 0 or of more than a
    /// window, which would leave tokens out.
    pub fn of(window: usize, stride: usize) -> Option<Self> {
        let makes_sense = window >= 2 && (1..=window).contains(&stride);
        makes_sense.then_some(Windows {
            windows: Some((window, stride)),
        })
    }

    /// The size of windows and their stride, if the text is cut.
    pub fn window_and_stride(self) -> Option<(usize, usize)> {
        self.windows
    }

    /// The sequences: those of windows overlap.
    pub fn sequences(self, tokens: &[u32]) -> impl Iterator<Item = Sequence<'_>> + Clone {
        let n = tokens.len();
        let (window, stride) = self.windows.unwrap_or((n, n.max(1)));
        // A window that reaches the end is the last.
        let n_windows = 1 + n.saturating_sub(window).div_ceil(stride);
        (0..n_windows).filter_map(move |index| {
            let begin = index * stride;
            let tokens = &tokens[begin..n.min(begin + window)];
            // Behind the end of the window before; nothing predicts the first token of a window.
            let first_target = match index {
                0 => 1,
                _ => (window - stride).max(1),
            };
            Sequence::new(tokens, first_target)
        })
    }
}

/// What one model did.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Outcome {
    /// Of the tokens that were predicted.
    pub likelihood: Likelihood,
    /// From the first model; that of the first itself is empty.
    pub divergence: Divergence,
}

/// What all models did.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Measured {
    /// One for each model, in order.
    pub outcomes: Vec<Outcome>,
    /// How the models were fed.
    pub fed: Fed,
}

/// Feeds sequences to all models; the first is the reference of the others. Calls `progress` with the number
/// of tokens fed so far, to all models together.
///
/// # Errors
///
/// Those of [`feed`].
pub fn measure<'a>(
    models: &(impl Models + ?Sized),
    sequences: impl Iterator<Item = Sequence<'a>>,
    progress: impl FnMut(u64),
) -> Result<Measured> {
    let mut outcomes = vec![Outcome::default(); models.n_models()];
    let fed = feed(
        models,
        sequences,
        |predictions| {
            let compare = predictions.model > 0;
            let judged = predictions.judge(|target, logits, reference| {
                let nll = negative_log_likelihood(logits, target.token);
                let divergence = compare.then(|| {
                    let agrees = likeliest(logits) == likeliest(reference);
                    (kl_divergence(reference, logits), agrees)
                });
                (nll, divergence)
            });
            let outcome = &mut outcomes[predictions.model];
            for (nll, divergence) in judged {
                outcome.likelihood.push(nll);
                if let Some((kl, agrees)) = divergence {
                    outcome.divergence.push(kl, agrees);
                }
            }
        },
        progress,
    )?;
    Ok(Measured { outcomes, fed })
}

#[cfg(test)]
mod tests {
    use rwkv_edge::{ErrorKind, Model, Options};

    use super::*;

    #[test]
    fn windows_predict_every_token_once_but_those_without_context() {
        for n in 2..40_u32 {
            let tokens: Vec<u32> = (0..n).collect();
            for window in 2..20 {
                for stride in 1..=window {
                    let cut = Windows::of(window, stride).expect("makes sense");
                    let mut predicted: Vec<u32> = Vec::new();
                    for sequence in cut.sequences(&tokens) {
                        assert!(sequence.tokens().len() <= window);
                        assert_eq!(sequence.tokens()[0] as usize % stride, 0);
                        predicted.extend(&sequence.tokens()[sequence.first_target()..]);
                    }
                    // Windows that do not overlap have no context for their first tokens.
                    let expected: Vec<u32> = (1..n)
                        .filter(|token| stride < window || *token as usize % window != 0)
                        .collect();
                    assert_eq!(predicted, expected, "{n} {window} {stride}");
                }
            }
            let whole: Vec<_> = Windows::WHOLE.sequences(&tokens).collect();
            assert_eq!((whole.len(), whole[0].first_target()), (1, 1));
            assert_eq!(whole[0].tokens(), tokens);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (window, stride) in [(0, 0), (1, 1), (4, 0), (4, 5)] {
            assert_eq!(Windows::of(window, stride), None, "{window} {stride}");
        }
        for n in 0..2 {
            assert_eq!(
                Windows::WHOLE.sequences(&[7; 2][..n]).count(),
                0,
                "{n} tokens"
            );
            assert_eq!(windows(4, 2).sequences(&[7; 2][..n]).count(), 0);
        }
        for (n, first_target) in [(0, 0), (0, 1), (1, 1), (3, 0), (3, 3)] {
            let tokens = &[7; 3][..n];
            let sequence = Sequence::new(tokens, first_target);
            assert!(sequence.is_none(), "{n} {first_target}");
        }
        let none: &[Model] = &[];
        let error = measure(none, std::iter::empty(), |_| ()).expect_err("no model");
        assert_eq!(error.kind(), ErrorKind::Argument);
        let model = Model::open("../../cli/demo", &Options::default()).expect("the demo");
        for tokens in [[u32::MAX, 1], [1, 4096]] {
            let sequences = Windows::WHOLE.sequences(&tokens);
            let error =
                measure(&[model.clone()][..], sequences, |_| ()).expect_err("no such token");
            assert_eq!(error.kind(), ErrorKind::Argument, "{tokens:?}");
        }
    }

    fn windows(window: usize, stride: usize) -> Windows {
        Windows::of(window, stride).expect("makes sense")
    }

    /// A token by token sum, beside which batches and windows have to stand.
    #[test]
    fn batches_measure_what_single_tokens_do() -> Result<()> {
        let model = Model::open("../../cli/demo", &Options::default())?;
        let text = "Ownership is what makes a program safe. ".repeat(9);
        let tokens = model.tokenizer()?.encode(&text)?;
        let mut told = Vec::new();
        for cut in [Windows::WHOLE, windows(40, 15), windows(9, 9)] {
            let (mut sum, mut n, mut n_fed) = (0.0, 0, 0);
            for sequence in cut.sequences(&tokens) {
                let mut session = model.session();
                for (at, pair) in sequence.tokens().windows(2).enumerate() {
                    let logits = session.eval(&pair[..1])?;
                    if at + 1 >= sequence.first_target() {
                        sum += negative_log_likelihood(logits, pair[1]);
                        n += 1;
                    }
                }
                n_fed += sequence.n_fed() as u64;
            }
            let models = [model.clone(), model.clone()];
            told.clear();
            let measured = measure(&models[..], cut.sequences(&tokens), |n| told.push(n))?;
            for outcome in &measured.outcomes {
                assert_eq!(outcome.likelihood.n(), n);
                let difference = outcome.likelihood.loss() - sum / n as f64;
                assert!(difference.abs() < 1e-5, "{cut:?}: {difference}");
            }
            // The same model is no way from itself.
            let summary = measured.outcomes[1].divergence.summary();
            assert_eq!((summary.kl_max, summary.top1_agreement), (0.0, 1.0));
            assert_eq!(measured.fed.n_tokens, 2 * n_fed);
            assert_eq!(told.last(), Some(&(2 * n_fed)));
        }
        Ok(())
    }
}
