//! `rwkv-edge embed`: one vector for each line of text.
//!
//! docs/EMBEDDINGS.md says which `--from` is good for what.

use std::io::{self, BufWriter, IsTerminal, Seek, StdoutLock, Write};
use std::path::PathBuf;

use anyhow::{bail, Result};
use clap::ValueEnum;
use rwkv_edge_scoring::{Embedder, Pooling};
use tempfile::SpooledTempFile;

use crate::args::{InitialStateArgs, ModelArgs};
use crate::input::Input;
use crate::model;
use crate::progress::Progress;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// File with a text on each line, instead of stdin; - is stdin
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// hidden-mean, hidden-last or state:LAYER
    ///
    /// What becomes the vector: the mean over the tokens, or the last one, of what the head reads; or what
    /// the time mixing of a layer, counted from 0, remembers.
    #[arg(long, value_name = "WHAT", default_value = "hidden-mean")]
    from: Pooling,

    /// json, csv or npy
    ///
    /// json: an array a line. csv: numbers with commas between, no header. npy: one array of f32, (lines,
    /// values), as numpy.load reads it, written at the end.
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "json",
        hide_possible_values = true
    )]
    format: Format,

    /// Do not scale vectors to length 1
    #[arg(long)]
    no_normalize: bool,

    #[command(flatten)]
    initial: InitialStateArgs,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    Json,
    Csv,
    Npy,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.format == Format::Npy && io::stdout().is_terminal() {
        bail!("npy is no text: redirect stdout to a file, or choose another --format");
    }
    let mut input = open_input(args)?;
    let model = model::open(&args.model)?;
    let model = model::begin_with(model, args.initial.initial.as_deref())?;
    model.tokenizer()?;
    if let Pooling::State(layer) = args.from {
        let n_layer = model.info().n_layer;
        if layer >= n_layer {
            let last = n_layer - 1;
            bail!("--from state:{layer}: no such layer, expected 0 to {last}");
        }
    }
    let mut embedder = Embedder::new(&model, args.from)?.normalize(!args.no_normalize);
    let mut writer = VectorWriter::new(args.format, embedder.width());
    let mut progress = Progress::after_a_second("embedding");
    let mut n_read = 0;
    loop {
        let has_line = input.has_line()?;
        if has_line {
            let (tokens, n) = input.tokenize_line(&model)?;
            n_read += n;
            embedder.push(tokens);
        }
        // At the end of the input also what fills no batch.
        while embedder.has_batch() || (!has_line && !embedder.is_empty()) {
            embedder.run_batch()?;
            while let Some(vector) = embedder.pop() {
                writer.write(&vector)?;
            }
            if let Some(size) = input.size {
                progress.show(n_read, size);
            }
        }
        if !has_line {
            break;
        }
    }
    drop(progress);
    writer.finish()?;
    Ok(())
}

fn open_input(args: &Args) -> Result<Input> {
    match &args.file {
        Some(path) => Input::open(path),
        None if io::stdin().is_terminal() => {
            bail!("no text: give lines by --file or on stdin; see --help")
        }
        None => Ok(Input::stdin()),
    }
}

/// Writes vectors to stdout as they come, or all at once where the format wants their number first.
struct VectorWriter {
    format: Format,
    width: usize,
    stdout: BufWriter<StdoutLock<'static>>,
    /// npy: the numbers so far, in memory up to a size, then in a temporary file.
    held: SpooledTempFile,
    n_vectors: u64,
}

impl VectorWriter {
    const HELD_IN_MEMORY_BYTES: usize = 16 << 20;

    fn new(format: Format, width: usize) -> Self {
        VectorWriter {
            format,
            width,
            stdout: BufWriter::new(io::stdout().lock()),
            held: SpooledTempFile::new(Self::HELD_IN_MEMORY_BYTES),
            n_vectors: 0,
        }
    }

    fn write(&mut self, vector: &[f32]) -> io::Result<()> {
        self.n_vectors += 1;
        match self.format {
            Format::Json => {
                serde_json::to_writer(&mut self.stdout, vector)?;
                writeln!(self.stdout)
            }
            Format::Csv => {
                for (index, value) in vector.iter().enumerate() {
                    let comma = if index > 0 { "," } else { "" };
                    write!(self.stdout, "{comma}{value}")?;
                }
                writeln!(self.stdout)
            }
            Format::Npy => {
                let bytes: Vec<u8> = vector
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect();
                self.held.write_all(&bytes)
            }
        }
    }

    fn finish(mut self) -> io::Result<()> {
        if self.format == Format::Npy {
            let header = npy_header(self.n_vectors, self.width);
            self.stdout.write_all(&header)?;
            self.held.rewind()?;
            io::copy(&mut self.held, &mut self.stdout)?;
        }
        self.stdout.flush()
    }
}

/// The start of an .npy file, version 1.0: a dictionary of Python, padded with spaces so that the
/// numbers begin at a multiple of 64.
fn npy_header(n_rows: u64, n_cols: usize) -> Vec<u8> {
    let mut text =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({n_rows}, {n_cols}), }}");
    const BEFORE_TEXT: usize = 10;
    let size = (BEFORE_TEXT + text.len() + 1).next_multiple_of(64) - BEFORE_TEXT;
    text.extend(std::iter::repeat_n(' ', size - 1 - text.len()));
    text.push('\n');
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((text.len() as u16).to_le_bytes());
    header.extend(text.into_bytes());
    header
}
