//! The command `rwkv-edge`: text from RWKV models on small machines.
//!
//! One file for each subcommand; `args.rs` and `model.rs` hold what they share. Text goes to stdout,
//! everything else to stderr. Exit code 0: done, 1: failed, 2: wrong usage. A closed pipe is success.

#![forbid(unsafe_code)]

mod args;
mod bench;
mod chat;
mod completions;
mod embed;
mod generate;
mod info;
mod input;
mod logits;
mod memory;
mod model;
mod perplexity;
mod plot;
mod progress;
mod quantize;
mod sampling;
mod tokenize;

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs RWKV language models on small machines.
///
/// Without a subcommand it generates text, and without --model it does so with a small demo model that is
/// part of the program: `rwkv-edge --quant int8 "Ownership is"`.
#[derive(Parser)]
#[command(name = "rwkv-edge", version, args_conflicts_with_subcommands = true)]
#[command(subcommand_negates_reqs = true, arg_required_else_help = false)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    generate: generate::Args,
}

#[derive(Subcommand)]
enum Command {
    /// Continue a prompt (the default)
    Generate(generate::Args),
    /// Have a conversation
    Chat(chat::Args),
    /// Write a checkpoint as one quantised model file
    Quantize(quantize::Args),
    /// Show what a model is and what it needs
    Info(info::Args),
    /// Turn text into token ids, or back
    Tokenize(tokenize::Args),
    /// Print the raw output of the network for given tokens
    Logits(logits::Args),
    /// Measure how well a model predicts a text
    Perplexity(perplexity::Args),
    /// Turn each line of a text into a vector
    Embed(embed::Args),
    /// Measure speed and memory, beside what this machine can do at most
    Bench(bench::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        None => generate::run(&cli.generate),
        Some(Command::Generate(args)) => generate::run(&args),
        Some(Command::Chat(args)) => chat::run(&args),
        Some(Command::Quantize(args)) => quantize::run(&args),
        Some(Command::Info(args)) => info::run(&args),
        Some(Command::Tokenize(args)) => tokenize::run(&args),
        Some(Command::Logits(args)) => logits::run(&args),
        Some(Command::Perplexity(args)) => perplexity::run(&args),
        Some(Command::Embed(args)) => embed::run(&args),
        Some(Command::Bench(args)) => bench::run(&args),
        Some(Command::Completions(args)) => completions::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rwkv-edge: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the reader of our output has gone, as `head` does: it has all it wanted.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io_error = error.downcast_ref::<io::Error>();
    io_error.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
