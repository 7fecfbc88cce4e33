//! Which checkpoint weights are of, told from samples of their numbers: a saved state fits the models of one checkpoint.
//!
//! Matrices of many gigabytes must not be read for that, so there are two hashes, of few numbers and of more. The
//! first is in every file that there is; the second has come later, and files without it are told by the first alone.
//! docs/FORMAT.md is the specification.

#![forbid(unsafe_code)]

use std::ops::Range;

use xxhash_rust::xxh3::{xxh3_64_with_seed, Xxh3};

use super::config::{Config, Settings};

/// Numbers of a matrix's first row that the first hash takes.
const FIRST_NUMBERS: usize = 64;
/// Matrices of at most so many numbers are in the second hash as a whole,
const WHOLE_NUMBERS: usize = 1 << 16;
/// of larger ones so many rows.
const SAMPLED_ROWS: usize = 8;

/// What a checkpoint is known by; the same for every quantisation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fingerprint {
    /// Of all vectors and of the beginnings of matrices.
    pub(crate) first: u64,
    /// Of all vectors and of rows all over the matrices; `None` where a file does not say it.
    pub(crate) rows: Option<u64>,
}

impl Fingerprint {
    /// For weights that are made up.
    pub(crate) fn of_text(text: &str) -> Self {
        let hash = xxhash_rust::xxh3::xxh3_64(text.as_bytes());
        Fingerprint {
            first: hash,
            rows: Some(hash.max(1)),
        }
    }

    /// Whether both may be of one checkpoint, as far as they say.
    pub(crate) fn fits(&self, other: &Self) -> bool {
        let rows = self.rows.zip(other.rows);
        self.first == other.first && rows.is_none_or(|(a, b)| a == b)
    }
}

/// `first`, and behind a hyphen what there is of `rows`.
impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.first)?;
        match self.rows {
            Some(rows) => write!(f, "-{rows:016x}"),
            None => Ok(()),
        }
    }
}

/// Computes a [`Fingerprint`] while weights are loaded, tensor by tensor in the order of the table.
pub(crate) struct Hasher {
    first: Xxh3,
    rows: Xxh3,
}

impl Hasher {
    pub(crate) fn new(config: &Config) -> Self {
        let mut first = Xxh3::new();
        first.update(config.sizes.architecture.name.as_bytes());
        for (_, size) in config.sizes.named() {
            first.update(&(size as u64).to_le_bytes());
        }
        let mut rows = first.clone();
        let settings = &config.settings;
        rows.update(&settings.layer_norm_epsilon.to_le_bytes());
        if settings.head_norm_epsilon != Settings::default().head_norm_epsilon {
            rows.update(&settings.head_norm_epsilon.to_le_bytes());
        }
        Hasher { first, rows }
    }

    /// An adapter that is merged with the weights, before any of them: it may change none of the numbers that are looked at.
    pub(crate) fn adapter(&mut self, identity: u64) {
        for hash in [&mut self.first, &mut self.rows] {
            hash.update(b"adapter");
            hash.update(&identity.to_le_bytes());
        }
    }

    /// All numbers of a vector, as the checkpoint has them.
    pub(crate) fn vector(&mut self, name: &str, values: &[f32]) {
        for hash in [&mut self.first, &mut self.rows] {
            hash.update(name.as_bytes());
            hash.update(bytemuck::cast_slice(values));
        }
    }

    /// Some rows of a matrix: those of each of its [`samples`] in turn, as they lie in the checkpoint.
    pub(crate) fn matrix(&mut self, name: &str, sample: usize, rows: &[f32], n_cols: usize) {
        if sample == 0 {
            self.first.update(name.as_bytes());
            self.rows.update(name.as_bytes());
            let first = &rows[..n_cols.min(FIRST_NUMBERS)];
            self.first.update(bytemuck::cast_slice(first));
        }
        self.rows.update(bytemuck::cast_slice(rows));
    }

    pub(crate) fn finish(&self) -> Fingerprint {
        Fingerprint {
            first: self.first.digest(),
            // 0 stands for none in files.
            rows: Some(self.rows.digest().max(1)),
        }
    }
}

/// Which rows of a matrix take part: all of a small one; of others the first, the last, and one somewhere in each part
/// in between.
pub(crate) fn samples(name: &str, n_rows: usize, n_cols: usize) -> Vec<Range<usize>> {
    if n_rows.saturating_mul(n_cols) <= WHOLE_NUMBERS {
        return std::iter::once(0..n_rows).collect();
    }
    if n_rows <= SAMPLED_ROWS {
        return (0..n_rows).map(|row| row..row + 1).collect();
    }
    let bound = |part: usize| (n_rows as u64 * part as u64 / SAMPLED_ROWS as u64) as usize;
    let row = |part: usize| match part {
        0 => 0,
        last if last + 1 == SAMPLED_ROWS => n_rows - 1,
        part => {
            let (start, end) = (bound(part), bound(part + 1));
            let somewhere = xxh3_64_with_seed(name.as_bytes(), part as u64);
            start + (somewhere % (end - start) as u64) as usize
        }
    };
    let rows = (0..SAMPLED_ROWS).map(row);
    rows.map(|row| row..row + 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_begin_with_the_first_row_end_with_the_last_and_do_not_overlap() {
        for (n_rows, n_cols) in [
            (1, 1),
            (3, 40_000),
            (7, 1 << 20),
            (8, 1 << 20),
            (9, 1 << 14),
            (64, 1024),
            (65, 1024),
            (50_277, 768),
        ] {
            let samples = samples("a.weight", n_rows, n_cols);
            let what = format!("{n_rows} by {n_cols}: {samples:?}");
            assert_eq!(samples[0].start, 0, "{what}");
            assert_eq!(samples.last().expect("some").end, n_rows, "{what}");
            let mut pairs = samples.windows(2);
            assert!(pairs.all(|pair| pair[0].end <= pair[1].start), "{what}");
            let n: usize = samples.iter().map(Range::len).sum();
            let is_whole = n_rows * n_cols <= WHOLE_NUMBERS;
            let expected = if is_whole { n_rows } else { n_rows.min(8) };
            assert_eq!(n, expected, "{what}");
        }
        assert_ne!(samples("a", 50_000, 64), samples("b", 50_000, 64));
    }

    #[test]
    fn a_file_that_says_less_is_told_by_what_it_says() {
        let of = |first, rows| Fingerprint { first, rows };
        for (a, b, fits) in [
            (of(1, Some(2)), of(1, Some(2)), true),
            (of(1, Some(2)), of(1, Some(3)), false),
            (of(1, Some(2)), of(2, Some(2)), false),
            (of(1, Some(2)), of(1, None), true),
            (of(1, Some(2)), of(2, None), false),
            (of(1, None), of(1, None), true),
        ] {
            assert_eq!(a.fits(&b), fits, "{a} {b}");
            assert_eq!(b.fits(&a), fits, "{a} {b}");
        }
    }
}
