//! The command line as users see it: what `-h` leaves out, examples, and where options may stand.
//!
//! Commands declare their options themselves. Here is what concerns all of them, so that help texts,
//! completion scripts and manual pages come from one definition.

use std::ffi::OsString;

use clap::builder::{Resettable, StyledStr};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches};

use crate::{environment, mistyped, numbers, paths, Cli};

/// Options that only `--help` shows: `-h` is to fit on a screen.
const ADVANCED: &[&str] = &[
    "no_mmap",
    "device_map",
    "max_device_memory",
    "sequences",
    "huge_pages",
    "loras",
    "max_memory",
    "ignore_eos",
    "bos",
    "think",
    "temperature_last",
    "top_k",
    "min_p",
    "typical_p",
    "mirostat_tau",
    "mirostat_eta",
    "presence_penalty",
    "frequency_penalty",
    "penalty_decay",
    "repetition_penalty",
    "ban_token",
    "no_echo",
    "stats",
    "no_history",
    "cache_prompt",
    "no_sparsity",
    "allow_origin",
    "allow_host",
    "state_dir",
    "state_disk",
    "drain",
    "log_prompts",
    "rounds",
    "against_model",
];
/// The options of `generate` that `-h` shows without a command: there is a list of commands, too.
const FIRST: &[&str] = &[
    "text",
    "model",
    "quant",
    "file",
    "max_new_tokens",
    "temperature",
    "top_p",
    "seed",
];

const EXAMPLES: &str = "\
Examples:
  rwkv-edge --quant int8 \"Ownership is\"
  rwkv-edge --model rwkv-4-169m-pile --temperature 0.8 --top-p 0.9 \"Once upon a time\"
  rwkv-edge info --model rwkv-4-169m-pile
";

/// Examples of each command. One that is not here shows its own, if it has any.
const EXAMPLES_OF: &[(&str, &str)] = &[
    (
        "generate",
        "\
Examples:
  rwkv-edge generate -n 50 \"Ownership is\"
  rwkv-edge generate --temperature 0.8 --top-p 0.9 --seed 7 --file prompt.txt
  rwkv-edge generate --preset creative --top-p 0.5 \"Once upon a time\"
  echo -n \"A trait is\" | rwkv-edge generate --stop \"\\n\\n\" --json
  rwkv-edge generate -n 0 --save-state talk.state --file long-prompt.txt
  rwkv-edge generate --load-state talk.state \"and what follows\"",
    ),
    (
        "quantize",
        "\
Examples:
  rwkv-edge quantize --model rwkv-4-169m-pile --quant int8 -o rwkv-4-169m.safetensors
  rwkv-edge quantize --model rwkv-4-169m-pile --compare int8,q5,q4 --text text.txt
  rwkv-edge quantize --model rwkv-4-169m-pile --target-size 100M -o rwkv-4-169m.safetensors
  rwkv-edge --model rwkv-4-169m.safetensors \"Once upon a time\"",
    ),
    (
        "convert",
        "\
Examples:
  rwkv-edge convert -m RWKV-4-Pile-169M.pth -o rwkv-4-169m --tokenizer-file 20B_tokenizer.json
  rwkv-edge convert -m rwkv.cpp-169M-Q5_1.bin -o rwkv-4-169m --dtype f16
  rwkv-edge convert -m rwkv-4-169m --to raw -o RWKV-4-Pile-169M.pth",
    ),
    (
        "info",
        "\
Examples:
  rwkv-edge info --model RWKV-4-Pile-169M.pth
  rwkv-edge info --model rwkv-4-169m.safetensors --verify
  rwkv-edge info --json --tensors
  rwkv-edge info --devices",
    ),
    (
        "tokenize",
        "\
Examples:
  rwkv-edge tokenize \"fn main() {}\"
  rwkv-edge tokenize --json --file prompt.txt
  rwkv-edge tokenize --decode 1,2,3",
    ),
    (
        "logits",
        "\
Examples:
  rwkv-edge logits --tokens 1,2,3
  rwkv-edge logits --tokens 1,2,3 --all --json > logits.json",
    ),
    (
        "chat",
        "\
Examples:
  rwkv-edge chat --model RWKV/rwkv-raven-1b5 --preset chat
  rwkv-edge chat --model rwkv7-g1.pth --think on
  rwkv-edge chat --system-file rules.txt --cache-prompt --save-state talk.state
  printf 'Ownership is\\nA trait is\\n' | rwkv-edge chat --json",
    ),
    (
        "serve",
        "\
Examples:
  rwkv-edge serve
  rwkv-edge serve --model small=rwkv7-g1-0.1b.pth --quant int8 --state-dir ~/.cache/rwkv-states
  rwkv-edge serve --model rwkv7-g1.pth --listen 0.0.0.0:8080 --api-key-file keys.txt --allow-host box.local
  curl http://127.0.0.1:8080/v1/completions -d '{\"prompt\": \"Ownership is\"}'",
    ),
    (
        "embed",
        "\
Examples:
  rwkv-edge embed --file sentences.txt > vectors.jsonl
  rwkv-edge embed --file sentences.txt --from state:6 --format npy > vectors.npy
  echo \"A trait is shared behaviour.\" | rwkv-edge embed --format csv",
    ),
    (
        "perplexity",
        "\
Examples:
  rwkv-edge perplexity --quant int8 text.txt
  rwkv-edge perplexity --window 1024 --stride 512 text.txt
  rwkv-edge perplexity --quant int8 --against f32 --json text.txt
  rwkv-edge perplexity --by-tensor --limit 2000 --plot damage.svg text.txt",
    ),
    (
        "bench",
        "\
Examples:
  rwkv-edge bench --synthetic 169m --quant int8
  rwkv-edge bench --model rwkv-4-169m.safetensors --json --plot speed.svg",
    ),
    (
        "completions",
        "\
Examples:
  rwkv-edge completions bash > ~/.local/share/bash-completion/completions/rwkv-edge
  rwkv-edge completions zsh > ~/.zfunc/_rwkv-edge
  rwkv-edge completions fish > ~/.config/fish/completions/rwkv-edge.fish",
    ),
    (
        "man",
        "\
Examples:
  rwkv-edge man perplexity | man -l -
  rwkv-edge man --output-dir ~/.local/share/man/man1",
    ),
];

/// The whole command line.
pub(crate) fn command() -> Command {
    let command = Cli::command()
        .override_usage("rwkv-edge [OPTIONS] [TEXT]\n       rwkv-edge [OPTIONS] <COMMAND>")
        .after_long_help(format!("{EXAMPLES}\n{}", environment::HELP))
        .mut_args(|arg| match FIRST.contains(&arg.get_id().as_str()) {
            true => arg,
            false => only_in_long_help(arg),
        });
    let command = command.mut_subcommands(|command| with_examples(hide_advanced(command)));
    let command = command.mut_subcommand("quantize", |command| {
        command.mut_arg("quant", quantised_to_int8)
    });
    numbers::allow_hyphens(command)
}

/// `quantize` is there to make models smaller, and has another default than all others.
fn quantised_to_int8(arg: Arg) -> Arg {
    let of_this = |help: &StyledStr| help.to_string().replace("as stored", "int8");
    let help = arg.get_help().map(of_this);
    let long = arg.get_long_help().map(of_this);
    arg.help(help.unwrap_or_default())
        .long_help(long.unwrap_or_default())
}

fn hide_advanced(command: Command) -> Command {
    let command = command.mut_args(|arg| match ADVANCED.contains(&arg.get_id().as_str()) {
        true => only_in_long_help(arg),
        false => arg,
    });
    command.mut_subcommands(hide_advanced)
}

fn only_in_long_help(arg: Arg) -> Arg {
    let arg = arg.hide_short_help(true);
    // Manual pages leave the short text of such an option out.
    match (arg.get_long_help(), arg.get_help().cloned()) {
        (None, Some(help)) => arg.long_help(help),
        _ => arg,
    }
}

fn with_examples(command: Command) -> Command {
    // Whatever follows the options is for the long help.
    let command = match command.get_after_help().cloned() {
        Some(text) => command.after_help(Resettable::Reset).after_long_help(text),
        None => command,
    };
    let examples = EXAMPLES_OF.iter().find(|of| of.0 == command.get_name());
    match examples {
        Some(&(_, examples)) => command.after_long_help(examples),
        None => command,
    }
}

/// Reads the command line; help and version are errors, too.
///
/// Beside the command it gives what is wrong with its paths, if something is.
pub(crate) fn parse(
    args: impl Iterator<Item = OsString>,
) -> Result<(Cli, anyhow::Result<()>), clap::Error> {
    let args: Vec<OsString> = args.collect();
    let mut command = environment::without_empty(command());
    let matches = command.try_get_matches_from_mut(&args);
    let matches = matches.map_err(|error| match error.kind() {
        // Help names the variables that stand for options, whatever is in them.
        ErrorKind::DisplayHelp => {
            let help = self::command().try_get_matches_from(&args);
            help.err().unwrap_or(error)
        }
        // It would be a prompt, with options of another command behind it.
        ErrorKind::UnknownArgument => match mistyped::first_word(&command, &args) {
            Some(text) => command.error(ErrorKind::InvalidSubcommand, text),
            None => error,
        },
        _ => error,
    })?;
    if let Some(text) = mistyped::prompt(&command, &matches) {
        return Err(command.error(ErrorKind::InvalidSubcommand, text));
    }
    if let Some(text) = misplaced(&command, &matches) {
        return Err(command.error(ErrorKind::ArgumentConflict, text));
    }
    let links = paths::check_links(&command, &matches);
    let cli = Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut command))?;
    Ok((cli, links))
}

/// Options of `generate` before another command: `rwkv-edge --model M info` would not use them.
fn misplaced(command: &Command, matches: &ArgMatches) -> Option<String> {
    let (name, _) = matches.subcommand()?;
    let typed = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let arg = command
        .get_arguments()
        .find(|arg| !arg.is_global_set() && typed(arg.get_id().as_str()))?;
    let what = match arg.get_long() {
        Some(long) => format!("--{long}"),
        None => "a text".into(),
    };
    Some(format!(
        "{what} before the command `{name}`: options of a command follow it; a prompt that is the \
         word `{name}` follows `generate`"
    ))
}
