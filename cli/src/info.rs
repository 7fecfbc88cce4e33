//! `rwkv-edge info`: what a model is and what it needs.

use std::borrow::Cow;
use std::io::{self, Write};

use anyhow::Result;
use rwkv_edge::{printable, Info, Model};
use serde_json::{json, Value};

use crate::args::ModelArgs;
use crate::progress::Progress;
use crate::{devices, model};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// List every tensor
    #[arg(long)]
    tensors: bool,

    /// List the devices of plugins, and open no model
    #[arg(long, conflicts_with_all = ["model", "tensors", "verify"])]
    devices: bool,

    /// Read every weight: the checksum of a model file must be right, and no weight NaN or infinite
    #[arg(long)]
    verify: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.devices {
        return Ok(devices::list(args.json, &mut io::stdout().lock())?);
    }
    let model = model::open_to_look(&args.model)?;
    if args.verify {
        let mut progress = Progress::at_once("verifying");
        model.verify(&mut |p| progress.show(p.done, p.total))?;
    }
    let mut stdout = io::stdout().lock();
    if args.json {
        writeln!(stdout, "{}", json_text(&to_json(&model, args)))?;
    } else {
        print(&model, args, &mut stdout)?;
    }
    Ok(())
}

/// JSON, with escapes for what a terminal would obey: names in it come from files.
fn json_text(value: &Value) -> String {
    let mut text = String::new();
    for char in value.to_string().chars() {
        match printable(char.encode_utf8(&mut [0; 4])) {
            Cow::Borrowed(_) => text.push(char),
            Cow::Owned(_) => text += &format!("\\u{:04x}", u32::from(char)),
        }
    }
    text
}

/// Bits of all weights, vectors and small matrices included, for each of them.
fn bits_over_everything(info: &Info) -> f64 {
    8.0 * info.weight_bytes as f64 / info.n_params as f64
}

fn to_json(model: &Model, args: &Args) -> Value {
    let info = model.info();
    let mut object = json!({
        "model": info.place,
        "architecture": info.architecture,
        "n_layer": info.n_layer,
        "n_embd": info.n_embd,
        "n_attention": info.n_attention,
        "n_hidden": info.n_hidden,
        "head_size": info.head_size,
        "n_vocab": info.n_vocab,
        "context_length": info.context_length,
        "end_of_text": info.end_of_text,
        "ends_of_text": info.ends_of_text,
        "n_params": info.n_params,
        "quant": info.quant.name(),
        "bits_per_weight": info.bits_per_weight,
        "bits_over_everything": bits_over_everything(&info),
        "weight_bytes": info.weight_bytes,
        "mapped_bytes": info.mapped_bytes,
        "huge_page_bytes": info.huge_page_bytes,
        "paged_bytes": info.paged_bytes,
        "state_bytes": info.state_bytes,
        "tuned_state": info.has_tuned_state,
        "kernels": info.kernels,
        "threads": info.threads,
        "fingerprint": format!("{:016x}", info.fingerprint),
        "tokenizer": info.tokenizer,
        "adapters": info.adapters,
        "verified": args.verify,
        "device": devices::names(&info),
        "stages": info.stages.iter().map(devices::stage_json).collect::<Vec<_>>(),
    });
    if args.tensors {
        let tensor = |tensor: &rwkv_edge::TensorInfo| {
            json!({
                "name": tensor.name, "shape": tensor.shape, "quant": tensor.quant.name(),
                "bytes": tensor.size_bytes, "device": tensor.device,
            })
        };
        object["tensors"] = model.tensors().iter().map(tensor).collect();
    }
    object
}

fn print(model: &Model, args: &Args, out: &mut impl Write) -> io::Result<()> {
    let info = model.info();
    let mb = |bytes: u64| bytes as f64 / 1e6;
    writeln!(out, "model         {}", printable(&info.place))?;
    let heads = match info.head_size {
        0 => String::new(),
        size => format!(", heads of {size}"),
    };
    writeln!(
        out,
        "architecture  {}: {} layers, width {}{heads}, {} hidden units, vocabulary {}",
        info.architecture, info.n_layer, info.n_embd, info.n_hidden, info.n_vocab
    )?;
    writeln!(
        out,
        "weights       {} parameters, {:.1} MB as {} ({:.2} bits a matrix weight, {:.2} over everything)",
        info.n_params,
        mb(info.weight_bytes),
        info.quant,
        info.bits_per_weight,
        bits_over_everything(&info)
    )?;
    for adapter in &info.adapters {
        writeln!(out, "merged with   {}", printable(adapter))?;
    }
    writeln!(
        out,
        "memory        {:.1} MB used in place from the file, {:.1} MB in memory of its own",
        mb(info.mapped_bytes),
        mb(info.weight_bytes - info.mapped_bytes - devices::weight_bytes(&info))
    )?;
    if info.huge_page_bytes > 0 {
        writeln!(
            out,
            "huge pages    {:.1} MB of its own memory",
            mb(info.huge_page_bytes)
        )?;
    }
    if info.paged_bytes > 0 {
        writeln!(
            out,
            "limit         {:.1} MB do not fit and are read from the file again for every token",
            mb(info.paged_bytes)
        )?;
    }
    writeln!(
        out,
        "state         {} bytes, for any number of tokens{}",
        info.state_bytes,
        match info.has_tuned_state {
            true => "; the empty one is tuned",
            false => "",
        }
    )?;
    let tokenizer = info.tokenizer.as_deref().unwrap_or("none");
    let ends: Vec<String> = info.ends_of_text.iter().map(u32::to_string).collect();
    writeln!(
        out,
        "tokenizer     {}; end of text is {}",
        printable(tokenizer),
        ends.join(" or ")
    )?;
    writeln!(
        out,
        "runs on       {} threads with {} kernels",
        info.threads, info.kernels
    )?;
    if devices::is_on_device(&info) {
        for stage in &info.stages {
            writeln!(out, "stage         {}", devices::describe(stage))?;
        }
    }
    if args.verify {
        writeln!(
            out,
            "verified      every weight was read, nothing is damaged"
        )?;
    }
    if args.tensors {
        writeln!(out)?;
        for tensor in model.tensors() {
            let shape = format!("{:?}", tensor.shape);
            let (name, quant) = (printable(&tensor.name), tensor.quant.name());
            writeln!(
                out,
                "{name:36} {quant:5} {shape:16} {:>12} bytes{}",
                tensor.size_bytes,
                match tensor.device.as_str() {
                    "cpu" => String::new(),
                    device => format!(" on {device}"),
                }
            )?;
        }
    }
    Ok(())
}
