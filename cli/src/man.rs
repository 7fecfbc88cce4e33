//! `rwkv-edge man`: manual pages, from the same definitions as the help texts.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{anyhow, Context, Result};
use clap::Command;
use clap_mangen::Man;
use rwkv_edge::OutputFile;

use crate::{environment, help, note};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The command whose page to print, such as `info` or `eval lambada`; without it, the main page
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,

    /// Write all pages into this directory instead, one file for each command; it is made if need be
    #[arg(short, long, value_name = "DIR", conflicts_with = "command")]
    output_dir: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut top = help::command().disable_help_subcommand(true);
    top.build();
    let Some(folder) = &args.output_dir else {
        let mut command = &top;
        for name in &args.command {
            let sub = command.find_subcommand(name);
            command = sub.ok_or_else(|| anyhow!("{name}: no such command; see --help"))?;
        }
        io::stdout().lock().write_all(&page(command)?)?;
        return Ok(());
    };
    fs::create_dir_all(folder).with_context(|| format!("{}: cannot create", folder.display()))?;
    let mut pages = Vec::new();
    collect(&top, &mut pages);
    for command in &pages {
        let path = folder.join(Man::new((*command).clone()).get_filename());
        let mut file = OutputFile::create(&path)?;
        file.write(&page(command)?)?;
        file.commit()?;
    }
    note!("{}: {} manual pages", folder.display(), pages.len());
    Ok(())
}

/// A command and all below it.
fn collect<'a>(command: &'a Command, pages: &mut Vec<&'a Command>) {
    pages.push(command);
    let shown = command.get_subcommands().filter(|sub| !sub.is_hide_set());
    shown.for_each(|sub| collect(sub, pages));
}

fn page(command: &Command) -> io::Result<Vec<u8>> {
    let examples = command.get_after_long_help().map(ToString::to_string);
    let man = Man::new(command.clone()).manual("rwkv-edge");
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut out)?;
    }
    // What follows the options in help texts has sections of its own: `Name:` at the start of a line.
    let examples = examples.unwrap_or_default();
    let rest = match examples.contains(environment::HELP) {
        true => String::new(),
        false => format!("\n{}", environment::HELP),
    };
    for line in examples.lines().chain(rest.lines()) {
        match line.strip_suffix(':') {
            Some(name) if !line.starts_with(' ') => {
                writeln!(out, ".SH {}\n.nf", escaped(&name.to_uppercase()))?;
            }
            _ => writeln!(out, "{}", escaped(line))?,
        }
    }
    writeln!(out, ".fi")?;
    Ok(out)
}

/// Text that roff takes as it is.
fn escaped(line: &str) -> String {
    let text = line.replace('\\', "\\e").replace('-', "\\-");
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text,
    }
}
