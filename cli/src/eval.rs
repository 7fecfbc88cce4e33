//! `rwkv-edge eval`: published tests of language models.

use anyhow::Result;
use clap::Subcommand;

use crate::lambada;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Predict the last word of passages: accuracy and perplexity
    #[command(after_long_help = lambada::EXAMPLES)]
    Lambada(lambada::Args),
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.task {
        Task::Lambada(args) => lambada::run(args),
    }
}
