//! Lines that are typed on a terminal, with editing and a history, or read from a pipe or file.

use std::borrow::Cow;
use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{bail, Context as _, Result};
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::config::{Behavior, CompletionType, Config};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Context, Editor, Helper};

use super::commands::COMMANDS;
use super::history::{HistoryFile, HISTORY_LINES};
#[cfg(unix)]
use super::keyboard::Keyboard;

/// Bytes of a message, and of a system text: nobody writes so much, and all of it is kept in several copies.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 20;

pub(crate) enum Input {
    Terminal(Box<Terminal>),
    /// A terminal that can do nothing but print, and be read from line by line.
    PlainTerminal,
    Pipe,
}

pub(crate) struct Terminal {
    #[cfg(unix)]
    keyboard: Keyboard,
    editor: Editor<ChatHelper, MemHistory>,
    history: Option<HistoryFile>,
}

/// What a read gave.
pub(crate) enum Read {
    Line(String),
    /// Ctrl-C at the prompt.
    Interrupted,
    End,
}

impl Input {
    pub(crate) fn new(keep_history: bool) -> Result<Self> {
        if !io::stdin().is_terminal() {
            return Ok(Input::Pipe);
        }
        if is_plain_terminal() {
            return Ok(Input::PlainTerminal);
        }
        let config = Config::builder()
            .max_history_size(HISTORY_LINES)?
            .behavior(behavior())
            .completion_type(CompletionType::List)
            .build();
        let in_memory = MemHistory::with_config(&config);
        let make = || Editor::with_history(config, in_memory).context("the terminal");
        #[cfg(unix)]
        let Ok(keyboard) = Keyboard::new() else {
            return Ok(Input::PlainTerminal);
        };
        #[cfg(unix)]
        let mut editor = keyboard.introduce(make)??;
        #[cfg(not(unix))]
        let mut editor = make()?;
        editor.set_helper(Some(ChatHelper {
            files: FilenameCompleter::new(),
        }));
        let history = HistoryFile::of_user().filter(|_| keep_history);
        for line in history.iter().flat_map(HistoryFile::read) {
            editor.add_history_entry(line)?;
        }
        Ok(Input::Terminal(Box::new(Terminal {
            #[cfg(unix)]
            keyboard,
            editor,
            history,
        })))
    }

    pub(crate) fn is_terminal(&self) -> bool {
        !matches!(self, Input::Pipe)
    }

    /// The next line; lines that end in a backslash come with the one after.
    pub(crate) fn read(&mut self, prompt: &str) -> Result<Read> {
        match self {
            Input::Terminal(terminal) => terminal.read(prompt),
            Input::PlainTerminal => {
                print_prompt(prompt)?;
                read_from_pipe()
            }
            Input::Pipe => read_from_pipe(),
        }
    }
}

impl Terminal {
    fn read(&mut self, prompt: &str) -> Result<Read> {
        let editor = &mut self.editor;
        #[cfg(unix)]
        let line = self.keyboard.lend(|| editor.readline(prompt))?;
        #[cfg(not(unix))]
        let line = editor.readline(prompt);
        #[cfg(unix)]
        if self.keyboard.hung_up() {
            return Ok(Read::End);
        }
        let line = match line {
            Ok(line) => line,
            // By a key, or by a signal from elsewhere.
            Err(ReadlineError::Interrupted | ReadlineError::Signal(_)) => {
                return Ok(Read::Interrupted)
            }
            Err(ReadlineError::Eof) => return Ok(Read::End),
            Err(error) => return Err(error).context("the terminal"),
        };
        if !line.trim().is_empty() {
            self.editor.add_history_entry(line.as_str())?;
            if let Some(history) = &self.history {
                history.append(&line);
            }
        }
        Ok(Read::Line(line))
    }
}

/// Where the editor draws.
fn behavior() -> Behavior {
    match cfg!(unix) || io::stdout().is_terminal() {
        true => Behavior::Stdio,
        // stdout is for answers only, as with `rwkv-edge chat | tee answers`.
        false => Behavior::PreferTerm,
    }
}

/// Those for which the line editor knows no keys.
fn is_plain_terminal() -> bool {
    let term = std::env::var("TERM").unwrap_or_default();
    let plain = ["dumb", "cons25", "emacs"];
    plain.iter().any(|name| name.eq_ignore_ascii_case(&term))
}

/// On the terminal, even where stdout is none: that is for answers only.
fn print_prompt(prompt: &str) -> Result<()> {
    let (mut stdout, mut stderr) = (io::stdout(), io::stderr());
    let out: &mut dyn Write = match stdout.is_terminal() {
        true => &mut stdout,
        false => &mut stderr,
    };
    out.write_all(prompt.as_bytes())?;
    Ok(out.flush()?)
}

fn read_from_pipe() -> Result<Read> {
    read_from(&mut io::stdin().lock())
}

/// The next line, and those that it goes on with.
fn read_from(input: &mut impl BufRead) -> Result<Read> {
    let mut bytes = Vec::new();
    loop {
        if !read_line(input, &mut bytes)? {
            return Ok(match bytes.is_empty() {
                true => Read::End,
                // A backslash, and nothing to go on with.
                false => Read::Line(String::from_utf8_lossy(&bytes).into_owned()),
            });
        }
        let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.ends_with(b"\\") {
            let size = line.len();
            bytes.truncate(size);
            bytes.push(b'\n');
            continue;
        }
        return Ok(Read::Line(String::from_utf8_lossy(line).into_owned()));
    }
}

/// Appends a line with its end, but no more than a message may have; `false` when there is none.
fn read_line(input: &mut impl BufRead, bytes: &mut Vec<u8>) -> Result<bool> {
    let before = bytes.len();
    loop {
        let read = match input.fill_buf() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            read => read.context("stdin: cannot read")?,
        };
        let end = read.iter().position(|&byte| byte == b'\n');
        let n = end.map_or(read.len(), |at| at + 1);
        if bytes.len() + n > MESSAGE_BYTES_MAX {
            bail!(
                "stdin: a message of more than {MESSAGE_BYTES_MAX} bytes, expected at most so many"
            );
        }
        bytes
            .try_reserve(n)
            .context("stdin: not enough memory for a message")?;
        bytes.extend_from_slice(&read[..n]);
        input.consume(n);
        if n == 0 || end.is_some() {
            return Ok(bytes.len() > before);
        }
    }
}

/// Completes commands and file names, and lets a line that ends in a backslash go on.
struct ChatHelper {
    files: FilenameCompleter,
}

impl Completer for ChatHelper {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        at: usize,
        context: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        if line.starts_with("/save ") || line.starts_with("/load ") {
            return self.files.complete(line, at, context);
        }
        let typed = &line[..at];
        let fits = |(name, argument, _): &&(&str, &str, &str)| {
            let _ = argument;
            !typed.is_empty() && name.starts_with(typed)
        };
        let pair = |(name, argument, _): &(&str, &str, &str)| Pair {
            display: (*name).to_owned(),
            replacement: match argument.is_empty() {
                true => (*name).to_owned(),
                false => format!("{name} "),
            },
        };
        Ok((0, COMMANDS.iter().filter(fits).map(pair).collect()))
    }
}

impl Validator for ChatHelper {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match context.input().ends_with('\\') {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

impl Hinter for ChatHelper {
    type Hint = String;
}

impl Highlighter for ChatHelper {
    fn highlight<'l>(&self, line: &'l str, _at: usize) -> Cow<'l, str> {
        Cow::Borrowed(line)
    }
}

impl Helper for ChatHelper {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_an_end() {
        for n in [MESSAGE_BYTES_MAX - 1, MESSAGE_BYTES_MAX + 1] {
            let mut input = io::BufReader::new(io::Read::take(io::repeat(b'a'), n as u64));
            match read_from(&mut input) {
                Ok(Read::Line(line)) => assert_eq!(line.len(), MESSAGE_BYTES_MAX - 1),
                Ok(_) => panic!("a line"),
                Err(error) => {
                    assert!(n > MESSAGE_BYTES_MAX);
                    assert!(
                        error.to_string().contains("more than 16777216 bytes"),
                        "{error}"
                    );
                }
            }
        }
        // Lines that go on are one message.
        let mut lines =
            io::BufReader::new(io::Cursor::new("a\\\n".repeat(MESSAGE_BYTES_MAX / 2 + 1)));
        assert!(read_from(&mut lines).is_err());
    }
}
