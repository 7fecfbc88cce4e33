//! The command in a new process.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context, Result};

/// What runs the command.
pub(crate) struct Program(Vec<OsString>);

impl Program {
    /// A program and its first arguments; none at all: the program of this process.
    pub(crate) fn new(program: &[OsString]) -> Self {
        Program(program.to_vec())
    }

    /// Arguments of the command are still to come.
    pub(crate) fn command(&self) -> Result<Command> {
        match self.0.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments);
                Ok(command)
            }
            None => Ok(Command::new(
                std::env::current_exe().context("cannot find this program")?,
            )),
        }
    }
}
