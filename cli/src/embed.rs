//! `rwkv-edge embed`: one vector for each line of text.
//!
//! Lines are worked on in batches of rows, a row a token, so that the weights are read once for many
//! lines; a line that is longer than a batch goes through in pieces. docs/EMBEDDINGS.md says which
//! `--from` is good for what.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, IsTerminal, Seek, StdoutLock, Write};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{bail, Context, Result};
use clap::ValueEnum;
use rwkv_edge::{Model, Output, Reservation, Span, State, Workspace};
use tempfile::SpooledTempFile;

use crate::args::ModelArgs;
use crate::progress::Progress;
use crate::{devices, model};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// File with a text on each line, instead of stdin
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// hidden-mean, hidden-last or state:LAYER
    ///
    /// What becomes the vector: the mean over the tokens, or the last one, of what the head reads; or what
    /// the time mixing of a layer, counted from 0, remembers.
    #[arg(long, value_name = "WHAT", default_value = "hidden-mean")]
    from: Source,

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
}

#[derive(Clone, Copy)]
enum Source {
    HiddenLast,
    HiddenMean,
    State(usize),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let layer = text.strip_prefix("state:").map(str::parse);
        match (text, layer) {
            ("hidden-last", _) => Ok(Source::HiddenLast),
            ("hidden-mean", _) => Ok(Source::HiddenMean),
            (_, Some(Ok(layer))) => Ok(Source::State(layer)),
            _ => Err("expected hidden-last, hidden-mean or state:LAYER, such as state:3".into()),
        }
    }
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    Json,
    Csv,
    Npy,
}

/// Tokens that are worked on at once, and lines that wait at most.
const ROWS_MAX: usize = 128;

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.format == Format::Npy && io::stdout().is_terminal() {
        bail!("npy is no text: redirect stdout to a file, or choose another --format");
    }
    let (mut input, size) = open_input(args)?;
    let model = model::open(&args.model)?;
    let tokenizer = model.tokenizer()?;
    let mut embedder = Embedder::new(&model, args.from, !args.no_normalize)?;
    let mut writer = VectorWriter::new(args.format, embedder.width);
    let mut progress = Progress::after_a_second("embedding");
    let (mut line, mut n_read) = (Vec::new(), 0);
    loop {
        line.clear();
        let n = input.read_until(b'\n', &mut line);
        let n = n.with_context(|| format!("{}: cannot read", args.input_name()))?;
        n_read += n as u64;
        if n > 0 {
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            embedder.push(tokenizer.encode_bytes(text)?);
        }
        // At the end of the input also what fills no batch.
        while embedder.has_batch() || (n == 0 && !embedder.lines.is_empty()) {
            embedder.run_batch(|vector| writer.write(vector))?;
            if let Some(size) = size {
                progress.show(n_read, size);
            }
        }
        if n == 0 {
            break;
        }
    }
    drop(progress);
    writer.finish()?;
    Ok(())
}

/// The lines, and how many bytes they have where that is known.
fn open_input(args: &Args) -> Result<(Box<dyn BufRead>, Option<u64>)> {
    let Some(path) = &args.file else {
        if io::stdin().is_terminal() {
            bail!("no text: give lines by --file or on stdin; see --help");
        }
        return Ok((Box::new(io::stdin().lock()), None));
    };
    let file = File::open(path).with_context(|| format!("{}: cannot open", path.display()))?;
    let size = file
        .metadata()
        .ok()
        .filter(|found| found.is_file())
        .map(|found| found.len());
    Ok((Box::new(BufReader::new(file)), size))
}

impl Args {
    fn input_name(&self) -> String {
        match &self.file {
            Some(path) => path.display().to_string(),
            None => "stdin".into(),
        }
    }
}

/// Turns the tokens of lines into vectors, in order.
struct Embedder<'a> {
    model: &'a Model,
    from: Source,
    normalize: bool,
    /// Numbers of a vector.
    width: usize,
    n_embd: usize,
    workspace: Workspace,
    /// Tokens of a batch.
    rows_max: usize,
    /// Lines without their vector yet; of the first some tokens may have been fed.
    lines: VecDeque<Line>,
    /// Lines that wait at most: each has a state.
    lines_max: usize,
    _states: Reservation,
    /// Tokens of those lines that have not been fed.
    n_waiting: usize,
    /// States that no line uses.
    spare: Vec<State>,
    /// (rows, n_embd) of the present batch
    hidden: Vec<f32>,
}

struct Line {
    tokens: Vec<u32>,
    n_fed: usize,
    state: State,
    /// (n_embd) sum of the rows so far
    sum: Vec<f64>,
}

impl<'a> Embedder<'a> {
    fn new(model: &'a Model, from: Source, normalize: bool) -> Result<Self> {
        let info = model.info();
        let width = match from {
            Source::State(layer) if layer >= info.n_layer => bail!(
                "--from state:{layer}: no such layer, expected 0 to {}",
                info.n_layer - 1
            ),
            Source::State(_) => info.n_attention,
            _ => info.n_embd,
        };
        let rows_max = match devices::is_on_device(&info) {
            true => model.prefill_rows(),
            false => ROWS_MAX,
        };
        let workspace = model.workspace(rows_max);
        let line_bytes = info.state_bytes + info.n_embd * size_of::<f64>();
        let lines_max = model::rows_that_fit(model, line_bytes, rows_max);
        Ok(Embedder {
            model,
            from,
            normalize,
            width,
            n_embd: info.n_embd,
            workspace,
            rows_max,
            lines: VecDeque::new(),
            lines_max,
            _states: model.reserve_memory((lines_max * line_bytes) as u64)?,
            n_waiting: 0,
            spare: Vec::new(),
            hidden: Vec::new(),
        })
    }

    fn push(&mut self, tokens: Vec<u32>) {
        self.n_waiting += tokens.len();
        let mut state = self.spare.pop().unwrap_or_else(|| self.model.new_state());
        state.reset();
        self.lines.push_back(Line {
            tokens,
            n_fed: 0,
            state,
            sum: vec![0.0; self.n_embd],
        });
    }

    fn has_batch(&self) -> bool {
        self.n_waiting >= self.rows_max || self.lines.len() >= self.lines_max
    }

    /// Feeds up to `rows_max` tokens, and gives out the vectors of the lines that are done then.
    fn run_batch(&mut self, mut on_vector: impl FnMut(&[f32]) -> io::Result<()>) -> Result<()> {
        let mut room = self.rows_max;
        let mut spans = Vec::new();
        for line in &mut self.lines {
            let n = room.min(line.tokens.len() - line.n_fed);
            room -= n;
            let tokens = &line.tokens[line.n_fed..line.n_fed + n];
            line.n_fed += n;
            let output = match self.from {
                Source::HiddenMean => Output::All,
                Source::HiddenLast if n > 0 && line.n_fed == line.tokens.len() => Output::Last,
                _ => Output::None,
            };
            spans.push(Span {
                state: &mut line.state,
                tokens,
                output,
            });
            if room == 0 {
                break;
            }
        }
        self.n_waiting -= self.rows_max - room;
        let n_rows: Vec<usize> = spans.iter().map(Span::n_logit_rows).collect();
        let n_values = n_rows.iter().sum::<usize>() * self.n_embd;
        self.hidden.resize(n_values, 0.0);
        self.model
            .forward_hidden(&mut self.workspace, &mut spans, &mut self.hidden)?;
        let mut rows = self.hidden.chunks_exact(self.n_embd);
        for (line, n_rows) in self.lines.iter_mut().zip(n_rows) {
            for row in rows.by_ref().take(n_rows) {
                line.sum
                    .iter_mut()
                    .zip(row)
                    .for_each(|(sum, &x)| *sum += f64::from(x));
            }
        }
        let n_done = self
            .lines
            .iter()
            .take_while(|line| line.n_fed == line.tokens.len())
            .count();
        let done: Vec<Line> = self.lines.drain(..n_done).collect();
        for line in done {
            on_vector(&self.vector(&line))?;
            self.spare.push(line.state);
        }
        Ok(())
    }

    /// Of a line without tokens all zeros: there is nothing that it could be near to.
    fn vector(&self, line: &Line) -> Vec<f32> {
        let mut vector: Vec<f64> = match self.from {
            _ if line.tokens.is_empty() => vec![0.0; self.width],
            Source::HiddenLast => line.sum.clone(),
            Source::HiddenMean => {
                let n = line.tokens.len() as f64;
                line.sum.iter().map(|sum| sum / n).collect()
            }
            Source::State(layer) => line.state.memory(layer).map(f64::from).collect(),
        };
        let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
        if self.normalize && length > 0.0 {
            vector.iter_mut().for_each(|x| *x /= length);
        }
        vector.into_iter().map(|x| x as f32).collect()
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
