//! Environment variables that stand for options, looked at before the command line is.
//!
//! clap takes their values (`env = ".."` in `args.rs`), but an error of its would name an option that
//! nobody typed, and an empty variable would be an empty value. The library and the hub have variables
//! of their own.

use std::env;

use clap::builder::Resettable;
use clap::Command;

use crate::numbers::{whole, THREADS_MAX};

/// Stands for `--model`.
pub(crate) const MODEL: &str = "RWKV_EDGE_MODEL";
/// Stands for `--threads`.
pub(crate) const THREADS: &str = "RWKV_EDGE_THREADS";

/// What the long help says of them.
pub(crate) const HELP: &str = "\
Environment:
  RWKV_EDGE_MODEL    model to use where --model is not given
  RWKV_EDGE_THREADS  threads to use where --threads is not given
  RWKV_EDGE_KERNELS  instruction set to use instead of the best one of this CPU:
                     scalar, or a name that `info` shows
  RWKV_EDGE_PLUGIN_PATH
                     files of device plugins, or folders that have them
  NO_COLOR           no colours and no bold text in help and error texts

Exit code:
  0 done, 1 failed, 2 wrong usage; text goes to stdout, all else to stderr";

/// Empty variables count as unset. They stay what they are: the environment is the whole process's.
pub(crate) fn without_empty(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        let value = arg.get_env().and_then(env::var_os);
        match value.is_some_and(|value| value.is_empty()) {
            true => arg.env(Resettable::Reset),
            false => arg,
        }
    });
    command.mut_subcommands(without_empty)
}

/// Bad values are an error that names the variable.
pub(crate) fn check() -> Result<(), String> {
    let Some(threads) = env::var_os(THREADS).filter(|value| !value.is_empty()) else {
        return Ok(());
    };
    let threads = threads.to_string_lossy();
    whole::<usize>(0..=THREADS_MAX)(&threads)
        .map(drop)
        .map_err(|error| format!("{THREADS}={threads}: {error}; 0: one for each physical core"))
}
