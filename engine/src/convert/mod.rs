//! Checkpoints into checkpoints: any form that can be read into a Hugging Face directory, or into
//! BlinkDL's raw form.
//!
//! Input: an open [`Checkpoint`]. Output: files that transformers or torch read. Tensors pass through
//! one at a time, a few megabytes at once, whatever the size of the model, and the pages they come
//! from are released. What is written appears when it is complete, or not at all. This module says
//! what is done in which order; `target.rs` has the numbers, the others a format each.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use crate::checkpoint::{self, Checkpoint, Lora, Opened};
use crate::error::{Error, Result};
use crate::files::output::{folder_of, sync_folder, OutputFile};
use crate::files::{Access, Watch};
use crate::networks::config::Settings;
use crate::networks::known;
use crate::networks::names::{EMBEDDING, HEAD};
use crate::progress::{Counter, Progress, ProgressUnit};

mod folder;
mod hugging_face;
mod raw;
mod safetensors;
mod target;
#[cfg(test)]
mod tests;
mod zip;

use folder::{canonical, ModelFolder};
pub use target::FloatType;
use target::{Spelling, TargetTensor};

/// Takes the next bytes of a file.
type Put<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// As transformers' `save_pretrained`.
const SHARD_BYTES_MAX: Option<NonZeroU64> = NonZeroU64::new(5_000_000_000);

/// How to write a checkpoint; [`Default`] keeps what can be kept.
///
/// ```
/// use rwkv_edge::{ConvertOptions, FloatType};
///
/// let options = ConvertOptions::new().dtype(FloatType::F16).overwrite(true);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "options do nothing until something is written with them"]
pub struct ConvertOptions {
    /// How to store all numbers. `None` keeps every tensor's own type; quantised ones become f32, which
    /// holds them exactly.
    pub dtype: Option<FloatType>,
    /// Replaces a model that is there already.
    pub overwrite: bool,
    /// Hugging Face directory: bytes of tensors in one file at most, unless a single tensor has more. `None`: all of
    /// them in one file. By default 5 GB, as transformers does.
    pub shard_bytes_max: Option<NonZeroU64>,
    /// Hugging Face directory: a tokenizer file that becomes part of it: `tokenizer.json`, or a World
    /// vocabulary. `None` takes over the source's: that of a directory, one inside, or one beside it that fits.
    pub tokenizer: Option<PathBuf>,
}

impl ConvertOptions {
    /// Every tensor with its own type: the [`Default`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`dtype`](field@Self::dtype).
    pub fn dtype(mut self, dtype: impl Into<Option<FloatType>>) -> Self {
        self.dtype = dtype.into();
        self
    }

    /// Sets [`overwrite`](field@Self::overwrite).
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Sets [`shard_bytes_max`](field@Self::shard_bytes_max); 0 is `None`.
    pub fn shard_bytes_max(mut self, bytes: u64) -> Self {
        self.shard_bytes_max = NonZeroU64::new(bytes);
        self
    }

    /// Sets [`tokenizer`](field@Self::tokenizer).
    pub fn tokenizer(mut self, file: impl Into<PathBuf>) -> Self {
        self.tokenizer = Some(file.into());
        self
    }
}

impl Default for ConvertOptions {
    fn default() -> Self {
        ConvertOptions {
            dtype: None,
            overwrite: false,
            shard_bytes_max: SHARD_BYTES_MAX,
            tokenizer: None,
        }
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Converted {
    /// The files with tensors.
    pub weight_files: Vec<PathBuf>,
    /// The files of the tokenizer; in raw form none but that of a file that has its tokenizer inside, which comes into the
    /// folder of the new file where there is none of its name.
    pub tokenizer_files: Vec<PathBuf>,
    /// Of all tensors.
    pub n_params: u64,
    /// Of all tensors.
    pub size_bytes: u64,
    /// The narrowest type that holds every number exactly.
    pub dtype: FloatType,
    /// Files in the folder that are not complete and may still be written by another process. Those of
    /// processes that ended were removed.
    pub unfinished_files: Vec<PathBuf>,
    /// Why the system may not have kept yet that the files are there, which they are, whole: a power failure might
    /// bring the folder back as it was before.
    pub unsynced: Option<String>,
    /// What the new form does not hold of the model, and what other readers of it do not take.
    pub notes: Vec<String>,
}

/// An open checkpoint, to be written in another form.
///
/// ```no_run
/// use rwkv_edge::{CheckpointSource, ConvertOptions};
///
/// # fn main() -> rwkv_edge::Result<()> {
/// let source = CheckpointSource::open("RWKV-4-Pile-169M.pth")?;
/// source.to_hugging_face("rwkv-4-169m-pile", &ConvertOptions::new(), &mut |_| {})?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct CheckpointSource(Checkpoint, Access);

impl CheckpointSource {
    /// Opens a checkpoint: a Hugging Face directory, a `.pth` or `.safetensors` file, a `.bin` file of
    /// rwkv.cpp, or a GGUF file.
    ///
    /// # Errors
    ///
    /// As [`Model::open`](crate::Model::open); [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported)
    /// for a model file, which no longer holds what the checkpoint did.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path.as_ref(), Access::new(true))
    }

    /// As [`open`](Self::open), but reads files instead of mapping them.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    pub fn open_without_mmap(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path.as_ref(), Access::new(false))
    }

    fn open_with(path: &Path, access: Access) -> Result<Self> {
        match checkpoint::open_path(path, access)? {
            Opened::Checkpoint(checkpoint) => Ok(CheckpointSource(*checkpoint, access)),
            Opened::ModelFile(file) => {
                let text =
                    "a model file made by quantize, expected the checkpoint that it was made from";
                Err(Error::unsupported(text).at(file.file.name()))
            }
        }
    }

    /// The checkpoint merged with adapters, in this order. Matrices keep their type: to write sums of a bf16 checkpoint
    /// without rounding them, ask for f32.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open), of the adapters; [`ErrorKind::Argument`](crate::ErrorKind::Argument) for LoRA
    /// without its alpha, or an alpha where there is none.
    pub fn with_loras(mut self, loras: &[Lora]) -> Result<Self> {
        checkpoint::merge_all(&mut self.0, loras, self.1)?;
        Ok(self)
    }

    /// Layers.
    pub fn n_layer(&self) -> usize {
        self.0.config.sizes.n_layer
    }

    /// Width of the residual stream.
    pub fn n_embd(&self) -> usize {
        self.0.config.sizes.n_embd
    }

    /// Tokens of the vocabulary.
    pub fn n_vocab(&self) -> usize {
        self.0.config.sizes.n_vocab
    }

    /// Writes a Hugging Face directory: `config.json`, the weights as safetensors under Hugging Face's
    /// names (of RWKV-4 those of transformers, of RWKV-7 those of flash-linear-attention), their index if they are in several files, `generation_config.json`, and the files of a
    /// tokenizer if there is one. Calls `progress` while it works, which counts bytes of tensors.
    ///
    /// The files come into the folder when all are complete, and then together: whenever the process is killed, what
    /// this crate opens there is all of the earlier model or all of the new one. Other programs that look in the very
    /// moment, or after a kill in it, find no `config.json`; the next conversion into the folder completes it. On
    /// failure the folder is as it was, unless the error says otherwise.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Argument`](crate::ErrorKind::Argument) for a folder with a model in it, unless
    /// `overwrite`; `Unsupported` for RWKV-5.0, and for numbers beyond the range of the wanted type; `Format` for damaged numbers, `Tokenizer`, `Io`.
    pub fn to_hugging_face(
        &self,
        folder: impl AsRef<Path>,
        options: &ConvertOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Converted> {
        let (folder, checkpoint) = (folder.as_ref(), &self.0);
        let architecture = checkpoint.config.sizes.architecture;
        if architecture.is_only_raw {
            let text = format!(
                "{}, which has no form in Hugging Face directories, expected {}: only --to raw can write it",
                architecture.title,
                known::titles()
            );
            return Err(Error::unsupported(text).at(&checkpoint.place));
        }
        let names = &checkpoint.config.sizes.architecture.hugging_face;
        let mut parts = target::parts(checkpoint, options.dtype, Spelling::HuggingFace)?;
        if self.head_is_embedding() {
            // As transformers does: the configuration says that the embedding is the head too.
            let head = names.name(HEAD);
            parts.retain(|part| part.name != head);
        }
        let mut converted = Converted::of(&parts);
        converted.notes = self.refused_sizes();
        let file = options.tokenizer.as_deref();
        let tokenizer = hugging_face::tokenizer(checkpoint, file, &mut converted.notes)?;
        let generation = hugging_face::generation(checkpoint)?;
        let config = hugging_face::config(checkpoint, converted.dtype.torch_name());
        let shard_bytes_max = options.shard_bytes_max.map_or(u64::MAX, NonZeroU64::get);
        let shards = safetensors::split(parts, shard_bytes_max);

        let shard_name = |i: usize| safetensors::file_name(i, shards.len());
        let mut names: BTreeSet<String> = (0..shards.len()).map(shard_name).collect();
        let small_files = tokenizer.iter().chain([&generation, &config]);
        names.extend(small_files.map(|file| file.name.clone()));
        if shards.len() > 1 {
            names.insert(folder::INDEX.to_owned());
        }
        let target = ModelFolder::prepare(folder, names, checkpoint, options.overwrite)?;

        let unfinished = target.unfinished.clone();
        let mut counter = Counter::new(ProgressUnit::Bytes, converted.size_bytes, progress);
        for (i, shard) in shards.iter().enumerate() {
            let mut file = target.create(&shard_name(i))?;
            let written = safetensors::write(&mut file, shard, &mut |n| counter.advance(n));
            Watch::judge_all(&checkpoint.watches(), written)?;
            file.finish()?.rename()?;
            converted.weight_files.push(folder.join(shard_name(i)));
        }
        for file in &tokenizer {
            target.write_whole(file)?;
            converted.tokenizer_files.push(folder.join(&file.name));
        }
        target.write_whole(&generation)?;
        if shards.len() > 1 {
            let bytes = safetensors::index(&shards)?;
            let name = folder::INDEX.to_owned();
            target.write_whole(&hugging_face::SideFile { name, bytes })?;
        }
        target.write_whole(&config)?;
        let unsynced = target.commit()?;
        converted.unsynced = unsynced.map(|error| error.to_string());
        // Those of processes that ended are gone.
        let is_there = |file: &PathBuf| file.exists();
        converted.unfinished_files = unfinished.into_iter().filter(is_there).collect();
        Ok(converted)
    }

    /// Writes one torch file under BlinkDL's names, as the RWKV models are published. Of the options only
    /// `dtype` and `overwrite` count. Calls `progress` while it works, which counts bytes of tensors.
    ///
    /// # Errors
    ///
    /// Those of [`to_hugging_face`](Self::to_hugging_face).
    pub fn to_raw(
        &self,
        file: impl AsRef<Path>,
        options: &ConvertOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Converted> {
        let file = file.as_ref();
        let parts = target::parts(&self.0, options.dtype, Spelling::Raw)?;
        let mut converted = Converted::of(&parts);
        self.check_target(file, options.overwrite)?;
        let mut counter = Counter::new(ProgressUnit::Bytes, converted.size_bytes, progress);
        let output = OutputFile::create(file)?;
        let written = raw::write(output, &parts, &mut |n| counter.advance(n));
        let output = Watch::judge_all(&self.0.watches(), written)?;
        output.finish()?.rename()?;
        // The file is there, whole.
        let unsynced = sync_folder(folder_of(file)).err();
        converted.unsynced = unsynced.map(|error| error.to_string());
        converted.weight_files.push(file.to_owned());
        converted.notes = self.lost_settings();
        converted.tokenizer_files = self.write_tokenizer_inside(folder_of(file))?;
        converted
            .notes
            .extend(self.left_tokenizer(folder_of(file))?);
        Ok(converted)
    }

    /// Sizes with which the programs of Hugging Face directories refuse a model, although `config.json` says them.
    fn refused_sizes(&self) -> Vec<String> {
        let sizes = &self.0.config.sizes;
        let architecture = sizes.architecture;
        let derived = (architecture.hugging_face.config.derived)(sizes).into_iter();
        let refused = derived.filter(|(_, found, theirs)| found != theirs);
        let texts = refused.map(|(what, found, theirs)| {
            format!(
                "{what}: {found}, where the code that is published with {} models takes {theirs} whatever config.json says: it \
                 will refuse this model, which rwkv-edge reads",
                architecture.title
            )
        });
        texts.collect()
    }

    /// Constants that a raw checkpoint has no place for, and that its readers take to be what they mostly are.
    fn lost_settings(&self) -> Vec<String> {
        let (found, usual) = (self.0.config.settings, Settings::default());
        let epsilons = [
            ("norms", found.layer_norm_epsilon, usual.layer_norm_epsilon),
            (
                "norms of heads",
                found.head_norm_epsilon,
                usual.head_norm_epsilon,
            ),
        ];
        let lost = epsilons
            .into_iter()
            .filter(|(_, found, usual)| found != usual);
        let texts = lost.map(|(what, found, usual)| {
            format!(
                "the epsilon of {what} is {found} and not part of a raw checkpoint: readers of it take {usual}, which \
                 changes results a little"
            )
        });
        texts.collect()
    }

    /// What is said of a tokenizer that stays where it is, beside the source, unless the new file lies there, too.
    fn left_tokenizer(&self, folder: &Path) -> Result<Option<String>> {
        let beside = self.0.tokenizer.as_ref();
        let Some(beside) = beside.filter(|_| !self.0.has_tokenizer_inside) else {
            return Ok(None);
        };
        if canonical(&folder.join(&beside.name))? == canonical(Path::new(&beside.place))? {
            return Ok(None);
        }
        Ok(Some(format!(
            "{}: no part of a raw checkpoint: copy it beside the new file, too",
            beside.place
        )))
    }

    /// The vocabulary of a file that has it inside, beside its weights in raw form.
    fn write_tokenizer_inside(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let inside = self.0.tokenizer.as_ref();
        let Some(inside) = inside.filter(|_| self.0.has_tokenizer_inside) else {
            return Ok(Vec::new());
        };
        let path = folder.join(&inside.name);
        if canonical(&path)?.is_some() {
            return Ok(Vec::new());
        }
        let mut output = OutputFile::create(&path)?;
        output.write(&inside.bytes)?;
        output.commit()?;
        Ok(vec![path])
    }

    fn check_target(&self, file: &Path, overwrite: bool) -> Result<()> {
        let there = canonical(file)?;
        if there.is_none() {
            return Ok(());
        }
        for tensor in self.0.tensors.values() {
            if canonical(Path::new(tensor.file.name()))? == there {
                let text = "is the checkpoint itself, expected another file to write to";
                return Err(Error::argument(text).at(file.display()));
            }
        }
        if !overwrite {
            let text = "is there already: name another file, or replace it with --force";
            return Err(Error::argument(text).at(file.display()));
        }
        Ok(())
    }

    /// Whether the head is not stored by itself.
    fn head_is_embedding(&self) -> bool {
        let tensor = |name: &str| self.0.tensors.get(name).map(checkpoint::RawTensor::place);
        self.0.config.settings.tie_word_embeddings && tensor(HEAD) == tensor(EMBEDDING)
    }
}

impl Converted {
    fn of(parts: &[TargetTensor<'_>]) -> Self {
        Converted {
            weight_files: Vec::new(),
            tokenizer_files: Vec::new(),
            n_params: parts.iter().map(TargetTensor::len).sum(),
            size_bytes: parts.iter().map(TargetTensor::size_bytes).sum(),
            dtype: target::common_type(parts),
            unfinished_files: Vec::new(),
            unsynced: None,
            notes: Vec::new(),
        }
    }
}
