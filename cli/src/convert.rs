//! `rwkv-edge convert`: any checkpoint to a Hugging Face directory, or to BlinkDL's raw form.
//!
//! The flags of transformers' convert_rwkv_checkpoint_to_hf.py, in its spelling and in ours.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{bail, Context, Result};
use clap::ValueEnum;
use rwkv_edge::{CheckpointSource, ConvertOptions, Converted, FloatType};
use serde_json::json;

use crate::progress::Progress;
use crate::{hub, note, UsageError};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Checkpoint: a .pth, .safetensors or rwkv.cpp .bin file, a directory, or a file of --repo-id
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

    /// Published size that the checkpoint must have
    #[arg(long, ignore_case = true)]
    size: Option<Size>,

    /// Bytes of one file at most, such as 300KB or 2GB (KB, MB, GB: powers of 1000; KiB: of 1024)
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "5GB",
        alias = "max_shard_size"
    )]
    max_shard_size: ByteSize,

    /// Replace the model that is there already
    #[arg(long)]
    force: bool,

    /// Read the checkpoint instead of mapping its files
    #[arg(long)]
    no_mmap: bool,

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
    /// A Hugging Face directory
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

/// A number of bytes, as transformers writes them: `5GB` is 5 * 1000^3, `5GiB` is 5 * 1024^3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ByteSize(u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = text[digits.len()..].to_ascii_uppercase();
        let factor: f64 = match &unit[..] {
            "" | "B" => 1.0,
            "KB" => 1e3,
            "MB" => 1e6,
            "GB" => 1e9,
            "TB" => 1e12,
            "KIB" => f64::from(1 << 10),
            "MIB" => f64::from(1 << 20),
            "GIB" => f64::from(1 << 30),
            "TIB" => 1024.0 * f64::from(1 << 30),
            _ => {
                return Err(format!(
                    "unit {unit}, expected KB, MB, GB, TB, KiB, MiB, GiB or TiB"
                ))
            }
        };
        let number = digits.trim_end().parse::<f64>();
        let bytes = number.map_err(|_| format!("{digits:?} is no number"))? * factor;
        // Beyond 2^53 not every integer has an f64, and no disk has so much.
        if !(1.0..=9e15).contains(&bytes) {
            return Err("expected 1 byte or more".to_owned());
        }
        Ok(ByteSize(bytes as u64))
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.to == Form::Raw && (args.tokenizer_file.is_some() || args.push_to_hub) {
        let text = "--to raw writes one file, without --tokenizer-file and --push-to-hub";
        return Err(UsageError(text.into()).into());
    }
    // Before the work, so that nobody waits for it in vain.
    let upload = match &args.model_name {
        Some(name) if args.push_to_hub => {
            hub::check_push(name)?;
            Some(name)
        }
        _ => None,
    };
    let path = local_checkpoint(args)?;
    let source = CheckpointSource::open(&path, args.no_mmap)?;
    if let Some(size) = args.size {
        size.check(&source, &path)?;
    }
    let options = ConvertOptions {
        dtype: args.dtype.map(Into::into),
        overwrite: args.force,
        shard_bytes_max: args.max_shard_size.0,
        tokenizer: args.tokenizer_file.clone(),
    };
    let mut progress = Progress::at_once("writing");
    let mut show = |done, total| progress.show(done, total);
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
        return Ok(path.clone());
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
fn raw_file(output: &Path, source: &Path) -> Result<PathBuf> {
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
    fn byte_sizes() {
        let cases = [
            ("5GB", Some(5_000_000_000)),
            ("300KB", Some(300_000)),
            ("2gb", Some(2_000_000_000)),
            ("1.5 MB", Some(1_500_000)),
            (" 10MiB ", Some(10 << 20)),
            ("1GiB", Some(1 << 30)),
            ("1TB", Some(1_000_000_000_000)),
            ("4096", Some(4096)),
            ("7B", Some(7)),
            ("", None),
            ("GB", None),
            ("5XB", None),
            ("-5GB", None),
            ("0", None),
            ("0.1", None),
            ("inf", None),
            ("nanGB", None),
            ("1e30GB", None),
        ];
        for (text, expected) in cases {
            let found = text.parse::<ByteSize>().ok();
            assert_eq!(found, expected.map(ByteSize), "{text:?}");
        }
    }

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
