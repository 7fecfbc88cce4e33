//! How a model is fitted into a memory limit, told before its weights are read.
//!
//! Sits on the sizes of `estimate.rs`, below `model/`. Three ways are tried in turn: everything stays in memory; the weights
//! of a mapped file are read again for every batch (`products/paging.rs`), as few of them as possible; prompts go in
//! shorter pieces, too. What fits in none of them is refused with the number of bytes that it takes.

#![forbid(unsafe_code)]

use super::budget::Budget;
use super::estimate::{largest_matrix, low_rank_bytes, session_bytes, weight_bytes, window_bytes};
use crate::devices::plan::{Plan, PlannedStage, Target};
use crate::devices::stages::Stages;
use crate::error::{Error, Result};
use crate::files::PAGES_CAN_BE_DROPPED;
use crate::networks::config::Sizes;
use crate::networks::Network;
use crate::products::paging::Paging;
use crate::products::prefill_rows_best;
use crate::quant::Quant;

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
    /// the low-rank matrices where they are used in place,
    pub(crate) low_rank: u64,
    /// and those that can be read from their file again.
    pub(crate) mapped: u64,
    /// What reading the tokenizer will take; 0 without one.
    pub(crate) tokenizer: u64,
    /// Whether the tokenizer has to fit.
    pub(crate) needs_text: bool,
    /// Whether matrices are converted while loading.
    pub(crate) converts: bool,
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

/// What decides how much memory a model takes, before its weights are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ModelFacts {
    pub(crate) sizes: Sizes,
    /// How its matrices are stored.
    pub(crate) stored: Quant,
    /// Bytes that its matrices take more than in the usual mix of formats.
    pub(crate) more_bytes: i64,
    /// What reading its tokenizer will take; 0 without one.
    pub(crate) tokenizer: u64,
    /// What its tuned initial state takes; 0 without one.
    pub(crate) initial_state: u64,
    pub(crate) place: WeightsPlace,
}

/// Where weights lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightsPlace {
    /// In a checkpoint, of which so many bytes will be used in place from mapped files.
    Checkpoint { mapped: u64 },
    /// In a model file whose pages can be dropped,
    Mapped,
    /// that is part of the program or in flash,
    InMemory,
    /// of which so many bytes are copied to huge pages,
    Copied { bytes: u64 },
    /// or that is read into memory.
    Read,
}

/// The caller's limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) memory_max: Option<u64>,
    /// What the process has taken otherwise.
    pub(crate) taken: u64,
    /// Whether the tokenizer has to fit.
    pub(crate) for_text: bool,
}

impl Demand {
    /// What a model will want that was opened, but not loaded.
    pub(crate) fn of(origin: &ModelFacts, plan: &Plan, limit: &Limit, n_threads: usize) -> Self {
        let mut demand = Demand {
            sizes: origin.sizes,
            quant: plan.quant(),
            n_threads,
            on_cpu: false,
            program: limit.taken,
            fixed: origin.initial_state,
            vectors: 0,
            low_rank: 0,
            mapped: 0,
            tokenizer: origin.tokenizer,
            needs_text: limit.for_text,
            converts: false,
        };
        let on_cpu = |stage: &&PlannedStage| matches!(stage.target, Target::Cpu);
        for stage in plan.stages.iter().filter(on_cpu) {
            demand.add(origin, stage, plan.stages.len() == 1);
        }
        demand
    }

    /// Adds the weights of a stage on the CPU.
    fn add(&mut self, origin: &ModelFacts, stage: &PlannedStage, is_whole: bool) {
        let quant = stage.quant;
        // A mix is of the whole model: of a part it counts too much rather than too little.
        let more = if is_whole {
            origin.more_bytes
        } else {
            origin.more_bytes.max(0)
        };
        let all = weight_bytes(&self.sizes, &stage.part, quant, false);
        let all = all.saturating_add_signed(more);
        let vectors = weight_bytes(&self.sizes, &stage.part, quant, true);
        let low_rank = low_rank_bytes(&self.sizes, &stage.part, quant);
        let is_stored = quant == origin.stored;
        let (fixed, mapped) = match origin.place {
            // Of a part it is not worth to be exact.
            WeightsPlace::Checkpoint { mapped } if is_whole => (all.saturating_sub(mapped), mapped),
            WeightsPlace::Mapped if is_stored => {
                let stay = vectors.saturating_add(low_rank);
                (stay, all.saturating_sub(stay))
            }
            WeightsPlace::InMemory if is_stored => (vectors, 0),
            WeightsPlace::Copied { bytes } if is_stored => (vectors.saturating_add(bytes), 0),
            _ => (all, 0),
        };
        let is_checkpoint = matches!(origin.place, WeightsPlace::Checkpoint { .. });
        self.on_cpu = true;
        self.fixed = self.fixed.saturating_add(fixed);
        self.vectors = self.vectors.saturating_add(vectors);
        self.low_rank = self.low_rank.saturating_add(low_rank);
        self.mapped = self.mapped.saturating_add(mapped);
        self.converts |= !is_stored || is_checkpoint && fixed > vectors.saturating_add(low_rank);
    }

    /// The budget of the network that was loaded. Where less of it lies in files than was thought, because the
    /// system would not map them, it wants more.
    ///
    /// # Errors
    /// Those of [`fit`](Self::fit).
    pub(crate) fn budget(self, stages: &Stages, max: Option<u64>) -> Result<Budget> {
        let embedding = |network: &'_ Network| network.embedding.is_some();
        let embedding = stages.networks().find(|network| embedding(network));
        let embedding = embedding.and_then(|network| network.embedding.as_ref());
        let table = embedding.map(|embedding| &embedding.table);
        let matrices = stages.networks().flat_map(Network::matrices);
        let others =
            matrices.filter(|matrix| table.is_none_or(|table| !std::ptr::eq(*matrix, table)));
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

    /// Fits the model into `max` bytes with one session, or without a limit.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`](crate::ErrorKind::Memory), with the numbers, when it does not fit.
    pub(crate) fn fit(&self, max: Option<u64>) -> Result<Fit> {
        let base = self.program.saturating_add(self.fixed);
        let resident = base.saturating_add(self.mapped);
        let fit = |used, rows_max: Option<usize>, window| Fit {
            used,
            rows_max: rows_max.filter(|_| self.on_cpu),
            window,
        };
        let Some(max) = max else {
            return Ok(fit(resident, None, None));
        };
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
        let longest = prefill_rows_best(self.quant);
        ROWS.iter().filter(move |rows| **rows <= longest)
    }

    fn session(&self, rows: usize) -> u64 {
        session_bytes(&self.sizes, self.on_cpu.then_some(rows), self.n_threads)
    }

    fn window(&self, rows: usize) -> u64 {
        // A file may mix formats otherwise than is usual.
        let quant = if self.quant.is_mixed() {
            Quant::Int8
        } else {
            self.quant
        };
        window_bytes(&self.sizes, quant, rows)
    }

    fn loading(&self) -> u64 {
        let largest = largest_matrix(&self.sizes);
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
            "needs {needed} bytes of memory ({weights}{parts}), expected at most {max} (the memory limit): {} will do{}",
            in_megabytes(needed),
            self.hint(needed)
        ))
    }

    /// What would do with less.
    fn hint(&self, needed: u64) -> String {
        let piece = self.window(1).saturating_add(self.session(1)) + self.required_tokenizer();
        let enough = self
            .program
            .saturating_add(self.vectors)
            .saturating_add(self.low_rank)
            .saturating_add(piece);
        match PAGES_CAN_BE_DROPPED && self.mapped == 0 && enough < needed {
            true => format!(
                "; a mapped model file, as `quantize` writes them, does with {}",
                in_megabytes(enough)
            ),
            false => String::new(),
        }
    }
}

/// A limit that people can give, which surely is enough: what the program itself takes differs from run to run by much
/// less than what is added here.
fn in_megabytes(bytes: u64) -> String {
    const SLACK: u64 = 1 << 20;
    format!("{}M", bytes.saturating_add(SLACK).div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn demand() -> Demand {
        let sizes = crate::networks::tests::sizes([50_277, 768, 12, 768, 3072]);
        let part = sizes.architecture.whole(&sizes);
        let fixed = weight_bytes(&sizes, &part, Quant::Int8, true);
        Demand {
            sizes,
            quant: Quant::Int8,
            n_threads: 2,
            on_cpu: true,
            program: 8 * MIB,
            fixed,
            vectors: fixed,
            low_rank: 0,
            mapped: weight_bytes(&sizes, &part, Quant::Int8, false) - fixed,
            tokenizer: 0,
            needs_text: false,
            converts: false,
        }
    }

    #[test]
    fn what_fits_stays_and_what_does_not_is_read_again() {
        let demand = demand();
        let plan = |max| demand.fit(Some(max)).expect("fits");
        let none = demand.fit(None).expect("no limit");
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
            let text = demand.fit(Some(1)).expect_err("nothing fits").to_string();
            let needed = text.split(' ').nth(1).and_then(|n| n.parse().ok());
            let needed: u64 = needed.expect("a number");
            demand.fit(Some(needed)).expect("is enough");
            demand.fit(Some(needed - 1)).expect_err("is not enough");
            assert!(text.contains("the program 8388608"), "{text}");
            let (_, behind) = text.split_once("limit): ").expect("a limit to give");
            let (megabytes, _) = behind.split_once("M will do").expect("a limit to give");
            let enough = MIB * megabytes.parse::<u64>().expect("a number");
            assert!((MIB..=2 * MIB).contains(&(enough - needed)), "{text}");
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
        let max = demand().fit(None).expect("no limit").used + 11 * MIB;
        assert_eq!(with(0).fit(Some(max)).expect("fits").window, None);
        assert!(with(15 * MIB)
            .fit(Some(max))
            .expect("fits")
            .window
            .is_some());
        // Token ids go without.
        with(300 * MIB).fit(Some(max)).expect("fits");
    }
}
