//! `rwkv-edge tokenize`: text to token ids, and back.

use std::io::{self, Write};

use anyhow::{anyhow, bail, Result};
use serde_json::json;

use crate::args::{ModelArgs, TokenList};
use crate::input::TextArgs;
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
    let Some(input) = args.input.read()? else {
        bail!("no text: give it as an argument, by --file or on stdin; see --help");
    };
    let tokenizer = model::open_tokenizer(&args.model)?;
    let mut stdout = io::stdout().lock();
    if !args.decode {
        let tokens = tokenizer.encode_bytes(&input)?;
        if args.json {
            writeln!(stdout, "{}", json!({ "tokens": tokens }))?;
        } else {
            let ids: Vec<_> = tokens.iter().map(u32::to_string).collect();
            writeln!(stdout, "{}", ids.join(","))?;
        }
        return Ok(());
    }
    let list: Result<TokenList, String> = String::from_utf8_lossy(&input).parse();
    let TokenList(tokens) = list.map_err(|e| anyhow!(e))?;
    let unknown = |&&token: &&u32| token as usize >= tokenizer.n_tokens();
    if let Some(token) = tokens.iter().find(unknown) {
        bail!(
            "token id {token}, expected less than {}",
            tokenizer.n_tokens()
        );
    }
    let text = tokenizer.decode(&tokens)?;
    if args.json {
        writeln!(stdout, "{}", json!({ "tokens": tokens, "text": text }))?;
    } else {
        stdout.write_all(text.as_bytes())?;
    }
    stdout.flush()?;
    Ok(())
}
