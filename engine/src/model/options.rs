//! How to open a model.

#![forbid(unsafe_code)]

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use crate::checkpoint::Lora;
use crate::devices::names::{Device, DeviceMap};
use crate::error::{Error, Result};
use crate::files::Access;
use crate::networks::mix::Target;
use crate::quant::Quant;

/// More threads than any machine this is made for has cores.
const THREADS_MAX: usize = 1024;

/// How to open a model.
///
/// ```
/// use rwkv_edge::{Options, Quant};
///
/// let options = Options::new().quant(Quant::Int8).threads(2);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "options do nothing until a model is opened with them"]
pub struct Options {
    /// What to turn the matrices into; `None` keeps them as they are stored (bf16 becomes f16, and so do
    /// all matrices of a quantised file of rwkv.cpp or llama.cpp).
    pub quant: Option<Quant>,
    /// Mixes formats of 4 to 8 bits so that the model is at most so large, with the least expected damage; for checkpoints, and
    /// instead of [`quant`](field@Self::quant).
    pub target: Option<Target>,
    /// Threads that work on one forward pass, the caller's own included. `None`: one for each physical core
    /// that this process may use. 1: no thread is ever started, but one for each further device of
    /// [`DeviceMap::DataParallel`].
    pub threads: Option<NonZeroUsize>,
    /// A tokenizer file to use instead of the one in or beside the model.
    pub tokenizer: Option<PathBuf>,
    /// Reads files into memory instead of mapping them.
    pub no_mmap: bool,
    /// Copies weights that are used as their files store them into memory of this process, in huge pages where the
    /// system has them: faster to read than the 4 KiB pages of a mapped file, and not shared with other processes. Those
    /// of a whole model on the CPU only, and neither those that are converted while loading nor those that lie in memory
    /// already, such as in an image; [`Info::huge_page_bytes`](crate::Info::huge_page_bytes) are how many there are. With
    /// [`no_mmap`](field@Self::no_mmap) files are not mapped to be copied, either.
    pub huge_pages: bool,
    /// Reads the weights of hidden units that are 0 too: the same results, slower. For measuring.
    pub no_sparsity: bool,
    /// Bytes that the model and its sessions may keep in memory, a mapped file included. `None`: no limit.
    ///
    /// Weights that are used in place from a mapped file and do not fit are read from it again for every
    /// batch, with the same results, slower, and by one caller at a time; prompts may go in shorter pieces.
    /// A model that does not even fit so, together with one session, is refused before its weights are read;
    /// [`Session::with_all_memory`](crate::Session::with_all_memory), [`Model::tokenizer`](crate::Model::tokenizer),
    /// [`Model::tokenize`](crate::Model::tokenize) and
    /// [`Model::reserve_memory`](crate::Model::reserve_memory) refuse what does not
    /// fit any more. Other sessions, and workspaces, are counted but not refused.
    ///
    /// What layers on devices need of the devices' memory is not counted, and is checked by itself.
    pub memory_max: Option<NonZeroU64>,
    /// Whether the tokenizer, too, has to fit into `memory_max`; else a model that leaves no room for it is
    /// opened all the same, and refuses the first text.
    pub memory_for_text: bool,
    /// Bytes of `memory_max` that the process has taken otherwise, such as for its program: as if the model
    /// took them.
    pub memory_taken: u64,
    /// Where the layers run. The weights of those on a device are not kept in this machine's memory.
    pub device_map: DeviceMap,
    /// Bytes that may be taken of a device; without a limit what is free of it.
    pub device_memory_max: Vec<(Device, u64)>,
    /// Adapters, such as LoRA, that are merged with the weights of a checkpoint while they are loaded, in this order;
    /// [`Lora`] says which. Matrices are then as of the merged checkpoint: the sums are made in f32 and then quantised. A
    /// model file is refused: its weights are quantised already. A merged model counts as another checkpoint than its
    /// base: states of the one do not fit the other. [`Model::open_tokenizer`](crate::Model::open_tokenizer) and
    /// [`Model::outline`](crate::Model::outline) do not look at them.
    pub loras: Vec<Lora>,
}

impl Options {
    /// Matrices as they are stored, on the CPU, without limits: the [`Default`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`quant`](field@Self::quant).
    pub fn quant(mut self, quant: impl Into<Option<Quant>>) -> Self {
        self.quant = quant.into();
        self
    }

    /// Sets [`target`](field@Self::target).
    pub fn target(mut self, target: impl Into<Option<Target>>) -> Self {
        self.target = target.into();
        self
    }

    /// Sets [`threads`](field@Self::threads); 0 is `None`.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = NonZeroUsize::new(threads);
        self
    }

    /// Sets [`tokenizer`](field@Self::tokenizer).
    pub fn tokenizer(mut self, file: impl Into<PathBuf>) -> Self {
        self.tokenizer = Some(file.into());
        self
    }

    /// Sets [`no_mmap`](field@Self::no_mmap).
    pub fn no_mmap(mut self, no_mmap: bool) -> Self {
        self.no_mmap = no_mmap;
        self
    }

    /// Sets [`huge_pages`](field@Self::huge_pages).
    pub fn huge_pages(mut self, huge_pages: bool) -> Self {
        self.huge_pages = huge_pages;
        self
    }

    /// Sets [`no_sparsity`](field@Self::no_sparsity).
    pub fn no_sparsity(mut self, no_sparsity: bool) -> Self {
        self.no_sparsity = no_sparsity;
        self
    }

    /// Sets [`memory_max`](field@Self::memory_max); 0 is `None`.
    pub fn memory_max(mut self, bytes: u64) -> Self {
        self.memory_max = NonZeroU64::new(bytes);
        self
    }

    /// Sets [`memory_for_text`](field@Self::memory_for_text).
    pub fn memory_for_text(mut self, memory_for_text: bool) -> Self {
        self.memory_for_text = memory_for_text;
        self
    }

    /// Sets [`memory_taken`](field@Self::memory_taken).
    pub fn memory_taken(mut self, bytes: u64) -> Self {
        self.memory_taken = bytes;
        self
    }

    /// Sets [`device_map`](field@Self::device_map).
    pub fn device_map(mut self, map: DeviceMap) -> Self {
        self.device_map = map;
        self
    }

    /// Sets [`device_memory_max`](field@Self::device_memory_max).
    pub fn device_memory_max(mut self, limits: impl Into<Vec<(Device, u64)>>) -> Self {
        self.device_memory_max = limits.into();
        self
    }

    /// Adds one of [`loras`](field@Self::loras): its file, and the alpha that it was trained with, if it has one.
    ///
    /// ```no_run
    /// use rwkv_edge::{Model, Options};
    ///
    /// # fn main() -> rwkv_edge::Result<()> {
    /// let options = Options::new().lora("rwkv-0.pth", 32.0);
    /// let model = Model::open("RWKV-x070-World-0.1B.pth", &options)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn lora(mut self, file: impl Into<PathBuf>, alpha: impl Into<Option<f64>>) -> Self {
        self.loras.push(Lora::new(file, alpha));
        self
    }

    /// Whether the options are within their ranges; opening says the same.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for too many threads.
    pub fn check(&self) -> Result<()> {
        n_threads(self.threads).map(|_| ())
    }

    /// How files are opened.
    pub(crate) fn access(&self) -> Access {
        Access::new(!self.no_mmap)
    }
}

/// The number of threads that an option means.
pub(crate) fn n_threads(wanted: Option<NonZeroUsize>) -> Result<usize> {
    if let Some(wanted) = wanted.filter(|wanted| wanted.get() > THREADS_MAX) {
        return Err(Error::argument(format!(
            "{wanted} threads, expected at most {THREADS_MAX}"
        )));
    }
    Ok(match (cfg!(feature = "threads"), wanted) {
        (false, _) => 1,
        (true, None) => cores(),
        (true, Some(wanted)) => wanted.get(),
    })
}

#[cfg(feature = "threads")]
fn cores() -> usize {
    // A process may be confined to fewer processors than there are cores.
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    num_cpus::get_physical().min(allowed).max(1)
}

#[cfg(not(feature = "threads"))]
fn cores() -> usize {
    1
}
