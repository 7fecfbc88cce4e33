//! One sequence: a state, the logits behind its last token, and memory for forward passes.

#![forbid(unsafe_code)]

use std::ops::ControlFlow;
use std::path::Path;

use crate::batch::{Output, Span};
use crate::error::{Error, Result};
use crate::model::{Model, Workspace};
use crate::sampler::Sampler;
use crate::state::State;
use crate::text::{StopTexts, TextStream};

/// A sequence of tokens in the making. It keeps its model alive and belongs to one thread at a time.
///
/// See the [crate documentation](crate) for an example.
#[derive(Debug)]
pub struct Session {
    model: Model,
    state: State,
    /// (n_vocab) behind the last token; empty while there are none
    logits: Vec<f32>,
    /// Room of a row of logits, to swap with `logits`.
    next_logits: Vec<f32>,
    decode: Workspace,
    /// Made when more than one token is fed at once.
    prefill: Option<Workspace>,
}

/// When a generated text ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerateOptions {
    /// At most so many tokens are generated.
    pub max_new_tokens: usize,
    /// Goes on behind the token that ends a text.
    pub ignore_end_of_text: bool,
    /// The text ends before the first of these.
    pub stop: Vec<String>,
}

/// Why a generated text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// There were as many tokens as asked for.
    Length,
    /// The model ended the text.
    EndOfText,
    /// One of the stop texts appeared.
    Stop,
    /// The caller said so.
    Caller,
}

/// What [`Session::generate`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// New tokens, without the end of text. All of them have been fed.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub ending: Ending,
}

impl Session {
    /// Tokens of a prompt that are fed at once; longer prompts go in pieces. Twice as many are within 1 % of
    /// the speed for twice the memory, half as many 4 % slower. f32 weights take
    /// [twice as many](Model::prefill_rows).
    pub const PREFILL_ROWS: usize = 128;

    /// A session at the empty state.
    pub fn new(model: &Model) -> Self {
        Session {
            state: model.new_state(),
            logits: Vec::with_capacity(model.n_vocab()),
            next_logits: vec![0.0; model.n_vocab()],
            decode: model.workspace(1),
            prefill: None,
            model: model.clone(),
        }
    }

    /// The model that the session runs.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The state behind the last token.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The logits (n_vocab) for what follows the last token, or `None` before the first one.
    pub fn logits(&self) -> Option<&[f32]> {
        (!self.logits.is_empty()).then_some(&self.logits[..])
    }

    /// Rows of `ffn.value` that decode did not read because their hidden unit was 0, of all so far.
    pub fn sparsity(&self) -> (u64, u64) {
        self.decode.sparsity()
    }

    /// Back to the empty state.
    pub fn reset(&mut self) {
        self.state.reset();
        self.logits.clear();
    }

    /// Goes on from another state, such as a clone taken earlier; `logits` are those that belonged to it,
    /// or empty.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::State`](crate::ErrorKind::State) when the state belongs to another model,
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) when there are some but not n_vocab logits.
    pub fn restore(&mut self, state: &State, logits: &[f32]) -> Result<()> {
        if state.shape() != self.state.shape() {
            return Err(Error::state("the state belongs to another model"));
        }
        if !logits.is_empty() && logits.len() != self.model.n_vocab() {
            let (found, expected) = (logits.len(), self.model.n_vocab());
            return Err(Error::argument(format!(
                "{found} logits, expected {expected}"
            )));
        }
        self.state.clone_from(state);
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        Ok(())
    }

    /// Saves the state with the logits behind it to a file.
    ///
    /// # Errors
    ///
    /// When the file cannot be written; an older file of that name is then as it was.
    pub fn save_state(&self, path: impl AsRef<Path>) -> Result<()> {
        self.state.save(path.as_ref(), &self.logits)
    }

    /// Goes on from a file that [`save_state`](Self::save_state) wrote, with any quantisation of this
    /// model.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::State`](crate::ErrorKind::State) when the file is damaged or of another model.
    /// Nothing has changed then.
    pub fn load_state(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let logits = self.state.load(path.as_ref())?;
        self.logits.clear();
        self.logits.extend_from_slice(&logits);
        Ok(())
    }

    /// Feeds tokens and returns the logits (n_vocab) for what follows the last one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for no tokens or one beyond the vocabulary.
    /// Nothing has changed then.
    pub fn eval(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        let workspace = match tokens.len() {
            0 | 1 => &mut self.decode,
            _ => self
                .prefill
                .get_or_insert_with(|| self.model.workspace(self.model.prefill_rows())),
        };
        let output = Output::Last;
        let span = Span {
            state: &mut self.state,
            tokens,
            output,
        };
        self.model
            .forward(workspace, &mut [span], &mut self.next_logits)?;
        self.logits.clear();
        self.logits.extend_from_slice(&self.next_logits);
        Ok(&self.logits)
    }

    /// Feeds tokens and returns a row of logits for each, (tokens, n_vocab).
    ///
    /// # Errors
    ///
    /// Those of [`eval`](Self::eval).
    pub fn eval_all(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let n_vocab = self.model.n_vocab();
        let workspace = self
            .prefill
            .get_or_insert_with(|| self.model.workspace(self.model.prefill_rows()));
        let mut logits = vec![0.0; tokens.len() * n_vocab];
        let span = Span {
            state: &mut self.state,
            tokens,
            output: Output::All,
        };
        self.model.forward(workspace, &mut [span], &mut logits)?;
        if let Some(last) = logits.chunks_exact(n_vocab).next_back() {
            self.logits.clear();
            self.logits.extend_from_slice(last);
        }
        Ok(logits)
    }

    /// Draws and feeds tokens until the text ends. With a tokenizer, `on_text` gets the new text as it
    /// appears, whole characters only, and may end it; the state then is that after all that was given.
    /// Without one, `on_text` gets an empty string for every token, and stop texts are refused.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) before any token was fed, and for a stop text
    /// that is empty; [`ErrorKind::Tokenizer`](crate::ErrorKind::Tokenizer) for stop texts without a
    /// tokenizer.
    pub fn generate(
        &mut self,
        sampler: &mut Sampler,
        options: &GenerateOptions,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated> {
        if self.logits.is_empty() {
            return Err(Error::argument(
                "the prompt is empty, expected at least one token",
            ));
        }
        let model = self.model.clone();
        let mut text = match model.tokenizer() {
            Ok(tokenizer) => Some(TextStream::new(tokenizer)),
            Err(error) if model.has_tokenizer() || !options.stop.is_empty() => return Err(error),
            Err(_) => None,
        };
        let mut stops = StopTexts::new(options.stop.clone())?;
        let mut tokens = Vec::new();
        let mut ending = loop {
            if tokens.len() == options.max_new_tokens {
                break Ending::Length;
            }
            let token = sampler.sample(&self.logits);
            if token == model.end_of_text() && !options.ignore_end_of_text {
                break Ending::EndOfText;
            }
            sampler.accept(token);
            tokens.push(token);
            let piece = match &mut text {
                Some(text) => stops.push(text.push(token)?),
                None => "",
            };
            let flow = on_text(piece);
            self.eval(&[token])?;
            if stops.hit().is_some() {
                break Ending::Stop;
            }
            if flow.is_break() {
                break Ending::Caller;
            }
        };
        if let Some(text) = &mut text {
            if ending != Ending::Stop {
                let _ = on_text(stops.push(text.finish()?));
                let _ = on_text(stops.flush());
            }
            if stops.hit().is_some() {
                ending = Ending::Stop;
            }
        }
        Ok(Generated { tokens, ending })
    }
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_new_tokens: 128,
            ignore_end_of_text: false,
            stop: Vec::new(),
        }
    }
}
