//! Vectors of texts.
//!
//! Texts are worked on in batches of rows, a row a token, so that the weights are read once for many
//! texts; one that is longer than a batch goes through in pieces.

use std::collections::VecDeque;
use std::str::FromStr;

use rwkv_edge::{
    Error, ErrorKind, Model, Output, Reservation, Result, Span, State, Tokens, Workspace,
};

use crate::{is_on_device, not_enough_memory, rows_that_fit};

/// What of a model becomes the vector of a text.
///
/// As a text: `hidden-last`, `hidden-mean`, or `state:3` for the state of layer 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pooling {
    /// What the head reads behind the last token.
    HiddenLast,
    /// The mean over the tokens of what the head reads.
    HiddenMean,
    /// What the time mixing of a layer, counted from 0, remembers.
    State(usize),
}

impl FromStr for Pooling {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let layer = text.strip_prefix("state:").map(str::parse);
        match (text, layer) {
            ("hidden-last", _) => Ok(Pooling::HiddenLast),
            ("hidden-mean", _) => Ok(Pooling::HiddenMean),
            (_, Some(Ok(layer))) => Ok(Pooling::State(layer)),
            _ => Err(Error::new(
                ErrorKind::Argument,
                "expected hidden-last, hidden-mean or state:LAYER, such as state:3",
            )),
        }
    }
}

/// Tokens that are worked on at once, and texts that wait at most.
const ROWS_MAX: usize = 128;

/// Turns the tokens of texts into vectors, in order.
///
/// ```
/// use rwkv_edge::{Model, Options};
/// use rwkv_edge_scoring::{Embedder, Pooling};
///
/// # fn main() -> rwkv_edge::Result<()> {
/// let model = Model::open("../../cli/demo", &Options::default())?;
/// let mut embedder = Embedder::new(&model, Pooling::HiddenMean)?;
/// let mut vectors = Vec::new();
/// for text in ["A trait is shared behaviour.", "Traits are behaviour that types share."] {
///     embedder.push(model.tokenizer()?.encode(text)?);
///     while embedder.has_batch() {
///         embedder.run_batch()?;
///         vectors.extend(std::iter::from_fn(|| embedder.pop()));
///     }
/// }
/// // At the end also what fills no batch.
/// while !embedder.is_empty() {
///     embedder.run_batch()?;
///     vectors.extend(std::iter::from_fn(|| embedder.pop()));
/// }
/// assert_eq!(vectors.len(), 2);
/// # Ok(())
/// # }
/// ```
pub struct Embedder {
    model: Model,
    from: Pooling,
    normalize: bool,
    /// Numbers of a vector.
    width: usize,
    n_embd: usize,
    workspace: Workspace,
    /// Tokens of a batch.
    rows_max: usize,
    /// Texts without their vector yet; of the first some tokens may have been fed.
    lines: VecDeque<Line>,
    /// How many of the first have been fed whole.
    n_done: usize,
    /// Texts that wait at most: each has a state.
    lines_max: usize,
    _states: Reservation,
    /// Tokens of those texts that have not been fed.
    n_waiting: usize,
    /// States that no text uses.
    spare: Vec<State>,
    /// (rows, n_embd) of the present batch
    hidden: Vec<f32>,
}

struct Line {
    tokens: Tokens,
    n_fed: usize,
    state: State,
    /// (n_embd) sum of the rows so far
    sum: Vec<f64>,
}

impl std::fmt::Debug for Embedder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedder")
            .field("from", &self.from)
            .field("normalize", &self.normalize)
            .finish_non_exhaustive()
    }
}

impl Embedder {
    /// An embedder whose vectors have length 1.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] where the model has no such layer, [`ErrorKind::Memory`] where there is no
    /// memory for states.
    pub fn new(model: &Model, from: Pooling) -> Result<Self> {
        let info = model.info();
        let width = match from {
            Pooling::State(layer) if layer >= info.n_layer => {
                let text = format!(
                    "state:{layer}: no such layer, expected 0 to {}",
                    info.n_layer - 1
                );
                return Err(Error::new(ErrorKind::Argument, text));
            }
            Pooling::State(layer) => model.new_state().memory(layer).count(),
            _ => info.n_embd,
        };
        let rows_max = match is_on_device(&info) {
            true => model.prefill_rows(),
            false => ROWS_MAX,
        };
        let workspace = model.try_workspace(rows_max)?;
        let line_bytes = info.state_bytes + info.n_embd * size_of::<f64>();
        let lines_max = rows_that_fit(model, line_bytes, rows_max);
        Ok(Embedder {
            model: model.clone(),
            from,
            normalize: true,
            width,
            n_embd: info.n_embd,
            workspace,
            rows_max,
            lines: VecDeque::new(),
            n_done: 0,
            lines_max,
            _states: model.reserve_memory((lines_max * line_bytes) as u64)?,
            n_waiting: 0,
            spare: Vec::new(),
            hidden: Vec::new(),
        })
    }

    /// Whether vectors are scaled to length 1; they are if nothing else is said.
    #[must_use]
    pub fn normalize(mut self, normalize: bool) -> Self {
        self.normalize = normalize;
        self
    }

    /// Numbers of a vector.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Takes the tokens of one more text. Each has a state, so it is time for
    /// [`run_batch`](Self::run_batch) when there [is a batch](Self::has_batch).
    pub fn push(&mut self, tokens: impl Into<Tokens>) {
        let tokens = tokens.into();
        self.n_waiting += tokens.len();
        let mut state = self.spare.pop().unwrap_or_else(|| self.model.new_state());
        state.reset();
        self.lines.push_back(Line {
            tokens,
            n_fed: 0,
            state,
            sum: vec![0.0; self.n_embd],
        });
    }

    /// Whether so much waits that a batch is full.
    pub fn has_batch(&self) -> bool {
        self.n_waiting >= self.rows_max || self.lines.len() >= self.lines_max
    }

    /// Whether every text has got its vector.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Feeds as many tokens as a batch has at most. [`pop`](Self::pop) then gives the vectors of the texts
    /// that are done.
    ///
    /// # Errors
    ///
    /// Those of [`Model::forward_hidden`]. The texts under way are lost then.
    pub fn run_batch(&mut self) -> Result<()> {
        let mut room = self.rows_max;
        let mut spans = Vec::new();
        for line in self.lines.iter_mut().skip(self.n_done) {
            let n = room.min(line.tokens.len() - line.n_fed);
            room -= n;
            let tokens = &line.tokens[line.n_fed..line.n_fed + n];
            line.n_fed += n;
            let output = match self.from {
                Pooling::HiddenMean => Output::All,
                Pooling::HiddenLast if n > 0 && line.n_fed == line.tokens.len() => Output::Last,
                _ => Output::None,
            };
            spans.push(Span::new(&mut line.state, tokens, output));
            if room == 0 {
                break;
            }
        }
        self.n_waiting -= self.rows_max - room;
        let n_rows: Vec<usize> = spans.iter().map(Span::n_logit_rows).collect();
        let n_values = n_rows.iter().sum::<usize>() * self.n_embd;
        let more = n_values.saturating_sub(self.hidden.len());
        let reserved = self.hidden.try_reserve_exact(more);
        let fed = reserved.map_err(|_| not_enough_memory("hidden values"));
        let fed = fed.and_then(|()| {
            self.hidden.resize(n_values, 0.0);
            self.model
                .forward_hidden(&mut self.workspace, &mut spans, &mut self.hidden)
        });
        if let Err(error) = fed {
            self.lines.clear();
            (self.n_done, self.n_waiting) = (0, 0);
            return Err(error);
        }
        let mut rows = self.hidden.chunks_exact(self.n_embd);
        for (line, n_rows) in self.lines.iter_mut().skip(self.n_done).zip(n_rows) {
            for row in rows.by_ref().take(n_rows) {
                line.sum
                    .iter_mut()
                    .zip(row)
                    .for_each(|(sum, &x)| *sum += f64::from(x));
            }
        }
        let is_done = |line: &&Line| line.n_fed == line.tokens.len();
        self.n_done = self.lines.iter().take_while(is_done).count();
        Ok(())
    }

    /// The vector of the first text that has none yet, if all of it was fed. Of a text without tokens all
    /// zeros: there is nothing that it could be near to.
    pub fn pop(&mut self) -> Option<Vec<f32>> {
        self.n_done = self.n_done.checked_sub(1)?;
        let line = self.lines.pop_front()?;
        let vector = self.vector(&line);
        self.spare.push(line.state);
        Some(vector)
    }

    fn vector(&self, line: &Line) -> Vec<f32> {
        let mut vector: Vec<f64> = match self.from {
            _ if line.tokens.is_empty() => vec![0.0; self.width],
            Pooling::HiddenLast => line.sum.clone(),
            Pooling::HiddenMean => {
                let n = line.tokens.len() as f64;
                line.sum.iter().map(|sum| sum / n).collect()
            }
            Pooling::State(layer) => line.state.memory(layer).map(f64::from).collect(),
        };
        let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
        if self.normalize && length > 0.0 {
            vector.iter_mut().for_each(|x| *x /= length);
        }
        vector.into_iter().map(|x| x as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use rwkv_edge::Options;

    use super::*;

    /// Long and short texts and empty ones together, in batches: the vectors that each has alone.
    #[test]
    fn texts_do_not_disturb_each_other() -> Result<()> {
        let model = Model::open("../../cli/demo", &Options::default())?;
        let lengths = [0, 1, 300, 2, 0, 128, 7, 129, 0];
        let text = |n: usize| (0..n as u32).map(|i| i % 97 + 1).collect::<Vec<u32>>();
        for from in [Pooling::HiddenLast, Pooling::HiddenMean, Pooling::State(1)] {
            let embed = |lengths: &[usize]| -> Result<Vec<Vec<f32>>> {
                let mut embedder = Embedder::new(&model, from)?;
                lengths.iter().for_each(|&n| embedder.push(text(n)));
                let mut vectors = Vec::new();
                while !embedder.is_empty() {
                    embedder.run_batch()?;
                    vectors.extend(std::iter::from_fn(|| embedder.pop()));
                }
                Ok(vectors)
            };
            let together = embed(&lengths)?;
            assert_eq!(together.len(), lengths.len());
            for (n, vector) in lengths.iter().zip(&together) {
                let alone = &embed(&[*n])?[0];
                let pairs = vector.iter().zip(alone);
                let difference = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(difference < 1e-4, "{from:?}, {n} tokens: {difference}");
                let length: f32 = vector.iter().map(|x| x * x).sum();
                let expected = if *n == 0 { 0.0 } else { 1.0 };
                assert!((length - expected).abs() < 1e-4, "{from:?}, {n} tokens");
            }
        }
        Ok(())
    }

    #[test]
    fn wrong_layers_and_tokens_are_refused() -> Result<()> {
        let model = Model::open("../../cli/demo", &Options::default())?;
        let n_layer = model.info().n_layer;
        let wrong = Embedder::new(&model, Pooling::State(n_layer)).err();
        let wrong = wrong.expect("no such layer");
        assert_eq!(wrong.kind(), ErrorKind::Argument);
        assert!(wrong.to_string().contains(&format!("state:{n_layer}")));
        // Behind a failure nothing of it is left.
        let mut embedder = Embedder::new(&model, Pooling::HiddenMean)?;
        embedder.push(vec![1, u32::MAX]);
        assert!(embedder.run_batch().is_err());
        assert!(embedder.is_empty() && embedder.pop().is_none());
        embedder.push(vec![1, 2]);
        embedder.run_batch()?;
        assert_eq!(
            embedder.pop().map(|vector| vector.len()),
            Some(embedder.width())
        );
        for text in ["", "hidden", "state", "state:", "state:-1", "state:x"] {
            assert!(text.parse::<Pooling>().is_err(), "{text}");
        }
        assert_eq!("state:3".parse::<Pooling>()?, Pooling::State(3));
        Ok(())
    }
}
