//! Commands with a slip of the finger, which would be prompts: without a command, a text is one.
//!
//! A prompt is refused only where it is a single word in small letters that is one slip away from a command's name. Short
//! names are near too many words (`chat`: that, what, cat), so that of those only two letters in the wrong order are
//! taken for a slip, and of five letters one that was left out.

use std::ffi::OsString;

use clap::{ArgMatches, Command};

/// What is said of a prompt that seems to be a command.
pub(crate) fn prompt(command: &Command, matches: &ArgMatches) -> Option<String> {
    if matches.subcommand().is_some() {
        return None;
    }
    let text = matches.get_one::<OsString>("text")?.to_str()?;
    refusal(text, nearest(command, text, is_slip)?)
}

/// The same where the command line is wrong in any case, which was to be that of another command.
pub(crate) fn first_word(command: &Command, args: &[OsString]) -> Option<String> {
    let word = args.get(1)?.to_str()?;
    let is_near = |word: &str, name: &str| name.len() > 3 && strsim::osa_distance(word, name) <= 2;
    refusal(word, nearest(command, word, is_near)?)
}

fn refusal(word: &str, name: &str) -> Option<String> {
    Some(format!(
        "no command `{word}`: did you mean `{name}`? A prompt that is this word follows `generate`: \
         rwkv-edge generate {word}"
    ))
}

/// The name of a command that a word is near to, and is not itself.
fn nearest<'a>(
    command: &'a Command,
    word: &str,
    is_near: impl Fn(&str, &str) -> bool,
) -> Option<&'a str> {
    if word.is_empty() || !word.bytes().all(|byte| byte.is_ascii_lowercase()) {
        return None;
    }
    let names = command.get_subcommands().map(Command::get_name);
    let near = names.filter(|name| *name != word && is_near(word, name));
    near.min_by_key(|name| strsim::osa_distance(word, name))
}

fn is_slip(word: &str, name: &str) -> bool {
    let distance = strsim::osa_distance(word, name);
    let sorted = |text: &str| {
        let mut letters: Vec<u8> = text.bytes().collect();
        letters.sort_unstable();
        letters
    };
    match name.len() {
        0..=3 => false,
        5 if word.len() == 4 => distance == 1,
        4 | 5 => distance == 1 && sorted(word) == sorted(name),
        _ => distance == 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_and_words() {
        let command = crate::help::command();
        for (word, name) in [
            ("quantise", "quantize"),
            ("quantze", "quantize"),
            ("genrate", "generate"),
            ("tokenise", "tokenize"),
            ("perplexty", "perplexity"),
            ("conver", "convert"),
            ("chta", "chat"),
            ("inof", "info"),
            ("evla", "eval"),
            #[cfg(feature = "serve")]
            ("serv", "serve"),
            #[cfg(feature = "serve")]
            ("srve", "serve"),
            #[cfg(feature = "serve")]
            ("sreve", "serve"),
            ("benh", "bench"),
        ] {
            assert_eq!(nearest(&command, word, is_slip), Some(name), "{word}");
        }
        for word in [
            "that",
            "what",
            "cat",
            "into",
            "full",
            "evil",
            "beach",
            "human",
            "mean",
            "server",
            "nerve",
            "swerve",
            "been",
            "once",
            "hello",
            "Quantise",
            "quantise it",
            "",
            "general",
            "logic",
        ] {
            assert_eq!(nearest(&command, word, is_slip), None, "{word}");
        }
    }
}
