//! How much memory a model and its sessions take, told before any of it is taken, and the count of what is.
//!
//! Used by `fit.rs` and `model.rs`, which fit a model into the caller's limit, and by all that takes memory
//! later: sessions, workspaces, the tokenizer. Where weights are read from their file again and again, they
//! get what the others leave.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::model::Model;
use crate::networks::v4::{Part, Sizes};
use crate::products::paging::{Paging, PIECE_BYTES};
use crate::products::{CHUNK_INPUTS, MANY_ROWS};
use crate::quant::Quant;
use crate::text::sampler::Sampler;

/// Bytes that a model and its sessions may keep in memory, and how many they do.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// 0: no limit.
    max: u64,
    used: AtomicU64,
    rows_max: Option<usize>,
    paged: Option<PagedWeights>,
}

/// Weights that are read again for every batch.
#[derive(Debug)]
struct PagedWeights {
    paging: Paging,
    /// Bytes of them that are in memory while a batch goes through.
    window: u64,
    /// Held by the batch that has the window.
    turn: Mutex<()>,
}

/// The right to read paged weights.
pub(crate) struct Turn<'a> {
    pub(crate) paging: &'a Paging,
    _turn: MutexGuard<'a, ()>,
}

/// Bytes of a model's memory limit that someone holds, until this is dropped.
#[derive(Debug)]
pub struct Reservation {
    model: Model,
    bytes: u64,
}

impl Budget {
    /// A budget of which so much is used already.
    pub(crate) fn new(max: u64, used: u64, rows_max: Option<usize>) -> Self {
        Budget {
            max,
            used: AtomicU64::new(used),
            rows_max,
            paged: None,
        }
    }

    /// Reads these weights again for every batch, as far as there is no room for them.
    pub(crate) fn page(&mut self, paging: Paging, window: u64) {
        self.paged = Some(PagedWeights {
            paging,
            window,
            turn: Mutex::new(()),
        });
        self.make_room();
    }

    /// Rows of a batch at most, where there is a limit.
    pub(crate) fn rows_max(&self) -> Option<usize> {
        self.rows_max
    }

    pub(crate) fn has_limit(&self) -> bool {
        self.max > 0
    }

    pub(crate) fn paging(&self) -> Option<&Paging> {
        self.paged.as_ref().map(|paged| &paged.paging)
    }

    /// Bytes that nobody has taken; paged weights use them until someone does.
    pub(crate) fn left(&self) -> u64 {
        let window = self.paged.as_ref().map_or(0, |paged| paged.window);
        let used = self.used.load(Ordering::Relaxed);
        self.max.saturating_sub(used.saturating_add(window))
    }

    /// Bytes of the weights for which there is no room now.
    pub(crate) fn paged_bytes(&self) -> u64 {
        let size = self.paging().map_or(0, Paging::size_bytes);
        size - self.left().min(size)
    }

    /// Paged weights keep to what is left.
    fn make_room(&self) {
        if let Some(paging) = self.paging() {
            paging.keep(self.left());
        }
    }

    /// Where weights are paged, waits for those who read them: several at once would take a multiple of the
    /// memory.
    pub(crate) fn turn(&self) -> Option<Turn<'_>> {
        let paged = self.paged.as_ref()?;
        let turn = paged.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.make_room();
        Some(Turn {
            paging: &paged.paging,
            _turn: turn,
        })
    }

    /// Takes memory for what `name` says.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory), with the numbers, when it is not within the limit.
    pub(crate) fn take(&self, bytes: u64, name: &str) -> Result<()> {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let window = self.paged.as_ref().map_or(0, |paged| paged.window);
        let total = before.saturating_add(bytes).saturating_add(window);
        if self.max == 0 || total <= self.max || bytes == 0 {
            self.make_room();
            return Ok(());
        }
        self.give_back(bytes);
        Err(Error::memory(format!(
            "{name} of {bytes} bytes makes {total} bytes, expected at most {} (the memory limit)",
            self.max
        )))
    }

    /// Counts memory that is taken in any case.
    fn take_anyway(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        self.make_room();
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Reservation {
    pub(crate) fn new(model: &Model, bytes: u64, name: &str) -> Result<Self> {
        model.budget().take(bytes, name)?;
        let model = model.clone();
        Ok(Reservation { model, bytes })
    }

    /// For memory that cannot be refused; `None` where nobody asks.
    pub(crate) fn anyway(model: &Model, bytes: usize) -> Option<Self> {
        let (budget, bytes) = (model.budget(), bytes as u64);
        budget.has_limit().then(|| {
            budget.take_anyway(bytes);
            let model = model.clone();
            Reservation { model, bytes }
        })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.model.budget().give_back(self.bytes);
    }
}

/// Bytes of matrices that are in memory at once while batches of so many rows go through a network none of
/// whose matrices stays.
pub(crate) fn window_bytes(sizes: &Sizes, quant: Quant, rows_max: usize) -> u64 {
    let width = sizes.n_embd.max(sizes.n_attention);
    let row = quant.row_values_bytes(width);
    // Batches of many rows walk a matrix stored row per input more than once.
    let rows = match rows_max < MANY_ROWS {
        true => CHUNK_INPUTS.min(sizes.n_hidden),
        false => sizes.n_hidden,
    };
    // Before and behind what was touched, the system may map as much as is dropped with it.
    PIECE_BYTES.max(row.saturating_mul(rows as u64)) + 2 * crate::files::RELEASE_MARGIN
}

/// Bytes of the weights of a part of a network of these sizes. Matrices that are used where they lie, in a
/// file or in flash, take none, but vectors and scales are kept in memory always.
pub(crate) fn weight_bytes(sizes: &Sizes, part: &Part, quant: Quant, in_place: bool) -> u64 {
    let [v, d, a, h] = [
        sizes.n_vocab,
        sizes.n_embd,
        sizes.n_attention,
        sizes.n_hidden,
    ];
    let matrix = |rows: usize, cols: usize| quant.memory_bytes((rows, cols), in_place);
    let matrices = 3 * matrix(a, d) + matrix(d, a) + 2 * matrix(h, d) + matrix(d, d);
    let vectors = 4 * (9 * d as u64 + 2 * a as u64);
    let layer = matrices.saturating_add(vectors);
    let layers = (part.layers.len() as u64).saturating_mul(layer);
    let tables = u64::from(part.has_embedding) + u64::from(part.has_head);
    layers.saturating_add(tables * (matrix(v, d) + 4 * 2 * d as u64))
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
    use crate::model::session::Session;
    use crate::model::Options;

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
        let text = include_str!("../../../docs/EMBEDDING.md");
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
        let budget = Budget::new(100, 60, None);
        budget.take(40, "a session").expect("fits exactly");
        assert_eq!(budget.left(), 0);
        let error = budget.take(1, "a session").expect_err("does not fit");
        assert_eq!(error.kind(), crate::ErrorKind::Memory);
        assert!(error.to_string().contains("101"), "{error}");
        budget.give_back(40);
        assert_eq!(budget.left(), 40);
        let unlimited = Budget::new(0, 60, None);
        unlimited.take(u64::MAX / 2, "a session").expect("no limit");
    }
}
