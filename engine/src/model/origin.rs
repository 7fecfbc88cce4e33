//! What a model is opened from, after its headers were read and before its weights are.

#![forbid(unsafe_code)]

use super::calibration::Calibration;
use super::huge_pages::quant_of_copies;
use super::load;
use super::model_file::{self, ModelFile};
use super::Loaded;
use crate::checkpoint::{Checkpoint, Opened, TokenizerFile};
use crate::devices::plan::Plan;
use crate::error::{Error, Result};
use crate::files::Watch;
use crate::math::threads::Pool;
use crate::memory::fit::{ModelFacts, WeightsPlace};
use crate::networks::config::Config;
use crate::networks::mix::Mix;
use crate::networks::state::StateLayout;
use crate::progress::Progress;
use crate::quant::Quant;
use crate::text::tokenizer::{self, Tokenizer};

/// A checkpoint, or a model file.
pub(super) enum Origin {
    Checkpoint(Box<Checkpoint>),
    ModelFile(Box<ModelFile>),
}

impl Origin {
    /// Reads what no reader has read yet: a model file's metadata. A tokenizer that lies beside a checkpoint and is not
    /// its own is passed over, unless another one is named.
    ///
    /// # Errors
    /// Damaged metadata.
    pub(super) fn new(opened: Opened, names_tokenizer: bool) -> Result<Self> {
        Ok(match opened {
            Opened::Checkpoint(mut checkpoint) => {
                if !names_tokenizer {
                    pass_over_misfit(&mut checkpoint);
                }
                Origin::Checkpoint(checkpoint)
            }
            Opened::ModelFile(file) => Origin::ModelFile(Box::new(ModelFile::new(file)?)),
        })
    }

    pub(super) fn config(&self) -> &Config {
        match self {
            Origin::Checkpoint(checkpoint) => &checkpoint.config,
            Origin::ModelFile(file) => &file.config,
        }
    }

    /// What the matrices stay where nothing else is asked for.
    pub(super) fn stored_quant(&self) -> Quant {
        match self {
            Origin::Checkpoint(checkpoint) => load::stored_quant(checkpoint),
            Origin::ModelFile(file) => file.quant,
        }
    }

    fn has_tokenizer_inside(&self) -> bool {
        matches!(self, Origin::Checkpoint(checkpoint) if checkpoint.has_tokenizer_inside)
    }

    /// What most of its quantised matrices are, by ggml's name, if there are any.
    pub(super) fn stored_blocks(&self) -> Option<&'static str> {
        match self {
            Origin::Checkpoint(checkpoint) => load::stored_blocks(checkpoint),
            Origin::ModelFile(_) => None,
        }
    }

    pub(super) fn tokenizer(&self) -> Option<&TokenizerFile> {
        match self {
            Origin::Checkpoint(checkpoint) => checkpoint.tokenizer.as_ref(),
            Origin::ModelFile(file) => file.tokenizer.as_ref(),
        }
    }

    /// Of the files with the weights, each once.
    pub(super) fn watches(&self) -> Vec<Watch> {
        match self {
            Origin::Checkpoint(checkpoint) => checkpoint.watches(),
            Origin::ModelFile(file) => vec![file.file().watch().clone()],
        }
    }

    /// Where a tokenizer was looked for.
    pub(super) fn tokenizer_search(&self) -> &str {
        match self {
            Origin::Checkpoint(checkpoint) => &checkpoint.tokenizer_search,
            Origin::ModelFile(_) => model_file::TOKENIZER_SEARCH,
        }
    }

    /// Whether it brings a tuned initial state.
    fn is_tuned(&self) -> bool {
        match self {
            Origin::Checkpoint(checkpoint) => checkpoint.tuned.is_some(),
            Origin::ModelFile(file) => file.is_tuned(),
        }
    }

    pub(super) fn is_model_file(&self) -> bool {
        matches!(self, Origin::ModelFile(_))
    }

    /// What decides how much memory the model takes; `copies`: whether what is used in place is copied.
    /// Which format each matrix has, or becomes, where that is not by its quantisation alone.
    fn mix(&self) -> Option<&Mix> {
        match self {
            Origin::Checkpoint(checkpoint) => checkpoint.mix.as_ref(),
            Origin::ModelFile(file) => file.mix.as_ref(),
        }
    }

    pub(super) fn facts(&self, plan: &Plan, copies: bool) -> ModelFacts {
        let copies = copies && quant_of_copies(plan).is_some();
        let tokenizer = self.tokenizer().map_or(0, |file| {
            Tokenizer::memory_bytes(&file.bytes) + Tokenizer::PROMPT_BYTES
        });
        let sizes = self.config().sizes;
        let state = StateLayout::of_sizes(&sizes).size_bytes();
        // What was made of the tokens within a file is kept beside what is made of it.
        let made = self.tokenizer().filter(|_| self.has_tokenizer_inside());
        let tokenizer = tokenizer + made.map_or(0, |file| file.bytes.len() as u64);
        ModelFacts {
            sizes,
            initial_state: if self.is_tuned() { state as u64 } else { 0 },
            stored: self.stored_quant(),
            more_bytes: self.mix().map_or(0, |mix| mix.more_bytes(&sizes)),
            tokenizer,
            place: match self {
                Origin::Checkpoint(_) if copies => WeightsPlace::Checkpoint { mapped: 0 },
                Origin::Checkpoint(checkpoint) => WeightsPlace::Checkpoint {
                    mapped: load::mapped_bytes(checkpoint, plan.quant()),
                },
                Origin::ModelFile(file) if copies && !file.file().is_in_memory() => {
                    WeightsPlace::Copied {
                        bytes: file.file().len(),
                    }
                }
                Origin::ModelFile(file) if file.file().pages_can_be_dropped() => {
                    WeightsPlace::Mapped
                }
                Origin::ModelFile(file) if file.file().is_in_memory() => WeightsPlace::InMemory,
                Origin::ModelFile(_) => WeightsPlace::Read,
            },
        }
    }

    /// Brings the weights where the plan wants them; `progress` counts weights. Where memory is
    /// short, no page is kept that was read only to be copied.
    ///
    /// # Errors
    /// Those of reading and converting; [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for a calibration of a model
    /// file.
    pub(super) fn load(
        self,
        plan: &Plan,
        pool: &Pool,
        is_short: bool,
        calibration: Option<&Calibration<'_>>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Loaded> {
        match self {
            Origin::Checkpoint(checkpoint) => {
                load::load(*checkpoint, plan, pool, is_short, calibration, progress)
            }
            Origin::ModelFile(file) if calibration.is_some() => {
                let text = "a model file, expected the checkpoint that it was made from: that is what is calibrated";
                Err(Error::unsupported(text).at(file.file().name()))
            }
            Origin::ModelFile(file) => file.load(plan, pool, is_short),
        }
    }
}

/// Whether a tokenizer beside a checkpoint belongs to it is seen by its size. Models of several vocabularies may lie in one
/// folder, so that one that does not fit is another model's. One that cannot be read is left: who needs it says why.
fn pass_over_misfit(checkpoint: &mut Checkpoint) {
    let Some(file) = checkpoint
        .tokenizer
        .as_ref()
        .filter(|_| !checkpoint.has_tokenizer_inside)
    else {
        return;
    };
    let is_world = tokenizer::are_world(&file.bytes);
    let n_vocab = checkpoint.config.sizes.n_vocab;
    let is_usual_pair = is_world == (n_vocab == tokenizer::N_VOCAB_WORLD);
    // A folder's own tokenizer.json is what its model was published with, and takes long to read.
    let is_own = !is_world && checkpoint.folder.is_some();
    if is_own || is_usual_pair && (is_world || Tokenizer::is_of_20b(n_vocab)) {
        return;
    }
    let Ok(tokenizer) = Tokenizer::from_bytes_within(&file.place, &file.bytes, true) else {
        return;
    };
    if let Err(misfit) = tokenizer.check_fits(n_vocab) {
        let text = format!("passed over {misfit}");
        checkpoint.tokenizer_search = format!("{}; {text}", checkpoint.tokenizer_search);
        checkpoint.correction = Some(match checkpoint.correction.take() {
            Some(correction) => format!("{correction}; {text}"),
            None => text,
        });
        checkpoint.tokenizer = None;
    }
}
