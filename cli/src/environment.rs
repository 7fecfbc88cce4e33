//! Environment variables that stand for options, looked at before the command line is.
//!
//! clap takes their values (`env = ".."` in `args.rs`), but an error of its would name an option that
//! nobody typed, and an empty variable would be an empty value. The library and the hub have variables
//! of their own.

use std::env;

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

/// Empty variables count as unset; bad values are an error that names the variable.
pub(crate) fn prepare() -> Result<(), String> {
    for name in [MODEL, THREADS] {
        if env::var_os(name).is_some_and(|value| value.is_empty()) {
            env::remove_var(name);
        }
    }
    let Some(threads) = env::var_os(THREADS) else {
        return Ok(());
    };
    let threads = threads.to_string_lossy();
    match threads.parse::<usize>() {
        Ok(_) => Ok(()),
        Err(_) => Err(format!(
            "{THREADS}={threads}: expected a number of threads; 0: one for each physical core"
        )),
    }
}
