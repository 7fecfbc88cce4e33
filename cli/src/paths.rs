//! Paths that users give: links to nothing and addresses are named as what they are, before anything else
//! is tried with them.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{bail, Context as _, Result};
use clap::{ArgMatches, Command};
use rwkv_edge::{Model, State};
use rwkv_edge_chat::Saved;
use rwkv_edge_hub::{without_secrets, Address};

use crate::bench::begins_report;

/// Refuses a path that is a link to nothing, or one that leads nowhere for another reason.
pub(crate) fn check_link(path: &Path) -> Result<()> {
    let error = match fs::metadata(path) {
        Err(error) if path.is_symlink() => error,
        _ => return Ok(()),
    };
    if error.kind() != io::ErrorKind::NotFound {
        bail!("{}: cannot follow this link: {error}", path.display());
    }
    let target = fs::read_link(path).unwrap_or_default();
    bail!(
        "{}: a link to nothing: {} does not exist",
        path.display(),
        target.display()
    )
}

/// What a command writes, and may replace an older one of.
#[derive(Clone, Copy)]
pub(crate) enum Written {
    State,
    Chart,
    ModelFile,
    /// The text of a conversation.
    Conversation,
    /// What `bench --report` writes.
    Report,
}

/// Refuses to write over a file that holds something else: a name that was mistyped must not cost a
/// model. What is no ordinary file, or empty, holds nothing.
pub(crate) fn check_replaced(path: &Path, written: Written) -> Result<()> {
    let found = fs::metadata(path);
    if !found.is_ok_and(|found| found.is_file() && found.len() > 0) {
        return Ok(());
    }
    // By how they begin: one that was cut short or damaged may be replaced, too.
    let start = start_of(path).with_context(|| format!("{}: cannot read", path.display()))?;
    let (what, is_one) = match written {
        Written::State => ("a state", State::begins_saved(&start)),
        Written::Chart => ("an SVG file", start.starts_with(b"<svg")),
        Written::ModelFile => ("a model file", Model::begins_model_file(&start)),
        Written::Conversation => ("the text of a conversation", Saved::begins_text(&start)),
        Written::Report => ("a report of `bench`", begins_report(&start)),
    };
    match is_one {
        true => Ok(()),
        false => bail!(
            "{}: exists and is not {what}, expected a new file, or an older one to replace",
            path.display()
        ),
    }
}

fn start_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    fs::File::open(path)?.take(64).read_to_end(&mut start)?;
    Ok(start)
}

/// Refuses links to nothing among all the paths of a command line.
pub(crate) fn check_links(command: &Command, matches: &ArgMatches) -> Result<()> {
    for arg in command.get_arguments() {
        let id = arg.get_id().as_str();
        // Of any other type there are none.
        if let Ok(Some(paths)) = matches.try_get_many::<PathBuf>(id) {
            paths.map(PathBuf::as_path).try_for_each(check_link)?;
        }
    }
    match matches.subcommand() {
        Some((name, matches)) => match command.find_subcommand(name) {
            Some(command) => check_links(command, matches),
            None => Ok(()),
        },
        None => Ok(()),
    }
}

/// Refuses a folder of a model in which a file that goes with it is a link to nothing: it would be opened
/// as if there were no such file.
pub(crate) fn check_folder(folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    let is_beside = |path: &&PathBuf| path.ends_with("config.json") || is_tokenizer(path);
    let are_weights = |path: &&PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let endings = [".safetensors", ".bin", ".pth", ".gguf", ".index.json"];
        endings.iter().any(|ending| name.ends_with(ending))
    };
    paths
        .iter()
        .filter(is_beside)
        .try_for_each(|path| check_link(path))?;
    // Of several files of weights one is enough.
    let has_weights = paths.iter().filter(are_weights).any(|path| path.is_file());
    match has_weights {
        true => Ok(()),
        false => paths
            .iter()
            .filter(are_weights)
            .try_for_each(|path| check_link(path)),
    }
}

/// The same for the tokenizer beside a model that is one file.
pub(crate) fn check_tokenizer(model: &Path) -> Result<()> {
    let Some(folder) = model.parent().filter(|_| !model.is_dir()) else {
        return Ok(());
    };
    let folder = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut tokenizers = entries
        .map(|entry| entry.path())
        .filter(|path| is_tokenizer(path));
    tokenizers.try_for_each(|path| check_link(&path))
}

/// The same for the chat template of a model, in its folder or beside it.
pub(crate) fn check_template(model: &Path) -> Result<()> {
    let folder = match model.is_dir() {
        true => model,
        false => model.parent().unwrap_or(model),
    };
    let names = ["chat_template.jinja", "tokenizer_config.json"];
    let mut paths = names.iter().map(|name| folder.join(name));
    paths.try_for_each(|path| check_link(&path))
}

fn is_tokenizer(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_list = name.starts_with("rwkv_vocab") && name.ends_with(".txt");
    is_list || matches!(&*name, "tokenizer.json" | "vocab.txt")
}

/// Refuses an address where a path or a name is expected, and says by which name the model is known.
pub(crate) fn check_address(model: &Path) -> Result<()> {
    let Some(address) = Address::parse(model).filter(|_| !model.exists()) else {
        return Ok(());
    };
    let shown = model.to_string_lossy();
    let shown = without_secrets(&shown);
    match address {
        Address::Model { id, on_hub: true, .. } => {
            bail!("{shown}: an address; that model is named {id}")
        }
        Address::Model { id, .. } => bail!(
            "{shown}: an address; a model of the hub is named {id}, and HF_ENDPOINT names a mirror of the hub"
        ),
        Address::File(path) => bail!("{shown}: an address; the file is named {}", path.display()),
        _ => bail!("{shown}: an address, expected a path, or a name on the hub such as RWKV/rwkv-4-169m-pile"),
    }
}
