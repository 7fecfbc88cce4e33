//! Checkpoints: from files of several formats to one table of named tensors and one configuration.
//!
//! Sits between `files/` and what builds a model. Input: a file or folder in the form in which
//! RWKV is published: safetensors or torch's zip files, whole or sharded, with BlinkDL's or
//! Hugging Face's names, rwkv.cpp's or llama.cpp's files. Output: a [`Checkpoint`] whose tensors carry BlinkDL's names and are
//! exactly those of its architecture, with the shapes its [`Config`] says, or an error that names file,
//! tensor, expected and found. Nothing here does arithmetic on weights, and nothing in a file is
//! ever executed.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::error::{printable, Error};
use crate::files::{FileBytes, Folder, SourceFile, Watch};
use crate::networks::config::Config;
use crate::networks::mix::Mix;

mod adapter;
mod additions;
mod blocks;
mod chat_template;
mod checksum;
mod config;
mod dtype;
mod foreign;
mod forms;
mod gguf;
mod json;
mod lora;
mod names;
mod open;
mod peft;
mod per_head;
mod pickle;
mod rwkv_cpp;
pub(crate) mod safetensors;
mod shards;
pub(crate) mod tensor;
#[cfg(test)]
mod tests;
mod torch;
mod tuned;
mod views;
mod zip;

pub use chat_template::ChatTemplate;
pub(crate) use chat_template::{read as read_chat_template, METADATA as CHAT_TEMPLATE};
pub(crate) use config::has_ends_of_0;
pub(crate) use dtype::Dtype;
pub(crate) use forms::Forms;
pub use lora::Lora;
pub(crate) use lora::{merge_all, MergedAdapter};
pub(crate) use open::{open_folder, open_image, open_path};
pub(crate) use safetensors::SafetensorsFile;
pub(crate) use tensor::RawTensor;
pub(crate) use tuned::{may_hold_tensors, read_lone, TunedState};

/// All that is known of a model before its weights are read.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// The file or folder, for texts.
    pub(crate) place: String,
    pub(crate) config: Config,
    /// By BlinkDL's names, such as `blocks.0.att.key.weight`. A tied head is the embedding again.
    pub(crate) tensors: BTreeMap<String, RawTensor>,
    /// What was corrected of what its files say, for people.
    pub(crate) correction: Option<String>,
    /// What its empty state is, where that was tuned.
    pub(crate) tuned: Option<TunedState>,
    /// The adapters that were merged with it, in their order.
    pub(crate) adapters: Vec<MergedAdapter>,
    /// All that stands in its `config.json`, if there is one.
    pub(crate) config_fields: Map<String, Value>,
    /// Where its other files are, if it is a folder.
    pub(crate) folder: Option<Folder>,
    pub(crate) tokenizer: Option<TokenizerFile>,
    /// Whether the tokenizer is a part of the file with the weights, and no file itself.
    pub(crate) has_tokenizer_inside: bool,
    /// Which tokenizer files were looked for and where, for the error of whoever needs one.
    pub(crate) tokenizer_search: String,
    /// Which format each matrix becomes, where that was chosen for a size.
    pub(crate) mix: Option<Mix>,
}

impl Checkpoint {
    /// Of the files with the weights, each once.
    pub(crate) fn watches(&self) -> Vec<Watch> {
        let tuned = self.tuned.iter().flat_map(TunedState::layers);
        let tensors = self.tensors.values().chain(tuned);
        let adapters = self.adapters.iter().map(|adapter| adapter.file.watch());
        let files = tensors.map(|tensor| tensor.file.watch());
        Watch::each_once(files.chain(adapters))
    }
}

/// A tokenizer file beside the weights, or made of what is within them. Its content is not looked at here.
#[derive(Clone, Debug)]
pub(crate) struct TokenizerFile {
    /// Without its folder: `tokenizer.json`, or a vocabulary list such as
    /// `rwkv_vocab_v20230424.txt`.
    pub(crate) name: String,
    /// With its folder, for error texts.
    pub(crate) place: String,
    pub(crate) bytes: FileBytes,
}

/// What a path turned out to hold.
#[derive(Debug)]
pub(crate) enum Opened {
    Checkpoint(Box<Checkpoint>),
    /// This project's own single-file format: its reader takes it from here.
    ModelFile(SafetensorsFile),
}

/// Where the records of a torch file are, for tests of who writes them.
#[cfg(test)]
pub(crate) fn torch_records(
    file: &SourceFile,
) -> crate::error::Result<BTreeMap<String, std::ops::Range<u64>>> {
    let records = zip::records(file)?.into_iter();
    Ok(records.map(|(name, record)| (name, record.data)).collect())
}

/// Puts the name of a file before an error, unless the error comes from below and has it already.
fn name_file(error: Error, file: &SourceFile) -> Error {
    if error.to_string().starts_with(&*printable(file.name())) {
        error
    } else {
        error.at(file.name())
    }
}
