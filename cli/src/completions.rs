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
    if args.shell == Shell::Bash {
        script = repaired(script);
    }
    io::stdout().lock().write_all(&script)?;
    Ok(())
}

/// clap_complete spells a program's name that has a hyphen in two ways, so that nothing is completed
/// behind a subcommand (clap-rs/clap#6421).
fn repaired(script: Vec<u8>) -> Vec<u8> {
    let script = String::from_utf8_lossy(&script);
    script.replace("rwkv__subcmd__edge", "rwkv__edge").into()
}
