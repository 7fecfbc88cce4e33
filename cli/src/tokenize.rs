//! `rwkv-edge tokenize`: text to token ids, and back.

use std::io::{self, BufWriter, Write};

use anyhow::{anyhow, bail, Context, Result};
use rwkv_edge::{TextStream, TokenStream, Tokenizer};

use crate::args::{token_ids, ModelArgs};
use crate::byte_size::ByteSize;
use crate::input::{Input, TextArgs};
use crate::model;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    input: TextArgs,

    /// The other way: the text is token ids, such as 1,2,3
    #[arg(short, long)]
    decode: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Some(mut input) = args.input.open()? else {
        bail!("no text: give it as an argument, by --file or on stdin; see --help");
    };
    let tokenizer = model::open_tokenizer(&args.model)?;
    let limit = Limit::new(args.model.max_memory);
    let mut out = BufWriter::new(io::stdout().lock());
    match args.decode {
        false => encode(&tokenizer, &mut input, &limit, args.json, &mut out)?,
        true => decode(&tokenizer, &mut input, &limit, args.json, &mut out)?,
    }
    out.flush()?;
    Ok(())
}

/// What --max-memory leaves.
struct Limit {
    max: Option<u64>,
    /// By the program with its tokenizer.
    taken: u64,
}

impl Limit {
    fn new(max: Option<ByteSize>) -> Self {
        Limit {
            max: max.map(|size| size.0),
            taken: model::program_bytes(),
        }
    }

    fn has_room(&self, bytes: u64) -> bool {
        let total = self.taken.saturating_add(bytes);
        self.max.is_none_or(|max| total <= max)
    }

    /// Runs differ by some KiB, which may be across a step: a size that is told should do the next time, too.
    fn enough(&self, bytes: u64) -> u64 {
        const STEP: u64 = 1 << 20;
        (self.taken.saturating_add(bytes) / STEP + 2) * STEP
    }

    fn check(&self, bytes: u64, what: impl FnOnce() -> String) -> Result<()> {
        let Some(max) = self.max.filter(|_| !self.has_room(bytes)) else {
            return Ok(());
        };
        let total = self.enough(bytes);
        bail!(
            "{} takes {total} bytes of memory, expected at most {max} (--max-memory)",
            what()
        )
    }
}

/// Prints ids as they are known: a text of any length takes no more memory.
fn encode(
    tokenizer: &Tokenizer,
    input: &mut Input,
    limit: &Limit,
    is_json: bool,
    out: &mut impl Write,
) -> Result<()> {
    let mut stream = TokenStream::new(tokenizer);
    let mut chunk = Vec::new();
    let mut comma = "";
    if is_json {
        write!(out, "{{\"tokens\":[")?;
    }
    loop {
        input.chunk(&mut chunk)?;
        if !limit.has_room(stream.memory_bytes(chunk.len())) {
            let n = chunk.len() + rest_bytes(input)?;
            limit.check(stream.memory_bytes(n), || {
                let n = stream.waiting_bytes() + n;
                format!("tokenizing {n} bytes of text without a known place to cut them")
            })?;
        }
        let ids = match chunk.is_empty() {
            true => stream.finish()?,
            false => stream.push(&chunk)?,
        };
        for id in ids {
            write!(out, "{comma}{id}")?;
            comma = ",";
        }
        if chunk.is_empty() {
            break;
        }
    }
    writeln!(out, "{}", if is_json { "]}" } else { "" })?;
    Ok(())
}

/// Bytes that are left of a text, as far as it is worth counting them.
fn rest_bytes(input: &mut Input) -> Result<usize> {
    const COUNTED_MAX: usize = 64 << 20;
    let (mut n, mut chunk) = (0, Vec::new());
    while n < COUNTED_MAX {
        input.chunk(&mut chunk)?;
        if chunk.is_empty() {
            break;
        }
        n += chunk.len();
    }
    Ok(n)
}

/// Ids are read, and text is printed, as far as there are any; only JSON has the ids behind all of the text.
fn decode(
    tokenizer: &Tokenizer,
    input: &mut Input,
    limit: &Limit,
    is_json: bool,
    out: &mut impl Write,
) -> Result<()> {
    limit.check(0, || "the program with its tokenizer".into())?;
    let mut stream = TextStream::new(tokenizer);
    let mut ids = Ids::default();
    // (all ids so far) for JSON
    let mut tokens: Vec<u32> = Vec::new();
    if is_json {
        write!(out, "{{\"text\":\"")?;
    }
    while ids.read(input, tokenizer)? {
        if is_json {
            keep(&mut tokens, &ids.ids, limit)?;
        }
        for &token in &ids.ids {
            print(stream.push(token)?, is_json, out)?;
        }
    }
    print(stream.finish()?, is_json, out)?;
    if is_json {
        write!(out, "\",\"tokens\":")?;
        serde_json::to_writer(&mut *out, &tokens)?;
        writeln!(out, "}}")?;
    }
    Ok(())
}

/// An eighth more at a time: what is counted should be what is used.
fn keep(tokens: &mut Vec<u32>, more: &[u32], limit: &Limit) -> Result<()> {
    if tokens.capacity() - tokens.len() < more.len() {
        let room = tokens.len() + more.len().max(tokens.len() / 8);
        let bytes = (room * size_of::<u32>()) as u64;
        limit.check(bytes, || format!("a list of {room} or more token ids"))?;
        tokens
            .try_reserve_exact(room - tokens.len())
            .context("not enough memory for the token ids")?;
    }
    tokens.extend_from_slice(more);
    Ok(())
}

/// A piece of text, as JSON without the quotes around it.
fn print(text: &str, is_json: bool, out: &mut impl Write) -> Result<()> {
    match is_json {
        true => {
            let quoted = serde_json::to_string(text)?;
            out.write_all(&quoted.as_bytes()[1..quoted.len() - 1])?;
        }
        false => out.write_all(text.as_bytes())?,
    }
    Ok(())
}

/// Token ids of a text, a piece at a time.
#[derive(Default)]
struct Ids {
    chunk: Vec<u8>,
    /// Of the text, what may be the beginning of an id.
    waiting: Vec<u8>,
    ids: Vec<u32>,
}

impl Ids {
    /// Reads the next ids; `false` at the end.
    fn read(&mut self, input: &mut Input, tokenizer: &Tokenizer) -> Result<bool> {
        // Zeros in front are part of an id.
        const ID_BYTES_MAX: usize = 64;
        self.ids.clear();
        input.chunk(&mut self.chunk)?;
        self.waiting.extend_from_slice(&self.chunk);
        let is_end = self.chunk.is_empty();
        if is_end && self.waiting.is_empty() {
            return Ok(false);
        }
        let is_between = |&byte: &u8| matches!(byte, b',' | b' ' | b'\t' | b'\n');
        let whole = match is_end {
            true => self.waiting.len(),
            false => self
                .waiting
                .iter()
                .rposition(is_between)
                .map_or(0, |at| at + 1),
        };
        let rest = &self.waiting[whole..];
        if rest.len() > ID_BYTES_MAX {
            let part = String::from_utf8_lossy(&rest[..ID_BYTES_MAX]).into_owned();
            bail!("`{}...` is not a token id", part.escape_default());
        }
        let ids = token_ids(&String::from_utf8_lossy(&self.waiting[..whole]));
        let ids = ids.map_err(|e| anyhow!(e))?;
        let unknown = |&&token: &&u32| token as usize >= tokenizer.n_tokens();
        if let Some(token) = ids.iter().find(unknown) {
            bail!(
                "token id {token}, expected less than {}",
                tokenizer.n_tokens()
            );
        }
        self.ids = ids;
        self.waiting.drain(..whole);
        Ok(true)
    }
}
