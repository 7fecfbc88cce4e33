//! Finds out what a path or folder holds, and puts a checkpoint together from its files.
//!
//! The format of a file is told from its first bytes, never from its name. A lone file brings no
//! configuration: its sizes come from its shapes. A folder's `config.json` must agree with the
//! tensors. A GGUF file is a model by itself, wherever it lies: of what is beside it only a tokenizer is
//! taken, and that only where it has none.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Map;

use super::config::{corrected_end, Stated, CONFIG};
use super::foreign::unrecognised;
use super::gguf::{self, Gguf, Vocabulary};
use super::json::{self, UniqueMap};
use super::names::Named;
use super::safetensors::SafetensorsFile;
use super::shards::{self, Shard};
use super::tensor::RawTensor;
use super::{adapter, rwkv_cpp, torch, Checkpoint, Opened, TokenizerFile};
use crate::error::{Error, ErrorKind, Result};
use crate::files::{retried, Access, Folder, SourceFile};
use crate::networks::config::WORLD_VOCABULARY;

/// An index has a line a tensor.
const INDEX_BYTES_MAX: u64 = 16 << 20;

/// Where a folder's weights are looked for, best first.
const WEIGHT_FILES: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// `__metadata__` of this project's own model files.
pub(super) const MODEL_FILE_FORMAT: &str = "rwkv-edge";

/// Opens a checkpoint file, a model file, or a folder of either; the files of a folder are mapped or read.
pub(crate) fn open_path(path: &Path, access: Access) -> Result<Opened> {
    let mapped = access != Access::Read;
    let found = retried(|| std::fs::metadata(path)).map_err(|e| Error::io("open", path, e))?;
    if found.is_dir() {
        return open_folder(Folder::Disk(path.to_owned()), mapped);
    }
    let file = SourceFile::open_with(path, access)?;
    open_file(file, &folder_of(path), mapped)
}

/// The folder in which a lone file lies.
pub(super) fn folder_of(path: &Path) -> Folder {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    Folder::Disk(parent.to_owned())
}

/// Opens a checkpoint file or a model file that lies in memory. Only the latter and GGUF files may bring a
/// tokenizer.
pub(crate) fn open_image(name: &str, image: &'static [u8]) -> Result<Opened> {
    let file = SourceFile::in_memory_image(name, image)?;
    open_file(file, &Folder::Memory(&[]), true)
}

/// A lone file: from the folder around it only a tokenizer is taken.
pub(super) fn open_file(file: SourceFile, folder: &Folder, mapped: bool) -> Result<Opened> {
    let place = file.name().to_owned();
    match read_weights(file)? {
        FileContent::ModelFile(file) => Ok(Opened::ModelFile(file)),
        FileContent::Gguf(model) => {
            let opened = finish_gguf(place, model, (folder, true), mapped);
            Ok(Opened::Checkpoint(Box::new(opened?)))
        }
        FileContent::Tensors(tensors) => {
            let opened = finish(place.clone(), tensors, None, (folder, true), mapped);
            // The others may lie anywhere, but a model of one shard is none.
            let opened = opened.map_err(|e| match Shard::of_path(&place) {
                Some(shard) if shard.of > 1 => shard.alone().at(place),
                _ => e,
            });
            Ok(Opened::Checkpoint(Box::new(opened?)))
        }
    }
}

/// So often a folder is opened whose model is replaced meanwhile.
const TRIES: usize = 3;

/// Opens a folder that holds a checkpoint or a model file: all of it as it was at one time.
pub(crate) fn open_folder(folder: Folder, mapped: bool) -> Result<Opened> {
    for _ in 0..TRIES {
        let before = folder.identity(CONFIG);
        let opened = read_folder(folder.clone(), mapped);
        if folder.identity(CONFIG) == before {
            return opened;
        }
    }
    let text = "its model is replaced again and again while it is opened";
    Err(Error::new(ErrorKind::Io, text).at(folder.place()))
}

fn read_folder(folder: Folder, mapped: bool) -> Result<Opened> {
    let tensors = match find_weights(&folder, mapped)? {
        Weights::Index(index) => read_indexed(&folder, &index, mapped)?,
        Weights::File(file) => match read_weights(file)? {
            FileContent::ModelFile(file) => return Ok(Opened::ModelFile(file)),
            FileContent::Gguf(model) => {
                let opened = finish_gguf(folder.place(), model, (&folder, false), mapped)?;
                return Ok(Opened::Checkpoint(Box::new(Checkpoint {
                    folder: Some(folder),
                    ..opened
                })));
            }
            FileContent::Tensors(tensors) => tensors,
        },
    };
    let file = folder.open(CONFIG, mapped)?;
    let stated = file.map(|file| Stated::from_file(&file)).transpose()?;
    let checkpoint = finish(folder.place(), tensors, stated, (&folder, false), mapped)?;
    Ok(Opened::Checkpoint(Box::new(Checkpoint {
        folder: Some(folder),
        ..checkpoint
    })))
}

/// The tokenizer file of a folder, and a sentence on what was looked for.
///
/// Some folders have World's vocabulary as its list and as a `tokenizer.json` beside it, which may hold it as BPE and
/// then cuts texts otherwise than in training: the list counts.
fn find_tokenizer(
    folder: &Folder,
    n_vocab: usize,
    mapped: bool,
    is_lone: bool,
) -> Result<(Option<TokenizerFile>, String)> {
    let search = match folder {
        Folder::Memory([]) => return Ok((None, "a checkpoint in memory brings none".into())),
        _ => format!(
            "looked for tokenizer.json, rwkv_vocab*.txt and vocab.txt in {}",
            folder.place()
        ),
    };
    let names = match folder.list() {
        // A lone file may lie in a folder that others may not list; its weights can be used all the same.
        Err(e) if is_lone && is_denied(&e) => {
            let name = "tokenizer.json";
            let search = format!("{search}, of which only the first can be found: {e}");
            return Ok((read_tokenizer(folder, name, mapped)?, search));
        }
        names => names?,
    };
    let lists: Vec<&String> = names
        .iter()
        .filter(|name| name.starts_with("rwkv_vocab") && name.ends_with(".txt"))
        .collect();
    let name = match lists[..] {
        [list] if n_vocab == WORLD_VOCABULARY => list,
        _ if names.iter().any(|name| name == "tokenizer.json") => "tokenizer.json",
        [] => "vocab.txt",
        [list] => list,
        _ => {
            let search = format!("{search}: several vocabularies, {lists:?}");
            return Ok((None, search));
        }
    };
    Ok((read_tokenizer(folder, name, mapped)?, search))
}

fn read_tokenizer(folder: &Folder, name: &str, mapped: bool) -> Result<Option<TokenizerFile>> {
    let Some(file) = folder.open(name, mapped)? else {
        return Ok(None);
    };
    Ok(Some(TokenizerFile {
        name: name.to_owned(),
        place: file.name().to_owned(),
        bytes: file.bytes(0..file.len())?,
    }))
}

fn is_denied(error: &Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|e| e.downcast_ref::<std::io::Error>());
    cause.is_some_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
}

fn finish(
    place: String,
    tensors: Vec<RawTensor>,
    stated: Option<Stated>,
    (folder, is_lone): (&Folder, bool),
    mapped: bool,
) -> Result<Checkpoint> {
    let mut named = Named::new(place.clone(), tensors)?;
    let (config, source, config_fields, correction) = match stated {
        Some(stated) => {
            let config = stated.complete(&named)?;
            let correction = stated.correction(&config);
            (config, stated.source(), stated.fields, correction)
        }
        None => {
            let config = named.infer_config()?;
            let difference = named.difference(&config);
            let source = "the other tensors".to_owned();
            (config, source, Map::new(), difference)
        }
    };
    let tuned = named.take_tuned(&config)?;
    let tensors = named.into_exact(&config, &source)?;
    let n_vocab = config.sizes.n_vocab;
    let (tokenizer, tokenizer_search) = find_tokenizer(folder, n_vocab, mapped, is_lone)?;
    Ok(Checkpoint {
        place,
        config,
        tensors,
        config_fields,
        correction,
        tuned,
        adapters: Vec::new(),
        folder: None,
        tokenizer,
        has_tokenizer_inside: false,
        tokenizer_search,
        mix: None,
    })
}

/// A model that says itself what it is.
fn finish_gguf(
    place: String,
    model: Gguf,
    (folder, is_lone): (&Folder, bool),
    mapped: bool,
) -> Result<Checkpoint> {
    let checkpoint = finish(place, model.tensors, None, (folder, is_lone), mapped)?;
    let mut config = checkpoint.config;
    if let Some(epsilon) = model.layer_norm_epsilon {
        config.settings.layer_norm_epsilon = epsilon;
        config.check().map_err(|e| e.at(&checkpoint.place))?;
    }
    Ok(match model.vocabulary {
        Vocabulary::Found(tokenizer) => Checkpoint {
            config,
            // The vocabulary of such files is always World's.
            correction: model
                .end_of_text
                .filter(|&id| id != 0)
                .map(|id| corrected_end(&checkpoint.place, &format!("{} {id}", gguf::END_OF_TEXT))),
            tokenizer: Some(tokenizer),
            has_tokenizer_inside: true,
            ..checkpoint
        },
        Vocabulary::Unusable(why) => Checkpoint {
            config,
            tokenizer_search: format!("{why}; {}", checkpoint.tokenizer_search),
            ..checkpoint
        },
    })
}

pub(super) enum FileContent {
    Tensors(Vec<RawTensor>),
    Gguf(Gguf),
    ModelFile(SafetensorsFile),
}

/// Reads the table of a file of any format.
pub(super) fn read_weights(file: SourceFile) -> Result<FileContent> {
    let content = read_table(file.clone());
    file.watch().judge(content)
}

fn read_table(file: SourceFile) -> Result<FileContent> {
    let start = file.bytes(0..file.len().min(64))?;
    if torch::recognises(&start) {
        return torch::read(&file).map(FileContent::Tensors);
    }
    if rwkv_cpp::recognises(&start) {
        return rwkv_cpp::read(&file).map(FileContent::Tensors);
    }
    if gguf::recognises(&start) {
        return gguf::read(&file).map(FileContent::Gguf);
    }
    if SafetensorsFile::recognises(&start) {
        let file = SafetensorsFile::open(file)?;
        if file
            .metadata
            .get("format")
            .is_some_and(|format| format == MODEL_FILE_FORMAT)
        {
            return Ok(FileContent::ModelFile(file));
        }
        return file.raw_tensors().map(FileContent::Tensors);
    }
    if file.name().ends_with(".index.json") {
        let text = "a list of what is in which shard, expected weights: name its folder instead";
        return Err(Error::format(text).at(file.name()));
    }
    Err(unrecognised(&file).at(file.name()))
}

/// Where a folder's weights are.
enum Weights {
    File(SourceFile),
    Index(SourceFile),
}

fn find_weights(folder: &Folder, mapped: bool) -> Result<Weights> {
    for name in WEIGHT_FILES {
        if let Some(file) = folder.open(name, mapped)? {
            return Ok(match name.ends_with(".index.json") {
                true => Weights::Index(file),
                false => Weights::File(file),
            });
        }
    }
    if let Some(file) = folder.open(adapter::CONFIG, mapped)? {
        return Err(adapter::without_model(&file));
    }
    let names = folder.list()?;
    let mut candidates = Vec::new();
    for extension in [".safetensors", ".pth", ".bin", ".gguf", ".st"] {
        candidates = names
            .iter()
            .filter(|name| name.ends_with(extension))
            .collect();
        if !candidates.is_empty() {
            break;
        }
    }
    let refuse = |message: String| Err(Error::format(message).at(folder.place()));
    match candidates[..] {
        [] => {
            let looked_for = WEIGHT_FILES.join(", ");
            refuse(format!(
                "no weights: looked for {looked_for}, *.safetensors, *.pth, *.bin and *.gguf"
            ))
        }
        _ if candidates
            .iter()
            .any(|name| Shard::of_path(name).is_some_and(|shard| shard.of > 1)) =>
        {
            Err(shards::without_index(&candidates).at(folder.place()))
        }
        [name] => match folder.open(name, mapped)? {
            Some(file) => Ok(Weights::File(file)),
            None => Err(Error::new(ErrorKind::Io, "gone while being opened")
                .at(format!("{}: {name}", folder.place()))),
        },
        _ => refuse(format!(
            "several weight files, expected one: {candidates:?}; name one of them instead"
        )),
    }
}

/// The tensors of all shards of an index, each where the index says.
fn read_indexed(folder: &Folder, index: &SourceFile, mapped: bool) -> Result<Vec<RawTensor>> {
    let shard_of = weight_map(index)?;
    let mut names_of: BTreeMap<&String, Vec<&String>> = BTreeMap::new();
    for (name, shard) in &shard_of {
        names_of.entry(shard).or_default().push(name);
    }
    let mut tensors = Vec::new();
    for &shard in names_of.keys() {
        let refuse = |message: String| Err(Error::format(message).at(index.name()));
        let plain = !shard.is_empty() && !shard.contains(['/', '\\', ':', '\0']);
        if !plain || shard == "." || shard == ".." {
            return refuse(format!("shard {shard:?}, expected a plain file name"));
        }
        let Some(file) = folder.open(shard, mapped)? else {
            return refuse(format!("shard {shard}: no such file in its folder"));
        };
        let FileContent::Tensors(found) = read_weights(file)? else {
            return refuse(format!(
                "shard {shard}: a whole model, expected part of a checkpoint"
            ));
        };
        for tensor in &found {
            match shard_of.get(&tensor.name) {
                Some(listed) if listed == shard => {}
                Some(listed) => {
                    let message = format!("in this shard, but in {listed} by the index");
                    return Err(Error::format(message).at(tensor.place()));
                }
                None => {
                    let message = "in this shard, but not listed in the index";
                    return Err(Error::format(message).at(tensor.place()));
                }
            }
        }
        let there: BTreeSet<&String> = found.iter().map(|tensor| &tensor.name).collect();
        let listed = names_of.get(shard).map(Vec::as_slice).unwrap_or_default();
        if let Some(name) = listed.iter().find(|name| !there.contains(**name)) {
            return refuse(format!("tensor {name}: not in {shard}, where it should be"));
        }
        tensors.extend(found);
    }
    Ok(tensors)
}

/// Which shard each tensor is in.
fn weight_map(index: &SourceFile) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: UniqueMap<String>,
    }
    let parsed: Index = json::parse(index, INDEX_BYTES_MAX)?;
    Ok(parsed.weight_map.0.into_iter().collect())
}
