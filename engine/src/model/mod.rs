//! An open model: the network with all that it needs to run, shared by any number of sessions.
//!
//! This is the front door of the crate. It joins the modules below it and does no arithmetic. `model/open.rs` makes models,
//! `model/options.rs` says how; here is what they are and do.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::checkpoint::{self, ChatTemplate, TokenizerFile};
use crate::devices::plugin::DeviceLimits;
use crate::devices::stages::{Pipeline, Stages, Wanted};
use crate::devices::{data_parallel, device_state};
use crate::error::{Error, ErrorKind, Result};
use crate::files::{FileBytes, SourceFile, Watch};
use crate::math::kernels::KernelSet;
use crate::math::threads::Pool;
use crate::memory::budget::{Budget, Reservation};
use crate::model::session::Session;
use crate::networks::batch::Span;
use crate::networks::config::{Config, Sizes};
use crate::networks::fingerprint::Fingerprint;
use crate::networks::state::{Initial, State, StateLayout};
use crate::networks::tensor_info::TensorInfo;
use crate::networks::Machine;
use crate::products::prefill_rows_best;
use crate::progress::Progress;
use crate::quant::Quant;
use crate::text::tokenizer::Tokenizer;
use info::Info;
use tuned::Tuned;

mod calibration;
mod damages;
mod huge_pages;
pub(crate) mod info;
pub(crate) mod load;
pub(crate) mod mixed_quant;
pub(crate) mod model_file;
mod open;
mod options;
mod origin;
pub(crate) mod outline;
pub(crate) mod session;
pub(crate) mod tokens;
mod tuned;
mod workspace;

pub(crate) use options::n_threads;
pub use options::Options;
pub(crate) use workspace::enough;
pub use workspace::{Sparsity, Workspace};

/// A model ready to run: immutable, cheap to clone, and shared between threads without locks.
///
/// Forward passes of several threads at once are fine; while one has the worker threads, the others
/// run on their caller's thread alone.
#[derive(Clone)]
pub struct Model(Arc<Inner>, Option<Arc<Tuned>>);

/// All that makes up a model.
pub(crate) struct Inner {
    pub(crate) place: String,
    pub(crate) stages: Stages,
    pub(crate) config: Config,
    /// Of the matrices, or most of them.
    pub(crate) quant: Quant,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) pool: Arc<Pool>,
    pub(crate) kernels: KernelSet,
    pub(crate) no_sparsity: bool,
    pub(crate) budget: Arc<Budget>,
    pub(crate) tokenizer: TokenizerSlot,
    /// The model file this was opened from, if it was one.
    pub(crate) model_file: Option<SourceFile>,
    /// How most matrices were stored in the checkpoint, where nothing here computes with that.
    pub(crate) stored_blocks: Option<&'static str>,
    /// See [`Info::adapters`].
    pub(crate) adapters: Vec<String>,
    /// Why a device map `auto` chose the CPU.
    pub(crate) note: Option<String>,
    /// See [`Info::correction`].
    pub(crate) correction: Option<String>,
    /// The file or folder that it was opened from, if it was.
    path: Option<PathBuf>,
    /// Of the mapped files in which matrices are used in place, each once.
    watches: Vec<Watch>,
}

/// What a loader gives: weights where they belong, and what it found with them.
pub(crate) struct Loaded {
    /// The file or folder, for texts.
    pub(crate) place: String,
    pub(crate) config: Config,
    pub(crate) stages: Stages,
    /// Of the checkpoint, the same for every quantisation.
    pub(crate) fingerprint: Fingerprint,
    /// The empty state, where it was tuned.
    pub(crate) initial: Option<Initial>,
    pub(crate) tokenizer: Option<TokenizerFile>,
    /// Where a tokenizer was looked for, for the error text.
    pub(crate) tokenizer_search: String,
    /// See [`Info::correction`].
    pub(crate) correction: Option<String>,
    /// The model file, if it was one.
    pub(crate) model_file: Option<SourceFile>,
    /// See [`Info::stored_blocks`].
    pub(crate) stored_blocks: Option<&'static str>,
    /// See [`Info::adapters`].
    pub(crate) adapters: Vec<String>,
}

/// What a model is put together from besides.
pub(crate) struct Setup {
    pub(crate) quant: Quant,
    pub(crate) pool: Arc<Pool>,
    pub(crate) kernels: KernelSet,
    pub(crate) no_sparsity: bool,
    pub(crate) budget: Budget,
    /// Why a device map `auto` chose the CPU.
    pub(crate) note: Option<String>,
    /// The file or folder that it was opened from, if it was.
    pub(crate) path: Option<PathBuf>,
}

/// The tokenizer is parsed when text is first needed: the 20B one takes longer than mapping a model.
pub(crate) struct TokenizerSlot {
    pub(crate) file: Option<TokenizerFile>,
    /// Where one was looked for, for the error text.
    pub(crate) searched: String,
    pub(crate) parsed: OnceLock<Tokenizer>,
}

impl Model {
    /// The only place where a model is made.
    pub(crate) fn assemble(loaded: Loaded, setup: Setup) -> Self {
        let watches = watches(&loaded.stages);
        let inner = Arc::new(Inner {
            place: loaded.place,
            stages: loaded.stages,
            config: loaded.config,
            quant: setup.quant,
            fingerprint: loaded.fingerprint,
            pool: setup.pool,
            kernels: setup.kernels,
            no_sparsity: setup.no_sparsity,
            budget: Arc::new(setup.budget),
            tokenizer: TokenizerSlot {
                file: loaded.tokenizer,
                searched: loaded.tokenizer_search,
                parsed: OnceLock::new(),
            },
            model_file: loaded.model_file,
            stored_blocks: loaded.stored_blocks,
            adapters: loaded.adapters,
            note: setup.note,
            path: setup.path,
            correction: loaded.correction,
            watches,
        });
        Model(inner, loaded.initial.map(Tuned::counted))
    }

    /// Writes the model as one file, whole or not at all. Opened again it gives the same bits. Calls `progress` while it
    /// works, which counts bytes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`], [`ErrorKind::Tokenizer`] when the tokenizer that would go into the file does
    /// not fit the model, [`ErrorKind::Unsupported`] for a model of several quantisations, or with layers
    /// on a device.
    pub fn save(&self, path: impl AsRef<Path>, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        // A model file says once what all its matrices are.
        let networks = self.0.stages.only_networks("saved");
        let networks = networks.map_err(|e| e.at(&self.0.place))?;
        mixed_quant::check_quant(&networks, self.0.quant).map_err(|e| e.at(&self.0.place))?;
        if self.0.tokenizer.file.is_some() {
            self.tokenizer()?;
        }
        model_file::write(&self.0, self.initial(), path.as_ref(), progress)
    }

    /// Reads every weight, which opening does not: of a model file the checksum must be right, and no
    /// number may be NaN or infinite. Calls `progress` while it computes the checksum, which counts bytes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Format`], naming the tensor; [`ErrorKind::Unsupported`] for a model with layers on a
    /// device.
    pub fn verify(&self, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        let verified = Watch::judge_all(&self.0.watches, self.verify_weights(progress));
        match &self.0.model_file {
            Some(file) => file.watch().judge(verified),
            None => verified,
        }
    }

    fn verify_weights(&self, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        if let Some(file) = &self.0.model_file {
            model_file::verify_checksum(file, progress)?;
        }
        let networks = self.0.stages.only_networks("verified");
        let is_short = self.0.budget.paging().is_some();
        for network in networks.map_err(|e| e.at(&self.0.place))? {
            for matrix in network.matrices() {
                let checked = matrix.check_finite(0..matrix.n_rows, is_short);
                checked.map_err(|e| e.at(&self.0.place))?;
            }
        }
        Ok(())
    }

    /// Refuses what was computed if weights in mapped files were lost meanwhile.
    pub(crate) fn check_readable(&self) -> Result<()> {
        self.0.watches.iter().try_for_each(Watch::check)
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Tokenizer`] when there is none, it is damaged, or it has more tokens than the model;
    /// [`ErrorKind::Memory`] when [`Options::memory_max`] leaves no room for it.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        let slot = &self.0.tokenizer;
        if let Some(tokenizer) = slot.parsed.get() {
            return Ok(tokenizer);
        }
        let missing = || no_tokenizer(&self.0.place, &slot.searched, self.n_vocab());
        let file = slot.file.as_ref().ok_or_else(missing)?;
        let (budget, bytes) = (&self.0.budget, Tokenizer::memory_bytes(&file.bytes));
        let taken = budget.take(bytes, "the tokenizer");
        taken.map_err(|e| e.at(&self.0.place))?;
        let is_limited = budget.has_limit();
        let parsed = Tokenizer::from_bytes_within(&file.place, &file.bytes, is_limited);
        let parsed = file.bytes.check_readable().and(parsed);
        // It is never read again.
        file.bytes.release(0..file.bytes.len());
        let parsed = parsed.and_then(|t| t.check_fits(self.n_vocab()).map(|()| t));
        let parsed = parsed.inspect_err(|_| budget.give_back(bytes))?;
        let mut is_first = false;
        let tokenizer = slot.parsed.get_or_init(|| {
            is_first = true;
            parsed
        });
        if !is_first {
            budget.give_back(bytes);
        }
        Ok(tokenizer)
    }

    /// Whether a tokenizer came with the model or the options; it may still turn out to be damaged.
    pub fn has_tokenizer(&self) -> bool {
        self.0.tokenizer.file.is_some()
    }

    /// Tokens of the vocabulary: length of a row of logits.
    pub fn n_vocab(&self) -> usize {
        self.0.config.sizes.n_vocab
    }

    /// The token that ends a text. Some models have several, of which this is the first: ask
    /// [`ends_text`](Self::ends_text) whether a token is one of them.
    pub fn end_of_text(&self) -> u32 {
        self.0.config.settings.end_of_text
    }

    /// Whether a token ends a text.
    pub fn ends_text(&self, token: u32) -> bool {
        let mut ends = self.0.config.settings.ends_of_text();
        ends.any(|end| end == token)
    }

    /// Facts about the model.
    pub fn info(&self) -> Info {
        let mut info = Info::of(&self.0);
        info.has_tuned_state = self.1.is_some();
        info
    }

    /// Every tensor, in the order in which a token needs them.
    pub fn tensors(&self) -> Vec<TensorInfo> {
        info::tensors(&self.0.stages)
    }

    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.0.budget
    }

    pub(crate) fn sizes(&self) -> &Sizes {
        &self.0.config.sizes
    }

    pub(crate) fn machine(&self) -> (&Pool, KernelSet) {
        (&self.0.pool, self.0.kernels)
    }

    /// The empty state: of a sequence before its first token. Of a model that brings a tuned initial state, or was
    /// given [one](Self::with_initial_state), it is that one.
    ///
    /// # Panics
    ///
    /// When there is no memory for it, which [`try_new_state`](Self::try_new_state) says.
    pub fn new_state(&self) -> State {
        enough(self.try_new_state())
    }

    /// [`new_state`](Self::new_state) where memory may be short.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Memory`].
    pub fn try_new_state(&self) -> Result<State> {
        State::new(self.0.state_layout(), self.initial().cloned())
    }

    /// Memory for forward passes of at most `rows_max` tokens at once (at least 1); longer spans are cut. A
    /// model with layers on a device takes at most [`prefill_rows`](Self::prefill_rows) at once, and so does
    /// one whose memory is limited.
    ///
    /// # Panics
    ///
    /// When there is no memory for it, which [`try_workspace`](Self::try_workspace) says.
    pub fn workspace(&self, rows_max: usize) -> Workspace {
        enough(self.try_workspace(rows_max))
    }

    /// [`workspace`](Self::workspace) where memory may be short.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Memory`].
    pub fn try_workspace(&self, rows_max: usize) -> Result<Workspace> {
        let workspace = self.uncounted_workspace(rows_max)?;
        let bytes = workspace.size_bytes();
        Ok(Workspace {
            _reservation: Reservation::anyway(self.budget(), bytes),
            ..workspace
        })
    }

    /// A workspace whose memory someone else has counted.
    pub(crate) fn uncounted_workspace(&self, rows_max: usize) -> Result<Workspace> {
        let rows_max = self.rows_within_limit(rows_max);
        let (n_threads, no_sparsity) = (self.0.pool.n_threads(), self.0.no_sparsity);
        let lane = |pipeline: &Pipeline| pipeline.lane(rows_max, n_threads, no_sparsity);
        let lanes = self.0.stages.pipelines.iter().map(lane);
        Ok(Workspace {
            lanes: lanes.collect::<Result<_>>()?,
            _reservation: None,
        })
    }

    fn rows_within_limit(&self, rows: usize) -> usize {
        self.0.budget.rows_max().map_or(rows, |max| rows.min(max))
    }

    /// Counts memory of the caller's own, such as that for many rows of logits, against
    /// [`Options::memory_max`] until what is returned is dropped.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Memory`] when it does not fit; without a limit everything does.
    pub fn reserve_memory(&self, bytes: u64) -> Result<Reservation> {
        Reservation::new(self.budget(), bytes, "a buffer")
    }

    /// Bytes of [`Options::memory_max`] that could still be taken; `None` without a limit.
    pub fn memory_left(&self) -> Option<u64> {
        self.0.budget.left()
    }

    /// Tokens of a prompt to feed at once: more cost memory and bring nothing. f32 weights take more of
    /// them, because their products pack the activations of every piece anew (70 % of the peak with 128 rows,
    /// 77 % with 256), and devices most. Where [`Options::memory_max`] leaves no room for them, fewer.
    pub fn prefill_rows(&self) -> usize {
        let pipeline = &self.0.stages.pipelines[0];
        self.rows_within_limit(match pipeline.placed().is_empty() {
            false => pipeline.rows_max(),
            true => prefill_rows_best(self.0.quant),
        })
    }

    /// Measures what the first device of the model can do at most; takes about a second. `None` for a model
    /// on the CPU, whose limits a [`Yardstick`](crate::Yardstick) measures.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Backend`].
    pub fn device_limits(&self) -> Result<Option<DeviceLimits>> {
        let stage = self.0.stages.pipelines[0].placed().first();
        let limits = |stage: &Arc<crate::devices::plugin::Stage>| {
            stage.plugin().device_limits(stage.device())
        };
        stage.map(limits).transpose()
    }

    /// Gives a state its place on the model's devices, which its first pass does otherwise.
    pub(crate) fn place(&self, state: &mut State) -> Result<()> {
        match &self.0.stages.pipelines[..] {
            [pipeline] => device_state::place(state, pipeline.placed()),
            _ => Ok(()),
        }
    }

    /// Whether the logits are made on a device, from which they would have to come.
    pub(crate) fn ends_on_device(&self) -> bool {
        self.0.stages.pipelines[0].ends_on_device()
    }

    /// A sequence with its own state and memory, at the empty state.
    ///
    /// # Panics
    ///
    /// When there is no memory for it, which [`try_session`](Self::try_session) says.
    pub fn session(&self) -> Session {
        Session::new(self)
    }

    /// [`session`](Self::session) where memory may be short.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Memory`].
    pub fn try_session(&self) -> Result<Session> {
        Session::try_new(self)
    }

    /// Feeds every span's tokens to its state, and writes the logits that the spans ask for to `logits`,
    /// (rows, n_vocab), in the order of spans and tokens.
    ///
    /// Cutting tokens into more spans or calls gives the same states and logits: exactly for int8, to
    /// rounding for f16 and f32, whose sums run in another order for many tokens at once.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`] for a token beyond the vocabulary, logits of no token, a wrong length of
    /// `logits`, or a workspace of another model, [`ErrorKind::State`] for a state of another model,
    /// [`ErrorKind::Backend`] for one that is undefined. Nothing has changed then.
    ///
    /// [`ErrorKind::Format`] when numbers become NaN or infinite, which only weights that are so themselves, or far too
    /// large, can do: opening does not read the floats that it uses in place. The text names the weight where it is
    /// found. When a device fails, [`ErrorKind::Backend`], [`ErrorKind::Memory`] or what else its plugin says. Each
    /// state is then as it was, or is undefined and refused by all later passes: [`State::check`] tells. So
    /// it is after a panic, and after [`ErrorKind::Io`], when a mapped file shrank or could not be read (see
    /// [`open`](Self::open)). What is in `logits` has no meaning.
    pub fn forward(
        &self,
        workspace: &mut Workspace,
        spans: &mut [Span<'_>],
        logits: &mut [f32],
    ) -> Result<()> {
        self.forward_to(workspace, spans, Wanted::Logits(logits))
    }

    /// As [`forward`](Self::forward), but writes the rows asked for as the head would read them:
    /// (rows, n_embd), the residual stream behind the output norm. The head is not computed.
    ///
    /// # Errors
    ///
    /// Those of [`forward`](Self::forward).
    pub fn forward_hidden(
        &self,
        workspace: &mut Workspace,
        spans: &mut [Span<'_>],
        hidden: &mut [f32],
    ) -> Result<()> {
        self.forward_to(workspace, spans, Wanted::Hidden(hidden))
    }

    /// As [`forward`](Self::forward), but writes the token with the largest logit for each row asked for,
    /// the first of equal ones: (rows). Where the head is on a device, the logits need not leave it.
    ///
    /// # Errors
    ///
    /// Those of [`forward`](Self::forward).
    pub fn forward_tokens(
        &self,
        workspace: &mut Workspace,
        spans: &mut [Span<'_>],
        tokens: &mut [u32],
    ) -> Result<()> {
        self.forward_to(workspace, spans, Wanted::Tokens(tokens))
    }

    fn forward_to(
        &self,
        workspace: &mut Workspace,
        spans: &mut [Span<'_>],
        wanted: Wanted<'_>,
    ) -> Result<()> {
        let layout = self.0.state_layout();
        for (index, span) in spans.iter().enumerate() {
            span.check(&layout).map_err(|e| match spans.len() {
                1 => e,
                _ => e.at(format_args!("span {index}")),
            })?;
        }
        let (sizes, stages) = (self.sizes(), &self.0.stages);
        let n_rows: usize = spans.iter().map(Span::n_logit_rows).sum();
        let (width, name) = wanted.width(sizes);
        if n_rows.checked_mul(width) != Some(wanted.len()) {
            return Err(Error::argument(format!(
                "room for {} {name}, expected {n_rows} rows of {width}",
                wanted.len()
            )));
        }
        let (pipelines, lanes) = (&stages.pipelines[..], &mut workspace.lanes[..]);
        let n_threads = self.0.pool.n_threads();
        let mut pairs = pipelines.iter().zip(&*lanes);
        if lanes.len() != pipelines.len() || !pairs.all(|(p, lane)| p.fits(lane, n_threads)) {
            return Err(Error::argument("the workspace belongs to another model"));
        }
        self.check_readable()?;
        let turn = self.0.budget.turn();
        let machine = Machine {
            pool: &self.0.pool,
            kernels: self.0.kernels,
            paging: turn.as_ref().map(|turn| turn.paging),
            observer: None,
        };
        let passed = match (pipelines, lanes) {
            ([pipeline], [lane]) => {
                for span in &mut *spans {
                    if !span.tokens.is_empty() {
                        device_state::place(span.state, pipeline.placed())?;
                    }
                }
                pipeline.forward(machine, lane, spans, wanted)
            }
            (_, lanes) => data_parallel::forward(stages, machine, lanes, spans, wanted, sizes),
        };
        // Weights that are gone come before what came of them.
        self.check_readable()?;
        passed.map_err(|e| match e.kind() {
            // The weights are at fault.
            ErrorKind::Format => e.at(&self.0.place),
            _ => e,
        })?;
        spans.iter_mut().for_each(|span| span.state.end_pass());
        Ok(())
    }
}

impl Inner {
    /// For a copy in one file: what came with the files that this was opened from. A model is whole without it, so
    /// that one which cannot be read is left out.
    fn chat_template(&self) -> Option<ChatTemplate> {
        let found = checkpoint::read_chat_template(self.path.as_deref()?);
        found.unwrap_or_default()
    }

    fn state_layout(&self) -> StateLayout {
        StateLayout::new(&self.config.sizes, self.fingerprint)
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Model").field(&self.info()).finish()
    }
}

/// Those of all mapped files that the networks of these stages read.
fn watches(stages: &Stages) -> Vec<Watch> {
    let matrices = stages.networks().flat_map(|network| network.matrices());
    let files = matrices.filter_map(|matrix| matrix.in_file_bytes());
    Watch::each_once(files.filter_map(FileBytes::watch))
}

fn no_tokenizer(place: &str, searched: &str, n_vocab: usize) -> Error {
    let hint = match n_vocab {
        50_277 => {
            "; a vocabulary of 50277 is that of the 20B tokenizer, which is the file tokenizer.json \
             of EleutherAI/gpt-neox-20b on the Hugging Face hub"
        }
        50_304 => {
            "; a vocabulary of 50304 is that of the 20B tokenizer, padded, which is the file tokenizer.json of \
             EleutherAI/gpt-neox-20b on the Hugging Face hub"
        }
        65_536 => {
            "; a vocabulary of 65536 is that of RWKV World, rwkv_vocab_v20230424.txt of \
             github.com/BlinkDL/ChatRWKV"
        }
        _ => "",
    };
    Error::new(
        ErrorKind::Tokenizer,
        format!(
            "{place}: no tokenizer: {searched}; name one with --tokenizer, or give token ids{hint}"
        ),
    )
}
