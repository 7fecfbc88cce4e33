//! `rwkv-edge quantize`: any checkpoint to one model file.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{bail, Context, Result};
use rwkv_edge::{Model, OutputFile, Target};
use serde_json::json;

use crate::args::{ModelArgs, Quant};
use crate::byte_size::ByteSize;
use crate::calibrate::CalibrateArgs;
use crate::compare::{self, CompareArgs};
use crate::progress::Progress;
use crate::{hub, model, note, paths};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// The file to write; it appears only when it is complete
    #[arg(short, long, value_name = "FILE", required_unless_present = "compare")]
    output: Option<PathBuf>,

    #[command(flatten)]
    target: TargetArgs,

    #[command(flatten)]
    calibrate: CalibrateArgs,

    #[command(flatten)]
    compare: CompareArgs,

    /// Print one JSON object about the file, or of what is compared
    #[arg(long)]
    json: bool,
}

/// How large the file is to be.
#[derive(clap::Args)]
struct TargetArgs {
    /// Mix formats of 4 to 8 bits: so many bits a weight, such as 4.6
    ///
    /// The mean over all matrices that are not floats, with scales. Bits go where they take most damage away: by the kind of
    /// matrix, or with --calibrate by what rounding it does to the text.
    #[arg(long, value_name = "BITS", value_parser = milli_bits, conflicts_with_all = ["target_size", "quant"])]
    target_bits: Option<u32>,

    /// Mix formats of 4 to 8 bits: a file of at most so many bytes, such as 120M
    #[arg(long, value_name = "SIZE", conflicts_with = "quant")]
    target_size: Option<ByteSize>,
}

impl TargetArgs {
    fn target(&self) -> Option<Target> {
        let size = self
            .target_size
            .map(|ByteSize(bytes)| Target::FileBytes(bytes));
        self.target_bits.map(Target::MilliBits).or(size)
    }
}

/// Thousandths of a bit.
fn milli_bits(text: &str) -> Result<u32, String> {
    let bits: f64 = text
        .parse()
        .map_err(|_| format!("`{text}`: expected a number such as 4.6"))?;
    match (4.0..=8.5).contains(&bits) {
        true => Ok((1000.0 * bits).round() as u32),
        false => Err(format!("{text}: expected 4 to 8.5")),
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    // One of the two is there, and only one.
    let Some(output) = &args.output else {
        return compare::run(&args.compare, &args.calibrate, &args.model, args.json);
    };
    if let Some(source) = &args.model.model {
        let same = |a: &PathBuf, b: &PathBuf| match (fs::canonicalize(a), fs::canonicalize(b)) {
            (Ok(a), Ok(b)) => a == b,
            _ => false,
        };
        if same(source, output) {
            bail!(
                "{}: is the model itself, expected another file",
                output.display()
            );
        }
    }
    paths::check_replaced(output, paths::Written::ModelFile)?;
    // Not only when everything is read, which may take minutes.
    drop(OutputFile::create(output)?);
    let mut model_args = args.model.clone();
    let target = args.target.target();
    if target.is_none() {
        model_args.quant.get_or_insert(Quant::Int8);
    }
    let tokens = args.calibrate.tokens(&model_args)?;
    let model = model::open_to_copy(&model_args, target, tokens.as_deref())?;
    let template = chat_template(args)?;
    let mut progress = Progress::at_once("writing");
    model.save(output, &mut |p| progress.show(p.done, p.total))?;
    drop(progress);
    let info = model.info();
    let found = fs::metadata(output).with_context(|| {
        let shown = output.display();
        format!("{shown}: written, whole, but its size cannot be read")
    })?;
    let size_bytes = found.len();
    if args.json {
        let object = json!({
            "file": output.to_string_lossy(),
            "quant": info.quant.name(),
            "n_params": info.n_params,
            "bytes": size_bytes,
            "bits_per_weight": info.bits_per_weight,
            "tokenizer": info.tokenizer,
            "chat_template": template,
        });
        writeln!(io::stdout().lock(), "{object}")?;
        return Ok(());
    }
    note!(
        "{}: {}, {} parameters, {:.1} MB, {:.2} bits a weight{}",
        output.display(),
        info.quant,
        info.n_params,
        size_bytes as f64 / 1e6,
        info.bits_per_weight,
        if model.has_tokenizer() {
            ""
        } else {
            "; without a tokenizer, since none was found"
        }
    );
    Ok(())
}

/// Where the chat template is that the file will hold. A model is whole without one: one that cannot be read is left
/// out, and that is said.
fn chat_template(args: &Args) -> Result<Option<String>> {
    let Some(source) = &args.model.model else {
        return Ok(None);
    };
    let found = Model::chat_template(hub::locate(source)?.path).unwrap_or_else(|error| {
        note!("{error}; the file is written without a chat template");
        None
    });
    Ok(found.map(|template| template.place))
}
