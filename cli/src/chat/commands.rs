//! What can be typed in a chat besides messages.

use std::path::PathBuf;

use crate::cache_folder;

/// A line of input.
#[derive(Debug, PartialEq)]
pub(crate) enum Line {
    Nothing,
    Message(String),
    Reset,
    Undo,
    Retry,
    Save(PathBuf),
    Load(PathBuf),
    /// Without a text: show the present one.
    System(Option<String>),
    /// A name and a value.
    Set(String, String),
    Show,
    Stats,
    Help,
    Quit,
}

/// Name, argument, what it does.
pub(crate) const COMMANDS: [(&str, &str, &str); 11] = [
    (
        "/reset",
        "",
        "begin a new conversation with the same system text",
    ),
    (
        "/undo",
        "",
        "take the last turn back, or the last /reset, /system or /load",
    ),
    (
        "/retry",
        "",
        "take the last turn back and say the same again",
    ),
    (
        "/save",
        "FILE",
        "save the conversation: the state to FILE, the text to FILE.json",
    ),
    (
        "/load",
        "FILE",
        "go on from a saved conversation or state, or begin with a tuned one",
    ),
    (
        "/system",
        "[TEXT]",
        "begin a new conversation with this system text, or show it",
    ),
    (
        "/set",
        "NAME VALUE",
        "change how answers are drawn: preset, temperature, top-p, think, ...",
    ),
    ("/show", "", "show the conversation"),
    ("/stats", "", "show speeds, sizes and settings"),
    ("/help", "", "show this"),
    ("/quit", "", "end; so does Ctrl-D"),
];

pub(crate) fn help() -> String {
    let line = |(name, argument, what): &(&str, &str, &str)| {
        format!("{:18} {what}\n", format!("{name} {argument}"))
    };
    let commands: String = COMMANDS.iter().map(line).collect();
    commands
        + "//TEXT             say /TEXT: a message that begins with a slash\n\
           TEXT\\              the message goes on in the next line\n\
           Ctrl-C             end the answer, keeping what there is of it"
}

impl Line {
    /// Errors say what is wrong with a command.
    pub(crate) fn parse(line: &str) -> Result<Self, String> {
        // A backslash at the end of a line joins it with the next.
        let line = line.replace("\\\n", "\n");
        let line = line.trim();
        if line.is_empty() {
            return Ok(Line::Nothing);
        }
        let Some(command) = line.strip_prefix('/') else {
            return Ok(Line::Message(line.to_owned()));
        };
        if command.starts_with('/') {
            return Ok(Line::Message(command.to_owned()));
        }
        let (name, argument) = match command.split_once(char::is_whitespace) {
            Some((name, argument)) => (name, argument.trim()),
            None => (command, ""),
        };
        let file = |parsed: fn(PathBuf) -> Line| match argument {
            "" => Err(format!("/{name}: which file? /{name} FILE")),
            path => Ok(parsed(with_home(path))),
        };
        let alone = |parsed: Line| match argument {
            "" => Ok(parsed),
            _ => Err(format!(
                "/{name} takes nothing behind it, found {argument:?}"
            )),
        };
        match name {
            "reset" => alone(Line::Reset),
            "undo" => alone(Line::Undo),
            "retry" => alone(Line::Retry),
            "save" => file(Line::Save),
            "load" => file(Line::Load),
            "system" if argument.is_empty() => Ok(Line::System(None)),
            "system" => Ok(Line::System(Some(argument.to_owned()))),
            "set" => match argument.split_whitespace().collect::<Vec<_>>()[..] {
                [name, value] => Ok(Line::Set(name.to_owned(), value.to_owned())),
                _ => Err("/set: what to what? /set NAME VALUE, such as /set temperature 1".into()),
            },
            "show" => alone(Line::Show),
            "stats" => alone(Line::Stats),
            "help" => alone(Line::Help),
            "quit" | "exit" => alone(Line::Quit),
            _ => Err(format!(
                "/{name}: no such command; /help lists them, and // begins a message with a slash"
            )),
        }
    }
}

/// A shell would have put the home folder in the place of `~`.
fn with_home(path: &str) -> PathBuf {
    match path.strip_prefix("~/").zip(cache_folder::home()) {
        Some((rest, home)) => home.join(rest),
        None => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        let parse = |line: &str| Line::parse(line).expect("a line");
        let message = |text: &str| Line::Message(text.into());
        assert_eq!(parse("  \t"), Line::Nothing);
        assert_eq!(parse(" hello /undo "), message("hello /undo"));
        assert_eq!(parse("one\\\ntwo"), message("one\ntwo"));
        assert_eq!(parse("//etc/passwd?"), message("/etc/passwd?"));
        assert_eq!(parse("/undo "), Line::Undo);
        assert_eq!(
            parse("/save my talk.state"),
            Line::Save("my talk.state".into())
        );
        assert_eq!(parse("/system"), Line::System(None));
        assert_eq!(
            parse("/system Be\\\nkind."),
            Line::System(Some("Be\nkind.".into()))
        );
        assert_eq!(parse("/exit"), Line::Quit);
        for (line, part) in [
            ("/", "/: no such command"),
            ("/Undo", "/Undo: no such command"),
            ("/undo 3", "/undo takes nothing"),
            ("/save", "/save FILE"),
            ("/load  ", "/load FILE"),
            ("/set", "/set NAME VALUE"),
            ("/set temperature", "/set NAME VALUE"),
        ] {
            let error = Line::parse(line).expect_err(line);
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn every_listed_command_is_one() {
        for (name, argument, _) in COMMANDS {
            let line = match argument {
                "FILE" => format!("{name} x"),
                "NAME VALUE" => format!("{name} x y"),
                _ => name.to_owned(),
            };
            assert!(Line::parse(&line).is_ok(), "{line}");
            assert!(help().contains(name));
        }
    }
}
