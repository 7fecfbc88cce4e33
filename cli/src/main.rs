//! The program `rwkv-edge`: the command and nothing else.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    // What stdout is redirected to may be a file, too.
    rwkv_edge::ignore_file_size_signal();
    rwkv_edge_cli::main(std::env::args_os()).into()
}
