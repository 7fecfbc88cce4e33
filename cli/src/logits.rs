//! `rwkv-edge logits`: the raw output of the network, for comparing engines.

use std::io::{self, BufWriter, Write};

use anyhow::{bail, Result};
use rwkv_edge::Model;
use rwkv_edge_scoring::rows_that_fit;

use crate::args::{some_tokens, InitialStateArgs, ModelArgs, TokenList, BEGIN_OF_TEXT};
use crate::model;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,

    /// Token ids, such as 1,2,3; needs no tokenizer
    #[arg(long, value_name = "IDS", required = true, value_parser = some_tokens)]
    tokens: TokenList,

    /// Put token 0, which texts begin with in training, in front of them
    #[arg(long)]
    bos: bool,

    /// A row for every token instead of one for the last
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    initial: InitialStateArgs,

    /// Print one JSON object; its numbers read back to the same f32
    #[arg(long)]
    json: bool,
}

/// Tokens whose likeliest continuations are shown without --json.
const SHOWN: usize = 10;
/// Rows of logits that are held at once.
const ROWS_MAX: usize = 32;

pub(crate) fn run(args: &Args) -> Result<()> {
    let model = model::open_without_text(&args.model)?;
    let model = model::begin_with(model, args.initial.initial.as_deref())?;
    let TokenList(mut tokens) = args.tokens.clone();
    if args.bos {
        tokens.insert(0, BEGIN_OF_TEXT);
    }
    let tokens = &tokens[..];
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        let ids: Vec<_> = tokens.iter().map(u32::to_string).collect();
        write!(out, "{{\"tokens\":[{}],\"logits\":[", ids.join(","))?;
    }
    let mut session = model.try_session()?;
    let mut first = true;
    // Of a bad token id none of the rows before it are printed.
    let row_bytes = model.n_vocab() * size_of::<f32>();
    let step = match args.all {
        true => rows_that_fit(&model, row_bytes, ROWS_MAX),
        false => tokens.len(),
    };
    check(tokens, &model)?;
    for tokens in tokens.chunks(step) {
        let all = match args.all {
            true => session.eval_all(tokens)?,
            false => session.eval(tokens)?.to_vec(),
        };
        for row in all.chunks_exact(model.n_vocab()) {
            if args.json {
                if !first {
                    out.write_all(b",")?;
                }
                serde_json::to_writer(&mut out, row).map_err(io::Error::from)?;
            } else {
                print_likeliest(&model, row, &mut out)?;
            }
            first = false;
        }
    }
    if args.json {
        writeln!(out, "]}}")?;
    }
    out.flush()?;
    Ok(())
}

fn check(tokens: &[u32], model: &Model) -> Result<()> {
    match tokens
        .iter()
        .position(|&token| token as usize >= model.n_vocab())
    {
        None => Ok(()),
        Some(at) => bail!(
            "token {at}: id {}, expected less than {} (the vocabulary)",
            tokens[at],
            model.n_vocab()
        ),
    }
}

fn print_likeliest(model: &Model, row: &[f32], out: &mut impl Write) -> Result<()> {
    let mut ids: Vec<usize> = (0..row.len()).collect();
    ids.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
    for &id in ids.iter().take(SHOWN) {
        let text = match model.tokenizer() {
            Ok(tokenizer) => format!("  {:?}", tokenizer.decode(&[id as u32])?),
            Err(_) => String::new(),
        };
        writeln!(out, "{id:6} {:10.4}{text}", row[id])?;
    }
    writeln!(out)?;
    Ok(())
}
