//! The forward pass, as docs/PLUGINS.md has it.
//!
//! Rows are tokens, span after span. Matrix products run over all rows at once; the token shift looks one
//! row back, and WKV walks a span in order.

use rwkv_edge_plugin as abi;

use crate::names::Tensor;
use crate::options::Options;
use crate::stage::{Stage, State, Tensors};
use crate::{elements, elements_mut, wrong, Result};

/// One sequence's rows.
struct Rows<'a> {
    first: usize,
    n: usize,
    /// ROWS_*
    asked: u32,
    /// One a stage.
    states: Vec<&'a mut State>,
}

/// # Safety
/// The batch's pointers are NULL or to as many elements as its sizes say; nobody else uses its states.
pub(crate) unsafe fn forward(stages: &[&Stage], batch: &abi::Batch) -> Result {
    let (Some(first), Some(last)) = (stages.first(), stages.last()) else {
        return wrong("no stages");
    };
    // SAFETY: the caller's promise is the same.
    let mut spans = unsafe { spans(stages, batch) }?;
    let n_rows = batch.n_rows as usize;
    let (d, v) = (
        first.0.options.n_embd as usize,
        first.0.options.n_vocab as usize,
    );
    let asked: Vec<usize> = spans.iter().flat_map(asked_rows).collect();
    let needs_head = (abi::WRITE_HIDDEN..=abi::WRITE_TOKENS).contains(&batch.write);
    if batch.write > abi::WRITE_TOKENS || needs_head && !last.0.options.has_head {
        return wrong(format!(
            "write {} cannot be asked of the last stage",
            batch.write
        ));
    }

    let mut x = match first.0.options.has_embedding {
        true => {
            // SAFETY: the caller's promise is the same.
            let tokens = unsafe { elements(batch.tokens, n_rows, "tokens") }?;
            embed(first, tokens)?
        }
        // SAFETY: as above.
        false => unsafe { elements(batch.rows_in, n_rows * d, "rows_in") }?.to_vec(),
    };
    for (index, stage) in stages.iter().enumerate() {
        let tensors = stage.tensors()?;
        let o = &stage.0.options;
        for layer in o.first_layer..o.first_layer + o.layer_count {
            let pass = Pass {
                tensors,
                layer,
                options: o,
                stage: index,
            };
            pass.time_mixing(&mut x, &mut spans);
            pass.channel_mixing(&mut x, &mut spans);
        }
    }
    if batch.write == abi::WRITE_ROWS {
        // SAFETY: as above.
        unsafe { elements_mut(batch.numbers, n_rows * d, "numbers") }?.copy_from_slice(&x);
    }
    if !needs_head || asked.is_empty() {
        return Ok(());
    }
    let tensors = last.tensors()?;
    let rows: Vec<f32> = asked
        .iter()
        .flat_map(|&row| x[row * d..][..d].iter().copied())
        .collect();
    let norm = (
        tensors.vector(Tensor::NormOutWeight, abi::NO_LAYER),
        tensors.vector(Tensor::NormOutBias, abi::NO_LAYER),
    );
    let hidden = layer_norm(&rows, norm, last.0.options.norm_out_epsilon);
    if batch.write == abi::WRITE_HIDDEN {
        // SAFETY: as above.
        let out = unsafe { elements_mut(batch.numbers, hidden.len(), "numbers") }?;
        out.copy_from_slice(&hidden);
        return Ok(());
    }
    let logits = tensors
        .matrix(Tensor::Head, abi::NO_LAYER)
        .multiply(&hidden);
    let mut row = 0;
    for span in &mut spans {
        row += asked_rows(span).count();
        if span.asked != abi::ROWS_NONE {
            if let Some(state) = span.states.last_mut() {
                state.logits = logits[(row - 1) * v..row * v].to_vec();
            }
        }
    }
    if batch.write == abi::WRITE_LOGITS {
        // SAFETY: as above.
        let out = unsafe { elements_mut(batch.numbers, logits.len(), "numbers") }?;
        out.copy_from_slice(&logits);
    } else {
        // SAFETY: as above.
        let out = unsafe { elements_mut(batch.tokens_out, asked.len(), "tokens_out") }?;
        for (out, logits) in out.iter_mut().zip(logits.chunks_exact(v)) {
            *out = largest(logits);
        }
    }
    Ok(())
}

/// Checks spans and their states.
///
/// # Safety
/// As for [`forward`].
unsafe fn spans<'a>(stages: &[&Stage], batch: &abi::Batch) -> Result<Vec<Rows<'a>>> {
    // SAFETY: the caller's promise is the same.
    let given = unsafe { elements(batch.spans, batch.n_spans as usize, "spans") }?;
    let mut spans: Vec<Rows<'a>> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let mut n_rows = 0;
    for span in given {
        // SAFETY: as above.
        let pointers = unsafe { elements(span.states, stages.len(), "states") }?;
        let mut states = Vec::new();
        for (&pointer, stage) in pointers.iter().zip(stages) {
            let pointer = pointer.cast::<State>();
            if pointer.is_null() || !seen.insert(pointer) {
                return wrong("a state that is NULL, or in two spans");
            }
            // SAFETY: not NULL, made by `state_new`, and only here in this batch.
            let state = unsafe { &mut *pointer };
            if !std::sync::Arc::ptr_eq(&state.stage.0, &stage.0) {
                return wrong("a state of another stage");
            }
            states.push(state);
        }
        if span.n_rows == 0 || span.rows > abi::ROWS_ALL {
            return wrong("a span without rows, or with an unknown choice of them");
        }
        spans.push(Rows {
            first: n_rows,
            n: span.n_rows as usize,
            asked: span.rows,
            states,
        });
        n_rows += span.n_rows as usize;
    }
    let rows_max = stages.iter().map(|stage| stage.0.options.rows_max).min();
    if n_rows == 0 || n_rows != batch.n_rows as usize || batch.n_rows > rows_max.unwrap_or(0) {
        return wrong(format!(
            "{} rows, spans of {n_rows}, at most {rows_max:?}",
            batch.n_rows
        ));
    }
    for pair in stages.windows(2) {
        let (a, b) = (&pair[0].0.options, &pair[1].0.options);
        let neighbours = a.first_layer + a.layer_count == b.first_layer && !b.has_embedding;
        if !neighbours || (a.n_embd, a.n_vocab) != (b.n_embd, b.n_vocab) || a.has_head {
            return wrong("stages that do not follow each other");
        }
    }
    Ok(spans)
}

/// Rows of the batch that something is asked for.
fn asked_rows(span: &Rows<'_>) -> std::ops::Range<usize> {
    let end = span.first + span.n;
    match span.asked {
        abi::ROWS_NONE => end..end,
        abi::ROWS_LAST => end - 1..end,
        _ => span.first..end,
    }
}

/// The embedding's rows behind ln0.
fn embed(stage: &Stage, tokens: &[u32]) -> Result<Vec<f32>> {
    let (tensors, o) = (stage.tensors()?, &stage.0.options);
    let d = o.n_embd as usize;
    let mut rows = vec![0.0; tokens.len() * d];
    for (&token, row) in tokens.iter().zip(rows.chunks_exact_mut(d)) {
        if token >= o.n_vocab {
            return wrong(format!("token {token}, expected less than {}", o.n_vocab));
        }
        tensors
            .matrix(Tensor::Embedding, abi::NO_LAYER)
            .row(token as usize, row);
    }
    let norm = (
        tensors.vector(Tensor::NormInWeight, 0),
        tensors.vector(Tensor::NormInBias, 0),
    );
    Ok(layer_norm(&rows, norm, o.norm_epsilon))
}

fn layer_norm(x: &[f32], (weight, bias): (&[f32], &[f32]), epsilon: f32) -> Vec<f32> {
    let n = weight.len();
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(n) {
        let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        let square = |&x: &f32| (f64::from(x) - mean).powi(2);
        let variance = row.iter().map(square).sum::<f64>() / n as f64;
        let scale = 1.0 / (variance + f64::from(epsilon)).sqrt();
        let numbers = row.iter().zip(weight).zip(bias);
        out.extend(numbers.map(|((&x, w), b)| ((f64::from(x) - mean) * scale) as f32 * w + b));
    }
    out
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// The first of equal ones.
fn largest(logits: &[f32]) -> u32 {
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as u32
}

/// One layer's work on one batch.
struct Pass<'a> {
    tensors: &'a Tensors,
    /// Number in the model.
    layer: u32,
    options: &'a Options,
    /// Index in the chain.
    stage: usize,
}

impl Pass<'_> {
    fn vector(&self, tensor: Tensor) -> &[f32] {
        self.tensors.vector(tensor, self.layer)
    }

    /// The layer's part of a state: (ffn previous, att previous, numerator, denominator, exponent_max).
    fn part<'s>(&self, span: &'s mut Rows<'_>) -> [&'s mut [f32]; 5] {
        let (d, a) = (
            self.options.n_embd as usize,
            self.options.n_attention as usize,
        );
        let len = 2 * d + 3 * a;
        let at = (self.layer - self.options.first_layer) as usize * len;
        let layer = &mut span.states[self.stage].numbers[at..at + len];
        let (ffn, rest) = layer.split_at_mut(d);
        let (att, rest) = rest.split_at_mut(d);
        let (numerator, rest) = rest.split_at_mut(a);
        let (denominator, exponent_max) = rest.split_at_mut(a);
        [ffn, att, numerator, denominator, exponent_max]
    }

    /// Mixes each normalised row with the one before, which for a span's first row is the state's.
    /// `which` is the part of the state: 0 channel mixing, 1 time mixing.
    fn shift(&self, y: &[f32], mix: &[f32], spans: &mut [Rows<'_>], which: usize) -> Vec<f32> {
        let d = self.options.n_embd as usize;
        let mut out = Vec::with_capacity(y.len());
        for span in spans {
            for row in span.first..span.first + span.n {
                let previous: Vec<f32> = match row == span.first {
                    true => self.part(span)[which].to_vec(),
                    false => y[(row - 1) * d..row * d].to_vec(),
                };
                let present = &y[row * d..(row + 1) * d];
                let numbers = present.iter().zip(previous).zip(mix);
                out.extend(numbers.map(|((y, previous), mix)| y * mix + previous * (1.0 - mix)));
            }
        }
        out
    }

    /// Keeps each span's last row for the next batch.
    fn keep(&self, y: &[f32], spans: &mut [Rows<'_>], which: usize) {
        let d = self.options.n_embd as usize;
        for span in spans {
            let last = span.first + span.n - 1;
            self.part(span)[which].copy_from_slice(&y[last * d..(last + 1) * d]);
        }
    }

    fn norm(&self, x: &[f32], weight: Tensor, bias: Tensor) -> Vec<f32> {
        let norm = (self.vector(weight), self.vector(bias));
        layer_norm(x, norm, self.options.norm_epsilon)
    }

    fn time_mixing(&self, x: &mut [f32], spans: &mut [Rows<'_>]) {
        let a = self.options.n_attention as usize;
        let y = self.norm(x, Tensor::AttNormWeight, Tensor::AttNormBias);
        let mut product = |mix: Tensor, matrix: Tensor| {
            let input = self.shift(&y, self.vector(mix), spans, 1);
            self.tensors.matrix(matrix, self.layer).multiply(&input)
        };
        let key = product(Tensor::AttMixKey, Tensor::AttKey);
        let value = product(Tensor::AttMixValue, Tensor::AttValue);
        let receptance = product(Tensor::AttMixReceptance, Tensor::AttReceptance);
        self.keep(&y, spans, 1);

        let (decay_log, bonus) = (
            self.vector(Tensor::AttDecayLog),
            self.vector(Tensor::AttBonus),
        );
        let mut gated = vec![0.0; key.len()];
        for span in spans {
            for row in span.first..span.first + span.n {
                let [_, _, numerator, denominator, exponent_max] = self.part(span);
                for i in 0..a {
                    let at = row * a + i;
                    let (k, v) = (key[at], value[at]);
                    // With the present token, which has a weight of its own:
                    let top = exponent_max[i].max(bonus[i] + k);
                    let (old, new) = ((exponent_max[i] - top).exp(), (bonus[i] + k - top).exp());
                    let wkv = (old * numerator[i] + new * v) / (old * denominator[i] + new);
                    gated[at] = sigmoid(receptance[at]) * wkv;
                    // For the tokens that follow:
                    let decayed = exponent_max[i] + decay_log[i];
                    let top = decayed.max(k);
                    let (old, new) = ((decayed - top).exp(), (k - top).exp());
                    numerator[i] = old * numerator[i] + new * v;
                    denominator[i] = old * denominator[i] + new;
                    exponent_max[i] = top;
                }
            }
        }
        let delta = self
            .tensors
            .matrix(Tensor::AttOutput, self.layer)
            .multiply(&gated);
        x.iter_mut().zip(delta).for_each(|(x, delta)| *x += delta);
    }

    fn channel_mixing(&self, x: &mut [f32], spans: &mut [Rows<'_>]) {
        let y = self.norm(x, Tensor::FfnNormWeight, Tensor::FfnNormBias);
        let input = self.shift(&y, self.vector(Tensor::FfnMixKey), spans, 0);
        let mut hidden = self
            .tensors
            .matrix(Tensor::FfnKey, self.layer)
            .multiply(&input);
        hidden.iter_mut().for_each(|h| *h = h.max(0.0) * h.max(0.0));
        let input = self.shift(&y, self.vector(Tensor::FfnMixReceptance), spans, 0);
        let receptance = self
            .tensors
            .matrix(Tensor::FfnReceptance, self.layer)
            .multiply(&input);
        self.keep(&y, spans, 0);
        let value = self
            .tensors
            .matrix(Tensor::FfnValue, self.layer)
            .multiply_transposed(&hidden);
        for ((x, r), v) in x.iter_mut().zip(receptance).zip(value) {
            *x += sigmoid(r) * v;
        }
    }
}
