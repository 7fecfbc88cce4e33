//! One sequence: a state, the logits behind its last token, and memory for forward passes.

#![forbid(unsafe_code)]

use std::ops::ControlFlow;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::devices::device_state;
use crate::error::{Error, ErrorKind, Result};
use crate::math::{all_finite, reserve, zeroed};
use crate::memory::budget::Reservation;
use crate::memory::estimate;
use crate::model::{enough, tuned, Model, Sparsity, Workspace};
use crate::networks::batch::{Output, Span};
use crate::networks::state::{Initial, State};
use crate::products::{prefill_rows_lasting, PREFILL_ROWS};
use crate::text::sampler::{Sampler, SamplerOptions};
use crate::text::stream::{StopTexts, TextStream};

/// A sequence of tokens in the making. It keeps its model alive and belongs to one thread at a time.
///
/// See the [crate documentation](crate) for an example.
#[derive(Debug)]
pub struct Session {
    model: Model,
    state: State,
    /// (n_vocab) behind the last token; empty while there are none here: before the first token, and while
    /// [`generate`](Self::generate) leaves them on a device
    logits: Vec<f32>,
    /// Room of a row of logits, to swap with `logits`.
    next_logits: Vec<f32>,
    decode: Workspace,
    /// Made when more than one token is fed at once.
    prefill: Option<Workspace>,
    prefill_rows: usize,
    /// The same for a tuned state that was loaded.
    initial: Option<Reservation>,
    /// What it has taken of the model's limit, workspaces that count for themselves aside.
    _reservation: Option<Reservation>,
}

/// When a generated text ends.
///
/// ```
/// use rwkv_edge::GenerateOptions;
///
/// let options = GenerateOptions::new().max_new_tokens(64).stop(["\n\n"]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "options do nothing until text is generated with them"]
pub struct GenerateOptions {
    /// At most so many tokens are generated; 0 is none.
    pub max_new_tokens: usize,
    /// Goes on behind the token that ends a text.
    pub ignore_end_of_text: bool,
    /// The text ends before the first of these.
    pub stop: Vec<String>,
}

/// Why a generated text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
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
#[non_exhaustive]
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
    pub const PREFILL_ROWS: usize = PREFILL_ROWS;

    /// A session at the empty state.
    ///
    /// # Panics
    ///
    /// When there is no memory for it, which [`try_new`](Self::try_new) says.
    pub fn new(model: &Model) -> Self {
        enough(Self::try_new(model))
    }

    /// [`new`](Self::new) where memory may be short.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub fn try_new(model: &Model) -> Result<Self> {
        let state = model.try_new_state()?;
        let bytes = state.size_bytes() + 2 * model.n_vocab() * size_of::<f32>();
        let decode = model.try_workspace(1)?;
        Ok(Session {
            _reservation: Reservation::anyway(model.budget(), bytes),
            ..Self::uncounted(model, state, decode)?
        })
    }

    /// A session whose memory someone else has counted.
    fn uncounted(model: &Model, state: State, decode: Workspace) -> Result<Self> {
        Ok(Session {
            state,
            logits: reserve(model.n_vocab(), "a row of logits")?,
            next_logits: zeroed(model.n_vocab(), "a row of logits")?,
            decode,
            prefill: None,
            prefill_rows: model.prefill_rows(),
            model: model.clone(),
            initial: None,
            _reservation: None,
        })
    }

    /// A session at the empty state that has all memory it will ever need, and a greedy sampler that has
    /// too: [`eval`](Self::eval), [`reset`](Self::reset), [`save_state_to`](Self::save_state_to) and
    /// [`load_state_from`](Self::load_state_from) allocate nothing but the text of an error and the numbers of a tuned
    /// state.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory) when the model's memory limit or the system has no
    /// room for it.
    pub fn with_all_memory(model: &Model) -> Result<(Self, Sampler)> {
        let info = model.info();
        let on_cpu = prefill_rows_lasting(info.quant).min(model.prefill_rows());
        let (prefill_rows, buffered) = match info.stages.iter().all(|s| s.device != "cpu") {
            true => (model.prefill_rows(), None),
            false => (on_cpu, Some(on_cpu)),
        };
        let bytes = estimate::session_bytes(model.sizes(), buffered, info.threads);
        let reservation = Reservation::new(model.budget(), bytes, "another session")?;
        // The sampler's allocations end the process when they fail. Asked for in one piece, the same memory
        // gives an error instead.
        let of_sampler = Sampler::reserved_bytes(model.n_vocab());
        drop(reserve::<u8>(of_sampler, "a sampler")?);
        let mut sampler = Sampler::new(SamplerOptions::default(), model.n_vocab())?;
        sampler.reserve()?;
        let_threads_start(model);
        let decode = model.uncounted_workspace(1)?;
        let mut session = Session {
            prefill: Some(model.uncounted_workspace(prefill_rows)?),
            prefill_rows,
            _reservation: Some(reservation),
            ..Self::uncounted(model, model.try_new_state()?, decode)?
        };
        model.place(&mut session.state)?;
        Ok((session, sampler))
    }

    /// The model that the session runs.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The state behind the last token.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The logits (n_vocab) for what follows the last token, or `None` before the first one and while the
    /// state is undefined.
    pub fn logits(&self) -> Option<&[f32]> {
        let are_there = !self.logits.is_empty() && !self.state.is_undefined();
        are_there.then_some(&self.logits[..])
    }

    /// Rows of `ffn.value` that decode did not read because their hidden unit was 0.
    pub fn sparsity(&self) -> Sparsity {
        self.decode.sparsity()
    }

    /// Back to the empty state: the model's, or the tuned one that was loaded last or that a
    /// [restored](Self::restore) state brought.
    pub fn reset(&mut self) {
        self.state.reset();
        self.logits.clear();
    }

    /// Goes on from another state, such as a clone taken earlier; `logits` are those that belonged to it,
    /// or empty. The empty state that the other one is reset to is this session's from then on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::State`](crate::ErrorKind::State) when the state belongs to another model,
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) when there are some but not n_vocab finite logits,
    /// [`ErrorKind::Backend`](crate::ErrorKind::Backend) when the state is undefined. Nothing has changed
    /// then. When a device does not give the state, that of the session is undefined.
    pub fn restore(&mut self, state: &State, logits: &[f32]) -> Result<()> {
        if !state.layout().fits(self.state.layout()) {
            return Err(Error::state("the state belongs to another model"));
        }
        if !logits.is_empty() && logits.len() != self.model.n_vocab() {
            let (found, expected) = (logits.len(), self.model.n_vocab());
            return Err(Error::argument(format!(
                "{found} logits, expected {expected}"
            )));
        }
        if !all_finite(logits) {
            let text = "logits that are NaN or infinite, expected finite numbers";
            return Err(Error::argument(text));
        }
        self.state.copy_from(state)?;
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        Ok(())
    }

    /// Saves the state with the logits behind it to a file.
    ///
    /// # Errors
    ///
    /// When the file cannot be written, or [`State::numbers`] fails; an older file of that name is then as
    /// it was.
    pub fn save_state(&self, path: impl AsRef<Path>) -> Result<()> {
        self.state.save(path, &self.logits)
    }

    /// Goes on from a file that [`save_state`](Self::save_state) wrote, with any quantisation of this
    /// model; or begins with a tuned initial state: a `.pth` or `.safetensors` file that holds nothing but
    /// `blocks.N.att.time_state` of each layer. [`reset`](Self::reset) then goes back to that one;
    /// [`Model::with_initial_state`] does the same for all sessions of a model.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::State`](crate::ErrorKind::State) when the file is damaged or of another model; those of
    /// [`Model::with_initial_state`]. Nothing has changed then.
    pub fn load_state(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        if let Some(initial) = tuned::read_file(path, *self.state.layout())? {
            return self.begin_with(initial);
        }
        let logits = self.state.load(path)?;
        self.logits.clear();
        self.logits.extend_from_slice(&logits);
        Ok(())
    }

    /// Bytes that [`save_state_to`](Self::save_state_to) writes: the same at any time.
    pub fn saved_state_size(&self) -> usize {
        self.state.saved_size(self.model.n_vocab())
    }

    /// Saves the state with the logits behind it to memory: the bytes of a file that
    /// [`save_state`](Self::save_state) writes. Before the first token zeros take the place of logits.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) when `out` has not exactly
    /// [`saved_state_size`](Self::saved_state_size) bytes, and those of [`State::numbers`]. Nothing is written
    /// then.
    pub fn save_state_to(&self, out: &mut [u8]) -> Result<()> {
        let expected = self.saved_state_size();
        if out.len() != expected {
            let found = out.len();
            return Err(Error::argument(format!(
                "room for {found} bytes of state, expected {expected}"
            )));
        }
        self.check_savable()?;
        self.state.write_bytes(&self.logits, out);
        Ok(())
    }

    /// Whether [`save_state_to`](Self::save_state_to) would save the state, for whoever must know before there is room.
    ///
    /// # Errors
    ///
    /// Those of [`State::numbers`], and [`ErrorKind::State`](crate::ErrorKind::State) for numbers that are not finite.
    pub fn check_savable(&self) -> Result<()> {
        self.state.check_savable(&self.logits)
    }

    /// Goes on from bytes that [`save_state_to`](Self::save_state_to) or
    /// [`save_state`](Self::save_state) wrote, with any quantisation of this model; or begins with a tuned
    /// initial state, the bytes of a file as [`load_state`](Self::load_state) reads it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::State`](crate::ErrorKind::State) when they are damaged or of another model; those of
    /// [`load_state`](Self::load_state). Nothing has changed then.
    pub fn load_state_from(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(initial) = tuned::read_bytes(bytes, *self.state.layout())? {
            return self.begin_with(initial);
        }
        self.state.load_bytes_into(bytes, &mut self.logits)
    }

    fn begin_with(&mut self, initial: Initial) -> Result<()> {
        self.initial = Some(tuned::reservation(self.model.budget(), &initial)?);
        self.state.begin_with(initial);
        self.logits.clear();
        Ok(())
    }

    /// Feeds tokens and returns the logits (n_vocab) for what follows the last one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for no tokens or one beyond the vocabulary.
    /// Nothing has changed then.
    ///
    /// [`ErrorKind::Format`](crate::ErrorKind::Format) when weights that are NaN or infinite show in the results,
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) when a mapped file shrank (see [`Model::open`]), and when a device
    /// fails, [`ErrorKind::Backend`](crate::ErrorKind::Backend) or what else its plugin says. If
    /// some of the tokens may have been fed by then, the state is undefined: until [`reset`](Self::reset),
    /// [`restore`](Self::restore) or [`load_state`](Self::load_state) there are no logits, and everything
    /// that needs the state is refused, as [`State::check`] says.
    pub fn eval(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        let workspace = match tokens.len() {
            0 | 1 => &mut self.decode,
            _ => prefill(&mut self.prefill, &self.model, self.prefill_rows)?,
        };
        let span = Span::new(&mut self.state, tokens, Output::Last);
        self.model
            .forward(workspace, &mut [span], &mut self.next_logits)?;
        std::mem::swap(&mut self.logits, &mut self.next_logits);
        // Empty before the first token; there is room for a row already.
        self.next_logits.resize(self.model.n_vocab(), 0.0);
        Ok(&self.logits)
    }

    /// Feeds tokens and returns a row of logits for each, (tokens, n_vocab).
    ///
    /// # Errors
    ///
    /// Those of [`eval`](Self::eval).
    pub fn eval_all(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let n_vocab = self.model.n_vocab();
        let mut logits = zeroed(tokens.len().saturating_mul(n_vocab), "rows of logits")?;
        let workspace = prefill(&mut self.prefill, &self.model, self.prefill_rows)?;
        let span = Span::new(&mut self.state, tokens, Output::All);
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
    /// tokenizer. Those of [`eval`](Self::eval) when a device fails; where it fails to give the logits in the
    /// end, the state is that after all tokens, without logits.
    pub fn generate(
        &mut self,
        sampler: &mut Sampler,
        options: &GenerateOptions,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated> {
        self.state.check()?;
        if self.logits.is_empty() {
            return Err(Error::argument(
                "the prompt is empty, expected at least one token",
            ));
        }
        // Where a callback panics, too, the logits come home to their state.
        let work = || self.generate_tokens(sampler, options, &mut on_text);
        let generated = catch_unwind(AssertUnwindSafe(work));
        let fetched = self.fetch_logits();
        let generated = generated.unwrap_or_else(|panic| resume_unwind(panic))?;
        fetched?;
        Ok(generated)
    }

    /// Feeds a token, and gives the one with the largest logit behind it. The logits stay where they are.
    fn eval_token(&mut self, token: u32) -> Result<u32> {
        let mut next = [0];
        let tokens = [token];
        let span = Span::new(&mut self.state, &tokens, Output::Last);
        self.model
            .forward_tokens(&mut self.decode, &mut [span], &mut next)?;
        self.logits.clear();
        Ok(next[0])
    }

    /// Brings the logits of the last token from where they were left.
    fn fetch_logits(&mut self) -> Result<()> {
        if !self.logits.is_empty() || self.state.is_undefined() {
            return Ok(());
        }
        let Some(last) = device_state::parts(&self.state).last() else {
            return Ok(());
        };
        // There is room for a row already.
        self.logits.resize(self.model.n_vocab(), 0.0);
        let fetched = last.logits(&mut self.logits);
        fetched.inspect_err(|error| {
            self.logits.clear();
            // The device gave them, and they are not finite: nor is the state.
            if error.kind() == ErrorKind::Format {
                self.state.begin_pass();
            }
        })
    }

    fn generate_tokens(
        &mut self,
        sampler: &mut Sampler,
        options: &GenerateOptions,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated> {
        let model = self.model.clone();
        let mut text = match model.tokenizer() {
            Ok(tokenizer) => Some(TextStream::new(tokenizer)),
            Err(error) if model.has_tokenizer() || !options.stop.is_empty() => return Err(error),
            Err(_) => None,
        };
        let mut stops = StopTexts::new(options.stop.clone())?;
        let mut tokens = Vec::new();
        // The largest logit is found where the logits are.
        let on_device = model.ends_on_device() && sampler.options().is_plain_greedy();
        let mut chosen = None;
        let mut ending = loop {
            if tokens.len() == options.max_new_tokens {
                break Ending::Length;
            }
            let token = match chosen.take() {
                Some(token) => token,
                None => sampler.sample(&self.logits),
            };
            if model.ends_text(token) && !options.ignore_end_of_text {
                break Ending::EndOfText;
            }
            sampler.accept(token);
            tokens.push(token);
            let piece = match &mut text {
                Some(text) => stops.push(text.push(token)?),
                None => "",
            };
            let flow = on_text(piece);
            match on_device {
                true => chosen = Some(self.eval_token(token)?),
                false => drop(self.eval(&[token])?),
            }
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

/// The workspace for more than one token, which is made when it is first wanted.
fn prefill<'a>(
    made: &'a mut Option<Workspace>,
    model: &Model,
    rows: usize,
) -> Result<&'a mut Workspace> {
    Ok(match made {
        Some(workspace) => workspace,
        None => made.insert(model.try_workspace(rows)?),
    })
}

/// Returns when every thread of the model has worked, or after a while. A thread that has only just been
/// started still allocates for itself, which would happen within the first calls on a session.
fn let_threads_start(model: &Model) {
    const ATTEMPTS_MAX: usize = 2000;
    let (pool, _) = model.machine();
    let has_worked: Vec<_> = (0..pool.n_threads())
        .map(|_| AtomicBool::new(false))
        .collect();
    for _ in 0..ATTEMPTS_MAX {
        if has_worked
            .iter()
            .all(|worked| worked.load(Ordering::Relaxed))
        {
            return;
        }
        // Some microseconds of tasks, so that there is one left for a thread that wakes up meanwhile.
        pool.run(16 * has_worked.len(), &|_, thread| {
            has_worked[thread].store(true, Ordering::Relaxed);
            (0..20).for_each(|_| std::hint::spin_loop());
        });
        std::thread::yield_now();
    }
}

impl GenerateOptions {
    /// At most 128 tokens, up to the end of the text: the [`Default`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`max_new_tokens`](field@Self::max_new_tokens).
    pub fn max_new_tokens(mut self, max_new_tokens: usize) -> Self {
        self.max_new_tokens = max_new_tokens;
        self
    }

    /// Sets [`ignore_end_of_text`](field@Self::ignore_end_of_text).
    pub fn ignore_end_of_text(mut self, ignore_end_of_text: bool) -> Self {
        self.ignore_end_of_text = ignore_end_of_text;
        self
    }

    /// Sets [`stop`](field@Self::stop), in place of those before.
    pub fn stop(mut self, stop: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.stop = stop.into_iter().map(Into::into).collect();
        self
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
