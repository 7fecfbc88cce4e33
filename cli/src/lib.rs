//! The command `rwkv-edge`: text from RWKV models on small machines.
//!
//! [`main`] is all of it, for the program of this name and for whatever else brings the command along, such as
//! a package of another language. Text goes to stdout, everything else to stderr. Exit code 0: done, 1: failed,
//! 2: wrong usage. A closed pipe is success.
//!
//! What other programs want of the command without its options and texts is in crates of its own:
//! `rwkv-edge-chat`, `rwkv-edge-hub` and `rwkv-edge-scoring`. [`parts`] is for packages that bring the command along.

// One file for each subcommand; `args.rs` and `model.rs` hold what they share.

#![forbid(unsafe_code)]

mod again;
mod args;
mod bars;
mod bench;
mod by_tensor;
mod byte_size;
mod cache_folder;
mod calibrate;
mod chat;
mod compare;
mod completions;
mod convert;
mod devices;
mod embed;
mod environment;
mod eval;
mod generate;
mod help;
mod hub;
mod info;
mod input;
mod lambada;
mod logits;
mod lora;
mod man;
mod memory;
mod mistyped;
mod model;
mod numbers;
pub mod parts;
mod paths;
mod perplexity;
mod plot;
mod progress;
mod pull;
mod quantised;
mod quantize;
mod sampling;
#[cfg(feature = "serve")]
mod serve;
mod tokenize;
mod verbosity;

use std::ffi::OsString;
use std::io::{self, Write};
use std::time::Instant;

use clap::{Parser, Subcommand};
use rwkv_edge::printable;
use rwkv_edge_hub::without_secrets;

use crate::again::Program;
use crate::verbosity::{detail, note, tell};

/// Runs RWKV language models on small machines.
///
/// Without a subcommand it generates text, and without --model it does so with a small demo model that is
/// part of the program: `rwkv-edge --quant int8 "Ownership is"`.
#[derive(Parser)]
#[command(name = "rwkv-edge", version)]
#[command(subcommand_negates_reqs = true, arg_required_else_help = false)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    generate: generate::Args,
    #[command(flatten)]
    verbosity: verbosity::Verbosity,
}

#[derive(Subcommand)]
enum Command {
    /// Continue a prompt (the default)
    Generate(generate::Args),
    /// Download a model from the Hugging Face hub
    Pull(pull::Args),
    /// Have a conversation
    ///
    /// On a terminal lines are edited, completed and kept in a history; Ctrl-C ends an answer, and /help
    /// lists commands. From a pipe each line is a message or a command, and each answer is printed with a
    /// newline behind it.
    Chat(chat::Args),
    /// Write a checkpoint as one quantised model file
    Quantize(quantize::Args),
    /// Write a checkpoint as a Hugging Face directory or .pth file
    Convert(convert::Args),
    /// Show what a model is and what it needs
    Info(info::Args),
    /// Turn text into token ids, or back
    Tokenize(tokenize::Args),
    /// Print the raw output of the network for given tokens
    Logits(logits::Args),
    /// Measure how well a model predicts a text
    Perplexity(perplexity::Args),
    /// Run a published test of language models
    Eval(eval::Args),
    /// Turn each line of a text into a vector
    ///
    /// Lines that say the same lie near each other, as far as the model knows. There is one vector for each
    /// line, in order; that of an empty line is zeros. docs/EMBEDDINGS.md says what suits what.
    Embed(embed::Args),
    /// Answer over HTTP, as clients of OpenAI speak it
    ///
    /// Many conversations at once, with states that are kept so that nothing is read twice. It listens to this machine
    /// alone unless it is told otherwise, and ends at SIGTERM or Ctrl-C, once answers that have begun have ended.
    #[cfg(feature = "serve")]
    Serve(serve::Args),
    /// Measure speed and memory, beside what this machine can do at most
    Bench(bench::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
    /// Print or write manual pages
    Man(man::Args),
}

const FAILED: u8 = 1;
const WRONG_USAGE: u8 = 2;

/// Runs one command and gives its exit code. The arguments begin with the name of the program, as those of a
/// process do.
///
/// The process goes on, whatever the command came to, and may run another one; one at a time, since all of
/// them share stdin, stdout, stderr and how much is said there. Three things stay behind: the kernels and plugins
/// that were chosen, as in every process, the [handler of SIGBUS](rwkv_edge::install_sigbus_handler), by which a
/// model file that shrinks while it is used is an error, and, once a conversation was led on a terminal, what Ctrl-C does: it
/// ends an answer and no longer the process.
///
/// ```
/// let arguments = ["rwkv-edge", "--version"].map(Into::into);
/// assert_eq!(rwkv_edge_cli::main(arguments), 0);
/// ```
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    main_of(&[], arguments)
}

/// As [`main`], where the command is not a program of its own: `program` and then arguments of the command run
/// it in a new process, such as `python3 -m rwkv_edge`. `bench` does that, to measure how a process starts.
pub fn main_of(program: &[OsString], arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let program = Program::new(program);
    let code = run_command(&program, arguments.into_iter());
    // As at the end of a process. Whoever read it may be gone.
    let _ = io::stdout().flush();
    code
}

fn run_command(program: &Program, arguments: impl Iterator<Item = OsString>) -> u8 {
    let start = Instant::now();
    hub::forget();
    // Where a system has none, such a file ends the process, as it does with every program that maps files.
    let _ = rwkv_edge::install_sigbus_handler();
    let (cli, links) = match environment::check().map(|()| help::parse(arguments)) {
        Ok(Ok(parsed)) => parsed,
        Ok(Err(error)) => return tell_help(error),
        Err(text) => return fail(&UsageError(text).into()),
    };
    cli.verbosity.apply();
    // What is still in the buffer is part of what was asked for.
    let result = links.and_then(|()| run(&cli, program));
    let result = result.and_then(|()| Ok(io::stdout().flush()?));
    let memory = memory::peak_resident_bytes().map_or(String::new(), |bytes| {
        format!(", at most {:.1} MB in memory", bytes as f64 / 1e6)
    });
    detail!("{:.3} s in all{memory}", start.elapsed().as_secs_f64());
    end_of(result)
}

/// The exit code of a command, whose error is told.
fn end_of(result: anyhow::Result<()>) -> u8 {
    match result {
        Ok(()) => 0,
        Err(error) if is_closed_pipe(&error) => 0,
        Err(error) => fail(&error),
    }
}

/// Help, version, and what is wrong with the command line. Whoever wanted to read it may be gone.
fn tell_help(error: clap::Error) -> u8 {
    if error.use_stderr() {
        let text = error.render().to_string();
        let _ = match without_secrets(&text) {
            shown if shown == text => error.print(),
            shown => io::stderr().write_all(shown.as_bytes()),
        };
        return WRONG_USAGE;
    }
    let printed = error.print().and_then(|()| io::stdout().flush());
    match printed {
        Err(error) => end_of(Err(error.into())),
        Ok(()) => 0,
    }
}

fn run(cli: &Cli, program: &Program) -> anyhow::Result<()> {
    let Some(command) = &cli.command else {
        return generate::run(&cli.generate);
    };
    match command {
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Pull(args) => pull::run(args),
        Command::Quantize(args) => quantize::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Info(args) => info::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Logits(args) => logits::run(args),
        Command::Perplexity(args) => perplexity::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Embed(args) => embed::run(args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(args),
        Command::Bench(args) => bench::run(args, program),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
    }
}

/// Wrong usage that the declarations of options cannot express: exit code 2, as clap's own errors.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

fn fail(error: &anyhow::Error) -> u8 {
    let text = text_of(error);
    verbosity::print(format_args!("rwkv-edge: {}", without_secrets(&text)));
    match error.is::<UsageError>() {
        true => WRONG_USAGE,
        false => FAILED,
    }
}

/// An error and its causes, but for those that say again what was said: a library's error may have its
/// cause in its own text, too.
pub(crate) fn text_of(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        // As the library's own texts are, so that what is in one of them is found there.
        let cause = match cause.is::<UsageError>() {
            true => cause.to_string(),
            false => printable(&cause.to_string()).into_owned(),
        };
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Whether the reader of our output has gone, as `head` does: it has all it wanted.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io_error = error.downcast_ref::<io::Error>();
    io_error.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
