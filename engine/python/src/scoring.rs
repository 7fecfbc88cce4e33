//! Many texts at once: vectors and likelihoods.

use std::collections::VecDeque;

use engine::Tokens;
use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyList};
use rwkv_edge_scoring::{feed, negative_log_likelihood, Embedder, Pooling, Sequence};

use crate::array;
use crate::error::{Failed, Result};
use crate::passes::Shared;
use crate::texts::{Text, Texts};

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
    let mut signal = Ok(());
    let call = shared.begin(py)?;
    let model = &shared.model;
    let scores = py.detach(|| score_all(model, texts, bos, &mut signal))?;
    drop(call);
    signal?;
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

/// Log likelihoods of the tokens of each text but its first. Where a signal comes no more texts are begun.
fn score_all(
    model: &engine::Model,
    texts: Vec<Text>,
    bos: bool,
    signal: &mut PyResult<()>,
) -> Result<Vec<Vec<f64>>> {
    let tokens = texts.into_iter().map(|text| text.tokens(model, bos));
    let tokens: Vec<_> = tokens.collect::<engine::Result<_>>()?;
    let mut scores: Vec<Vec<f64>> = tokens.iter().map(|_| Vec::new()).collect();
    let stopped = std::cell::Cell::new(false);
    let numbers: Vec<usize> = (0..tokens.len()).filter(|&n| tokens[n].len() > 1).collect();
    let sequences = numbers
        .iter()
        .take_while(|_| !stopped.get())
        .filter_map(|&number| Sequence::new(&tokens[number], 1));
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
            if !stopped.get() {
                *signal = Python::attach(|py| py.check_signals());
                stopped.set(signal.is_err());
            }
        },
        |_n_fed| (),
    )
    .map_err(Failed::Engine)?;
    Ok(scores)
}
