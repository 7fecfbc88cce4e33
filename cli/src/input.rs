//! Text that a command works on: an argument, a file, or stdin.

use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;

use anyhow::{Context, Result};

/// Text as bytes, taken as it is: nothing is trimmed or added.
#[derive(clap::Args, Clone)]
pub(crate) struct TextArgs {
    /// The text; without it, --file, or stdin
    ///
    /// Taken as it is: nothing is trimmed or added. stdin is read only where it is no terminal and no text
    /// is given in another way.
    #[arg(value_name = "TEXT", conflicts_with = "file")]
    pub(crate) text: Option<OsString>,

    /// File that holds the text
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

impl TextArgs {
    /// The text, or `None` when there is none and stdin is a terminal.
    pub(crate) fn read(&self) -> Result<Option<Vec<u8>>> {
        if let Some(text) = &self.text {
            return Ok(Some(text.as_encoded_bytes().to_vec()));
        }
        if let Some(path) = &self.file {
            let text = fs::read(path);
            let text = text.with_context(|| format!("{}: cannot read", path.display()))?;
            return Ok(Some(text));
        }
        if io::stdin().is_terminal() {
            return Ok(None);
        }
        let mut text = Vec::new();
        io::stdin()
            .read_to_end(&mut text)
            .context("stdin: cannot read")?;
        Ok(Some(text))
    }
}
