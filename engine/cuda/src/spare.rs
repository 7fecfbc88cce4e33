//! Memory of states that are gone, kept for those to come, as far as that is worth it. Decides what is kept; whoever
//! holds it asks the driver for more and gives the rest back.

#![forbid(unsafe_code)]

/// So much is kept. To ask the driver takes longer than a token of a small model, whose states are small: 160 of one of
/// 169M parameters, more than most batches have. Of one of 14B it is 15 states, and its tokens take longer than the
/// driver does; while what 1,000 users left behind would be 4 GB that nobody else gets.
pub(crate) const SPARE_BYTES_MAX: u64 = 64 << 20;

/// Pieces of one size.
pub(crate) struct Spare<T> {
    pieces: Vec<T>,
    n_max: usize,
}

impl<T> Spare<T> {
    pub(crate) fn new(piece_bytes: u64) -> Self {
        Spare {
            pieces: Vec::new(),
            n_max: (SPARE_BYTES_MAX / piece_bytes.max(1)) as usize,
        }
    }

    pub(crate) fn take(&mut self) -> Option<T> {
        self.pieces.pop()
    }

    /// Keeps a piece, or gives it back where there are enough.
    pub(crate) fn keep(&mut self, piece: T) -> Option<T> {
        if self.pieces.len() >= self.n_max {
            return Some(piece);
        }
        self.pieces.push(piece);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A piece that counts those that there are.
    struct Piece<'a>(&'a std::cell::Cell<u64>);

    impl Drop for Piece<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() - 1);
        }
    }

    #[test]
    fn what_many_states_leave_behind_is_kept_within_a_limit_and_used_again() {
        for piece_bytes in [400 << 10, 4_300_000, SPARE_BYTES_MAX, SPARE_BYTES_MAX + 1] {
            let alive = std::cell::Cell::new(0);
            let mut spare = Spare::new(piece_bytes);
            let kept = SPARE_BYTES_MAX / piece_bytes;
            for round in 0..3 {
                // Those of the round before come first.
                let mut taken: Vec<_> = std::iter::from_fn(|| spare.take()).collect();
                assert_eq!(taken.len() as u64, if round == 0 { 0 } else { kept });
                while taken.len() < 1000 {
                    alive.set(alive.get() + 1);
                    taken.push(Piece(&alive));
                }
                assert_eq!(alive.get(), 1000);
                for piece in taken {
                    drop(spare.keep(piece));
                }
                assert_eq!(alive.get(), kept, "pieces of {piece_bytes} bytes");
            }
            drop(spare);
            assert_eq!(alive.get(), 0);
        }
    }
}
