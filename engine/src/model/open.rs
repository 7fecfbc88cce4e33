//! From files and images to a model.

#![forbid(unsafe_code)]

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;

use super::calibration::{self, Calibration};
use super::huge_pages::copy_to_huge_pages;
use super::load;
use super::options::n_threads;
use super::origin::Origin;
use super::outline::Outline;
use super::{no_tokenizer, Model, Options, Setup};
use crate::checkpoint::{self, ChatTemplate, Opened, TokenizerFile};
use crate::devices::names::DeviceMap;
use crate::devices::plan::{Plan, Request};
use crate::error::{Error, Result};
use crate::files::{Folder, SourceFile, Watch};
use crate::math::kernels::KernelSet;
use crate::math::threads::Pool;
use crate::memory::fit::{Demand, Limit};
use crate::networks::mix::Mix;
use crate::networks::state::StateLayout;
use crate::networks::Machine;
use crate::progress::Progress;
use crate::quant::Quant;
use crate::text::tokenizer::Tokenizer;

impl Model {
    /// Opens a Hugging Face directory, a `.pth` or `.safetensors` checkpoint, a GGUF file, a `.bin` file of rwkv.cpp, or
    /// a model file.
    ///
    /// Weights that are stored as wanted are used from the mapped file; others are converted, tensor by
    /// tensor.
    ///
    /// # Files that change
    ///
    /// A mapped file is not copied: it has to stay as it is while the model is open. To replace one, write the new file
    /// under another name and rename it, as this crate does; the model then goes on with the old one. Of a file that is
    /// changed in place:
    ///
    /// * Other bytes are not noticed, and give other results. [`verify`](Self::verify) finds them.
    /// * Bytes that are not there any more, because the file was cut or its disk failed, end the process with SIGBUS when
    ///   they are read, as with any mapped file. Where the program has called
    ///   [`install_sigbus_handler`](crate::install_sigbus_handler) the call that read them fails with
    ///   [`ErrorKind::Io`](crate::ErrorKind::Io) instead, and so do all later ones. What is cut within the last page of
    ///   a file, some 4 KiB, reads as zeros: opening, saving and converting notice that, forward passes do not.
    /// * File systems of a network can lose a file that another machine replaces or removes, even by renaming: it
    ///   may read as if it were cut.
    ///
    /// [`Options::no_mmap`](Options::no_mmap()) reads the file into memory while it is opened; nothing that happens to it then matters.
    ///
    /// # Errors
    ///
    /// Every [`ErrorKind`](crate::ErrorKind) but `State`, with the file and tensor that is at fault.
    pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Self> {
        Self::open_with_progress(path, options, &mut |_| {})
    }

    /// As [`open`](Self::open), and calls `progress` while it works, which counts weights.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    pub fn open_with_progress(
        path: impl AsRef<Path>,
        options: &Options,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        options.check()?;
        let path = path.as_ref();
        let opened = checkpoint::open_path(path, options.access())?;
        Self::from_opened((opened, Some(path)), options, None, progress)
    }

    /// Opens a checkpoint and quantises it by what a text does to it: `tokens`, read from the empty state on. The weights of a
    /// layer are rounded so that their errors make up for each other on what the layers in front of it give. Where
    /// [`Options::target`](field@Options::target) is set, the formats are chosen by that text before, each by what rounding the
    /// matrix alone does to predictions; all weights are in memory as floats for that.
    ///
    /// Takes several times as long as [`open`](Self::open), in proportion to the tokens and to the size of the model; some
    /// thousand tokens of text like that which the model is for are enough. The same tokens give the same model, for any
    /// number of threads, on CPUs of one kind. The formats are those of [`Options::quant`](field@Options::quant) or
    /// [`Options::target`](field@Options::target), of 4 to 6 bits; the model is used and saved as any. `progress` counts
    /// weights, once for each of the two steps.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open); [`ErrorKind::Argument`](crate::ErrorKind::Argument) for no tokens, or one that is not
    /// of the vocabulary; [`ErrorKind::Format`](crate::ErrorKind::Format) where they lead to numbers that are not finite;
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for a model file, floats, int8, layers on devices, or a
    /// limit of memory, which does not count what this takes.
    pub fn open_calibrated(
        path: impl AsRef<Path>,
        options: &Options,
        tokens: &[u32],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        options.check()?;
        let path = path.as_ref();
        let opened = checkpoint::open_path(path, options.access())?;
        Self::from_opened((opened, Some(path)), options, Some(tokens), progress)
    }

    /// Opens a model file, or a checkpoint of one file, that lies in memory, such as in memory-mapped flash.
    ///
    /// Where the image is aligned to 64 bytes, matrices that are stored as wanted are used in place, and
    /// nothing but vectors and scales is copied; else they are copied. `name` is what error texts call it.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    pub fn open_image(name: &str, image: &'static [u8], options: &Options) -> Result<Self> {
        options.check()?;
        let opened = checkpoint::open_image(name, image)?;
        Self::from_opened((opened, None), options, None, &mut |_| {})
    }

    /// Opens a Hugging Face directory that is part of the program: (file name, content) pairs, such as
    /// `include_bytes!` gives.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    pub fn open_embedded(
        files: &'static [(&'static str, &'static [u8])],
        options: &Options,
    ) -> Result<Self> {
        let opened = checkpoint::open_folder(Folder::Memory(files), true)?;
        Self::from_opened((opened, None), options, None, &mut |_| {})
    }

    /// Opens only the tokenizer of a model, reading no weights.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open) and [`tokenizer`](Self::tokenizer).
    pub fn open_tokenizer(path: impl AsRef<Path>, options: &Options) -> Result<Tokenizer> {
        let opened = checkpoint::open_path(path.as_ref(), options.access())?;
        let origin = Origin::new(opened, options.tokenizer.is_some())?;
        let n_vocab = origin.config().sizes.n_vocab;
        let is_limited = options.memory_max.is_some();
        let tokenizer = match (&options.tokenizer, origin.tokenizer()) {
            (Some(path), _) => Tokenizer::open_within(path, is_limited)?,
            (None, Some(file)) => {
                let tokenizer = Tokenizer::from_bytes_within(&file.place, &file.bytes, is_limited);
                file.bytes.check_readable().and(tokenizer)?
            }
            (None, None) => {
                let place = path.as_ref().display().to_string();
                return Err(no_tokenizer(&place, origin.tokenizer_search(), n_vocab));
            }
        };
        tokenizer.check_fits(n_vocab)?;
        Ok(tokenizer)
    }

    /// Reads the headers of a model's files: a matter of milliseconds for any size.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open) that concern names, shapes and sizes.
    pub fn outline(path: impl AsRef<Path>, options: &Options) -> Result<Outline> {
        let opened = checkpoint::open_path(path.as_ref(), options.access())?;
        let origin = Origin::new(opened, options.tokenizer.is_some())?;
        Ok(Outline {
            n_vocab: origin.config().sizes.n_vocab,
            has_tokenizer: origin.tokenizer().is_some(),
            stored: origin.stored_quant(),
            stored_blocks: origin.stored_blocks(),
            is_model_file: origin.is_model_file(),
        })
    }

    /// The chat template that comes with a model: of a folder its `chat_template.jinja` or that in its
    /// `tokenizer_config.json`; of a GGUF or model file that within it, and of any file without one the same as of the
    /// folder that it lies in. `None` where there is none. Weights are not read.
    ///
    /// # Errors
    ///
    /// When the files cannot be read, are damaged, or larger than templates are.
    pub fn chat_template(path: impl AsRef<Path>) -> Result<Option<ChatTemplate>> {
        checkpoint::read_chat_template(path.as_ref())
    }

    fn from_opened(
        (mut opened, path): (Opened, Option<&Path>),
        options: &Options,
        tokens: Option<&[u32]>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        if tokens.is_some() && options.memory_max.is_some() {
            let text = "a limit of memory does not count what a calibration takes, expected none";
            return Err(Error::unsupported(text));
        }
        merge(&mut opened, options)?;
        let quant = mix(&mut opened, options, tokens, progress)?;
        let origin = Origin::new(opened, options.tokenizer.is_some())?;
        let watches = origin.watches();
        let model = Self::from_origin((origin, path), (quant, tokens), options, progress);
        Watch::judge_all(&watches, model)
    }

    fn from_origin(
        (mut origin, path): (Origin, Option<&Path>),
        (quant, tokens): (Option<Quant>, Option<&[u32]>),
        options: &Options,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let kernels = KernelSet::select()?;
        let n_threads = n_threads(options.threads)?;
        let plan = Plan::new(&Request {
            map: &options.device_map,
            memory_max: &options.device_memory_max,
            config: origin.config(),
            quant,
            stored: origin.stored_quant(),
        })?;
        let mut facts = origin.facts(&plan, options.huge_pages);
        if let Some(path) = &options.tokenizer {
            let tokenizer = Tokenizer::memory_bytes_of_file(path);
            facts.tokenizer = tokenizer.saturating_add(Tokenizer::PROMPT_BYTES);
        }
        let limit = Limit {
            memory_max: options.memory_max.map(NonZeroU64::get),
            taken: options.memory_taken,
            for_text: options.memory_for_text,
        };
        let demand = Demand::of(&facts, &plan, &limit, n_threads);
        let is_short = demand.fit(limit.memory_max)?.window.is_some();
        if options.huge_pages {
            copy_to_huge_pages(&mut origin, &plan)?;
        }
        let pool = Pool::new(n_threads);
        let calibration = tokens.map(|tokens| Calibration {
            tokens,
            machine: Machine {
                pool: &pool,
                kernels,
                paging: None,
                observer: None,
            },
        });
        if let Some(calibration) = &calibration {
            calibration.check(origin.config(), &plan)?;
        }
        let mut loaded = origin.load(&plan, &pool, is_short, calibration.as_ref(), progress)?;
        let budget = demand.budget(&loaded.stages, limit.memory_max)?;
        if let Some(path) = &options.tokenizer {
            let file = SourceFile::open_without_mapping(path)?;
            loaded.tokenizer = Some(TokenizerFile {
                name: path.display().to_string(),
                place: path.display().to_string(),
                bytes: file.bytes(0..file.len())?,
            });
        }
        let setup = Setup {
            quant: plan.quant(),
            pool: Arc::new(pool),
            kernels,
            no_sparsity: options.no_sparsity,
            budget,
            note: plan.note,
            path: path.map(Path::to_owned),
        };
        Ok(Model::assemble(loaded, setup))
    }
}

/// Chooses formats for a size, where one is given, with a text by what rounding does to it. Returns what the model is stored as.
fn mix(
    opened: &mut Opened,
    options: &Options,
    tokens: Option<&[u32]>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Option<Quant>> {
    let Some(target) = options.target else {
        return Ok(options.quant);
    };
    if options.device_map != DeviceMap::default() {
        let text = "a mix of formats for a size, and a map of devices: expected one of them";
        return Err(Error::argument(text));
    }
    match opened {
        Opened::Checkpoint(checkpoint) => {
            let sizes = &checkpoint.config.sizes;
            let tokenizer_bytes = match (&options.tokenizer, &checkpoint.tokenizer) {
                // What is wrong with it, opening it tells.
                (Some(path), _) => std::fs::metadata(path).map_or(0, |file| file.len()),
                (None, Some(file)) => file.bytes.len() as u64,
                (None, None) => 0,
            };
            let state_bytes = match checkpoint.tuned {
                Some(_) => StateLayout::of_sizes(sizes).size_bytes() as u64,
                None => 0,
            };
            let more_bytes = tokenizer_bytes + state_bytes;
            // Too small a target is refused before minutes of work.
            let mix = Mix::new(sizes, target, more_bytes, |_| None);
            let mut mix = mix.map_err(|e| e.at(&checkpoint.place))?;
            if let Some(tokens) = tokens {
                calibration::check_tokens(tokens, sizes.n_vocab)?;
                let pool = Pool::new(n_threads(options.threads)?);
                let machine = Machine {
                    pool: &pool,
                    kernels: KernelSet::select()?,
                    paging: None,
                    observer: None,
                };
                let damages = load::damages(checkpoint, (machine, tokens), progress)?;
                mix = Mix::new(sizes, target, more_bytes, |tensor| damages.of(tensor))?;
            }
            let quant = mix.quant;
            checkpoint.mix = Some(mix);
            Ok(Some(quant))
        }
        Opened::ModelFile(file) => {
            let text = "a model file, expected the checkpoint that it was made from: formats are mixed from that";
            Err(Error::unsupported(text).at(file.file.name()))
        }
    }
}

/// Adds the adapters of the options to what was opened.
fn merge(opened: &mut Opened, options: &Options) -> Result<()> {
    match opened {
        _ if options.loras.is_empty() => Ok(()),
        Opened::Checkpoint(checkpoint) => {
            checkpoint::merge_all(checkpoint, &options.loras, options.access())
        }
        Opened::ModelFile(file) => {
            let text = "a model file, whose weights are quantised already, expected the checkpoint that it was made \
                        from: adapters are merged before that";
            Err(Error::unsupported(text).at(file.file.name()))
        }
    }
}
