//! A model as Python sees it: opening, facts, forward passes, and its tokenizer.

use std::path::PathBuf;
use std::sync::Arc;

use engine::{Output, Span};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PySlice};

use crate::error::{Failed, Result};
use crate::generate::{self, Stream};
use crate::interrupt::interruptible;
use crate::keywords::Keywords;
use crate::opening::{quant_of, Opening};
use crate::passes::Shared;
use crate::state::{borrow, State};
use crate::texts::ids;
use crate::{array, chat, scoring};

/// An open model: immutable, and shared by all threads.
///
/// path: a Hugging Face directory, a .pth, .safetensors or GGUF file, a model file, or the name of a model on the
///     Hugging Face hub, such as 'RWKV/rwkv-4-169m-pile', which is downloaded where the cache does not have it; HF_HOME,
///     HF_TOKEN, HF_HUB_OFFLINE and HF_ENDPOINT mean what they mean elsewhere
/// quant: 'f32', 'f16', 'int8', 'q6', 'q5' or 'q4'; None as it is stored
/// device: 'cpu', 'auto', a device such as 'cuda', or a map of stages as the command's --device-map
/// threads: that work on one forward pass; None one for each physical core
/// max_memory: what the model and the states of texts under way may take, in bytes; states that the program holds, and
///     the Python around it, do not count
/// tokenizer: a file to use instead of the one in or beside the model
/// lora: an adapter that is merged while it is loaded, 'FILE', 'FILE:ALPHA' or (file, alpha), or a list of them
/// state: a file with a tuned initial state, with which every sequence begins
/// revision: of a name on the hub: a branch, tag or commit
/// progress: whether bars are shown on stderr; None where that is a terminal
///
/// Ctrl-C ends it while weights are converted or downloaded. The GIL is released then, and in every forward pass.
/// Behind a fork a model works in the child, on one thread, unless another thread used it at that moment; then it raises an
/// Error.
#[pyclass(module = "rwkv_edge", frozen)]
pub(crate) struct Model(pub(crate) Arc<Shared>);

/// The tokenizer of a model. Nothing is added to a text: no token in front, no space.
#[pyclass(module = "rwkv_edge", frozen)]
pub(crate) struct Tokenizer(Arc<Shared>);

#[pymethods]
impl Model {
    #[new]
    #[pyo3(signature = (path, quant=None, **options), text_signature = "(path, quant=None, *, device='cpu', threads=None, \
        max_memory=None, tokenizer=None, lora=None, state=None, revision=None, progress=None)")]
    fn open(
        py: Python<'_>,
        path: PathBuf,
        quant: Option<&str>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> Result<Self> {
        let mut keywords = Keywords::of("Model", options)?;
        let opening = Opening::read(path, quant_of(quant)?, &mut keywords)?;
        keywords.finish()?;
        let (model, path) = interruptible(py, || opening.open())?;
        Ok(Model(Arc::new(Shared::new(model, path))))
    }

    /// Tokens of the vocabulary: numbers of a row of logits.
    #[getter]
    fn n_vocab(&self) -> usize {
        self.0.model.n_vocab()
    }

    /// The token that ends a text.
    #[getter]
    fn end_of_text(&self) -> u32 {
        self.0.model.end_of_text()
    }

    /// Facts about the model, counted anew each time: what it is, its sizes, and what it takes, in bytes.
    #[getter]
    fn info<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyDict>> {
        let info = self.0.model.info();
        let facts = PyDict::new(py);
        facts.set_item("place", info.place)?;
        facts.set_item("architecture", info.architecture)?;
        facts.set_item("version", info.version)?;
        facts.set_item("n_layer", info.n_layer)?;
        facts.set_item("n_embd", info.n_embd)?;
        facts.set_item("n_attention", info.n_attention)?;
        facts.set_item("n_hidden", info.n_hidden)?;
        facts.set_item("head_size", info.head_size)?;
        facts.set_item("n_vocab", info.n_vocab)?;
        facts.set_item("context_length", info.context_length)?;
        facts.set_item("ends_of_text", info.ends_of_text)?;
        facts.set_item("n_params", info.n_params)?;
        facts.set_item("quant", info.quant.name())?;
        facts.set_item("bits_per_weight", info.bits_per_weight)?;
        facts.set_item("weight_bytes", info.weight_bytes)?;
        facts.set_item("mapped_bytes", info.mapped_bytes)?;
        facts.set_item("paged_bytes", info.paged_bytes)?;
        facts.set_item("state_bytes", info.state_bytes)?;
        facts.set_item("state_parts", info.state_parts)?;
        facts.set_item("kernels", info.kernels)?;
        facts.set_item("threads", info.threads)?;
        facts.set_item("fingerprint", info.fingerprint)?;
        facts.set_item("tokenizer", info.tokenizer)?;
        facts.set_item("correction", info.correction)?;
        Ok(facts)
    }

    /// The model's tokenizer, which is read when it is first asked for; an Error of kind 'tokenizer' where there is
    /// none.
    #[getter]
    fn tokenizer(&self, py: Python<'_>) -> Result<Tokenizer> {
        self.0.work(py, |model, _| model.tokenizer().map(drop))?;
        Ok(Tokenizer(self.0.clone()))
    }

    /// The empty state: State(model).
    fn new_state(&self, py: Python<'_>) -> Result<State> {
        self.0.work(py, |model, _| State::new(model))
    }

    /// Feeds token ids to a state, the empty one if none is given, and gives (logits, state): the same state, moved,
    /// and what it expects next, float32 (n_vocab). With `all` there is a row of logits behind each token, (tokens,
    /// n_vocab).
    ///
    /// Token ids are any sequence of integers, also a numpy array. Where they are wrong, or the state is of another
    /// model, nothing has changed.
    #[pyo3(signature = (tokens, state=None, all=false))]
    fn forward<'py>(
        &self,
        py: Python<'py>,
        tokens: &Bound<'py, PyAny>,
        state: Option<Bound<'py, State>>,
        all: bool,
    ) -> Result<(Bound<'py, PyAny>, Bound<'py, State>)> {
        let tokens = ids(tokens)?;
        let state = self.state_or_empty(py, state)?;
        let (n_vocab, n) = (self.n_vocab(), tokens.len());
        let (shape, output) = match all {
            true => (&[n, n_vocab][..], Output::All),
            false => (&[n_vocab][..], Output::Last),
        };
        let mut held = borrow(&state)?;
        let logits = array::array(py, shape, |logits| {
            let moved = held.of_model(&self.0.model)?;
            self.0.work(py, |model, buffers| {
                let workspace = buffers.of_rows(model, n)?;
                model.forward(workspace, &mut [Span::new(moved, &tokens, output)], logits)
            })
        })?;
        drop(held);
        Ok((logits, state))
    }

    /// `forward` for many sequences in one pass, in which the weights are read once: lists of token ids, and a state
    /// for each, the empty one where None stands. Gives (logits, states): float32 (sequences, n_vocab), or with
    /// `all` a list of arrays, one a sequence, (its tokens, n_vocab).
    #[pyo3(signature = (tokens, states=None, all=false))]
    fn forward_batch<'py>(
        &self,
        py: Python<'py>,
        tokens: Vec<Bound<'py, PyAny>>,
        states: Option<Vec<Option<Bound<'py, State>>>>,
        all: bool,
    ) -> Result<(Bound<'py, PyAny>, Vec<Bound<'py, State>>)> {
        let tokens: Vec<_> = tokens.iter().map(ids).collect::<Result<_>>()?;
        let states = states.unwrap_or_else(|| tokens.iter().map(|_| None).collect());
        if states.len() != tokens.len() {
            let (found, expected) = (states.len(), tokens.len());
            return Err(Failed::argument(format!(
                "{found} states for {expected} sequences"
            )));
        }
        let given = states.into_iter();
        let states: Vec<_> = given
            .map(|state| self.state_or_empty(py, state))
            .collect::<Result<_>>()?;
        let n_tokens = tokens.iter().map(Vec::len).sum();
        let (n_rows, output) = match all {
            true => (n_tokens, Output::All),
            false => (tokens.len(), Output::Last),
        };
        let mut held: Vec<_> = states.iter().map(borrow).collect::<Result<_>>()?;
        let logits = array::array(py, &[n_rows, self.n_vocab()], |logits| {
            let moved = held.iter_mut().map(|held| held.of_model(&self.0.model));
            let moved: Vec<_> = moved.collect::<engine::Result<_>>()?;
            self.0.work(py, |model, buffers| {
                let pairs = moved.into_iter().zip(&tokens);
                let mut spans: Vec<_> = pairs
                    .map(|(state, tokens)| Span::new(state, tokens, output))
                    .collect();
                model.forward(buffers.of_rows(model, n_tokens)?, &mut spans, logits)
            })
        })?;
        drop(held);
        match all {
            true => Ok((split(&logits, &tokens)?.into_any(), states)),
            false => Ok((logits, states)),
        }
    }

    /// Continues a prompt, a str or its token ids, and gives a Result; of a list of prompts a list of them, whose
    /// texts move together, one forward pass a token. Ctrl-C ends it between two passes. Defaults are those of the
    /// command `rwkv-edge generate`: the likeliest token each time.
    ///
    /// max_new_tokens: new tokens at most
    /// stop: a text or texts before which the new text ends
    /// ignore_eos: go on behind the token that ends a text
    /// bos: put token 0 in front of the prompt
    /// state: a State to go on from, which is moved behind all new tokens; for a list of prompts a list of them
    ///
    /// logprobs: tell the log probability of each token and so many alternatives, in the result's `logprobs`; True is 1,
    ///     False is off, and 0 tells no alternatives
    /// preset: settings for a purpose, which arguments beside it replace: 'pip' (those of the rwkv package), 'chat',
    ///     'creative', 'precise' or 'maths'
    ///
    /// temperature: variety; 0: always the likeliest token
    /// temperature_last: choose who may be drawn before the temperature, as the rwkv package does
    /// top_p: draw from the likeliest tokens, together so probable; 1: off
    /// top_k: draw from so many of the likeliest tokens; 0: off
    /// min_p: draw from those that have this share of the likeliest one's probability; 0: off
    /// typical_p: draw from the most typical tokens, together so probable; 1: off
    /// mirostat_tau: how surprising tokens are on average, in bits; 0: off
    /// mirostat_eta: how fast the limit of mirostat follows
    /// presence_penalty: lowers the logits of tokens that were generated before
    /// frequency_penalty: lowers them once for each time that they were
    /// penalty_decay: with every token the counts of that are multiplied by it; 1: off
    /// repetition_penalty: divides positive and multiplies negative logits of such tokens; 1: off
    /// banned_tokens: ids of tokens that are never chosen
    /// uncounted_tokens: ids of tokens whose frequency does not matter
    /// seed: of the draws, another one each time if none is given; prompt n of a list has seed + n;
    ///     or a list, a seed for each prompt
    #[pyo3(signature = (prompt, **options), text_signature = "($self, prompt, *, max_new_tokens=128, stop=None, \
        ignore_eos=False, bos=False, state=None, temperature=0.0, temperature_last=False, top_p=1.0, top_k=0, min_p=0.0, \
        typical_p=1.0, mirostat_tau=0.0, mirostat_eta=0.1, presence_penalty=0.0, frequency_penalty=0.0, \
        penalty_decay=1.0, repetition_penalty=1.0, banned_tokens=(), uncounted_tokens=(), seed=None, preset=None, \
        logprobs=None)")]
    fn generate<'py>(
        &self,
        py: Python<'py>,
        prompt: &Bound<'py, PyAny>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> Result<Bound<'py, PyAny>> {
        generate::generate(py, &self.0, prompt, options)
    }

    /// `generate` for one prompt, piece by piece: an iterator of str, which computes what it is asked for. A `state`
    /// is moved with each piece.
    #[pyo3(signature = (prompt, **options), text_signature = "($self, prompt, *, max_new_tokens=128, stop=None, \
        ignore_eos=False, bos=False, state=None, temperature=0.0, temperature_last=False, top_p=1.0, top_k=0, min_p=0.0, \
        typical_p=1.0, mirostat_tau=0.0, mirostat_eta=0.1, presence_penalty=0.0, frequency_penalty=0.0, \
        penalty_decay=1.0, repetition_penalty=1.0, banned_tokens=(), uncounted_tokens=(), seed=None, preset=None, \
        logprobs=None)")]
    fn stream(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> Result<Stream> {
        generate::stream(py, &self.0, prompt, options)
    }

    /// The answer to a conversation: a list of messages, each a dict with `role` ('system', 'user' or 'assistant') and
    /// `content` (str), of which the last is answered. Gives a Result; of a list of such lists a list of them, whose
    /// answers move together. Keywords are those of `generate`, and beside them:
    ///
    /// think: whether the model thinks first, as RWKV-7 G1 models have learnt: 'on', 'short', 'long', 'fake', or 'off';
    ///     its thought is the result's `thought`, and no part of `text`
    /// template: how a conversation is written down: 'raven', 'world', 'g1', 'qa', 'instruct', 'plain', two names such
    ///     as 'Ann/Robot', or 'model', the template that came with the model; None that of the model's family, by its
    ///     vocabulary, as with the command `rwkv-edge chat`
    ///
    /// The answer ends where a turn does in the template, too (finish_reason 'stop'). With a `state` the messages are
    /// those that it has not read: the state goes on behind what was said before.
    #[pyo3(signature = (messages, *, think=None, template=None, **options), text_signature = "($self, messages, *, \
        think='off', template=None, max_new_tokens=512, stop=None, \
        ignore_eos=False, bos=False, state=None, temperature=0.0, temperature_last=False, top_p=1.0, top_k=0, min_p=0.0, \
        typical_p=1.0, mirostat_tau=0.0, mirostat_eta=0.1, presence_penalty=0.0, frequency_penalty=0.0, \
        penalty_decay=1.0, repetition_penalty=1.0, banned_tokens=(), uncounted_tokens=(), seed=None, preset=None, \
        logprobs=None)")]
    fn chat<'py>(
        &self,
        py: Python<'py>,
        messages: &Bound<'py, PyAny>,
        think: Option<&str>,
        template: Option<&str>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> Result<Bound<'py, PyAny>> {
        chat::chat(py, &self.0, messages, think, template, options)
    }

    /// `chat` for one conversation, piece by piece: an iterator of str, as `stream` gives it. A thought before the answer
    /// is no piece of it; `thought` of the iterator is what there is of it so far.
    #[pyo3(signature = (messages, *, think=None, template=None, **options), text_signature = "($self, messages, *, \
        think='off', template=None, max_new_tokens=512, stop=None, \
        ignore_eos=False, bos=False, state=None, temperature=0.0, temperature_last=False, top_p=1.0, top_k=0, min_p=0.0, \
        typical_p=1.0, mirostat_tau=0.0, mirostat_eta=0.1, presence_penalty=0.0, frequency_penalty=0.0, \
        penalty_decay=1.0, repetition_penalty=1.0, banned_tokens=(), uncounted_tokens=(), seed=None, preset=None, \
        logprobs=None)")]
    fn chat_stream(
        &self,
        py: Python<'_>,
        messages: &Bound<'_, PyAny>,
        think: Option<&str>,
        template: Option<&str>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> Result<Stream> {
        chat::stream(py, &self.0, messages, think, template, options)
    }

    /// `stream` for programs with asyncio: an asynchronous iterator of str, whose forward passes run in the event loop's
    /// threads. It ends with its task, behind the forward pass under way.
    #[pyo3(signature = (prompt, **options), text_signature = "($self, prompt, *, max_new_tokens=128, stop=None, \
        ignore_eos=False, bos=False, state=None, temperature=0.0, temperature_last=False, top_p=1.0, top_k=0, min_p=0.0, \
        typical_p=1.0, mirostat_tau=0.0, mirostat_eta=0.1, presence_penalty=0.0, frequency_penalty=0.0, \
        penalty_decay=1.0, repetition_penalty=1.0, banned_tokens=(), uncounted_tokens=(), seed=None, preset=None, \
        logprobs=None)")]
    fn astream<'py>(
        slf: &Bound<'py, Self>,
        prompt: &Bound<'py, PyAny>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        asynchronous(slf, "stream", prompt, options)
    }

    /// `chat_stream` for programs with asyncio, as `astream`.
    #[pyo3(signature = (messages, **options), text_signature = "($self, messages, *, \
        think='off', template=None, max_new_tokens=512, stop=None, \
        ignore_eos=False, bos=False, state=None, temperature=0.0, temperature_last=False, top_p=1.0, top_k=0, min_p=0.0, \
        typical_p=1.0, mirostat_tau=0.0, mirostat_eta=0.1, presence_penalty=0.0, frequency_penalty=0.0, \
        penalty_decay=1.0, repetition_penalty=1.0, banned_tokens=(), uncounted_tokens=(), seed=None, preset=None, \
        logprobs=None)")]
    fn chat_astream<'py>(
        slf: &Bound<'py, Self>,
        messages: &Bound<'py, PyAny>,
        options: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        asynchronous(slf, "chat_stream", messages, options)
    }

    /// A vector for each text: float32 (texts, width), or (width) for one str. `pooling` says what becomes it:
    /// 'hidden-mean' or 'hidden-last', the mean over the tokens or the last one of what the head reads (width
    /// n_embd), or 'state:N', what the time mixing of layer N remembers. Vectors have length 1 unless `normalize` is
    /// False; those of texts without tokens are zeros. A text may also be a list of token ids.
    #[pyo3(signature = (texts, pooling="hidden-mean", normalize=true))]
    fn embed<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        pooling: &str,
        normalize: bool,
    ) -> Result<Bound<'py, PyAny>> {
        scoring::embed(py, &self.0, texts, pooling, normalize)
    }

    /// The log likelihood of each text in nats, the sum of log p(token | those before it) over all tokens but the
    /// first, which nothing predicts; with `bos`, token 0 in front predicts that one, too. float64 (texts), or a
    /// float for one str. With `per_token` the terms of the sum: a list of arrays, float64 (tokens - 1), or one
    /// array for one str. A text may also be a list of token ids. Ctrl-C ends it between two forward passes.
    #[pyo3(signature = (texts, bos=false, per_token=false))]
    fn score<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        bos: bool,
        per_token: bool,
    ) -> Result<Bound<'py, PyAny>> {
        scoring::score(py, &self.0, texts, bos, per_token)
    }

    fn __repr__(&self) -> String {
        let info = self.0.model.info();
        format!(
            "Model({:?}, {}, {})",
            info.place, info.architecture, info.quant
        )
    }
}

impl Model {
    fn state_or_empty<'py>(
        &self,
        py: Python<'py>,
        state: Option<Bound<'py, State>>,
    ) -> Result<Bound<'py, State>> {
        match state {
            Some(state) => Ok(state),
            None => Ok(Bound::new(py, self.new_state(py)?)?),
        }
    }
}

/// The pieces of what a method gives, for an event loop.
fn asynchronous<'py>(
    model: &Bound<'py, Model>,
    method: &str,
    argument: &Bound<'py, PyAny>,
    options: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = model.py();
    let pieces = py.import("rwkv_edge._asynchronous")?.getattr("pieces")?;
    pieces.call((model.getattr(method)?, argument), options)
}

/// Views of the rows of each sequence.
fn split<'py>(rows: &Bound<'py, PyAny>, tokens: &[Vec<u32>]) -> Result<Bound<'py, PyList>> {
    let views = PyList::empty(rows.py());
    let mut start = 0;
    for tokens in tokens {
        let end = start + tokens.len() as isize;
        views.append(rows.get_item(PySlice::new(rows.py(), start, end, 1))?)?;
        start = end;
    }
    Ok(views)
}

#[pymethods]
impl Tokenizer {
    /// The highest id plus one.
    #[getter]
    fn n_tokens(&self) -> Result<usize> {
        Ok(self.0.model.tokenizer()?.n_tokens())
    }

    /// Token ids of a text.
    fn encode(&self, py: Python<'_>, text: &str) -> Result<Vec<u32>> {
        self.0.work(py, |model, _| model.tokenizer()?.encode(text))
    }

    /// The text of token ids: without special tokens, and with U+FFFD for bytes that are no whole character.
    fn decode(&self, py: Python<'_>, tokens: &Bound<'_, PyAny>) -> Result<String> {
        let tokens = ids(tokens)?;
        self.0
            .work(py, |model, _| model.tokenizer()?.decode(&tokens))
    }
}
