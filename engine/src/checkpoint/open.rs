//! Finds out what a path or folder holds, and puts a checkpoint together from its files.
//!
//! The format of a file is told from its first bytes, never from its name. A lone file brings no
//! configuration: its sizes come from its shapes. A folder's `config.json` must agree with the
//! tensors.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value};

use super::json::{self, UniqueMap};
use super::names::Named;
use super::safetensors::SafetensorsFile;
use super::tensor::RawTensor;
use super::{config, rwkv_cpp, torch, Checkpoint, Opened, TokenizerFile};
use crate::error::{Error, ErrorKind, Result};
use crate::files::{Access, Folder, SourceFile};
use crate::networks::config::Config;

/// An index has a line a tensor.
const INDEX_BYTES_MAX: u64 = 64 << 20;

/// Where a folder's weights are looked for, best first.
const WEIGHT_FILES: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// `__metadata__` of this project's own model files.
const MODEL_FILE_FORMAT: &str = "rwkv-edge";

/// Opens a checkpoint file, a model file, or a folder of either; the files of a folder are mapped or read.
pub(crate) fn open_path(path: &Path, access: Access) -> Result<Opened> {
    let mapped = access != Access::Read;
    let found = std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
    if found.is_dir() {
        return open_folder(Folder::Disk(path.to_owned()), mapped);
    }
    let file = SourceFile::open_with(path, access)?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    open_file(file, &Folder::Disk(parent.to_owned()), mapped)
}

/// Opens a checkpoint file or a model file that lies in memory. Only the latter may bring a tokenizer.
pub(crate) fn open_image(name: &str, image: &'static [u8]) -> Result<Opened> {
    let file = SourceFile::in_memory_image(name, image)?;
    let mut opened = open_file(file, &Folder::Memory(&[]), true)?;
    if let Opened::Checkpoint(checkpoint) = &mut opened {
        checkpoint.tokenizer_search = "a checkpoint in memory brings none".into();
    }
    Ok(opened)
}

/// A lone file: from the folder around it only a tokenizer is taken.
pub(super) fn open_file(file: SourceFile, folder: &Folder, mapped: bool) -> Result<Opened> {
    let place = file.name().to_owned();
    match read_weights(file)? {
        FileContent::ModelFile(file) => Ok(Opened::ModelFile(file)),
        FileContent::Tensors(tensors) => {
            finish(place, tensors, None, folder, mapped).map(Opened::Checkpoint)
        }
    }
}

/// Opens a folder that holds a checkpoint or a model file.
pub(crate) fn open_folder(folder: Folder, mapped: bool) -> Result<Opened> {
    let (name, file) = find_weights(&folder, mapped)?;
    let tensors = if name.ends_with(".index.json") {
        read_shards(&folder, &file, mapped)?
    } else {
        match read_weights(file)? {
            FileContent::ModelFile(file) => return Ok(Opened::ModelFile(file)),
            FileContent::Tensors(tensors) => tensors,
        }
    };
    let (config, fields) = match folder.open("config.json", mapped)? {
        Some(file) => {
            let (config, fields) = config::from_file(&file)?;
            (Some(config), fields)
        }
        None => (None, Map::new()),
    };
    let checkpoint = finish(folder.place(), tensors, config, &folder, mapped)?;
    Ok(Opened::Checkpoint(Checkpoint {
        folder: Some(folder),
        config_fields: fields,
        ..checkpoint
    }))
}

/// The tokenizer file of a folder, and a sentence on what was looked for.
fn find_tokenizer(folder: &Folder, mapped: bool) -> Result<(Option<TokenizerFile>, String)> {
    let search = format!(
        "looked for tokenizer.json, rwkv_vocab*.txt and vocab.txt in {}",
        folder.place()
    );
    // A lone file may lie in a folder that cannot be listed; its weights can be used all the same.
    let names = folder.list().unwrap_or_default();
    let lists: Vec<&String> = names
        .iter()
        .filter(|name| name.starts_with("rwkv_vocab") && name.ends_with(".txt"))
        .collect();
    let name = match lists[..] {
        _ if names.iter().any(|name| name == "tokenizer.json") => "tokenizer.json",
        [] => "vocab.txt",
        [list] => list,
        _ => {
            let search = format!("{search}: several vocabularies, {lists:?}");
            return Ok((None, search));
        }
    };
    let Some(file) = folder.open(name, mapped)? else {
        return Ok((None, search));
    };
    let tokenizer = TokenizerFile {
        name: name.to_owned(),
        place: file.name().to_owned(),
        bytes: file.bytes(0..file.len())?,
    };
    Ok((Some(tokenizer), search))
}

fn finish(
    place: String,
    tensors: Vec<RawTensor>,
    config: Option<Config>,
    folder: &Folder,
    mapped: bool,
) -> Result<Checkpoint> {
    let named = Named::new(place.clone(), tensors)?;
    let (config, source) = match config {
        Some(config) => (config, "config.json"),
        None => (named.infer_config()?, "the other tensors"),
    };
    let tensors = named.into_exact(&config, source)?;
    let (tokenizer, tokenizer_search) = find_tokenizer(folder, mapped)?;
    Ok(Checkpoint {
        place,
        config,
        tensors,
        config_fields: Map::new(),
        folder: None,
        tokenizer,
        tokenizer_search,
    })
}

enum FileContent {
    Tensors(Vec<RawTensor>),
    ModelFile(SafetensorsFile),
}

/// Reads the table of a file of any format.
fn read_weights(file: SourceFile) -> Result<FileContent> {
    let start = file.bytes(0..file.len().min(64))?;
    if torch::recognises(&start) {
        return torch::read(&file).map(FileContent::Tensors);
    }
    if rwkv_cpp::recognises(&start) {
        return rwkv_cpp::read(&file).map(FileContent::Tensors);
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
    Err(unrecognised(&start).at(file.name()))
}

/// Names the formats that are often mistaken for a checkpoint.
fn unrecognised(start: &[u8]) -> Error {
    let torch_before_zip = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    let is = |magic: &[u8]| start.starts_with(magic);
    if is(torch_before_zip) {
        return Error::unsupported(
            "a file in the format of torch before 1.6; load it with torch.load and save it again \
             with torch.save to read it here",
        );
    }
    if is(b"GGUF") {
        return Error::unsupported("a GGUF file, expected the checkpoint that it was made from");
    }
    if is(b"tjgg") || is(b"lmgg") {
        return Error::unsupported(
            "a ggml file of another program than rwkv.cpp, expected the checkpoint that it was made \
             from",
        );
    }
    if is(b"version https://git-lfs") {
        return Error::format(
            "a Git LFS pointer, not the weights themselves; fetch them with git lfs pull",
        );
    }
    if matches!(start, [0x80, 2..=5, ..]) {
        return Error::unsupported("a bare Python pickle, expected a torch or safetensors file");
    }
    Error::format(
        "not a checkpoint: expected a safetensors file, a torch .pth or .bin file, or a .bin file of \
         rwkv.cpp",
    )
}

/// The file that holds a folder's weights, or their index.
fn find_weights(folder: &Folder, mapped: bool) -> Result<(String, SourceFile)> {
    for name in WEIGHT_FILES {
        if let Some(file) = folder.open(name, mapped)? {
            return Ok((name.to_owned(), file));
        }
    }
    let names = folder.list()?;
    let mut candidates = Vec::new();
    for extension in [".safetensors", ".pth", ".bin"] {
        candidates = names
            .iter()
            .filter(|name| name.ends_with(extension))
            .collect();
        if !candidates.is_empty() {
            break;
        }
    }
    let [name] = candidates[..] else {
        let message = if candidates.is_empty() {
            let looked_for = WEIGHT_FILES.join(", ");
            format!("no weights: looked for {looked_for}, *.safetensors, *.pth and *.bin")
        } else {
            format!("several weight files, expected one: {candidates:?}; name one of them instead")
        };
        return Err(Error::format(message).at(folder.place()));
    };
    match folder.open(name, mapped)? {
        Some(file) => Ok((name.clone(), file)),
        None => Err(Error::new(ErrorKind::Io, "gone while being opened")
            .at(format!("{}: {name}", folder.place()))),
    }
}

/// The tensors of all shards of an index, each where the index says.
fn read_shards(folder: &Folder, index: &SourceFile, mapped: bool) -> Result<Vec<RawTensor>> {
    let shard_of = weight_map(index)?;
    let shards: BTreeSet<&String> = shard_of.values().collect();
    let mut tensors = Vec::with_capacity(shard_of.len());
    for shard in shards {
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
                "shard {shard}: a model file, expected part of a checkpoint"
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
        let mut listed = shard_of.iter().filter(|(_, listed)| *listed == shard);
        if let Some((name, _)) = listed.find(|(name, _)| !there.contains(name)) {
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
        weight_map: UniqueMap<Value>,
    }
    let parsed: Index = json::parse(index, INDEX_BYTES_MAX)?;
    let mut shard_of = BTreeMap::new();
    for (name, shard) in parsed.weight_map.0 {
        let Value::String(shard) = shard else {
            let message = format!("tensor {name}: shard {shard}, expected a file name");
            return Err(Error::format(message).at(index.name()));
        };
        shard_of.insert(name, shard);
    }
    Ok(shard_of)
}
