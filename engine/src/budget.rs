//! How much memory a model and its sessions take, told before any of it is taken.
//!
//! Used by `model.rs` to refuse a model that does not fit the caller's limit, and by `session.rs`, which
//! counts every session against the same limit. Only sizes and no files here. Text buffers and the
//! tokenizer, which come with the first text, are not counted.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::matrix::Quant;
use crate::model::Model;
use crate::sampler::Sampler;
use crate::v4::{Part, Sizes};

/// Bytes that a model and its sessions may keep in memory, and how many they do.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// 0: no limit.
    max: u64,
    used: AtomicU64,
}

/// Bytes of the budget that one session holds; dropped with it.
#[derive(Debug)]
pub(crate) struct Reservation {
    model: Model,
    bytes: u64,
}

impl Budget {
    /// A budget from which the model has taken its weights.
    pub(crate) fn new(max: u64, weights: u64) -> Self {
        let used = AtomicU64::new(weights);
        Budget { max, used }
    }

    /// Takes memory for a session.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory), with the numbers, when it is not within the limit.
    pub(crate) fn take(&self, bytes: u64) -> Result<()> {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let total = before.saturating_add(bytes);
        if self.max == 0 || total <= self.max {
            return Ok(());
        }
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        Err(Error::memory(format!(
            "another session of {bytes} bytes makes {total} bytes, expected at most {} (the memory limit)",
            self.max
        )))
    }
}

impl Reservation {
    pub(crate) fn new(model: &Model, bytes: u64) -> Result<Self> {
        model.budget().take(bytes)?;
        let model = model.clone();
        Ok(Reservation { model, bytes })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let used = &self.model.budget().used;
        used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Refuses a model that does not fit the limit together with one session.
///
/// # Errors
/// [`ErrorKind::Memory`](crate::ErrorKind::Memory), with the numbers.
pub(crate) fn check(max: u64, weights: u64, session: u64) -> Result<()> {
    let needed = weights.saturating_add(session);
    if max == 0 || needed <= max {
        return Ok(());
    }
    Err(Error::memory(format!(
        "needs {needed} bytes of memory (weights {weights}, one session {session}), expected at most {max} \
         (the memory limit)"
    )))
}

/// Bytes of the weights of a part of a network of these sizes. Those that are used where the caller has them, such
/// as in flash, take none, but vectors and scales are kept in memory always.
pub(crate) fn weight_bytes(
    sizes: &Sizes,
    part: &Part,
    quant: Quant,
    in_callers_memory: bool,
) -> u64 {
    let [v, d, a, h] = [
        sizes.n_vocab,
        sizes.n_embd,
        sizes.n_attention,
        sizes.n_hidden,
    ]
    .map(|n| n as u64);
    let values = match (in_callers_memory, quant) {
        (true, _) => 0,
        (false, Quant::F32) => 4,
        (false, Quant::F16) => 2,
        (false, Quant::Int8) => 1,
    };
    // A row has an f16 scale, a column an 8-bit exponent, and both are kept as f32 too.
    let (row, column) = match quant {
        Quant::Int8 => (2 + 4, 1 + 4),
        Quant::F32 | Quant::F16 => (0, 0),
    };
    let matrix = |rows: u64, cols: u64| {
        let numbers = rows.saturating_mul(cols).saturating_mul(values);
        numbers.saturating_add(rows * row + cols * column)
    };
    let matrices = 3 * matrix(a, d) + matrix(d, a) + 2 * matrix(h, d) + matrix(d, d);
    let vectors = 4 * (9 * d + 2 * a);
    let layer = matrices.saturating_add(vectors);
    let layers = (part.layers.len() as u64).saturating_mul(layer);
    let tables = u64::from(part.has_embedding) + u64::from(part.has_head);
    layers.saturating_add(tables * (matrix(v, d) + 4 * 2 * d))
}

/// Bytes of the buffers of a forward pass of so many rows: at least what `Workspace::size_bytes` will be.
pub(crate) fn workspace_bytes(sizes: &Sizes, n_rows: usize, n_threads: usize) -> u64 {
    let (d, a, h) = (sizes.n_embd, sizes.n_attention, sizes.n_hidden);
    let widest = d.max(a);
    // f32 and i16 of an activation, and the scale of the row.
    let activations = |n: usize| 6 * (n + 1) + 4;
    let inputs = activations(widest) + 2 * activations(d) + activations(h);
    let row = inputs + 4 * (2 * d + 3 * widest + a + h) + 40;
    // As in product.rs: chunks of 256 inputs, blocks of 128 outputs, panels of 16.
    let partial = n_rows.min(7) * h.div_ceil(256) * d * 4;
    let gathered = (n_rows.min(7) + 1) * d * 4;
    let scratch = n_rows * 128 * 8 + 256 * 16 * 6 + 256 * 10 + gathered;
    // The room that aligning each of the 30 or so buffers takes.
    let slack = 20 * 128 + n_threads * 8 * 128;
    (n_rows * row + partial + n_threads * scratch + slack) as u64
}

/// Bytes of a session that allocates nothing later: state, two rows of logits, sampler, and buffers for
/// one token and for a piece of a prompt; `None` where the CPU has no layers and so needs no buffers.
pub(crate) fn session_bytes(sizes: &Sizes, prefill_rows: Option<usize>, n_threads: usize) -> u64 {
    let state = sizes.n_layer * (2 * sizes.n_embd + 3 * sizes.n_attention) * 4;
    let text = 2 * 4 * sizes.n_vocab + Sampler::reserved_bytes(sizes.n_vocab);
    let workspaces = prefill_rows.map_or(0, |rows| {
        workspace_bytes(sizes, 1, n_threads) + workspace_bytes(sizes, rows, n_threads)
    });
    (state + text) as u64 + workspaces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Options;
    use crate::session::Session;

    fn whole(sizes: &Sizes) -> Part {
        Part {
            layers: 0..sizes.n_layer,
            has_embedding: true,
            has_head: true,
        }
    }

    /// What is told beforehand is what is taken, and hardly more.
    #[test]
    fn estimates_are_those_of_the_real_thing() {
        for name in ["small-safetensors", "odd-bin", "deep-sharded"] {
            for quant in [Quant::F32, Quant::F16, Quant::Int8] {
                let options = Options {
                    quant: Some(quant),
                    threads: 2,
                    ..Options::default()
                };
                let path = format!("../tests/fixtures/golden/{name}");
                let model = Model::open(path, &options).expect("a valid checkpoint");
                let sizes = model.sizes();
                // Factors as f32 are not part of a file's bytes.
                let weights = weight_bytes(sizes, &whole(sizes), quant, false);
                let stored = model.info().weight_bytes;
                assert!(weights >= stored, "{name} {quant}: {weights}, {stored}");
                if quant != Quant::Int8 {
                    assert_eq!(weights, stored, "{name} {quant}");
                }
                for rows in [1, 2, 32, 128] {
                    let told = workspace_bytes(sizes, rows, 2);
                    let taken = model.workspace(rows).size_bytes() as u64;
                    assert!(told >= taken, "{name} {rows}: {told}, {taken}");
                    assert!(told <= taken + taken / 8 + 8192, "{rows}: {told}, {taken}");
                }
            }
        }
    }

    /// The table of docs/EMBEDDING.md, from the sizes of the published models.
    #[test]
    fn the_documentation_says_what_is_computed() {
        let text = include_str!("../../docs/EMBEDDING.md");
        let models = [
            ("169M", 12, 768),
            ("430M", 24, 1024),
            ("1.5B", 24, 2048),
            ("3B", 32, 2560),
            ("7B", 32, 4096),
            ("14B", 40, 5120),
        ];
        for (name, n_layer, n_embd) in models {
            let sizes = Sizes {
                n_vocab: 50_277,
                n_embd,
                n_layer,
                n_attention: n_embd,
                n_hidden: 4 * n_embd,
            };
            let mega = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
            let weights = |quant| mega(weight_bytes(&sizes, &whole(&sizes), quant, false));
            let line = format!(
                "| {name} | {n_layer} | {n_embd} | {} | {} | {} | {} |",
                weights(Quant::Int8),
                weights(Quant::F16),
                mega(session_bytes(&sizes, Some(Session::PREFILL_ROWS), 1)),
                mega((n_layer * 5 * n_embd * 4) as u64),
            );
            assert!(text.contains(&line), "expected {line}");
        }
        let small = Sizes {
            n_vocab: 50_277,
            n_embd: 768,
            n_layer: 12,
            n_attention: 768,
            n_hidden: 3072,
        };
        let in_flash = weight_bytes(&small, &whole(&small), Quant::Int8, true);
        assert_eq!(format!("{:.1}", in_flash as f64 / 1e6), "2.1");
        assert!(text.contains("2.1 MB for the 169M model in int8"));
    }

    #[test]
    fn a_budget_is_kept_and_given_back() {
        let budget = Budget::new(100, 60);
        budget.take(40).expect("fits exactly");
        let error = budget.take(1).expect_err("does not fit");
        assert_eq!(error.kind(), crate::ErrorKind::Memory);
        assert!(error.to_string().contains("101"), "{error}");
        Budget::new(0, 60).take(u64::MAX / 2).expect("no limit");
        check(100, 60, 40).expect("fits exactly");
        let error = check(100, 60, 41).expect_err("does not fit");
        assert!(error.to_string().contains("needs 101 bytes"), "{error}");
    }
}
