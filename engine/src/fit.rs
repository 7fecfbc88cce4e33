//! How a model is fitted into a memory limit, told before its weights are read.
//!
//! Sits on the sizes of `budget.rs`, below `model.rs`. Three ways are tried in turn: everything stays in memory; the weights
//! of a mapped file are read again for every batch (`paging.rs`), as few of them as possible; prompts go in
//! shorter pieces, too. What fits in none of them is refused with the number of bytes that it takes.

#![forbid(unsafe_code)]

use crate::budget::{session_bytes, weight_bytes, window_bytes, Budget};
use crate::checkpoint::{Opened, TokenizerFile};
use crate::error::{Error, Result};
use crate::file::PAGES_CAN_BE_DROPPED;
use crate::format;
use crate::load;
use crate::matrix::Quant;
use crate::model::Options;
use crate::paging::Paging;
use crate::plan::{Plan, PlannedStage, Target};
use crate::session::Session;
use crate::stage::Stages;
use crate::tokenizer::Tokenizer;
use crate::v4::{Network, Sizes, Tensor};

/// Rows of a prompt at once, from best to smallest. At the end those below which a matrix stored row per
/// input goes by pieces, and one token.
const ROWS: [usize; 7] = [256, 128, 64, 32, 16, 7, 1];
/// Prompts in pieces of fewer rows are slower than weights that are read again.
const ROWS_GOOD: usize = 32;
/// What converting a tensor takes beside its result: blocks of rows as f32, and the pages they are made from.
const LOADING_MAX: u64 = 40 << 20;

/// What a model wants of memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    pub(crate) sizes: Sizes,
    pub(crate) quant: Quant,
    pub(crate) n_threads: usize,
    /// Whether the CPU has any layers, which take buffers.
    pub(crate) on_cpu: bool,
    /// What the caller says that its process has taken otherwise.
    pub(crate) program: u64,
    /// Weights that have to stay in memory, the vectors and scales among them,
    pub(crate) fixed: u64,
    pub(crate) vectors: u64,
    /// and those that can be read from their file again.
    pub(crate) mapped: u64,
    /// What reading the tokenizer will take; 0 without one.
    pub(crate) tokenizer: u64,
    /// Whether the tokenizer has to fit.
    pub(crate) needs_text: bool,
    /// Whether matrices are converted while loading.
    pub(crate) converts: bool,
    /// Whether those that are not are copied to huge pages.
    pub(crate) copies: bool,
}

/// How a model is fitted into its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fit {
    /// Bytes that are taken before there is a session.
    pub(crate) used: u64,
    /// Rows of a prompt at once at most, where there is a limit.
    pub(crate) rows_max: Option<usize>,
    /// Where weights are read again: bytes of them that are in memory at once.
    pub(crate) window: Option<u64>,
}

/// Sizes, how matrices are stored, and what the tokenizer that comes with the model takes.
fn facts(opened: &Opened) -> Result<(Sizes, Quant, u64)> {
    let bytes = |file: &TokenizerFile| Tokenizer::memory_bytes(&file.bytes);
    Ok(match opened {
        Opened::Checkpoint(checkpoint) => (
            Sizes::of(&checkpoint.config),
            load::stored_quant(checkpoint),
            checkpoint.tokenizer.as_ref().map_or(0, bytes),
        ),
        Opened::ModelFile(file) => {
            let (config, quant) = format::config_and_quant(file)?;
            let tokenizer = format::tokenizer_of(file)?;
            let tokenizer = tokenizer.as_ref().map_or(0, bytes);
            (Sizes::of(&config), quant, tokenizer)
        }
    })
}

impl Demand {
    /// What a model will want that was opened, but not loaded.
    ///
    /// # Errors
    /// Damaged metadata.
    pub(crate) fn of(
        opened: &Opened,
        plan: &Plan,
        options: &Options,
        n_threads: usize,
    ) -> Result<Self> {
        let (sizes, stored, tokenizer) = facts(opened)?;
        let mut demand = Demand {
            sizes,
            quant: plan.quant(),
            n_threads,
            on_cpu: false,
            program: options.memory_taken,
            fixed: 0,
            vectors: 0,
            mapped: 0,
            tokenizer: match &options.tokenizer {
                Some(path) => Tokenizer::memory_bytes_of_file(path),
                None => tokenizer,
            },
            needs_text: options.memory_for_text,
            converts: false,
            copies: options.huge_pages && load::quant_of_copies(plan).is_some(),
        };
        let on_cpu = |stage: &&PlannedStage| matches!(stage.target, Target::Cpu);
        for stage in plan.stages.iter().filter(on_cpu) {
            demand.add(opened, stage, stored, plan.stages.len() == 1);
        }
        Ok(demand)
    }

    /// Adds the weights of a stage on the CPU.
    ///
    /// Inlined into a loop, fields of one kind of model are read before it is known which kind it is; nothing
    /// comes of it, but Valgrind complains.
    #[inline(never)]
    fn add(&mut self, opened: &Opened, stage: &PlannedStage, stored: Quant, is_whole: bool) {
        let quant = stage.quant;
        let all = weight_bytes(&self.sizes, &stage.part, quant, false);
        let vectors = weight_bytes(&self.sizes, &stage.part, quant, true);
        let (fixed, mapped) = match opened {
            Opened::Checkpoint(checkpoint) => {
                // Of a part it is not worth to be exact.
                let mapped = match is_whole && !self.copies {
                    true => load::mapped_bytes(checkpoint, quant),
                    false => 0,
                };
                (all.saturating_sub(mapped), mapped)
            }
            Opened::ModelFile(file)
                if quant == stored && self.copies && !file.file.is_in_memory() =>
            {
                // All of the file.
                (vectors.saturating_add(file.file.len()), 0)
            }
            Opened::ModelFile(file) if quant == stored && file.file.pages_can_be_dropped() => {
                (vectors, all - vectors)
            }
            Opened::ModelFile(file) if quant == stored && file.file.is_in_memory() => (vectors, 0),
            Opened::ModelFile(_) => (all, 0),
        };
        let is_checkpoint = matches!(opened, Opened::Checkpoint(_));
        self.on_cpu = true;
        self.fixed = self.fixed.saturating_add(fixed);
        self.vectors = self.vectors.saturating_add(vectors);
        self.mapped = self.mapped.saturating_add(mapped);
        self.converts |= quant != stored || is_checkpoint && fixed > vectors;
    }

    /// The budget of the network that was loaded. Where less of it lies in files than was thought, because the
    /// system would not map them, it wants more.
    ///
    /// # Errors
    /// Those of [`fit`](Self::fit).
    pub(crate) fn budget(self, stages: &Stages, max: u64) -> Result<Budget> {
        let embedding = |network: &'_ Network| network.embedding.is_some();
        let embedding = stages.networks().find(|network| embedding(network));
        let embedding = embedding.and_then(|network| network.embedding.as_ref());
        let table = embedding.map(|embedding| &embedding.table);
        let tensors = stages.networks().flat_map(Network::tensors);
        let others = tensors.filter_map(|tensor| match tensor {
            Tensor::Matrix(matrix) if table.is_none_or(|table| !std::ptr::eq(matrix, table)) => {
                Some(matrix)
            }
            _ => None,
        });
        let paging = Paging::new(table, others);
        let mapped = paging.size_bytes().min(self.mapped);
        let fixed = self.fixed + (self.mapped - mapped);
        let fit = Demand {
            fixed,
            mapped,
            converts: false,
            ..self
        }
        .fit(max)?;
        let mut budget = Budget::new(max, fit.used, fit.rows_max);
        if let Some(window) = fit.window {
            budget.page(paging, window);
        }
        Ok(budget)
    }

    /// Fits the model into `max` bytes with one session; 0: no limit.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory), with the numbers, when it does not fit.
    pub(crate) fn fit(&self, max: u64) -> Result<Fit> {
        let base = self.program.saturating_add(self.fixed);
        let resident = base.saturating_add(self.mapped);
        let fit = |used, rows_max: Option<usize>, window| Fit {
            used,
            rows_max: rows_max.filter(|_| self.on_cpu),
            window,
        };
        if max == 0 {
            return Ok(fit(resident, None, None));
        }
        if base.saturating_add(self.loading()) > max {
            return Err(self.refusal(max));
        }
        // A program that is given token ids never reads the tokenizer.
        for tokenizer in [self.tokenizer, self.required_tokenizer()] {
            let fits = |weights: u64, rows| {
                let session = self.session(rows).saturating_add(tokenizer);
                weights.saturating_add(session) <= max
            };
            let all_stays = |rows: &&usize| fits(resident, **rows);
            let good = self.rows().filter(|rows| **rows >= ROWS_GOOD);
            if let Some(&rows) = good.clone().find(all_stays) {
                return Ok(fit(resident, Some(rows), None));
            }
            for &rows in self.rows() {
                let window = self.window(rows);
                if window < self.mapped && fits(base.saturating_add(window), rows) {
                    return Ok(fit(base, Some(rows), Some(window)));
                }
            }
            if let Some(&rows) = self.rows().find(all_stays) {
                return Ok(fit(resident, Some(rows), None));
            }
        }
        Err(self.refusal(max))
    }

    /// f32 weights take longer pieces of prompts.
    fn rows(&self) -> impl Iterator<Item = &'static usize> + Clone {
        let longest = Session::best_prefill_rows(self.quant);
        ROWS.iter().filter(move |rows| **rows <= longest)
    }

    fn session(&self, rows: usize) -> u64 {
        session_bytes(&self.sizes, self.on_cpu.then_some(rows), self.n_threads)
    }

    fn window(&self, rows: usize) -> u64 {
        window_bytes(&self.sizes, self.quant, rows)
    }

    fn loading(&self) -> u64 {
        let Sizes {
            n_vocab,
            n_embd,
            n_hidden,
            ..
        } = self.sizes;
        let largest = (n_vocab.max(n_hidden) as u64).saturating_mul(n_embd as u64);
        match self.converts {
            true => largest.saturating_mul(10).min(LOADING_MAX),
            false => 0,
        }
    }

    fn required_tokenizer(&self) -> u64 {
        match self.needs_text {
            true => self.tokenizer,
            false => 0,
        }
    }

    fn refusal(&self, max: u64) -> Error {
        let tokenizer = self.required_tokenizer();
        let session = self.session(1);
        let window = self.window(1).min(self.mapped);
        let weights = match window < self.mapped {
            true => format!(
                "weights that have to stay {}, a piece of the others {window}",
                self.fixed
            ),
            false => format!("weights {}", self.fixed + window),
        };
        let running = session.saturating_add(window).saturating_add(tokenizer);
        let parts = match self.loading() > running {
            true => vec![("converting them", self.loading())],
            false => vec![("one session", session), ("the tokenizer", tokenizer)],
        };
        let parts: String = parts
            .into_iter()
            .chain([("the program", self.program)])
            .filter(|(_, bytes)| *bytes > 0)
            .map(|(name, bytes)| format!(", {name} {bytes}"))
            .collect();
        let base = self.program.saturating_add(self.fixed);
        let needed = base.saturating_add(running.max(self.loading()));
        Error::memory(format!(
            "needs {needed} bytes of memory ({weights}{parts}), expected at most {max} (the memory limit){}",
            self.hint(needed)
        ))
    }

    /// What would do with less.
    fn hint(&self, needed: u64) -> String {
        let piece = self.window(1).saturating_add(self.session(1)) + self.required_tokenizer();
        let enough = self
            .program
            .saturating_add(self.vectors)
            .saturating_add(piece);
        match PAGES_CAN_BE_DROPPED && self.mapped == 0 && enough < needed {
            true => format!("; a mapped model file, as `quantize` writes them, does with {enough}"),
            false => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v4::Part;

    const MIB: u64 = 1 << 20;

    fn demand() -> Demand {
        let sizes = Sizes {
            n_vocab: 50_277,
            n_embd: 768,
            n_layer: 12,
            n_attention: 768,
            n_hidden: 3072,
        };
        let part = Part {
            layers: 0..sizes.n_layer,
            has_embedding: true,
            has_head: true,
        };
        let fixed = weight_bytes(&sizes, &part, Quant::Int8, true);
        Demand {
            sizes,
            quant: Quant::Int8,
            n_threads: 2,
            on_cpu: true,
            program: 8 * MIB,
            fixed,
            vectors: fixed,
            mapped: weight_bytes(&sizes, &part, Quant::Int8, false) - fixed,
            tokenizer: 0,
            needs_text: false,
            converts: false,
            copies: false,
        }
    }

    #[test]
    fn what_fits_stays_and_what_does_not_is_read_again() {
        let demand = demand();
        let plan = |max| demand.fit(max).expect("fits");
        let none = plan(0);
        assert_eq!((none.rows_max, none.window), (None, None));
        let all = plan(300 * MIB);
        assert_eq!((all.rows_max, all.window), (Some(128), None));
        assert_eq!(all.used, demand.program + demand.fixed + demand.mapped);
        // Shorter pieces of a prompt first, as long as they are good.
        let short = all.used + demand.session(40);
        assert_eq!((plan(short).rows_max, plan(short).window), (Some(32), None));
        let paged = plan(all.used);
        assert_eq!(paged.rows_max, Some(128));
        assert_eq!(paged.window, Some(8 * MIB));
        let tight = plan(demand.program + demand.fixed + 10 * MIB);
        assert!(
            tight.rows_max < Some(32) && tight.window.is_some(),
            "{tight:?}"
        );
    }

    /// The number in the text is the smallest limit that is accepted.
    #[test]
    fn a_refusal_names_what_is_enough() {
        let with_tokenizer = Demand {
            tokenizer: 15 * MIB,
            ..demand()
        };
        let with_text = Demand {
            needs_text: true,
            ..with_tokenizer
        };
        let in_memory = Demand {
            fixed: 171 * MIB,
            mapped: 0,
            ..demand()
        };
        let converted = Demand {
            converts: true,
            ..in_memory
        };
        for demand in [demand(), with_tokenizer, with_text, in_memory, converted] {
            let text = demand.fit(1).expect_err("nothing fits").to_string();
            let needed = text.split(' ').nth(1).and_then(|n| n.parse().ok());
            let needed: u64 = needed.expect("a number");
            demand.fit(needed).expect("is enough");
            demand.fit(needed - 1).expect_err("is not enough");
            assert!(text.contains("the program 8388608"), "{text}");
            assert_eq!(text.contains("`quantize`"), demand.mapped == 0, "{text}");
            assert_eq!(text.contains("the tokenizer "), demand.needs_text, "{text}");
        }
    }

    #[test]
    fn a_tokenizer_gets_its_room_where_there_is_some() {
        let with = |tokenizer| Demand {
            tokenizer,
            ..demand()
        };
        let max = demand().fit(0).expect("no limit").used + 11 * MIB;
        assert_eq!(with(0).fit(max).expect("fits").window, None);
        assert!(with(15 * MIB).fit(max).expect("fits").window.is_some());
        // Token ids go without.
        with(300 * MIB).fit(max).expect("fits");
    }
}
