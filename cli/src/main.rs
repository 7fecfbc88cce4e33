//! The program `rwkv-edge`: the command and nothing else.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    rwkv_edge_cli::main(std::env::args_os()).into()
}
