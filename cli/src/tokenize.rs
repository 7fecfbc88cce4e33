//! `rwkv-edge tokenize`: text to token ids, and back.

use std::io::{self, BufWriter, Write};

use anyhow::{anyhow, bail, Result};
use rwkv_edge::{TextStream, TokenStream, Tokenizer};

use crate::args::{ModelArgs, TokenList};
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
    let mut out = BufWriter::new(io::stdout().lock());
    match args.decode {
        false => encode(&tokenizer, &mut input, args.json, &mut out)?,
        true => decode(&tokenizer, &mut input, args.json, &mut out)?,
    }
    out.flush()?;
    Ok(())
}

/// Prints ids as they are known: a text of any length takes no more memory.
fn encode(
    tokenizer: &Tokenizer,
    input: &mut Input,
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

fn decode(
    tokenizer: &Tokenizer,
    input: &mut Input,
    is_json: bool,
    out: &mut impl Write,
) -> Result<()> {
    let list: Result<TokenList, String> = String::from_utf8_lossy(&input.read()?).parse();
    let TokenList(tokens) = list.map_err(|e| anyhow!(e))?;
    let unknown = |&&token: &&u32| token as usize >= tokenizer.n_tokens();
    if let Some(token) = tokens.iter().find(unknown) {
        bail!(
            "token id {token}, expected less than {}",
            tokenizer.n_tokens()
        );
    }
    if is_json {
        let text = tokenizer.decode(&tokens)?;
        write!(out, "{{\"text\":")?;
        serde_json::to_writer(&mut *out, &text)?;
        write!(out, ",\"tokens\":")?;
        serde_json::to_writer(&mut *out, &tokens)?;
        writeln!(out, "}}")?;
        return Ok(());
    }
    let mut stream = TextStream::new(tokenizer);
    for &token in &tokens {
        out.write_all(stream.push(token)?.as_bytes())?;
    }
    out.write_all(stream.finish()?.as_bytes())?;
    Ok(())
}
