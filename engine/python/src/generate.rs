//! Text from prompts: whole, or piece by piece.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use self_cell::self_cell;

use crate::error::{Failed, Result};
use crate::lanes::{Lanes, Logprobs, Outcome, Prompt};
use crate::passes::Shared;
use crate::sampling::Wish;
use crate::state::{borrow, State};
use crate::texts::Texts;

/// As of the command `rwkv-edge generate`.
const MAX_NEW_TOKENS: usize = 128;

/// What came of a prompt, or of a conversation.
#[pyclass(module = "rwkv_edge", name = "Result", frozen)]
pub(crate) struct Generated {
    /// The new text, up to a stop text; None for a model without a tokenizer. Of a conversation it is the answer.
    #[pyo3(get)]
    text: Option<String>,
    /// What the model thought before it answered, in a conversation; None where it did not.
    #[pyo3(get)]
    thought: Option<String>,
    /// Ids of the new tokens, without the end of text.
    #[pyo3(get)]
    tokens: Vec<u32>,
    /// With `logprobs` a TokenLogprob for each of `tokens`, else None.
    #[pyo3(get)]
    logprobs: Option<Vec<TokenLogprob>>,
    /// Why there is no more: 'length' (max_new_tokens), 'end_of_text' (the model ended it) or 'stop'.
    #[pyo3(get)]
    finish_reason: &'static str,
}

impl Generated {
    fn of(outcome: &mut Outcome, has_text: bool, has_logprobs: bool) -> Self {
        let Outcome {
            tokens,
            logprobs,
            text,
            thought,
            finish_reason,
        } = std::mem::take(outcome);
        Generated {
            text: has_text.then_some(text),
            thought: Some(thought).filter(|thought| !thought.is_empty()),
            tokens,
            logprobs: has_logprobs.then(|| logprobs.into_iter().map(TokenLogprob).collect()),
            finish_reason: finish_reason.unwrap_or("length"),
        }
    }
}

#[pymethods]
impl Generated {
    fn __repr__(&self) -> String {
        let (text, n) = (self.text.as_deref().unwrap_or_default(), self.tokens.len());
        let reason = self.finish_reason;
        format!("Result({text:?}, {n} tokens, {reason})")
    }

    fn __str__(&self) -> &str {
        self.text.as_deref().unwrap_or_default()
    }
}

/// How likely a generated token was, by the model alone: before temperature, penalties and cuts.
#[pyclass(module = "rwkv_edge", frozen)]
#[derive(Clone)]
pub(crate) struct TokenLogprob(Logprobs);

#[pymethods]
impl TokenLogprob {
    /// Its id.
    #[getter]
    fn token(&self) -> u32 {
        self.0.token
    }

    /// The logarithm of its probability, in nats.
    #[getter]
    fn logprob(&self) -> f64 {
        self.0.logprob
    }

    /// The likeliest tokens in its place, as many as were asked for: a dict of ids and logprobs, the likeliest first.
    #[getter]
    fn top<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let top = PyDict::new(py);
        for (token, logprob) in &self.0.top {
            top.set_item(token, logprob)?;
        }
        Ok(top)
    }

    fn __repr__(&self) -> String {
        let Logprobs { token, logprob, .. } = self.0;
        format!("TokenLogprob({token}, {logprob:.4})")
    }
}

/// `Model.generate`.
pub(crate) fn generate<'py>(
    py: Python<'py>,
    shared: &Shared,
    prompt: &Bound<'py, PyAny>,
    options: Option<&Bound<'py, PyDict>>,
) -> Result<Bound<'py, PyAny>> {
    let wish = Wish::of(py, shared, "generate", options, MAX_NEW_TOKENS)?;
    let (prompts, is_one) = Texts::of(prompt)?.all();
    wish.check_numbers(prompts.len())?;
    whole(py, shared, &wish, is_one, |model, _| {
        let prompts = prompts.into_iter();
        let prompts = prompts.map(|prompt| prompt.tokens(model, wish.bos).map(Prompt::from));
        prompts.collect()
    })
}

/// What comes of prompts, one result or a list. They are made when the call has begun, by the model and whether the
/// prompt of a number stands at the beginning of a text. Signals are looked at between forward passes.
pub(crate) fn whole<'py>(
    py: Python<'py>,
    shared: &Shared,
    wish: &Wish,
    is_one: bool,
    prompts: impl FnOnce(&engine::Model, &dyn Fn(usize) -> bool) -> engine::Result<Vec<Prompt>> + Send,
) -> Result<Bound<'py, PyAny>> {
    let mut call = shared.begin(py)?;
    let (model, buffers) = (&shared.model, &mut call.buffers);
    let states = wish.states.iter().flatten().map(|state| state.bind(py));
    let mut held: Vec<_> = states.map(borrow).collect::<Result<_>>()?;
    let given = held.iter_mut().map(|held| held.of_model(model));
    let mut given: Vec<_> = given.collect::<engine::Result<_>>()?;
    let begins: Vec<bool> = given
        .iter()
        .map(|state| is_begin(model, Some(state)))
        .collect();
    let empty_begins = is_begin(model, None);
    let begins = |number: usize| begins.get(number).copied().unwrap_or(empty_begins);
    let mut lanes = py.detach(|| Lanes::new(model, prompts(model, &begins)?, wish))?;
    while py.detach(|| lanes.step(buffers, &mut given))? {
        py.check_signals()?;
    }
    let has_text = model.has_tokenizer();
    let mut all = lanes
        .outcomes()
        .iter_mut()
        .map(|outcome| Generated::of(outcome, has_text, wish.logprobs.is_some()));
    match is_one {
        true => {
            let one = all.next().ok_or_else(|| Failed::argument("no prompt"))?;
            Ok(Bound::new(py, one)?.into_any())
        }
        false => Ok(PyList::new(
            py,
            all.map(|one| Py::new(py, one))
                .collect::<PyResult<Vec<_>>>()?,
        )?
        .into_any()),
    }
}

/// Whether a text begins at this state, or at the empty one. A tuned state is itself what comes in front of a text.
fn is_begin(model: &engine::Model, given: Option<&engine::State>) -> bool {
    let is_begin = |state: &engine::State| state.n_tokens() == 0 && state.initial_hash().is_none();
    match given {
        Some(state) => is_begin(state),
        None => is_begin(&model.new_state()),
    }
}

self_cell!(
    /// A text in the making beside the model whose tokenizer it borrows.
    struct UnderWay {
        owner: Arc<Shared>,
        #[not_covariant]
        dependent: Lanes,
    }
);

/// The pieces of a text as they come, whole characters only: an iterator of str. What is not asked for is not
/// computed.
#[pyclass(module = "rwkv_edge", frozen)]
pub(crate) struct Stream {
    making: Mutex<Making>,
    is_closed: AtomicBool,
    has_logprobs: bool,
}

/// Of one thread at a time.
struct Making {
    under_way: UnderWay,
    state: Option<Py<State>>,
    has_ended: bool,
}

/// `Model.stream`.
pub(crate) fn stream(
    py: Python<'_>,
    shared: &Arc<Shared>,
    prompt: &Bound<'_, PyAny>,
    options: Option<&Bound<'_, PyDict>>,
) -> Result<Stream> {
    let wish = Wish::of(py, shared, "stream", options, MAX_NEW_TOKENS)?;
    let Texts::One(prompt) = Texts::of(prompt)? else {
        return Err(Failed::argument(
            "a list of prompts, expected one: a str, or its token ids",
        ));
    };
    let bos = wish.bos;
    piecewise(py, shared, wish, |model, _| {
        prompt.tokens(model, bos).map(Prompt::from)
    })
}

/// What comes of a prompt, piece by piece; the prompt is made as for [`whole`].
pub(crate) fn piecewise(
    py: Python<'_>,
    shared: &Arc<Shared>,
    wish: Wish,
    prompt: impl FnOnce(&engine::Model, bool) -> engine::Result<Prompt> + Send,
) -> Result<Stream> {
    wish.check_numbers(1)?;
    let _call = shared.begin(py)?;
    let model = &shared.model;
    let state = wish
        .states
        .iter()
        .flatten()
        .next()
        .map(|state| state.bind(py));
    let mut held = state.map(borrow).transpose()?;
    let given = held.as_mut().map(|held| held.of_model(model)).transpose()?;
    let is_begin = is_begin(model, given.as_deref());
    drop(held);
    let prompt = py.detach(|| -> engine::Result<_> {
        // Pieces are of a text.
        model.tokenizer()?;
        prompt(model, is_begin)
    })?;
    let under_way = UnderWay::try_new(shared.clone(), |shared| {
        Lanes::new(&shared.model, vec![prompt], &wish)
    })?;
    Ok(Stream {
        making: Mutex::new(Making {
            under_way,
            state: wish.states.and_then(|mut states| states.pop()),
            has_ended: false,
        }),
        is_closed: AtomicBool::new(false),
        has_logprobs: wish.logprobs.is_some(),
    })
}

impl Stream {
    /// The text, for as long as a call works on it.
    fn making(&self) -> Result<MutexGuard<'_, Making>> {
        match self.making.try_lock() {
            Ok(making) => Ok(making),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                Err(Failed::argument("the stream is in use by another thread"))
            }
        }
    }

    /// A look at what there is so far.
    fn so_far<T>(&self, look: impl FnOnce(&Outcome) -> T) -> Result<T> {
        let mut making = self.making()?;
        let look = |_: &Arc<Shared>, lanes: &mut Lanes<'_>| look(&lanes.outcomes()[0]);
        Ok(making.under_way.with_dependent_mut(look))
    }
}

#[pymethods]
impl Stream {
    fn __iter__(stream: PyRef<'_, Self>) -> PyRef<'_, Self> {
        stream
    }

    fn __next__(&self, py: Python<'_>) -> Result<Option<String>> {
        let mut making = self.making()?;
        let Making {
            under_way,
            state,
            has_ended,
        } = &mut *making;
        let shared = under_way.borrow_owner().clone();
        let state = state.as_ref().map(|state| state.bind(py));
        let mut held = state.map(borrow).transpose()?;
        let given = held.iter_mut().map(|held| held.of_model(&shared.model));
        let mut given: Vec<_> = given.collect::<engine::Result<_>>()?;
        let mut call = shared.begin(py)?;
        while !*has_ended && !self.is_closed.load(Ordering::Relaxed) {
            // In front of a step, so that no piece is lost.
            py.check_signals()?;
            let (under_way, buffers) = (&mut *under_way, &mut call.buffers);
            let given = &mut given;
            let (goes_on, piece) = py.detach(|| {
                under_way.with_dependent_mut(|_, lanes| -> engine::Result<_> {
                    let goes_on = lanes.step(buffers, given)?;
                    let piece = std::mem::take(&mut lanes.outcomes()[0].text);
                    Ok((goes_on, piece))
                })
            })?;
            *has_ended = !goes_on;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// Ends the iteration: there are no more pieces, and a thread that waits for the next one waits no longer than for
    /// the forward pass under way.
    fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    /// Ids of the tokens so far.
    #[getter]
    fn tokens(&self) -> Result<Vec<u32>> {
        self.so_far(|outcome| outcome.tokens.clone())
    }

    /// With `logprobs` a TokenLogprob for each token so far, else None.
    #[getter]
    fn logprobs(&self) -> Result<Option<Vec<TokenLogprob>>> {
        let logprobs = self.so_far(|outcome| outcome.logprobs.clone())?;
        let logprobs = logprobs.into_iter().map(TokenLogprob).collect();
        Ok(Some(logprobs).filter(|_| self.has_logprobs))
    }

    /// What the model has thought so far before it answers, in a conversation; None where it has not.
    #[getter]
    fn thought(&self) -> Result<Option<String>> {
        let thought = self.so_far(|outcome| outcome.thought.clone())?;
        Ok(Some(thought).filter(|thought| !thought.is_empty()))
    }

    /// Why there is no more, as of `generate`; None as long as there may be.
    #[getter]
    fn finish_reason(&self) -> Result<Option<&'static str>> {
        self.so_far(|outcome| outcome.finish_reason)
    }
}
