//! `rwkv-edge completions`: completion scripts for shells.

use std::io::{self, Write};

use anyhow::Result;
use clap_complete::Shell;

use crate::help;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut help::command(), "rwkv-edge", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(())
}
