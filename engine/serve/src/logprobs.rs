//! How likely tokens are, as clients ask for it: before temperature, penalties and cuts.

use rwkv_edge_scoring::{likeliest_n, log_sum_exp};

use crate::job::Chosen;

/// A token in the place of a row of logits, with the `n_top` likeliest ones; of equals the lower id first.
pub(crate) fn chosen(logits: &[f32], token: u32, n_top: usize) -> Chosen {
    let sum = log_sum_exp(logits);
    let logprob = |token: u32| (f64::from(logits[token as usize]) - sum) as f32;
    Chosen {
        token,
        logprob: Some(logprob(token)),
        top: likeliest_n(logits, n_top)
            .into_iter()
            .map(|t| (t, logprob(t)))
            .collect(),
    }
}

/// A token about which nothing is asked.
pub(crate) fn unasked(token: u32) -> Chosen {
    Chosen {
        token,
        logprob: None,
        top: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first_and_sum_to_one() {
        let logits = [1.0, 3.0, 3.0, -2.0, 0.5];
        let found = chosen(&logits, 3, 5);
        let ids: Vec<u32> = found.top.iter().map(|t| t.0).collect();
        assert_eq!(ids, [1, 2, 0, 4, 3]);
        let sum: f32 = found.top.iter().map(|t| t.1.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
        assert_eq!(found.logprob, Some(found.top[4].1));
        assert_eq!(chosen(&logits, 0, 2).top.len(), 2);
        assert!(chosen(&logits, 0, 0).top.is_empty());
    }
}
