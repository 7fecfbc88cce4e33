//! From files, images and names of sizes to a model.

#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;

use super::options::n_threads;
use super::{no_tokenizer, Model, Options};
use crate::checkpoint::{self, Opened, TokenizerFile};
use crate::error::Result;
use crate::file::{Folder, SourceFile};
use crate::fit::Demand;
use crate::format;
use crate::kernels::KernelSet;
use crate::load;
use crate::matrix::Quant;
use crate::plan::{Plan, Request};
use crate::synthetic::{self, SyntheticSize};
use crate::threads::Pool;
use crate::tokenizer::Tokenizer;

impl Model {
    /// Opens a Hugging Face directory, a `.pth` or `.safetensors` checkpoint, a `.bin` file of rwkv.cpp, or
    /// a model file.
    ///
    /// Weights that are stored as wanted are used from the mapped file; others are converted, tensor by
    /// tensor.
    ///
    /// # Errors
    ///
    /// Every [`ErrorKind`](crate::ErrorKind) but `State`, with the file and tensor that is at fault.
    pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Self> {
        Self::open_with_progress(path, options, &mut |_, _| {})
    }

    /// As [`open`](Self::open), and calls `progress(done, total)`, in weights, while it works.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    pub fn open_with_progress(
        path: impl AsRef<Path>,
        options: &Options,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        options.check()?;
        let opened = checkpoint::open_path(path.as_ref(), options.access())?;
        Self::from_opened(opened, options, progress)
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
        Self::from_opened(opened, options, &mut |_, _| {})
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
        Self::from_opened(opened, options, &mut |_, _| {})
    }

    /// Opens only the tokenizer of a model, reading no weights.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open) and [`tokenizer`](Self::tokenizer).
    pub fn open_tokenizer(path: impl AsRef<Path>, options: &Options) -> Result<Tokenizer> {
        let (n_vocab, file, searched) =
            match checkpoint::open_path(path.as_ref(), options.access())? {
                Opened::Checkpoint(c) => (c.config.n_vocab, c.tokenizer, c.tokenizer_search),
                Opened::ModelFile(file) => format::tokenizer(&file)?,
            };
        let tokenizer = match (&options.tokenizer, file) {
            (Some(path), _) => Tokenizer::open(path)?,
            (None, Some(file)) => Tokenizer::from_bytes(&file.name, &file.bytes)?,
            (None, None) => {
                return Err(no_tokenizer(
                    &path.as_ref().display().to_string(),
                    &searched,
                    n_vocab,
                ))
            }
        };
        tokenizer.check_fits(n_vocab)?;
        Ok(tokenizer)
    }

    /// A model of a published size with made-up weights: for measuring speed and memory, which do not
    /// depend on what the weights are. The same seedless weights every time. About half of the hidden
    /// units of the channel mixing are 0, where trained models have more.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for too many threads, [`ErrorKind::Memory`](crate::ErrorKind::Memory).
    pub fn synthetic(
        size: SyntheticSize,
        options: &Options,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let kernels = KernelSet::select()?;
        let pool = Pool::new(n_threads(options.threads)?);
        let plan = Plan::new(&Request {
            map: &options.device_map,
            memory_max: &options.device_memory_max,
            config: &size.config(),
            quant: options.quant,
            stored: Quant::F16,
        })?;
        let mut inner = synthetic::build(size, &plan, pool, kernels, progress)?;
        inner.no_sparsity = options.no_sparsity;
        Ok(Model(Arc::new(inner)))
    }

    fn from_opened(
        mut opened: Opened,
        options: &Options,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let kernels = KernelSet::select()?;
        let n_threads = n_threads(options.threads)?;
        let plan = plan(&opened, options)?;
        let demand = Demand::of(&opened, &plan, options, n_threads)?;
        let is_short = demand.fit(options.memory_max)?.window.is_some();
        if options.huge_pages {
            load::copy_to_huge_pages(&mut opened, &plan)?;
        }
        let pool = Pool::new(n_threads);
        let mut inner = match opened {
            Opened::Checkpoint(checkpoint) => {
                load::load(checkpoint, &plan, pool, kernels, is_short, progress)?
            }
            Opened::ModelFile(file) => format::read(file, &plan, pool, kernels, is_short)?,
        };
        inner.no_sparsity = options.no_sparsity;
        inner.budget = demand.budget(&inner.stages, options.memory_max)?;
        if let Some(path) = &options.tokenizer {
            let file = SourceFile::open_without_mapping(path)?;
            inner.tokenizer.file = Some(TokenizerFile {
                name: path.display().to_string(),
                bytes: file.bytes(0..file.len())?,
            });
        }
        Ok(Model(Arc::new(inner)))
    }
}

/// Where the layers of an opened model go.
fn plan(opened: &Opened, options: &Options) -> Result<Plan> {
    let of_file;
    let (config, stored) = match opened {
        Opened::Checkpoint(checkpoint) => (&checkpoint.config, load::stored_quant(checkpoint)),
        Opened::ModelFile(file) => {
            of_file = format::config_and_quant(file)?;
            (&of_file.0, of_file.1)
        }
    };
    Plan::new(&Request {
        map: &options.device_map,
        memory_max: &options.device_memory_max,
        config,
        quant: options.quant,
        stored,
    })
}
