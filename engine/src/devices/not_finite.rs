//! Numbers of a pass that are NaN or infinite, and the weight that made them so.
//!
//! Floats that are used where they lie in a file are not read when a model is opened. Kernels keep what is not finite:
//! one such number in the weights that a row meets, and its residual stream or its logits are not finite either. So it is
//! enough to look at these, a few thousand numbers for millions of multiply-adds. Only when they are bad are the weights
//! looked at, which takes about as long as a token.

#![forbid(unsafe_code)]

use crate::error::{Error, Result};
use crate::math::all_finite;
use crate::networks::batch::{Segment, Span};
use crate::networks::{Machine, Network};

/// What error texts begin with.
pub(crate) const TEXT: &str = "the results are not finite numbers";

/// Refuses numbers that came of a batch through this network.
///
/// # Errors
/// [`ErrorKind::Format`](crate::ErrorKind::Format), with the first weight that is not finite.
pub(crate) fn check(
    numbers: &[f32],
    network: &Network,
    (segments, spans): (&[Segment], &[Span<'_>]),
    machine: Machine<'_>,
) -> Result<()> {
    if all_finite(numbers) {
        return Ok(());
    }
    let is_short = machine.paging.is_some();
    // The rows of the embedding that were read, and no others: it may be the largest tensor of all.
    let embedding = network.embedding.as_ref().map(|e| &e.table);
    if let Some(table) = embedding {
        for segment in segments {
            let tokens = &spans[segment.span].tokens[segment.first_token..][..segment.n_rows];
            for &token in tokens {
                let row = token as usize;
                let checked = table.check_finite(row..row + 1, is_short);
                checked.map_err(|e| e.at(TEXT))?;
            }
        }
    }
    for matrix in network.matrices() {
        if !embedding.is_some_and(|table| std::ptr::eq(table, matrix)) {
            let checked = matrix.check_finite(0..matrix.n_rows, is_short);
            checked.map_err(|e| e.at(TEXT))?;
        }
    }
    Err(Error::format(format!(
        "{TEXT}: no matrix has any that is not, so some are too large for what they are multiplied with"
    )))
}
