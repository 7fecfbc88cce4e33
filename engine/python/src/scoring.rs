//! Many texts at once: vectors and likelihoods.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use engine::{ErrorKind, Tokens};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyList};
use rwkv_edge_cli::parts;
use rwkv_edge_scoring::{
    feed, measure, negative_log_likelihood, Embedder, Pooling, Sequence, Windows,
};

use crate::array;
use crate::error::{Failed, Result};
use crate::interrupt::{interruptible, look};
use crate::keywords::{read, Keywords};
use crate::model::Model;
use crate::opening::{quant_of, Opening};
use crate::passes::Shared;
use crate::texts::{check_ids, Text, Texts};

/// `Model.embed`.
pub(crate) fn embed<'py>(
    py: Python<'py>,
    shared: &Shared,
    texts: &Bound<'py, PyAny>,
    pooling: &str,
    normalize: bool,
) -> Result<Bound<'py, PyAny>> {
    let (texts, is_one) = Texts::of(texts)?.all();
    let pooling: Pooling = pooling.parse()?;
    // Held to the end: what follows is one call, in pieces.
    let _call = shared.begin(py)?;
    let model = &shared.model;
    // Those of words come from the tokenizer, batch by batch.
    let given = texts.iter().map(|text| match text {
        Text::Ids(ids) => &ids[..],
        Text::Words(_) => &[],
    });
    check_ids(model, "text", given)?;
    let mut embedder = Embedder::new(model, pooling)?.normalize(normalize);
    let width = embedder.width();
    let shape = match is_one {
        true => &[width][..],
        false => &[texts.len(), width][..],
    };
    array::array(py, shape, |vectors: &mut [f32]| {
        let mut rows = vectors.chunks_exact_mut(width);
        let mut texts = VecDeque::from(texts);
        while !texts.is_empty() || !embedder.is_empty() {
            let (embedder, texts) = (&mut embedder, &mut texts);
            let done = py.detach(|| embed_some(model, embedder, texts))?;
            for (vector, row) in done.iter().zip(&mut rows) {
                row.copy_from_slice(vector);
            }
            py.check_signals()?;
        }
        Ok(())
    })
}

/// `Model.score`.
pub(crate) fn score<'py>(
    py: Python<'py>,
    shared: &Shared,
    texts: &Bound<'py, PyAny>,
    bos: bool,
    per_token: bool,
) -> Result<Bound<'py, PyAny>> {
    let (texts, is_one) = Texts::of(texts)?.all();
    let call = shared.begin(py)?;
    let model = &shared.model;
    let scores = interruptible(py, || score_all(model, texts, bos))?;
    drop(call);
    // The standard library's sum of nothing is -0.
    let sum = |score: &Vec<f64>| score.iter().fold(0.0, |sum, term| sum + term);
    let each = |score: &Vec<f64>| array::copied(py, &[score.len()], score);
    match (&scores[..], is_one, per_token) {
        ([score], true, false) => Ok(PyFloat::new(py, sum(score)).into_any()),
        ([score], true, true) => each(score),
        (scores, _, false) => {
            let sums: Vec<f64> = scores.iter().map(sum).collect();
            array::copied(py, &[sums.len()], &sums)
        }
        (scores, _, true) => {
            let arrays = scores.iter().map(each).collect::<Result<Vec<_>>>()?;
            Ok(PyList::new(py, arrays)?.into_any())
        }
    }
}

/// Tokenizes as many texts as fill a batch, and gives the vectors that are done behind it.
fn embed_some(
    model: &engine::Model,
    embedder: &mut Embedder,
    texts: &mut VecDeque<Text>,
) -> engine::Result<Vec<Vec<f32>>> {
    while !embedder.has_batch() {
        let Some(text) = texts.pop_front() else { break };
        embedder.push(Tokens::from(text.tokens(model, false)?));
    }
    embedder.run_batch()?;
    Ok(std::iter::from_fn(|| embedder.pop()).collect())
}

/// Log likelihoods of the tokens of each text but its first.
fn score_all(model: &engine::Model, texts: Vec<Text>, bos: bool) -> engine::Result<Vec<Vec<f64>>> {
    let tokens = texts.into_iter().map(|text| text.tokens(model, bos));
    let tokens: Vec<Vec<u32>> = tokens.collect::<engine::Result<_>>()?;
    check_ids(model, "text", tokens.iter().map(Vec::as_slice))?;
    let mut scores: Vec<Vec<f64>> = tokens.iter().map(|_| Vec::new()).collect();
    let numbers: Vec<usize> = (0..tokens.len()).filter(|&n| tokens[n].len() > 1).collect();
    let sequences = numbers.iter();
    let sequences = sequences.filter_map(|&number| Sequence::new(&tokens[number], 1));
    feed(
        std::slice::from_ref(model),
        sequences,
        |predictions| {
            let judged = predictions.judge(|target, logits, _| {
                (
                    target.sequence,
                    -negative_log_likelihood(logits, target.token),
                )
            });
            for (sequence, log_likelihood) in judged {
                scores[numbers[sequence]].push(log_likelihood);
            }
        },
        |_n_fed| look(),
    )?;
    Ok(scores)
}

/// How well a model predicts a text: perplexity is exp of the mean negative log likelihood, in nats, of every token after
/// the first, each predicted from all before it. `model` is a Model, or what one is opened with: a path or a name and the
/// arguments of Model. `text` is a str or token ids; nothing is added to it.
///
/// bos: token 0 in front, which predicts the first token, too
/// window: cut the text into windows of so many tokens, each from the empty state; of each only those tokens count that
///     no window before it had
/// stride: tokens to the next window; None half a window
/// limit: only the first so many tokens
/// progress: whether a bar is shown on stderr; None where that is a terminal
///
/// Gives a dict: perplexity, perplexity_stderr (its standard error), loss (nats a token), tokens, predicted (tokens that
/// were) and quant.
#[pyfunction]
#[pyo3(signature = (model, text, quant=None, **options), text_signature = "(model, text, quant=None, *, bos=False, \
    window=None, stride=None, limit=None, device=None, threads=None, max_memory=None, tokenizer=None, lora=None, \
    state=None, revision=None, progress=None)")]
pub(crate) fn perplexity<'py>(
    py: Python<'py>,
    model: &Bound<'py, PyAny>,
    text: &Bound<'py, PyAny>,
    quant: Option<&str>,
    options: Option<&Bound<'py, PyDict>>,
) -> Result<Bound<'py, PyDict>> {
    let mut keywords = Keywords::of("perplexity", options)?;
    let bos: Option<bool> = keywords.take("bos")?;
    let window: Option<usize> = keywords.take("window")?;
    let stride: Option<usize> = keywords.take("stride")?;
    let limit: Option<usize> = keywords.take("limit")?;
    let windows = windows(window, stride)?;
    let text = Text::of(text)?;
    let (shared, shows) = match (model.cast::<Model>(), quant) {
        (Ok(model), None) => (model.get().0.clone(), keywords.take_progress()?),
        (Ok(_), Some(_)) => {
            let text = "quant: of a model that is open, expected a path or a name";
            return Err(Failed::argument(text));
        }
        (Err(_), quant) => {
            let name: PathBuf = read("model", model)?;
            let opening = Opening::read(name, quant_of(quant)?, &mut keywords)?;
            let shows = opening.shows;
            let (model, path) = interruptible(py, || opening.open())?;
            (Arc::new(Shared::new(model, path)), shows)
        }
    };
    keywords.finish()?;
    let call = shared.begin(py)?;
    let model = &shared.model;
    let (outcome, n_tokens) = interruptible(py, || {
        parts::show(shows);
        let mut tokens = text.tokens(model, bos.unwrap_or(false))?;
        tokens.truncate(limit.unwrap_or(usize::MAX));
        if tokens.len() < 2 {
            let text = format!("{} tokens, expected at least 2", tokens.len());
            return Err(engine::Error::new(ErrorKind::Argument, text));
        }
        check_ids(model, "text", std::iter::once(&tokens[..]))?;
        let sequences = windows.sequences(&tokens);
        let n_fed = sequences.clone().map(|one| one.n_fed() as u64).sum();
        let mut bar = parts::Progress::after_a_second("perplexity");
        let models = std::slice::from_ref(model);
        let mut measured = measure(models, sequences, |n| bar.show(n, n_fed))?;
        let none = || engine::Error::new(ErrorKind::Argument, "nothing was measured");
        let outcome = measured.outcomes.pop().ok_or_else(none)?;
        Ok((outcome, tokens.len()))
    })?;
    drop(call);
    let likelihood = outcome.likelihood;
    let facts = PyDict::new(py);
    facts.set_item("perplexity", likelihood.perplexity())?;
    facts.set_item("perplexity_stderr", likelihood.perplexity_stderr())?;
    facts.set_item("loss", likelihood.loss())?;
    facts.set_item("tokens", n_tokens)?;
    facts.set_item("predicted", likelihood.n())?;
    facts.set_item("quant", shared.model.info().quant.name())?;
    Ok(facts)
}

/// How the text is cut.
fn windows(window: Option<usize>, stride: Option<usize>) -> Result<Windows> {
    match (window, stride) {
        (None, None) => Ok(Windows::WHOLE),
        (None, Some(_)) => Err(Failed::argument("stride: without a window there is none")),
        (Some(window), stride) => {
            let stride = stride.unwrap_or(window / 2);
            Windows::of(window, stride).ok_or_else(|| {
                Failed::argument(format!(
                    "window {window}, stride {stride}: expected a window of at least 2 tokens and a stride of 1 to a \
                     window"
                ))
            })
        }
    }
}
