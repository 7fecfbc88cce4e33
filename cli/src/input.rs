//! Text that a command works on: an argument, a file, or stdin. It is read as far as it is needed.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result};
use rwkv_edge::{ErrorKind, Model, Reservation, Tokens};

/// Text as bytes, taken as it is: nothing is trimmed or added.
#[derive(clap::Args, Clone)]
pub(crate) struct TextArgs {
    /// The text; without it, --file, or stdin
    ///
    /// Taken as it is: nothing is trimmed or added. stdin is read only where it is no terminal and no text
    /// is given in another way.
    #[arg(value_name = "TEXT", conflicts_with = "file")]
    pub(crate) text: Option<OsString>,

    /// File that holds the text; - is stdin
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

impl TextArgs {
    /// The text, or `None` when there is none and stdin is a terminal.
    pub(crate) fn open(&self) -> Result<Option<Input>> {
        if let Some(text) = &self.text {
            let text = text.as_encoded_bytes().to_vec();
            return Ok(Some(Input {
                reader: Box::new(io::Cursor::new(text)),
                name: "the text".into(),
                size: None,
            }));
        }
        match &self.file {
            Some(path) => Input::open(path).map(Some),
            None if io::stdin().is_terminal() => Ok(None),
            None => Ok(Some(Input::stdin())),
        }
    }
}

/// A text that is read as far as it is needed.
pub(crate) struct Input {
    reader: Box<dyn BufRead>,
    /// For error texts.
    name: String,
    /// Bytes of a file.
    pub(crate) size: Option<u64>,
}

impl Input {
    /// A file, or stdin as `-`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Self::stdin());
        }
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| format!("{name}: cannot read"))?;
        let facts = file.metadata().ok().filter(|found| found.is_file());
        Ok(Input {
            reader: Box::new(BufReader::new(file)),
            name,
            size: facts.map(|facts| facts.len()),
        })
    }

    pub(crate) fn stdin() -> Self {
        Input {
            reader: Box::new(io::stdin().lock()),
            name: "stdin".into(),
            size: None,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The next bytes; none at the end.
    pub(crate) fn chunk(&mut self, chunk: &mut Vec<u8>) -> Result<()> {
        const CHUNK_BYTES: u64 = 32 << 10;
        chunk.clear();
        let read = (&mut self.reader).take(CHUNK_BYTES).read_to_end(chunk);
        read.with_context(|| format!("{}: cannot read", self.name))?;
        Ok(())
    }

    /// What there is still to read.
    pub(crate) fn reader(&mut self) -> &mut dyn BufRead {
        &mut *self.reader
    }

    /// The tokens of the text, of the first so many at most.
    pub(crate) fn tokenize(&mut self, model: &Model, n_max: usize) -> Result<Tokens> {
        let tokens = model.tokenize(&mut self.reader, n_max);
        tokens.map_err(|e| named(e, &self.name))
    }

    /// The tokens of the text, and the text itself, which counts against the model's memory limit as well.
    pub(crate) fn tokenize_and_keep(&mut self, model: &Model) -> Result<(Tokens, Kept)> {
        let mut kept = Kept {
            text: Vec::new(),
            held: model.reserve_memory(0)?,
        };
        let reader = Tee(&mut self.reader, &mut kept);
        let tokens = model.tokenize(reader, usize::MAX);
        let tokens = tokens.map_err(|e| named(e, &self.name))?;
        Ok((tokens, kept))
    }

    /// Whether there is another line.
    pub(crate) fn has_line(&mut self) -> Result<bool> {
        loop {
            match self.reader.fill_buf() {
                Ok(bytes) => return Ok(!bytes.is_empty()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e).with_context(|| format!("{}: cannot read", self.name)),
            }
        }
    }

    /// The tokens of the next line, without its end; and how many bytes it has with that.
    pub(crate) fn tokenize_line(&mut self, model: &Model) -> Result<(Tokens, u64)> {
        let mut line = Line::new(&mut *self.reader);
        let tokens = model.tokenize(&mut line, usize::MAX);
        let n_read = line.n_read;
        let tokens = tokens.map_err(|e| named(e, &self.name))?;
        Ok((tokens, n_read))
    }

    /// The next line, without its end, which counts with copies of it against the model's memory limit.
    pub(crate) fn line(&mut self, model: &Model) -> Result<Kept> {
        const COPIES: usize = 3;
        let mut kept = Kept {
            text: Vec::new(),
            held: model.reserve_memory(0)?,
        };
        let mut line = Line::new(&mut *self.reader);
        let mut chunk = [0; 4096];
        loop {
            let read = match line.read(&mut chunk) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                read => read.with_context(|| format!("{}: cannot read", self.name))?,
            };
            if read == 0 {
                return Ok(kept);
            }
            kept.push(&chunk[..read], COPIES)
                .map_err(|e| e.context(self.name.clone()))?;
        }
    }
}

/// What cannot be read is named; other errors are those of the model.
fn named(error: rwkv_edge::Error, name: &str) -> Error {
    match error.kind() {
        ErrorKind::Io => Error::from(error).context(name.to_owned()),
        _ => error.into(),
    }
}

/// A text that counts against a model's memory limit.
pub(crate) struct Kept {
    pub(crate) text: Vec<u8>,
    held: Reservation,
}

impl Kept {
    fn push(&mut self, bytes: &[u8], copies: usize) -> Result<()> {
        let text = &mut self.text;
        if text.capacity() - text.len() < bytes.len() {
            // An eighth more at a time: what is counted should be what is used.
            let room = text.len() + bytes.len().max(text.len() / 8);
            let size = room.saturating_mul(1 + copies) as u64;
            self.held.grow_to(size, "the text")?;
            let more = room - text.len();
            text.try_reserve_exact(more)
                .context("not enough memory for the text")?;
        }
        text.extend_from_slice(bytes);
        Ok(())
    }
}

/// Keeps what is read.
struct Tee<'a>(&'a mut dyn BufRead, &'a mut Kept);

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read(buffer)?;
        let kept = self.1.push(&buffer[..n], 0);
        kept.map_err(|e| io::Error::other(e.to_string()))?;
        Ok(n)
    }
}

/// One line, without its end: a newline, with or without a carriage return, or the end of the input.
struct Line<'a> {
    input: &'a mut dyn BufRead,
    /// A carriage return was read that may belong to the end.
    return_waits: bool,
    has_ended: bool,
    n_read: u64,
}

impl<'a> Line<'a> {
    fn new(input: &'a mut dyn BufRead) -> Self {
        Line {
            input,
            return_waits: false,
            has_ended: false,
            n_read: 0,
        }
    }

    fn consume(&mut self, n: usize) {
        self.input.consume(n);
        self.n_read += n as u64;
    }
}

impl Read for Line<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !self.has_ended && !buffer.is_empty() {
            let bytes = self.input.fill_buf()?;
            match bytes.first() {
                None => self.has_ended = true,
                Some(b'\n') => {
                    self.has_ended = true;
                    self.consume(1);
                }
                Some(_) if self.return_waits => {
                    self.return_waits = false;
                    buffer[0] = b'\r';
                    return Ok(1);
                }
                Some(b'\r') => {
                    self.return_waits = true;
                    self.consume(1);
                }
                Some(_) => {
                    let bytes = &bytes[..bytes.len().min(buffer.len())];
                    let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
                    let n = bytes.iter().position(is_end).unwrap_or(bytes.len());
                    buffer[..n].copy_from_slice(&bytes[..n]);
                    self.consume(n);
                    return Ok(n);
                }
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_as_they_may() {
        for capacity in [1, 2, 3, 100] {
            let text: &[u8] = b"one\r\n\n\r\ntwo\rmore\r\r\nlast\r";
            let mut input = BufReader::with_capacity(capacity, text);
            let (mut lines, mut n_read) = (Vec::new(), 0);
            while !input.fill_buf().expect("in memory").is_empty() {
                let mut line = Line::new(&mut input);
                let mut text = String::new();
                line.read_to_string(&mut text).expect("in memory");
                n_read += line.n_read;
                lines.push(text);
            }
            assert_eq!(lines, ["one", "", "", "two\rmore\r", "last"], "{capacity}");
            assert_eq!(n_read, text.len() as u64);
        }
    }
}
