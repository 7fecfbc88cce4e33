//! Which tokens a state has read, told by their number and a hash.

use xxhash_rust::xxh3::Xxh3;

/// The tokens behind which a state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) n: usize,
    pub(crate) hash: u64,
}

impl Known {
    pub(crate) fn of(tokens: &[u32]) -> Self {
        let mut hash = Xxh3::new();
        for token in tokens {
            hash.update(&token.to_le_bytes());
        }
        Known {
            n: tokens.len(),
            hash: hash.digest(),
        }
    }

    /// Whether these tokens begin so.
    pub(crate) fn begins(&self, tokens: &[u32]) -> bool {
        let first = tokens.get(..self.n);
        first.is_some_and(|first| Known::of(first) == *self)
    }
}

/// How many tokens both begin with.
pub(super) fn n_common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_begin_with_those_that_were_read() {
        let known = Known::of(&[3, 1]);
        assert!(known.begins(&[3, 1]) && known.begins(&[3, 1, 4]));
        assert!(!known.begins(&[3]) && !known.begins(&[1, 3, 4]) && !known.begins(&[]));
        assert!(Known::of(&[]).begins(&[]) && Known::of(&[]).begins(&[7]));
        assert_eq!(n_common(&[1, 2, 3], &[1, 2, 4, 5]), 2);
    }
}
