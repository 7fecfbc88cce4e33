//! What one forward pass works on: spans of tokens, each with its state, cut into batches of rows.
//!
//! Sits between the networks and their callers. A span of one token is decode, a span of many is
//! prefill, many spans of one token are many users; the network sees rows either way.

#![forbid(unsafe_code)]

use super::state::{State, StateLayout};
use crate::error::{Error, Result};

/// Which tokens of a span logits are wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Output {
    /// None: the tokens only move the state.
    None,
    /// One row of logits, for what follows the last token.
    Last,
    /// One row for what follows each token.
    All,
}

/// Some tokens of one sequence, and the state that they move.
#[derive(Debug)]
#[non_exhaustive]
pub struct Span<'a> {
    /// The state before the tokens; after the forward pass, the state behind them.
    pub state: &'a mut State,
    /// Token ids. None at all is fine where no logits are wanted.
    pub tokens: &'a [u32],
    /// Which tokens logits are wanted for.
    pub output: Output,
}

impl<'a> Span<'a> {
    /// These tokens behind that state.
    pub fn new(state: &'a mut State, tokens: &'a [u32], output: Output) -> Self {
        Span {
            state,
            tokens,
            output,
        }
    }

    /// Rows of logits that the forward pass gives for this span.
    pub fn n_logit_rows(&self) -> usize {
        match self.output {
            Output::None => 0,
            Output::Last => 1,
            Output::All => self.tokens.len(),
        }
    }

    /// Refuses what a forward pass could not finish, before anything has changed.
    pub(crate) fn check(&self, layout: &StateLayout) -> Result<()> {
        let n_vocab = layout.sizes.n_vocab;
        let unknown = |&(_, &token): &(usize, &u32)| token as usize >= n_vocab;
        if let Some((index, token)) = self.tokens.iter().enumerate().find(unknown) {
            return Err(Error::argument(format!(
                "token {index}: id {token}, expected less than {n_vocab} (the vocabulary)"
            )));
        }
        if !self.state.layout().fits(layout) {
            return Err(Error::state("the state belongs to another model"));
        }
        self.state.check()?;
        if self.output == Output::Last && self.tokens.is_empty() {
            return Err(Error::argument(
                "no tokens, expected at least one for logits",
            ));
        }
        Ok(())
    }
}

/// Tokens of one span that are rows of the present batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Index of the span.
    pub(crate) span: usize,
    /// Index of its first token in the span.
    pub(crate) first_token: usize,
    pub(crate) first_row: usize,
    pub(crate) n_rows: usize,
    /// Which of its rows logits are wanted for.
    pub(crate) output: Output,
}

/// Finds the segment of each row, for rows that are asked for in order.
pub(crate) struct SegmentOfRow<'a> {
    segments: &'a [Segment],
    at: usize,
}

impl<'a> SegmentOfRow<'a> {
    pub(crate) fn new(segments: &'a [Segment]) -> Self {
        SegmentOfRow { segments, at: 0 }
    }

    /// The number of the segment that has this row.
    pub(crate) fn of(&mut self, row: usize) -> usize {
        let is_over = |segment: &Segment| segment.first_row + segment.n_rows <= row;
        while self.segments.get(self.at).is_some_and(is_over) {
            self.at += 1;
        }
        self.at
    }
}

/// Cuts spans into batches of at most `rows_max` rows, in order.
pub(crate) struct Cutter {
    span: usize,
    token: usize,
}

impl Cutter {
    pub(crate) fn new() -> Self {
        Cutter { span: 0, token: 0 }
    }

    /// Fills `segments` with the next batch, and `rows` with those of its rows that logits are wanted
    /// of. False when nothing is left.
    pub(crate) fn next(
        &mut self,
        spans: &[Span<'_>],
        rows_max: usize,
        segments: &mut Vec<Segment>,
        rows: &mut Vec<usize>,
    ) -> bool {
        segments.clear();
        rows.clear();
        let mut first_row = 0;
        while first_row < rows_max {
            let Some(span) = spans.get(self.span) else {
                break;
            };
            let left = span.tokens.len() - self.token;
            let n_rows = left.min(rows_max - first_row);
            let ends = n_rows == left;
            let output = match span.output {
                Output::Last if !ends => Output::None,
                output => output,
            };
            if n_rows > 0 {
                segments.push(Segment {
                    span: self.span,
                    first_token: self.token,
                    first_row,
                    n_rows,
                    output,
                });
            }
            first_row += n_rows;
            match output {
                Output::All => rows.extend(first_row - n_rows..first_row),
                Output::Last => rows.push(first_row - 1),
                Output::None => {}
            }
            self.token += n_rows;
            if ends {
                self.span += 1;
                self.token = 0;
            }
        }
        !segments.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_token_once_and_in_order() {
        let sizes = crate::networks::tests::sizes([10, 1, 1, 1, 4]);
        let mut states = vec![State::new(StateLayout::of_sizes(&sizes), None).expect("memory"); 4];
        let tokens = [1u32; 7];
        let lengths = [7, 0, 1, 3];
        let outputs = [Output::All, Output::None, Output::Last, Output::Last];
        let spans: Vec<Span<'_>> = states
            .iter_mut()
            .zip(lengths.iter().zip(outputs))
            .map(|(state, (&length, output))| Span::new(state, &tokens[..length], output))
            .collect();
        for rows_max in 1..13 {
            let (mut cutter, mut segments, mut rows) = (Cutter::new(), Vec::new(), Vec::new());
            let (mut fed, mut n_logits) = (vec![0; 4], 0);
            while cutter.next(&spans, rows_max, &mut segments, &mut rows) {
                let mut first_row = 0;
                for segment in &segments {
                    assert_eq!(segment.first_row, first_row);
                    assert_eq!(segment.first_token, fed[segment.span]);
                    fed[segment.span] += segment.n_rows;
                    first_row += segment.n_rows;
                }
                assert!(first_row <= rows_max && rows.iter().all(|&row| row < first_row));
                n_logits += rows.len();
            }
            assert_eq!(fed, lengths);
            let expected: usize = spans.iter().map(Span::n_logit_rows).sum();
            assert_eq!(n_logits, expected, "rows_max {rows_max}");
        }
    }
}
