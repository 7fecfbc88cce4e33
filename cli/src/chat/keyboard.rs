//! What is typed or pasted on a terminal, on its way to the line editor.
//!
//! The editor would forget what it has read behind the end of a line, and give up at a byte that is not UTF-8;
//! the system's own lines, while an answer is written, end at 4 KiB. So what is typed is read here, and the
//! editor has a terminal of ours as its stdin as long as it reads: a pseudo-terminal on which one line comes at a
//! time, in UTF-8. What is behind that line waits here, or in the system's buffer, for the next one.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::pty::openpty;
use nix::sys::termios::{
    cfmakeraw, tcgetattr, tcsetattr, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices,
    Termios,
};
use nix::unistd::{dup, dup2_stdin, dup2_stdout, pipe};

use super::typed::Typed;

/// An editor that has not come back this long after the end of a line goes on with the next, as behind a
/// backslash.
const ANOTHER_LINE_MS: u16 = 300;
/// After the key that suspends the program has gone to the editor, who does it.
const SUSPENDING: Duration = Duration::from_millis(200);
const READ_BYTES: usize = 4096;

pub(crate) struct Keyboard {
    terminal: File,
    modes: Modes,
    /// The editor's stdin, and our side of it.
    inner: OwnedFd,
    keys: File,
    typed: Typed,
    /// The terminal is gone.
    hung_up: bool,
    /// What the editor draws on, where stdout is no terminal.
    screen: Option<File>,
    stdout: OwnedFd,
}

/// Of the terminal.
#[derive(Clone)]
struct Modes {
    /// As it was, and as it is at the end.
    original: Termios,
    /// While the editor reads: every key is a byte.
    editing: Termios,
    /// While an answer is written: Ctrl-C is a signal and what is typed is shown, but nothing is cut or thrown
    /// away.
    answering: Termios,
}

impl Modes {
    fn of(terminal: &File) -> nix::Result<Self> {
        let original = tcgetattr(terminal)?;
        let mut editing = original.clone();
        cfmakeraw(&mut editing);
        // What is printed has plain line ends.
        editing.output_flags |= OutputFlags::OPOST & original.output_flags;
        let mut answering = original.clone();
        answering.local_flags &= !LocalFlags::ICANON;
        answering.local_flags |= LocalFlags::NOFLSH;
        for modes in [&mut editing, &mut answering] {
            modes.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
            modes.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        }
        Ok(Modes {
            original,
            editing,
            answering,
        })
    }
}

impl Keyboard {
    /// The keyboard of the terminal that is stdin. An error where the system has no pseudo-terminals, or no
    /// screen to draw on.
    pub(crate) fn new() -> Result<Self> {
        let terminal = File::from(dup(io::stdin())?);
        let modes = Modes::of(&terminal)?;
        let mut raw = modes.original.clone();
        cfmakeraw(&mut raw);
        let pty = openpty(None, &raw)?;
        // An editor that comes back early reads no more of a long line.
        fcntl(&pty.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let screen = match io::stdout().is_terminal() {
            true => None,
            false => Some(File::options().write(true).open("/dev/tty")?),
        };
        Ok(Keyboard {
            terminal,
            modes,
            inner: pty.slave,
            keys: File::from(pty.master),
            typed: Typed::default(),
            hung_up: false,
            screen,
            stdout: dup(io::stdout())?,
        })
    }

    /// Whether the terminal is gone, so that nothing more will be typed.
    pub(crate) fn hung_up(&self) -> bool {
        self.hung_up
    }

    /// Makes an editor, which looks for terminals once.
    pub(crate) fn introduce<T>(&self, make: impl FnOnce() -> T) -> Result<T> {
        let _lent = self.lend_screen()?;
        Ok(make())
    }

    /// Lets the editor read a line.
    pub(crate) fn lend<T>(&mut self, read: impl FnOnce() -> T) -> Result<T> {
        let _modes = ModesGuard::set(&self.terminal, &self.modes)?;
        let _screen = self.lend_screen()?;
        dup2_stdin(&self.inner).context("stdin")?;
        let _stdin = Back(self.terminal.try_clone()?.into(), |fd| dup2_stdin(fd));
        let (stop, stopped) = pipe()?;
        let mut pump = Pump {
            terminal: &self.terminal,
            modes: self.modes.clone(),
            keys: &self.keys,
            typed: &mut self.typed,
            hung_up: &mut self.hung_up,
            stop,
        };
        Ok(thread::scope(|scope| {
            scope.spawn(move || pump.run());
            // Closed when the editor is done, also by a panic, which ends the pump.
            let _stopped = stopped;
            read()
        }))
    }

    fn lend_screen(&self) -> Result<Option<Back<impl Fn(&OwnedFd) -> nix::Result<()>>>> {
        let Some(screen) = &self.screen else {
            return Ok(None);
        };
        io::stdout().flush()?;
        dup2_stdout(screen).context("stdout")?;
        Ok(Some(Back(self.stdout.try_clone()?, |fd| dup2_stdout(fd))))
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.modes.original);
    }
}

/// Puts a file back in its old place.
struct Back<F: Fn(&OwnedFd) -> nix::Result<()>>(OwnedFd, F);

impl<F: Fn(&OwnedFd) -> nix::Result<()>> Drop for Back<F> {
    fn drop(&mut self) {
        let _ = (self.1)(&self.0);
    }
}

/// The terminal as the editor needs it, and afterwards as answers need it.
struct ModesGuard<'a>(&'a File, &'a Modes);

impl<'a> ModesGuard<'a> {
    fn set(terminal: &'a File, modes: &'a Modes) -> Result<Self> {
        tcsetattr(terminal, SetArg::TCSADRAIN, &modes.editing).context("the terminal")?;
        Ok(ModesGuard(terminal, modes))
    }
}

impl Drop for ModesGuard<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.0, SetArg::TCSADRAIN, &self.1.answering);
    }
}

/// Brings keys from the terminal to the editor, as long as that reads.
struct Pump<'a> {
    terminal: &'a File,
    modes: Modes,
    keys: &'a File,
    typed: &'a mut Typed,
    hung_up: &'a mut bool,
    /// Its other end is closed when the editor is done.
    stop: OwnedFd,
}

impl Pump<'_> {
    fn run(&mut self) {
        // What cannot be read or written any more ends the editor, too.
        if self.bring_keys().is_err() {
            *self.hung_up = true;
        }
        if *self.hung_up {
            let _ = self.keys.write_all(b"\x03");
        }
    }

    fn bring_keys(&mut self) -> io::Result<()> {
        loop {
            if let Some(piece) = self.typed.next_piece() {
                if !self.give(&piece.text)? {
                    return Ok(());
                }
                if piece.suspends {
                    tcsetattr(self.terminal, SetArg::TCSADRAIN, &self.modes.original)?;
                    thread::sleep(SUSPENDING);
                    tcsetattr(self.terminal, SetArg::TCSADRAIN, &self.modes.editing)?;
                }
                let wait = PollTimeout::from(ANOTHER_LINE_MS);
                if piece.ends_line && self.wait(None, wait)? == Woken::ToStop {
                    return Ok(());
                }
                continue;
            }
            let typed = Some((self.terminal, PollFlags::POLLIN));
            if self.wait(typed, PollTimeout::NONE)? == Woken::ToStop {
                return Ok(());
            }
            let mut bytes = [0; READ_BYTES];
            match self.terminal.read(&mut bytes) {
                Ok(0) => {
                    *self.hung_up = true;
                    return Ok(());
                }
                Ok(n) => self.typed.push(&bytes[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives keys to the editor; false when it wants no more. It gets them later, then.
    fn give(&mut self, text: &str) -> io::Result<bool> {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let room = Some((self.keys, PollFlags::POLLOUT));
            if self.wait(room, PollTimeout::NONE)? == Woken::ToStop {
                self.typed.put_back(rest);
                return Ok(false);
            }
            match self.keys.write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Waits until something can be done with a file, or the editor is done.
    fn wait(&self, file: Option<(&File, PollFlags)>, timeout: PollTimeout) -> io::Result<Woken> {
        let mut waited = vec![PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
        waited.extend(file.map(|(file, flags)| PollFd::new(file.as_fd(), flags)));
        loop {
            match poll(&mut waited, timeout) {
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match waited[0].any() {
            Some(false) => Ok(Woken::ToGoOn),
            _ => Ok(Woken::ToStop),
        }
    }
}

#[derive(PartialEq)]
enum Woken {
    ToGoOn,
    ToStop,
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
    )
}
