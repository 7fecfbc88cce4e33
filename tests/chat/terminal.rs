//! A person at a terminal, as far as a program can be one.

use crate::*;
use nix::pty::openpty;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use std::fs::File;
use std::io::Read;
use std::process::Child;
use std::sync::mpsc::RecvTimeoutError;

struct Terminal {
    child: Child,
    /// The keyboard and the screen.
    tty: File,
    screen: Vec<u8>,
    folder: tempfile::TempDir,
}

impl Terminal {
    fn start(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::start_in(folder, args)
    }

    fn start_in(folder: tempfile::TempDir, args: &[&str]) -> Self {
        Self::start_with(folder, "xterm", args)
    }

    fn start_with(folder: tempfile::TempDir, term: &str, args: &[&str]) -> Self {
        let pty = openpty(None, None).unwrap();
        let slave = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = command()
            .arg("chat")
            .args(args)
            .env("XDG_STATE_HOME", folder.path())
            .env("TERM", term)
            .stdin(slave())
            .stdout(slave())
            .stderr(slave())
            .spawn()
            .unwrap();
        let tty = File::from(pty.master);
        Terminal {
            child,
            tty,
            screen: Vec::new(),
            folder,
        }
    }

    /// Keys reach the editor only once its prompt is there; before, the system's own line editing
    /// would take them.
    fn press(&mut self, keys: &str) {
        self.tty.write_all(keys.as_bytes()).unwrap();
    }

    fn press_bytes(&mut self, keys: &[u8]) {
        self.tty.write_all(keys).unwrap();
    }

    fn enter(&mut self, prompt: &str, line: &str) {
        self.wait_for(prompt);
        self.press(&format!("{line}\r"));
    }

    /// Reads until this appears on the screen, and forgets all up to it.
    fn wait_for(&mut self, text: &str) -> String {
        loop {
            let size = text.len();
            let found = self
                .screen
                .windows(size)
                .position(|part| part == text.as_bytes());
            if let Some(at) = found {
                let before: Vec<u8> = self.screen.drain(..at + size).collect();
                return String::from_utf8_lossy(&before).into_owned();
            }
            let mut piece = [0; 4096];
            let n = self.tty.read(&mut piece).unwrap_or(0);
            let screen = String::from_utf8_lossy(&self.screen);
            assert!(
                n > 0,
                "the program ended before {text:?} appeared: {screen}"
            );
            self.screen.extend(&piece[..n]);
        }
    }

    /// Interrupts the program until this appears. The editor misses a signal that comes just before it begins to read.
    fn interrupt_until(&mut self, text: &str) {
        let pid = Pid::from_raw(self.child.id() as i32);
        let (appeared, waiting) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let pause = std::time::Duration::from_millis(300);
                while waiting.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                    kill(pid, Signal::SIGINT).unwrap();
                }
            });
            self.wait_for(text);
            drop(appeared);
        });
    }

    fn interrupt(&self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT).unwrap();
    }

    fn end(mut self, prompt: &str) -> tempfile::TempDir {
        self.wait_for(prompt);
        self.press("\x04");
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        self.folder
    }
}

/// The model would go on for a year.
#[test]
fn ctrl_c_ends_the_answer_and_not_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny::write_model(folder.path(), 65_536, &[(WORLD_A, 1.0)]);
    let world = repository("tests/fixtures/tokenizer/world_small.txt");
    let args = [
        "--model",
        model.to_str().unwrap(),
        "--tokenizer",
        world.to_str().unwrap(),
    ];
    let mut terminal = Terminal::start(&[&args[..], &["-n", "2000000000"]].concat());
    for _ in 0..2 {
        terminal.enter("User: ", "Hello");
        terminal.wait_for("Assistant: aaaaaaaa");
        terminal.interrupt();
        terminal.wait_for("(interrupted; /undo takes the turn back)");
    }
    // What there was of the answers is part of the conversation.
    terminal.enter("User: ", "/show");
    for _ in 0..2 {
        terminal.wait_for("User: Hello\r\nAssistant: aaaaaaaa");
    }
    terminal.enter("User: ", "/undo");
    terminal.wait_for("taken back: Hello");
    terminal.enter("User: ", "/stats");
    terminal.wait_for("1 turns");
    // At the prompt it ends nothing either.
    terminal.wait_for("User: ");
    terminal.press("half a line\x03");
    terminal.wait_for("Ctrl-D or /quit ends");
    terminal.end("User: ");
}

#[test]
fn lines_are_edited_completed_and_kept() {
    let plain = ["--template", "plain"];
    let mut terminal = Terminal::start(&plain);
    // Ctrl-A, Ctrl-E, backspace; Tab behind a part of a command; errors end nothing.
    terminal.enter("> ", "wnership is\x01O\x05x\x7f");
    terminal.wait_for("than the ownership rules.");
    terminal.enter("> ", "/sta\t");
    terminal.wait_for("1 turns");
    terminal.enter("> ", "/load /no/such/file");
    terminal.wait_for("/no/such/file: cannot");
    let folder = terminal.end("> ");
    let history = folder.path().join("rwkv-edge/chat_history");
    assert!(fs::read_to_string(&history)
        .unwrap()
        .contains("Ownership is"));

    // Up three times is the first line again, in another session.
    let mut terminal = Terminal::start_in(folder, &plain);
    terminal.enter("> ", "\x1b[A\x1b[A\x1b[A");
    terminal.wait_for("than the ownership rules.");
    let folder = terminal.end("> ");

    let no_history = ["--template", "plain", "--no-history"];
    let mut terminal = Terminal::start_in(folder, &no_history);
    terminal.enter("> ", "/system secret");
    terminal.wait_for("/undo brings the old one back");
    let folder = terminal.end("> ");
    assert!(!fs::read_to_string(&history).unwrap().contains("secret"));
    drop(folder);
}

const PLAIN: [&str; 6] = ["--template", "plain", "--quant", "int8", "-n", "8"];
/// Terminals with line editing, and those without.
const TERMS: [&str; 2] = ["xterm", "dumb"];

fn start_on(term: &str, args: &[&str]) -> Terminal {
    let folder = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::start_with(folder, term, args);
    terminal.wait_for("> ");
    terminal
}

#[test]
fn pasted_lines_are_messages() {
    for term in TERMS {
        for end in ["\r", "\n", "\r\n"] {
            let mut terminal = start_on(term, &PLAIN);
            let lines = ["Ownership is", "A trait is", "A slice is", ""].join(end);
            terminal.press(&lines);
            terminal.press("/show\r/stats\r");
            for line in lines.split(end).filter(|line| !line.is_empty()) {
                terminal.wait_for(&format!("> {line}\r\n"));
            }
            terminal.wait_for("3 turns");
            terminal.end("> ");
        }
    }
    // From terminals that say what is pasted it is one message, which can be edited before it is sent.
    let mut terminal = start_on("xterm", &PLAIN);
    terminal.press("\x1b[200~one\r\ntwo\rthree\x1b[201~ and four\r/show\r/stats\r");
    terminal.wait_for("> one\r\ntwo\r\nthree and four\r\n");
    terminal.wait_for("1 turns");
    terminal.end("> ");
}

/// More than the system keeps of a line, and of all lines, while nobody reads them.
#[test]
fn nothing_is_lost_while_an_answer_is_written() {
    let mut args = PLAIN;
    args[5] = "1";
    let mut terminal = start_on("xterm", &args);
    let mut keyboard = terminal.tty.try_clone().unwrap();
    let typist = std::thread::spawn(move || {
        for n in 0..80 {
            let line = format!("line {n} {}\r", "word ".repeat(20));
            keyboard.write_all(line.as_bytes()).unwrap();
        }
        let long = "word ".repeat(1200);
        keyboard
            .write_all(format!("{long}END\r/show\r/stats\r").as_bytes())
            .unwrap();
    });
    let shown = terminal.wait_for("81 turns");
    typist.join().unwrap();
    for n in 0..80 {
        assert!(shown.contains(&format!("> line {n} word")), "{n}");
    }
    // All of it, in one piece, as the message that it was.
    assert!(shown.contains(&format!("> {}END\r\n", "word ".repeat(1200))));
    terminal.end("> ");
}

#[test]
fn what_is_behind_ctrl_c_is_not_lost() {
    let mut terminal = start_on("xterm", &PLAIN);
    terminal.press("one\rtwo\x03three\r/show\r/stats\r");
    terminal.wait_for("Ctrl-D or /quit ends");
    terminal.wait_for("> one\r\n");
    terminal.wait_for("> three\r\n");
    terminal.wait_for("2 turns");
    // A signal from elsewhere is the same.
    terminal.wait_for("> ");
    terminal.press("half");
    terminal.wait_for("half");
    terminal.interrupt_until("Ctrl-D or /quit ends");
    terminal.end("> ");
}

#[test]
fn what_is_not_utf8_ends_nothing() {
    for term in TERMS {
        let mut terminal = start_on(term, &PLAIN);
        for keys in [&b"caf\xe9\r"[..], b"\xff\xfe\r", b"\xc3(\r", b"\xe9\x9f\r"] {
            terminal.press_bytes(keys);
        }
        terminal.press("/show\r/stats\r");
        for line in ["caf\u{fffd}", "\u{fffd}\u{fffd}", "\u{fffd}(", "\u{fffd}"] {
            terminal.wait_for(&format!("> {line}\r\n"));
        }
        terminal.wait_for("4 turns");
        // Keys that are no text, and a character in two parts.
        terminal.wait_for("> ");
        terminal.press_bytes(b"\xe9\x9f");
        std::thread::sleep(std::time::Duration::from_millis(50));
        terminal.press_bytes(b"\xb3\r\0\0nul\r/stats\r");
        terminal.wait_for("6 turns");
        terminal.end("> ");
    }
}

#[test]
fn the_terminal_is_afterwards_what_it_was() {
    use nix::sys::termios::tcgetattr;
    let mut terminal = start_on("xterm", &PLAIN);
    terminal.press("hello\r");
    terminal.wait_for("> ");
    terminal.press("/quit\r");
    terminal.child.wait().unwrap();
    let fresh = openpty(None, None).unwrap();
    let flags = |modes: nix::sys::termios::Termios| {
        (modes.input_flags, modes.output_flags, modes.local_flags)
    };
    assert_eq!(
        flags(tcgetattr(&terminal.tty).unwrap()),
        flags(tcgetattr(&fresh.master).unwrap())
    );
}

/// Thoughts are dimmed, and stand in front of the answer's name.
#[test]
fn thoughts_are_shown_on_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let (model, tokenizer) = tiny::write_thinker(folder.path());
    let args = [
        "--model",
        model.to_str().unwrap(),
        "--tokenizer",
        tokenizer.to_str().unwrap(),
        "--think",
        "on",
    ];
    let mut terminal = Terminal::start(&args);
    terminal.enter("User: ", "Hi");
    terminal.wait_for("\x1b[2mA\x1b[0m");
    terminal.wait_for("c\x1b[0m");
    terminal.wait_for("\r\nAssistant: Yes\r\n\r\nNo");
    terminal.end("User: ");
}
