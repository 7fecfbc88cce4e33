//! `rwkv-edge convert`: any checkpoint to a Hugging Face directory, or to BlinkDL's raw form.
//!
//! The flags of transformers' convert_rwkv_checkpoint_to_hf.py, in its spelling and in ours.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use clap::ValueEnum;
use rwkv_edge::{CheckpointSource, ConvertOptions, Converted, FloatType};
use serde_json::json;

use crate::byte_size::ByteSize;
use crate::lora::LoraArgs;
use crate::progress::Progress;
use crate::{hub, note, paths, UsageError};

/// As transformers has it.
const SHARD_BYTES_MAX: ByteSize = ByteSize(5_000_000_000);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Checkpoint: a .pth, .safetensors, .gguf or rwkv.cpp .bin file, a directory, or a file of --repo-id
    #[arg(short = 'm', long, value_name = "PATH")]
    #[arg(alias = "checkpoint_file", visible_alias = "model")]
    checkpoint_file: PathBuf,

    /// Directory to write to; with --to raw a .pth file or its directory
    #[arg(short, long, value_name = "PATH")]
    #[arg(alias = "output_dir", visible_alias = "output")]
    output_dir: PathBuf,

    /// What to write
    #[arg(long, value_enum, default_value_t = Form::Hf)]
    to: Form,

    /// How to store the numbers [default: as they are; quantised ones in f32]
    #[arg(long)]
    dtype: Option<Dtype>,

    /// Tokenizer file that becomes part of the directory
    #[arg(long, value_name = "FILE", alias = "tokenizer_file")]
    tokenizer_file: Option<PathBuf>,

    /// Published size of RWKV-4 that the checkpoint must have
    #[arg(long, ignore_case = true)]
    size: Option<Size>,

    /// Bytes of one file at most, such as 300KB or 2GB [default: 5GB]
    ///
    /// KB, MB and GB are powers of 1000; KiB, MiB, GiB and K, M, G of 1024.
    #[arg(long, value_name = "SIZE", alias = "max_shard_size")]
    max_shard_size: Option<ByteSize>,

    /// Replace the model that is there already
    #[arg(long)]
    force: bool,

    /// Read the checkpoint instead of mapping its files
    #[arg(long)]
    no_mmap: bool,

    #[command(flatten)]
    lora: LoraArgs,

    /// Print one JSON object about what was written
    #[arg(long)]
    json: bool,

    /// Hub repository to download --checkpoint-file from, where it is no local path
    #[arg(long, value_name = "ID", alias = "repo_id")]
    repo_id: Option<String>,

    /// Upload the directory to the hub, as --model-name
    #[arg(long, alias = "push_to_hub", requires = "model_name")]
    push_to_hub: bool,

    /// Name of the uploaded model, with its owner
    #[arg(long, value_name = "ID", alias = "model_name")]
    model_name: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A Hugging Face directory, of RWKV-4 as transformers writes it, of RWKV-7 as flash-linear-attention, of RWKV-5 and 6
    /// as the code published with them
    Hf,
    /// A .pth file as the RWKV models are published
    Raw,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    F16,
    Bf16,
}

impl From<Dtype> for FloatType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => FloatType::F32,
            Dtype::F16 => FloatType::F16,
            Dtype::Bf16 => FloatType::Bf16,
        }
    }
}

/// Published sizes of RWKV-4.
#[derive(Clone, Copy, ValueEnum)]
enum Size {
    #[value(name = "169M")]
    M169,
    #[value(name = "430M")]
    M430,
    #[value(name = "1B5")]
    B1_5,
    #[value(name = "3B")]
    B3,
    #[value(name = "7B")]
    B7,
    #[value(name = "14B")]
    B14,
}

impl Size {
    /// Layers and width.
    fn shape(self) -> (usize, usize) {
        match self {
            Size::M169 => (12, 768),
            Size::M430 => (24, 1024),
            Size::B1_5 => (24, 2048),
            Size::B3 => (32, 2560),
            Size::B7 => (32, 4096),
            Size::B14 => (40, 5120),
        }
    }

    fn check(self, source: &CheckpointSource, path: &Path) -> Result<()> {
        let (found, expected) = ((source.n_layer(), source.n_embd()), self.shape());
        if found == expected {
            return Ok(());
        }
        let value = self.to_possible_value();
        bail!(
            "{}: {} layers of width {}, expected {} of width {} by --size {}",
            path.display(),
            found.0,
            found.1,
            expected.0,
            expected.1,
            value.as_ref().map_or("", |value| value.get_name())
        )
    }
}

impl Args {
    /// Options that would change nothing are an error.
    fn check(&self) -> Result<()> {
        let of_directories = [
            ("--tokenizer-file", self.tokenizer_file.is_some()),
            ("--max-shard-size", self.max_shard_size.is_some()),
            ("--push-to-hub", self.push_to_hub),
            ("--model-name", self.model_name.is_some()),
        ];
        let extension = self.output_dir.extension().and_then(|e| e.to_str());
        let names_file = matches!(extension, Some("pth" | "pt" | "bin" | "safetensors"));
        if self.to == Form::Hf && names_file && !self.output_dir.is_dir() {
            let text = format!(
                "{}: a directory is written here, expected a name for one; one .pth file is written with --to raw",
                self.output_dir.display()
            );
            return Err(UsageError(text).into());
        }
        match of_directories.iter().find(|(_, is_given)| *is_given) {
            Some((name, _)) if self.to == Form::Raw => {
                let text = format!("{name}: --to raw writes one file, which has no use for it");
                Err(UsageError(text).into())
            }
            _ => Ok(()),
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    args.check()?;
    // Before the work, so that nobody waits for it in vain.
    let upload = match &args.model_name {
        Some(name) if args.push_to_hub => {
            hub::check_push(name)?;
            Some(name)
        }
        _ => None,
    };
    let path = local_checkpoint(args)?;
    let source = match args.no_mmap {
        true => CheckpointSource::open_without_mmap(&path)?,
        false => CheckpointSource::open(&path)?,
    };
    let source = source.with_loras(args.lora.checked()?)?;
    if let Some(size) = args.size {
        size.check(&source, &path)?;
    }
    let mut options = ConvertOptions::new()
        .dtype(args.dtype.map(Into::into))
        .overwrite(args.force)
        .shard_bytes_max(args.max_shard_size.unwrap_or(SHARD_BYTES_MAX).0);
    options.tokenizer = args.tokenizer_file.clone();
    let mut progress = Progress::at_once("writing");
    let mut show = |p: rwkv_edge::Progress| progress.show(p.done, p.total);
    let (target, converted) = match args.to {
        Form::Hf => {
            let folder = args.output_dir.clone();
            let converted = source.to_hugging_face(&folder, &options, &mut show)?;
            (folder, converted)
        }
        Form::Raw => {
            let file = raw_file(&args.output_dir, &path)?;
            let converted = source.to_raw(&file, &options, &mut show)?;
            (file, converted)
        }
    };
    drop(progress);
    report(args, &target, &converted)?;
    if let Some(name) = upload {
        let address = hub::push(&target, name, "Converted to the Hugging Face format")?;
        note!("{name}: uploaded, {address}");
    }
    Ok(())
}

/// The path that was given, if there is something, else what the hub has under that name.
fn local_checkpoint(args: &Args) -> Result<PathBuf> {
    let path = &args.checkpoint_file;
    if path.exists() {
        paths::check_folder(path)?;
        return Ok(path.clone());
    }
    paths::check_address(path)?;
    if let Some(repo_id) = &args.repo_id {
        paths::check_address(Path::new(repo_id))?;
    }
    match (&args.repo_id, path.to_str()) {
        (Some(repo_id), Some(file)) => {
            let (name, revision) = repo_id.split_once('@').unwrap_or((repo_id, "main"));
            let id = format!("{name}/{file}@{revision}");
            Ok(hub::locate(Path::new(&id))?.path)
        }
        _ => bail!(
            "{}: no such file or directory; to download it, name its repository with --repo-id",
            path.display()
        ),
    }
}

/// The file that --to raw writes: the one that is named, or one called like the source.
pub(crate) fn raw_file(output: &Path, source: &Path) -> Result<PathBuf> {
    let extension = output.extension().and_then(|extension| extension.to_str());
    let names_file = matches!(extension, Some("pth" | "pt" | "bin"));
    if names_file && !output.is_dir() {
        return Ok(output.to_owned());
    }
    fs::create_dir_all(output)
        .with_context(|| format!("{}: cannot make the directory", output.display()))?;
    let stem = if source.is_dir() {
        // Also of a path such as `.`.
        let whole = fs::canonicalize(source).unwrap_or_else(|_| source.to_owned());
        whole.file_name().map(ToOwned::to_owned)
    } else {
        source.file_stem().map(ToOwned::to_owned)
    };
    let mut name = stem.unwrap_or_else(|| "model".into());
    name.push(".pth");
    Ok(output.join(name))
}

fn report(args: &Args, target: &Path, converted: &Converted) -> Result<()> {
    let place = target.display();
    for file in &converted.unfinished_files {
        note!(
            "{}: left by a run that was interrupted; remove it if nothing else writes here",
            file.display()
        );
    }
    for lost in &converted.notes {
        note!("{lost}");
    }
    if let Some(why) = &converted.unsynced {
        note!("{place}: written, but a power failure now might take it away again: {why}");
    }
    if args.json {
        let names = |files: &[PathBuf]| -> Vec<String> {
            let names = files.iter().map(|file| file.display().to_string());
            names.collect()
        };
        let object = json!({
            "output": place.to_string(),
            "weight_files": names(&converted.weight_files),
            "tokenizer_files": names(&converted.tokenizer_files),
            "dtype": converted.dtype.name(),
            "n_params": converted.n_params,
            "bytes": converted.size_bytes,
        });
        writeln!(io::stdout().lock(), "{object}")?;
        return Ok(());
    }
    let n_files = converted.weight_files.len();
    note!(
        "{place}: {}, {} parameters, {:.1} MB in {n_files} {}",
        converted.dtype,
        converted.n_params,
        converted.size_bytes as f64 / 1e6,
        if n_files == 1 { "file" } else { "files" },
    );
    if args.to == Form::Hf && converted.tokenizer_files.is_empty() {
        note!("{place}: no tokenizer, since none was given: name its file with --tokenizer-file");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let inside = |name: &str| folder.path().join(name);
        let source = Path::new("there/RWKV-4.bin");
        let file = |output: PathBuf| raw_file(&output, source).expect("a path");
        assert_eq!(file(inside("x.pth")), inside("x.pth"));
        assert_eq!(file(inside("new")), inside("new/RWKV-4.pth"));
        fs::create_dir(inside("is.pth")).expect("can be made");
        assert_eq!(file(inside("is.pth")), inside("is.pth/RWKV-4.pth"));
        let own = raw_file(&inside("new"), folder.path()).expect("a path");
        assert_eq!(own.parent(), Some(&*inside("new")));
        assert_eq!(own.extension().and_then(|e| e.to_str()), Some("pth"));
    }
}
